package restore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/RoaringBitmap/roaring/v2"

	"holdfast/internal/archive"
	"holdfast/internal/chain"
	"holdfast/internal/crc32c"
	"holdfast/internal/pg/page"
)

// Large files of which increments hold pages here and there are woven: the increments are held back until the backup comes that has the file whole, and
// a stretch of the file is then read from all of them at once and written from its beginning to its end. Written one backup after the other it would
// be a write for each page of an increment and one for each gap between them, and the disk would have nothing to do until the last backup comes.

const (
	// loomMemory bounds what is known in memory of increments that are held back, in bytes: about 6 a page. What finds no room is written by itself.
	loomMemory = 64 << 20
	// maxLayers is how many increments of a file are woven: each is read as a stream of its own, with buffers of half a MiB, and 1.2 MiB more where
	// it is encrypted.
	maxLayers = 8
	// worthWeaving is how many pages an increment must have for each stretch that is woven. Fewer are as many small writes, and not worth a request to
	// the store.
	worthWeaving = 32
	// maxStretch bounds a stretch of a file that is woven by one worker, in bytes.
	maxStretch = 256 << 20
)

// weaving tunes what is woven. Its zero value stands for the constants above.
type weaving struct {
	worth   int64 // pages for each stretch
	stretch int64 // bytes, whole pages
}

// A loom holds increments back.
type loom struct {
	weaving
	layers map[int][]layer // by file
	memory int64           // that they take
	ranges *archive.Ranges // of the last that was held back
}

// A layer is a member of a file, as one of several that are woven.
type layer struct {
	*chain.Take
	part   *chain.Part // without what is in it
	ranges *archive.Ranges
	sums   []uint32 // of the member's pages; nil where none is needed
	memory int64
}

// newLoom returns one for what the run has to restore.
func (r *run) newLoom() *loom {
	stretch := min(max(r.plan.Bytes/int64(16*r.Workers), unitSize), maxStretch) / page.Size * page.Size
	return &loom{weaving{cmp.Or(r.weaving.worth, worthWeaving), cmp.Or(r.weaving.stretch, stretch)}, map[int][]layer{}, 0, nil}
}

// weaves reports whether a member is to be woven, if that is possible: an increment with many pages of a file that is made anew, and the member on which
// those that were held back build.
func (d *dealing) weaves(t *chain.Take) bool {
	l := d.loom
	held := len(l.layers[t.File])
	if d.picking.compared || t.Increment == nil || t.Blocks == nil {
		return held > 0
	}
	stretches := (d.picking.File(t.File).Size + l.stretch - 1) / l.stretch
	return int64(t.Blocks.GetCardinality()) >= l.worth*stretches && held < maxLayers
}

// hold holds an increment back. It returns false where there is no room.
func (l *loom) hold(made layer) bool {
	// The member comes with all that the manifest says of its part, and the sums with those of the part: of both only what is needed is kept.
	member, take := *made.Member, *made.Take
	take.Member = &member
	made.Take = &take
	made.memory = 4*int64(len(made.sums)) + int64(len(member.Increment.Set)) + int64(take.Blocks.GetSizeInBytes()) + 1<<10
	if take.Zeros != nil {
		made.memory += int64(take.Zeros.GetSizeInBytes())
	}
	if made.ranges != l.ranges { // the seek table of a part
		made.memory += 64 << 10
	}
	if l.memory+made.memory > loomMemory {
		return false
	}
	made.sums = slices.Clone(made.sums)
	l.memory += made.memory
	l.ranges = made.ranges
	l.layers[take.File] = append(l.layers[take.File], made)
	return true
}

// take takes what is held back of a file.
func (l *loom) take(file int) []layer {
	all := l.layers[file]
	for i := range all {
		l.memory -= all[i].memory
	}
	delete(l.layers, file)
	return all
}

// weave takes what is needed of a member, if it is to be woven: an increment is held back, what is no increment is woven with those of the file that
// were. It returns false where the member is to be written by itself.
func (d *dealing) weave(ctx context.Context, w *wanted, sums []uint32) (bool, error) {
	if !d.weaves(w.Take) {
		return false, nil
	}
	var ranges *archive.Ranges
	var err error
	if sums != nil && w.Blocks != nil && lastRank(d.part.Part) == 0 {
		if ranges, err = d.opened(ctx); err != nil {
			return false, err
		}
	}
	made := layer{Take: w.Take, part: &chain.Part{Part: d.part.Part, Backup: d.part.Backup, Level: d.part.Level, Content: d.part.Content}, ranges: ranges, sums: sums}
	if w.Increment != nil {
		return ranges != nil && d.loom.hold(made), nil
	}
	layers := d.loom.take(w.File)
	if ranges == nil {
		return false, d.unwoven(ctx, layers)
	}
	layers = append(layers, made)
	size := d.picking.File(w.File).Size
	for from := int64(0); from < size; from += d.loom.stretch {
		d.all = append(d.all, &weave{layers, from, min(from+d.loom.stretch, size)})
	}
	return true, nil
}

// unwoven makes tasks of increments that were held back, each by itself.
func (d *dealing) unwoven(ctx context.Context, layers []layer) error {
	for i := range layers {
		l := &layers[i]
		by := &dealing{run: d.run, part: l.part, unit: d.unit, ranges: l.ranges}
		if err := by.cut(&wanted{l.Take, l.Blocks}, l.sums); err != nil {
			return fmt.Errorf("%s: %s: %w", l.part.Name, l.Path, err)
		}
		if err := by.group(ctx); err != nil {
			return err
		}
		d.all = append(d.all, by.all...)
	}
	return nil
}

// weave is a task: a stretch of a file is put together from several backups.
type weave struct {
	layers   []layer // the last is that of the backup that has the file whole, and is no increment
	from, to int64   // of the file
}

// strand is the pages of one layer in a stretch of the file.
type strand struct {
	*layer
	runs []chain.Run   // to come in the stretch; the first may be under way
	body io.ReadCloser // nil where none is open
	pos  int64         // where body is in the member's content
	end  int64         // where it ends
}

// span is a run of a layer, or of zeros.
type span struct {
	chain.Run
	layer int // its number; -1 for zeros
}

// spansOf returns what layers have of a stretch of their file, ascending, and if asked for what is zeros.
func spansOf(layers []layer, from, to int64, zeros bool) (all []span, err error) {
	stretch := roaring.New()
	stretch.AddRange(uint64(from/page.Size), uint64((to+page.Size-1)/page.Size))
	for i := range layers {
		l := &layers[i]
		if l.Zeros != nil && zeros {
			for first, end := range roaring.And(l.Zeros, stretch).Ranges() {
				all = append(all, span{chain.Run{File: int64(first) * page.Size, Length: (int64(end) - int64(first)) * page.Size}, -1})
			}
		}
		blocks := stretch
		if l.Blocks != nil {
			blocks = roaring.And(l.Blocks, stretch)
		}
		runs, err := l.Runs(blocks)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", l.Path, err)
		}
		for run := range runs {
			all = append(all, span{run, i})
		}
	}
	slices.SortFunc(all, func(x, y span) int { return cmp.Compare(x.File, y.File) })
	return all, nil
}

// weaver writes a stretch.
type weaver struct {
	picker  // of which it is the part that writes
	strands []strand
	spans   []span // to come; the first may be under way
	first   int64  // of the file: where the pages begin that were found right one after the other
	next    int64  // and where they end
}

func (v *weave) do(w *worker) (err error) {
	base := &v.layers[len(v.layers)-1]
	s := &weaver{picker: picker{worker: w, of: base.Take}, strands: make([]strand, len(v.layers))}
	defer func() {
		for i := range s.strands {
			s.strands[i].close()
		}
		err = errors.Join(err, s.leave())
	}()
	if s.spans, err = spansOf(v.layers, v.from, v.to, false); err != nil || len(s.spans) == 0 {
		return err
	}
	for i := range v.layers {
		s.strands[i].layer = &v.layers[i]
	}
	for _, p := range s.spans {
		s.strands[p.layer].runs = append(s.strands[p.layer].runs, p.Run)
	}
	if s.file, err = w.openPicked(base.Take); err != nil {
		return fmt.Errorf("%s: %w", base.Path, err)
	}
	return s.fill(v.to)
}

// fill writes the stretch, which ends at to.
func (s *weaver) fill(to int64) error {
	last := &s.strands[len(s.strands)-1]
	for at := s.spans[0].File; len(s.spans) > 0; {
		if s.ctx.Err() != nil {
			return context.Cause(s.ctx)
		}
		// The whole file's content comes as it is read, a frame of the part in most cases, into which the pages of increments are put. Where much of it is
		// not needed it is passed over.
		n := min(int64(len(s.buf)), to-at)
		switch {
		case last.body != nil && last.pos == at && at < last.end:
			k, err := last.body.Read(s.buf[:min(n, last.end-at)])
			if k == 0 && err == nil {
				continue
			}
			if k == 0 {
				return last.failed(cmp.Or(eof(err), err))
			}
			n = int64(k)
			last.pos += n
		case len(last.runs) > 0 && last.runs[0].File <= at:
			if err := last.open(s.ctx, at); err != nil {
				return err
			}
			continue
		case len(last.runs) > 0:
			n = min(n, last.runs[0].File-at)
		}
		if err := s.put(s.buf[:n], at); err != nil {
			return err
		}
		at += n
	}
	s.noted()
	return nil
}

// eof returns what it means that content ended where more must come; nil for other errors.
func eof(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return nil
}

// put writes what belongs to the file from at on, as long as b, which has the content of the last strand; what others have is put into it.
func (s *weaver) put(b []byte, at int64) error {
	end := at + int64(len(b))
	from, to := at, at // of what is to be written
	flush := func() error {
		if from == to {
			return nil
		}
		return s.picker.write(b[from-at:to-at], from)
	}
	for len(s.spans) > 0 && s.spans[0].File < end {
		p := &s.spans[0]
		lo, hi := max(p.File, at), min(p.File+p.Length, end)
		if lo != to {
			if err := flush(); err != nil {
				return err
			}
			from = lo
		}
		piece := b[lo-at : hi-at]
		strand := &s.strands[p.layer]
		if p.layer < len(s.strands)-1 {
			if err := strand.read(s.ctx, piece, p.Content+lo-p.File); err != nil {
				return err
			}
		}
		if err := s.look(strand, p, piece, lo); err != nil {
			return strand.failed(err)
		}
		if to = hi; hi < p.File+p.Length {
			break
		}
		s.spans, strand.runs = s.spans[1:], strand.runs[1:]
	}
	return flush()
}

// look compares pages of a span, or a piece of one, with their sums.
func (s *weaver) look(strand *strand, p *span, b []byte, at int64) error {
	if at != s.next {
		s.noted()
		s.first = at
	}
	for len(b) > 0 {
		n := min(page.Size-int(at%page.Size), len(b))
		s.page = crc32c.Update(s.page, b[:n])
		at, b = at+int64(n), b[n:]
		if at%page.Size > 0 {
			break
		}
		if want := strand.sums[p.Page+(at-p.File)/page.Size-1]; s.page != want {
			return fmt.Errorf("block %d has the checksum %08X, the backup's list says %08X: %w", at/page.Size-1, s.page, want, errDamaged)
		}
		s.sum = page.AppendCRC(s.sum, s.page)
		s.page = 0
	}
	s.next = at
	return nil
}

// noted notes that all from s.first to s.next is right.
func (s *weaver) noted() {
	if s.next > s.first {
		s.isRight(&chain.Run{File: s.first, Length: s.next - s.first})
	}
	s.sum = 0
}

// open begins to read the content from at on, which is in the first run, up to where much is not needed.
func (t *strand) open(ctx context.Context, at int64) (err error) {
	t.close()
	t.pos, t.end = at, t.runs[0].Content+t.runs[0].Length
	for _, next := range t.runs[1:] {
		if next.Content-t.end > maxGap {
			break
		}
		t.end = next.Content + next.Length
	}
	if t.body, err = t.ranges.Open(ctx, t.Offset+t.pos, t.end-t.pos); err != nil {
		t.body = nil
		return t.failed(err)
	}
	return nil
}

// read reads content from at on, which is in the first run.
func (t *strand) read(ctx context.Context, b []byte, at int64) error {
	if t.body == nil || at >= t.end {
		if err := t.open(ctx, at); err != nil {
			return err
		}
	}
	if at > t.pos {
		if _, err := io.CopyN(io.Discard, t.body, at-t.pos); err != nil {
			return t.failed(cmp.Or(eof(err), err))
		}
	}
	if _, err := io.ReadFull(t.body, b); err != nil {
		return t.failed(cmp.Or(eof(err), err))
	}
	t.pos = at + int64(len(b))
	return nil
}

// failed says of what an error is.
func (t *strand) failed(err error) error {
	return fmt.Errorf("%s of %s: %s: %w", t.part.Name, t.part.Backup, t.Path, err)
}

func (t *strand) close() {
	if t.body != nil {
		t.body.Close() // only read
		t.body = nil
	}
}
