package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"sync/atomic"

	"github.com/RoaringBitmap/roaring/v2"

	"holdfast/internal/archive"
	"holdfast/internal/chain"
	"holdfast/internal/compress"
	"holdfast/internal/crc32c"
	"holdfast/internal/pg/page"
	"holdfast/internal/tarpart"
)

// Differences is what a comparison of a directory with a backup has found.
type Differences struct {
	EqualFiles   int64 `json:"equal_files"`
	StaleFiles   int64 `json:"stale_files"` // in which some pages differ
	StalePages   int64 `json:"stale_pages"`
	MissingFiles int64 `json:"missing_files"` // not there, or of no use: to be written as a whole
	MissingBytes int64 `json:"missing_bytes"`
	ExtraFiles   int64 `json:"extra_files"` // to be removed
	ExtraBytes   int64 `json:"extra_bytes"`
	Read         int64 `json:"read_bytes"`  // of the directory
	Fetch        int64 `json:"fetch_bytes"` // about so many, as they are stored
	Write        int64 `json:"write_bytes"`
}

// comparing counts what is found.
type comparing struct{ stalePages, read atomic.Int64 }

// Compare compares the plan's directory with the backup, which takes about as long as reading the directory, and writes nothing. The plan is one of Delta; its Delta
// is filled in.
func Compare(ctx context.Context, a *archive.Archive, p *Plan, opts Options) error {
	r := newRun(a, p, opts)
	var err error
	if r.tree, err = openTree(p, true); err != nil {
		return err
	}
	defer r.tree.close() // nothing was written
	defer r.abandon()
	r.phase("compare", p.Bytes)
	if err := r.compare(ctx); err != nil {
		return fmt.Errorf("compare %s with %s: %w", p.Destination, p.Backup, err)
	}
	p.Notes = append(p.Notes, r.notes.all...)
	return r.estimate(ctx, func(*tarpart.Member) {})
}

// compare finds out what in the directory is as the backup has it.
func (r *run) compare(ctx context.Context) error {
	r.picking.stale.File = chain.Unnamed
	if err := r.share(ctx, r.dealCompared); err != nil {
		return err
	}
	r.picking.compared = true
	d := Differences{StalePages: r.comparing.stalePages.Load(), Read: r.comparing.read.Load()}
	bytes, files := map[string]int64{}, map[string]int64{}
	err := r.picking.Members(ctx, func(m *tarpart.Member) error {
		if !r.compares(m) {
			return nil
		}
		s := &r.picking.files[r.picking.Find(m.Path)]
		switch {
		case s.flags&there == 0 || s.flags&anew != 0:
			s.flags = anew
			d.MissingFiles++
			d.MissingBytes += m.Total()
			bytes[r.plan.directoryOf(m.Path)] += m.Total()
			files[r.plan.directoryOf(m.Path)]++
			atomic.StoreUint32(&s.crc, 0) // of all of it when it comes
		case s.stale != 0 || s.flags&longer != 0:
			d.StaleFiles++
		default:
			d.EqualFiles++
		}
		return nil
	})
	if err != nil {
		return err
	}
	d.Write = d.MissingBytes + d.StalePages*page.Size
	if r.plan.Delta != nil {
		extra, err := r.sweep(false)
		if err != nil {
			return err
		}
		d.ExtraFiles, d.ExtraBytes = extra.files, extra.bytes
		for dir, n := range extra.perDir {
			bytes[dir] = max(0, bytes[dir]-n)
		}
		*r.plan.Delta = d
	}
	r.plan.Rooms = nil
	return r.plan.measure(bytes, files)
}

// compares reports whether a member is a file that is compared.
func (r *run) compares(m *tarpart.Member) bool {
	return m.Type == tarpart.File && !isHeld(m.Path) && !r.plan.leaves(m.Path) && r.plan.wants(m.Path, m.Type)
}

// dealCompared hands out what is to be compared. Increments are held back until the backup comes that has the file whole: the file is then read from its
// beginning to its end, rather than a page here and a page there for each of the backups.
func (r *run) dealCompared(ctx context.Context, tasks chan<- task) ([]task, error) {
	l := r.newLoom()
	err := r.picking.Walk(ctx, func(p *chain.Part) error {
		var sums *chain.Sums
		for i := range p.Takes {
			t := &p.Takes[i]
			if !r.compares(t.Member) {
				continue
			}
			if t.Pages > 0 && sums == nil {
				var err error
				if sums, err = r.picking.Sums(ctx, p); err != nil {
					return err
				}
				r.told(sums)
			}
			made := layer{Take: t, sums: sums.Of(t)}
			known := made.sums != nil || t.Blocks != nil && t.Blocks.IsEmpty()
			if known && t.Increment != nil && l.hold(made) {
				continue
			}
			var layers []layer
			if t.Increment == nil {
				layers = l.take(t.File)
			}
			if known {
				layers = append(layers, made)
			} else if err := send(ctx, tasks, comparison{Take: t}); err != nil {
				return err
			}
			if err := r.sendCompared(ctx, tasks, layers); err != nil {
				return err
			}
		}
		return nil
	})
	for file := range l.layers { // older backups have nothing of it that is needed
		if err == nil {
			err = r.sendCompared(ctx, tasks, l.layers[file])
		}
	}
	return nil, err
}

// sendCompared hands out a file of which something is known, by as many backups, stretch by stretch.
func (r *run) sendCompared(ctx context.Context, tasks chan<- task, layers []layer) error {
	if len(layers) == 0 {
		return nil
	}
	t := layers[0].Take
	size := r.picking.File(t.File).Size
	for from := int64(0); from == 0 || from < size; from += unitSize {
		if err := send(ctx, tasks, comparison{t, layers, from, min(from+unitSize, size)}); err != nil {
			return err
		}
	}
	return nil
}

// comparison is a task: blocks of a file of the directory are compared with those of a backup, or of several.
type comparison struct {
	*chain.Take
	layers   []layer // nil: of the take's pages no sums are known, and there are some
	from, to int64   // of the file
}

func (c comparison) do(w *worker) error {
	if w.picking.flags(c.File)&anew != 0 {
		return nil
	}
	f, size, err := w.folder.look(w.tree, c.Path)
	flags := there
	switch {
	case err != nil:
		flags = anew
	case size != w.picking.File(c.File).Size:
		flags |= longer
	}
	if f != nil {
		defer f.Close() // only read
	}
	w.mark(c.File, flags)
	switch {
	case flags&anew != 0:
		return nil
	case c.layers != nil:
		return w.comparePages(f, &c)
	case c.Blocks == nil:
		return w.compareWhole(f, &c)
	}
	// Without sums of its pages nothing is known of a member of which some blocks are needed only.
	stale := c.Blocks.Clone()
	if c.Zeros != nil {
		stale.Or(c.Zeros)
	}
	return w.isStale(c.File, stale)
}

// mark adds to what is known of a file.
func (w *worker) mark(file int, flags uint8) {
	l := w.picking.lock(file)
	l.Lock()
	defer l.Unlock()
	w.picking.files[file].flags |= flags
}

// isStale adds to the blocks of a file that must be written.
func (w *worker) isStale(file int, blocks *roaring.Bitmap) error {
	if blocks.IsEmpty() {
		return nil
	}
	w.comparing.stalePages.Add(int64(blocks.GetCardinality()))
	l := w.picking.lock(file)
	l.Lock()
	defer l.Unlock()
	s := &w.picking.files[file]
	if s.stale != 0 {
		before, err := w.picking.stale.Get(s.stale)
		if err != nil {
			return err
		}
		blocks.Or(before)
	}
	var err error
	s.stale, err = w.picking.stale.Put(s.stale, blocks)
	return err
}

// compareWhole compares a file with the sum of all of its content.
func (w *worker) compareWhole(f *os.File, c *comparison) error {
	sum, n, err := w.sumUp(f, c.Size)
	if err != nil {
		return err
	}
	if n != c.Size || sum != c.CRC {
		w.mark(c.File, anew)
		return nil
	}
	w.picking.add(c.File, sum, 0)
	return nil
}

// sumUp returns the CRC-32C of the first max bytes of a file, or of as many as there are.
func (w *worker) sumUp(f *os.File, max int64) (sum uint32, n int64, err error) {
	for n < max {
		k, err := f.ReadAt(w.buf[:min(max-n, int64(len(w.buf)))], n)
		sum = crc32c.Update(sum, w.buf[:k])
		n += int64(k)
		w.counted(int64(k))
		if err == io.EOF {
			return sum, n, nil
		}
		if err == nil && w.ctx.Err() != nil {
			err = context.Cause(w.ctx)
		}
		if err != nil {
			return 0, n, err
		}
	}
	return sum, n, nil
}

// counted notes that bytes of the directory were read.
func (w *worker) counted(n int64) {
	w.comparing.read.Add(n)
	w.Progress.done.Add(n)
}

// comparePages compares a stretch of a file with the sums of its pages.
func (w *worker) comparePages(f *os.File, c *comparison) error {
	spans, err := spansOf(c.layers, c.from, c.to, true)
	if err != nil {
		return err
	}
	stale := roaring.New()
	total := w.picking.File(c.File).Size
	equal, from := uint32(0), int64(-1) // sum of blocks that are right, which began at from; -1 where the last was not
	flush := func(to int64) {
		if from >= 0 {
			w.picking.add(c.File, equal, total-to)
		}
		equal, from = 0, -1
	}
	pageAt := func(b []byte, want uint32, at int64) {
		switch {
		case len(b) < page.Size || crc32c.Checksum(b) != want:
			flush(at)
			stale.Add(uint32(at / page.Size))
			return
		case from < 0:
			from = at
		}
		equal = page.AppendCRC(equal, want)
	}
	at := int64(-1) // where the last span ended
	for len(spans) > 0 {
		if w.ctx.Err() != nil {
			return context.Cause(w.ctx)
		}
		if spans[0].File > at { // otherwise it is under way, or begins where the last one ended
			flush(at)
			at = spans[0].File
		}
		end := at // of what lies one behind the other
		for i := 0; i < len(spans) && spans[i].File <= end && end-at < int64(len(w.buf)); i++ {
			end = spans[i].File + spans[i].Length
		}
		b := w.buf[:min(int64(len(w.buf)), end-at)]
		n, err := f.ReadAt(b, at)
		if err != nil && err != io.EOF {
			return err
		}
		w.comparing.read.Add(int64(n))
		w.Progress.done.Add(int64(len(b)))
		for ; len(b) > 0; b, n = b[page.Size:], n-page.Size {
			p := &spans[0]
			want := zeroSum
			if p.layer >= 0 {
				want = c.layers[p.layer].sums[p.Page+(at-p.File)/page.Size]
			}
			pageAt(b[:max(0, min(page.Size, n))], want, at) // nothing where the file is too short
			if at += page.Size; at == p.File+p.Length {
				spans = spans[1:]
			}
		}
	}
	flush(at)
	return w.isStale(c.File, stale)
}

// look opens the file p for reading, which must be one, of one name, with directories that are no links above it. Nothing is made.
func (f *folder) look(t *tree, p string) (*os.File, int64, error) {
	name, err := f.enterThere(t, p)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.root.Lstat(name)
	if err == nil && !single(info) {
		err = errors.New("not a file of its own")
	}
	if err != nil {
		return nil, 0, err
	}
	file, err := f.root.Open(name)
	return file, info.Size(), err
}

// enterThere is enter for directories that are there.
func (f *folder) enterThere(t *tree, p string) (name string, err error) {
	root, oid, rel := t.locate(p)
	dir, name := path.Split(rel)
	dir = path.Clean(dir)
	if f.root != nil && f.tree == t && f.oid == oid && f.path == dir {
		return name, nil
	}
	for up := dir; up != "."; up = path.Dir(up) {
		info, err := root.Lstat(up)
		if err != nil {
			return "", err
		}
		if !info.IsDir() {
			return "", &fs.PathError{Op: "open", Path: up, Err: errors.New("not a directory")}
		}
	}
	f.leave()
	opened, err := root.OpenRoot(dir)
	if err != nil {
		return "", err
	}
	*f = folder{tree: t, oid: oid, path: dir, root: opened}
	return name, nil
}

// estimate says how many bytes of each backup a plan has to fetch, about. It calls see for each member of which something is needed.
func (r *run) estimate(ctx context.Context, see func(*tarpart.Member)) error {
	p := r.plan
	p.Stored, p.Parts = 0, 0
	for i := range p.Chain {
		p.Chain[i].Stored, p.Chain[i].Parts = 0, 0
	}
	err := r.picking.Walk(ctx, func(part *chain.Part) error {
		for i := range part.Takes {
			see(part.Takes[i].Member)
		}
		n, err := r.extent(part, false)
		if err == nil && p.Hollowed != nil {
			var whole int64
			whole, err = r.extent(part, true)
			p.Hollowed.Stored += whole - n
		}
		if err != nil || n == 0 {
			return err
		}
		p.Stored += n
		p.Parts++
		if len(p.Chain) > 0 {
			p.Chain[part.Level].Stored += n
			p.Chain[part.Level].Parts++
		}
		return nil
	})
	if p.Delta != nil {
		p.Delta.Fetch = p.Stored
	}
	return err
}

// extent returns about how many bytes of a part, as it is stored, are read for what is needed of it; for hollow files too if whole is set.
func (r *run) extent(part *chain.Part, whole bool) (int64, error) {
	var read, end int64
	for i := range part.Takes {
		t := &part.Takes[i]
		if t.Type != tarpart.File || !r.plan.wants(t.Path, t.Type) || r.plan.leaves(t.Path) || !whole && r.plan.isHollow(t.Path) {
			continue
		}
		var blocks *roaring.Bitmap
		some := true
		if !isHeld(t.Path) {
			var err error
			if blocks, _, some, err = r.picking.needs(t); err != nil {
				return 0, err
			}
		}
		if !some || t.Size == 0 {
			continue
		}
		runs, err := t.Runs(blocks)
		if err != nil {
			return 0, err
		}
		for run := range runs {
			if from := t.Offset + run.Content; from-end <= maxGap && read > 0 {
				read += from - end
			}
			read += run.Length
			end = t.Offset + run.Content + run.Length
		}
	}
	if ranged := part.Method == compress.Zstd || part.Method == compress.None; read >= part.Content || read > 0 && !ranged {
		return part.Size, nil
	}
	if read == 0 {
		return 0, nil
	}
	return int64(float64(part.Size) * float64(read) / float64(part.Content)), nil
}
