package bringback

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/jackc/pgx/v5"
)

// Check returns what Tables, or Database where one is named, would refuse in the end though it can be seen beforehand: a file that is there or cannot be made, a name that is
// taken, a server that takes no writes or not from this role. It changes nothing; what it finds may be otherwise later.
func Check(ctx context.Context, l Live, tables []Table, database string, o Options) error {
	if o.Dump != "" {
		for _, t := range tables {
			if t.Database != tables[0].Database {
				return &RefusedError{errors.New("one file for tables of several databases"), "make one file for each database"}
			}
		}
		f, err := makeFile(o.Dump)
		if err != nil {
			return err
		}
		return errors.Join(f.Close(), os.Remove(f.Name()))
	}
	if database != "" {
		m := moving{live: &l, options: &o, name: database}
		s, err := m.maintenance(ctx)
		if err != nil {
			return err
		}
		defer s.end(ctx)
		if err := m.choose(ctx, s); err != nil {
			return err
		}
		return s.may(ctx, "make a database", "ALTER ROLE %s CREATEDB", `select rolsuper or rolcreatedb from pg_roles where rolname = current_user`)
	}
	seen := map[Table]bool{} // databases, and schemas of these
	for _, t := range tables {
		into := Table{Database: cmp.Or(o.IntoDatabase, t.Database), Schema: cmp.Or(t.Schema, "public")}
		if seen[into] {
			continue
		}
		seen[into] = true
		if err := l.check(ctx, into, o.As); err != nil {
			return err
		}
	}
	return nil
}

// check is Check for a schema of a database.
func (l *Live) check(ctx context.Context, into Table, as string) error {
	s, err := l.open(ctx, into.Database)
	if err != nil {
		return err
	}
	defer s.end(ctx)
	err = s.may(ctx, "make tables in schema "+quoteIfNeeded(into.Schema), "GRANT CREATE ON SCHEMA … TO %s, or ON DATABASE … where it is gone", `
		select coalesce((select has_schema_privilege(oid, 'create') from pg_namespace where nspname = $1), has_database_privilege(current_database(), 'create'))`, into.Schema)
	if err != nil || as == "" {
		return err
	}
	there := taken{}
	if err := s.names(ctx, []string{into.Schema}, there); err != nil {
		return err
	}
	return there.as(into.Schema, as)
}

// may returns an error where a query says that the session's role may not do what. grant is what lets it, %s standing for the role.
func (s *session) may(ctx context.Context, what, grant, sql string, args ...any) error {
	var may bool
	if err := s.QueryRow(ctx, sql, args...).Scan(&may); err != nil {
		return s.failed(ctx, "see whether its role may "+what, err)
	}
	if !may {
		user := s.Config().User
		return &RefusedError{fmt.Errorf("%s: %s may not %s", s.where, quoteIfNeeded(user), what),
			"connect as a superuser (PGUSER), or let one " + fmt.Sprintf(grant, pgx.Identifier{user}.Sanitize()) + "; or make a file: --dump FILE"}
	}
	return nil
}

// as returns an error where a table cannot have a name that somebody wants for it.
func (t taken) as(schema, name string) error {
	switch {
	case len(name) > maxName:
		return &RefusedError{fmt.Errorf("%q has %d bytes, a name may have %d", name, len(name), maxName), "choose a shorter name: --as NAME"}
	case t[schema][name]:
		return &RefusedError{fmt.Errorf("the live server has a %s already", Table{Schema: schema, Name: name}.Local()), "choose another name: --as NAME"}
	}
	return nil
}

// makeFile makes the file that will have a name once it is whole. Nobody else may read it.
func makeFile(name string) (*os.File, error) {
	if _, err := os.Lstat(name); err == nil {
		return nil, exists(name)
	}
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", name, err)
	}
	return f, nil
}

func exists(name string) error {
	return &RefusedError{fmt.Errorf("make %s: %w", name, fs.ErrExist), "remove it, or name another file: --dump FILE"}
}
