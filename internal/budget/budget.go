// Package budget hands out memory for pieces of streams and keeps its sum below a bound.
//
// A stream of unknown length goes to a service in pieces that stay in memory until they have arrived, so that they can be sent
// again. However many streams there are, and however long, their pieces together take no more than the budget.
package budget

import (
	"context"
	"errors"
	"hash"
	"io"
	"sync"

	"golang.org/x/sync/semaphore"
)

// chunkSize is what pieces grow by, in bytes, so that small ones take little.
const chunkSize = 1 << 20

// Budget is a bound on the memory of all pieces taken from it. Its methods may be called from several goroutines at once.
type Budget struct {
	total int64
	free  *semaphore.Weighted

	mu   sync.Mutex
	idle [][]byte // chunks to use again
	out  int64    // bytes reserved
	most int64    // bytes that were reserved at once
}

// New returns a Budget of total bytes, at least 1.
func New(total int64) *Budget {
	total = max(total, 1)
	return &Budget{total: total, free: semaphore.NewWeighted(total)}
}

// Total returns the bound in bytes.
func (b *Budget) Total() int64 { return b.total }

// Most returns the largest sum of bytes that was handed out at once.
func (b *Budget) Most() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.most
}

// Piece is a piece of a stream in memory.
type Piece struct {
	budget   *Budget
	reserved int64 // of the budget
	max      int64 // bytes
	size     int64 // bytes
	chunks   [][]byte
	sum      hash.Hash // nil for none

	mu    sync.Mutex // held while a reader copies
	fills int        // how often it was filled or released
}

// Take returns an empty piece that can hold size bytes, once the budget has room for them and for beside bytes that whoever
// sends the piece will need for its own. It asks for all at once, so that streams which have half of what they need never
// wait for each other. Small pieces count as 1 MiB. What is larger than the whole budget is handed out alone.
func (b *Budget) Take(ctx context.Context, size, beside int64) (*Piece, error) {
	n := min(inChunks(size)+beside, b.total)
	if err := b.free.Acquire(ctx, n); err != nil {
		return nil, err
	}
	b.count(n)
	return &Piece{budget: b, reserved: n, max: size}, nil
}

// inChunks returns what size bytes take.
func inChunks(size int64) int64 { return (size + chunkSize - 1) / chunkSize * chunkSize }

func (b *Budget) count(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.out += n
	b.most = max(b.most, b.out)
}

// Fill empties p and then reads r until p is full or r ends, which it reports. What is read goes into sum too, where that is not nil.
// Readers of what was in p before end in an error.
func (p *Piece) Fill(ctx context.Context, r io.Reader, sum hash.Hash) (ended bool, err error) {
	p.cutOff()
	p.size, p.sum = 0, sum
	for i := 0; !ended && p.size < p.max; i++ {
		if i == len(p.chunks) {
			p.chunks = append(p.chunks, p.budget.chunk())
		}
		chunk := p.chunks[i][:min(chunkSize, p.max-p.size)]
		n := 0
		for n < len(chunk) && !ended {
			if ctx.Err() != nil {
				return false, context.Cause(ctx)
			}
			m, err := r.Read(chunk[n:])
			n += m
			if ended = err == io.EOF; err != nil && !ended {
				return false, err
			}
		}
		if sum != nil {
			sum.Write(chunk[:n]) // never fails: package hash says so
		}
		p.size += int64(n)
	}
	return ended, nil
}

// Size returns the number of bytes in p.
func (p *Piece) Size() int64 { return p.size }

// Sum returns the checksum that the hash given to Fill has now.
func (p *Piece) Sum() []byte { return p.sum.Sum(nil) }

// Shrink gives back what p and its sender do not need, when nothing more will be filled into p and nothing kept beside it.
func (p *Piece) Shrink() {
	p.giveBack(p.reserved - min(inChunks(p.size), p.reserved))
}

func (p *Piece) giveBack(n int64) {
	p.reserved -= n
	p.budget.count(-n)
	p.budget.free.Release(n)
}

// Release gives all memory back. p must not be used any more, and its readers end in an error.
func (p *Piece) Release() {
	p.cutOff()
	b := p.budget
	b.mu.Lock()
	for _, chunk := range p.chunks {
		if int64(len(b.idle)+1)*chunkSize <= b.total {
			b.idle = append(b.idle, chunk)
		}
	}
	b.mu.Unlock()
	p.giveBack(p.reserved)
	p.chunks, p.size = nil, 0
}

func (b *Budget) chunk() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := len(b.idle); n > 0 {
		chunk := b.idle[n-1]
		b.idle = b.idle[:n-1]
		return chunk
	}
	return make([]byte, chunkSize)
}

// cutOff takes the memory from the readers there are. An HTTP client may still read the body of a request that was answered.
func (p *Piece) cutOff() {
	p.mu.Lock()
	p.fills++
	p.mu.Unlock()
}

// Reader returns a reader of what is in p, from its beginning; a request that is made again rewinds it or takes another.
func (p *Piece) Reader() io.ReadSeeker { return &reader{piece: p, fill: p.fills, size: p.size} }

type reader struct {
	piece *Piece
	fill  int
	size  int64 // of the piece
	at    int64
}

var errCutOff = errors.New("this piece of the stream is not in memory any more")

func (r *reader) Read(b []byte) (int, error) {
	p := r.piece
	p.mu.Lock()
	defer p.mu.Unlock()
	if r.fill != p.fills {
		return 0, errCutOff
	}
	n := 0
	for n < len(b) && r.at < r.size {
		from := r.at % chunkSize
		m := copy(b[n:], p.chunks[r.at/chunkSize][from:min(chunkSize, from+r.size-r.at)])
		n, r.at = n+m, r.at+int64(m)
	}
	if n == 0 && len(b) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (r *reader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.at
	case io.SeekEnd:
		offset += r.size
	}
	if offset < 0 {
		return 0, errors.New("seek before the beginning of a piece")
	}
	r.at = offset
	return offset, nil
}
