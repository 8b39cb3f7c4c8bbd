package archive_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/increment"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
	"holdfast/internal/tarpart"
)

const backupName = "base_000000010000000000000003"

func entries(es ...tarpart.Entry) func() (tarpart.Entry, error) {
	return func() (tarpart.Entry, error) {
		if len(es) == 0 {
			return tarpart.Entry{}, io.EOF
		}
		e := es[0]
		es = es[1:]
		return e, nil
	}
}

// putBackup makes a small backup in s, parts out of order as workers do.
func putBackup(ctx context.Context, s store.Store) error {
	d, err := archive.New(s, archive.Options{}).Begin(ctx, backupName, "db1")
	if err != nil {
		return err
	}
	one, two := d.NextPart(), d.NextPart()
	for _, part := range []struct {
		name string
		es   []tarpart.Entry
	}{
		{two, []tarpart.Entry{{Path: "base/5/2", Content: []byte("two"), Mode: 0o600}, {Path: "base/5/3", Content: make([]byte, 8192), Paged: true}}},
		{archive.ControlPart, []tarpart.Entry{{Path: "global/pg_control", Content: []byte("control"), Mode: 0o600}}},
		{archive.LabelPart, []tarpart.Entry{{Path: "backup_label", Content: []byte("label"), Bare: true}, {Path: "tablespace_map", Bare: true}}},
		{one, []tarpart.Entry{{Path: ".", Type: tarpart.Dir, Mode: 0o700}, {Path: "base/5/1", Content: []byte("one"), Mode: 0o600, ModTime: time.Unix(7, 8)}}},
	} {
		p := tarpart.NewPacker(entries(part.es...), tarpart.Options{})
		err := d.PutPart(ctx, part.name, p, p.Members)
		if err == nil {
			err = d.PutSums(ctx, part.name, p.Sums())
		}
		if err != nil {
			return errors.Join(err, d.Abort(context.Background()))
		}
	}
	lsn, id := wal.LSN(0x3000028), uint64(7359000000000000001)
	err = d.Commit(ctx, &archive.Sentinel{LSN: &lsn, FinishLSN: &lsn, SystemIdentifier: &id, PgVersion: 150018, StartTime: time.Unix(9, 0).UTC()})
	if err != nil {
		return errors.Join(err, d.Abort(context.Background()))
	}
	return nil
}

func TestCommitMakesABackup(t *testing.T) {
	m := &storetest.Memory{}
	if err := putBackup(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	a := archive.New(m, archive.Options{})
	s, err := a.Sentinel(t.Context(), backupName)
	if err != nil || s.Version != 2 || *s.SystemIdentifier != 7359000000000000001 || s.UncompressedSize != 18+8192 || s.CompressedSize == 0 {
		t.Errorf("sentinel %+v, %v", s, err)
	}
	if meta, err := a.Metadata(t.Context(), backupName); err != nil || meta.StartLSN != 0x3000028 {
		t.Errorf("metadata %+v, %v", meta, err)
	}

	mf, err := a.OpenManifest(t.Context(), backupName)
	if err != nil {
		t.Fatal(err)
	}
	defer mf.Close()
	var got []string
	for {
		p, err := mf.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range p.Members {
			got = append(got, p.Name+" "+m.Path)
		}
	}
	want := "[part_001.tar.zst . part_001.tar.zst base/5/1 part_002.tar.zst base/5/2 part_002.tar.zst base/5/3 pg_control.tar.zst global/pg_control " +
		"backup_label.tar.zst backup_label backup_label.tar.zst tablespace_map]"
	if fmt.Sprint(got) != want {
		t.Errorf("the manifest has\n%s, want\n%s", got, want)
	}

	raw, err := store.ReadFile(t.Context(), m, archive.Folder(backupName)+"files_metadata.json", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	var list struct {
		Files map[string]struct {
			IsIncremented, IsSkipped *bool
			MTime                    time.Time
		}
		TarFileSets map[string][]string
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		t.Fatalf("%s: %v", raw, err)
	}
	if f, ok := list.Files["/base/5/1"]; !ok || f.IsIncremented == nil || !f.MTime.Equal(time.Unix(7, 8)) || len(list.Files) != 4 {
		t.Errorf("file list %s", raw)
	}
	if fmt.Sprint(list.TarFileSets["backup_label.tar.zst"]) != "[backup_label tablespace_map]" || len(list.TarFileSets) != 4 {
		t.Errorf("tar file sets %s", raw)
	}
	if _, err := m.Stat(t.Context(), archive.Folder(backupName)+"push.json"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the push marker is still there: %v", err)
	}
}

// A delta's documents say what is incremented, what is unchanged and on what it builds, and what says so of the manifest is true.
func TestCommitOfADelta(t *testing.T) {
	ctx := t.Context()
	m := &storetest.Memory{}
	if err := putBackup(ctx, m); err != nil {
		t.Fatal(err)
	}
	a := archive.New(m, archive.Options{})
	parent, err := a.Sentinel(ctx, backupName)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := store.ReadFile(ctx, m, archive.BackupDir+backupName+"_backup_stop_sentinel.json", 1<<20)
	if sum := sha256.Sum256(raw); err != nil || parent.Sum != hex.EncodeToString(sum[:]) {
		t.Fatalf("the sentinel's sum is %s, %v", parent.Sum, err)
	}
	const name = "base_000000010000000000000005_D_000000010000000000000003"
	d, err := a.Begin(ctx, name, "db1")
	if err != nil {
		t.Fatal(err)
	}
	page := bytes.Repeat([]byte("page"), 2048)
	h := increment.Header{FileSize: 3 * 8192, Blocks: []uint32{2}}
	p := tarpart.NewPacker(entries(
		tarpart.Entry{Path: "base/5/1", Stream: bytes.NewReader(page), Increment: &h},
		tarpart.Entry{Path: "base/5/9", Content: page, Paged: true},
	), tarpart.Options{})
	part := d.NextPart()
	if err := errors.Join(d.PutPart(ctx, part, p, p.Members), d.PutSums(ctx, part, p.Sums()), d.PutSums(ctx, d.NextPart(), nil)); err != nil {
		t.Fatal(err)
	}
	const same = archive.MaxPartMembers + 1
	for i := range same {
		if err := d.Unchanged(tarpart.Member{Path: fmt.Sprintf("base/6/%d", i), Size: 8192, Mode: 0o600, ModTime: time.Unix(9, int64(i)), Inode: 8}); err != nil {
			t.Fatal(err)
		}
	}
	lsn, id := wal.LSN(0x5000028), uint64(7359000000000000001)
	err = d.Commit(ctx, &archive.Sentinel{LSN: &lsn, FinishLSN: &lsn, SystemIdentifier: &id, PgVersion: 150018, StartTime: time.Unix(19, 0).UTC(),
		DeltaFrom: backupName, DeltaFullName: backupName, DeltaCount: 1, DeltaLSN: parent.LSN, Parent: parent.Sum, DeltaSource: "lsn"})
	if err != nil {
		t.Fatal(err)
	}
	if d.Files() != 2 {
		t.Errorf("%d files", d.Files())
	}
	s, err := a.Sentinel(ctx, name)
	if err != nil || s.Parent != parent.Sum || s.DeltaSource != "lsn" {
		t.Errorf("%+v, %v", s, err)
	}
	mf, err := a.OpenManifest(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	defer mf.Close()
	if mf.Header.Parent == nil || *mf.Header.Parent != (archive.ManifestParent{Backup: backupName, Sum: parent.Sum}) || mf.Header.Unchanged != 2 {
		t.Errorf("header %+v", mf.Header)
	}
	mp, err := mf.Next()
	if err != nil || len(mp.Members) != 2 || mp.Members[0].Increment == nil {
		t.Fatalf("%+v, %v", mp, err)
	}
	if _, err := mf.Next(); err != io.EOF {
		t.Fatal(err)
	}
	n := 0
	for {
		us, err := mf.NextUnchanged()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range us {
			if u.Path != fmt.Sprintf("base/6/%d", n) || u.ModTime.Nanosecond() != n || u.Inode != 8 || u.Size != 8192 {
				t.Fatalf("unchanged %+v", u)
			}
			n++
		}
	}
	if n != same || mf.Sum() != s.Manifest {
		t.Errorf("%d are unchanged; the manifest's sum is %s, the sentinel says %s", n, mf.Sum(), s.Manifest)
	}
	sums, err := a.OpenSums(ctx, name, part)
	if err != nil {
		t.Fatal(err)
	}
	defer sums.Close()
	if got, err := io.ReadAll(sums); err != nil || !bytes.Equal(got, p.Sums()) || len(got) != 8 {
		t.Errorf("sums %x, %v", got, err)
	}
	if _, err := a.OpenSums(ctx, name, "part_002.tar"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("sums of no pages: %v", err)
	}
	listed := map[string]archive.ListedFile{}
	if err := a.ReadFileList(ctx, name, s, archive.FileListVisitor{File: func(f archive.ListedFile) error { listed[f.Path] = f; return nil }}); err != nil {
		t.Fatal(err)
	}
	if listed["base/5/1"].Size != 3*8192 || listed["base/5/9"].Size != 8192 || listed["base/6/0"].Size != 8192 || !listed["base/6/1"].ModTime.Equal(time.Unix(9, 1)) {
		t.Errorf("sizes and times: %+v %+v %+v", listed["base/5/1"], listed["base/5/9"], listed["base/6/1"])
	}
	if len(listed) != same+2 || !listed["base/5/1"].Incremented || listed["base/5/9"].Incremented || !listed["base/6/0"].Skipped || listed["base/5/1"].Skipped {
		t.Errorf("%d files are listed; %+v %+v %+v", len(listed), listed["base/5/1"], listed["base/5/9"], listed["base/6/0"])
	}
}

// Whichever store call fails, and however, there is a whole backup or an error and nothing at all.
func TestBackupFailsWhole(t *testing.T) {
	for how, failAt := range map[string]func(store.Store, int) *storetest.Flaky{
		"before": storetest.FailAt, "midway": storetest.FailMidway, "after": storetest.FailAfter,
	} {
		for n := 0; ; n++ {
			m := &storetest.Memory{}
			flaky := failAt(m, n)
			err := putBackup(t.Context(), flaky)
			if !flaky.Reached() {
				break
			}
			_, stat := archive.New(m, archive.Options{}).Sentinel(t.Context(), backupName)
			if err == nil && stat != nil {
				t.Errorf("%s, call %d failed, no error, and no backup: %v", how, n, flaky.Calls())
			}
			if err != nil && !errors.Is(err, storetest.ErrInjected) {
				t.Errorf("%s, call %d: %v", how, n, err)
			}
			if left := contents(t, m); err != nil && len(left) > 0 {
				t.Errorf("%s, call %d failed with %v, yet there is %v: %v", how, n, err, left, flaky.Calls())
			}
		}
	}
}

// A push that was held for dead and comes back neither mixes its objects into the backup of the one that took over, nor
// removes that.
func TestDraftThatLostItsNameLetsGo(t *testing.T) {
	ctx := t.Context()
	m := &storetest.Memory{}
	late, err := archive.New(m, archive.Options{}).Begin(ctx, backupName, "db1")
	if err != nil {
		t.Fatal(err)
	}
	check := func(when string) {
		t.Helper()
		before := fmt.Sprint(contents(t, m))
		for what, do := range map[string]func(context.Context) error{
			"beat":   late.Beat,
			"commit": func(ctx context.Context) error { return late.Commit(ctx, &archive.Sentinel{}) },
			"abort":  late.Abort,
		} {
			var inUse *archive.InUseError
			if err := do(ctx); !errors.As(err, &inUse) {
				t.Errorf("%s, %s: got %v, want an InUseError", what, when, err)
			}
		}
		if after := fmt.Sprint(contents(t, m)); after != before {
			t.Errorf("%s there was\n%s, then\n%s", when, before, after)
		}
	}
	if err := m.Delete(ctx, archive.Folder(backupName)+"push.json"); err != nil { // as Begin does to a dead push
		t.Fatal(err)
	}
	other, err := archive.New(m, archive.Options{}).Begin(ctx, backupName, "db2")
	if err != nil {
		t.Fatal(err)
	}
	check("while the other is at work")
	if err := other.Abort(ctx); err != nil {
		t.Fatal(err)
	}
	if err := putBackup(ctx, m); err != nil {
		t.Fatal(err)
	}
	check("when the other has ended")
}

// contents returns every object of s.
func contents(t *testing.T, s store.Store) map[string]string {
	t.Helper()
	all := map[string]string{}
	for o, err := range store.Walk(t.Context(), s, "") {
		if err != nil {
			t.Fatal(err)
		}
		b, err := store.ReadFile(t.Context(), s, o.Name, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		all[o.Name] = string(b)
	}
	return all
}

// takenTwice is a store whose conditional puts are done and then, their answer lost, tried again.
type takenTwice struct{ *storetest.Memory }

func (s takenTwice) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	if err := s.Memory.PutIfAbsent(ctx, name, r); err != nil {
		return err
	}
	return s.Memory.PutIfAbsent(ctx, name, strings.NewReader(""))
}

func TestBeginAfterALostAnswer(t *testing.T) {
	if _, err := archive.New(takenTwice{&storetest.Memory{}}, archive.Options{}).Begin(t.Context(), backupName, "db1"); err != nil {
		t.Error(err)
	}
}

func TestClaim(t *testing.T) {
	ctx := t.Context()
	m := &storetest.Memory{}
	a := archive.New(m, archive.Options{})
	if err := a.Claim(ctx, 1, "db1", false); err != nil {
		t.Fatal(err)
	}
	if err := a.Claim(ctx, 1, "db2", false); err != nil {
		t.Errorf("the same cluster again: %v", err)
	}
	var owner *archive.OwnerError
	if err := a.Claim(ctx, 2, "db3", false); !errors.As(err, &owner) || owner.Archive != 1 || owner.Cluster != 2 {
		t.Errorf("another cluster: %v", err)
	}
	if err := a.Claim(ctx, 2, "db3", true); err != nil {
		t.Errorf("adopt: %v", err)
	}
	if o, err := a.Owner(ctx); err != nil || o.SystemIdentifier != 2 || len(o.Previous) != 1 || o.Previous[0] != 1 {
		t.Errorf("after adopting: %+v, %v", o, err)
	}

	// WAL-G began this archive: its newest backup says whose it is.
	m = &storetest.Memory{}
	a = archive.New(m, archive.Options{})
	if err := m.Put(ctx, archive.BackupDir+backupName+"_backup_stop_sentinel.json", strings.NewReader(`{"SystemIdentifier":18446744073709551615}`)); err != nil {
		t.Fatal(err)
	}
	if err := a.Claim(ctx, 2, "db3", false); !errors.As(err, &owner) || owner.Archive != 1<<64-1 {
		t.Errorf("another cluster in WAL-G's archive: %v", err)
	}
	if err := a.Claim(ctx, 1<<64-1, "db3", false); err != nil {
		t.Errorf("its own cluster: %v", err)
	}
}

func TestParseSentinelOfEveryAge(t *testing.T) {
	for _, c := range []struct {
		doc   string
		check func(s *archive.Sentinel) bool
	}{
		{`{}`, func(s *archive.Sentinel) bool { return s.LSN == nil && s.Version == 0 }},
		{`{"LSN":null,"Spec":null}`, func(s *archive.Sentinel) bool { return s.LSN == nil && s.Spec == nil }},
		{`{"LSN":805306408,"DeltaFromLSN":671088680,"DeltaFrom":"base_000000010000000000000028","DeltaFullName":"base_000000010000000000000028","DeltaCount":1}`,
			func(s *archive.Sentinel) bool { return *s.DeltaLSN == 671088680 && s.LSN.String() == "0/30000028" }},
		{`{"spec":{"base_prefix":"/d/","tablespaces":["16385"],"16385":{"loc":"/ts/","link":"pg_tblspc/16385"}},"wal_segment_backup_stop":"x"}`,
			func(s *archive.Sentinel) bool {
				return s.Spec.BasePrefix == "/d" && s.Spec.Tablespaces[0].Location == "/ts"
			}},
		{`{"SystemIdentifier":18446744073709551615,"unknown":[1]}`, func(s *archive.Sentinel) bool { return *s.SystemIdentifier == 1<<64-1 }},
	} {
		s, err := archive.ParseSentinel([]byte(c.doc))
		if err != nil || !c.check(s) {
			t.Errorf("%s: %+v, %v", c.doc, s, err)
		}
	}
	for _, doc := range []string{
		``, `[]`, `{"LSN":"0/28"}`, `{"LSN":-1}`, `{"DeltaFrom":"base_000000010000000000000028"}`, `{"DeltaFrom":"../x","DeltaLSN":1,"DeltaFullName":"a","DeltaCount":1}`,
		`{"Spec":{"base_prefix":"/d","tablespaces":["16385"]}}`, `{"Spec":{"tablespaces":["../1"],"../1":{"loc":"/x"}}}`,
	} {
		if s, err := archive.ParseSentinel([]byte(doc)); err == nil {
			t.Errorf("%s: accepted as %+v", doc, s)
		}
	}
}

// What ParseSentinel accepts it writes back the same.
func FuzzParseSentinel(f *testing.F) {
	f.Add([]byte(`{"LSN":805306408,"PgVersion":160003,"Spec":{"base_prefix":"/d","tablespaces":["1"],"1":{"loc":"/x","link":"pg_tblspc/1"}},"UserData":{"a":1},"Version":2,"StartTime":"2024-05-06T07:08:09.1Z"}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		s, err := archive.ParseSentinel(doc)
		if err != nil {
			return
		}
		out, err := json.Marshal(s)
		if err != nil {
			return // a year beyond 9999 can be read from some documents and not be written
		}
		again, err := archive.ParseSentinel(out)
		if err != nil {
			t.Fatalf("%s\nwritten as\n%s\nis refused: %v", doc, out, err)
		}
		if twice, _ := json.Marshal(again); !bytes.Equal(out, twice) {
			t.Fatalf("%s\nbecame\n%s", out, twice)
		}
	})
}

func TestCheckBackupName(t *testing.T) {
	for _, ok := range []string{"base_000000010000000000000003", "base_000000010000000000000006_D_000000010000000000000004", "base_000000010000000000000003_00000040"} {
		if err := archive.CheckBackupName(ok); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", "LATEST", "base_", "base_00000001000000000000000g", "base_000000010000000000000003/..", "base_000000010000000000000006_D_", "base_000000010000000000000003_0000004"} {
		if archive.CheckBackupName(bad) == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}
