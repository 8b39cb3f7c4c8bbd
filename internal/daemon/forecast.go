package daemon

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"

	"holdfast/internal/pg/control"
	"holdfast/internal/pg/wal"
)

// Backlog is the segments that wait to be archived.
type Backlog struct {
	Segments int
	Bytes    int64
	Since    time.Time // when the first of them was finished; zero when none waits
}

// ReadBacklog looks which segments wait in the data directory dir, and how many bytes are free for more of them.
func ReadBacklog(dir string) (b Backlog, free int64, err error) {
	data, _, err := control.Read(filepath.Join(dir, control.Name))
	if err != nil {
		return b, 0, err
	}
	status, err := os.Open(filepath.Join(dir, "pg_wal", "archive_status"))
	if err != nil {
		return b, 0, err
	}
	defer status.Close() // only read
	var first string
	for {
		entries, err := status.Readdirnames(1024)
		for _, e := range entries {
			if name, ok := strings.CutSuffix(e, ".ready"); ok && wal.IsSegment(name) {
				b.Segments++
				if first == "" || name < first {
					first = name
				}
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return b, 0, err
		}
	}
	b.Bytes = int64(b.Segments) * int64(data.SegmentSize)
	if first != "" {
		info, err := os.Stat(filepath.Join(status.Name(), first+".ready"))
		switch {
		case err == nil:
			b.Since = info.ModTime()
		case !errors.Is(err, os.ErrNotExist): // archived meanwhile
			return b, 0, err
		}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(filepath.Join(dir, "pg_wal"), &fs); err != nil {
		return b, 0, &os.PathError{Op: "statfs", Path: filepath.Join(dir, "pg_wal"), Err: err}
	}
	return b, int64(fs.Bavail) * int64(fs.Bsize), nil
}

// UntilFull forecasts how long it takes until free bytes are filled, should WAL come as it has come since the first segment of the backlog was
// finished, and none be archived. ok is false where that is not long enough ago to tell: before the second segment.
func (b Backlog) UntilFull(free int64, now time.Time) (left time.Duration, ok bool) {
	took := now.Sub(b.Since)
	if b.Segments < 2 || b.Since.IsZero() || took <= 0 {
		return 0, false
	}
	came := float64(b.Bytes) / float64(b.Segments) * float64(b.Segments-1) // since then
	seconds := float64(max(free, 0)) / came * took.Seconds()
	const most = 365 * 24 * time.Hour // beyond that nobody wants to know, and a Duration ends at 290 years
	return time.Duration(min(seconds, most.Seconds()) * float64(time.Second)), true
}

// Describe says in a line what waits and for how long there is room.
func (b Backlog) Describe(free int64, now time.Time) string {
	line := fmt.Sprintf("%d segments wait to be archived (%s)", b.Segments, humanize.IBytes(uint64(b.Bytes)))
	if b.Segments == 1 {
		line = fmt.Sprintf("1 segment waits to be archived (%s)", humanize.IBytes(uint64(b.Bytes)))
	}
	line += fmt.Sprintf(", the disk of pg_wal has %s left", humanize.IBytes(uint64(max(free, 0))))
	if left, ok := b.UntilFull(free, now); ok {
		line += fmt.Sprintf(" and is full in about %s", roughly(left))
	}
	return line
}

// roughly rounds to what a forecast can be taken for.
func roughly(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%.0f days", d.Hours()/24)
	case d >= 2*time.Hour:
		return fmt.Sprintf("%.0f hours", d.Hours())
	}
	return fmt.Sprintf("%.0f minutes", d.Minutes())
}
