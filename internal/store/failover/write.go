package failover

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"

	"holdfast/internal/store"
	"holdfast/internal/store/merge"
)

// maxOwner bounds the document that says whose archive it is, in bytes.
const maxOwner = 1 << 20

// Put implements store.Store. An object that is there is replaced where it is, what is below a backup's folder lands in that
// backup's storage, and anything new in the first that is alive. When that one fails, what can be read again goes to the next.
func (v view) Put(ctx context.Context, name string, r io.Reader) error {
	return v.put(ctx, name, r, func(s store.Store, r io.Reader) error { return s.Put(ctx, name, r) }, false)
}

// PutIfAbsent implements store.PutIfAbsenter. An object that is in any storage that is alive counts; of backups, only
// that in the backup's storage.
func (v view) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	return v.put(ctx, name, r, func(s store.Store, r io.Reader) error { return store.PutIfAbsent(ctx, s, name, r) }, true)
}

func (v view) put(ctx context.Context, name string, r io.Reader, call func(store.Store, io.Reader) error, ifAbsent bool) error {
	if err := store.CheckName(name); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return &fs.PathError{Op: "put", Path: name, Err: err}
	}
	p := &putting{view: v, name: name, src: newSource(r), call: call, ifAbsent: ifAbsent}
	var err error
	if folder := folderOf(name); folder != "" {
		err = p.inBackup(ctx, folder)
	} else if folder := folderOfSentinel(name); folder != "" {
		err = p.sentinel(ctx, folder)
	} else {
		_, err = p.anywhere(ctx)
	}
	return err
}

// putting is a put at work.
type putting struct {
	view
	name     string
	src      *source
	call     func(store.Store, io.Reader) error
	ifAbsent bool
}

func (p *putting) taken() error { return &fs.PathError{Op: "put", Path: p.name, Err: fs.ErrExist} }

// into puts into member i.
func (p *putting) into(ctx context.Context, i int) error {
	err := p.call(p.members[i].Store, p.src.reader())
	if !p.src.broken.Load() {
		p.health.note(ctx, i, writing, err)
	}
	if err != nil {
		err = fmt.Errorf("storage %s: %w", p.members[i].Name, err)
	}
	return err
}

// inBackup puts below folder, into the member where that backup is, or the draft.
func (p *putting) inBackup(ctx context.Context, folder string) error {
	i, err := p.fresh(ctx, folder)
	if err != nil {
		return err
	}
	if i != everywhere {
		return p.into(ctx, i)
	}
	p.binding.Lock()
	defer p.binding.Unlock()
	if i, ours := p.draft(folder); ours {
		return p.into(ctx, i)
	}
	if i, err = p.anywhere(ctx); err == nil {
		p.bind(folder, i)
	}
	return err
}

// sentinel puts the sentinel that makes a backup of what lies in folder, or replaces it.
func (p *putting) sentinel(ctx context.Context, folder string) error {
	i, ours := p.draft(folder)
	if !ours {
		// One that is replaced, or put for a draft that another process had begun, must be found: elsewhere it would be a backup without parts.
		every, err := view{Stores: p.Stores}, error(nil)
		if p.ifAbsent {
			i, err = every.stat(ctx, folder+markerName)
		} else {
			i, err = every.find(ctx, folder)
		}
		if err != nil {
			return err
		}
		ours = i != everywhere
	}
	if !ours {
		_, err := p.anywhere(ctx)
		if err == nil {
			p.unbind(folder)
		}
		return err
	}
	if p.ifAbsent && len(p.holders(ctx, i)) > 0 {
		return p.taken()
	}
	if err := p.into(ctx, i); err != nil {
		return err
	}
	p.unbind(folder) // from now on the sentinel says where it is
	return nil
}

// anywhere puts where the object is already, else into the first member that is alive, else into the next. It returns where.
func (p *putting) anywhere(ctx context.Context) (int, error) {
	if !p.ifAbsent {
		if has := p.holders(ctx, everywhere); len(has) > 0 && (folderOf(p.name) == "" || p.health.alive(ctx, has[0], writing)) {
			return has[0], p.done(ctx, has[0], p.into(ctx, has[0]))
		}
	}
	var tried []int
	var last error
	for {
		i, err := p.choose(ctx)
		if err != nil {
			return i, errors.Join(last, err)
		}
		if slices.Contains(tried, i) {
			return i, last
		}
		if p.ifAbsent && len(p.holders(ctx, i)) > 0 {
			return i, p.taken()
		}
		err = p.done(ctx, i, p.into(ctx, i))
		if !merge.Fault(ctx, err) || !p.src.again() {
			return i, err
		}
		tried, last = append(tried, i), err
	}
}

// done tells all members whose archive it is, when it was that which was put.
func (p *putting) done(ctx context.Context, i int, err error) error {
	if err == nil && p.name == ownerName {
		p.spread(ctx, i, !p.ifAbsent)
	}
	return err
}

// choose returns the member that a new object goes to: WAL to the first that is alive, each by itself; all else where
// backups go.
func (p *putting) choose(ctx context.Context) (int, error) {
	if strings.HasPrefix(p.name, walDir) {
		return p.health.writable(ctx)
	}
	return p.pick(ctx)
}

// holders returns which members, except one, say that they have the object. Those that are dead do not count.
func (p *putting) holders(ctx context.Context, except int) []int {
	alive, _ := p.readers(ctx)
	has := make([]bool, len(p.members))
	var g sync.WaitGroup
	for _, i := range alive {
		if i == except {
			continue
		}
		g.Go(func() {
			_, err := p.members[i].Store.Stat(ctx, p.name)
			p.health.note(ctx, i, reading, err)
			has[i] = err == nil
			if merge.Fault(ctx, err) {
				p.log.Warn("put without knowing whether a storage has the object", "object", p.name, "storage", p.members[i].Name, "error", err)
			}
		})
	}
	g.Wait()
	var all []int
	for i, yes := range has {
		if yes {
			all = append(all, i)
		}
	}
	return all
}

// spread copies the document that says whose archive it is from one member to the others that are alive, so that they can tell when
// they are alone. What fails is only told: the next push spreads it again.
func (s *Stores) spread(ctx context.Context, from int, replace bool) {
	doc, err := store.ReadFile(ctx, s.members[from].Store, ownerName, maxOwner)
	if err != nil {
		s.log.Warn("cannot tell the other storages whose archive they are part of", "error", err)
		return
	}
	for i, m := range s.members {
		if i == from || !s.health.alive(ctx, i, reading) {
			continue
		}
		_, err := m.Store.Stat(ctx, ownerName)
		switch {
		case replace:
			err = m.Store.Put(ctx, ownerName, bytes.NewReader(doc))
		case errors.Is(err, fs.ErrNotExist):
			err = store.PutIfAbsent(ctx, m.Store, ownerName, bytes.NewReader(doc))
		}
		if err != nil && !errors.Is(err, fs.ErrExist) {
			s.log.Warn("cannot tell a storage whose archive it is part of", "storage", m.Name, "error", err)
		}
	}
}

// Delete implements store.Store.
func (v view) Delete(ctx context.Context, name string) error {
	return v.remove(ctx, name, []string{name}, func(s store.Store, names []string) error { return s.Delete(ctx, name) })
}

// DeleteMany implements store.ManyDeleter. Objects are removed from every member that has them; those of a backup that this
// process is writing only from where it writes.
func (v view) DeleteMany(ctx context.Context, names []string) error {
	return v.remove(ctx, fmt.Sprintf("%d objects", len(names)), names, func(s store.Store, names []string) error { return store.DeleteMany(ctx, s, names) })
}

func (v view) remove(ctx context.Context, what string, names []string, call func(store.Store, []string) error) error {
	for _, name := range names {
		if err := store.CheckName(name); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return &fs.PathError{Op: "delete", Path: what, Err: err}
	}
	if len(names) == 0 {
		return nil
	}
	alive, dead := v.readers(ctx)
	if v.lenient && len(alive) > 0 {
		if len(dead) > 0 {
			v.log.Debug("nothing was deleted from storages that are dead", "objects", what)
		}
		dead = nil
	}
	back, unasked := v.check(ctx, dead, "delete", what)
	var errs []error
	if len(unasked.Storages) > 0 && (!v.lenient || len(back) == 0) {
		errs = append(errs, unasked)
	}
	for _, i := range append(alive, back...) {
		if err := v.removeFrom(ctx, i, names, call); err != nil {
			errs = append(errs, fmt.Errorf("storage %s: %w", v.members[i].Name, err))
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	for _, name := range names {
		if folder := folderOf(name); folder != "" && path.Base(name) == markerName {
			v.unbind(folder) // the draft has ended
		}
	}
	return nil
}

// removeFrom deletes from member i those of the names that are its business.
func (v view) removeFrom(ctx context.Context, i int, names []string, call func(store.Store, []string) error) error {
	mine := make([]string, 0, len(names))
	for _, name := range names {
		folder := folderOf(name)
		if folder == "" {
			folder = folderOfSentinel(name)
		}
		if at, ours := v.draft(folder); !ours || at == i {
			mine = append(mine, name)
		}
	}
	if len(mine) == 0 {
		return nil
	}
	return call(v.members[i].Store, mine)
}
