package bringback

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Tables brings tables, and their partitions and children, into the databases of their names on the live server: each under its own name where that is free, else with
// _recovered behind it. Those of one database come in one transaction. What went before an error is in the report, which is never nil.
//
// Of a materialized view the rows are brought, as they were, into a table, always with _recovered behind its name; how it is made anew is told where it is gone.
//
// The copy is changed: foreign keys between what is brought and other tables are gone from it, and materialized views that are brought are tables.
func Tables(ctx context.Context, c Copy, l Live, tables []Table, o Options) (*Report, error) {
	begun := time.Now()
	r := &Report{}
	defer func() { r.Seconds = time.Since(begun).Seconds() }()
	o.Logger = cmp.Or(o.Logger, slog.New(slog.DiscardHandler))
	tables = slices.Clone(tables)
	var databases []string
	for i := range tables {
		tables[i].Schema = cmp.Or(tables[i].Schema, "public")
		if !slices.Contains(databases, tables[i].Database) {
			databases = append(databases, tables[i].Database)
		}
	}
	switch {
	case len(tables) == 0:
		return r, errors.New("no tables to bring back")
	case o.As != "" && len(tables) > 1:
		return r, &RefusedError{fmt.Errorf("one name for %d tables", len(tables)), "--as goes with one table"}
	case o.Dump != "" && len(databases) > 1:
		return r, &RefusedError{fmt.Errorf("one file for tables of %d databases", len(databases)), "make one file for each database"}
	}
	path, err := c.findDump(ctx)
	if err != nil {
		return r, err
	}
	for _, d := range databases {
		var some []Table
		for _, t := range tables {
			if t.Database == d {
				some = append(some, t)
			}
		}
		if o.Dump != "" {
			return r, c.dumpTables(ctx, path, d, some, &o, r)
		}
		b := bringing{copy: &c, live: &l, options: &o, report: r, dump: path, from: d, into: cmp.Or(o.IntoDatabase, d), wanted: some}
		if err := b.run(ctx); err != nil {
			return r, err
		}
	}
	return r, nil
}

// bringing is the way of the tables of one database.
type bringing struct {
	copy    *Copy
	live    *Live
	options *Options
	report  *Report
	dump    string // path of pg_dump
	from    string // database
	into    string
	wanted  []Table

	cp, lv    *session
	relations []relation
	renamed   []bool   // by index of wanted
	back      []string // statements that give what was renamed in the copy its names back
	descents  []descent
	out, in   []foreignKey
	needed    []string // statements that make what the live server lacks
	missing   []object
	built     []Left // views that went
	loader    *loader
}

func (b *bringing) run(ctx context.Context) (err error) {
	if b.cp, err = b.copy.open(ctx, b.from); err != nil {
		if is(err, "3D000") { // invalid_catalog_name
			return noDatabase(b.from)
		}
		return err
	}
	defer b.cp.end(ctx)
	if b.relations, err = b.cp.find(ctx, b.wanted); err != nil {
		return err
	}
	if b.lv, err = b.live.open(ctx, b.into); err != nil {
		if is(err, "3D000") {
			return &RefusedError{fmt.Errorf("the live server has no database %s", quoteIfNeeded(b.into)),
				"create it, name another that is there (--into-database), bring all of it (--database), or make a file (--dump FILE)"}
		}
		return err
	}
	defer b.lv.end(ctx)
	b.report.Server, b.report.Database = b.lv.address(), b.into
	b.loader = &loader{session: b.lv, database: b.into, rows: map[string]int64{}}
	defer b.tell()
	defer func() { err = errors.Join(err, b.restore(context.WithoutCancel(ctx))) }()
	if err := b.prepare(ctx); err != nil {
		return err
	}
	if err := b.publish(ctx); err != nil { // told before, when it can be stopped
		return err
	}
	if err := b.load(ctx); err != nil {
		return err
	}
	b.options.Logger.Info("the tables are there", "database", b.into, "tables", len(b.wanted), "bytes", b.loader.bytes)
	first := len(b.report.Tables)
	if err := b.report.account(b.relations, b.from, b.into, b.loader.loaded); err != nil {
		return err
	}
	if err := b.finish(ctx); err != nil {
		return err
	}
	if !b.options.Diff {
		return nil
	}
	return b.compare(ctx, b.report.Tables[first:])
}

// compare compares what was brought with the tables of those names that were there before.
func (b *bringing) compare(ctx context.Context, all []Recovered) (err error) {
	c := comparison{copy: b.copy, live: b.live, database: b.from}
	defer c.close(ctx)
	for i := range all {
		if !b.renamed[i] && b.options.IntoDatabase == "" {
			continue // there was none
		}
		root, r := b.root(i), &all[i]
		if r.Diff, err = c.table(ctx, root); err != nil {
			return err
		}
		if root.Kind == kindTable && r.Parts > 0 && r.Diff != nil && !r.Diff.Failed {
			r.Diff.note("rows of its children were not compared")
		}
	}
	return nil
}

// restore gives what was renamed in the copy its names back.
func (b *bringing) restore(ctx context.Context) error {
	if len(b.back) == 0 {
		return nil
	}
	s, err := b.copy.open(ctx, b.from) // whatever state b.cp is in
	if err != nil {
		return err
	}
	defer s.end(ctx)
	return s.exec(ctx, "rename tables back", "BEGIN; "+strings.Join(b.back, "; ")+"; COMMIT")
}

// tell moves what the loader has to say into the report.
func (b *bringing) tell() {
	b.report.Left = append(b.report.Left, b.loader.left...)
	b.report.Notes = append(b.report.Notes, b.loader.notes...)
	b.report.Bytes += b.loader.bytes
}

// prepare changes the copy so that its dump can be loaded, and finds out what that needs.
func (b *bringing) prepare(ctx context.Context) (err error) {
	if err := b.plain(ctx); err != nil {
		return err
	}
	if b.descents, err = b.cp.detach(ctx, b.relations); err != nil {
		return err
	}
	needs, err := b.cp.needs(ctx, b.relations)
	if err != nil {
		return err
	}
	if b.missing, err = b.lv.lacks(ctx, needs); err != nil {
		return err
	}
	if b.renamed, b.back, err = rename(ctx, b.cp, b.lv, b.relations, len(b.wanted), b.options.As); err != nil {
		return err
	}
	if b.out, b.in, err = b.cp.foreignKeys(ctx, b.relations); err != nil {
		return err
	}
	if err = b.cp.takeOff(ctx, b.out); err != nil {
		return err
	}
	if b.into != b.from {
		b.in = nil // what refers to it is not there
	}
	// Who asks for a table back under its name wants the views too that went with it.
	var own []relation
	for _, r := range b.relations {
		if !b.renamed[r.Root] && b.into == b.from && !r.View {
			own = append(own, r)
		}
	}
	gone, err := b.gone(ctx, own)
	if err != nil {
		return err
	}
	statements, of, err := b.copy.definitions(ctx, b.dump, b.cp, slices.Concat(b.missing, gone))
	if err != nil {
		return err
	}
	made := map[int]bool{}
	for i, sql := range statements {
		made[of[i]] = true
		if of[i] < len(b.missing) {
			b.needed = append(b.needed, sql)
		} else {
			b.built = append(b.built, Left{b.into, valid(sql), gone[of[i]-len(b.missing)].went()})
		}
	}
	if err := b.fill(ctx, gone, object.went); err != nil {
		return err
	}
	var schemas []string
	for i, o := range b.missing {
		if o.Type == "schema" && !made[i] && len(o.Names) == 1 { // public, which pg_dump takes for granted
			schemas = append(schemas, "CREATE SCHEMA "+pgx.Identifier{o.Names[0]}.Sanitize()+";")
		}
	}
	b.needed = slices.Concat(schemas, b.needed)
	return nil
}

// gone lists what is built on relations and is not on the live server any more.
func (b *bringing) gone(ctx context.Context, relations []relation) ([]object, error) {
	if len(relations) == 0 {
		return nil, nil
	}
	built, err := b.cp.dependents(ctx, relations)
	if err != nil {
		return nil, err
	}
	return b.lv.lacks(ctx, built)
}

func (o object) went() string { return o.Text + " was built on it, and is gone" }

// load carries out the dump of the tables, all of it or nothing.
func (b *bringing) load(ctx context.Context) (err error) {
	if err := b.lv.exec(ctx, "begin", "BEGIN; SET LOCAL lock_timeout = '10s'"); err != nil {
		return err
	}
	for _, sql := range b.needed {
		if err := b.loader.statement(ctx, sql); err != nil {
			return err
		}
	}
	for _, o := range b.missing {
		if o.Type == "sequence" && len(o.Names) == 2 {
			b.setSequence(ctx, pgx.Identifier(o.Names).Sanitize())
		}
	}
	args := []string{"--strict-names", "--no-publications", "--no-subscriptions"}
	for i := range b.relations {
		args = append(args, "-t", b.relations[i].identifier())
	}
	b.loader.loose = b.loose
	if err := b.copy.read(ctx, b.dump, b.cp.encoding, b.from, args, func(in *script) error { return b.loader.run(ctx, in) }); err != nil {
		return err
	}
	b.loader.loose = nil
	if err := b.pin(ctx); err != nil {
		return err
	}
	statistics, err := collect(ctx, b.cp, "look for statistics objects", pgx.RowTo[string],
		`select pg_get_statisticsobjdef(oid) from pg_statistic_ext where stxrelid = any($1) order by oid`, oids(b.relations))
	if err != nil {
		return err
	}
	for _, sql := range statistics {
		if err := b.loader.statement(ctx, sql+";"); err != nil {
			return err
		}
	}
	if err := b.lv.exec(ctx, "commit", "COMMIT"); err != nil {
		return err
	}
	return nil
}

// pin brings back those of our settings that a dump has changed.
func (b *bringing) pin(ctx context.Context) error {
	return b.lv.exec(ctx, "go back to settings of ours", "SET client_encoding = 'UTF8'; SET search_path = pg_catalog")
}

// setSequence brings the value of a sequence that is nobody's.
func (b *bringing) setSequence(ctx context.Context, name string) {
	var last int64
	var called bool
	if err := b.cp.QueryRow(ctx, "select last_value, is_called from "+name).Scan(&last, &called); err != nil {
		b.loader.note("the value of sequence %s is not known: %v", name, err)
		return
	}
	sql := fmt.Sprintf("SELECT pg_catalog.setval(%s, %d, %t);", literal(name), last, called)
	if err := b.loader.try(ctx, sql); err != nil {
		b.loader.leave(sql, err.Error())
	}
}

// literal is a string in SQL.
func literal(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// loose says which statements are not to be carried out: those that make what is brought a part of a table that is not.
func (b *bringing) loose(ctx context.Context, sql string) (why string, skip bool) {
	for _, begin := range [...]string{"ALTER TABLE ONLY ", "ALTER TABLE ", "ALTER INDEX "} {
		rest, ok := strings.CutPrefix(sql, begin)
		if !ok {
			continue
		}
		parent, rest, err := qualified(rest)
		if err != nil || !strings.HasPrefix(rest, " ATTACH PARTITION ") {
			return "", false
		}
		if begin == "ALTER INDEX " {
			// That of a partition to that of its table, which comes along if the table does.
			return "", !b.ownsIndex(ctx, parent)
		}
		if slices.ContainsFunc(b.relations, func(r relation) bool { return r.now() == parent }) {
			return "", false
		}
		return "it was a partition of " + parent.Local() + ": whether its rows fit there now has to be looked at", true
	}
	return "", false
}

// ownsIndex reports whether an index is of a table that is brought.
func (b *bringing) ownsIndex(ctx context.Context, index Table) bool {
	var of uint32
	err := b.cp.QueryRow(ctx, `select i.indrelid from pg_index i join pg_class c on c.oid = i.indexrelid join pg_namespace n on n.oid = c.relnamespace
		where n.nspname = $1 and c.relname = $2`, index.Schema, index.Name).Scan(&of)
	return err == nil && brought(b.relations, of) != nil
}

// root is the i-th of the tables that were asked for.
func (b *bringing) root(i int) *relation {
	return &b.relations[slices.IndexFunc(b.relations, func(r relation) bool { return r.Root == i && !r.Below })]
}

// finish adds what binds the tables to others, each for itself.
func (b *bringing) finish(ctx context.Context) error {
	l := b.loader
	for i := range b.descents {
		d := &b.descents[i]
		if r := brought(b.relations, d.Child); !b.renamed[r.Root] {
			l.leave("ALTER TABLE "+r.identifier()+" INHERIT "+d.parent().identifier()+";", "it was a child of "+d.parent().Local()+", where its rows were seen too")
		}
	}
	l.left = append(l.left, b.built...)
	for i := range b.out {
		k := &b.out[i]
		if b.renamed[brought(b.relations, k.From).Root] {
			l.leave(k.add(), "it is brought beside the live table: bound to others it would get into the way of what happens there")
			continue
		}
		if _, err := l.bind(ctx, k); err != nil {
			return err
		}
	}
	for i := range b.in {
		if k := &b.in[i]; !b.renamed[brought(b.relations, k.To).Root] {
			if _, err := l.bind(ctx, k); err != nil {
				return err
			}
		}
	}
	for i := range b.relations {
		if r := &b.relations[i]; r.Kind != kindForeign && !(r.Below && b.root(r.Root).Kind == kindPartitioned) { // of that, ANALYZE looks at all parts
			if why, err := l.lockingly(ctx, "ANALYZE "+r.identifier()); err != nil {
				return err
			} else if why != "" {
				l.leave("ANALYZE "+r.identifier()+";", why)
			}
		}
	}
	return b.published(ctx)
}

// published tells about publications: what a subscriber lacks stops it.
func (b *bringing) published(ctx context.Context) error {
	was, err := collect(ctx, b.cp, "look for publications", pgx.RowToStructByPos[struct {
		Publication string
		Table       uint32
	}], `select p.pubname::text, r.prrelid from pg_publication_rel r join pg_publication p on p.oid = r.prpubid where r.prrelid = any($1) order by 1`, oids(b.relations))
	if err != nil {
		return err
	}
	for _, w := range was {
		if r := brought(b.relations, w.Table); !b.renamed[r.Root] {
			b.loader.leave("ALTER PUBLICATION "+pgx.Identifier{w.Publication}.Sanitize()+" ADD TABLE "+r.identifier()+";", "it was published: subscribers have its former rows")
		}
	}
	return nil
}

// publish tells which publications will publish what is brought, by themselves: its rows go to their subscribers.
func (b *bringing) publish(ctx context.Context) error {
	var schemas []string
	for i := range b.relations {
		schemas = append(schemas, b.relations[i].Schema)
	}
	of := ""
	if b.lv.version >= 15_00_00 {
		of = ` union select p.pubname::text, n.nspname::text from pg_publication p join pg_publication_namespace s on s.pnpubid = p.oid join pg_namespace n on n.oid = s.pnnspid
			where p.pubinsert and n.nspname = any($1)`
	}
	all, err := collect(ctx, b.lv, "look for publications", pgx.RowToStructByPos[struct{ Name, Schema string }],
		`select pubname::text, '' from pg_publication where puballtables and pubinsert and $1::text[] is not null`+of+` order by 1, 2`, schemas)
	if err != nil {
		return err
	}
	for _, p := range all {
		what := "all tables"
		if p.Schema != "" {
			what = "all tables in schema " + quoteIfNeeded(p.Schema)
		}
		b.loader.note("publication %s publishes %s, these too: a subscriber needs tables of these names, empty ones, or it stops", quoteIfNeeded(p.Name), what)
		b.options.Logger.Warn(valid(fmt.Sprintf("publication %s of database %s publishes %s: a subscriber that has none of these names will stop", quoteIfNeeded(p.Name), quoteIfNeeded(b.into), what)))
	}
	return nil
}

// isSetting reports whether a statement of pg_dump's only changes its session.
func isSetting(sql string) bool {
	return strings.HasPrefix(sql, "SET ") || strings.HasPrefix(sql, "SELECT pg_catalog.set_config(")
}

// endOf is err, but for the end of a script.
func endOf(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
