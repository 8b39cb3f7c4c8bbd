// Package walfetch brings WAL files back from an archive: what restore_command calls.
//
// A file appears under its final name whole and checked, or not at all. That the archive lacks a file is a *MissingError and
// nothing else is: PostgreSQL takes a missing file for the end of the archive, and would end a recovery early. Status turns
// that into the exit status that makes PostgreSQL do the right thing.
//
// While PostgreSQL replays one segment the next ones are fetched ahead by a process of its own, which runs Ahead. Fetch and
// Ahead meet in a directory that has the layout of WAL-G's:
//
//	.wal-g/prefetch/<segment>           fetched ahead, whole; waits to be renamed into place
//	.wal-g/prefetch/<segment>.json      its checksum and which archive it is from; without it the segment is not used
//	.wal-g/prefetch/running/<segment>   being fetched, locked by the process that does
//	.wal-g/prefetch/requested           the segment that PostgreSQL asked for last
//	.wal-g/prefetch/end                 a segment that could not be had when it was looked for
//	.wal-g/prefetch/lock                locked by the process that runs Ahead
//
// All of that goes when a recovery is over, or the server stops. On a standby that has come to the end of the archive the last three
// stay, small as they are.
//
// Synced to disk is only what is fetched under a name of its own, as by pg_rewind. What PostgreSQL replays it syncs itself, and
// what a crash of the machine spoils of a segment fetched ahead its checksum tells.
package walfetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"holdfast/internal/pg/wal"
)

// Archive is what fetching needs of an archive; *archive.Archive is one.
type Archive interface {
	// OpenWAL reads a WAL file, decompressed. A file that the archive lacks is fs.ErrNotExist, and nothing else is.
	OpenWAL(ctx context.Context, name string) (io.ReadCloser, error)
}

// Options tunes fetching. The zero value fetches nothing ahead.
type Options struct {
	Location string // of the archive: two archives differ in it, one archive always has the same

	// Dir is the directory to keep .wal-g/prefetch in; "" means that of the destination.
	Dir string
	// Parallel is how many segments may be fetched ahead at once; up to 1 means that none are.
	Parallel int
	// Start starts a process that calls Ahead with what Fetch was called with, and does not wait for it.
	Start func() error

	// Memory is that of the process, where Ahead runs in the one that calls Fetch; nil for none.
	Memory *Memory

	// Patience is how long Ahead goes on without a request; 0 means two minutes.
	Patience time.Duration

	Logger *slog.Logger // nil discards
}

func (o Options) logger() *slog.Logger {
	if o.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return o.Logger
}

// MissingError says that the archive lacks a WAL file.
type MissingError struct{ Name string }

// Error has WAL-G's words, which people search logs for.
func (e *MissingError) Error() string { return fmt.Sprintf("Archive '%s' does not exist.", e.Name) }

// Report says what a fetch did.
type Report struct {
	Name  string // of the WAL file
	Bytes int64
	Ahead bool // whether the file had been fetched ahead
}

// Fetch brings the WAL file name to dest, replacing what is there. open is called only when the archive is needed. Where
// PostgreSQL replays WAL, which shows in the name of dest, files fetched ahead are used and more of them asked for.
func Fetch(ctx context.Context, open func(context.Context) (Archive, error), name, dest string, o Options) (Report, error) {
	if wal.KindOf(name) == wal.Other {
		return Report{}, fmt.Errorf("%q is not the name of a WAL file", name)
	}
	dst, err := begin(ctx, dest, o.logger())
	if err != nil {
		return Report{}, err
	}
	defer dst.abort()
	report := Report{Name: name}

	var q *queue // nil where nothing is fetched ahead
	if o.Parallel > 1 && wal.IsSegment(name) && replays(dest) {
		if q = openQueue(dest, o); !q.ours() {
			o.logger().Warn("nothing is fetched ahead: another account may have written to the directory of what was", "directory", q.dir)
			q = nil
		}
	}
	if q != nil {
		report.Bytes, err = q.take(ctx, name, dst)
		if err != nil {
			o.logger().Debug("cannot use what was fetched ahead", "file", name, "error", err)
		}
		if report.Ahead = report.Bytes > 0; report.Ahead {
			if err := dst.commit(); err != nil {
				return Report{}, err
			}
			q.continueAfter(name, wal.SegmentSize(report.Bytes), o)
			return report, nil
		}
	}

	a, err := open(ctx)
	if err != nil {
		return Report{}, err
	}
	c, err := download(ctx, a, name, dst.file)
	if err == nil {
		err = dst.commit()
	}
	if err != nil {
		var missing *MissingError
		if q != nil && errors.As(err, &missing) {
			q.missing(name)
		}
		return Report{}, err
	}
	if report.Bytes = c.Size; q != nil {
		q.continueAfter(name, wal.SegmentSize(c.Size), o)
	}
	return report, nil
}

// replays reports whether dest is what PostgreSQL calls the segment it is going to replay. pg_rewind and people ask for a
// segment under its own name, and not for the next one after that.
func replays(dest string) bool { return strings.HasPrefix(filepath.Base(dest), "RECOVERYXLOG") }

// download writes a WAL file to dst and checks it. What breaks or does not check is fetched again, up to three times in all.
func download(ctx context.Context, a Archive, name string, dst file) (checked, error) {
	for try := 1; ; try++ {
		c, err := downloadOnce(ctx, a, name, dst)
		var again *brokenError
		if err == nil || !errors.As(err, &again) || try == 3 || ctx.Err() != nil {
			return c, err
		}
	}
}

// A brokenError says that the content could not be read to its end, or is not right.
type brokenError struct{ error }

func (e *brokenError) Unwrap() error { return e.error }

func downloadOnce(ctx context.Context, a Archive, name string, dst file) (checked, error) {
	r, err := a.OpenWAL(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return checked{}, &MissingError{name}
	}
	if err != nil {
		return checked{}, fmt.Errorf("fetch %s: %w", name, err)
	}
	defer r.Close() // only read: nothing to lose
	c, err := receive(dst, r, name)
	if err != nil {
		return checked{}, fmt.Errorf("fetch %s: %w", name, err)
	}
	return c, nil
}
