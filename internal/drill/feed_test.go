package drill_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/drill"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store/file"
)

// Segments are wanted in the order in which PostgreSQL asks for them.
func TestWanted(t *testing.T) {
	const size = wal.SegmentSize(16 << 20)
	name := func(timeline wal.Timeline, no ...wal.SegmentNo) (all []string) {
		for _, n := range no {
			all = append(all, size.Name(timeline, n))
		}
		return all
	}
	straight := catalog.Path{{Timeline: 1}}
	for what, x := range map[string]struct {
		first, last string
		path        catalog.Path
		until       wal.LSN
		label       string
		want        []string
	}{
		"all":                      {size.Name(1, 3), size.Name(1, 5), straight, 0, "CHECKPOINT LOCATION: 0/3000060\n", name(1, 3, 4, 5, 5)},
		"up to a position":         {size.Name(1, 3), size.Name(1, 9), straight, 0x4000100, "CHECKPOINT LOCATION: 0/3000060\n", name(1, 3, 4, 4)},
		"a long checkpoint":        {size.Name(1, 3), size.Name(1, 6), straight, 0, "CHECKPOINT LOCATION: 0/5000060\n", name(1, 5, 3, 4, 5, 6, 6)},
		"no checkpoint":            {size.Name(1, 3), size.Name(1, 4), straight, 0, "", name(1, 3, 4, 4)},
		"a checkpoint out of it":   {size.Name(1, 3), size.Name(1, 4), straight, 0, "CHECKPOINT LOCATION: 0/9000060\n", name(1, 3, 4, 4)},
		"a checkpoint of nonsense": {size.Name(1, 3), size.Name(1, 4), straight, 0, "CHECKPOINT LOCATION: here\n", name(1, 3, 4, 4)},
		"along two timelines": {size.Name(1, 3), size.Name(2, 6), catalog.Path{{Timeline: 1, End: 0x5000100}, {Timeline: 2, Begin: 0x5000100}}, 0, "",
			append(name(1, 3, 4), name(2, 5, 6, 6)...)},
		"offline": {"", "", straight, 0, "", nil},
	} {
		c := catalog.Choice{Path: x.path}
		if x.until != 0 {
			c.Target = catalog.Target{Kind: catalog.AtLSN, LSN: x.until}
		}
		if got := drill.Wanted(x.first, x.last, c, size, x.label); !slices.Equal(got, x.want) {
			t.Errorf("%s: %s, want %s", what, got, x.want)
		}
	}
}

// copied is a data directory that is fed.
type copied struct {
	command string
	data    string
	scratch string
	brought string // what wal-fetch was called with
	wait    func() // until nothing more is laid ready
	end     func()
}

// fed lays names ready, from an archive that has segments 1 and 2.
func fed(t *testing.T, names ...string) *copied {
	t.Helper()
	return fedBy(t, segments(nil, 0), "0/0", names...)
}

// fedBy lays names ready, from an archive that has these as segments 1 and 2, for a copy that replays from a position on.
func fedBy(t *testing.T, content [2][]byte, from string, names ...string) *copied {
	t.Helper()
	root := filepath.Join(t.TempDir(), "an archive")
	if err := os.Mkdir(root, 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := file.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	a := archive.New(s, archive.Options{})
	for i, content := range content {
		open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil }
		if _, err := a.PutWAL(t.Context(), wal.SegmentSize(segmentSize).Name(1, wal.SegmentNo(i+1)), open); err != nil {
			t.Fatal(err)
		}
	}
	c := &copied{scratch: filepath.Join(t.TempDir(), "it's 100%p")}
	c.data, c.brought = filepath.Join(c.scratch, "data"), filepath.Join(c.scratch, "brought")
	program := filepath.Join(c.scratch, "a program")
	for _, err := range []error{os.MkdirAll(filepath.Join(c.data, "pg_wal"), 0o700), os.WriteFile(program, []byte("#!/bin/sh\necho \"$1 $2\" >>../brought\nexit 7\n"), 0o700)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	command, wait, end, err := drill.Feed(t.Context(), a, c.scratch, program, catalog.Choice{Backup: backupFrom(t, from), Path: catalog.Path{{Timeline: 1}}}, segmentSize, names)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(end)
	c.command, c.wait, c.end = command, wait, end
	return c
}

const recoveryFile = "pg_wal/RECOVERYXLOG"

// backupFrom is a backup from whose end on there is replay.
func backupFrom(t *testing.T, from string) *catalog.Backup {
	t.Helper()
	at, err := wal.ParseLSN(from)
	if err != nil {
		t.Fatal(err)
	}
	return &catalog.Backup{Sentinel: &archive.Sentinel{LSN: &at}}
}

// ask runs the restore_command as PostgreSQL does.
func (c *copied) ask(t *testing.T, name string) (content []byte, status int) {
	t.Helper()
	_ = os.Remove(filepath.Join(c.data, recoveryFile))
	cmd := exec.Command("/bin/sh", "-c", strings.NewReplacer("%%", "%", "%f", name, "%p", recoveryFile).Replace(c.command))
	cmd.Dir = c.data
	out, err := cmd.CombinedOutput()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if len(out) > 0 {
		t.Errorf("%s: %s", name, out)
	}
	content, err = os.ReadFile(filepath.Join(c.data, recoveryFile))
	if cmd.ProcessState.ExitCode() == 0 && err != nil {
		t.Error(err)
	}
	return content, cmd.ProcessState.ExitCode()
}

// await waits until something is ready, or is not any more.
func (c *copied) await(t *testing.T, name string, ready bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		if _, err := os.Lstat(filepath.Join(c.scratch, "wal", name)); (err == nil) == ready {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: ready is not %t", name, ready)
		}
	}
}

// What PostgreSQL asks for lies ready, also for a second time; of what the archive lacks it hears at once; and the rest wal-fetch brings.
func TestFeed(t *testing.T) {
	one, two := wal.SegmentSize(segmentSize).Name(1, 1), wal.SegmentSize(segmentSize).Name(1, 2)
	content := segments(nil, 0)
	c := fed(t, two, one, two, two)
	for _, x := range []struct {
		name string
		want []byte
	}{{two, content[1]}, {one, content[0]}, {two, content[1]}, {two, content[1]}} {
		c.await(t, x.name, true)
		if got, status := c.ask(t, x.name); status != 0 || !bytes.Equal(got, x.want) {
			t.Fatalf("%s: exit status %d, %d bytes", x.name, status, len(got))
		}
	}
	for _, name := range []string{"00000001.history", "00000002.history"} {
		c.await(t, "absent-"+name, true)
		if _, status := c.ask(t, name); status != 1 {
			t.Errorf("%s: exit status %d", name, status)
		}
	}
	if b, err := os.ReadFile(c.brought); err == nil {
		t.Errorf("wal-fetch was called: %s", b)
	}
	if _, status := c.ask(t, "00000009.history"); status != 7 {
		t.Errorf("exit status %d, not that of wal-fetch", status)
	}
	if b, err := os.ReadFile(c.brought); err != nil || string(b) != "wal-fetch 00000009.history\n" {
		t.Errorf("wal-fetch was called with %q, %v", b, err)
	}
}

// Once PostgreSQL had wal-fetch bring a segment nothing is laid ready any more: wal-fetch fetches ahead then.
func TestFeedGivesUp(t *testing.T) {
	one, two := wal.SegmentSize(segmentSize).Name(1, 1), wal.SegmentSize(segmentSize).Name(1, 2)
	c := fed(t, one, two, one, two)
	c.await(t, one, true)
	c.await(t, two, true)
	if _, status := c.ask(t, two); status != 0 { // in another order than was expected
		t.Fatalf("exit status %d", status)
	}
	if _, status := c.ask(t, two); status != 7 {
		t.Fatalf("exit status %d, not that of wal-fetch", status)
	}
	if _, status := c.ask(t, one); status != 0 {
		t.Fatalf("exit status %d", status)
	}
	c.await(t, one, true) // the second time it was wanted
	if _, status := c.ask(t, one); status != 0 {
		t.Fatalf("exit status %d", status)
	}
	if _, status := c.ask(t, two); status != 7 {
		t.Errorf("exit status %d, not that of wal-fetch", status)
	}
}

// What a copy must not replay never lies ready: wal-fetch refuses it then, with what was kept of the segment before.
func TestFeedIsGuarded(t *testing.T) {
	one, two := wal.SegmentSize(segmentSize).Name(1, 1), wal.SegmentSize(segmentSize).Name(1, 2)
	for _, x := range creations {
		t.Run(x.name, func(t *testing.T) {
			content := segments(creation(x.path), x.at)
			c := fedBy(t, content, x.from, one, two)
			for i, name := range []string{one, two} {
				if x.refused == i+1 {
					c.wait()
					if _, status := c.ask(t, name); status != 7 {
						t.Errorf("%s: exit status %d, not that of wal-fetch", name, status)
					}
					dest := filepath.Join(c.scratch, "RECOVERYXLOG")
					if err := os.WriteFile(dest, content[i], 0o600); err != nil {
						t.Fatal(err)
					}
					var space *drill.TablespaceError
					if err := drill.Guard([]string{"DRILL_OF_HOLDFAST=" + c.scratch, "DRILL_OF_HOLDFAST_FROM=" + x.from}, name, dest); !errors.As(err, &space) || space.Path != x.path {
						t.Errorf("%s: %v", name, err)
					}
					return
				}
				c.await(t, name, true)
				if got, status := c.ask(t, name); status != 0 || !bytes.Equal(got, content[i]) {
					t.Fatalf("%s: exit status %d, %d bytes", name, status, len(got))
				}
			}
		})
	}
}

// Where it cannot be noted that PostgreSQL asked, wal-fetch is called all the same.
func TestFeedWithoutRoom(t *testing.T) {
	c := fed(t, wal.SegmentSize(segmentSize).Name(1, 1))
	c.end()
	if _, status := c.ask(t, wal.SegmentSize(segmentSize).Name(1, 2)); status != 7 { // the directory has gone, too
		t.Errorf("exit status %d, not that of wal-fetch", status)
	}
}

// What the archive lacks never lies ready.
func TestFeedLeavesTheRestToWalFetch(t *testing.T) {
	one, three := wal.SegmentSize(segmentSize).Name(1, 1), wal.SegmentSize(segmentSize).Name(1, 3)
	c := fed(t, one, three)
	c.await(t, one, true)
	if _, status := c.ask(t, three); status != 7 {
		t.Errorf("exit status %d, not that of wal-fetch", status)
	}
}
