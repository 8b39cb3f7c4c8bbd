// Package walpush stores finished WAL files: what archive_command calls.
//
// A file counts as pushed only when it is durable in the archive. Pushing the same content again is fine, other content
// under a taken name is an *archive.ConflictError, and a file of another cluster than the archive's is an *archive.OwnerError.
//
// While a file is stored, those that PostgreSQL will ask for next go up beside it. PostgreSQL learns of that one by one, so
// each file stored ahead leaves a marker, and the push that asks for it verifies the marker and is done. Everything kept
// locally lies beside the WAL, where both survive or perish together:
//
//	pg_wal/holdfast/pushed/<name of the WAL file>   it is in the archive: size, mtime, checksum and which archive
//	pg_wal/holdfast/owner/<hash of the location>    the archive there belongs to this cluster
//
// Both are hints. A marker counts only when the file still has the content that was stored, to the checksum; a hint that is
// lost costs another look into the archive.
package walpush

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"holdfast/internal/pg/wal"
	"holdfast/internal/pg/walrec"
)

// Archive is what a push needs of an archive; *archive.Archive is one.
type Archive interface {
	// PutWAL stores a WAL file durably and says how many bytes that took; 0 means that it was there already.
	PutWAL(ctx context.Context, name string, open func() (io.ReadCloser, error)) (stored int64, err error)
	// PutSummary stores what a segment changes that is archived.
	PutSummary(ctx context.Context, segment string, s *walrec.Summary) error
	// PutWALDeltas stores WAL-G's delta objects for which the summary of segment was the last that was missing.
	PutWALDeltas(ctx context.Context, segment string, size wal.SegmentSize) error
	// Claim makes sure that the archive belongs to the cluster sysid.
	Claim(ctx context.Context, sysid uint64, host string, adopt bool) error
}

// Options tunes a push. The zero value pushes one file and none ahead.
type Options struct {
	Location string // of the archive: two archives differ in it, one archive always has the same
	Host     string // who claims an archive that is nobody's

	Parallel int // files in flight at once, the one asked for included; up to 1 means none ahead
	Limit    int // files stored in one run, the one asked for included; 0 means 32

	// ReadyRename renames archive_status/X.ready to X.done once X was stored ahead: PostgreSQL then does not ask for X at all. The marker stays, and should
	// the archive be another one by then a later push has PostgreSQL ask after all.
	ReadyRename bool

	// Summaries stores with each segment the blocks that it changes. Of no push does it depend whether that can be done.
	Summaries bool
	// Deltas makes WAL-G's delta objects of the summaries. Nothing without Summaries.
	Deltas bool

	Logger *slog.Logger // nil discards
}

// Outcome says how a file came to be in the archive.
type Outcome int

// How a push that succeeded went.
const (
	Stored Outcome = iota // this push stored it
	Equal                 // it was there, with equal content
	Early                 // an earlier push stored it ahead
)

// Report says what a push did.
type Report struct {
	Name    string // of the WAL file
	Outcome Outcome
	Bytes   int64    // as stored; 0 unless Outcome is Stored
	Ahead   []string // the files that were stored ahead, in the order in which they were done
}

// Opener opens the archive twice: once for the file that is asked for, and once for those stored ahead, which should
// compress sequentially, as there are many at once.
type Opener func(context.Context) (asked, ahead Archive, err error)

// Push makes sure that the WAL file at path is durable in the archive, and stores files that PostgreSQL will ask for next.
// Once Push returned nil PostgreSQL may remove the file. open is called only when the archive is needed. What goes wrong with
// other files is logged as a warning.
func Push(ctx context.Context, open Opener, path string, o Options) (Report, error) {
	p := newPusher(filepath.Dir(path), o)
	f, err := inspect(path)
	if err == nil {
		err = f.checkFinished()
	}
	if err != nil {
		return Report{}, err
	}
	report := Report{Name: f.name}
	early, err := p.storedEarly(f)
	if err != nil {
		return Report{}, err
	}
	if early {
		report.Outcome = Early
		p.forget(f.name)
		return report, nil
	}
	asked, ahead, err := open(ctx)
	if err != nil {
		return Report{}, err
	}
	if err := p.checkOwner(ctx, asked, f); err != nil {
		return Report{}, fmt.Errorf("store %s: %w", f.name, err)
	}

	// What goes ahead is given up when the file itself fails, but not the other way round.
	background, abandon := context.WithCancel(ctx)
	defer abandon()
	done := make(chan []string)
	go func() { done <- p.ahead(background, ahead, f, nil) }()
	storeSummary := p.summarize(f)
	defer p.summing.Wait()

	report.Bytes, err = asked.PutWAL(ctx, f.name, f.open)
	if err != nil {
		abandon()
		<-done
		return Report{}, fmt.Errorf("store %s: %w", f.name, err)
	}
	if report.Bytes == 0 {
		report.Outcome = Equal
	}
	storeSummary(ctx, asked)
	report.Ahead = <-done
	return report, nil
}

// A pusher is one run.
type pusher struct {
	opts     Options
	dir      string // of the WAL files: pg_wal
	state    string // what we keep below it
	location string // hash of the archive's location

	resident *Resident // whose run it is; nil for none

	summing        sync.WaitGroup // what reads files to sum them up
	unsummed       atomic.Bool    // the archive takes no summaries
	undelta        atomic.Bool    // nor deltas
	summaryWarning sync.Once
}

// newPusher begins a run for the WAL files in dir.
func newPusher(dir string, o Options) *pusher {
	o.Limit = cmp.Or(o.Limit, 32)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	location := sha256.Sum256([]byte(o.Location))
	return &pusher{opts: o, dir: dir, state: filepath.Join(dir, "holdfast"), location: hex.EncodeToString(location[:8])}
}

// statusDir is where PostgreSQL keeps which files wait to be archived.
func (p *pusher) statusDir() string { return filepath.Join(p.dir, "archive_status") }

func (p *pusher) warn(msg string, args ...any) { p.opts.Logger.Warn(msg, args...) }

// exists reports whether there is something at path. Only a clear answer is one.
func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if os.IsNotExist(err) {
		return false, nil
	}
	return err == nil, err
}

// successors yields the names of the segments after a file, in order. After one that has no segment number there are none.
func successors(f *file, n int) []string {
	if f.kind != wal.Segment {
		return nil
	}
	_, no, err := f.segmentSize.ParseSegment(f.name)
	if err != nil {
		return nil
	}
	names := make([]string, n)
	for i := range names {
		names[i] = f.segmentSize.Name(f.timeline, no+1+wal.SegmentNo(i))
	}
	return names
}
