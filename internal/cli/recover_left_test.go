package cli_test

import (
	"fmt"
	"strings"
	"testing"

	"holdfast/internal/bringback"
	"holdfast/internal/cli"
)

// What is left to the operator can be given to psql as it is, whatever names and reasons have in them.
func TestLeftIsAScript(t *testing.T) {
	got := cli.LeftText([]bringback.Left{
		{Database: "shop", SQL: "ALTER TABLE public.\"a  b\" OWNER TO gone;", Why: "role \"gone\"\ndoes not exist"},
		{Database: "shop", SQL: "ALTER SEQUENCE s OWNER TO gone;", Why: "role \"gone\"\ndoes not exist"},
		{Database: "shop", SQL: "ALTER TABLE public.\"a\u00a0b\u200d\u202f\" OWNER TO gone;", Why: "role \"gone\"\ndoes not exist"},
		{Database: "shop", SQL: "CREATE VIEW v AS\n SELECT 'a  b'\x1b[31m;", Why: "view v was built on it, and is gone"},
	})
	const want = `
-- left to do, in database shop:
-- role "gone" does not exist:
ALTER TABLE public."a  b" OWNER TO gone;
ALTER SEQUENCE s OWNER TO gone;
ALTER TABLE public."a` + "\u00a0b\u200d\u202f" + `" OWNER TO gone;
-- view v was built on it, and is gone:
-- ` + "\uFFFD" + ` in it stands for what a terminal would obey: --json prints it as it is
CREATE VIEW v AS
 SELECT 'a  b'` + "\uFFFD" + `[31m;
`
	if got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// Of a whole database no more tables are printed than can be read, those first that are worth it.
func TestWholeDatabaseIsPrintedInBounds(t *testing.T) {
	r := &bringback.Report{Whole: true}
	add := func(name string, rows int64, d *bringback.Diff) {
		r.Tables = append(r.Tables, bringback.Recovered{Table: bringback.Table{Database: "shop", Schema: "public", Name: name}, Rows: rows, Diff: d})
	}
	for n := range int64(30) {
		add(fmt.Sprintf("t%d", n), 1000+n, nil)
	}
	got := cli.DatabaseText(r)
	if !strings.HasPrefix(got, "tables|30, with 30,435 rows\n|public.t29: 1,029 rows\n|public.t28: 1,028 rows\n") || !strings.HasSuffix(got, "|public.t10: 1,010 rows\n|and 10 more: --json lists all\n") {
		t.Errorf("got %s", got)
	}
	r.Tables = nil
	add("same", 5, &bringback.Diff{Same: 5})
	add("wide", 5, &bringback.Diff{Same: 5, NotInCopy: []string{"x", "y"}})
	add("Odd", 1500, &bringback.Diff{Same: 100, Changed: 1400, OnlyThere: 3})
	add("gone", 1, &bringback.Diff{Failed: true, Gone: true, Note: "the live database does not have it now"})
	add("locked", 2, &bringback.Diff{Failed: true, Note: "it could not be compared: somebody holds a lock"})
	add("new", 7, nil)
	const want = `tables|6, with 1,520 rows
|compared with those of the live database: 1 have the same rows, 2 differ, 1 are not in the live database, 1 could not be compared
|public.gone: the live database does not have it now
|public.locked: it could not be compared: somebody holds a lock
|public."Odd": 0 rows only in the recovered table, 3 only in the live one, 1,400 changed, 100 the same
|public.wide: 0 rows only in the recovered table, 0 only in the live one, 0 changed, 5 the same; the recovered table has no x, y
`
	if got := cli.DatabaseText(r); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}
