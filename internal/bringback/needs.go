package bringback

import (
	"context"
	"slices"

	"github.com/jackc/pgx/v5"
)

// object is an object of the copy's catalogues, and how another server would find it (pg_get_object_address).
type object struct {
	Class, OID uint32
	Type       string
	Names      []string
	Args       []string
	Text       string // for people
}

// needs lists what relations need beside other tables: schemas, types, functions, collations, sequences that others own, and extensions instead of what is in them.
// Those on which others build come in no order.
func (s *session) needs(ctx context.Context, relations []relation) ([]object, error) {
	return collect(ctx, s, "look for what its tables need", pgx.RowToStructByPos[object], `
		with recursive own(classid, objid) as (
			select 'pg_class'::regclass::oid, r from unnest($1::oid[]) r
			union all select 'pg_class'::regclass, indexrelid from pg_index where indrelid = any($1)
			union all select 'pg_attrdef'::regclass, oid from pg_attrdef where adrelid = any($1)
			union all select 'pg_constraint'::regclass, oid from pg_constraint where conrelid = any($1) and contype <> 'f'
			union all select 'pg_trigger'::regclass, oid from pg_trigger where tgrelid = any($1) and not tgisinternal
			union all select 'pg_policy'::regclass, oid from pg_policy where polrelid = any($1)
			union all select 'pg_rewrite'::regclass, oid from pg_rewrite where ev_class = any($1)
			union all select 'pg_statistic_ext'::regclass, oid from pg_statistic_ext where stxrelid = any($1)
			union all select d.classid, d.objid from pg_depend d join pg_class c on c.oid = d.objid
				where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass and d.refobjid = any($1) and d.deptype in ('a', 'i') and c.relkind = 'S'
		), need(classid, objid) as (
			select classid, objid from own
			union
			select d.refclassid, d.refobjid from need n join pg_depend d on d.classid = n.classid and d.objid = n.objid
			where d.refclassid <> 0 and (d.refclassid <> 'pg_class'::regclass or exists (select from pg_class c where c.oid = d.refobjid and c.relkind in ('c', 'S')))
				and not exists (select from pg_depend e where e.classid = n.classid and e.objid = n.objid and e.deptype = 'e' and d.deptype <> 'e')
		)
		select n.classid, n.objid, a.type, a.object_names, a.object_args, pg_describe_object(n.classid, n.objid, 0)
		from need n cross join lateral pg_identify_object_as_address(n.classid, n.objid, 0) a
		where not exists (select from own o where o.classid = n.classid and o.objid = n.objid) and a.object_names is not null
			and n.classid <> all(array['pg_constraint', 'pg_attrdef', 'pg_trigger', 'pg_policy', 'pg_rewrite']::regclass[])
			and not exists (select from pg_depend e where e.classid = n.classid and e.objid = n.objid and e.deptype = 'e')
			and not exists (select from pg_type t where n.classid = 'pg_type'::regclass and t.oid = n.objid and (t.typelem <> 0 and t.typlen = -1 or t.oid = any (select reltype from pg_class where oid = any($1))))
		limit 100000`, oids(relations))
}

// dependents lists views and functions that are built on relations.
func (s *session) dependents(ctx context.Context, relations []relation) ([]object, error) {
	return collect(ctx, s, "look for what is built on its tables", pgx.RowToStructByPos[object], `
		with recursive own(classid, objid) as (
			select 'pg_class'::regclass::oid, r from unnest($1::oid[]) r
			union all select 'pg_type'::regclass, reltype from pg_class where oid = any($1) and reltype <> 0
			union all select 'pg_type'::regclass, t.typarray from pg_class c join pg_type t on t.oid = c.reltype where c.oid = any($1) and t.typarray <> 0
		), dependent(classid, objid) as (
			select classid, objid from own
			union
			select x.classid, x.objid from dependent n join pg_depend d on d.refclassid = n.classid and d.refobjid = n.objid
				left join pg_rewrite w on d.classid = 'pg_rewrite'::regclass and w.oid = d.objid
				left join pg_class v on v.oid = w.ev_class
				cross join lateral (values (case when w.oid is null then d.classid else 'pg_class'::regclass end, case when w.oid is null then d.objid else w.ev_class end),
					('pg_type'::regclass, v.reltype)) x(classid, objid)
			where x.objid is not null and x.objid <> 0 and d.deptype in ('n', 'a', 'i')
				and (d.classid = 'pg_proc'::regclass or d.classid = 'pg_rewrite'::regclass and v.relkind in ('v', 'm'))
		)
		select n.classid, n.objid, a.type, a.object_names, a.object_args, pg_describe_object(n.classid, n.objid, 0)
		from dependent n cross join lateral pg_identify_object_as_address(n.classid, n.objid, 0) a
		where n.classid in ('pg_class'::regclass, 'pg_proc'::regclass) and not exists (select from own o where o.classid = n.classid and o.objid = n.objid)
			and a.object_names is not null
		limit 100000`, oids(relations))
}

// lacks returns which of the objects the session's database does not have.
func (s *session) lacks(ctx context.Context, all []object) (missing []object, err error) {
	for _, o := range all {
		args := o.Args
		if args == nil {
			args = []string{}
		}
		var there bool
		err := s.QueryRow(ctx, `select objid is not null from pg_get_object_address($1, $2, $3)`, o.Type, o.Names, args).Scan(&there)
		if is(err, "22023") { // invalid_parameter_value: a kind of object that this server cannot be asked for; what needs it tells
			continue
		}
		if err != nil && !notThere(err) {
			return nil, s.failed(ctx, "look for "+o.Text, err)
		}
		if err != nil || !there {
			missing = append(missing, o)
		}
	}
	return missing, nil
}

// notThere reports whether an error says that there is no such object.
func notThere(err error) bool {
	for _, code := range [...]string{
		"42704", "42883", "42P01", "3F000", "42703", // undefined: object, function, table, schema, column
		"42602", "42809", // invalid_name, wrong_object_type: of that name there is something else
	} {
		if is(err, code) {
			return true
		}
	}
	return false
}

// definitions returns the statements that make objects, as pg_dump has them and in its order, with their owners, comments and grants.
func (c *Copy) definitions(ctx context.Context, path string, s *session, all []object) (statements []string, of []int, err error) {
	if len(all) == 0 {
		return nil, nil, nil
	}
	wanted, entries := map[[2]uint32]int{}, map[int]int{}
	for i, o := range all {
		wanted[[2]uint32{o.Class, o.OID}] = i
	}
	args := []string{"--verbose", "--schema-only", "--no-publications", "--no-subscriptions"}
	err = c.read(ctx, path, s.encoding, s.Config().Database, args, func(in *script) error {
		for {
			sql, err := in.next()
			if err != nil {
				return endOf(err)
			}
			if sql[0] == '\\' || isSetting(sql) {
				continue
			}
			i, ok := wanted[[2]uint32{in.entry.class, in.entry.oid}]
			if ok {
				entries[in.entry.id] = i
			} else if in.entry.class == 0 { // a comment or grants of another entry
				if n := slices.IndexFunc(in.entry.needs, func(n int) bool { _, ok := entries[n]; return ok }); n >= 0 {
					i, ok = entries[in.entry.needs[n]], true
				}
			}
			if ok {
				statements, of = append(statements, sql), append(of, i)
			}
		}
	})
	return statements, of, err
}
