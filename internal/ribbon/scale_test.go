package ribbon_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/pg/wal"
	"holdfast/internal/ribbon"
	"holdfast/internal/store/file"
)

// BenchmarkLoadLargeArchive judges 100 000 segments and 2000 backups, a week's deltas on each full one, in a directory. What is wanted is 3 s and 256 MiB.
func BenchmarkLoadLargeArchive(b *testing.B) {
	const segments, backups = 100_000, 2000
	dir := b.TempDir()
	store := func(name string, content []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			b.Fatal(err)
		}
	}
	folder := func(name string) {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			b.Fatal(err)
		}
	}
	folder(archive.WALDir)
	for n := range wal.SegmentNo(segments) {
		store(archive.WALDir+size.Name(1, n+1)+".", []byte("some WAL"))
	}
	var full, parent string
	var parentLSN wal.LSN
	for i := range wal.SegmentNo(backups) {
		n := 1 + i*(segments/backups)
		start, system := size.Start(n)+0x28, uint64(7)
		finish := start + 3*wal.LSN(size)
		s := archive.Sentinel{LSN: &start, FinishLSN: &finish, SystemIdentifier: &system, Version: 2, SegmentSize: uint64(size),
			StartTime: day.Add(time.Duration(i) * time.Hour), FinishTime: day.Add(time.Duration(i+1) * time.Hour)}
		name := archive.BackupName(size.Name(1, n))
		if i%7 != 0 {
			name = archive.DeltaName(size.Name(1, n), parent)
			from, at := parent, parentLSN
			s.DeltaFrom, s.DeltaFullName, s.DeltaLSN, s.DeltaCount = from, full, &at, int(i%7)
		}
		folder(archive.Folder(name) + "tar_partitions")
		store(archive.Folder(name)+"tar_partitions/part_001.tar", []byte("some data"))
		store(archive.Folder(name)+"tar_partitions/pg_control.tar", []byte("some data"))
		metadata, err := json.Marshal(s.Metadata())
		if err != nil {
			b.Fatal(err)
		}
		store(archive.Folder(name)+"metadata.json", metadata)
		sentinel, err := json.Marshal(s)
		if err != nil {
			b.Fatal(err)
		}
		store(archive.BackupDir+name+"_backup_stop_sentinel.json", sentinel)
		if parent, parentLSN = name, start; i%7 == 0 {
			full = name
		}
	}
	disk, err := file.Open(dir)
	if err != nil {
		b.Fatal(err)
	}
	a := archive.New(disk, archive.Options{})
	for b.Loop() {
		in, err := ribbon.Load(b.Context(), a, a, ribbon.Options{})
		if err != nil {
			b.Fatal(err)
		}
		r := ribbon.Compute(in)
		if r.Status != ribbon.OK || len(r.Main) != 2 && len(r.Main) != 1 || len(r.Main[len(r.Main)-1].Bases) != backups {
			b.Fatalf("%s: %s, %d stretches, %q", r.Status, r.Verdict, len(r.Main), r.Notes)
		}
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	b.ReportMetric(float64(m.Sys)/(1<<20), "MiB-of-the-system")
}
