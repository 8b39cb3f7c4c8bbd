package failover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"holdfast/internal/atomicfile"
	"holdfast/internal/store/merge"
)

// kind is what a storage may be alive for.
type kind int

const (
	reading kind = iota
	writing
)

func (k kind) String() string { return [...]string{"reading", "writing"}[k] }

// status says how a storage was when it was seen last. The zero value is that it never was.
type status struct {
	Alive bool      `json:"alive"`
	At    time.Time `json:"at"`
	Why   string    `json:"why,omitempty"`   // it is dead
	Doubt bool      `json:"doubt,omitempty"` // since then the other kind has changed: check before relying upon it
}

// statuses are those of one storage, by kind.
type statuses [2]status

// health knows which members are alive.
type health struct {
	members []Member
	opts    Options
	log     *slog.Logger

	checking []chan struct{} // by member: full while somebody checks it
	load     sync.Once       // the cache file

	mu    sync.Mutex
	seen  []statuses
	saved []statuses // as in the cache file
}

func newHealth(members []Member, opts Options) *health {
	h := &health{members: members, opts: opts, log: opts.Logger, seen: make([]statuses, len(members)), saved: make([]statuses, len(members))}
	for range members {
		h.checking = append(h.checking, make(chan struct{}, 1))
	}
	return h
}

func (h *health) status(i int, k kind) status {
	h.load.Do(func() {
		saved := h.read()
		h.mu.Lock()
		defer h.mu.Unlock()
		copy(h.saved, saved)
		copy(h.seen, saved)
	})
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.seen[i][k]
}

// counts reports whether a status is young enough. One from the future is of a clock that was set back.
func (h *health) counts(s status) bool {
	age := time.Since(s.At)
	return !s.Doubt && age > -time.Minute && age < h.opts.CacheLifetime
}

// alive reports whether member i is, by its status or, where that is too old, by a check.
func (h *health) alive(ctx context.Context, i int, k kind) bool {
	if s := h.status(i, k); h.counts(s) {
		return s.Alive
	}
	if h.opts.NoCheck {
		return true
	}
	select {
	case h.checking[i] <- struct{}{}:
		defer func() { <-h.checking[i] }()
	case <-ctx.Done():
		return false
	}
	if s := h.status(i, k); h.counts(s) { // checked meanwhile
		return s.Alive
	}
	return h.check(ctx, i, k) == nil
}

// check asks member i whether it is alive, and notes the answer.
func (h *health) check(ctx context.Context, i int, k kind) error {
	return h.limited(ctx, i, k, func(ctx context.Context) error {
		if k == writing {
			return h.members[i].Store.Put(ctx, Probe, io.NewSectionReader(newNoise(), 0, h.opts.CheckSize))
		}
		_, err := h.members[i].Store.Stat(ctx, Probe)
		return err
	})
}

// limited makes a call on member i that may take no longer than a check, and notes what became of it. It returns nil when the
// member answered, be it that there is no such object.
func (h *health) limited(ctx context.Context, i int, k kind, call func(context.Context) error) error {
	limited, cancel := context.WithTimeout(ctx, h.opts.CheckTimeout)
	defer cancel()
	err := call(limited)
	if err != nil && ctx.Err() == nil && limited.Err() != nil {
		err = fmt.Errorf("no answer within %v (%v)", h.opts.CheckTimeout, err)
	}
	h.note(ctx, i, k, err)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// note takes what became of a call on member i for a sign of life or of death.
func (h *health) note(ctx context.Context, i int, k kind, err error) {
	now := status{Alive: true, At: time.Now()}
	switch {
	case merge.Fault(ctx, err):
		now.Alive, now.Why = false, err.Error()[:min(len(err.Error()), 500)]
	case err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrExist):
		return // it says nothing about the storage
	}
	before := h.status(i, k)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seen[i][k] = now
	switch other := &h.seen[i][1-k]; {
	case k == reading && !now.Alive:
		*other = now // where nothing can be read nothing is written
	case now.Alive != before.Alive && !other.At.IsZero():
		other.Doubt, other.At = true, now.At
	}
	if before.Alive != now.Alive || before.At.IsZero() {
		if now.Alive && !before.At.IsZero() {
			h.log.Info("storage is alive again", "storage", h.members[i].Name, "for", k)
		} else if !now.Alive {
			h.log.Warn("storage is dead", "storage", h.members[i].Name, "for", k, "error", now.Why)
		}
	}
	if saved := h.saved[i][k]; saved.Alive != now.Alive || saved.Doubt || now.At.Sub(saved.At).Abs() > h.opts.CacheLifetime/2 {
		h.save()
	}
}

// writable returns the first member that is alive for writing.
func (h *health) writable(ctx context.Context) (int, error) {
	for i := range h.members {
		if h.alive(ctx, i, writing) {
			return i, nil
		}
		if err := ctx.Err(); err != nil {
			return -1, err
		}
	}
	if h.opts.NoCheck {
		return 0, nil // all failed of late; use tells whether one is back
	}
	none := errors.New("no storage is alive for writing")
	for i, m := range h.members {
		err := h.check(ctx, i, writing)
		if err == nil {
			return i, nil
		}
		none = fmt.Errorf("%w; %s: %w", none, m.Name, err)
	}
	return -1, none
}

// maxCache bounds the cache file, in bytes.
const maxCache = 256 << 10

// cache is the content of the cache file.
type cache struct {
	Storages map[string]kinds `json:"storages"`
}

type kinds struct {
	Read  status `json:"read"`
	Write status `json:"write"`
}

// parseCache decodes a cache file. What it says of unknown storages does no harm.
func parseCache(b []byte) (map[string]statuses, error) {
	var c cache
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, fmt.Errorf("statuses of storages are not valid: %w", err)
	}
	all := make(map[string]statuses, len(c.Storages))
	for name, k := range c.Storages {
		all[name] = statuses{k.Read, k.Write}
	}
	return all, nil
}

// formatCache is the reverse of parseCache.
func formatCache(all map[string]statuses) ([]byte, error) {
	c := cache{Storages: map[string]kinds{}}
	for name, s := range all {
		c.Storages[name] = kinds{s[reading], s[writing]}
	}
	b, err := json.MarshalIndent(c, "", "\t")
	return append(b, '\n'), err
}

// read returns what the cache file says, by member. It is no more than a hint, so that what cannot be read is unknown.
func (h *health) read() []statuses {
	found := make([]statuses, len(h.members))
	if h.opts.CacheFile == "" {
		return found
	}
	b, err := readSmall(h.opts.CacheFile)
	if errors.Is(err, fs.ErrNotExist) {
		return found
	}
	var all map[string]statuses
	if err == nil {
		all, err = parseCache(b)
	}
	if err != nil {
		h.log.Warn("cannot read which storages are alive, they are checked anew", "file", h.opts.CacheFile, "error", err)
		return found
	}
	for i, m := range h.members {
		found[i] = all[m.Name]
	}
	return found
}

func readSmall(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read: nothing to lose
	b, err := io.ReadAll(io.LimitReader(f, maxCache+1))
	if err == nil && len(b) > maxCache {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxCache)
	}
	return b, err
}

// save writes the cache file, keeping what other processes have seen since. The caller holds mu.
func (h *health) save() {
	if h.opts.CacheFile == "" {
		copy(h.saved, h.seen)
		return
	}
	merged := h.read()
	all := map[string]statuses{}
	for i, m := range h.members {
		for k, seen := range h.seen[i] {
			if seen.At.After(merged[i][k].At) || merged[i][k].At.After(time.Now().Add(time.Minute)) {
				merged[i][k] = seen
			}
		}
		all[m.Name] = merged[i]
	}
	b, err := formatCache(all)
	if err == nil {
		err = atomicfile.Write(h.opts.CacheFile, 0o600, func(w io.Writer) error { _, err := w.Write(b); return err })
	}
	if err != nil {
		h.log.Warn("cannot remember which storages are alive, the next process checks them anew", "error", err)
	}
	copy(h.saved, merged)
}

// noise is as many bytes as one wants that do not compress well.
type noise struct{ block []byte }

func newNoise() noise {
	b := make([]byte, 64<<10)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return noise{b}
}

// ReadAt implements io.ReaderAt; it has no end.
func (n noise) ReadAt(p []byte, at int64) (int, error) {
	done := 0
	for done < len(p) {
		done += copy(p[done:], n.block[(at+int64(done))%int64(len(n.block)):])
	}
	return done, nil
}
