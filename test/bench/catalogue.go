package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/pg/wal"
)

// Names of rows of the section of the catalogue; targets look for them.
const (
	verifyBackup, verifyAll, verifyNothing = "holdfast verify", "holdfast verify all", "holdfast verify all, nothing due"
	backrestVerify, backrestVerifyAll      = "pgBackRest verify --set", "pgBackRest verify"

	ribbonRow, listRow, detailRow, walShowRow, planRow = "ribbon", "backup-list", "backup-list --detail", "wal-show", "retention plan"

	copyRow, copyUnreadRow, copyThereRow = "holdfast copy", "holdfast copy --read-back=false", "holdfast copy, all there"
)

// retentionPolicy is one of every rule.
const retentionPolicy = "{recovery_window: 30d, full: 7, gfs: {daily: 7, weekly: 4, monthly: 12, yearly: 3}, minimum: 2, keep_last_proven: true}"

// catalogued is what the section of the catalogue has measured.
type catalogued struct {
	verify, lists, copies *table
	bytes                 int64 // of the cluster
	segments              int   // of WAL with the backup of it
	objects, backups      int   // of WAL and of backups in the large archive
}

// catalogue measures what is asked of an archive that is there: whether it is right, what is in it, and a copy of it.
func (b *bench) catalogue(ctx context.Context) (r *catalogued, err error) {
	r = &catalogued{verify: &table{}, lists: &table{}, copies: &table{}, segments: b.segments(), objects: 500 * b.scale, backups: 10 * b.scale}
	defer func() { err = errors.Join(err, os.RemoveAll(b.archivePath("")), os.RemoveAll(b.walData())) }()
	if r.bytes, err = backupSize(filepath.Join(b.dir, b.bigName())); err != nil {
		return nil, err
	}
	newer, err := newerBackrest()
	if err != nil {
		return nil, err
	}
	if err := b.makeArchives(ctx, newer); err != nil {
		return nil, err
	}
	for round := range b.rounds {
		if err := b.verifyRound(ctx, r.verify, newer, round); err != nil {
			return nil, err
		}
	}
	if err := os.RemoveAll(b.catalogueRepository()); err != nil {
		return nil, err
	}
	for round := range b.rounds {
		if err := b.copyRound(ctx, r.copies, round); err != nil {
			return nil, err
		}
	}
	if err := os.RemoveAll(b.archivePath("")); err != nil {
		return nil, err
	}
	begin := time.Now()
	if err := makeLargeArchive(b.largeArchive(), r.objects, r.backups); err != nil {
		return nil, err
	}
	b.say("large archive: made in %.0f s", time.Since(begin).Seconds())
	for round := range b.rounds {
		for _, row := range []string{ribbonRow, listRow, detailRow, walShowRow, planRow} {
			var s sample
			env := append(holdfastEnv(b.largeArchive(), oursZstd), "HOLDFAST_RETENTION="+retentionPolicy)
			s.usage, s.Err = b.measure(ctx, 0, func(m *meter) error { return m.run(b.command(ctx, env, b.holdfast, strings.Fields(row)...)) })
			if b.note(r.lists, "list", row, row, round, s); ctx.Err() != nil {
				return nil, ctx.Err()
			}
		}
	}
	return r, nil
}

func (b *bench) catalogueArchive() string    { return b.archivePath("catalogue") }
func (b *bench) catalogueRepository() string { return b.archivePath("catalogue-pgbackrest") }
func (b *bench) largeArchive() string        { return b.archivePath("large") }

// note adds a sample to a table.
func (b *bench) note(t *table, work, name, base string, round int, s sample) {
	b.progress(work, "", name, round, s)
	t.add(name, base, s)
}

// newerBackrest returns the newer pgBackRest of the two that there are.
func newerBackrest() (string, error) {
	program := filepath.Join(testCache(), "bin/pgbackrest")
	if _, err := os.Stat(program); err != nil {
		return "", fmt.Errorf("%w: `test/services/install.sh --bench` brings it", err)
	}
	return program, nil
}

// testCache is where test/services/install.sh puts what it brings.
func testCache() string { return cmp.Or(os.Getenv("HOLDFAST_TEST_CACHE"), "/var/tmp/holdfast-test") }

// makeArchives makes what is verified: an archive of ours and a repository of pgBackRest, each with the WAL segments that pgbench wrote and a backup of
// the cluster.
func (b *bench) makeArchives(ctx context.Context, newer string) error {
	segments := filepath.Join(b.dir, b.segmentsName())
	names, err := segmentsIn(segments)
	if err != nil {
		return err
	}
	return b.with(ctx, b.bigName(), measured, func(c *cluster) error {
		ours := append(holdfastEnv(b.catalogueArchive(), oursZstd), c.env()...)
		// WAL from before its oldest backup pgBackRest removes unless it is told not to.
		theirs := append(b.backrestEnv(b.catalogueRepository(), c.data, "zst"), "PGBACKREST_EXPIRE_AUTO=n")
		theirsToPush := b.backrestEnv(b.catalogueRepository(), b.walData(), "zst")
		for _, t := range []struct {
			dir                   string
			env, pushEnv          []string
			prepare, push, backup []string
		}{
			{b.catalogueArchive(), ours, ours, nil, []string{b.holdfast, "wal-push"}, []string{b.holdfast, "backup-push", c.data}},
			{b.catalogueRepository(), theirs, theirsToPush, []string{newer, "stanza-create"}, []string{newer, "archive-push"},
				[]string{newer, "backup", "--type=full", "--archive-check=y"}},
		} {
			if err := errors.Join(b.fresh(t.dir), b.makeWALData(segments, names)); err != nil {
				return err
			}
			run := func(dir string, env []string, words ...string) error {
				cmd := b.command(ctx, env, words[0], words[1:]...)
				cmd.Dir = dir
				return b.run(cmd)
			}
			if t.prepare != nil {
				if err := run(b.dir, t.env, t.prepare...); err != nil {
					return err
				}
			}
			for _, name := range names {
				if err := run(b.walData(), t.pushEnv, append(slices.Clone(t.push), "pg_wal/"+name)...); err != nil {
					return err
				}
			}
			if err := errors.Join(c.archiveWith(t.env, quote(t.push[0])+" "+t.push[1]+` "$1"`), c.settle(ctx), run(b.dir, t.env, t.backup...), c.settle(ctx)); err != nil {
				return err
			}
		}
		return nil
	})
}

// verifyRound measures verifications, of the backup with the WAL that it needs, and of everything, and one of ours that finds nothing due.
func (b *bench) verifyRound(ctx context.Context, t *table, newer string, round int) error {
	data := filepath.Join(b.dir, b.bigName())
	ours, theirs := holdfastEnv(b.catalogueArchive(), oursZstd), b.backrestEnv(b.catalogueRepository(), data, "zst")
	labels, err := filepath.Glob(filepath.Join(b.catalogueRepository(), "backup/main/*F"))
	if err != nil || len(labels) != 1 {
		return errors.Join(fmt.Errorf("%s has %d full backups", b.catalogueRepository(), len(labels)), err)
	}
	backrest := func(more ...string) []string {
		return append([]string{newer, "verify", "--output=text", "--verbose"}, more...)
	}
	for _, v := range []struct {
		row, base  string
		env, words []string
		archive    string
	}{
		{verifyBackup, verifyBackup, ours, []string{b.holdfast, "verify", "--again"}, b.catalogueArchive()},
		{backrestVerify, verifyBackup, theirs, backrest("--set=" + filepath.Base(labels[0])), b.catalogueRepository()},
		{verifyAll, verifyAll, ours, []string{b.holdfast, "verify", "all", "--again"}, b.catalogueArchive()},
		{backrestVerifyAll, verifyAll, theirs, backrest(), b.catalogueRepository()},
		{verifyNothing, verifyAll, ours, []string{b.holdfast, "verify", "all"}, b.catalogueArchive()},
	} {
		var s sample
		from, err := b.log.Seek(0, io.SeekEnd)
		if s.Err = errors.Join(err, warm(v.archive)); s.Err == nil {
			syscall.Sync()
			s.usage, s.Err = b.measure(ctx, 0, func(m *meter) error { return m.run(b.command(ctx, v.env, v.words[0], v.words[1:]...)) })
		}
		// What pgBackRest finds is in its output only: its exit status is 0 all the same.
		if said := b.logged(from); s.Err == nil && v.words[0] == newer && !strings.Contains(said, "status: ok") {
			s.Err = fmt.Errorf("%s finds the repository wanting:%s", v.row, said)
		}
		if b.note(t, "verify", v.row, v.base, round, s); ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// copyRound measures copies of our archive into an empty directory, and one more into a directory that has everything.
func (b *bench) copyRound(ctx context.Context, t *table, round int) error {
	from, to := b.catalogueArchive(), b.archivePath("copied")
	settings := filepath.Join(b.dir, "copied.json")
	text, err := json.Marshal(map[string]string{"WALG_FILE_PREFIX": to})
	if err == nil {
		err = os.WriteFile(settings, text, 0o644)
	}
	if err != nil {
		return err
	}
	holdfast := func(more ...string) *exec.Cmd {
		return b.command(ctx, holdfastEnv(from, oursZstd), b.holdfast, append([]string{"copy", "--to", settings}, more...)...)
	}
	for _, c := range []struct {
		row string
		cmd *exec.Cmd
		add bool // to what is there
	}{
		{copyUnreadRow, holdfast("--read-back=false"), false},
		{copied, b.command(ctx, nil, "cp", "-r", from+"/.", to), false},
		{copiedSynced, b.shell(ctx, nil, "cp -r %s/. %s && sync -f %[2]s", from, to), false},
		{copyRow, holdfast(), false},
		{copyThereRow, holdfast(), true},
	} {
		var s sample
		if !c.add {
			s.Err = errors.Join(b.fresh(to), warm(from))
		}
		if s.Err == nil {
			syscall.Sync()
			s.usage, s.Err = b.measure(ctx, 0, func(m *meter) error { return m.run(c.cmd) })
		}
		if s.Err == nil {
			s.Stored, _, s.Err = size(to)
		}
		if b.note(t, "copy", c.row, copyRow, round, s); ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return os.RemoveAll(to)
}

// makeLargeArchive makes an archive of many small objects in dir: years of WAL, a full backup a week and a delta on each other day, all of them verified.
func makeLargeArchive(dir string, segments, backups int) error {
	const (
		size = wal.SegmentSize(16 << 20)
		part = "some data"
	)
	system := uint64(7)
	perBackup := segments / backups
	step := 24 * time.Hour / time.Duration(perBackup) // from segment to segment
	now := time.Now().UTC().Truncate(time.Second)
	archived := func(n wal.SegmentNo) time.Time { return now.Add(-step * time.Duration(segments-int(n))) }
	store := func(name, content string, at time.Time) error {
		path := filepath.Join(dir, name)
		err := os.WriteFile(path, []byte(content), 0o644)
		if err == nil {
			err = os.Chtimes(path, at, at)
		}
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, archive.WALDir), 0o755); err != nil {
		return err
	}
	for n := range wal.SegmentNo(segments) {
		if err := store(archive.WALDir+size.Name(1, n+1), "some WAL", archived(n+1)); err != nil {
			return err
		}
	}
	var full, parent string
	var parentLSN wal.LSN
	for i := range backups {
		first := wal.SegmentNo(1 + i*perBackup)
		start, finish := size.Start(first)+0x28, size.Start(first+1)+0x28
		s := archive.Sentinel{LSN: &start, FinishLSN: &finish, SystemIdentifier: &system, Version: 2, PgVersion: 150000,
			SegmentSize: uint64(size), StartTime: archived(first), FinishTime: archived(first + 2), Tool: "1", CompressedSize: 2 * int64(len(part)),
			Hostname: "db1", DataDir: "/var/lib/postgresql/15/main"}
		name := archive.BackupName(size.Name(1, first))
		if i%7 != 0 {
			name = archive.DeltaName(size.Name(1, first), strings.Split(strings.TrimPrefix(parent, "base_"), "_D_")[0])
			at := parentLSN
			s.DeltaFrom, s.DeltaFullName, s.DeltaLSN, s.DeltaCount = parent, full, &at, i%7
		}
		folder := archive.Folder(name)
		verified := s.FinishTime.Add(time.Hour)
		metadata, err1 := json.Marshal(s.Metadata())
		sentinel, err2 := json.Marshal(s)
		type object struct {
			Name       string    `json:"name"`
			Size       int       `json:"size"`
			Modified   time.Time `json:"modified"`
			VerifiedAt time.Time `json:"verified_at"`
		}
		record, err3 := json.Marshal(struct {
			archive.RecordHead
			Backup  string   `json:"backup"`
			Result  string   `json:"result"`
			Objects []object `json:"objects"`
		}{archive.RecordHead{At: verified, By: "postgres@db1", Version: "1"}, name, "ok", []object{
			{folder + "tar_partitions/part_001.tar", len(part), s.FinishTime, verified}, {folder + "tar_partitions/pg_control.tar", len(part), s.FinishTime, verified}}})
		if err := errors.Join(err1, err2, err3); err != nil {
			return err
		}
		for _, sub := range []string{"tar_partitions", "verified"} {
			if err := os.MkdirAll(filepath.Join(dir, folder, sub), 0o755); err != nil {
				return err
			}
		}
		for _, o := range []struct {
			name, content string
			at            time.Time
		}{
			{folder + "tar_partitions/part_001.tar", part, s.FinishTime}, {folder + "tar_partitions/pg_control.tar", part, s.FinishTime},
			{folder + "metadata.json", string(metadata), s.FinishTime},
			{archive.VerifiedDir(name) + verified.Format("20060102T150405.000000Z") + "-verified.json", string(record), verified},
			{archive.BackupDir + name + "_backup_stop_sentinel.json", string(sentinel), s.FinishTime},
		} {
			if err := store(o.name, o.content, o.at); err != nil {
				return err
			}
		}
		if parent, parentLSN = name, start; i%7 == 0 {
			full = name
		}
	}
	return nil
}

// targets of the catalogue.
func (r *catalogued) targets() (all []target) {
	if r == nil {
		return nil
	}
	for _, row := range []string{ribbonRow, detailRow, walShowRow} {
		all = append(all,
			target{what: fmt.Sprintf("%s of %d WAL objects and %d backups: time", row, r.objects, r.backups), bound: 3, strict: true,
				rounds: good(r.lists.figures(row, wall)), unit: " s"},
			target{what: fmt.Sprintf("%s of %d WAL objects and %d backups: peak memory", row, r.objects, r.backups), bound: 256, strict: true,
				rounds: good(r.lists.figures(row, peak)), unit: " MiB"})
	}
	return all
}

// The columns of the catalogue.
var (
	verifyColumns = []column{
		each("median s", wall, 2), least("best s", wall, 2), rounds("each round", wall, 2), each("CPU s", cpu, 1), each("read MB", read, 0),
		most("peak MiB", peak, 0), compared(wall),
	}
	listColumns = verifyColumns[:len(verifyColumns)-1]
	copyColumns = slices.Delete(slices.Clone(backupColumns), 4, 5) // no server takes part
)

// print writes what was measured.
func (r *catalogued) print(w io.Writer) {
	fmt.Fprintf(w, "\n## Verification of a backup of %.1f GB\n\n"+
		"The archive has the %d WAL segments that pgbench wrote, and a backup, compressed with zstd at level 1; it is in the page cache. \"verify\" reads the\n"+
		"backup and the WAL that makes it consistent, \"verify all\" everything. Holdfast looks into all of it: each file is compared with the manifest, the\n"+
		"checksum of each page and of each WAL record is checked. pgBackRest, the newer one with process-max=2, compares the SHA-1 of a backup's files as they are\n"+
		"stored, without decompressing them, and that of the content of WAL. \"nothing due\" is a run behind one that has read everything. Bytes read are those of\n"+
		"the tool's own processes.\n\n", float64(r.bytes)/1e9, r.segments)
	r.verify.print(w, verifyColumns)
	fmt.Fprint(w, "\n## A copy of that archive\n\n"+
		"From one directory to another on the same disk. Holdfast syncs each object and reads it back; cp does neither. \"all there\" is a second copy into what a\n"+
		"first one has filled.\n\n")
	r.copies.print(w, copyColumns)
	fmt.Fprintf(w, "\n## Lists of %d WAL objects and %d backups\n\n"+
		"In a directory, in the page cache: a full backup every seventh day and a delta on each day between, each of them verified. retention plan has a rule of\n"+
		"every kind.\n\n", r.objects, r.backups)
	r.lists.print(w, listColumns)
}
