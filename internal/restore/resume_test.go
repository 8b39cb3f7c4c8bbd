package restore_test

import (
	"errors"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/catalog"
	"holdfast/internal/compress"
	"holdfast/internal/pg/control"
	"holdfast/internal/restore"
	"holdfast/internal/store/storetest"
)

// What an attempt made and could not finish, a file without its owner, mode or time, or a directory without its owner, is as it
// must be after the next one.
func TestResumeSettlesWhatIsKept(t *testing.T) {
	a := backedUp(t, &storetest.Memory{}, compress.Zstd, nil, small()...)
	want := os.Geteuid()
	var owner string
	if want == 0 {
		u, err := user.Lookup("nobody")
		if err != nil {
			t.Fatal(err)
		}
		owner = u.Username
		if want, err = strconv.Atoi(u.Uid); err != nil {
			t.Fatal(err)
		}
	}
	into := interrupt(t, a, func(r *restore.Request) { r.Owner = owner })
	for _, err := range []error{
		os.MkdirAll(filepath.Join(into, "base/5"), 0o700), os.Mkdir(filepath.Join(into, "pg_notify"), 0o700),
		os.WriteFile(filepath.Join(into, "base/5/2"), nil, 0o644), // whole: it is empty
		os.WriteFile(filepath.Join(into, "base/5/1"), []byte(strings.Repeat("a", 8192)), 0o640),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	_, report := must(t, a, func(r *restore.Request) { r.Destination, r.Resume, r.Owner = into, true, owner })
	if report.KeptFiles != 2 {
		t.Errorf("kept %d files, want 2", report.KeptFiles)
	}
	for _, name := range []string{".", "base", "base/5", "base/5/1", "base/5/2", "base/5/3", "pg_notify", control.Name} {
		info, err := os.Stat(filepath.Join(into, name))
		if err != nil {
			t.Fatal(err)
		}
		if got := int(info.Sys().(*syscall.Stat_t).Uid); got != want {
			t.Errorf("%s belongs to %d, want %d", name, got, want)
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %s", name, info.Mode())
		}
		if strings.HasPrefix(name, "base/5/") && !info.ModTime().Equal(time.Unix(1_700_000_000, 0)) {
			t.Errorf("%s is of %s", name, info.ModTime())
		}
	}
}

// What an interrupted attempt wrote to steer its recovery does not steer that of the next.
func TestResumeForgetsTheEarlierTarget(t *testing.T) {
	a := backedUp(t, &storetest.Memory{}, compress.Zstd, nil, small()...)
	into := interrupt(t, a, nil)
	for _, name := range []string{"standby.signal", "recovery.conf", "backup_manifest"} {
		if err := os.WriteFile(filepath.Join(into, name), []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	must(t, a, func(r *restore.Request) {
		r.Destination, r.Resume = into, true
		r.Choice, r.Recovery = choose(t, a, "", catalog.Target{Kind: catalog.Latest}), &restore.Recovery{Command: "false"}
	})
	for name, want := range map[string]bool{"standby.signal": false, "recovery.conf": false, "recovery.signal": true} {
		if _, err := os.Stat(filepath.Join(into, name)); want != (err == nil) || !want && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A plan is carried out only where the destination is as it was when the plan was made: whatever has been put there meanwhile,
// another restore that has ended above all, stays as it is.
func TestStalePlansAreRefused(t *testing.T) {
	a := backedUp(t, &storetest.Memory{}, compress.Zstd, nil, small()...)
	into := filepath.Join(t.TempDir(), "data")
	plan := func(resume bool) *restore.Plan {
		t.Helper()
		p, err := decide(t, a, func(r *restore.Request) { r.Destination, r.Resume = into, resume })
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	refused := func(p *restore.Plan, says string) {
		t.Helper()
		_, err := restore.Run(t.Context(), a, p, restore.Options{})
		var refusal *restore.RefusedError
		if !errors.As(err, &refusal) || !strings.Contains(err.Error(), says) {
			t.Errorf("Run: %v, want a refusal with %q", err, says)
		}
		holds(t, filepath.Join(into, control.Name), string(controlFile(t)))
		holds(t, filepath.Join(into, "base/5/1"), "in use")
		if _, err := os.Stat(filepath.Join(into, "holdfast_restore.json")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("there is a marker: %v", err)
		}
	}
	complete := func(p *restore.Plan) {
		t.Helper()
		if _, err := restore.Run(t.Context(), a, p, restore.Options{}); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(into, "base/5/1"), []byte("in use"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	stale := plan(false)
	complete(plan(false))
	refused(stale, "not empty any more")

	into = interrupt(t, a, nil)
	stale = plan(true)
	complete(plan(true))
	refused(stale, "has just ended")

	into = interrupt(t, a, nil)
	if err := os.WriteFile(filepath.Join(into, "postmaster.pid"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := decide(t, a, func(r *restore.Request) { r.Destination, r.Resume = into, true }); err == nil || !strings.Contains(err.Error(), "postmaster.pid") {
		t.Errorf("resume below a server: %v", err)
	}
}
