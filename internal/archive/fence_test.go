package archive_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"maps"
	"strings"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
	"holdfast/internal/tarpart"
)

// turn is a Fence that does what a test wants.
type turn struct {
	id      string
	seal    func(object string, content []byte) (bool, error)
	object  string // what was sealed
	content []byte
}

func (f *turn) ID() string           { return f.id }
func (f *turn) Ended(id string) bool { return id < f.id }
func (f *turn) Seal(_ context.Context, object string, content []byte) (bool, error) {
	f.object, f.content = object, content
	if f.seal == nil {
		return true, nil
	}
	return f.seal(object, content)
}

var errFence = errors.New("somebody else has it")

// begin begins a small backup.
func begin(t *testing.T, s store.Store, f archive.Fence, name string) *archive.Draft {
	t.Helper()
	a := archive.New(s, archive.Options{})
	if f != nil {
		a = a.Fenced(f)
	}
	d, err := a.Begin(t.Context(), name, "db1")
	if err != nil {
		t.Fatal(err)
	}
	p := tarpart.NewPacker(entries(tarpart.Entry{Path: "base/5/1", Content: []byte("one"), Mode: 0o600}), tarpart.Options{})
	if err := d.PutPart(t.Context(), d.NextPart(), p, p.Members); err != nil {
		t.Fatal(err)
	}
	return d
}

func commit(t *testing.T, d *archive.Draft) error {
	t.Helper()
	return d.Commit(t.Context(), plain())
}

func plain() *archive.Sentinel {
	lsn, id := wal.LSN(0x3000028), uint64(7359000000000000001)
	return &archive.Sentinel{LSN: &lsn, FinishLSN: &lsn, SystemIdentifier: &id, PgVersion: 150018, StartTime: time.Unix(9, 0).UTC()}
}

// whole reports whether the backup is there, with its part; or that nothing of it is.
func whole(t *testing.T, s store.Store, name string) bool {
	t.Helper()
	a := archive.New(s, archive.Options{})
	_, err := a.Sentinel(t.Context(), name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	parts, failed := a.Parts(t.Context(), name)
	if failed != nil || err == nil && len(parts) != 1 {
		t.Errorf("%s has %d parts, %v", name, len(parts), failed)
	}
	return err == nil
}

// empty fails t unless nothing of the backup is stored.
func empty(t *testing.T, s store.Store, name string) {
	t.Helper()
	for o, err := range store.Walk(t.Context(), s, archive.BackupDir) {
		if err != nil || strings.Contains(o.Name, name) {
			t.Errorf("%s stays, %v", o.Name, err)
		}
	}
}

func TestAFenceThatIsClosedLetsNoBackupBe(t *testing.T) {
	m := &storetest.Memory{}
	d := begin(t, m, &turn{id: "1", seal: func(string, []byte) (bool, error) { return false, errFence }}, backupName)
	if err := commit(t, d); !errors.Is(err, errFence) {
		t.Errorf("commit: %v", err)
	}
	if err := d.Abort(t.Context()); err != nil {
		t.Fatal(err)
	}
	empty(t, m, backupName)
}

// Once it is sealed nothing is taken back by who made it, whatever fails, and Finish makes the backup, once or again.
func TestWhatIsSealedIsFinished(t *testing.T) {
	for name, refused := range map[string]string{"the fence was not heard": "", "the sentinel's put failed": "_backup_stop_sentinel.json"} {
		t.Run(name, func(t *testing.T) {
			m := &storetest.Memory{}
			f := &turn{id: "1", seal: func(string, []byte) (bool, error) { return true, errFence }}
			var s store.Store = m
			if refused != "" {
				s, f.seal = &refuser{m, refused}, nil
			}
			d := begin(t, s, f, backupName)
			var sealed *archive.SealedError
			if err := commit(t, d); !errors.As(err, &sealed) || sealed.Backup != backupName {
				t.Errorf("commit: %v", err)
			}
			if err := d.Abort(t.Context()); err != nil {
				t.Errorf("abort: %v", err)
			}
			if whole(t, m, backupName) {
				t.Fatal("it is a backup already")
			}
			next := archive.New(m, archive.Options{}).Fenced(&turn{id: "2"})
			for range 2 {
				if why, err := next.Finish(t.Context(), "1", f.object, f.content, "db2"); why != "" || err != nil {
					t.Fatalf("finish: %q, %v", why, err)
				}
				if !whole(t, m, backupName) {
					t.Fatal("it is no backup")
				}
			}
		})
	}
}

// refuser is a store that does not take objects whose names end so.
type refuser struct {
	store.Store
	end string
}

func (r *refuser) PutIfAbsent(ctx context.Context, name string, body io.Reader) error {
	if strings.HasSuffix(name, r.end) {
		return &fs.PathError{Op: "put", Path: name, Err: fs.ErrPermission}
	}
	return store.PutIfAbsent(ctx, r.Store, name, body)
}

// A holder that stands still once it has sealed, while another one finishes its backup, wakes and finds it made.
func TestWhoWakesToFindItsBackupMadeIsContent(t *testing.T) {
	m := &storetest.Memory{}
	f := &turn{id: "1"}
	f.seal = func(object string, content []byte) (bool, error) {
		why, err := archive.New(m, archive.Options{}).Finish(t.Context(), "1", object, content, "db2")
		if why != "" || err != nil {
			t.Errorf("finish: %q, %v", why, err)
		}
		return true, nil
	}
	if err := commit(t, begin(t, m, f, backupName)); err != nil {
		t.Errorf("commit: %v", err)
	}
	if !whole(t, m, backupName) {
		t.Error("it is no backup")
	}
}

// One that stands still for so long that its name is given to another one leaves no sentinel there when it wakes.
func TestASentinelThatCameTooLateIsTakenBack(t *testing.T) {
	m := &storetest.Memory{}
	f := &turn{id: "1"}
	f.seal = func(string, []byte) (bool, error) {
		err := m.Put(t.Context(), archive.BackupDir+backupName+"/push.json", strings.NewReader(`{"host":"db2","pid":1,"started":"2026-11-21T03:00:00Z"}`))
		return true, err
	}
	var lost *archive.InUseError
	if err := commit(t, begin(t, m, f, backupName)); !errors.As(err, &lost) {
		t.Errorf("commit: %v", err)
	}
	if whole(t, m, backupName) {
		t.Error("its sentinel is there")
	}
}

func TestWhatCannotBeFinishedIsRemoved(t *testing.T) {
	ctx := t.Context()
	sealed := func(t *testing.T, parent string) (*storetest.Memory, *turn) {
		m := &storetest.Memory{}
		f := &turn{id: "1", seal: func(string, []byte) (bool, error) { return true, errFence }}
		s := plain()
		name := backupName
		if parent != "" {
			if err := commit(t, begin(t, m, nil, parent)); err != nil {
				t.Fatal(err)
			}
			p, err := archive.New(m, archive.Options{}).Sentinel(ctx, parent)
			if err != nil {
				t.Fatal(err)
			}
			s.DeltaFrom, s.DeltaFullName, s.DeltaLSN, s.DeltaCount, s.Parent = parent, parent, p.LSN, 1, p.Sum
			name = "base_000000010000000000000005_D_000000010000000000000003"
		}
		if err := begin(t, m, f, name).Commit(ctx, s); !errors.As(err, new(*archive.SealedError)) {
			t.Fatal(err)
		}
		return m, f
	}
	finish := func(t *testing.T, m *storetest.Memory, object string, content []byte, words string) {
		t.Helper()
		why, err := archive.New(m, archive.Options{}).Finish(ctx, "1", object, content, "db2")
		if err != nil || !strings.Contains(why, words) || why == "" {
			t.Errorf("finish: %q, %v, want %q", why, err, words)
		}
	}
	t.Run("no sentinel", func(t *testing.T) {
		m, f := sealed(t, "")
		finish(t, m, "wal_005/000000010000000000000003.zst", f.content, "not what a backup ends with")
		finish(t, m, "basebackups_005/../x_backup_stop_sentinel.json", f.content, "not what a backup ends with")
		finish(t, m, f.object, f.content[1:], "cannot be read")
		finish(t, m, f.object, []byte(strings.Replace(string(f.content), "150018", "150017", 1)), "not as it was written")
		if whole(t, m, backupName) {
			t.Error("it is a backup")
		}
	})
	t.Run("another push has the name", func(t *testing.T) {
		m, f := sealed(t, "")
		other, _ := json.Marshal(archive.Push{Host: "db3", PID: 1, Started: time.Now(), Lease: "2"})
		if err := m.Put(ctx, archive.BackupDir+backupName+"/push.json", strings.NewReader(string(other))); err != nil {
			t.Fatal(err)
		}
		finish(t, m, f.object, f.content, "another push's")
		if parts, _ := archive.New(m, archive.Options{}).Parts(ctx, backupName); len(parts) != 1 {
			t.Error("what the other push has is removed")
		}
	})
	t.Run("swept", func(t *testing.T) {
		m, f := sealed(t, "")
		if err := m.Delete(ctx, archive.BackupDir+backupName+"/push.json"); err != nil {
			t.Fatal(err)
		}
		finish(t, m, f.object, f.content, "removed meanwhile")
	})
	t.Run("a backup of that name", func(t *testing.T) {
		m, f := sealed(t, "")
		if err := m.Put(ctx, f.object, strings.NewReader("{}")); err != nil {
			t.Fatal(err)
		}
		finish(t, m, f.object, f.content, "another backup")
	})
	t.Run("the parent is gone", func(t *testing.T) {
		m, f := sealed(t, backupName)
		if err := m.Delete(ctx, archive.BackupDir+backupName+"_backup_stop_sentinel.json"); err != nil {
			t.Fatal(err)
		}
		finish(t, m, f.object, f.content, "was deleted meanwhile")
		empty(t, m, "_D_")
	})
	t.Run("the parent is gone, and nothing may be removed", func(t *testing.T) {
		m, f := sealed(t, backupName)
		if err := m.Delete(ctx, archive.BackupDir+backupName+"_backup_stop_sentinel.json"); err != nil {
			t.Fatal(err)
		}
		why, err := archive.New(keeps{m}, archive.Options{}).Finish(ctx, "1", f.object, f.content, "db2")
		if err != nil || !strings.Contains(why, "was deleted meanwhile") {
			t.Errorf("finish: %q, %v", why, err)
		}
	})
	t.Run("the parent was replaced", func(t *testing.T) {
		m, f := sealed(t, backupName)
		doc, err := store.ReadFile(ctx, m, archive.BackupDir+backupName+"_backup_stop_sentinel.json", 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Put(ctx, archive.BackupDir+backupName+"_backup_stop_sentinel.json", strings.NewReader(string(doc)+" ")); err != nil {
			t.Fatal(err)
		}
		finish(t, m, f.object, f.content, "was replaced meanwhile")
		empty(t, m, "_D_")
	})
	t.Run("the parent is no backup any more", func(t *testing.T) {
		m, f := sealed(t, backupName)
		put(t, m, archive.BackupDir+backupName+"_backup_stop_sentinel.json", []byte("damaged"))
		finish(t, m, f.object, f.content, "no backup any more")
		empty(t, m, "_D_")
	})
	t.Run("the parent is there", func(t *testing.T) {
		m, f := sealed(t, backupName)
		if why, err := archive.New(m, archive.Options{}).Finish(ctx, "1", f.object, f.content, "db2"); why != "" || err != nil {
			t.Errorf("finish: %q, %v", why, err)
		}
	})
}

// Who was writing what is sealed may not be known, as push.json is damaged: whoever comes next is told what to remove, and goes on once it is.
func TestADamagedMarkerOfWhatIsSealed(t *testing.T) {
	for _, damaged := range []string{"{", "{}", "[]"} {
		m := &storetest.Memory{}
		f := &turn{id: "1", seal: func(string, []byte) (bool, error) { return true, errFence }}
		if err := commit(t, begin(t, m, f, backupName)); !errors.As(err, new(*archive.SealedError)) {
			t.Fatal(err)
		}
		marker := archive.BackupDir + backupName + "/push.json"
		put(t, m, marker, []byte(damaged))
		a := archive.New(m, archive.Options{})
		_, err := a.Finish(t.Context(), "1", f.object, f.content, "db2")
		var why *archive.MarkerError
		if !errors.As(err, &why) || why.Object != marker || !strings.Contains(why.Hint(), "`holdfast st rm "+marker+"`") {
			t.Errorf("%s: %v", damaged, err)
		}
		if err := m.Delete(t.Context(), marker); err != nil {
			t.Fatal(err)
		}
		if gone, err := a.Finish(t.Context(), "1", f.object, f.content, "db2"); err != nil || gone == "" {
			t.Errorf("%s, once it is removed: %q, %v", damaged, gone, err)
		}
		if _, err := a.Sentinel(t.Context(), backupName); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: there is a backup, %v", damaged, err)
		}
	}
}

// What a host left whose turn has ended is not waited for.
func TestAFencedDraftIsRemovedAtOnce(t *testing.T) {
	m := &storetest.Memory{}
	begin(t, m, &turn{id: "1"}, backupName)
	put(t, m, archive.BackupDir+backupName+"/push.json", []byte(`{"host":"elsewhere","pid":1,"started":"2026-11-21T03:00:00Z","lease":"1"}`))
	for _, f := range []archive.Fence{nil, &turn{id: "1"}, &turn{id: "0"}} {
		a := archive.New(m, archive.Options{})
		if f != nil {
			a = a.Fenced(f)
		}
		if _, err := a.Begin(t.Context(), backupName, "db2"); !errors.As(err, new(*archive.InUseError)) {
			t.Errorf("begin where nobody says that it has ended: %v", err)
		}
	}
	if err := commit(t, begin(t, m, &turn{id: "2"}, backupName)); err != nil {
		t.Errorf("commit: %v", err)
	}
	if !whole(t, m, backupName) {
		t.Error("it is no backup")
	}
	other := "base_000000010000000000000007"
	begin(t, m, &turn{id: "1"}, other)
	later := archive.New(m, archive.Options{})
	if swept, err := later.SweepDead(t.Context(), "db2"); len(swept) != 0 || err != nil {
		t.Errorf("sweep where nobody says that it has ended: %q, %v", swept, err)
	}
	if swept, err := later.Fenced(&turn{id: "2"}).SweepDead(t.Context(), "db2"); len(swept) != 1 || err != nil {
		t.Errorf("sweep: %q, %v", swept, err)
	}
	empty(t, m, other)
}

// keeps is a store for credentials that may not remove anything.
type keeps struct{ store.Store }

func (k keeps) Delete(_ context.Context, name string) error {
	return &fs.PathError{Op: "delete", Path: name, Err: fs.ErrPermission}
}

// Nothing that Finish is given makes it put anything but a whole backup's sentinel.
func FuzzFinish(f *testing.F) {
	m := &storetest.Memory{}
	t := &turn{id: "1", seal: func(string, []byte) (bool, error) { return true, errFence }}
	f.Add(archive.BackupDir+backupName+"_backup_stop_sentinel.json", []byte(`{"LSN":50331688}`))
	f.Add("x", []byte{})
	d, err := archive.New(m, archive.Options{}).Fenced(t).Begin(context.Background(), backupName, "db1")
	if err != nil {
		f.Fatal(err)
	}
	if err := d.Commit(context.Background(), plain()); !errors.As(err, new(*archive.SealedError)) {
		f.Fatal(err)
	}
	f.Add(t.object, t.content)
	f.Fuzz(func(tt *testing.T, object string, content []byte) {
		why, err := archive.New(m, archive.Options{}).Finish(tt.Context(), "1", object, content, "db2")
		if why == "" && err == nil && (object != t.object || string(content) != string(t.content)) {
			tt.Errorf("%q was put, with %q", object, content)
		}
	})
}

// A process that stood still while the next one swept away what it had stored, and then goes on with a put, removes that itself: unless the name is another's by then.
func TestAPutAfterTheSweepIsRemoved(t *testing.T) {
	for _, again := range []string{"", "it is being made again", "it is made again"} {
		m := &storetest.Memory{}
		d := begin(t, m, &turn{id: "1"}, backupName)
		if swept, err := archive.New(m, archive.Options{}).Fenced(&turn{id: "2"}).SweepDead(t.Context(), "db2"); len(swept) != 1 || err != nil {
			t.Fatalf("swept %q, %v", swept, err)
		}
		var next *archive.Draft
		if again != "" {
			next = begin(t, m, &turn{id: "2"}, backupName)
		} else if err := m.Put(t.Context(), archive.Folder(backupName)+"tar_partitions/part_007.tar.zst", strings.NewReader("late")); err != nil {
			t.Fatal(err)
		}
		if again == "it is made again" {
			if err := commit(t, next); err != nil {
				t.Fatal(err)
			}
		}
		before := contents(t, m)
		if err := d.Abort(t.Context()); err != nil {
			t.Errorf("%s: %v", again, err)
		}
		if again == "" {
			empty(t, m, backupName)
		} else if after := contents(t, m); !maps.Equal(before, after) {
			t.Errorf("%s: of %d objects %d are left", again, len(before), len(after))
		}
	}
}
