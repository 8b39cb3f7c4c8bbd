package catalog

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/pg/wal"
)

// Kind says what ends a recovery.
type Kind string

// The kinds of targets, in the words of the flags that ask for them.
const (
	None      Kind = ""          // no recovery is asked for
	Latest    Kind = "latest"    // the end of the archived WAL
	Immediate Kind = "immediate" // as soon as the backup is consistent
	AtTime    Kind = "time"
	AtLSN     Kind = "lsn"
	AtXID     Kind = "xid"
	AtName    Kind = "name" // of a restore point, pg_create_restore_point
)

// Target is a moment to recover to.
type Target struct {
	Kind     Kind
	Time     time.Time    // of AtTime
	LSN      wal.LSN      // of AtLSN
	XID      uint64       // of AtXID
	Name     string       // of AtName
	Timeline wal.Timeline // to recover along; 0 is the one that the cluster is on, see Catalog.Current
	Highest  bool         // with Timeline 0: along the one with the highest number, as PostgreSQL means it by latest
}

// String says what the target is, for people.
func (t Target) String() string {
	switch t.Kind {
	case None:
		return "the backup as it is"
	case Latest:
		return "the end of the WAL"
	case Immediate:
		return "the end of the backup"
	case AtTime:
		return FormatTime(t.Time)
	case AtLSN:
		return "LSN " + t.LSN.String()
	case AtXID:
		return "transaction " + strconv.FormatUint(t.XID, 10)
	case AtName:
		return fmt.Sprintf("restore point %q", t.Name)
	}
	return string(t.Kind)
}

// FormatTime prints a time in UTC and, where that differs, in local time.
func FormatTime(t time.Time) string {
	const form = "2006-01-02 15:04:05.999999 MST"
	utc, local := t.UTC().Format(form), t.Local().Format("2006-01-02 15:04:05.999999 -0700 MST")
	if _, offset := t.Local().Zone(); offset == 0 {
		return utc
	}
	return utc + " (here " + local + ")"
}

// timeForms are RFC 3339 and what PostgreSQL prints, each with its zone.
var timeForms = []string{time.RFC3339Nano, "2006-01-02 15:04:05.999999999Z07:00", "2006-01-02 15:04:05.999999999Z07", "2006-01-02 15:04:05.999999999Z0700"}

// ParseTime reads a moment as RFC 3339 has it or as PostgreSQL prints it ("2026-05-06 07:08:09.12+02"). A time without a
// zone is refused: it would mean another moment on another host.
func ParseTime(s string) (time.Time, error) {
	asked := strings.TrimSpace(s)
	for _, zone := range []string{" UTC", " GMT", " Z"} {
		if bare, ok := strings.CutSuffix(asked, zone); ok {
			asked = bare + "Z"
		}
	}
	if i := strings.LastIndex(asked, " "); i > 0 && i+1 < len(asked) && (asked[i+1] == '+' || asked[i+1] == '-') {
		asked = asked[:i] + asked[i+1:] // "12:00:00 +02"
	}
	for _, form := range timeForms {
		if t, err := time.Parse(form, asked); err == nil {
			return t, nil
		}
	}
	for _, form := range []string{"2006-01-02T15:04:05.999999999", "2006-01-02 15:04:05.999999999", "2006-01-02 15:04", "2006-01-02"} {
		if _, err := time.Parse(form, asked); err == nil {
			return time.Time{}, fmt.Errorf("time %q has no zone: write its offset from UTC behind it, as in 2026-05-06 07:08:09+02 or 2026-05-06T05:08:09Z", s)
		}
	}
	return time.Time{}, fmt.Errorf("time %q is not understood: write it as 2026-05-06 07:08:09.5+02 or 2026-05-06T05:08:09.5Z", s)
}

// Choice is the backup to restore for a target, and the log to replay over it.
type Choice struct {
	Backup *Backup
	Chain  []*Backup // what it is put together from: itself and, where it is a delta, its ancestors down to a full backup
	Target Target    // with the timeline filled in
	Path   Path      // leads to the target's timeline, to the backup's own where no recovery is asked for

	// Current says why the target's timeline is the one it is, and which others there are; nil where it was asked for, or no recovery was.
	Current *Current

	// Passed is a newer backup that was not taken as the newest one, since it is not of the cluster's line; nil where there is none.
	Passed *Backup
}

// Choose picks the backup for a target. name is that of a backup, or "" or LATEST for the best one: for a time or an LSN
// the newest backup that was finished by then, for anything else the newest. A backup counts only where it lies on the
// target's timeline or, before the branch, on an ancestor of it. The newest one where no recovery is asked for: see Catalog.newest.
//
// Where no timeline is asked for it is the one that the cluster is on; for a backup given by name that does not lie on the way to it, the likeliest of
// those that grew out of it.
func (c *Catalog) Choose(name string, t Target) (Choice, error) {
	if name == "LATEST" {
		name = ""
	}
	if name != "" {
		b, err := c.Find(name)
		if err != nil {
			return Choice{}, err
		}
		return c.chooseFor(b, t)
	}
	if t.Kind == None {
		b, passed, err := c.newest()
		if err != nil {
			return Choice{}, err
		}
		choice, err := c.chooseFor(b, t)
		choice.Passed = passed
		return choice, err
	}
	asked := t
	var current *Current
	switch {
	case t.Timeline == 0 && t.Highest:
		t.Timeline = c.Timelines()[0]
	case t.Timeline == 0:
		found := c.Current(c.Evidence)
		current, t.Timeline = &found, found.Timeline
	}
	p, err := c.PathTo(t.Timeline)
	if err != nil {
		return Choice{}, err
	}
	reasons := make([]string, 0, 4)
	for i := range slices.Backward(c.Backups) {
		b := &c.Backups[i]
		chain, err := c.usable(b, p, t)
		if err == nil {
			err = b.errCondemned()
		}
		if err == nil {
			return Choice{Backup: b, Chain: chain, Target: t, Path: p, Current: current}, nil
		}
		if len(reasons) < cap(reasons) {
			reasons = append(reasons, b.Name+" "+err.Error())
		}
	}
	return Choice{}, c.none(asked, t, reasons)
}

// newest returns the backup that is meant by the newest one where no recovery is asked for. It is that of Latest, unless that one is a stray clone's: it
// does not lie on the way to the timeline that the cluster is on, and it is more than a guess that the cluster is on that, because the server says so or
// backups of it were taken there. Then it is the newest on that way, and Latest's is passed.
func (c *Catalog) newest() (b, passed *Backup, err error) {
	latest, err := c.Latest()
	if err != nil || c.Evidence.WAL == nil { // nobody has looked
		return latest, nil, err
	}
	current := c.Current(c.Evidence)
	if current.Unknown || current.Timeline != c.Evidence.Server && current.backups == 0 {
		return latest, nil, nil
	}
	p, err := c.PathTo(current.Timeline)
	if err != nil || latest.on(p) {
		return latest, nil, nil // who restores a backup alone does not need the history
	}
	for i := range slices.Backward(c.Backups) {
		if b := &c.Backups[i]; b.Condemned == nil && b.on(p) && b.sameCluster(latest) {
			return b, latest, nil
		}
	}
	return latest, nil, nil
}

// on reports whether b was finished on the way along p, as far as it tells.
func (b *Backup) on(p Path) bool {
	if b.Sentinel == nil { // LATEST must not silently mean an older one
		_, on := p.Leg(b.Timeline())
		return on
	}
	return b.usable(p, Target{}) == nil
}

// sameCluster reports whether nothing says that b and other are of different clusters.
func (b *Backup) sameCluster(other *Backup) bool {
	if b.Sentinel == nil || other.Sentinel == nil || b.Sentinel.SystemIdentifier == nil || other.Sentinel.SystemIdentifier == nil {
		return true
	}
	return *b.Sentinel.SystemIdentifier == *other.Sentinel.SystemIdentifier
}

// none makes the error that no backup will do for t.
func (c *Catalog) none(asked, t Target, reasons []string) error {
	e := &NoBackupError{Asked: fmt.Sprintf("%s on timeline %d", t, t.Timeline), Reason: "the archive has no backups"}
	if len(c.Backups) == 0 {
		return e
	}
	e.Reason = strings.Join(reasons, "; ")
	if len(c.Backups) > len(reasons) {
		e.Reason += fmt.Sprintf("; nor will one of the %d older ones do", len(c.Backups)-len(reasons))
	}
	if asked.Timeline != 0 {
		return e
	}
	for _, other := range c.Timelines() {
		p, err := c.PathTo(other)
		if err != nil || other == t.Timeline {
			continue
		}
		for i := range slices.Backward(c.Backups) {
			b := &c.Backups[i]
			if _, err := c.usable(b, p, t); err == nil {
				e.Advice = fmt.Sprintf("backup %s would do on another timeline: --target-timeline %d", b.Name, other)
				return e
			}
		}
	}
	return e
}

// chooseFor fills in the timeline for a backup that is given.
func (c *Catalog) chooseFor(b *Backup, t Target) (Choice, error) {
	if b.Sentinel == nil && t.Kind == None {
		return Choice{}, fmt.Errorf("restore %s: %w", b.Name, b.Err)
	}
	if b.Sentinel != nil {
		chain, err := c.Chain(b)
		if err != nil {
			return Choice{}, err
		}
		if t.Kind == None {
			return Choice{Backup: b, Chain: chain, Path: Path{{Timeline: b.Timeline()}}}, nil
		}
	}
	along := []wal.Timeline{t.Timeline}
	var current *Current
	switch {
	case t.Timeline == 0 && t.Highest:
		along = slices.DeleteFunc(c.Timelines(), func(other wal.Timeline) bool { return other < b.Timeline() })
	case t.Timeline == 0:
		found := c.Current(c.Evidence)
		if leads := func(to wal.Timeline) bool { p, err := c.PathTo(to); return err == nil && b.usable(p, t) == nil }; !leads(found.Timeline) {
			found = c.current(c.Evidence, leads)
		}
		current, along = &found, []wal.Timeline{found.Timeline, b.Timeline()}
	}
	var because error
	for _, t.Timeline = range along {
		if t.Timeline == 0 { // no line leads over the backup
			continue
		}
		p, err := c.PathTo(t.Timeline)
		var chain []*Backup
		if err == nil {
			chain, err = c.usable(b, p, t)
		}
		if err == nil {
			return Choice{Backup: b, Chain: chain, Target: t, Path: p, Current: current}, nil
		}
		because = err // in the end that of the backup's own timeline, or of the one asked for
	}
	return Choice{}, &NoBackupError{Asked: t.String(), Reason: b.Name + " " + because.Error(), Advice: "leave the name away to have the right backup chosen"}
}

// usable returns what b is put together from, or an error where that lacks something or does not do for t along p.
func (c *Catalog) usable(b *Backup, p Path, t Target) ([]*Backup, error) {
	if err := b.usable(p, t); err != nil {
		return nil, err
	}
	return c.chain(b)
}

// usable returns nil when recovery from the backup along p reaches t, as far as the backup itself tells.
func (b *Backup) usable(p Path, t Target) error {
	if b.Sentinel == nil {
		return fmt.Errorf("cannot be read: %w", b.Err)
	}
	leg, on := p.Leg(b.Timeline())
	if !on {
		return fmt.Errorf("is of timeline %d, which is no ancestor of timeline %d", b.Timeline(), p.Timeline())
	}
	finish, ok := b.FinishLSN()
	switch {
	case leg.End != 0 && !ok:
		return fmt.Errorf("does not say whether it was finished before timeline %d was left at %s", leg.Timeline, leg.End)
	case leg.End != 0 && finish > leg.End:
		return fmt.Errorf("was finished at %s, after timeline %d had been left at %s", finish, leg.Timeline, leg.End)
	case t.Kind == AtTime && b.Created().After(t.Time):
		return fmt.Errorf("was finished at %s, after that", FormatTime(b.Created()))
	case t.Kind == AtLSN && !ok:
		return errors.New("does not say at which LSN it was finished")
	case t.Kind == AtLSN && finish > t.LSN:
		return fmt.Errorf("was finished at %s, behind that", finish)
	}
	return nil
}
