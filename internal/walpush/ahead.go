package walpush

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"holdfast/internal/archive"
	"holdfast/internal/pg/wal"
)

// maxTaken bounds how many names a run keeps of what it has stored, or tried to.
const maxTaken = 4096

// ahead stores the files that PostgreSQL will ask for after f, and returns the names of those it stored. It ends when
// Limit is reached, no more files wait, ctx ends, or the archive fails: the pushes to come will tell. While files are on their way
// more are taken up that follow those which later yields, at most Limit behind each; nil for none.
func (p *pusher) ahead(ctx context.Context, a Archive, f *file, later <-chan *file) (stored []string) {
	p.sweep()
	workers := min(p.opts.Parallel, p.opts.Limit) - 1
	if workers < 1 || f.cluster == 0 { // without knowing whose files these are none may go
		return nil
	}
	type result struct {
		name string
		err  error
	}
	type order struct {
		asked *file
		name  string
	}
	orders, results := make(chan order), make(chan result)
	var group sync.WaitGroup
	defer group.Wait()
	defer close(orders)
	idle, running := 0, 0 // workers
	waiting, moved := p.waiting(f, p.opts.Limit-1), false
	taken := map[string]bool{}
	for ended := false; ; {
		if len(waiting) == 0 && moved {
			waiting = slices.DeleteFunc(p.waiting(f, p.opts.Limit-1), func(name string) bool { return taken[name] })
			moved = false
		}
		var to chan<- order
		var next order
		if len(waiting) > 0 && !ended && len(taken) < maxTaken {
			to, next = orders, order{f, waiting[0]}
			if idle == 0 && running < workers {
				idle++
				group.Go(func() {
					for o := range orders {
						results <- result{o.name, p.pushAhead(ctx, a, o.asked, o.name)}
					}
				})
			}
		} else if running == 0 {
			return stored
		}
		select {
		case to <- next:
			idle, running = idle-1, running+1
			waiting = waiting[1:]
			taken[next.name] = true
		case g := <-later:
			if g.cluster != 0 { // else as above
				f, moved = g, true
			}
		case r := <-results:
			idle, running = idle+1, running-1
			var conflict *archive.ConflictError
			var local *localError
			switch {
			case r.err == nil:
				stored = append(stored, r.name)
			case errors.Is(r.err, errServed):
			case errors.As(r.err, &conflict) || errors.As(r.err, &local): // others may fare better
				p.warn("cannot store WAL file ahead", "file", r.name, "error", r.err)
			case !ended && ctx.Err() == nil:
				p.warn("cannot store WAL file ahead, leaving the rest to later pushes", "file", r.name, "error", r.err)
				ended = true
			}
			ended = ended || ctx.Err() != nil
		}
	}
}

// A localError is about one file of pg_wal, not about the archive.
type localError struct{ error }

func (e *localError) Unwrap() error { return e.error }

// errServed says that a file is being stored, or was, since PostgreSQL asked for it.
var errServed = errors.New("it was asked for meanwhile")

// pushAhead stores one file and sees to it that PostgreSQL need not wait for it.
func (p *pusher) pushAhead(ctx context.Context, a Archive, asked *file, name string) error {
	if p.resident != nil {
		release, ok := p.resident.beginAhead(name)
		if !ok {
			return errServed
		}
		defer release()
	}
	f, err := inspect(filepath.Join(p.dir, name))
	if err == nil {
		err = f.checkFinished()
	}
	if err != nil {
		return &localError{err}
	}
	f.summed = true
	if f.cluster != 0 && f.cluster != asked.cluster { // that it owns the archive was not checked
		return &localError{fmt.Errorf("it is of cluster %d, %s of %d", f.cluster, asked.name, asked.cluster)}
	}
	open := func() (io.ReadCloser, error) {
		r, err := f.open()
		if err != nil {
			err = &localError{err}
		}
		return r, err
	}
	if _, err := a.PutWAL(ctx, name, open); err != nil {
		return err
	}
	p.summarize(f)(ctx, a)
	if err := p.mark(f); err != nil {
		return &localError{err}
	}
	if !p.opts.ReadyRename {
		if p.resident != nil {
			p.resident.remember(f)
		}
		return nil
	}
	status := filepath.Join(p.statusDir(), name)
	// Gone is fine: PostgreSQL asked for the file meanwhile, and was served by another push.
	if err := os.Rename(status+".ready", status+".done"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &localError{err}
	}
	return nil
}

// waiting returns those of the next n files that PostgreSQL is going to ask for after f that are not stored yet: first
// the segments that follow without a gap, then the rest in PostgreSQL's order, history files first. A long queue consists
// of the former, and is then not read.
func (p *pusher) waiting(f *file, n int) []string {
	var names []string
	add := func(name string) {
		if marked, err := exists(p.markerPath(name)); err == nil && !marked {
			names = append(names, name)
		}
	}
	seen := map[string]bool{f.name: true}
	for _, name := range successors(f, n) {
		if ready, err := exists(filepath.Join(p.statusDir(), name+".ready")); err != nil || !ready {
			break
		}
		seen[name] = true
		n-- // one that is stored counts as well: else more would go ahead with each that is
		add(name)
	}
	if n == 0 {
		return names
	}
	// Keep no more of the directory than may be used, however much is in it.
	rest, err := p.ready(n+len(seen), func(name string) bool { return !seen[name] })
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		p.warn("cannot see which files wait", "error", err)
	}
	for _, name := range rest[:min(n, len(rest))] {
		add(name)
	}
	return names
}

// ready reads archive_status once and returns the first max names, in the order in which PostgreSQL archives, of files
// that wait and that want holds for.
func (p *pusher) ready(max int, want func(name string) bool) ([]string, error) {
	dir, err := os.Open(p.statusDir())
	if err != nil {
		return nil, err
	}
	defer dir.Close() // only read: nothing to lose
	var first []string
	for {
		batch, err := dir.Readdirnames(1024)
		for _, entry := range batch {
			if name, ok := strings.CutSuffix(entry, ".ready"); ok && wal.KindOf(name) != wal.Other && want(name) {
				first = append(first, name)
			}
		}
		if len(first) > 2*max || err != nil {
			slices.SortFunc(first, archivingOrder)
			first = first[:min(max, len(first))]
		}
		if err == io.EOF {
			return first, nil
		}
		if err != nil {
			return first, err
		}
	}
}

// archivingOrder sorts as PostgreSQL chooses what to archive next: history files, then by name (ready_file_comparator in
// src/backend/postmaster/pgarch.c).
func archivingOrder(a, b string) int {
	if aHistory := wal.KindOf(a) == wal.History; aHistory != (wal.KindOf(b) == wal.History) {
		if aHistory {
			return -1
		}
		return 1
	}
	return strings.Compare(a, b)
}
