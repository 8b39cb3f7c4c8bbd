package archive

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"holdfast/internal/store"
)

const (
	// stalePush is how long after its last sign of life a push counts as dead.
	stalePush = 15 * time.Minute
	// longDead is how long after its last sign of life what a dead push left is swept. Other programs, whose only sign of life are
	// the objects they finish, count as dead after that and no sooner.
	longDead = 24 * time.Hour
)

// Push describes a backup-push at work; push.json in the backup's folder holds it until the backup is committed. That object is
// stored anew for a sign of life: when it was last, the store's clock says, the one clock that all hosts share.
type Push struct {
	Host    string    `json:"host"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"` // by the host's clock; for people, and to tell pushes apart

	// Which of all processes that ever had this number on a host of this name; empty where the system does not say.
	Boot      string `json:"boot,omitempty"`          // of the kernel: /proc/sys/kernel/random/boot_id
	Namespace string `json:"pid_namespace,omitempty"` // that PID counts in: /proc/self/ns/pid
	Ticks     string `json:"start_ticks,omitempty"`   // from boot to the start of the process: /proc/self/stat

	Lease string `json:"lease,omitempty"` // the turn of its Fence in which it was begun
}

// thisPush describes a push by this process.
func thisPush(host string) Push {
	p := Push{Host: host, PID: os.Getpid(), Started: time.Now().UTC()}
	boot, err1 := os.ReadFile("/proc/sys/kernel/random/boot_id")
	namespace, err2 := os.Readlink("/proc/self/ns/pid")
	_, ticks, err3 := processStat(p.PID)
	if errors.Join(err1, err2, err3) == nil {
		p.Boot, p.Namespace, p.Ticks = strings.TrimSpace(string(boot)), namespace, ticks
	}
	return p
}

// processStat returns the state of a process and when it began, in clock ticks after boot (proc_pid_stat(5)).
func processStat(pid int) (state, ticks string, err error) {
	self, err := os.Readlink("/proc/self")
	if err == nil && self != fmt.Sprint(os.Getpid()) {
		err = errors.New("/proc is of another namespace")
	}
	if err != nil {
		return "", "", err
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", "", err
	}
	// The second field is the command in parentheses, which may contain anything; the third is the state, the 22nd the start.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 20 {
		return "", "", fmt.Errorf("/proc/%d/stat is not understood", pid)
	}
	return fields[0], fields[19], nil
}

// gone reports whether the process of p is known to have ended. Only a process that shares its kernel and its namespace knows.
func (p Push) gone(me Push) bool {
	if p.Host != me.Host || p.PID <= 0 || p.Boot == "" || p.Boot != me.Boot || p.Namespace != me.Namespace {
		return false
	}
	if errors.Is(syscall.Kill(p.PID, 0), syscall.ESRCH) {
		return true
	}
	state, ticks, err := processStat(p.PID) // of others it may be hidden
	return err == nil && (ticks != p.Ticks || state == "Z" || state == "X")
}

// readPush reads who is writing a backup; fs.ErrNotExist where there is no marker of ours.
func (a *Archive) readPush(ctx context.Context, name string) (p Push, modified time.Time, err error) {
	o, err := a.store.Stat(ctx, a.markerName(name))
	if err != nil {
		return p, modified, err
	}
	b, err := store.ReadFile(ctx, a.store, o.Name, maxDocument)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		err = fmt.Errorf("read who is writing %s: %s: %w", name, o.Name, err)
	default:
		if err = json.Unmarshal(b, &p); err == nil && (p.Host == "" || p.Started.IsZero()) {
			err = errors.New("it is not what a push of ours writes")
		}
		if err != nil {
			err = &MarkerError{name, o.Name, err}
		}
	}
	return p, o.Modified, err
}

// MarkerError says that it is not known who is writing a backup, if anybody is: push.json is there, and is damaged. Whoever knows that nobody is may remove it.
type MarkerError struct {
	Backup string
	Object string // from the root of the archive
	Err    error
}

func (e *MarkerError) Error() string {
	return fmt.Sprintf("read who is writing %s: %s: %v", e.Backup, e.Object, e.Err)
}

func (e *MarkerError) Unwrap() error { return e.Err }

// Hint says how to go on.
func (e *MarkerError) Hint() string {
	return fmt.Sprintf("that object is damaged: `holdfast st cat %[1]s`. Once you know that no backup-push is at work on %[2]s: `holdfast st rm %[1]s`. The next job then goes on, and "+
		"`holdfast delete garbage` removes what else lies there", e.Object, e.Backup)
}

func (a *Archive) markerName(backup string) string { return a.folder(backup) + "push.json" }

// now returns the time by the store's clock: when an object that is put now counts as modified.
func (a *Archive) now(ctx context.Context) (time.Time, error) {
	name := "holdfast/clock-" + rand.Text()
	if err := a.store.Put(ctx, name, strings.NewReader("")); err != nil {
		return time.Time{}, err
	}
	o, err := a.store.Stat(ctx, name)
	return o.Modified, errors.Join(err, a.store.Delete(ctx, name))
}

// InUseError says that a backup of that name exists or is being written.
type InUseError struct {
	Backup string
	Reason string
	Advice string
}

func (e *InUseError) Error() string { return fmt.Sprintf("backup %s %s", e.Backup, e.Reason) }

// Hint says how to go on.
func (e *InUseError) Hint() string { return e.Advice }

// Begin claims name for a new backup. A backup that exists under that name, or a push that is writing it, is an
// *InUseError; what a dead push left behind under that name is removed.
func (a *Archive) Begin(ctx context.Context, name, host string) (*Draft, error) {
	if err := CheckBackupName(name); err != nil {
		return nil, err
	}
	d, err := a.newDraft(name, thisPush(host))
	if err != nil {
		return nil, err
	}
	left, err := a.left(ctx, d)
	if err != nil {
		return nil, err
	}
	if err = d.take(ctx, slices.Contains(left, d.markerName())); err == nil && len(left) > 0 {
		// It may have been alive after all, and have become a backup before it could learn that the name is d's.
		switch whole, err := a.exists(ctx, a.sentinelName(name)); {
		case err != nil:
			return nil, err
		case whole:
			return nil, &InUseError{name, "was made by another push meanwhile", "nothing was removed: see whether that backup restores"}
		}
		if err = d.erase(ctx, slices.DeleteFunc(left, func(n string) bool { return n == d.markerName() })); err != nil {
			err = fmt.Errorf("remove what a broken-off push of %s left: %w", name, err)
		}
	}
	if err == nil {
		return d, nil
	}
	// The claim may have been stored all the same.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if mine, _ := d.mine(ctx); mine {
		err = errors.Join(err, d.Abort(ctx))
	}
	return nil, err
}

func (a *Archive) newDraft(name string, p Push) (*Draft, error) {
	if a.fence != nil {
		p.Lease = a.fence.ID()
	}
	marker, err := json.Marshal(p)
	return &Draft{archive: a, name: name, push: p, marker: marker}, err
}

// left lists what a dead push left under d's name. A backup, or a push that may be alive, is an *InUseError.
func (a *Archive) left(ctx context.Context, d *Draft) ([]string, error) {
	switch taken, err := a.exists(ctx, a.sentinelName(d.name)); {
	case err != nil:
		return nil, err
	case taken:
		return nil, &InUseError{d.name, "exists already",
			"its name is that of the WAL segment it starts in: try again after a checkpoint in the next segment " +
				"(`SELECT pg_switch_wal()` and `CHECKPOINT` on the primary)"}
	}
	var names []string
	var newest time.Time
	for o, err := range store.Walk(ctx, a.store, a.folder(d.name)) {
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", a.folder(d.name), err)
		}
		names = append(names, o.Name)
		if o.Modified.After(newest) {
			newest = o.Modified
		}
	}
	if len(names) == 0 {
		return nil, nil
	}
	who, patience := "by another program", longDead
	push, beat, err := a.readPush(ctx, d.name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		beat = newest
	case err != nil:
		return nil, err
	case push.gone(d.push), a.ended(push):
		return names, nil
	default:
		who, patience = fmt.Sprintf("by process %d on %s since %s", push.PID, push.Host, push.Started.Format(time.RFC3339)), stalePush
	}
	now, err := a.now(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask the store for the time: %w", err)
	}
	if silent := now.Sub(beat); silent <= patience {
		return nil, &InUseError{d.name, "is being written " + who,
			fmt.Sprintf("wait for it to end; should it be dead, try again in %s, or after the next WAL segment",
				(patience-max(silent, 0)).Round(time.Second)+time.Second)}
	}
	return names, nil
}

// take stores d's marker; over that of a dead push if there is one, so that at no moment there is none. Of several that do that at
// once the last one has the name, and the others learn of it from hold.
func (d *Draft) take(ctx context.Context, over bool) error {
	if over {
		return d.archive.store.Put(ctx, d.markerName(), bytes.NewReader(d.marker))
	}
	return d.putDocument(ctx, d.markerName(), d.marker)
}

// mine reports whether the marker in the store is that of d.
func (d *Draft) mine(ctx context.Context) (bool, error) {
	b, err := store.ReadFile(ctx, d.archive.store, d.markerName(), maxDocument)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read who is writing %s: %w", d.name, err)
	}
	return bytes.Equal(b, d.marker), nil
}

// hold returns an *InUseError when d lost its name: another push took it for dead, or somebody removed its marker.
func (d *Draft) hold(ctx context.Context) error {
	mine, err := d.mine(ctx)
	if err == nil && !mine {
		err = &InUseError{d.name, "was given up: push.json is gone or another push's, which took this one for dead", "take the backup again"}
	}
	return err
}

func (d *Draft) markerName() string { return d.archive.markerName(d.name) }

// atOnce is how many objects are removed before it is asked again whose the name is.
const atOnce = 100

// erase removes objects below d's name, as long as that is d's: another push that takes it stores objects that are called the same. What cannot be removed keeps none of
// the others from it. An *InUseError says that the name is another's by now.
func (d *Draft) erase(ctx context.Context, names []string) error {
	var errs []error
	for some := range slices.Chunk(names, atOnce) {
		if err := d.hold(ctx); err != nil {
			return errors.Join(append(errs, err)...)
		}
		errs = append(errs, store.DeleteMany(ctx, d.archive.store, some))
	}
	return errors.Join(append(errs, d.hold(ctx))...)
}

// Beat leaves a sign of life, which keeps others from taking the push for dead. Call it about once a minute, also while Commit is at
// work. An *InUseError says that it came too late: the name is another push's now.
func (d *Draft) Beat(ctx context.Context) error {
	d.ending.Lock()
	defer d.ending.Unlock()
	if d.ended {
		return nil
	}
	if err := d.hold(ctx); err != nil {
		return err
	}
	return d.archive.store.Put(ctx, d.markerName(), bytes.NewReader(d.marker))
}

// SweepDead removes what pushes left that died more than a day ago, or whose turn by the archive's Fence has ended, and describes each. Only folders with a marker of ours and without a
// sentinel count: in others another program may be at work. One that cannot be removed keeps no other from it.
func (a *Archive) SweepDead(ctx context.Context, host string) (removed []string, err error) {
	var folders []string
	whole := map[string]bool{}
	for o, err := range a.store.List(ctx, a.backups, "") {
		if err != nil {
			return nil, fmt.Errorf("list backups: %w", err)
		}
		name, sentinel := strings.CutSuffix(path.Base(o.Name), sentinelSuffix)
		if sentinel {
			whole[name] = true
		} else if o.IsDir() && CheckBackupName(name) == nil {
			folders = append(folders, name)
		}
	}
	var now time.Time
	var errs []error
	for _, name := range folders {
		if whole[name] {
			continue
		}
		push, beat, err := a.readPush(ctx, name)
		if err == nil && now.IsZero() {
			now, err = a.now(ctx)
		}
		if errors.Is(err, fs.ErrNotExist) || (err == nil && now.Sub(beat) <= longDead && !a.ended(push)) {
			continue
		}
		if err == nil {
			err = a.sweep(ctx, name, host)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, fmt.Sprintf("%s, begun at %s by process %d on %s", name, push.Started.Format(time.RFC3339), push.PID, push.Host))
	}
	return removed, errors.Join(errs...)
}

// sweep takes a dead push's name and gives it up with all that lies there.
func (a *Archive) sweep(ctx context.Context, name, host string) error {
	d, err := a.newDraft(name, thisPush(host))
	if err == nil {
		err = d.take(ctx, true)
	}
	if err == nil {
		err = d.Abort(ctx)
	}
	if err != nil {
		err = fmt.Errorf("remove what a broken-off push of %s left: %w", name, err)
	}
	return err
}
