package server

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// Database is a database of a server.
type Database struct {
	OID         uint32
	Name        string
	Connectable bool // template0 is not
}

// Databases returns the server's databases.
func (c *Conn) Databases(ctx context.Context) (all []Database, err error) {
	err = c.each(ctx, "ask PostgreSQL for its databases", `select oid, datname::text, datallowconn from pg_catalog.pg_database`, func(rows pgx.Rows) error {
		var d Database
		if err := rows.Scan(&d.OID, &d.Name, &d.Connectable); err != nil {
			return err
		}
		all = append(all, d)
		return nil
	})
	return all, err
}

// Relation is a relation of the database that the session is with, as pg_class has it.
type Relation struct {
	OID         uint32
	Schema      uint32 // OID
	Name        string
	Kind        string // relkind, one letter
	Persistence string // relpersistence, one letter
	File        uint32 // the number in the names of its files; 0 where it has none
}

// Schemas returns the names of the schemas of the database, by OID.
func (c *Conn) Schemas(ctx context.Context) (map[uint32]string, error) {
	names := map[uint32]string{}
	err := c.each(ctx, "ask PostgreSQL for its schemas", `select oid, nspname::text from pg_catalog.pg_namespace`, func(rows pgx.Rows) error {
		var oid uint32
		var name string
		if err := rows.Scan(&oid, &name); err != nil {
			return err
		}
		names[oid] = name
		return nil
	})
	return names, err
}

// Relations calls do for each relation of the database but temporary ones, until one call returns an error.
func (c *Conn) Relations(ctx context.Context, do func(Relation) error) error {
	return c.each(ctx, "ask PostgreSQL for its relations", `
		select oid, relnamespace, relname::text, relkind::text, relpersistence::text, coalesce(pg_catalog.pg_relation_filenode(oid), 0)
		from pg_catalog.pg_class where relpersistence <> 't'`, func(rows pgx.Rows) error {
		var r Relation
		if err := rows.Scan(&r.OID, &r.Schema, &r.Name, &r.Kind, &r.Persistence, &r.File); err != nil {
			return err
		}
		return do(r)
	})
}

// each runs a query and calls do for each row, until one call returns an error. op is what an error says was being done.
func (c *Conn) each(ctx context.Context, op, sql string, do func(pgx.Rows) error) error {
	if err := c.acquire(ctx); err != nil {
		return &Error{Op: op, Err: err}
	}
	defer c.release()
	return c.scoped(ctx, func() error {
		rows, err := c.pg.Query(ctx, sql, c.arguments(nil)...)
		if err != nil {
			return c.error(ctx, op, err)
		}
		defer rows.Close()
		for rows.Next() {
			if err := do(rows); err != nil {
				return err
			}
		}
		if err := rows.Err(); err != nil {
			return c.error(ctx, op, err)
		}
		return nil
	})
}
