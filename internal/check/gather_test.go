package check_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/check"
	"holdfast/internal/pg/server"
	"holdfast/internal/proof"
	"holdfast/internal/ribbon"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
)

// gather makes checks of what is in a store.
func gather(t *testing.T, st store.Store, patience time.Duration, only ...string) check.Report {
	t.Helper()
	c, err := check.Choose(check.Selection{Only: only})
	if err != nil {
		t.Fatal(err)
	}
	a := archive.New(st, archive.Options{})
	f := check.Gather(t.Context(), check.Sources{
		Archive: func(ctx context.Context) (check.Loaded, error) {
			in, err := ribbon.Load(ctx, a, a, ribbon.Options{})
			return check.Loaded{Input: in}, err
		},
		Storages: func(context.Context) ([]check.Storage, error) {
			return []check.Storage{{Name: "default", Store: st}}, nil
		},
		Host: "db1.example.org",
	}, c, patience)
	return check.Judge(f, c)
}

// names returns what is in a store.
func names(t *testing.T, st store.Store) (all []string) {
	t.Helper()
	for o, err := range store.Walk(t.Context(), st, "") {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, o.Name)
	}
	return all
}

func TestStoreIsTried(t *testing.T) {
	st := &storetest.Memory{}
	if r := gather(t, st, time.Minute, "store", "clock"); r.Status != check.OK {
		t.Errorf("%s", r.Nagios())
	}
	if left := names(t, st); len(left) > 0 {
		t.Errorf("%q is left", left)
	}
	if r := gather(t, &fixed{Memory: st}, time.Minute, "store"); r.Status != check.OK || !strings.Contains(r.Findings[0].Text, "not removed from") {
		t.Errorf("%s", r.Nagios())
	}
	gather(t, &fixed{Memory: st}, time.Minute, "store")
	if left := names(t, st); len(left) != 1 || left[0] != "holdfast/check/db1_example_org" {
		t.Errorf("%q is left where nothing may be removed, want one object", left)
	}
	if r := gather(t, &full{Memory: st}, time.Minute, "store"); r.Status != check.Critical || !strings.Contains(r.Findings[0].Text, "no space left") {
		t.Errorf("%s", r.Nagios())
	}
}

// A host that only looks at the archive, or restores from it, may not write it; one that has a server must.
func TestReadOnlyCredentials(t *testing.T) {
	c, err := check.Choose(check.Selection{Except: []string{"holes", "restorable", "backup-age", "full-age"}})
	if err != nil {
		t.Fatal(err)
	}
	judge := func(st store.Store, cfg server.Config) check.Report {
		f := check.Gather(t.Context(), check.Sources{
			Server:  cfg,
			Archive: func(context.Context) (check.Loaded, error) { return check.Loaded{}, nil },
			Storages: func(context.Context) ([]check.Storage, error) {
				return []check.Storage{{Name: "default", Store: st}}, nil
			},
		}, c, time.Minute)
		return check.Judge(f, c)
	}
	status := func(r check.Report, name string) check.Finding {
		for _, f := range r.Findings {
			if f.Check == name {
				return f
			}
		}
		return check.Finding{Status: -1}
	}
	r := judge(&readOnly{Memory: &storetest.Memory{}}, nil)
	for _, name := range []string{"store", "clock"} {
		if f := status(r, name); f.Status != check.OK || !f.Skipped {
			t.Errorf("%s", r.Nagios())
		}
	}
	if r := judge(&readOnly{Memory: &storetest.Memory{}}, server.Config{"host": t.TempDir()}); status(r, "store").Status != check.Critical {
		t.Errorf("beside a server: %s", r.Nagios())
	}
	if r := judge(&readOnly{Memory: &storetest.Memory{}, blind: true}, nil); status(r, "store").Status != check.Critical {
		t.Errorf("with credentials for nothing: %s", r.Nagios())
	}
}

// readOnly is a store that may not be written, and where blind not read either.
type readOnly struct {
	*storetest.Memory
	blind bool
}

func (s *readOnly) Put(context.Context, string, io.Reader) error {
	return &fs.PathError{Op: "put", Path: "x", Err: fs.ErrPermission}
}

func (s *readOnly) Stat(ctx context.Context, name string) (store.Object, error) {
	if s.blind {
		return store.Object{}, &fs.PathError{Op: "stat", Path: name, Err: fs.ErrPermission}
	}
	return s.Memory.Stat(ctx, name)
}

// fixed is a store from which nothing may be removed.
type fixed struct{ *storetest.Memory }

func (s *fixed) Delete(context.Context, string) error {
	return &fs.PathError{Op: "delete", Path: "x", Err: fs.ErrPermission}
}

// full is a store that takes nothing.
type full struct{ *storetest.Memory }

func (s *full) Put(context.Context, string, io.Reader) error { return syscall.ENOSPC }

// deaf is a store that never answers, and does not care for contexts.
type deaf struct {
	*storetest.Memory
	hang chan struct{}
}

func (s *deaf) Put(context.Context, string, io.Reader) error {
	<-s.hang
	return errors.New("at last")
}

// What hangs for ever is not waited for, and what else there is is judged.
func TestGatherNeverHangs(t *testing.T) {
	hang := make(chan struct{})
	defer close(hang)
	listener, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	c, err := check.Choose(check.Selection{})
	if err != nil {
		t.Fatal(err)
	}
	port := strconv.Itoa(listener.Addr().(*net.TCPAddr).Port)
	src := check.Sources{
		Server:  server.Config{"host": "127.0.0.1", "port": port, "user": "x", "sslmode": "disable"},
		Archive: func(context.Context) (check.Loaded, error) { <-hang; return check.Loaded{}, nil },
		Storages: func(context.Context) ([]check.Storage, error) {
			return []check.Storage{{Name: "deaf", Store: &deaf{&storetest.Memory{}, hang}}}, nil
		},
	}
	done := make(chan *check.Facts, 1)
	go func() { done <- check.Gather(t.Context(), src, c, 200*time.Millisecond) }()
	select {
	case f := <-done:
		r := check.Judge(f, c)
		for _, f := range r.Findings {
			if f.Status == check.OK && !f.Skipped {
				t.Errorf("%s is OK: %s", f.Check, f.Text)
			}
		}
		if r.Status != check.Critical { // the server does not answer
			t.Errorf("%s", r.Nagios())
		}
		if out := r.Nagios(); strings.Count(out, "no answer within 200ms") < 2 {
			t.Errorf("%s", out)
		}
	case <-time.After(time.Minute):
		t.Fatal("it hangs")
	}
}

// An archive whose storage is down is not known, which is not the same as empty.
func TestGatherArchiveDown(t *testing.T) {
	st := storetest.FailAt(&storetest.Memory{}, 0)
	r := gather(t, st, time.Minute, "holes", "backup-age")
	if r.Findings[0].Status != check.Unknown || r.Findings[1].Status != check.Unknown {
		t.Errorf("%s", r.Nagios())
	}
	if r := gather(t, &storetest.Memory{}, time.Minute, "holes", "backup-age"); r.Findings[0].Status != check.Critical || r.Findings[1].Status != check.Critical {
		t.Errorf("of an empty archive: %s", r.Nagios())
	}
}

// A backup that was made while the clock of its host was ahead is no younger than its sentinel.
func TestABackupIsNotOfTheFuture(t *testing.T) {
	st := &storetest.Memory{}
	sentinel := fmt.Sprintf(`{"FinishTime":%q}`, time.Now().Add(48*time.Hour).UTC().Format(time.RFC3339))
	if err := st.Put(t.Context(), archive.BackupDir+"base_000000010000000000000002_backup_stop_sentinel.json", strings.NewReader(sentinel)); err != nil {
		t.Fatal(err)
	}
	c := choose(t, "backup-age", "")
	a := archive.New(st, archive.Options{})
	f := check.Gather(t.Context(), check.Sources{Archive: func(ctx context.Context) (check.Loaded, error) {
		in, err := ribbon.Load(ctx, a, a, ribbon.Options{})
		return check.Loaded{Input: in}, err
	}}, c, time.Minute)
	if f.Archive == nil || len(f.Archive.Backups) != 1 || f.Archive.Backups[0].Finished.After(f.Now) {
		t.Errorf("at %s there is %+v, %v", f.Now, f.Archive, f.ArchiveErr)
	}
}

// Records that do not count are told of as long as none that does is newer, of whichever backup: keys that are introduced are no warning for as long as old backups stay.
func TestRefusedSince(t *testing.T) {
	now := time.Now()
	no := func(age time.Duration) error {
		return &proof.RefusedError{Object: "x", When: now.Add(-age), Err: proof.ErrUnsigned}
	}
	in := &ribbon.Input{Catalog: &catalog.Catalog{Backups: []catalog.Backup{{Name: "a"}, {Name: "b"}}}, Backups: map[string]ribbon.Evidence{
		"a": {Refused: []error{no(3 * time.Hour), no(5 * time.Hour)}}, "b": {}}}
	if got := check.RefusedSince(in); len(got) != 2 {
		t.Errorf("nothing is proven: %v", got)
	}
	in.Backups["b"] = ribbon.Evidence{Proven: now.Add(-4 * time.Hour)}
	if got := check.RefusedSince(in); len(got) != 1 {
		t.Errorf("one is newer than the proof: %v", got)
	}
	in.Backups["b"] = ribbon.Evidence{Proven: now.Add(-time.Hour)}
	if got := check.RefusedSince(in); len(got) != 0 {
		t.Errorf("none is newer than the proof: %v", got)
	}
}
