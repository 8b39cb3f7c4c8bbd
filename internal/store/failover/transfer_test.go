package failover_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/store"
	"holdfast/internal/store/failover"
	"holdfast/internal/store/storetest"
)

// drained has a primary that was away: two backups and three WAL files are in the second storage.
func drained(t *testing.T) (a, b *storetest.Memory) {
	t.Helper()
	a, b = &storetest.Memory{}, &storetest.Memory{}
	away := union(t, failover.Options{NoCheck: true}, b)
	for i := range 3 {
		if err := pushWAL(t, away, fmt.Sprintf("%024d", i), fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"base_" + seg, "base_000000010000000000000002"} {
		if err := takeBackup(t.Context(), archive.New(away.Alive(), archive.Options{}), name); err != nil {
			t.Fatal(err)
		}
	}
	put(t, b, failover.Probe, "x")
	put(t, b, owner, "me")
	put(t, a, owner, "me, elsewhere")
	return a, b
}

// move plans and transfers from second to default.
func move(ctx context.Context, u *failover.Stores, kind failover.Kind, prefix string, opts failover.TransferOptions) (*failover.Plan, *failover.Report, error) {
	p, err := u.PlanTransfer(ctx, "second", "default", kind, prefix, opts)
	if err != nil {
		return nil, nil, err
	}
	r, err := u.Transfer(ctx, p, opts)
	return p, r, err
}

// readAll returns what keeps the two backups and three WAL files of drained from being read.
func readAll(ctx context.Context, s store.Store) error {
	ar := archive.New(s, archive.Options{})
	errs := []error{checkBackup(ctx, ar, "base_"+seg), checkBackup(ctx, ar, "base_000000010000000000000002")}
	for i := range 3 {
		r, err := ar.OpenWAL(ctx, fmt.Sprintf("%024d", i))
		if err == nil {
			var b []byte
			if b, err = io.ReadAll(r); err == nil && string(b) != fmt.Sprint(i) {
				err = fmt.Errorf("WAL %d reads %q", i, b)
			}
			r.Close()
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func TestTransferDrainsAStorage(t *testing.T) {
	a, b := drained(t)
	u := union(t, failover.Options{}, a, b)
	s := u.Union()
	if err := readAll(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	_, r, err := move(t.Context(), u, failover.WAL, "", failover.TransferOptions{})
	if err != nil || r.Copied != 3 || r.Removed != 3 {
		t.Errorf("pg-wals: %+v, %v", r, err)
	}
	p, r, err := move(t.Context(), u, failover.Backups, "", failover.TransferOptions{MaxBackups: 1})
	if err != nil || r.Backups != 1 || len(p.Units) != 1 || p.Units[0].Backup != "base_"+seg || r.Copied != len(p.Units[0].Objects)+1 {
		t.Errorf("one backup: %+v, %v", r, err)
	}
	want(t, "left in the second", strings.Contains(walked(t, b, ""), seg), false)
	if err := readAll(t.Context(), s); err != nil { // by a reader that knew where it was
		t.Error(err)
	}
	put(t, b, "notes/one", "1")
	p, r, err = move(t.Context(), u, failover.Files, "", failover.TransferOptions{})
	if err != nil || r.Backups != 1 || len(p.Skipped) != 2 {
		t.Errorf("everything else: %+v, %+v, %v", r, p.Skipped, err)
	}
	want(t, "left in the second", walked(t, b, ""), "holdfast/cluster.json@ wal-g_storage_check@")
	want(t, "owner", content(t, a, owner), "me, elsewhere")
	if err := readAll(t.Context(), union(t, failover.Options{}, a).Union()); err != nil {
		t.Error(err)
	}
	_, r, err = move(t.Context(), u, failover.Files, "", failover.TransferOptions{})
	if err != nil || r.Copied+r.Removed+r.Equal != 0 {
		t.Errorf("nothing else: %+v, %v", r, err)
	}
}

func TestTransferHeedsItsLimits(t *testing.T) {
	a, b := drained(t)
	u := union(t, failover.Options{}, a, b)
	_, r, err := move(t.Context(), u, failover.WAL, "", failover.TransferOptions{MaxFiles: 2, Concurrency: 1})
	if err != nil || r.Copied != 2 {
		t.Errorf("two files: %+v, %v", r, err)
	}
	_, r, err = move(t.Context(), u, failover.Backups, "", failover.TransferOptions{MaxFiles: 1, Preserve: true})
	if err != nil || r.Backups != 1 || r.Removed != 0 {
		t.Errorf("a backup is not divided: %+v, %v", r, err)
	}
	want(t, "sentinels", []bool{content(t, a, sentinel) != "(missing)", content(t, b, sentinel) != "(missing)"}, []bool{true, true})
	_, r, err = move(t.Context(), u, failover.Backups, "", failover.TransferOptions{MaxFiles: 1})
	if err != nil || r.Backups != 1 || r.Copied != 0 || r.Equal == 0 || r.Equal != r.Removed {
		t.Errorf("and taken away once it was copied: %+v, %v", r, err)
	}
	if err := readAll(t.Context(), u.Union()); err != nil {
		t.Error(err)
	}
	for _, c := range []struct{ from, to, prefix string }{
		{"second", "second", ""}, {"second", "none", ""}, {"none", "default", ""}, {"second", "default", "a/../b"},
		{"second", "default", folder}, {"second", "default", folder + "tar_partitions"},
	} {
		if _, err := u.PlanTransfer(t.Context(), c.from, c.to, failover.Files, c.prefix, failover.TransferOptions{}); err == nil {
			t.Errorf("a plan from %s to %s of %q is made", c.from, c.to, c.prefix)
		}
	}
}

func TestTransferNeverReplacesUntold(t *testing.T) {
	a, b := drained(t)
	u := union(t, failover.Options{}, a, b)
	name := "wal_005/000000000000000000000001.zst"
	put(t, a, name, strings.Repeat("x", len(content(t, b, name)))) // of the same size
	ours := content(t, b, name)
	_, r, err := move(t.Context(), u, failover.WAL, "", failover.TransferOptions{})
	if err == nil || !strings.Contains(err.Error(), "contents differ") || r.Copied != 2 || len(r.Failed) != 1 || r.Failed[0].Name != name {
		t.Errorf("over other content: %+v, %v", r, err)
	}
	want(t, "the source stays", content(t, b, name), ours)
	if _, r, err = move(t.Context(), u, failover.WAL, "", failover.TransferOptions{Overwrite: true}); err != nil || r.Copied != 1 {
		t.Errorf("overwriting: %+v, %v", r, err)
	}
	want(t, "the target", []string{content(t, a, name), content(t, b, name)}, []string{ours, "(missing)"})

	// What a push left, or makes, under the name of a backup is not mixed with it.
	for _, left := range []string{"push.json", "tar_partitions/part_009.tar", "tar_partitions/part_001.tar.zst"} {
		put(t, a, folder+left, "of a push")
		_, r, err = move(t.Context(), u, failover.Backups, "", failover.TransferOptions{MaxBackups: 1})
		if err == nil || r.Removed != 0 || content(t, a, sentinel) != "(missing)" {
			t.Errorf("with %s in the target: %+v, %v", left, r, err)
		}
		for o := range a.Walk(t.Context(), folder) {
			if err := a.Delete(t.Context(), o.Name); err != nil {
				t.Fatal(err)
			}
		}
	}
	// A push to the source is left alone, a forgotten marker taken away.
	put(t, b, "basebackups_005/base_000000010000000000000003/push.json", "{}")
	put(t, b, folder+"push.json", "{}")
	p, r, err := move(t.Context(), u, failover.Backups, "", failover.TransferOptions{})
	if err != nil || r.Backups != 2 || len(p.Skipped) != 1 {
		t.Errorf("beside a push: %+v, %+v, %v", r, p.Skipped, err)
	}
	want(t, "left", walked(t, b, "basebackups_005/"), "basebackups_005/base_000000010000000000000003/push.json@")
	want(t, "marker", content(t, a, folder+"push.json"), "(missing)")
}

// late shows what is put only a while later.
type late struct {
	*storetest.Memory
	after time.Duration
}

func (l late) Stat(ctx context.Context, name string) (store.Object, error) {
	o, err := l.Memory.Stat(ctx, name)
	if err == nil && time.Since(o.Modified) < l.after {
		return store.Object{}, &fs.PathError{Op: "stat", Path: name, Err: fs.ErrNotExist}
	}
	return o, err
}

func TestTransferWaitsUntilTheCopyIsSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, b := drained(t)
		u := union(t, failover.Options{}, late{&storetest.Memory{}, 5 * time.Second}, b)
		if _, r, err := move(t.Context(), u, failover.WAL, "", failover.TransferOptions{Checks: 2}); err == nil || r.Removed != 0 || len(r.Failed) != 3 {
			t.Errorf("never seen: %+v, %v", r, err)
		}
		u = union(t, failover.Options{}, late{&storetest.Memory{}, 5 * time.Second}, b)
		if _, r, err := move(t.Context(), u, failover.WAL, "", failover.TransferOptions{Checks: 6}); err != nil || r.Removed != 3 {
			t.Errorf("seen late: %+v, %v", r, err)
		}
	})
}

// lossy stores one byte less, or another one.
type lossy struct {
	*storetest.Memory
	change bool
}

func (l lossy) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if l.change {
		b[0] ^= 1
	} else {
		b = b[1:]
	}
	return l.Memory.PutIfAbsent(ctx, name, strings.NewReader(string(b)))
}

func TestTransferRemovesNothingUnverified(t *testing.T) {
	for _, change := range []bool{false, true} {
		_, b := drained(t)
		before := walked(t, b, "")
		u := union(t, failover.Options{}, lossy{&storetest.Memory{}, change}, b)
		if _, r, err := move(t.Context(), u, failover.Files, "", failover.TransferOptions{}); err == nil || r.Removed != 0 {
			t.Errorf("a copy that is not the same: %+v, %v", r, err)
		}
		want(t, "the source", walked(t, b, ""), before)
	}
}

// touched changes an object of the source while it is copied.
type touched struct {
	*storetest.Memory
	name string
}

func (s touched) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	r, err := s.Memory.Open(ctx, name)
	if err == nil && name == s.name {
		err = s.Memory.Put(ctx, name, strings.NewReader("changed"))
	}
	return r, err
}

func TestTransferKeepsWhatChangedMeanwhile(t *testing.T) {
	for _, name := range []string{folder + "metadata.json", sentinel, "wal_005/000000000000000000000001.zst"} {
		a, b := drained(t)
		u := union(t, failover.Options{}, a, touched{b, name})
		if _, _, err := move(t.Context(), u, failover.Files, "", failover.TransferOptions{}); err == nil {
			t.Errorf("%s was changed: no error", name)
		}
		want(t, name, content(t, b, name), "changed")
		if name == folder+"metadata.json" {
			want(t, "the sentinel of a backup that changed", content(t, a, sentinel), "(missing)")
		}
	}
}

func TestTransferStopsWhenItIsToFailFast(t *testing.T) {
	for _, fast := range []bool{false, true} {
		a, b := drained(t)
		for i := range 3 {
			put(t, a, fmt.Sprintf("wal_005/%024d.zst", i), "other")
		}
		_, r, err := move(t.Context(), union(t, failover.Options{}, a, b), failover.Files, "", failover.TransferOptions{FailFast: fast, Concurrency: 1})
		if err == nil || fast && len(r.Failed) > 2 || !fast && (len(r.Failed) != 3 || r.Backups != 2) {
			t.Errorf("fail fast %v: %+v, %v", fast, r, err)
		}
	}
	a, b := drained(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := move(ctx, union(t, failover.Options{}, a, b), failover.Files, "", failover.TransferOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// Whichever call fails, everything stays readable at every moment, and the next transfer brings it to its end.
func TestNoFailureOfATransferLoses(t *testing.T) {
	for kind, fail := range map[string]func(store.Store, int) *storetest.Flaky{"at": storetest.FailAt, "midway": storetest.FailMidway, "after": storetest.FailAfter} {
		for which := range 2 {
			for n := 0; ; n++ {
				a, b := drained(t)
				stores := []store.Store{a, b}
				flaky := fail(stores[which], n)
				stores[which] = flaky
				opts := failover.TransferOptions{Concurrency: 1, Interval: time.Nanosecond}
				_, _, err := move(t.Context(), union(t, failover.Options{}, stores...), failover.Files, "", opts)
				if left := walked(t, b, ""); err == nil && left != "holdfast/cluster.json@ wal-g_storage_check@" {
					t.Errorf("%s %d of %d: no error, and left are %s", kind, n, which, left)
				}
				well := union(t, failover.Options{}, a, b)
				if err := readAll(t.Context(), well.Union()); err != nil {
					t.Errorf("%s %d of %d (%v): %v", kind, n, which, err, err)
				}
				if _, _, err := move(t.Context(), well, failover.Files, "", opts); err != nil {
					t.Errorf("%s %d of %d: the next transfer: %v", kind, n, which, err)
				}
				if err := readAll(t.Context(), union(t, failover.Options{}, a).Union()); err != nil {
					t.Errorf("%s %d of %d: after the next transfer: %v", kind, n, which, err)
				}
				want(t, "left", walked(t, b, ""), "holdfast/cluster.json@ wal-g_storage_check@")
				if !flaky.Reached() {
					break
				}
			}
		}
	}
}
