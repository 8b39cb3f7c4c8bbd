package merge

import (
	"fmt"
	"io"
	"iter"

	"github.com/RoaringBitmap/roaring/v2"

	"holdfast/internal/chain"
	"holdfast/internal/crc32c"
	"holdfast/internal/pg/page"
)

// A file is the content of one file as a stream: its pages in their order, each from where the newest of it lies. What is read is checked before the
// last of it is handed out.
type file struct {
	*worker
	take  *chain.Take // what completes the file
	index int         // in the batch
	made  made
	zeros *roaring.Bitmap // pages that nothing has

	size, pos int64

	runs    func() (chain.Run, bool) // of take
	stop    func()
	run     chain.Run // the one that is under way or comes next
	content int64     // of take, how far it was read
	sums    []uint32  // of take's pages; nil: take is checked as a whole
	sum     uint32    // of the page under way, or of the whole
}

// open begins the stream of a file of the batch.
func (w *worker) open(i int) (*file, error) {
	t := w.batch.takes[i]
	f := &file{worker: w, take: t, index: i, size: w.plan.chain.File(t.File).Size, zeros: roaring.New()}
	f.made.file = t.File
	if t.Blocks != nil {
		f.sums = w.batch.sums.Of(t)
	}
	runs, err := t.Runs(nil)
	if err != nil {
		return nil, err
	}
	f.runs, f.stop = iter.Pull(runs)
	f.addFacts(t)
	pieces, err := w.pieces(t.File)
	if err != nil {
		f.stop()
		return nil, err
	}
	for i := range pieces {
		f.addFacts(&pieces[i].Take)
	}
	return f, nil
}

// addFacts adds what is known of the blocks that are taken from a member.
func (f *file) addFacts(t *chain.Take) {
	if t.Zeros != nil {
		f.zeros.Or(t.Zeros)
	}
	if t.CorruptCount == 0 {
		return
	}
	// Where only the first few were listed the others are taken to be still there.
	f.made.count += t.CorruptCount - len(t.Corrupt)
	for _, block := range t.Corrupt {
		if t.Blocks == nil || t.Blocks.Contains(block) {
			f.made.count++
			f.made.corrupt = append(f.made.corrupt, block)
		}
	}
}

func (f *file) close() { f.stop() }

// Read implements io.Reader.
func (f *file) Read(b []byte) (n int, err error) {
	if f.pos == f.size {
		return 0, io.EOF
	}
	b = b[:min(int64(len(b)), f.size-f.pos)]
	for n < len(b) && err == nil {
		var k int
		k, err = f.some(b[n:])
		n += k
		f.pos += int64(k)
	}
	if err == nil && f.pos == f.size {
		err = f.end()
	}
	if err != nil {
		return 0, fmt.Errorf("%s: %w", f.take.Path, err)
	}
	f.Progress.done.Add(int64(n))
	return n, nil
}

// some reads some of what is next, all of it from one place.
func (f *file) some(b []byte) (int, error) {
	p, limit, err := f.window.at(f)
	if err != nil {
		return 0, err
	}
	if p != nil && p.off == f.pos {
		n := copy(b, p.data)
		p.data, p.off = p.data[n:], p.off+int64(n)
		return n, nil
	}
	if z := f.zeros.NextValue(uint32(f.pos / page.Size)); z >= 0 {
		if at := z * page.Size; at > f.pos {
			limit = min(limit, at)
		} else {
			n := min(int64(len(b)), at+page.Size-f.pos)
			clear(b[:n])
			return int(n), nil
		}
	}
	if f.run.Length == 0 {
		var ok bool
		if f.run, ok = f.runs(); !ok {
			f.run = chain.Run{File: -1}
		}
	}
	if f.run.File != f.pos {
		return 0, fmt.Errorf("no backup has its block %d", f.pos/page.Size)
	}
	b = b[:min(int64(len(b)), f.run.Length, limit-f.pos)]
	if err := f.own(b); err != nil {
		return 0, f.where(err)
	}
	return len(b), nil
}

// own reads what is next of take's own content, and checks it.
func (f *file) own(b []byte) error {
	if err := f.goTo(f.run.Content); err != nil {
		return err
	}
	if err := f.body.fill(b); err != nil {
		return err
	}
	f.content += int64(len(b))
	if f.sums == nil {
		f.sum = crc32c.Update(f.sum, b)
	} else if err := f.checkPages(b); err != nil {
		return err
	}
	n := int64(len(b))
	f.run.Content, f.run.File, f.run.Length = f.run.Content+n, f.run.File+n, f.run.Length-n
	return nil
}

// goTo goes on to a position of take's content.
func (f *file) goTo(content int64) error {
	if f.sums != nil {
		f.content = content
		return f.body.seek(f.take.Offset+content, nil)
	}
	if f.content == 0 {
		if err := f.body.seek(f.take.Offset, nil); err != nil {
			return err
		}
	}
	err := f.body.seek(f.take.Offset+content, func(b []byte) { f.sum = crc32c.Update(f.sum, b) })
	f.content = content
	return err
}

// checkPages checks the pages of what was just read of take's content, the last of which may not be whole yet.
func (f *file) checkPages(b []byte) error {
	head := f.take.Size - int64(f.take.Pages)*page.Size
	at := f.content - int64(len(b)) - head // of b, among the pages
	for len(b) > 0 {
		n := min(int64(len(b)), page.Size-at%page.Size)
		f.sum = crc32c.Update(f.sum, b[:n])
		b, at = b[n:], at+n
		if at%page.Size == 0 {
			if f.sum != f.sums[at/page.Size-1] {
				return fmt.Errorf("page %d is not what was backed up: %w", at/page.Size-1, errDamaged)
			}
			f.sum = 0
		}
	}
	return nil
}

// end checks what is checked as a whole.
func (f *file) end() error {
	if f.sums != nil || f.take.Size == 0 {
		return nil
	}
	err := f.goTo(f.take.Size)
	if err == nil && f.sum != f.take.CRC {
		err = fmt.Errorf("it is not what was backed up: %w", errDamaged)
	}
	return f.where(err)
}

// where adds to an error of take's content where that is.
func (f *file) where(err error) error {
	if err != nil {
		err = fmt.Errorf("its content in %s of %s: %w", f.batch.part.Name, f.batch.part.Backup, err)
	}
	return err
}
