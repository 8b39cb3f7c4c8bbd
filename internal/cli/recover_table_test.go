package cli_test

import (
	"strings"
	"testing"

	"holdfast/internal/bringback"
	"holdfast/internal/cli"
)

// Names of tables are read as in SQL, and what is no such name is refused with the reason.
func TestNamesOfTables(t *testing.T) {
	for text, want := range map[string]bringback.Table{
		`shop.orders`:                     {Database: "shop", Schema: "public", Name: "orders"},
		`Shop.Public.Orders`:              {Database: "shop", Schema: "public", Name: "orders"},
		`shop."Odd Schema"."T"`:           {Database: "shop", Schema: "Odd Schema", Name: "T"},
		`"a.b"."c""d"."e f"`:              {Database: "a.b", Schema: `c"d`, Name: "e f"},
		`shop.straße`:                     {Database: "shop", Schema: "public", Name: "straße"},
		`shop.` + strings.Repeat("x", 63): {Database: "shop", Schema: "public", Name: strings.Repeat("x", 63)},
	} {
		if got, err := cli.ParseTable(text); err != nil || got != want {
			t.Errorf("%s: %+v %v, want %+v", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		``: "empty", `orders`: "the database has to be named", `a.b.c.d`: "4 names", `a..b`: "empty", `a.`: "empty", `.a`: "empty", `a."b`: "not closed", `a."b"c`: "between", `a."".b`: "empty",
		`a.` + strings.Repeat("x", 64): "63 bytes", "a.\xff": "no text", "a.\"b\x00\"": "no text",
	} {
		if got, err := cli.ParseTable(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %+v %v, want %q", text, got, err, want)
		}
	}
}

// A name that is read is read again from how it is printed.
func FuzzNamesOfTables(f *testing.F) {
	for _, s := range []string{`shop.orders`, `shop."Odd Schema"."T"`, `"a.b"."c""d"."e f"`, `a."`, `a."b"c`, `select.from`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		table, err := cli.ParseTable(text)
		if err != nil {
			return
		}
		if again, err := cli.ParseTable(table.String()); err != nil || again != table {
			t.Errorf("%q is %+v, printed as %s, and that is %+v (%v)", text, table, table, again, err)
		}
	})
}
