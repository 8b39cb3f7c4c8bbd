package restore_test

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/compress"
	"holdfast/internal/restore"
	"holdfast/internal/store/storetest"
	"holdfast/internal/tarpart"
)

// What PostgreSQL is told, per kind of target. Settings of an earlier recovery do not stay in force.
func TestRecoverySettings(t *testing.T) {
	old := "# Do not edit\nwork_mem = '5MB'\nrecovery_target_name = 'old'\nRestore_Command='old'\n"
	parts := append(small(), []tarpart.Entry{file("postgresql.auto.conf", old)})
	a := backedUp(t, &storetest.Memory{}, compress.Zstd, nil, parts...)
	moment := time.Now().UTC().Add(time.Hour).Truncate(time.Microsecond)
	for what, x := range map[string]struct {
		target   catalog.Target
		recovery restore.Recovery
		signal   string
		lines    []string
		not      string
	}{
		"end": {catalog.Target{Kind: catalog.Latest}, restore.Recovery{}, "recovery.signal",
			[]string{"recovery_target_timeline = '1'", "archive_mode = 'off'"}, "recovery_target_action"},
		"time": {catalog.Target{Kind: catalog.AtTime, Time: moment}, restore.Recovery{Action: "promote", Exclusive: true}, "recovery.signal",
			[]string{"recovery_target_time = '" + moment.Format("2006-01-02 15:04:05.999999") + "+00'", "recovery_target_action = 'promote'", "recovery_target_inclusive = 'off'"}, ""},
		"lsn":       {catalog.Target{Kind: catalog.AtLSN, LSN: 0x2000200}, restore.Recovery{}, "recovery.signal", []string{"recovery_target_lsn = '0/2000200'"}, ""},
		"xid":       {catalog.Target{Kind: catalog.AtXID, XID: 747}, restore.Recovery{}, "recovery.signal", []string{"recovery_target_xid = '747'"}, ""},
		"name":      {catalog.Target{Kind: catalog.AtName, Name: `o'cl\ock`}, restore.Recovery{}, "recovery.signal", []string{`recovery_target_name = 'o''cl\\ock'`}, ""},
		"immediate": {catalog.Target{Kind: catalog.Immediate}, restore.Recovery{Archive: true}, "recovery.signal", []string{"recovery_target = 'immediate'"}, "archive_mode"},
		"standby":   {catalog.Target{Kind: catalog.Latest}, restore.Recovery{Standby: true}, "standby.signal", []string{"recovery_target_timeline = 'latest'"}, ""},
	} {
		x.recovery.Command = `/bin/holdfast wal-fetch "%f" "%p"`
		p, err := decide(t, a, func(r *restore.Request) { r.Choice, r.Recovery = choose(t, a, "", x.target), &x.recovery })
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		if _, err := restore.Run(t.Context(), a, p, restore.Options{}); err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		b, err := os.ReadFile(filepath.Join(p.Destination, "postgresql.auto.conf"))
		if err != nil {
			t.Fatal(err)
		}
		got := string(b)
		for _, line := range append(x.lines, `restore_command = '/bin/holdfast wal-fetch "%f" "%p"'`, "work_mem = '5MB'") {
			if strings.Count("\n"+got, "\n"+line+"\n") != 1 {
				t.Errorf("%s: want the line %s once in\n%s", what, line, got)
			}
		}
		for _, line := range []string{"\nrecovery_target_name = 'old'", "\nRestore_Command", "\n" + x.not} {
			if line != "\n" && strings.Contains("\n"+got, line) {
				t.Errorf("%s: want no %q in\n%s", what, line, got)
			}
		}
		if info, err := os.Stat(filepath.Join(p.Destination, x.signal)); err != nil || info.Size() != 0 {
			t.Errorf("%s: %s: %v", what, x.signal, err)
		}
	}
	for what, x := range map[string]struct {
		target   catalog.Target
		recovery restore.Recovery
	}{
		"unknown action":        {catalog.Target{Kind: catalog.Immediate}, restore.Recovery{Action: "stop"}},
		"action at the end":     {catalog.Target{Kind: catalog.Latest}, restore.Recovery{Action: "pause"}},
		"exclusive immediate":   {catalog.Target{Kind: catalog.Immediate}, restore.Recovery{Exclusive: true}},
		"standby with a target": {catalog.Target{Kind: catalog.Immediate}, restore.Recovery{Standby: true}},
		"line break":            {catalog.Target{Kind: catalog.AtName, Name: "a\nb"}, restore.Recovery{}},
		"lsn behind the end":    {catalog.Target{Kind: catalog.AtLSN, LSN: 0x3000001}, restore.Recovery{}},
	} {
		if _, err := decide(t, a, func(r *restore.Request) { r.Choice, r.Recovery = choose(t, a, "", x.target), &x.recovery }); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
}

// restore_command runs the program whatever characters its path has.
func TestCommandIsQuoted(t *testing.T) {
	dir := filepath.Join(t.TempDir(), `a b'c"$(d)`)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "hold fast")
	if err := os.WriteFile(program, []byte("#!/bin/sh\nprintf '%s|' \"$@\"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	command := restore.Command(program, "/etc/it's.yaml")
	command = strings.NewReplacer("%f", "FILE", "%p", "PATH").Replace(command)
	out, err := exec.Command("sh", "-c", command).CombinedOutput()
	if got, want := string(out), "--config|/etc/it's.yaml|wal-fetch|FILE|PATH|"; err != nil || got != want {
		t.Errorf("%s prints %q, %v, want %q", command, got, err, want)
	}
	if got, want := restore.Command("/opt/100%/holdfast", ""), `'/opt/100%%/holdfast' wal-fetch "%f" "%p"`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// Configuration from outside the data directory comes back below a directory, or in the data directory such that the
// cluster starts from there.
func TestConfiguration(t *testing.T) {
	m := &storetest.Memory{}
	a := backedUp(t, m, compress.Zstd, nil, small()...)
	conf := "data_directory = '/var/lib/postgresql/15/main'\nhba_file='/etc/postgresql/15/main/pg_hba.conf'\n" +
		"port = 5432\ninclude_dir 'conf.d'\ninclude_if_exists = '/etc/postgresql/15/main/extra.conf'\n#hba_file = 'x'\n"
	entries := []tarpart.Entry{
		{Path: "etc/postgresql/15/main/postgresql.conf", Mode: 0o644, Content: []byte(conf), Bare: true},
		{Path: "etc/postgresql/15/main/pg_hba.conf", Mode: 0o640, Content: []byte("local all all trust\n"), Bare: true},
		{Path: "etc/postgresql/15/main/conf.d/more.conf", Mode: 0o644, Content: []byte("work_mem = '6MB'\n"), Bare: true},
	}
	// As a push would: beside the backup.
	body := compress.Compress(tarpart.NewPacker(func() (tarpart.Entry, error) {
		if len(entries) == 0 {
			return tarpart.Entry{}, io.EOF
		}
		e := entries[0]
		entries = entries[1:]
		return e, nil
	}, tarpart.Options{}), compress.Zstd, compress.Options{})
	if err := m.Put(t.Context(), archive.Folder(ours)+archive.ConfigName+".zst", body); err != nil {
		t.Fatal(err)
	}
	p, err := decide(t, a, nil)
	if err != nil || !strings.Contains(strings.Join(p.Notes, "\n"), "--config-into-pgdata") {
		t.Errorf("the plan does not tell of the configuration: %q, %v", p.Notes, err)
	}
	below := filepath.Join(t.TempDir(), "config")
	p, report := must(t, a, func(r *restore.Request) { r.ConfigDir, r.ConfigIntoData = below, true })
	holds(t, filepath.Join(below, "etc/postgresql/15/main/postgresql.conf"), conf)
	if info, err := os.Stat(filepath.Join(below, "etc/postgresql/15/main/pg_hba.conf")); err != nil || info.Mode() != 0o640 {
		t.Errorf("pg_hba.conf: %v", err)
	}
	holds(t, filepath.Join(p.Destination, "conf.d/more.conf"), "work_mem = '6MB'\n")
	b, err := os.ReadFile(filepath.Join(p.Destination, "postgresql.conf"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "data_directory") || strings.HasPrefix(line, "hba_file") || strings.Contains(line, "include") && strings.Contains(line, "/etc") {
			t.Errorf("postgresql.conf in the data directory leads elsewhere: %s", line)
		}
	}
	if got := string(b); !strings.Contains(got, "\nport = 5432\n") || !strings.Contains(got, "\ninclude_dir 'conf.d'\n") || !strings.Contains(got, "'extra.conf'") {
		t.Errorf("postgresql.conf is\n%s", got)
	}
	list, err := os.ReadFile(filepath.Join(p.Destination, "backup_manifest"))
	if err != nil || strings.Count(string(list), `"postgresql.conf"`) != 1 || strings.Count(string(list), `"conf.d/more.conf"`) != 1 {
		t.Errorf("backup_manifest does not list the configuration once: %v", err)
	}
	if !strings.Contains(strings.Join(report.Notes, "\n"), "conf.d/more.conf") {
		t.Errorf("notes %q", report.Notes)
	}
	// What is there already below the directory is not replaced.
	p, err = decide(t, a, func(r *restore.Request) { r.ConfigDir = below })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := restore.Run(t.Context(), a, p, restore.Options{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("configuration over configuration: %v", err)
	}
}
