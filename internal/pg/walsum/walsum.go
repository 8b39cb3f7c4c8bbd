// Package walsum reads and writes PostgreSQL's WAL summary files, in which a server of 17 or later with summarize_wal=on notes which
// blocks a stretch of its WAL changed.
//
// Such a file is a block reference table (src/common/blkreftable.c), here of a little-endian machine. Between a magic number and the
// checksum there is an entry for each fork, ordered by tablespace, database, number and fork; one of zeros ends them:
//
//	tablespace  database  number  fork  limit  chunks (n)  usage           chunk 0  chunk 1  …
//	4           4         4       4     4      4           n words of 2    2 * usage bytes each
//
// A chunk stands for 65536 blocks in a row. It is a list of the blocks' low words, in any order, or if its usage is 4096 a
// map of one bit for each block, the lowest bit of the first byte for the first block. Of one without blocks there is nothing but its usage of 0, and the last one has some.
//
// The checksum is the CRC-32C of all that precedes it.
package walsum

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"slices"

	"github.com/RoaringBitmap/roaring/v2"

	"holdfast/internal/crc32c"
	"holdfast/internal/pg/blockset"
)

const (
	magic     = 0x652b137b // BLOCKREFTABLE_MAGIC
	headLen   = 24         // of an entry
	maxChunks = 1 << 16    // a block's number has 32 bits
	mapWords  = 1 << 12    // MAX_ENTRIES_PER_CHUNK: the usage of a chunk that is a map
)

var le = binary.LittleEndian

// Read reads a summary to the end of r. What it needs of memory grows with what it has read. An error says what is wrong with the summary, or wraps r's.
func Read(r io.Reader) (*blockset.Set, error) {
	d := &decoder{r: bufio.NewReaderSize(r, 1<<16)}
	var s blockset.Set
	if err := d.read(&s); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("the file ends within it: %w", io.ErrUnexpectedEOF)
		}
		return nil, fmt.Errorf("read a WAL summary: %w", err)
	}
	return &s, nil
}

// decoder reads a summary. Its buffers are as long as one entry can make use of.
type decoder struct {
	r      *bufio.Reader
	sum    uint32 // CRC-32C of what was read
	usage  []byte // of the chunks of an entry: at most 128 KiB
	words  [2 * mapWords]byte
	blocks []uint32 // of one chunk: at most 65536
}

func (d *decoder) full(b []byte) error {
	if _, err := io.ReadFull(d.r, b); err != nil {
		return err
	}
	d.sum = crc32c.Update(d.sum, b)
	return nil
}

func (d *decoder) read(s *blockset.Set) error {
	if err := d.full(d.words[:4]); err != nil {
		return err
	}
	if got := le.Uint32(d.words[:]); got != magic {
		return fmt.Errorf("it begins with %08X, want %08X", got, uint32(magic))
	}
	var last blockset.Key
	for {
		var head [headLen]byte
		if err := d.full(head[:]); err != nil {
			return err
		}
		if head == [headLen]byte{} {
			return d.end()
		}
		k := blockset.Key{Relation: blockset.Relation{
			Tablespace: le.Uint32(head[:]), Database: le.Uint32(head[4:]), Number: le.Uint32(head[8:]),
		}}
		fork, limit, chunks := le.Uint32(head[12:]), le.Uint32(head[16:]), le.Uint32(head[20:])
		if fork > uint32(blockset.Init) || k.Tablespace == 0 || chunks > maxChunks {
			return fmt.Errorf("an entry of relation %s is for fork %d and has %d chunks", k.Relation, fork, chunks)
		}
		k.Fork = blockset.Fork(fork)
		if k.Compare(last) <= 0 {
			return fmt.Errorf("%s comes after %s", k, last)
		}
		last = k
		s.Truncate(k, limit)
		if err := d.chunks(s, k, int(chunks)); err != nil {
			return err
		}
	}
}

// chunks reads the n chunks of k.
func (d *decoder) chunks(s *blockset.Set, k blockset.Key, n int) error {
	d.usage = slices.Grow(d.usage[:0], 2*n)[:2*n]
	if err := d.full(d.usage); err != nil {
		return err
	}
	for chunk := range n {
		used := int(le.Uint16(d.usage[2*chunk:]))
		if used > mapWords {
			return fmt.Errorf("chunk %d of %s has a usage of %d", chunk, k, used)
		}
		data := d.words[:2*used]
		if err := d.full(data); err != nil {
			return err
		}
		first := uint32(chunk) << 16
		d.blocks = d.blocks[:0]
		if used < mapWords {
			for ; len(data) > 0; data = data[2:] {
				d.blocks = append(d.blocks, first+uint32(le.Uint16(data)))
			}
			slices.Sort(d.blocks) // as a server's usually are, and it saves insertions
		} else {
			for at := first; len(data) > 0; data, at = data[8:], at+64 {
				for w := le.Uint64(data); w != 0; w &= w - 1 {
					d.blocks = append(d.blocks, at+uint32(bits.TrailingZeros64(w)))
				}
			}
		}
		if l := len(d.blocks); l > 0 && d.blocks[l-1] == blockset.NoLimit {
			return fmt.Errorf("%s has a block %d", k, blockset.NoLimit)
		}
		s.AddMany(k, d.blocks)
	}
	return nil
}

// end reads what follows the last entry.
func (d *decoder) end() error {
	want := d.sum
	if err := d.full(d.words[:4]); err != nil {
		return err
	}
	if got := le.Uint32(d.words[:]); got != want {
		return fmt.Errorf("its checksum is %08X, that of its content is %08X", got, want)
	}
	if _, err := d.r.ReadByte(); err == nil {
		return errors.New("something follows its end")
	} else if err != io.EOF {
		return err
	}
	return nil
}

// Write writes s as a summary. It is the one PostgreSQL would write, but that PostgreSQL lists blocks as they came and keeps a map once it has one. All tablespaces
// must have an OID that is not 0.
func Write(w io.Writer, s *blockset.Set) error {
	e := encoder{w: bufio.NewWriterSize(w, 1<<16)}
	e.write(le.AppendUint32(nil, magic))
	for k, entry := range s.All() {
		if k.Tablespace == 0 {
			return fmt.Errorf("write a WAL summary: %s is in no tablespace", k)
		}
		e.entry(k, entry)
	}
	e.write(make([]byte, headLen))
	e.write(le.AppendUint32(nil, e.sum))
	return e.w.Flush()
}

// encoder writes a summary. Its writer keeps the first error for Flush.
type encoder struct {
	w     *bufio.Writer
	sum   uint32 // CRC-32C of what was written
	usage []byte
	words [2 * mapWords]byte
}

func (e *encoder) write(b []byte) {
	e.sum = crc32c.Update(e.sum, b)
	_, _ = e.w.Write(b)
}

func (e *encoder) entry(k blockset.Key, entry blockset.Entry) {
	chunks := 0
	if !entry.Blocks.IsEmpty() {
		chunks = int(entry.Blocks.Maximum()>>16) + 1
	}
	var head [headLen]byte
	for i, v := range []uint32{k.Tablespace, k.Database, k.Number, uint32(k.Fork), entry.Limit, uint32(chunks)} {
		le.PutUint32(head[4*i:], v)
	}
	e.write(head[:])

	e.usage = slices.Grow(e.usage[:0], 2*chunks)[:2*chunks]
	clear(e.usage)
	for it := entry.Blocks.Iterator(); it.HasNext(); {
		chunk := uint64(it.PeekNext() >> 16)
		le.PutUint16(e.usage[2*chunk:], uint16(min(entry.Blocks.CardinalityInRange(chunk<<16, (chunk+1)<<16), mapWords)))
		if chunk == maxChunks-1 {
			break
		}
		it.AdvanceIfNeeded(uint32(chunk+1) << 16)
	}
	e.write(e.usage)
	for it := entry.Blocks.Iterator(); it.HasNext(); {
		e.chunk(it)
	}
}

// chunk writes the chunk of it's next block.
func (e *encoder) chunk(it roaring.IntPeekable) {
	chunk := it.PeekNext() >> 16
	within := func() bool { return it.HasNext() && it.PeekNext()>>16 == chunk }
	if used := int(le.Uint16(e.usage[2*chunk:])); used < mapWords {
		for at := 0; within(); at += 2 {
			le.PutUint16(e.words[at:], uint16(it.Next()))
		}
		e.write(e.words[:2*used])
		return
	}
	clear(e.words[:])
	for within() {
		low := it.Next() & 0xFFFF
		e.words[low>>3] |= 1 << (low & 7)
	}
	e.write(e.words[:])
}
