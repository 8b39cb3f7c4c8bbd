package pgbackrest

import (
	"context"
	"fmt"
	"io"
	"strconv"
)

const (
	// maxGap is how many bytes between two wanted super blocks are read rather than passed over with another request.
	maxGap = 256 << 10
	// maxFeeds is from how many backups one file is read at once. Each holds a super block and a request.
	maxFeeds = 32
	// maxDecoded bounds what those super blocks hold in bytes, beside the one that is being read.
	maxDecoded = 32 << 20
)

// blockReader puts a file together from the blocks that several backups have of it.
type blockReader struct {
	r    *Repository
	m    *Manifest
	ctx  context.Context // of the reading, which lives no longer
	path string

	size   int64
	unit   int64 // of a block
	blocks []block
	next   int // of blocks
	ready  []byte
	feeds  map[uint32]*feed
	clock  int
	err    error // stays
}

// feed reads super blocks of one backup. They are wanted in the order in which they lie there, or nearly so.
type feed struct {
	object string
	body   io.ReadCloser // nil for none
	pos    int64         // of body, in the object
	end    int64         // of body

	at      int64 // of what is decoded
	decoded []byte
	used    int // by the clock
}

// openBlocks returns a reader of the file f, which is stored by blocks.
func (r *Repository) openBlocks(ctx context.Context, m *Manifest, f *File) (io.ReadCloser, error) {
	object := r.objectOf(m, f, int(f.reference), f.bundle)
	body, err := r.open(ctx, object, f.offset+f.stored-f.mapSize, f.mapSize)
	if err != nil {
		return nil, err
	}
	defer body.Close() // only read
	in := io.Reader(io.LimitReader(body, f.mapSize))
	if m.passphrase != "" {
		in = newDecrypter(in, m.passphrase, true)
	}
	blocks, err := parseBlockMap(in, f.Size, int(f.blockSize), int(f.sumSize), len(m.references))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", object, err)
	}
	return &blockReader{r: r, m: m, ctx: ctx, path: f.Path, size: f.Size, unit: int64(f.blockSize), blocks: blocks, feeds: map[uint32]*feed{}}, nil
}

// blockObject names the object with the blocks of a file.
func (r *Repository) blockObject(m *Manifest, path string, reference int, bundle uint32) string {
	dir := r.backups() + m.references[reference] + "/"
	if bundle != 0 {
		return dir + "bundle/" + strconv.FormatUint(uint64(bundle), 10)
	}
	return dir + repoName(path) + ".pgbi"
}

// Read implements io.Reader.
func (b *blockReader) Read(p []byte) (int, error) {
	for len(b.ready) == 0 && b.err == nil {
		if b.next == len(b.blocks) {
			b.err = io.EOF
		} else {
			b.ready, b.err = b.block(b.next)
			b.next++
		}
	}
	if len(b.ready) == 0 {
		return 0, b.err
	}
	n := copy(p, b.ready)
	b.ready = b.ready[n:]
	return n, nil
}

// block returns the content of block i of the file.
func (b *blockReader) block(i int) ([]byte, error) {
	k := &b.blocks[i]
	f := b.feeds[k.reference]
	if f == nil {
		f = &feed{object: b.r.blockObject(b.m, b.path, int(k.reference), k.bundle), at: -1}
		b.feeds[k.reference] = f
	}
	b.clock++
	f.used = b.clock
	if f.at != k.offset || int64(len(f.decoded)) != k.super {
		b.makeRoom(f, k.super)
		if err := b.fetch(f, i); err != nil {
			return nil, fmt.Errorf("%s at byte %d: %w", f.object, k.offset, err)
		}
	}
	content := f.decoded[k.number*b.unit:] // parseBlockMap has looked
	want := min(b.unit, b.size-int64(i)*b.unit)
	if int64(len(content)) < want {
		return nil, fmt.Errorf("%s at byte %d: it holds too little for block %d of the file", f.object, k.offset, i)
	}
	return content[:want], nil
}

// makeRoom gives up what was used longest ago, until there is room for another super block of n bytes.
func (b *blockReader) makeRoom(f *feed, n int64) {
	for {
		open, held := 0, n
		var oldest *feed
		for _, other := range b.feeds {
			if other == f || other.body == nil && other.decoded == nil {
				continue
			}
			open++
			held += int64(cap(other.decoded))
			if oldest == nil || other.used < oldest.used {
				oldest = other
			}
		}
		if oldest == nil || open < maxFeeds && held <= maxDecoded {
			return
		}
		oldest.close()
	}
}

// fetch decodes the super block that block i of the file is in.
func (b *blockReader) fetch(f *feed, i int) error {
	k := &b.blocks[i]
	f.at = -1
	if f.body == nil || k.offset < f.pos || k.offset-f.pos > maxGap || k.offset+k.stored > f.end {
		f.closeBody()
		end := b.stretch(i)
		body, err := b.r.open(b.ctx, f.object, k.offset, end-k.offset)
		if err != nil {
			return err
		}
		f.body, f.pos, f.end = body, k.offset, end
	}
	if _, err := io.CopyN(io.Discard, f.body, k.offset-f.pos); err != nil {
		return cut(err)
	}
	stored := &io.LimitedReader{R: f.body, N: k.stored}
	if int64(cap(f.decoded)) < k.super {
		f.decoded = make([]byte, k.super)
	}
	f.decoded = f.decoded[:k.super]
	err := b.decode(f.decoded, stored)
	if err == nil { // behind what is wanted there may be an end mark
		_, err = io.Copy(io.Discard, stored)
	}
	if err == nil && stored.N > 0 {
		err = io.ErrUnexpectedEOF
	}
	f.pos = k.offset + k.stored
	if err != nil {
		f.closeBody()
		return err
	}
	f.at = k.offset
	return nil
}

// decode fills p with what src holds.
func (b *blockReader) decode(p []byte, src io.Reader) error {
	if b.m.passphrase != "" {
		src = newDecrypter(src, b.m.passphrase, true)
	}
	in := b.m.codec.open(src)
	defer in.Close() // only read
	if _, err := io.ReadFull(in, p); err != nil {
		return cut(err)
	}
	if n, err := in.Read(make([]byte, 1)); n > 0 || err != nil && err != io.EOF {
		if err == nil || err == io.EOF {
			err = fmt.Errorf("it holds more than the %d bytes of its block map", len(p))
		}
		return err
	}
	return nil
}

// stretch returns where what is worth asking for at once ends, from the super block of block i on: behind the last that comes in order, from the same backup,
// without a large gap.
func (b *blockReader) stretch(i int) int64 {
	first := &b.blocks[i]
	end := first.offset + first.stored
	for j := i + 1; j < len(b.blocks); j++ {
		k := &b.blocks[j]
		if k.reference != first.reference || k.offset+k.stored <= end {
			continue
		}
		if k.offset < first.offset || k.offset-end > maxGap {
			break
		}
		end = k.offset + k.stored
	}
	return end
}

func (f *feed) closeBody() {
	if f.body != nil {
		f.body.Close() // only read
		f.body = nil
	}
}

func (f *feed) close() {
	f.closeBody()
	f.decoded, f.at = nil, -1
}

// Close implements io.Closer.
func (b *blockReader) Close() error {
	for _, f := range b.feeds {
		f.close()
	}
	b.feeds, b.ready, b.err = nil, nil, io.ErrClosedPipe
	return nil
}
