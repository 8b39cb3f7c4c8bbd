package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/chain"
	"holdfast/internal/pg/control"
	"holdfast/internal/pg/page"
	"holdfast/internal/pg/wal"
	"holdfast/internal/tarpart"
)

// CatchUpRequest says what is to bring which standby forward.
type CatchUpRequest struct {
	Destination string           // the standby's data directory, absolute
	Catalog     *catalog.Catalog // of the catch-ups
	Backup      *catalog.Backup  // the catch-up, of Catalog

	// Where tablespaces go that the standby does not have yet, as in Request. The others stay where they are.
	TablespaceMapping map[string]string
}

// CatchUp is what RunCatchUp will do.
type CatchUp struct {
	Backup      string        `json:"backup"`
	Finished    time.Time     `json:"finished"`
	Since       string        `json:"from_lsn"` // increments are for who has all before
	StartLSN    string        `json:"start_lsn"`
	FinishLSN   string        `json:"finish_lsn"`
	Timeline    wal.Timeline  `json:"timeline"`
	PgVersion   int           `json:"pg_version"`
	Destination string        `json:"destination"`
	Standby     *StandbyState `json:"standby,omitempty"` // nil where one that was interrupted continues
	Continues   bool          `json:"continues,omitempty"`
	Tablespaces []Tablespace  `json:"tablespaces,omitempty"`
	Owner       *Owner        `json:"owner,omitempty"`

	Verified    bool   `json:"verified"` // contents are checked against the catch-up's manifest
	Whole       int64  `json:"files_whole"`
	Incremental int64  `json:"files_incremental"`
	Pages       int64  `json:"pages"` // of the latter; 0 where that is not known
	Bytes       int64  `json:"bytes"` // to be written
	ExtraFiles  int64  `json:"extra_files"`
	ExtraBytes  int64  `json:"extra_bytes"` // of files that go
	Parts       int    `json:"parts"`
	Stored      int64  `json:"stored_bytes"` // to be read from the archive
	Rooms       []Room `json:"rooms"`

	FirstWAL  string    `json:"first_wal,omitempty"`  // the standby will begin with this segment
	NeededWAL string    `json:"needed_wal,omitempty"` // and must reach this one to be consistent
	LastWAL   string    `json:"last_wal,omitempty"`   // without a gap the archive reaches to this one
	LastAt    time.Time `json:"last_wal_archived,omitzero"`

	Signal string   `json:"signal,omitempty"` // file that is made, so that the server starts as a standby
	Notes  []string `json:"notes,omitempty"`

	plan   *Plan
	strict bool // all blocks that a file does not have have to come: see lacking
}

// StandbyState is how far a data directory is, by its pg_control.
type StandbyState struct {
	State    string       `json:"state"`
	Redo     wal.LSN      `json:"-"` // all that was changed before is on disk
	RedoLSN  string       `json:"redo_lsn"`
	Reach    wal.LSN      `json:"-"` // nothing that was changed from here on is
	ReachLSN string       `json:"reach_lsn"`
	Timeline wal.Timeline `json:"timeline"` // of Reach

	redoTimeline wal.Timeline
}

// Position says from where on a catch-up has to hold what has changed for the standby with the data directory dir: all that was changed before is
// on its disk. The server may be running.
func Position(dir string) (*StandbyState, error) {
	c, _, err := control.Read(filepath.Join(dir, control.Name))
	if err != nil {
		return nil, err
	}
	return stateOf(dir, c)
}

// stateOf refuses what is no standby that could be brought forward. Restartpoints write to disk whatever was changed before their redo pointer.
// Of what came later any part may be there, up to minRecoveryPoint, which moves before a page is written (XLogFlush in
// src/backend/access/transam/xlog.c). Of a primary such a bound is known only where it was shut down.
func stateOf(dir string, c control.Data) (*StandbyState, error) {
	const advice = "make the standby anew, or into this directory with `holdfast backup-fetch --delta`"
	s := &StandbyState{State: c.State.String(), Redo: c.CheckpointRedo, Reach: c.Checkpoint, Timeline: c.CheckpointTimeline, redoTimeline: c.CheckpointTimeline}
	switch {
	case c.State == control.ShutDown:
	case c.State != control.ShutDownInRecovery && c.State != control.InArchiveRecovery:
		return nil, &RefusedError{fmt.Sprintf("%s is no standby, nor was it shut down: by its pg_control it is %s, and how far its files are is not known", dir, s.State),
			"where it was a primary see pg_rewind; else " + advice}
	case c.BackupStart != 0:
		return nil, &RefusedError{fmt.Sprintf("%s was made from a base backup and has not become consistent since", dir), advice}
	case c.MinRecoveryEnd > s.Reach:
		s.Reach, s.Timeline = c.MinRecoveryEnd, c.MinRecoveryEndTimeline
	}
	s.RedoLSN, s.ReachLSN = s.Redo.String(), s.Reach.String()
	return s, nil
}

// DecideCatchUp works out how a is to bring a standby forward. It writes nothing.
func DecideCatchUp(ctx context.Context, a *archive.Archive, r CatchUpRequest) (*CatchUp, error) {
	b := r.Backup
	if b.Sentinel == nil {
		return nil, fmt.Errorf("apply %s: %w", b.Name, b.Err)
	}
	s := b.Sentinel
	start, ok1 := b.StartLSN()
	finish, ok2 := b.FinishLSN()
	if !s.CatchUp() || !ok1 || !ok2 || b.IsDelta() {
		return nil, fmt.Errorf("apply %s: its sentinel is not that of a catch-up", b.Name)
	}
	if s.ChkpNum != nil {
		return nil, &RefusedError{fmt.Sprintf("%s is of a cluster with OrioleDB, whose catch-ups this release does not apply", b.Name), "make the standby anew"}
	}
	if !filepath.IsAbs(r.Destination) {
		return nil, fmt.Errorf("bring %s forward: it must be an absolute path", r.Destination)
	}
	p := &Plan{
		Backup: b.Name, Finished: b.Created(), Timeline: b.Timeline(), PgVersion: s.PgVersion, Destination: filepath.Clean(r.Destination),
		startLSN: start, finishLSN: finish, StartLSN: start.String(), newest: b, files: newTable(), Delta: &Differences{},
	}
	if s.SystemIdentifier != nil {
		p.systemIdentifier = *s.SystemIdentifier
	}
	c := &CatchUp{
		Backup: b.Name, Finished: p.Finished, Since: s.DeltaLSN.String(), StartLSN: p.StartLSN, FinishLSN: finish.String(), Timeline: p.Timeline,
		Destination: p.Destination, plan: p,
		// Summaries name whatever was logged; what a standby lacks and was not changed since was never logged, and is zeros. Where pages
		// were looked at instead, zeros are stored too.
		strict: s.DeltaSource != "summaries" && s.DeltaSource != "archive",
	}
	for _, step := range []func() error{
		func() error { return c.readParts(ctx, a) },
		func() error { return c.checkDirectory() },
		func() error { return c.placeTablespaces(r) },
		func() error { return c.survey(ctx, a) },
		func() error { return c.checkState(r.Catalog) },
		func() error { return p.findOwner(ctx, a, "") },
		func() error { return c.checkStandby() },
		func() error { return c.reach(ctx, a, r.Catalog) },
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	c.PgVersion, c.Tablespaces, c.Owner, c.Rooms, c.Parts, c.Notes = p.PgVersion, p.Tablespaces, p.Owner, p.Rooms, len(p.parts), p.Notes
	c.FirstWAL, c.NeededWAL, c.LastWAL, c.LastAt = p.FirstWAL, p.NeededWAL, p.LastWAL, p.LastAt
	for _, part := range p.parts {
		c.Stored += part.Size
	}
	return c, nil
}

// readParts looks at what there is, and of which cluster.
func (c *CatchUp) readParts(ctx context.Context, a *archive.Archive) (err error) {
	p := c.plan
	if p.parts, err = p.partsOf(ctx, a, p.newest); err != nil {
		return err
	}
	if !slices.ContainsFunc(p.parts, archive.Part.IsControl) || !slices.ContainsFunc(p.parts, archive.Part.IsLabel) {
		return fmt.Errorf("apply %s: it lacks the parts with pg_control and backup_label", c.Backup)
	}
	if err := p.readable(c.Backup, p.parts); err != nil {
		return err
	}
	if err := p.readControl(ctx, a, p.newest); err != nil {
		return err
	}
	p.systemIdentifier = p.control.SystemIdentifier
	return nil
}

// catchUpDirs are the directories at the top that a catch-up makes as they are in it. All else at the top stays, but for PG_VERSION: configuration, keys
// and logs are the standby's own, and pg_wal takes care of itself.
var catchUpDirs = []string{
	"base", "global", "pg_commit_ts", "pg_dynshmem", "pg_logical", "pg_multixact", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat",
	"pg_stat_tmp", "pg_subtrans", "pg_tblspc", "pg_twophase", "pg_xact",
}

// staysStandbys reports whether what a catch-up holds under that name is not to be written.
func staysStandbys(name string) bool {
	return name == "." || !strings.Contains(name, "/") && name != "PG_VERSION" && !isHeld(name) || within(name, "pg_wal")
}

// checkDirectory refuses a directory that is not one of the cluster's, or in use.
func (c *CatchUp) checkDirectory() error {
	p := c.plan
	if !isDir(p.Destination) {
		return &RefusedError{fmt.Sprintf("%s is no directory", p.Destination), "name the data directory of the standby that lags behind"}
	}
	if m, err := readMarker(p.Destination); err == nil {
		return &RefusedError{fmt.Sprintf("%s holds a restore of %s that was interrupted", p.Destination, m.Backup), "complete that first"}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	label, err := os.ReadFile(filepath.Join(p.Destination, labelFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	labelled := err == nil
	is, _, errControl := control.Read(filepath.Join(p.Destination, control.Name))
	m, err := readCatchUpMarker(p.Destination)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, errTorn):
		m = nil
	case err != nil:
		return err
	case errControl == nil && !(labelled && p.checkLabel(label) == nil):
		m = nil // it ended before anything was written, or a server was started since it had ended
	}
	switch {
	case m != nil && m.System != p.systemIdentifier:
		return p.otherCluster(m.System)
	case m != nil && (m.Backup != p.Backup || !m.Finished.Equal(p.Finished)):
		return &RefusedError{fmt.Sprintf("%s was being brought forward by %s, finished at %s, which was interrupted", p.Destination, m.Backup, catalog.FormatTime(m.Finished)),
			"complete that first, with the same command; or `holdfast backup-fetch --delta` makes the directory as a backup has it"}
	case m != nil:
		c.Continues, p.continues = true, true
	case errControl != nil:
		return &RefusedError{fmt.Sprintf("%s does not prove to be a data directory of the cluster: %v", p.Destination, errControl), "name the data directory of the standby that lags behind"}
	case is.SystemIdentifier != p.systemIdentifier:
		return p.otherCluster(is.SystemIdentifier)
	case is.CatalogVersion != p.control.CatalogVersion || is.BlockSize != p.control.BlockSize || is.BlocksPerSegment != p.control.BlocksPerSegment:
		return &RefusedError{fmt.Sprintf("%s is of PostgreSQL %d, catalog version %d; %s of PostgreSQL %d, %d", p.Destination, is.Major, is.CatalogVersion, p.Backup,
			p.control.Major, p.control.CatalogVersion), "make the standby anew"}
	case is.ChecksumVersion == 0 && p.control.ChecksumVersion != 0:
		return &RefusedError{fmt.Sprintf("the pages of %s have no checksums, those of %s have", p.Destination, p.Backup),
			"pg_checksums --enable gives the standby's theirs, while it is shut down"}
	case labelled:
		return &RefusedError{fmt.Sprintf("%s holds a base backup with which no server was started yet: there is a %s in it", p.Destination, labelFile),
			"start it once, so that it replays the backup's WAL; or restore a newer backup"}
	default:
		if c.Standby, err = stateOf(p.Destination, is); err != nil {
			return err
		}
	}
	if err := p.checkStopped(); err != nil {
		return err
	}
	for _, dir := range catchUpDirs {
		info, err := os.Lstat(filepath.Join(p.Destination, dir))
		if err == nil && !info.IsDir() {
			return &RefusedError{fmt.Sprintf("%s in %s is no directory, or a link to one", dir, p.Destination), "put the data back in its place, and use tablespaces to keep it elsewhere"}
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// placeTablespaces leaves the standby's tablespaces where they are, and finds places for new ones.
func (c *CatchUp) placeTablespaces(r CatchUpRequest) error {
	p := c.plan
	mapping := map[string]string{}
	for from, to := range r.TablespaceMapping {
		mapping[from] = to
	}
	if spec := p.newest.Sentinel.Spec; spec != nil {
		for _, ts := range spec.Tablespaces {
			is, err := os.Readlink(filepath.Join(p.Destination, "pg_tblspc", ts.OID))
			if err != nil || mapping[ts.OID] != "" || mapping[filepath.Clean(ts.Location)] != "" {
				continue // checkLinks judges it
			}
			mapping[ts.OID] = is
		}
	}
	if err := p.placeTablespaces(Request{Choice: catalog.Choice{Backup: p.newest}, TablespaceMapping: mapping}); err != nil {
		return err
	}
	if err := p.checkPlaces(); err != nil {
		return err
	}
	return p.checkLinks()
}

// maxLacking is how many files an error names.
const maxLacking = 5

// lackingError says which files of the standby increments do not fit.
type lackingError struct {
	catchUp, dir string
	files        []string // the first ones
	all          int
	ours         bool
}

func (e *lackingError) Error() string {
	return fmt.Sprintf("%s does not have, or not all of, %d files of which %s holds only what has changed, such as %s", e.dir, e.all, e.catchUp, strings.Join(e.files, ", "))
}

// Hint says how to go on.
func (e *lackingError) Hint() string {
	if !e.ours {
		return "make the standby anew, or let `holdfast catchup-push` make a catch-up"
	}
	dirs := make([]string, len(e.files))
	for i, f := range e.files {
		dirs[i] = "--whole '" + path.Dir(f) + "/*'"
	}
	slices.Sort(dirs)
	return "push again with these files whole: holdfast catchup-push … " + strings.Join(slices.Compact(dirs), " ") +
		". Where they were a database's that was copied this is all; otherwise ask whether this standby is whole"
}

// surveying is a survey at work.
type surveying struct {
	*CatchUp
	tree    *tree
	folder  folder
	grows   map[string]int64 // bytes by destination
	files   map[string]int64 // to be made, the same
	lacking lackingError
}

// survey goes through what the catch-up holds, and compares with what is there as far as is needed to know that it fits.
func (c *CatchUp) survey(ctx context.Context, a *archive.Archive) error {
	p := c.plan
	t, err := openTree(p, true)
	if err != nil {
		return err
	}
	defer t.close() // nothing was written
	s := &surveying{CatchUp: c, tree: t, grows: map[string]int64{}, files: map[string]int64{}}
	defer s.folder.leave()
	err = s.manifest(ctx, a)
	s.lacking.ours = err == nil
	if errors.Is(err, fs.ErrNotExist) {
		err = s.list(ctx, a)
	}
	if err == nil {
		err = p.files.sort()
	}
	if err != nil {
		return fmt.Errorf("apply %s: %w", c.Backup, err)
	}
	if s.lacking.all > 0 {
		s.lacking.catchUp, s.lacking.dir = c.Backup, c.Destination
		return &s.lacking
	}
	r := newRun(a, p, Options{})
	r.tree = t
	extra, err := r.sweepCatchUp(false)
	if err != nil {
		return err
	}
	c.ExtraFiles, c.ExtraBytes = extra.files, extra.bytes
	p.Notes = append(p.Notes, r.notes.all...)
	for dir, n := range extra.perDir {
		s.grows[dir] -= n
	}
	for dir, n := range s.grows {
		s.grows[dir] = max(0, n)
	}
	return p.measure(s.grows, s.files)
}

// manifest surveys a catch-up of ours.
func (s *surveying) manifest(ctx context.Context, a *archive.Archive) error {
	m, err := a.OpenManifest(ctx, s.Backup)
	if err != nil {
		return err
	}
	defer m.Close() // only read
	sizes := map[string]int64{}
	for _, part := range s.plan.parts {
		sizes[part.Name] = part.Size
	}
	for {
		part, err := m.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		switch stored, ok := sizes[part.Name]; {
		case !ok:
			return fmt.Errorf("%s is missing in the archive", part.Name)
		case stored != part.Size:
			return fmt.Errorf("%s has %d bytes in the archive, the manifest says %d", part.Name, stored, part.Size)
		}
		delete(sizes, part.Name)
		if _, err := chain.Contents(part.Name, part.Members); err != nil {
			return err
		}
		for i := range part.Members {
			if err := s.member(&part.Members[i]); err != nil {
				return err
			}
		}
	}
	for name := range sizes {
		return fmt.Errorf("%s is in the archive, and the manifest does not list it", name)
	}
	switch want := s.plan.newest.Sentinel.Manifest; {
	case m.Sum() != want:
		return errors.New("its manifest is not the one that its sentinel names")
	case m.Header.Since == nil || *m.Header.Since != *s.plan.newest.Sentinel.DeltaLSN:
		return errors.New("its manifest is for another position than its sentinel")
	}
	s.Verified, s.plan.Verified = true, true
	return nil
}

// member enters what the manifest says of a file, a directory or a link.
func (s *surveying) member(m *tarpart.Member) error {
	if isHeld(m.Path) {
		return nil
	}
	s.plan.files.add(m.Path, true, m.Increment == nil)
	if m.Type != tarpart.File || staysStandbys(m.Path) {
		return nil
	}
	s.Bytes += m.Size
	is, err := s.folder.size(s.tree, m.Path)
	if err != nil {
		return err
	}
	dir := s.plan.directoryOf(m.Path)
	s.grows[dir] += m.Total() - max(is, 0)
	if is < 0 {
		s.files[dir]++
	}
	if m.Increment == nil {
		s.Whole++
		return nil
	}
	s.Incremental++
	s.Pages += int64(m.Pages)
	stored, err := m.Blocks()
	if err != nil {
		return err
	}
	if s.lacks(m.Path, is, m.Total(), func(block uint32) uint64 {
		n := stored.GetCardinality()
		if block > 0 {
			n -= stored.Rank(block - 1)
		}
		return n
	}) {
		if s.lacking.all++; len(s.lacking.files) < maxLacking {
			s.lacking.files = append(s.lacking.files, m.Path)
		}
	}
	return nil
}

// lacks reports whether an increment of a file that will have size bytes does not do for the one that has is, below 0 where there is none. from says how many
// of the increment's blocks are not before a block.
func (c *CatchUp) lacks(name string, is, size int64, from func(block uint32) uint64) bool {
	have := max(is, 0) / page.Size // a page that is not whole is none
	need := size/page.Size - have
	if need <= 0 || from(uint32(have)) == uint64(need) {
		return false
	}
	segment, _ := segmentOf(name)
	return c.strict || is < 0 && segment == 0
}

// list surveys a catch-up of WAL-G, whose list names files, and which of them are increments.
func (s *surveying) list(ctx context.Context, a *archive.Archive) error {
	sentinel := s.plan.newest.Sentinel
	if sentinel.Manifest != "" {
		return errors.New("its manifest is missing")
	}
	s.Bytes = sentinel.UncompressedSize
	s.plan.note("the contents cannot be verified: WAL-G keeps no checksums of files")
	err := a.ReadFileList(ctx, s.Backup, sentinel, archive.FileListVisitor{File: func(f archive.ListedFile) error {
		switch {
		case isHeld(f.Path):
			return nil
		case f.Skipped:
			return fmt.Errorf("its list says that %s is in another backup", f.Path)
		}
		s.plan.files.add(f.Path, true, !f.Incremented)
		if f.Incremented {
			s.Incremental++
		} else {
			s.Whole++
		}
		return nil
	}})
	if errors.Is(err, archive.ErrNoFileList) {
		err = errors.New("it has no list of its files, and what is to go is not known")
	}
	return err
}

// size returns how long the file p is; -1 where there is none. It refuses what cannot be changed without something else being changed.
func (f *folder) size(t *tree, p string) (int64, error) {
	name, err := f.enterThere(t, p)
	if errors.Is(err, fs.ErrNotExist) {
		return -1, nil
	}
	if err != nil {
		return 0, err
	}
	info, err := f.root.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return -1, nil
	case err != nil:
		return 0, err
	case !single(info):
		return 0, &RefusedError{fmt.Sprintf("%s is no plain file, or has other names that lead to it", p), "the standby's files must be its own: copy the directory"}
	}
	return info.Size(), nil
}

// checkState refuses a standby that the catch-up is not for.
func (c *CatchUp) checkState(cat *catalog.Catalog) error {
	s := c.Standby
	if s == nil {
		return nil
	}
	p := c.plan
	way, err := cat.PathTo(c.Timeline)
	if err != nil {
		return err
	}
	for at, t := range map[wal.LSN]wal.Timeline{s.Redo: s.redoTimeline, s.Reach: s.Timeline} {
		leg, ok := way.Leg(t)
		if !ok || leg.End != 0 && at > leg.End {
			why := "of which timeline %d does not come"
			if ok {
				why = "past where timeline %d begins"
			}
			return &RefusedError{fmt.Sprintf("%s is at %s on timeline %d, "+why, c.Destination, at, t, c.Timeline),
				"it went another way than the server that the catch-up is of: see pg_rewind, or make the standby anew"}
		}
	}
	if s.Redo >= p.startLSN || s.Reach > p.finishLSN {
		return &RefusedError{fmt.Sprintf("%s is at %s, and has changes up to %s: it is already beyond %s, which goes from %s to %s", c.Destination, s.Redo, s.Reach, c.Backup, p.startLSN, p.finishLSN),
			"the WAL behind is what it needs; where that is lost take another catch-up: holdfast catchup-push … --from-lsn " + s.RedoLSN}
	}
	if since := *p.newest.Sentinel.DeltaLSN; c.Incremental > 0 && s.Redo < since {
		return &RefusedError{fmt.Sprintf("%s is at %s, and %s holds what has changed since %s", c.Destination, s.Redo, c.Backup, since),
			"take one that begins there: holdfast catchup-push … --from-lsn " + s.RedoLSN}
	}
	return nil
}

// checkStandby sees to it that the server will start as a standby.
func (c *CatchUp) checkStandby() error {
	if c.plan.control.Major >= 12 {
		if !exists(filepath.Join(c.Destination, "standby.signal")) {
			c.Signal = "standby.signal"
			c.plan.note("there is no standby.signal: one is made. See that primary_conninfo or restore_command is set, or both")
		}
		return nil
	}
	conf, err := os.ReadFile(filepath.Join(c.Destination, "recovery.conf"))
	why := ""
	switch found := standbyMode.FindAllSubmatch(conf, -1); {
	case errors.Is(err, fs.ErrNotExist):
		why = "no recovery.conf"
	case err != nil:
		return err
	case len(found) == 0 || found[len(found)-1][1] == nil: // the last one counts
		why = "a recovery.conf without standby_mode = on"
	default:
		return nil
	}
	return &RefusedError{fmt.Sprintf("%s has %s: PostgreSQL %d would start there as another primary", c.Destination, why, c.plan.control.Major),
		"write one with standby_mode = on and primary_conninfo or restore_command, or both"}
}

// standbyMode finds the setting of a recovery.conf; in it the value if that is true (parse_bool_with_len in src/backend/utils/adt/bool.c).
var standbyMode = regexp.MustCompile(`(?im)^[ \t]*standby_mode[ \t=]+(?:'?(on|t|tr|tru|true|y|ye|yes|1)'?[ \t\r]*(?:#.*)?$)?`)

// reach says which WAL the standby will need. It may come from the primary: that the archive lacks some is a note.
func (c *CatchUp) reach(ctx context.Context, a *archive.Archive, cat *catalog.Catalog) error {
	way, err := cat.PathTo(c.Timeline)
	if err != nil {
		return err
	}
	return c.plan.reachWAL(ctx, a, Request{Choice: catalog.Choice{Backup: c.plan.newest, Path: way}})
}

// catchUpMarker is a file in a data directory that is being brought forward: from before the first file is changed until pg_control is in place again
// and all is durable.
const catchUpMarker = "holdfast_catchup.json"

// readCatchUpMarker reads the marker in dir, whose form is that of a restore's. fs.ErrNotExist where there is none, errTorn where it is not whole.
func readCatchUpMarker(dir string) (*marker, error) {
	return loadMarker(filepath.Join(dir, catchUpMarker), "is of another release", "complete what that one has begun with it")
}

// Line sums up what will be done.
func (c *CatchUp) Line() string {
	size := func(n int64) string { return humanize.IBytes(uint64(n)) }
	pages := ""
	if c.Pages > 0 {
		pages = fmt.Sprintf(" with %s pages", humanize.Comma(c.Pages))
	}
	return fmt.Sprintf("%s files whole, %s in part%s, %s to write; %s files are not in it and go (%s); %s to fetch", humanize.Comma(c.Whole), humanize.Comma(c.Incremental), pages,
		size(c.Bytes), humanize.Comma(c.ExtraFiles), size(c.ExtraBytes), size(c.Stored))
}
