package server

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"holdfast/internal/pg/wal"
)

// ConnectStream opens a replication session with the first of the servers that cfg names which answers and is what target_session_attrs asks for: any,
// primary or read-write, standby or read-only. Each has ten seconds to answer unless connect_timeout says otherwise. Errors are *Error.
func ConnectStream(ctx context.Context, cfg Config) (*Replication, error) {
	cfg = maps.Clone(cfg)
	if cfg == nil {
		cfg = Config{}
	}
	if cfg["connect_timeout"] == "" && cfg["service"] == "" {
		cfg["connect_timeout"] = "10"
	}
	attrs := cfg["target_session_attrs"]
	return connectReplication(ctx, cfg, func(c Config) (*pgx.ConnConfig, error) {
		parsed, err := c.parseSeveral()
		if err != nil {
			return nil, err
		}
		parsed.ValidateConnect = nil
		switch attrs {
		case "primary", "read-write":
			parsed.ValidateConnect = wanted(false)
		case "standby", "read-only":
			parsed.ValidateConnect = wanted(true)
		}
		return parsed, nil
	})
}

// wanted refuses a server that is no standby, or that is one. The driver's own functions ask by what a session for replication does not answer: it knows
// SHOW, in capitals, and no queries.
func wanted(standby bool) pgconn.ValidateConnectFunc {
	return func(ctx context.Context, pg *pgconn.PgConn) error {
		results, err := pg.Exec(ctx, "SHOW transaction_read_only").ReadAll() // see connectReplication
		switch {
		case err != nil:
			return err
		case len(results) != 1 || len(results[0].Rows) != 1 || len(results[0].Rows[0]) != 1:
			return errors.New("the server does not say whether it is a standby")
		case standby && string(results[0].Rows[0][0]) != "on":
			return errors.New("it is no standby")
		case !standby && string(results[0].Rows[0][0]) == "on":
			return errors.New("it is a standby")
		}
		return nil
	}
}

// CreateSlot makes sure that there is a physical replication slot, and reports whether this call has made it. A new one keeps the WAL from the last
// checkpoint on.
func (c *Replication) CreateSlot(ctx context.Context, name string) (created bool, err error) {
	if err := CheckSlotName(name); err != nil {
		return false, err
	}
	_, err = c.rows(ctx, `CREATE_REPLICATION_SLOT "`+name+`" PHYSICAL RESERVE_WAL`)
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "42710" { // duplicate_object
		return false, nil
	}
	if err != nil {
		return false, c.error(ctx, "create the replication slot "+name, err)
	}
	return true, nil
}

// CheckSlotName reports whether a replication slot may have that name, and why not.
func CheckSlotName(name string) error {
	if name == "" || len(name) > 63 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
		return fmt.Errorf("%q is not the name of a replication slot: 1 to 63 of a-z, 0-9 and _", name)
	}
	return nil
}

// Stream is a session that is being sent the write-ahead log of a timeline, through a slot, and is told how much of it has arrived. Next is for one
// goroutine; Report may be called by others meanwhile. Close ends the session.
type Stream struct {
	session *Replication
	watch   *watch
	next    wal.LSN
	timely  wal.Timeline // the one that follows, once Next returned io.EOF

	mu       sync.Mutex // sending
	reported [2]wal.LSN // written, flushed
	ended    bool       // the server expects no reports: not yet, or no more
}

// Stream begins to stream timeline t from from on. "" is no slot. The session is the stream's from then on. WAL that the server no longer has is a
// *pgconn.PgError of code 58P01, here or from Next.
func (c *Replication) Stream(ctx context.Context, slot string, t wal.Timeline, from wal.LSN) (_ *Stream, err error) {
	s := &Stream{session: c, watch: newWatch(ctx, c.pg.Conn()), next: from, ended: true}
	defer func() {
		if err != nil { // ctx would keep the connection for as long as it lasts
			s.watch.stop()
		}
	}()
	command := "START_REPLICATION "
	if slot != "" {
		if err := CheckSlotName(slot); err != nil {
			return nil, err
		}
		command += `SLOT "` + slot + `" `
	}
	front := c.pg.Frontend()
	front.SendQuery(&pgproto3.Query{String: fmt.Sprintf("%sPHYSICAL %s TIMELINE %d", command, from, uint32(t))})
	if err := front.Flush(); err != nil {
		return nil, s.error(err)
	}
	for {
		m, err := s.receive()
		if err != nil {
			return nil, s.error(err)
		}
		switch m.(type) {
		case *pgproto3.CopyBothResponse:
			s.mu.Lock()
			s.ended = false
			s.mu.Unlock()
			return s, nil
		case *pgproto3.NoticeResponse, *pgproto3.ParameterStatus:
		case *pgproto3.RowDescription: // nothing is on that timeline from there on
			if err := s.switchTo(); err != nil {
				return nil, s.error(err)
			}
			return s, nil
		default:
			return nil, s.error(unexpected(m))
		}
	}
}

// silence is how long a server may say nothing before it is asked for a sign of life; walSilence is when it is given up.
const silence = walSilence / 3

// Next returns the next bytes of the log and where they begin: where those before ended. They are valid until Next is called again. No bytes and no
// error is a sign of life. At the end of a timeline that the server has left it is io.EOF; Following then says how it goes on.
func (s *Stream) Next() (at wal.LSN, data []byte, err error) {
	if s.timely != 0 {
		return s.next, nil, io.EOF
	}
	m, err := s.receive()
	if err != nil {
		return s.next, nil, s.error(err)
	}
	switch m := m.(type) {
	case *pgproto3.CopyData:
		at, data, err = s.frame(m.Data)
	case *pgproto3.CopyDone:
		if err = s.finish(); err == nil {
			return s.next, nil, io.EOF
		}
	case *pgproto3.NoticeResponse, *pgproto3.ParameterStatus:
	default:
		err = unexpected(m)
	}
	if err != nil {
		err = s.error(err)
	}
	return at, data, err
}

// frame takes a piece of log or a sign of life ("Streaming Replication Protocol": XLogData, Primary keepalive message).
func (s *Stream) frame(data []byte) (wal.LSN, []byte, error) {
	const dataHead, aliveLen = 1 + 3*8, 1 + 2*8 + 1
	at := s.next
	switch {
	case len(data) >= dataHead && data[0] == 'w':
		if from := wal.LSN(binary.BigEndian.Uint64(data[1:])); from != at {
			return at, nil, fmt.Errorf("the server sent WAL from %s on where %s follows", from, at)
		}
		s.next += wal.LSN(len(data) - dataHead)
		return at, data[dataHead:], nil
	case len(data) == aliveLen && data[0] == 'k':
		if data[aliveLen-1] == 0 {
			return at, nil, nil
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		return at, nil, s.send(false)
	}
	return at, nil, errors.New("the server sent something else than WAL")
}

// Report tells the server up to where the log was written and flushed; it may then remove what is before that, and synchronous commits up to there end
// their wait. A position of 0 is none. With ask the server is to give a sign of life.
func (s *Stream) Report(written, flushed wal.LSN, ask bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return nil
	}
	s.reported = [2]wal.LSN{written, flushed}
	return s.send(ask)
}

// postgresEpoch is where the server's clock begins.
var postgresEpoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// send sends a Standby status update. Nothing is ever applied here.
func (s *Stream) send(ask bool) error {
	if s.ended {
		return nil
	}
	b := make([]byte, 1, 1+4*8+1)
	b[0] = 'r'
	b = binary.BigEndian.AppendUint64(b, uint64(s.reported[0]))
	b = binary.BigEndian.AppendUint64(b, uint64(s.reported[1]))
	b = binary.BigEndian.AppendUint64(b, 0)
	b = binary.BigEndian.AppendUint64(b, uint64(time.Since(postgresEpoch).Microseconds()))
	if ask {
		b = append(b, 1)
	} else {
		b = append(b, 0)
	}
	return s.write(&pgproto3.CopyData{Data: b})
}

// write sends a message past the frontend, whose buffers are its reader's.
func (s *Stream) write(m pgproto3.FrontendMessage) error {
	b, err := m.Encode(nil)
	if err != nil {
		return err
	}
	conn := s.session.pg.Conn()
	if err := conn.SetWriteDeadline(time.Now().Add(walSilence)); err != nil {
		return err
	}
	_, err = conn.Write(b)
	return err
}

// finish takes the end of the timeline, after which the server says how it goes on.
func (s *Stream) finish() error {
	s.mu.Lock()
	s.ended = true
	err := s.write(&pgproto3.CopyDone{})
	s.mu.Unlock()
	if err != nil {
		return err
	}
	return s.switchTo()
}

// switchTo receives the timeline that follows.
func (s *Stream) switchTo() error {
	var follows [][]byte
	for {
		m, err := s.receive()
		if err != nil {
			return err
		}
		switch m := m.(type) {
		case *pgproto3.DataRow:
			follows = nil
			for _, v := range m.Values {
				follows = append(follows, append([]byte(nil), v...))
			}
		case *pgproto3.CopyDone, *pgproto3.RowDescription, *pgproto3.CommandComplete, *pgproto3.NoticeResponse, *pgproto3.ParameterStatus, *pgproto3.CopyData:
		case *pgproto3.ReadyForQuery:
			if len(follows) < 2 {
				return errors.New("the server ended the stream and named no timeline that follows")
			}
			t, err := strconv.ParseUint(string(follows[0]), 10, 32)
			if err != nil || t == 0 {
				return fmt.Errorf("the server named the timeline that follows %.40q", follows[0])
			}
			at, err := wal.ParseLSN(string(follows[1]))
			if err != nil {
				return err
			}
			if at != s.next {
				return fmt.Errorf("the timeline ends at %s, and the server sent it up to %s", at, s.next)
			}
			s.timely = wal.Timeline(t)
			return nil
		default:
			return unexpected(m)
		}
	}
}

// Following returns the timeline that follows the one that was streamed, and where: once Next returned io.EOF.
func (s *Stream) Following() (wal.Timeline, wal.LSN) { return s.timely, s.next }

// receive waits for a message, and once in between asks the server whether it is there: one whose wal_sender_timeout is 0 says nothing by itself.
func (s *Stream) receive() (pgproto3.BackendMessage, error) {
	if err := s.watch.patience(walSilence); err != nil {
		return nil, err
	}
	asking := time.AfterFunc(silence, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		_ = s.send(true) // where that fails so does what is being waited for
	})
	defer asking.Stop()
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

func (s *Stream) error(err error) error {
	return &Error{Op: fmt.Sprintf("receive WAL from %s on", s.next), Err: err}
}

// Close ends the session.
func (s *Stream) Close() error {
	s.watch.stop()
	return s.session.Close()
}
