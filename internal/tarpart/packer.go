package tarpart

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"time"

	"holdfast/internal/crc32c"
	"holdfast/internal/increment"
	"holdfast/internal/pg/datadir"
	"holdfast/internal/pg/page"
	"holdfast/internal/pg/wal"
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

	// Where a file's content comes from: from File if that is set, else from Stream, else it is Content.
	File    string
	Stream  io.Reader // has Size bytes at least; a part fails where it ends before
	Size    int64     // of Stream
	Content []byte
	Bare    bool // the member's name has no leading slash, as WAL-G wants it of backup_label and tablespace_map

	Paged      bool   // the file is made of pages, and their checksums are kept: see Packer.Sums
	Verify     bool   // the pages have checksums of PostgreSQL's, to be verified; implies Paged
	FirstBlock uint32 // number of the file's first page in its relation

	Choose    func(*os.File, fs.FileInfo) (Choice, error) // what is stored of File, asked once it is open; nil for all of it
	Increment *increment.Header                           // Stream holds these pages of the file, and the member is its increment
}

// Choice is what is stored of a file.
type Choice struct {
	Nothing   bool              // it is no member
	Increment *increment.Header // these pages of it; nil for all
	Read      []byte            // the first of these pages, where they were read already; Packer has it until the member is done
}

// Options tunes a Packer. The zero value verifies no page and limits nothing.
type Options struct {
	MaxContent int64 // bytes of content after which no further member is begun; 0 is no bound
	MaxMembers int   // members after which no further one is begun; 0 is no bound
	MaxNames   int   // bytes of paths and link targets after which no further member is begun, a fourth of sets of blocks included; 0 is no bound
	AllCorrupt bool  // keep every corrupt block's number, not just the first ten of a file

	// Start is where the backup begins. A page of a Stream whose checksum does not hold and that was changed later may have been
	// in the middle of being written, and comes right by replaying the WAL: it is not told. 0 tells all.
	Start wal.LSN

	Wait     func(n int) error               // called before n bytes are read from a file or a stream; an error ends the packing
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

// Packer turns entries into one tar part, produced as it is read: a read of the Packer reads the files straight into
// the reader's buffer. Reads end with io.EOF when the part is full or the entries are used up; Members then says what
// is in it. A Packer holds at most one file open; Close closes it.
type Packer struct {
	next    func() (Entry, error)
	opts    Options
	members []Member
	sums    []byte // of pages
	names   int    // bytes of paths, link targets and a fourth of sets of blocks so far
	content int64  // bytes of content begun so far
	pos     int64  // bytes of the stream produced so far

	pending []byte // to be produced before anything else
	bounce  []byte // one page, for pages that lie across the end of the caller's buffer

	file   *os.File // open file of the current member, nil for content from elsewhere
	entry  Entry
	blocks []uint32 // of the current member where it is an increment: its pages
	kept   []byte   // of them those that were read already
	off    int64    // of the current member, bytes read; of an increment those of pages
	left   int64    // of the current member, bytes to come
	stage  stage
	err    error
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

// Sums returns the CRC-32C of each page of the members that have Pages, in order, little-endian.
func (p *Packer) Sums() []byte { return p.sums }

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
	e.Paged = e.Paged || e.Verify
	m := Member{Path: e.Path, Type: e.Type, Mode: uint32(e.Mode.Perm()), ModTime: e.ModTime, Link: e.Link}
	var choice Choice
	if e.Type == File {
		choice, err = p.open(&e, &m)
		switch {
		case errors.Is(err, fs.ErrNotExist) && e.File != "":
			if p.opts.Vanished != nil {
				p.opts.Vanished(e.Path)
			}
			return p.Close()
		case err != nil:
			return errors.Join(fmt.Errorf("pack %s: %w", e.Path, err), p.Close())
		case choice.Nothing:
			return p.Close()
		}
	}
	header, err := encodeHeader(&m, &e)
	if err != nil {
		return errors.Join(fmt.Errorf("pack %s: %w", e.Path, err), p.Close())
	}
	if m.Type == File {
		m.Offset = p.pos + int64(len(header))
	}
	p.left, p.blocks, p.kept = m.Size, nil, choice.Read
	if h := choice.Increment; h != nil {
		begin := len(header)
		header = h.Append(header)
		m.CRC = crc32c.Checksum(header[begin:])
		p.left, p.blocks = m.Size-h.Len(), h.Blocks
		p.names += len(m.Increment.Set) / 4
	}
	p.pending, p.entry, p.off, p.stage = header, e, 0, inside
	p.content += m.Size
	p.names += len(m.Path) + len(m.Link)
	p.members = append(p.members, m)
	return nil
}

// open opens the entry's file, and says how much there is of it in m. Size and times are those of the open file: the walk may
// have been hours ago.
func (p *Packer) open(e *Entry, m *Member) (c Choice, err error) {
	switch {
	case e.File != "":
		if p.file, err = os.Open(e.File); err != nil {
			return c, err
		}
		info, err := p.file.Stat()
		if err != nil {
			return c, err
		}
		if !info.Mode().IsRegular() {
			return c, fmt.Errorf("it was a file and is now %s", info.Mode().Type())
		}
		m.ModTime, m.Size = info.ModTime(), info.Size()
		m.Inode, m.Changed = datadir.Identity(info)
		if e.Choose != nil {
			if c, err = e.Choose(p.file, info); err != nil || c.Nothing {
				return c, err
			}
		}
	case e.Stream != nil:
		m.Size, c.Increment = e.Size, e.Increment
	default:
		m.Size = int64(len(e.Content))
	}
	pages := m.Size / page.Size
	if h := c.Increment; h != nil {
		pages, m.Size = int64(len(h.Blocks)), h.Size()
		if m.Increment, err = describe(h); err != nil {
			return c, err
		}
	} else if !e.Paged || m.Size%page.Size != 0 {
		pages = 0
	}
	if pages > math.MaxUint32 {
		return c, fmt.Errorf("it has %d pages, more than a relation can have", pages)
	}
	m.Pages = uint32(pages)
	return c, nil
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
	paged := p.entry.Paged || p.blocks != nil
	if paged && n >= page.Size {
		n -= n % page.Size
	} else if paged && p.left >= page.Size {
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

// fill reads the member's next bytes into b, whole pages where it is made of them, checks pages and adds to the checksums.
func (p *Packer) fill(b []byte) error {
	if err := p.fetch(b); err != nil {
		return fmt.Errorf("pack %s: %w", p.entry.Path, err)
	}
	m := &p.members[len(p.members)-1]
	if m.Pages == 0 {
		m.CRC = crc32c.Update(m.CRC, b)
	} else {
		for at := 0; at < len(b); at += page.Size {
			sum := crc32c.Checksum(b[at : at+page.Size])
			p.sums = binary.LittleEndian.AppendUint32(p.sums, sum)
			m.CRC = page.AppendCRC(m.CRC, sum)
		}
	}
	p.off += int64(len(b))
	p.left -= int64(len(b))
	return nil
}

// fetch reads the member's next bytes into b and checks pages.
func (p *Packer) fetch(b []byte) error {
	if p.file == nil && p.entry.Stream == nil {
		copy(b, p.entry.Content[p.off:])
		return nil
	}
	if p.blocks != nil {
		return p.fetchPages(b)
	}
	if err := p.wait(len(b)); err != nil {
		return err
	}
	if err := p.readAt(b, p.off); err != nil {
		return err
	}
	return p.checkPages(b, uint32(p.off/page.Size))
}

// fetchPages reads the next pages of an increment into b: those that follow one another in the file at once.
func (p *Packer) fetchPages(b []byte) error {
	for next := p.blocks[p.off/page.Size:]; len(b) > 0; {
		n := 1
		for n < len(b)/page.Size && next[n] == next[0]+uint32(n) {
			n++
		}
		run := b[:n*page.Size]
		if len(p.kept) > 0 {
			n = min(n, len(p.kept)/page.Size)
			run = b[:n*page.Size]
			p.kept = p.kept[copy(run, p.kept):]
		} else {
			if err := p.wait(len(run)); err != nil {
				return err
			}
			if err := p.readAt(run, int64(next[0])*page.Size); err != nil {
				return err
			}
		}
		if err := p.checkPages(run, next[0]); err != nil {
			return err
		}
		next, b = next[n:], b[len(run):]
	}
	return nil
}

func (p *Packer) wait(n int) error {
	if p.opts.Wait == nil {
		return nil
	}
	return p.opts.Wait(n)
}

// readAt reads what the file has at off into b, or what the stream has next.
func (p *Packer) readAt(b []byte, off int64) error {
	if p.file != nil {
		return readAt(p.file, b, off)
	}
	_, err := io.ReadFull(p.entry.Stream, b)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
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

// checkPages verifies the pages of b, the first of which is block of the file. A page that does not verify may just be being
// written: it is read again until it does, or is corrupt.
func (p *Packer) checkPages(b []byte, block uint32) error {
	if !p.entry.Verify {
		return nil
	}
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
	if p.file == nil {
		if h, err := page.ReadHeader(b); err != nil || p.opts.Start != 0 && h.LSN >= p.opts.Start {
			return err
		}
	} else {
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
	p.stage, p.blocks, p.kept, p.entry = between, nil, nil, Entry{}
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
