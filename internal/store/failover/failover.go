// Package failover makes one archive of several storages: it reads their union, and writes to the first that is alive.
//
// Every storage has the layout of an archive, and its place in the order; the first is called "default". An object normally lies in
// one of them. A backup lies in one completely: what is below basebackups_005/<name>/ is read from the storage that holds the
// backup's sentinel, and nothing that lies under that name elsewhere is ever mixed in. Where two storages have an object of one
// name the first in order counts.
//
// There are two ways to look at the union, for it matters who asks when a storage is down. In Union an object is missing only when every
// storage said so; a miss while one did not answer is an *UnaskedError. That is for whoever would take a miss for a fact: wal-fetch for
// the end of the archive, retention for leave to delete. Alive passes over the storages that are dead, and says so to the logger. That is for
// pushes, which are to go on while the primary is down. What they write twice for not having seen it there is of equal name
// and content, and PlanTransfer finds it if it is not.
//
// A storage is alive when it was seen to be: by use, or where that is longer ago than Options.CacheLifetime by a check, which for
// writing really writes (the object Probe, at the root). Statuses go to a small local file, so that the next process need not find out anew.
// WAL-G smooths its samples (WALG_FAILOVER_STORAGES_CACHE_EMA_…); here what was seen last counts: a storage that failed
// in use is dead until a check has found it alive. Those settings are accepted and change nothing. Should none be
// alive, all are checked again at once.
package failover

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"holdfast/internal/store"
	"holdfast/internal/store/merge"
)

// Probe is the object that a check for writing stores at the root of a storage. It stays there, as WAL-G's does.
const Probe = "wal-g_storage_check"

// Options tunes New. The zero value is ready to use.
type Options struct {
	NoCheck       bool          // WALG_FAILOVER_STORAGES_CHECK=false: only use tells whether a storage is alive
	CheckTimeout  time.Duration // WALG_FAILOVER_STORAGES_CHECK_TIMEOUT, after which a storage that was checked is dead; 0 means 30 s
	CheckSize     int64         // WALG_FAILOVER_STORAGES_CHECK_SIZE, bytes of Probe; 0 means 1 MiB
	CacheLifetime time.Duration // WALG_FAILOVER_STORAGES_CACHE_LIFETIME, how long a status counts; 0 means 15 min
	CacheFile     string        // statuses are kept in it, one file for one configuration; "" keeps them in memory only
	Logger        *slog.Logger  // hears what storages are passed over and why; nil discards
}

// A Member is one of the storages.
type Member struct {
	Name  string
	Store store.Store
}

// Stores are several storages that hold one archive.
type Stores struct {
	members []Member
	log     *slog.Logger
	health  *health

	picking sync.Mutex
	picked  int // the member that backups go to; -1 before the first

	binding sync.Mutex // held while the first object of a draft is put
	mu      sync.Mutex
	drafts  map[string]int // folders that this process writes to → the member they lie in
	homes   map[string]int // folders of backups → the member that held the sentinel when it was looked for

	spreading sync.Once // of the archive's owner
}

// New returns the union of members, the first of which is the primary. It does no I/O.
func New(members []Member, opts Options) (*Stores, error) {
	if len(members) == 0 {
		return nil, errors.New("no storage is given")
	}
	for i, m := range members {
		if m.Name == "" || slices.ContainsFunc(members[:i], func(o Member) bool { return o.Name == m.Name }) {
			return nil, fmt.Errorf("storage %d has the name %q: each needs one of its own", i+1, m.Name)
		}
	}
	opts.CheckTimeout = cmp.Or(opts.CheckTimeout, 30*time.Second)
	opts.CheckSize = cmp.Or(opts.CheckSize, 1<<20)
	opts.CacheLifetime = cmp.Or(opts.CacheLifetime, 15*time.Minute)
	opts.Logger = cmp.Or(opts.Logger, slog.New(slog.DiscardHandler))
	members = slices.Clone(members)
	return &Stores{
		members: members, log: opts.Logger, health: newHealth(members, opts), picked: -1,
		drafts: map[string]int{}, homes: map[string]int{},
	}, nil
}

// Union returns the store that takes no outage for an answer. It has PutIfAbsent if all members have it; across members
// that looks first: two writers in the same instant, one of whom found the primary dead, may both succeed.
func (s *Stores) Union() store.Store { return s.around(view{Stores: s}) }

// Alive returns the store that passes over what is dead. It can do what Union can. Who owns the archive it answers like Union.
func (s *Stores) Alive() store.Store { return s.around(view{Stores: s, lenient: true}) }

func (s *Stores) around(v view) store.Store {
	for _, m := range s.members {
		if _, ok := m.Store.(store.PutIfAbsenter); !ok {
			return struct {
				store.Store
				store.ManyDeleter
				store.Walker
			}{v, v, v}
		}
	}
	return v
}

// Member returns one storage alone, for who names it (--target-storage).
func (s *Stores) Member(name string) (store.Store, error) {
	names := make([]string, len(s.members))
	for i, m := range s.members {
		if m.Name == name {
			return m.Store, nil
		}
		names[i] = m.Name
	}
	return nil, fmt.Errorf("there is no storage %q: there are %s", name, strings.Join(names, ", "))
}

// Target returns the name of the storage that backups are written to. It is decided once: by this, or by the first object that is no
// WAL; and again for the next backup should that storage have died.
func (s *Stores) Target(ctx context.Context) (string, error) {
	i, err := s.pick(ctx)
	if err != nil {
		return "", err
	}
	return s.members[i].Name, nil
}

func (s *Stores) pick(ctx context.Context) (int, error) {
	s.picking.Lock()
	defer s.picking.Unlock()
	if s.picked >= 0 && s.health.alive(ctx, s.picked, writing) {
		return s.picked, nil
	}
	i, err := s.health.writable(ctx)
	if err == nil {
		s.picked = i
	}
	return i, err
}

// UnaskedError says that an object is in none of the storages that answered, and may be in one that did not.
type UnaskedError = merge.UnaskedError
