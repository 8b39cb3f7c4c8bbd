package walrec

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"holdfast/internal/crc32c"
	"holdfast/internal/pg/wal"
	"holdfast/internal/pg/walsum"
)

// summaryMagic begins an encoded summary; the last byte is the version of the form.
var summaryMagic = [8]byte{'h', 'f', 'w', 'a', 'l', 's', 'm', 1}

// summaryHead begins an encoded summary, little-endian without padding.
type summaryHead struct {
	Magic             [8]byte
	Version           uint16 // of PostgreSQL
	Flags             uint16
	SegmentSize       uint32
	SystemIdentifier  uint64
	FirstTimeline     uint32
	Timeline          uint32
	Start, End        uint64
	First, Last, Prev uint64
	HeadLSN           uint64
	Overwritten       uint64
	Missing           uint32
	TailLength        uint32
	TailRest          uint32
	HeadLength        uint32
	HeadRest          uint32
	Table             uint32 // bytes of the block reference table
}

const (
	flagMinimal = 1
	flagSwitch  = 2
)

// Encode returns s in the form that Decode reads: a summaryHead, the bytes kept of Tail and of Head, the blocks as PostgreSQL's WAL
// summary files have them, and the CRC-32C of all that.
func (s *Summary) Encode() []byte {
	var table bytes.Buffer
	if err := walsum.Write(&table, &s.Blocks); err != nil {
		panic(err) // no record is accepted that names what cannot be written
	}
	h := summaryHead{
		Magic: summaryMagic, Version: uint16(s.Version), SegmentSize: uint32(s.SegmentSize), SystemIdentifier: s.SystemIdentifier,
		FirstTimeline: uint32(s.FirstTimeline), Timeline: uint32(s.Timeline), Start: uint64(s.Start), End: uint64(s.End),
		First: uint64(s.First), Last: uint64(s.Last), Prev: uint64(s.Prev), HeadLSN: uint64(s.HeadLSN), Overwritten: uint64(s.Overwritten),
		Missing: s.Missing, TailLength: s.Tail.Length, TailRest: s.Tail.Rest, HeadLength: s.Head.Length, HeadRest: s.Head.Rest,
		Table: uint32(table.Len()),
	}
	if s.Minimal {
		h.Flags |= flagMinimal
	}
	if s.Switch {
		h.Flags |= flagSwitch
	}
	b, err := binary.Append(nil, binary.LittleEndian, &h)
	if err != nil {
		panic(err) // it has fields of fixed size only
	}
	b = append(append(append(b, s.Tail.Bytes...), s.Head.Bytes...), table.Bytes()...)
	return binary.LittleEndian.AppendUint32(b, crc32c.Checksum(b))
}

// Decode reads what Encode returned. The summary shares no memory with b.
func Decode(b []byte) (*Summary, error) {
	s, err := decodeSummary(b)
	if err != nil {
		return nil, fmt.Errorf("summary of a WAL segment: %w", err)
	}
	return s, nil
}

func decodeSummary(b []byte) (*Summary, error) {
	var h summaryHead
	n, err := binary.Decode(b, binary.LittleEndian, &h)
	if err != nil || len(b) < n+4 {
		return nil, fmt.Errorf("%d bytes are too few", len(b))
	}
	if h.Magic != summaryMagic {
		return nil, fmt.Errorf("it begins with %q", h.Magic[:])
	}
	b, sum := b[:len(b)-4], binary.LittleEndian.Uint32(b[len(b)-4:])
	if got := crc32c.Checksum(b); got != sum {
		return nil, fmt.Errorf("CRC-32C is %08X, want %08X", got, sum)
	}
	b = b[n:]
	tail, head := int(min(h.TailLength, MaxFragment)), int(min(h.HeadLength, MaxFragment))
	if uint64(len(b)) != uint64(tail)+uint64(head)+uint64(h.Table) {
		return nil, fmt.Errorf("%d bytes follow its head, want %d, %d and %d", len(b), tail, head, h.Table)
	}
	s := &Summary{
		Version: int(h.Version), SystemIdentifier: h.SystemIdentifier, SegmentSize: wal.SegmentSize(h.SegmentSize),
		FirstTimeline: wal.Timeline(h.FirstTimeline), Timeline: wal.Timeline(h.Timeline), Start: wal.LSN(h.Start), End: wal.LSN(h.End),
		Minimal: h.Flags&flagMinimal != 0, Switch: h.Flags&flagSwitch != 0,
		First: wal.LSN(h.First), Last: wal.LSN(h.Last), Prev: wal.LSN(h.Prev), HeadLSN: wal.LSN(h.HeadLSN),
		Overwritten: wal.LSN(h.Overwritten), Missing: h.Missing,
		Tail: Fragment{bytes.Clone(b[:tail]), h.TailLength, h.TailRest},
		Head: Fragment{bytes.Clone(b[tail : tail+head]), h.HeadLength, h.HeadRest},
	}
	if err := s.check(); err != nil {
		return nil, err
	}
	if h.Flags&^(flagMinimal|flagSwitch) != 0 {
		return nil, fmt.Errorf("unknown flags %04X", h.Flags)
	}
	blocks, err := walsum.Read(bytes.NewReader(b[tail+head:]))
	if err != nil {
		return nil, err
	}
	s.Blocks = *blocks
	return s, nil
}

// check returns an error where s is no summary of any segment.
func (s *Summary) check() error {
	size := wal.LSN(s.SegmentSize)
	within := func(lsn wal.LSN) bool { return lsn == 0 || lsn > s.Start && lsn < s.End }
	switch {
	case s.Version < 10 || s.Version > 18:
		return fmt.Errorf("PostgreSQL %d", s.Version)
	case !s.SegmentSize.Valid() || s.Start%size != 0 || s.End <= s.Start || s.End-s.Start > size || s.FirstTimeline > s.Timeline:
		return fmt.Errorf("segment of %d bytes from %s to %s, timelines %d to %d",
			s.SegmentSize, s.Start, s.End, s.FirstTimeline, s.Timeline)
	case !within(s.First) || !within(s.Last) || !within(s.HeadLSN) || s.First > s.Last || (s.First == 0) != (s.Last == 0) ||
		s.HeadLSN != 0 && s.HeadLSN <= s.Last || s.First != 0 && s.Prev >= s.First ||
		s.Overwritten != 0 && (s.Overwritten >= s.Start || s.Missing > 0):
		return fmt.Errorf("records %s to %s after %s, %s overwritten, %s not ended", s.First, s.Last, s.Prev, s.Overwritten, s.HeadLSN)
	case uint64(s.Tail.Length) > uint64(s.Missing) || uint64(s.Tail.Length)+uint64(s.Head.Length) > uint64(size) ||
		(s.HeadLSN == 0) != (s.Head.Length == 0) || s.HeadLSN != 0 && s.Head.Length < 8 ||
		s.Tail.Whole() && s.Tail.Rest != 0 || s.Head.Whole() && s.Head.Rest != 0:
		return fmt.Errorf("%d bytes of %d of a record that began before it, %d of the one that ends after it",
			s.Tail.Length, s.Missing, s.Head.Length)
	case s.All() && (s.First != 0 || s.HeadLSN != 0):
		return errors.New("it has records beside the one it lies within")
	}
	return nil
}
