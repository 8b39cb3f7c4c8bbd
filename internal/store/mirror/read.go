package mirror

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"
	"slices"

	"holdfast/internal/store"
	"holdfast/internal/store/merge"
)

// Open implements store.Store.
func (v view) Open(ctx context.Context, name string) (r io.ReadCloser, err error) {
	err = v.first(ctx, "open", name, func(s store.Store) (err error) { r, err = s.Open(ctx, name); return err })
	return r, err
}

// OpenRange implements store.Store.
func (v view) OpenRange(ctx context.Context, name string, offset, length int64) (r io.ReadCloser, err error) {
	err = v.first(ctx, "open", name, func(s store.Store) (err error) { r, err = s.OpenRange(ctx, name, offset, length); return err })
	return r, err
}

// Stat implements store.Store.
func (v view) Stat(ctx context.Context, name string) (o store.Object, err error) {
	err = v.first(ctx, "stat", name, func(s store.Store) (err error) { o, err = s.Stat(ctx, name); return err })
	if err != nil {
		return store.Object{}, err
	}
	return o, nil
}

// first makes a call on one member after the other until one has the object. Those that failed of late come last, if at all.
func (v view) first(ctx context.Context, op, name string, call func(store.Store) error) error {
	if err := store.CheckName(name); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return &fs.PathError{Op: op, Path: name, Err: err}
	}
	debts, err := v.debts(name)
	if err != nil {
		return err
	}
	unasked := &merge.UnaskedError{Op: op, Name: name}
	answers, owed := 0, false
	try := func(i int) (done bool, err error) {
		switch d := debts[i]; {
		case d != nil && d.Delete: // whatever it has
			answers++
			return false, nil
		case d != nil && d.Replace:
			owed = true
			unasked.Add(v.members[i].Name, errors.New("what it has is not the newest"))
			return false, nil
		}
		err = call(v.members[i].Store)
		v.note(ctx, i, err)
		switch {
		case errors.Is(err, fs.ErrNotExist) && debts[i] != nil:
			owed = true // which it would not be if there were none
		case errors.Is(err, fs.ErrNotExist):
			answers++
		case merge.Fault(ctx, err):
			unasked.Add(v.members[i].Name, err)
		default:
			return true, v.named(i, err)
		}
		return false, nil
	}
	ask, asleep := v.awake()
	for _, i := range ask {
		if done, err := try(i); done {
			return err
		}
	}
	if !v.lenient || answers == 0 || owed {
		for _, i := range asleep {
			err := v.limited(ctx, i, func(ctx context.Context, s store.Store) error { _, err := s.Stat(ctx, name); return err })
			if merge.Fault(ctx, err) {
				unasked.Add(v.members[i].Name, err)
			} else if done, err := try(i); done {
				return err
			}
		}
	}
	switch silent := len(unasked.Storages); {
	case ctx.Err() != nil:
		return &fs.PathError{Op: op, Path: name, Err: ctx.Err()}
	case silent > 0 && (!v.lenient || answers == 0 || owed):
		return unasked
	case silent > 0:
		v.log.Warn("a mirror was passed over", "error", unasked)
	}
	return &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
}

// List implements store.Store. It is the union of what the mirrors list, without what they are to remove.
func (v view) List(ctx context.Context, dir, after string) iter.Seq2[store.Object, error] {
	return v.list(ctx, "list", dir, func(s store.Store) iter.Seq2[store.Object, error] { return s.List(ctx, dir, after) })
}

// Walk implements store.Walker.
func (v view) Walk(ctx context.Context, dir string) iter.Seq2[store.Object, error] {
	return v.list(ctx, "walk", dir, func(s store.Store) iter.Seq2[store.Object, error] { return store.Walk(ctx, s, dir) })
}

func (v view) list(ctx context.Context, op, dir string, call func(store.Store) iter.Seq2[store.Object, error]) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		for e, err := range v.listings(ctx, op, dir, v.lenient, call) {
			if err != nil {
				yield(store.Object{}, err)
				return
			}
			if o, ok := e.object(); ok && !yield(o, nil) {
				return
			}
		}
	}
}

// listed is one name, and what the members say of it.
type listed struct {
	merge.Entry
	debts []*Debt // by place in In
}

// object returns what counts: of the first that is owed nothing, else of the first that is not to remove it.
func (l *listed) object() (o store.Object, ok bool) {
	for n, f := range l.In {
		switch d := l.debts[n]; {
		case d == nil:
			return f.Object, true
		case !d.Delete && !ok:
			o, ok = f.Object, true
		}
	}
	return o, ok
}

// listings reads the listings of all members side by side; of those that answer, if lenient. In and the debts are by member.
func (m *Mirror) listings(ctx context.Context, op, dir string, lenient bool, call func(store.Store) iter.Seq2[store.Object, error]) iter.Seq2[*listed, error] {
	return func(yield func(*listed, error) bool) {
		if err := store.CheckDir(dir); err != nil {
			yield(nil, err)
			return
		}
		if err := ctx.Err(); err != nil {
			yield(nil, &fs.PathError{Op: op, Path: dir, Err: err})
			return
		}
		ask, asleep := m.awake()
		if !lenient {
			ask = append(ask, asleep...)
		}
		lists := make([]iter.Seq2[store.Object, error], len(ask))
		owed := make([]map[string]bool, len(ask))
		for n, i := range ask {
			var err error
			if owed[n], err = m.journal.keys(m.members[i].Name); err != nil {
				yield(nil, err)
				return
			}
			lists[n] = call(m.members[i].Store)
		}
		unasked := &merge.UnaskedError{Op: op, Name: dir}
		failed := func(n int, err error) error {
			i := ask[n]
			m.note(ctx, i, err)
			if !merge.Fault(ctx, err) {
				return err
			}
			unasked.Add(m.members[i].Name, err)
			if !lenient || len(unasked.Storages) == len(ask) {
				return unasked
			}
			m.log.Warn("a mirror was passed over", "error", unasked)
			return nil
		}
		for e, err := range merge.Listings(lists, failed) {
			if err != nil {
				yield(nil, err)
				return
			}
			l := &listed{Entry: e, debts: make([]*Debt, len(e.In))}
			l.In = slices.Clone(e.In) // Listings goes on with its own
			for n, f := range e.In {
				l.In[n].From = ask[f.From]
				if owed[f.From] == nil || !owed[f.From][key(e.Name)] {
					continue
				}
				if l.debts[n], err = m.journal.get(m.members[ask[f.From]].Name, e.Name); err != nil {
					yield(nil, err)
					return
				}
			}
			if !yield(l, nil) {
				return
			}
		}
	}
}
