package failover

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"holdfast/internal/store"
	"holdfast/internal/store/relay"
)

// Kind says what a transfer moves.
type Kind int

// The kinds, by the words of `st transfer`.
const (
	Files   Kind = iota // files PREFIX: everything below a directory
	WAL                 // pg-wals
	Backups             // backups
)

// TransferOptions are the flags of `st transfer`. The zero value moves everything and never replaces.
type TransferOptions struct {
	Overwrite   bool          // --overwrite: replace what the target has with other content; else that is an error
	Preserve    bool          // --preserve: copy, and leave the source as it is
	FailFast    bool          // --fail-fast: the first failure ends it; else it goes on with what is left
	Concurrency int           // --concurrency: objects copied at once; 0 means 10
	MaxFiles    int           // --max-files: objects to move; a backup that was begun is moved whole all the same; 0 means all
	MaxBackups  int           // --max-backups; 0 means all
	Checks      int           // --appearance-checks: how often to look for a copy that is not to be seen yet; 0 means 3
	Interval    time.Duration // --appearance-checks-interval: the time between; 0 means 1 s
}

// A Plan says what a transfer is to move.
type Plan struct {
	From, To string
	Units    []Unit // in the order in which they are moved
	Skipped  []Skip
}

// A Unit is moved as a whole: one object, or one backup.
type Unit struct {
	Backup  string         // its name, "" for an object
	Objects []store.Object // as the source lists them; of a backup without its sentinel

	folder    string
	sentinel  bool // the source has it; else the backup is at the target, and this what an earlier transfer left
	forgotten bool // a push's marker is left beside the sentinel
}

// A Skip is what stays where it is, and why.
type Skip struct{ Name, Reason string }

// Report says what a transfer did.
type Report struct {
	Copied  int   // objects
	Bytes   int64 // of these
	Equal   int   // objects that the target had already, with the same content
	Removed int   // objects, from the source
	Backups int   // moved whole
	Failed  []Failure
}

// A Failure is an object, or a backup, that was not moved. Nothing of it was removed that the target does not have.
type Failure struct {
	Name string
	Err  error
}

// PlanTransfer lists what there is to move from one storage to another. prefix is for Files alone: a directory, or "" for everything.
// Backups that are being written stay where they are, and what tells storages about themselves.
func (s *Stores) PlanTransfer(ctx context.Context, from, to string, kind Kind, prefix string, opts TransferOptions) (*Plan, error) {
	source, err1 := s.Member(from)
	target, err2 := s.Member(to)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	if from == to {
		return nil, fmt.Errorf("source and target are the same storage, %s", from)
	}
	dir := map[Kind]string{WAL: walDir, Backups: backupDirs[0]}[kind]
	if kind == Files {
		if dir = strings.Trim(prefix, "/"); dir != "" {
			dir += "/"
		}
	}
	if err := store.CheckDir(dir); err != nil {
		return nil, err
	}
	if folderOf(dir) != "" {
		return nil, fmt.Errorf("%s is in a backup, and a backup is moved whole: use `st transfer backups`", dir)
	}
	p := &planner{Plan: Plan{From: from, To: to}, opts: opts, backups: map[string]*Unit{}}
	for o, err := range store.Walk(ctx, source, dir) {
		if err != nil {
			return nil, fmt.Errorf("storage %s: %w", from, err)
		}
		if p.add(o) {
			break
		}
	}
	if err := p.decide(ctx, target); err != nil {
		return nil, fmt.Errorf("storage %s: %w", to, err)
	}
	return &p.Plan, nil
}

type planner struct {
	Plan
	opts    TransferOptions
	backups map[string]*Unit // by folder
	order   []string         // folders
	files   int
}

// add sorts an object in, and reports whether there are enough.
func (p *planner) add(o store.Object) (enough bool) {
	folder := cmp.Or(folderOf(o.Name), folderOfSentinel(o.Name))
	switch {
	case o.Name == Probe || strings.HasPrefix(o.Name, path.Dir(ownerName)+"/"):
		p.Skipped = append(p.Skipped, Skip{o.Name, "each storage has its own"})
		return false
	case folder == "":
		p.Units = append(p.Units, Unit{Objects: []store.Object{o}})
		p.files++
		return p.files == p.opts.MaxFiles
	}
	u := p.backups[folder]
	if u == nil {
		u = &Unit{Backup: path.Base(folder), folder: folder}
		p.backups[folder] = u
		p.order = append(p.order, folder)
	}
	switch {
	case o.Name == sentinelOf(folder):
		u.sentinel = true
	case o.Name == folder+markerName:
		u.forgotten = true
	default:
		u.Objects = append(u.Objects, o)
	}
	return false
}

// decide takes those backups into the plan that are to be moved.
func (p *planner) decide(ctx context.Context, target store.Store) error {
	backups := 0
	for _, folder := range p.order {
		u := p.backups[folder]
		if p.opts.MaxBackups > 0 && backups == p.opts.MaxBackups || p.opts.MaxFiles > 0 && p.files >= p.opts.MaxFiles {
			break
		}
		if !u.sentinel {
			_, err := target.Stat(ctx, sentinelOf(folder))
			switch {
			case err != nil && !errors.Is(err, fs.ErrNotExist):
				return err
			case err != nil || u.forgotten:
				p.Skipped = append(p.Skipped, Skip{folder, "it is no backup: a push is writing it, or died"})
				continue
			case p.opts.Preserve:
				continue
			}
		}
		p.Units = append(p.Units, *u)
		p.files += len(u.Objects) + 1
		backups++
	}
	return nil
}

// Transfer does what plan says. Each object is copied, seen to be there with its size (up to 32 MiB: with its content), and only then
// removed from the source. What the target has already counts as copied when its content is the same. Of a backup the sentinel
// is copied last and removed first, so that at every moment there is a storage in which it is whole. A transfer that
// broke off is taken up by the next one. The error joins those of Report.Failed.
func (s *Stores) Transfer(ctx context.Context, plan *Plan, opts TransferOptions) (*Report, error) {
	from, err1 := s.Member(plan.From)
	to, err2 := s.Member(plan.To)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	opts.Concurrency = cmp.Or(opts.Concurrency, 10)
	opts.Checks = cmp.Or(opts.Checks, 3)
	opts.Interval = cmp.Or(opts.Interval, time.Second)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	t := &transfer{from: from, to: to, opts: opts, stop: cancel,
		relay: relay.Relay{From: from, To: to, Overwrite: opts.Overwrite, Checks: opts.Checks, Interval: opts.Interval, ReadBack: readBack}}
	for rest := plan.Units; len(rest) > 0 && ctx.Err() == nil; {
		if rest[0].Backup != "" {
			t.backup(ctx, &rest[0])
			s.unbind(rest[0].folder)
			rest = rest[1:]
			continue
		}
		n := slices.IndexFunc(rest, func(u Unit) bool { return u.Backup != "" })
		if n < 0 {
			n = len(rest)
		}
		t.each(ctx, n, func(i int) {
			if err := t.object(ctx, rest[i].Objects[0].Name); err != nil {
				t.failed(rest[i].Objects[0].Name, err)
			}
		})
		rest = rest[n:]
	}
	errs := make([]error, 0, len(t.report.Failed)+1)
	for _, f := range t.report.Failed {
		errs = append(errs, fmt.Errorf("transfer %s from %s to %s: %w", f.Name, plan.From, plan.To, f.Err))
	}
	if len(errs) == 0 && ctx.Err() != nil {
		errs = append(errs, context.Cause(ctx))
	}
	return &t.report, errors.Join(errs...)
}

type transfer struct {
	from, to store.Store
	relay    relay.Relay
	opts     TransferOptions
	stop     context.CancelCauseFunc

	mu     sync.Mutex
	report Report
}

func (t *transfer) count(f func(r *Report)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f(&t.report)
}

func (t *transfer) failed(name string, err error) {
	t.count(func(r *Report) { r.Failed = append(r.Failed, Failure{name, err}) })
	if t.opts.FailFast {
		t.stop(err)
	}
}

// each calls f with 0 to n-1, so many at a time as may be, until ctx is done.
func (t *transfer) each(ctx context.Context, n int, f func(i int)) {
	var g sync.WaitGroup
	next := make(chan int)
	for range min(n, t.opts.Concurrency) {
		g.Go(func() {
			for i := range next {
				f(i)
			}
		})
	}
	for i := 0; i < n && ctx.Err() == nil; i++ {
		next <- i
	}
	close(next)
	g.Wait()
}

// object moves one object.
func (t *transfer) object(ctx context.Context, name string) error {
	o, err := t.copy(ctx, name)
	if err != nil || t.opts.Preserve {
		return err
	}
	return t.remove(ctx, o)
}

// backup moves one backup, or removes what an earlier transfer of it left.
func (t *transfer) backup(ctx context.Context, u *Unit) {
	err := t.tidy(ctx, u)
	var copied []store.Object
	if err == nil {
		copied, err = t.copyAll(ctx, u)
	}
	if err == nil && u.sentinel {
		var o store.Object
		if err = t.unchanged(ctx, copied); err == nil {
			if o, err = t.copy(ctx, sentinelOf(u.folder)); err == nil {
				copied = append([]store.Object{o}, copied...)
			}
		}
	}
	if err == nil && !t.opts.Preserve {
		err = t.removeAll(ctx, u, copied)
	}
	if err == nil && u.sentinel {
		t.count(func(r *Report) { r.Backups++ })
	}
	if err != nil {
		t.failed(strings.TrimSuffix(u.folder, "/"), err)
	}
}

// tidy returns an error unless what the target has below u's folder is of this backup.
func (t *transfer) tidy(ctx context.Context, u *Unit) error {
	_, err := t.to.Stat(ctx, sentinelOf(u.folder))
	whole := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for o, err := range store.Walk(ctx, t.to, u.folder) {
		if err != nil {
			return err
		}
		ours := slices.ContainsFunc(u.Objects, func(m store.Object) bool { return m.Name == o.Name })
		switch marker := o.Name == u.folder+markerName; {
		case marker && !whole:
			return fmt.Errorf("a push to the target has %s: a backup of that name is being written there, or its push died", o.Name)
		case !marker && !ours && u.sentinel:
			return fmt.Errorf("the target has %s, which the backup has not: remove what is below %s there first", o.Name, u.folder)
		}
	}
	return nil
}

// copyAll copies u's objects but its sentinel, and returns them as they were.
func (t *transfer) copyAll(ctx context.Context, u *Unit) ([]store.Object, error) {
	copied := make([]store.Object, len(u.Objects))
	errs := make([]error, len(u.Objects))
	t.each(ctx, len(u.Objects), func(i int) {
		if u.sentinel {
			copied[i], errs[i] = t.copy(ctx, u.Objects[i].Name)
		} else {
			copied[i], errs[i] = t.compared(ctx, u.Objects[i].Name)
		}
	})
	return copied, errors.Join(append(errs, ctx.Err())...)
}

// unchanged returns an error unless the source has all objects as they were copied.
func (t *transfer) unchanged(ctx context.Context, copied []store.Object) error {
	errs := make([]error, len(copied))
	t.each(ctx, len(copied), func(i int) { errs[i] = t.same(ctx, copied[i]) })
	return errors.Join(append(errs, ctx.Err())...)
}

func (t *transfer) same(ctx context.Context, o store.Object) error {
	now, err := t.from.Stat(ctx, o.Name)
	if err == nil && (now.Size != o.Size || !now.Modified.Equal(o.Modified)) {
		err = fmt.Errorf("%s was changed in the source while it was copied: do it again with --overwrite", o.Name)
	}
	return err
}

// remove deletes an object from the source, unless it has changed since it was copied.
func (t *transfer) remove(ctx context.Context, o store.Object) error {
	err := t.same(ctx, o)
	if err == nil {
		err = t.from.Delete(ctx, o.Name)
	}
	if err == nil {
		t.count(func(r *Report) { r.Removed++ })
	} else if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// removeAll deletes a backup from the source: the sentinel, which is the first of all, then the rest.
func (t *transfer) removeAll(ctx context.Context, u *Unit, all []store.Object) error {
	rest := all
	if u.sentinel {
		if err := t.remove(ctx, all[0]); err != nil {
			return err
		}
		rest = all[1:]
	}
	if u.forgotten {
		if err := t.from.Delete(ctx, u.folder+markerName); err != nil {
			return err
		}
	}
	errs := make([]error, len(rest))
	t.each(ctx, len(rest), func(i int) { errs[i] = t.remove(ctx, rest[i]) })
	return errors.Join(append(errs, ctx.Err())...)
}

// copy makes sure that the target has the source's object, and returns that as it was.
func (t *transfer) copy(ctx context.Context, name string) (store.Object, error) {
	done, err := t.relay.Copy(ctx, name, nil)
	switch {
	case err != nil:
	case done.Equal:
		t.count(func(r *Report) { r.Equal++ })
	default:
		t.count(func(r *Report) { r.Copied++; r.Bytes += done.Object.Size })
	}
	return done.Object, err
}

// compared is copy where nothing may be copied.
func (t *transfer) compared(ctx context.Context, name string) (store.Object, error) {
	o, err := t.from.Stat(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return o, fmt.Errorf("it left the source meanwhile: %v", err)
	}
	if err != nil {
		return o, err
	}
	there, err := t.to.Stat(ctx, name)
	same := false
	if err == nil {
		same, err = t.relay.Same(ctx, o, there, nil)
	}
	if err == nil && !same {
		err = errors.New("its contents differ")
	}
	if err != nil {
		return o, fmt.Errorf("%s is left of a backup that the target has, and is not the same there: %w", name, err)
	}
	t.count(func(r *Report) { r.Equal++ })
	return o, nil
}

// readBack is the size up to which a copy is read and compared before the source is removed: every WAL segment of the usual
// size is. Of larger ones the length has to be right.
const readBack = 32 << 20
