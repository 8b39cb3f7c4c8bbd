package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/RoaringBitmap/roaring/v2"

	"holdfast/internal/archive"
	"holdfast/internal/chain"
	"holdfast/internal/crc32c"
	"holdfast/internal/pg/page"
	"holdfast/internal/tarpart"
)

// A picking is a restore by the manifests of a chain: of each part only what is needed is read. It knows how far each file is, in 12 bytes.
type picking struct {
	*chain.Chain
	files []state
	locks [64]sync.Mutex // each guards some of the files
	stale chain.Sets     // blocks that are not what they must be, of files that are there
	// compared says that files is what a comparison with the directory has found. Otherwise all are to be made.
	compared bool
}

// state is how far a file is.
type state struct {
	crc   uint32 // CRC-32C of what is known to be right, as if all else were zeros without a sum; of the whole file in the end
	stale uint32 // its set in picking.stale; 0 for none
	flags uint8
}

const (
	there  uint8 = 1 << iota // it is in the directory, and to be kept but for stale blocks
	anew                     // what is there of its name is of no use
	longer                   // or shorter: its size is not what it must be
	made                     // it has been opened for writing
)

// lock guards file i.
func (p *picking) lock(i int) *sync.Mutex { return &p.locks[i%len(p.locks)] }

// flags returns those of file i.
func (p *picking) flags(i int) uint8 {
	l := p.lock(i)
	l.Lock()
	defer l.Unlock()
	return p.files[i].flags
}

// add notes the sum of a stretch of file i that is right, behind which come so many bytes more.
func (p *picking) add(i int, sum uint32, behind int64) {
	if behind > 0 {
		sum = crc32c.Combine(sum, 0, behind)
	}
	for at := &p.files[i].crc; ; {
		if was := atomic.LoadUint32(at); atomic.CompareAndSwapUint32(at, was, was^sum) {
			return
		}
	}
}

// addZeros notes that blocks of file i are zeros.
func (p *picking) addZeros(i int, blocks *roaring.Bitmap) {
	size := p.File(i).Size
	for from, to := range blocks.Ranges() {
		sum := uint32(0)
		for range to - uint64(from) {
			sum = page.AppendCRC(sum, zeroSum)
		}
		p.add(i, sum, size-int64(to)*page.Size)
	}
}

var zeroSum = crc32c.Checksum(make([]byte, page.Size))

// needs returns which blocks of the file a take has to bring: nil for all that it has. It returns false where there is nothing to do.
func (p *picking) needs(t *chain.Take) (blocks, zeros *roaring.Bitmap, some bool, err error) {
	s := &p.files[t.File]
	switch flags := p.flags(t.File); {
	case !p.compared || flags&anew != 0:
		return t.Blocks, t.Zeros, true, nil
	case s.stale == 0:
		return nil, nil, false, nil
	}
	if blocks, err = p.stale.Get(s.stale); err != nil {
		return nil, nil, false, err
	}
	if t.Zeros != nil {
		zeros = roaring.And(blocks, t.Zeros)
	}
	if t.Blocks != nil {
		blocks.And(t.Blocks)
	}
	return blocks, zeros, !blocks.IsEmpty() || zeros != nil && !zeros.IsEmpty(), nil
}

// A pick is a stretch of a member's content that is read.
type pick struct {
	*chain.Take
	from, length int64
	runs         []chain.Run // what of it is written, ascending
	sums         []uint32    // of its pages, which all are written; nil: the stretch is all of the content, and has the member's sum
}

// start returns where the stretch begins in the part's tar stream.
func (p *pick) start() int64 { return p.Offset + p.from }

// picks is a task: what is read of a part as one stretch.
type picks struct {
	part   *chain.Part
	ranges *archive.Ranges // nil: the part is read from its beginning
	picks  []pick
}

// dealPicks hands out what a chain's files are made of.
func (r *run) dealPicks(ctx context.Context, tasks chan<- task) (last []task, err error) {
	l := r.newLoom()
	hand := func(made []task) error {
		for _, t := range made {
			if err := send(ctx, tasks, t); err != nil {
				return err
			}
		}
		return nil
	}
	err = r.picking.Walk(ctx, func(p *chain.Part) error {
		if r.plan.Delta != nil {
			n, err := r.extent(p, false)
			if err != nil {
				return err
			}
			r.plan.Delta.Fetch += n
		}
		d := &dealing{run: r, part: p, unit: r.unit(), loom: l}
		made, err := d.deal(ctx)
		if err != nil {
			return err
		}
		if lastRank(p.Part) > 0 {
			last = append(last, made...)
			return nil
		}
		return hand(made)
	})
	for file := range l.layers { // older backups have nothing of it that is needed
		if err != nil {
			break
		}
		d := &dealing{run: r, unit: r.unit()}
		if err = d.unwoven(ctx, l.layers[file]); err == nil {
			err = hand(d.all)
		}
	}
	return last, err
}

// dealing makes the tasks of one part.
type dealing struct {
	*run
	part  *chain.Part
	unit  int64 // bytes of content that a worker takes at once, about
	plain plain // what needs no content
	shell hollow
	picks []pick
	bytes int64 // of them
	all   []task

	loom   *loom
	ranges *archive.Ranges // of the part, once asked for: see opened
	asked  bool
}

// opened returns the part's ranges; nil where it can only be read from its beginning.
func (d *dealing) opened(ctx context.Context) (_ *archive.Ranges, err error) {
	if d.ranges == nil && !d.asked {
		d.ranges, err = d.archive.Ranges(ctx, d.part.Backup, d.part.Part)
		d.asked = true
	}
	return d.ranges, err
}

// unit returns how many bytes of content a worker takes at once, whole pages: less where there is little to do, so that all have a share.
func (r *run) unit() int64 {
	if r.plan.Delta == nil {
		return unitSize
	}
	const least = 8 << 20
	return min(max(r.plan.Delta.Write/int64(8*r.Workers), least), unitSize) / page.Size * page.Size
}

// wanted is what is needed of a take.
type wanted struct {
	*chain.Take
	blocks *roaring.Bitmap // nil: all
}

// part reports whether less than all of the member is needed.
func (w *wanted) partly() bool { return w.blocks != nil && w.blocks.GetCardinality() < uint64(w.Pages) }

func (d *dealing) deal(ctx context.Context) ([]task, error) {
	var needed []wanted
	bySums := false
	for i := range d.part.Takes {
		t := &d.part.Takes[i]
		switch {
		case !d.plan.wants(t.Path, t.Type):
			continue
		case t.Type != tarpart.File:
			d.plain = append(d.plain, t)
			continue
		case d.plan.leaves(t.Path):
			d.notes.add("%s of the backup is left out", t.Path)
			continue
		case isHeld(t.Path):
			needed = append(needed, wanted{Take: t})
			continue
		case d.plan.isHollow(t.Path):
			d.shell = append(d.shell, t)
			continue
		}
		blocks, zeros, some, err := d.picking.needs(t)
		if err != nil {
			return nil, err
		}
		fresh := !d.picking.compared || d.picking.flags(t.File)&anew != 0
		switch {
		case zeros == nil || zeros.IsEmpty():
		case fresh: // the file is made with its size, and has them
			d.picking.addZeros(t.File, zeros)
		default:
			d.all = append(d.all, &blank{t, zeros})
		}
		switch w := (wanted{t, blocks}); {
		case !some:
		case t.Size == 0, blocks != nil && blocks.IsEmpty():
			if fresh {
				d.plain = append(d.plain, t)
			}
		default:
			needed = append(needed, w)
			bySums = bySums || t.Pages > 0 && (w.partly() || t.Size > d.unit+d.unit/2 || d.weaves(t))
		}
	}
	if len(d.plain) > 0 {
		d.all = append(d.all, d.plain)
	}
	if len(d.shell) > 0 {
		d.all = append(d.all, d.shell)
	}
	if len(needed) == 0 {
		return d.all, nil
	}
	var sums *chain.Sums
	var err error
	if bySums {
		if sums, err = d.picking.Sums(ctx, d.part); err != nil {
			return nil, err
		}
		d.told(sums)
	}
	for i := range needed {
		w := &needed[i]
		if woven, err := d.weave(ctx, w, sums.Of(w.Take)); err != nil {
			return nil, err
		} else if woven {
			continue
		}
		if err := d.cut(w, sums.Of(w.Take)); err != nil {
			return nil, fmt.Errorf("%s: %s: %w", d.part.Name, w.Path, err)
		}
	}
	return d.all, d.group(ctx)
}

// told notes why sums of pages are of no use.
func (r *run) told(sums *chain.Sums) {
	if sums.Err != nil {
		r.notes.add("%v: whole files are compared and read instead", sums.Err)
	}
}

// cut makes the picks of a take, whose pages have these sums; nil where they have none that could be used.
func (d *dealing) cut(w *wanted, pages []uint32) error {
	runs, err := w.Runs(w.blocks)
	if err != nil {
		return err
	}
	if pages == nil {
		p := pick{Take: w.Take, length: w.Size}
		for run := range runs {
			p.runs = append(p.runs, run)
		}
		d.picks = append(d.picks, p)
		return nil
	}
	p := pick{Take: w.Take}
	flush := func() {
		if p.length > 0 {
			d.picks = append(d.picks, p)
		}
		p = pick{Take: w.Take}
	}
	for run := range runs {
		for run.Length > 0 {
			if p.sums == nil || p.from+p.length != run.Content || p.length >= d.unit {
				flush()
				p.from, p.sums = run.Content, pages[run.Page:run.Page]
			}
			part := run
			part.Length = min(run.Length, d.unit-p.length)
			p.runs = append(p.runs, part)
			p.length += part.Length
			p.sums = p.sums[:p.length/page.Size]
			run.Content, run.File, run.Page, run.Length = run.Content+part.Length, run.File+part.Length, run.Page+part.Length/page.Size, run.Length-part.Length
		}
	}
	flush()
	return nil
}

// group makes tasks of the picks: where the part can be read in pieces those that lie near each other, else all.
func (d *dealing) group(ctx context.Context) error {
	if len(d.picks) == 0 {
		return nil
	}
	for i := range d.picks {
		d.bytes += d.picks[i].length
	}
	var ranges *archive.Ranges
	if d.bytes < d.part.Content || d.bytes > d.unit {
		var err error
		if ranges, err = d.opened(ctx); err != nil {
			return err
		}
	}
	if ranges == nil {
		d.all = append(d.all, &picks{part: d.part, picks: d.picks})
		return nil
	}
	begin := 0
	var size, end int64
	for i := range d.picks {
		p := &d.picks[i]
		if i > begin && (size >= d.unit || p.start()-end > maxGap || size+p.length > d.unit+d.unit/2) {
			d.all = append(d.all, &picks{d.part, ranges, d.picks[begin:i]})
			begin, size = i, 0
		}
		size += p.length
		end = p.start() + p.length
	}
	d.all = append(d.all, &picks{d.part, ranges, d.picks[begin:]})
	return nil
}

// plain is a task: what has no content, directories, links and empty files.
type plain []*chain.Take

func (p plain) do(w *worker) error {
	for _, t := range p {
		var err error
		if t.Type != tarpart.File {
			err = w.other(t.Path, t.Type, t.Perm(), t.Link)
		} else {
			var f *os.File
			if f, err = w.openPicked(t); err == nil {
				err = f.Close()
			}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", t.Path, err)
		}
	}
	return nil
}

// hollow is a task: files that get no content.
type hollow []*chain.Take

func (h hollow) do(w *worker) error {
	for _, t := range h {
		f, err := w.openPicked(t)
		if err == nil {
			err = errors.Join(f.Truncate(w.picking.File(t.File).Size), f.Close())
		}
		if err != nil {
			return fmt.Errorf("%s: %w", t.Path, err)
		}
	}
	return nil
}

// blank is a task: blocks that become zeros.
type blank struct {
	*chain.Take
	zeros *roaring.Bitmap
}

func (b *blank) do(w *worker) error {
	f, err := w.openPicked(b.Take)
	if err != nil {
		return fmt.Errorf("%s: %w", b.Path, err)
	}
	for i := b.zeros.Iterator(); i.HasNext(); {
		if _, err := f.WriteAt(make([]byte, page.Size), int64(i.Next())*page.Size); err != nil {
			return errors.Join(err, f.Close())
		}
		w.bytes.Add(page.Size)
		w.Progress.done.Add(page.Size)
	}
	w.picking.addZeros(b.File, b.zeros)
	return f.Close()
}

// openPicked opens the file of a take for writing. It is made where it is not there, with the mode and the size that it has in the end.
func (w *worker) openPicked(t *chain.Take) (*os.File, error) {
	l := w.picking.lock(t.File)
	l.Lock()
	defer l.Unlock()
	s := &w.picking.files[t.File]
	if s.flags&made != 0 || s.flags&(there|anew) == there {
		if s.flags&made == 0 {
			w.files.Add(1)
		}
		s.flags |= made
		return w.folder.open(w.tree, t.Path)
	}
	if s.flags&anew != 0 {
		if err := w.folder.remove(w.tree, t.Path); err != nil {
			return nil, err
		}
	}
	file := w.picking.File(t.File)
	f, err := w.folder.create(w.tree, t.Path, file.Mode)
	if err == nil && (t.Size != file.Size || t.Blocks != nil) {
		if err = f.Truncate(file.Size); err != nil {
			err = errors.Join(err, f.Close())
		}
	}
	if err != nil {
		return nil, err
	}
	s.flags |= made
	w.files.Add(1)
	return f, nil
}

// do reads the stretch and puts what is in it where it belongs.
func (p *picks) do(w *worker) (err error) {
	s := &picker{worker: w, picks: p.picks}
	defer func() { err = errors.Join(err, s.leave()) }()
	first, last := &p.picks[0], &p.picks[len(p.picks)-1]
	var body io.ReadCloser
	if p.ranges == nil {
		body, err = w.archive.OpenPart(w.ctx, p.part.Backup, p.part.Part)
	} else {
		s.pos = first.start()
		body, err = p.ranges.Open(w.ctx, s.pos, last.start()+last.length-s.pos)
	}
	if err != nil {
		return fmt.Errorf("%s of %s: %w", p.part.Name, p.part.Backup, err)
	}
	defer body.Close() // only read
	if p.ranges == nil {
		_, err = io.Copy(s, body) // hands over whole frames without another copy
	} else {
		_, err = io.CopyBuffer(s, struct{ io.Reader }{body}, w.buf)
	}
	if err == nil && len(s.picks) > 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil && len(s.picks) > 0 {
		err = fmt.Errorf("%s: %w", s.picks[0].Path, err)
	}
	if err != nil {
		return fmt.Errorf("%s of %s: %w", p.part.Name, p.part.Backup, err)
	}
	return nil
}

// picker takes the bytes of a part's tar stream in their order and puts those of its picks where they belong.
type picker struct {
	*worker
	picks []pick // to come; the first may be under way
	pos   int64  // in the tar stream, of the next byte

	open bool // picks[0] is under way
	done int64
	run  int // of picks[0], the one that is under way or comes next

	file *os.File // stays open for picks of the same file; nil for none
	of   *chain.Take
	held *heldFile // where picks[0] is held back

	right uint32 // sum of what is known to be right of the file up to end, as picking.add takes it
	end   int64

	whole  uint32 // sum of the content up to the last border of a run
	sum    uint32 // from there on
	length int64  // of that
	page   uint32 // sum of the page under way
	pages  int    // that were found right

	from, to int64 // of the file: the stretch that was written last and not yet asked to be written to disk
	wrote    int64 // bytes in there; the rest of it is gaps
}

// Write implements io.Writer.
func (s *picker) Write(b []byte) (int, error) {
	if s.ctx.Err() != nil {
		return 0, context.Cause(s.ctx)
	}
	for rest := b; len(rest) > 0; {
		if len(s.picks) == 0 { // padding
			s.pos += int64(len(rest))
			break
		}
		p := &s.picks[0]
		if gap := p.start() - s.pos; !s.open && gap > 0 {
			n := min(gap, int64(len(rest)))
			s.pos, rest = s.pos+n, rest[n:]
			continue
		}
		if !s.open {
			if err := s.begin(p); err != nil {
				return 0, err
			}
		}
		n := min(p.length-s.done, int64(len(rest)))
		if err := s.put(p, rest[:n]); err != nil {
			return 0, err
		}
		s.pos, rest = s.pos+n, rest[n:]
		if s.done == p.length {
			if err := s.check(p); err != nil {
				return 0, err
			}
			s.picks = s.picks[1:]
		}
	}
	return len(b), nil
}

// begin opens where a pick goes.
func (s *picker) begin(p *pick) (err error) {
	s.open, s.done, s.run, s.held = true, 0, 0, nil
	s.whole, s.sum, s.length, s.page, s.pages = 0, 0, 0, 0, 0
	if isHeld(p.Path) {
		if s.held, err = s.hold(p.Path, p.Size, p.Perm()); err == nil {
			s.held.modTime = p.ModTime
		}
		return err
	}
	if s.file != nil && s.of.File == p.File {
		return nil
	}
	if err := s.leave(); err != nil {
		return err
	}
	s.file, err = s.openPicked(p.Take)
	s.of = p.Take
	return err
}

// put takes content of a pick.
func (s *picker) put(p *pick, b []byte) error {
	for len(b) > 0 {
		at := p.from + s.done
		border := p.from + p.length
		var run *chain.Run
		if s.run < len(p.runs) {
			if run = &p.runs[s.run]; at < run.Content {
				border, run = run.Content, nil
			} else {
				border = run.Content + run.Length
			}
		}
		n := min(border-at, int64(len(b)))
		if run != nil {
			if err := s.write(b[:n], run.File+at-run.Content); err != nil {
				return err
			}
		}
		if err := s.look(p, b[:n]); err != nil {
			return err
		}
		s.done, b = s.done+n, b[n:]
		if at+n == border {
			s.border(p, run)
		}
	}
	return nil
}

// write writes content of a run.
func (s *picker) write(b []byte, at int64) error {
	if s.held != nil {
		s.held.content.Write(b)
		return nil
	}
	if _, err := s.file.WriteAt(b, at); err != nil {
		return err
	}
	s.bytes.Add(int64(len(b)))
	s.Progress.done.Add(int64(len(b)))
	if at < s.to || at-s.to > maxGap {
		s.writeBack()
		s.from = at
	}
	s.to = at + int64(len(b))
	s.wrote += int64(len(b))
	if s.to-s.from >= writeBackEvery {
		s.writeBack()
	}
	return nil
}

// writeBack asks for a long stretch that was written to go to disk, and with it what newer backups have put into its gaps. Where a delta left it mostly
// gaps, an older backup comes to fill them, and that is the time to ask; none comes where pages of a file are replaced that was there.
func (s *picker) writeBack() {
	if n := s.to - s.from; n >= writeBackLeast && (s.wrote >= n/2 || s.picking.compared) {
		writeBack(s.file, s.from, n)
	}
	s.from, s.wrote = s.to, 0
}

// look sums up content, and compares pages with their sums where they have any.
func (s *picker) look(p *pick, b []byte) error {
	if p.sums == nil {
		s.sum = crc32c.Update(s.sum, b)
		s.length += int64(len(b))
		return nil
	}
	for len(b) > 0 {
		n := min(page.Size-int(s.length%page.Size), len(b))
		s.page = crc32c.Update(s.page, b[:n])
		s.length, b = s.length+int64(n), b[n:]
		if s.length%page.Size > 0 {
			break
		}
		if want := p.sums[s.pages]; s.page != want {
			return fmt.Errorf("block %d has the checksum %08X, the backup's list says %08X: %w",
				(p.runs[s.run].File+s.length)/page.Size-1, s.page, want, errDamaged)
		}
		s.sum = page.AppendCRC(s.sum, s.page)
		s.page = 0
		s.pages++
	}
	return nil
}

// border ends a run, or what lies before the next one where run is nil.
func (s *picker) border(p *pick, run *chain.Run) {
	if run != nil {
		s.run++
		if s.held == nil {
			s.isRight(run)
		}
	}
	if s.length == p.length {
		s.whole = s.sum
	} else if p.sums == nil {
		s.whole = crc32c.Combine(s.whole, s.sum, s.length)
	}
	s.sum, s.length = 0, 0
}

// isRight notes that a run has come, whose sum is s.sum. Runs of a file are ascending.
func (s *picker) isRight(run *chain.Run) {
	s.right = crc32c.Combine(s.right, s.sum, run.File+run.Length-s.end)
	s.end = run.File + run.Length
}

// check looks at a pick that is all of a member: is its sum the right one?
func (s *picker) check(p *pick) error {
	s.open = false
	if p.sums == nil && s.whole != p.CRC {
		return mismatch(s.whole, p.CRC)
	}
	return nil
}

// leave closes the file that is open.
func (s *picker) leave() error {
	if s.file == nil {
		return nil
	}
	s.writeBack()
	s.picking.add(s.of.File, s.right, s.picking.File(s.of.File).Size-s.end)
	f := s.file
	s.file, s.right, s.end, s.from, s.to = nil, 0, 0, 0, 0
	return f.Close()
}

// settleBatch is how many files one task of settling has.
const settleBatch = 512

// settled is a task: files whose contents are in place get what else they have, and their line in PostgreSQL's manifest.
type settled []finished

// finished is a file whose content is in place.
type finished struct {
	path    string
	file    int
	mode    fs.FileMode
	modTime time.Time
}

// dealFinished hands out the files of a chain once their contents are in place.
func (r *run) dealFinished(ctx context.Context, tasks chan<- task) ([]task, error) {
	var batch settled
	err := r.picking.Members(ctx, func(m *tarpart.Member) error {
		if m.Type != tarpart.File || isHeld(m.Path) || r.plan.leaves(m.Path) || !r.plan.wants(m.Path, m.Type) || r.plan.isHollow(m.Path) {
			return nil
		}
		i := r.picking.Find(m.Path)
		if i < 0 {
			return fmt.Errorf("%s: the manifest has changed", m.Path)
		}
		if batch = append(batch, finished{m.Path, i, m.Perm(), m.ModTime}); len(batch) < settleBatch {
			return nil
		}
		err := send(ctx, tasks, batch)
		batch = nil
		return err
	})
	if err == nil && len(batch) > 0 {
		err = send(ctx, tasks, batch)
	}
	return nil, err
}

func (b settled) do(w *worker) error {
	for _, f := range b {
		size := w.picking.File(f.file).Size
		err := w.settle(f, size)
		if err == nil {
			err = w.listFile(f.path, size, f.modTime, w.picking.files[f.file].crc)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", f.path, err)
		}
	}
	return nil
}

// settle gives a file its time, and one that was there before also its owner, mode and length.
func (w *worker) settle(f finished, size int64) error {
	if !w.picking.compared {
		return w.folder.touch(w.tree, f.path, f.modTime)
	}
	if w.picking.flags(f.file)&made == 0 {
		w.keptFiles.Add(1)
		w.keptBytes.Add(size)
	}
	if err := w.folder.resize(w.tree, f.path, size); err != nil {
		return err
	}
	return w.folder.settle(w.tree, f.path, f.mode, f.modTime)
}
