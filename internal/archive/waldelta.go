package archive

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"slices"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/pg/blockset"
	"holdfast/internal/pg/wal"
	"holdfast/internal/pg/walrec"
	"holdfast/internal/store"
)

// WAL-G's delta objects, wal_005/<segment>_delta.<ext>, each list what deltaGroup segments in a row change, the first of which they are named
// after. Its number is a multiple of deltaGroup. The content is little-endian:
//
//	tablespace  database  number  block   for each block that changed, in any order, whatever its fork
//	4           4         4       4
//	0           0         0       0       the end of these
//	length  bytes                         what the last of the segments have of a record that ends in a later one
//	4
const (
	deltaGroup  = 16
	deltaSuffix = "_delta"
	locationLen = 16
)

// PutWALDeltas stores the delta objects that the summary of a segment completes: that of its own group, and that of the next one where the
// segment ends a group, since a record may span the border. An object is made once all summaries are there that it takes; whoever stores the last of
// them finds all. One that is there is left alone.
//
// None is made where it could not tell all: of WAL written with wal_level=minimal, and where more of a record goes beyond the group than summaries keep.
func (a *Archive) PutWALDeltas(ctx context.Context, segment string, size wal.SegmentSize) error {
	t, no, err := size.ParseSegment(segment)
	if err != nil {
		return err
	}
	first := no - no%deltaGroup
	last := first + deltaGroup - 1
	if no == last {
		last += deltaGroup
	}
	known := map[wal.SegmentNo]bool{}
	for n, err := range a.Summaries(ctx, t, first-min(first, 1), last, size) {
		if err != nil {
			return err
		}
		known[n] = true
	}
	for ; first < last; first += deltaGroup {
		complete := true
		for n := first; n < first+deltaGroup; n++ {
			complete = complete && known[n]
		}
		if !complete {
			continue
		}
		if err := a.putWALDelta(ctx, t, first, known[first-1], size); err != nil {
			return fmt.Errorf("store %s%s: %w", size.Name(t, first), deltaSuffix, err)
		}
	}
	return nil
}

// putWALDelta stores the delta object of the group that begins with segment first; before says whether there is a summary of the segment before it.
func (a *Archive) putWALDelta(ctx context.Context, t wal.Timeline, first wal.SegmentNo, before bool, size wal.SegmentSize) error {
	names := a.walNames(size.Name(t, first) + deltaSuffix)
	if there, err := a.findWAL(ctx, names); there != nil || err != nil {
		return err
	}
	if a.opts.WriteOnly {
		return errors.New("this host has no key to read what it is made of; let one that has it archive, or unset WALG_USE_WAL_DELTA")
	}
	group := make([]*walrec.Summary, deltaGroup+1) // that of the segment before is the first
	reading, readCtx := errgroup.WithContext(ctx)
	reading.SetLimit(deltaGroup / 2)
	for i := range group {
		if i == 0 && !before {
			continue
		}
		reading.Go(func() (err error) {
			group[i], _, err = a.OpenSummary(readCtx, size.Name(t, first+wal.SegmentNo(i)-1), size)
			return err
		})
	}
	if err := reading.Wait(); err != nil {
		return err
	}
	changed, rest, err := joinGroup(group[0], group[1:])
	if err != nil || changed == nil {
		return err
	}
	content := newDelta(changed, rest)
	defer content.Close()
	body, _ := a.packed(content, a.opts.Method, a.opts.Parallel)
	defer body.Close() // gives its buffers back
	err = store.PutIfAbsent(ctx, a.store, names[0].name, body)
	if errors.Is(err, fs.ErrExist) { // another push was quicker
		err = nil
	}
	return err
}

// joinGroup returns what a group of segments changes, and what they have of a record that ends in a later one. before is the summary of the
// segment before them, nil where there is none. Where that does not tell all, changed is nil.
func joinGroup(before *walrec.Summary, group []*walrec.Summary) (changed *blockset.Set, rest []byte, err error) {
	if group[0].Missing > 0 { // a record goes on
		if before == nil || before.All() { // which begins where we do not look
			return nil, nil, nil
		}
		begins := *before
		begins.Blocks, begins.Minimal = blockset.Set{}, false // of it only that record is wanted
		group = append([]*walrec.Summary{&begins}, group...)
	}
	var j walrec.Joiner
	whole := true
	for _, s := range group {
		if err := j.Add(s); err != nil {
			return nil, nil, err
		}
		switch {
		case s.HeadLSN != 0:
			rest, whole = slices.Clone(s.Head.Bytes), s.Head.Whole()
		case j.Unfinished() == 0:
			rest, whole = nil, true
		default:
			rest, whole = append(rest, s.Tail.Bytes...), whole && s.Tail.Whole()
		}
	}
	if j.Minimal || !whole {
		return nil, nil, nil
	}
	return &j.Blocks, rest, nil
}

// A delta reads as the content of a delta object.
type delta struct {
	next func() (blockset.Key, uint32, bool) // the next block
	stop func()
	buf  []byte // what was not read yet
	rest []byte // what follows the blocks, nil once it is in buf
}

// newDelta returns the content of the delta object that says changed and rest. It takes memory for some blocks at a time only.
func newDelta(changed *blockset.Set, rest []byte) *delta {
	blocks := func(yield func(blockset.Key, uint32) bool) {
		for k, e := range changed.All() {
			if k.Number == 0 { // a whole database: WAL-G has no form for it
				continue
			}
			for it := e.Blocks.Iterator(); it.HasNext(); {
				if !yield(k, it.Next()) {
					return
				}
			}
		}
	}
	d := &delta{rest: binary.LittleEndian.AppendUint32(make([]byte, locationLen), uint32(len(rest)))}
	d.rest = append(d.rest, rest...)
	d.next, d.stop = iter.Pull2(blocks)
	return d
}

// Read implements io.Reader.
func (d *delta) Read(p []byte) (int, error) {
	if len(d.buf) == 0 {
		d.fill()
	}
	if len(d.buf) == 0 {
		return 0, io.EOF
	}
	n := copy(p, d.buf)
	d.buf = d.buf[n:]
	return n, nil
}

// fill makes up to 4096 blocks, or what follows them.
func (d *delta) fill() {
	d.buf = make([]byte, 0, 4096*locationLen)
	for len(d.buf) < cap(d.buf) {
		k, block, ok := d.next()
		if !ok {
			d.buf, d.rest = append(d.buf, d.rest...), nil
			return
		}
		for _, v := range [...]uint32{k.Tablespace, k.Database, k.Number, block} {
			d.buf = binary.LittleEndian.AppendUint32(d.buf, v)
		}
	}
}

// Close lets go of what d reads from.
func (d *delta) Close() error {
	d.stop()
	return nil
}
