package bringback

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// foreignKey is a foreign key between a table that is brought and one that is not.
type foreignKey struct {
	Name       string
	From       uint32 // the table that has it, and
	To         uint32 // the one that it refers to
	Schema     string // of the table that has it
	Table      string
	Definition string
	ToKind     string // of the table that it refers to
}

// foreignKeys lists those that begin (out) or end at relations, but not both.
func (s *session) foreignKeys(ctx context.Context, relations []relation) (out, in []foreignKey, err error) {
	all, err := collect(ctx, s, "look for foreign keys", pgx.RowToStructByPos[foreignKey], `
		select k.conname::text, k.conrelid, k.confrelid, n.nspname::text, c.relname::text, pg_get_constraintdef(k.oid), r.relkind::text
		from pg_constraint k join pg_class c on c.oid = k.conrelid join pg_class r on r.oid = k.confrelid join pg_namespace n on n.oid = c.relnamespace
		where k.contype = 'f' and (k.conrelid = any($1)) <> (k.confrelid = any($1))
			and coalesce(to_jsonb(k) ->> 'conparentid', '0') = '0'
		order by n.nspname, c.relname, k.conname`, oids(relations))
	for _, k := range all {
		if brought(relations, k.From) != nil {
			out = append(out, k)
		} else {
			in = append(in, k)
		}
	}
	return out, in, err
}

// brought returns the relation of that OID, or nil.
func brought(relations []relation, oid uint32) *relation {
	for i := range relations {
		if relations[i].OID == oid {
			return &relations[i]
		}
	}
	return nil
}

// takeOff drops foreign keys in the copy, so that pg_dump does not speak of them.
func (s *session) takeOff(ctx context.Context, keys []foreignKey) error {
	for _, k := range keys {
		if err := s.exec(ctx, "take off a foreign key", "ALTER TABLE "+k.table()+" DROP CONSTRAINT "+pgx.Identifier{k.Name}.Sanitize()); err != nil {
			return err
		}
	}
	return nil
}

func (k *foreignKey) table() string { return pgx.Identifier{k.Schema, k.Table}.Sanitize() }

const notValid = " NOT VALID"

// add is the statement that adds the key: whatever is in the tables now.
func (k *foreignKey) add() string {
	def := k.Definition
	if !strings.HasSuffix(def, notValid) && !strings.Contains(def, " NOT ENFORCED") {
		def += notValid
	}
	return "ALTER TABLE " + k.table() + " ADD CONSTRAINT " + pgx.Identifier{k.Name}.Sanitize() + " " + def + ";"
}

// whole is the statement that adds the key and checks the rows that are there, and validate the one that only checks.
func (k *foreignKey) whole() string {
	return "ALTER TABLE " + k.table() + " ADD CONSTRAINT " + pgx.Identifier{k.Name}.Sanitize() + " " + strings.TrimSuffix(k.Definition, notValid) + ";"
}

func (k *foreignKey) validate() string {
	return "ALTER TABLE " + k.table() + " VALIDATE CONSTRAINT " + pgx.Identifier{k.Name}.Sanitize() + ";"
}

// How long a lock on a table of others is waited for, during which others wait behind us, how often, and how long they have their peace between.
const (
	lockWait  = "100ms"
	lockTries = 16
	lockPause = 400 * time.Millisecond
)

// bind adds a foreign key of the copy on the live server, where it reports whether the key is there and holds for all rows.
func (l *loader) bind(ctx context.Context, k *foreignKey) (holds bool, err error) {
	var kind string // now, whatever it was; "" where there is no such table
	var has, unchecked bool
	err = l.session.QueryRow(ctx, `
		select coalesce(max(c.relkind::text), ''), count(k.oid) > 0, coalesce(bool_and(k.convalidated and pg_get_constraintdef(k.oid) = $4), false),
			coalesce(bool_and(pg_get_constraintdef(k.oid) = $4 || $5), false) from pg_class c join pg_namespace n on n.oid = c.relnamespace
			left join pg_constraint k on k.conrelid = c.oid and k.conname = $3 where n.nspname = $1 and c.relname = $2`, k.Schema, k.Table, k.Name, k.Definition, notValid).Scan(&kind, &has, &holds, &unchecked)
	switch {
	case err != nil:
		return false, l.session.failed(ctx, "look for foreign keys", err)
	case unchecked: // as a run that was killed leaves it
		l.leave(k.validate(), "it is there, and not checked yet")
		return false, nil
	case has:
		return holds, nil
	case kind == "":
		l.leave(k.add(), fmt.Sprintf("there is no table %s now, which had this foreign key", Table{Schema: k.Schema, Name: k.Table}.Local()))
		return false, nil
	case kind == kindPartitioned && l.session.version < 18_00_00:
		return l.bindParts(ctx, k)
	}
	if why, err := l.lockingly(ctx, k.add()); err != nil || why != "" {
		if why != "" {
			l.leave(k.add(), why)
			l.leave(k.validate(), "once it is added")
		}
		return false, err
	}
	if strings.HasSuffix(k.Definition, notValid) || strings.Contains(k.Definition, " NOT ENFORCED") {
		return false, nil // it was like that
	}
	why, err := l.lockingly(ctx, k.validate())
	if why != "" {
		l.leave(k.validate(), "the foreign key holds for what is written from now on, but not for all rows that are there: "+why)
	}
	return err == nil && why == "", err
}

// attachTime bounds how long writes wait while a foreign key of partitions becomes that of their table, which is a matter of catalogues.
const attachTime = "5s"

// bindParts is bind for a partitioned table before PostgreSQL 18, where it cannot have a key NOT VALID. Its partitions can: they get it first, and what the table gets then takes theirs as its
// own, without a look at their rows (tryAttachPartitionForeignKey in src/backend/commands/tablecmds.c).
func (l *loader) bindParts(ctx context.Context, k *foreignKey) (holds bool, err error) {
	if k.ToKind == kindPartitioned { // partitions have keys to its partitions as well, which stay beside those that come from the table (until 15.9, 16.5 and 17.1, and before 15)
		l.leave(k.whole(), "to add a foreign key between partitioned tables stops writes on both while all rows are looked at")
		return false, nil
	}
	parts, err := collect(ctx, l.session, "list partitions", pgx.RowToStructByPos[struct{ Schema, Name string }], `
		with recursive tree(oid) as (
			select c.oid from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname = $1 and c.relname = $2
			union all select i.inhrelid from tree t join pg_inherits i on i.inhparent = t.oid
		)
		select n.nspname::text, c.relname::text from tree t join pg_class c on c.oid = t.oid join pg_namespace n on n.oid = c.relnamespace where c.relkind = 'r' order by 1, 2`, k.Schema, k.Table)
	if err != nil {
		return false, err
	}
	holds = true
	for _, p := range parts {
		part := *k
		part.Schema, part.Table = p.Schema, p.Name
		if holds {
			if holds, err = l.bind(ctx, &part); err != nil {
				return false, err
			}
		} else { // what was in the way there is in the way here
			l.leave(part.add(), "it is like the partition before it")
			l.leave(part.validate(), "once it is added")
		}
	}
	if !holds {
		l.leave(k.whole(), "once all partitions have it; before, writes on both tables would stop while all rows are looked at")
		return false, nil
	}
	why, err := l.lockingly(ctx, "SET statement_timeout = '"+attachTime+"'; "+k.whole()+" SET statement_timeout = 0")
	if why != "" {
		l.leave(k.whole(), why)
	}
	return err == nil && why == "", err
}

// lockingly carries out a statement that locks tables of others, in a transaction of its own. Why it cannot be carried out is told; an error is about the server.
func (l *loader) lockingly(ctx context.Context, sql string) (why string, err error) {
	for try := 1; ; try++ {
		_, err := l.session.PgConn().Exec(ctx, "SET lock_timeout = '"+lockWait+"'; "+sql+"\n; SET lock_timeout = 0").ReadAll()
		if err == nil {
			return "", nil
		}
		var pg *pgconn.PgError
		if ctx.Err() != nil || !errors.As(err, &pg) || l.session.IsClosed() {
			return "", l.session.failed(ctx, firstLine(sql), err)
		}
		busy := pg.Code == "55P03" || pg.Code == "40P01" // lock_not_available, deadlock_detected
		if !busy {
			return said(pg), nil
		}
		if try == lockTries {
			return "a transaction that stays open is in the way, and others would have to wait behind us: once it has ended", nil
		}
		select {
		case <-ctx.Done():
			return "", context.Cause(ctx)
		case <-time.After(lockPause):
		}
	}
}
