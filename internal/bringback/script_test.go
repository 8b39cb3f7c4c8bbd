package bringback_test

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/jackc/pgx/v5"

	"holdfast/internal/bringback"
)

// A semicolon ends a statement only where PostgreSQL says that it does.
func TestStatementsEndWhereTheyEnd(t *testing.T) {
	for _, one := range []string{
		`SELECT 1;`,
		`SELECT ';', 'it''s; ', E'\';', 'c:\';`,
		`COMMENT ON TABLE "a;""b;" IS 'x';`,
		"SELECT 1 -- ; not here '\n;",
		"SELECT /* ; /* ; ' */ ; */ 1;",
		`CREATE FUNCTION f() RETURNS void LANGUAGE sql AS $$ SELECT 1; $$;`,
		`CREATE FUNCTION f() RETURNS void LANGUAGE sql AS $_x1$ $$;$$ ; $_x1$;`,
		"CREATE FUNCTION f(a int) RETURNS int\n    LANGUAGE sql\n    BEGIN ATOMIC\n SELECT CASE WHEN a > 1 THEN 2 ELSE 3 END;\n SELECT 4;\nEND;",
		"CREATE PROCEDURE p()\n    LANGUAGE sql\n    BEGIN ATOMIC\nEND;",
		`CREATE RULE r AS ON INSERT TO t DO INSTEAD ( SELECT 1; SELECT 2; );`,
		`ALTER TABLE a$b$ ADD CHECK (c <> 'x');`,
		`SELECT a - 1 / 2, $1;`,
	} {
		in := "--\n-- a comment; with 'one\n--\n\n" + one + "\n\nSELECT 'next';\n"
		got, err := bringback.Statements(iotest.OneByteReader(strings.NewReader(in)))
		if want := []string{one, "SELECT 'next';"}; err != nil || !slices.Equal(got, want) {
			t.Errorf("%s\ngot  %q (%v)\nwant %q", one, got, err, want)
		}
	}
}

// Rows are what lies between a COPY and its end, whatever they look like.
func TestRowsAreReadToTheirEnd(t *testing.T) {
	long := strings.Repeat("x", 1<<19)
	in := "\\restrict abc\nCOPY public.t (a, b) FROM stdin;\n1\t;'\n\\\\.\n" + long + "\\.\n\\.\n\n\nCOPY public.u (a) FROM stdin;\n\\.\nSELECT 1;\n\\unrestrict abc\n"
	got, err := bringback.Statements(strings.NewReader(in))
	want := []string{"\\restrict abc", "COPY public.t (a, b) FROM stdin;", "1\t;'\n\\\\.\n" + long + "\\.\n", "COPY public.u (a) FROM stdin;", "", "SELECT 1;", "\\unrestrict abc"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %d elements (%v), want %d: %.200q", len(got), err, len(want), got)
	}
}

// A dump that ends too early is noticed, wherever it ends.
func TestShortDumpIsNoticed(t *testing.T) {
	const whole = "CREATE TABLE a (b text DEFAULT 'x;');\nCOPY a (b) FROM stdin;\n1\n\\.\n"
	for n := range len(whole) {
		if _, err := bringback.Statements(strings.NewReader(whole[:n])); n == 0 || n == len("CREATE TABLE a (b text DEFAULT 'x;');") || n == len("CREATE TABLE a (b text DEFAULT 'x;');")+1 {
			if err != nil {
				t.Errorf("%d bytes: %v", n, err)
			}
		} else if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d bytes: %v, want %v", n, err, io.ErrUnexpectedEOF)
		}
	}
}

// Statements are told apart by the entry that they are of.
func TestEntriesOfStatements(t *testing.T) {
	const in = "SET a = 1;\n--\n-- TOC entry 5 (class 1247 OID 16390)\n-- Name: mood; Type: TYPE; Schema: public; Owner: postgres\n--\n\nCREATE TYPE public.mood AS ENUM (\n    'a'\n);\n\n" +
		"ALTER TYPE public.mood OWNER TO postgres;\n\n--\n-- TOC entry 9 (class 0 OID 0)\n-- Dependencies: 5\n-- Name: TYPE mood; Type: COMMENT; Schema: public; Owner: postgres\n--\n\nCOMMENT ON TYPE public.mood IS '-- TOC entry 7 (class 1 OID 1)';\n"
	got, err := bringback.Entries(strings.NewReader(in))
	if want := [][2]uint32{{}, {1247, 16390}, {1247, 16390}, {}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v (%v), want %v", got, err, want)
	}
}

// What is taken for a statement is taken for the same one alone.
func FuzzStatements(f *testing.F) {
	for _, seed := range []string{"SELECT 1;", "SELECT ';';\nSELECT \";\";", "CREATE FUNCTION f() BEGIN ATOMIC SELECT 1; END;", "a $x$ ; $x$;", "/* /* */ ; */ ;", "COPY a FROM stdin;\n1\n\\.\n",
		"-- TOC entry 1 (class 2 OID 3)\n-- Dependencies: 1 2\nSELECT 1;", "E'\\';';", "$", "\\connect x\n", "(;);"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		all, err := bringback.Statements(strings.NewReader(string(in)))
		if err != nil {
			return
		}
		for i, sql := range all {
			if i > 0 && strings.HasPrefix(all[i-1], "COPY ") && strings.HasSuffix(all[i-1], " FROM stdin;") || strings.HasPrefix(sql, `\`) {
				continue
			}
			if strings.HasPrefix(sql, "COPY ") && strings.HasSuffix(sql, " FROM stdin;") {
				sql += "\n\\.\n"
			}
			again, err := bringback.Statements(strings.NewReader(sql))
			if err != nil || len(again) == 0 || again[0] != all[i] {
				t.Errorf("%q is a statement of %q, and alone it is %q (%v)", all[i], in, again, err)
			}
		}
	})
}

// Every name is read back from its quoted form.
func FuzzQualified(f *testing.F) {
	f.Add("public", "orders", " (id)")
	f.Add(`a"b.`, "Ünï cödé%", ";")
	f.Fuzz(func(t *testing.T, schema, name, rest string) {
		if strings.ContainsRune(schema+name, 0) || strings.HasPrefix(rest, `"`) {
			return
		}
		got, behind, err := bringback.Qualified(pgx.Identifier{schema, name}.Sanitize() + rest)
		if err != nil || got.Schema != schema || got.Name != name || behind != rest {
			t.Errorf("%q.%q: got %v and %q (%v)", schema, name, got, behind, err)
		}
	})
}

// COPY's text form is read as COPY writes it.
func FuzzUnescape(f *testing.F) {
	f.Add("a\tb\nc\\d")
	f.Add(`\N`)
	escape := strings.NewReplacer(`\`, `\\`, "\b", `\b`, "\f", `\f`, "\n", `\n`, "\r", `\r`, "\t", `\t`, "\v", `\v`)
	f.Fuzz(func(t *testing.T, s string) {
		if got := bringback.Unescape([]byte(escape.Replace(s))); got == nil || *got != s {
			t.Errorf("%q: got %v", s, got)
		}
	})
}
