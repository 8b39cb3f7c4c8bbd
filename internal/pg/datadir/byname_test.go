package datadir_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/pg/datadir"
)

// A name alone says what a walk says that finds it, but for what is unlogged or of another version.
func TestByNameAgreesWithWalk(t *testing.T) {
	root := make15(t)
	for _, name := range strings.Fields(`base/5/16384 base/5/16384.12 base/5/16384_fsm base/5/16384_vm.3 base/5/16400_init base/5/t3_16500 base/5/t3_x
		base/5/pg_filenode.map base/5/pg_internal.init.77 base/5/016384 base/pgsql_tmp99.0 base/pgsql_tmp/x base/x/16384 base/5/.DS_Store base/5/log/x
		global/1262 global/1262_fsm global/pg_internal.init global/pg_filenode.map global/t3_16500 pg_wal/000000010000000000000001
		pg_wal/archive_status/000000010000000000000001.ready pg_wal/summaries/x pg_replslot/s/state pg_stat_tmp/x log/postgresql.log pg_log/x
		pg_xact/0000 pg_xact/log/x pg_logical/replorigin_checkpoint extra/pg_wal/x extra/postmaster.pid postmaster.pid backup_label
		tablespace_map backup_manifest standby.signal postgresql.auto.conf.tmp current_logfiles postgresql.auto.conf .hidden
		pg_tblspc/17000/PG_15_202209061/5/16384.2 pg_tblspc/17000/PG_15_202209061/5/t1_1 pg_tblspc/17000/PG_15_202209061/pgsql_tmp/x pg_tblspc/readme`) {
		put(t, root, name, "x")
	}
	d, err := datadir.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	kept := map[string]datadir.Entry{}
	for e, err := range d.Walk(datadir.Options{}) {
		if err != nil {
			t.Fatal(err)
		}
		kept[e.Path] = e
	}
	seen := 0
	var visit func(dir string)
	visit = func(dir string) {
		matches, err := filepath.Glob(filepath.Join(root, dir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		hidden, err := filepath.Glob(filepath.Join(root, dir, ".*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, full := range append(matches, hidden...) {
			name, err := filepath.Rel(root, full)
			if err != nil {
				t.Fatal(err)
			}
			isDir := isDirectory(t, full)
			kind, fork, segment, why := datadir.ByName(name, isDir)
			want, ok := kept[name]
			if (why == "") != ok || ok && (kind != want.Kind || fork != want.Fork || segment != want.Segment) {
				t.Errorf("%s: %s %s %d, left out because %q; a walk yields %v %+v", name, kind, fork, segment, why, ok, want)
			}
			seen++
			if isDir {
				visit(name)
			}
		}
	}
	visit(".")
	if kind, _, _, why := datadir.ByName(".", true); kind != datadir.Directory || why != "" {
		t.Errorf("the directory itself is a %s, left out because %q", kind, why)
	}
	if seen < 60 || len(kept) < 30 {
		t.Errorf("%d names, of them %d kept", seen, len(kept))
	}
}

func isDirectory(t *testing.T, full string) bool {
	t.Helper()
	st, err := os.Lstat(full)
	if err != nil {
		t.Fatal(err)
	}
	return st.IsDir()
}
