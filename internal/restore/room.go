package restore

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"

	"holdfast/internal/archive"
	"holdfast/internal/tarpart"
)

// measure fills in Rooms from the bytes and files per destination, and refuses where there is not enough room. After an
// interrupted restore part of the bytes is there already, so that it does not refuse then.
func (p *Plan) measure(bytes, files map[string]int64) error {
	byDevice := map[uint64]int{}
	for _, dir := range append([]string{p.Destination}, p.locations()...) {
		at := existing(dir)
		var st unix.Stat_t
		var fs unix.Statfs_t
		if err := unix.Stat(at, &st); err != nil {
			return &os.PathError{Op: "stat", Path: at, Err: err}
		}
		if err := unix.Statfs(at, &fs); err != nil {
			return &os.PathError{Op: "statfs", Path: at, Err: err}
		}
		i, ok := byDevice[uint64(st.Dev)]
		if !ok {
			i = len(p.Rooms)
			byDevice[uint64(st.Dev)] = i
			p.Rooms = append(p.Rooms, Room{Free: int64(fs.Bavail) * int64(fs.Bsize)})
			if fs.Files > 0 {
				p.Rooms[i].Inodes = int64(min(uint64(fs.Ffree), math.MaxInt64)) // some have no bound, and say so by all ones
			}
		}
		room := &p.Rooms[i]
		room.Dirs = append(room.Dirs, dir)
		room.Need += bytes[dir]
		room.Files += files[dir]
	}
	for _, room := range p.Rooms {
		if room.Inodes > 0 && room.Files > room.Inodes && !p.Resume {
			return &RefusedError{
				fmt.Sprintf("%s takes %d more files, the restore makes %d", room.Dirs[0], room.Inodes, room.Files),
				"restore onto a file system with more inodes",
			}
		}
		if room.Need > room.Free && !p.Resume {
			return &RefusedError{
				fmt.Sprintf("%s has %s free, the restore needs %s", room.Dirs[0], humanize.IBytes(uint64(room.Free)), humanize.IBytes(uint64(room.Need))),
				"free some space, restore elsewhere, or move tablespaces with --tablespace-mapping",
			}
		}
	}
	return nil
}

// locations returns the tablespaces' directories.
func (p *Plan) locations() (dirs []string) {
	for _, ts := range p.Tablespaces {
		dirs = append(dirs, ts.To)
	}
	return dirs
}

// findOwner decides who gets the files, which matters where root restores: PostgreSQL refuses to run as root, and wants
// the data directory to be its own. In this order: who is asked for; who owns the destination already; who owned the files
// when they were packed, by name or, where the backup knows none, by number; the account postgres.
func (p *Plan) findOwner(ctx context.Context, a *archive.Archive, asked string) error {
	if os.Geteuid() != 0 {
		if asked != "" {
			return &RefusedError{"only root can give files to another user", "leave --owner away, or run as root"}
		}
		return nil
	}
	if asked != "" {
		o, err := account(asked)
		if err != nil {
			return fmt.Errorf("owner %s: %w", asked, err)
		}
		p.Owner = o
		return nil
	}
	if info, err := os.Stat(p.Destination); err == nil {
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 {
			p.Owner = named(&Owner{UID: int(st.Uid), GID: int(st.Gid)})
			return nil
		}
	}
	packed, name, err := p.packedOwner(ctx, a)
	if err != nil {
		return err
	}
	if packed.UID != 0 {
		if o, err := account(name); name != "" && err == nil {
			p.Owner = o
			return nil
		}
		if name == "" && named(packed).Name != "" { // elsewhere the number of an account with a name may be anybody's
			p.Owner = packed
			return nil
		}
	}
	if o, err := account("postgres"); err == nil {
		p.Owner = o
		return nil
	}
	p.note("the files will belong to root, and PostgreSQL refuses to run as root: give --owner USER")
	return nil
}

// packedOwner reads who owned the first thing in the first part.
func (p *Plan) packedOwner(ctx context.Context, a *archive.Archive) (*Owner, string, error) {
	if p.source != nil {
		return &Owner{UID: -1, GID: -1}, p.source.User, nil
	}
	first := slices.MinFunc(p.parts, func(x, y archive.Part) int {
		return cmp.Or(cmp.Compare(lastRank(x), lastRank(y)), cmp.Compare(x.Name, y.Name))
	})
	body, err := a.OpenPart(ctx, p.Backup, first)
	if err != nil {
		return nil, "", err
	}
	defer body.Close() // only read, and not to its end
	h, err := tarpart.First(body)
	if err != nil {
		return nil, "", fmt.Errorf("read %s: %w", first.Name, err)
	}
	return &Owner{UID: h.UID, GID: h.GID}, h.User, nil
}

// lastRank orders parts as they are unpacked: data, then the label, then the control file.
func lastRank(p archive.Part) int {
	switch {
	case p.IsControl():
		return 2
	case p.IsLabel():
		return 1
	}
	return 0
}

// account looks up a user by name or number.
func account(name string) (*Owner, error) {
	u, err := user.Lookup(name)
	if err != nil {
		byNumber, errID := user.LookupId(name)
		if errID != nil {
			return nil, err
		}
		u = byNumber
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err1 != nil || err2 != nil {
		return nil, fmt.Errorf("user %s has no numeric identifiers", name)
	}
	return &Owner{UID: uid, GID: gid, Name: u.Username}, nil
}

// named fills in the name of the account where there is one.
func named(o *Owner) *Owner {
	if u, err := user.LookupId(strconv.Itoa(o.UID)); err == nil {
		o.Name = u.Username
	}
	return o
}

// make creates the destination and the tablespaces' directories, with what is missing above them. PostgreSQL wants them
// closed to others, and to be its own.
func (p *Plan) make() error {
	for _, dir := range append([]string{p.Destination}, p.locations()...) {
		if err := p.makeDir(dir); err != nil {
			return err
		}
	}
	return nil
}

func (p *Plan) makeDir(dir string) error {
	if !isDir(dir) {
		if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
			return err
		}
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return err
	}
	if p.Owner != nil {
		return os.Chown(dir, p.Owner.UID, p.Owner.GID)
	}
	return nil
}
