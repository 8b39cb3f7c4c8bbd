package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

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
	s, err := session.stretch(ctx, t, from, to)
	if err != nil {
		return nil, errors.Join(err, session.Close())
	}
	return s, nil
}

// walSilence is how long a server may send nothing that was asked for its write-ahead log; it sends signs of life more often.
const walSilence = time.Minute

// walStream reads a stretch of the write-ahead log.
type walStream struct {
	stream   *Stream
	next, to wal.LSN
	piece    []byte // received and not yet read
}

// stretch is WAL through this session, which is the stream's from then on.
func (c *Replication) stretch(ctx context.Context, t wal.Timeline, from, to wal.LSN) (*walStream, error) {
	s, err := c.Stream(ctx, "", t, from)
	if err != nil {
		return nil, gone(err)
	}
	return &walStream{stream: s, next: from, to: to}, nil
}

// Read returns the next bytes of the write-ahead log.
func (s *walStream) Read(p []byte) (int, error) {
	for len(s.piece) == 0 {
		if s.next >= s.to {
			return 0, io.EOF
		}
		_, data, err := s.stream.Next()
		if err == io.EOF {
			err = s.stream.error(fmt.Errorf("timeline or log ends at %s, before %s", s.next, s.to))
		}
		if err != nil {
			return 0, gone(err)
		}
		s.piece = data[:min(uint64(len(data)), uint64(s.to-s.next))]
	}
	n := copy(p, s.piece)
	s.piece = s.piece[n:]
	s.next += wal.LSN(n)
	return n, nil
}

// gone makes what a server says of write-ahead log that it has removed fs.ErrNotExist.
func gone(err error) error {
	var pg *pgconn.PgError
	var e *Error
	if errors.As(err, &e) && errors.As(err, &pg) && pg.Code == "58P01" { // undefined_file
		return &Error{Op: e.Op, Err: fmt.Errorf("%s: %w", pg.Message, fs.ErrNotExist)}
	}
	return err
}

// Close ends the session.
func (s *walStream) Close() error { return s.stream.Close() }
