package walrec

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"holdfast/internal/crc32c"
	"holdfast/internal/pg/wal"
)

// Flags of a page (xlp_info); 4 means nothing any more.
const (
	firstIsRest     = 0x0001 // the page begins with the rest of a record
	longHeader      = 0x0002 // the first page of a segment
	firstOverwrites = 0x0008 // the record that should go on here never will: the server crashed while it wrote it
	allFlags        = 0x000F
)

const (
	shortHeaderLen   = 24                // SizeOfXLogShortPHD
	minPage, maxPage = 1 << 10, 64 << 10 // XLOG_BLCKSZ
)

// Bounds of the memory that a reader takes, in bytes.
const (
	chunkLen   = 128 << 10 // read at once; a multiple of every page's length
	keptRecord = 16 << 20  // of one record; of what is longer only the CRC is computed
)

// ErrEnd is what Next's error wraps where the WAL may simply end: nothing has been written there since the segment was made or
// recycled. In a segment that the server still writes to that is the end; in a finished one it is damage.
var ErrEnd = errors.New("end of WAL")

// FaultError says where in the WAL a Reader found what it cannot accept.
type FaultError struct {
	What string  // page or record
	LSN  wal.LSN // of its first byte
	Err  error
}

func (e *FaultError) Error() string { return fmt.Sprintf("WAL %s %s: %s", e.What, e.LSN, e.Err) }

func (e *FaultError) Unwrap() error { return e.Err }

// major returns PostgreSQL's major version by XLOG_PAGE_MAGIC.
func major(magic uint16) (int, bool) {
	for i, m := range [...]uint16{0xD097, 0xD098, 0xD101, 0xD106, 0xD10D, 0xD110, 0xD113, 0xD116, 0xD118} {
		if m == magic {
			return 10 + i, true
		}
	}
	return 0, false
}

// Reader reads the records of consecutive segments, from the first that begins in them.
type Reader struct {
	src   io.Reader
	bound wal.LSN // nothing from here on is looked at; 0 is no bound
	err   error   // what Next returns from now on

	first    wal.Header // of the first segment
	version  int
	pageLen  int
	timeline wal.Timeline // of the current page

	buf   []byte  // chunkLen bytes
	ahead []byte  // of buf: pages that were not begun
	at    wal.LSN // of the current page
	next  wal.LSN // of ahead
	page  []byte  // of buf: what is left of the current page
	pos   wal.LSN // of page

	started    bool    // tail is complete
	tail       gather  // of the record that began before the first segment, what is in these
	missing    uint32  // bytes of that record that earlier segments lack; more than tail has if it does not end in these
	overwrites bool    // the next record must say which one was given up
	abandoned  wal.LSN // the one it must name; 0 for one that began before the first segment
	tailLost   wal.LSN // the record that began before the first segment and was given up; 0 for none
	switched   bool    // the rest of the segment is void
	last       wal.LSN // the last whole record; 0 before the first
	begun      wal.LSN // the record whose first bytes are in parts while its last are not read; 0 for none
	parts      gather  // of the last record that spans pages
	rec        Record  // the last one read
}

// NewReader returns a Reader of src, which begins with a segment's first byte and goes on with the segments that follow it. With a
// bound that is not 0 it is as if the WAL ended there: bytes from there on are not looked at.
func NewReader(src io.Reader, bound wal.LSN) (*Reader, error) {
	r := &Reader{src: src, bound: bound, buf: make([]byte, chunkLen)}
	r.parts.limit, r.tail.limit = keptRecord, MaxFragment
	if err := r.fill(); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	var err error
	if r.first, err = wal.ReadHeader(r.ahead); err != nil {
		return nil, err
	}
	var ok bool
	if r.version, ok = major(r.first.Magic); !ok {
		return nil, fmt.Errorf("WAL of an unknown version of PostgreSQL, page magic %04X", r.first.Magic)
	}
	length := binary.LittleEndian.Uint32(r.ahead[36:])
	if length < minPage || length > maxPage || length&(length-1) != 0 {
		return nil, fmt.Errorf("WAL has pages of %d bytes", length)
	}
	r.pageLen, r.next, r.timeline = int(length), r.first.Address, r.first.Timeline
	return r, nil
}

// Header returns what the first segment says of itself.
func (r *Reader) Header() wal.Header { return r.first }

// Version returns the major version of the PostgreSQL that wrote the WAL.
func (r *Reader) Version() int { return r.version }

// Timeline returns the timeline of the latest page. A segment that was copied when a timeline began has pages of the one before.
func (r *Reader) Timeline() wal.Timeline { return r.timeline }

// Next returns the next record, which is valid until Next is called again. io.EOF is the end of the source, or the bound; it may cut
// through a record, see Unfinished. An error that wraps ErrEnd says that the rest of the segment may never have been written; other
// errors are of damage, or of the source. After an error there are no more records.
func (r *Reader) Next() (*Record, error) {
	if r.err == nil {
		r.err = r.read()
	}
	if r.err != nil {
		return nil, r.err
	}
	return &r.rec, nil
}

// Unfinished returns where the record begins whose rest is not in the source, after Next returned io.EOF; 0 for none.
func (r *Reader) Unfinished() wal.LSN { return r.begun }

// fill reads ahead.
func (r *Reader) fill() error {
	n, err := io.ReadFull(r.src, r.buf)
	if err != nil && (n == 0 || !errors.Is(err, io.ErrUnexpectedEOF)) {
		return err
	}
	r.ahead = r.buf[:n]
	return nil
}

// turn goes to the next page, and returns its flags and how much of an earlier record it says is missing.
func (r *Reader) turn() (flags uint16, rest uint32, err error) {
	if r.bound != 0 && r.next >= r.bound {
		return 0, 0, io.EOF
	}
	if len(r.ahead) == 0 {
		if err := r.fill(); err != nil {
			return 0, 0, err
		}
	}
	r.at = r.next
	if len(r.ahead) < r.pageLen {
		return 0, 0, r.pageFault("%w: %d bytes of %d", io.ErrUnexpectedEOF, len(r.ahead), r.pageLen)
	}
	b := r.ahead[:r.pageLen]
	le := binary.LittleEndian
	magic, timeline, address := le.Uint16(b), wal.Timeline(le.Uint32(b[4:])), wal.LSN(le.Uint64(b[8:]))
	flags, rest = le.Uint16(b[2:]), le.Uint32(b[16:])
	first := uint64(r.at)%uint64(r.first.SegmentSize) == 0
	switch {
	case magic == r.first.Magic && address < r.at:
		return 0, 0, r.pageFault("%w: the page is of %s", ErrEnd, address)
	case magic == 0 && zero(b):
		return 0, 0, r.pageFault("%w: zeros", ErrEnd)
	case magic != r.first.Magic || flags&^allFlags != 0 || address != r.at || (flags&longHeader != 0) != first:
		return 0, 0, r.pageFault("magic %04X, flags %04X, address %s", magic, flags, address)
	case timeline < r.timeline:
		return 0, 0, r.pageFault("timeline %d after %d", timeline, r.timeline)
	}
	length := shortHeaderLen
	if first {
		h, err := wal.ReadHeader(b)
		if err != nil {
			return 0, 0, r.pageFault("%w", err)
		}
		if h.SystemIdentifier != r.first.SystemIdentifier || h.SegmentSize != r.first.SegmentSize ||
			int(le.Uint32(b[36:])) != r.pageLen {
			return 0, 0, r.pageFault("system %d, segments of %d bytes and pages of %d, unlike the first",
				h.SystemIdentifier, h.SegmentSize, le.Uint32(b[36:]))
		}
		length = wal.HeaderLen
	}
	r.timeline = timeline
	r.ahead, r.next = r.ahead[r.pageLen:], r.at+wal.LSN(r.pageLen)
	if r.bound != 0 && r.bound < r.next {
		b = b[:max(int(r.bound-r.at)&^7, length)]
	}
	r.page, r.pos = b[length:], r.at+wal.LSN(length)
	return flags, rest, nil
}

// pageFault is what is wrong with the page at r.at.
func (r *Reader) pageFault(format string, args ...any) error {
	return &FaultError{"page", r.at, fmt.Errorf(format, args...)}
}

// take moves beyond the next n bytes of the page, and on to a multiple of 8, and returns the n.
func (r *Reader) take(n int) []byte {
	b := r.page[:n]
	aligned := (n + 7) &^ 7 // pages are multiples of 8
	r.page, r.pos = r.page[aligned:], r.pos+wal.LSN(aligned)
	return b
}

// takeRest takes what the page has of a record that lacks so many bytes, as the page itself must say, and returns how many it lacks
// then.
func (r *Reader) takeRest(flags uint16, rest, missing uint32, into *gather) (uint32, error) {
	if flags&firstIsRest == 0 || rest != missing || rest == 0 {
		return 0, r.pageFault("flags %04X and %d bytes of an earlier record, want %d", flags, rest, missing)
	}
	n := int(min(int64(len(r.page)), int64(missing)))
	into.add(r.take(n))
	return missing - uint32(n), nil
}

// start passes the rest of a record that began before the first segment.
func (r *Reader) start() error {
	flags, rest, err := r.turn()
	if err != nil {
		return err
	}
	if flags&firstIsRest != 0 {
		r.missing = rest
		missing := rest
		for {
			if missing, err = r.takeRest(flags, rest, missing, &r.tail); err != nil {
				return err
			}
			if missing == 0 {
				break
			}
			if flags, rest, err = r.turn(); err != nil {
				return err
			}
			if flags&firstOverwrites != 0 {
				break
			}
		}
	}
	r.overwrites = flags&firstOverwrites != 0
	r.started = true
	return nil
}

// read reads the next record into r.rec.
func (r *Reader) read() error {
	if !r.started {
		if err := r.start(); err != nil {
			return err
		}
	}
	if r.switched {
		if err := r.skip(); err != nil {
			return err
		}
	}
	for {
		if len(r.page) == 0 {
			flags, _, err := r.turn()
			if err != nil {
				return err
			}
			if flags&(firstIsRest|firstOverwrites) != 0 {
				return r.pageFault("flags %04X where no record goes on", flags)
			}
			continue // a bound may leave nothing of the page
		}
		rec := &r.rec
		rec.LSN = r.pos
		length := binary.LittleEndian.Uint32(r.page)
		if length == 0 && zero(r.page) {
			return &FaultError{"record", r.pos, fmt.Errorf("%w: zeros", ErrEnd)}
		}
		var b []byte
		var body uint32
		if n := int64(length); n <= int64(len(r.page)) && n >= recordHeaderLen {
			b = r.take(int(length))
			body = crc32c.Checksum(b[recordHeaderLen:])
		} else {
			whole, err := r.assemble(length)
			if err != nil {
				return err
			}
			if !whole {
				continue
			}
			b, body = r.parts.kept, r.parts.crc(recordHeaderLen)
		}
		if err := r.accept(b, body); err != nil {
			return &FaultError{"record", rec.LSN, err}
		}
		return nil
	}
}

// assemble reads a record that spans pages into r.parts. whole is false when it was given up; the record that says so is next.
func (r *Reader) assemble(length uint32) (whole bool, err error) {
	rec := &r.rec
	if len(r.page) >= recordHeaderLen {
		err = rec.header(r.page, r.version)
		if err == nil {
			err = r.inOrder()
		}
	} else if length < recordHeaderLen || length > maxRecord {
		err = fmt.Errorf("length %d", length)
	}
	if err != nil {
		return false, &FaultError{"record", rec.LSN, err}
	}
	r.parts.reset()
	r.begun = rec.LSN
	missing := length - uint32(len(r.page))
	r.parts.add(r.take(len(r.page)))
	for missing > 0 {
		flags, rest, err := r.turn()
		if err != nil {
			return false, err
		}
		if flags&firstOverwrites != 0 {
			r.overwrites, r.abandoned, r.begun = true, rec.LSN, 0
			return false, nil
		}
		if missing, err = r.takeRest(flags, rest, missing, &r.parts); err != nil {
			return false, err
		}
	}
	r.begun = 0
	return true, nil
}

// inOrder compares what r.rec says of the record before it with what that was.
func (r *Reader) inOrder() error {
	if r.last != 0 && r.rec.Prev != r.last {
		return fmt.Errorf("the record before it is said to be %s, and was %s", r.rec.Prev, r.last)
	}
	return nil
}

// accept checks and decodes into r.rec the record that b begins with, whose body has the CRC-32C body.
func (r *Reader) accept(b []byte, body uint32) error {
	rec := &r.rec
	if err := rec.header(b, r.version); err != nil {
		return err
	}
	if err := r.inOrder(); err != nil {
		return err
	}
	if err := checkCRC(b, body); err != nil {
		return err
	}
	if err := rec.decode(b, r.version); err != nil {
		return err
	}
	rec.End = r.pos
	if r.overwrites {
		if !rec.is(RMXLOG, xlogOverwriteContrecord) || len(rec.Main) < 8 {
			return errors.New("it does not say which record it overwrites")
		}
		lost := wal.LSN(binary.LittleEndian.Uint64(rec.Main))
		if lost >= rec.LSN || r.abandoned != 0 && lost != r.abandoned || r.abandoned == 0 && lost >= r.first.Address {
			return fmt.Errorf("it overwrites record %s, which is not the one before it", lost)
		}
		if r.abandoned == 0 {
			r.tailLost = lost
		}
		r.overwrites, r.abandoned = false, 0
	}
	if rec.is(RMXLOG, xlogSwitch) {
		r.switched = true
		size := r.first.SegmentSize
		rec.End = size.Start(size.LastSegment(rec.End) + 1)
	}
	r.last = rec.LSN
	return nil
}

// skip passes what is left of a segment after a switch.
func (r *Reader) skip() error {
	r.switched, r.page = false, nil
	for uint64(r.next)%uint64(r.first.SegmentSize) != 0 {
		if r.bound != 0 && r.next >= r.bound {
			return io.EOF
		}
		if len(r.ahead) == 0 {
			if err := r.fill(); err != nil {
				return err
			}
		}
		if len(r.ahead) < r.pageLen {
			return r.pageFault("%w", io.ErrUnexpectedEOF)
		}
		r.ahead, r.next = r.ahead[r.pageLen:], r.next+wal.LSN(r.pageLen)
	}
	return nil
}

// zero says whether b is all zeros.
func zero(b []byte) bool {
	for len(b) >= 8 {
		if binary.LittleEndian.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
