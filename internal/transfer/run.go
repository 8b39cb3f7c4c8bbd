package transfer

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"math"
	"path"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/archive"
	"holdfast/internal/store"
	"holdfast/internal/store/relay"
)

// Options tunes Run. The zero value is ready to use.
type Options struct {
	Parallel   int  // objects copied at once; 0 means 8
	Compare    bool // what the target has already is read and compared, not taken for the same by its size
	NoReadBack bool // copies are not read back: of each the length has to be right
	Host       string
	Logger     *slog.Logger // nil discards
	Progress   *Progress    // nil for none
}

// Progress says where a copy is. It may be read while Run works.
type Progress struct {
	phase       atomic.Value // string
	done, total atomic.Int64
}

// Phase says what is being copied.
func (p *Progress) Phase() string {
	s, _ := p.phase.Load().(string)
	return s
}

// Bytes returns how many bytes were copied, and how many are to be.
func (p *Progress) Bytes() (done, total int64) { return p.done.Load(), p.total.Load() }

// Report says what was done.
type Report struct {
	Copied  int      `json:"copied"`        // objects
	Bytes   int64    `json:"bytes"`         // of these
	There   int      `json:"there_already"` // objects, as the plan has it
	Backups []string `json:"backups"`       // that are whole in the target now
	Failed  []Failed `json:"failed,omitempty"`
	Notes   []string `json:"notes,omitempty"`
	Seconds float64  `json:"seconds"`
}

// Failed is an object, or a backup, that was not copied.
type Failed struct {
	Name string `json:"name"`
	Why  string `json:"why"`
	err  error
}

// maxFailed is after how many failures a copy gives up.
const maxFailed = 20

// errEnough ends a copy in which too much fails.
var errEnough = errors.New("too much has failed: giving up")

// Run does what a plan says. What fails keeps nothing else from being copied, but for backups that need it; the error joins what failed.
func Run(ctx context.Context, from, to *archive.Archive, p *Plan, opts Options) (*Report, error) {
	opts.Parallel = cmp.Or(max(0, opts.Parallel), 8)
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Progress == nil {
		opts.Progress = &Progress{}
	}
	_, left := p.Total.Left()
	opts.Progress.total.Store(left)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r := &run{Plan: p, from: from, to: to, opts: opts, stop: cancel, report: Report{Backups: []string{}, There: p.Total.There}, failed: map[string]bool{}}
	r.relay = relay.Relay{From: from.Store(), To: to.Store(), Checks: 3, Interval: time.Second, ReadBack: math.MaxInt64,
		Passed: func(n int64) { opts.Progress.done.Add(n) }}
	if opts.NoReadBack {
		r.relay.ReadBack = -1
	}
	begin := time.Now()
	err := r.all(ctx)
	r.report.Failed = append(r.report.Failed, p.lost...)
	r.report.Seconds = time.Since(begin).Seconds()
	errs := []error{err}
	for _, f := range r.report.Failed {
		errs = append(errs, fmt.Errorf("copy %s: %w", f.Name, f.err))
	}
	return &r.report, errors.Join(errs...)
}

type run struct {
	*Plan
	from, to *archive.Archive
	relay    relay.Relay
	opts     Options
	stop     context.CancelCauseFunc

	mu     sync.Mutex
	report Report
	failed map[string]bool // backups
}

func (r *run) fail(name string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report.Failed = append(r.report.Failed, Failed{name, err.Error(), err})
	r.opts.Logger.Warn(fmt.Sprintf("not copied, the rest goes on: %s: %v", name, err))
	if len(r.report.Failed) >= maxFailed {
		r.stop(errEnough)
	}
}

func (r *run) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	text := fmt.Sprintf(format, args...)
	r.report.Notes = append(r.report.Notes, text)
	r.opts.Logger.Info(text)
}

// all copies everything. Its error is one of the whole.
func (r *run) all(ctx context.Context) error {
	if err := r.claim(ctx); err != nil {
		return err
	}
	phase := func(what string) { r.opts.Progress.phase.Store(what) }
	if !r.request.NoWAL {
		phase("history files")
		if err := r.histories(ctx); err != nil {
			return err
		}
	}
	for i := range r.Backups {
		b := &r.Backups[i]
		phase(fmt.Sprintf("backup %d of %d", i+1, len(r.Backups)))
		if err := r.backup(ctx, b); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			r.failed[b.Name] = true
			r.fail(strings.TrimSuffix(folderOf(b.in(r.from), b.Name), "/"), err)
		}
	}
	phase("pieces of WAL") // before the rest: they go from the source once their segment is there whole
	if err := r.copyPieces(ctx); err != nil {
		return err
	}
	phase("WAL")
	err := r.objects(ctx, func(yield func(pair, error) bool) {
		if r.request.NoWAL || ctx.Err() != nil {
			return
		}
		for x, err := range pairs(r.from.Store().List(ctx, archive.WALDir, ""), r.to.Store().List(ctx, archive.WALDir, "")) {
			if _, _, ok := r.wanted(x.from.Name); (ok || err != nil) && !yield(x, err) {
				return
			}
		}
	}, r.each)
	phase("the rest")
	for _, name := range r.others {
		if err == nil {
			err = r.objects(ctx, otherPairs(ctx, r.from.Store(), r.to.Store(), name), r.each)
		}
	}
	if err == nil && !r.request.NoWAL && ctx.Err() == nil {
		r.tidyPieces(ctx)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// copyPieces copies pieces of segments. Where some go from the source meanwhile there may be larger ones instead: it looks again.
func (r *run) copyPieces(ctx context.Context) error {
	for range 3 {
		var gone atomic.Bool
		err := r.objects(ctx, r.Plan.pieces(ctx, r.from.Store(), r.to.Store()), func(ctx context.Context, x pair) {
			if x.there {
				return
			}
			err := r.object(ctx, x, nil, false)
			if err == nil || ctx.Err() != nil {
				return
			}
			if _, is := r.from.Store().Stat(ctx, x.from.Name); errors.Is(is, fs.ErrNotExist) {
				gone.Store(true)
				return
			}
			r.fail(x.from.Name, err)
		})
		if err != nil || !gone.Load() {
			return err
		}
	}
	return nil // what goes all the time is on its way into the next segment
}

// tidyPieces removes from the target the pieces of segments that it has whole. What it may not remove does no harm.
func (r *run) tidyPieces(ctx context.Context) {
	tails, err := r.to.Tails(ctx)
	for i := 0; i < len(tails) && err == nil; i++ {
		var whole bool
		var pieces []archive.TailPiece
		if whole, err = r.to.HasWAL(ctx, tails[i]); err != nil || !whole {
			continue
		}
		if pieces, err = r.to.TailPieces(ctx, tails[i]); err == nil {
			err = r.to.RemoveTail(ctx, pieces)
		}
	}
	if err != nil && ctx.Err() == nil {
		r.opts.Logger.Debug("the target keeps pieces of segments that are archived whole", "error", err)
	}
}

// claim makes the target the cluster's.
func (r *run) claim(ctx context.Context) error {
	if !r.Claims {
		return nil
	}
	doc, err := store.ReadFile(ctx, r.from.Store(), archive.OwnerName, 8<<20)
	switch {
	case errors.Is(err, fs.ErrNotExist): // of WAL-G
		err = r.to.Claim(ctx, r.Cluster, r.opts.Host, false)
	case err == nil:
		err = store.PutIfAbsent(ctx, r.to.Store(), archive.OwnerName, bytes.NewReader(doc))
		if errors.Is(err, fs.ErrExist) {
			err = r.to.Claim(ctx, r.Cluster, r.opts.Host, false)
		}
	}
	if taken := (*archive.OwnerError)(nil); errors.As(err, &taken) {
		err = &ForeignError{r.Cluster, taken.Archive}
	}
	return err
}

// objects copies what all yields, several at a time, by one. Failures are one's business; the error is that listing failed.
func (r *run) objects(ctx context.Context, all iter.Seq2[pair, error], one func(context.Context, pair)) error {
	var group errgroup.Group
	group.SetLimit(r.opts.Parallel)
	defer group.Wait() // each reports for itself
	for x, err := range all {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		group.Go(func() error {
			one(ctx, x)
			return nil
		})
	}
	return nil
}

// each copies an object that belongs to no backup.
func (r *run) each(ctx context.Context, x pair) {
	if err := r.object(ctx, x, nil, r.opts.Compare); err != nil && ctx.Err() == nil {
		r.fail(x.from.Name, err)
	}
}

// object makes sure that the target has an object. known is what it must be; nil where nobody knows. What is there already is read where compare says so.
func (r *run) object(ctx context.Context, x pair, known *relay.Sum, compare bool) error {
	equal := x.there
	switch {
	case x.there && x.from.Size != x.to.Size:
		return &relay.DiffersError{Name: x.from.Name, Source: x.from.Size, Size: x.to.Size}
	case x.there && compare:
		same, err := r.relay.Same(ctx, x.from, x.to, known)
		if err != nil {
			return err
		}
		if !same {
			return &relay.DiffersError{Name: x.from.Name, Source: x.from.Size, Size: x.to.Size}
		}
	case !x.there:
		done, err := r.relay.Put(ctx, x.from, known)
		if err != nil {
			return err
		}
		equal = done.Equal
	}
	if !equal {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.report.Copied++
		r.report.Bytes += x.from.Size
	}
	return nil
}

// histories copies the history files, without which a later timeline cannot be followed.
func (r *run) histories(ctx context.Context) error {
	return r.objects(ctx, func(yield func(pair, error) bool) {
		for x, err := range pairs(r.from.Store().List(ctx, archive.WALDir, ""), r.to.Store().List(ctx, archive.WALDir, "")) {
			if err == nil && !strings.Contains(path.Base(x.from.Name), ".history") {
				continue
			}
			if _, _, ok := r.wanted(x.from.Name); (ok || err != nil) && !yield(x, err) {
				return
			}
		}
	}, r.each)
}

// backup copies a backup with the WAL it needs, its sentinel last.
func (r *run) backup(ctx context.Context, b *Backup) error {
	if below := b.backup.Sentinel.DeltaFrom; below != "" && r.failed[below] {
		return fmt.Errorf("%s, which it builds on, was not copied", below)
	}
	from, to := b.in(r.from), b.in(r.to)
	there, err := to.Sentinel(ctx, b.Name)
	whole := err == nil
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("target: %w", err)
	case whole && there.Sum != b.backup.Sentinel.Sum:
		return fmt.Errorf("the target has another backup of that name: its sentinel has the SHA-256 %.16s…, the source's %.16s…", there.Sum, b.backup.Sentinel.Sum)
	}
	known, err := r.known(ctx, from, b)
	if err != nil {
		return err
	}
	if err := r.tidy(ctx, from, to, b.Name); err != nil {
		return err
	}
	var errs firstError
	one := func(ctx context.Context, x pair) {
		var sum *relay.Sum
		if s, ok := known[strings.TrimPrefix(x.from.Name, folderOf(from, b.Name))]; ok {
			sum = &relay.Sum{Size: s.Size, Hash: uint64(s.Sum)}
		}
		var err error
		if isMetadata(x.from.Name) && x.there {
			err = r.metadata(ctx, x, whole)
		} else {
			// What an earlier copy left that was cut short is compared: of the last objects it may not have come to reading them back.
			err = r.object(ctx, x, sum, r.opts.Compare || !whole && !r.opts.NoReadBack)
		}
		if err != nil {
			errs.add(fmt.Errorf("%s: %w", strings.TrimPrefix(x.from.Name, folderOf(from, b.Name)), err))
		}
	}
	if b.FirstWAL != "" {
		err = r.objects(ctx, r.walOf(ctx, b), func(ctx context.Context, x pair) {
			if err := r.object(ctx, x, nil, r.opts.Compare); err != nil {
				errs.add(err)
			}
		})
	}
	if err == nil && errs.first() == nil {
		err = r.objects(ctx, folderPairs(ctx, from, to, b.Name), one)
	}
	if err = cmp.Or(err, errs.first()); err != nil {
		return err
	}
	if err := r.finish(ctx, from, to, b, whole); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report.Backups = append(r.report.Backups, b.Name)
	return nil
}

// firstError keeps the first of some errors.
type firstError struct {
	mu  sync.Mutex
	err error
}

func (e *firstError) add(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.err = cmp.Or(e.err, err)
}

func (e *firstError) first() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.err
}

// known returns what the objects of a backup must be, where it says that.
func (r *run) known(ctx context.Context, from *archive.Archive, b *Backup) (map[string]archive.Stored, error) {
	if b.backup.Sentinel.Objects == "" {
		return nil, nil
	}
	known, sum, err := from.Objects(ctx, b.Name)
	if err == nil && sum != b.backup.Sentinel.Objects {
		err = errors.New("objects.json is not the one that its sentinel names: the source is damaged, see `holdfast verify`")
	}
	return known, err
}

// walOf yields the WAL that a backup needs.
func (r *run) walOf(ctx context.Context, b *Backup) iter.Seq2[pair, error] {
	return func(yield func(pair, error) bool) {
		for _, s := range b.wal {
			first, last := r.size.Name(s.timeline, s.first), r.size.Name(s.timeline, s.last)
			// One digit less sorts before the segment itself, whatever its extension.
			after := archive.WALDir + first[:len(first)-1]
			for x, err := range pairs(r.from.Store().List(ctx, archive.WALDir, after), r.to.Store().List(ctx, archive.WALDir, after)) {
				base := path.Base(x.from.Name)
				if err == nil && base[:min(len(base), 24)] > last {
					break
				}
				at, _, ok := r.wanted(x.from.Name)
				if (err != nil || ok && s.has(at, 1)) && !yield(x, err) {
					return
				}
			}
		}
	}
}

// tidy returns an error unless what the target has below a backup's folder is of this backup.
func (r *run) tidy(ctx context.Context, from, to *archive.Archive, name string) error {
	folder := folderOf(to, name)
	for x, err := range pairs(store.Walk(ctx, to.Store(), folder), store.Walk(ctx, from.Store(), folder)) {
		switch rest := strings.TrimPrefix(x.from.Name, folder); {
		case err != nil:
			return fmt.Errorf("compare source and target: %w", err)
		case rest == "push.json":
			_, err := to.Store().Stat(ctx, to.SentinelName(name))
			if errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("a push to the target has %s: a backup of that name is being written there, or its push died", x.from.Name)
			}
			if err != nil {
				return fmt.Errorf("target: %w", err)
			}
		case !notCopied(rest) && !x.there && !isMetadata(rest):
			return fmt.Errorf("the target has %s, which the source has not: what is there is another backup's", x.from.Name)
		}
	}
	return nil
}

// metadata brings the one document over that changes. A backup in the target has a permanent flag of its own.
func (r *run) metadata(ctx context.Context, x pair, whole bool) error {
	ours, err := store.ReadFile(ctx, r.from.Store(), x.from.Name, 8<<20)
	if err != nil {
		return fmt.Errorf("source: %w", err)
	}
	theirs, err := store.ReadFile(ctx, r.to.Store(), x.from.Name, 8<<20)
	if err != nil {
		return fmt.Errorf("target: %w", err)
	}
	permanent, a := unmarked(ours)
	there, b := unmarked(theirs)
	switch {
	case bytes.Equal(ours, theirs):
	case a == nil || !reflect.DeepEqual(a, b):
		return &relay.DiffersError{Name: x.from.Name, Source: x.from.Size, Size: x.to.Size}
	case !whole: // what an earlier copy has brought, before it was marked
		if err := r.to.Store().Put(ctx, x.from.Name, bytes.NewReader(ours)); err != nil {
			return err
		}
	case permanent != there:
		r.note("%s is permanent in the %s and not in the %s: each archive has marks of its own, see `holdfast backup-mark`", path.Base(path.Dir(x.from.Name)),
			map[bool]string{true: "source", false: "target"}[permanent], map[bool]string{true: "target", false: "source"}[permanent])
	}
	return nil
}

// unmarked returns the permanent flag of a metadata.json and the rest of it; nil where it is none.
func unmarked(doc []byte) (permanent bool, rest map[string]any) {
	d := json.NewDecoder(bytes.NewReader(doc))
	d.UseNumber()
	if d.Decode(&rest) != nil {
		return false, nil
	}
	permanent, _ = rest["is_permanent"].(bool)
	delete(rest, "is_permanent")
	delete(rest, "HoldfastSeal")
	return permanent, rest
}

// finish makes a backup of what was copied, once the target has all of it and the source's is still the one that it is a copy of.
func (r *run) finish(ctx context.Context, from, to *archive.Archive, b *Backup, whole bool) error {
	now, err := from.Sentinel(ctx, b.Name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errors.New("it left the source while it was copied; what the target has of it is no backup, and `holdfast delete garbage BACKUPS` there removes it")
	case err != nil:
		return fmt.Errorf("source: %w", err)
	case now.Sum != b.backup.Sentinel.Sum:
		return errors.New("it was replaced in the source while it was copied: copy it again")
	}
	for x, err := range folderPairs(ctx, from, to, b.Name) {
		switch {
		case err != nil:
			return err
		case !x.there:
			return fmt.Errorf("the target does not have %s, which was copied", x.from.Name)
		case x.from.Size != x.to.Size && !isMetadata(x.from.Name):
			return &relay.DiffersError{Name: x.from.Name, Source: x.from.Size, Size: x.to.Size}
		}
	}
	if err := r.tidy(ctx, from, to, b.Name); err != nil {
		return err
	}
	name := from.SentinelName(b.Name)
	if whole {
		return nil
	}
	o, err := from.Store().Stat(ctx, name)
	if err != nil {
		return fmt.Errorf("source: %w", err)
	}
	if err := r.object(ctx, pair{from: o}, nil, true); err != nil {
		return err
	}
	if there, err := to.Sentinel(ctx, b.Name); err != nil || there.Sum != b.backup.Sentinel.Sum {
		return errors.Join(fmt.Errorf("%s is not the source's in the target", name), err)
	}
	return nil
}
