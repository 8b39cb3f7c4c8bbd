package agent

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/netresearch/go-cron"
)

// Schedule says at which instants a job is due, its slots, and until when it must be done. The zero Schedule has no slots.
//
// The expression is cron's, five fields or six with the second first: names, lists, ranges and steps, @daily and the like, L, W and # as in Quartz. Where both the day of the month
// and that of the week are restricted, either will do, as crontab(5) has it. Slots are times of a zone. A time that the clock leaves out in spring is a slot at the moment when the
// clock is put forward; one that comes twice in autumn is a slot the first time. Where the expression allows all hours, though, an hour that comes twice has its slots twice, so that what
// runs every ten minutes does so then, too.
type Schedule struct {
	text   string
	fields string // of text, the expression alone
	spec   *spec
	by     *spec         // a time of the day; nil for none
	within time.Duration // by=3h; 0 for none
	jitter time.Duration
}

// spec is a cron expression in a zone. It is not changed once it is made.
type spec struct {
	wall  *cron.SpecSchedule // of times of the zone, as if they were UTC
	zone  *time.Location
	every bool // all hours are allowed
}

// ParseSchedule reads an expression with what may follow it: `by=06:00`, the time of the day after the slot at which the job must be done, or `by=3h`, how long after it; and `jitter=10m`.
// "off" and "" are the zero Schedule. The zone is that of its times, unless the expression begins with CRON_TZ=.
func ParseSchedule(text string, zone *time.Location) (Schedule, error) {
	s := Schedule{text: strings.Join(strings.Fields(text), " ")}
	if s.text == "" || s.text == "off" {
		return Schedule{}, nil
	}
	words := strings.Fields(s.text)
	given := map[string]bool{}
	for last := len(words) - 1; last > 0; last-- {
		key, value, ok := strings.Cut(words[last], "=")
		if !ok {
			break
		}
		if given[key] {
			return Schedule{}, fmt.Errorf("schedule %q: %s= is there twice", text, key)
		}
		given[key] = true
		if err := s.option(key, value, zone); err != nil {
			return Schedule{}, fmt.Errorf("schedule %q: %s: %w", text, words[last], err)
		}
		words = words[:last]
	}
	s.fields = strings.Join(words, " ")
	var err error
	if s.spec, err = parseSpec(s.fields, zone); err != nil {
		return Schedule{}, fmt.Errorf("schedule %q: %w", text, err)
	}
	if s.by != nil {
		s.by.zone = s.spec.zone
	}
	return s, nil
}

// option reads what stands behind an expression.
func (s *Schedule) option(key, value string, zone *time.Location) (err error) {
	switch key {
	case "by":
		if !strings.Contains(value, ":") {
			if s.within, err = time.ParseDuration(value); err == nil && s.within <= 0 {
				err = errors.New("it must be longer than nothing")
			}
			return err
		}
		at, err := time.Parse("15:04", value)
		if err != nil {
			return errors.New("want a time of the day such as 06:00, or a duration such as 3h")
		}
		s.by, err = parseSpec(fmt.Sprintf("%d %d * * *", at.Minute(), at.Hour()), zone)
		return err
	case "jitter":
		if s.jitter, err = time.ParseDuration(value); err == nil && s.jitter < 0 {
			err = errors.New("it must not be negative")
		}
		return err
	}
	return errors.New("there are by= and jitter=")
}

// searchYears is how far ahead slots are looked for: the 29th of February is a given day of the week every 28 years, and 40 where a century lies between.
const searchYears = 41

// fields are those of cron's expressions, and what of Quartz's they may have.
const fields = cron.SecondOptional | cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.DowOrDom | cron.Descriptor | cron.Extended

// allHours has a bit for each hour of the day.
const allHours = 1<<24 - 1

func parseSpec(text string, zone *time.Location) (*spec, error) {
	parser, err := cron.TryNewParser(fields)
	if err != nil {
		return nil, err
	}
	parsed, err := parser.WithMaxSearchYears(searchYears).Parse(text)
	if err != nil {
		return nil, err
	}
	wall, ok := parsed.(*cron.SpecSchedule)
	if !ok { // @every counts from when a program was started, which is not the same on all hosts
		return nil, errors.New("want fields or a name such as @daily")
	}
	for _, f := range []struct {
		name string
		bits uint64
	}{{"second", wall.Second}, {"minute", wall.Minute}, {"hour", wall.Hour}, {"month", wall.Month}} {
		if f.bits == 0 {
			return nil, fmt.Errorf("no %s is allowed", f.name)
		}
	}
	if wall.Location != time.Local {
		zone = wall.Location
	}
	wall.Location = time.UTC
	if wall.Next(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)).IsZero() {
		return nil, errors.New("that never comes")
	}
	return &spec{wall: wall, zone: zone, every: wall.Hour&allHours == allHours}, nil
}

// most bounds by how much a zone's offset has ever been changed: by a day, for a zone that crossed the date line.
const most = 48 * time.Hour

// next returns the first slot after t, the zero time where there is none. It goes through the stretches in which the zone's offset stays the same.
func (s *spec) next(t time.Time) time.Time {
	for after, first := t.Round(0).UTC(), true; ; first = false {
		local := after.Add(1).In(s.zone)
		begin, end := local.ZoneBounds()
		_, offset := local.Zone()
		from := naive(after, offset)
		if !begin.IsZero() && !s.every { // from where the stretch before has left off: times in between are left out here, or were there already
			_, before := begin.Add(-1).In(s.zone).Zone()
			if left := naive(begin, before); after.Before(begin) || from.Before(left) {
				from = left.Add(-1)
			}
		}
		wall := s.wall.Next(from)
		if wall.IsZero() {
			return time.Time{}
		}
		slot := wall.Add(-time.Duration(offset) * time.Second)
		if !begin.IsZero() && slot.Before(begin) {
			slot = begin.UTC()
		}
		if end.IsZero() || slot.Before(end) {
			return slot
		}
		after = end.Add(-1)
		if far := slot.Add(-most); !first && far.After(after) { // nothing in between, wherever clocks are changed there
			after = far
		}
	}
}

// naive is the time that clocks show at t, so many seconds ahead of UTC, as if it were UTC.
func naive(t time.Time, offset int) time.Time {
	return t.UTC().Add(time.Duration(offset) * time.Second)
}

// Off reports whether there are no slots.
func (s Schedule) Off() bool { return s.spec == nil }

// String returns the schedule as ParseSchedule reads it.
func (s Schedule) String() string {
	if s.Off() {
		return "off"
	}
	return s.text
}

// Jitter returns what stands behind jitter=, 0 where nothing does.
func (s Schedule) Jitter() time.Duration { return s.jitter }

// Next returns the first slot after t, in UTC; the zero time where there is none.
func (s Schedule) Next(t time.Time) time.Time {
	if s.Off() {
		return time.Time{}
	}
	return s.spec.next(t)
}

// Last returns the last slot that is not after t, and is after since; false where there is none.
func (s Schedule) Last(t, since time.Time) (last time.Time, ok bool) {
	for back := time.Minute; !ok && back > 0; back *= 2 { // there may be one each second, and since years ago
		from := t.Add(-back)
		if !from.After(since) {
			from, back = since, -1
		}
		for next := s.Next(from); !next.IsZero() && !next.After(t); next = s.Next(next) {
			last, ok = next, true
		}
	}
	return last, ok
}

// At reports whether t is a slot.
func (s Schedule) At(t time.Time) bool { return !s.Off() && s.Next(t.Add(-1)).Equal(t) }

// Deadline returns until when the job of that slot must be done, the zero time where nothing says so.
func (s Schedule) Deadline(slot time.Time) time.Time {
	switch {
	case s.within > 0:
		return slot.Add(s.within)
	case s.by != nil:
		return s.by.next(slot)
	}
	return time.Time{}
}

// sameSlots reports whether s and o have the same slots. Deadlines and jitter may differ.
func (s Schedule) sameSlots(o Schedule) bool {
	return s.fields == o.fields && (s.Off() || s.spec.zone.String() == o.spec.zone.String())
}

// local is t as people read it.
func (s Schedule) local(t time.Time) string {
	if !s.Off() {
		t = t.In(s.spec.zone)
	}
	return t.Format("2006-01-02 15:04:05 MST")
}
