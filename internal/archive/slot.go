package archive

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"holdfast/internal/store"
)

// ScheduleDir is where it is noted which slots of the schedule are done, as <job>/<slot>.json, and which were not done in time, as
// <job>/<slot>.absent.json; slots are written 20060102T150405Z.
const ScheduleDir = "holdfast/schedule/"

// A Slot is a job and an instant of its schedule. Of all hosts that have the schedule one does what is due then.
type Slot struct {
	Job string    // of the schedule: 1 to 40 of a-z, 0-9 and "-"
	At  time.Time // UTC, whole seconds
}

// slotTime is how the name of a slot's object ends, before what says which of them it is.
const slotTime = "20060102T150405Z"

// String returns s as ParseSlot reads it: backup@2026-11-21T03:00:00Z.
func (s Slot) String() string { return s.Job + "@" + s.At.UTC().Format(time.RFC3339) }

// ParseSlot reads what String returns, and nothing else.
func ParseSlot(text string) (Slot, error) {
	job, at, _ := strings.Cut(text, "@")
	t, err := time.Parse(time.RFC3339, at)
	s := Slot{job, t.UTC()}
	if err != nil || s.String() != text || len(job) < 1 || len(job) > 40 || strings.Trim(job, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return Slot{}, fmt.Errorf("%q is no slot of a schedule, such as backup@2026-11-21T03:00:00Z", text)
	}
	return s, nil
}

// object returns the name of the object that has suffix.
func (s Slot) object(suffix string) string {
	return ScheduleDir + s.Job + "/" + s.At.UTC().Format(slotTime) + suffix
}

// Suffixes of a slot's objects.
const (
	slotDone   = ".json"
	slotAbsent = ".absent.json"
)

// SlotRecord says by whom a slot was done, or told of as not done.
type SlotRecord struct {
	Host   string    `json:"host"` // as leases call it
	PID    int       `json:"pid"`
	At     time.Time `json:"at"`               // by the host's clock
	Backup string    `json:"backup,omitempty"` // that was made, or was found to do for it
}

// maxSlotRecord bounds such a document, in bytes.
const maxSlotRecord = 64 << 10

// ParseSlotRecord decodes a SlotRecord. Strings in it are not trusted to be names.
func ParseSlotRecord(b []byte) (*SlotRecord, error) {
	var r SlotRecord
	if len(b) > maxSlotRecord {
		return nil, fmt.Errorf("a record of a slot has more than %d bytes", maxSlotRecord)
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("read a record of a slot: %w", err)
	}
	return &r, nil
}

// InSlot returns the same archive with drafts whose sentinels say that they were made for s, so that a slot is done when its backup is there, and not otherwise.
func (a *Archive) InSlot(s Slot) *Archive {
	c := *a
	c.slot = s.String()
	return &c
}

// SlotDone says by whom s was done; nil where there is no record of it.
func (a *Archive) SlotDone(ctx context.Context, s Slot) (*SlotRecord, error) {
	return a.slotRecord(ctx, s.object(slotDone))
}

func (a *Archive) slotRecord(ctx context.Context, object string) (*SlotRecord, error) {
	b, err := store.ReadFile(ctx, a.store, object, maxSlotRecord)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r, err := ParseSlotRecord(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", object, err)
	}
	return r, nil
}

// How BackupInSlot looks for a backup: among those stored not long before its instant or later, and the newest, as clocks may differ.
const (
	slotEarly  = time.Hour
	slotNewest = 3
)

// BackupInSlot looks for a backup that was made for s, and returns its name and sentinel; "" where there is none. Only sentinels that the store dates later than an
// hour before the slot are read, and the newest ones. One that cannot be read was not made for it.
func (a *Archive) BackupInSlot(ctx context.Context, s Slot) (string, *Sentinel, error) {
	var all []Found
	for f, err := range a.Backups(ctx) {
		if err != nil {
			return "", nil, err
		}
		all = append(all, f)
	}
	slices.SortFunc(all, func(x, y Found) int { return y.Object.Modified.Compare(x.Object.Modified) })
	for i, f := range all {
		if i >= slotNewest && f.Object.Modified.Before(s.At.Add(-slotEarly)) {
			break
		}
		sentinel, err := a.Sentinel(ctx, f.Name)
		switch {
		case errors.Is(err, fs.ErrNotExist), err != nil && a.damaged(ctx, f.Name):
			continue
		case err != nil:
			return "", nil, fmt.Errorf("look whether %s was made for %s: %w", f.Name, s, err)
		case sentinel.Slot == s.String():
			return f.Name, sentinel, nil
		}
	}
	return "", nil, nil
}

// EndSlot notes that s is done. That it was noted already is no error. The records of the newest 64 slots of the job stay; where older ones cannot be removed they stay, too.
func (a *Archive) EndSlot(ctx context.Context, s Slot, r SlotRecord) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := store.PutIfAbsent(ctx, a.store, s.object(slotDone), bytes.NewReader(b)); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	a.sweepSlots(ctx, s.Job)
	return nil
}

// ClaimAbsence notes that s was not done in time, so that one host tells of it, and returns whether that is for who asks; else by whom it was claimed.
func (a *Archive) ClaimAbsence(ctx context.Context, s Slot, r SlotRecord) (ours bool, by *SlotRecord, err error) {
	b, err := json.Marshal(r)
	if err != nil {
		return false, nil, err
	}
	object := s.object(slotAbsent)
	err = store.PutIfAbsent(ctx, a.store, object, bytes.NewReader(b))
	if !errors.Is(err, fs.ErrExist) {
		return err == nil, nil, err
	}
	there, err := store.ReadFile(ctx, a.store, object, maxSlotRecord)
	if err != nil {
		return false, nil, err
	}
	if bytes.Equal(there, b) { // the answer to our own put got lost
		return true, nil, nil
	}
	by, err = ParseSlotRecord(there)
	return false, by, err
}

// keptSlots is of how many slots of a job there are records.
const keptSlots = 64

// sweepSlots removes the records of a job's slots but for the newest. It is nothing that must succeed.
func (a *Archive) sweepSlots(ctx context.Context, job string) {
	slots := map[string][]string{} // objects by slot
	for o, err := range a.store.List(ctx, ScheduleDir+job+"/", "") {
		if err != nil {
			return
		}
		at, _, _ := strings.Cut(path.Base(o.Name), ".")
		if _, err := time.Parse(slotTime, at); err == nil && !o.IsDir() {
			slots[at] = append(slots[at], o.Name)
		}
	}
	var names []string
	for at := range slots {
		names = append(names, at)
	}
	slices.SortFunc(names, func(x, y string) int { return cmp.Compare(y, x) })
	var old []string
	for _, at := range names[min(keptSlots, len(names)):] {
		old = append(old, slots[at]...)
	}
	if len(old) > 0 {
		_ = store.DeleteMany(ctx, a.store, old) // see above
	}
}
