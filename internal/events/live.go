package events

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"holdfast/internal/pg/server"
)

// Live asks a running server for names: as they are now. It is used by one goroutine.
type Live struct {
	config    server.Config
	databases map[uint32]server.Database // nil before they were asked for
}

// FromServer returns the names that a server knows. It connects when it is asked.
func FromServer(cfg server.Config) *Live { return &Live{config: cfg} }

// Database asks for the names in a database. It is nil where the server has no such database, or lets nobody connect to it.
func (l *Live) Database(ctx context.Context, oid uint32) (*Database, error) {
	if l.databases == nil {
		if err := l.list(ctx); err != nil {
			return nil, fmt.Errorf("names in the server's databases: %w", err)
		}
	}
	db, ok := l.databases[oid]
	if !ok || !db.Connectable {
		return nil, nil
	}
	d, err := l.database(ctx, db)
	if err != nil {
		return nil, fmt.Errorf("names in the server's database %s: %w", db.Name, err)
	}
	return d, nil
}

// list asks for the databases.
func (l *Live) list(ctx context.Context) error {
	c, err := server.Connect(ctx, l.config)
	if err != nil {
		return err
	}
	defer c.Close() // it holds nothing
	all, err := c.Databases(ctx)
	if err != nil {
		return err
	}
	l.databases = map[uint32]server.Database{}
	for _, db := range all {
		l.databases[db.OID] = db
	}
	return nil
}

func (l *Live) database(ctx context.Context, db server.Database) (*Database, error) {
	cfg := maps.Clone(l.config)
	if cfg == nil {
		cfg = server.Config{}
	}
	cfg["dbname"] = db.Name
	c, err := server.Connect(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer c.Close() // it holds nothing
	d := &Database{OID: db.OID, Name: db.Name}
	if d.Schemas, err = c.Schemas(ctx); err != nil {
		return nil, err
	}
	err = c.Relations(ctx, func(r server.Relation) error {
		if len(r.Kind) != 1 || len(r.Persistence) != 1 {
			return errors.New("pg_class has a relation of no kind")
		}
		d.Relations = append(d.Relations, Named{OID: r.OID, Schema: d.Schemas[r.Schema], Name: r.Name, Kind: Kind(r.Kind[0]), Persistence: r.Persistence[0], File: r.File, Namespace: r.Schema})
		return nil
	})
	return d, err
}

// String names the source.
func (l *Live) String() string { return "the server" }
