package backup

import (
	"context"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/blockset"
	"holdfast/internal/pg/datadir"
	"holdfast/internal/pg/server"
	"holdfast/internal/pg/wal"
)

// Standby says whom a catch-up is for.
type Standby struct {
	Since wal.LSN  // it has replayed all WAL before, and written to disk what that changed
	Whole []string // files that it may not have, as patterns of path.Match: they are stored whole. Each begins in the data directory
}

// CatchUp stores in a what brings a standby forward, of the cluster in dataDir, to which conn is a session: what a backup would hold, but of the main
// forks of relations the pages alone that have changed since. All files are named, so that what is not can go. Left out is what a standby has of its
// own: files beside PG_VERSION in the data directory, and configuration wherever it lies in there. opts.Delta says from where it is known
// what has changed, and nothing else; the report's Delta says from where it was.
//
// A relation that was made since comes whole. That goes for databases too, except where pages alone tell what has changed: then a copy of a
// database has pages that are as old as those of the original. One whose directory is younger than the last backup before Since comes whole; what
// escapes that is a file that the standby does not have and that does not come whole, which restoring the catch-up refuses.
func CatchUp(ctx context.Context, conn *server.Conn, a *archive.Archive, dataDir string, s Standby, opts Options) (*Report, error) {
	for _, p := range s.Whole {
		if _, err := path.Match(p, ""); err != nil {
			return nil, fmt.Errorf("files to store whole: %q: %w", p, err)
		}
	}
	r := &run{Options: opts, conn: conn, archive: a, backups: a.CatchUps(), standby: &s, timeline: conn.Timeline}
	if err := r.prepare(ctx, dataDir); err != nil {
		return nil, err
	}
	r.findConfiguration()
	return r.run(ctx)
}

// aheadError says that there is nothing to catch up with.
type aheadError struct{ since, start wal.LSN }

func (e *aheadError) Error() string {
	return fmt.Sprintf("the standby is at %s, and this server's WAL at %s: there is nothing that it could catch up with", e.since, e.start)
}

func (*aheadError) Hint() string {
	return "take the position from the standby itself: `holdfast catchup-fetch PGDATA --print-lsn` prints it there"
}

// sinceStandby makes the push one of what has changed since the standby's position.
func (r *run) sinceStandby() error {
	since := r.standby.Since
	if since == 0 || since >= r.start.LSN {
		return &aheadError{since: since, start: r.start.LSN}
	}
	if _, err := r.pathTo(r.start.Timeline); err != nil {
		return err
	}
	r.delta = &delta{run: r, files: newKnown(), since: since, missed: map[blockset.Relation]bool{}, same: map[string]bool{}}
	r.report.Since = since.String()
	r.report.Delta = &DeltaReport{Source: PageLSN}
	return nil
}

// clockMargin is by how much clocks of hosts that took backups, and of file systems, may disagree.
const clockMargin = 10 * time.Minute

// before returns a time at which the standby's position had not been written yet: that at which the last backup before it began. Zero where
// the archive has none.
func (r *run) before() (t time.Time) {
	for i := range r.catalog.Backups {
		b := &r.catalog.Backups[i]
		s := b.Sentinel
		if s == nil || s.LSN == nil || *s.LSN > r.standby.Since || s.SystemIdentifier == nil || *s.SystemIdentifier != r.facts.SystemIdentifier {
			continue
		}
		if at := b.Started(); !at.IsZero() && at.Add(-clockMargin).After(t) && r.onPath(b) {
			t = at.Add(-clockMargin)
		}
	}
	return t
}

// onPath reports whether a backup is of the history that leads to this server.
func (r *run) onPath(b *catalog.Backup) bool {
	p, err := r.pathTo(r.start.Timeline)
	if err != nil {
		return false
	}
	leg, ok := p.Leg(b.Timeline())
	return ok && (leg.End == 0 || *b.Sentinel.LSN < leg.End)
}

// was returns what is known of a file in the parent, nil where that does not have it. A standby is taken to have whatever it is not known to lack.
func (d *delta) was(path string) *knownFile {
	if d.standby == nil {
		return d.files.find(path)
	}
	if d.standby.lacks(path) {
		return nil
	}
	return &knownFile{size: unknownSize}
}

// lacks reports whether a file is to be stored whole.
func (s *Standby) lacks(file string) bool {
	for _, p := range s.Whole {
		if ok, _ := path.Match(p, file); ok { // CatchUp has seen that it is a pattern
			return true
		}
	}
	return false
}

// madeSince reports whether the directory of a database, of which PG_VERSION is that old, may have been made since the standby's position.
func (d *delta) madeSince(versionFile time.Time) bool {
	d.dating.Do(func() {
		if d.oldest = d.before(); d.oldest.IsZero() {
			d.Logger.Warn("the archive has no backup from before " + d.since.String() + ": a database that was made since by copying the files of another is not recognised, " +
				"and catchup-fetch says then which files have to be stored whole (--whole)")
		}
	})
	return !d.oldest.IsZero() && !versionFile.Before(d.oldest)
}

// base names what the delta builds on.
func (d *delta) base() string {
	if d.parent == nil {
		return d.since.String()
	}
	return d.parent.Name
}

// stays reports whether an entry is a standby's own, and not part of a catch-up.
func (r *run) stays(e datadir.Entry) bool {
	switch {
	case r.standby == nil || e.Kind == datadir.Directory:
		return false
	case !strings.Contains(e.Path, "/"):
		return e.Path != "PG_VERSION"
	case e.Kind != datadir.File:
		return false
	}
	return slices.Contains(r.configuration, e.OSPath)
}

// findConfiguration notes where the server's configuration is.
func (r *run) findConfiguration() {
	for _, file := range append([]string{r.facts.ConfigFile, r.facts.HBAFile, r.facts.IdentFile}, r.facts.IncludedFiles...) {
		if real, err := filepath.EvalSymlinks(file); err == nil {
			r.configuration = append(r.configuration, real)
		}
	}
}
