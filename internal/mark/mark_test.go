package mark_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/mark"
	"holdfast/internal/store"
	"holdfast/internal/store/failover"
	"holdfast/internal/store/storetest"
)

// The archive of the tests: a full backup, a delta on it, and another on that.
var names = [...]string{
	"base_000000010000000000000002",
	"base_000000010000000000000004_D_000000010000000000000002",
	"base_000000010000000000000006_D_000000010000000000000004",
}

func sentinel(i int) string {
	lsn := func(i int) uint64 { return uint64(2*i+2)<<24 + 40 }
	s := fmt.Sprintf(`{"LSN":%d,"FinishLSN":%d,"PgVersion":150004,"SystemIdentifier":7,"Version":2,"StartTime":"2026-01-0%dT00:00:00Z","FinishTime":"2026-01-0%dT01:00:00Z"`,
		lsn(i), lsn(i)+100, i+1, i+1)
	if i > 0 {
		s += fmt.Sprintf(`,"DeltaLSN":%d,"DeltaFrom":%q,"DeltaFullName":%q,"DeltaCount":%d`, lsn(i-1), names[i-1], names[0], i)
	}
	return s + "}"
}

func put(t testing.TB, s store.Store, name, body string) {
	t.Helper()
	if err := s.Put(context.Background(), name, strings.NewReader(body)); err != nil {
		t.Fatal(err)
	}
}

func fill(t testing.TB, s store.Store, which ...int) {
	t.Helper()
	for _, i := range which {
		put(t, s, "basebackups_005/"+names[i]+"_backup_stop_sentinel.json", sentinel(i))
		put(t, s, "basebackups_005/"+names[i]+"/metadata.json", `{"is_permanent":false,"theirs":"kept"}`)
	}
}

func load(t testing.TB, s store.Store) *catalog.Catalog {
	t.Helper()
	c, err := catalog.Load(context.Background(), archive.New(s, archive.Options{}))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// flags returns which backups are permanent, a digit each.
func flags(t testing.TB, s store.Store) (text string) {
	t.Helper()
	c := load(t, s)
	for _, name := range names {
		b, err := c.Find(name)
		switch {
		case err != nil:
			text += "-"
		case mark.Permanent(b):
			text += "1"
		default:
			text += "0"
		}
	}
	return text
}

func set(ctx context.Context, s store.Store, name string, permanent bool) (*mark.Report, error) {
	a := archive.New(s, archive.Options{})
	reload := func(ctx context.Context) (*catalog.Catalog, error) { return catalog.Load(ctx, a) }
	c, err := reload(ctx)
	if err != nil {
		return nil, err
	}
	p, err := mark.Decide(c, name, permanent)
	if err != nil {
		return nil, err
	}
	return mark.Run(ctx, []mark.Place{{Name: "default", Archive: a}}, p, reload)
}

// A backup and all below it become permanent; the flag goes from the top, one at a time; and doing any of it again changes nothing.
func TestMark(t *testing.T) {
	disk := &storetest.Memory{}
	fill(t, disk, 0, 1, 2)
	before, _ := store.ReadFile(t.Context(), disk, "basebackups_005/"+names[1]+"_backup_stop_sentinel.json", 1<<20)
	for _, step := range []struct {
		name      string
		permanent bool
		changed   int
		flags     string
		refused   string
	}{
		{names[1], true, 2, "110", ""},
		{names[1], true, 0, "110", ""},
		{"LATEST", true, 1, "111", ""},
		{names[0], false, 0, "111", names[1] + " builds on it and is permanent"},
		{names[1], false, 0, "111", names[2] + " builds on it and is permanent"},
		{names[2], false, 1, "110", ""},
		{names[2], false, 0, "110", ""},
		{names[1], false, 1, "100", ""},
		{"base_0000000100000000000000FF", true, 0, "100", "no backup of that name"},
	} {
		r, err := set(t.Context(), disk, step.name, step.permanent)
		switch {
		case step.refused != "" && (err == nil || !strings.Contains(err.Error(), step.refused)):
			t.Errorf("%+v: %v", step, err)
		case step.refused == "" && (err != nil || len(r.Changed) != step.changed):
			t.Errorf("%+v: %+v, %v", step, r, err)
		}
		if got := flags(t, disk); got != step.flags {
			t.Errorf("%+v: flags %s", step, got)
		}
	}
	after, _ := store.ReadFile(t.Context(), disk, "basebackups_005/"+names[1]+"_backup_stop_sentinel.json", 1<<20)
	if string(before) != string(after) {
		t.Errorf("the sentinel became %s", after)
	}
	if doc, _ := store.ReadFile(t.Context(), disk, "basebackups_005/"+names[1]+"/metadata.json", 1<<20); !strings.Contains(string(doc), `"theirs":"kept"`) {
		t.Errorf("metadata is %s", doc)
	}
}

// Whichever store call fails, marking says so, and no permanent backup is on top of one that is not; doing it again ends it.
func TestMarkFailsWhole(t *testing.T) {
	for n := 0; ; n++ {
		disk := &storetest.Memory{}
		fill(t, disk, 0, 1, 2)
		flaky := storetest.FailAt(disk, n)
		_, err := set(t.Context(), flaky, names[2], true)
		got := flags(t, disk)
		if got != "000" && got != "100" && got != "110" && got != "111" {
			t.Errorf("call %d failed: flags %s", n, got)
		}
		if _, again := set(t.Context(), disk, names[2], true); again != nil || flags(t, disk) != "111" {
			t.Errorf("call %d failed, then: %v, flags %s", n, again, flags(t, disk))
		}
		if !flaky.Reached() {
			if err != nil {
				t.Error(err)
			}
			break
		}
		if err == nil && got != "111" { // marks of retention, which it can do without, may not have been readable
			t.Errorf("call %d failed, and nobody heard of it: flags %s", n, got)
		}
	}
}

// A flag stays where it cannot be told whether a permanent backup needs it.
func TestImpermanentFailsClosed(t *testing.T) {
	for _, c := range []struct{ object, body, why string }{
		{"basebackups_005/" + names[1] + "_backup_stop_sentinel.json", "{", "may build on it, and cannot be read"},
		{"basebackups_005/" + names[1] + "/metadata.json", "{", "whether that is permanent cannot be read"},
	} {
		disk := &storetest.Memory{}
		fill(t, disk, 0, 1)
		put(t, disk, "basebackups_005/"+names[0]+"/metadata.json", `{"is_permanent":true}`)
		put(t, disk, c.object, c.body)
		var refused *mark.RefusedError
		if _, err := set(t.Context(), disk, names[0], false); !errors.As(err, &refused) || !strings.Contains(err.Error(), c.why) {
			t.Errorf("with a bad %s: %v", c.object, err)
		}
		if m, err := archive.New(disk, archive.Options{}).Metadata(t.Context(), names[0]); err != nil || !m.IsPermanent {
			t.Errorf("with a bad %s: %+v, %v", c.object, m, err)
		}
	}
}

// A permanent backup that comes on top while the flag is taken away gets it back.
func TestImpermanentMeetsANewDelta(t *testing.T) {
	disk := &storetest.Memory{}
	fill(t, disk, 0)
	put(t, disk, "basebackups_005/"+names[0]+"/metadata.json", `{"is_permanent":true}`)
	a := archive.New(disk, archive.Options{})
	p, err := mark.Decide(load(t, disk), names[0], false)
	if err != nil {
		t.Fatal(err)
	}
	_, err = mark.Run(t.Context(), []mark.Place{{Archive: a}}, p, func(ctx context.Context) (*catalog.Catalog, error) {
		fill(t, disk, 1)
		put(t, disk, "basebackups_005/"+names[1]+"/metadata.json", `{"is_permanent":true}`)
		return catalog.Load(ctx, a)
	})
	if !errors.As(err, new(*mark.RefusedError)) || flags(t, disk) != "11-" {
		t.Errorf("%v, flags %s", err, flags(t, disk))
	}
}

// A backup without metadata.json, as of WAL-E, gets one that says what its sentinel says.
func TestMarkWithoutMetadata(t *testing.T) {
	disk := &storetest.Memory{}
	put(t, disk, "basebackups_005/"+names[0]+"_backup_stop_sentinel.json", sentinel(0))
	if _, err := set(t.Context(), disk, names[0], true); err != nil {
		t.Fatal(err)
	}
	m, err := archive.New(disk, archive.Options{}).Metadata(t.Context(), names[0])
	if err != nil || !m.IsPermanent || m.PgVersion != 150004 || m.StartLSN == 0 || m.FinishTime.IsZero() {
		t.Errorf("%+v, %v", m, err)
	}
}

// The flag is set where each backup lies, also in two storages at once; and a storage that does not answer is told of.
func TestMarkInSeveralStorages(t *testing.T) {
	one, two := &storetest.Memory{}, &storetest.Memory{}
	fill(t, one, 0, 1)
	fill(t, two, 1, 2)
	several, err := failover.New([]failover.Member{{Name: "default", Store: one}, {Name: "second", Store: two}}, failover.Options{NoCheck: true})
	if err != nil {
		t.Fatal(err)
	}
	c := load(t, several.Union())
	p, err := mark.Decide(c, names[2], true)
	if err != nil {
		t.Fatal(err)
	}
	broken := storetest.FailAt(two, 0)
	places := []mark.Place{{Name: "default", Archive: archive.New(one, archive.Options{})}, {Name: "second", Archive: archive.New(broken, archive.Options{})}}
	if _, err := mark.Run(t.Context(), places, p, nil); err == nil || !strings.Contains(err.Error(), "storage second") {
		t.Errorf("with a storage that fails: %v", err)
	}
	places[1].Archive = archive.New(two, archive.Options{})
	if _, err := mark.Run(t.Context(), places, p, nil); err != nil {
		t.Fatal(err)
	}
	if a, b := flags(t, one), flags(t, two); a != "11-" || b != "-11" {
		t.Errorf("flags %s and %s", a, b)
	}
	if _, err := two.Stat(t.Context(), "basebackups_005/"+names[0]+"/metadata.json"); err == nil {
		t.Error("a storage without the backup has its metadata.json")
	}
}

// A backup that is removed while it is being marked leaves nothing.
func TestMarkMeetsADeletion(t *testing.T) {
	disk := &storetest.Memory{}
	fill(t, disk, 0)
	p, err := mark.Decide(load(t, disk), names[0], true)
	if err != nil {
		t.Fatal(err)
	}
	if err := disk.Delete(t.Context(), "basebackups_005/"+names[0]+"_backup_stop_sentinel.json"); err != nil {
		t.Fatal(err)
	}
	if err := disk.Delete(t.Context(), "basebackups_005/"+names[0]+"/metadata.json"); err != nil {
		t.Fatal(err)
	}
	var gone *catalog.NoBackupError
	if _, err := mark.Run(t.Context(), []mark.Place{{Archive: archive.New(disk, archive.Options{})}}, p, nil); !errors.As(err, &gone) {
		t.Errorf("%v", err)
	}
	for o, err := range store.Walk(t.Context(), disk, "") {
		t.Errorf("there is %s, %v", o.Name, err)
	}
}
