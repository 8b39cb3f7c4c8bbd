package archive_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
	"holdfast/internal/tarpart"
)

// dated is a store whose clock is off by skew, and in which objects are as old as ages says until they are put anew.
type dated struct {
	*storetest.Memory
	skew time.Duration
	ages map[string]time.Duration
}

func (s dated) date(o store.Object) store.Object {
	o.Modified = o.Modified.Add(s.skew - s.ages[o.Name])
	return o
}

func (s dated) Stat(ctx context.Context, name string) (store.Object, error) {
	o, err := s.Memory.Stat(ctx, name)
	return s.date(o), err
}

func (s dated) Walk(ctx context.Context, dir string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		for o, err := range s.Memory.Walk(ctx, dir) {
			if !yield(s.date(o), err) {
				return
			}
		}
	}
}

func (s dated) Put(ctx context.Context, name string, r io.Reader) error {
	delete(s.ages, name)
	return s.Memory.Put(ctx, name, r)
}

func (s dated) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	err := s.Memory.PutIfAbsent(ctx, name, r)
	if err == nil {
		delete(s.ages, name)
	}
	return err
}

const host = "db1"

// thisPush returns how a push by this process on host presents itself.
func thisPush(t *testing.T) archive.Push {
	t.Helper()
	m := &storetest.Memory{}
	if _, err := archive.New(m, archive.Options{}).Begin(t.Context(), backupName, host); err != nil {
		t.Fatal(err)
	}
	var p archive.Push
	b, err := store.ReadFile(t.Context(), m, archive.Folder(backupName)+"push.json", 1<<20)
	if err == nil {
		err = json.Unmarshal(b, &p)
	}
	if err != nil || p.Boot == "" || p.Namespace == "" || p.Ticks == "" {
		t.Fatalf("%s: %v", b, err)
	}
	return p
}

// zombie starts a process that ends and is not waited for before the test has ended.
func zombie(t *testing.T) (pid int, ticks string) {
	t.Helper()
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Wait() })
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		if fields := strings.Fields(string(b)); fields[2] == "Z" {
			return cmd.Process.Pid, fields[21]
		}
	}
	t.Fatal("it does not end")
	return 0, ""
}

// A name is free when nothing is stored under it, or what a push left that is dead: by the store's clock, whatever those of the hosts
// say, or for certain where the process can be looked for.
func TestBeginRefusesWhatIsTaken(t *testing.T) {
	me := thisPush(t)
	me.Started = me.Started.Add(-time.Second) // not the same push
	gone := exec.Command("true")              // its number is not taken again so soon
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	push := func(change func(p *archive.Push)) map[string]string {
		p := me
		change(&p)
		b, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		return map[string]string{"push.json": string(b), "tar_partitions/part_009.tar.zst": "left"}
	}
	part := map[string]string{"tar_partitions/part_001.tar.lz4": "x"}
	for _, c := range []struct {
		name    string
		objects map[string]string // in the backup's folder
		age     time.Duration
		refused string
	}{
		{"nothing", nil, 0, ""},
		{"a backup", map[string]string{"../" + backupName + "_backup_stop_sentinel.json": "{}"}, 0, "exists already"},
		{"parts of a tool without marker", part, 0, "another program"},
		{"parts of a tool that uploads for an hour", part, time.Hour, "another program"},
		{"parts of a tool that was silent for two days", part, 48 * time.Hour, ""},
		{"a push elsewhere", push(func(p *archive.Push) { p.Host, p.PID = "db2", gone.Process.Pid }), 14 * time.Minute, "on db2"},
		{"a push elsewhere whose clock is wrong", push(func(p *archive.Push) { p.Host, p.Started = "db2", p.Started.AddDate(-1, 0, 0) }), 0, "on db2"},
		{"a push elsewhere that is long silent", push(func(p *archive.Push) { p.Host, p.Started = "db2", p.Started.AddDate(1, 0, 0) }), time.Hour, ""},
		{"a push here", push(func(p *archive.Push) {}), 0, "on db1"},
		{"a push here that was killed", push(func(p *archive.Push) { p.PID = gone.Process.Pid }), 0, ""},
		{"a push here that was killed and not waited for", push(func(p *archive.Push) { p.PID, p.Ticks = zombie(t) }), 0, ""},
		{"a push here whose number another process has", push(func(p *archive.Push) { p.Ticks = "1" }), 0, ""},
		{"a push in another container", push(func(p *archive.Push) { p.PID, p.Namespace = gone.Process.Pid, "pid:[1]" }), 0, "on db1"},
		{"a push before the host was started again", push(func(p *archive.Push) { p.PID, p.Boot = gone.Process.Pid, "another" }), 0, "on db1"},
		{"a push on a system that says little", push(func(p *archive.Push) { p.PID, p.Boot = gone.Process.Pid, "" }), 0, "on db1"},
		{"a marker that is damaged", map[string]string{"push.json": `{"host":`}, 48 * time.Hour, "read who is writing"},
		{"a marker that is not ours", map[string]string{"push.json": `{}`}, 48 * time.Hour, "read who is writing"},
	} {
		for _, skew := range []time.Duration{0, -72 * time.Hour, 72 * time.Hour} {
			t.Run(fmt.Sprintf("%s, skew %s", c.name, skew), func(t *testing.T) {
				m := dated{&storetest.Memory{}, skew, map[string]time.Duration{}}
				for name, content := range c.objects {
					if base, ok := strings.CutPrefix(name, "../"); ok {
						name = archive.BackupDir + base
					} else {
						name = archive.Folder(backupName) + name
					}
					if err := m.Put(t.Context(), name, strings.NewReader(content)); err != nil {
						t.Fatal(err)
					}
					m.ages[name] = c.age
				}
				before := fmt.Sprint(contents(t, m))
				_, err := archive.New(m, archive.Options{}).Begin(t.Context(), backupName, host)
				all := contents(t, m)
				if c.refused == "" {
					if err != nil || len(all) != 1 || all[archive.Folder(backupName)+"push.json"] == "" {
						t.Errorf("got %v, and there is %v; want a marker and no more", err, all)
					}
					return
				}
				var inUse *archive.InUseError
				if err == nil || !strings.Contains(err.Error(), c.refused) || errors.As(err, &inUse) == strings.HasPrefix(c.refused, "read") {
					t.Errorf("got %v, want %q", err, c.refused)
				}
				if inUse != nil && inUse.Hint() == "" {
					t.Error("there is no hint")
				}
				if fmt.Sprint(all) != before {
					t.Errorf("there was\n%s, then\n%s", before, all)
				}
			})
		}
	}
}

// What pushes left that died more than a day ago is removed, and nothing else.
func TestSweepDead(t *testing.T) {
	name := func(n int) string { return fmt.Sprintf("base_0000000100000000000000%02X", n) }
	marker, err := json.Marshal(archive.Push{Host: "db2", PID: 7, Started: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	for _, skew := range []time.Duration{0, -72 * time.Hour, 72 * time.Hour} {
		m := dated{&storetest.Memory{}, skew, map[string]time.Duration{}}
		put := func(object, content string, age time.Duration) {
			if err := m.Put(t.Context(), archive.BackupDir+object, strings.NewReader(content)); err != nil {
				t.Fatal(err)
			}
			m.ages[archive.BackupDir+object] = age
		}
		const day = 24 * time.Hour
		draft := func(n int, marker string, beat time.Duration) {
			put(name(n)+"/tar_partitions/part_001.tar.zst", "x", 3*day)
			put(name(n)+"/config.tar.zst", "x", 3*day)
			if marker != "" {
				put(name(n)+"/push.json", marker, beat)
			}
		}
		draft(1, string(marker), 2*day)
		draft(2, string(marker), time.Hour) // perhaps its network is down
		draft(3, "", 0)                     // WAL-G's
		draft(4, "{}", 2*day)               // nobody knows whose
		draft(5, string(marker), 2*day)     // a backup, whose marker its push could not remove
		put(name(5)+"_backup_stop_sentinel.json", "{}", 2*day)
		draft(6, string(marker), 25*time.Hour)
		put("base_of_operations/push.json", string(marker), 2*day)
		before := contents(t, m)
		removed, err := archive.New(m, archive.Options{}).SweepDead(t.Context(), host)
		if err == nil || !strings.Contains(err.Error(), name(4)+"/push.json") || strings.Count(err.Error(), "push.json") != 1 {
			t.Errorf("got %v, want one error, about the marker of %s", err, name(4))
		}
		if got := strings.Join(removed, "\n"); len(removed) != 2 || !strings.Contains(got, name(1)+", begun at ") || !strings.Contains(got, name(6)+", begun at ") ||
			!strings.Contains(got, "by process 7 on db2") {
			t.Errorf("got %q", removed)
		}
		for object := range before {
			if strings.HasPrefix(object, archive.Folder(name(1))) || strings.HasPrefix(object, archive.Folder(name(6))) {
				delete(before, object)
			}
		}
		if after := contents(t, m); fmt.Sprint(after) != fmt.Sprint(before) {
			t.Errorf("left is\n%v, want\n%v", after, before)
		}
	}
}

// Whichever store call fails, a sweep says so, or all is swept; what it leaves the next one sweeps.
func TestSweepDeadFails(t *testing.T) {
	for how, failAt := range map[string]func(store.Store, int) *storetest.Flaky{
		"before": storetest.FailAt, "midway": storetest.FailMidway, "after": storetest.FailAfter,
	} {
		for n := 0; ; n++ {
			m := dated{&storetest.Memory{}, 0, map[string]time.Duration{}}
			if _, err := archive.New(m, archive.Options{}).Begin(t.Context(), backupName, host); err != nil {
				t.Fatal(err)
			}
			for i := range 3 {
				if err := m.Put(t.Context(), fmt.Sprintf("%star_partitions/part_%03d.tar", archive.Folder(backupName), i), strings.NewReader("x")); err != nil {
					t.Fatal(err)
				}
			}
			m.ages[archive.Folder(backupName)+"push.json"] = 48 * time.Hour
			flaky := failAt(m, n)
			_, err := archive.New(flaky, archive.Options{}).SweepDead(t.Context(), host)
			left := contents(t, m)
			if err == nil && len(left) > 0 {
				t.Errorf("%s, call %d (%v) failed, no error, and there is %v", how, n, flaky.Calls(), left)
			}
			if err != nil && !errors.Is(err, storetest.ErrInjected) {
				t.Errorf("%s, call %d (%s): %v", how, n, flaky.Calls()[n], err)
			}
			m.ages[archive.Folder(backupName)+"push.json"] = 48 * time.Hour
			if _, err := archive.New(m, archive.Options{}).SweepDead(t.Context(), host); err != nil {
				t.Errorf("%s, after call %d: %v", how, n, err)
			}
			for object := range contents(t, m) {
				if !strings.HasPrefix(object, "holdfast/clock-") { // one that could not be removed
					t.Errorf("%s, after call %d there is %s", how, n, object)
				}
			}
			if !flaky.Reached() {
				break
			}
		}
	}
}

// begun begins a draft with one part in s.
func begun(t *testing.T, s store.Store) *archive.Draft {
	t.Helper()
	d, err := archive.New(s, archive.Options{}).Begin(t.Context(), backupName, host)
	if err != nil {
		t.Fatal(err)
	}
	p := tarpart.NewPacker(entries(tarpart.Entry{Path: "base/5/1", Content: []byte("one"), Mode: 0o600}), tarpart.Options{})
	if err := d.PutPart(t.Context(), d.NextPart(), p, p.Members); err != nil {
		t.Fatal(err)
	}
	return d
}

// No backup is made of parts that are not all there as they were put, or of more than those.
func TestCommitLooksAtItsParts(t *testing.T) {
	parts := archive.Folder(backupName) + "tar_partitions/"
	for what, do := range map[string]func(m *storetest.Memory) error{
		"is gone": func(m *storetest.Memory) error { return m.Delete(t.Context(), parts+"part_001.tar.zst") },
		"bytes, and was put": func(m *storetest.Memory) error {
			return m.Put(t.Context(), parts+"part_001.tar.zst", strings.NewReader("x"))
		},
		"is not of this push": func(m *storetest.Memory) error {
			return m.Put(t.Context(), parts+"part_002.tar.zst", strings.NewReader("x"))
		},
		"metadata.json of it": func(m *storetest.Memory) error {
			return m.Put(t.Context(), archive.Folder(backupName)+"metadata.json", strings.NewReader("x"))
		},
		"manifest.json.zst of": func(m *storetest.Memory) error {
			return m.Put(t.Context(), archive.Folder(backupName)+"manifest.json.zst", strings.NewReader("x"))
		},
	} {
		m := &storetest.Memory{}
		d := begun(t, m)
		if err := do(m); err != nil {
			t.Fatal(err)
		}
		var inUse *archive.InUseError
		if err := d.Commit(t.Context(), &archive.Sentinel{}); !errors.As(err, &inUse) || !strings.Contains(err.Error(), what) {
			t.Errorf("got %v, want an InUseError with %q", err, what)
		}
		if _, err := archive.New(m, archive.Options{}).Sentinel(t.Context(), backupName); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: there is a sentinel (%v)", what, err)
		}
		if err := d.Abort(t.Context()); err != nil || len(contents(t, m)) != 0 {
			t.Errorf("%s: %v, and %v is left", what, err, contents(t, m))
		}
	}
}

// A push that lost its name and got its marker back, as by a sign of life that was long on its way, harms no backup.
func TestLateMarkerHarmsNoBackup(t *testing.T) {
	m := &storetest.Memory{}
	late := begun(t, m)
	marker, err := store.ReadFile(t.Context(), m, archive.Folder(backupName)+"push.json", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for object := range contents(t, m) { // as another push does that takes it for dead
		if err := m.Delete(t.Context(), object); err != nil {
			t.Fatal(err)
		}
	}
	if err := putBackup(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if err := m.Put(t.Context(), archive.Folder(backupName)+"push.json", bytes.NewReader(marker)); err != nil {
		t.Fatal(err)
	}
	before := fmt.Sprint(contents(t, m))
	for what, do := range map[string]func(context.Context) error{
		"commit": func(ctx context.Context) error { return late.Commit(ctx, &archive.Sentinel{}) },
		"abort":  late.Abort,
	} {
		var inUse *archive.InUseError
		if err := do(t.Context()); !errors.As(err, &inUse) {
			t.Errorf("%s: got %v, want an InUseError", what, err)
		}
	}
	if after := fmt.Sprint(contents(t, m)); after != before {
		t.Errorf("there was\n%s, then\n%s", before, after)
	}
}

// meanwhile is a store in which something happens before a marker is put over another one, and after objects were removed.
type meanwhile struct {
	*storetest.Memory
	put, removed func()
}

func (s meanwhile) Put(ctx context.Context, name string, r io.Reader) error {
	if s.put != nil {
		s.put()
	}
	return s.Memory.Put(ctx, name, r)
}

func (s meanwhile) DeleteMany(ctx context.Context, names []string) error {
	err := s.Memory.DeleteMany(ctx, names)
	if s.removed != nil {
		s.removed()
	}
	return err
}

// A push that seemed dead, and makes its backup just before another one takes its name, keeps it whole.
func TestBeginRemovesNothingOfABackupMadeMeanwhile(t *testing.T) {
	m := &storetest.Memory{}
	d := begin(t, m, &turn{id: "1"}, backupName)
	late := meanwhile{Memory: m, put: func() {
		if err := commit(t, d); err != nil {
			t.Fatal(err)
		}
	}}
	if _, err := archive.New(late, archive.Options{}).Fenced(&turn{id: "2"}).Begin(t.Context(), backupName, "db2"); !errors.As(err, new(*archive.InUseError)) {
		t.Errorf("begin: %v", err)
	}
	if !whole(t, m, backupName) {
		t.Error("the backup is gone")
	}
}

// A removal that takes long, or stands still, leaves alone what another push stores that has the name by then.
func TestAbortEndsWhereTheNameIsAnothers(t *testing.T) {
	for _, f := range []archive.Fence{nil, &turn{id: "1"}} {
		m := &storetest.Memory{}
		part := func(n int) string {
			return archive.BackupDir + backupName + fmt.Sprintf("/tar_partitions/part_%03d.tar.zst", n)
		}
		marker := archive.BackupDir + backupName + "/push.json"
		slow := meanwhile{Memory: m, removed: func() {
			put(t, m, marker, []byte(`{"host":"db2","pid":1,"started":"2026-11-21T03:00:00Z","lease":"2"}`))
			put(t, m, part(250), []byte("theirs"))
		}}
		d := begin(t, slow, f, backupName)
		for n := 2; n <= 250; n++ {
			put(t, m, part(n), []byte("ours"))
		}
		if err := d.Abort(t.Context()); f == nil && !errors.As(err, new(*archive.InUseError)) || f != nil && err != nil {
			t.Errorf("abort: %v", err)
		}
		for _, name := range []string{marker, part(250)} {
			if _, err := m.Stat(t.Context(), name); err != nil {
				t.Errorf("of the other push: %v", err)
			}
		}
	}
}

// What is stored twice because an answer got lost is no conflict; another's object is, and stays.
func TestDraftPutsNothingOverAnothers(t *testing.T) {
	object := archive.Folder(backupName) + "config.tar.zst"
	tar := bytes.Repeat([]byte("configuration"), 100)
	d := begun(t, takenTwice{&storetest.Memory{}})
	if err := d.PutConfig(t.Context(), bytes.NewReader(tar)); err != nil {
		t.Errorf("answer lost: %v", err)
	}
	m := &storetest.Memory{}
	d = begun(t, m)
	if err := m.Put(t.Context(), object, strings.NewReader("another's")); err != nil {
		t.Fatal(err)
	}
	var inUse *archive.InUseError
	if err := d.PutConfig(t.Context(), bytes.NewReader(tar)); !errors.As(err, &inUse) {
		t.Errorf("got %v, want an InUseError", err)
	}
	if got := contents(t, m)[object]; got != "another's" {
		t.Errorf("the other's is %q now", got)
	}
}

// However long names are and whatever they are made of, a part's line of the manifest is read back.
func TestManifestOfLongNames(t *testing.T) {
	for _, length := range []int{10, 200, 4000} {
		m := &storetest.Memory{}
		a := archive.New(m, archive.Options{})
		d := begun(t, m)
		n, put, members := 0, 1, min(archive.MaxPartMembers+1, archive.MaxPartNames/length) // more than fit into one part
		next := func() (tarpart.Entry, error) {
			if n++; n > members {
				return tarpart.Entry{}, io.EOF
			}
			name := fmt.Sprintf("base/%0*d", length-5, n)
			return tarpart.Entry{Path: strings.ReplaceAll(name, "0", "<"), Type: tarpart.Symlink, Link: strings.Repeat("\x01", length)}, nil
		}
		for n <= members {
			p := tarpart.NewPacker(next, tarpart.Options{MaxMembers: archive.MaxPartMembers, MaxNames: archive.MaxPartNames})
			if err := d.PutPart(t.Context(), d.NextPart(), p, p.Members); err != nil {
				t.Fatal(err)
			}
			put += len(p.Members())
		}
		if err := d.Commit(t.Context(), &archive.Sentinel{}); err != nil {
			t.Fatal(err)
		}
		mf, err := a.OpenManifest(t.Context(), backupName)
		if err != nil {
			t.Fatal(err)
		}
		defer mf.Close()
		read := 0
		for p, err := mf.Next(); err != io.EOF; p, err = mf.Next() {
			if err != nil {
				t.Fatalf("names of %d bytes: %v", length, err)
			}
			read += len(p.Members)
		}
		if read != put || put != members+1 {
			t.Errorf("names of %d bytes: %d members were put, %d are read", length, put, read)
		}
	}
}

// A beat is seen by the store's clock, and none brings the marker back behind the end.
func TestBeat(t *testing.T) {
	m := dated{&storetest.Memory{}, 0, map[string]time.Duration{}}
	marker := archive.Folder(backupName) + "push.json"
	d := begun(t, m)
	m.ages[marker] = time.Hour
	if err := d.Beat(t.Context()); err != nil {
		t.Fatal(err)
	}
	if o, err := m.Stat(t.Context(), marker); err != nil || time.Since(o.Modified) > time.Minute {
		t.Errorf("the marker was modified at %s, %v", o.Modified, err)
	}
	if err := d.Commit(t.Context(), &archive.Sentinel{}); err != nil {
		t.Fatal(err)
	}
	if n := d.Files(); n != 1 {
		t.Errorf("it counts %d files, want 1", n)
	}
	if err := d.Beat(t.Context()); err != nil {
		t.Errorf("behind the end: %v", err)
	}
	if _, err := m.Stat(t.Context(), marker); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the marker is back: %v", err)
	}
}

// tardy is a store that goes on with a put that was broken off when all of it had been sent.
type tardy struct {
	storetest.Memory
	part string // of the object's name
	late sync.WaitGroup
}

func (s *tardy) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	if !strings.Contains(name, s.part) {
		return s.Memory.PutIfAbsent(ctx, name, r)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	s.late.Go(func() {
		time.Sleep(300 * time.Millisecond)
		_ = s.Memory.PutIfAbsent(context.WithoutCancel(ctx), name, bytes.NewReader(b)) // nobody hears of it
	})
	<-ctx.Done()
	return ctx.Err()
}

// What arrives when the put of it is given up goes, too: be it a part, or what would make a backup of the others.
func TestAbortAwaitsBrokenOffPuts(t *testing.T) {
	for _, what := range []string{"/tar_partitions/", "_backup_stop_sentinel.json"} {
		s := &tardy{part: what}
		d, err := archive.New(s, archive.Options{}).Begin(t.Context(), backupName, "db1")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		p := tarpart.NewPacker(entries(tarpart.Entry{Path: "base/5/1", Content: []byte("one"), Mode: 0o600}), tarpart.Options{})
		if err = d.PutPart(ctx, d.NextPart(), p, p.Members); err == nil {
			err = d.Commit(ctx, plain())
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("%s: %v", what, err)
		}
		err = d.Abort(t.Context())
		s.late.Wait()
		if err != nil || len(contents(t, &s.Memory)) != 0 {
			t.Errorf("%s: %v, and %v is left", what, err, contents(t, &s.Memory))
		}
	}
}
