package mirror

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/atomicfile"
	"holdfast/internal/store"
)

// A Debt is one object that one mirror has to be brought up to date with.
type Debt struct {
	Mirror  string    `json:"mirror"`
	Name    string    `json:"name"`
	Delete  bool      `json:"delete,omitempty"`  // it is to be removed there; else to be copied there
	Replace bool      `json:"replace,omitempty"` // what the mirror has under that name may be older, and is then replaced
	Since   time.Time `json:"since"`
}

// journal keeps debts in a directory: <mirror>/<SHA-256 of the name>.json, one file each. A file is durable before the call
// that owes it succeeds. <mirror>/down says when the mirror failed last, locks/ has what processes exclude each other with.
type journal struct{ dir string }

const (
	maxDebt  = 64 << 10 // bytes of one file; a name is at most some 1000
	debtFile = ".json"
	downFile = "down"
	locksDir = "locks"
)

func key(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:])
}

func (j *journal) path(mirror, name string) string {
	return filepath.Join(j.dir, mirror, key(name)+debtFile)
}

// makeDir makes a directory below the journal, durably.
func (j *journal) makeDir(name string) error {
	dir := filepath.Join(j.dir, name)
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return errors.Join(atomicfile.SyncDir(j.dir), atomicfile.SyncDir(filepath.Dir(j.dir)))
}

// parseDebt decodes the file of a debt.
func parseDebt(b []byte) (Debt, error) {
	var d Debt
	if err := json.Unmarshal(b, &d); err != nil {
		return Debt{}, fmt.Errorf("journal of mirrors is not valid: %w", err)
	}
	if err := store.CheckName(d.Name); err != nil {
		return Debt{}, fmt.Errorf("journal of mirrors is not valid: %w", err)
	}
	if d.Mirror == "" || d.Delete && d.Replace {
		return Debt{}, errors.New("journal of mirrors is not valid: a debt to nobody, or of two kinds")
	}
	return d, nil
}

// get returns what the mirror is owed under a name; nil when it is nothing.
func (j *journal) get(mirror, name string) (*Debt, error) {
	if j == nil {
		return nil, nil
	}
	d, err := readDebt(j.path(mirror, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && (d.Name != name || d.Mirror != mirror) {
		err = fmt.Errorf("%s is about another object: %s of %s", j.path(mirror, name), d.Name, d.Mirror)
	}
	return d, err
}

func readDebt(path string) (*Debt, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read: nothing to lose
	b, err := io.ReadAll(io.LimitReader(f, maxDebt))
	if err != nil {
		return nil, err
	}
	d, err := parseDebt(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &d, nil
}

// owe notes a debt durably. One that is there already keeps its age, and what it knew.
func (j *journal) owe(d Debt) error {
	before, err := j.get(d.Mirror, d.Name)
	if err != nil {
		return err
	}
	d.Since = time.Now().UTC()
	if before != nil {
		d.Replace = !d.Delete && (d.Replace || before.Replace || before.Delete)
		if before.Delete == d.Delete {
			d.Since = before.Since
		}
		if d == *before {
			return nil
		}
	}
	b, err := json.Marshal(d)
	if err != nil {
		return err
	}
	if err := j.makeDir(d.Mirror); err != nil {
		return err
	}
	return atomicfile.Write(j.path(d.Mirror, d.Name), 0o600, func(w io.Writer) error { _, err := w.Write(b); return err })
}

// settle removes a debt. Should a crash bring it back, it is found to be paid.
func (j *journal) settle(mirror, name string) error {
	if j == nil {
		return nil
	}
	if err := os.Remove(j.path(mirror, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// keys returns by the key of its name whether a mirror is owed something.
func (j *journal) keys(mirror string) (map[string]bool, error) {
	if j == nil {
		return nil, nil
	}
	entries, err := os.ReadDir(filepath.Join(j.dir, mirror))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var all map[string]bool
	for _, e := range entries {
		if k, ok := strings.CutSuffix(e.Name(), debtFile); ok && len(k) == 2*sha256.Size {
			if all == nil {
				all = map[string]bool{}
			}
			all[k] = true
		}
	}
	return all, nil
}

// all returns what the mirrors are owed, the oldest first, and removes what writers that died have left of debts not yet owed.
func (j *journal) all(mirrors []Member) ([]Debt, error) {
	if j == nil {
		return nil, nil
	}
	var debts []Debt
	var errs []error
	for _, m := range mirrors {
		dir := filepath.Join(j.dir, m.Name)
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			if strings.HasSuffix(e.Name(), atomicfile.Suffix) {
				if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > time.Hour {
					os.Remove(filepath.Join(dir, e.Name())) // if not now, then the next time
				}
			}
			if !strings.HasSuffix(e.Name(), debtFile) {
				continue
			}
			d, err := readDebt(filepath.Join(dir, e.Name()))
			switch {
			case errors.Is(err, fs.ErrNotExist): // settled meanwhile
			case err != nil:
				errs = append(errs, err)
			case d.Mirror == m.Name:
				debts = append(debts, *d)
			}
		}
	}
	slices.SortFunc(debts, func(a, b Debt) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Mirror, b.Mirror))
	})
	return debts, errors.Join(errs...)
}

// down returns when a mirror failed last, as far as any process remembers.
func (j *journal) down(mirror string) time.Time {
	b, err := os.ReadFile(filepath.Join(j.dir, mirror, downFile))
	if err != nil {
		return time.Time{}
	}
	at, err := time.Parse(time.RFC3339Nano, strings.TrimSpace(string(b)))
	if err != nil {
		return time.Time{}
	}
	return at
}

func (j *journal) setDown(mirror string, at time.Time) error {
	if err := j.makeDir(mirror); err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(j.dir, mirror, downFile), 0o600, func(w io.Writer) error {
		_, err := io.WriteString(w, at.Format(time.RFC3339Nano)+"\n")
		return err
	})
}

// setUp forgets it. Should that fail it is forgotten by itself after a while.
func (j *journal) setUp(mirror string) { os.Remove(filepath.Join(j.dir, mirror, downFile)) }

// hold keeps Repay, in whatever process, from names and those that share their locks for as long as they are being written.
func (j *journal) hold(ctx context.Context, names []string) (release func(), err error) {
	var held []func()
	release = func() {
		for _, leave := range held {
			leave()
		}
	}
	if j == nil {
		return release, nil
	}
	var locks []string
	for _, name := range names {
		locks = append(locks, key(name)[:2])
	}
	slices.Sort(locks)
	for _, lock := range slices.Compact(locks) {
		leave, err := j.share(ctx, lock)
		if err != nil {
			release()
			return nil, err
		}
		held = append(held, leave)
	}
	return release, nil
}

func (j *journal) share(ctx context.Context, lock string) (release func(), err error) {
	for {
		release, err := j.flock(lock, unix.LOCK_SH)
		if err == nil || !errors.Is(err, unix.EWOULDBLOCK) {
			return release, err
		}
		timer := time.NewTimer(20 * time.Millisecond)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		}
	}
}

// exclude keeps writers, in whatever process, from the names that share name's lock. While there is one the error is unix.EWOULDBLOCK.
func (j *journal) exclude(name string) (release func(), err error) {
	return j.flock(key(name)[:2], unix.LOCK_EX)
}

func (j *journal) flock(lock string, how int) (release func(), err error) {
	if err := j.makeDir(locksDir); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(j.dir, locksDir, lock), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); err != nil {
		return nil, errors.Join(&fs.PathError{Op: "lock", Path: f.Name(), Err: err}, f.Close())
	}
	return func() { f.Close() }, nil // nothing was written; the lock ends here
}
