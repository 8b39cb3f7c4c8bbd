package restore

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// A tree is what is being written: the data directory and the directories of tablespaces, each an os.Root that no name and
// no symbolic link leads out of.
type tree struct {
	data        *os.Root
	tablespaces map[string]*os.Root // by object identifier
	dirs        []*os.File          // each of them, opened before anything is written: see syncAll
	owner       *Owner              // nil: whoever runs this
	marker      string              // name of the file that is there while it is written
	overwrite   bool                // files may be there already, of an earlier attempt
}

// openTree opens the destination and the tablespaces' directories, all of which exist: to look at them only those that do.
func openTree(p *Plan, look bool) (_ *tree, err error) {
	t := &tree{tablespaces: map[string]*os.Root{}, owner: p.Owner, marker: markerName, overwrite: p.Resume || p.Delta != nil}
	if t.data, err = os.OpenRoot(p.Destination); err != nil {
		return nil, err
	}
	for _, ts := range p.Tablespaces {
		root, err := os.OpenRoot(ts.To)
		if look && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, errors.Join(err, t.close())
		}
		t.tablespaces[ts.OID] = root
	}
	for _, root := range t.roots() {
		dir, err := root.Open(".")
		if err != nil {
			return nil, errors.Join(err, t.close())
		}
		t.dirs = append(t.dirs, dir)
	}
	return t, nil
}

func (t *tree) close() error {
	var errs []error
	for _, dir := range t.dirs {
		errs = append(errs, dir.Close())
	}
	for _, root := range t.roots() {
		errs = append(errs, root.Close())
	}
	return errors.Join(errs...)
}

// roots returns all the directories, the data directory first.
func (t *tree) roots() []*os.Root {
	all := []*os.Root{t.data}
	for _, root := range t.tablespaces {
		all = append(all, root)
	}
	return all
}

// locate says below which root a member lies, and where. oid is "" for the data directory.
func (t *tree) locate(p string) (root *os.Root, oid, rel string) {
	if rest, ok := strings.CutPrefix(p, "pg_tblspc/"); ok {
		oid, rel, deeper := strings.Cut(rest, "/")
		if root := t.tablespaces[oid]; root != nil {
			if !deeper {
				rel = "."
			}
			return root, oid, rel
		}
	}
	return t.data, "", p
}

// mkdir makes the directory p of root and what is missing above it, with mode 0700. One that is there, made by an attempt that
// ended before it could give it away, gets its owner.
func (t *tree) mkdir(root *os.Root, p string) error {
	if p == "." {
		return nil
	}
	err := root.Mkdir(p, 0o700)
	if errors.Is(err, fs.ErrNotExist) {
		if err = t.mkdir(root, path.Dir(p)); err == nil {
			err = root.Mkdir(p, 0o700)
		}
	}
	if errors.Is(err, fs.ErrExist) {
		var info fs.FileInfo
		if info, err = root.Lstat(p); err == nil && !info.IsDir() {
			err = &fs.PathError{Op: "mkdir", Path: p, Err: errors.New("there is something else of that name")}
		}
	}
	if err == nil && t.owner != nil {
		err = root.Lchown(p, t.owner.UID, t.owner.GID)
	}
	return err
}

// directory restores a member that is a directory. Its owner may always enter and write.
func (t *tree) directory(p string, mode fs.FileMode) error {
	root, _, rel := t.locate(p)
	if err := t.mkdir(root, rel); err != nil {
		return err
	}
	mode = mode&0o777 | 0o700
	if p == "." && mode != 0o750 {
		mode = 0o700 // PostgreSQL accepts no other
	}
	if mode == 0o700 && !t.overwrite && p != "." {
		return nil
	}
	return root.Chmod(rel, mode)
}

// symlink restores a member that is a symbolic link. What it points to is not looked at.
func (t *tree) symlink(p, target string) error {
	root, _, rel := t.locate(p)
	if err := t.mkdir(root, path.Dir(rel)); err != nil {
		return err
	}
	if old, err := root.Readlink(rel); err != nil || old != target {
		if err := root.Symlink(target, rel); err != nil {
			return err
		}
	}
	if t.owner != nil {
		return root.Lchown(rel, t.owner.UID, t.owner.GID)
	}
	return nil
}

// link makes the link of a tablespace.
func (t *tree) link(oid, to string) error {
	if err := t.mkdir(t.data, "pg_tblspc"); err != nil {
		return err
	}
	link := "pg_tblspc/" + oid
	if old, err := t.data.Readlink(link); err == nil && old != to {
		return fmt.Errorf("%s leads to %s already", link, old)
	} else if err != nil {
		if err := t.data.Symlink(to, link); err != nil {
			return err
		}
	}
	if t.owner != nil {
		return t.data.Lchown(link, t.owner.UID, t.owner.GID)
	}
	return nil
}

// A folder is one directory held open: files of one directory tend to come one after the other, and each step of a path
// that need not be walked again is a system call saved.
type folder struct {
	tree *tree
	oid  string
	path string // below its root
	root *os.Root
}

// enter moves f to the directory of member p and returns the member's name in there.
func (f *folder) enter(t *tree, p string) (name string, err error) {
	root, oid, rel := t.locate(p)
	dir, name := path.Split(rel)
	dir = path.Clean(dir)
	if f.root != nil && f.tree == t && f.oid == oid && f.path == dir {
		return name, nil
	}
	f.leave()
	opened, err := root.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if err = t.mkdir(root, dir); err == nil {
			opened, err = root.OpenRoot(dir)
		}
	}
	if err != nil {
		return "", err
	}
	*f = folder{tree: t, oid: oid, path: dir, root: opened}
	return name, nil
}

// leave closes the directory.
func (f *folder) leave() {
	if f.root != nil {
		f.root.Close() // only names were looked up through it
		f.root = nil
	}
}

// create begins the file p. One that is there already is replaced after an interrupted restore, and an error otherwise.
func (f *folder) create(t *tree, p string, mode fs.FileMode) (*os.File, error) {
	name, err := f.enter(t, p)
	if err != nil {
		return nil, err
	}
	flags := os.O_WRONLY | os.O_CREATE | os.O_EXCL
	if t.overwrite {
		flags = os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	}
	mode = mode&0o777 | 0o600
	w, err := f.root.OpenFile(name, flags, mode)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p, err)
	}
	if t.owner != nil {
		err = w.Chown(t.owner.UID, t.owner.GID)
	}
	if mode != 0o600 || t.overwrite { // the umask takes nothing away from 0600
		err = errors.Join(err, w.Chmod(mode))
	}
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// open opens the file p that create made.
func (f *folder) open(t *tree, p string) (*os.File, error) {
	name, err := f.enter(t, p)
	if err != nil {
		return nil, err
	}
	info, err := f.root.Lstat(name)
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("it is no file any more")
	}
	if err != nil {
		return nil, err
	}
	return f.root.OpenFile(name, os.O_WRONLY, 0)
}

// settle gives the file p of an earlier attempt what create and touch give a new one: that attempt may have ended between them.
func (f *folder) settle(t *tree, p string, mode fs.FileMode, at time.Time) error {
	name, err := f.enter(t, p)
	if err == nil && t.owner != nil {
		err = f.root.Lchown(name, t.owner.UID, t.owner.GID)
	}
	if err == nil {
		err = f.root.Chmod(name, mode&0o777|0o600)
	}
	if err == nil {
		err = f.touch(t, p, at)
	}
	return err
}

// touch gives the file p its modification time; none where the backup knows none.
func (f *folder) touch(t *tree, p string, at time.Time) error {
	if at.IsZero() || at.Unix() == 0 {
		return nil
	}
	name, err := f.enter(t, p)
	if err != nil {
		return err
	}
	return f.root.Chtimes(name, at, at)
}

// write makes the file p with the given content, replacing what was there.
func (t *tree) write(p string, content []byte, mode fs.FileMode) error {
	root, _, rel := t.locate(p)
	if err := t.mkdir(root, path.Dir(rel)); err != nil {
		return err
	}
	if err := root.Remove(rel); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	w, err := root.OpenFile(rel, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = w.Write(content)
	if err == nil {
		err = w.Chmod(mode)
	}
	if err == nil && t.owner != nil {
		err = w.Chown(t.owner.UID, t.owner.GID)
	}
	return errors.Join(err, w.Close())
}

// writeLast puts a file in place whole and durably: the old one or the new one is there, whenever the machine stops.
func (t *tree) writeLast(p string, content []byte, mode fs.FileMode) error {
	root, _, rel := t.locate(p)
	temporary := rel + ".holdfast"
	if err := t.write(temporary, content, mode); err != nil {
		return err
	}
	if err := syncPath(root, temporary); err != nil {
		return err
	}
	if err := root.Rename(temporary, rel); err != nil {
		return err
	}
	return syncPath(root, path.Dir(rel))
}

// syncPath makes a file, or the entries of a directory, durable.
func syncPath(root *os.Root, p string) error {
	f, err := root.Open(p)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// emptyDir reports whether dir is absent or has nothing in it that matters: lost+found is a file system's own, and passed are
// passed over too.
func emptyDir(dir string, passed ...string) (empty bool, err error) {
	f, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close() // only read
	names, err := f.Readdirnames(2 + len(passed))
	for _, name := range names {
		if name != "lost+found" && !slices.Contains(passed, name) {
			return false, nil
		}
	}
	if len(names) == 0 && err != nil && err != io.EOF {
		return false, err
	}
	return true, nil
}

// existing returns dir or the nearest directory above it that exists.
func existing(dir string) string {
	for {
		if _, err := os.Stat(dir); err == nil || dir == filepath.Dir(dir) {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

// notes is what there is to tell in the end. It remembers what was said, so that a note that would come a thousand times comes once.
type notes struct {
	mu   sync.Mutex
	said map[string]bool
	all  []string
}

func (n *notes) add(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.said == nil {
		n.said = map[string]bool{}
	}
	if len(n.all) < maxNotes && !n.said[s] {
		n.said[s] = true
		n.all = append(n.all, s)
	}
}

// maxNotes bounds how much a report says.
const maxNotes = 100
