package bringback

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
)

// plain makes tables of the materialized views among what is brought. pg_dump would bring their definitions, and have the live server compute their rows from what is there now. Those that are
// gone, with what was built on them, are told.
func (b *bringing) plain(ctx context.Context) error {
	views, err := b.cp.matViews(ctx, b.relations)
	if err != nil || len(views) == 0 {
		return err
	}
	for _, v := range views {
		b.loader.note("%s comes as a table, with its rows as they were, which nothing refreshes", v.Text)
	}
	if b.into == b.from {
		if err := b.tellViews(ctx, views); err != nil {
			return err
		}
	}
	return b.cp.toTables(ctx, b.relations)
}

// tellViews tells how views are made that are gone from the live server. It has to be asked before anything is renamed.
func (b *bringing) tellViews(ctx context.Context, views []object) error {
	lost, err := b.lv.lacks(ctx, views)
	if err != nil || len(lost) == 0 {
		return err
	}
	var own []relation
	for _, r := range b.relations {
		if slices.ContainsFunc(lost, func(o object) bool { return o.OID == r.OID }) {
			own = append(own, r)
		}
	}
	gone, err := b.gone(ctx, own)
	if err != nil {
		return err
	}
	all := append(lost, slices.DeleteFunc(gone, func(o object) bool { return slices.ContainsFunc(lost, func(l object) bool { return l.OID == o.OID }) })...)
	why := func(o object) string {
		if slices.ContainsFunc(lost, func(l object) bool { return l.OID == o.OID }) {
			return o.Text + " is gone: this makes it anew, of what its tables have now"
		}
		return o.went()
	}
	statements, of, err := b.copy.definitions(ctx, b.dump, b.cp, all)
	if err != nil {
		return err
	}
	for i, sql := range statements {
		b.built = append(b.built, Left{b.into, valid(sql), why(all[of[i]])})
	}
	return b.fill(ctx, all, why)
}

// fill tells how those of objects that are materialized views get their indexes and rows.
func (b *bringing) fill(ctx context.Context, objects []object, why func(object) string) error {
	for _, o := range objects {
		if o.Type != "materialized view" {
			continue
		}
		statements, err := collect(ctx, b.cp, "look for the indexes of "+o.Text, pgx.RowTo[string],
			`select pg_get_indexdef(indexrelid) from pg_index where indrelid = $1 order by indexrelid`, o.OID)
		if err != nil {
			return err
		}
		if len(o.Names) == 2 {
			statements = append(statements, "REFRESH MATERIALIZED VIEW "+pgx.Identifier(o.Names).Sanitize())
		}
		for _, sql := range statements {
			b.built = append(b.built, Left{b.into, valid(sql + ";"), why(o)})
		}
	}
	return nil
}

// matViews returns the materialized views among relations, in the order of their OIDs.
func (s *session) matViews(ctx context.Context, relations []relation) ([]object, error) {
	if !slices.ContainsFunc(relations, func(r relation) bool { return r.Kind == kindMatView }) {
		return nil, nil
	}
	return collect(ctx, s, "look for materialized views", pgx.RowToStructByPos[object], `
		select 'pg_class'::regclass::oid, c.oid, a.type, a.object_names, a.object_args, pg_describe_object('pg_class'::regclass, c.oid, 0)
		from pg_class c cross join lateral pg_identify_object_as_address('pg_class'::regclass, c.oid, 0) a
		where c.oid = any($1) and c.relkind = 'm' order by c.oid`, oids(relations))
}

// toTables makes tables of the materialized views among relations of the copy: these differ in nothing but their rule, and what pg_class says of it.
func (s *session) toTables(ctx context.Context, relations []relation) error {
	sql := "BEGIN"
	for i := range relations {
		if r := &relations[i]; r.Kind == kindMatView {
			r.Kind, r.View = kindTable, true
			sql += fmt.Sprintf(`;
				delete from pg_depend where classid = 'pg_rewrite'::regclass and objid in (select oid from pg_rewrite where ev_class = %d);
				delete from pg_rewrite where ev_class = %[1]d;
				update pg_class set relkind = 'r', relhasrules = false, relispopulated = true where oid = %[1]d`, r.OID)
		}
	}
	if sql == "BEGIN" {
		return nil
	}
	return s.exec(ctx, "make tables of materialized views", sql+"; COMMIT")
}
