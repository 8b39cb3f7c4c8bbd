package archive

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"time"

	"holdfast/internal/pg/wal"
	"holdfast/internal/store"
)

// RestoreDir is where restores at work leave signs of life.
const RestoreDir = "holdfast/restores/"

// OwnDir is where what lies that WAL-G does not know, but for what is in backups' folders.
const OwnDir = "holdfast/"

// OwnerName is the object that says whose archive this is.
const OwnerName = ownerName

// Tombstone is a record in TombstoneDir: what retention has condemned, and removes once PurgeAfter has passed; or, where Revokes is set, which of that was
// taken back.
type Tombstone struct {
	RecordHead
	PurgeAfter time.Time         `json:"purge_after,omitzero"`
	Request    string            `json:"request,omitempty"`   // the command that named what is to go; "" for a policy, which may think better of it
	Why        string            `json:"why,omitempty"`       // for people
	Backups    []string          `json:"backups,omitempty"`   // names; in a revocation none means all
	Sentinels  map[string]string `json:"sentinels,omitempty"` // SHA-256 of each backup's sentinel, by name: another backup of that name is not meant
	WAL        []CondemnedWAL    `json:"wal,omitempty"`

	Revokes []string `json:"revokes,omitempty"` // names of the records of which Backups are taken back
}

// CondemnedWAL is a stretch of a timeline's WAL: all before a segment, or from one segment to another.
type CondemnedWAL struct {
	Timeline wal.Timeline `json:"timeline"`
	Before   string       `json:"before,omitempty"` // name of a segment, which stays
	First    string       `json:"first,omitempty"`
	Last     string       `json:"last,omitempty"`
}

// Hold is a record in HoldDir: what must not go, whatever a policy or a command says. With Revokes it takes another one back.
type Hold struct {
	RecordHead
	Backup string    `json:"backup,omitempty"` // a backup that must restore, to its own end
	From   time.Time `json:"from,omitzero"`    // or all moments from here
	To     time.Time `json:"to,omitzero"`      // to here
	Until  time.Time `json:"until,omitzero"`   // the hold ends by itself; zero: never
	Reason string    `json:"reason,omitempty"`

	Revokes string `json:"revokes,omitempty"` // name of the record that is taken back
}

// RestoreMark says what a restore uses. It is stored anew every minute while the restore is at work, and once more when WAL is to be replayed over what
// it has brought back: PostgreSQL fetches that by and by.
type RestoreMark struct {
	RecordHead
	Host      string       `json:"host"`
	PID       int          `json:"pid"`
	Backups   []string     `json:"backups"`             // the backup and all it builds on
	Timeline  wal.Timeline `json:"timeline"`            // of the backup
	FirstWAL  string       `json:"first_wal,omitempty"` // replaying begins with this segment
	Replaying bool         `json:"replaying,omitempty"` // the data is in place, WAL is being replayed
}

// How long a sign of life counts.
const (
	StaleRestore = stalePush      // of a restore at work
	StaleReplay  = 24 * time.Hour // of one whose WAL is being replayed: nobody says when it has ended
)

// InUse reports whether the restore is at work at the time now of the store's clock, having given its last sign of life at beat.
func (m *RestoreMark) InUse(now, beat time.Time) bool {
	if m.Replaying {
		return now.Sub(beat) <= StaleReplay
	}
	return now.Sub(beat) <= StaleRestore
}

// MarkRestore stores m under id, or once more for a sign of life.
func (a *Archive) MarkRestore(ctx context.Context, id string, m *RestoreMark) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return a.store.Put(ctx, RestoreDir+id+recordSuffix, bytes.NewReader(b))
}

// UnmarkRestore removes the mark of a restore that has ended.
func (a *Archive) UnmarkRestore(ctx context.Context, id string) error {
	return a.RemoveRecord(ctx, RestoreDir+id+recordSuffix)
}

// NewRestoreID returns an id for MarkRestore.
func NewRestoreID() string { return strings.ToLower(rand.Text()) }

// Now returns the time by the store's clock, the one that all hosts share: when an object that is put now counts as modified.
func (a *Archive) Now(ctx context.Context) (time.Time, error) { return a.now(ctx) }

// Unfinished is a folder among the backups without a sentinel: a push is at work there, or was.
type Unfinished struct {
	Name  string
	Push  *Push     // nil where another program is at work, or a push of ours that was being removed
	Beat  time.Time // the last sign of life, by the store's clock
	Gone  bool      // its process is known to have ended
	Bytes int64     // that lie there
	Count int       // of objects
}

// Alive reports whether something may be at work there at the time now of the store's clock.
func (u *Unfinished) Alive(now time.Time) bool {
	if u.Push == nil {
		return now.Sub(u.Beat) <= longDead
	}
	return !u.Gone && now.Sub(u.Beat) <= stalePush
}

// LongDead reports whether nothing has been at work there for so long that what was left may be removed.
func (u *Unfinished) LongDead(now time.Time) bool { return now.Sub(u.Beat) > longDead }

// Unfinished lists what was begun and is no backup. host is the name of this one.
func (a *Archive) Unfinished(ctx context.Context, host string) ([]Unfinished, error) {
	var folders []string
	whole := map[string]bool{}
	for o, err := range a.store.List(ctx, a.backups, "") {
		if err != nil {
			return nil, fmt.Errorf("list backups: %w", err)
		}
		if name, sentinel := strings.CutSuffix(path.Base(o.Name), sentinelSuffix); sentinel {
			whole[name] = true
		} else if o.IsDir() && CheckBackupName(name) == nil {
			folders = append(folders, name)
		}
	}
	me := thisPush(host)
	var all []Unfinished
	for _, name := range folders {
		if whole[name] {
			continue
		}
		u := Unfinished{Name: name}
		for o, err := range store.Walk(ctx, a.store, a.folder(name)) {
			if err != nil {
				return nil, fmt.Errorf("list %s: %w", a.folder(name), err)
			}
			u.Bytes += o.Size
			u.Count++
			if o.Modified.After(u.Beat) {
				u.Beat = o.Modified
			}
		}
		push, beat, err := a.readPush(ctx, name)
		switch {
		case err == nil:
			u.Push, u.Beat, u.Gone = &push, beat, push.gone(me)
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		case u.Count == 0:
			continue // it was removed meanwhile
		}
		all = append(all, u)
	}
	return all, nil
}

// RemoveSentinel ends a backup's existence; its other objects are for RemoveFolder. sum is the SHA-256 of the sentinel that is meant, "" for any: where
// another backup has taken the name the error is an *InUseError. A backup that is gone is no error.
func (a *Archive) RemoveSentinel(ctx context.Context, name, sum string) error {
	if sum != "" {
		s, err := a.Sentinel(ctx, name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case s.Sum != sum:
			return &InUseError{name, "is another backup of that name by now", "look at it with `holdfast backup-list --detail`"}
		}
	}
	return a.store.Delete(ctx, a.sentinelName(name))
}

// SentinelName returns the object that makes a backup.
func (a *Archive) SentinelName(name string) string { return a.sentinelName(name) }

// FolderOf lists the objects beside a backup's sentinel, push.json last: so that a removal that is cut short can be taken up again.
func (a *Archive) FolderOf(ctx context.Context, name string) ([]store.Object, error) {
	var all, marker []store.Object
	for o, err := range store.Walk(ctx, a.store, a.folder(name)) {
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", a.folder(name), err)
		}
		if o.Name == a.markerName(name) {
			marker = append(marker, o)
		} else {
			all = append(all, o)
		}
	}
	return append(all, marker...), nil
}

// TakeDead claims the name of a push that is dead, so that its owner, should it come back, learns of that, and removes what it left. Where it is alive the
// error is an *InUseError.
func (a *Archive) TakeDead(ctx context.Context, name, host string) error {
	d, err := a.newDraft(name, thisPush(host))
	if err != nil {
		return err
	}
	left, err := a.left(ctx, d)
	if err != nil || len(left) == 0 {
		return err
	}
	return a.sweep(ctx, name, host)
}

// Frozen returns what of a backup lies in a class of storage that must be thawed before it can be read.
func (a *Archive) Frozen(ctx context.Context, name string) (frozen []store.Object, err error) {
	for o, err := range store.Walk(ctx, a.store, a.folder(name)) {
		if err == nil && o.Frozen != "" {
			o, err = a.store.Stat(ctx, o.Name) // it may have been thawed since it was put there
		}
		if err != nil {
			return nil, fmt.Errorf("look whether %s can be read: %w", name, err)
		}
		if o.Frozen != "" {
			frozen = append(frozen, o)
		}
	}
	return frozen, nil
}
