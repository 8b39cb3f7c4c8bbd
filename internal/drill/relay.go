package drill

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"holdfast/internal/pg/wal"
)

// relay stands between the copy and the server that it streams from, and lets WAL pass only once it has looked through it, as Guard does with files: what creates a
// tablespace does not pass, and ends the stream. The copy connects to a socket in a directory where its account changes nothing, and gets no password.
type relay struct {
	listen net.Listener
	to     *pgconn.Config
	watch  watch // as it is at the begin of a connection
	ctx    context.Context
	cancel context.CancelFunc
	all    sync.WaitGroup

	mu      sync.Mutex
	refused error // what did not pass
}

// relayPort is what the socket is called by.
const relayPort = 5433

// newRelay listens for the copy, in the directory dir. It ends by close.
func newRelay(ctx context.Context, dir string, to string, owner *account, w watch) (*relay, error) {
	config, err := pgconn.ParseConfig(to)
	if err != nil {
		return nil, err
	}
	config.RuntimeParams["replication"], config.RuntimeParams["application_name"] = "true", "holdfast_drill" // by which it is no standby that somebody waits for
	config.OnNotice = nil
	path := filepath.Join(dir, fmt.Sprintf(".s.PGSQL.%d", relayPort))
	listen, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if owner != nil {
		if err := os.Lchown(path, owner.uid, owner.gid); err != nil {
			return nil, errors.Join(err, listen.Close())
		}
	}
	r := &relay{listen: listen, to: config, watch: w}
	r.ctx, r.cancel = context.WithCancel(ctx)
	r.all.Go(r.accept)
	return r, nil
}

// close ends what goes through it.
func (r *relay) close() {
	r.cancel()
	_ = r.listen.Close() // it was only read from
	r.all.Wait()
}

// stopped returns what did not pass, nil where all did.
func (r *relay) stopped() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.refused
}

func (r *relay) accept() {
	for {
		near, err := r.listen.Accept()
		if err != nil {
			return
		}
		r.all.Go(func() {
			defer near.Close() // who reads there sees the end
			defer context.AfterFunc(r.ctx, func() { _ = near.Close() })()
			if err := r.serve(near); err != nil && r.ctx.Err() == nil {
				b := pgproto3.NewBackend(near, near)
				b.Send(&pgproto3.ErrorResponse{Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: "08006", Message: err.Error()})
				_ = b.Flush() // who reads may have gone
			}
		})
	}
}

// serve connects the copy to the server until one of them ends it. An error is one that the copy is to hear.
func (r *relay) serve(near net.Conn) error {
	b := pgproto3.NewBackend(near, near)
	for {
		m, err := b.ReceiveStartupMessage()
		if err != nil {
			return err
		}
		switch m.(type) {
		case *pgproto3.SSLRequest, *pgproto3.GSSEncRequest:
			if _, err := near.Write([]byte{'N'}); err != nil {
				return err
			}
			continue
		case *pgproto3.StartupMessage:
		default:
			return nil // to cancel what runs, which nothing here does
		}
		break
	}
	server, err := pgconn.ConnectConfig(r.ctx, r.to)
	if err != nil {
		return fmt.Errorf("could not connect to the primary server: %w", err)
	}
	far, err := server.Hijack()
	if err != nil {
		return err
	}
	defer far.Conn.Close() // likewise
	defer context.AfterFunc(r.ctx, func() { _ = far.Conn.Close() })()
	b.Send(&pgproto3.AuthenticationOk{})
	for name, value := range far.ParameterStatuses {
		b.Send(&pgproto3.ParameterStatus{Name: name, Value: value})
	}
	b.Send(&pgproto3.BackendKeyData{ProcessID: far.PID, SecretKey: far.SecretKey})
	b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	if err := b.Flush(); err != nil {
		return err
	}
	r.all.Go(func() {
		_, _ = io.Copy(far.Conn, near) // however it ends
		_ = far.Conn.Close()
	})
	w := r.watch
	err = pass(near, far.Conn, &w)
	var space *TablespaceError
	if errors.As(err, &space) {
		r.mu.Lock()
		r.refused = space
		r.mu.Unlock()
	}
	return err
}

// maxMessage bounds a message of the server, in bytes: WAL comes in pieces of 16 of its pages, and histories of timelines are small.
const maxMessage = 16 << 20

// pass copies messages of a server until there are no more, or one has WAL that w does not let pass.
func pass(to io.Writer, from io.Reader, w *watch) error {
	in := bufio.NewReaderSize(from, 256<<10)
	var message []byte
	for {
		var head [5]byte
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return nil // the server has ended it, or the copy
		}
		length := binary.BigEndian.Uint32(head[1:])
		if length < 4 || length > maxMessage {
			return fmt.Errorf("the server sends a message of %d bytes", length)
		}
		message = append(message[:0], head[:]...)
		message = append(message, make([]byte, length-4)...)
		if _, err := io.ReadFull(in, message[5:]); err != nil {
			return nil
		}
		const before = 25 // 'w', where the WAL begins, the end of the server's, and its clock (XLogData)
		if data := message[5:]; head[0] == 'd' && len(data) > before && data[0] == 'w' {
			if err := w.take(wal.LSN(binary.BigEndian.Uint64(data[1:])), data[before:]); err != nil {
				return err
			}
		}
		if _, err := to.Write(message); err != nil {
			return nil
		}
	}
}

// watch looks through WAL that comes in pieces of any length.
type watch struct {
	run     string // where Guard keeps the ends of segments
	from    wal.LSN
	page    wal.LSN // bytes of a page
	segment wal.SegmentSize

	next   wal.LSN // of the byte behind the last one
	stream []byte  // without the headers of pages, from a multiple of 8 on
}

// take looks through b, which begins at lsn. It returns a *TablespaceError where a record that ends in it creates a tablespace.
func (w *watch) take(lsn wal.LSN, b []byte) error {
	if lsn != w.next || w.next == 0 { // the begin of a segment, as PostgreSQL asks for it
		w.stream, w.next = nil, lsn
		if begin := w.segment.Start(w.segment.Segment(lsn)); lsn == begin && lsn > w.from {
			tail, err := os.ReadFile(filepath.Join(w.run, tailOf(w.segment.Segment(lsn)-1)))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			w.stream = tail[len(tail)%8:]
		}
	}
	w.next += wal.LSN(len(b))
	for len(b) > 0 {
		header := wal.LSN(shortPageHeader)
		if at := lsn - lsn%w.page; at == w.segment.Start(w.segment.Segment(at)) {
			header = wal.HeaderLen
		}
		inPage := lsn % w.page
		n := min(w.page-inPage, wal.LSN(len(b)))
		piece := b[:n]
		if inPage < header {
			piece = piece[min(header-inPage, n):]
		}
		if end := lsn + n; end <= w.from {
			piece = nil
		} else if lsn < w.from {
			piece = piece[max(0, len(piece)-int(end-w.from)):]
		}
		w.stream = append(w.stream, piece...)
		lsn, b = lsn+n, b[n:]
	}
	if err := creates(w.stream); err != nil {
		return err
	}
	if old := (len(w.stream) - maxCreation) &^ 7; old > 0 {
		w.stream = append(w.stream[:0], w.stream[old:]...)
	}
	return nil
}
