package cli_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/cli"
	"holdfast/internal/compress"
	"holdfast/internal/crypt"
	"holdfast/internal/pg/wal"
	"holdfast/internal/ribbon"
	"holdfast/internal/store/file"
)

// story is an archive to which things happen, in a directory whose times are those of the story.
type story struct {
	t   *testing.T
	dir string
	now time.Time
	key crypt.Key // that encrypts what is put; nil leaves it as it is
}

const segmentSize = wal.SegmentSize(16 << 20)

func (s *story) archive(key crypt.Key) *archive.Archive {
	s.t.Helper()
	disk, err := file.Open(s.dir)
	if err != nil {
		s.t.Fatal(err)
	}
	return archive.New(disk, archive.Options{Key: key})
}

// put stores an object now.
func (s *story) put(name string, content []byte) {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o644); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Chtimes(path, s.now, s.now); err != nil {
		s.t.Fatal(err)
	}
}

// packed is what an object holds: compressed, and encrypted where there is a key.
func (s *story) packed() []byte {
	s.t.Helper()
	var z io.ReadCloser = compress.Compress(strings.NewReader("some content"), compress.Zstd, compress.Options{})
	if s.key != nil {
		z = s.key.Encrypt(z)
	}
	defer z.Close()
	b, err := io.ReadAll(z)
	if err != nil {
		s.t.Fatal(err)
	}
	return b
}

// segments archives segments of a timeline, one every ten minutes.
func (s *story) segments(tl wal.Timeline, first, last wal.SegmentNo) {
	s.t.Helper()
	for n := first; n <= last; n++ {
		s.now = s.now.Add(10 * time.Minute)
		s.put(archive.WALDir+segmentSize.Name(tl, n)+".zst", s.packed())
	}
}

// backup stores a backup that starts in segment n, finished now. parent is "" for a full one.
func (s *story) backup(tl wal.Timeline, n wal.SegmentNo, parent string) string {
	s.t.Helper()
	start, system := segmentSize.Start(n)+0x28, uint64(7359000000000000001)
	finish := start + 0x100
	sentinel := archive.Sentinel{LSN: &start, FinishLSN: &finish, SystemIdentifier: &system, Version: 2, PgVersion: 150004, SegmentSize: uint64(segmentSize),
		StartTime: s.now.Add(-time.Minute), FinishTime: s.now}
	name := archive.BackupName(segmentSize.Name(tl, n))
	if parent != "" {
		name = archive.DeltaName(segmentSize.Name(tl, n), parent)
		_, at, err := segmentSize.ParseSegment(parent[len("base_"):][:24])
		if err != nil {
			s.t.Fatal(err)
		}
		from := segmentSize.Start(at) + 0x28
		sentinel.DeltaFrom, sentinel.DeltaFullName, sentinel.DeltaLSN, sentinel.DeltaCount = parent, parent, &from, 1
	}
	s.put(archive.Folder(name)+"tar_partitions/part_001.tar.zst", s.packed())
	s.put(archive.Folder(name)+"tar_partitions/pg_control.tar.zst", s.packed())
	b, err := json.Marshal(sentinel)
	if err != nil {
		s.t.Fatal(err)
	}
	s.put(archive.BackupDir+name+"_backup_stop_sentinel.json", b)
	return name
}

func (s *story) remove(names ...string) {
	s.t.Helper()
	for _, name := range names {
		if err := os.RemoveAll(filepath.Join(s.dir, name)); err != nil {
			s.t.Fatal(err)
		}
	}
}

// look returns the verdict as `ribbon` prints it, 41 s after what happened last.
func (s *story) look(o ribbon.Options) (ribbon.Ribbon, string) {
	s.t.Helper()
	o.Now, o.Storages = s.now.Add(41*time.Second), []string{"default"}
	a := s.archive(nil)
	in, err := ribbon.Load(s.t.Context(), a, a, o)
	if err != nil {
		s.t.Fatal(err)
	}
	r := ribbon.Compute(in)
	text := cli.RibbonText(r)
	for _, line := range strings.Split(text, "\n") {
		if len([]rune(line)) > 120 {
			s.t.Errorf("%d columns: %s", len([]rune(line)), line)
		}
	}
	return r, text
}

// accept notes that a segment is lost, and that this is known.
func (s *story) accept(segment, reason string) {
	s.t.Helper()
	g := ribbon.Gap{RecordHead: archive.NewRecordHead("jane@db1", "test"), Timeline: 2, First: segment, Last: segment, Reason: reason}
	if _, err := s.archive(nil).AddRecord(s.t.Context(), archive.GapDir, "", g); err != nil {
		s.t.Fatal(err)
	}
}

// verified leaves the records of a verification: of a backup, and of the WAL of a timeline.
func (s *story) verified(backup string, tl wal.Timeline, first, last wal.SegmentNo, bad ...wal.SegmentNo) {
	s.t.Helper()
	b, err := json.Marshal(map[string]any{"backup": backup, "result": "ok", "objects": []any{}})
	if err != nil {
		s.t.Fatal(err)
	}
	s.put(archive.VerifiedDir(backup)+s.now.Format("20060102T150405.000000Z")+"-a.json", b)
	problems := []any{}
	for _, n := range bad {
		problems = append(problems, map[string]any{"segment": segmentSize.Name(tl, n), "offset": 8192, "kind": "content", "text": "the record at 0/D002000 has a wrong checksum"})
	}
	if b, err = json.Marshal(map[string]any{"timeline": tl, "first": segmentSize.Name(tl, first), "last": segmentSize.Name(tl, last), "problems": problems}); err != nil {
		s.t.Fatal(err)
	}
	s.put(archive.VerifiedWALDir+s.now.Format("20060102T150405.000000Z")+"-a.json", b)
}

// A cluster is promoted, a clone archives too, a segment gets lost, a base is deleted, a key is not at hand: testdata/ribbon has what an expert would say
// of each.
func TestRibbonTellsTheStory(t *testing.T) {
	update := flag.Lookup("update")
	s := &story{t: t, dir: t.TempDir(), now: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)}
	var all strings.Builder
	tell := func(what string, want ribbon.Status, o ribbon.Options) ribbon.Ribbon {
		t.Helper()
		r, text := s.look(o)
		if r.Status != want {
			t.Errorf("%s: %s, want %s\n%s", what, r.Status, want, text)
		}
		fmt.Fprintf(&all, "=== %s: %s\n%s\n", what, r.Status, text)
		return r
	}
	tell("nothing is there yet", ribbon.Failure, ribbon.Options{})
	s.segments(1, 1, 2)
	tell("WAL, and no backup", ribbon.Failure, ribbon.Options{})
	full := s.backup(1, 2, "")
	s.segments(1, 3, 4)
	delta := s.backup(1, 4, full)
	s.segments(1, 5, 9)
	tell("a full backup, a delta, WAL", ribbon.OK, ribbon.Options{})

	s.put(archive.WALDir+"00000002.history", []byte("1\t0/A4001F8\tno recovery target specified\n"))
	s.put(archive.WALDir+"00000001000000000000000A.partial.zst", s.packed())
	tell("promoted, and nothing archived on the new timeline", ribbon.OK, ribbon.Options{})
	s.segments(2, 0xA, 0xC)
	tell("promoted", ribbon.OK, ribbon.Options{})

	s.put(archive.WALDir+"00000003.history", []byte("1\t0/A4001F8\tno recovery target specified\n2\t0/B800000\tno recovery target specified\n"))
	s.segments(3, 0xB, 0xB)
	s.segments(2, 0xD, 0xE)
	r := tell("a stray clone was promoted too, and archives", ribbon.Warning, ribbon.Options{})
	if r.Timeline != 2 {
		t.Errorf("timeline %d is taken for the cluster's", r.Timeline)
	}
	tell("the stray clone's timeline, asked for", ribbon.OK, ribbon.Options{Live: 3})
	s.remove(archive.WALDir+"00000003.history", archive.WALDir+"00000003000000000000000B.zst")

	s.segments(5, 0x40, 0x41)
	s.segments(2, 0xF, 0x10)
	tell("WAL of a timeline that nothing leads to", ribbon.Warning, ribbon.Options{})
	s.remove(archive.WALDir+"000000050000000000000040.zst", archive.WALDir+"000000050000000000000041.zst")

	lost := segmentSize.Name(2, 0xD)
	s.remove(archive.WALDir + lost + ".zst")
	tell("a segment is lost", ribbon.Failure, ribbon.Options{})
	young := s.backup(2, 0x10, "")
	s.segments(2, 0x11, 0x12)
	tell("a backup was taken behind the hole", ribbon.Warning, ribbon.Options{})
	s.accept(lost, "disk of db1 was full")
	tell("the hole was accepted", ribbon.OK, ribbon.Options{})

	s.verified(young, 2, 0xF, 0x11)
	tell("verified", ribbon.OK, ribbon.Options{})
	tell("nothing but what was verified counts", ribbon.Warning, ribbon.Options{ProvenOnly: true})
	s.now = s.now.Add(time.Minute)
	s.verified(young, 2, 0xF, 0x11, 0x11)
	tell("a segment was found to be damaged", ribbon.Failure, ribbon.Options{})
	s.segments(2, 0x11, 0x11) // it was stored anew
	tell("it was repaired", ribbon.OK, ribbon.Options{})

	s.remove(archive.BackupDir+full+"_backup_stop_sentinel.json", archive.Folder(full))
	tell("a base was deleted that "+delta+" builds on", ribbon.Warning, ribbon.Options{})

	key, err := crypt.Open(t.Context(), crypt.Options{Age: crypt.AgeKeys{Recipients: "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"}})
	if err != nil {
		t.Fatal(err)
	}
	s.key = key
	s.segments(2, 0x13, 0x14)
	s.backup(2, 0x14, "")
	s.segments(2, 0x15, 0x15)
	tell("the archive is encrypted now, and there is no key here", ribbon.Warning, ribbon.Options{})

	golden := filepath.Join("testdata", "ribbon_story.txt")
	if update != nil && update.Value.String() == "true" {
		if err := os.WriteFile(golden, []byte(all.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want, []byte(all.String())) {
		t.Errorf("testdata/ribbon_story.txt is out of date: look at the difference, then -update\n%s", all.String())
	}
}
