package drill

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"holdfast/internal/archive"
)

// newID tells scratch directories apart.
func newID() string { return strings.ToLower(rand.Text())[:10] }

// scratch is a directory that a drill has made for itself.
type scratch struct {
	dir  string
	lock *os.File
}

// makeScratch makes the directory of a plan, with what the server needs in it. Nobody but its account looks into it.
func makeScratch(p *Plan) (_ *scratch, err error) {
	s := &scratch{dir: p.Scratch}
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = s.remove() // it is empty but for what is ours, and the error says more
		}
	}()
	if s.lock, err = os.OpenFile(filepath.Join(s.dir, lockName), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return nil, err
	}
	if err := unix.Flock(int(s.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, &fs.PathError{Op: "lock", Path: s.lock.Name(), Err: err}
	}
	if _, err := fmt.Fprintf(s.lock, "%d\n", os.Getpid()); err != nil {
		return nil, err
	}
	for _, name := range []string{runName, spaceName} {
		if err := os.Mkdir(filepath.Join(s.dir, name), 0o700); err != nil {
			return nil, err
		}
	}
	// The server trusts who comes to its socket, which is in a directory that is closed to others.
	files := map[string]string{"pg_hba.conf": "local all all trust\nlocal replication all trust\n", "pg_ident.conf": ""}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(s.dir, runName, name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	if a := p.account; a != nil { // it goes through the directory, and changes nothing in it
		if err := errors.Join(os.Lchown(s.dir, -1, a.gid), os.Chmod(s.dir, 0o710)); err != nil {
			return nil, err
		}
		for _, name := range []string{runName, spaceName, runName + "/pg_hba.conf", runName + "/pg_ident.conf"} {
			if err := os.Lchown(filepath.Join(s.dir, name), a.uid, a.gid); err != nil {
				return nil, err
			}
		}
	}
	return s, nil
}

// keep lets the directory stay when the drill is over.
func (s *scratch) keep() error {
	return errors.Join(os.WriteFile(filepath.Join(s.dir, keptName), nil, 0o600), s.lock.Close())
}

// remove ends what still works in the directory, and removes it.
func (s *scratch) remove() error {
	err := clear(s.dir)
	if s.lock != nil {
		err = errors.Join(err, s.lock.Close())
	}
	return err
}

// gone is how long what works in a directory may take to notice that it is to end.
const gone = 10 * time.Second

// clear removes the scratch directory dir. What fetches WAL ahead ends by itself once its directory has gone; whatever else a drill has started there, or is slow to
// end, is killed.
func clear(dir string) error {
	var err error
	for deadline := time.Now().Add(gone); ; time.Sleep(20 * time.Millisecond) {
		err = removeAll(dir)
		left := startedFor(dir)
		if err == nil && len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			break
		}
	}
	for _, pid := range startedFor(dir) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	for deadline := time.Now().Add(gone); len(startedFor(dir)) > 0 && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
	}
	return removeAll(dir)
}

// removeAll removes dir, the lock last: as long as anything is left the next drill knows by it what the directory is.
func removeAll(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		switch e.Name() {
		case lockName:
		case dataName:
			err = errors.Join(err, removeInParallel(filepath.Join(dir, dataName)))
		default:
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	if err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// removeInParallel removes what is in dir by several at once: to give back the memory of what was written takes the kernel a while.
func removeInParallel(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for _, e := range entries {
		g.Go(func() error { return os.RemoveAll(filepath.Join(dir, e.Name())) })
	}
	return errors.Join(g.Wait(), os.RemoveAll(dir))
}

// mark is the variable in the environment of what a drill starts that names its scratch directory.
const mark = "DRILL_OF_HOLDFAST"

// startedFor lists the processes that a drill in dir has started, and what these have; none where there is no /proc. Those that PostgreSQL's first process forks do
// not show it: they end with that.
func startedFor(dir string) (pids []int) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		env, err := os.ReadFile(filepath.Join("/proc", e.Name(), "environ")) // of a dead one it is empty
		if err == nil && slices.ContainsFunc(bytes.Split(env, []byte{0}), func(v []byte) bool { return string(v) == mark+"="+dir }) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// markedName is a file of a scratch directory: the id of what the archive has of the restore into it, for retention to see.
const markedName = "restore"

// markOf returns that id; "" where there is none.
func markOf(dir string) string {
	f, err := os.OpenFile(filepath.Join(dir, markedName), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer f.Close() // only read
	const most = 64
	id, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil || len(id) == most || strings.Trim(string(id), "abcdefghijklmnopqrstuvwxyz0123456789") != "" {
		return ""
	}
	return string(id)
}

// Clear removes what drills and other copies below dir left that did not come to their end, and says so: also what the archive has of their restores, so that retention
// need not wait until that is out of date. It may be in another archive. Whoever makes a copy calls it before Decide, which looks at the room there is.
func Clear(ctx context.Context, a *archive.Archive, dir string, log *slog.Logger) {
	swept, err := Sweep(ctx, dir, func(ctx context.Context, mark string) {
		if err := a.UnmarkRestore(ctx, mark); err != nil && !errors.Is(err, fs.ErrNotExist) {
			log.Warn("what a drill that did not come to its end left in the archive for retention to see stays for now: " + err.Error())
		}
	})
	for _, dir := range swept {
		log.Info("removed " + dir + ", which a drill had left that did not come to its end")
	}
	if err != nil {
		log.Warn("what drills left that did not come to their end is not all removed: " + err.Error())
	}
}

// Sweep removes what drills below dir left that did not come to their end, and returns the directories. Those of drills at work, and those that were kept, stay. forget is
// called with the id of what a restore into such a directory left in its archive.
func Sweep(ctx context.Context, dir string, forget func(ctx context.Context, mark string)) (removed []string, err error) {
	found, err := filepath.Glob(filepath.Join(escape(dir), prefix+"*"))
	if err != nil {
		return nil, err
	}
	slices.Sort(found)
	var errs []error
	for _, d := range found {
		if ctx.Err() != nil {
			return removed, errors.Join(append(errs, context.Cause(ctx))...)
		}
		dead, lock := isDead(d)
		if !dead {
			continue
		}
		if mark := markOf(d); mark != "" {
			forget(ctx, mark)
		}
		if err := clear(d); err != nil {
			errs = append(errs, err)
		} else {
			removed = append(removed, d)
		}
		_ = lock.Close() // it was only held
	}
	return removed, errors.Join(errs...)
}

// escape makes dir a pattern of filepath.Glob that matches nothing else.
func escape(dir string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(dir)
}

// isDead reports whether d is the directory of a drill that is no more, and holds its lock then.
func isDead(d string) (bool, *os.File) {
	if _, err := os.Lstat(filepath.Join(d, keptName)); !errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if info, err := os.Lstat(d); err != nil || !info.IsDir() {
		return false, nil
	}
	lock, err := os.OpenFile(filepath.Join(d, lockName), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil { // another user's, or one that is being made or removed this moment
		return false, nil
	}
	var stat unix.Stat_t
	if err := unix.Fstat(int(lock.Fd()), &stat); err != nil || int(stat.Uid) != os.Geteuid() { // another may have made it for us to remove
		_ = lock.Close() // it was only looked at
		return false, nil
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = lock.Close() // it was only looked at
		return false, nil
	}
	if content, err := os.ReadFile(lock.Name()); err != nil || len(content) == 0 { // about to be locked by who has made it
		_ = lock.Close() // it was only looked at
		return false, nil
	}
	return true, lock
}
