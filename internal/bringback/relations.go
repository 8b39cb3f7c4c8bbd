package bringback

import (
	"context"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
)

// Kinds of relations, as in pg_class.relkind.
const (
	kindTable       = "r"
	kindPartitioned = "p"
	kindForeign     = "f"
	kindMatView     = "m"
)

// relation is a table of the copy that is brought: one that was asked for, or a partition or child of one.
type relation struct {
	OID         uint32
	Schema      string
	Name        string
	Kind        string
	Persistence string // u: unlogged
	Root        int    // index of the one that was asked for
	Below       bool   // it came with that
	View        bool   // it was a materialized view: see plain

	as string // its name on the live server
}

func (r *relation) was() Table         { return Table{Schema: r.Schema, Name: r.Name} }
func (r *relation) now() Table         { return Table{Schema: r.Schema, Name: r.as} }
func (r *relation) identifier() string { return r.now().identifier() }

// maxRelations bounds how many tables are brought at once: their names are pg_dump's arguments.
const maxRelations = 10_000

// find finds the tables that were asked for in the copy, with all that inherits from them.
func (s *session) find(ctx context.Context, wanted []Table) ([]relation, error) {
	var all []relation
	seen := map[uint32]bool{} // and whether it was asked for itself
	for i, t := range wanted {
		found, err := collect(ctx, s, "look for "+t.String(), pgx.RowToStructByPos[struct {
			OID                             uint32
			Schema, Name, Kind, Persistence string
			Below                           bool
		}], `
			with recursive tree(oid, below) as (
				select c.oid, false from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname = $1 and c.relname = $2
				union
				select i.inhrelid, true from tree t join pg_inherits i on i.inhparent = t.oid
			)
			select c.oid, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text, t.below
			from tree t join pg_class c on c.oid = t.oid join pg_namespace n on n.oid = c.relnamespace
			order by t.below, n.nspname, c.relname`, t.Schema, t.Name)
		if err != nil {
			return nil, err
		}
		if len(found) == 0 {
			return nil, s.notFound(ctx, t)
		}
		if k := found[0].Kind; k != kindTable && k != kindPartitioned && k != kindMatView {
			return nil, &RefusedError{fmt.Errorf("%s is a %s", t, kindName(k)), "name tables or materialized views: a view is brought back by its definition, CREATE VIEW"}
		}
		for _, f := range found {
			if itself, ok := seen[f.OID]; !ok {
				seen[f.OID] = !f.Below
				all = append(all, relation{OID: f.OID, Schema: f.Schema, Name: f.Name, Kind: f.Kind, Persistence: f.Persistence, Root: i, Below: f.Below, as: f.Name})
			} else if itself || !f.Below {
				return nil, &RefusedError{fmt.Errorf("%s is asked for twice, or is part of another that is", t), "name it, or what it is part of, once"}
			}
		}
	}
	if len(all) > maxRelations {
		return nil, &RefusedError{fmt.Errorf("%d tables and partitions; %d at once are possible", len(all), maxRelations), "name fewer at once, or bring the whole database"}
	}
	return all, nil
}

func kindName(k string) string {
	switch k {
	case "v":
		return "view"
	case kindMatView:
		return "materialized view"
	case "S":
		return "sequence"
	case "i", "I":
		return "index"
	case "c":
		return "type"
	case kindForeign:
		return "foreign table, whose rows are elsewhere"
	}
	return "relation of kind " + k
}

// notFound says that there is no such table, and which have a name like it.
func (s *session) notFound(ctx context.Context, t Table) error {
	like, err := collect(ctx, s, "look for tables", pgx.RowToStructByPos[Table], `
		select $1::text, n.nspname::text, c.relname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
		where c.relkind in ('r', 'p', 'm') and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
			and (lower(c.relname) = lower($3) or n.nspname = $2 and strpos(lower(c.relname), lower($3)) > 0)
		order by lower(c.relname) <> lower($3), 2, 3 limit 5`, t.Database, t.Schema, t.Name)
	if err != nil {
		return err
	}
	advice := "`holdfast events --destructive` says what was dropped, and when; --time names an earlier moment"
	if len(like) > 0 {
		names := make([]string, len(like))
		for i, l := range like {
			names[i] = l.String()
		}
		advice = "there is " + strings.Join(names, ", ") + "; " + advice
	}
	return &RefusedError{fmt.Errorf("at that moment there was no table %s", t), advice}
}

// maxName is how many bytes a name may have: NAMEDATALEN less one.
const maxName = 63

// taken is which names are in use in the schemas of what is brought.
type taken map[string]map[string]bool // of schemas, of relations and types and statistics

// names adds the names that are in use in schemas.
func (s *session) names(ctx context.Context, schemas []string, into taken) error {
	rows, err := collect(ctx, s, "list the names in its schemas", pgx.RowToStructByPos[struct{ Schema, Name string }], `
		select n.nspname::text, x.name::text from pg_namespace n join (
			select relnamespace, relname from pg_class
			union select typnamespace, typname from pg_type
			union select stxnamespace, stxname from pg_statistic_ext) x(namespace, name) on x.namespace = n.oid
		where n.nspname = any($1)`, schemas)
	if err != nil {
		return err
	}
	for _, r := range rows {
		if into[r.Schema] == nil {
			into[r.Schema] = map[string]bool{}
		}
		into[r.Schema][r.Name] = true
	}
	return nil
}

func (t taken) take(schema, name string) {
	if t[schema] == nil {
		t[schema] = map[string]bool{}
	}
	t[schema][name] = true
}

// free returns the first of name with suffix, name with suffix and 2, and so on that is in none of all. Of a name that would be too long the begin is kept.
func free(schema, name, suffix string, all ...taken) string {
	for n := 1; ; n++ {
		end := suffix
		if n > 1 {
			end += fmt.Sprint(n)
		}
		candidate := clip(name, maxName-len(end)) + end
		used := false
		for _, t := range all {
			used = used || t[schema][candidate]
		}
		if !used {
			return candidate
		}
	}
}

// clip cuts a name to at most n bytes, between characters.
func clip(name string, n int) string {
	if len(name) <= n {
		return name
	}
	for n > 0 && !utf8.RuneStart(name[n]) {
		n--
	}
	return name[:n]
}

// suffix is behind the names of what is brought beside what is there.
const suffix = "_recovered"

// part is what belongs to a relation and has a name in its schema.
type part struct {
	What         string // INDEX, SEQUENCE or STATISTICS
	Schema, Name string
	Of           uint32
}

// parts lists indexes, owned sequences and statistics objects of relations.
func (s *session) parts(ctx context.Context, oids []uint32) ([]part, error) {
	return collect(ctx, s, "list what belongs to its tables", pgx.RowToStructByPos[part], `
		select x.what, n.nspname::text, x.name::text, x.of from (
			select 'INDEX', c.relnamespace, c.relname, i.indrelid from pg_index i join pg_class c on c.oid = i.indexrelid where i.indrelid = any($1)
			union all select 'SEQUENCE', c.relnamespace, c.relname, d.refobjid from pg_depend d join pg_class c on c.oid = d.objid
				where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass and d.refobjid = any($1) and d.deptype in ('a', 'i') and c.relkind = 'S'
			union all select 'STATISTICS', e.stxnamespace, e.stxname, e.stxrelid from pg_statistic_ext e where e.stxrelid = any($1)
		) x(what, namespace, name, of) join pg_namespace n on n.oid = x.namespace order by 1, 2, 3`, oids)
}

// rename gives what is brought names that are free on the live side, and renames it in the copy. It returns which of the tables that were asked for have another name now,
// and the statements that give all their names back.
func rename(ctx context.Context, cp, live *session, relations []relation, roots int, as string) (renamed []bool, back []string, err error) {
	parts, err := cp.parts(ctx, oids(relations))
	if err != nil {
		return nil, nil, err
	}
	var schemas []string
	for _, r := range relations {
		schemas = append(schemas, r.Schema)
	}
	for _, p := range parts {
		schemas = append(schemas, p.Schema)
	}
	there, here := taken{}, taken{}
	if err := live.names(ctx, schemas, there); err != nil {
		return nil, nil, err
	}
	if err := cp.names(ctx, schemas, here); err != nil {
		return nil, nil, err
	}
	var statements []string
	alter := func(what, schema, from, to string) {
		statements = append(statements, "ALTER "+what+" "+pgx.Identifier{schema, from}.Sanitize()+" RENAME TO "+pgx.Identifier{to}.Sanitize())
		back = append(back, "ALTER "+what+" "+pgx.Identifier{schema, to}.Sanitize()+" RENAME TO "+pgx.Identifier{from}.Sanitize())
	}
	// fit chooses a name. What keeps its name is not in the way of itself.
	fit := func(schema, name string, keep bool, candidate, end string) string {
		if keep && !there[schema][name] {
			there.take(schema, name)
			return name
		}
		if candidate != "" && !there[schema][candidate] && !here[schema][candidate] {
			there.take(schema, candidate)
			return candidate
		}
		n := free(schema, name, end, there, here)
		there.take(schema, n)
		return n
	}
	renamed = make([]bool, roots)
	was, named := make([]string, roots), make([]string, roots)
	byOID := map[uint32]*relation{}
	for i := range relations {
		r := &relations[i]
		byOID[r.OID] = r
		if r.Below {
			continue
		}
		if as != "" {
			if err := there.as(r.Schema, as); err != nil {
				return nil, nil, err
			}
		}
		switch {
		case as == "":
			r.as = fit(r.Schema, r.Name, !r.View, "", suffix) // a table is not what others look for under the name of a view
		case as != r.Name && here[r.Schema][as]:
			return nil, nil, &RefusedError{fmt.Errorf("at that moment there was a %s, so that the copy cannot have it as a new name", Table{Schema: r.Schema, Name: as}.Local()), "choose another name: --as NAME"}
		default:
			r.as = as
			there.take(r.Schema, as)
		}
		renamed[r.Root] = r.as != r.Name
		was[r.Root], named[r.Root] = r.Name, r.as
	}
	// like is a name made as that of its table was: orders_pkey becomes orders_recovered_pkey.
	like := func(root int, name string) string {
		rest, ok := strings.CutPrefix(name, was[root]+"_")
		if !ok || len(named[root])+1+len(rest) > maxName {
			return ""
		}
		return named[root] + "_" + rest
	}
	for i := range relations {
		r := &relations[i]
		if r.Below {
			r.as = fit(r.Schema, r.Name, !renamed[r.Root], like(r.Root, r.Name), suffix)
		}
		if r.as != r.Name {
			alter("TABLE", r.Schema, r.Name, r.as)
		}
	}
	for _, p := range parts {
		root := byOID[p.Of].Root
		if name := fit(p.Schema, p.Name, !renamed[root], like(root, p.Name), suffix); name != p.Name {
			alter(p.What, p.Schema, p.Name, name)
		}
	}
	if len(statements) > 0 {
		err = cp.exec(ctx, "rename tables", "BEGIN; "+strings.Join(statements, "; ")+"; COMMIT")
	}
	if err != nil {
		return nil, nil, err // and none was renamed
	}
	return renamed, back, nil
}

// oids returns those of relations.
func oids(relations []relation) []uint32 {
	all := make([]uint32, len(relations))
	for i := range relations {
		all[i] = relations[i].OID
	}
	return all
}

// descent is that a table of the copy is a child of another.
type descent struct {
	Child  uint32
	Schema string // of the parent
	Parent string
}

// detach makes children of tables that are not brought stand alone in the copy, and returns what they descended from. Partitions stay where they are: what pg_dump says of that
// is left away.
func (s *session) detach(ctx context.Context, relations []relation) ([]descent, error) {
	all, err := collect(ctx, s, "look for parents", pgx.RowToStructByPos[descent], `
		select i.inhrelid, n.nspname::text, p.relname::text
		from pg_inherits i join pg_class c on c.oid = i.inhrelid join pg_class p on p.oid = i.inhparent join pg_namespace n on n.oid = p.relnamespace
		where i.inhrelid = any($1) and not i.inhparent = any($1) and not c.relispartition order by i.inhrelid, i.inhseqno`, oids(relations))
	for _, d := range all {
		if err = s.exec(ctx, "part a table from its parent", "ALTER TABLE "+brought(relations, d.Child).was().identifier()+" NO INHERIT "+d.parent().identifier()); err != nil {
			return nil, err
		}
	}
	return all, err
}

func (d *descent) parent() Table { return Table{Schema: d.Schema, Name: d.Parent} }
