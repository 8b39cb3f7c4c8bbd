package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"

	"holdfast/internal/compress"
)

// Names of rows; targets look for them. "pgBackRest zst" has level 1.
const (
	oursZstd, oursLZ4             = "holdfast zstd", "holdfast lz4"
	backrestZst, backrestLZ4      = "pgBackRest zst", "pgBackRest lz4"
	basebackupZstd, basebackupLZ4 = "pg_basebackup zstd", "pg_basebackup lz4"
	codecZstd, codecLZ4           = "codec alone, zstd", "codec alone, lz4"
	copied, copiedSynced          = "cp -r", "cp -r, then sync"
)

// A tool makes a backup and brings it back.
type tool struct {
	name    string
	base    string // our row that this one is compared with
	archive string // directory of the tool's own, emptied before each backup
	stored  string // where the backup lies, to be weighed

	prepare        func(ctx context.Context) error // not timed
	archiveEnv     []string
	archiveCommand string // while the tool is at work
	backup         func(ctx context.Context) *exec.Cmd
	tidy           func() error // not timed, after the backup

	restore func(ctx context.Context, target string) *exec.Cmd
	check   func(ctx context.Context, target string) error

	codec compress.Method // the row of the codec alone: there is no backup
}

// tools lists what is compared on cluster c; copies are left out of a short list.
func (b *bench) tools(c *cluster, short bool) (tools []*tool) {
	tools = append(tools, b.holdfastTool(c, oursZstd), b.backrestTool(c, backrestZst, oursZstd), b.basebackupTool(c, basebackupZstd, oursZstd))
	if !short {
		tools = append(tools, b.tarTool(c), &tool{name: codecZstd, base: oursZstd, codec: compress.Zstd})
	}
	tools = append(tools, b.holdfastTool(c, oursLZ4), b.backrestTool(c, backrestLZ4, oursLZ4), b.basebackupTool(c, basebackupLZ4, oursLZ4))
	if !short {
		tools = append(tools, &tool{name: codecLZ4, base: oursLZ4, codec: compress.LZ4})
		tools = append(tools, b.copyTools(c)...)
	}
	return tools
}

// archivePath is where the tools keep what they store.
func (b *bench) archivePath(name string) string { return filepath.Join(b.dir, "archives", name) }

// holdfastEnv is the settings of an archive in dir, all others being the defaults.
func holdfastEnv(dir, row string) []string {
	env := []string{"WALG_FILE_PREFIX=" + dir}
	if row == oursLZ4 {
		env = append(env, "WALG_COMPRESSION_METHOD=lz4")
	}
	return env
}

func (b *bench) holdfastTool(c *cluster, name string) *tool {
	dir := b.archivePath(name)
	env := append(holdfastEnv(dir, name), c.env()...)
	return &tool{
		name: name, base: name, archive: dir, stored: filepath.Join(dir, "basebackups_005"),
		archiveEnv: env, archiveCommand: quote(b.holdfast) + ` wal-push "$1"`,
		backup: func(ctx context.Context) *exec.Cmd { return b.command(ctx, env, b.holdfast, "backup-push", c.data) },
		restore: func(ctx context.Context, target string) *exec.Cmd {
			return b.command(ctx, env, b.holdfast, "backup-fetch", target, "LATEST")
		},
		check: func(ctx context.Context, target string) error {
			return errors.Join(same(c.data, target), b.run(b.command(ctx, nil, "pg_verifybackup", "-n", target)))
		},
	}
}

// backrestEnv is the settings of a repository in dir for the data directory data. Bundles of small files are the faster choice and not
// the default of this release. Both cores work. Its waiting for WAL in the archive, 0.7 seconds mostly spent asleep, is left out.
func (b *bench) backrestEnv(dir, data, compression string) []string {
	return []string{
		"PGBACKREST_CONFIG=" + filepath.Join(b.dir, "pgbackrest.conf"), "PGBACKREST_STANZA=main", "PGBACKREST_PG1_PATH=" + data,
		"PGBACKREST_PG1_SOCKET_PATH=" + b.dir, "PGBACKREST_PG1_PORT=" + strconv.Itoa(port), "PGBACKREST_PG1_USER=postgres",
		"PGBACKREST_REPO1_PATH=" + dir, "PGBACKREST_REPO1_BUNDLE=y", "PGBACKREST_REPO1_RETENTION_FULL=1",
		"PGBACKREST_COMPRESS_TYPE=" + compression, "PGBACKREST_COMPRESS_LEVEL=1",
		"PGBACKREST_PROCESS_MAX=2", "PGBACKREST_START_FAST=y", "PGBACKREST_ARCHIVE_CHECK=n", "PGBACKREST_LOG_LEVEL_FILE=off", "PGBACKREST_LOG_LEVEL_CONSOLE=warn",
		"PGBACKREST_LOCK_PATH=" + filepath.Join(b.dir, "lock"), "PGBACKREST_SPOOL_PATH=" + filepath.Join(b.dir, "spool"),
		"PGBACKREST_LOG_PATH=" + b.dir,
	}
}

// backrestCodec is what pgBackRest calls the codec of one of its rows.
func backrestCodec(row string) string {
	if row == backrestLZ4 {
		return "lz4"
	}
	return "zst"
}

func (b *bench) backrestTool(c *cluster, name, base string) *tool {
	dir := b.archivePath(name)
	env := b.backrestEnv(dir, c.data, backrestCodec(name))
	return &tool{
		name: name, base: base, archive: dir, stored: filepath.Join(dir, "backup"),
		prepare:    func(ctx context.Context) error { return b.run(b.command(ctx, env, "pgbackrest", "stanza-create")) },
		archiveEnv: env, archiveCommand: `pgbackrest archive-push "$1"`,
		backup: func(ctx context.Context) *exec.Cmd { return b.command(ctx, env, "pgbackrest", "backup", "--type=full") },
		restore: func(ctx context.Context, target string) *exec.Cmd {
			return b.command(ctx, b.backrestEnv(dir, target, backrestCodec(name)), "pgbackrest", "restore")
		},
	}
}

func (b *bench) basebackupTool(c *cluster, name, base string) *tool {
	dir, compression, unpack := b.archivePath(name), "server-zstd:1", "zstd -dc %s/base.tar.zst | tar -xf - -C %s"
	if name == basebackupLZ4 {
		compression, unpack = "server-lz4:1", "lz4 -dc %s/base.tar.lz4 | tar -xf - -C %s"
	}
	return &tool{
		name: name, base: base, archive: dir, stored: filepath.Join(dir, "backup"),
		archiveCommand: "true",
		// With the WAL it needs: without, the server would make it wait for the archive, a second at least.
		backup: func(ctx context.Context) *exec.Cmd {
			return b.command(ctx, c.env(), "pg_basebackup", "-D", filepath.Join(dir, "backup"), "-Ft", "--compress="+compression, "-X", "fetch", "-c", "fast")
		},
		restore: func(ctx context.Context, target string) *exec.Cmd {
			return b.shell(ctx, nil, unpack, filepath.Join(dir, "backup"), target)
		},
	}
}

func (b *bench) tarTool(c *cluster) *tool {
	const name = "tar | zstd -1 -T2"
	dir := b.archivePath(name)
	return &tool{
		name: name, base: oursZstd, archive: dir, stored: dir, archiveCommand: "true",
		backup: func(ctx context.Context) *exec.Cmd {
			return b.shell(ctx, nil, "tar -cf - -C %s . | zstd -q -1 -T2 -o %s/base.tar.zst", c.data, dir)
		},
		restore: func(ctx context.Context, target string) *exec.Cmd {
			return b.shell(ctx, nil, "zstd -dc %s/base.tar.zst | tar -xf - -C %s", dir, target)
		},
	}
}

func (b *bench) copyTools(c *cluster) []*tool {
	dir := b.archivePath(copied)
	return []*tool{{
		name: copied, base: oursZstd, archive: dir, stored: dir, archiveCommand: "true",
		backup: func(ctx context.Context) *exec.Cmd { return b.command(ctx, nil, "cp", "-r", c.data+"/.", dir) },
		// What restores bring back has no WAL either.
		tidy: func() error { return os.RemoveAll(filepath.Join(dir, "pg_wal")) },
		restore: func(ctx context.Context, target string) *exec.Cmd {
			return b.command(ctx, nil, "cp", "-r", dir+"/.", target)
		},
	}, {
		name: copiedSynced, base: oursZstd, archive: b.archivePath("synced"), stored: b.archivePath("synced"), archiveCommand: "true",
		backup: func(ctx context.Context) *exec.Cmd {
			return b.shell(ctx, nil, "cp -r %s/. %s && sync -f %[2]s", c.data, b.archivePath("synced"))
		},
		tidy: func() error { return os.RemoveAll(b.archivePath("synced")) },
		restore: func(ctx context.Context, target string) *exec.Cmd {
			return b.shell(ctx, nil, "cp -r %s/. %s && sync -f %[2]s", dir, target)
		},
	}}
}

// backups measures backups and restores of a cluster, round by round, each tool in turn. A tool that fails has no figure in that round.
func (b *bench) backups(ctx context.Context, name string, short bool) (backup, restore *table, err error) {
	backup, restore = &table{}, &table{}
	err = b.with(ctx, name, measured, func(c *cluster) error {
		tools := b.tools(c, short)
		for round := range b.rounds {
			good := map[*tool]bool{}
			for _, t := range tools {
				s := b.backupOnce(ctx, c, t)
				good[t] = s.Err == nil
				b.progress("backup", name, t.name, round, s)
				backup.add(t.name, t.base, s)
				if ctx.Err() != nil {
					return ctx.Err()
				}
			}
			for _, t := range tools {
				if t.restore == nil || !good[t] {
					continue
				}
				s := b.restoreOnce(ctx, t)
				b.progress("restore", name, t.name, round, s)
				restore.add(t.name, t.base, s)
				if ctx.Err() != nil {
					return ctx.Err()
				}
			}
			if err := os.RemoveAll(b.archivePath("")); err != nil {
				return err
			}
		}
		return nil
	})
	return backup, restore, err
}

// backupOnce measures one backup, the data in memory and nothing of earlier work left to be written.
func (b *bench) backupOnce(ctx context.Context, c *cluster, t *tool) (s sample) {
	if t.codec != "" {
		s.Wall, s.Err = b.codec(ctx, c.data, t.codec)
		return s
	}
	if s.Err = b.fresh(t.archive); s.Err != nil {
		return s
	}
	if t.prepare != nil {
		if s.Err = t.prepare(ctx); s.Err != nil {
			return s
		}
	}
	if s.Err = errors.Join(c.archiveWith(t.archiveEnv, t.archiveCommand), c.settle(ctx), warm(c.data)); s.Err != nil {
		return s
	}
	syscall.Sync()
	s.usage, s.Err = b.measure(ctx, c.server.Pid(), func(m *meter) error { return m.run(t.backup(ctx)) })
	if s.Err == nil {
		s.Stored, _, s.Err = size(t.stored)
	}
	if t.tidy != nil {
		s.Err = errors.Join(s.Err, t.tidy())
	}
	return s
}

// restoreOnce measures one restore into an empty directory, the archive in memory.
func (b *bench) restoreOnce(ctx context.Context, t *tool) (s sample) {
	target := filepath.Join(b.dir, "restored")
	if s.Err = b.fresh(target); s.Err != nil {
		return s
	}
	defer func() { s.Err = errors.Join(s.Err, os.RemoveAll(target)) }()
	if _, err := os.Stat(t.archive); err == nil {
		if s.Err = warm(t.archive); s.Err != nil {
			return s
		}
	}
	syscall.Sync()
	s.usage, s.Err = b.measure(ctx, 0, func(m *meter) error { return m.run(t.restore(ctx, target)) })
	if s.Err == nil && t.check != nil {
		s.Err = t.check(ctx, target)
		if s.Err != nil {
			s.Err = fmt.Errorf("what was restored is not what was backed up: %w", s.Err)
		}
	}
	return s
}

// million measures our backup and restore of a data directory with very many small files: relations of one empty page, which take no room.
func (b *bench) million(ctx context.Context) (*table, int, error) {
	name, files := "million-"+strconv.Itoa(b.scale), 5000*b.scale
	if err := b.make(ctx, name, func() error { return b.manyFiles(name, files) }); err != nil {
		return nil, 0, err
	}
	t := &table{}
	err := b.with(ctx, name, measured, func(c *cluster) error {
		tool := b.holdfastTool(c, oursZstd)
		s := b.backupOnce(ctx, c, tool)
		b.progress("backup", name, tool.name, 0, s)
		t.add("backup-push", "", s)
		if s.Err == nil {
			s = b.restoreOnce(ctx, tool)
			b.progress("restore", name, tool.name, 0, s)
			t.add("backup-fetch", "", s)
		}
		return errors.Join(ctx.Err(), os.RemoveAll(b.archivePath("")))
	})
	return t, files, err
}

// manyFiles puts n files that look like relations into the default tablespace of database 5, postgres, whose server is not running.
func (b *bench) manyFiles(cluster string, n int) error {
	const firstNode, page = 1_000_000, 8192
	for i := range n {
		path := filepath.Join(b.dir, cluster, "base/5", strconv.Itoa(firstNode+i))
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Truncate(page), f.Close(), b.give(path)); err != nil {
			return err
		}
	}
	return nil
}
