// Package restore rebuilds a data directory from an archive.
//
// Decide says what will be done, without doing anything: a Plan is a value to print or to refuse. Run does it. Workers
// share out the contents of the parts; every file's checksum is compared with the manifest's while it is written; then all
// is synced, and only after that pg_control appears, without which PostgreSQL does not start. A restore that ends early,
// for whatever reason, leaves a marker file with which another Run continues it.
//
// Nothing is written outside the destination and the tablespaces' directories, whatever the archive says.
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
	"runtime"
	"slices"
	"strings"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/chain"
	"holdfast/internal/pg/control"
	"holdfast/internal/pg/wal"
	"holdfast/internal/tarpart"
)

// Request says what to restore, and where.
type Request struct {
	Destination string         // absolute
	Choice      catalog.Choice // the backup, and the target if there is one
	Resume      bool           // continue a restore that was interrupted
	Delta       bool           // Destination is a data directory of the cluster: what differs is written, what the backup does not have goes
	Mask        string         // only files whose path in the data directory matches, as path.Match does; "" for all

	// Hollow says which files get their size and no content, for a copy in which nobody reads them; nil for none. Nothing of them is fetched, and they take
	// no room. It needs a manifest, and goes with neither Resume, Delta, Mask nor Source.
	Hollow func(path string) bool

	Source *Source // where the files come from; nil for the archive. It goes with no Delta

	// Where tablespaces go: for each an absolute directory, by object identifier or by the directory it had. One that
	// is not mentioned goes where it was.
	TablespaceMapping map[string]string
	Spec              *archive.TablespaceSpec // where tablespaces go instead of what the backup says; nil for none

	Owner          string    // user who shall own the files; only root may give files away. "" is decided by what is there
	Recovery       *Recovery // nil: no recovery is set up
	ConfigDir      string    // where configuration from outside the data directory goes, below its old path; "" for nowhere
	ConfigIntoData bool      // put that configuration into the data directory instead
}

// Plan is what Run will do.
type Plan struct {
	Backup      string       `json:"backup"`
	Started     time.Time    `json:"started"`
	Finished    time.Time    `json:"finished"`
	StartLSN    string       `json:"start_lsn,omitempty"`
	FinishLSN   string       `json:"finish_lsn,omitempty"`
	Timeline    wal.Timeline `json:"timeline"`
	PgVersion   int          `json:"pg_version,omitempty"` // server_version_num; 0 where the backup does not say
	Destination string       `json:"destination"`
	Tablespaces []Tablespace `json:"tablespaces,omitempty"`
	Owner       *Owner       `json:"owner,omitempty"` // nil: files belong to who runs this
	Resume      bool         `json:"resume,omitempty"`
	Mask        string       `json:"mask,omitempty"` // restored are the files that match it, and nothing else

	Chain []Link       `json:"chain,omitempty"` // of a delta: what it is put together from, newest first
	Delta *Differences `json:"delta,omitempty"` // what differs from the directory that is there, once Compare has looked; nil for another restore

	Hollowed *Hollowed `json:"hollow,omitempty"` // what has no content in the end; nil where everything has

	Verified bool   `json:"verified"`        // contents are checked against the backup's manifest
	Parts    int    `json:"parts"`           // to be read
	Files    int64  `json:"files,omitempty"` // 0 where there is no manifest
	Stored   int64  `json:"stored_bytes"`    // to be read from the archive
	Bytes    int64  `json:"bytes"`           // to be written
	Rooms    []Room `json:"rooms"`

	FirstWAL  string    `json:"first_wal,omitempty"`  // replaying begins with this segment
	NeededWAL string    `json:"needed_wal,omitempty"` // and must reach this one for the backup to be consistent
	LastWAL   string    `json:"last_wal,omitempty"`   // without a gap the archive reaches to this one
	LastAt    time.Time `json:"last_wal_archived,omitzero"`
	Pieces    bool      `json:"last_wal_in_pieces,omitempty"` // of it the archive has pieces, which may end before it does

	Target   string   `json:"target,omitempty"`   // what recovery leads to; "" where none is set up
	Settings []string `json:"settings,omitempty"` // lines for PostgreSQL
	Signal   string   `json:"signal,omitempty"`   // file that tells PostgreSQL to recover
	Notes    []string `json:"notes,omitempty"`    // what is worth knowing before

	ConfigDir      string `json:"config_dir,omitempty"`
	ConfigIntoData bool   `json:"config_into_data,omitempty"`

	systemIdentifier uint64
	startLSN         wal.LSN
	finishLSN        wal.LSN
	newest           *catalog.Backup
	parts            []archive.Part // of the newest backup
	links            []link         // what is restored without a manifest, newest first
	source           *Source        // nil where the files are in the archive
	chain            *chain.Chain   // what is restored by the manifests of several backups, or by differences; nil for what is not
	files            *table         // of links; nil where there is no list
	control          *control.Data  // nil where it was not read yet
	settingsFile     string
	continues        bool // an interrupted restore, whose marker is there
	hollow           func(path string) bool
	config           moved // where configuration goes that is put into the data directory
}

// Hollowed says what a restore of a part leaves out.
type Hollowed struct {
	Files  int64 `json:"files"`        // that have their size only
	Bytes  int64 `json:"bytes"`        // of these
	Stored int64 `json:"stored_bytes"` // that a whole restore would read from the archive, beside Plan.Stored
}

// Tablespace says where one goes.
type Tablespace struct {
	OID  string `json:"oid"`
	From string `json:"from"` // directory it had, "" where that is not known
	To   string `json:"to"`
}

// Owner is who gets the restored files.
type Owner struct {
	UID  int    `json:"uid"`
	GID  int    `json:"gid"`
	Name string `json:"name,omitempty"`
}

// Room is what a file system has and what will be written to it.
type Room struct {
	Dirs  []string `json:"dirs"`  // destinations on it
	Need  int64    `json:"need"`  // bytes of contents
	Free  int64    `json:"free"`  // bytes
	Files int64    `json:"files"` // to be made, directories included; 0 where that is not known
	// Inodes is how many more files the file system says it takes; 0 where it does not say.
	Inodes int64 `json:"inodes,omitempty"`
}

// RefusedError says why a restore is not begun, and what to do.
type RefusedError struct {
	Reason string
	Advice string
}

func (e *RefusedError) Error() string { return e.Reason }

// Hint says how to go on.
func (e *RefusedError) Hint() string { return e.Advice }

// Decide works out a restore. Nothing is written, neither to disk nor to the archive.
func Decide(ctx context.Context, a *archive.Archive, r Request) (*Plan, error) {
	b := r.Choice.Backup
	if b.Sentinel == nil {
		return nil, fmt.Errorf("restore %s: %w", b.Name, b.Err)
	}
	backups, err := chainOf(r.Choice)
	if err != nil {
		return nil, err
	}
	p := &Plan{
		Backup: b.Name, Started: b.Started(), Finished: b.Created(), Timeline: b.Timeline(), PgVersion: b.Sentinel.PgVersion,
		Destination: filepath.Clean(r.Destination), Resume: r.Resume, Mask: strings.TrimPrefix(r.Mask, "/"),
		ConfigDir: r.ConfigDir, ConfigIntoData: r.ConfigIntoData, newest: b,
	}
	if r.Delta && r.Source != nil {
		return nil, errors.New("only a backup in an archive of ours can be compared with what is there")
	}
	if r.Delta {
		p.Delta = &Differences{}
	}
	if r.Hollow != nil {
		if r.Delta || r.Resume || r.Mask != "" || r.Source != nil {
			return nil, errors.New("only a new restore from an archive of ours can leave the content of files out")
		}
		p.Hollowed, p.hollow = &Hollowed{}, r.Hollow
	}
	if !filepath.IsAbs(p.Destination) {
		return nil, fmt.Errorf("restore to %s: the destination must be an absolute path", r.Destination)
	}
	if b.Sentinel.SystemIdentifier != nil {
		p.systemIdentifier = *b.Sentinel.SystemIdentifier
	}
	if lsn, ok := b.StartLSN(); ok {
		p.startLSN, p.StartLSN = lsn, lsn.String()
	}
	if lsn, ok := b.FinishLSN(); ok {
		p.finishLSN, p.FinishLSN = lsn, lsn.String()
	}
	steps := []func() error{
		func() error { return p.placeTablespaces(r) },
		func() error { return p.checkDestinations(ctx, a) },
		func() error { return p.survey(ctx, a, backups, r.Source) },
		func() error { return p.checkConfig(ctx, a) },
		func() error { return p.findOwner(ctx, a, r.Owner) },
		func() error { return p.reachWAL(ctx, a, r) },
		func() error { return p.planRecovery(r) },
	}
	if p.Mask != "" {
		steps = []func() error{
			func() error { return p.checkMask(r) },
			func() error { return p.checkDestinations(ctx, a) },
			func() error { return p.survey(ctx, a, backups, r.Source) },
			func() error { return p.findOwner(ctx, a, r.Owner) },
		}
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (p *Plan) note(format string, args ...any) {
	p.Notes = append(p.Notes, fmt.Sprintf(format, args...))
}

// checkMask refuses what makes no sense for a choice of files. Those of tablespaces go into pg_tblspc itself: nothing is written
// where a cluster may be using them.
func (p *Plan) checkMask(r Request) error {
	if _, err := path.Match(p.Mask, ""); err != nil {
		return fmt.Errorf("mask %q: %w", r.Mask, err)
	}
	if r.Delta {
		return &RefusedError{"a mask restores files into an empty directory, and goes with no delta", "leave one of the two away"}
	}
	if r.Recovery != nil || r.ConfigDir != "" || r.ConfigIntoData || r.Spec != nil || len(r.TablespaceMapping) > 0 {
		return &RefusedError{"a mask restores files, not a cluster: it goes with no target, no tablespaces and no configuration", "leave the mask away, or the others"}
	}
	p.note("only files that match %q are restored: PostgreSQL cannot start on them", p.Mask)
	return nil
}

// placeTablespaces says where each tablespace goes.
func (p *Plan) placeTablespaces(r Request) error {
	was := r.Choice.Backup.Sentinel.Spec
	spec := was
	if r.Spec != nil {
		spec = r.Spec
		if spec.BasePrefix != "" && filepath.Clean(spec.BasePrefix) != p.Destination {
			return &RefusedError{
				fmt.Sprintf("the restore spec is for %s, the destination is %s", spec.BasePrefix, p.Destination),
				"make base_prefix the destination, or leave it empty",
			}
		}
	}
	unused := make(map[string]bool, len(r.TablespaceMapping))
	for from := range r.TablespaceMapping {
		unused[from] = true
	}
	if spec != nil {
		for _, ts := range spec.Tablespaces {
			t := Tablespace{OID: ts.OID, From: original(was, ts.OID), To: filepath.Clean(ts.Location)}
			if r.Spec == nil && spec.BasePrefix != "" { // one inside the data directory moves with it
				if inside, ok := strings.CutPrefix(t.To, filepath.Clean(spec.BasePrefix)+"/"); ok {
					t.To = filepath.Join(p.Destination, inside)
				}
			}
			for _, from := range []string{t.From, t.OID} {
				if to, ok := r.TablespaceMapping[from]; ok && from != "" {
					t.To = filepath.Clean(to)
					delete(unused, from)
				}
			}
			p.Tablespaces = append(p.Tablespaces, t)
		}
	}
	for from := range unused {
		return &RefusedError{fmt.Sprintf("the backup has no tablespace %q to map", from), "see where its tablespaces are with --dry-run"}
	}
	if was != nil && r.Spec != nil {
		for _, ts := range was.Tablespaces {
			if !slices.ContainsFunc(p.Tablespaces, func(t Tablespace) bool { return t.OID == ts.OID }) {
				return &RefusedError{fmt.Sprintf("the restore spec does not say where tablespace %s goes, which was in %s", ts.OID, ts.Location),
					fmt.Sprintf("add %s to the spec's tablespaces, with its loc", ts.OID)}
			}
		}
	}
	return nil
}

// original returns where a tablespace lay when the backup was taken.
func original(spec *archive.TablespaceSpec, oid string) string {
	if spec != nil {
		for _, ts := range spec.Tablespaces {
			if ts.OID == oid {
				return filepath.Clean(ts.Location)
			}
		}
	}
	return ""
}

// within reports whether dir is the directory outer or lies below it.
func within(dir, outer string) bool {
	return dir == outer || strings.HasPrefix(dir, strings.TrimSuffix(outer, "/")+"/")
}

// checkPlaces refuses places for tablespaces that overlap with others.
func (p *Plan) checkPlaces() error {
	for i, ts := range p.Tablespaces {
		if !filepath.IsAbs(ts.To) {
			return fmt.Errorf("tablespace %s: its location %s is not an absolute path", ts.OID, ts.To)
		}
		if within(p.Destination, ts.To) {
			return fmt.Errorf("tablespace %s: its location %s holds the destination %s", ts.OID, ts.To, p.Destination)
		}
		for _, other := range p.Tablespaces[:i] {
			if within(ts.To, other.To) || within(other.To, ts.To) {
				return fmt.Errorf("tablespaces %s and %s: their locations %s and %s overlap", other.OID, ts.OID, other.To, ts.To)
			}
		}
	}
	return nil
}

// checkDestinations refuses directories that are in use or overlap. After an interrupted restore they hold what
// that one wrote.
func (p *Plan) checkDestinations(ctx context.Context, a *archive.Archive) error {
	if err := p.checkPlaces(); err != nil {
		return err
	}
	if p.Delta != nil {
		return p.checkExisting(ctx, a)
	}
	m, err := readMarker(p.Destination)
	torn := errors.Is(err, errTorn)
	switch {
	case errors.Is(err, fs.ErrNotExist), torn:
	case err != nil:
		return err
	case !p.Resume && !m.Delta:
		return &RefusedError{
			fmt.Sprintf("%s holds a restore of %s that was interrupted", p.Destination, m.Backup),
			"continue it with --resume, or remove the directory's content",
		}
	default:
		p.continues = true
		return m.continues(p)
	}
	var passed []string // a marker that is not whole lies alone in its directory, or is none of ours
	if torn {
		passed = append(passed, markerName)
	}
	empty, err := emptyDir(p.Destination, passed...)
	if err != nil {
		return err
	}
	if !empty && p.Resume {
		return &RefusedError{fmt.Sprintf("%s holds no restore that was interrupted, and it is not empty", p.Destination),
			"restore without --resume, into an empty or a new directory"}
	}
	if !empty {
		return &RefusedError{fmt.Sprintf("the destination %s is not empty", p.Destination), "restore into an empty or a new directory, or with --delta into one of this cluster"}
	}
	for _, ts := range p.Tablespaces {
		empty, err := emptyDir(ts.To)
		if err != nil {
			return err
		}
		if !empty {
			return &RefusedError{
				fmt.Sprintf("the directory %s for tablespace %s is not empty", ts.To, ts.OID),
				fmt.Sprintf("another cluster may be using it. Give another one: --tablespace-mapping %s=DIRECTORY", ts.OID),
			}
		}
	}
	return nil
}

// survey looks at what there is to restore: the parts, and what the manifest or the lists of files say of them.
func (p *Plan) survey(ctx context.Context, a *archive.Archive, backups []*catalog.Backup, source *Source) (err error) {
	if source != nil {
		return p.surveySource(source)
	}
	b := backups[0]
	if p.parts, err = p.partsOf(ctx, a, b); err != nil {
		return err
	}
	if !b.IsWALE() && !slices.ContainsFunc(p.parts, archive.Part.IsControl) {
		return fmt.Errorf("restore %s: the backup has no part with pg_control", p.Backup)
	}
	complete, err := chain.Complete(ctx, a, backups)
	switch {
	case err != nil:
		return err
	case !complete && p.Delta != nil:
		return &RefusedError{fmt.Sprintf("backup %s cannot be compared with what is in %s: there is no manifest with checksums, WAL-G and WAL-E made none", p.Backup, p.Destination),
			"restore it into an empty directory, or take another backup"}
	case !complete && p.hollow != nil:
		return &RefusedError{fmt.Sprintf("backup %s cannot be restored in part: it has no manifest with the places of files, WAL-G and WAL-E made none", p.Backup), "restore all of it"}
	case !complete:
		return p.surveyLists(ctx, a, backups)
	case p.Delta != nil || len(backups) > 1 || p.hollow != nil:
		return p.surveyChain(ctx, a, backups)
	}
	m, err := a.OpenManifest(ctx, b.Name)
	if err != nil {
		return err
	}
	defer m.Close() // only read
	p.Verified = true
	p.Parts = len(p.parts)
	for _, part := range p.parts {
		p.Stored += part.Size
	}
	if err := p.readable(b.Name, p.parts); err != nil {
		return err
	}
	sizes := make(map[string]int64, len(p.parts))
	for _, part := range p.parts {
		sizes[part.Name] = part.Size
	}
	c := newCensus(p)
	for {
		part, err := m.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		stored, ok := sizes[part.Name]
		switch {
		case !ok:
			return fmt.Errorf("restore %s: %s is missing in the archive: %w", b.Name, part.Name, fs.ErrNotExist)
		case stored != part.Size:
			return fmt.Errorf("restore %s: %s has %d bytes in the archive, the manifest says %d", b.Name, part.Name, stored, part.Size)
		}
		delete(sizes, part.Name)
		if _, err := chain.Contents(part.Name, part.Members); err != nil {
			return fmt.Errorf("restore %s: %w", b.Name, err)
		}
		for i := range part.Members {
			m := &part.Members[i]
			if m.Increment != nil {
				return fmt.Errorf("restore %s: it is a full backup, and its manifest has %s as an increment", b.Name, m.Path)
			}
			c.count(m)
			c.see(m)
		}
	}
	c.tell()
	if p.Files == 0 && p.Mask != "" {
		return p.noMatch()
	}
	for name := range sizes {
		p.note("%s lies beside the backup's parts but the manifest does not list it: it is left alone", name)
	}
	return p.measure(c.bytes, c.files)
}

// census counts what is restored.
type census struct {
	*Plan
	bytes, files map[string]int64 // by destination
	corrupt      int              // files with corrupt pages
}

func newCensus(p *Plan) *census { return &census{p, map[string]int64{}, map[string]int64{}, 0} }

// count enters what is in the newest backup.
func (c *census) count(m *tarpart.Member) {
	if !c.wants(m.Path, m.Type) {
		return
	}
	dir := c.directoryOf(m.Path)
	c.files[dir]++
	c.Files++
	if c.isHollow(m.Path) {
		c.Hollowed.Files++
		c.Hollowed.Bytes += m.Total()
	} else if m.Type == tarpart.File {
		c.bytes[dir] += m.Total()
		c.Bytes += m.Total()
	}
}

// see notes pages that were corrupt in what is restored of any backup.
func (c *census) see(m *tarpart.Member) {
	if m.CorruptCount > 0 && c.wants(m.Path, m.Type) && !c.isHollow(m.Path) {
		if c.corrupt++; c.corrupt <= maxCorruptNotes {
			c.note("%s had %d corrupt pages when the backup was taken", m.Path, m.CorruptCount)
		}
	}
}

// tell says how many files there were.
func (c *census) tell() {
	if c.corrupt > maxCorruptNotes {
		c.note("%d files in all had corrupt pages", c.corrupt)
	}
}

// maxCorruptNotes is how many files with corrupt pages a plan names.
const maxCorruptNotes = 10

// directoryOf returns which destination a member goes to.
func (p *Plan) directoryOf(member string) string {
	if rest, ok := strings.CutPrefix(member, "pg_tblspc/"); ok {
		oid, _, _ := strings.Cut(rest, "/")
		for _, ts := range p.Tablespaces {
			if ts.OID == oid {
				return ts.To
			}
		}
	}
	return p.Destination
}

// reachWAL says which WAL goes with the backup, and refuses targets that the archive cannot reach.
func (p *Plan) reachWAL(ctx context.Context, a *archive.Archive, r Request) error {
	if r.Choice.Backup.Segment() == "" {
		p.note("the backup was taken while the server was stopped: it is consistent without WAL, and none can be replayed over it")
		return nil
	}
	reach, err := r.Choice.Reach(ctx, a)
	p.FirstWAL, p.NeededWAL, p.LastWAL, p.LastAt, p.Pieces = reach.First, reach.Consistent, reach.Last, reach.Archived, reach.Pieces
	if err != nil && r.Recovery == nil && ctx.Err() == nil {
		p.note("%v", err) // the WAL may come from elsewhere
		return nil
	}
	if err != nil {
		return err
	}
	if reach.Pieces {
		p.note("of the last WAL segment, %s, the archive has pieces, up to %s, the youngest stored at %s", reach.Last, reach.End, catalog.FormatTime(reach.Archived))
	}
	if t := r.Choice.Target; t.Kind == catalog.AtTime && reach.Archived.Before(t.Time) {
		p.note("the last WAL segment before a gap, %s, was archived at %s, before the target: it may not reach that far, and then PostgreSQL stops with an error",
			reach.Last, catalog.FormatTime(reach.Archived))
	}
	return nil
}

// Workers is how many goroutines a restore uses unless told otherwise: one per processor.
func Workers() int { return runtime.GOMAXPROCS(0) }

// checkConfig looks whether there is configuration to restore where that is asked for, and says so where it is not.
func (p *Plan) checkConfig(ctx context.Context, a *archive.Archive) error {
	asked := p.ConfigDir != "" || p.ConfigIntoData
	if p.ConfigDir != "" && !filepath.IsAbs(p.ConfigDir) {
		return fmt.Errorf("restore the configuration to %s: not an absolute path", p.ConfigDir)
	}
	files, err := configFiles(ctx, a, p.Backup)
	if errors.Is(err, fs.ErrNotExist) {
		if asked {
			return &RefusedError{fmt.Sprintf("backup %s holds no configuration from outside the data directory", p.Backup),
				"its postgresql.conf is in the data directory, or another program took the backup"}
		}
		return nil
	}
	if err != nil {
		return err
	}
	if !asked {
		p.note("the configuration was outside the data directory (%s); --config-into-pgdata puts it there, --restore-config DIR below DIR", files[0])
	}
	if p.ConfigIntoData {
		p.config = moved{main: files[0], files: files, data: p.Destination}
	}
	if p.ConfigDir != "" && !p.Resume {
		for _, name := range files {
			if at := filepath.Join(p.ConfigDir, name); exists(at) {
				return &RefusedError{fmt.Sprintf("%s is there already, and configuration is not replaced", at), "give --restore-config another directory"}
			}
		}
	}
	return nil
}

// exists reports whether there is anything at path.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// isDir reports whether there is a directory at path.
func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}
