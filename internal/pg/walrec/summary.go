package walrec

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"holdfast/internal/pg/blockset"
	"holdfast/internal/pg/wal"
)

// MaxFragment is how many bytes of a Fragment are kept.
const MaxFragment = 1 << 20

// Fragment is a part of a WAL record, without the headers of the pages between.
type Fragment struct {
	Bytes  []byte // the first of it: all, up to MaxFragment
	Length uint32 // of all; 0 for no fragment
	Rest   uint32 // CRC-32C of what follows Bytes
}

// Whole says whether Bytes is all of f.
func (f Fragment) Whole() bool { return uint32(len(f.Bytes)) == f.Length }

// Summary says what one segment of WAL changes. It is made of that segment alone: what is in it of records that begin in an earlier
// segment or end in a later one is kept for a Joiner.
type Summary struct {
	Version          int // major, of the PostgreSQL that wrote it
	SystemIdentifier uint64
	SegmentSize      wal.SegmentSize
	FirstTimeline    wal.Timeline // of the first page; in a segment that was copied when a timeline began, the one before
	Timeline         wal.Timeline // of the last page
	Start, End       wal.LSN      // of the segment; from SummarizeTo, End may lie within it

	Minimal bool // a record says that WAL was written with wal_level=minimal, which does not tell all changes
	Switch  bool // the segment ends early

	// Blocks is what the records change that begin and end in the segment. First and Last are where the first and the last of those
	// begin; 0 for none.
	Blocks      blockset.Set
	First, Last wal.LSN
	Prev        wal.LSN // the record before First, or before Head where there is no First

	// Head is what the segment has of the record that begins at HeadLSN and does not end in it.
	Head    Fragment
	HeadLSN wal.LSN

	// Tail is what the segment has of a record that began in an earlier one. Missing is how many bytes of it earlier ones lack:
	// Tail's length, or more if it does not end in the segment either.
	Tail    Fragment
	Missing uint32
	// Overwritten is where that record begins if it was given up, since the server crashed while it was written; there is no Tail
	// then. Else it is 0.
	Overwritten wal.LSN
}

// All says whether the segment lies within one record.
func (s *Summary) All() bool { return s.Missing > s.Tail.Length }

// Summarize sums up the segment in r, all of whose records it checks. It reads size bytes, none beyond.
func Summarize(r io.Reader, size wal.SegmentSize) (*Summary, error) {
	return summarize(r, size, 0, true)
}

// Check is Summarize without what the records change: Blocks is empty, and Minimal not set. It looks at what they are, of whatever resource manager.
func Check(r io.Reader, size wal.SegmentSize) (*Summary, error) { return summarize(r, size, 0, false) }

// SummarizeTo is Summarize as if the WAL ended at end, which is in the segment or is its end. Nothing from there on is looked at, so
// the server may still write there.
func SummarizeTo(r io.Reader, size wal.SegmentSize, end wal.LSN) (*Summary, error) {
	if end == 0 {
		return nil, errors.New("summary of WAL up to nowhere")
	}
	return summarize(r, size, end, true)
}

func summarize(src io.Reader, size wal.SegmentSize, bound wal.LSN, blocks bool) (*Summary, error) {
	r, err := NewReader(io.LimitReader(src, int64(size)), bound)
	if err != nil {
		return nil, err
	}
	h := r.Header()
	s := &Summary{
		Version: r.Version(), SystemIdentifier: h.SystemIdentifier, SegmentSize: size, FirstTimeline: h.Timeline,
		Start: h.Address, End: h.Address + wal.LSN(size),
	}
	if h.SegmentSize != size {
		return nil, fmt.Errorf("WAL segment of %d bytes where %d are wanted", h.SegmentSize, size)
	}
	if bound != 0 {
		if bound <= s.Start || bound > s.End {
			return nil, fmt.Errorf("%s is not in the WAL segment that begins at %s", bound, s.Start)
		}
		s.End = bound
	}
	c := collector{blocks: &s.Blocks, version: s.Version}
	for {
		rec, err := r.Next()
		if err != nil {
			if r.brief() && errors.Is(err, ErrEnd) {
				s.Switch = true
				break
			}
			if !errors.Is(err, io.EOF) {
				return nil, err
			}
			if r.next < s.End { // the source is shorter
				return nil, fmt.Errorf("WAL segment that begins at %s: %w at %s", s.Start, io.ErrUnexpectedEOF, r.next)
			}
			break
		}
		if blocks {
			if err := c.add(rec); err != nil {
				return nil, err
			}
		}
		if s.First == 0 {
			s.First, s.Prev = rec.LSN, rec.Prev
		}
		s.Last, s.Switch = rec.LSN, rec.is(RMXLOG, xlogSwitch)
	}
	if r.overwrites {
		return nil, fmt.Errorf("WAL segment that begins at %s: %w before what overwrites a record", s.Start, ErrEnd)
	}
	s.Timeline, s.Minimal = r.Timeline(), c.minimal
	if s.Overwritten = r.tailLost; s.Overwritten == 0 {
		s.Tail, s.Missing = r.tail.fragment(), r.missing
	}
	if r.begun != 0 {
		s.Head, s.HeadLSN = r.parts.fragment(), r.begun
		s.Head.Bytes = bytes.Clone(s.Head.Bytes) // not the whole of what the reader keeps
	}
	return s, nil
}

// brief says that nothing is in the segment but the end of a record that may be a switch: no other is as short.
func (r *Reader) brief() bool {
	return r.started && !r.overwrites && r.last == 0 && r.begun == 0 && r.tailLost == 0 &&
		0 < r.missing && r.missing < recordHeaderLen && uint64(r.pos)%uint64(r.first.SegmentSize) == uint64(wal.HeaderLen+(r.missing+7)&^7)
}

// Joiner puts together the summaries of consecutive segments, in order, and with them the records that span them.
type Joiner struct {
	CheckOnly bool // the summaries are of Check: Blocks stays empty

	// Blocks is what is changed by all records that begin in the first segment or later and end in the last or earlier.
	Blocks  blockset.Set
	Minimal bool // some of the WAL was written with wal_level=minimal, and Blocks may lack what it changed

	before  *Summary // the last one added; without its Blocks
	last    wal.LSN  // the last whole record; 0 if not known
	within  bool     // the record is unfinished that began before the first segment
	begun   wal.LSN  // the record whose first bytes are in parts; 0 for none
	prev    wal.LSN  // the one before it
	parts   gather
	missing uint32 // bytes of it not in parts
}

// Add takes in the summary of the next segment. It keeps no reference to s.
func (j *Joiner) Add(s *Summary) error {
	if err := j.add(s); err != nil {
		return fmt.Errorf("WAL segment %s: %w", s.SegmentSize.Name(s.Timeline, s.SegmentSize.Segment(s.Start)), err)
	}
	return nil
}

// Unfinished returns where the record begins of which the last segment does not have the end; 0 for none.
func (j *Joiner) Unfinished() wal.LSN { return j.begun }

func (j *Joiner) add(s *Summary) error {
	if err := j.follows(s); err != nil {
		return err
	}
	if err := j.join(s); err != nil {
		return err
	}
	if s.First != 0 {
		if err := j.inOrder(s.Prev); err != nil {
			return err
		}
		j.last = s.Last
	}
	j.Blocks.Merge(&s.Blocks)
	j.Minimal = j.Minimal || s.Minimal
	if s.Head.Length > 0 {
		if err := j.begin(s); err != nil {
			return err
		}
	}
	before := *s
	before.Blocks, before.Head.Bytes, before.Tail.Bytes = blockset.Set{}, nil, nil
	j.before = &before
	return nil
}

// follows checks that s is the next summary.
func (j *Joiner) follows(s *Summary) error {
	b := j.before
	switch {
	case b == nil:
		return nil
	case s.Start != b.End:
		return fmt.Errorf("it begins at %s and the one before it ends at %s", s.Start, b.End)
	case s.SystemIdentifier != b.SystemIdentifier || s.Version != b.Version || s.SegmentSize != b.SegmentSize:
		return fmt.Errorf("it is of system %d, PostgreSQL %d, the one before it of system %d, PostgreSQL %d",
			s.SystemIdentifier, s.Version, b.SystemIdentifier, b.Version)
	case s.FirstTimeline < b.Timeline:
		return fmt.Errorf("it begins on timeline %d and the one before it ends on %d", s.FirstTimeline, b.Timeline)
	}
	return nil
}

// inOrder compares the record before one, as that says, with what it was.
func (j *Joiner) inOrder(prev wal.LSN) error {
	if j.last != 0 && prev != j.last {
		return fmt.Errorf("its first record follows %s, and the segment before it ends with %s", prev, j.last)
	}
	return nil
}

// join deals with the record that ends in s, or goes on throughout s, and began before.
func (j *Joiner) join(s *Summary) error {
	switch {
	case j.before == nil:
		j.within = s.All()
		if s.Switch && s.First == 0 {
			return errors.New("it is empty but for the end of a record that may be a switch")
		}
		return nil
	case j.within:
		j.within = s.All()
		return nil
	case s.Overwritten != 0:
		if s.Overwritten != j.begun {
			return fmt.Errorf("it overwrites record %s, and the one left unfinished is %s", s.Overwritten, j.begun)
		}
		j.begun, j.missing = 0, 0
		return nil
	case s.Missing != j.missing:
		return fmt.Errorf("it goes on with %d bytes of an earlier record, of which %d are missing", s.Missing, j.missing)
	case j.begun == 0:
		return nil
	}
	j.parts.addFragment(s.Tail)
	j.missing -= s.Tail.Length
	if j.missing > 0 {
		return nil
	}
	rec := Record{LSN: j.begun}
	if err := j.decode(&rec, s); err != nil {
		return fmt.Errorf("record %s, which ends in it: %w", rec.LSN, err)
	}
	if s.Switch && s.First == 0 && !rec.is(RMXLOG, xlogSwitch) {
		return fmt.Errorf("%w after a record that is no switch", ErrEnd)
	}
	j.begun, j.last = 0, rec.LSN
	return nil
}

// decode takes in the record in parts.
func (j *Joiner) decode(rec *Record, s *Summary) error {
	b := j.parts.kept
	if err := rec.header(b, s.Version); err != nil {
		return err
	}
	if err := j.inOrder(rec.Prev); err != nil {
		return err
	}
	if err := checkCRC(b, j.parts.crc(recordHeaderLen)); err != nil {
		return err
	}
	if err := rec.decode(b, s.Version); err != nil {
		return err
	}
	if j.CheckOnly {
		return nil
	}
	c := collector{blocks: &j.Blocks, version: s.Version}
	err := c.add(rec)
	j.Minimal = j.Minimal || c.minimal
	return err
}

// begin keeps the record that begins in s and does not end there.
func (j *Joiner) begin(s *Summary) error {
	j.parts.limit = keptRecord
	j.parts.reset()
	j.parts.addFragment(s.Head)
	j.begun = s.HeadLSN
	length := binary.LittleEndian.Uint32(s.Head.Bytes)
	if length < recordHeaderLen || length > maxRecord || length <= s.Head.Length {
		return fmt.Errorf("record %s, which does not end in it, has %d bytes", j.begun, length)
	}
	j.missing = length - s.Head.Length
	return nil
}
