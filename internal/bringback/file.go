package bringback

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
)

// dumpTables makes a file of tables, with pg_dump.
func (c *Copy) dumpTables(ctx context.Context, path, database string, wanted []Table, o *Options, r *Report) error {
	s, err := c.open(ctx, database)
	if err != nil {
		if is(err, "3D000") { // invalid_catalog_name
			return noDatabase(database)
		}
		return err
	}
	defer s.end(ctx)
	relations, err := s.find(ctx, wanted)
	if err != nil {
		return err
	}
	views, err := s.matViews(ctx, relations)
	if err != nil {
		return err
	}
	statements, _, err := c.definitions(ctx, path, s, views)
	if err != nil {
		return err
	}
	for _, sql := range statements {
		r.Left = append(r.Left, Left{database, valid(sql), "it was a materialized view, whose rows the file has as a table of its name"})
	}
	if err := s.toTables(ctx, relations); err != nil {
		return err
	}
	var args []string
	for i := range relations {
		args = append(args, "-t", relations[i].identifier())
	}
	counted := &Report{}
	g, both := errgroup.WithContext(ctx)
	g.Go(func() error { return c.dumpFile(both, path, s, append(args, "--strict-names"), o.Dump, r) })
	g.Go(func() error { return s.countAll(both, relations, database, counted) })
	if err := g.Wait(); err != nil {
		return cmp.Or(context.Cause(ctx), err)
	}
	r.Tables, r.Notes = append(r.Tables, counted.Tables...), append(r.Notes, counted.Notes...)
	needs, err := s.needs(ctx, relations)
	if err != nil {
		return err
	}
	for _, n := range needs {
		if n.Type != "language" && !(n.Type == "schema" && len(n.Names) == 1 && n.Names[0] == "public") {
			r.Notes = append(r.Notes, valid("the file has the tables alone, which need "+n.Text))
		}
	}
	return nil
}

func noDatabase(name string) error {
	return &RefusedError{fmt.Errorf("at that moment there was no database %s", quoteIfNeeded(name)),
		"`holdfast events --destructive` says what was dropped, and when; --time names an earlier moment"}
}

// countAll reports on relations of the copy that went into a file.
func (s *session) countAll(ctx context.Context, relations []relation, database string, r *Report) error {
	return r.account(relations, database, database, func(rel *relation) (int64, error) { return s.countRows(ctx, rel) })
}

// countRows counts the rows of one relation of the copy by reading them all.
func (s *session) countRows(ctx context.Context, r *relation) (n int64, err error) {
	if r.Kind == kindPartitioned || r.Kind == kindForeign {
		return 0, nil
	}
	err = pgx.BeginFunc(ctx, s, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, withoutIndexes(r.OID)); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, "select count(*) from only "+r.identifier()).Scan(&n); err != nil {
			return err
		}
		return errRollback
	})
	if err != nil && !errors.Is(err, errRollback) {
		return 0, s.failed(ctx, "count the rows of "+r.was().Local(), err)
	}
	return n, nil
}

// errRollback ends a transaction that is not to last.
var errRollback = errors.New("roll back")

// dumpFile runs a pg_dump into a file, which appears under its name once it is whole.
func (c *Copy) dumpFile(ctx context.Context, path string, s *session, args []string, name string, r *Report) (err error) {
	f, err := makeFile(name)
	if err != nil {
		return err
	}
	defer func() { // of its two names, or of what is not whole
		if errRemove := os.Remove(f.Name()); !errors.Is(errRemove, fs.ErrNotExist) {
			err = errors.Join(err, errRemove)
		}
	}()
	defer func() { _ = f.Close() }() // a second time, or of what is not whole
	format := "--format=custom"
	if strings.EqualFold(filepath.Ext(name), ".sql") {
		format = "--format=plain"
	}
	cmd, said := c.pgDump(ctx, path, s.encoding, s.Config().Database, append(args, format, "--no-publications", "--no-subscriptions"))
	cmd.Stdout = f
	stop := syncAhead(f)
	err = cmd.Run()
	errSync := stop()
	if err != nil {
		return fmt.Errorf("make %s: pg_dump of the copy: %w%s", name, cmp.Or(context.Cause(ctx), err), said.behind())
	}
	if errSync != nil {
		return fmt.Errorf("make %s: %w", name, errSync)
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := give(f.Name(), name); err != nil {
		return err
	}
	r.Dump, r.Bytes, r.Database = name, info.Size(), s.Config().Database
	r.Notes = append(r.Notes, "the file has "+humanize.IBytes(uint64(info.Size()))+"; "+howToLoad(name, format))
	return nil
}

// syncAhead has what another process writes to f go to disk meanwhile, so that little is left to do at the end. It ends with stop, which returns what went wrong: the
// kernel tells it once.
func syncAhead(f *os.File) (stop func() error) {
	done, failed := make(chan struct{}), make(chan error)
	go func() {
		var err error
		for tick := time.NewTicker(50 * time.Millisecond); ; {
			select {
			case <-done:
				tick.Stop()
				failed <- err
				return
			case <-tick.C:
				err = cmp.Or(err, f.Sync())
			}
		}
	}()
	return func() error {
		close(done)
		return <-failed
	}
}

// give gives a file a name that nothing has. Where a file cannot have two names, as on some mounted file systems, it is renamed; and where that might replace one of the name, an empty one
// takes the name first, which stays if we are killed just then.
func give(file, name string) error {
	err := os.Link(file, name)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		err = renameUnused(file, name)
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		var f *os.File
		if f, err = os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600); err == nil {
			if err = errors.Join(f.Close(), os.Rename(file, name)); err != nil {
				err = errors.Join(err, os.Remove(name))
			}
		}
	}
	if errors.Is(err, fs.ErrExist) {
		return exists(name)
	}
	return err
}

// howToLoad says how a file gets into a server.
func howToLoad(name, format string) string {
	if format == "--format=plain" {
		return "to load it: psql -d DATABASE -f " + name
	}
	return "to load it: pg_restore -d DATABASE " + name
}
