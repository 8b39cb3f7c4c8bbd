package walpush

import (
	"context"
	"io"
	"time"

	"holdfast/internal/pg/wal"
	"holdfast/internal/pg/walrec"
)

// summaryPatience bounds how long PostgreSQL waits, per segment, for what is of use to backups only.
const summaryPatience = 10 * time.Second

// summarize begins to sum up f and returns what stores the summary, to be called once f is archived. What goes wrong is warned of once in a
// run and does no harm to the push: a backup that misses a summary reads the segment.
func (p *pusher) summarize(f *file) (store func(context.Context, Archive)) {
	if !p.opts.Summaries || f.kind != wal.Segment || p.unsummed.Load() {
		return func(context.Context, Archive) {}
	}
	var s *walrec.Summary
	var err error
	done := make(chan struct{})
	again := *f // while f is read for the archive
	again.summed = false
	p.summing.Go(func() {
		defer close(done)
		s, err = again.summary()
	})
	return func(ctx context.Context, a Archive) {
		if <-done; err != nil {
			p.warnOfSummary(f, err)
			return
		}
		if p.unsummed.Load() {
			return
		}
		within, cancel := context.WithTimeout(ctx, summaryPatience)
		defer cancel()
		if err := a.PutSummary(within, f.name, s); err != nil {
			p.unsummed.Store(true) // to try again would only cost PostgreSQL more time
			if ctx.Err() == nil {
				p.warnOfSummary(f, err)
			}
			return
		}
		if !p.opts.Deltas || p.undelta.Load() {
			return
		}
		if err := a.PutWALDeltas(within, f.name, f.segmentSize); err != nil {
			p.undelta.Store(true)
			if ctx.Err() == nil {
				p.warnOfSummary(f, err)
			}
		}
	}
}

func (p *pusher) warnOfSummary(f *file, err error) {
	p.summaryWarning.Do(func() {
		p.warn("WAL file is archived, but not what it changes, for which the next increment has to read it", "file", f.name, "error", err)
	})
}

// summary sums up the file, which must be the one that was inspected, to its end.
func (f *file) summary() (*walrec.Summary, error) {
	r, err := f.open()
	if err != nil {
		return nil, err
	}
	defer r.Close() // only read
	s, err := walrec.Summarize(r, f.segmentSize)
	if err == nil {
		_, err = io.Copy(io.Discard, r) // behind its end it is seen whether it changed
	}
	return s, err
}
