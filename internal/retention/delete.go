package retention

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"holdfast/internal/catalog"
)

// Modifier is the word between a command of WAL-G's and what it is about.
type Modifier string

// The modifiers.
const (
	Plain    Modifier = ""
	Full     Modifier = "FULL"      // full backups count
	FindFull Modifier = "FIND_FULL" // what is found stands for the full backup it builds on
	Force    Modifier = "FORCE"
	Archives Modifier = "ARCHIVES"
	Backups  Modifier = "BACKUPS"
)

// ofADelta is how WAL-G says that what is to be left would need what goes.
const ofADelta = "%s is incremental and it's predecessors cannot be deleted. Consider FIND_FULL option."

// ErrNothing says that there is no backup for a command to go by, as WAL-G words it. It is no failure.
var ErrNothing = errors.New("No backup found for deletion")

// Moment is a time or the name of a backup.
type Moment struct {
	Time time.Time
	Name string
}

func (m Moment) String() string {
	if m.Name != "" {
		return m.Name
	}
	return m.Time.UTC().Format(time.RFC3339Nano)
}

// ParseMoment reads the name of a backup, or the beginning of one, or a time. A time without a zone is an error.
func ParseMoment(s string) (Moment, error) {
	if strings.HasPrefix(s, "base_") || strings.HasPrefix("base_", s) && s != "" {
		return Moment{Name: s}, nil
	}
	t, err := catalog.ParseTime(s)
	if err != nil {
		return Moment{}, fmt.Errorf("%q is neither the name of a backup, which begins with base_, nor a time: %w", s, err)
	}
	return Moment{Time: t}, nil
}

// asWALG is what the rules of WAL-G's commands share: the newest backups stay, from one on.
type asWALG struct {
	words string
}

func (r asWALG) String() string { return r.words }

func (asWALG) scope() scope { return scope{backups: true, wal: true} }

// keepFrom lets stay, of some backups, those that were made no earlier than from; the reasons name what that is.
func keepFrom(backups []*backup, from *backup, format string, args ...any) {
	what := fmt.Sprintf(format, args...)
	begun := false
	for _, b := range backups {
		if begun = begun || b == from; b == from {
			b.stays(continuous, ByRule, "it is %s", what)
		} else if begun {
			b.stays(continuous, ByRule, "it is newer than %s, %s", from.Name, what)
		}
	}
}

// root returns the full backup at the bottom of b's chain, or what is found of it that is the lowest.
func (b *backup) root() *backup {
	seen := map[*backup]bool{}
	for b.parent != nil && !seen[b] {
		seen[b] = true
		b = b.parent
	}
	return b
}

// unwantedBefore lets go what nothing lets stay.
func (j *judge) unwantedBefore(why string) {
	for _, b := range j.all {
		if len(b.keep) == 0 {
			b.goes = reason{NoLonger, why}
		}
	}
}

// stayWhole lets all of some backups stay.
func stayWhole(backups []*backup, why string) {
	for _, b := range backups {
		b.stays(continuous, ByRule, "%s", why)
	}
}

type retain struct {
	asWALG
	n     int
	mod   Modifier
	after *Moment
}

// Retain is `delete retain`: the n newest backups of each way that recovery can take stay, those of preceding clusters counted, and with after what was made then
// or later, too. Plain, the n-th must not be a delta; with FULL only full backups count; with FIND_FULL the n-th stands for the full backup it builds on. Where
// there are fewer nothing goes.
func Retain(n int, mod Modifier, after *Moment) (Rule, error) {
	if n < 1 {
		return nil, fmt.Errorf("retain %d: at least one backup is to stay", n)
	}
	if mod != Plain && mod != Full && mod != FindFull {
		return nil, fmt.Errorf("retain takes FULL or FIND_FULL, not %s", mod)
	}
	words := strings.Join(strings.Fields(fmt.Sprintf("delete retain %s %d", mod, n)), " ")
	if after != nil {
		words += " --after " + after.String()
	}
	return &retain{asWALG{words}, n, mod, after}, nil
}

func (r *retain) choose(j *judge) error {
	var after *backup // the first of those that stay by --after
	if r.after != nil {
		var err error
		if after, err = j.find(*r.after); err != nil {
			return err
		}
	}
	some := false
	for _, l := range j.lines {
		if !l.live {
			continue
		}
		var counted []*backup
		for _, b := range l.backups {
			if !b.asked() && (r.mod != Full || !b.IsDelta()) {
				counted = append(counted, b)
			}
		}
		if len(counted) < r.n {
			stayWhole(l.backups, fmt.Sprintf("there are no more than %d", r.n))
			continue
		}
		from := counted[len(counted)-r.n]
		switch {
		case r.mod == Plain && from.IsDelta():
			return &catalog.NoBackupError{Asked: r.words, Reason: fmt.Sprintf(ofADelta, from.Name), Advice: "`holdfast delete retain FIND_FULL` keeps what it builds on"}
		case r.mod == FindFull:
			from = from.root()
		}
		some = true
		keepFrom(l.backups, from, "number %d from the end%s", r.n, map[Modifier]string{Full: " of the full ones", FindFull: ", or what that one builds on"}[r.mod])
	}
	if r.after != nil {
		for _, b := range j.all {
			if after != nil && !b.Created().Before(after.Created()) {
				b.stays(continuous, ByRule, "it was made at or after %s", r.after)
			}
		}
	}
	j.others("it is older than those that are retained")
	if !some {
		return ErrNothing
	}
	return nil
}

// find returns the backup of that name, or the first that was made at that time or later: nil where there is none.
func (j *judge) find(m Moment) (*backup, error) {
	if m.Name == "" {
		for _, b := range j.all {
			if !b.Created().Before(m.Time) {
				return b, nil
			}
		}
		return nil, nil
	}
	if b := j.byKey[m.Name]; b != nil {
		return b, nil
	}
	var found []string
	for _, b := range j.all {
		if strings.HasPrefix(b.Name, m.Name) {
			found = append(found, b.Name)
		}
	}
	switch len(found) {
	case 1:
		return j.byKey[found[0]], nil
	case 0:
		return nil, &catalog.NoBackupError{Asked: m.Name, Reason: "the archive has no backup of that name", Advice: "see `holdfast backup-list`"}
	}
	return nil, &catalog.NoBackupError{Asked: m.Name, Reason: "several backups begin with that: " + strings.Join(found, ", "), Advice: "give a whole name"}
}

type before struct {
	asWALG
	mod Modifier
	at  Moment
}

// Before is `delete before`: what was made before a full backup goes. It is given by name, or is the first of its cluster that was made at that time or later. With
// FIND_FULL a delta stands for the full backup it builds on.
func Before(mod Modifier, at Moment) (Rule, error) {
	if mod != Plain && mod != FindFull {
		return nil, fmt.Errorf("before takes FIND_FULL, not %s", mod)
	}
	return &before{asWALG{strings.Join(strings.Fields(fmt.Sprintf("delete before %s %s", mod, at)), " ")}, mod, at}, nil
}

func (r *before) choose(j *judge) error {
	lineages := map[uint64][]*backup{}
	for _, b := range j.all {
		lineages[b.lineage] = append(lineages[b.lineage], b)
	}
	var named *backup
	if r.at.Name != "" {
		var err error
		if named, err = j.find(r.at); err != nil {
			return err
		}
	}
	some := false
	for _, backups := range lineages {
		from := named
		if named == nil {
			if i := slices.IndexFunc(backups, func(b *backup) bool { return !b.Created().Before(r.at.Time) }); i >= 0 {
				from = backups[i]
			}
		}
		if from == nil || from.lineage != backups[0].lineage {
			stayWhole(backups, "it is of another cluster than what the command is about")
			continue
		}
		switch {
		case r.mod == Plain && from.IsDelta():
			return &catalog.NoBackupError{Asked: r.words, Reason: fmt.Sprintf(ofADelta, from.Name), Advice: "`holdfast delete before FIND_FULL` keeps what it builds on"}
		case r.mod == FindFull:
			from = from.root()
		}
		some = true
		keepFrom(backups, from, "what the others are to be older than")
	}
	j.unwantedBefore("it was made before " + r.at.String())
	if !some {
		return ErrNothing
	}
	return nil
}

type target struct {
	words    string
	mod      Modifier
	name     string
	userData json.RawMessage
}

// Target is `delete target`: a backup goes and all that build on it; with FIND_FULL the full backup that it builds on, and all that build on that. It is given by
// its name or its user data, a JSON value. WAL stays.
func Target(mod Modifier, name string, userData json.RawMessage) (Rule, error) {
	switch {
	case mod != Plain && mod != FindFull:
		return nil, fmt.Errorf("target takes FIND_FULL, not %s", mod)
	case (name == "") == (userData == nil):
		return nil, errors.New("target takes the name of a backup, or its user data")
	}
	what := name
	if name == "" {
		what = "--target-user-data " + string(userData)
	}
	return &target{strings.Join(strings.Fields(fmt.Sprintf("delete target %s %s", mod, what)), " "), mod, name, userData}, nil
}

func (r *target) String() string { return r.words }

func (r *target) scope() scope { return scope{backups: true, named: true} }

func (r *target) choose(j *judge) error {
	name := r.name
	if name == "" {
		b, err := j.in.Catalog.FindUserData(r.userData)
		if err != nil {
			return err
		}
		name = b.Name
	}
	b := j.byKey[name]
	if b == nil {
		return &catalog.NoBackupError{Asked: name, Reason: "the archive has no backup of that name", Advice: "see `holdfast backup-list`"}
	}
	if r.mod == FindFull {
		b = b.root()
	}
	going := map[*backup]bool{b: true}
	for changed := true; changed; {
		changed = false
		for _, c := range j.all {
			if c.parent != nil && going[c.parent] && !going[c] {
				going[c], changed = true, true
			}
		}
	}
	for _, c := range j.all {
		switch {
		case c == b:
			c.goes = reason{Asked, "it is what the command names"}
			if r.mod == FindFull {
				c.goes.text = "the full backup of what the command names"
			}
		case going[c]:
			c.goes = reason{Asked, "it builds on " + c.parent.Name}
		default:
			c.stays(continuous, ByRule, "the command does not name it")
		}
	}
	return nil
}

type everything struct{ force bool }

// Everything is `delete everything`: nothing of the archive is left. Permanent backups are an error unless force; so are holds, and pushes and restores at work, whatever
// is forced.
func Everything(force bool) Rule { return everything{force} }

func (r everything) String() string {
	if r.force {
		return "delete everything FORCE"
	}
	return "delete everything"
}

func (r everything) scope() scope {
	return scope{backups: true, wal: true, leftover: true, alone: true, nothing: true, force: r.force}
}

func (r everything) choose(j *judge) error {
	for _, b := range j.all {
		b.goes = reason{Asked, "everything goes"}
	}
	for _, p := range j.in.Pushes {
		if j.alive(&p) {
			return &KeptError{p.Name, atWork(p), Pushing}
		}
	}
	for _, re := range j.in.Restores {
		if re.InUse(j.in.At, re.Beat) {
			return &KeptError{strings.Join(re.Backups, ", "), fmt.Sprintf("a restore on %s uses it since %s", re.Host, catalog.FormatTime(re.At)), Restoring}
		}
	}
	for _, h := range j.in.Holds {
		if h.Backup == "" {
			return &KeptError{"", "moments are held: " + h.words(), Held}
		}
	}
	return nil
}

type garbage struct {
	mod     Modifier
	without bool
}

// Garbage is `delete garbage`: WAL that no backup needs (ARCHIVES), what dead pushes have left (BACKUPS), or both. Without any backup nothing goes, unless without
// says that WAL is to go all the same.
func Garbage(mod Modifier, without bool) (Rule, error) {
	if mod != Plain && mod != Archives && mod != Backups {
		return nil, fmt.Errorf("garbage takes ARCHIVES or BACKUPS, not %s", mod)
	}
	return garbage{mod, without}, nil
}

func (r garbage) String() string {
	words := strings.TrimSpace("delete garbage " + string(r.mod))
	if r.without {
		words += " --without-backup-check"
	}
	return words
}

func (r garbage) scope() scope {
	return scope{wal: r.mod != Backups, leftover: r.mod != Archives, alone: r.without}
}

func (r garbage) choose(j *judge) error {
	for _, b := range j.all {
		if b.permanent {
			b.stays(moment, ByRule, "only garbage goes")
			continue
		}
		b.stays(continuous, ByRule, "only garbage goes")
	}
	return nil
}
