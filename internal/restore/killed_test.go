package restore_test

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/compress"
	"holdfast/internal/pg/control"
	"holdfast/internal/restore"
	"holdfast/internal/store"
	filestore "holdfast/internal/store/file"
)

// deadly is a store whose n-th opening of an object kills the process.
type deadly struct {
	store.Store
	n atomic.Int64 // openings that are left
}

func (d *deadly) turn() {
	if d.n.Add(-1) < 0 {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}

func (d *deadly) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	d.turn()
	return d.Store.Open(ctx, name)
}

func (d *deadly) OpenRange(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	d.turn()
	return d.Store.OpenRange(ctx, name, offset, length)
}

// TestMain restores and is killed where a test has started it for that.
func TestMain(m *testing.M) {
	place, doomed := os.LookupEnv("HOLDFAST_TEST_KILLED")
	if !doomed {
		os.Exit(m.Run())
	}
	root, dir, _ := strings.Cut(place, "\n")
	dir, n, _ := strings.Cut(dir, "\n")
	d := &deadly{}
	d.n.Store(must2(strconv.ParseInt(n, 10, 64)))
	var err error
	if d.Store, err = filestore.Open(root); err == nil {
		_, _, err = fetch(d, dir, "LATEST", delta)
	}
	if err != nil {
		panic(err)
	}
}

// Killed at any moment, a restore of differences leaves the directory as it was, or one that does not start and that the same command completes.
func TestDifferencesSurviveKills(t *testing.T) {
	root := t.TempDir()
	s, err := filestore.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	g := &maker{store: s, method: compress.Zstd, perPart: 2}
	want := chained(g)
	marked := 0
	for n := 0; ; n++ {
		dir := newest(t, g)
		worn(t, dir)
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), "HOLDFAST_TEST_KILLED="+root+"\n"+dir+"\n"+strconv.Itoa(n), "GOMAXPROCS=1")
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if err == nil {
			asNew(t, dir, want)
			break
		}
		if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("call %d: %v: %s", n, err, out)
		}
		switch starts := exists(filepath.Join(dir, control.Name)); {
		case starts && !exists(filepath.Join(dir, "base/5/3")):
			t.Errorf("killed at call %d it starts, and was changed", n)
		case !starts && !exists(filepath.Join(dir, "holdfast_restore.json")):
			t.Errorf("killed at call %d it has neither pg_control nor a marker", n)
		case !starts:
			marked++
			a := archive.New(g.store, archive.Options{})
			if _, err := restore.Decide(t.Context(), a, restore.Request{Destination: dir, Choice: choose(t, a, "LATEST", none)}); err == nil {
				t.Errorf("killed at call %d: another restore into it is planned", n)
			}
		}
		if _, _, err := fetch(g.store, dir, "LATEST", delta); err != nil {
			t.Errorf("killed at call %d, then: %v", n, err)
		}
		asNew(t, dir, want)
	}
	if marked < 3 {
		t.Errorf("the directory was half done %d times only", marked)
	}
}
