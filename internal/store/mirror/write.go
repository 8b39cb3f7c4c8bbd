package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sync"

	"holdfast/internal/store"
	"holdfast/internal/store/merge"
)

// begin checks names, and keeps other writers of them away until release. what is what its error names.
func (m *Mirror) begin(ctx context.Context, op, what string, names ...string) (release func(), err error) {
	for _, name := range names {
		if err := store.CheckName(name); err != nil {
			return nil, err
		}
	}
	var held []func()
	release = func() {
		for _, leave := range held {
			leave()
		}
	}
	names = slices.Compact(slices.Sorted(slices.Values(names))) // in one order, so that no two wait for each other
	for _, name := range names {
		unlock, err := m.names.lock(ctx, name)
		if err != nil {
			release()
			return nil, &fs.PathError{Op: op, Path: what, Err: err}
		}
		held = append(held, unlock)
	}
	leave, err := m.journal.hold(ctx, names)
	if err == nil {
		held = append(held, leave)
		err = ctx.Err()
	}
	if err != nil {
		release()
		return nil, &fs.PathError{Op: op, Path: what, Err: err}
	}
	return release, nil
}

// awake divides the members into those to be asked and those that failed of late. When that is all of them, all are asked.
func (m *Mirror) awake() (ask, asleep []int) {
	for i := range m.members {
		if m.asleep(i) {
			asleep = append(asleep, i)
		} else {
			ask = append(ask, i)
		}
	}
	if len(ask) == 0 {
		return asleep, nil
	}
	return ask, asleep
}

// each calls f for members at once, and returns what it returned in their order.
func each(members []int, f func(i int) error) []error {
	errs := make([]error, len(members))
	var g sync.WaitGroup
	for n, i := range members {
		g.Go(func() { errs[n] = f(i) })
	}
	g.Wait()
	return errs
}

// named says of which mirror an error is.
func (m *Mirror) named(i int, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("mirror %s: %w", m.members[i].Name, err)
}

// Put implements store.Store. Where it fails on one mirror and not on another, by All, the object may be new on some and as it was on
// others until it is put again.
func (v view) Put(ctx context.Context, name string, r io.Reader) error {
	release, err := v.begin(ctx, "put", name, name)
	if err != nil {
		return err
	}
	defer release()
	ask, asleep := v.awake()
	results, broken := v.fanOut(ctx, name, r, ask, false)
	return v.conclude(ctx, name, ask, results, asleep, broken, true)
}

// conclude says whether a put succeeded by the rule, after noting what is owed to whom. results are those of the members ask.
func (m *Mirror) conclude(ctx context.Context, name string, ask []int, results []error, missed []int, broken error, replace bool) error {
	var errs []error
	var stored []int
	for n, i := range ask {
		if broken == nil && !errors.Is(results[n], errAbandoned) {
			m.note(ctx, i, results[n])
		}
		if results[n] == nil {
			stored = append(stored, i)
			continue
		}
		missed = append(missed, i)
		errs = append(errs, m.named(i, results[n]))
	}
	err := errors.Join(errs...)
	switch {
	case broken != nil:
		return &fs.PathError{Op: "put", Path: name, Err: broken}
	case ctx.Err() != nil && len(errs) > 0:
		return &fs.PathError{Op: "put", Path: name, Err: ctx.Err()}
	case m.opts.Rule == All && len(errs) > 0 || len(stored) == 0:
		return err
	}
	for _, i := range missed {
		if oweErr := m.owe(i, name, replace, err); oweErr != nil {
			return oweErr
		}
	}
	for _, i := range stored {
		if err := m.journal.settle(m.members[i].Name, name); err != nil {
			return err
		}
	}
	return nil
}

// owe notes that member i misses an object because of err.
func (m *Mirror) owe(i int, name string, replace bool, err error) error {
	m.log.Debug("a mirror is owed an object", "mirror", m.members[i].Name, "object", name, "error", err)
	if oweErr := m.journal.owe(Debt{Mirror: m.members[i].Name, Name: name, Replace: replace}); oweErr != nil {
		return fmt.Errorf("put %s: note that mirror %s misses it: %w", name, m.members[i].Name, errors.Join(oweErr, err))
	}
	return nil
}

// debts returns what each member is owed under a name.
func (m *Mirror) debts(name string) ([]*Debt, error) {
	debts := make([]*Debt, len(m.members))
	for i, member := range m.members {
		var err error
		if debts[i], err = m.journal.get(member.Name, name); err != nil {
			return nil, err
		}
	}
	return debts, nil
}

// standing is which member has an object of some name, and which has not.
type standing struct {
	has, lacks []int
	stale      []int // has an older one, and is owed a newer
	unasked    []int
	why        *merge.UnaskedError // of the unasked
	known      bool                // some member is owed the object, so that another has it, or had
	silent     bool                // one of the unasked may be that other
}

// ask finds out where an object is. By Any members that failed of late are not asked.
func (m *Mirror) ask(ctx context.Context, op, name string) (*standing, error) {
	s := &standing{why: &merge.UnaskedError{Op: op, Name: name}}
	ask, asleep := m.awake()
	debts, err := m.debts(name)
	if err != nil {
		return nil, err
	}
	errs := each(ask, func(i int) error {
		if debts[i] != nil && debts[i].Delete { // not what is meant
			if err := m.limited(ctx, i, func(ctx context.Context, s store.Store) error { return s.Delete(ctx, name) }); err != nil {
				return err
			}
			if err := m.journal.settle(m.members[i].Name, name); err != nil {
				return err
			}
			debts[i] = nil
		}
		return m.limited(ctx, i, func(ctx context.Context, s store.Store) error { _, err := s.Stat(ctx, name); return err })
	})
	for n, i := range ask {
		switch err := errs[n]; {
		case err == nil && debts[i] != nil && debts[i].Replace:
			s.stale = append(s.stale, i)
		case err == nil:
			s.has = append(s.has, i)
		case errors.Is(err, fs.ErrNotExist):
			s.lacks = append(s.lacks, i)
		case merge.Fault(ctx, err):
			s.unasked = append(s.unasked, i)
			s.why.Add(m.members[i].Name, err)
		default:
			return nil, m.named(i, err)
		}
	}
	for _, i := range asleep {
		s.unasked = append(s.unasked, i)
		s.why.Add(m.members[i].Name, errors.New("it failed a short while ago"))
	}
	for i, d := range debts {
		s.known = s.known || d != nil && !d.Delete
		s.silent = s.silent || d == nil && slices.Contains(s.unasked, i)
	}
	if m.opts.Rule == All && len(s.unasked) > 0 || len(s.unasked) == len(m.members) {
		return nil, s.why
	}
	return s, nil
}

// PutIfAbsent implements store.PutIfAbsenter. Where some mirrors have the object and others do not, as after a put that came half
// way, it is copied to those first. The answer is fs.ErrExist all the same, so that the caller compares.
func (v view) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	release, err := v.begin(ctx, "put", name, name)
	if err != nil {
		return err
	}
	defer release()
	s, err := v.ask(ctx, "put", name)
	if err != nil {
		return err
	}
	if len(s.has) == 0 {
		if s.known && s.silent {
			return s.why
		}
		s.has = s.stale // there is nothing newer left
	}
	if len(s.has) > 0 {
		return v.complete(ctx, name, s)
	}
	lacks := s.lacks
	results, broken := v.fanOut(ctx, name, r, lacks, true)
	first := -1 // the mirror that decided
	taken := false
	for n, err := range results {
		if err == nil && first < 0 {
			first = lacks[n]
		}
		taken = taken || errors.Is(err, fs.ErrExist)
	}
	if taken && broken == nil {
		if first < 0 { // another writer was quicker
			if s, err = v.ask(ctx, "put", name); err != nil {
				return err
			}
			if len(s.has) == 0 {
				return fmt.Errorf("put %s: it was there and is gone: %w", name, errors.Join(results...))
			}
			return v.complete(ctx, name, s)
		}
		// On some mirrors it was there, as when another writer that lost has copied it to them.
		for n, err := range results {
			if !errors.Is(err, fs.ErrExist) {
				continue
			}
			if results[n] = v.compare(ctx, name, first, lacks[n]); errors.As(results[n], new(*ConflictError)) {
				return results[n]
			}
		}
	}
	return v.conclude(ctx, name, lacks, results, s.unasked, broken, false)
}

// complete copies an object that some members have to those that lack it. The error is fs.ErrExist when it succeeded.
func (m *Mirror) complete(ctx context.Context, name string, s *standing) error {
	for _, i := range s.has[1:] {
		err := m.compare(ctx, name, s.has[0], i)
		switch {
		case err == nil:
		case m.opts.Rule == Any && merge.Fault(ctx, err) && !errors.As(err, new(*ConflictError)):
			m.log.Warn("cannot compare what two mirrors hold", "object", name, "error", err)
		default:
			return err
		}
	}
	missed := s.unasked
	for _, i := range s.lacks {
		switch err := m.copy(ctx, name, s.has, i, false); {
		case err == nil:
		case m.opts.Rule == Any && merge.Fault(ctx, err) && !errors.As(err, new(*ConflictError)):
			missed = append(missed, i)
		default:
			return err
		}
	}
	for _, i := range missed {
		if err := m.owe(i, name, false, s.why); err != nil {
			return err
		}
	}
	for _, i := range append(s.has, s.lacks...) {
		if slices.Contains(missed, i) {
			continue
		}
		if err := m.journal.settle(m.members[i].Name, name); err != nil {
			return err
		}
	}
	return &fs.PathError{Op: "put", Path: name, Err: fs.ErrExist}
}

// Delete implements store.Store.
func (v view) Delete(ctx context.Context, name string) error {
	return v.remove(ctx, name, []string{name}, func(ctx context.Context, s store.Store) error { return s.Delete(ctx, name) })
}

// DeleteMany implements store.ManyDeleter. By Any what could not be removed from some mirror is owed: it is removed later.
func (v view) DeleteMany(ctx context.Context, names []string) error {
	return v.remove(ctx, fmt.Sprintf("%d objects", len(names)), names, func(ctx context.Context, s store.Store) error {
		return store.DeleteMany(ctx, s, names)
	})
}

func (v view) remove(ctx context.Context, what string, names []string, call func(context.Context, store.Store) error) error {
	if len(names) == 0 {
		return nil
	}
	release, err := v.begin(ctx, "delete", what, names...)
	if err != nil {
		return err
	}
	defer release()
	ask, asleep := v.awake()
	results := each(ask, func(i int) error {
		err := call(ctx, v.members[i].Store)
		v.note(ctx, i, err)
		return err
	})
	missed := asleep
	var errs []error
	for n, i := range ask {
		if results[n] != nil {
			missed = append(missed, i)
			errs = append(errs, v.named(i, results[n]))
		}
	}
	if err := errors.Join(errs...); err != nil && (v.opts.Rule == All || len(errs) == len(ask) || ctx.Err() != nil) {
		return err
	}
	for _, name := range names {
		for i, m := range v.members {
			err := error(nil)
			if slices.Contains(missed, i) {
				err = v.journal.owe(Debt{Mirror: m.Name, Name: name, Delete: true})
			} else {
				err = v.journal.settle(m.Name, name)
			}
			if err != nil {
				return fmt.Errorf("delete %s: note what mirror %s is owed: %w", name, m.Name, err)
			}
		}
	}
	return nil
}
