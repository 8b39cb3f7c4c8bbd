package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"regexp"
	"strings"

	"holdfast/internal/archive"
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

// configBelow writes the files below dir, each under its old path. What is there is not replaced.
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
		f, err := root.OpenFile(h.Path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, content)
		if err == nil {
			err = f.Chmod(os.FileMode(h.Mode)&0o777 | 0o600)
		}
		if err == nil && r.plan.Owner != nil {
			err = f.Chown(r.plan.Owner.UID, r.plan.Owner.GID)
		}
		return errors.Join(err, f.Sync(), f.Close())
	})
}

// placeInData says where in the data directory a configuration file goes: those that lay beside the main file keep their
// place relative to it, others go to the top.
func placeInData(main, name string) string {
	if rel, ok := strings.CutPrefix(name, path.Dir(main)+"/"); ok {
		return rel
	}
	return path.Base(name)
}

// configIntoData writes the files into the data directory. Settings that lead back to the old places are commented out.
func (r *run) configIntoData(ctx context.Context) error {
	var main string
	return eachConfig(ctx, r.archive, r.plan.Backup, func(h tarpart.Header, content io.Reader) error {
		b, err := io.ReadAll(content)
		if err != nil {
			return err
		}
		if main == "" {
			main = h.Path // the main file comes first
		}
		name := placeInData(main, h.Path)
		if path.Ext(name) == ".conf" && path.Base(name) != "pg_hba.conf" && path.Base(name) != "pg_ident.conf" {
			b = relocate(b, "/"+path.Dir(main))
		}
		r.notes.add("%s is now %s in the data directory", "/"+h.Path, name)
		if err := r.tree.write(name, b, os.FileMode(h.Mode)&0o777|0o600); err != nil {
			return err
		}
		return r.listFile(name, int64(len(b)), h.ModTime, checksum(b))
	})
}

// placed matches settings that say where the files of the old cluster are.
var placed = regexp.MustCompile(`(?im)^[ \t]*(data_directory|config_file|hba_file|ident_file|external_pid_file)[ \t=].*$`)

// included matches what draws in other files.
var included = regexp.MustCompile(`(?im)^([ \t]*include(?:_dir|_if_exists)?[ \t=]+')([^'\n]*)'`)

// relocate comments out the settings that name the old places, and makes what was included from below base relative.
func relocate(conf []byte, base string) []byte {
	conf = placed.ReplaceAll(conf, []byte("# holdfast: the restored cluster has its own place: $0"))
	return included.ReplaceAllFunc(conf, func(line []byte) []byte {
		m := included.FindSubmatch(line)
		name := strings.TrimPrefix(string(m[2]), base+"/")
		return []byte(string(m[1]) + name + "'")
	})
}
