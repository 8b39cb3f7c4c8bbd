package agent_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	_ "time/tzdata"

	"pgregory.net/rapid"

	"holdfast/internal/agent"
)

func zone(t testing.TB, name string) *time.Location {
	t.Helper()
	z, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return z
}

func schedule(t testing.TB, text string, z *time.Location) agent.Schedule {
	t.Helper()
	s, err := agent.ParseSchedule(text, z)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// slots returns the slots of s in [from, to), in the zone of from.
func slots(s agent.Schedule, from, to time.Time) (all []string) {
	for at := s.Next(from.Add(-1)); !at.IsZero() && at.Before(to); at = s.Next(at) {
		all = append(all, at.In(from.Location()).Format("01-02 15:04:05 MST"))
	}
	return all
}

func TestSlotsWhereTheClockIsChanged(t *testing.T) {
	berlin := zone(t, "Europe/Berlin")
	spring := time.Date(2026, 3, 29, 1, 30, 0, 0, berlin)
	autumn := time.Date(2026, 10, 25, 1, 30, 0, 0, berlin)
	for _, c := range []struct {
		expression string
		from       time.Time
		hours      int
		want       []string
	}{
		{"30 2 * * *", spring, 12, []string{"03-29 03:00:00 CEST"}},
		{"*/20 2 * * *", spring, 12, []string{"03-29 03:00:00 CEST"}},
		{"0 2,3 * * *", spring, 12, []string{"03-29 03:00:00 CEST"}},
		{"0 3 * * *", spring, 12, []string{"03-29 03:00:00 CEST"}},
		{"59 59 1 * * *", spring, 12, []string{"03-29 01:59:59 CET"}},
		{"45 * * * *", spring, 2, []string{"03-29 01:45:00 CET", "03-29 03:45:00 CEST"}},
		{"0 */2 * * *", spring, 5, []string{"03-29 03:00:00 CEST", "03-29 04:00:00 CEST", "03-29 06:00:00 CEST"}},
		{"30 2 * * *", autumn, 12, []string{"10-25 02:30:00 CEST"}},
		{"0 2,3 * * *", autumn, 12, []string{"10-25 02:00:00 CEST", "10-25 03:00:00 CET"}},
		{"*/30 2 * * *", autumn, 12, []string{"10-25 02:00:00 CEST", "10-25 02:30:00 CEST"}},
		{"*/30 * * * *", autumn, 3, []string{"10-25 01:30:00 CEST", "10-25 02:00:00 CEST", "10-25 02:30:00 CEST", "10-25 02:00:00 CET", "10-25 02:30:00 CET", "10-25 03:00:00 CET"}},
	} {
		if got := slots(schedule(t, c.expression, berlin), c.from, c.from.Add(time.Duration(c.hours)*time.Hour)); !slices.Equal(got, c.want) {
			t.Errorf("%s from %s: %q, want %q", c.expression, c.from, got, c.want)
		}
	}
	// Asked in the middle of what is left out, or comes twice, the answer is the same.
	s := schedule(t, "30 2 * * *", berlin)
	for ask := spring; ask.Before(spring.Add(30 * time.Minute)); ask = ask.Add(time.Second) {
		if got, want := s.Next(ask), time.Date(2026, 3, 29, 1, 0, 0, 0, time.UTC); !got.Equal(want) {
			t.Fatalf("after %s: %s, want %s", ask, got, want)
		}
	}
	for ask := time.Date(2026, 10, 25, 0, 30, 0, 0, time.UTC); ask.Hour() < 3; ask = ask.Add(time.Minute) { // from 02:30 CEST on
		if got, want := s.Next(ask), time.Date(2026, 10, 26, 1, 30, 0, 0, time.UTC); !got.Equal(want) {
			t.Fatalf("after %s: %s, want %s", ask, got, want)
		}
	}
}

// A field of an expression, and what it allows.
type field struct {
	text   string
	star   bool
	allows func(int) bool
}

func drawField(t *rapid.T, name string, least, most int) field {
	switch rapid.IntRange(0, 3).Draw(t, name+"'s kind") {
	case 0:
		return field{"*", true, func(int) bool { return true }}
	case 1:
		step := rapid.IntRange(2, (most-least)/2+1).Draw(t, name+"'s step")
		return field{fmt.Sprintf("*/%d", step), false, func(v int) bool { return (v-least)%step == 0 }}
	}
	list := rapid.SliceOfNDistinct(rapid.IntRange(least, most), 1, 4, rapid.ID).Draw(t, name)
	var words []string
	for _, v := range list {
		words = append(words, fmt.Sprint(v))
	}
	return field{strings.Join(words, ","), false, func(v int) bool { return slices.Contains(list, v) }}
}

// clocks are the minutes of a year and what a zone's clocks showed in each, as minutes since 1970 as if they were UTC.
type clocks struct {
	begin int64 // in minutes since 1970
	shows []int64
}

var (
	yearsMu sync.Mutex
	years   = map[string]clocks{}
)

func yearOf(z *time.Location, year int) clocks {
	yearsMu.Lock()
	defer yearsMu.Unlock()
	key := fmt.Sprint(z, year)
	c, ok := years[key]
	if !ok {
		begin := time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC)
		c.begin = begin.Unix() / 60
		for at := begin; at.Year() == year; at = at.Add(time.Minute) {
			_, offset := at.In(z).Zone()
			c.shows = append(c.shows, at.Unix()/60+int64(offset/60))
		}
		years[key] = c
	}
	return c
}

// expected are the slots by going through each minute of a year: indexes of clocks.
func (c clocks) expected(matches func(shown int64) bool, allHours bool) []int {
	var all []int
	latest := c.shows[0] - 1 // that was shown
	for i, shown := range c.shows {
		due := false
		switch {
		case allHours:
			due = matches(shown)
		default:
			for latest < shown { // what is shown for the first time, and what was left out before it
				latest++
				due = due || matches(latest)
			}
		}
		if due {
			all = append(all, i)
		}
	}
	return all
}

// Slots are those that one finds who watches a clock all year.
func TestSlotsAreWhatAClockShows(t *testing.T) {
	places := []struct {
		zone string
		year int
	}{
		{"Europe/Berlin", 2024}, {"Europe/Berlin", 2026}, {"America/Sao_Paulo", 2018}, // days without a midnight
		{"Australia/Lord_Howe", 2026}, {"Africa/Casablanca", 2024}, {"America/St_Johns", 2011}, {"Pacific/Apia", 2011}, // which has no 30th of December
		{"Asia/Kolkata", 2026},
	}
	rapid.Check(t, func(t *rapid.T) {
		place := rapid.SampledFrom(places).Draw(t, "place")
		z, err := time.LoadLocation(place.zone)
		if err != nil {
			t.Fatal(err)
		}
		c := yearOf(z, place.year)
		minute, hour := drawField(t, "minute", 0, 59), drawField(t, "hour", 0, 23)
		day, month, weekday := drawField(t, "day", 1, 31), drawField(t, "month", 1, 12), drawField(t, "weekday", 0, 6)
		text := strings.Join([]string{minute.text, hour.text, day.text, month.text, weekday.text}, " ")
		s, err := agent.ParseSchedule(text, z)
		if err != nil && strings.Contains(err.Error(), "never comes") {
			t.Skip(err)
		}
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		want := c.expected(func(shown int64) bool {
			if !minute.allows(int(shown%60)) || !hour.allows(int(shown/60%24)) {
				return false
			}
			at := time.Unix(shown*60, 0).UTC()
			dayOK, weekdayOK := day.allows(at.Day()), weekday.allows(int(at.Weekday()))
			either := dayOK || weekdayOK
			if day.star || weekday.star {
				either = dayOK && weekdayOK
			}
			return month.allows(int(at.Month())) && either
		}, hour.star)
		end := time.Unix((c.begin+int64(len(c.shows)))*60, 0)
		at := s.Next(time.Unix(c.begin*60, 0).Add(-1))
		for _, i := range want {
			if w := time.Unix((c.begin+int64(i))*60, 0); !at.Equal(w) {
				t.Fatalf("%q in %s: slot %s, want %s", text, z, at.In(z), w.In(z))
			}
			at = s.Next(at)
		}
		if !at.IsZero() && at.Before(end) {
			t.Fatalf("%q in %s: slot %s, want none", text, z, at.In(z))
		}
	})
}

func TestNextDoesNotDependOnWhereOneAsks(t *testing.T) {
	berlin := zone(t, "Europe/Berlin")
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.SampledFrom([]string{"30 2 * * *", "*/7 * * * *", "0 */2 * * *", "15 0 2 29 * 0", "0 3 L * *", "0 3 * * 0#L", "@weekly", "0 0 29 2 *"}).Draw(t, "expression")
		s, err := agent.ParseSchedule(text, berlin)
		if err != nil {
			t.Fatal(err)
		}
		ask := time.Unix(rapid.Int64Range(1577836800, 1830297600).Draw(t, "time"), rapid.Int64Range(0, 999999999).Draw(t, "nanoseconds"))
		next := s.Next(ask)
		if !next.After(ask) || !s.At(next) {
			t.Fatalf("%q after %s: %s is no slot after it", text, ask, next)
		}
		between := ask.Add(time.Duration(rapid.Int64Range(0, int64(next.Sub(ask))-1).Draw(t, "between")))
		if got := s.Next(between.In(berlin)); !got.Equal(next) {
			t.Fatalf("%q after %s: %s, and after %s: %s", text, ask, next, between, got)
		}
		if last, ok := s.Last(next, ask); !ok || !last.Equal(next) {
			t.Fatalf("%q: the last slot up to %s is %s", text, next, last)
		}
		if last, ok := s.Last(next.Add(-1), ask); ok {
			t.Fatalf("%q: between %s and %s there is %s", text, ask, next, last)
		}
	})
}

// The last slot is found wherever one begins to look.
func TestLastDoesNotDependOnSince(t *testing.T) {
	s := schedule(t, "*/5 * * * * *", time.UTC)
	at := time.Date(2026, 11, 21, 3, 0, 4, 0, time.UTC)
	for _, since := range []time.Time{{}, at.AddDate(-100, 0, 0), at.Add(-time.Minute), at.Add(-5 * time.Second)} {
		if last, ok := s.Last(at, since); !ok || !last.Equal(at.Add(-4*time.Second)) {
			t.Errorf("since %s: %s", since, last)
		}
	}
	for text, want := range map[string]string{"0 3 29 2 *": "2024-02-29T03:00:00Z", "0 3 21 11 *": "2026-11-21T03:00:00Z", "1 3 21 11 *": "2025-11-21T03:01:00Z"} {
		if last, ok := schedule(t, text, time.UTC).Last(at, at.AddDate(-10, 0, 0)); !ok || last.Format(time.RFC3339) != want {
			t.Errorf("%s: %s, want %s", text, last, want)
		}
	}
	if last, ok := schedule(t, "0 3 29 2 *", time.UTC).Last(at, at.AddDate(-1, 0, 0)); ok {
		t.Errorf("in a year without one: %s", last)
	}
}

func TestDeadlines(t *testing.T) {
	berlin := zone(t, "Europe/Berlin")
	for _, c := range []struct {
		text, slot, want string
	}{
		{"0 22 * * * by=06:00", "2026-11-20T22:00:00+01:00", "2026-11-21T06:00:00+01:00"},
		{"0 3 * * * by=06:00", "2026-11-21T03:00:00+01:00", "2026-11-21T06:00:00+01:00"},
		{"0 6 * * * by=06:00", "2026-11-21T06:00:00+01:00", "2026-11-22T06:00:00+01:00"},
		{"0 22 * * * by=02:30", "2026-03-28T22:00:00+01:00", "2026-03-29T03:00:00+02:00"}, // it is left out
		{"0 22 * * * by=02:30", "2026-10-24T22:00:00+02:00", "2026-10-25T02:30:00+02:00"}, // it comes twice
		{"CRON_TZ=UTC 0 22 * * * by=06:00", "2026-11-20T22:00:00Z", "2026-11-21T06:00:00Z"},
		{"0 3 * * * by=3h", "2026-03-29T03:00:00+02:00", "2026-03-29T06:00:00+02:00"},
		{"@daily jitter=10m by=90m", "2026-11-21T00:00:00+01:00", "2026-11-21T01:30:00+01:00"},
	} {
		slot, err := time.Parse(time.RFC3339, c.slot)
		if err != nil {
			t.Fatal(err)
		}
		s := schedule(t, c.text, berlin)
		if !s.At(slot) {
			t.Errorf("%s: %s is no slot", c.text, c.slot)
		}
		if got := s.Deadline(slot); got.In(slot.Location()).Format(time.RFC3339) != strings.Replace(c.want, "+00:00", "Z", 1) {
			want, err := time.Parse(time.RFC3339, c.want)
			if err != nil || !got.Equal(want) {
				t.Errorf("%s: the deadline of %s is %s, want %s", c.text, c.slot, got, c.want)
			}
		}
	}
	if s := schedule(t, "@daily jitter=10m", berlin); s.Jitter() != 10*time.Minute || !s.Deadline(time.Now()).IsZero() || s.String() != "@daily jitter=10m" {
		t.Errorf("jitter %s, deadline %s of %s", s.Jitter(), s.Deadline(time.Now()), s)
	}
}

func TestOffHasNoSlots(t *testing.T) {
	for _, text := range []string{"", "off", " off "} {
		s := schedule(t, text, time.UTC)
		if _, ok := s.Last(time.Now(), time.Time{}); ok || !s.Off() || !s.Next(time.Now()).IsZero() || s.At(time.Now()) || s.String() != "off" {
			t.Errorf("%q is %s with the slot %s", text, s, s.Next(time.Now()))
		}
	}
}

func TestWhatIsNoSchedule(t *testing.T) {
	for text, want := range map[string]string{
		"0 3 * *":                      "expected 5 to 6 fields",
		"0 3 * * * *  *":               "expected 5 to 6 fields",
		"60 3 * * *":                   "above maximum",
		"0 0 30 2 *":                   "never comes",
		", * * * *":                    "no minute is allowed",
		"@every 1h":                    "want fields or a name",
		"@hourlyish":                   "unrecognized",
		"0 3 * * * by=25:00":           "by=25:00: want a time of the day",
		"0 3 * * * by=tomorrow":        "by=tomorrow",
		"0 3 * * * by=-3h":             "longer than nothing",
		"0 3 * * * by=3h by=06:00":     "by= is there twice",
		"0 3 * * * jitter=-1s":         "negative",
		"0 3 * * * deadline=3h":        "there are by= and jitter=",
		"by=3h":                        "by=3h",
		"CRON_TZ=Mars/Olympus * * * *": "zone",
	} {
		if s, err := agent.ParseSchedule(text, time.UTC); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is %s (%v), want an error with %q", text, s, err, want)
		}
	}
}

// What is accepted has slots that follow each other, and is read back the same.
func FuzzParseSchedule(f *testing.F) {
	for _, seed := range []string{"0 3 * * *", "*/10 * * * * *", "30 2 29 2 1 by=06:00 jitter=5m", "@monthly by=2h", "0 3 15W,L-2 1-6/2 MON#2", "CRON_TZ=Asia/Tokyo 5,10 22-2 * JAN SUN", "off", "0-59/7 0-23 * * 7"} {
		f.Add(seed, int64(1774742400))
	}
	berlin := zone(f, "Europe/Berlin")
	f.Fuzz(func(t *testing.T, text string, at int64) {
		s, err := agent.ParseSchedule(text, berlin)
		if err != nil {
			return
		}
		again, err := agent.ParseSchedule(s.String(), berlin)
		if err != nil || again.String() != s.String() {
			t.Fatalf("%q is %s, which is %s (%v)", text, s, again, err)
		}
		if s.Off() {
			return
		}
		from := time.Unix(at%(1<<32), 0)
		for range 5 {
			next := s.Next(from)
			if !next.After(from) || !again.Next(from).Equal(next) || !s.At(next) {
				t.Fatalf("%q after %s: %s, which is a slot: %t", text, from, next, s.At(next))
			}
			if d := s.Deadline(next); !d.IsZero() && !d.After(next) {
				t.Fatalf("%q: the deadline of %s is %s", text, next, d)
			}
			from = next
		}
	})
}
