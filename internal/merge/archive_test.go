package merge_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/merge"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
)

// A chain that retention has condemned is not merged, nor is a merge that is going taken for one that was made. What is condemned, removed or replaced
// between the plan and the act is noticed, and nothing is left.
func TestCondemnedIsNotMerged(t *testing.T) {
	s := &storetest.Memory{}
	c := grow(1, s)
	a, delta, parent := c.archive(), c.last(), c.names[len(c.names)-2]
	full := "base_" + delta[5:29]
	condemn := func(name string) (record string) {
		return must(a.AddRecord(t.Context(), archive.TombstoneDir, "", archive.Tombstone{PurgeAfter: time.Now().Add(time.Hour), Backups: []string{name}}))
	}
	undelete := func(record string) {
		if err := a.RemoveRecord(t.Context(), record); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(what, name string) {
		t.Helper()
		_, _, err := merged(s, c.options, delta, merge.Options{})
		var r *merge.RefusedError
		if !errors.As(err, &r) || !strings.Contains(err.Error(), name+" is condemned") || !strings.Contains(r.Hint(), "undelete "+name) {
			t.Errorf("%s: %v", what, err)
		}
	}
	record := condemn(parent)
	refused("the parent is condemned", parent)
	undelete(record)

	plan := func() *merge.Plan {
		return must(merge.Decide(t.Context(), a, must(catalog.Load(t.Context(), a)), delta))
	}
	sentinel := archive.BackupDir + parent + "_backup_stop_sentinel.json"
	was := must(store.ReadFile(t.Context(), s, sentinel, 1<<20))
	for what, change := range map[string]func() (undo func()){
		"condemned": func() func() { record := condemn(parent); return func() { undelete(record) } },
		"removed": func() func() {
			if err := s.Delete(t.Context(), sentinel); err != nil {
				t.Fatal(err)
			}
			return func() {}
		},
		"replaced": func() func() {
			if err := s.Put(t.Context(), sentinel, bytes.NewReader(append(slices.Clone(was), ' '))); err != nil {
				t.Fatal(err)
			}
			return func() {}
		},
	} {
		p := plan()
		undo := change()
		before := objects(s)
		if _, err := merge.Run(t.Context(), a, p, merge.Options{Host: "here"}); err == nil || !strings.Contains(err.Error(), parent) {
			t.Errorf("%s meanwhile: %v", what, err)
		}
		if got := objects(s); !slices.Equal(got, before) {
			t.Errorf("%s meanwhile: %q are there, were %q", what, got, before)
		}
		undo()
		if err := s.Put(t.Context(), sentinel, bytes.NewReader(was)); err != nil {
			t.Fatal(err)
		}
	}

	if _, _, err := merged(s, c.options, delta, merge.Options{}); err != nil {
		t.Fatal(err)
	}
	condemn(full)
	refused("what was merged is condemned", full)
}

// dying is a store of which nothing is heard any more once so many calls were made.
type dying struct {
	*storetest.Memory
	left atomic.Int64
}

var errDead = errors.New("dead")

func (d *dying) turn() error {
	if d.left.Add(-1) < 0 {
		return errDead
	}
	return nil
}

func (d *dying) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	return d.OpenRange(ctx, name, 0, -1)
}

func (d *dying) OpenRange(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	if err := d.turn(); err != nil {
		return nil, err
	}
	return d.Memory.OpenRange(ctx, name, offset, length)
}

func (d *dying) Put(ctx context.Context, name string, r io.Reader) error {
	return after(d.turn(), func() error { return d.Memory.Put(ctx, name, r) })
}

func (d *dying) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	return after(d.turn(), func() error { return d.Memory.PutIfAbsent(ctx, name, r) })
}

func (d *dying) Copy(ctx context.Context, from, to string) error {
	return after(d.turn(), func() error { return d.Memory.Copy(ctx, from, to) })
}

func (d *dying) Delete(ctx context.Context, name string) error {
	return d.DeleteMany(ctx, []string{name})
}

func (d *dying) DeleteMany(ctx context.Context, names []string) error {
	return after(d.turn(), func() error { return d.Memory.DeleteMany(ctx, names) })
}

func (d *dying) Stat(ctx context.Context, name string) (store.Object, error) {
	if err := d.turn(); err != nil {
		return store.Object{}, err
	}
	return d.Memory.Stat(ctx, name)
}

func (d *dying) List(ctx context.Context, dir, after string) iter.Seq2[store.Object, error] {
	return d.list(d.Memory.List(ctx, dir, after))
}

func (d *dying) Walk(ctx context.Context, dir string) iter.Seq2[store.Object, error] {
	return d.list(d.Memory.Walk(ctx, dir))
}

func (d *dying) list(all iter.Seq2[store.Object, error]) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		if err := d.turn(); err != nil {
			yield(store.Object{}, err)
			return
		}
		all(yield)
	}
}

func after(err error, then func() error) error {
	if err != nil {
		return err
	}
	return then()
}

// A merge that dies at whichever call leaves the chain as it was. The next one makes the full backup, or finds it made, and of the first nothing is left.
func TestDeadAnywhere(t *testing.T) {
	ended := exec.Command("true") // a process that is gone: our own is not
	if err := ended.Run(); err != nil {
		t.Fatal(err)
	}
	for _, seed := range []uint64{5} {
		s := &storetest.Memory{}
		c := grow(seed, s)
		before, want := objects(s), restored(t, s, c.options, c.last())
		full := "base_" + c.last()[5:29]
		marker := archive.Folder(full) + "push.json"
		left := 0
		for n := int64(0); ; n++ {
			d := &dying{Memory: s}
			d.left.Store(n)
			_, _, err := merged(d, c.options, c.last(), merge.Options{Workers: 2})
			if d.left.Load() >= 0 {
				if err != nil {
					t.Fatal(err)
				}
				break
			}
			if b, err := store.ReadFile(t.Context(), s, marker, 1<<20); err == nil {
				left++
				pid := func(n int) []byte { return fmt.Appendf(nil, `"pid":%d,`, n) }
				dead := bytes.Replace(b, pid(os.Getpid()), pid(ended.Process.Pid), 1)
				if bytes.Equal(b, dead) {
					t.Fatalf("%s has no pid", b)
				}
				if err := s.Put(t.Context(), marker, bytes.NewReader(dead)); err != nil {
					t.Fatal(err)
				}
			}
			if _, _, err := merged(s, c.options, c.last(), merge.Options{Workers: 2}); err != nil {
				t.Fatalf("it died at call %d: %v", n, err)
			}
			same(t, fmt.Sprintf("it died at call %d", n), restored(t, s, c.options, full), want)
			if err := s.Delete(t.Context(), marker); err != nil { // beside a sentinel it means nothing
				t.Fatal(err)
			}
			remove(s, full)
			if got := objects(s); !slices.Equal(got, before) {
				t.Fatalf("it died at call %d: left is %q", n, slices.DeleteFunc(got, func(o string) bool { return slices.Contains(before, o) }))
			}
		}
		if left < 20 {
			t.Errorf("%d merges left something to the next", left)
		}
	}
}
