package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"time"

	"holdfast/internal/store"
)

// A Fence decides which of several hosts that are to make the same backup commits one. Each has a turn, and turns have names.
type Fence interface {
	// ID names the turn that is ours.
	ID() string
	// Ended reports whether id names an earlier turn: in that nothing can be committed any more.
	Ended(id string) bool
	// Seal is asked before the sentinel is put, its object's name and content given. Without an error it may be put, by this host and, from then on, by others.
	// final says that others may put it, also where there is an error: what it needs must stay.
	Seal(ctx context.Context, object string, content []byte) (final bool, err error)
}

// Fenced returns the same archive with drafts that become backups only where f lets them.
func (a *Archive) Fenced(f Fence) *Archive {
	c := *a
	c.fence = f
	return &c
}

// ended reports whether a push can make no backup any more, as its turn is over.
func (a *Archive) ended(p Push) bool {
	return a.fence != nil && p.Lease != "" && a.fence.Ended(p.Lease)
}

// sealTime bounds the put of a sentinel that others may put, too: it is not to be broken off.
const sealTime = 2 * time.Minute

// SealedError says of a draft that all of it is stored, and that it is for others to make it a backup, or to remove it.
type SealedError struct {
	Backup string
	Err    error
}

func (e *SealedError) Error() string {
	return fmt.Sprintf("%s is stored, and it is not known whether its sentinel is: %v", e.Backup, e.Err)
}

func (e *SealedError) Unwrap() error { return e.Err }

// Hint says how to go on.
func (e *SealedError) Hint() string {
	return "nothing of it is removed: the next backup-push that takes the lease, on whatever host, makes a backup of it; or run this one again"
}

// putSentinel stores the sentinel, where the fence lets it, and makes sure that the name was d's until then.
func (d *Draft) putSentinel(ctx context.Context) error {
	object := d.archive.sentinelName(d.name)
	if d.archive.fence != nil {
		final, err := d.archive.fence.Seal(ctx, object, d.sentinel)
		d.ending.Lock()
		d.final = final
		d.ending.Unlock()
		if err != nil && final {
			err = &SealedError{d.name, err}
		}
		if err != nil {
			return err
		}
		sealed, cancel := context.WithTimeout(context.WithoutCancel(ctx), sealTime)
		defer cancel()
		ctx = sealed
	}
	err := d.putDocument(ctx, object, d.sentinel)
	if err != nil && d.isFinal() {
		return &SealedError{d.name, err}
	}
	if err != nil {
		return err
	}
	// A process may have stood still before that put, for so long that another push took this one for dead, and removed what it had stored.
	var lost *InUseError
	if err := d.hold(ctx); errors.As(err, &lost) {
		return errors.Join(err, d.archive.takeBack(ctx, d.name, d.sentinel))
	}
	return nil
}

// isFinal reports whether others may put the sentinel.
func (d *Draft) isFinal() bool {
	d.ending.Lock()
	defer d.ending.Unlock()
	return d.final
}

// takeBack removes a sentinel that was put for nothing.
func (a *Archive) takeBack(ctx context.Context, name string, sentinel []byte) error {
	there, err := store.ReadFile(ctx, a.store, a.sentinelName(name), MaxSentinel)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && bytes.Equal(there, sentinel) {
		err = a.store.Delete(ctx, a.sentinelName(name))
	}
	return err
}

// Finish puts the sentinel that a draft was sealed with by another host, in the turn of its Fence that is called id, unless it is there. object and content are what
// Seal was given, and are not trusted. Where it must not be put any more, why says so: what the draft left is removed then, unless it is another's. host is the name
// of this one.
func (a *Archive) Finish(ctx context.Context, id, object string, content []byte, host string) (why string, err error) {
	name, ok := strings.CutSuffix(path.Base(object), sentinelSuffix)
	if !ok || CheckBackupName(name) != nil || object != a.sentinelName(name) {
		return fmt.Sprintf("%q is not what a backup ends with", object), nil
	}
	s, err := ParseSentinel(content)
	if err != nil {
		return "its sentinel cannot be read: " + err.Error(), nil
	}
	if sealed, err := CheckSeal(content); err != nil || !sealed {
		return "its sentinel is not as it was written", nil
	}
	there, err := store.ReadFile(ctx, a.store, object, MaxSentinel)
	switch {
	case err == nil && bytes.Equal(there, content):
		return "", nil
	case err == nil:
		return "there is another backup of that name", nil
	case !errors.Is(err, fs.ErrNotExist):
		return "", err
	}
	if why, err = a.sealedBy(ctx, id, name, s); err != nil || why != "" {
		return why, errors.Join(err, a.giveUp(ctx, id, name, host, why))
	}
	err = store.PutIfAbsent(ctx, a.store, object, bytes.NewReader(content))
	if errors.Is(err, fs.ErrExist) {
		return a.Finish(ctx, id, object, content, host)
	}
	if err != nil {
		return "", err
	}
	if why, err = a.sealedBy(ctx, id, name, s); err != nil || why == "" {
		return why, err
	}
	return why, errors.Join(a.takeBack(ctx, name, content), a.giveUp(ctx, id, name, host, why))
}

// giveUp removes what a draft that was begun in the turn id left, once it is known why it is to become no backup. What may not be removed stays: nobody's turn has to wait for
// that.
func (a *Archive) giveUp(ctx context.Context, id, name, host, why string) error {
	if why == "" {
		return nil
	}
	push, _, err := a.readPush(ctx, name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && push.Lease != id {
		return nil
	}
	if err != nil {
		return err
	}
	if err := a.sweep(ctx, name, host); !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return nil
}

// sealedBy says why a draft is not to become a backup; "" where it is whole, was begun in the turn id, and what it builds on is there.
func (a *Archive) sealedBy(ctx context.Context, id, name string, s *Sentinel) (why string, err error) {
	switch push, _, err := a.readPush(ctx, name); {
	case errors.Is(err, fs.ErrNotExist):
		return "what it had stored was removed meanwhile", nil
	case err != nil:
		return "", err
	case push.Lease != id:
		return "its name is another push's by now", nil
	}
	for range maxAncestors {
		if s.DeltaFrom == "" {
			return "", nil
		}
		if CheckBackupName(s.DeltaFrom) != nil {
			return fmt.Sprintf("it builds on %q, which is no name of a backup", s.DeltaFrom), nil
		}
		parent, err := a.Sentinel(ctx, s.DeltaFrom)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return s.DeltaFrom + ", which it builds on, was deleted meanwhile", nil
		case err != nil && a.damaged(ctx, s.DeltaFrom): // as it will be the next time
			return fmt.Sprintf("%s, which it builds on, is no backup any more: %v", s.DeltaFrom, err), nil
		case err != nil:
			return "", fmt.Errorf("look whether %s is still there: %w", s.DeltaFrom, err)
		case s.Parent != "" && s.Parent != parent.Sum:
			return s.DeltaFrom + ", which it builds on, was replaced meanwhile", nil
		}
		s = parent
	}
	return "what it builds on has no end", nil
}

// damaged reports whether a backup's sentinel can be had, and is none.
func (a *Archive) damaged(ctx context.Context, name string) bool {
	doc, err := store.ReadFile(ctx, a.store, a.sentinelName(name), MaxSentinel)
	if err == nil {
		_, err = ParseSentinel(doc)
		return err != nil
	}
	return false
}

// maxAncestors bounds how many backups one builds on.
const maxAncestors = 10_000
