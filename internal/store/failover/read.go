package failover

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"
	"slices"
	"sync"

	"holdfast/internal/store"
	"holdfast/internal/store/merge"
)

// view is the union of all members, or of those that are alive.
type view struct {
	*Stores
	lenient bool // a member that is dead has nothing to say
}

// readers returns the members by whether they are alive for reading, each in order.
func (s *Stores) readers(ctx context.Context) (alive, dead []int) {
	up := make([]bool, len(s.members))
	var g sync.WaitGroup
	for i := range up {
		g.Go(func() { up[i] = s.health.alive(ctx, i, reading) })
	}
	g.Wait()
	for i := range up {
		if up[i] {
			alive = append(alive, i)
		} else {
			dead = append(dead, i)
		}
	}
	return alive, dead
}

// check returns which of the dead are alive after all, and in the error which are not.
func (s *Stores) check(ctx context.Context, dead []int, op, name string) (back []int, unasked *UnaskedError) {
	unasked = &UnaskedError{Op: op, Name: name}
	for _, i := range dead {
		if err := s.health.check(ctx, i, reading); err != nil {
			unasked.Add(s.members[i].Name, err)
		} else {
			back = append(back, i)
		}
	}
	return back, unasked
}

// ask makes a call on one member after the other, for as long as they answer that there is no such object, and returns
// which one had it. Those that are dead come last, if at all, and are given no longer than a check.
func (v view) ask(ctx context.Context, op, name string, call func(s store.Store) error) (int, error) {
	unasked := &UnaskedError{Op: op, Name: name}
	answers := 0
	try := func(i int) (done bool, err error) {
		err = call(v.members[i].Store)
		v.health.note(ctx, i, reading, err)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			answers++
			return false, nil
		case merge.Fault(ctx, err):
			unasked.Add(v.members[i].Name, err)
			return false, nil
		}
		return true, err
	}
	alive, dead := v.readers(ctx)
	for _, i := range alive {
		if done, err := try(i); done {
			return i, err
		}
	}
	lenient := v.lenient && name != ownerName
	if !lenient || answers == 0 {
		for _, i := range dead {
			err := v.health.limited(ctx, i, reading, func(ctx context.Context) error {
				_, err := v.members[i].Store.Stat(ctx, name)
				return err
			})
			if err != nil {
				unasked.Add(v.members[i].Name, err)
			} else if done, err := try(i); done {
				return i, err
			}
		}
	}
	switch {
	case ctx.Err() != nil:
		return everywhere, &fs.PathError{Op: op, Path: name, Err: ctx.Err()}
	case lenient && answers > 0 || len(unasked.Storages) == 0:
		v.passedOver(unasked)
		return everywhere, &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
	}
	return everywhere, unasked
}

func (v view) passedOver(e *UnaskedError) {
	if len(e.Storages) > 0 {
		v.log.Warn("a storage was passed over", "error", e)
	}
}

// at makes a call where name is to be found: in the member that holds the backup it is of, else in the first that has it.
func (v view) at(ctx context.Context, op, name string, call func(s store.Store) error) (int, error) {
	if err := store.CheckName(name); err != nil {
		return everywhere, err
	}
	folder := folderOf(name)
	if folder == "" {
		return v.ask(ctx, op, name, call)
	}
	i, known, err := v.home(ctx, folder)
	for {
		switch {
		case err != nil:
			return everywhere, err
		case i == everywhere:
			return v.ask(ctx, op, name, call)
		}
		err = v.in(ctx, i, op, name, call)
		if !known || !errors.Is(err, fs.ErrNotExist) {
			return i, err
		}
		// The backup may have moved since.
		was := i
		if i, err = v.find(ctx, folder); err == nil && (i == was || i == everywhere) {
			return was, &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
		}
		known = false
	}
}

// in makes a call on member i alone.
func (v view) in(ctx context.Context, i int, op, name string, call func(s store.Store) error) error {
	err := call(v.members[i].Store)
	v.health.note(ctx, i, reading, err)
	if merge.Fault(ctx, err) {
		unasked := &UnaskedError{Op: op, Name: name}
		unasked.Add(v.members[i].Name, err)
		return unasked
	}
	return err
}

// Open implements store.Store.
func (v view) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	return v.open(ctx, name, func(s store.Store) (io.ReadCloser, error) { return s.Open(ctx, name) })
}

// OpenRange implements store.Store.
func (v view) OpenRange(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	return v.open(ctx, name, func(s store.Store) (io.ReadCloser, error) { return s.OpenRange(ctx, name, offset, length) })
}

func (v view) open(ctx context.Context, name string, call func(store.Store) (io.ReadCloser, error)) (r io.ReadCloser, err error) {
	i, err := v.at(ctx, "open", name, func(s store.Store) (err error) { r, err = call(s); return err })
	if err != nil {
		return nil, err
	}
	if v.lenient && name == ownerName {
		v.spreading.Do(func() { v.spread(ctx, i, false) })
	}
	return r, nil
}

// Stat implements store.Store.
func (v view) Stat(ctx context.Context, name string) (o store.Object, err error) {
	i, err := v.at(ctx, "stat", name, func(s store.Store) (err error) { o, err = s.Stat(ctx, name); return err })
	if err != nil {
		return store.Object{}, err
	}
	o.Storage = v.members[i].Name
	return o, nil
}

// List implements store.Store. Of names that several members have it yields the first in order's.
func (v view) List(ctx context.Context, dir, after string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		v.list(ctx, "list", dir, func(s store.Store) iter.Seq2[store.Object, error] { return s.List(ctx, dir, after) }, yield)
	}
}

// Walk implements store.Walker. What lies under the name of a backup in another member than the backup is left out.
func (v view) Walk(ctx context.Context, dir string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		v.list(ctx, "walk", dir, func(s store.Store) iter.Seq2[store.Object, error] { return store.Walk(ctx, s, dir) }, yield)
	}
}

func (v view) list(ctx context.Context, op, dir string, call func(store.Store) iter.Seq2[store.Object, error], yield func(store.Object, error) bool) {
	members, err := v.listed(ctx, op, dir)
	if err != nil {
		yield(store.Object{}, err)
		return
	}
	unasked := &UnaskedError{Op: op, Name: dir}
	lists := make([]iter.Seq2[store.Object, error], len(members))
	for n, i := range members {
		lists[n] = call(v.members[i].Store)
	}
	broken := make([]bool, len(members))
	failed := func(n int, err error) error {
		i := members[n]
		broken[n] = true
		v.health.note(ctx, i, reading, err)
		if !merge.Fault(ctx, err) {
			return err
		}
		unasked.Add(v.members[i].Name, err)
		if !v.lenient || len(unasked.Storages) == len(members) {
			return unasked
		}
		v.log.Warn("a storage was passed over", "error", unasked)
		return nil
	}
	last, home := "", everywhere // the folder that was met last, and where its backup is
	for e, err := range merge.Listings(lists, failed) {
		if err != nil {
			yield(store.Object{}, err)
			return
		}
		o := e.In[0].Object
		if o.IsDir() {
			if !yield(store.Object{Name: o.Name}, nil) {
				return
			}
			continue
		}
		if folder := folderOf(o.Name); folder != last && len(v.members) > 1 {
			last, home = folder, everywhere
			if folder != "" {
				if home, err = v.fresh(ctx, folder); err != nil {
					yield(store.Object{}, err)
					return
				}
			}
		}
		for _, f := range e.In {
			if i := members[f.From]; last == "" || home == everywhere || home == i {
				f.Object.Storage = v.members[i].Name
				if !yield(f.Object, nil) {
					return
				}
				break
			}
		}
	}
	for n, i := range members {
		if !broken[n] {
			v.health.note(ctx, i, reading, nil)
		}
	}
}

// fresh is home without relying on what was found before.
func (v view) fresh(ctx context.Context, folder string) (int, error) {
	if i, ours := v.draft(folder); ours {
		return i, nil
	}
	return v.find(ctx, folder)
}

// listed returns the members that a listing of dir has to be made of.
func (v view) listed(ctx context.Context, op, dir string) ([]int, error) {
	if err := store.CheckDir(dir); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, &fs.PathError{Op: op, Path: dir, Err: err}
	}
	if folder := folderOf(dir); folder != "" {
		if i, err := v.fresh(ctx, folder); err != nil || i != everywhere {
			return []int{i}, err
		}
	}
	alive, dead := v.readers(ctx)
	if v.lenient && len(alive) > 0 {
		return alive, nil
	}
	back, unasked := v.check(ctx, dead, op, dir)
	if ctx.Err() != nil {
		return nil, &fs.PathError{Op: op, Path: dir, Err: ctx.Err()}
	}
	if len(unasked.Storages) > 0 && (!v.lenient || len(back) == 0) {
		return nil, unasked
	}
	members := append(alive, back...)
	slices.Sort(members)
	return members, nil
}
