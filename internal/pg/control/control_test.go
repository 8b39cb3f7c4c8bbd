package control_test

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/pg/control"
	"holdfast/internal/pg/instance"
	"holdfast/internal/pg/wal"
	"holdfast/test/pgtest"
)

// facts are what a Data says, in the words of PostgreSQL's functions.
func facts(d control.Data) map[string]string {
	return map[string]string{
		"major":                      fmt.Sprint(d.Major),
		"state":                      d.State.String(),
		"wal_level":                  d.WALLevel.String(),
		"system_identifier":          fmt.Sprint(d.SystemIdentifier),
		"pg_control_version":         fmt.Sprint(d.ControlVersion),
		"catalog_version_no":         fmt.Sprint(d.CatalogVersion),
		"checkpoint_lsn":             d.Checkpoint.String(),
		"redo_lsn":                   d.CheckpointRedo.String(),
		"timeline_id":                fmt.Sprint(uint32(d.CheckpointTimeline)),
		"prev_timeline_id":           fmt.Sprint(uint32(d.CheckpointPrevTimeline)),
		"checkpoint_time":            d.CheckpointTime.Format(time.RFC3339),
		"min_recovery_end_lsn":       d.MinRecoveryEnd.String(),
		"min_recovery_end_timeline":  fmt.Sprint(uint32(d.MinRecoveryEndTimeline)),
		"database_block_size":        fmt.Sprint(d.BlockSize),
		"blocks_per_segment":         fmt.Sprint(d.BlocksPerSegment),
		"wal_block_size":             fmt.Sprint(d.WALBlockSize),
		"bytes_per_wal_segment":      fmt.Sprint(uint64(d.SegmentSize)),
		"data_page_checksum_version": fmt.Sprint(d.ChecksumVersion),
	}
}

// golden reads a file that a real server of that major wrote.
func golden(t testing.TB, major int) []byte {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("testdata/pg_control_%d", major))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// What is decoded of each major's file is what its server said.
func TestDecodeAgreesWithEveryMajor(t *testing.T) {
	f, err := os.Open("testdata/expected.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var got map[string]string
	files, compared := 0, 0
	for s := bufio.NewScanner(f); s.Scan(); {
		line := s.Text()
		switch key, want, _ := strings.Cut(line, " "); {
		case line == "" || line[0] == '#':
		case line[0] == '[':
			b, err := os.ReadFile(filepath.Join("testdata", strings.Trim(line, "[]")))
			if err != nil {
				t.Fatal(err)
			}
			d, err := control.Decode(b)
			if err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			got = facts(d)
			files++
		default:
			if got[key] != want {
				t.Errorf("%s: %s: got %q, want %q", got["major"], key, got[key], want)
			}
			compared++
		}
	}
	if files != 9 || compared != 9*len(facts(control.Data{})) {
		t.Errorf("compared %d facts of %d files", compared, files)
	}
}

func TestTablespaceDirNamesMajorAndCatalog(t *testing.T) {
	d, err := control.Decode(golden(t, 15))
	if err != nil || d.TablespaceDir() != "PG_15_202209061" {
		t.Errorf("TablespaceDir() = %q, %v", d.TablespaceDir(), err)
	}
}

// crcAt is where each control version keeps its checksum.
var crcAt = map[uint32]int{1002: 288, 1100: 280, 1201: 288, 1300: 288, 1700: 288, 1800: 292}

// seal stores the checksum that belongs to b.
func seal(b []byte) {
	if at, ok := crcAt[binary.LittleEndian.Uint32(b[8:])]; ok && len(b) >= at+4 {
		binary.LittleEndian.PutUint32(b[at:], crc32.Checksum(b[:at], crc32.MakeTable(crc32.Castagnoli)))
	}
}

// Whichever bit of the struct flips, and wherever it is cut off, the file is refused.
func TestDecodeRefusesDamage(t *testing.T) {
	for major := 10; major <= 18; major++ {
		b := golden(t, major)
		end := crcAt[binary.LittleEndian.Uint32(b[8:])] + 4
		for i := range end * 8 {
			b[i/8] ^= 1 << (i % 8)
			if d, err := control.Decode(b); err == nil {
				t.Errorf("%d: bit %d of byte %d flipped: decoded to %+v", major, i%8, i/8, d)
			}
			b[i/8] ^= 1 << (i % 8)
		}
		for n := range end {
			if _, err := control.Decode(b[:n]); err == nil {
				t.Errorf("%d: the first %d bytes were accepted", major, n)
			}
		}
		if _, err := control.Decode(b[:end]); err != nil {
			t.Errorf("%d: undamaged: %v", major, err)
		}
	}
}

// Values no server has are refused although the checksum is right.
func TestDecodeRefusesTheImpossible(t *testing.T) {
	for name, c := range map[string]struct {
		at    int
		value uint32
		want  string
	}{
		"9.6":                {8, 960, "version 960 is not that of PostgreSQL 10 to 18"},
		"a later version":    {8, 1900, "version 1900 is not"},
		"another byte order": {8, 0x14050000, "big-endian"},
		"catalog version":    {12, 202403131, "no release"},
		"state":              {16, 7, "cluster state 7"},
		"wal_level":          {172, 3, "wal_level 3"},
		"block size 0":       {216, 0, "block size 0"},
		"block size 8191":    {216, 8191, "block size 8191"},
		"block size 64 kB":   {216, 65536, "block size 65536"},
		"blocks per segment": {220, 0, "0 blocks"},
		"WAL block size":     {224, 512, "WAL block size 512"},
		"WAL segment size":   {228, 3 << 20, "WAL segment size 3145728"},
	} {
		b := golden(t, 15)
		binary.LittleEndian.PutUint32(b[c.at:], c.value)
		seal(b)
		if _, err := control.Decode(b); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

// Read waits for a write that is under way, and tells what is wrong with a file that stays damaged.
func TestRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pg_control")
	whole := append(golden(t, 17), make([]byte, control.Size-512)...)
	damaged := append([]byte{whole[0] ^ 1}, whole[1:]...)
	put := func(b []byte) {
		t.Helper()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}

	if _, _, err := control.Read(path); !os.IsNotExist(err) {
		t.Errorf("missing: %v", err)
	}
	put(whole)
	d, b, err := control.Read(path)
	if err != nil || d.Major != 17 || string(b) != string(whole) {
		t.Errorf("whole: %+v, %d bytes, %v", d, len(b), err)
	}
	put(damaged)
	if _, _, err := control.Read(path); err == nil || !strings.Contains(err.Error(), "checksum") {
		t.Errorf("damaged: %v", err)
	}
	put(whole[:512])
	if _, _, err := control.Read(path); err == nil || !strings.Contains(err.Error(), "512 bytes instead of 8192") {
		t.Errorf("short: %v", err)
	}
}

// The same as above, on what this machine's PostgreSQL 15 makes now: pg_controldata and we agree.
func TestReadAgreesWithControldata(t *testing.T) {
	p := pgtest.Require(t, 15)
	for _, mib := range []int{1, 64} {
		pgdata := filepath.Join(pgtest.Dir(t), "data")
		opts := instance.InitOptions{SegmentSize: wal.SegmentSize(mib << 20), Checksums: true, NoSync: true}
		if err := instance.Init(t.Context(), p, pgdata, opts); err != nil {
			t.Fatal(err)
		}
		cmd := pgtest.Command(t, pgtest.Tool(t, 15, "pg_controldata"), "-D", pgdata)
		cmd.Env = append(cmd.Environ(), "LC_ALL=C")
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		said := map[string]string{}
		for line := range strings.Lines(string(out)) {
			key, value, _ := strings.Cut(line, ":")
			said[key] = strings.TrimSpace(value)
		}
		d, _, err := control.Read(filepath.Join(pgdata, control.Name))
		if err != nil {
			t.Fatal(err)
		}
		f := facts(d)
		for key, fact := range map[string]string{
			"pg_control version number":            "pg_control_version",
			"Catalog version number":               "catalog_version_no",
			"Database system identifier":           "system_identifier",
			"Database cluster state":               "state",
			"Latest checkpoint location":           "checkpoint_lsn",
			"Latest checkpoint's REDO location":    "redo_lsn",
			"Latest checkpoint's TimeLineID":       "timeline_id",
			"Latest checkpoint's PrevTimeLineID":   "prev_timeline_id",
			"Minimum recovery ending location":     "min_recovery_end_lsn",
			"Min recovery ending loc's timeline":   "min_recovery_end_timeline",
			"wal_level setting":                    "wal_level",
			"Database block size":                  "database_block_size",
			"Blocks per segment of large relation": "blocks_per_segment",
			"WAL block size":                       "wal_block_size",
			"Bytes per WAL segment":                "bytes_per_wal_segment",
			"Data page checksum version":           "data_page_checksum_version",
		} {
			if said[key] == "" || said[key] != f[fact] {
				t.Errorf("%d MiB: %s: pg_controldata says %q, Read %q", mib, key, said[key], f[fact])
			}
		}
		if want := wal.SegmentSize(mib << 20); d.SegmentSize != want {
			t.Errorf("segments of %d bytes, want %d", d.SegmentSize, want)
		}
	}
}

// Nothing read makes Decode panic, and what it accepts are sizes a server can have.
func FuzzDecode(f *testing.F) {
	for major := 10; major <= 18; major++ {
		f.Add(golden(f, major))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= 16 {
			seal(b) // else nothing gets past the checksum
		}
		d, err := control.Decode(b)
		if err != nil {
			return
		}
		if d.Major < 10 || d.Major > 18 || !d.SegmentSize.Valid() || d.BlockSize == 0 || d.BlockSize&(d.BlockSize-1) != 0 ||
			d.BlocksPerSegment == 0 || d.State > control.InProduction || d.WALLevel > control.Logical {
			t.Errorf("accepted %+v", d)
		}
	})
}
