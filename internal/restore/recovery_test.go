package restore_test

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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

// A standby follows its primary to the timelines to come, but no timeline that a stray clone pushed, and not where another one was asked for.
func TestStandbyTimeline(t *testing.T) {
	a := backedUp(t, &storetest.Memory{}, compress.Zstd, nil, small()...)
	for what, x := range map[string]struct {
		target  catalog.Target
		current *catalog.Current
		want    string
		note    string
	}{
		"the cluster's":          {catalog.Target{}, &catalog.Current{Timeline: 1}, "latest", ""},
		"beside an older line":   {catalog.Target{}, &catalog.Current{Timeline: 1, Others: []catalog.Line{{Timeline: 1}}}, "latest", ""},
		"beside a stray clone":   {catalog.Target{}, &catalog.Current{Timeline: 1, Others: []catalog.Line{{Timeline: 2}, {Timeline: 7}}}, "1", "holdfast timeline forget 7"},
		"asked for":              {catalog.Target{Timeline: 1}, nil, "1", ""},
		"asked for by its place": {catalog.Target{Highest: true}, nil, "latest", ""},
	} {
		x.target.Kind = catalog.Latest
		p, err := decide(t, a, func(r *restore.Request) {
			r.Choice, r.Recovery = choose(t, a, "", x.target), &restore.Recovery{Standby: true, Command: "true"}
			r.Choice.Current = x.current
		})
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		notes := strings.Join(p.Notes, "; ")
		if !slices.Contains(p.Settings, "recovery_target_timeline = '"+x.want+"'") || !strings.Contains(notes, x.note) || x.note == "" && strings.Contains(notes, "stays on timeline") {
			t.Errorf("%s: %q, notes %s; want %s", what, p.Settings, notes, x.want)
		}
	}
}

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
			[]string{"recovery_target_timeline = '1'", "archive_mode = 'off'", "archive_cleanup_command = ''", "recovery_end_command = ''", "recovery_min_apply_delay = '0'"},
			"recovery_target_action"},
		"time": {catalog.Target{Kind: catalog.AtTime, Time: moment}, restore.Recovery{Action: "promote", Exclusive: true}, "recovery.signal",
			[]string{"recovery_target_time = '" + moment.Format("2006-01-02 15:04:05.999999") + "+00'", "recovery_target_action = 'promote'", "recovery_target_inclusive = 'off'"}, ""},
		"lsn":       {catalog.Target{Kind: catalog.AtLSN, LSN: 0x2000200}, restore.Recovery{}, "recovery.signal", []string{"recovery_target_lsn = '0/2000200'"}, ""},
		"xid":       {catalog.Target{Kind: catalog.AtXID, XID: 747}, restore.Recovery{}, "recovery.signal", []string{"recovery_target_xid = '747'"}, ""},
		"name":      {catalog.Target{Kind: catalog.AtName, Name: `o'cl\ock`}, restore.Recovery{}, "recovery.signal", []string{`recovery_target_name = 'o''cl\\ock'`}, ""},
		"immediate": {catalog.Target{Kind: catalog.Immediate}, restore.Recovery{Archive: true}, "recovery.signal", []string{"recovery_target = 'immediate'"}, "archive_"},
		"standby":   {catalog.Target{Kind: catalog.Latest}, restore.Recovery{Standby: true}, "standby.signal", []string{"recovery_target_timeline = 'latest'"}, "recovery_min_apply_delay"},
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
		for _, none := range []string{"recovery_target", "recovery_target_lsn", "recovery_target_name", "recovery_target_time", "recovery_target_xid"} {
			is, mine := strings.Index("\n"+got, "\n"+none+" = ''\n"), slices.ContainsFunc(x.lines, func(l string) bool { return strings.HasPrefix(l, none+" = ") })
			if (is < 0) != mine || len(x.lines) == 1 && is > strings.Index("\n"+got, "\n"+x.lines[0]) {
				t.Errorf("%s: a target that postgresql.conf may have as %s is to be emptied before the one that is meant:\n%s", what, none, got)
			}
		}
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
		"exclusive name":        {catalog.Target{Kind: catalog.AtName, Name: "here"}, restore.Recovery{Exclusive: true}},
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
	configured(t, m, entries...)
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
	if _, err = decide(t, a, func(r *restore.Request) { r.ConfigDir = below }); err == nil || !strings.Contains(err.Error(), "is there already") {
		t.Errorf("configuration over configuration: %v", err)
	}
	// Unless it is of the attempt that is being continued.
	interrupted := interrupt(t, a, nil)
	hba := filepath.Join(below, "etc/postgresql/15/main/pg_hba.conf")
	again := func(r *restore.Request) { r.Destination, r.Resume, r.ConfigDir = interrupted, true, below }
	for content, whole := range map[string]bool{"": true, "local all": true, "local all all trust\n": true, "host all all all md5\n": false} {
		if err := os.WriteFile(hba, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		p, err := decide(t, a, again)
		if err != nil {
			t.Fatal(err)
		}
		if _, err = restore.Run(t.Context(), a, p, restore.Options{}); whole {
			holds(t, hba, "local all all trust\n")
			interrupted = interrupt(t, a, nil)
		}
		if whole != (err == nil) || !whole && !errors.Is(err, fs.ErrExist) {
			t.Errorf("resumed over %q: %v", content, err)
		}
	}
}

// PostgreSQL does not start without a directory that include_dir names. Debian's conf.d is empty, and so is in no backup.
func TestConfigurationIncludesAnEmptyDirectory(t *testing.T) {
	m := &storetest.Memory{}
	a := backedUp(t, m, compress.Zstd, nil, small()...)
	configured(t, m, tarpart.Entry{Path: "etc/postgresql/15/main/postgresql.conf", Mode: 0o644, Bare: true,
		Content: []byte("include_dir = 'conf.d'\n#include_dir 'none.d'\ninclude_dir '../../../../up'\n")})
	p, _ := must(t, a, func(r *restore.Request) { r.ConfigIntoData = true })
	if info, err := os.Stat(filepath.Join(p.Destination, "conf.d")); err != nil || !info.IsDir() {
		t.Errorf("conf.d: %v", err)
	}
	if _, err := os.Stat(filepath.Join(p.Destination, "none.d")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("none.d: %v, want none: the line is a comment", err)
	}
}

// configured stores configuration beside the backup, as a push would: the main file first.
func configured(t *testing.T, m *storetest.Memory, entries ...tarpart.Entry) {
	t.Helper()
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
}

// Files that lay elsewhere than the main one, or under names of their own, are found by the restored cluster too.
func TestScatteredConfiguration(t *testing.T) {
	m := &storetest.Memory{}
	a := backedUp(t, m, compress.Zstd, nil, small()...)
	conf := func(path, content string) tarpart.Entry {
		return tarpart.Entry{Path: path, Mode: 0o644, Content: []byte(content), Bare: true}
	}
	configured(t, m,
		conf("etc/pg/custom.conf", "hba_file = '/etc/access/hba.conf'\nident_file = '/etc/pg/pg_ident.conf'\ninclude '/etc/shared/a.conf'\n"+
			"include_dir = '/etc/shared/conf.d'\ninclude_if_exists '/etc/absent.conf'\n"),
		conf("etc/access/hba.conf", "local all all trust\n"), conf("etc/pg/pg_ident.conf", "include '/etc/shared/a.conf'\n"),
		conf("etc/shared/a.conf", "include 'b.conf'\ninclude '/etc/pg/c.conf'\n"), conf("etc/shared/b.conf", "b=1\n"), conf("etc/pg/c.conf", "c=1\n"),
		conf("etc/shared/conf.d/a.conf", "a=1\n"))
	p, _ := must(t, a, func(r *restore.Request) { r.ConfigIntoData = true })
	at := func(name string) string { return filepath.Join(p.Destination, name) }
	holds(t, at("postgresql.conf"), "# holdfast: the restored cluster has its own place: hba_file = '/etc/access/hba.conf'\n"+
		"hba_file = '"+at("holdfast_config/etc/access/hba.conf")+"'\n"+
		"# holdfast: the restored cluster has its own place: ident_file = '/etc/pg/pg_ident.conf'\n"+
		"include 'holdfast_config/etc/shared/a.conf'\ninclude_dir = 'holdfast_config/etc/shared/conf.d'\ninclude_if_exists '/etc/absent.conf'\n")
	holds(t, at("pg_ident.conf"), "include '/etc/shared/a.conf'\n")
	holds(t, at("holdfast_config/etc/shared/a.conf"), "include 'b.conf'\ninclude '../../../c.conf'\n")
	holds(t, at("holdfast_config/etc/shared/conf.d/a.conf"), "a=1\n")
	holds(t, at("c.conf"), "c=1\n")
}
