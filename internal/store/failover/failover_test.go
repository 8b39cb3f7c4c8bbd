package failover_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/store"
	"holdfast/internal/store/failover"
	"holdfast/internal/store/file"
	"holdfast/internal/store/storetest"
	"holdfast/internal/tarpart"
)

// union returns the stores as default, second, third.
func union(t *testing.T, opts failover.Options, stores ...store.Store) *failover.Stores {
	t.Helper()
	var members []failover.Member
	for i, s := range stores {
		members = append(members, failover.Member{Name: [...]string{"default", "second", "third"}[i], Store: s})
	}
	u, err := failover.New(members, opts)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func put(t *testing.T, s store.Store, name, content string) {
	t.Helper()
	if err := s.Put(t.Context(), name, strings.NewReader(content)); err != nil {
		t.Fatalf("put %s: %v", name, err)
	}
}

// content returns what name holds, or in brackets what kept it from being read.
func content(t *testing.T, s store.Store, name string) string {
	t.Helper()
	b, err := store.ReadFile(t.Context(), s, name, 1<<20)
	var unasked *failover.UnaskedError
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "(missing)"
	case errors.As(err, &unasked):
		return fmt.Sprintf("(unasked %s)", strings.Join(unasked.Storages, " "))
	case err != nil:
		t.Fatalf("read %s: %v", name, err)
	}
	return string(b)
}

func want(t *testing.T, what string, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s:\n got %v\nwant %v", what, got, want)
	}
}

// walked lists name@storage of all objects.
func walked(t *testing.T, s store.Store, dir string) string {
	t.Helper()
	var all []string
	for o, err := range store.Walk(t.Context(), s, dir) {
		if err != nil {
			return strings.Join(append(all, "error"), " ")
		}
		all = append(all, o.Name+"@"+o.Storage)
	}
	return strings.Join(all, " ")
}

const (
	segment  = "wal_005/000000010000000000000001.zst"
	sentinel = "basebackups_005/base_000000010000000000000001_backup_stop_sentinel.json"
	folder   = "basebackups_005/base_000000010000000000000001/"
	owner    = "holdfast/cluster.json"
)

func TestEitherViewIsAStore(t *testing.T) {
	dir := func(t *testing.T) store.Store {
		s, err := file.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	memory := func(*testing.T) store.Store { return &storetest.Memory{} }
	plain := func(*testing.T) store.Store { return storetest.Plain(&storetest.Memory{}) }
	for name, c := range map[string]struct {
		kinds   []func(*testing.T) store.Store
		lenient bool
	}{
		"one": {kinds: []func(*testing.T) store.Store{memory}}, "disk and memory": {kinds: []func(*testing.T) store.Store{dir, memory}},
		"memory and disk, alive": {[]func(*testing.T) store.Store{memory, dir}, true}, "plain, alive": {[]func(*testing.T) store.Store{memory, plain}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			storetest.Test(t, func(t *testing.T) store.Store {
				var stores []store.Store
				for _, kind := range c.kinds {
					stores = append(stores, kind(t))
				}
				u := union(t, failover.Options{NoCheck: true}, stores...)
				if c.lenient {
					return u.Alive()
				}
				return u.Union()
			})
		})
	}
}

func TestPutIfAbsentIsPromisedOnlyIfAllCan(t *testing.T) {
	m := &storetest.Memory{}
	_, all := union(t, failover.Options{}, m, m).Union().(store.PutIfAbsenter)
	_, some := union(t, failover.Options{}, m, storetest.Plain(m)).Union().(store.PutIfAbsenter)
	if !all || some {
		t.Errorf("with all members able %v, with some %v", all, some)
	}
}

func TestEachStorageNeedsItsName(t *testing.T) {
	m := &storetest.Memory{}
	for _, members := range [][]failover.Member{nil, {{"", m}}, {{"a", m}, {"b", m}, {"a", m}}} {
		if _, err := failover.New(members, failover.Options{}); err == nil {
			t.Errorf("%d members are accepted", len(members))
		}
	}
	u := union(t, failover.Options{}, m, m)
	if _, err := u.Member("other"); err == nil || !strings.Contains(err.Error(), "default, second") {
		t.Errorf("an unknown storage: %v", err)
	}
	if s, err := u.Member("second"); s != store.Store(m) || err != nil {
		t.Errorf("the second storage: %v, %v", s, err)
	}
}

func TestReadsAreTheUnion(t *testing.T) {
	a, b := storetest.NewMortal(), storetest.NewMortal()
	put(t, a, "wal_005/1", "a")
	put(t, a, "wal_005/3", "a")
	put(t, b, "wal_005/2", "b")
	put(t, b, "wal_005/3", "other")
	put(t, b, "z", "b")
	for _, s := range []store.Store{union(t, failover.Options{}, a, b).Union(), union(t, failover.Options{}, a, b).Alive()} {
		want(t, "walk", walked(t, s, ""), "wal_005/1@default wal_005/2@second wal_005/3@default z@second")
		want(t, "content", []string{content(t, s, "wal_005/2"), content(t, s, "wal_005/3"), content(t, s, "none")}, []string{"b", "a", "(missing)"})
		o, err := s.Stat(t.Context(), "z")
		if err != nil || o.Storage != "second" {
			t.Errorf("stat: %+v, %v", o, err)
		}
	}
}

// wal-fetch must not take an outage for the end of the archive, nor retention for leave to delete.
func TestAnOutageIsNoMiss(t *testing.T) {
	a, b := storetest.NewMortal(), storetest.NewMortal()
	put(t, a, segment, "a")
	put(t, b, "wal_005/2", "b")
	put(t, b, sentinel, "{}")
	for _, fresh := range []bool{true, false} { // and known to be dead already
		u := union(t, failover.Options{}, a, b)
		s := u.Union()
		if !fresh {
			content(t, s, "none")
		}
		a.Down.Store(true)
		for range 3 {
			want(t, "what the dead one has", content(t, s, segment), "(unasked default)")
			want(t, "what nobody has", content(t, s, "none"), "(unasked default)")
			want(t, "what the other has", content(t, s, "wal_005/2"), "b")
			want(t, "a part that nobody has", content(t, s, folder+"none"), "(missing)") // the backup is in the other
			want(t, "a part of no known backup", content(t, s, "basebackups_005/x/y"), "(unasked default)")
			want(t, "listing", walked(t, s, ""), "error")
			err := s.Delete(t.Context(), "wal_005/none")
			if want := "storage default did not answer: connection refused"; err == nil || !strings.Contains(err.Error(), want) || !errors.Is(err, storetest.ErrDown) {
				t.Errorf("delete: %v, want %q", err, want)
			}
		}
		a.Down.Store(false)
		want(t, "once it is back", content(t, s, segment), "a")
		want(t, "what nobody has, once it is back", content(t, s, "none"), "(missing)")
		want(t, "a listing, once it is back", strings.Contains(walked(t, s, ""), segment+"@default"), true)
	}
}

func TestAliveGoesOnWithoutTheDead(t *testing.T) {
	a, b := storetest.NewMortal(), storetest.NewMortal()
	put(t, a, segment, "a")
	put(t, b, "wal_005/2", "b")
	s := union(t, failover.Options{}, a, b).Alive()
	a.Down.Store(true)
	want(t, "what the dead one has", content(t, s, segment), "(missing)")
	want(t, "what the other has", content(t, s, "wal_005/2"), "b")
	want(t, "listing", walked(t, s, ""), "wal_005/2@second")
	if err := s.Delete(t.Context(), "wal_005/2"); err != nil {
		t.Error(err)
	}
	calls := a.Calls.Load()
	want(t, "again", content(t, s, segment), "(missing)")
	want(t, "calls of a storage known to be dead", a.Calls.Load()-calls, int64(0))
	b.Down.Store(true)
	want(t, "when all are down", content(t, s, segment), "(unasked second default)")
	want(t, "listing when all are down", walked(t, s, ""), "error")
	if err := s.Delete(t.Context(), "x"); !errors.Is(err, storetest.ErrDown) && !strings.Contains(fmt.Sprint(err), "did not answer") {
		t.Errorf("delete when all are down: %v", err)
	}
	if err := s.Put(t.Context(), segment, strings.NewReader("x")); !errors.Is(err, storetest.ErrDown) {
		t.Errorf("put when all are down: %v", err)
	}
	a.Down.Store(false) // and back before its status is old
	want(t, "once one is back", content(t, s, segment), "a")
}

// Who pushes to an archive must not find it ownerless because the storage that knows better is down.
func TestTheOwnerIsKnownEverywhere(t *testing.T) {
	for _, early := range []bool{true, false} { // was there more than one storage when it was claimed
		a, b := storetest.NewMortal(), storetest.NewMortal()
		first := union(t, failover.Options{}, a, b).Alive()
		if early {
			if err := store.PutIfAbsent(t.Context(), first, owner, strings.NewReader("me")); err != nil {
				t.Fatal(err)
			}
		} else {
			put(t, a, owner, "me")
			a.Down.Store(true)
			want(t, "an owner whom only the dead one knows", content(t, first, owner), "(unasked default)")
			a.Down.Store(false)
			want(t, "the owner", content(t, union(t, failover.Options{}, a, b).Alive(), owner), "me")
		}
		a.Down.Store(true)
		want(t, "the owner, by the other", content(t, union(t, failover.Options{}, a, b).Alive(), owner), "me")
		a.Down.Store(false)
		put(t, union(t, failover.Options{}, a, b).Alive(), owner, "you")
		want(t, "a new owner", []string{content(t, a, owner), content(t, b, owner)}, []string{"you", "you"})
	}
}

// Whatever lies under a backup's name elsewhere is none of it.
func TestBackupsNeverMix(t *testing.T) {
	a, b := storetest.NewMortal(), storetest.NewMortal()
	put(t, a, folder+"tar_partitions/part_001.tar", "of a dead push")
	put(t, a, folder+"tar_partitions/part_002.tar", "of a dead push")
	put(t, b, folder+"tar_partitions/part_001.tar", "good")
	put(t, b, sentinel, "{}")
	u := union(t, failover.Options{}, a, b)
	for _, s := range []store.Store{u.Union(), u.Alive()} {
		want(t, "part 1", content(t, s, folder+"tar_partitions/part_001.tar"), "good")
		want(t, "part 2", content(t, s, folder+"tar_partitions/part_002.tar"), "(missing)")
		want(t, "parts", walked(t, s, folder), folder+"tar_partitions/part_001.tar@second")
		want(t, "all", walked(t, s, ""), folder+"tar_partitions/part_001.tar@second "+sentinel+"@second")
		var names []string
		for o := range s.List(t.Context(), folder+"tar_partitions/", "") {
			names = append(names, o.Name)
		}
		want(t, "listing", names, []string{folder + "tar_partitions/part_001.tar"})
		r, err := s.OpenRange(t.Context(), folder+"tar_partitions/part_001.tar", 1, 2)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := io.ReadAll(r); string(got) != "oo" {
			t.Errorf("range of part 1: %q", got)
		}
	}
	// It is found anew when it has moved, and when it is gone.
	put(t, a, folder+"tar_partitions/part_001.tar", "good, moved")
	put(t, a, sentinel, "{}")
	for _, name := range []string{sentinel, folder + "tar_partitions/part_001.tar"} {
		if err := b.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	want(t, "part 1, moved", content(t, u.Union(), folder+"tar_partitions/part_001.tar"), "good, moved")
	a.Down.Store(true)
	want(t, "a part in a dead storage", content(t, u.Union(), folder+"tar_partitions/part_001.tar"), "(unasked default)")
	a.Down.Store(false)
	// What is deleted is deleted everywhere.
	put(t, b, folder+"tar_partitions/part_001.tar", "left over")
	if err := store.DeleteMany(t.Context(), u.Union(), []string{sentinel, folder + "tar_partitions/part_001.tar", folder + "tar_partitions/part_002.tar"}); err != nil {
		t.Fatal(err)
	}
	want(t, "after deleting", walked(t, a, "")+walked(t, b, ""), "")
}

func pushWAL(t *testing.T, u *failover.Stores, name, text string) error {
	t.Helper()
	_, err := archive.New(u.Alive(), archive.Options{}).PutWAL(t.Context(), name, func() (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(text)), nil
	})
	return err
}

const seg = "000000010000000000000001"

func TestWALGoesToTheFirstThatIsAlive(t *testing.T) {
	a, b := storetest.NewMortal(), storetest.NewMortal()
	cache := filepath.Join(t.TempDir(), "status")
	process := func() *failover.Stores { return union(t, failover.Options{CacheFile: cache, CheckSize: 1000}, a, b) }
	push := func(n int, text string) error { return pushWAL(t, process(), fmt.Sprintf("%023d%d", 1, n), text) }
	if err := push(1, "one"); err != nil {
		t.Fatal(err)
	}
	a.Down.Store(true)
	if err := push(2, "two"); err != nil {
		t.Fatalf("a push when the primary died since the last: %v", err)
	}
	calls := a.Calls.Load()
	if err := push(3, "three"); err != nil {
		t.Fatal(err)
	}
	want(t, "calls of the next process on a primary known to be dead", a.Calls.Load()-calls, int64(0))
	a.Down.Store(false)
	old := process() // still believes it to be dead
	if err := pushWAL(t, old, seg, "one, changed"); err != nil {
		t.Errorf("push of what the dead primary has: %v", err)
	}
	b.DeleteMany(t.Context(), []string{"wal_005/" + seg + ".zst"})
	want(t, "where WAL is", walked(t, process().Union(), "wal_005/"), "wal_005/000000000000000000000011.zst@default "+
		"wal_005/000000000000000000000012.zst@second wal_005/000000000000000000000013.zst@second")
	// The reader of that miss asked the primary, found it well, and so the next push goes there again: after a check for writing.
	if err := push(2, "two"); err != nil {
		t.Errorf("a push of what the second has: %v", err)
	}
	var conflict *archive.ConflictError
	if err := push(2, "other"); !errors.As(err, &conflict) {
		t.Errorf("a push of other content than the second has: %v", err)
	}
	want(t, "doubled", content(t, a, "wal_005/000000000000000000000012.zst"), "(missing)")
}

// A source that can be read only once cannot go to the second storage in the same call; the next call finds the primary dead.
func TestAFailureInUseCounts(t *testing.T) {
	for _, once := range []bool{true, false} {
		a, b := storetest.NewMortal(), storetest.NewMortal()
		u := union(t, failover.Options{}, a, b)
		if got, err := u.Target(t.Context()); got != "default" || err != nil {
			t.Fatalf("backups go to %q, %v", got, err)
		}
		a.ReadOnly.Store(true) // A full disk, a refused key: it still answers
		var r io.Reader = strings.NewReader("content")
		if once {
			r = io.MultiReader(r)
		}
		a.Down.Store(true)
		err := store.PutIfAbsent(t.Context(), u.Alive(), segment, r)
		a.Down.Store(false)
		if once != errors.Is(err, storetest.ErrDown) || !once && err != nil {
			t.Errorf("read once %v: %v", once, err)
		}
		if once {
			err = store.PutIfAbsent(t.Context(), u.Alive(), segment, strings.NewReader("content"))
		}
		if err != nil || content(t, b, segment) != "content" {
			t.Errorf("the next put: %v, the second has %s", err, content(t, b, segment))
		}
		if got, err := u.Target(t.Context()); got != "second" || err != nil {
			t.Errorf("backups go to %q, %v", got, err)
		}
		want(t, "reading goes on where writing fails", content(t, u.Alive(), failover.Probe) != "(missing)", true)
	}
}

func TestABrokenSourceIsNotTheStoragesFault(t *testing.T) {
	a, b := storetest.NewMortal(), storetest.NewMortal()
	u := union(t, failover.Options{NoCheck: true}, a, b)
	broken := errors.New("the disk with the WAL broke")
	for _, r := range []io.Reader{io.MultiReader(strings.NewReader("abc"), errReader{broken}), writerTo{errReader{broken}}, seeker{errReader{broken}}} {
		if err := u.Alive().Put(t.Context(), segment, r); !errors.Is(err, broken) {
			t.Errorf("put: %v", err)
		}
	}
	if err := u.Alive().Put(t.Context(), segment, struct {
		writerTo
		io.Seeker
	}{writerTo{strings.NewReader("whole")}, strings.NewReader("")}); err != nil {
		t.Fatal(err)
	}
	want(t, "where the next one went", content(t, a, segment), "whole")
	want(t, "writes to the second", b.Writes.Load(), int64(0))
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }

type writerTo struct{ io.Reader }

func (w writerTo) WriteTo(dst io.Writer) (int64, error) { return io.Copy(dst, w.Reader) }

type seeker struct{ io.Reader }

func (seeker) Seek(int64, int) (int64, error) { return 0, nil }

// backup makes a backup of two parts the way backup.Run does.
func takeBackup(ctx context.Context, a *archive.Archive, name string) error {
	d, err := a.Begin(ctx, name, "host")
	if err != nil {
		return err
	}
	for range 2 {
		if err := d.PutPart(ctx, d.NextPart(), strings.NewReader(strings.Repeat(name, 500)), noMembers); err != nil {
			return errors.Join(err, d.Abort(ctx))
		}
		if err := d.Beat(ctx); err != nil {
			return errors.Join(err, d.Abort(ctx))
		}
	}
	if err := d.Commit(ctx, &archive.Sentinel{}); err != nil {
		return errors.Join(err, d.Abort(ctx))
	}
	return nil
}

// checkBackup reads all of a backup.
func checkBackup(ctx context.Context, a *archive.Archive, name string) error {
	if _, err := a.Sentinel(ctx, name); err != nil {
		return err
	}
	parts, err := a.Parts(ctx, name)
	if err == nil && len(parts) != 2 {
		err = fmt.Errorf("%d parts, want 2", len(parts))
	}
	for _, p := range parts {
		r, openErr := a.OpenPart(ctx, name, p)
		if openErr != nil {
			return openErr
		}
		b, readErr := io.ReadAll(r)
		r.Close()
		if readErr != nil {
			return readErr
		}
		if string(b) != strings.Repeat(name, 500) {
			return fmt.Errorf("%s reads differently", p.Name)
		}
	}
	return err
}

func TestABackupLiesInOneStorage(t *testing.T) {
	a, b := storetest.NewMortal(), storetest.NewMortal()
	name, dead := "base_"+seg, "of a dead push"
	// A push to the primary died half way.
	put(t, a, folder+"tar_partitions/part_001.tar.zst", dead)
	put(t, a, folder+"tar_partitions/part_007.tar.zst", dead)
	a.ReadOnly.Store(true)
	u := union(t, failover.Options{}, a, b)
	if err := takeBackup(t.Context(), archive.New(u.Alive(), archive.Options{}), name); err == nil {
		t.Fatal("what a push left less than a day ago was taken for dead")
	}
	if err := store.DeleteMany(t.Context(), a.Memory, []string{folder + "tar_partitions/part_007.tar.zst"}); err != nil {
		t.Fatal(err)
	}
	a.Down.Store(true)
	u = union(t, failover.Options{}, a, b)
	if err := takeBackup(t.Context(), archive.New(u.Alive(), archive.Options{}), name); err != nil {
		t.Fatal(err)
	}
	a.Down.Store(false)
	for _, s := range []store.Store{u.Union(), u.Alive(), union(t, failover.Options{}, a, b).Union()} {
		if err := checkBackup(t.Context(), archive.New(s, archive.Options{}), name); err != nil {
			t.Error(err)
		}
	}
	for o, err := range a.Walk(t.Context(), "") {
		if err != nil || o.Name != folder+"tar_partitions/part_001.tar.zst" && o.Name != failover.Probe {
			t.Errorf("the dead primary has %s, %v", o.Name, err)
		}
	}
	// Marking it permanent changes it where it is; the same name again is refused.
	a.ReadOnly.Store(false)
	put(t, u.Union(), folder+"metadata.json", "permanent")
	want(t, "metadata", content(t, b, folder+"metadata.json"), "permanent")
	put(t, u.Union(), sentinel, "permanent")
	want(t, "sentinel", []string{content(t, a, sentinel), content(t, b, sentinel)}, []string{"(missing)", "permanent"})
	var used *archive.InUseError
	if _, err := archive.New(union(t, failover.Options{}, a, b).Alive(), archive.Options{}).Begin(t.Context(), name, "host"); !errors.As(err, &used) {
		t.Errorf("a second backup of that name: %v", err)
	}
	// While it cannot be found it is not replaced: a second sentinel would be a backup without parts.
	b.Down.Store(true)
	if err := union(t, failover.Options{}, a, b).Alive().Put(t.Context(), sentinel, strings.NewReader("x")); !errors.Is(err, storetest.ErrDown) {
		t.Errorf("replacing a sentinel that cannot be found: %v", err)
	}
	want(t, "sentinel in the primary", content(t, a, sentinel), "(missing)")
}

// A backup that another process had all but made is made where its parts are.
func TestTheSentinelOfAnothersDraftGoesWhereThatIs(t *testing.T) {
	a, b := storetest.NewMortal(), storetest.NewMortal()
	a.Down.Store(true)
	d, err := archive.New(union(t, failover.Options{}, a, b).Alive(), archive.Options{}).Begin(t.Context(), "base_"+seg, "host")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.PutPart(t.Context(), d.NextPart(), strings.NewReader("x"), noMembers); err != nil {
		t.Fatal(err)
	}
	a.Down.Store(false)
	for _, want := range []error{nil, fs.ErrExist} {
		if err := store.PutIfAbsent(t.Context(), union(t, failover.Options{}, a, b).Alive(), sentinel, strings.NewReader("{}")); !errors.Is(err, want) {
			t.Errorf("put: %v, want %v", err, want)
		}
	}
	want(t, "the sentinel", []string{content(t, a, sentinel), content(t, b, sentinel)}, []string{"(missing)", "{}"})
}

// When its storage dies a backup fails, and the next one goes elsewhere.
func TestADraftDoesNotMove(t *testing.T) {
	a, b := storetest.NewMortal(), storetest.NewMortal()
	u := union(t, failover.Options{}, a, b)
	ar := archive.New(u.Alive(), archive.Options{})
	d, err := ar.Begin(t.Context(), "base_"+seg, "host")
	if err != nil {
		t.Fatal(err)
	}
	a.Down.Store(true)
	for range 2 {
		if err := d.PutPart(t.Context(), d.NextPart(), strings.NewReader("x"), noMembers); !errors.Is(err, storetest.ErrDown) {
			t.Errorf("a part after the storage died: %v", err)
		}
	}
	want(t, "the second has", walked(t, b.Memory, ""), "")
	other := "base_000000010000000000000002"
	if err := takeBackup(t.Context(), ar, other); err != nil {
		t.Fatal(err)
	}
	if err := checkBackup(t.Context(), archive.New(union(t, failover.Options{}, b).Union(), archive.Options{}), other); err != nil {
		t.Error(err)
	}
	a.Down.Store(false)
	u.Union().Stat(t.Context(), "x") // notices
	if err := d.Abort(t.Context()); err != nil {
		t.Errorf("abort: %v", err)
	}
	want(t, "the primary has", walked(t, a.Memory, "basebackups_005/"), "")
}

// What a push removes of its draft is not another's backup of the same name, which another host could make where this one saw nothing.
func TestAbortTakesNothingFromOthers(t *testing.T) {
	a, b := storetest.NewMortal(), storetest.NewMortal()
	a.Down.Store(true)
	u := union(t, failover.Options{}, a, b)
	d, err := archive.New(u.Alive(), archive.Options{}).Begin(t.Context(), "base_"+seg, "host")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.PutPart(t.Context(), d.NextPart(), strings.NewReader("ours"), noMembers); err != nil {
		t.Fatal(err)
	}
	a.Down.Store(false)
	part := folder + "tar_partitions/part_001.tar.zst"
	put(t, a, part, "of a push that is at work")
	content(t, u.Union(), "none") // notices that it is alive
	if err := d.Abort(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(t, "parts", []string{content(t, a, part), content(t, b, part)}, []string{"of a push that is at work", "(missing)"})
	if err := a.Delete(t.Context(), part); err != nil {
		t.Fatal(err)
	}
	// The name is free again, also to go elsewhere.
	b.Down.Store(true)
	if err := takeBackup(t.Context(), archive.New(u.Alive(), archive.Options{}), "base_"+seg); err != nil {
		t.Error(err)
	}
	// And what this process wrote may be moved by another, and deleted by this one.
	b.Down.Store(false)
	for o := range a.Walk(t.Context(), "basebackups_005/") {
		put(t, b, o.Name, content(t, a.Memory, o.Name))
		if err := a.Delete(t.Context(), o.Name); err != nil {
			t.Fatal(err)
		}
	}
	if err := checkBackup(t.Context(), archive.New(u.Union(), archive.Options{}), "base_"+seg); err != nil {
		t.Error(err)
	}
	if err := u.Union().Delete(t.Context(), sentinel); err != nil || content(t, b, sentinel) != "(missing)" {
		t.Errorf("deleting the sentinel: %v, and it is %s", err, content(t, b, sentinel))
	}
	// Even if its marker could not be removed.
	x := "basebackups_005/x"
	put(t, u.Alive(), x+"/metadata.json", "{}")
	put(t, u.Alive(), x+"_backup_stop_sentinel.json", "{}")
	put(t, b, x+"_backup_stop_sentinel.json", "{}")
	if err := u.Union().Delete(t.Context(), x+"_backup_stop_sentinel.json"); err != nil || content(t, b, x+"_backup_stop_sentinel.json") != "(missing)" {
		t.Errorf("deleting a sentinel: %v, and it is %s", err, content(t, b, x+"_backup_stop_sentinel.json"))
	}
}

func TestStatusIsRememberedAndGrowsOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := storetest.NewMortal(), storetest.NewMortal()
		cache := filepath.Join(t.TempDir(), "status")
		process := func() *failover.Stores {
			return union(t, failover.Options{CacheFile: cache, CacheLifetime: 10 * time.Minute, CheckTimeout: 5 * time.Second}, a, b)
		}
		took := func(what string, limit time.Duration) {
			t.Helper()
			began := time.Now()
			if err := pushWAL(t, process(), fmt.Sprintf("%024d", time.Now().Unix()), what); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			if d := time.Since(began); d > limit {
				t.Errorf("%s took %v", what, d)
			}
		}
		a.Silent.Store(true)
		took("a push while the primary is silent, and nothing is known", 5*time.Second)
		time.Sleep(time.Second)
		took("the next push", 0)
		time.Sleep(9 * time.Minute)
		took("a push nine minutes later", 0)
		a.Silent.Store(false)
		time.Sleep(time.Minute)
		took("a push when the status is old", 0)
		last := ""
		for o := range a.Memory.Walk(t.Context(), "wal_005/") {
			last = o.Name
		}
		want(t, "the last one is in the primary", last, fmt.Sprintf("wal_005/%024d.zst", time.Now().Unix()))
		// A storage in steady use need not be checked.
		time.Sleep(time.Second)
		took("before", 0)
		checked, _ := a.Memory.Stat(t.Context(), failover.Probe)
		for range 10 {
			time.Sleep(6 * time.Minute)
			took("in steady use", 0)
		}
		if now, _ := a.Memory.Stat(t.Context(), failover.Probe); !now.Modified.Equal(checked.Modified) {
			t.Error("a storage in steady use was checked")
		}
	})
}

func TestReadersOfADeadStorageWaitNoLongerThanACheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := storetest.NewMortal(), storetest.NewMortal()
		put(t, b, segment, "b")
		u := union(t, failover.Options{CheckTimeout: 5 * time.Second}, a, b)
		a.Silent.Store(true)
		for range 3 {
			began := time.Now()
			want(t, "a hit", content(t, u.Union(), segment), "b")
			want(t, "a miss", content(t, u.Union(), "none"), "(unasked default)")
			if d := time.Since(began); d > 15*time.Second {
				t.Errorf("it took %v", d)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := u.Union().Stat(ctx, "none"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("with a deadline of the caller's own: %v", err)
		}
	})
}

func TestCheckProbesWithItsSize(t *testing.T) {
	a := storetest.NewMortal()
	if _, err := union(t, failover.Options{CheckSize: 123_457}, a).Target(t.Context()); err != nil {
		t.Fatal(err)
	}
	if o, err := a.Stat(t.Context(), failover.Probe); err != nil || o.Size != 123_457 {
		t.Errorf("probe: %+v, %v", o, err)
	}
	b := storetest.NewMortal()
	if _, err := union(t, failover.Options{NoCheck: true}, b).Target(t.Context()); err != nil || b.Calls.Load() > 0 {
		t.Errorf("without checks: %v, %d calls", err, b.Calls.Load())
	}
}

func TestACacheFileIsOnlyAHint(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"broken": "{", "empty": "", "large": strings.Repeat(" ", 300<<10),
		"from the future": `{"storages":{"default":{"write":{"alive":false,"at":"2999-01-01T00:00:00Z"}}}}`,
		"of others":       `{"storages":{"elsewhere":{"write":{"alive":false,"at":"2020-01-01T00:00:00Z"}}}}`,
	} {
		path := filepath.Join(dir, strings.ReplaceAll(name, " ", "_"))
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		a := storetest.NewMortal()
		u := union(t, failover.Options{CacheFile: path}, a, storetest.NewMortal())
		if got, err := u.Target(t.Context()); got != "default" || err != nil {
			t.Errorf("a cache file that is %s: %q, %v", name, got, err)
		}
		u = union(t, failover.Options{CacheFile: path}, a, storetest.NewMortal())
		calls := a.Calls.Load()
		if _, err := u.Target(t.Context()); err != nil || a.Calls.Load() != calls {
			t.Errorf("a cache file that was %s is not put right: %v", name, err)
		}
	}
	u := union(t, failover.Options{CacheFile: filepath.Join(dir, "no", "such", "directory")}, storetest.NewMortal())
	if got, err := u.Target(t.Context()); got != "default" || err != nil {
		t.Errorf("a cache file that cannot be written: %q, %v", got, err)
	}
}

func FuzzParseCache(f *testing.F) {
	f.Add([]byte(`{"storages":{"default":{"read":{"alive":true,"at":"2026-01-01T00:00:00Z"},"write":{"alive":false,"at":"2026-01-01T00:00:00Z","why":"x","doubt":true}}}}`))
	f.Add([]byte(`{"storages":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := failover.ParseCache(b)
		if err != nil {
			return
		}
		out, err := failover.FormatCache(all)
		if err != nil {
			t.Fatal(err)
		}
		again, err := failover.ParseCache(out)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if a, b := fmt.Sprint(all), fmt.Sprint(again); a != b {
			t.Errorf("got %s\nwant %s", b, a)
		}
	})
}

// Whichever call on whichever storage fails, and however: what a push said is stored can be read afterwards, what it stored is
// of one piece, and nobody is told that something is missing which is not.
func TestNoFailureLosesOrInvents(t *testing.T) {
	name, other := "base_"+seg, "base_000000010000000000000002"
	kinds := map[string]func(store.Store, int) *storetest.Flaky{"at": storetest.FailAt, "midway": storetest.FailMidway, "after": storetest.FailAfter}
	for kind, fail := range kinds {
		for which := range 2 {
			for n := 0; ; n++ {
				ctx := t.Context()
				memory := []store.Store{&storetest.Memory{}, &storetest.Memory{}}
				stores := slices.Clone(memory)
				flaky := fail(memory[which], n)
				stores[which] = flaky
				u := union(t, failover.Options{CheckSize: 100}, stores...)
				a := archive.New(u.Alive(), archive.Options{})
				where := fmt.Sprintf("%s %d of %d", kind, n, which)

				stored := map[string]bool{}
				for i := range 3 {
					name := fmt.Sprintf("%024d", i)
					stored[name] = pushWAL(t, u, name, name) == nil
				}
				backup := takeBackup(ctx, a, name)
				backup2 := takeBackup(ctx, a, other)
				reached := flaky.Reached()

				well := archive.New(union(t, failover.Options{}, memory...).Union(), archive.Options{})
				for name, ok := range stored {
					r, err := well.OpenWAL(ctx, name)
					if err != nil {
						if ok {
							t.Errorf("%s: %s was stored, and now: %v", where, name, err)
						}
						continue
					}
					b, err := io.ReadAll(r)
					r.Close()
					if err != nil || string(b) != name {
						t.Errorf("%s: %s reads %q, %v", where, name, b, err)
					}
				}
				for name, failed := range map[string]error{name: backup, other: backup2} {
					err := checkBackup(ctx, well, name)
					if failed == nil && err != nil || failed != nil && err != nil && !errors.Is(err, fs.ErrNotExist) {
						t.Errorf("%s: taking backup %s: %v; reading it: %v", where, name, failed, err)
					}
				}
				for o, err := range memory[0].List(ctx, "wal_005/", "") {
					if _, twice := memory[1].Stat(ctx, o.Name); err != nil || twice == nil && content(t, memory[0], o.Name) != content(t, memory[1], o.Name) {
						t.Errorf("%s: %s is in both, and differs (%v)", where, o.Name, err)
					}
				}
				if !reached {
					break
				}
			}
		}
	}
}

func TestNoFailureOfAReaderLooksLikeAMiss(t *testing.T) {
	a, b := &storetest.Memory{}, &storetest.Memory{}
	u := union(t, failover.Options{NoCheck: true}, a)
	if err := errors.Join(pushWAL(t, u, fmt.Sprintf("%024d", 1), "1"), takeBackup(t.Context(), archive.New(u.Alive(), archive.Options{}), "base_"+seg)); err != nil {
		t.Fatal(err)
	}
	u = union(t, failover.Options{NoCheck: true}, b)
	other := "base_000000010000000000000002"
	if err := errors.Join(pushWAL(t, u, fmt.Sprintf("%024d", 2), "2"), takeBackup(t.Context(), archive.New(u.Alive(), archive.Options{}), other)); err != nil {
		t.Fatal(err)
	}
	for kind, fail := range map[string]func(store.Store, int) *storetest.Flaky{"at": storetest.FailAt, "midway": storetest.FailMidway, "after": storetest.FailAfter} {
		for which, s := range []store.Store{a, b} {
			for n := 0; ; n++ {
				flaky := fail(s, n)
				stores := []store.Store{a, b}
				stores[which] = flaky
				ar := archive.New(union(t, failover.Options{}, stores...).Union(), archive.Options{})
				failed := false
				note := func(what string, err error) {
					if err != nil {
						failed = true
					}
					if errors.Is(err, fs.ErrNotExist) || err != nil && !errors.Is(err, storetest.ErrInjected) {
						t.Errorf("%s %d of %d (%q): %s: %v", kind, n, which, flaky.Calls()[n], what, err)
					}
				}
				for i := 1; i <= 2; i++ {
					r, err := ar.OpenWAL(t.Context(), fmt.Sprintf("%024d", i))
					if err == nil {
						var b []byte
						if b, err = io.ReadAll(r); err == nil && string(b) != fmt.Sprint(i) {
							t.Errorf("WAL %d reads %q", i, b)
						}
						r.Close()
					}
					note("open WAL", err)
				}
				found := 0
				for _, err := range ar.Backups(t.Context()) {
					if err != nil {
						note("list backups", err)
						found = 2
						break
					}
					found++
				}
				if found != 2 {
					t.Errorf("%s %d of %d: %d backups are listed, want 2", kind, n, which, found)
				}
				for _, name := range []string{"base_" + seg, other} {
					note("read backup", checkBackup(t.Context(), ar, name))
				}
				if !flaky.Reached() {
					if failed {
						t.Errorf("%s of %d: no call failed, and yet", kind, which)
					}
					break
				}
			}
		}
	}
}

func TestManyPushAtOnce(t *testing.T) {
	a, b := storetest.NewMortal(), storetest.NewMortal()
	u := union(t, failover.Options{CacheFile: filepath.Join(t.TempDir(), "s"), CheckSize: 10}, a, b)
	errs := make(chan error, 60)
	for i := range 60 {
		if i == 30 {
			a.Down.Store(true)
		}
		go func() {
			name := fmt.Sprintf("wal_005/%024d.lz4", i)
			errs <- store.PutIfAbsent(t.Context(), u.Alive(), name, bytes.NewReader([]byte(name)))
		}()
	}
	for range 60 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	a.Down.Store(false)
	for i := range 60 {
		name := fmt.Sprintf("wal_005/%024d.lz4", i)
		want(t, name, content(t, union(t, failover.Options{}, a, b).Union(), name), name)
	}
}

func noMembers() []tarpart.Member { return nil }
