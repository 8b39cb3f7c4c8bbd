package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Names of rows for WAL; targets look for them.
const (
	pushOneZstd, pushOneLZ4         = "holdfast zstd, look-ahead off", "holdfast lz4, look-ahead off"
	pushAheadZstd, pushAheadLZ4     = "holdfast zstd, look-ahead on", "holdfast lz4, look-ahead on"
	backrestSyncZst, backrestSyncLZ = "pgBackRest zst, synchronous", "pgBackRest lz4, synchronous"
	backrestAsyncZst, backrestAsLZ  = "pgBackRest zst, asynchronous", "pgBackRest lz4, asynchronous"
)

// A walTool stores or fetches segments, one call each.
type walTool struct {
	name    string
	base    string // our row that this one is compared with
	env     []string
	archive string
	prepare func(ctx context.Context) error // not timed
	command string                          // of the shell, %p and %f as in archive_command and restore_command
	retries int                             // how often a call that failed is made again, as a standby does
	pause   time.Duration                   // before each call
}

// walData is the data directory that the calls find themselves in: no server's, but PostgreSQL's to look at.
func (b *bench) walData() string { return filepath.Join(b.dir, "waldata") }

// pushTools lists what stores segments. The archives of those that fetch reads again have the names "zst", "lz4" and "cp".
func (b *bench) pushTools() []walTool {
	ours := func(name, base, row, archive string, env ...string) walTool {
		dir := b.archivePath("holdfast-" + archive)
		return walTool{name: name, base: base, env: append(holdfastEnv(dir, row), env...), archive: dir, command: quote(b.holdfast) + " wal-push %p"}
	}
	backrest := func(name, base, row, archive string, env ...string) walTool {
		dir := b.archivePath("backrest-" + archive)
		env = append(b.backrestEnv(dir, b.walData(), backrestCodec(row)), env...)
		return walTool{name: name, base: base, env: env, archive: dir, command: "pgbackrest archive-push %p", prepare: func(ctx context.Context) error {
			return errors.Join(b.fresh(filepath.Join(b.dir, "spool")), b.run(b.command(ctx, env, "pgbackrest", "stanza-create", "--no-online")))
		}}
	}
	const off, async = "WALG_UPLOAD_CONCURRENCY=1", "PGBACKREST_ARCHIVE_ASYNC=y"
	return []walTool{
		ours(pushOneZstd, pushOneZstd, oursZstd, "zst", off),
		backrest(backrestSyncZst, pushOneZstd, backrestZst, "zst"),
		ours(pushAheadZstd, pushAheadZstd, oursZstd, "zst-ahead"),
		backrest(backrestAsyncZst, pushAheadZstd, backrestZst, "zst-async", async),
		ours(pushOneLZ4, pushOneLZ4, oursLZ4, "lz4", off),
		backrest(backrestSyncLZ, pushOneLZ4, backrestLZ4, "lz4"),
		ours(pushAheadLZ4, pushAheadLZ4, oursLZ4, "lz4-ahead"),
		backrest(backrestAsLZ, pushAheadLZ4, backrestLZ4, "lz4-async", async),
		{name: "cp", base: pushOneZstd, archive: b.archivePath("cp"), command: "cp %p " + quote(b.archivePath("cp")) + "/%f"},
	}
}

// fetchTools lists what brings segments back, from the archives of pushTools.
func (b *bench) fetchTools() []walTool {
	ours := func(name, base, row, archive string, env ...string) walTool {
		env = append(holdfastEnv(b.archivePath("holdfast-"+archive), row), env...)
		return walTool{name: name, base: base, env: env, archive: b.archivePath("holdfast-" + archive), command: quote(b.holdfast) + " wal-fetch %f %p"}
	}
	backrest := func(name, base, row, archive string, env ...string) walTool {
		dir := b.archivePath("backrest-" + archive)
		// Its asynchronous archive-get now and then finds a segment gone that its other process has just moved.
		return walTool{name: name, base: base, archive: dir, command: "pgbackrest archive-get %f %p", retries: 3,
			env:     append(b.backrestEnv(dir, b.walData(), backrestCodec(row)), env...),
			prepare: func(context.Context) error { return b.fresh(filepath.Join(b.dir, "spool")) }}
	}
	const off, async = "WALG_DOWNLOAD_CONCURRENCY=1", "PGBACKREST_ARCHIVE_ASYNC=y"
	const oneZstd, aheadZstd, aheadLZ4 = "holdfast zstd, prefetch off", "holdfast zstd, prefetch on", "holdfast lz4, prefetch on"
	return []walTool{
		ours(oneZstd, oneZstd, oursZstd, "zst", off),
		backrest(backrestSyncZst, oneZstd, backrestZst, "zst"),
		ours(aheadZstd, aheadZstd, oursZstd, "zst"),
		backrest(backrestAsyncZst, aheadZstd, backrestZst, "zst", async),
		ours(aheadLZ4, aheadLZ4, oursLZ4, "lz4"),
		backrest(backrestAsLZ, aheadLZ4, backrestLZ4, "lz4", async),
		{name: "cp", base: oneZstd, archive: b.archivePath("cp"), command: "cp " + quote(b.archivePath("cp")) + "/%f %p"},
	}
}

// wal measures storing and fetching the segments, round by round, each tool in turn.
func (b *bench) wal(ctx context.Context) (push, fetch *table, err error) {
	segments := filepath.Join(b.dir, b.segmentsName())
	names, err := segmentsIn(segments)
	if err != nil {
		return nil, nil, err
	}
	if err := os.MkdirAll(b.archivePath(""), 0o755); err != nil {
		return nil, nil, err
	}
	push, fetch = &table{}, &table{}
	for round := range b.rounds {
		for _, t := range b.pushTools() {
			s := b.pushAll(ctx, t, segments, names)
			b.progress("push", "WAL", t.name, round, s)
			push.add(t.name, t.base, s)
			if ctx.Err() != nil {
				return nil, nil, ctx.Err()
			}
		}
		for _, t := range b.fetchTools() {
			s := b.fetchAll(ctx, t, segments, names)
			b.progress("fetch", "WAL", t.name, round, s)
			fetch.add(t.name, t.base, s)
			if ctx.Err() != nil {
				return nil, nil, ctx.Err()
			}
		}
		if err := errors.Join(os.RemoveAll(b.archivePath("")), os.RemoveAll(b.walData())); err != nil {
			return nil, nil, err
		}
	}
	return push, fetch, nil
}

// makeWALData makes the data directory for a run, with the named segments in it, finished and waiting to be archived.
func (b *bench) makeWALData(segments string, names []string) error {
	data := b.walData()
	for _, dir := range []string{data, data + "/global", data + "/pg_wal", data + "/pg_wal/archive_status"} {
		if err := b.fresh(dir); err != nil {
			return err
		}
	}
	for _, name := range []string{"PG_VERSION", "global/pg_control"} {
		content, err := os.ReadFile(filepath.Join(b.dir, b.bigName(), name))
		if err == nil {
			err = os.WriteFile(filepath.Join(data, name), content, 0o600)
		}
		if err := errors.Join(err, b.give(filepath.Join(data, name))); err != nil {
			return err
		}
	}
	for _, name := range names {
		ready := filepath.Join(data, "pg_wal/archive_status", name+".ready")
		err := errors.Join(os.Link(filepath.Join(segments, name), filepath.Join(data, "pg_wal", name)), os.WriteFile(ready, nil, 0o600), b.give(ready))
		if err != nil {
			return err
		}
	}
	return nil
}

// call runs a tool's command for a segment, as PostgreSQL does: by the shell, in the data directory. It returns the milliseconds that took.
func (b *bench) call(ctx context.Context, m *meter, t walTool, name, path string) (float64, error) {
	cmd := b.command(ctx, t.env, "sh", "-c", strings.NewReplacer("%f", name, "%p", path).Replace(t.command))
	cmd.Dir = b.walData()
	begin := time.Now()
	err := m.run(cmd)
	return time.Since(begin).Seconds() * 1000, err
}

// pushAll plays PostgreSQL's archiver over all segments, which are all ready from the start: the oldest first, and what is stored is renamed to done.
func (b *bench) pushAll(ctx context.Context, t walTool, segments string, names []string) (s sample) {
	if s.Err = errors.Join(b.fresh(t.archive), b.makeWALData(segments, names)); s.Err != nil {
		return s
	}
	if t.prepare != nil {
		if s.Err = t.prepare(ctx); s.Err != nil {
			return s
		}
	}
	if s.Err = warm(segments); s.Err != nil {
		return s
	}
	syscall.Sync()
	status := filepath.Join(b.walData(), "pg_wal/archive_status")
	s.usage, s.Err = b.measure(ctx, 0, func(m *meter) error {
		for _, name := range names {
			if _, err := os.Stat(filepath.Join(status, name+".done")); err == nil {
				continue // whoever stored it ahead of being asked has said so
			}
			time.Sleep(t.pause)
			ms, err := b.call(ctx, m, t, name, "pg_wal/"+name)
			if err != nil {
				return err
			}
			s.Calls = append(s.Calls, ms)
			if err := os.Rename(filepath.Join(status, name+".ready"), filepath.Join(status, name+".done")); err != nil {
				return err
			}
		}
		return nil
	})
	if s.Err == nil {
		s.Stored, _, s.Err = size(t.archive)
	}
	return s
}

// keep puts a fetched segment in its place, durably, as PostgreSQL does before it replays it (durable_rename).
func keep(from, to string) error {
	if err := syncPath(from); err != nil {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return syncPath(filepath.Dir(to))
}

// syncPath syncs a file or a directory.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// fetchAll plays PostgreSQL's recovery over all segments, without the replay: each is fetched under one name and then put in its place, which
// takes part in the time for all, but not in that of the calls.
func (b *bench) fetchAll(ctx context.Context, t walTool, segments string, names []string) (s sample) {
	if s.Err = b.makeWALData(segments, nil); s.Err != nil {
		return s
	}
	if t.prepare != nil {
		if s.Err = t.prepare(ctx); s.Err != nil {
			return s
		}
	}
	if s.Err = warm(t.archive); s.Err != nil {
		return s
	}
	syscall.Sync()
	const into = "pg_wal/RECOVERYXLOG"
	data := b.walData()
	s.usage, s.Err = b.measure(ctx, 0, func(m *meter) error {
		for _, name := range names {
			ms, err := b.call(ctx, m, t, name, into)
			for again := 0; err != nil && again < t.retries && ctx.Err() == nil; again++ {
				b.say("%s: trying again: %v", t.name, err)
				var more float64
				more, err = b.call(ctx, m, t, name, into)
				ms += more
			}
			if err != nil {
				return err
			}
			s.Calls = append(s.Calls, ms)
			if err := keep(filepath.Join(data, into), filepath.Join(data, "pg_wal", name)); err != nil {
				return err
			}
		}
		return nil
	})
	for _, name := range names {
		if s.Err == nil {
			s.Err = b.run(b.command(ctx, nil, "cmp", filepath.Join(data, "pg_wal", name), filepath.Join(segments, name)))
		}
	}
	return s
}
