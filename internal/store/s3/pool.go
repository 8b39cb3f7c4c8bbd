package s3

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"sync"

	"golang.org/x/sync/semaphore"
)

// chunkSize is what parts grow by, so that small objects take little memory.
const chunkSize = 1 << 20

// pool hands out the memory for parts and keeps its sum below total. A part asks once for all it may need, so that parts
// which are half full never wait for each other.
type pool struct {
	total int64
	free  *semaphore.Weighted

	mu   sync.Mutex
	idle [][]byte // chunks to use again
}

func newPool(total int64) *pool { return &pool{total: total, free: semaphore.NewWeighted(total)} }

// part is a piece of an object in memory.
type part struct {
	pool     *pool
	reserved int64 // of the pool
	max      int64 // bytes
	size     int64 // bytes
	chunks   [][]byte
	crc      uint32 // CRC-32C of all bytes
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// take returns an empty part that can hold size bytes, once the pool has room for them. A part larger than the whole
// pool gets it when it is empty, alone.
func (p *pool) take(ctx context.Context, size int64) (*part, error) {
	n := min(size, p.total)
	if err := p.free.Acquire(ctx, n); err != nil {
		return nil, err
	}
	return &part{pool: p, reserved: n, max: size}, nil
}

// fill reads r until the part is full or r ends, which it reports, and gives back what is not needed.
func (p *part) fill(ctx context.Context, r io.Reader) (ended bool, err error) {
	for !ended && p.size < p.max {
		chunk := p.pool.chunk()
		p.chunks = append(p.chunks, chunk)
		n := 0
		for room := int(min(chunkSize, p.max-p.size)); n < room && !ended; {
			if ctx.Err() != nil {
				return false, context.Cause(ctx)
			}
			m, err := r.Read(chunk[n:room])
			n += m
			if ended = err == io.EOF; err != nil && !ended {
				return false, err
			}
		}
		p.crc = crc32.Update(p.crc, castagnoli, chunk[:n])
		p.size += int64(n)
	}
	if need := min(int64(len(p.chunks))*chunkSize, p.reserved); need < p.reserved {
		p.pool.free.Release(p.reserved - need)
		p.reserved = need
	}
	return ended, nil
}

// release gives the memory back. The part must not be used any more.
func (p *part) release() {
	p.pool.mu.Lock()
	if int64(len(p.pool.idle)+len(p.chunks))*chunkSize <= p.pool.total {
		p.pool.idle = append(p.pool.idle, p.chunks...)
	}
	p.pool.mu.Unlock()
	p.pool.free.Release(p.reserved)
	p.chunks = nil
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

// checksum returns the CRC-32C as S3 wants it.
func (p *part) checksum() *string {
	text := base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, p.crc))
	return &text
}

// reader returns a reader of the part; a request that is made again rewinds it.
func (p *part) reader() io.ReadSeeker { return &partReader{part: p} }

type partReader struct {
	part *part
	at   int64
}

func (r *partReader) Read(b []byte) (int, error) {
	if r.at >= r.part.size {
		return 0, io.EOF
	}
	from := r.at % chunkSize
	chunk := r.part.chunks[r.at/chunkSize]
	n := copy(b, chunk[from:min(chunkSize, from+r.part.size-r.at)])
	r.at += int64(n)
	return n, nil
}

func (r *partReader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.at
	case io.SeekEnd:
		offset += r.part.size
	}
	if offset < 0 {
		return 0, errors.New("seek before the beginning of a part")
	}
	r.at = offset
	return offset, nil
}
