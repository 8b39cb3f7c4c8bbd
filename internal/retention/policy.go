package retention

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"holdfast/internal/catalog"
)

// Policy says which backups are wanted. What one of its rules wants stays. The zero value wants every backup.
type Policy struct {
	Window time.Duration // every moment that is no longer ago can be restored; 0: no such rule
	Full   int           // the newest full backups, and what came after the oldest of them
	// The last backup of each of so many days, weeks, months and years that have one, in UTC. Where Window or Full is given, too, only the WAL stays with them that
	// makes them consistent: they restore to the moment at which they were finished.
	Daily, Weekly, Monthly, Yearly int
	Minimum                        int  // newest backups that can be restored
	AnyProven                      bool // the last backup that was proven may go
}

// policyForm is how a policy is written, in YAML or JSON.
type policyForm struct {
	Window *string `yaml:"recovery_window"`
	Full   *int    `yaml:"full"`
	GFS    *struct {
		Daily   int `yaml:"daily"`
		Weekly  int `yaml:"weekly"`
		Monthly int `yaml:"monthly"`
		Yearly  int `yaml:"yearly"`
	} `yaml:"gfs"`
	Minimum    *int  `yaml:"minimum"`
	KeepProven *bool `yaml:"keep_last_proven"`
}

// ParsePolicy reads a policy, a map in YAML or JSON: {recovery_window: 14d, full: 7, gfs: {daily: 7, weekly: 4, monthly: 12, yearly: 3}, minimum: 2,
// keep_last_proven: true}. One that wants nothing at all is an error, and so is a word that is none of these.
func ParsePolicy(text string) (Policy, error) {
	var f policyForm
	d := yaml.NewDecoder(strings.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(&f); err != nil {
		if errors.Is(err, io.EOF) {
			return Policy{}, errors.New("it is empty")
		}
		text := strings.Join(strings.Fields(strings.TrimPrefix(err.Error(), "yaml: ")), " ")
		return Policy{}, errors.New(unknownField.ReplaceAllString(strings.TrimPrefix(text, "unmarshal errors: "), "there is no rule $1"))
	}
	if rule := emptyRule(text); rule != "" {
		return Policy{}, fmt.Errorf("%s: nothing stands behind it", rule)
	}
	if err := d.Decode(new(any)); !errors.Is(err, io.EOF) {
		return Policy{}, errors.New("it is more than one map")
	}
	var p Policy
	count := func(what string, given int, into *int) error {
		if given < 0 || given > 1_000_000 {
			return fmt.Errorf("%s: %d is no number of backups", what, given)
		}
		*into = given
		return nil
	}
	var err error
	if f.Window != nil {
		if p.Window, err = ParseDuration(*f.Window); err != nil {
			return Policy{}, fmt.Errorf("recovery_window: %w", err)
		}
	}
	var errs []error
	if f.Full != nil {
		errs = append(errs, count("full", *f.Full, &p.Full))
	}
	if g := f.GFS; g != nil {
		errs = append(errs, count("gfs: daily", g.Daily, &p.Daily), count("gfs: weekly", g.Weekly, &p.Weekly), count("gfs: monthly", g.Monthly, &p.Monthly),
			count("gfs: yearly", g.Yearly, &p.Yearly))
	}
	if f.Minimum != nil {
		errs = append(errs, count("minimum", *f.Minimum, &p.Minimum))
	}
	if f.KeepProven != nil {
		p.AnyProven = !*f.KeepProven
	}
	if err := errors.Join(errs...); err != nil {
		return Policy{}, err
	}
	if p.Window == 0 && p.Full == 0 && !p.calendar() && p.Minimum == 0 {
		return Policy{}, errors.New("it wants no backup: give recovery_window, full, gfs or minimum")
	}
	p.Minimum = max(p.Minimum, 1)
	return p, nil
}

// emptyRule returns a rule that is named in a policy and says nothing, as {recovery_window: , full: 7} does where a variable was empty; "" for none. To pass over it would be
// to let go what it was to keep.
func emptyRule(text string) string {
	var doc yaml.Node
	if yaml.Unmarshal([]byte(text), &doc) != nil {
		return "" // Decode says more
	}
	var find func(n *yaml.Node) string
	find = func(n *yaml.Node) string {
		for i := 0; i+1 < len(n.Content); i += 2 {
			if key, value := n.Content[i], n.Content[i+1]; value.Tag == "!!null" {
				return key.Value
			} else if value.Kind == yaml.MappingNode {
				if inner := find(value); inner != "" {
					return key.Value + ": " + inner
				}
			}
		}
		return ""
	}
	if len(doc.Content) == 0 || doc.Content[0].Kind != yaml.MappingNode {
		return ""
	}
	return find(doc.Content[0])
}

// unknownField is how package yaml speaks of a key that there is not.
var unknownField = regexp.MustCompile(`field (\S+) not found in type \S+`)

var durationForm = regexp.MustCompile(`^(\d+)(y|w|d)`)

// maxDuration is what a duration of ours may be at most, in hours.
const maxDuration = 200 * 365 * 24

// ParseDuration reads a duration as Go writes it, in front of which may stand years of 365 days, weeks and days: 14d, 1w, 36h, 1d12h.
func ParseDuration(text string) (time.Duration, error) {
	bad := fmt.Errorf("%q is no duration such as 14d, 2w, 36h or 1d12h", text)
	rest := strings.TrimSpace(text)
	if rest == "" {
		return 0, bad
	}
	var hours uint64
	for {
		m := durationForm.FindStringSubmatch(rest)
		if m == nil {
			break
		}
		n, err := strconv.ParseUint(m[1], 10, 20)
		if err != nil {
			return 0, bad
		}
		hours += n * map[string]uint64{"y": 365 * 24, "w": 7 * 24, "d": 24}[m[2]]
		rest = rest[len(m[0]):]
		if hours > maxDuration {
			return 0, bad
		}
	}
	sum := time.Duration(hours) * time.Hour
	if rest != "" {
		d, err := time.ParseDuration(rest)
		if err != nil || d < 0 || d > maxDuration*time.Hour {
			return 0, bad
		}
		sum += d
	}
	if sum > maxDuration*time.Hour {
		return 0, bad
	}
	return sum, nil
}

const day = 24 * time.Hour

// FormatDuration writes d with days as far as it is made of them.
func FormatDuration(d time.Duration) string {
	var s string
	if n := d / day; n > 0 {
		s, d = fmt.Sprintf("%dd", n), d%day
	}
	if d > 0 || s == "" {
		text := d.String()
		text = strings.TrimSuffix(text, "m0s")
		if strings.HasSuffix(d.String(), "m0s") {
			text += "m"
		}
		if strings.HasSuffix(text, "h0m") {
			text = strings.TrimSuffix(text, "0m")
		}
		s += text
	}
	return s
}

func (p Policy) calendar() bool { return p.Daily+p.Weekly+p.Monthly+p.Yearly > 0 }

// MarshalJSON writes the policy as ParsePolicy reads it.
func (p Policy) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	add := func(key string, value any) {
		if b.Len() > 1 {
			b.WriteByte(',')
		}
		v, _ := json.Marshal(value) // numbers, strings and maps of numbers
		fmt.Fprintf(&b, "%q:%s", key, v)
	}
	if p.Window > 0 {
		add("recovery_window", FormatDuration(p.Window))
	}
	if p.Full > 0 {
		add("full", p.Full)
	}
	if p.calendar() {
		gfs := map[string]int{}
		for name, n := range map[string]int{"daily": p.Daily, "weekly": p.Weekly, "monthly": p.Monthly, "yearly": p.Yearly} {
			if n > 0 {
				gfs[name] = n
			}
		}
		add("gfs", gfs)
	}
	if p.Minimum > 0 {
		add("minimum", p.Minimum)
	}
	add("keep_last_proven", !p.AnyProven)
	b.WriteByte('}')
	return b.Bytes(), nil
}

// String is the policy as it is written; "none" where it has no rule.
func (p Policy) String() string {
	if p.everything() {
		return "none"
	}
	b, _ := p.MarshalJSON() // never fails
	return string(b)
}

// scope leaves WAL alone where there is no rule.
func (p Policy) scope() scope {
	return scope{policy: true, backups: true, wal: !p.everything(), leftover: !p.everything()}
}

// everything reports whether the policy has no rule.
func (p Policy) everything() bool {
	return p.Window == 0 && p.Full == 0 && !p.calendar() && p.Minimum == 0
}

func (p Policy) choose(j *judge) error {
	j.anyProven = p.AnyProven
	if p.everything() {
		for _, b := range j.all {
			b.stays(continuous, ByRule, "there is no policy by which it could go")
		}
		return nil
	}
	for _, l := range j.lines {
		if l.live {
			p.chooseOn(l, j.now)
		}
	}
	j.others(p.unwanted(j.now))
	return nil
}

// chooseOn lets stay what the policy wants of one line.
func (p Policy) chooseOn(l *line, now time.Time) {
	var good, fulls []*backup
	for _, b := range l.backups {
		if b.restorable() && !b.asked() {
			good = append(good, b)
			if !b.IsDelta() {
				fulls = append(fulls, b)
			}
		}
	}
	if p.Window > 0 {
		from := now.Add(-p.Window)
		var base *backup
		for _, b := range good {
			if !b.Created().After(from) {
				base = b
			}
		}
		for _, b := range l.backups {
			if b.Created().After(from) && !b.asked() {
				b.stays(continuous, ByWindow, "it is within the recovery window of %s", FormatDuration(p.Window))
			}
		}
		if base != nil {
			base.stays(continuous, ByWindow, "the recovery window, since %s, begins with it", catalog.FormatTime(from))
		}
	}
	if p.Full > 0 && len(fulls) > 0 {
		oldest := fulls[max(0, len(fulls)-p.Full)]
		for _, b := range good {
			switch {
			case b.Created().Before(oldest.Created()):
			case b.IsDelta():
				b.stays(continuous, ByCount, "a delta that came after %s", of(newest(p.Full, " full backup")))
			default:
				b.stays(continuous, ByCount, "it is %s", of(newest(p.Full, " full backup")))
			}
		}
	}
	p.chooseByCalendar(good)
	for _, b := range good[max(0, len(good)-p.Minimum):] {
		b.stays(continuous, ByMinimum, "it is %s that can be restored", of(newest(p.Minimum, "")))
	}
}

// Moments reports whether what the policy keeps of older backups are single moments, each with the WAL that makes the backup consistent and no more.
func (p Policy) Moments() bool { return p.calendar() && (p.Window > 0 || p.Full > 0) }

// Continuous returns when the oldest of those backups was finished behind which every moment is to be restorable: of older ones Moments stay. Only backups count that can be
// restored: condemned ones do not, nor those that are damaged, of which LoadDamaged tells, or build on such. The zero time says that all WAL stays behind whatever
// backup stays.
func (p Policy) Continuous(c *catalog.Catalog, damaged map[string]string, now time.Time) (from time.Time) {
	if !p.Moments() {
		return from
	}
	var good, fulls []time.Time
	for i := range c.Backups {
		b := &c.Backups[i]
		if b.Sentinel == nil || b.Condemned != nil {
			continue
		}
		chain, err := c.Chain(b)
		if err != nil || slices.ContainsFunc(chain, func(b *catalog.Backup) bool { return damaged[b.Name] != "" }) {
			continue
		}
		good = append(good, b.Created())
		if !b.IsDelta() {
			fulls = append(fulls, b.Created())
		}
	}
	if len(good) == 0 {
		return from
	}
	slices.SortFunc(good, time.Time.Compare)
	slices.SortFunc(fulls, time.Time.Compare)
	from = good[max(0, len(good)-max(p.Minimum, 1))]
	earlier := func(t time.Time) {
		if t.Before(from) {
			from = t
		}
	}
	if p.Full > 0 && len(fulls) > 0 {
		earlier(fulls[max(0, len(fulls)-p.Full)])
	}
	if p.Window > 0 {
		base := good[0]
		for _, t := range good {
			if !t.After(now.Add(-p.Window)) {
				base = t
			}
		}
		earlier(base)
	}
	return from
}

// chooseByCalendar lets stay the last backup of each period.
func (p Policy) chooseByCalendar(good []*backup) {
	m := moment
	if p.Window == 0 && p.Full == 0 {
		m = continuous
	}
	for _, period := range []struct {
		n    int
		what string
		of   func(time.Time) string
	}{
		{p.Daily, "day", func(t time.Time) string { return t.Format("2006-01-02") }},
		{p.Weekly, "week", func(t time.Time) string { y, w := t.ISOWeek(); return fmt.Sprintf("%d-W%02d", y, w) }},
		{p.Monthly, "month", func(t time.Time) string { return t.Format("2006-01") }},
		{p.Yearly, "year", func(t time.Time) string { return t.Format("2006") }},
	} {
		last, n := "", 0
		for i := len(good) - 1; i >= 0 && n < period.n; i-- {
			if of := period.of(good[i].Created().UTC()); of != last {
				last, n = of, n+1
				good[i].stays(m, ByCalendar, "the last of the %s %s", period.what, of)
			}
		}
	}
}

// newest names the n newest of something.
func newest(n int, what string) string {
	switch {
	case n == 1:
		return "the newest" + what
	case what != "":
		what += "s"
	}
	return fmt.Sprintf("the %d newest%s", n, what)
}

// of makes one of several out of their name, if there are several.
func of(all string) string {
	if strings.HasPrefix(all, "the newest") {
		return all
	}
	return "one of " + all
}

// unwanted says why the policy does not want a backup.
func (p Policy) unwanted(now time.Time) string {
	var not []string
	if p.Window > 0 {
		not = append(not, fmt.Sprintf("it is older than the recovery window of %s", FormatDuration(p.Window)))
	}
	if p.Full > 0 {
		not = append(not, "older than "+newest(p.Full, " full backup"))
	}
	if p.calendar() {
		not = append(not, "not the last of a day, week, month or year that counts")
	}
	if p.Minimum > 0 {
		not = append(not, "not "+of(newest(p.Minimum, "")))
	}
	return strings.Join(not, ", ")
}

// others judges what the rule did not let stay. What is on no way that recovery would take today, and what cannot be restored, stays until it is older than all from
// which recovery goes on.
func (j *judge) others(unwanted string) {
	live := map[*backup]bool{}
	oldest := map[uint64]time.Time{}
	for _, l := range j.lines {
		for _, b := range l.backups {
			live[b] = live[b] || l.live
		}
	}
	for _, b := range j.all {
		if len(b.keep) > 0 && b.mode == continuous {
			if at, ok := oldest[b.lineage]; !ok || b.Created().Before(at) {
				oldest[b.lineage] = b.Created()
			}
		}
	}
	for _, b := range j.all {
		if len(b.keep) > 0 {
			continue
		}
		at, ok := oldest[b.lineage]
		switch newer := !ok || b.Created().After(at); {
		case !b.restorable() && newer:
			b.stays(moment, Newer, "it cannot be restored (%v), but is newer than the oldest that stays", b.why())
		case !b.restorable():
			b.goes = reason{Broken, fmt.Sprintf("it cannot be restored: %v", b.why())}
		case !live[b] && newer:
			b.stays(continuous, Newer, "it is on no way that recovery takes today, but is newer than the oldest that stays")
		case !live[b]:
			b.goes = reason{Orphaned, "it is on no way that recovery takes today, and is older than the oldest that stays"}
		default:
			b.goes = reason{NoLonger, unwanted}
		}
	}
}
