// Package mirror writes every object to several stores at once, from one reading of its source.
//
// Each mirror is a whole archive by itself. By the rule All an object is stored once every mirror has it durably; by Any once one
// has, and what the others missed is owed to them: it is noted in a journal on the local disk before the put succeeds, and
// Repay copies it later from a mirror that has it. A mirror that fails or stalls midway is left behind by Any without the others
// noticing; by All the put fails, and the next one under that name fills in what is missing. Deletions are owed alike.
//
// New objects of one name are decided by one mirror, the first that can: the others get the end of the source only when that one has the
// object. So two writers cannot each win on a mirror, unless they see different ones alive; that two mirrors hold different content under
// one name is a *ConflictError wherever it is met.
//
// A read is answered by the first mirror that has the object and is owed nothing under that name. As in package failover there are two
// ways to look at it: in Store an object is missing only when every mirror said so, and a miss while one did not answer
// is a *merge.UnaskedError; Alive passes over mirrors that are dead, which by the rule Any is what pushes need. Other hosts do not know what this
// host's journal holds: they see each mirror as it is, the first in order first.
package mirror

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"holdfast/internal/store"
	"holdfast/internal/store/merge"
)

// Rule says when an object counts as stored.
type Rule int

const (
	All Rule = iota // every mirror has it
	Any             // one mirror has it, and what the others miss is owed
)

func (r Rule) String() string { return [...]string{"all", "any"}[r] }

// ParseRule reads HOLDFAST_MIRRORS_RULE: all or any.
func ParseRule(s string) (Rule, error) {
	for _, r := range []Rule{All, Any} {
		if s == r.String() {
			return r, nil
		}
	}
	return All, fmt.Errorf("%q is not a rule for mirrors: all, any", s)
}

// Options tunes New. The zero value is ready to use by the rule All.
type Options struct {
	Rule    Rule          // HOLDFAST_MIRRORS_RULE
	Journal string        // HOLDFAST_MIRRORS_JOURNAL: a directory of ours alone, in which what is owed is kept; needed by Any
	Stall   time.Duration // HOLDFAST_MIRRORS_STALL: by Any, a mirror that does nothing for so long is left behind; 0 means 1 min
	Pause   time.Duration // HOLDFAST_MIRRORS_PAUSE: by Any, a mirror that failed is left alone for so long; 0 means 1 min
	Buffer  int           // bytes read ahead of the slowest mirror for each object on its way; 0 means 4 MiB
	Puts    int           // objects on their way at once: as many as every member has buffers for, lest one put waits for those of another; 0 means no bound
	Logger  *slog.Logger  // hears of mirrors left behind; nil discards
}

// A Member is one of the mirrors.
type Member struct {
	Name  string
	Store store.Store
}

// Mirror is a set of stores that hold the same.
type Mirror struct {
	members []Member
	opts    Options
	log     *slog.Logger
	journal *journal // nil: there is none
	names   names
	puts    chan struct{} // has room for Options.Puts; nil: no bound

	mu   sync.Mutex
	down []time.Time // when each member failed last, by Any; zero for one that did not
}

// New returns the set of members. It does no I/O.
func New(members []Member, opts Options) (*Mirror, error) {
	if len(members) == 0 {
		return nil, errors.New("no mirror is given")
	}
	for i, m := range members {
		if m.Name != path.Base(m.Name) || strings.HasPrefix(m.Name, ".") || slices.ContainsFunc(members[:i], func(o Member) bool { return o.Name == m.Name }) {
			return nil, fmt.Errorf("mirror %d has the name %q: each needs a simple one of its own", i+1, m.Name)
		}
	}
	if opts.Rule == Any && opts.Journal == "" {
		return nil, errors.New("mirrors by the rule any need a journal of what is owed (HOLDFAST_MIRRORS_JOURNAL)")
	}
	opts.Stall = cmp.Or(opts.Stall, time.Minute)
	opts.Pause = cmp.Or(opts.Pause, time.Minute)
	opts.Buffer = cmp.Or(opts.Buffer, 4<<20)
	opts.Logger = cmp.Or(opts.Logger, slog.New(slog.DiscardHandler))
	m := &Mirror{members: slices.Clone(members), opts: opts, log: opts.Logger, down: make([]time.Time, len(members))}
	if opts.Journal != "" {
		m.journal = &journal{dir: opts.Journal}
	}
	if opts.Puts > 0 {
		m.puts = make(chan struct{}, opts.Puts)
	}
	return m, nil
}

// Store returns the mirrors as one store that takes no outage for an answer. Its PutIfAbsent is as atomic as that of the first mirror
// that has one; where none has, only writers of this process exclude each other.
func (m *Mirror) Store() store.Store { return view{Mirror: m} }

// Alive returns the store that, by the rule Any, passes over mirrors that are dead.
func (m *Mirror) Alive() store.Store { return view{Mirror: m, lenient: m.opts.Rule == Any} }

type view struct {
	*Mirror
	lenient bool
}

// ConflictError says that two mirrors hold different content under one name.
type ConflictError struct {
	Name    string
	Mirrors [2]string
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("mirrors %s and %s hold different content under %s", e.Mirrors[0], e.Mirrors[1], e.Name)
}

// Hint says how to go on.
func (e *ConflictError) Hint() string {
	return "two servers write to one archive, or one mirror is damaged: find out which is right, and remove the other object from its mirror"
}

// asleep reports whether member i failed so lately that it is not to be asked unless need be.
func (m *Mirror) asleep(i int) bool {
	if m.opts.Rule == All {
		return false
	}
	m.mu.Lock()
	at := m.down[i]
	m.mu.Unlock()
	if at.IsZero() { // what other processes saw
		at = m.journal.down(m.members[i].Name)
	}
	age := time.Since(at)
	return age >= 0 && age < m.opts.Pause
}

// note takes what became of a call on member i for a sign of life or of death.
func (m *Mirror) note(ctx context.Context, i int, err error) {
	if m.opts.Rule == All {
		return
	}
	name := m.members[i].Name
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case merge.Fault(ctx, err):
		if before := m.down[i]; time.Since(before) >= m.opts.Pause/2 {
			m.log.Warn("a mirror failed and is left alone for a while", "mirror", name, "for", m.opts.Pause, "error", err)
			m.down[i] = time.Now()
			if err := m.journal.setDown(name, m.down[i]); err != nil {
				m.log.Warn("cannot remember that a mirror failed, the next process finds out anew", "error", err)
			}
		}
	case err == nil && !m.down[i].IsZero():
		m.log.Info("a mirror is back", "mirror", name)
		m.down[i] = time.Time{}
		m.journal.setUp(name)
	}
}

// limited makes a call on member i, by Any for no longer than a stall may last.
func (m *Mirror) limited(ctx context.Context, i int, call func(ctx context.Context, s store.Store) error) error {
	if m.opts.Rule == All {
		return call(ctx, m.members[i].Store)
	}
	limited, cancel := context.WithTimeout(ctx, m.opts.Stall)
	defer cancel()
	err := call(limited, m.members[i].Store)
	if err != nil && ctx.Err() == nil && limited.Err() != nil {
		err = fmt.Errorf("no answer within %v (%v)", m.opts.Stall, err)
	}
	m.note(ctx, i, err)
	return err
}

// names excludes writers of one name in this process from each other.
type names struct {
	mu   sync.Mutex
	held map[string]*turn
}

type turn struct {
	free chan struct{}
	want int
}

// lock waits until nobody else has name.
func (n *names) lock(ctx context.Context, name string) (unlock func(), err error) {
	n.mu.Lock()
	if n.held == nil {
		n.held = map[string]*turn{}
	}
	t := n.held[name]
	if t == nil {
		t = &turn{free: make(chan struct{}, 1)}
		n.held[name] = t
	}
	t.want++
	n.mu.Unlock()
	leave := func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		if t.want--; t.want == 0 {
			delete(n.held, name)
		}
	}
	select {
	case t.free <- struct{}{}:
		return func() { <-t.free; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
