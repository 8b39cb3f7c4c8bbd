package merge

import (
	"context"
	"fmt"
	"io"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/chain"
	"holdfast/internal/pg/datadir"
	"holdfast/internal/pg/page"
	"holdfast/internal/tarpart"
)

// A batch is a task: files that a stretch of one part completes, in the order of their contents there; or what has no content.
type batch struct {
	part   *chain.Part
	ranges *archive.Ranges // nil: the part is read from its beginning
	sums   *chain.Sums     // nil where all files are taken as they are
	takes  []*chain.Take

	plain []*tarpart.Member // directories and links
}

func (b *batch) len() int { return len(b.takes) + len(b.plain) }

// worker makes parts of batches, and copies parts in between.
type worker struct {
	*run
	ctx   context.Context // of the run: a worker lives no longer
	tasks <-chan any

	held  *hand // to be copied once the part that is being made is done
	batch *batch
	next  int     // of the batch, the one to come
	body  stretch // of the batch's part
	file  *file   // under way
	made  []made  // what is in the part that is being made

	window window
}

// made is what a member of the part that is being made has beside its content.
type made struct {
	file    int
	corrupt []uint32
	count   int
}

func (w *worker) work() error {
	for {
		if h := w.held; h != nil {
			w.held = nil
			if err := w.copyPart(w.ctx, h); err != nil {
				return err
			}
			continue
		}
		if w.batch == nil || w.next == w.batch.len() {
			switch err := w.receive(nil); {
			case err == io.EOF:
				return nil
			case err != nil:
				return err
			}
			continue
		}
		if err := w.makePart(); err != nil {
			return err
		}
	}
}

// patience is how long a part that is being made waits for the next batch. Its request to the store is idle meanwhile, which a store takes for a
// dead connection after a while.
const patience = 5 * time.Second

// receive takes the next task: a batch becomes the worker's, a part to be copied is held. io.EOF says that there are no more, or none within the
// patience.
func (w *worker) receive(enough <-chan time.Time) error {
	w.endBatch()
	select {
	case <-w.ctx.Done():
		return context.Cause(w.ctx)
	case <-enough:
		return io.EOF
	case t, more := <-w.tasks:
		if !more {
			return io.EOF
		}
		switch t := t.(type) {
		case *hand:
			w.held = t
		case *batch:
			w.batch, w.next = t, 0
			w.body = stretch{run: w.run, ctx: w.ctx, part: t.part, ranges: t.ranges, buf: w.body.buf}
			w.window.begin()
			for _, take := range t.takes {
				if take.Size > 0 {
					w.body.end = take.Offset + take.Size
				}
			}
		}
		return nil
	}
}

func (w *worker) endBatch() {
	w.body.close()
	w.batch = nil
}

func (w *worker) close() {
	w.endBatch()
	if w.file != nil {
		w.file.close()
	}
}

// makePart makes one part and stores it.
func (w *worker) makePart() error {
	w.made = w.made[:0]
	p := tarpart.NewPacker(w.entry, tarpart.Options{
		MaxContent: w.PartSize,
		MaxMembers: archive.MaxPartMembers,
		MaxNames:   archive.MaxPartNames,
	})
	defer p.Close() // it has no file open
	name := w.draft.NextPart()
	members := func() []tarpart.Member {
		all := p.Members()
		for i := range all {
			all[i].Corrupt, all[i].CorruptCount = w.made[i].corrupt, w.made[i].count
			w.describe(w.made[i].file, &all[i])
		}
		return all
	}
	if err := w.draft.PutPart(w.ctx, name, p, members); err != nil {
		return err
	}
	if err := w.draft.PutSums(w.ctx, name, p.Sums()); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.report.MadeParts++
	w.countCorrupt(p.Members())
	return nil
}

// entry is the next member of the part that is being made; io.EOF ends the part, though perhaps not the work.
func (w *worker) entry() (tarpart.Entry, error) {
	if w.file != nil {
		w.file.close()
		w.file = nil
	}
	if w.batch == nil || w.next == w.batch.len() {
		enough := time.NewTimer(patience)
		defer enough.Stop()
		if err := w.receive(enough.C); err != nil {
			return tarpart.Entry{}, err
		}
		if w.held != nil { // it would take long
			return tarpart.Entry{}, io.EOF
		}
	}
	if w.ctx.Err() != nil {
		return tarpart.Entry{}, context.Cause(w.ctx)
	}
	i := w.next
	w.next++
	if i < len(w.batch.plain) {
		m := w.batch.plain[i]
		w.made = append(w.made, made{file: w.plan.chain.Find(m.Path)})
		return tarpart.Entry{Path: m.Path, Type: m.Type, Mode: m.Perm(), ModTime: m.ModTime, Link: m.Link, UID: w.uid, GID: w.gid}, nil
	}
	f, err := w.open(i)
	if err != nil {
		return tarpart.Entry{}, err
	}
	w.file = f
	now := w.plan.chain.File(f.take.File)
	kind, _, _, _ := datadir.ByName(f.take.Path, false)
	w.made = append(w.made, f.made)
	return tarpart.Entry{Path: f.take.Path, Mode: now.Mode, ModTime: now.ModTime, UID: w.uid, GID: w.gid, Stream: f, Size: now.Size,
		Paged: now.Size%page.Size == 0 && (kind == datadir.Relation || f.take.Pages > 0 || f.take.Blocks != nil)}, nil
}

// A stretch reads a part's tar stream, or a piece of it, from one end to the other.
type stretch struct {
	*run
	ctx    context.Context
	part   *chain.Part
	ranges *archive.Ranges // nil: the part is read from its beginning
	end    int64           // nothing is read from there on, where it is read by ranges

	body io.ReadCloser // nil before the first read
	pos  int64
	buf  []byte // for what is passed over
}

// maxGap is how many bytes between two wanted contents are read rather than passed over with another request.
const maxGap = 1 << 20

// seek goes on to a position that lies ahead. through gets all that lies between; where it is nil that need not be read.
func (s *stretch) seek(to int64, through func([]byte)) error {
	if s.body != nil && to < s.pos {
		return fmt.Errorf("byte %d is asked for, and byte %d was read already", to, s.pos)
	}
	if s.body == nil || s.ranges != nil && through == nil && to-s.pos > maxGap {
		s.close()
		var err error
		if s.ranges != nil {
			s.body, err = s.ranges.Open(s.ctx, to, s.end-to)
			s.pos = to
		} else {
			s.body, err = s.archive.OpenPart(s.ctx, s.part.Backup, s.part.Part)
			s.pos = 0
		}
		if err != nil {
			s.body = nil
			return err
		}
	}
	if s.buf == nil {
		s.buf = make([]byte, bufferSize)
	}
	for s.pos < to {
		b := s.buf[:min(to-s.pos, int64(len(s.buf)))]
		if err := s.fill(b); err != nil {
			return err
		}
		if through != nil {
			through(b)
		}
	}
	return nil
}

// bufferSize is about a frame of a part, in bytes, which stays in the second-level cache.
const bufferSize = 256 << 10

// fill reads what is next into all of b.
func (s *stretch) fill(b []byte) error {
	if s.ctx.Err() != nil {
		return context.Cause(s.ctx)
	}
	n, err := io.ReadFull(s.body, b)
	s.pos += int64(n)
	s.read.Add(int64(n))
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func (s *stretch) close() {
	if s.body != nil {
		s.body.Close() // only read
		s.body = nil
	}
}
