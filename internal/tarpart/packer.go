package tarpart

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"time"

	"holdfast/internal/pg/page"
)

// Entry is something to pack.
type Entry struct {
	Path    string // from the data directory, slashes; "." is the directory itself
	Type    Type
	Mode    fs.FileMode
	ModTime time.Time
	UID     int
	GID     int
	Link    string // target of a symbolic link

	File    string // where a file's content is read from; "" takes Content
	Content []byte
	Bare    bool // the member's name has no leading slash, as WAL-G wants it of backup_label and tablespace_map

	Paged      bool   // the file is made of pages with checksums to verify
	FirstBlock uint32 // number of the file's first page in its relation
}

// Options tunes a Packer. The zero value verifies no page and limits nothing.
type Options struct {
	MaxContent int64 // bytes of content after which no further member is begun; 0 is no bound
	MaxMembers int   // members after which no further one is begun; 0 is no bound
	MaxNames   int   // bytes of paths and link targets after which no further member is begun; 0 is no bound
	AllCorrupt bool  // keep every corrupt block's number, not just the first ten of a file

	Wait     func(n int) error               // called before n bytes are read from a file; an error ends the packing
	Vanished func(path string)               // called for a file that was gone when its turn came
	Corrupt  func(path string, block uint32) // called for every corrupt block that the file's description lists
}

const (
	// chunk bounds one read of a file, so that checksums find the bytes still in the processor's second-level cache.
	chunk = 256 << 10
	// keptCorrupt is how many corrupt blocks a file's description lists, as WAL-G does.
	keptCorrupt = 10
	// rereads and rereadPause give a page that is being written time to become whole.
	rereads     = 5
	rereadPause = 10 * time.Millisecond
	// patience is after how many corrupt pages of one file they are re-read once only.
	patience = 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Packer turns entries into one tar part, produced as it is read: a read of the Packer reads the files straight into
// the reader's buffer. Reads end with io.EOF when the part is full or the entries are used up; Members then says what
// is in it. A Packer holds at most one file open; Close closes it.
type Packer struct {
	next    func() (Entry, error)
	opts    Options
	members []Member
	names   int   // bytes of paths and link targets so far
	content int64 // bytes of content begun so far
	pos     int64 // bytes of the stream produced so far

	pending []byte // to be produced before anything else
	bounce  []byte // one page, for pages that lie across the end of the caller's buffer

	file  *os.File // open file of the current member, nil for content in memory
	entry Entry
	off   int64 // of the current member, bytes read
	left  int64 // of the current member, bytes to come
	stage stage
	err   error
}

type stage int

const (
	between stage = iota // a member may begin
	inside               // content of the last of members is to come
	trailer              // nothing but pending is to come
)

// NewPacker returns the part made of what next yields until it returns io.EOF or the part is full. Any other error of
// next ends the part with that error.
func NewPacker(next func() (Entry, error), opts Options) *Packer {
	return &Packer{next: next, opts: opts}
}

// Members returns what the part holds, in order.
func (p *Packer) Members() []Member { return p.members }

// Read produces the next bytes of the part.
func (p *Packer) Read(b []byte) (int, error) {
	if p.err != nil {
		return 0, p.err
	}
	n, err := p.read(b)
	p.pos += int64(n)
	p.err = err
	return n, err
}

func (p *Packer) read(b []byte) (int, error) {
	for len(b) > 0 {
		switch {
		case len(p.pending) > 0:
			n := copy(b, p.pending)
			p.pending = p.pending[n:]
			return n, nil
		case p.stage == inside && p.left > 0:
			return p.readContent(b)
		case p.stage == inside:
			if err := p.finish(); err != nil {
				return 0, err
			}
		case p.stage == trailer:
			return 0, io.EOF
		default:
			if err := p.begin(); err != nil {
				return 0, err
			}
		}
	}
	return 0, nil
}

// zeros is the padding behind a member and the two blocks that end a tar stream.
var zeros [1024]byte

// begin starts the next member, or the trailer.
func (p *Packer) begin() error {
	full := (p.opts.MaxContent > 0 && p.content > p.opts.MaxContent) || (p.opts.MaxMembers > 0 && len(p.members) >= p.opts.MaxMembers) ||
		(p.opts.MaxNames > 0 && p.names >= p.opts.MaxNames)
	if full {
		p.stage, p.pending = trailer, zeros[:]
		return nil
	}
	e, err := p.next()
	if err == io.EOF {
		p.stage, p.pending = trailer, zeros[:]
		return nil
	}
	if err != nil {
		return err
	}
	m := Member{Path: e.Path, Type: e.Type, Mode: uint32(e.Mode.Perm()), ModTime: e.ModTime, Link: e.Link}
	if e.Type == File {
		if m.Size, err = p.open(&e, &m); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				if p.opts.Vanished != nil {
					p.opts.Vanished(e.Path)
				}
				return nil
			}
			return err
		}
	}
	header, err := encodeHeader(&m, &e)
	if err != nil {
		return errors.Join(fmt.Errorf("pack %s: %w", e.Path, err), p.Close())
	}
	m.Offset = p.pos + int64(len(header))
	if m.Type != File {
		m.Offset = 0
	}
	p.pending, p.entry, p.off, p.left, p.stage = header, e, 0, m.Size, inside
	p.content += m.Size
	p.names += len(m.Path) + len(m.Link)
	p.members = append(p.members, m)
	return nil
}

// open opens the entry's file and takes size and modification time from the open file: the walk may have been hours ago.
func (p *Packer) open(e *Entry, m *Member) (size int64, err error) {
	if e.File == "" {
		return int64(len(e.Content)), nil
	}
	f, err := os.Open(e.File)
	if err != nil {
		return 0, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("pack %s: it was a file and is now %s", e.Path, info.Mode().Type())
	}
	if err != nil {
		return 0, errors.Join(err, f.Close())
	}
	p.file, m.ModTime = f, info.ModTime()
	return info.Size(), nil
}

// encodeHeader returns the tar header blocks of a member.
func encodeHeader(m *Member, e *Entry) ([]byte, error) {
	h := tar.Header{
		Name: Name(m.Path), Size: m.Size, Mode: int64(m.Mode), ModTime: m.ModTime, Uid: e.UID, Gid: e.GID, Linkname: m.Link,
		Typeflag: tar.TypeReg,
	}
	switch m.Type {
	case Dir:
		h.Typeflag = tar.TypeDir
	case Symlink:
		h.Typeflag = tar.TypeSymlink
	}
	if e.Bare {
		h.Name = m.Path
	}
	var b bytes.Buffer
	// The writer is left without Close on purpose: only its header blocks are wanted, content follows by other means.
	err := tar.NewWriter(&b).WriteHeader(&h)
	return b.Bytes(), err
}

// readContent produces content of the current member.
func (p *Packer) readContent(b []byte) (int, error) {
	n := int(min(int64(len(b)), p.left, chunk))
	if p.entry.Paged && n >= page.Size {
		n -= n % page.Size
	} else if p.entry.Paged && p.left >= page.Size {
		// A page across the end of b: read it whole to be able to check it, and hand it out in pieces.
		if p.bounce == nil {
			p.bounce = make([]byte, page.Size)
		}
		if err := p.fill(p.bounce); err != nil {
			return 0, err
		}
		p.pending = p.bounce
		return 0, nil
	}
	return n, p.fill(b[:n])
}

// fill reads the member's next bytes into b, checks pages and adds to the checksum.
func (p *Packer) fill(b []byte) error {
	if p.file == nil {
		copy(b, p.entry.Content[p.off:])
	} else {
		if p.opts.Wait != nil {
			if err := p.opts.Wait(len(b)); err != nil {
				return err
			}
		}
		if err := readAt(p.file, b, p.off); err != nil {
			return fmt.Errorf("pack %s: %w", p.entry.Path, err)
		}
		if p.entry.Paged {
			if err := p.checkPages(b); err != nil {
				return fmt.Errorf("pack %s: %w", p.entry.Path, err)
			}
		}
	}
	m := &p.members[len(p.members)-1]
	m.CRC = crc32.Update(m.CRC, castagnoli, b)
	p.off += int64(len(b))
	p.left -= int64(len(b))
	return nil
}

// readAt reads b at off, with zeros for what the file no longer has.
func readAt(f *os.File, b []byte, off int64) error {
	n, err := f.ReadAt(b, off)
	if err == io.EOF {
		clear(b[n:])
		err = nil
	}
	return err
}

// checkPages verifies the pages of b, which were read at p.off. A page that does not verify may just be being
// written: it is read again until it does, or is corrupt.
func (p *Packer) checkPages(b []byte) error {
	block := uint32(p.off / page.Size) // in this file
	for len(b) >= page.Size {
		bad := page.Verify(b[:len(b)/page.Size*page.Size], p.entry.FirstBlock+block)
		if bad < 0 {
			return nil
		}
		block += uint32(bad)
		b = b[bad*page.Size:]
		if err := p.recheck(b[:page.Size], block); err != nil {
			return err
		}
		block++
		b = b[page.Size:]
	}
	return nil
}

func (p *Packer) recheck(b []byte, block uint32) error {
	m := &p.members[len(p.members)-1]
	tries, pause := rereads, rereadPause
	if m.CorruptCount >= patience {
		tries, pause = 1, 0
	}
	for range tries {
		if err := readAt(p.file, b, int64(block)*page.Size); err != nil {
			return err
		}
		if page.Verify(b, p.entry.FirstBlock+block) < 0 {
			return nil
		}
		time.Sleep(pause)
	}
	m.CorruptCount++
	if p.opts.AllCorrupt || len(m.Corrupt) < keptCorrupt {
		m.Corrupt = append(m.Corrupt, block)
		if p.opts.Corrupt != nil {
			p.opts.Corrupt(p.entry.Path, block)
		}
	}
	return nil
}

// finish ends the current member: its file is closed, its padding pending.
func (p *Packer) finish() error {
	size := p.members[len(p.members)-1].Size
	p.pending = zeros[:-size&511]
	p.stage = between
	return p.Close()
}

// Close closes the file that is open. The Packer is of no further use unless it was read to its end.
func (p *Packer) Close() error {
	if p.file == nil {
		return nil
	}
	f := p.file
	p.file = nil
	return f.Close() // only read
}
