package drill

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"holdfast/internal/pg/wal"
	"holdfast/internal/pg/walrec"
)

// TablespaceError says that WAL is not replayed because it creates a tablespace: replay would put a symbolic link to its directory into the copy, and then write
// there, which on the host of the cluster is what the cluster itself writes to.
type TablespaceError struct{ Path string }

func (e *TablespaceError) Error() string {
	return fmt.Sprintf("WAL since the backup creates a tablespace at %s, which a replay here would write into", e.Path)
}

// markFrom is the variable in the environment of the copy that says from which position on it replays.
const markFrom = mark + "_FROM"

// Names of files that Guard keeps in the server's directory.
const (
	refusedName = "refused"  // the path of a tablespace
	tailPrefix  = "wal-end-" // before the number of a segment: its last bytes
)

// Guard looks through the WAL file called name that was fetched to dest, before PostgreSQL gets it, if environ is that of a drill's copy. Where replay could write
// outside of the copy, or that cannot be told, it is an error and there is no dest.
func Guard(environ []string, name, dest string) error {
	dir, from := "", wal.LSN(0)
	for _, v := range environ {
		if value, ok := strings.CutPrefix(v, mark+"="); ok {
			dir = value
		}
		if value, ok := strings.CutPrefix(v, markFrom+"="); ok {
			from = lsnOf(value)
		}
	}
	if dir == "" || wal.KindOf(name) != wal.Segment {
		return nil
	}
	run, err := os.OpenRoot(filepath.Join(dir, runName))
	if err != nil {
		return errors.Join(err, os.Remove(dest))
	}
	defer run.Close() // what is written is closed by itself
	if err = lookThrough(run, name, dest, from, nil); err == nil {
		return nil
	}
	var space *TablespaceError
	if errors.As(err, &space) {
		err = errors.Join(err, run.WriteFile(refusedName, []byte(space.Path), 0o600))
	}
	return errors.Join(err, os.Remove(dest))
}

// tailOf is the name of the file with the end of a segment.
func tailOf(n wal.SegmentNo) string { return fmt.Sprintf("%s%X", tailPrefix, uint64(n)) }

// marks is what the environment of the copy says beside settings.
func (p *Plan) marks() []string {
	from, _ := p.request.Choice.Backup.StartLSN() // 0 where the backup does not say: then all is looked at
	return []string{mark + "=" + p.Scratch, markFrom + "=" + from.String()}
}

// refused returns what Guard has found, nil for nothing.
func (p *Plan) refused() error {
	f, err := os.OpenFile(filepath.Join(p.run(), refusedName), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	defer f.Close() // only read
	b, err := io.ReadAll(io.LimitReader(f, maxCreation))
	if err != nil {
		return nil
	}
	return &HostError{&TablespaceError{string(b)}, "take a new backup, and drill that"}
}

// maxCreation is more than the length of a record that creates a tablespace, in bytes: head, headers of the data, and a number with a path of up to MAXPGPATH, 1024.
const maxCreation = 2 << 10

// lookThrough returns a *TablespaceError where the segment at dest has a record from the position from on that creates a tablespace. Records go on from one segment
// to the next, and PostgreSQL asks for them in order: the end of each is kept in the directory run, in a file of a; nil: of ourselves.
func lookThrough(run *os.Root, name, dest string, from wal.LSN, a *account) error {
	f, err := os.Open(dest)
	if err != nil {
		return err
	}
	defer f.Close() // only read
	in := bufio.NewReaderSize(f, 256<<10)
	head, err := in.Peek(wal.HeaderLen)
	if err != nil {
		return fmt.Errorf("look through %s: %w", name, err)
	}
	h, err := wal.ReadHeader(head)
	if err != nil {
		return fmt.Errorf("look through %s: %w", name, err)
	}
	size := wal.LSN(binary.LittleEndian.Uint32(head[36:])) // of a page
	if size < 1<<10 || size > 64<<10 || size&(size-1) != 0 {
		return fmt.Errorf("look through %s: its pages have %d bytes", name, size)
	}
	end := h.SegmentSize.Start(h.SegmentSize.Segment(h.Address) + 1)
	if end <= from {
		return nil
	}
	tail := func(back wal.SegmentNo) string {
		return tailOf(h.SegmentSize.Segment(h.Address) - back)
	}
	var stream []byte // WAL without the headers of pages
	if h.Address > from {
		if stream, err = run.ReadFile(tail(1)); err != nil && !errors.Is(err, fs.ErrNotExist) { // none is where PostgreSQL looks at a checkpoint first
			return err
		}
	}
	page := make([]byte, size)
	for at := h.Address; at < end; at += size {
		if _, err := io.ReadFull(in, page); err != nil {
			return fmt.Errorf("look through %s: %w", name, err)
		}
		begin := wal.LSN(shortPageHeader)
		if at == h.Address {
			begin = wal.HeaderLen
		}
		if at < from {
			begin = max(begin, min(from-at, size))
		}
		if stream = append(stream, page[begin:]...); len(stream) > 1<<20 || at+size == end {
			if err := creates(stream); err != nil {
				return err
			}
			stream = append(stream[:0], stream[max(0, len(stream)-maxCreation):]...)
		}
	}
	made := fmt.Sprintf("%s.%d", tail(0), os.Getpid()) // another process may look through the same segment
	if err := run.WriteFile(made, stream, 0o600); err != nil {
		return err
	}
	if a != nil {
		if err := run.Lchown(made, a.uid, a.gid); err != nil {
			return err
		}
	}
	if err := run.Rename(made, tail(0)); err != nil {
		return err
	}
	if err := run.Remove(tail(2)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// shortPageHeader is the length of the header of all pages but a segment's first: SizeOfXLogShortPHD.
const shortPageHeader = 24

// creates looks for a record that creates a tablespace at an absolute path (XLOG_TBLSPC_CREATE, xl_tblspc_create_rec), which may begin at any multiple of 8 of the
// stream. A record says how long it is, and what replay takes has the right CRC. From PostgreSQL 15 on a tablespace may have no path: it lies in the data directory.
func creates(stream []byte) error {
	const head = 24 // SizeOfXLogRecord
	le := binary.LittleEndian
	for at := 0; at+head < len(stream); at += 8 {
		b := stream[at:]
		if b[17] != walrec.RMTablespace || b[16]&0xF0 != 0 {
			continue
		}
		length := le.Uint32(b)
		if length <= head || length > maxCreation || int(length) > len(b) {
			continue
		}
		b = b[:length]
		if crc32.Update(crc32.Checksum(b[head:], castagnoli), castagnoli, b[:20]) != le.Uint32(b[20:]) {
			continue
		}
		data := b[head:]
		for len(data) > 0 && data[0] != 255 && data[0] != 254 {
			switch {
			case data[0] == 253 && len(data) > 3: // the origin, where it is replicated
				data = data[3:]
			case data[0] == 252 && len(data) > 5: // the outermost transaction
				data = data[5:]
			default:
				data = nil
			}
		}
		switch {
		case len(data) > 2 && data[0] == 255:
			data = data[2:]
		case len(data) > 5:
			data = data[5:]
		}
		if len(data) < 4 {
			return &TablespaceError{"a path that is not known"}
		}
		if path, _, _ := bytes.Cut(data[4:], []byte{0}); len(path) > 0 && path[0] == '/' {
			return &TablespaceError{string(path)}
		}
	}
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)
