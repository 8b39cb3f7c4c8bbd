package restore_test

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/adler32"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/compress"
	"holdfast/internal/pg/control"
	"holdfast/internal/pg/page"
	"holdfast/internal/restore"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
)

// embed moves the list into the sentinel, as before WAL-G 1.1.1.
func embed(sentinel, list map[string]any) {
	for _, key := range []string{"Version", "FinishTime", "ChkpNum"} {
		delete(sentinel, key)
	}
	if at, ok := sentinel["DeltaLSN"]; ok {
		delete(sentinel, "DeltaLSN")
		sentinel["DeltaFromLSN"] = at
	}
	maps.Copy(sentinel, list)
	delete(sentinel, "DatabasesByNames")
	clear(list)
}

// Backups of every generation of WAL-G come back, deltas of those that had them.
func TestSentinelsOfEveryAge(t *testing.T) {
	for what, tweak := range map[string]func(sentinel, list map[string]any){
		"today": nil,
		"parts unknown": func(_, list map[string]any) {
			delete(list, "TarFileSets")
		},
		"parts unknown, null":       func(_, list map[string]any) { list["TarFileSets"] = nil },
		"list in the sentinel":      embed,
		"that and no parts":         func(sentinel, list map[string]any) { delete(list, "TarFileSets"); embed(sentinel, list) },
		"tablespaces null, unknown": func(sentinel, _ map[string]any) { sentinel["Spec"], sentinel["Invented"] = nil, []any{1, nil} },
	} {
		g := &walG{method: compress.LZ4, perPart: 2, tweak: tweak}
		names := threeDeep(g)
		dir := filepath.Join(t.TempDir(), "data")
		_, report, err := g.fetch(g.store, dir, names[3], nil)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		holds(t, filepath.Join(dir, "base/5/1"), string(somePages("base/5/1", []int{1, 2, 3, 4, 1})))
		holds(t, filepath.Join(dir, "base/5/2"), string(somePages("base/5/2", []int{1, 1})))
		if report.Files != 2 {
			t.Errorf("%s: %d files", what, report.Files)
		}
	}
	for what, tweak := range map[string]func(sentinel, list map[string]any){
		"the first":            func(sentinel, list map[string]any) { clear(sentinel); clear(list) },
		"without a list":       func(sentinel, list map[string]any) { sentinel["FilesMetadataDisabled"] = true },
		"null LSN, no list":    func(sentinel, list map[string]any) { clear(sentinel); clear(list); sentinel["LSN"] = nil },
		"list in the sentinel": embed,
	} {
		g := &walG{store: &storetest.Memory{}, method: compress.None, dot: true, tweak: tweak}
		name := g.full([]member{{path: "base/5/1", content: []byte("one"), mode: 0o640}, {path: "PG_VERSION", content: []byte("15\n"), mode: 0o600}})
		dir := filepath.Join(t.TempDir(), "data")
		plan, _, err := g.fetch(g.store, dir, name, nil)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		if got := restored(dir); len(got) != 2 || got["base/5/1"] != "640 one" || plan.PgVersion/10000 != 15 {
			t.Errorf("%s: restored %q of PostgreSQL %d", what, got, plan.PgVersion)
		}
	}
}

// The first WAL-G listed files that were removed before they were packed. Since then what is listed must be there.
func TestListedAndNotPacked(t *testing.T) {
	for what, tweak := range map[string]func(sentinel, list map[string]any){"then": embed, "now": nil} {
		g := &walG{store: &storetest.Memory{}, method: compress.LZ4, tweak: tweak}
		g.full([]member{{path: "base/5/1", content: []byte("one"), mode: 0o600}, {path: "base/5/2", unpacked: true}})
		_, report, err := g.fetch(g.store, filepath.Join(t.TempDir(), "data"), "LATEST", nil)
		if what == "now" {
			if err == nil || !strings.Contains(err.Error(), "base/5/2: the list of "+g.last+" has it, its parts do not") {
				t.Errorf("%s: %v", what, err)
			}
		} else if err != nil || !strings.Contains(strings.Join(report.Notes, "\n"), "base/5/2") {
			t.Errorf("%s: %+v, %v", what, report, err)
		}
	}
}

// What lies in parts and is in no list is not restored, neither are parts that another push left.
func TestPackedAndNotListed(t *testing.T) {
	g := &walG{store: &storetest.Memory{}, method: compress.LZ4}
	name := g.full([]member{{path: "base/5/1", content: []byte("one"), mode: 0o600}, {path: "base/5/2", content: []byte("two"), unlisted: true, mode: 0o600}})
	g.putPart(name, "part_009.tar", []member{{path: "base/5/1", content: []byte("old"), mode: 0o600}})
	g.method = compress.Zstd
	g.putPart(name, "part_001.tar", []member{{path: "base/5/1", content: []byte("old"), mode: 0o600}})
	dir := filepath.Join(t.TempDir(), "data")
	plan, report, err := g.fetch(g.store, dir, name, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := restored(dir); len(got) != 1 || got["base/5/1"] != "600 one" {
		t.Errorf("restored %q", got)
	}
	notes := strings.Join(append(plan.Notes, report.Notes...), "\n")
	for _, want := range []string{"part_009.tar.lz4 lies beside", "part_001.tar.zst lies beside", "base/5/2 is left out"} {
		if !strings.Contains(notes, want) {
			t.Errorf("the notes lack %q: %s", want, notes)
		}
	}
}

// A cluster with OrioleDB is restored from a full backup, and its deltas are refused.
func TestOrioleDB(t *testing.T) {
	g := &walG{method: compress.LZ4, tweak: func(sentinel, _ map[string]any) { sentinel["ChkpNum"] = 7 }}
	names := threeDeep(g)
	_, _, err := g.fetch(g.store, filepath.Join(t.TempDir(), "data"), names[1], nil)
	var refusal *restore.RefusedError
	if !errors.As(err, &refusal) || !strings.Contains(err.Error(), "OrioleDB") || !strings.Contains(refusal.Advice, "full backup") {
		t.Errorf("a delta: %v", err)
	}
	if _, _, err := g.fetch(g.store, filepath.Join(t.TempDir(), "data"), names[0], nil); err != nil {
		t.Errorf("a full backup: %v", err)
	}
}

// What the control file says must be what the sentinel says.
func TestSentinelAndControlFileDisagree(t *testing.T) {
	for key, x := range map[string]struct {
		value any
		says  string
	}{
		"SystemIdentifier": {7, "the backup says 7"},
		"PgVersion":        {130004, "is of PostgreSQL 15, the backup says 130004"},
	} {
		g := &walG{store: &storetest.Memory{}, method: compress.LZ4, tweak: func(sentinel, _ map[string]any) { sentinel[key] = x.value }}
		g.full([]member{{path: "base/5/1", content: []byte("one"), mode: 0o600}})
		dir := filepath.Join(t.TempDir(), "data")
		if _, _, err := g.fetch(g.store, dir, "LATEST", nil); err == nil || !strings.Contains(err.Error(), x.says) {
			t.Errorf("%s: %v, want %q", key, err, x.says)
		}
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: something was written: %v", key, err)
		}
	}
}

// A label that is not that of the backup is refused: PostgreSQL would begin to replay elsewhere.
func TestLabelOfAnother(t *testing.T) {
	for label, says := range map[string]string{
		"START WAL LOCATION: 0/2000029 (file x)\n": "backup starts at 0/2000029, the backup says 0/2000028",
		"START WAL LOCATIOM: 0/2000028 (file x)\n": "instead of where the backup starts",
		"": "instead of where the backup starts",
	} {
		g := &walG{store: &storetest.Memory{}, method: compress.None}
		g.full([]member{{path: "base/5/1", mode: 0o600}})
		g.putPart(g.last, "backup_label.tar", []member{{path: "backup_label", content: []byte(label), mode: 0o600}})
		if _, _, err := g.fetch(g.store, filepath.Join(t.TempDir(), "data"), g.last, nil); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want %q", label, err, says)
		}
	}
}

// summed gives pages their checksums.
func summed(b []byte, first int) []byte {
	for i := 0; i+page.Size <= len(b); i += page.Size {
		p := b[i:][:page.Size]
		if bytes.Count(p, []byte{0}) < page.Size {
			binary.LittleEndian.PutUint16(p[14:], 8000) // pd_upper: it is no new page
			binary.LittleEndian.PutUint16(p[8:], page.Checksum(p, uint32(first+i/page.Size)))
		}
	}
	return b
}

// In a cluster with checksums the pages of relations are looked at, those of increments too, and the report tells of bad ones.
func TestPagesAreLookedAt(t *testing.T) {
	const one, segment, fsm, xact = "base/5/1", "pg_tblspc/16385/PG_15_1/5/2.3", "global/7_fsm", "pg_xact/0000"
	content := map[string][]byte{
		one:     summed(somePages(one, []int{1, 0, 1, 1}), 0),
		segment: summed(somePages(segment, []int{1, 1}), 3*131072),
		fsm:     summed(somePages(fsm, []int{1}), 0),
		xact:    somePages(xact, []int{1}), // no relation
	}
	build := func(flip func(path string, b []byte)) *walG {
		g := &walG{store: &storetest.Memory{}, method: compress.None, perPart: 1}
		var members []member
		for path, b := range content {
			b = slices.Clone(b)
			flip(path, b)
			members = append(members, member{path: path, content: b, mode: 0o600})
		}
		g.full(members)
		for i := range members {
			m := &members[i]
			if m.skipped = m.path != one; m.skipped {
				m.content = nil
				continue
			}
			m.incremented, m.content = true, incrementOf(summed(somePages(one, []int{1, 0, 2, 1}), 0), []uint32{2})
			flip("increment", m.content)
		}
		g.delta(members)
		return g
	}
	for what, x := range map[string]struct {
		path string // what is damaged
		at   int
		bad  int64
		says string
	}{
		"all good":                            {"", 0, 0, ""},
		"a page":                              {one, 100, 1, "base/5/1: the checksums of 1 pages do not hold, the first in block 0"},
		"a page of zeros":                     {one, page.Size + 100, 1, "in block 1"},
		"a page that the increment replaces":  {one, 2*page.Size + 100, 0, ""},
		"a page of the increment":             {"increment", 20 + 100, 1, "base/5/1: the checksums of 1 pages do not hold, the first in block 2"},
		"a page of a segment in a tablespace": {segment, page.Size + 100, 1, "2.3: the checksums of 1 pages do not hold, the first in block 1"},
		"a page of a map":                     {fsm, 100, 1, fsm},
		"what is no relation":                 {xact, 100, 0, ""},
	} {
		g := build(func(path string, b []byte) {
			if path == x.path {
				b[x.at] ^= 1
			}
		})
		_, report, err := g.fetch(g.store, filepath.Join(t.TempDir(), "data"), "LATEST", nil)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		notes := strings.Join(report.Notes, "\n")
		if report.Pages != 7 || report.BadPages != x.bad || !strings.Contains(notes, x.says) || (x.bad > 0) != strings.Contains(notes, "of 7 pages") {
			t.Errorf("%s: %d of %d pages are bad, want %d of 7; notes %q", what, report.BadPages, report.Pages, x.bad, notes)
		}
	}
}

// A tablespace that the backup's map names and its sentinel does not place goes into the data directory, and never to where it was.
func TestStrayTablespaces(t *testing.T) {
	old := filepath.Join(t.TempDir(), "old")
	g := &walG{store: &storetest.Memory{}, method: compress.LZ4, spaces: "16385 " + old + "\n16386 " + old + "2\n"}
	g.full([]member{{path: "pg_tblspc/16385/PG_15_1/5/1", content: []byte("one"), mode: 0o600}})
	dir := filepath.Join(t.TempDir(), "data")
	looks := func() {
		t.Helper()
		holds(t, filepath.Join(dir, "pg_tblspc/16385/PG_15_1/5/1"), "one")
		holds(t, filepath.Join(dir, "tablespace_map"), fmt.Sprintf("16385 %[1]s/holdfast_tablespaces/16385\n16386 %[1]s/holdfast_tablespaces/16386\n", dir))
		for _, oid := range []string{"16385", "16386"} {
			if to, err := os.Readlink(filepath.Join(dir, "pg_tblspc", oid)); err != nil || to != filepath.Join(dir, "holdfast_tablespaces", oid) {
				t.Errorf("the link of %s leads to %s, %v", oid, to, err)
			}
		}
		if _, err := os.Stat(old); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("something is where the tablespace was: %v", err)
		}
	}
	_, report, err := g.fetch(g.store, dir, "LATEST", nil)
	if err != nil || !strings.Contains(strings.Join(report.Notes, "\n"), "--restore-spec") {
		t.Fatalf("%+v, %v", report, err)
	}
	looks()

	// An attempt that ended behind that is continued.
	marker := filepath.Join(dir, "holdfast_restore.json")
	data := must2(control.Decode(controlFile(t)))
	if err := os.WriteFile(marker, fmt.Appendf(nil, `{"holdfast_restore":1,"backup":%q,"system_identifier":%d,"backup_finished":"2026-05-06T07:00:00Z"}`,
		g.last, data.SystemIdentifier), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := g.fetch(g.store, dir, "LATEST", func(r *restore.Request) { r.Resume = true }); err != nil {
		t.Fatal(err)
	}
	looks()

	// And where it goes can be said.
	place := filepath.Join(t.TempDir(), "place")
	dir = filepath.Join(t.TempDir(), "data")
	if _, _, err := g.fetch(g.store, dir, "LATEST", func(r *restore.Request) {
		r.Spec = &archive.TablespaceSpec{Tablespaces: []archive.Tablespace{{OID: "16385", Location: place}, {OID: "16386", Location: place + "2"}}}
	}); err != nil {
		t.Fatal(err)
	}
	holds(t, filepath.Join(place, "PG_15_1/5/1"), "one")
	holds(t, filepath.Join(dir, "tablespace_map"), "16385 "+place+"\n16386 "+place+"2\n")
}

// lzop packs b as lzop does what it cannot compress.
func lzop(b []byte) []byte {
	be := binary.BigEndian
	out := []byte{0x89, 'L', 'Z', 'O', 0, '\r', '\n', 0x1A, '\n'}
	header := be.AppendUint16(nil, 0x1040)
	header = be.AppendUint16(header, 0x20A0)
	header = be.AppendUint16(header, 0x0940)
	header = append(header, 1, 5)
	header = be.AppendUint32(header, 0x03000001)
	header = append(header, make([]byte, 4+4+4+1)...) // mode, times, no name
	out = be.AppendUint32(append(out, header...), adler32.Checksum(header))
	for block := range slices.Chunk(b, 256<<10) {
		out = be.AppendUint32(out, uint32(len(block)))
		out = be.AppendUint32(out, uint32(len(block)))
		out = be.AppendUint32(out, adler32.Checksum(block))
		out = append(out, block...)
	}
	return be.AppendUint32(out, 0)
}

// walE stores a backup as WAL-E does: a part of these files, control file and label among them, and a sentinel.
func walE(t *testing.T, sentinel string, version string, format tar.Format, files map[string]string) (*storetest.Memory, string) {
	t.Helper()
	const name = "base_000000010000000000000002_00000040"
	m := &storetest.Memory{}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, path := range slices.Sorted(maps.Keys(files)) {
		h := tar.Header{Typeflag: tar.TypeReg, Name: path, Size: int64(len(files[path])), Mode: 0o600, Format: format}
		if strings.HasSuffix(path, "/") {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(files[path])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	b.Write(make([]byte, 5*512)) // Python fills records of 10 KiB
	for object, content := range map[string][]byte{
		archive.BackupDir + name + "_backup_stop_sentinel.json":              []byte(sentinel),
		archive.Folder(name) + "extended_version.txt":                        []byte(version),
		archive.Folder(name) + "tar_partitions/part_00000000.tar.lzo":        lzop(b.Bytes()),
		archive.Folder(name) + "tar_partitions/part_00000000.tar.lzo.backup": []byte("not a part"),
		archive.WALDir + "000000010000000000000002.lzo":                      lzop(nil),
		archive.WALDir + "000000010000000000000003.lzo":                      lzop(nil),
	} {
		if version == "" && strings.HasSuffix(object, "version.txt") {
			continue
		}
		if err := m.Put(t.Context(), object, bytes.NewReader(content)); err != nil {
			t.Fatal(err)
		}
	}
	return m, name
}

// A backup of WAL-E comes back: names of either tar format, the label and the control file among the rest, tablespaces by the
// sentinel, and what it lacks is said.
func TestWALE(t *testing.T) {
	const sentinel = `{"wal_segment_backup_stop":"000000010000000000000003","wal_segment_offset_backup_stop":"00000256","expanded_size_bytes":100,` +
		`"spec":{"base_prefix":"/old/data/","tablespaces":["16385"],"16385":{"loc":"/old/ts/","link":"pg_tblspc/16385"}}}`
	deep := "base/" + strings.Repeat("long/", 40) + strings.Repeat("x", 120)
	files := map[string]string{
		"/": "", "base/": "", "base/5/": "", "base/5/1": "one", ".hidden": "h", deep: "deep", "pg_tblspc/16385/PG_15_1/5/2": "two", "PG_VERSION": "15\n",
		control.Name: string(controlFile(t)), "backup_label": "START WAL LOCATION: 0/2000028\n", "tablespace_map": "16385 /old/ts\n", "pg_wal/": "",
	}
	for _, format := range []tar.Format{tar.FormatGNU, tar.FormatPAX} {
		m, name := walE(t, sentinel, "PostgreSQL 15.23 on x86_64", format, files)
		base := t.TempDir()
		dir, space := filepath.Join(base, "data"), filepath.Join(base, "space")
		a := archive.New(m, archive.Options{})
		p, err := restore.Decide(t.Context(), a, restore.Request{
			Destination: dir, Choice: choose(t, a, "", catalog.Target{Kind: catalog.AtLSN, LSN: 0x3000100}), TablespaceMapping: map[string]string{"/old/ts": space},
			Recovery: &restore.Recovery{Command: "false"},
		})
		if err != nil {
			t.Fatal(err)
		}
		report, err := restore.Run(t.Context(), a, p, restore.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if p.Backup != name || p.StartLSN != "0/2000028" || p.FinishLSN != "0/3000100" || p.PgVersion != 150023 || p.NeededWAL != "000000010000000000000003" || p.Bytes != 100 {
			t.Errorf("plan %+v", p)
		}
		for path, want := range map[string]string{"base/5/1": "one", ".hidden": "h", deep: "deep", "PG_VERSION": "15\n", "backup_label": files["backup_label"],
			"tablespace_map": "16385 " + space + "\n", control.Name: files[control.Name], "recovery.signal": ""} {
			holds(t, filepath.Join(dir, path), want)
		}
		holds(t, filepath.Join(space, "PG_15_1/5/2"), "two")
		notes := strings.Join(append(p.Notes, report.Notes...), "\n")
		for _, want := range []string{"WAL-E left postgresql.conf, pg_hba.conf and pg_ident.conf out", "part_00000000.tar.lzo.backup lies beside"} {
			if !strings.Contains(notes, want) {
				t.Errorf("the notes lack %q: %s", want, notes)
			}
		}
	}

	// The oldest do not say where tablespaces were.
	m, _ := walE(t, `{"wal_segment_backup_stop":"000000010000000000000003","wal_segment_offset_backup_stop":"00000256"}`, "", tar.FormatGNU, files)
	dir := filepath.Join(t.TempDir(), "data")
	g := &walG{}
	if _, _, err := g.fetch(m, dir, "LATEST", nil); err != nil {
		t.Fatal(err)
	}
	holds(t, filepath.Join(dir, "holdfast_tablespaces/16385/PG_15_1/5/2"), "two")

	refused := func(what, says, version string, change func(map[string]string)) {
		t.Helper()
		changed := maps.Clone(files)
		change(changed)
		m, _ := walE(t, `{}`, version, tar.FormatGNU, changed)
		dir := filepath.Join(t.TempDir(), "data")
		if _, _, err := g.fetch(m, dir, "LATEST", nil); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", what, err, says)
		}
		if _, err := os.Stat(filepath.Join(dir, control.Name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: there is a pg_control: %v", what, err)
		}
	}
	refused("no label", "holds no backup_label", "PostgreSQL 15.23", func(f map[string]string) { delete(f, "backup_label") })
	refused("no control file", "holds no global/pg_control", "PostgreSQL 15.23", func(f map[string]string) { delete(f, control.Name) })
	refused("an old major", "is of PostgreSQL 9.6; 10 and later are supported", "PostgreSQL 9.6.24", func(map[string]string) {})
}

// Deltas of WAL-G build on a full backup of ours too, whose contents are then checked as ever.
func TestDeltaOnOurs(t *testing.T) {
	const one, two = "base/5/1", "base/5/2"
	whole := somePages(one, []int{1, 1, 1})
	m := &storetest.Memory{}
	backedUp(t, m, compress.None, nil, append(small()[0][:4], file(one, string(whole)), file(two, "two")))
	g := &walG{store: m, method: compress.LZ4, last: ours, n: 1, tweak: func(sentinel, _ map[string]any) {
		sentinel["DeltaLSN"] = 0x2000028
	}}
	changed := somePages(one, []int{1, 2, 1})
	name := g.delta([]member{{path: one, content: incrementOf(changed, []uint32{1}), incremented: true, mode: 0o600}, {path: two, skipped: true}})
	dir := filepath.Join(t.TempDir(), "data")
	if _, _, err := g.fetch(m, dir, name, nil); err != nil {
		t.Fatal(err)
	}
	holds(t, filepath.Join(dir, one), string(changed))
	holds(t, filepath.Join(dir, two), "two")

	object := archive.Folder(ours) + "tar_partitions/part_001.tar"
	b := must2(store.ReadFile(t.Context(), m, object, 1<<20))
	b[bytes.Index(b, []byte(one+" block 1"))] ^= 1 // of the block that the delta replaces
	if err := m.Put(t.Context(), object, bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := g.fetch(m, filepath.Join(t.TempDir(), "data"), name, nil); err == nil || !strings.Contains(err.Error(), "checksum") {
		t.Errorf("damage below a delta: %v", err)
	}
}

// A list that says otherwise than any release of WAL-G would is refused.
func TestListsThatMakeNoSense(t *testing.T) {
	for what, x := range map[string]struct {
		members []member
		tweak   func(sentinel, list map[string]any)
		says    string
	}{
		"twice by its spelling": {[]member{{path: "base/5/1", mode: 0o600}}, func(_, list map[string]any) {
			files := list["Files"].(map[string]any)
			files["base/5/1"] = files["/base/5/1"]
		}, "twice"},
		"twice in the parts":      {[]member{{path: "base/5/1", mode: 0o600}, {path: "base/5/1", mode: 0o600}}, nil, "the backup holds it twice"},
		"an increment of nothing": {[]member{{path: "base/5/1", incremented: true, mode: 0o600}}, nil, "its list says that base/5/1 builds on another"},
	} {
		g := &walG{store: &storetest.Memory{}, method: compress.LZ4, tweak: x.tweak}
		g.full(x.members)
		if _, _, err := g.fetch(g.store, filepath.Join(t.TempDir(), "data"), "LATEST", nil); err == nil || !strings.Contains(err.Error(), x.says) {
			t.Errorf("%s: %v, want %q", what, err, x.says)
		}
	}
	// A delta without a list cannot be told from a whole backup.
	g := &walG{method: compress.LZ4, tweak: func(sentinel, list map[string]any) {
		if sentinel["DeltaFrom"] != nil {
			clear(list)
			delete(sentinel, "Version")
		}
	}}
	names := threeDeep(g)
	if _, _, err := g.fetch(g.store, filepath.Join(t.TempDir(), "data"), names[1], nil); !errors.Is(err, archive.ErrNoFileList) {
		t.Errorf("a delta without a list: %v", err)
	}
}
