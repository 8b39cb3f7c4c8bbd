package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"holdfast/internal/archive"
	"holdfast/internal/pg/control"
	"holdfast/internal/pg/manifest"
	"holdfast/internal/pg/wal"
	"holdfast/internal/tarpart"
)

// checkExisting refuses directories that a restore of differences must not touch: of other clusters, in use, or with tablespaces that are elsewhere than
// they are to go.
func (p *Plan) checkExisting(ctx context.Context, a *archive.Archive) error {
	if !isDir(p.Destination) {
		return &RefusedError{fmt.Sprintf("%s is no directory: there is nothing to compare with", p.Destination), "restore without --delta"}
	}
	if p.systemIdentifier == 0 {
		return &RefusedError{fmt.Sprintf("backup %s does not say of which cluster it is", p.Backup), "restore it into an empty directory"}
	}
	m, err := readMarker(p.Destination)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, errTorn):
		if err := p.checkControl(); err != nil {
			return err
		}
	case err != nil:
		return err
	case !m.Delta:
		return &RefusedError{fmt.Sprintf("%s holds a restore of %s that was interrupted", p.Destination, m.Backup),
			"continue it with --resume, or remove the directory's content"}
	case m.System != p.systemIdentifier:
		return p.otherCluster(m.System)
	case !reflect.DeepEqual(m.Tablespaces, p.marker().Tablespaces):
		return &RefusedError{fmt.Sprintf("the interrupted restore in %s puts the tablespaces elsewhere", p.Destination), "give the same mapping"}
	default:
		p.continues = true
	}
	for _, check := range []func() error{p.checkStopped, func() error { return p.checkArchived(ctx, a) }, p.checkLinks} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// otherCluster refuses a directory of another cluster.
func (p *Plan) otherCluster(is uint64) error {
	return &RefusedError{
		fmt.Sprintf("%s is of the cluster with system identifier %d, backup %s of the one with %d", p.Destination, is, p.Backup, p.systemIdentifier),
		"restore into another directory",
	}
}

// checkControl refuses a directory that is not the cluster's.
func (p *Plan) checkControl() error {
	c, _, err := control.Read(filepath.Join(p.Destination, control.Name))
	if m, errMarker := readCatchUpMarker(p.Destination); err != nil && errMarker == nil { // this restore takes its place
		c.SystemIdentifier, err = m.System, nil
	}
	if err != nil {
		return &RefusedError{fmt.Sprintf("%s does not prove to be a data directory of the cluster: %v", p.Destination, err),
			"restore into an empty directory, without --delta"}
	}
	if c.SystemIdentifier != p.systemIdentifier {
		return p.otherCluster(c.SystemIdentifier)
	}
	return nil
}

// checkStopped refuses a directory in which a server is running.
func (p *Plan) checkStopped() error {
	name := filepath.Join(p.Destination, "postmaster.pid")
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	first, _, _ := strings.Cut(string(b), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(first))
	if pid = max(pid, -pid); err == nil && pid > 0 { // a standalone backend's is negative
		if err := syscall.Kill(pid, 0); errors.Is(err, syscall.ESRCH) {
			return nil
		}
	}
	return &RefusedError{fmt.Sprintf("a PostgreSQL is running in %s: %s names process %s", p.Destination, name, first),
		"stop that server first. Should that process be none of PostgreSQL's, remove the file"}
}

// checkArchived refuses a directory with WAL that is nowhere else: pg_wal will be empty, as after any restore.
func (p *Plan) checkArchived(ctx context.Context, a *archive.Archive) error {
	names, err := os.ReadDir(filepath.Join(p.Destination, "pg_wal", "archive_status"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var lost []string
	for _, e := range names {
		segment, ready := strings.CutSuffix(e.Name(), ".ready")
		if ready && wal.KindOf(segment) != wal.Other && exists(filepath.Join(p.Destination, "pg_wal", segment)) {
			lost = append(lost, segment)
		}
	}
	of, err := p.localWAL()
	if err != nil {
		return err
	}
	for _, t := range slices.Sorted(maps.Keys(of)) {
		lacking, err := p.unarchived(ctx, a, t, of[t])
		if err != nil {
			return err
		}
		lost = append(lost, lacking...)
	}
	if len(lost) == 0 {
		return nil
	}
	return &RefusedError{
		fmt.Sprintf("pg_wal in %s holds %d WAL files that were never archived, such as %s, and would be emptied", p.Destination, len(lost), slices.Min(lost)),
		fmt.Sprintf("archive them (`holdfast wal-push --repair %s`, or wal-push of each), or keep them (`%s`); then remove pg_wal/archive_status/*.ready",
			p.Destination, p.keepWAL()),
	}
}

// keepWAL is the command after which no WAL of the directory is only there.
func (p *Plan) keepWAL() string { return fmt.Sprintf("cp -a %s/pg_wal %[1]s.pg_wal", p.Destination) }

// localSegment is a WAL segment in pg_wal.
type localSegment struct {
	name string
	no   wal.SegmentNo
	size wal.SegmentSize
	safe bool // PostgreSQL says whether it is archived, or keepWAL has copied it
}

// localWAL lists the segments in pg_wal that hold what their name says, ascending, and not those that were recycled for what is to come. Where pg_wal is a link
// there are none: what it leads to stays.
func (p *Plan) localWAL() (map[wal.Timeline][]localSegment, error) {
	dir := filepath.Join(p.Destination, "pg_wal")
	if info, err := os.Lstat(dir); err != nil || !info.IsDir() {
		return nil, nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	of := map[wal.Timeline][]localSegment{}
	for _, e := range entries {
		if !wal.IsSegment(e.Name()) || !e.Type().IsRegular() {
			continue
		}
		b, err := readStart(filepath.Join(dir, e.Name()), wal.HeaderLen)
		if err != nil {
			return nil, err
		}
		h, err := wal.ReadHeader(b)
		if err != nil || h.SystemIdentifier != p.systemIdentifier {
			continue
		}
		t, n, err := h.SegmentSize.ParseSegment(e.Name())
		if err != nil || h.SegmentSize.Start(n) != h.Address {
			continue
		}
		status := filepath.Join(dir, "archive_status", e.Name())
		of[t] = append(of[t], localSegment{e.Name(), n, h.SegmentSize, exists(status+".done") || exists(status+".ready") || p.copied(e.Name())})
	}
	return of, nil
}

// readStart reads the first n bytes of a file, or what it has of them.
func readStart(name string, n int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read
	return io.ReadAll(io.LimitReader(f, n))
}

// copied reports whether keepWAL has copied a segment, as it is.
func (p *Plan) copied(segment string) bool {
	is, err := os.Stat(filepath.Join(p.Destination, "pg_wal", segment))
	if err != nil {
		return false
	}
	kept, err := os.Stat(filepath.Join(p.Destination+".pg_wal", segment))
	return err == nil && !os.SameFile(is, kept) && kept.Size() == is.Size() && kept.ModTime().Equal(is.ModTime())
}

// unarchived returns the segments of a timeline of which PostgreSQL does not say whether they are archived, since archive_mode is off, and that the archive
// lacks. The newest, which hardly ever is whole, is noted alone: else each restore in place would be refused. So are those of a timeline that the archive has
// nothing of, such as a copy's that was promoted and does not archive.
func (p *Plan) unarchived(ctx context.Context, a *archive.Archive, t wal.Timeline, local []localSegment) (lacking []string, err error) {
	first := slices.IndexFunc(local, func(s localSegment) bool { return !s.safe })
	if first < 0 {
		return nil, nil
	}
	newest := local[len(local)-1]
	missing, err := a.MissingWAL(ctx, t, local[first].no, newest.no, newest.size, 0)
	if err != nil {
		return nil, err
	}
	for _, s := range local[first:] {
		if s.safe || !slices.Contains(missing, s.name) {
			continue
		}
		tail, err := a.Tail(ctx, s.name)
		switch {
		case err != nil:
			return nil, err
		case tail.Held == int64(s.size):
		case s == newest:
			p.note("of %s, the newest WAL segment in pg_wal, the archive has the first %d bytes: what it holds beyond goes. To keep that: %s", s.name, tail.Held, p.keepWAL())
		default:
			lacking = append(lacking, s.name)
		}
	}
	if len(lacking) == 0 || t == p.Timeline {
		return lacking, nil
	}
	if _, known, err := a.NewestWAL(ctx, t, 0, newest.size); known || err != nil {
		return lacking, err
	}
	p.note("of timeline %d the archive has no WAL: %d segments of it in pg_wal, from %s on, go. To keep them: %s", uint32(t), len(lacking), lacking[0], p.keepWAL())
	return nil, nil
}

// checkLinks refuses a directory whose tablespaces are not where they are to go.
func (p *Plan) checkLinks() error {
	for _, ts := range p.Tablespaces {
		link := filepath.Join(p.Destination, "pg_tblspc", ts.OID)
		is, err := os.Readlink(link)
		switch {
		case err == nil && filepath.Clean(is) != ts.To:
			return &RefusedError{fmt.Sprintf("tablespace %s of %s is in %s, the restore is to put it into %s", ts.OID, p.Destination, is, ts.To),
				fmt.Sprintf("give --tablespace-mapping %s=%s to restore it where it is", ts.OID, is)}
		case err == nil:
			continue
		case !errors.Is(err, fs.ErrNotExist):
			return &RefusedError{fmt.Sprintf("%s is no symbolic link, and tablespace %s is to be in %s", link, ts.OID, ts.To), "restore into another directory"}
		case p.continues:
			continue // made by the restore that was interrupted
		}
		empty, err := emptyDir(ts.To)
		if err != nil {
			return err
		}
		if !empty {
			return &RefusedError{fmt.Sprintf("the directory %s for tablespace %s is not empty, and %s does not lead to it", ts.To, ts.OID, link),
				fmt.Sprintf("another cluster may be using it. Give another one: --tablespace-mapping %s=DIRECTORY", ts.OID)}
		}
	}
	return nil
}

// single reports whether a file is a plain one that no other name leads to, so that writing to it changes nothing else.
func single(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return info.Mode().IsRegular() && (!ok || st.Nlink <= 1)
}

// kept are the directories at the top whose content a restore of differences leaves alone: it is of no backup, and of use to people.
var kept = []string{"log", "pg_log", "lost+found"}

// swept is what a sweep removes.
type swept struct {
	files, bytes int64
	perDir       map[string]int64 // bytes by destination
}

// sweep goes through the directory and the tablespaces and removes, if act is set, what the backup does not have. It counts the files.
func (r *run) sweep(act bool) (*swept, error) {
	s := &sweeper{run: r, act: act, swept: swept{perDir: map[string]int64{}}}
	if err := s.dir(r.tree.data, ".", "."); err != nil {
		return nil, err
	}
	for oid, root := range r.tree.tablespaces { // what lies beside the directory of this PostgreSQL is another's
		own := r.plan.control.TablespaceDir()
		err := s.dir(root, own, path.Join("pg_tblspc", oid, own))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return &s.swept, nil
}

type sweeper struct {
	*run
	act bool
	swept
}

// dir sweeps the directory rel of root, which is the path of the data directory.
func (s *sweeper) dir(root *os.Root, rel, name string) error {
	return eachEntry(root, rel, name, s.entry)
}

// eachEntry calls do for what is in the directory rel of root, which is the path name of the data directory. That something is there no more is no error of do:
// what fetches WAL ahead clears up after itself when its server has ended.
func eachEntry(root *os.Root, rel, name string, do func(root *os.Root, rel, name string) error) error {
	dir, err := root.Open(rel)
	if err != nil {
		return err
	}
	defer dir.Close() // only read
	for {
		entries, err := dir.ReadDir(1024)
		for _, e := range entries {
			if err := do(root, path.Join(rel, e.Name()), path.Join(name, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// entry judges what is in a directory.
func (s *sweeper) entry(root *os.Root, rel, name string) error {
	info, err := root.Lstat(rel)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	isDir, isLink := info.IsDir(), info.Mode().Type() == fs.ModeSymlink
	oid, below := strings.CutPrefix(name, "pg_tblspc/")
	switch {
	case name == markerName || slices.Contains(kept, name) || name == manifest.Name && info.Mode().IsRegular(): // which is written anew
		return nil
	case !isDir && !isLink && !info.Mode().IsRegular(): // sockets and the like
		return nil
	case below && isLink && s.tree.tablespaces[oid] != nil:
		return nil
	}
	is := tarpart.File
	switch {
	case isDir:
		is = tarpart.Dir
	case isLink:
		is = tarpart.Symlink
	}
	i := s.picking.Find(name)
	if i >= 0 && s.picking.File(i).Type == is {
		switch {
		case isDir:
			return s.dir(root, rel, name)
		case !isLink && single(info):
			return nil
		}
	}
	if isDir {
		place := filepath.Join(s.plan.Destination, name)
		inside := slices.ContainsFunc(s.plan.Tablespaces, func(ts Tablespace) bool { return root == s.tree.data && within(ts.To, place) })
		if inside && slices.ContainsFunc(s.plan.Tablespaces, func(ts Tablespace) bool { return ts.To == place }) {
			return nil
		}
		if err := s.dir(root, rel, name); err != nil || inside || !s.act {
			return err
		}
		if err := root.Remove(rel); err != nil && !errors.Is(err, syscall.ENOTEMPTY) { // something special is in it
			return err
		}
		return nil
	}
	if isLink {
		s.sweptLink(root, rel, name, i)
	} else {
		s.swept.files++
		s.swept.bytes += info.Size()
		s.perDir[s.plan.directoryOf(name)] += info.Size()
	}
	if !s.act {
		return nil
	}
	return root.Remove(rel)
}

// sweptLink tells of a link that goes, which nobody else does.
func (s *sweeper) sweptLink(root *os.Root, rel, name string, i int) {
	to, err := root.Readlink(rel)
	switch {
	case err != nil:
	case strings.HasPrefix(name, "pg_tblspc/"):
		s.notes.add("tablespace %s, in %s, is not in the backup: its link goes, what it leads to stays", path.Base(name), to)
	case i >= 0 && s.picking.File(i).Type == tarpart.Dir:
		s.notes.add("%s was a symbolic link to %s, and is a directory in the backup: it becomes one, and what the link leads to stays", name, to)
	case i < 0:
		s.notes.add("%s, a symbolic link to %s, is not in the backup: it goes, what it leads to stays", name, to)
	}
}

// clear makes the directory one that PostgreSQL does not start in, and removes what the backup does not have.
func (r *run) clear() error {
	err := r.tree.data.Remove(control.Name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil {
		if err := syncPath(r.tree.data, path.Dir(control.Name)); err != nil {
			return err
		}
	}
	_, err = r.sweep(true)
	return err
}

// remove removes the file p, if there is one.
func (f *folder) remove(t *tree, p string) error {
	name, err := f.enter(t, p)
	if err == nil {
		if err = f.root.Remove(name); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	return err
}

// resize gives the file p its length, where it has another.
func (f *folder) resize(t *tree, p string, size int64) error {
	name, err := f.enter(t, p)
	if err != nil {
		return err
	}
	info, err := f.root.Lstat(name)
	if err != nil || info.Size() == size {
		return err
	}
	file, err := f.open(t, p)
	if err != nil {
		return err
	}
	return errors.Join(file.Truncate(size), file.Close())
}
