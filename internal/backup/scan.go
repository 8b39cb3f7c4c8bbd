package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/pg/blockset"
	"holdfast/internal/pg/datadir"
	"holdfast/internal/pg/page"
	"holdfast/internal/pg/wal"
)

// keepPages bounds the pages of one file that a scan keeps, so that they need not be read again, in bytes; each worker scans one file.
const keepPages = 8 << 20

// leastLSN is below where any log begins: the first segment is never written, and none is smaller. What has an LSN below was not written
// by way of the log, as an index that is built while wal_level is minimal.
const leastLSN = wal.LSN(wal.MinSegmentSize)

// scan reads a relation's file of size bytes for what its pages say has changed since the parent: those that were written since, those
// that were never initialised, those that may be newly visible to all, and those whose checksum does not hold, so that they are told. Of what the file has
// beyond the was bytes of the parent, unless that is unknownSize, all is: it may have been copied from elsewhere, and be old. all says that a page is not what PostgreSQL
// writes: the file is stored whole. read holds the first of the blocks' pages.
func (d *delta) scan(ctx context.Context, e datadir.Entry, first uint32, size, was int64, f *os.File) (blocks []uint32, read []byte, all bool, err error) {
	mapped, err := d.newlyMapped(e, first, uint32(size/page.Size))
	if err != nil {
		return nil, nil, false, err
	}
	had := uint64(was) / page.Size // of unknownSize more than there can be
	buf := make([]byte, min(readSize, size))
	keeping := true
	for off := int64(0); off < size; off += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), size-off)]
		if err := d.beforeRead(ctx, len(buf)); err != nil {
			return nil, nil, false, err
		}
		n, err := f.ReadAt(buf, off)
		if err != nil && err != io.EOF {
			return nil, nil, false, fmt.Errorf("read %s: %w", e.Path, err)
		}
		clear(buf[n:]) // it has become shorter
		block := uint32(off / page.Size)
		bad := d.badPages(buf, first, block)
		for b := buf; len(b) > 0; b = b[page.Size:] {
			h, err := page.ReadHeader(b)
			if err != nil {
				return nil, nil, false, err
			}
			if !h.IsNew() && h.Check() != nil {
				return nil, nil, true, nil
			}
			visible := mapped != nil && h.AllVisible() && mapped[(first+block)/mapBlocks-first/mapBlocks]
			if h.IsNew() || h.LSN >= d.since || h.LSN < leastLSN || visible || uint64(block) >= had || bad[block] {
				blocks = append(blocks, block)
				if keeping = keeping && len(read) < keepPages; keeping {
					read = append(read, b[:page.Size]...)
				}
			}
			block++
		}
	}
	if tooMany(len(blocks), uint64(size/page.Size)) {
		d.Progress.done.Add(-size) // it is read again
		return nil, nil, true, nil
	}
	d.Progress.done.Add(int64(len(read)) - int64(len(blocks))*page.Size) // what is read again
	return blocks, read, false, nil
}

// mapBlocks is how many pages of a relation one of its visibility map tells of, by two bits each.
const mapBlocks = (page.Size - page.HeaderLen) * 4

// newlyMapped says of which pages of a file, that begins with block first of a relation and has n, the visibility map has got bits since the parent:
// for each page of the map, from that which tells of first on, whether it may have. VACUUM marks a page as visible to all on itself and in the map, and
// the LSN of the map's page is that of the record; that of the page itself is too where hint bits are logged only (visibilitymap_set in
// src/backend/access/heap/visibilitymap.c). A page that came back without the mark, under a map with it, would be changed without the map's learning of it, and
// who reads an index alone would see rows that are gone. nil stands for none, as in a cluster with checksums. wal_log_hints is not
// relied on: it may have been off meanwhile.
func (d *delta) newlyMapped(e datadir.Entry, first, n uint32) ([]bool, error) {
	if d.facts.Checksums || n == 0 {
		return nil, nil
	}
	relation, _, _ := strings.Cut(filepath.Base(e.OSPath), ".")
	name := filepath.Join(filepath.Dir(e.OSPath), relation+"_vm")
	perFile := d.dir.Control.BlocksPerSegment
	begin := first / mapBlocks
	mapped := make([]bool, (first+n-1)/mapBlocks-begin+1)
	any := false
	for i := range mapped {
		p := begin + uint32(i)
		file := name
		if s := p / perFile; s > 0 {
			file += "." + strconv.FormatUint(uint64(s), 10)
		}
		h, err := headerAt(file, int64(p%perFile)*page.Size)
		if errors.Is(err, fs.ErrNotExist) || err == io.EOF {
			continue // no bits are set
		}
		if err != nil {
			return nil, err
		}
		mapped[i] = !h.IsNew() && (h.LSN >= d.since || h.LSN < leastLSN)
		any = any || mapped[i]
	}
	if !any {
		return nil, nil
	}
	return mapped, nil
}

// headerAt reads the header of the page at off; io.EOF where the file ends before.
func headerAt(name string, off int64) (page.Header, error) {
	f, err := os.Open(name)
	if err != nil {
		return page.Header{}, err
	}
	defer f.Close() // only read
	var b [page.HeaderLen]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		return page.Header{}, err
	}
	return page.ReadHeader(b[:])
}

// badPages returns which pages of b, the first of which is block of a file that begins with first, have a wrong checksum; nil for none.
func (d *delta) badPages(b []byte, first, block uint32) map[uint32]bool {
	if !d.verify {
		return nil
	}
	var bad map[uint32]bool
	for {
		i := page.Verify(b, first+block)
		if i < 0 {
			return bad
		}
		if bad == nil {
			bad = map[uint32]bool{}
		}
		bad[block+uint32(i)] = true
		b = b[(i+1)*page.Size:]
		block += uint32(i) + 1
	}
}

// fewestSamples is about how many blocks are looked at in a small cluster.
const fewestSamples = 128

// A sampler looks at blocks that have not changed by the set, whether that is so. It is asked file after file; what it learns is there after wait.
type sampler struct {
	*delta
	share float64 // of the blocks
	gap   int64   // blocks to pass over before the next one
	group *errgroup.Group
	ctx   context.Context // of the group
}

// newSampler returns nil where there is nothing to sample.
func (d *delta) newSampler(ctx context.Context) *sampler {
	if d == nil || d.set == nil || d.Delta.Sample <= 0 {
		return nil
	}
	s := &sampler{delta: d, share: d.Delta.Sample}
	if pages := float64(d.files.bytes / page.Size); pages > 0 {
		s.share = max(s.share, fewestSamples/pages)
	}
	s.group, s.ctx = errgroup.WithContext(ctx)
	s.group.SetLimit(d.Workers)
	s.gap = s.next()
	return s
}

// next draws how many blocks lie before the next one that is looked at, so that each has the same chance.
func (s *sampler) next() int64 {
	if s.share >= 1 {
		return 0
	}
	return int64(min(rand.ExpFloat64()/-math.Log1p(-s.share), math.MaxInt32))
}

// look samples a file, if it is one whose blocks the set tells of.
func (s *sampler) look(e datadir.Entry) {
	rel, ok := relationOf(e)
	if s == nil || !ok || s.set.Whole(rel) {
		return
	}
	was := s.was(e.Path)
	if was == nil || s.untouched(was, e.Size, e.ModTime, e.Inode, e.Changed) {
		return
	}
	first := e.Segment * s.dir.Control.BlocksPerSegment
	changed, all := s.changed(rel, first, e.Size, was.size)
	if all {
		return
	}
	var blocks []uint32
	n := e.Size / page.Size
	for ; s.gap < n; s.gap += 1 + s.next() {
		for len(changed) > 0 && int64(changed[0]) < s.gap {
			changed = changed[1:]
		}
		if len(changed) == 0 || int64(changed[0]) != s.gap {
			blocks = append(blocks, uint32(s.gap))
		}
	}
	s.gap -= n
	if len(blocks) > 0 {
		s.group.Go(func() error { return s.sample(e, rel, blocks) })
	}
}

// sample reads blocks of a file that are as they were by the set. A page that is new may have been so in the parent, and tells nothing.
func (s *sampler) sample(e datadir.Entry, rel blockset.Relation, blocks []uint32) error {
	f, err := os.Open(e.OSPath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close() // only read
	var header [page.HeaderLen]byte
	for _, block := range blocks {
		if err := s.beforeRead(s.ctx, page.Size); err != nil { // the disk reads no less
			return err
		}
		s.Progress.done.Add(-page.Size)
		if _, err := f.ReadAt(header[:], int64(block)*page.Size); err == io.EOF {
			return nil // shorter since
		} else if err != nil {
			return fmt.Errorf("read %s: %w", e.Path, err)
		}
		s.sampled.Add(1)
		h, err := page.ReadHeader(header[:])
		if err != nil {
			return err
		}
		// A page has the end of its last record: one that ends where the stretch begins lies before it.
		if !h.IsNew() && h.LSN > s.since && h.LSN <= s.start.LSN {
			s.miss(e, rel, block, h.LSN)
			return nil
		}
	}
	return nil
}

// maxMissed bounds how many blocks the report names.
const maxMissed = 100

// miss notes a block that has changed though the set does not have it.
func (s *sampler) miss(e datadir.Entry, rel blockset.Relation, block uint32, at wal.LSN) {
	s.Logger.Error(fmt.Sprintf("block %d of %s was changed at %s, and %s do not say so: the relation is read as a whole. Please report this, with what the server did since %s",
		block, e.Path, at, s.report.Delta.Source, s.since))
	s.delta.mu.Lock()
	defer s.delta.mu.Unlock()
	s.delta.missed[rel] = true
	if rep := s.report.Delta; len(rep.Missed) < maxMissed {
		rep.Missed = append(rep.Missed, fmt.Sprintf("%s block %d", e.Path, block))
	}
}

// wait ends the sampling. Relations of which the set has proved wrong are suspect from then on.
func (s *sampler) wait() error {
	if s == nil {
		return nil
	}
	if err := s.group.Wait(); err != nil {
		return err
	}
	s.suspect, s.report.Delta.Sampled = s.missed, s.sampled.Load()
	return nil
}
