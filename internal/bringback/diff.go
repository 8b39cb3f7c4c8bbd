package bringback

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// comparison compares tables of a database of the copy with those of the live one of its name. Close it.
type comparison struct {
	copy     *Copy
	live     *Live
	database string
	cp, lv   *session // of its own: what does not come to its end is lost
	refused  error    // why there is no session with the live database and will be none: it is asked for once
}

func (c *comparison) close(ctx context.Context) {
	for _, s := range []**session{&c.cp, &c.lv} {
		if *s != nil {
			(*s).end(ctx)
			*s = nil
		}
	}
}

// table compares one table. Where there is no such table on the live server, or no such database, there is nothing to say: nil. Why it could not be compared is said in what is returned; an
// error is about the context.
func (c *comparison) table(ctx context.Context, root *relation) (d *Diff, err error) {
	d = &Diff{With: Table{Database: c.database, Schema: root.Schema, Name: root.Name}}
	defer func() {
		if err == nil {
			return
		}
		c.close(ctx)
		if is(err, "3D000") { // invalid_catalog_name
			d, err = nil, nil
		} else if ctx.Err() == nil {
			d.fail(valid("it could not be compared: " + err.Error()))
			err = nil
		}
	}()
	if c.refused != nil {
		return d, c.refused
	}
	if c.lv == nil {
		if c.lv, err = c.live.open(ctx, c.database); err != nil {
			if lasts(err) {
				c.refused = err
			}
			return d, err
		}
	}
	kinds, err := collect(ctx, c.lv, "look for "+d.With.String(), pgx.RowTo[string],
		`select c.relkind::text from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname = $1 and c.relname = $2`, root.Schema, root.Name)
	if err != nil {
		return d, err
	}
	switch {
	case len(kinds) == 0:
		return nil, nil
	case kinds[0] != kindTable && kinds[0] != kindPartitioned && kinds[0] != kindMatView:
		d.fail("it is a " + kindName(kinds[0]) + " now: not compared")
		return d, nil
	case c.cp == nil:
		if c.cp, err = c.copy.open(ctx, c.database); err != nil {
			return d, err
		}
	}
	return d, differ(ctx, c.cp, c.lv, root, kinds[0], d)
}

// lasts reports whether a session that was not begun for err would not be begun a moment later, or only after a long wait again. What else a server answers comes at once, and may pass: that
// it starts up, say, or has too many clients.
func lasts(err error) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return true
	}
	switch pg.Code {
	case "55000", "42501", "28000": // object_not_in_prerequisite_state: nobody is let in; insufficient_privilege; invalid_authorization_specification
		return true
	}
	return false
}

// fail says why nothing was compared. What was counted until then is worth nothing.
func (d *Diff) fail(why string) {
	*d = Diff{With: d.With, NotInLive: d.NotInLive, NotInCopy: d.NotInCopy, Failed: true, Note: why}
}

// note adds what else was not compared.
func (d *Diff) note(text string) {
	if d.Note != "" {
		text = d.Note + "; " + text
	}
	d.Note = text
}

// column is a column of a table.
type column struct {
	Name      string
	Type      string // with its modifier
	Base      string // its name in pg_type, if that is PostgreSQL's own
	Generated bool
}

func (s *session) columns(ctx context.Context, t Table) ([]column, error) {
	return collect(ctx, s, "list the columns of "+t.Local(), pgx.RowToStructByPos[column], `
		select a.attname::text, format_type(a.atttypid, a.atttypmod), case when y.typnamespace = 'pg_catalog'::regnamespace then y.typname::text else '' end,
			coalesce(to_jsonb(a) ->> 'attgenerated', '') <> ''
		from pg_attribute a join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace join pg_type y on y.oid = a.atttypid
		where n.nspname = $1 and c.relname = $2 and a.attnum > 0 and not a.attisdropped order by a.attnum`, t.Schema, t.Name)
}

// key returns the columns of the primary key of a table or, without one, of the shortest unique index whose columns are never null.
func (s *session) key(ctx context.Context, t Table) ([]string, error) {
	return collect(ctx, s, "look for the key of "+t.Local(), pgx.RowTo[string], `
		select a.attname::text from (
			select i.indexrelid, i.indrelid, i.indkey, coalesce((to_jsonb(i) ->> 'indnkeyatts')::int, i.indnatts) as n
			from pg_index i join pg_class c on c.oid = i.indrelid join pg_namespace s on s.oid = c.relnamespace
			where s.nspname = $1 and c.relname = $2 and i.indisunique and i.indpred is null and i.indexprs is null
				and not exists (select from pg_attribute a where a.attrelid = c.oid and a.attnum = any(i.indkey) and not a.attnotnull)
			order by not i.indisprimary, n, i.indexrelid limit 1
		) i cross join lateral unnest(i.indkey::int2[]) with ordinality k(attnum, position) join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
		where k.position <= i.n order by k.position`, t.Schema, t.Name)
}

// side is one of the two tables that are compared.
type side struct {
	session *session
	from    string // as in FROM
	types   map[string]column
	hash    string // in SQL
}

// differ compares a table of the copy with one of the live server, in memory that does not grow with them: both servers sort by the key, and send it with a digest
// of the row.
func differ(ctx context.Context, cp, live *session, here *relation, liveKind string, d *Diff) error {
	ours, err := cp.columns(ctx, here.now())
	if err != nil {
		return err
	}
	theirs, err := live.columns(ctx, d.With)
	if err != nil {
		return err
	}
	a := side{session: cp, from: fromClause(here.Kind, here.identifier()), types: map[string]column{}}
	b := side{session: live, from: fromClause(liveKind, d.With.identifier()), types: map[string]column{}}
	for _, c := range theirs {
		b.types[c.Name] = c
	}
	var common []string
	for _, c := range ours {
		a.types[c.Name] = c
		there, ok := b.types[c.Name]
		switch {
		case !ok:
			d.NotInLive = append(d.NotInLive, c.Name)
		case c.Generated != there.Generated:
			d.note("column " + valid(c.Name) + " is generated on one side only, and was not compared")
		case !c.Generated:
			common = append(common, c.Name)
		}
	}
	for _, c := range theirs {
		if _, ok := a.types[c.Name]; !ok {
			d.NotInCopy = append(d.NotInCopy, c.Name)
		}
	}
	if len(common) == 0 {
		d.fail("the tables have no columns in common")
		return nil
	}
	key, err := cp.key(ctx, here.now())
	if err != nil {
		return err
	}
	if slices.ContainsFunc(key, func(k string) bool { return !slices.Contains(common, k) }) {
		key = nil
	}
	d.Key = key
	for _, s := range []*side{&a, &b} {
		quoted := make([]string, len(common))
		for i, n := range common {
			quoted[i] = inRow(n)
		}
		s.hash = digest("ROW("+strings.Join(quoted, ", ")+")::text", cp, live)
	}
	// All of it is of one moment, and takes no lock that is in the way of rows, nor waits for long for one who has such a lock.
	if err := live.exec(ctx, "begin", "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY; SET LOCAL lock_timeout = '10s'"); err != nil {
		return err
	}
	defer func() { _ = live.exec(context.WithoutCancel(ctx), "end", "ROLLBACK") }() // it has only read
	if err := live.spare(ctx); err != nil {
		return err
	}
	if err := cp.exec(ctx, "begin", "BEGIN; "+withoutIndexes(here.OID)); err != nil {
		return err
	}
	defer func() { _ = cp.exec(context.WithoutCancel(ctx), "end", "ROLLBACK") }() // and the indexes are as they were
	encoding := "UTF8"
	if cp.encoding == live.encoding {
		encoding = cp.encoding // sorting by bytes is by these
	}
	if len(key) == 0 {
		d.note("without a primary key, or another that is unique and never null, whole rows were counted")
		return d.count(ctx, &a, &b, encoding)
	}
	kinds := make([]orderKind, len(key))
	for i, k := range key {
		kinds[i] = orderOf(a.types[k].Base, b.types[k].Base)
	}
	changed, err := d.merge(ctx, &a, &b, key, kinds, encoding)
	if err != nil || len(changed) == 0 {
		return err
	}
	return d.detail(ctx, &a, &b, encoding, key, changed, slices.DeleteFunc(slices.Clone(common), func(c string) bool { return slices.Contains(key, c) }))
}

// maxSorted bounds what a comparison sorts in files of the live server, in KiB.
const maxSorted = 10 << 20

// spare bounds what the transaction takes of the live server, as far as the role may say so.
func (s *session) spare(ctx context.Context) error {
	if s.version < 13_00_00 { // a hash table there grows beyond work_mem
		if err := s.exec(ctx, "go without hash tables", "SET LOCAL enable_hashagg = off"); err != nil {
			return err
		}
	}
	err := s.exec(ctx, "bound temporary files", fmt.Sprintf(`SAVEPOINT holdfast; SELECT pg_catalog.set_config('temp_file_limit', '%dkB', true)
		FROM pg_catalog.pg_settings WHERE name = 'temp_file_limit' AND NOT setting::int8 BETWEEN 0 AND %[1]d; RELEASE SAVEPOINT holdfast`, maxSorted))
	if is(err, "42501") { // insufficient_privilege
		err = s.exec(ctx, "go back", "ROLLBACK TO SAVEPOINT holdfast; RELEASE SAVEPOINT holdfast")
	}
	return err
}

// withoutIndexes makes the rest of a transaction do without the indexes of a table and of what inherits from it: of a copy that was restored in part they are not
// there, and PostgreSQL looks into those that it takes for valid before it decides to use none.
func withoutIndexes(table uint32) string {
	return fmt.Sprintf(`with recursive tree(oid) as (select %d::oid union select i.inhrelid from tree t join pg_inherits i on i.inhparent = t.oid)
		update pg_index set indisvalid = false where indrelid in (select oid from tree)`, table)
}

func fromClause(kind, identifier string) string {
	if kind == kindPartitioned {
		return identifier + " r"
	}
	return "ONLY " + identifier + " r" // children are tables of their own
}

// inRow is a column of a table in FROM. Its name alone could be taken for that of a column of the result.
func inRow(column string) string { return "r." + pgx.Identifier{column}.Sanitize() }

// text is the text of a column. A cast of a type that is not PostgreSQL's own could be a function of some user, who would be a superuser in it: what a type writes
// is not.
func (s *side) text(column string) string {
	name := inRow(column)
	if s.types[column].Base != "" {
		return name + "::text"
	}
	return "CASE WHEN " + name + " IS NULL THEN NULL ELSE format('%s', " + name + ") END"
}

// digest is an expression for the digest of a text, 32 hexadecimal digits: the same on both servers.
func digest(text string, cp, live *session) string {
	if min(cp.version, live.version) < 11_00_00 {
		return "md5(" + text + ")"
	}
	encoding := "getdatabaseencoding()"
	if cp.encoding != live.encoding {
		encoding = "'UTF8'"
	}
	return "encode(substr(sha256(convert_to(" + text + ", " + encoding + ")), 1, 16), 'hex')"
}

// orderKind is how values of a column of a key are sorted and compared.
type orderKind int

const (
	byText   orderKind = iota // as text, by its bytes
	byNumber                  // as integers
	byBytes                   // as the type sorts them, which is how their text does
)

func orderOf(a, b string) orderKind {
	number := func(t string) bool { return t == "int2" || t == "int4" || t == "int8" || t == "oid" }
	switch {
	case number(a) && number(b):
		return byNumber
	case a == b && a == "uuid":
		return byBytes
	}
	return byText
}

// row is a row of one side: its key, nil for null, and its digest, or what else is behind the key.
type row struct {
	key  []*string
	hash string
}

// query sends the rows of a side in order.
func (s *side) query(key []string, kinds []orderKind) string {
	var list, order []string
	for i, k := range key {
		name := inRow(k)
		list = append(list, s.text(k))
		if kinds[i] == byText {
			name = "(" + s.text(k) + `) COLLATE "C"`
		}
		order = append(order, name)
	}
	return "SELECT " + strings.Join(append(list, s.hash), ", ") + " FROM " + s.from + " ORDER BY " + strings.Join(order, ", ")
}

// maxLine bounds what is read of a key, in bytes.
const maxLine = 16 << 20

// stream reads rows of a query as COPY sends them.
type stream struct {
	r     *bufio.Reader
	pipe  *io.PipeReader
	kinds []orderKind // of the key; a digest or the like follows
	last  *row
	sent  chan struct{}
}

func (s *side) stream(ctx context.Context, query, encoding string, kinds []orderKind) *stream {
	r, w := io.Pipe()
	st := &stream{r: bufio.NewReaderSize(r, 1<<16), pipe: r, kinds: kinds, sent: make(chan struct{})}
	go func() {
		defer close(st.sent)
		_, err := s.session.PgConn().CopyTo(ctx, w, "COPY ("+query+") TO STDOUT (ENCODING "+literal(encoding)+")")
		if err != nil {
			err = s.session.failed(ctx, "read "+s.from, err)
		}
		w.CloseWithError(err)
	}()
	return st
}

// close ends the stream. Where it was not at its end its session is lost.
func (st *stream) close() {
	st.pipe.Close()
	<-st.sent
}

var errOrder = errors.New("rows do not come in the order that was asked for")

// next returns the next row, nil at the end.
func (st *stream) next() (*row, error) {
	var line []byte
	for {
		b, err := st.r.ReadSlice('\n')
		line = append(line, b...)
		if err == nil {
			break
		}
		switch {
		case errors.Is(err, io.EOF) && len(line) == 0:
			return nil, nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		case len(line) > maxLine:
			return nil, fmt.Errorf("a key has more than %d bytes", maxLine)
		}
	}
	fields := bytes.Split(line[:len(line)-1], []byte{'\t'})
	if len(fields) != len(st.kinds)+1 {
		return nil, fmt.Errorf("a row has %d fields, %d were asked for", len(fields), len(st.kinds)+1)
	}
	r := &row{hash: string(fields[len(fields)-1])}
	for _, f := range fields[:len(fields)-1] {
		r.key = append(r.key, unescape(f))
	}
	if st.last != nil {
		if c, err := order(st.last, r, st.kinds); err != nil {
			return nil, err
		} else if c > 0 {
			return nil, errOrder
		}
	}
	st.last = r
	return r, nil
}

// unescape reads a value as COPY writes text (CopyAttributeOutText in src/backend/commands/copyto.c); nil is null.
func unescape(b []byte) *string {
	if string(b) == `\N` {
		return nil
	}
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); i++ {
		c := b[i]
		if c == '\\' && i+1 < len(b) {
			i++
			c = b[i]
			if n := strings.IndexByte("bfnrtv", c); n >= 0 {
				c = "\b\f\n\r\t\v"[n]
			}
		}
		out = append(out, c)
	}
	s := string(out)
	return &s
}

// order compares the keys of two rows, null behind all else. A row that is nil is behind all that are there.
func order(a, b *row, kinds []orderKind) (int, error) {
	switch {
	case a == nil:
		return 1, nil
	case b == nil:
		return -1, nil
	}
	for i, kind := range kinds {
		x, y := a.key[i], b.key[i]
		switch {
		case x == nil && y == nil:
			continue
		case x == nil:
			return 1, nil
		case y == nil:
			return -1, nil
		}
		c := strings.Compare(*x, *y)
		if kind == byNumber {
			m, err1 := strconv.ParseInt(*x, 10, 64)
			n, err2 := strconv.ParseInt(*y, 10, 64)
			if err := errors.Join(err1, err2); err != nil {
				return 0, err
			}
			c = cmp.Compare(m, n)
		}
		if c != 0 {
			return c, nil
		}
	}
	return 0, nil
}

// maxExamples is how many keys of each sort are shown.
const maxExamples = 10

// pairs runs a query on both sides that sends rows in the order of a key, and goes through both: each gets the rows of one key, nil for that of a side that has none.
func pairs(ctx context.Context, here, there *side, query func(*side) string, encoding string, kinds []orderKind, each func(x, y *row) error) error {
	ctx, cancel := context.WithCancel(ctx)
	a, b := here.stream(ctx, query(here), encoding, kinds), there.stream(ctx, query(there), encoding, kinds)
	defer func() {
		cancel() // or who still sorts would do that to its end
		a.close()
		b.close()
	}()
	x, err := a.next()
	if err != nil {
		return err
	}
	y, err := b.next()
	for err == nil && (x != nil || y != nil) {
		var c int
		if c, err = order(x, y, kinds); err != nil {
			return err
		}
		one, other := x, y
		if c < 0 {
			other = nil
		} else if c > 0 {
			one = nil
		}
		if err = each(one, other); err == nil && one != nil {
			x, err = a.next()
		}
		if err == nil && other != nil {
			y, err = b.next()
		}
	}
	return err
}

// merge compares both tables by their keys. It returns the first changed rows.
func (d *Diff) merge(ctx context.Context, here, there *side, key []string, kinds []orderKind, encoding string) (changed []*row, err error) {
	err = pairs(ctx, here, there, func(s *side) string { return s.query(key, kinds) }, encoding, kinds, func(x, y *row) error {
		switch {
		case y == nil:
			d.OnlyHere++
			d.Examples.OnlyHere = example(d.Examples.OnlyHere, x)
		case x == nil:
			d.OnlyThere++
			d.Examples.OnlyThere = example(d.Examples.OnlyThere, y)
		case x.hash == y.hash:
			d.Same++
		default:
			d.Changed++
			if len(changed) < maxExamples {
				changed = append(changed, x)
			}
		}
		return nil
	})
	return changed, err
}

func example(all []string, r *row) []string {
	if len(all) < maxExamples {
		all = append(all, r.text())
	}
	return all
}

// maxShown is how many bytes of a value of a key are shown.
const maxShown = 200

// text is the key for people.
func (r *row) text() string {
	parts := make([]string, len(r.key))
	for i, k := range r.key {
		if parts[i] = "null"; k != nil {
			if parts[i] = valid(*k); len(parts[i]) > maxShown {
				parts[i] = clip(parts[i], maxShown) + "…"
			}
		}
	}
	if len(parts) == 1 {
		return parts[0]
	}
	return "(" + strings.Join(parts, ", ") + ")"
}

// count compares two tables without a key: how often each row is there.
func (d *Diff) count(ctx context.Context, here, there *side, encoding string) error {
	sql := func(s *side) string {
		return `SELECT h, count(*) FROM (SELECT (` + s.hash + `) COLLATE "C" AS h FROM ` + s.from + `) s GROUP BY h ORDER BY h`
	}
	times := func(r *row) (int64, error) {
		if r == nil {
			return 0, nil
		}
		return strconv.ParseInt(r.hash, 10, 64)
	}
	return pairs(ctx, here, there, sql, encoding, []orderKind{byText}, func(x, y *row) error {
		m, errHere := times(x)
		n, errThere := times(y)
		d.Same += min(m, n)
		d.OnlyHere += m - min(m, n)
		d.OnlyThere += n - min(m, n)
		return errors.Join(errHere, errThere)
	})
}

// detail says which columns of changed rows differ.
func (d *Diff) detail(ctx context.Context, here, there *side, encoding string, key []string, changed []*row, columns []string) error {
	a, err := here.digests(ctx, there, encoding, key, changed, columns)
	if err != nil {
		return err
	}
	b, err := there.digests(ctx, here, encoding, key, changed, columns)
	if err != nil {
		return err
	}
	for i, r := range changed {
		c := Changed{Key: r.text()}
		if len(a[i]) == len(columns) && len(b[i]) == len(columns) {
			for j, name := range columns {
				if a[i][j] == nil && b[i][j] == nil || a[i][j] != nil && b[i][j] != nil && *a[i][j] == *b[i][j] {
					continue
				}
				c.Columns = append(c.Columns, name)
				if !slices.Contains(d.Columns, name) {
					d.Columns = append(d.Columns, name)
				}
			}
		}
		d.Examples.Changed = append(d.Examples.Changed, c)
	}
	return nil
}

// inHex is a text in an encoding.
func inHex(text, encoding string) string {
	return "encode(convert_to(" + text + ", " + literal(encoding) + "), 'hex')"
}

func isASCII(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r >= utf8.RuneSelf }) < 0
}

// digests returns for each of rows, whose keys are in an encoding, a digest of each column. Those that are not found have none.
func (s *side) digests(ctx context.Context, other *side, encoding string, key []string, rows []*row, columns []string) ([][]*string, error) {
	keys := make([]string, len(key))
	list := make([]string, 0, len(key)+len(columns))
	for i, k := range key {
		keys[i] = inRow(k)
		list = append(list, inHex(s.text(k), encoding))
	}
	for _, c := range columns {
		list = append(list, digest("ROW("+inRow(c)+")::text", s.session, other.session))
	}
	var conditions []string
	for _, r := range rows {
		var one []string
		for i, k := range r.key {
			t := s.types[key[i]]
			switch {
			case k == nil:
				one = append(one, keys[i]+" IS NULL")
			case encoding != "UTF8" && !isASCII(*k): // it is not in the encoding of statements
				one = append(one, inHex(s.text(key[i]), encoding)+" = "+literal(hex.EncodeToString([]byte(*k))))
			case t.Base != "" && t.Base != "bpchar":
				one = append(one, keys[i]+" = "+literal(*k)+"::"+t.Type)
			default:
				one = append(one, "("+s.text(key[i])+") = "+literal(*k))
			}
		}
		conditions = append(conditions, strings.Join(one, " AND "))
	}
	results, err := s.session.PgConn().Exec(ctx, "SELECT "+strings.Join(list, ", ")+" FROM "+s.from+" WHERE "+strings.Join(conditions, " OR ")).ReadAll()
	if err != nil {
		return nil, s.session.failed(ctx, "read changed rows of "+s.from, err)
	}
	found := make([][]*string, len(rows))
	for _, result := range results {
		for _, values := range result.Rows {
			at := slices.IndexFunc(rows, func(r *row) bool {
				for i, k := range r.key {
					if (k == nil) != (values[i] == nil) || k != nil && hex.EncodeToString([]byte(*k)) != string(values[i]) {
						return false
					}
				}
				return true
			})
			if at < 0 {
				continue
			}
			for _, v := range values[len(key):] {
				var text *string
				if v != nil {
					one := string(v)
					text = &one
				}
				found[at] = append(found[at], text)
			}
		}
	}
	return found, nil
}
