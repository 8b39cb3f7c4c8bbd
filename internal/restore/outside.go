package restore

import (
	"bytes"
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

	"holdfast/internal/archive"
	"holdfast/internal/crc32c"
	"holdfast/internal/tarpart"
)

// maxConfigFile bounds one configuration file in bytes.
const maxConfigFile = 16 << 20

// eachConfig calls do for every configuration file that is saved beside the backup, with its old absolute path without the
// leading slash. A backup without any is fs.ErrNotExist.
func eachConfig(ctx context.Context, a *archive.Archive, backup string, do func(h tarpart.Header, content io.Reader) error) error {
	body, err := a.OpenConfig(ctx, backup)
	if err != nil {
		return err
	}
	defer body.Close() // only read
	err = tarpart.Each(body, func(h tarpart.Header, content io.Reader) error {
		if h.Type != tarpart.File || h.Skipped != "" {
			return nil
		}
		if h.Size > maxConfigFile {
			return fmt.Errorf("/%s has %d bytes, more than a configuration file may have", h.Path, h.Size)
		}
		return do(h, content)
	})
	if err != nil {
		return fmt.Errorf("read the configuration beside %s: %w", backup, err)
	}
	return nil
}

// configFiles lists the configuration files that are saved beside the backup, the main one first.
func configFiles(ctx context.Context, a *archive.Archive, backup string) (names []string, err error) {
	err = eachConfig(ctx, a, backup, func(h tarpart.Header, _ io.Reader) error {
		names = append(names, "/"+h.Path)
		return nil
	})
	if err == nil && len(names) == 0 {
		err = errors.New("the configuration beside the backup is empty")
	}
	return names, err
}

// restoreConfig writes the saved configuration to where the plan wants it.
func (r *run) restoreConfig(ctx context.Context) error {
	if r.plan.ConfigDir != "" {
		if err := r.configBelow(ctx, r.plan.ConfigDir); err != nil {
			return err
		}
	}
	if r.plan.ConfigIntoData {
		return r.configIntoData(ctx)
	}
	return nil
}

// configBelow writes the files below dir, each under its old path. What is there is not replaced, but for what an attempt that
// was interrupted wrote.
func (r *run) configBelow(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close() // only names were looked up through it
	return eachConfig(ctx, r.archive, r.plan.Backup, func(h tarpart.Header, content io.Reader) error {
		if err := root.MkdirAll(path.Dir(h.Path), 0o755); err != nil {
			return err
		}
		b, err := io.ReadAll(content)
		if err != nil {
			return err
		}
		f, err := root.OpenFile(h.Path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, fs.ErrExist) && r.plan.Resume && begins(root, h.Path, b) {
			f, err = root.OpenFile(h.Path, os.O_WRONLY, 0)
		}
		if err != nil {
			return err
		}
		_, err = f.Write(b)
		if err == nil {
			err = f.Chmod(os.FileMode(h.Mode)&0o777 | 0o600)
		}
		if err == nil && r.plan.Owner != nil {
			err = f.Chown(r.plan.Owner.UID, r.plan.Owner.GID)
		}
		err = errors.Join(err, f.Sync(), f.Close())
		for d := h.Path; err == nil && d != "."; {
			d = path.Dir(d)
			err = syncPath(root, d)
		}
		return err
	})
}

// begins reports whether the file name is the beginning of content, or all of it.
func begins(root *os.Root, name string, content []byte) bool {
	info, err := root.Lstat(name)
	if err != nil || !info.Mode().IsRegular() || info.Size() > int64(len(content)) {
		return false
	}
	b, err := root.ReadFile(name)
	return err == nil && bytes.HasPrefix(content, b)
}

// outsideDir is where in the data directory configuration goes that lay neither beside nor below the main file.
const outsideDir = "holdfast_config"

// moved says where saved configuration is in the data directory, from its old paths. The first file is the main one.
type moved struct {
	main  string
	files []string
	data  string // the data directory
}

// place returns the new place of a file or a directory, from the data directory: what lay beside or below the main file keeps its
// place relative to it, other things have their old path below outsideDir.
func (m moved) place(name string) string {
	if name == m.main && !isAccess(name) {
		return "postgresql.conf"
	}
	if rel, err := filepath.Rel(path.Dir(m.main), name); err == nil && filepath.IsLocal(rel) {
		return rel
	}
	return outsideDir + name
}

// isAccess reports whether a file is one of those that say who may connect, by the names they have unless they are given others.
func isAccess(name string) bool {
	return path.Base(name) == "pg_hba.conf" || path.Base(name) == "pg_ident.conf"
}

// has reports whether name is a saved file, or a directory that holds one.
func (m moved) has(name string) bool {
	return slices.ContainsFunc(m.files, func(f string) bool { return within(f, name) })
}

// configIntoData writes the files into the data directory. Settings that lead back to the old places are changed.
func (r *run) configIntoData(ctx context.Context) error {
	return eachConfig(ctx, r.archive, r.plan.Backup, func(h tarpart.Header, content io.Reader) error {
		b, err := io.ReadAll(content)
		if err != nil {
			return err
		}
		name := r.plan.config.place("/" + h.Path)
		if !isAccess(h.Path) {
			b = r.plan.config.relocate(b, "/"+h.Path)
		}
		r.notes.add("%s is now %s in the data directory", "/"+h.Path, name)
		if err := r.tree.write(name, b, os.FileMode(h.Mode)&0o777|0o600); err != nil {
			return err
		}
		if err := r.includedDirs(name, b); err != nil {
			return err
		}
		return r.listFile(name, int64(len(b)), h.ModTime, crc32c.Checksum(b))
	})
}

// includedDirs makes the directories that the configuration file name in the data directory includes. PostgreSQL does not start where
// one is not there, and a push saves none that is empty, as Debian's conf.d is.
func (r *run) includedDirs(name string, conf []byte) error {
	if isAccess(name) {
		return nil
	}
	for _, found := range included.FindAllSubmatch(conf, -1) {
		dir := path.Join(path.Dir(name), string(found[2]))
		if !strings.Contains(strings.ToLower(string(found[1])), "include_dir") || path.IsAbs(string(found[2])) || !filepath.IsLocal(dir) {
			continue
		}
		if err := r.tree.directory(dir, 0o700); err != nil {
			return err
		}
	}
	return nil
}

// placed matches settings that say where the files of the old cluster are.
var placed = regexp.MustCompile(`(?im)^[ \t]*(data_directory|config_file|hba_file|ident_file|external_pid_file)[ \t=]+(?:'([^'\n]*)')?.*$`)

// included matches what draws in other files.
var included = regexp.MustCompile(`(?im)^([ \t]*include(?:_dir|_if_exists)?[ \t=]+')([^'\n]*)'`)

// relocate changes the content of the configuration file name, for its new place: settings that name old places are commented
// out, or name the new one where that is not what PostgreSQL looks for by itself, and saved files are included from where they are now.
func (m moved) relocate(conf []byte, name string) []byte {
	conf = placed.ReplaceAllFunc(conf, func(line []byte) []byte {
		found := placed.FindSubmatch(line)
		key, value := strings.ToLower(string(found[1])), string(found[2])
		line = append([]byte("# holdfast: the restored cluster has its own place: "), line...)
		if usual := map[string]string{"hba_file": "pg_hba.conf", "ident_file": "pg_ident.conf"}[key]; usual != "" && value != "" && m.has(value) && m.place(value) != usual {
			line = append(line, "\n"+setting(key, path.Join(m.data, m.place(value)))...)
		}
		return line
	})
	return included.ReplaceAllFunc(conf, func(line []byte) []byte {
		found := included.FindSubmatch(line)
		target := string(found[2])
		if !path.IsAbs(target) {
			target = path.Join(path.Dir(name), target) // PostgreSQL looks from where the including file is
		}
		if target = path.Clean(target); !m.has(target) && !within(target, path.Dir(m.main)) {
			return line
		}
		rel, err := filepath.Rel(path.Dir(m.place(name)), m.place(target))
		if err != nil {
			return line
		}
		return []byte(string(found[1]) + rel + "'")
	})
}
