package datadir

import (
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"holdfast/internal/pg/control"
)

// Kind says what an entry of a data directory is.
type Kind uint8

// The kinds of entries a walk yields.
const (
	Directory Kind = iota
	File           // any regular file that is none of the below
	Relation       // pages of a relation, which carry checksums where the cluster has them
	Control        // global/pg_control
	Symlink        // one PostgreSQL knows nothing of; what it points to is not walked
)

// String names k.
func (k Kind) String() string {
	return [...]string{"directory", "file", "relation", "control", "symlink"}[k]
}

// An Entry is something a backup stores.
type Entry struct {
	Path    string // from the data directory, slash separated, "." for the directory itself; any bytes but NUL
	OSPath  string // the same, to open it by; absolute
	Kind    Kind
	Fork    Fork   // of a Relation
	Segment uint32 // of a Relation: its first block is Segment times Control.BlocksPerSegment
	Size    int64  // bytes, of File, Relation and Control; they may grow, shrink or vanish at any time
	Mode    fs.FileMode
	ModTime time.Time
	Inode   uint64 // this and Changed: see Identity
	Changed time.Time
	UID     int
	GID     int
	Target  string // of a Symlink, as it stands there
}

// Reason says why a walk left something out.
type Reason string

// The reasons. What is Special is for people to hear of; all others are as it should be.
const (
	Special    Reason = "neither file, directory nor symbolic link"
	Volatile   Reason = "of the running server only"
	Recovery   Reason = "steers a backup or a recovery that is not this one"
	Temporary  Reason = "temporary"
	Unlogged   Reason = "unlogged: only its init fork survives a crash"
	Elsewhere  Reason = "a tablespace, walked below pg_tblspc"
	OtherMajor Reason = "not this server's version"
)

// Options tunes a walk. The zero value is ready to use.
type Options struct {
	// Skipped is told what is left out; a directory of which only the content is left out ends in "/".
	Skipped func(path string, why Reason)
}

// Walk yields what a base backup stores of d, beginning with the directory itself: by name within a directory, and a
// directory before what is in it. Of an unchanged tree two walks yield the same. It costs one lstat for each entry and
// memory for the names in one directory at a time and its parents.
//
// Tablespaces appear as pg_tblspc/<OID>/PG_<version>/…, without their link; whatever vanishes during the walk does not
// appear. The content of pg_wal is left out, but for an empty archive_status. After an error nothing more is yielded.
func (d *Dir) Walk(opts Options) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		w := walker{dir: d, yield: yield, skipped: opts.Skipped}
		if w.skipped == nil {
			w.skipped = func(string, Reason) {}
		}
		st, err := os.Stat(d.Root) // it may be a link, as a whole
		if err == nil {
			w.rootMode = st.Mode().Perm()
			err = w.findInner()
		}
		if err != nil {
			yield(Entry{}, err)
			return
		}
		if w.emit(Directory, ".", st) {
			w.walk(".", top)
		}
	}
}

// place is what PostgreSQL uses a directory for, as far as it decides on what is in it.
type place uint8

const (
	other    place = iota
	top            // the data directory
	base           // base: one directory for each database, and temporary files
	global         // global: shared relations
	database       // base/<OID> or pg_tblspc/<OID>/PG_<version>/<OID>
	spaces         // pg_tblspc
	space          // pg_tblspc/<OID>
	version        // pg_tblspc/<OID>/PG_<version>: as base
)

// emptied are the directories at the top whose content the server makes anew, or is of no use to another server.
var emptied = [...]string{"log", "pg_dynshmem", "pg_log", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat_tmp",
	"pg_subtrans"}

// dropped are the files at the top that belong to the running server, or to a backup or recovery that made it.
var dropped = map[string]Reason{
	"postmaster.pid": Volatile, "postmaster.opts": Volatile, "postgresql.auto.conf.tmp": Volatile,
	"current_logfiles": Volatile, "current_logfiles.tmp": Volatile,
	"backup_label": Recovery, "backup_label.old": Recovery, "tablespace_map": Recovery, "tablespace_map.old": Recovery,
	"backup_manifest": Recovery, "backup_manifest.tmp": Recovery, "recovery.signal": Recovery, "standby.signal": Recovery,
	"recovery.conf": Recovery, "recovery.done": Recovery,
}

type walker struct {
	dir      *Dir
	rootMode fs.FileMode // permissions of the data directory
	inner    []string    // paths of directories inside the data directory that are tablespaces' locations
	yield    func(Entry, error) bool
	skipped  func(string, Reason)
}

// findInner fills inner. PostgreSQL warns of such a location, but allows it.
func (w *walker) findInner() error {
	spaces, err := Tablespaces(w.dir.Root)
	if err != nil {
		return err
	}
	root, err := filepath.EvalSymlinks(w.dir.Root)
	if err != nil {
		return err
	}
	for _, s := range spaces {
		if s.InPlace() {
			continue
		}
		location, err := filepath.EvalSymlinks(filepath.Join(root, "pg_tblspc", strconv.FormatUint(uint64(s.OID), 10)))
		if err != nil {
			continue // the walk will find out why
		}
		if rel, err := filepath.Rel(root, location); err == nil && filepath.IsLocal(rel) {
			w.inner = append(w.inner, filepath.ToSlash(rel))
		}
	}
	return nil
}

// walk yields what is in the directory named dir, which is used as at says. Like all methods below it returns false when
// the walk is over.
func (w *walker) walk(dir string, at place) bool {
	list, err := readNames(w.osPath(dir))
	switch {
	case err != nil && gone(err) && at != top:
		return true
	case err != nil:
		return w.fail(err)
	}
	for i := range list.len() {
		name := list.get(i)
		full := path.Join(dir, name)
		why, err := w.leftOut(full, name, at, list)
		if err != nil {
			return w.fail(err)
		}
		if why != "" {
			w.skipped(full, why)
			continue
		}
		if !w.visit(full, name, at) {
			return false
		}
	}
	return true
}

// leftOut judges a file by its name and what else is in its directory.
func (w *walker) leftOut(full, name string, at place, list names) (Reason, error) {
	if why := leftOutByName(name, at); why != "" {
		return why, nil
	}
	switch at {
	case space:
		if name != w.dir.Control.TablespaceDir() {
			return OtherMajor, nil
		}
	case database:
		if r, ok := parseRelation(name); ok && r.fork != InitFork && list.has(r.number+"_init") {
			return Unlogged, nil
		}
	}
	return "", nil
}

// visit yields the entry full, called name in its directory, and what is below it.
func (w *walker) visit(full, name string, at place) bool {
	st, err := os.Lstat(w.osPath(full))
	if gone(err) {
		return true
	}
	if err != nil {
		return w.fail(err)
	}
	isDir, isLink := st.IsDir(), st.Mode().Type() == fs.ModeSymlink
	switch {
	case at == top && name == "pg_wal" && (isDir || isLink):
		return w.wal(st)
	case at == top && slices.Contains(emptied[:], name) && (isDir || isLink):
		w.skipped(full+"/", Volatile)
		return w.emptyDir(full, st)
	case at == spaces && isLink:
		if _, ok := parseOID(name); ok {
			return w.linkedSpace(full)
		}
	case isDir && slices.Contains(w.inner, full):
		w.skipped(full+"/", Elsewhere)
		return w.emit(Directory, full, st)
	}
	switch {
	case isDir:
		return w.emit(Directory, full, st) && w.walk(full, below(at, name))
	case isLink:
		return w.emit(Symlink, full, st)
	case !st.Mode().IsRegular():
		w.skipped(full, Special)
		return true
	case full == control.Name:
		return w.emit(Control, full, st)
	}
	if at == global || at == database {
		if _, ok := parseRelation(name); ok {
			return w.emit(Relation, full, st)
		}
	}
	return w.emit(File, full, st)
}

// below says what the directory name in a directory of place at is used for.
func below(at place, name string) place {
	_, isOID := parseOID(name)
	switch {
	case at == top && name == "base":
		return base
	case at == top && name == "global":
		return global
	case at == top && name == "pg_tblspc":
		return spaces
	case at == spaces && isOID:
		return space
	case at == space:
		return version
	case (at == base || at == version) && isOID:
		return database
	}
	return other
}

// wal yields pg_wal, a directory even where it is a link, and in it what the server wants to find there.
func (w *walker) wal(st fs.FileInfo) bool {
	w.skipped("pg_wal/", Volatile)
	if !w.emptyDir("pg_wal", st) || !w.emptyDir("pg_wal/archive_status", st) {
		return false
	}
	if sub, err := os.Stat(w.osPath("pg_wal/summaries")); err == nil && sub.IsDir() { // 17 and later
		return w.emptyDir("pg_wal/summaries", st)
	}
	return true
}

// emptyDir yields a directory, also where st is a link's: then with the permissions of the data directory.
func (w *walker) emptyDir(full string, st fs.FileInfo) bool {
	e := entry(Directory, full, w.osPath(full), st)
	if !st.IsDir() {
		e.Mode = fs.ModeDir | w.rootMode
	}
	return w.yield(e, nil)
}

// linkedSpace yields what the tablespace behind the link full holds of this cluster.
func (w *walker) linkedSpace(full string) bool {
	dir := path.Join(full, w.dir.Control.TablespaceDir())
	// DROP TABLESPACE removes the directory just before the link.
	for try := 0; ; try++ {
		st, err := os.Lstat(w.osPath(dir))
		switch {
		case err == nil && st.IsDir():
			return w.emit(Directory, dir, st) && w.walk(dir, version)
		case err == nil:
			return w.fail(fmt.Errorf("tablespace %s: not a directory", w.osPath(dir)))
		case !gone(err):
			return w.fail(err)
		}
		if _, err := os.Lstat(w.osPath(full)); gone(err) {
			return true
		}
		if try == 10 {
			target, _ := os.Readlink(w.osPath(full)) // only for the message
			return w.fail(fmt.Errorf("tablespace %s: there is no %s in %s; is its disk mounted?", path.Base(full), path.Base(dir), target))
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// emit yields an entry; a Symlink whose target cannot be read any more is gone.
func (w *walker) emit(kind Kind, full string, st fs.FileInfo) bool {
	e := entry(kind, full, w.osPath(full), st)
	switch kind {
	case Symlink:
		var err error
		if e.Target, err = os.Readlink(e.OSPath); gone(err) {
			return true
		} else if err != nil {
			return w.fail(err)
		}
	case Relation:
		r, _ := parseRelation(path.Base(full))
		e.Fork, e.Segment = r.fork, r.segment
	}
	return w.yield(e, nil)
}

func entry(kind Kind, full, osPath string, st fs.FileInfo) Entry {
	e := Entry{Path: full, OSPath: osPath, Kind: kind, Mode: st.Mode(), ModTime: st.ModTime()}
	e.Inode, e.Changed = Identity(st)
	if kind != Directory && kind != Symlink {
		e.Size = st.Size()
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		e.UID, e.GID = int(sys.Uid), int(sys.Gid)
	}
	return e
}

func (w *walker) osPath(full string) string {
	if full == "." {
		return w.dir.Root
	}
	return w.dir.Root + "/" + full
}

func (w *walker) fail(err error) bool {
	w.yield(Entry{}, err)
	return false
}
