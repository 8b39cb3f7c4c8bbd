package walpush

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"sync"

	"holdfast/internal/fileid"
)

// Resident pushes the WAL files of one server from a process that stays. A push is done once the file that is asked for is durable: what goes
// ahead, and the summaries of what is durable, are left to Run. A file that is on its way already is waited for, and one that this process
// stored ahead is known by its fileid.ID, without being read again. Markers are left all the same, for pushes of other processes.
type Resident struct {
	dir  string
	open Opener
	opts Options

	next  chan *file                 // the last file that was asked for: those behind it go ahead
	later chan func(context.Context) // summaries to store

	mu     sync.Mutex
	moving map[string]chan struct{} // by name, being stored; closed once that is over
	early  map[string]fileid.ID     // by name, stored ahead, as they were then
	served []string                 // names that were asked for and are durable, the last ones, oldest first
}

// Bounds of what a Resident keeps. What is forgotten costs a look at a marker, or into the archive.
const (
	maxEarly  = 1024
	maxServed = 64
	maxLater  = 16 // with so many waiting, a push stores its own
)

// NewResident returns a Resident for the WAL files in dir. open is called again and again, and should return the same archives.
func NewResident(dir string, open Opener, o Options) *Resident {
	return &Resident{
		dir: dir, open: open, opts: o,
		next: make(chan *file, 1), later: make(chan func(context.Context), maxLater),
		moving: map[string]chan struct{}{}, early: map[string]fileid.ID{},
	}
}

// Push makes sure that the WAL file name is durable in the archive. Once it returned nil PostgreSQL may remove the file. Several may be
// pushed at once, while Run runs. Report.Ahead is empty.
func (r *Resident) Push(ctx context.Context, name string) (Report, error) {
	p := newPusher(r.dir, r.opts)
	for {
		f, err := inspect(filepath.Join(r.dir, name))
		if err == nil {
			err = f.checkFinished()
		}
		if err != nil {
			return Report{}, err
		}
		release, moving := r.begin(name)
		if moving == nil {
			defer release()
			return r.push(ctx, p, f)
		}
		select {
		case <-moving:
		case <-ctx.Done():
			return Report{}, fmt.Errorf("store %s: %w", name, context.Cause(ctx))
		}
	}
}

// push is Push for a file that nobody else stores.
func (r *Resident) push(ctx context.Context, p *pusher, f *file) (Report, error) {
	report := Report{Name: f.name}
	early := r.stored(f)
	var err error
	if !early {
		early, err = p.storedEarly(f)
	}
	if err != nil {
		return Report{}, err
	}
	if early {
		report.Outcome = Early
		p.forget(f.name)
		r.serve(f.name)
		r.follow(f)
		return report, nil
	}
	asked, _, err := r.open(ctx)
	if err != nil {
		return Report{}, err
	}
	if err := p.checkOwner(ctx, asked, f); err != nil {
		return Report{}, fmt.Errorf("store %s: %w", f.name, err)
	}
	storeSummary := p.summarize(f)
	// What goes ahead begins when this file has been read: until then they would only take the processor from each other.
	follow := sync.OnceFunc(func() { r.follow(f) })
	report.Bytes, err = asked.PutWAL(ctx, f.name, func() (io.ReadCloser, error) {
		c, err := f.open()
		return &followed{c, follow}, err
	})
	p.summing.Wait() // from then on PostgreSQL may use the file for something else
	if err != nil {
		return Report{}, fmt.Errorf("store %s: %w", f.name, err)
	}
	if report.Bytes == 0 {
		report.Outcome = Equal
	}
	r.serve(f.name)
	follow()
	select {
	case r.later <- func(ctx context.Context) { storeSummary(ctx, asked) }:
	default:
		storeSummary(ctx, asked)
	}
	return report, nil
}

// followed calls then at its end.
type followed struct {
	io.ReadCloser
	then func()
}

func (f *followed) Read(p []byte) (int, error) {
	n, err := f.ReadCloser.Read(p)
	if err == io.EOF {
		f.then()
	}
	return n, err
}

// Run stores ahead what comes after the files that are asked for, and summaries, until ctx ends. Summaries of what is durable by then are
// still stored, in a bounded time.
func (r *Resident) Run(ctx context.Context) {
	var work sync.WaitGroup
	defer work.Wait()
	for range 2 {
		work.Go(func() {
			for {
				select {
				case store := <-r.later:
					store(context.WithoutCancel(ctx)) // has a bound of its own
					continue
				default:
				}
				select {
				case store := <-r.later:
					store(context.WithoutCancel(ctx))
				case <-ctx.Done():
					return
				}
			}
		})
	}
	for {
		select {
		case f := <-r.next:
			r.storeAhead(ctx, f)
		case <-ctx.Done():
			return
		}
	}
}

// storeAhead stores files that come after f, and after those that are asked for meanwhile.
func (r *Resident) storeAhead(ctx context.Context, f *file) {
	p := newPusher(r.dir, r.opts)
	p.resident = r
	_, ahead, err := r.open(ctx)
	if err != nil {
		return // pushes fail for the same reason, and say so
	}
	p.ahead(ctx, ahead, f, r.next)
	p.summing.Wait()
}

// follow has Run store ahead what comes after f, rather than what comes after files that were asked for before.
func (r *Resident) follow(f *file) {
	for {
		select {
		case r.next <- f:
			return
		default:
		}
		select {
		case <-r.next:
		default:
		}
	}
}

// begin claims a file for a push of it, to be released when that is over. Where another is at it, moving is closed once it is over.
func (r *Resident) begin(name string) (release func(), moving <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if over := r.moving[name]; over != nil {
		return nil, over
	}
	over := make(chan struct{})
	r.moving[name] = over
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.moving, name)
		close(over)
	}, nil
}

// beginAhead claims a file to be stored ahead, unless it is being stored, or was asked for already.
func (r *Resident) beginAhead(name string) (release func(), ok bool) {
	release, moving := r.begin(name)
	if moving != nil {
		return nil, false
	}
	r.mu.Lock()
	served := slices.Contains(r.served, name)
	r.mu.Unlock()
	if served {
		release()
	}
	return release, !served
}

// remember notes that f was stored ahead.
func (r *Resident) remember(f *file) {
	if !f.settled {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.early) >= maxEarly {
		clear(r.early)
	}
	r.early[f.name] = f.id
}

// stored reports whether this process stored f ahead, as it is, and forgets it.
func (r *Resident) stored(f *file) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	id, ok := r.early[f.name]
	delete(r.early, f.name)
	return ok && id == f.id
}

// serve notes that a file was asked for and is durable.
func (r *Resident) serve(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.served = append(r.served, name); len(r.served) > maxServed {
		r.served = slices.Delete(r.served, 0, len(r.served)-maxServed)
	}
}
