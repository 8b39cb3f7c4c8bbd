package drill

import (
	"context"
	"io"
	"log/slog"
	"os"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/control"
	"holdfast/internal/pg/wal"
	"holdfast/internal/restore"
)

// Wanted lists the segments that replay will ask for.
func Wanted(first, last string, c catalog.Choice, size wal.SegmentSize, label string) []string {
	return wanted(&restore.Plan{FirstWAL: first, LastWAL: last}, c, size, []byte(label))
}

// Feed lays segments ready for a copy in the directory scratch whose program is program, and returns its restore_command, what waits until that is over by itself, and what
// ends it.
func Feed(ctx context.Context, a *archive.Archive, scratch, program string, c catalog.Choice, size wal.SegmentSize, names []string) (command string, wait, end func(), err error) {
	d := &drill{Options: Options{Logger: slog.New(slog.DiscardHandler)}, archive: a, plan: &Plan{Scratch: scratch, request: Request{Choice: c, Program: program}}}
	if err := os.Mkdir(d.plan.run(), 0o700); err != nil {
		return "", nil, nil, err
	}
	f, err := d.feedFrom(ctx, names, control.Data{Major: 15, SegmentSize: size})
	if err != nil {
		return "", nil, nil, err
	}
	settings := map[string]string{}
	f.use(settings)
	return settings["restore_command"], func() { <-f.ended }, f.end, nil
}

// Pass copies messages of a server as the copy gets them that begins to replay at from. The ends of segments that Guard has seen are in the directory run.
func Pass(to io.Writer, messages io.Reader, run string, from wal.LSN, page uint32, segment wal.SegmentSize) error {
	return pass(to, messages, &watch{run: run, from: from, page: wal.LSN(page), segment: segment})
}

// Seen is what a log says of recovery.
type Seen struct {
	Restored                             int
	Begun, Consistent                    bool
	Stopped, Streaming, Refused, Problem string
}

// ReadLog takes in the lines of a server's log.
func ReadLog(lines ...string) Seen {
	var f facts
	for _, l := range lines {
		f.line(l)
	}
	s := f.get()
	return Seen{s.restored, s.begun, s.consistent, s.stopped, s.streaming, s.refused, s.problem}
}

// ToInstall is toInstall.
var ToInstall = toInstall

// IsOfRole and LacksFiles are isOfRole and lacksFiles.
var (
	IsOfRole   = isOfRole
	LacksFiles = lacksFiles
)

// SameValue reports whether two values of a parameter mean the same.
func SameValue(kind, unit, x, y string) bool { return parameter{kind, unit}.same(x, y) }
