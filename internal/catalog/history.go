package catalog

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"holdfast/internal/pg/wal"
)

// Branch says where a timeline was left for a younger one: the log is Timeline's up to Switch.
type Branch struct {
	Timeline wal.Timeline
	Switch   wal.LSN
	Reason   string // as PostgreSQL wrote it, for people
}

// maxHistory bounds a history file in bytes. PostgreSQL adds a line per promotion.
const maxHistory = 1 << 20

// ParseHistory decodes the history file of timeline t, oldest branch first (readTimeLineHistory in
// src/backend/access/transam/timeline.c): lines of parent, position and reason, separated by white space. Empty lines and
// what follows a # are passed over. Timelines ascend, and all are below t.
//
// Positions ascend too, but for one case: who recovers along a timeline and is promoted before he has reached its beginning gets that timeline for
// a parent, with a position before its beginning. No WAL of it is in his, and it is left out: what he left is the timeline that has the WAL there.
func ParseHistory(t wal.Timeline, file []byte) ([]Branch, error) {
	var branches []Branch
	var last wal.Timeline
	for i, line := range strings.Split(string(file), "\n") {
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		bad := func(format string, args ...any) error {
			return fmt.Errorf("line %d of %s: %s", i+1, wal.HistoryName(t), fmt.Sprintf(format, args...))
		}
		if len(fields) < 2 {
			return nil, bad("%q is not a timeline and a position", line)
		}
		parent, err := strconv.ParseUint(fields[0], 10, 32)
		if err != nil || parent == 0 {
			return nil, bad("%q is not the number of a timeline", fields[0])
		}
		at, err := wal.ParseLSN(fields[1])
		if err != nil {
			return nil, bad("%v", err)
		}
		b := Branch{Timeline: wal.Timeline(parent), Switch: at, Reason: strings.Join(fields[2:], " ")}
		if b.Timeline <= last {
			return nil, bad("timeline %d does not come behind timeline %d", uint32(b.Timeline), uint32(last))
		}
		last = b.Timeline
		for n := len(branches); n > 0 && branches[n-1].Switch > b.Switch; n-- {
			b.Timeline = branches[n-1].Timeline
			branches = branches[:n-1]
		}
		branches = append(branches, b)
	}
	if last >= t {
		return nil, fmt.Errorf("%s names timeline %d as its ancestor", wal.HistoryName(t), uint32(last))
	}
	return branches, nil
}

// Leg is the stretch of the log that one timeline contributes to a path: from Begin to before End.
type Leg struct {
	Timeline wal.Timeline
	Begin    wal.LSN
	End      wal.LSN // 0: the timeline has not been left
}

// Path is the log that recovery along a timeline replays, oldest leg first. Where one leg ends the next begins.
type Path []Leg

// Timeline returns the timeline that the path leads to.
func (p Path) Timeline() wal.Timeline { return p[len(p)-1].Timeline }

// Leg returns the leg of timeline t; false where the path does not pass along t.
func (p Path) Leg(t wal.Timeline) (Leg, bool) {
	i := slices.IndexFunc(p, func(l Leg) bool { return l.Timeline == t })
	if i < 0 {
		return Leg{}, false
	}
	return p[i], true
}

// from returns the path's legs from timeline t on.
func (p Path) from(t wal.Timeline) Path {
	return p[slices.IndexFunc(p, func(l Leg) bool { return l.Timeline == t }):]
}

// PathTo returns the path along timeline t. A timeline without a history file has no ancestors, as for PostgreSQL; a
// history file that could not be read is an error.
func (c *Catalog) PathTo(t wal.Timeline) (Path, error) {
	if err := c.BadHistory[t]; err != nil {
		return nil, err
	}
	var p Path
	var begin wal.LSN
	for _, b := range c.Histories[t] {
		p = append(p, Leg{Timeline: b.Timeline, Begin: begin, End: b.Switch})
		begin = b.Switch
	}
	return append(p, Leg{Timeline: t, Begin: begin}), nil
}
