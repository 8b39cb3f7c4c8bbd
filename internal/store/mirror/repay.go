package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"slices"

	"golang.org/x/sys/unix"

	"holdfast/internal/store"
	"holdfast/internal/store/merge"
)

// Owed returns what the mirrors are owed, the oldest first. It holds all of it in memory, some 300 bytes for each. Where some of the journal
// cannot be read it returns the rest, and an error.
func (m *Mirror) Owed() ([]Debt, error) { return m.journal.all(m.members) }

// Repaid says what Repay did.
type Repaid struct {
	Copied  int   // objects
	Bytes   int64 // of these
	Deleted int   // objects
	Settled int   // debts that there was nothing left to do for
	Left    int   // debts that are still owed
}

// Repay brings the mirrors up to date with what they are owed, the oldest first, at most limit debts (0: all), one after the other. A mirror that
// fails is left alone for the rest of the call; what is being written at this moment is left for the next one. The error joins
// what failed, *ConflictErrors among it.
func (m *Mirror) Repay(ctx context.Context, limit int) (*Repaid, error) {
	debts, err := m.Owed()
	r := &repayment{Mirror: m, dead: map[int]bool{}}
	errs := []error{err}
	for n, tried := 0, 0; n < len(debts); n++ {
		i := slices.IndexFunc(m.members, func(o Member) bool { return o.Name == debts[n].Mirror })
		switch {
		case limit > 0 && tried == limit || ctx.Err() != nil || r.dead[i]:
			r.report.Left++
			continue
		}
		tried++
		switch err := r.repay(ctx, i, debts[n].Name); {
		case err == nil:
		case errors.Is(err, errLater):
			r.report.Left++
		default:
			r.report.Left++
			errs = append(errs, fmt.Errorf("repay mirror %s: %w", debts[n].Mirror, err))
		}
	}
	return &r.report, errors.Join(append(errs, ctx.Err())...)
}

// errLater says that a debt cannot be paid for a reason that was told already, or passes.
var errLater = errors.New("not now")

// repayment is Repay at work.
type repayment struct {
	*Mirror
	report Repaid
	dead   map[int]bool // members that failed in it
}

// failed notes that err kept member i from doing its part.
func (r *repayment) failed(ctx context.Context, i int, err error) error {
	if merge.Fault(ctx, err) {
		r.dead[i] = true
	}
	return r.named(i, err)
}

// repay pays what member i is owed under a name.
func (r *repayment) repay(ctx context.Context, i int, name string) error {
	unlock, err := r.names.lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	release, err := r.journal.exclude(name)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return errLater // it is being written at this moment
	}
	if err != nil {
		return err
	}
	defer release()
	d, err := r.journal.get(r.members[i].Name, name) // as it is now
	if err != nil {
		return err
	}
	if d == nil {
		r.report.Settled++
		return nil
	}
	has, err := r.sources(ctx, i, name)
	if err != nil {
		return err
	}
	switch {
	case len(has) == 0 && d.Delete:
		if err := r.members[i].Store.Delete(ctx, name); err != nil {
			return r.failed(ctx, i, err)
		}
		r.report.Deleted++
	case len(has) == 0:
		r.log.Warn("what a mirror was owed no other mirror has any more", "mirror", d.Mirror, "object", name)
		r.report.Settled++
	default: // also where it was to be removed, and was made anew since
		if err := r.update(ctx, name, has, i, d.Replace || d.Delete); err != nil {
			return err
		}
	}
	r.note(ctx, i, nil)
	return r.journal.settle(d.Mirror, name)
}

// sources returns which members but i have the newest object of a name. That one does not answer is an error unless another has it.
func (r *repayment) sources(ctx context.Context, i int, name string) (has []int, err error) {
	debts, err := r.debts(name)
	if err != nil {
		return nil, err
	}
	unasked := &merge.UnaskedError{Op: "stat", Name: name}
	later := false
	for o, member := range r.members {
		switch d := debts[o]; {
		case o == i || d != nil && (d.Delete || d.Replace):
			continue
		case r.dead[o]:
			later = true
			continue
		}
		err := r.limited(ctx, o, func(ctx context.Context, s store.Store) error { _, err := s.Stat(ctx, name); return err })
		switch {
		case err == nil:
			has = append(has, o)
		case errors.Is(err, fs.ErrNotExist):
		case merge.Fault(ctx, err):
			r.dead[o] = true
			unasked.Add(member.Name, err)
		default:
			return nil, r.named(o, err)
		}
	}
	switch {
	case len(has) > 0:
		return has, nil
	case len(unasked.Storages) > 0:
		return nil, unasked
	case later:
		return nil, errLater
	}
	return nil, nil
}

// update makes member to have what has[0] has.
func (r *repayment) update(ctx context.Context, name string, has []int, to int, replace bool) error {
	_, err := r.members[to].Store.Stat(ctx, name)
	switch {
	case err == nil:
		if err = r.compare(ctx, name, has[0], to); err == nil {
			r.report.Settled++
			return nil
		}
		if !errors.As(err, new(*ConflictError)) || !replace {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return r.failed(ctx, to, err)
	}
	if err := r.copy(ctx, name, has, to, replace); err != nil {
		return err
	}
	o, err := r.members[to].Store.Stat(ctx, name)
	if err != nil {
		return r.failed(ctx, to, err)
	}
	r.report.Copied++
	r.report.Bytes += o.Size
	return nil
}

// copy copies an object from the first of the members has that can to another, never over other content unless replace.
func (m *Mirror) copy(ctx context.Context, name string, has []int, to int, replace bool) error {
	var errs []error
	for _, from := range has {
		src := &reopening{ctx: ctx, s: m.members[from].Store, name: name}
		var err error
		if replace {
			err = m.members[to].Store.Put(ctx, name, src)
		} else {
			err = store.PutIfAbsent(ctx, m.members[to].Store, name, src)
		}
		src.Close() // only read
		switch {
		case errors.Is(err, fs.ErrExist):
			return m.compare(ctx, name, from, to)
		case err != nil && src.err == nil: // not the source's fault
			return m.named(to, err)
		case err != nil:
			errs = append(errs, m.named(from, src.err))
			continue
		}
		o, err := m.members[to].Store.Stat(ctx, name)
		if err == nil && o.Size != src.n {
			err = fmt.Errorf("%s has %d bytes after %d were copied", name, o.Size, src.n)
		}
		return m.named(to, err)
	}
	return errors.Join(errs...)
}

// compare returns a *ConflictError unless two members hold the same content under a name.
func (m *Mirror) compare(ctx context.Context, name string, a, b int) error {
	readers := [2]io.ReadCloser{}
	for n, i := range [2]int{a, b} {
		r, err := m.members[i].Store.Open(ctx, name)
		if err != nil {
			return m.named(i, vanished(err))
		}
		defer r.Close() // only read
		readers[n] = r
	}
	const chunk = 256 << 10
	bufs := [2][]byte{make([]byte, chunk), make([]byte, chunk)}
	for {
		var got [2]int
		for n, i := range [2]int{a, b} {
			var err error
			got[n], err = readFull(readers[n], bufs[n])
			if err != nil && err != io.EOF {
				return m.named(i, fmt.Errorf("read %s: %w", name, err))
			}
		}
		if !bytes.Equal(bufs[0][:got[0]], bufs[1][:got[1]]) {
			return &ConflictError{Name: name, Mirrors: [2]string{m.members[a].Name, m.members[b].Name}}
		}
		if got[0] < chunk {
			return nil
		}
	}
}

// vanished is err unless that says that an object which was there is not: that is no answer to whoever asked.
func vanished(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("it was there and is gone: %v", err)
	}
	return err
}

// reopening reads an object, and can go back to its start.
type reopening struct {
	ctx  context.Context // of the copy
	s    store.Store
	name string
	body io.ReadCloser
	n    int64
	err  error // of reading
}

func (r *reopening) Read(p []byte) (n int, err error) {
	if r.body == nil {
		if r.body, err = r.s.Open(r.ctx, r.name); err != nil {
			r.body, r.err = nil, vanished(err)
			return 0, r.err
		}
	}
	n, err = r.body.Read(p)
	r.n += int64(n)
	if err != nil && err != io.EOF {
		r.err = err
	}
	return n, err
}

// Seek goes to the start; where it is, it says too.
func (r *reopening) Seek(offset int64, whence int) (int64, error) {
	switch {
	case whence == io.SeekCurrent && offset == 0:
		return r.n, nil
	case whence != io.SeekStart || offset != 0:
		return 0, fs.ErrInvalid
	}
	err := r.Close()
	r.body, r.n, r.err = nil, 0, nil
	return 0, err
}

func (r *reopening) Close() error {
	if r.body == nil {
		return nil
	}
	return r.body.Close()
}

// A Difference is a name under which the mirrors do not have the same.
type Difference struct {
	Name    string
	Holders []Holder
	Missing []string // mirrors that lack it, and are owed nothing under this name
	Owed    []string // mirrors that the journal has something about
}

// A Holder is a mirror that has an object.
type Holder struct {
	Mirror string
	Size   int64 // bytes
}

// Conflict reports whether the holders' sizes differ: then somebody has to find out which is right.
func (d *Difference) Conflict() bool {
	return slices.ContainsFunc(d.Holders, func(h Holder) bool { return h.Size != d.Holders[0].Size })
}

// Audit compares the names and sizes that the mirrors list below prefix ("" or ending in "/") and yields where they differ, in order of
// names. Every mirror has to answer. It holds one entry of each mirror in memory.
func (m *Mirror) Audit(ctx context.Context, prefix string) iter.Seq2[*Difference, error] {
	return func(yield func(*Difference, error) bool) {
		walk := func(s store.Store) iter.Seq2[store.Object, error] { return store.Walk(ctx, s, prefix) }
		for l, err := range m.listings(ctx, "audit", prefix, false, walk) {
			if err != nil {
				yield(nil, err)
				return
			}
			d, err := m.difference(l)
			if err != nil {
				yield(nil, err)
				return
			}
			if d != nil && !yield(d, nil) {
				return
			}
		}
	}
}

// difference returns nil where the members agree.
func (m *Mirror) difference(l *listed) (*Difference, error) {
	d := &Difference{Name: l.Name}
	has := make([]bool, len(m.members))
	for n, f := range l.In {
		if l.debts[n] == nil {
			has[f.From] = true
			d.Holders = append(d.Holders, Holder{m.members[f.From].Name, f.Object.Size})
		}
	}
	if len(d.Holders) == len(m.members) && !d.Conflict() {
		return nil, nil
	}
	debts, err := m.debts(l.Name)
	if err != nil {
		return nil, err
	}
	for i, member := range m.members {
		switch {
		case has[i]:
		case debts[i] != nil:
			d.Owed = append(d.Owed, member.Name)
		default:
			d.Missing = append(d.Missing, member.Name)
		}
	}
	if len(d.Holders) == 0 { // what is there is to be removed, or to be replaced
		return nil, nil
	}
	return d, nil
}

// Owe notes in the journal what d says is missing, for Repay to copy: so a journal that was lost costs no copy.
func (m *Mirror) Owe(d *Difference) error {
	if m.journal == nil {
		return errors.New("there is no journal to note it in (HOLDFAST_MIRRORS_JOURNAL)")
	}
	for _, name := range d.Missing {
		if err := m.journal.owe(Debt{Mirror: name, Name: d.Name}); err != nil {
			return err
		}
	}
	return nil
}
