package drill

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// verifier is amcheck in one database.
type verifier struct {
	schema string // quoted
	made   bool   // by us
	whole  bool   // bt_index_check can look whether all rows of the table are in the index: from amcheck 1.1 on
	heap   bool   // verify_heapam is there: from 1.3 on
	alone  int    // indexes that were verified without the rows of their table, as their expressions cannot be evaluated
}

// amcheckSchema is where the copy gets amcheck where it has none.
const amcheckSchema = "holdfast_drill"

// lackingError says why this host cannot verify relations.
type lackingError struct{ error }

// amcheck makes the extension where it is missing. Where this host cannot have it the error is a lackingError.
func (d *drill) amcheck(ctx context.Context, c *pgx.Conn) (*verifier, error) {
	v := &verifier{schema: amcheckSchema}
	var there bool
	if err := c.QueryRow(ctx, `select exists (select from pg_extension where extname = 'amcheck')`).Scan(&there); err != nil {
		return nil, err
	}
	if !there {
		missing, err := d.notInstalled(ctx, c, "amcheck")
		if err != nil {
			return nil, err
		}
		if len(missing) > 0 {
			return nil, &lackingError{fmt.Errorf("the extension amcheck of PostgreSQL %d is not installed here", d.control.Major)}
		}
		v.made = true
		if _, err := c.Exec(ctx, `create schema `+amcheckSchema+`; create extension amcheck schema `+amcheckSchema, pgx.QueryExecModeSimpleProtocol); err != nil {
			if !lacksFiles(err) {
				return nil, err
			}
			return nil, &lackingError{fmt.Errorf("the extension amcheck that is installed here cannot be used: %w", err)}
		}
	}
	err := c.QueryRow(ctx, `
		select quote_ident(n.nspname), exists (select from pg_proc p where p.pronamespace = n.oid and proname = 'bt_index_check' and pronargs >= 2),
			exists (select from pg_proc p where p.pronamespace = n.oid and proname = 'verify_heapam')
		from pg_extension e join pg_namespace n on n.oid = e.extnamespace where extname = 'amcheck'`).Scan(&v.schema, &v.whole, &v.heap)
	return v, err
}

// lacksFiles reports whether an error of CREATE EXTENSION is that files of the extension are not there, or are no use to this server.
func lacksFiles(err error) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return false
	}
	switch pg.Code {
	case "58P01": // undefined_file; those of the data directory have paths in it
		name, opens := strings.CutPrefix(pg.Message, `could not open file "`)
		return !opens || strings.HasPrefix(name, "/")
	case "0A000": // feature_not_supported: the extension is not available
		return true
	}
	return strings.HasPrefix(pg.Message, "could not load library ") || strings.Contains(pg.Message, " has no installation script ")
}

// A relation is an index or a table that is verified.
type relation struct {
	oid   uint32
	name  string
	index bool
}

// relations lists what is to be verified in a database: system catalogues first, the rest in another order each time, so that a budget that does not do for all does for
// all in the course of many drills. What is not logged is empty in a copy.
func (v *verifier) relations(ctx context.Context, c *pgx.Conn) ([]relation, error) {
	query := `
		select c.oid, format('%I.%I', n.nspname, c.relname), c.relkind = 'i'
		from pg_class c join pg_namespace n on n.oid = c.relnamespace
			left join pg_am a on a.oid = c.relam left join pg_index i on i.indexrelid = c.oid
		where c.relpersistence = 'p' and (c.relkind = 'i' and a.amname = 'btree' and i.indisvalid and i.indisready`
	if v.heap {
		query += ` or c.relkind in ('r', 't', 'm') and a.amname = 'heap'`
	}
	rows, err := c.Query(ctx, query+`) order by (c.oid >= 16384), random()`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (r relation, err error) {
		err = row.Scan(&r.oid, &r.name, &r.index)
		return r, err
	})
}

// verify returns what is wrong with a relation, "" for nothing.
func (v *verifier) verify(ctx context.Context, c *pgx.Conn, r relation) (string, error) {
	switch {
	case r.index && v.whole:
		_, err := c.Exec(ctx, `select `+v.schema+`.bt_index_check($1::oid::regclass, true)`, r.oid)
		if !ofExpression(err) {
			return "", err
		}
		v.alone++
		fallthrough
	case r.index:
		_, err := c.Exec(ctx, `select `+v.schema+`.bt_index_check($1::oid::regclass)`, r.oid)
		return "", err
	}
	rows, err := c.Query(ctx, `select format('block %s, item %s: %s', blkno, offnum, msg) from `+v.schema+`.verify_heapam($1::oid::regclass, on_error_stop => true, check_toast => true)`, r.oid)
	if err != nil {
		return "", err
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	return strings.Join(found, ", "), err
}

// ofExpression reports whether an error is that an expression of an index names what is not found: its function relies on a search path that is not set here. Damage
// says other things.
func ofExpression(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (strings.HasPrefix(pg.Code, "42") || pg.Code == "3F000") // syntax error or access rule violation, invalid_schema_name
}

// sortedElsewhere says of an index that amcheck finds out of order where its collation has another version here than the cluster has recorded; "" where it has not.
func (d *drill) sortedElsewhere(ctx context.Context, c *pgx.Conn, r relation, err error) string {
	var pg *pgconn.PgError
	if !r.index || !errors.As(err, &pg) || !strings.Contains(pg.Message, "invariant violated") {
		return ""
	}
	versions := `select c.collversion, pg_collation_actual_version(c.oid)`
	if d.control.Major >= 15 { // before, nothing is recorded of the database's own collation
		versions = `select case c.collprovider when 'd' then d.datcollversion else c.collversion end,
			case c.collprovider when 'd' then pg_database_collation_actual_version(d.oid) else pg_collation_actual_version(c.oid) end from pg_database d where d.datname = current_database()`
	}
	var differ string
	err = c.QueryRow(ctx, `
		select coalesce(string_agg(distinct format('%I has version %s there and %s here', c.collname, v.there, coalesce(v.here, 'none')), ', '), '')
		from pg_index i cross join unnest(i.indcollation::oid[]) k(oid) join pg_collation c on c.oid = k.oid cross join lateral (`+versions+`) v(there, here)
		where i.indexrelid = $1 and v.there is not null and v.there is distinct from v.here`, r.oid).Scan(&differ)
	if err != nil || differ == "" {
		return ""
	}
	return "; its collation " + differ + ": the libc or ICU of this host may sort otherwise than that which built the index, and then this is no damage. It is none if pg_amcheck finds the index sound at the source; " +
		"on a host such as this one a restored cluster needs REINDEX"
}

// checkRelations verifies indexes and tables with amcheck, within the budget.
func (d *drill) checkRelations(ctx context.Context) {
	begun, c := time.Now(), Check{Name: "amcheck"}
	limited := ctx
	if d.Budget > 0 {
		var cancel context.CancelFunc
		limited, cancel = context.WithTimeout(ctx, d.Budget)
		defer cancel()
	}
	var bad []error
	var lacks *lackingError
	heaps, alone := true, 0
	problems := d.inEach(ctx, func(database string, conn *pgx.Conn) error {
		v, err := d.amcheck(ctx, conn)
		if errors.As(err, &lacks) {
			return nil
		}
		if err != nil {
			return err
		}
		heaps = heaps && v.heap
		defer func() { alone += v.alone }()
		all, err := v.relations(ctx, conn)
		if err != nil {
			return err
		}
		c.Total += int64(len(all))
		for _, r := range all {
			if limited.Err() != nil {
				return nil
			}
			found, err := v.verify(limited, conn, r)
			if limited.Err() != nil && err != nil { // not its fault
				return nil
			}
			c.Done++
			kind := map[bool]string{true: "index", false: "table"}[r.index]
			switch {
			case err != nil && conn.IsClosed():
				return fmt.Errorf("%s %s: %w", kind, r.name, err)
			case err != nil:
				bad = append(bad, fmt.Errorf("database %s: %s %s: %w%s", database, kind, r.name, err, d.sortedElsewhere(ctx, conn, r, err)))
			case found != "":
				bad = append(bad, fmt.Errorf("database %s: %s %s: %s", database, kind, r.name, found))
			}
		}
		if v.made && d.Keep {
			_, err := conn.Exec(ctx, `drop schema `+amcheckSchema+` cascade`)
			return err
		}
		return nil
	})
	bad = append(bad, problems...)
	switch {
	case ctx.Err() != nil:
	case lacks != nil && c.Done == 0 && len(bad) == 0:
		d.checked(Check{Name: "amcheck", Result: Skipped, Text: lacks.Error(), Seconds: time.Since(begun).Seconds()})
	default:
		fine := fmt.Sprintf("%d indexes and tables are sound", c.Done)
		if !heaps {
			fine = fmt.Sprintf("%d indexes are sound", c.Done)
		}
		if c.Done < c.Total {
			fine += fmt.Sprintf(", of %d: for the others there was no time within %s", c.Total, d.Budget)
		}
		if alone > 0 {
			fine += fmt.Sprintf("; %d of the indexes by themselves, as their expressions rely on a search path", alone)
		}
		if lacks != nil {
			fine += "; not all databases: " + lacks.Error()
		}
		if len(bad) == 0 && (lacks != nil || c.Done == 0 && c.Total > 0) {
			c.Result, c.Text, c.Seconds = Skipped, fine, time.Since(begun).Seconds()
			d.checked(c)
			return
		}
		d.tell(c, begun, bad, fine)
	}
}
