// Package bringback brings tables and databases from a private copy of a cluster into the live server, or into a file.
//
// The copy is ours alone and takes writes: tables are renamed there, where their names are taken on the live side, and foreign keys that reach out of what
// is brought are taken off, so that what pg_dump says of them can be loaded as it is. Everything of one database arrives in one transaction: all rows are
// there, or nothing is. What else belongs to them and cannot be had there (an owner that is gone, a trigger without its function) is left away
// and told, with the statement to type.
//
// Live traffic goes on: nothing but new tables is locked for longer than a moment, foreign keys are added NOT VALID and validated afterwards, and where a
// lock is not to be had soon, we go without and say so.
//
// pg_dump talks to the copy only. Statements and rows reach the live server through a session of this process, so no program is told a password.
package bringback

import (
	"log/slog"
	"slices"
	"syscall"

	"github.com/jackc/pgx/v5"

	"holdfast/internal/pg/instance"
	"holdfast/internal/pg/server"
)

// Copy is the server to bring from. It must take writes, and nobody else may use it: it is changed.
type Copy struct {
	Socket   string              // directory of its socket
	Port     int                 // 0 means 5432
	Role     string              // a superuser, who is let in without a password
	Programs instance.Programs   // of its version; pg_dump is looked for there first
	Search   []string            // where to look for pg_dump after that, before the usual places; may be patterns of filepath.Glob
	Account  *syscall.Credential // as whom pg_dump runs; nil means as ourselves
}

// Live is the server to bring to.
type Live struct {
	Config server.Config // dbname is only where to begin: tables go into the database of their name
}

// Table names a table. Names are as they are in the catalogue, without quotation marks.
type Table struct {
	Database string `json:"database"`
	Schema   string `json:"schema"` // "" means public
	Name     string `json:"name"`
}

// String quotes the name where SQL needs it: shop.public.orders, shop."Odd Schema"."T".
func (t Table) String() string { return quoteIfNeeded(t.Database) + "." + t.Local() }

// Local is String without the database.
func (t Table) Local() string { return quoteIfNeeded(t.Schema) + "." + quoteIfNeeded(t.Name) }

// identifier is Local for SQL.
func (t Table) identifier() string { return pgx.Identifier{t.Schema, t.Name}.Sanitize() }

// Options says how to bring. The zero value brings into the live server, under names that are free there, and compares nothing.
type Options struct {
	As           string       // name of the one table, in its schema; "" means its own, or with _recovered behind it where that is taken
	IntoDatabase string       // database of the live server to load into; a whole database gets this name, and must not exist
	Dump         string       // file to make instead, in pg_dump's custom format, or as SQL if its name ends in .sql; no server is touched
	Diff         bool         // compare tables that are brought with those of their names that are there
	Logger       *slog.Logger // nil discards
}

// Report is what was brought.
type Report struct {
	Server   string      `json:"server,omitempty"` // host and port of the live server
	Database string      `json:"database,omitempty"`
	Whole    bool        `json:"whole_database,omitempty"` // all of it was brought
	Dump     string      `json:"dump,omitempty"`           // the file that was made
	Bytes    int64       `json:"bytes,omitempty"`          // of rows, as COPY has them; or of the file
	Tables   []Recovered `json:"tables,omitempty"`
	Left     []Left      `json:"left,omitempty"`
	Notes    []string    `json:"notes,omitempty"`
	Seconds  float64     `json:"seconds"`
}

// Recovered is one of the tables that were asked for, or one of a whole database.
type Recovered struct {
	Table Table `json:"table"`
	As    Table `json:"as"`              // where it is on the live server, in a file as Table
	Parts int   `json:"parts,omitempty"` // how many partitions or children came with it
	Rows  int64 `json:"rows"`            // those of its parts among them
	Diff  *Diff `json:"diff,omitempty"`  // nil where it was not compared
}

// account reports on the tables of relations, each of which has its parts behind it, with the rows that there are of each.
func (r *Report) account(relations []relation, from, into string, rows func(*relation) (int64, error)) error {
	note := func(n string) {
		if !slices.Contains(r.Notes, n) {
			r.Notes = append(r.Notes, n)
		}
	}
	for i := range relations {
		rel := &relations[i]
		if !rel.Below {
			r.Tables = append(r.Tables, Recovered{Table: Table{from, rel.Schema, rel.Name}, As: Table{into, rel.Schema, rel.as}})
		}
		one := &r.Tables[len(r.Tables)-1]
		n, err := rows(rel)
		if err != nil {
			return err
		}
		one.Rows += n
		if rel.Below {
			one.Parts++
		}
		if rel.Kind == kindForeign {
			note(rel.was().Local() + " is a foreign table: its rows are where they were")
		}
		if rel.Persistence == "u" {
			note(one.Table.String() + " is unlogged, or has parts that are: rows of such tables are in no backup, and are lost")
		}
	}
	return nil
}

// Left is a statement that was not carried out on the live server, or that the operator has to decide about.
type Left struct {
	Database string `json:"database"`
	SQL      string `json:"sql"`
	Why      string `json:"why"`
}

// Diff says how the rows that were brought differ from those of the live table.
type Diff struct {
	With      Table    `json:"with"`                  // the live table
	Key       []string `json:"key,omitempty"`         // columns by which rows were matched; none: whole rows were counted
	OnlyThere int64    `json:"only_live"`             // rows of the live table that were not brought
	OnlyHere  int64    `json:"only_recovered"`        // rows that were brought and are not in the live table
	Changed   int64    `json:"changed"`               // of the same key, with other values
	Same      int64    `json:"same"`                  //
	Examples  Examples `json:"examples"`              // at most ten of each
	Columns   []string `json:"columns,omitempty"`     // that differ in the changed rows among the examples
	NotInLive []string `json:"not_in_live,omitempty"` // columns that were not compared: the live table does not have them
	NotInCopy []string `json:"not_in_copy,omitempty"` // or only it has
	Failed    bool     `json:"failed,omitempty"`      // nothing was compared, and Note says why
	Gone      bool     `json:"gone,omitempty"`        // for the live database does not have the table now; Failed holds, too
	Note      string   `json:"note,omitempty"`        // why nothing, or not all, was compared
}

// Examples are keys, each as SQL shows a row: (1,"a b").
type Examples struct {
	OnlyThere []string  `json:"only_live,omitempty"`
	OnlyHere  []string  `json:"only_recovered,omitempty"`
	Changed   []Changed `json:"changed,omitempty"`
}

// Changed is a row that is there on both sides.
type Changed struct {
	Key     string   `json:"key"`
	Columns []string `json:"columns"` // that differ
}

// RefusedError says why something cannot be brought as asked. Nothing was changed on the live server.
type RefusedError struct {
	Err    error
	Advice string
}

func (e *RefusedError) Error() string { return e.Err.Error() }
func (e *RefusedError) Unwrap() error { return e.Err }

// Hint says what to do about it.
func (e *RefusedError) Hint() string { return e.Advice }
