package backup

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/pg/datadir"
)

// database tells a directory of a database from another one in its place: PG_VERSION is written when the directory is made, and never after.
type database struct {
	inode uint64
	made  time.Time
}

// databases lists the directories of databases, by their paths in the data directory: below base, and in each tablespace. Those that are being made
// or removed right now are not among them.
func (r *run) databases() (map[string]database, error) {
	parents := []string{"base"}
	spaces, err := datadir.Tablespaces(r.dir.Root)
	if err != nil {
		return nil, err
	}
	for _, t := range spaces {
		parent := path.Join("pg_tblspc", strconv.FormatUint(uint64(t.OID), 10))
		entries, err := os.ReadDir(filepath.Join(r.dir.Root, parent))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), fmt.Sprintf("PG_%d_", r.dir.Control.Major)) {
				parents = append(parents, path.Join(parent, e.Name()))
			}
		}
	}
	found := map[string]database{}
	for _, parent := range parents {
		entries, err := os.ReadDir(filepath.Join(r.dir.Root, parent))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			dir := path.Join(parent, e.Name())
			info, err := os.Lstat(filepath.Join(r.dir.Root, dir, "PG_VERSION"))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, err
			}
			inode, _ := datadir.Identity(info)
			found[dir] = database{inode, info.ModTime()}
		}
	}
	return found, nil
}

// checkDatabases returns a *movedError where databases were given another tablespace since r.placed was looked at, there and back included. A move
// copies the files and says no more in the WAL than from where to where: replaying it over this backup would copy what the backup has of the old
// place, which is a part or nothing (dbase_redo and movedb in src/backend/commands/dbcommands.c; the checkpoints that movedb waits for
// save from that after a crash, where replay begins behind them, and not here). A database that was dropped may in the same way have been the
// template of a new one; whether it was, and which way PostgreSQL copied, files do not tell, so that this is a warning.
func (r *run) checkDatabases() error {
	after, err := r.databases()
	if err != nil {
		return err
	}
	lives := map[string]bool{} // by OID
	var made []string
	for dir := range after {
		lives[path.Base(dir)] = true
		if _, ok := r.placed[dir]; !ok {
			made = append(made, dir)
		}
	}
	var moved, dropped []string
	for _, dir := range slices.Sorted(maps.Keys(r.placed)) {
		switch is, ok := after[dir]; {
		case ok && is == r.placed[dir]:
		case lives[path.Base(dir)]:
			moved = append(moved, dir)
		default:
			dropped = append(dropped, dir)
		}
	}
	if len(moved) > 0 {
		return &movedError{moved}
	}
	if len(dropped) > 0 && len(made) > 0 {
		slices.Sort(made)
		r.Logger.Warn(fmt.Sprintf("while the backup was taken %s went, and %s came: where that was made from what went, by copying files (before PostgreSQL 15 always), "+
			"a restore lacks its contents: take the backup again then", strings.Join(dropped, ", "), strings.Join(made, ", ")))
	}
	return nil
}

// movedError says that databases were given another tablespace while the backup was taken.
type movedError struct{ dirs []string }

func (e *movedError) Error() string {
	return fmt.Sprintf("a database was moved to another tablespace while it was being backed up: %s", strings.Join(e.dirs, ", "))
}

func (*movedError) Hint() string {
	return "PostgreSQL replays ALTER DATABASE … SET TABLESPACE by copying files from the old place, which the backup does not have whole: take the backup again"
}
