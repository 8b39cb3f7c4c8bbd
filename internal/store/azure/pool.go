package azure

import (
	"context"
	"errors"
	"hash/crc64"
	"io"
	"sync"

	"golang.org/x/sync/semaphore"
)

// chunkSize is what blocks grow by, so that small objects take little memory.
const chunkSize = 1 << 20

// pool hands out the memory for blocks and keeps its sum below total. A block asks once for all it may need, so that blocks
// which are half full never wait for each other.
type pool struct {
	total int64
	free  *semaphore.Weighted

	mu   sync.Mutex
	idle [][]byte // chunks to use again
}

func newPool(total int64) *pool { return &pool{total: total, free: semaphore.NewWeighted(total)} }

// block is a piece of an object in memory.
type block struct {
	pool     *pool
	reserved int64 // of the pool
	max      int64 // bytes
	size     int64 // bytes
	chunks   [][]byte
	crc      uint64 // of all bytes, with the service's polynomial
}

// crcTable is that of CRC-64/NVME, which the service calls CRC64.
var crcTable = crc64.MakeTable(0x9a6c9329ac4bc9b5)

// take returns an empty block that can hold size bytes, once the pool has room for them. A block larger than the whole
// pool gets it when it is empty, alone.
func (p *pool) take(ctx context.Context, size int64) (*block, error) {
	n := min((size+chunkSize-1)/chunkSize*chunkSize, p.total)
	if err := p.free.Acquire(ctx, n); err != nil {
		return nil, err
	}
	return &block{pool: p, reserved: n, max: size}, nil
}

// fill reads r until the block is full or r ends, which it reports, and gives back what is not needed.
func (b *block) fill(ctx context.Context, r io.Reader) (ended bool, err error) {
	for !ended && b.size < b.max {
		chunk := b.pool.chunk()
		b.chunks = append(b.chunks, chunk)
		n := 0
		for room := int(min(chunkSize, b.max-b.size)); n < room && !ended; {
			if ctx.Err() != nil {
				return false, context.Cause(ctx)
			}
			m, err := r.Read(chunk[n:room])
			n += m
			if ended = err == io.EOF; err != nil && !ended {
				return false, err
			}
		}
		b.crc = crc64.Update(b.crc, crcTable, chunk[:n])
		b.size += int64(n)
	}
	if need := min(int64(len(b.chunks))*chunkSize, b.reserved); need < b.reserved {
		b.pool.free.Release(b.reserved - need)
		b.reserved = need
	}
	return ended, nil
}

// release gives the memory back. The block must not be used any more.
func (b *block) release() {
	b.pool.mu.Lock()
	if int64(len(b.pool.idle)+len(b.chunks))*chunkSize <= b.pool.total {
		b.pool.idle = append(b.pool.idle, b.chunks...)
	}
	b.pool.mu.Unlock()
	b.pool.free.Release(b.reserved)
	b.chunks = nil
}

func (p *pool) chunk() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.idle); n > 0 {
		chunk := p.idle[n-1]
		p.idle = p.idle[:n-1]
		return chunk
	}
	return make([]byte, chunkSize)
}

// reader returns a reader of the block; a request that is made again rewinds it.
func (b *block) reader() io.ReadSeekCloser { return &blockReader{block: b} }

type blockReader struct {
	block *block
	at    int64
}

func (r *blockReader) Read(p []byte) (int, error) {
	if r.at >= r.block.size {
		return 0, io.EOF
	}
	from := r.at % chunkSize
	chunk := r.block.chunks[r.at/chunkSize]
	n := copy(p, chunk[from:min(chunkSize, from+r.block.size-r.at)])
	r.at += int64(n)
	return n, nil
}

func (r *blockReader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.at
	case io.SeekEnd:
		offset += r.block.size
	}
	if offset < 0 {
		return 0, errors.New("seek before the beginning of a block")
	}
	r.at = offset
	return offset, nil
}

// Close does nothing: a request that is made again reads once more.
func (r *blockReader) Close() error { return nil }
