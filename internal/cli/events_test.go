package cli_test

import (
	"strings"
	"testing"
	"time"

	"holdfast/internal/cli"
	"holdfast/internal/events"
	"holdfast/internal/pg/wal"
)

// What has no name may be what was asked for.
func TestEventFilters(t *testing.T) {
	of := func(what events.What, db string, names ...string) *events.Event {
		e := &events.Event{What: what, Database: 5, DatabaseName: db}
		for _, n := range names {
			e.Relations = append(e.Relations, events.Relation{Schema: "public", Name: n})
		}
		return e
	}
	for _, c := range []struct {
		database, relation string
		e                  *events.Event
		want               bool
	}{
		{"shop", "", of(events.Drop, "shop", "orders"), true},
		{"shop", "", of(events.Drop, "other", "orders"), false},
		{"shop", "", of(events.Drop, "", "orders"), true},
		{"shop", "", &events.Event{What: events.Checkpoint}, false},
		{"", "orders", of(events.Drop, "shop", "items", "orders"), true},
		{"", "public.orders", of(events.Drop, "shop", "items"), false},
		{"", "public.orders", of(events.Drop, "shop", "items", ""), true},
		{"", "public.orders", of(events.DropDatabase, "shop"), true},
		{"other", "public.orders", of(events.DropDatabase, "shop"), false},
		{"shop", "public.orders", of(events.MissingWAL, ""), true},
	} {
		if got := cli.EventWanted(c.database, c.relation, c.e); got != c.want {
			t.Errorf("database %q, relation %q: %v of %+v", c.database, c.relation, got, c.e)
		}
	}
}

// A stretch that ends before it begins is a mistake, and not an answer without events.
func TestEventStretch(t *testing.T) {
	now := time.Date(2026, 5, 6, 7, 8, 9, 0, time.UTC)
	for _, c := range []struct {
		since, from, until string
		fails              bool
	}{
		{"2h", "", "1h", false}, {"1h", "", "2h", true}, {"", "0/3000000", "0/2000000", true}, {"", "0/3000000", "0/4000000", false},
		{"", "", "2 days ago", true}, {"", "", "0/4000000", false},
	} {
		if _, err := cli.EventStretch(c.since, c.from, c.until, now); (err != nil) != c.fails {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// What is printed below the table says what was not seen, and how to go on.
func TestEventsEnd(t *testing.T) {
	const read, more = wal.LSN(0x3000000), wal.LSN(0x4000000)
	for _, c := range []struct {
		r       events.Report
		found   int
		current wal.Timeline
		written wal.LSN
		failed  bool
		want    string
		without string
	}{
		{events.Report{To: read, NoEnd: true}, 1, 1, more, false, "written up to 0/4000000: what is behind 0/3000000 is not archived yet", "--target-timeline"},
		{events.Report{To: read, NoEnd: true}, 1, 1, read, false, "--exclusive`", "not archived"},
		{events.Report{To: read, NoEnd: true}, 1, 1, 0, false, "may have been written behind 0/3000000", "--target-timeline"},
		{events.Report{To: read, NoEnd: true}, 1, 2, more, false, "--exclusive --target-timeline 1`", "written up to"},
		{events.Report{To: read, NoBeginning: true}, 0, 1, 0, false, "what happened before was not seen", "behind"},
		{events.Report{To: read}, 0, 1, more, true, "Reading failed: what happened behind 0/3000000 was not seen", "takes data away"},
	} {
		if got := cli.EventsEnd(&c.r, c.found, 1, c.current, c.written, c.failed); !strings.Contains(got, c.want) || strings.Contains(got, c.without) {
			t.Errorf("%+v: %s", c, got)
		}
	}
}
