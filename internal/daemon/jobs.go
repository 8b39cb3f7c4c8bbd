package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"holdfast/internal/pg/wal"
	"holdfast/internal/walfetch"
	"holdfast/internal/walpush"
)

// JobOptions says for whom and how Jobs work.
type JobOptions struct {
	Data string // the data directory; absolute

	Archives walpush.Opener // for pushes; called for each, should open nothing twice
	Push     walpush.Options
	Timeout  time.Duration                                   // of a push; 0 is none
	Pushed   func(path string, r walpush.Report)             // is told of each push that succeeded; nil for nobody
	Archive  func(context.Context) (walfetch.Archive, error) // for fetches; likewise
	Fetch    walfetch.Options                                // but Start and Memory
	Between  func(context.Context)                           // is called after pushes, in the background, one call at a time; nil for nothing
	End      func()                                          // is called once nothing is at work any more, at the end of Run; nil for nothing

	Every  time.Duration // how often to say what waits while pushes fail; 0 means every minute
	Logger *slog.Logger  // nil discards
}

// Jobs pushes and fetches the WAL files of one data directory.
type Jobs struct {
	opts   JobOptions
	pg     string // pg_wal
	push   *walpush.Resident
	ahead  chan string   // destinations for which to fetch ahead
	pushed chan struct{} // that Between may be called

	mu      sync.Mutex
	failing time.Time // since when pushes fail; zero while they do not
}

// NewJobs returns Jobs, which do no more than they are asked for until Run runs.
func NewJobs(o JobOptions) *Jobs {
	o.Every = cmp.Or(o.Every, time.Minute)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	j := &Jobs{opts: o, pg: filepath.Join(o.Data, "pg_wal"), ahead: make(chan string, 1), pushed: make(chan struct{}, 1)}
	j.push = walpush.NewResident(j.pg, o.Archives, o.Push)
	j.opts.Fetch.Memory = &walfetch.Memory{}
	return j
}

// Run implements Worker.
func (j *Jobs) Run(ctx context.Context) {
	if j.opts.End != nil {
		defer j.opts.End()
	}
	var work sync.WaitGroup
	defer work.Wait()
	work.Go(func() { j.push.Run(ctx) })
	work.Go(func() {
		for {
			select {
			case <-j.pushed:
				if j.opts.Between != nil {
					j.opts.Between(ctx)
				}
			case <-ctx.Done():
				return
			}
		}
	})
	tick := time.NewTicker(j.opts.Every)
	defer tick.Stop()
	for {
		select {
		case dest := <-j.ahead:
			work.Go(func() { j.fetchAhead(ctx, dest) })
		case <-tick.C:
			j.tellBacklog()
		case <-ctx.Done():
			return
		}
	}
}

// Push implements Worker.
func (j *Jobs) Push(ctx context.Context, path, cwd string) error {
	name, err := j.locate(path, cwd)
	if err != nil {
		return err
	}
	if wal.KindOf(name) == wal.Other {
		return fmt.Errorf("%q is not the name of a WAL file", name)
	}
	if t := j.opts.Timeout; t > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, t, fmt.Errorf("it took longer than %s (WALG_DAEMON_WAL_UPLOAD_TIMEOUT)", t))
		defer cancel()
	}
	report, err := j.push.Push(ctx, name)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
			err = fmt.Errorf("%w: %w", cause, err)
		}
		if _, gone := os.Lstat(filepath.Join(j.pg, name)); !errors.Is(gone, fs.ErrNotExist) { // that would be the file's affair
			j.failed()
		}
		return err
	}
	j.worked()
	if j.opts.Pushed != nil {
		j.opts.Pushed(filepath.Join(j.pg, name), report)
	}
	select {
	case j.pushed <- struct{}{}:
	default:
	}
	return nil
}

// Fetch implements Worker.
func (j *Jobs) Fetch(ctx context.Context, name, dest, cwd string) error {
	base, err := j.locate(dest, cwd)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(base, "RECOVERY") && wal.KindOf(base) == wal.Other {
		return &DeclinedError{fmt.Sprintf("%s is not where PostgreSQL has WAL files put", dest)}
	}
	dest = filepath.Join(j.pg, base)
	o := j.opts.Fetch
	o.Start = func() error {
		select {
		case j.ahead <- dest:
		default: // it is about to begin
		}
		return nil
	}
	report, err := walfetch.Fetch(ctx, j.opts.Archive, name, dest, o)
	if err == nil {
		j.opts.Logger.Debug(fmt.Sprintf("%s: %d bytes, fetched ahead: %t", report.Name, report.Bytes, report.Ahead))
	}
	return err
}

// Status implements Worker.
func (j *Jobs) Status(err error) int { return walfetch.Status(err, walfetch.SituationOf(j.opts.Data)) }

// locate returns the name of the file at path, which has to lie in our pg_wal: as a name alone it does, and a relative path begins in the data directory.
func (j *Jobs) locate(path, cwd string) (string, error) {
	if strings.ContainsRune(path, 0) || path == "" || strings.HasSuffix(path, "/") {
		return "", fmt.Errorf("%q is not the path of a file", path)
	}
	name := filepath.Base(path)
	if name == "." || name == ".." {
		return "", fmt.Errorf("%q is not the path of a file", path)
	}
	if !filepath.IsAbs(path) {
		// WAL-G's client says nothing about whose file it is. PostgreSQL has it run in the data directory.
		if _, err := os.Stat(filepath.Join(cwd, "PG_VERSION")); cwd != "" && err == nil && !same(cwd, j.opts.Data) {
			return "", &DeclinedError{fmt.Sprintf("it was asked from the data directory %s, and this daemon is for %s", cwd, j.opts.Data)}
		}
		if name == path {
			return name, nil
		}
		path = filepath.Join(j.opts.Data, path)
	}
	if dir := filepath.Dir(path); !same(dir, j.pg) {
		return "", &DeclinedError{fmt.Sprintf("%s is not %s, for which this daemon is", dir, j.pg)}
	}
	return name, nil
}

// same reports whether both paths lead to one directory.
func same(a, b string) bool {
	infoA, errA := os.Stat(a)
	infoB, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(infoA, infoB)
}

// fetchAhead fetches ahead until the recovery is over.
func (j *Jobs) fetchAhead(ctx context.Context, dest string) {
	a, err := j.opts.Archive(ctx)
	if err != nil {
		return // fetches fail for the same reason, and say so
	}
	n, err := walfetch.Ahead(ctx, a, dest, j.opts.Fetch)
	j.opts.Logger.Debug(fmt.Sprintf("fetched %d segments ahead", n))
	if err != nil && ctx.Err() == nil {
		j.opts.Logger.Warn("cannot fetch more segments ahead", "error", err)
	}
}

// failed notes that a push failed.
func (j *Jobs) failed() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.failing.IsZero() {
		j.failing = time.Now()
	}
}

// worked notes that a push succeeded.
func (j *Jobs) worked() {
	j.mu.Lock()
	since := j.failing
	j.failing = time.Time{}
	j.mu.Unlock()
	if !since.IsZero() {
		j.opts.Logger.Info("WAL is being archived again", "failed_for", time.Since(since).Round(time.Second))
	}
}

// tellBacklog says what waits, while pushes fail.
func (j *Jobs) tellBacklog() {
	j.mu.Lock()
	since := j.failing
	j.mu.Unlock()
	if since.IsZero() {
		return
	}
	b, free, err := ReadBacklog(j.opts.Data)
	if err != nil {
		j.opts.Logger.Warn("pushes fail, and what waits cannot be seen", "error", err)
		return
	}
	now := time.Now()
	j.opts.Logger.Warn(b.Describe(free, now), "failing_for", now.Sub(since).Round(time.Second))
}
