package cli

import (
	"errors"
	"strings"
	"time"

	"holdfast/internal/catalog"
	"holdfast/internal/events"
	"holdfast/internal/pg/server"
	"holdfast/internal/pg/wal"
)

// EventWanted says whether `events` shows an event, with filters.
func EventWanted(database, relation string, e *events.Event) bool {
	o := eventFlags{database: database, relation: relation}
	return o.wanted(e)
}

// EventStretch reads the flags that bound the stretch.
func EventStretch(since, from, until string, now time.Time) (events.Stretch, error) {
	o := eventFlags{since: since, from: from, until: until}
	return o.stretch(now)
}

// EventsEnd is what `events` prints below its table, along a timeline where the server is on current and has written up to so far.
func EventsEnd(r *events.Report, found int, timeline, current wal.Timeline, written wal.LSN, failed bool) string {
	h := &history{wal: &catalog.WAL{SegmentSize: 1 << 24}, current: catalog.Current{Timeline: current}}
	if written != 0 {
		h.server = &server.Position{Timeline: current, LSN: written}
	}
	var err error
	if failed {
		err = errors.New("storage is gone")
	}
	var b strings.Builder
	stretchOf(&b, r, &eventFlags{destructive: true}, found, timeline, h, err)
	return b.String()
}
