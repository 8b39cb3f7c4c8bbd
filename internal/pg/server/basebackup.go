package server

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"holdfast/internal/pg/wal"
)

// Versions that changed BASE_BACKUP.
const (
	firstManifest    = 13_00_00 // MANIFEST
	firstFramed      = 15_00_00 // options in parentheses, one stream of all, compression by the server
	firstIncremental = 17_00_00 // UPLOAD_MANIFEST, INCREMENTAL
)

// BaseBackupOptions says what backup the server is to send. The zero value is a full one.
type BaseBackupOptions struct {
	Label       string
	MaxRate     int    // kilobytes a second at most, 32 to 1048576; 0 is no limit. It is of what the server sends
	Compression string // gzip, lz4 or zstd, by the server, from PostgreSQL 15 on where it was built with it; "" is none
	Level       string // of that compression; "" is the server's choice
	Incremental bool   // upon the manifest that UploadManifest sent

	Silence time.Duration     // how long the server may send nothing once it began to send files; 0 is no limit
	Warning func(text string) // told the server's warnings; nil for nobody
	Special func(path string) // told what in the data directory is not sent, as it is neither file nor directory, instead; nil for Warning
}

// BaseBackup is a base backup that a server sends, read archive by archive: Next, then Read to io.EOF, until Next returns io.EOF; then End.
type BaseBackup struct {
	Start    wal.LSN // redo position of the checkpoint it begins with: all WAL from here on is needed
	Timeline wal.Timeline
	Spaces   []Space // the data directory last
	Size     int64   // bytes of all, by the server's estimate

	conn    *Replication
	watch   *watch
	warning func(string)
	special func(string)
	silence time.Duration

	framed bool
	copies int    // archives still to come, each its own copy, where it is not framed
	inside bool   // a copy, whose end was not seen
	piece  []byte // what was received of the current archive and not yet read
	ahead  *Archive
	ended  bool // the current archive
	over   bool // all archives

	idle    bool // the server waits for the next command
	corrupt bool
}

// Space is a tablespace that the server sends.
type Space struct {
	OID      uint32 // 0 is the data directory
	Location string // as the server says, "" for the data directory; relative where it lies in the data directory itself
}

// Archive is one of the streams a base backup consists of: the tar archive of a tablespace, or the backup_manifest.
type Archive struct {
	Space
	Manifest  bool
	Extension string // .gz, .lz4 or .zst, as the server compressed it
}

// BaseBackup has the server begin a base backup after a fast checkpoint, and returns when that is done. It is the session's only one
// until its End; ctx ends it at any time, and Close where it is given up. The server includes no WAL and does not wait for it to be
// archived, verifies page checksums as it reads (from 11 on), and sends a manifest (from 13 on). An error that is a *pgconn.PgError leaves
// the session usable.
func (c *Replication) BaseBackup(ctx context.Context, opts BaseBackupOptions) (_ *BaseBackup, err error) {
	const op = "start a backup over the wire"
	if c.stream != nil {
		return nil, &Error{Op: op, Err: errors.New("one is running on this session")}
	}
	b := &BaseBackup{conn: c, warning: opts.Warning, special: opts.Special, framed: c.version >= firstFramed, watch: newWatch(ctx, c.pg.Conn())}
	if b.warning == nil {
		b.warning = func(string) {}
	}
	c.stream = b
	defer func() {
		if err == nil {
			return
		}
		if b.idle { // the session is good for another try
			b.release()
		}
		err = c.error(ctx, op, err)
	}()
	front := c.pg.Frontend()
	front.SendQuery(&pgproto3.Query{String: c.command(opts)})
	if err := front.Flush(); err != nil {
		return nil, err
	}
	if err := b.head(); err != nil {
		return nil, err
	}
	b.silence = opts.Silence
	return b, nil
}

// command spells BASE_BACKUP as the server's version has it.
func (c *Replication) command(opts BaseBackupOptions) string {
	label := "LABEL '" + strings.ReplaceAll(opts.Label, "'", "''") + "'"
	words := []string{label, "PROGRESS", "FAST", "NOWAIT"}
	if c.version >= firstFramed {
		words = []string{label, "PROGRESS", "CHECKPOINT 'fast'", "WAIT false"}
	}
	if opts.MaxRate > 0 {
		words = append(words, "MAX_RATE "+strconv.Itoa(opts.MaxRate))
	}
	words = append(words, "TABLESPACE_MAP")
	if c.version >= firstManifest {
		words = append(words, "MANIFEST 'yes'", "MANIFEST_CHECKSUMS 'CRC32C'")
	}
	if c.version < firstFramed {
		return "BASE_BACKUP " + strings.Join(words, " ")
	}
	if opts.Compression != "" {
		words = append(words, "COMPRESSION '"+opts.Compression+"'")
		if opts.Level != "" {
			words = append(words, "COMPRESSION_DETAIL '"+opts.Level+"'")
		}
	}
	if opts.Incremental {
		words = append(words, "INCREMENTAL")
	}
	return "BASE_BACKUP (" + strings.Join(words, ", ") + ")"
}

// head reads the start position and the tablespaces.
func (b *BaseBackup) head() error {
	rows, err := b.table()
	if err != nil {
		return err
	}
	if b.Start, b.Timeline, err = position(rows); err != nil {
		return err
	}
	if rows, err = b.table(); err != nil {
		return err
	}
	for _, row := range rows {
		if len(row) < 3 {
			return fmt.Errorf("the server describes a tablespace with %d columns", len(row))
		}
		var s Space
		if row[0] != nil {
			oid, err := strconv.ParseUint(string(row[0]), 10, 32)
			if err != nil || oid == 0 || row[1] == nil {
				return fmt.Errorf("the server names a tablespace %.40q", row[0])
			}
			s = Space{uint32(oid), string(row[1])}
		}
		if kB, err := strconv.ParseInt(string(row[2]), 10, 53); err == nil {
			b.Size += kB << 10
		}
		b.Spaces = append(b.Spaces, s)
	}
	b.copies = len(b.Spaces)
	if b.conn.version >= firstManifest {
		b.copies++
	}
	if b.framed {
		b.copies = 1
	}
	if len(b.Spaces) == 0 || b.Spaces[len(b.Spaces)-1].OID != 0 {
		return errors.New("the server does not send its data directory last")
	}
	return nil
}

// position reads a table of one row: position and timeline.
func position(rows [][][]byte) (wal.LSN, wal.Timeline, error) {
	if len(rows) != 1 || len(rows[0]) < 2 {
		return 0, 0, fmt.Errorf("the server sent %d rows where its position belongs", len(rows))
	}
	lsn, err := wal.ParseLSN(string(rows[0][0]))
	if err != nil {
		return 0, 0, err
	}
	timeline, err := strconv.ParseUint(string(rows[0][1]), 10, 32)
	if err != nil || timeline == 0 {
		return 0, 0, fmt.Errorf("the server says it is on timeline %.40q", rows[0][1])
	}
	return lsn, wal.Timeline(timeline), nil
}

// maxRows bounds a table of the server's.
const maxRows = 1 << 20

// table reads a table to its end.
func (b *BaseBackup) table() ([][][]byte, error) {
	var rows [][][]byte
	for {
		m, err := b.receive()
		if err != nil {
			return nil, err
		}
		switch m := m.(type) {
		case *pgproto3.RowDescription:
		case *pgproto3.DataRow:
			if len(rows) == maxRows {
				return nil, fmt.Errorf("more than %d rows", maxRows)
			}
			row := make([][]byte, len(m.Values))
			for i, v := range m.Values {
				row[i] = bytes.Clone(v) // valid until the next message only
			}
			rows = append(rows, row)
		case *pgproto3.CommandComplete:
			return rows, nil
		default:
			return nil, unexpected(m)
		}
	}
}

func unexpected(m pgproto3.BackendMessage) error {
	return fmt.Errorf("the server sent %s out of turn", strings.TrimPrefix(fmt.Sprintf("%T", m), "*pgproto3."))
}

// receive returns the next message that is not about the session as a whole. An error of the server's is returned once the server
// waits for the next command.
func (b *BaseBackup) receive() (pgproto3.BackendMessage, error) {
	for {
		m, err := b.message()
		if err != nil {
			return nil, err
		}
		switch m := m.(type) {
		case *pgproto3.NoticeResponse:
			if m.SeverityUnlocalized != "WARNING" {
				continue
			}
			if path := specialFile(m); path != "" && b.special != nil {
				b.special(path)
			} else {
				b.warning(m.Message)
			}
		case *pgproto3.ParameterStatus, *pgproto3.NotificationResponse:
		case *pgproto3.ReadyForQuery:
			b.idle = true
			return m, nil
		case *pgproto3.ErrorResponse:
			failed := pgconn.ErrorResponseToPgError(m)
			for !b.idle {
				after, err := b.message()
				if err != nil {
					return nil, failed // FATAL: it has hung up
				}
				_, b.idle = after.(*pgproto3.ReadyForQuery)
			}
			return nil, failed
		default:
			return m, nil
		}
	}
}

// specialFile returns the path in the server's words that it skips a file, in whatever language they are; "" where they are others
// (sendDir in src/backend/backup/basebackup.c, which knows no other warning).
func specialFile(m *pgproto3.NoticeResponse) string {
	const spaces = "pg_tblspc/" // whose paths begin so
	if m.Routine != "sendDir" {
		return ""
	}
	_, path, ok := strings.Cut(m.Message, "./")
	if i := strings.Index(m.Message, spaces); !ok && i >= 0 {
		path = m.Message[i:]
	}
	return strings.TrimRight(path, "\"'»«“”’‘」 .\u00a0\u202f") // quotation marks
}

// message receives one message, for so long as the server may be silent.
func (b *BaseBackup) message() (pgproto3.BackendMessage, error) {
	if err := b.watch.patience(b.silence); err != nil {
		return nil, err
	}
	m, err := b.conn.pg.Frontend().Receive()
	if err == nil {
		return m, nil
	}
	if cause := b.watch.cause(); cause != nil {
		return nil, cause
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return nil, fmt.Errorf("the server sent nothing for %s", b.silence)
	}
	return nil, fmt.Errorf("the connection was lost: %w", err)
}

// Next begins the next archive; what was not read of the current one is passed over. It returns io.EOF behind the last.
func (b *BaseBackup) Next() (Archive, error) {
	if _, err := io.Copy(io.Discard, b); err != nil {
		return Archive{}, err
	}
	a, err := b.next()
	if err != nil && err != io.EOF {
		err = lost("receive the backup", err)
	}
	return a, err
}

func (b *BaseBackup) next() (Archive, error) {
	for !b.over && b.ahead == nil {
		if !b.inside {
			if err := b.beginCopy(); err != nil {
				return Archive{}, err
			}
			continue
		}
		if err := b.fill(); err != nil {
			return Archive{}, err
		}
		if len(b.piece) > 0 {
			return Archive{}, errors.New("the server sent content before it said of what")
		}
	}
	if b.ahead == nil {
		return Archive{}, io.EOF
	}
	a := *b.ahead
	b.ahead, b.ended = nil, false
	return a, nil
}

// beginCopy waits for the next copy to begin. Where copies are not framed each is an archive, in the order of the tablespaces.
func (b *BaseBackup) beginCopy() error {
	if b.copies == 0 {
		b.over = true
		return nil
	}
	m, err := b.receive()
	if err != nil {
		return err
	}
	if _, ok := m.(*pgproto3.CopyOutResponse); !ok {
		return unexpected(m)
	}
	b.copies--
	b.inside = true
	if b.framed {
		return nil
	}
	b.ahead = &Archive{Manifest: true}
	if i := b.space(); i < len(b.Spaces) {
		b.ahead = &Archive{Space: b.Spaces[i]}
	}
	return nil
}

// space is the index of the tablespace whose copy began last.
func (b *BaseBackup) space() int {
	all := len(b.Spaces)
	if b.conn.version >= firstManifest {
		all++
	}
	return all - b.copies - 1
}

// Read reads the current archive's content. It returns io.EOF at its end.
func (b *BaseBackup) Read(p []byte) (int, error) {
	for len(b.piece) == 0 {
		if b.ended || !b.inside || b.ahead != nil {
			return 0, io.EOF
		}
		if err := b.fill(); err != nil {
			return 0, lost("receive the backup", err)
		}
	}
	n := copy(p, b.piece)
	b.piece = b.piece[n:]
	return n, nil
}

// fill receives the next piece: content, or the end of the archive.
func (b *BaseBackup) fill() error {
	m, err := b.receive()
	if err != nil {
		return err
	}
	switch m := m.(type) {
	case *pgproto3.CopyDone:
		b.inside, b.ended = false, true
	case *pgproto3.CopyData:
		if !b.framed {
			b.piece = m.Data
			return nil
		}
		return b.frame(m.Data)
	default:
		return unexpected(m)
	}
	return nil
}

// frame takes a message of the framed form: a letter and what it introduces.
func (b *BaseBackup) frame(data []byte) error {
	if len(data) == 0 {
		return errors.New("the server sent an empty frame")
	}
	switch kind, rest := data[0], data[1:]; kind {
	case 'd':
		b.piece = rest
	case 'p': // bytes done, by the server's count
		if len(rest) != 8 {
			return fmt.Errorf("the server reports its progress with %d bytes", len(rest))
		}
		_ = binary.BigEndian.Uint64(rest) // ours is of what has arrived
	case 'm':
		b.ended, b.ahead = true, &Archive{Manifest: true}
	case 'n':
		name, rest, ok1 := bytes.Cut(rest, []byte{0})
		location, _, ok2 := bytes.Cut(rest, []byte{0})
		if !ok1 || !ok2 {
			return errors.New("the server announces an archive without a name")
		}
		a, err := b.announced(string(name), string(location))
		if err != nil {
			return err
		}
		b.ended, b.ahead = true, a
	default:
		return fmt.Errorf("the server sent a frame of the unknown kind %q", kind)
	}
	return nil
}

// announced makes sense of an archive's name: base.tar or <OID>.tar, and an extension where it is compressed.
func (b *BaseBackup) announced(name, location string) (*Archive, error) {
	base, extension, ok := strings.Cut(name, ".tar")
	a := &Archive{Space: Space{Location: location}, Extension: extension}
	if base != "base" {
		oid, err := strconv.ParseUint(base, 10, 32)
		ok = ok && err == nil && oid > 0
		a.OID = uint32(oid)
	}
	for _, s := range b.Spaces {
		if ok && s.OID == a.OID {
			return a, nil
		}
	}
	return nil, fmt.Errorf("the server announces an archive %.80q", name)
}

// lost describes what ended a backup that was coming.
func lost(op string, err error) error {
	e := &Error{Op: op, Err: err}
	if pg := new(pgconn.PgError); !errors.As(err, &pg) {
		e.advice = "the server's log may say why it stopped sending; else look at what lies between here and the server"
	}
	return e
}

// End returns where the backup ends, once Next has returned io.EOF. The session is then free for another one.
func (b *BaseBackup) End() (wal.LSN, wal.Timeline, error) {
	lsn, timeline, err := b.end()
	if err != nil {
		return 0, 0, lost("end the backup", err)
	}
	b.release()
	return lsn, timeline, nil
}

func (b *BaseBackup) end() (wal.LSN, wal.Timeline, error) {
	if !b.over {
		return 0, 0, errors.New("not all of it was read")
	}
	rows, err := b.table()
	if err != nil {
		return 0, 0, err
	}
	lsn, timeline, err := position(rows)
	if err != nil {
		return 0, 0, err
	}
	for !b.idle {
		m, err := b.receive()
		var pg *pgconn.PgError
		if errors.As(err, &pg) && pg.Code == "XX001" { // data_corrupted: all was sent, and some pages were bad
			b.corrupt = true
			continue
		}
		if err != nil {
			return 0, 0, err
		}
		switch m.(type) {
		case *pgproto3.CommandComplete, *pgproto3.ReadyForQuery:
		default:
			return 0, 0, unexpected(m)
		}
	}
	return lsn, timeline, nil
}

// Corrupt reports, after End, whether the server found pages whose checksum does not hold. All was sent regardless.
func (b *BaseBackup) Corrupt() bool { return b.corrupt }

// Cancel gives the backup up before its end and leaves the session free for another one.
func (b *BaseBackup) Cancel() error {
	b.abandon()
	if !b.idle {
		return &Error{Op: "cancel the backup", Err: fmt.Errorf("the server did not stop sending within %s", closeTimeout)}
	}
	b.release()
	return nil
}

// release gives the session free.
func (b *BaseBackup) release() {
	b.watch.stop()
	b.conn.stream = nil
	_ = b.conn.pg.Conn().SetReadDeadline(time.Time{}) // of a closed connection nobody reads
}

// abandon has the server stop sending, for as long as a Close may take.
func (b *BaseBackup) abandon() {
	b.watch.stop()
	if b.idle {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout/2)
	defer cancel()
	if err := b.conn.pg.CancelRequest(ctx); err != nil {
		return // a connection that closes ends the backup as well, once the server notices
	}
	if err := b.conn.pg.Conn().SetReadDeadline(time.Now().Add(closeTimeout / 2)); err != nil {
		return
	}
	for !b.idle {
		m, err := b.conn.pg.Frontend().Receive()
		if err != nil {
			return
		}
		_, b.idle = m.(*pgproto3.ReadyForQuery)
	}
}
