package restore

import (
	"context"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/archive"
)

// Weaving returns options with which increments are woven that have so many pages for each stretch of a file, of so many bytes.
func (o Options) Weaving(worth, stretch int64) Options {
	o.weaving = weaving{worth, stretch}
	return o
}

// Woven returns how many stretches of files are woven when a plan is carried out.
func Woven(ctx context.Context, a *archive.Archive, p *Plan, o Options) (stretches int, err error) {
	r := newRun(a, p, o)
	if r.picking == nil { // a full backup
		return 0, nil
	}
	tasks := make(chan task)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		defer close(tasks)
		_, err = r.dealPicks(ctx, tasks)
		return err
	})
	group.Go(func() error {
		for t := range tasks {
			if _, ok := t.(*weave); ok {
				stretches++
			}
		}
		return nil
	})
	err = group.Wait()
	return stretches, err
}
