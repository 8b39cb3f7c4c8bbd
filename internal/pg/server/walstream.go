package server

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"holdfast/internal/pg/wal"
)

// WAL returns what the server's write-ahead log holds on timeline t from from, which is where a segment begins, to before to, through a
// session of its own, which takes another of max_wal_senders. What the server has removed is fs.ErrNotExist, here or from Read. It must have
// got to to, or Read ends with an error after a minute of silence. Close it.
func (c *Replication) WAL(ctx context.Context, t wal.Timeline, from, to wal.LSN) (io.ReadCloser, error) {
	session, err := ConnectReplication(ctx, c.cfg)
	if err != nil {
		return nil, err
	}
	s := &walStream{session: session, watch: newWatch(ctx, session.pg.Conn()), next: from, to: to}
	if err := s.start(t); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// walSilence is how long a server may send nothing that was asked for its write-ahead log; it sends signs of life more often.
const walSilence = time.Minute

// walStream is a session that is being sent write-ahead log.
type walStream struct {
	session  *Replication
	watch    *watch
	next, to wal.LSN
	piece    []byte // received and not yet read
}

func (s *walStream) start(t wal.Timeline) error {
	front := s.session.pg.Frontend()
	front.SendQuery(&pgproto3.Query{String: fmt.Sprintf("START_REPLICATION PHYSICAL %s TIMELINE %d", s.next, uint32(t))})
	if err := front.Flush(); err != nil {
		return s.error(err)
	}
	for {
		m, err := s.receive()
		if err != nil {
			return s.error(err)
		}
		switch m.(type) {
		case *pgproto3.CopyBothResponse:
			return nil
		case *pgproto3.NoticeResponse, *pgproto3.ParameterStatus:
		default:
			return s.error(unexpected(m))
		}
	}
}

// Read returns the next bytes of the write-ahead log.
func (s *walStream) Read(p []byte) (int, error) {
	for len(s.piece) == 0 {
		if s.next >= s.to {
			return 0, io.EOF
		}
		if err := s.fill(); err != nil {
			return 0, s.error(err)
		}
	}
	n := copy(p, s.piece)
	s.piece = s.piece[n:]
	s.next += wal.LSN(n)
	return n, nil
}

// fill receives the next message.
func (s *walStream) fill() error {
	m, err := s.receive()
	if err != nil {
		return err
	}
	switch m := m.(type) {
	case *pgproto3.CopyData:
		return s.frame(m.Data)
	case *pgproto3.CopyDone:
		return fmt.Errorf("timeline or log ends at %s, before %s", s.next, s.to)
	case *pgproto3.NoticeResponse, *pgproto3.ParameterStatus:
		return nil
	}
	return unexpected(m)
}

// frame takes a piece of log or a sign of life ("Streaming Replication Protocol": XLogData, Primary keepalive message).
func (s *walStream) frame(data []byte) error {
	const dataHead, aliveLen = 1 + 3*8, 1 + 2*8 + 1
	switch {
	case len(data) > dataHead && data[0] == 'w':
		if at := wal.LSN(binary.BigEndian.Uint64(data[1:])); at != s.next {
			return fmt.Errorf("the server sent WAL from %s on where %s follows", at, s.next)
		}
		s.piece = data[dataHead:]
		if left := uint64(s.to - s.next); uint64(len(s.piece)) > left {
			s.piece = s.piece[:left]
		}
		return nil
	case len(data) == aliveLen && data[0] == 'k':
		if data[aliveLen-1] == 0 {
			return nil
		}
		answer := make([]byte, 1, 1+4*8+1) // Standby status update: nothing of it is written, flushed or applied
		answer[0] = 'r'
		answer = append(answer, make([]byte, 4*8+1)...)
		front := s.session.pg.Frontend()
		front.Send(&pgproto3.CopyData{Data: answer})
		return front.Flush()
	}
	return errors.New("the server sent something else than WAL")
}

func (s *walStream) receive() (pgproto3.BackendMessage, error) {
	if err := s.watch.patience(walSilence); err != nil {
		return nil, err
	}
	m, err := s.session.pg.Frontend().Receive()
	if err != nil {
		if cause := s.watch.cause(); cause != nil {
			return nil, cause
		}
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			err = fmt.Errorf("the server sent nothing for %s", walSilence)
		}
		return nil, err
	}
	if failed, ok := m.(*pgproto3.ErrorResponse); ok {
		return nil, pgconn.ErrorResponseToPgError(failed)
	}
	return m, nil
}

func (s *walStream) error(err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "58P01" { // undefined_file
		err = fmt.Errorf("%s: %w", pg.Message, fs.ErrNotExist)
	}
	return &Error{Op: fmt.Sprintf("receive WAL from %s on", s.next), Err: err}
}

// Close ends the session.
func (s *walStream) Close() error {
	s.watch.stop()
	return s.session.Close()
}
