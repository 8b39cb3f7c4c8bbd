package merge

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/RoaringBitmap/roaring/v2"

	"holdfast/internal/archive"
	"holdfast/internal/chain"
	"holdfast/internal/crc32c"
	"holdfast/internal/pg/page"
	"holdfast/internal/tarpart"
)

// A piece is pages of a file that an older backup completes.
type piece struct {
	chain.Take
	source int      // number of the part
	sums   []uint32 // of the pages in Blocks
	kept   int64    // where they are in the spool, 0 where they are in the part only
}

// pieceRecord is a piece in the spool.
type pieceRecord struct {
	Newer  int64 // piece of the same file; 0 for none
	Source int
	Member tarpart.Member
	Blocks []byte
	Zeros  []byte `json:",omitempty"`
	Sums   []byte
	Kept   int64 `json:",omitempty"`
}

// spool keeps what is known of pieces until the files are made, in a file without a name: there can be as many as there are files. One goroutine adds
// to it.
type spool struct {
	file *os.File
	end  int64
}

// add appends b and returns where it is, never 0.
func (s *spool) add(b []byte) (at int64, err error) {
	if s.file == nil {
		if s.file, err = chain.Unnamed(); err != nil {
			return 0, err
		}
		s.end = 1
	}
	at = s.end
	_, err = s.file.WriteAt(b, at)
	s.end += int64(len(b))
	return at, err
}

func (s *spool) close() {
	if s.file != nil {
		s.file.Close() // what is in it does not matter any more
	}
}

// notePieces notes what a part has of files that older backups complete. What cannot be read in pieces later is kept.
func (r *run) notePieces(ctx context.Context, h *hand, sums *chain.Sums) error {
	if len(h.pieces) == 0 {
		return nil
	}
	source := r.sources.add(h.part.Backup, h.part.Part)
	ranges, err := r.sources.ranges(ctx, source)
	if err != nil {
		return err
	}
	body := stretch{run: r, ctx: ctx, part: h.part}
	defer body.close()
	for _, t := range h.pieces {
		p := &piece{Take: *t, source: source}
		all := sums.Of(t)
		if keep := ranges == nil || all == nil; keep {
			err = r.keep(&body, p)
		} else {
			err = p.eachPage(func(run chain.Run) error {
				for i := range run.Length / page.Size {
					p.sums = append(p.sums, all[run.Page+i])
				}
				return nil
			})
		}
		if err == nil {
			err = r.note(p)
		}
		if err != nil {
			return fmt.Errorf("%s of %s: %s: %w", h.part.Name, h.part.Backup, t.Path, err)
		}
	}
	return nil
}

// eachPage calls do for each run of what is taken.
func (p *piece) eachPage(do func(chain.Run) error) error {
	runs, err := p.Runs(nil)
	if err != nil {
		return err
	}
	for run := range runs {
		if err := do(run); err != nil {
			return err
		}
	}
	return nil
}

// keep reads all of a member and keeps the pages that are taken of it.
func (r *run) keep(body *stretch, p *piece) error {
	var sum uint32
	through := func(b []byte) { sum = crc32c.Update(sum, b) }
	if err := body.seek(p.Offset, nil); err != nil {
		return err
	}
	var b [page.Size]byte
	err := p.eachPage(func(run chain.Run) error {
		if err := body.seek(p.Offset+run.Content, through); err != nil {
			return err
		}
		for range run.Length / page.Size {
			if err := body.fill(b[:]); err != nil {
				return err
			}
			through(b[:])
			at, err := r.spool.add(b[:])
			if err != nil {
				return err
			}
			p.kept = cmp.Or(p.kept, at)
			p.sums = append(p.sums, crc32c.Checksum(b[:]))
		}
		return nil
	})
	if err == nil {
		err = body.seek(p.Offset+p.Size, through)
	}
	if err == nil && sum != p.CRC {
		err = fmt.Errorf("it is not what was backed up: %w", errDamaged)
	}
	return err
}

// note enters a piece in the spool.
func (r *run) note(p *piece) error {
	fact := &r.facts[p.File]
	record := pieceRecord{Newer: fact.last, Source: p.source, Member: *p.Member, Kept: p.kept}
	var err error
	if record.Blocks, err = p.Blocks.ToBytes(); err != nil {
		return err
	}
	if p.Zeros != nil {
		if record.Zeros, err = p.Zeros.ToBytes(); err != nil {
			return err
		}
	}
	for _, sum := range p.sums {
		record.Sums = binary.LittleEndian.AppendUint32(record.Sums, sum)
	}
	text, err := json.Marshal(&record)
	if err != nil {
		return err
	}
	fact.last, err = r.spool.add(append(binary.LittleEndian.AppendUint32(nil, uint32(len(text))), text...))
	return err
}

// pieces returns the pieces of a file.
func (r *run) pieces(number int) (pieces []piece, err error) {
	for at := r.facts[number].last; at != 0; {
		var length [4]byte
		if _, err := r.spool.file.ReadAt(length[:], at); err != nil {
			return nil, err
		}
		text := make([]byte, binary.LittleEndian.Uint32(length[:]))
		if _, err := r.spool.file.ReadAt(text, at+4); err != nil {
			return nil, err
		}
		var record pieceRecord
		if err := json.Unmarshal(text, &record); err != nil {
			return nil, err
		}
		p := piece{Take: chain.Take{Member: &record.Member, File: number, Blocks: roaring.New()}, source: record.Source, kept: record.Kept}
		if err := p.Blocks.UnmarshalBinary(record.Blocks); err != nil {
			return nil, err
		}
		if record.Zeros != nil {
			p.Zeros = roaring.New()
			if err := p.Zeros.UnmarshalBinary(record.Zeros); err != nil {
				return nil, err
			}
		}
		for i := 0; i < len(record.Sums); i += 4 {
			p.sums = append(p.sums, binary.LittleEndian.Uint32(record.Sums[i:]))
		}
		pieces = append(pieces, p)
		at = record.Newer
	}
	return pieces, nil
}

// sources are the parts that pieces lie in.
type sources struct {
	archive *archive.Archive

	mu    sync.Mutex
	parts []source
	open  []int // those of which ranges are known, the one that was asked for last at the end
}

type source struct {
	backup string
	part   archive.Part
	ranges *archive.Ranges
}

// maxOpen bounds of how many parts ranges are known at once: for a part of 1 GiB they take 64 KiB.
const maxOpen = 128

func (s *sources) add(backup string, p archive.Part) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.parts = append(s.parts, source{backup: backup, part: p})
	return len(s.parts) - 1
}

// ranges returns what reads part number i in pieces; nil where that cannot be.
func (s *sources) ranges(ctx context.Context, i int) (*archive.Ranges, error) {
	s.mu.Lock()
	one := s.parts[i]
	if at := slices.Index(s.open, i); at >= 0 {
		s.open = append(slices.Delete(s.open, at, at+1), i)
	}
	s.mu.Unlock()
	if one.ranges != nil {
		return one.ranges, nil
	}
	ranges, err := s.archive.Ranges(ctx, one.backup, one.part)
	if ranges == nil || err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.parts[i].ranges == nil {
		s.parts[i].ranges = ranges
		s.open = append(s.open, i)
	}
	if len(s.open) > maxOpen {
		s.parts[s.open[0]].ranges = nil
		s.open = slices.Delete(s.open, 0, 1)
	}
	return ranges, nil
}

// name says which part is number i.
func (s *sources) name(i int) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.parts[i].part.Name + " of " + s.parts[i].backup
}

// A window is the pages that are read ahead for the files of a batch, in their order: of a large file those for some of it, of small ones those for many.
type window struct {
	pages []pages
	buf   []byte
	// What lies before this block of this file of the batch was read.
	index int
	block uint32
}

// pages is a stretch of pages of a file.
type pages struct {
	index int   // of the file in the batch
	off   int64 // in the file
	data  []byte
}

// windowPages bounds what is read ahead: 8 MiB.
const windowPages = 1024

func (w *window) begin() { w.pages, w.index, w.block = w.pages[:0], 0, 0 }

// at returns the next pages for f, which lie at its position or behind it; nil where there are none before limit.
func (w *window) at(f *file) (p *pages, limit int64, err error) {
	for {
		for len(w.pages) > 0 && len(w.pages[0].data) == 0 {
			w.pages = w.pages[1:]
		}
		if len(w.pages) > 0 && w.pages[0].index == f.index {
			return &w.pages[0], w.pages[0].off, nil
		}
		if f.index < w.index {
			return nil, f.size, nil
		}
		if end := int64(w.block) * page.Size; f.index == w.index && f.pos < end {
			return nil, end, nil
		}
		if err := w.load(f.worker); err != nil {
			return nil, 0, err
		}
	}
}

// wanted is a run of pages that is to be read ahead.
type wanted struct {
	pages
	path    string
	source  int
	content int64 // where it begins in the part's tar stream
	kept    int64 // or in the spool
	sums    []uint32
}

// load reads the next pages ahead.
func (w *window) load(of *worker) error {
	buf := w.buf
	var all []wanted
	for takes := of.batch.takes; w.index < len(takes); {
		pieces, err := of.pieces(takes[w.index].File)
		if err != nil {
			return err
		}
		if len(pieces) == 0 {
			w.index++
			continue
		}
		if w.buf == nil {
			w.buf = make([]byte, windowPages*page.Size)
			buf = w.buf
		}
		if len(buf) == 0 {
			break
		}
		next := roaring.New()
		for i := range pieces {
			next.Or(pieces[i].Blocks)
		}
		next.RemoveRange(0, uint64(w.block))
		done, end := true, uint64(1)<<32
		if room := uint64(len(buf) / page.Size); next.GetCardinality() > room {
			last, err := next.Select(uint32(room - 1))
			if err != nil {
				return err
			}
			done, end = false, uint64(last)+1
			next.RemoveRange(end, 1<<32)
		}
		for i := range pieces {
			if all, buf, err = pieces[i].want(next, w.index, all, buf); err != nil {
				return err
			}
		}
		if w.block = uint32(end); done {
			w.index, w.block = w.index+1, 0
		}
	}
	if err := of.fetch(all); err != nil {
		return err
	}
	slices.SortFunc(all, func(x, y wanted) int { return cmp.Or(cmp.Compare(x.index, y.index), cmp.Compare(x.off, y.off)) })
	w.pages = w.pages[:0]
	for _, one := range all {
		w.pages = append(w.pages, one.pages)
	}
	return nil
}

// want adds those of the blocks that a piece has to all, each with its room in buf.
func (p *piece) want(blocks *roaring.Bitmap, index int, all []wanted, buf []byte) ([]wanted, []byte, error) {
	mine := roaring.And(blocks, p.Blocks)
	if mine.IsEmpty() {
		return all, buf, nil
	}
	runs, err := p.Runs(mine)
	if err != nil {
		return nil, nil, err
	}
	for run := range runs {
		first := int64(p.Blocks.Rank(uint32(run.File/page.Size))) - 1
		one := wanted{pages: pages{index, run.File, buf[:run.Length]}, path: p.Path, source: p.source, content: p.Offset + run.Content,
			sums: p.sums[first:][:run.Length/page.Size]}
		if p.kept != 0 {
			one.kept = p.kept + first*page.Size
		}
		buf = buf[run.Length:]
		all = append(all, one)
	}
	return all, buf, nil
}

// fetch reads pages, those that lie near each other at once.
func (w *worker) fetch(all []wanted) error {
	slices.SortFunc(all, func(x, y wanted) int {
		return cmp.Or(cmp.Compare(x.source, y.source), cmp.Compare(x.content, y.content))
	})
	for len(all) > 0 {
		one := &all[0]
		if one.kept != 0 {
			_, err := w.spool.file.ReadAt(one.data, one.kept)
			if err == nil {
				err = one.check()
			}
			if err != nil {
				return err
			}
			all = all[1:]
			continue
		}
		n := 1
		end := one.content + int64(len(one.data))
		for n < len(all) && all[n].source == one.source && all[n].kept == 0 && all[n].content-end <= maxGap {
			end = all[n].content + int64(len(all[n].data))
			n++
		}
		if err := w.fetchNear(all[:n], end); err != nil {
			return fmt.Errorf("%s: %w", w.sources.name(one.source), err)
		}
		all = all[n:]
	}
	return nil
}

// fetchNear reads pages of one part, which end at end.
func (w *worker) fetchNear(near []wanted, end int64) error {
	ranges, err := w.sources.ranges(w.ctx, near[0].source)
	if err != nil {
		return err
	}
	if ranges == nil {
		return errors.New("it can no longer be read in pieces")
	}
	body := stretch{run: w.run, ctx: w.ctx, ranges: ranges, end: end, buf: w.body.buf}
	defer body.close()
	for i := range near {
		err := body.seek(near[i].content, nil)
		if err == nil {
			err = body.fill(near[i].data)
		}
		if err == nil {
			err = near[i].check()
		}
		if err != nil {
			return fmt.Errorf("%s: %w", near[i].path, err)
		}
	}
	return nil
}

// check compares pages with their sums.
func (p *wanted) check() error {
	for i, sum := range p.sums {
		if crc32c.Checksum(p.data[i*page.Size:][:page.Size]) != sum {
			return fmt.Errorf("block %d is not what was backed up: %w", p.off/page.Size+int64(i), errDamaged)
		}
	}
	return nil
}
