package main_test

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"holdfast/internal/agent"
	"holdfast/internal/archive"
	"holdfast/test/pgtest"
	"holdfast/test/site"
)

// startAgent starts one. Its log is a file, which what it has started can write to when it is gone.
func startAgent(t *testing.T, s *site.Site) *exec.Cmd {
	t.Helper()
	log, err := os.CreateTemp(t.TempDir(), "log")
	if err != nil {
		t.Fatal(err)
	}
	cmd := s.Command(t, "agent")
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		_ = cmd.Wait()
		if said, err := os.ReadFile(log.Name()); t.Failed() {
			t.Logf("the agent said\n%s%v", said, err)
		}
		_ = log.Close() // it was only written
	})
	return cmd
}

// backupOf asks the agent how its job `backup` is, until what it says is as wanted.
func backupOf(t *testing.T, s *site.Site, what string, want func(j agent.JobStatus) bool) (found agent.JobStatus) {
	t.Helper()
	pgtest.Eventually(t, what, func() bool {
		var st agent.Status
		if r := s.Do(t, "agent", "status", "--json"); r.Status != 0 || json.Unmarshal([]byte(r.Stdout), &st) != nil {
			return false
		}
		for _, j := range st.Jobs {
			if j.Name == "backup" {
				found = j
				return want(j)
			}
		}
		return false
	})
	return found
}

// An agent that is told to end in the middle of a backup leaves nothing of it, and no process. One that is killed leaves the backup going on; the next one finds it made, and makes no other.
func TestAgentEndsInTheMiddleOfABackup(t *testing.T) {
	s := site.New(t, pgtest.Require(t, 17), pgtest.Options{})
	s.Exec(t, "create table t as select i, repeat('x', 500) p from generate_series(1, 60000) i")
	s.Env = append(s.Env, "PGDATA="+s.Data, "HOLDFAST_STATE_DIR="+pgtest.Dir(t), "HOLDFAST_AGENT_LISTEN=off", "HOLDFAST_SCHEDULE_CHECK=off",
		"HOLDFAST_SCHEDULE_BACKUP=@monthly", "HOLDFAST_SCHEDULE_CATCH_UP=744h", "WALG_DISK_RATE_LIMIT=200000")
	copies := func(j agent.JobStatus) bool { return j.Running != nil && j.Running.Done > 0 }

	cmd := startAgent(t, s)
	j := backupOf(t, s, "a backup that copies", copies)
	if r := j.Running; r.Total < 10<<20 || r.PID == 0 {
		t.Errorf("it runs as %+v", r)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("told to end: %v", err)
	}
	if err := syscall.Kill(j.Running.PID, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("the backup's process is there still: %v", err)
	}
	for _, name := range s.Objects(t) {
		if strings.HasPrefix(name, archive.BackupDir) || strings.HasPrefix(name, archive.ScheduleDir) {
			t.Errorf("the archive still holds %s", name)
		}
	}

	s.Env = append(s.Env, "WALG_DISK_RATE_LIMIT=8000000")
	cmd = startAgent(t, s)
	j = backupOf(t, s, "another backup that copies", copies)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	startAgent(t, s)
	done := backupOf(t, s, "the backup made", func(j agent.JobStatus) bool { return j.Last != nil && j.Last.Outcome == agent.Elsewhere })
	names := s.Backups(t)
	if len(names) != 1 {
		t.Fatalf("there are %q", names)
	}
	var sentinel archive.Sentinel
	text := s.OK(t, "st", "cat", archive.BackupDir+names[0]+"_backup_stop_sentinel.json").Stdout
	if err := json.Unmarshal([]byte(text), &sentinel); err != nil || sentinel.Slot != (archive.Slot{Job: "backup", At: done.Last.Slot}).String() || !done.Last.Slot.Equal(j.Running.Slot) {
		t.Errorf("the backup is for %q, the slot was %s: %v", sentinel.Slot, j.Running.Slot, err)
	}
	if r := s.OK(t, "agent", "status"); !strings.Contains(r.Stdout, "elsewhere") {
		t.Errorf("status says\n%s", r.Stdout)
	}
}
