package pgbackrest

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
)

// A block says where the repository has one block of a file.
type block struct {
	reference uint32 // number of the backup
	bundle    uint32 // 0 for an object of its own
	offset    int64  // of the super block in there
	stored    int64  // bytes that the super block takes there
	super     int64  // bytes that it holds
	number    int64  // of the block in it
}

// Flags of the numbers in a block map, and by how many bits what stands with them is shifted. Numbers are base 128 varints, signed ones in zigzag.
const (
	mapLast = 1 // the last one of its list

	referenceBundle   = 2 // of one that is new: the number of a bundle follows
	referenceOffset   = 4 // an offset follows
	referenceContinue = 2 // of one seen before: it goes on in the super block it was in
	referenceEnds     = 4 // and that is its last here
	referenceShift    = 3

	superChanged = 2 // how much it holds follows
	superTotal   = 4 // how many of its blocks come here follows
	superShift   = 3

	sizeRemainder = 1 // it is not a multiple of blocks: the rest follows
	sizeShift     = 1

	totalOffset = 1 // not the next of its blocks: how many are passed over follows
	totalShift  = 1
)

// origin is what a block map remembers of a reference.
type origin struct {
	bundle uint32
	offset int64 // of the super block under way
	stored int64
	super  int64
	next   int64 // block in it
}

// parseBlockMap reads the map of a file of size bytes in blocks of blockSize: for each block, in their order, where it is. References must be below references.
//
// A map begins with a number that is even, its version. Then come stretches of blocks that one backup has, each with its super blocks, and for each of those the
// checksums of the blocks. What a super block holds in sequence need not lie in sequence in the file.
func parseBlockMap(r io.Reader, size int64, blockSize, sumSize, references int) ([]block, error) {
	m := &mapReader{in: bufio.NewReader(r)}
	total := (size + int64(blockSize) - 1) / int64(blockSize)
	if version := m.number(); m.err == nil && version&1 != 0 {
		return nil, errors.New("its block map is of a version that this release does not know")
	}
	var blocks []block
	origins := map[uint32]*origin{}
	lastSize := int64(0)
	for last := false; !last && m.err == nil; {
		head := m.number()
		last = head&mapLast != 0
		reference := m.bounded(head>>referenceShift, int64(references)-1)
		b := block{reference: uint32(reference)}
		o, goesOn := origins[b.reference], false
		switch {
		case m.err != nil:
			return nil, m.err
		case o == nil:
			o = &origin{super: int64(blockSize)}
			if head&referenceBundle != 0 {
				o.bundle = uint32(m.bounded(m.number(), math.MaxUint32))
			}
			if head&referenceOffset != 0 {
				o.offset = m.bounded(m.number(), maxFile)
			}
			origins[b.reference] = o
			b.offset = o.offset
		case head&referenceContinue != 0:
			goesOn = true
			b.offset, b.stored = o.offset, o.stored
		default:
			b.offset = o.offset + o.stored
			if head&referenceOffset != 0 {
				b.offset += m.bounded(m.number(), maxFile)
			}
			o.offset = b.offset
		}
		b.bundle, b.super = o.bundle, o.super
		for lastSuper := false; !lastSuper && m.err == nil; {
			var flags uint64
			if goesOn {
				if goesOn, flags = false, superTotal; head&referenceEnds != 0 {
					flags |= mapLast
				}
			} else {
				flags = m.number()
				if lastSize == 0 {
					b.stored = m.bounded(flags>>superShift, maxFile)
				} else {
					z := flags >> superShift
					b.stored = m.bounded(uint64(lastSize+(int64(z>>1)^-int64(z&1))), maxFile)
				}
				if flags&superChanged != 0 {
					n := m.number()
					b.super = m.bounded(n>>sizeShift, maxBlock/int64(blockSize)) * int64(blockSize)
					if n&sizeRemainder != 0 {
						b.super += m.bounded(m.number(), int64(blockSize)-1)
					}
				}
				o.offset, o.stored, o.super, o.next = b.offset, b.stored, b.super, 0
			}
			lastSuper, lastSize = flags&mapLast != 0, b.stored
			count := (b.super + int64(blockSize) - 1) / int64(blockSize)
			if flags&superTotal != 0 {
				n := m.number()
				count = m.bounded(n>>totalShift, maxBlock) + 1
				if n&totalOffset != 0 {
					o.next += m.bounded(m.number(), maxBlock)
				}
			}
			switch {
			case m.err != nil:
				return nil, m.err
			case b.stored <= 0 || b.super <= 0 || b.super > maxBlock || b.offset > maxFile:
				return nil, fmt.Errorf("its block map has a super block of %d bytes that takes %d at %d", b.super, b.stored, b.offset)
			case (o.next+count-1)*int64(blockSize) >= b.super:
				return nil, fmt.Errorf("its block map wants block %d of a super block of %d bytes", o.next+count-1, b.super)
			case count > total-int64(len(blocks)):
				return nil, fmt.Errorf("its block map has more than the %d blocks of the file", total)
			}
			for range count {
				if m.skip(sumSize); m.err != nil {
					return nil, m.err
				}
				b.number = o.next
				o.next++
				blocks = append(blocks, b)
			}
			b.offset += b.stored
		}
	}
	switch {
	case m.err != nil:
		return nil, m.err
	case int64(len(blocks)) != total:
		return nil, fmt.Errorf("its block map has %d blocks, the file %d", len(blocks), total)
	}
	return blocks, nil
}

// mapReader reads numbers. After an error they are 0.
type mapReader struct {
	in  *bufio.Reader
	err error
}

func (m *mapReader) number() uint64 {
	if m.err != nil {
		return 0
	}
	n, err := binary.ReadUvarint(m.in)
	if err != nil {
		m.err = fmt.Errorf("its block map: %w", cut(err))
		return 0
	}
	return n
}

// bounded returns n, which must not be above bound.
func (m *mapReader) bounded(n uint64, bound int64) int64 {
	if m.err == nil && (bound < 0 || n > uint64(bound)) {
		m.err = fmt.Errorf("its block map has %d where at most %d is possible", n, bound)
	}
	if m.err != nil {
		return 0
	}
	return int64(n)
}

func (m *mapReader) skip(n int) {
	if _, err := m.in.Discard(n); err != nil && m.err == nil {
		m.err = fmt.Errorf("its block map: %w", cut(err))
	}
}
