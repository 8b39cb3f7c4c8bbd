package backup_test

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/backup"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
	"holdfast/test/pgtest"
)

// A database that is moved while a backup is taken would come back empty or in pieces, since replay copies it from where it was; there and back too.
func TestDatabaseMovedDuringBackup(t *testing.T) {
	c := cluster(t)
	c.Exec(t, `create tablespace space location '`+pgtest.Dir(t)+`'`, `create database stays`, `create database moves`, `create database goes`)
	for what, statements := range map[string][]string{
		"away":           {`alter database moves set tablespace space`},
		"back":           {`alter database moves set tablespace pg_default`},
		"there and back": {`alter database moves set tablespace space`, `alter database moves set tablespace pg_default`},
	} {
		if what == "back" {
			c.Exec(t, `alter database moves set tablespace space`)
		}
		m := &storetest.Memory{}
		moving := &onPut{Store: m, name: "/part_", do: func() { c.Exec(t, statements...) }}
		_, err := backup.Run(t.Context(), connect(t, c), archive.New(moving, archive.Options{}), c.Data, backup.Options{NoWaitWAL: true, Workers: 1})
		oid := c.Value(t, `select oid from pg_database where datname = 'moves'`)
		if err == nil || !strings.Contains(err.Error(), "moved to another tablespace") || !strings.Contains(err.Error(), "/"+oid) || strings.Contains(err.Error(), ",") {
			t.Errorf("%s: the error is %v", what, err)
		}
		var hinted interface{ Hint() string }
		if !errors.As(err, &hinted) {
			t.Errorf("%s: there is no hint", what)
		}
		for o, err := range store.Walk(t.Context(), m, archive.BackupDir) {
			t.Errorf("%s: left behind is %s, %v", what, o.Name, err)
		}
		c.Exec(t, `alter database moves set tablespace pg_default`)
	}

	// What is new is replayed, what goes is not missed, but for a copy of it.
	for what, during := range map[string]struct {
		statements []string
		told       bool
	}{
		"a copy of what goes":  {[]string{`create database new template goes`, `drop database goes`}, true},
		"a copy of what stays": {[]string{`create database newer template stays`}, false},
	} {
		var log bytes.Buffer
		changing := &onPut{Store: &storetest.Memory{}, name: "/part_", do: func() { c.Exec(t, during.statements...) }}
		conn := connect(t, c)
		_, err := backup.Run(t.Context(), conn, archive.New(changing, archive.Options{}), c.Data,
			backup.Options{NoWaitWAL: true, Workers: 1, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil || strings.Contains(log.String(), "take the backup again") != during.told {
			t.Errorf("%s: %v; the log is %s", what, err, log.String())
		}
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
