package server

import (
	"bytes"
	"context"
	"io"
	"net"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"holdfast/internal/pg/wal"
)

// said is a connection whose other side has said all it will say, and listens to nothing.
type said struct {
	net.Conn
	r *bytes.Reader
}

func (s *said) Read(p []byte) (int, error)       { return s.r.Read(p) }
func (s *said) Write(p []byte) (int, error)      { return len(p), nil }
func (s *said) Close() error                     { return nil }
func (s *said) SetDeadline(time.Time) error      { return nil }
func (s *said) SetReadDeadline(time.Time) error  { return nil }
func (s *said) SetWriteDeadline(time.Time) error { return nil }
func (s *said) RemoteAddr() net.Addr             { return &net.UnixAddr{} }

// sessionThatSays returns a session with a server of that version that says what is given.
func sessionThatSays(version int, messages []byte) (*Replication, error) {
	conn := &said{r: bytes.NewReader(messages)}
	cfg, err := pgconn.ParseConfig("host=/nowhere user=nobody")
	if err != nil {
		return nil, err
	}
	pg, err := pgconn.Construct(&pgconn.HijackedConn{Conn: conn, Frontend: pgproto3.NewFrontend(conn, conn), TxStatus: 'I', Config: cfg})
	if err != nil {
		return nil, err
	}
	pg.Frontend().SetMaxBodyLen(maxMessage)
	return &Replication{pg: pg, version: version}, nil
}

// ReceiveBackup reads a base backup that a server of that version sends by these messages to its end, and returns how much there was.
func ReceiveBackup(version int, messages []byte) (archives int, content int64, err error) {
	c, err := sessionThatSays(version, messages)
	if err != nil {
		return 0, 0, err
	}
	b, err := c.BaseBackup(context.Background(), BaseBackupOptions{})
	if err != nil {
		return 0, 0, err
	}
	for {
		if _, err := b.Next(); err == io.EOF {
			break
		} else if err != nil {
			return archives, content, err
		}
		archives++
		n, err := io.Copy(io.Discard, b)
		content += n
		if err != nil {
			return archives, content, err
		}
	}
	_, _, err = b.End()
	return archives, content, err
}

// ReceiveWAL reads the write-ahead log from from to before to that a server sends by these messages.
func ReceiveWAL(messages []byte, from, to wal.LSN) ([]byte, error) {
	c, err := sessionThatSays(170000, messages)
	if err != nil {
		return nil, err
	}
	s, err := c.stretch(context.Background(), 1, from, to)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(s)
}

// BeginStream begins to stream from a server that says this.
func BeginStream(ctx context.Context, messages []byte) error {
	c, err := sessionThatSays(170000, messages)
	if err != nil {
		return err
	}
	_, err = c.Stream(ctx, "slot", 1, 0x1000)
	return err
}

// ReceiveStream reads the write-ahead log of timeline 1 from from on that a server sends by these messages, to the end of the timeline.
func ReceiveStream(messages []byte, from wal.LSN) (got []byte, follows wal.Timeline, at wal.LSN, err error) {
	c, err := sessionThatSays(170000, messages)
	if err != nil {
		return nil, 0, 0, err
	}
	s, err := c.Stream(context.Background(), "slot", 1, from)
	if err != nil {
		return nil, 0, 0, err
	}
	for {
		_, data, err := s.Next()
		if err == io.EOF {
			follows, at = s.Following()
			return got, follows, at, nil
		}
		if err != nil {
			return got, 0, 0, err
		}
		got = append(got, data...)
	}
}
