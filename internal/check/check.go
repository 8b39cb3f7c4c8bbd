// Package check judges an archive and its server: fine, worrying, broken or not known, each with the reason and the next command to type.
//
// Gather asks the server, its pg_wal, the archive, its storages and the keys, all at once and with a deadline; what does not answer is not known, and is not
// waited for. Judge is pure: it looks at what was gathered and reads nothing. Checks lists what is judged, and by which limits.
//
// Report.Nagios writes what was found as Nagios, Icinga and their kin take it: the Monitoring Plugins Development Guidelines,
// https://www.monitoring-plugins.org/doc/guidelines.html.
package check

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"holdfast/internal/retention"
)

// Status is what a check says. The numbers are exit statuses, as Nagios has them.
type Status int

// The statuses.
const (
	OK       Status = 0
	Warning  Status = 1
	Critical Status = 2
	Unknown  Status = 3 // it could not be judged
)

func (s Status) String() string {
	switch s {
	case OK:
		return "OK"
	case Warning:
		return "WARNING"
	case Critical:
		return "CRITICAL"
	}
	return "UNKNOWN"
}

// MarshalText makes the status a word in JSON.
func (s Status) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// gravity orders statuses: what is not known may be broken.
func (s Status) gravity() int { return slices.Index([]Status{OK, Warning, Unknown, Critical}, s) }

// Worst returns the graver of two.
func Worst(a, b Status) Status {
	if b.gravity() > a.gravity() {
		return b
	}
	return a
}

// Unit is what the limits of a check are given in.
type Unit string

// The units.
const (
	None    Unit = "" // it has no limits
	Seconds Unit = "s"
	Bytes   Unit = "B"
	Percent Unit = "%"
	Count   Unit = "count"
)

// Limits are from where on a check worries. The zero value never does.
type Limits struct {
	Warning, Critical       float64 // seconds, bytes, percents or a number
	HasWarning, HasCritical bool
	Below                   bool // what is less is worse
}

// judge compares a value with the limits. At a limit it is still fine.
func (l Limits) judge(v float64) Status {
	over := func(limit float64) bool { return v > limit && !l.Below || v < limit && l.Below }
	switch {
	case l.HasCritical && over(l.Critical):
		return Critical
	case l.HasWarning && over(l.Warning):
		return Warning
	}
	return OK
}

// A Check is one thing that is judged.
type Check struct {
	Name   string
	Unit   Unit   // of its limits
	Limits string // by default, as ParseLimits reads them
	Below  bool   // what is less is worse
	What   string // is judged, in a sentence

	needs need // what is gathered for it
	must  need // what of it is known when judge is called
	judge func(*Facts, Limits) Finding
}

// need is a set of what a check is about.
type need int

const (
	needServer need = 1 << iota
	needHost
	needArchive
	needStores
	needBackup // that the archive has one
)

// Checks returns all checks, in the order in which they are told.
func Checks() []Check {
	return []Check{
		{Name: "server", needs: needServer, judge: judgeServer,
			What: "The server answers."},
		{Name: "store", needs: needStores, judge: judgeStores,
			What: "Every storage takes a small object and removes it. An account that may not remove is fine: the object of this host, `holdfast/check/HOST`, is written anew each time. A bucket with versions keeps what was removed, for as long as its rules say (docs/operations.md). Not judged where no server is named and the account may read only."},
		{Name: "cluster", needs: needServer | needArchive, must: needServer | needArchive, judge: judgeCluster,
			What: "The archive belongs to the cluster of the server."},
		{Name: "archive-command", needs: needServer | needHost, must: needServer, judge: judgeCommand,
			What: "The server archives by Holdfast: archive_mode is on, archive_command calls `holdfast wal-push` or `holdfast-client … wal-push` with %p, and neither it nor the script it calls hides the exit status."},
		{Name: "archive-timeout", Unit: Seconds, Limits: "1h", needs: needServer, must: needServer, judge: judgeTimeout,
			What: "archive_timeout: what a quiet server wrote last is archived after that long. Fine whatever it is where `wal-receive` streams."},
		{Name: "wal-push", Unit: Seconds, Limits: "5m:15m", needs: needServer | needHost, judge: judgeStuck,
			What: "How long nothing has been archived while something waits to be. It names the process that is at work, and what that waits for."},
		{Name: "ready", Unit: Count, Limits: "16:128", needs: needServer | needHost, judge: judgeReady,
			What: "How many files wait to be archived (`.ready`)."},
		{Name: "wal-age", Unit: Seconds, Limits: "15m:1h", needs: needServer | needHost | needArchive, must: needArchive, judge: judgeWALAge,
			What: "Age of the oldest whole segment that the server has and the archive has not. A server that has written none meanwhile is fine, however old the last one is. Not judged on a standby that does not archive, where its pg_wal is not seen."},
		{Name: "disk", Unit: Percent, Limits: "10:5", Below: true, needs: needServer | needHost, judge: judgeDisk,
			What: "Room on the file system of pg_wal."},
		{Name: "disk-full", Unit: Seconds, Limits: "24h:4h", Below: true, needs: needServer | needHost, judge: judgeFull,
			What: "How long it takes until that is full, where WAL waits to be archived, at the rate at which it has come since."},
		{Name: "slot", Unit: Bytes, Limits: "1GiB:8GiB", needs: needServer, must: needServer, judge: judgeSlot,
			What: "WAL that the server keeps for `wal-receive`'s replication slot (WALG_SLOTNAME), where there is one; and that it is in use, and not lost."},
		{Name: "checksums", needs: needServer, must: needServer, judge: judgeChecksums,
			What: "The server has read no page with a wrong checksum (pg_stat_database, PostgreSQL 12 and later)."},
		{Name: "summarize-wal", needs: needServer, must: needServer, judge: judgeSummaries,
			What: "Where delta backups are taken of PostgreSQL 17 or later, the server summarizes its WAL, or WAL is archived with summaries."},
		{Name: "clock", Unit: Seconds, Limits: "30s:5m", needs: needServer | needStores, judge: judgeClock,
			What: "How far the clocks of the server and of the storages are from that of this host."},
		{Name: "backup-age", Unit: Seconds, Limits: "26h:50h", needs: needArchive, must: needArchive, judge: judgeBackupAge,
			What: "Age of the last backup that can be restored."},
		{Name: "full-age", Unit: Seconds, Limits: "8d:15d", needs: needArchive, must: needArchive, judge: judgeFullAge,
			What: "Age of the last of them that is full, and no delta."},
		{Name: "holes", needs: needArchive, judge: judgeHoles,
			What: "Nothing that restoring takes is missing or damaged: the verdict of `ribbon`."},
		{Name: "restorable", Unit: Seconds, Limits: "30m:2h", needs: needServer | needHost | needArchive, must: needArchive, judge: judgeRestorable,
			What: "Age of the newest moment that can be restored. Where that is where the server is, but for the segment that it is writing, it is fine however old; on a standby as with `wal-age`."},
		{Name: "key", needs: needArchive, must: needArchive, judge: judgeKey,
			What: "The newest backup and the newest WAL can be decrypted here. Not judged on hosts that have public keys only."},
		{Name: "verify", Unit: Seconds, Limits: "8d:32d", needs: needArchive, must: needArchive | needBackup, judge: judgeVerify,
			What: "Since when no backup was read by `verify` and found good; of an archive that never was, since its first backup."},
		{Name: "proof", Unit: Seconds, Limits: "35d:100d", needs: needArchive, must: needArchive | needBackup, judge: judgeProof,
			What: "Since when no backup was proven by a restore. Where none ever was it is not judged, but with limits that were given. It is a WARNING, too, where newer records of drills are there that do not count as proof."},
	}
}

// ParseLimits reads limits as they are typed: `26h:50h`, a warning alone as `26h`, the critical one alone as `:50h`, or `off`.
func (c *Check) ParseLimits(text string) (Limits, error) {
	l := Limits{Below: c.Below}
	if c.Unit == None {
		return l, fmt.Errorf("%s has no limits", c.Name)
	}
	if text == "off" {
		return l, nil
	}
	warning, critical, _ := strings.Cut(text, ":")
	if warning == "" && critical == "" {
		return l, fmt.Errorf("%s: %q are no limits such as %s", c.Name, text, c.Limits)
	}
	for _, one := range []struct {
		text  string
		value *float64
		has   *bool
	}{{warning, &l.Warning, &l.HasWarning}, {critical, &l.Critical, &l.HasCritical}} {
		if one.text == "" {
			continue
		}
		v, err := c.Unit.parse(one.text)
		if err != nil {
			return l, fmt.Errorf("%s: %w", c.Name, err)
		}
		*one.value, *one.has = v, true
	}
	if l.HasWarning && l.HasCritical && (l.Warning > l.Critical) != l.Below && l.Warning != l.Critical {
		return l, fmt.Errorf("%s: the warning of %q comes behind what is critical", c.Name, text)
	}
	return l, nil
}

func (u Unit) parse(text string) (float64, error) {
	switch u {
	case Seconds:
		d, err := retention.ParseDuration(text)
		return d.Seconds(), err
	case Bytes:
		n, err := humanize.ParseBytes(text)
		if err != nil {
			err = fmt.Errorf("%q is no size such as 512MiB", text)
		}
		return float64(n), err
	}
	n, err := strconv.ParseUint(strings.TrimSuffix(text, "%"), 10, 32)
	if err != nil || u == Percent && n > 100 {
		return 0, fmt.Errorf("%q is no number", text)
	}
	return float64(n), nil
}

// A Choice says which checks are made, and by which limits.
type Choice struct {
	checks []Check
	limits map[string]Limits
	given  map[string]bool // limits that are not the default ones
	only   bool            // they were asked for by name
}

// A Selection says what a Choice differs in from all checks with their defaults.
type Selection struct {
	Setting      string            // limits as NAME=LIMITS, with blanks or commas between them; NAME=off leaves a check out
	Limits       map[string]string // by name; they win
	Only, Except []string          // names
}

// Choose makes a choice.
func Choose(s Selection) (*Choice, error) {
	c := &Choice{limits: map[string]Limits{}, given: map[string]bool{}, only: len(s.Only) > 0}
	all := Checks()
	names := make([]string, len(all))
	for i := range all {
		names[i] = all[i].Name
	}
	known := func(name string) error {
		if !slices.Contains(names, name) {
			return fmt.Errorf("there is no check %q, but %s", name, strings.Join(names, ", "))
		}
		return nil
	}
	limits, except := map[string]string{}, slices.Clone(s.Except)
	for _, word := range strings.FieldsFunc(s.Setting, func(r rune) bool { return r == ',' || r == ' ' || r == '\n' || r == '\t' }) {
		name, text, ok := strings.Cut(word, "=")
		if !ok {
			return nil, fmt.Errorf("%q is not NAME=LIMITS", word)
		}
		if err := known(name); err != nil {
			return nil, err
		}
		if limits[name] = text; text == "off" && !slices.Contains(s.Only, name) {
			except = append(except, name)
		}
	}
	for name, text := range s.Limits {
		limits[name] = text
		except = slices.DeleteFunc(except, func(e string) bool { return e == name && text != "off" && !slices.Contains(s.Except, name) })
		if text == "off" {
			except = append(except, name)
		}
	}
	for _, name := range slices.Concat(s.Only, s.Except) {
		if err := known(name); err != nil {
			return nil, err
		}
	}
	for _, one := range all {
		if slices.Contains(except, one.Name) || c.only && !slices.Contains(s.Only, one.Name) {
			continue
		}
		text, given := limits[one.Name]
		if given && text == "off" { // asked for by name all the same
			text, given = "", false
		}
		c.checks = append(c.checks, one)
		if one.Unit == None && !given {
			continue
		}
		l, err := one.ParseLimits(cmp.Or(text, one.Limits))
		if err != nil {
			return nil, err
		}
		c.limits[one.Name], c.given[one.Name] = l, given
	}
	if len(c.checks) == 0 {
		return nil, fmt.Errorf("no check is left")
	}
	return c, nil
}

func (c *Choice) needs() (all need) {
	for _, one := range c.checks {
		all |= one.needs
	}
	return all
}

// Value is a number that a finding goes by, or that is worth a graph.
type Value struct {
	Name   string  `json:"name"`
	Value  float64 `json:"value"`
	Unit   Unit    `json:"unit,omitempty"`
	Limits *Limits `json:"-"` // nil: it is not judged
}

// Finding is what one check found.
type Finding struct {
	Check   string  `json:"check"`
	Status  Status  `json:"status"`
	Text    string  `json:"text"`              // in a sentence, without a full stop
	Next    string  `json:"next,omitempty"`    // what to do, a command where there is one; empty where all is well
	Skipped bool    `json:"skipped,omitempty"` // it does not apply here; the status is OK
	Follows string  `json:"follows,omitempty"` // the check that says why this could not be judged
	Values  []Value `json:"values,omitempty"`
}

// Report is what was found.
type Report struct {
	Status   Status    `json:"status"`
	At       time.Time `json:"at"`
	Took     Duration  `json:"took_seconds"`
	Findings []Finding `json:"findings"`
}

// Duration is a time that JSON shows in seconds.
type Duration time.Duration

// MarshalJSON writes a number of seconds.
func (d Duration) MarshalJSON() ([]byte, error) {
	return strconv.AppendFloat(nil, time.Duration(d).Seconds(), 'f', 3, 64), nil
}

// Judge says of what was gathered what it means.
func Judge(f *Facts, c *Choice) Report {
	r := Report{At: f.Now.UTC(), Took: Duration(f.Took)}
	f.given, f.only = c.given, c.only
	for _, one := range c.checks {
		found := f.lacks(one.must)
		if found == nil {
			found = new(one.judge(f, c.limits[one.Name]))
		}
		found.Check = one.Name
		if found.Status == OK {
			found.Next = ""
		}
		for i := range found.Values {
			if v := &found.Values[i]; v.Limits != nil && v.Unit == "" {
				v.Unit = one.Unit
			}
		}
		if found.Skipped && c.only { // whoever names a check wants an answer
			found.Status, found.Skipped = Unknown, false
		}
		r.Status = Worst(r.Status, found.Status)
		r.Findings = append(r.Findings, *found)
	}
	return r
}
