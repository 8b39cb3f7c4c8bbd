package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// A progress says where an operation is; see backup.Progress.
type progress interface {
	Phase() string
	Bytes() (done, total int64)
}

// progress shows how p is getting on until stop is called: a bar on a terminal, a line every half minute elsewhere.
func (a *app) progress(ctx context.Context, what string, p progress) (stop func()) {
	begin := time.Now()
	if !a.env.Live {
		heard := a.child.notices(p)
		said := a.lines(ctx, func() string { return progressLine(what, p, time.Since(begin)) })
		return func() { said(); heard() }
	}
	bars := mpb.New(mpb.WithOutput(a.env.Stderr), mpb.WithRefreshRate(200*time.Millisecond))
	bar := bars.AddBar(0,
		mpb.PrependDecorators(decor.Any(func(decor.Statistics) string { return p.Phase() + " " })),
		mpb.AppendDecorators(decor.Any(func(decor.Statistics) string { return progressFigures(p, time.Since(begin)) })),
		mpb.BarRemoveOnComplete())
	done := make(chan struct{})
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				n, total := p.Bytes()
				bar.SetTotal(max(total, n+1), false)
				bar.SetCurrent(n)
			case <-done:
				bar.Abort(true)
				return
			}
		}
	}()
	return func() { close(done); <-finished; bars.Wait() }
}

// progressLine is the state of an operation in a line of the log.
func progressLine(what string, p progress, since time.Duration) string {
	return fmt.Sprintf("%s: %s, %s", what, p.Phase(), progressFigures(p, since))
}

// progressFigures are bytes done, rate and the time that is left at this rate.
func progressFigures(p progress, since time.Duration) string {
	done, total := p.Bytes()
	if done == 0 || total == 0 {
		return since.Round(time.Second).String()
	}
	rate := float64(done) / since.Seconds()
	text := fmt.Sprintf("%s of %s, %s/s", humanize.IBytes(uint64(done)), humanize.IBytes(uint64(total)), humanize.IBytes(uint64(rate)))
	if left := total - done; left > 0 {
		text += ", " + (time.Duration(float64(left)/rate*float64(time.Second)) + time.Second).Round(time.Second).String() + " left"
	}
	return text
}
