package recovertable_test

import (
	"testing"

	"holdfast/internal/bringback"
	"holdfast/internal/events"
	"holdfast/internal/recovertable"
)

// Of relations that are not wanted nothing is restored; all else is, whatever it is called.
func TestSelection(t *testing.T) {
	hollow := recovertable.Hollow(map[uint32]map[uint32]bool{5: {16400: true, 20001: true}, 7: nil})
	for file, want := range map[string]bool{
		"base/5/16400": false, "base/5/16400.1": false, "base/5/16400_vm": false, "base/5/16400_fsm.2": false, "base/5/16400_init": false,
		"pg_tblspc/16390/PG_15_202209061/5/16400": false, "pg_tblspc/16390/PG_15_202209061/5/16401": true, "pg_tblspc/16390/PG_15_202209061/9/1259": true,
		"base/5/16401": true, "base/5/16401_vm": true, "base/5/164001": true, "base/5/1640": false, "base/5/1259": false, "base/5/2619_fsm": false, "base/5/20001": false,
		"base/7/99999": false, "base/6/1259": true, "base/6/99999.3": true, // another database
		"base/6/PG_VERSION": false, "base/6/pg_filenode.map": false, "base/5/t3_16401": false,
		"global/1262": false, "global/99999": false, "global/pg_control": false, "pg_xact/0000": false, "pg_wal/000000010000000000000001": false, "backup_label": false,
		"PG_VERSION": false, "16401": false, "base/16401": false, "": false, "base/5/../6/1": false,
	} {
		if got := hollow(file); got != want {
			t.Errorf("%s: hollow %t, want %t", file, got, want)
		}
	}
}

// The log names pages that are not there in the words of PostgreSQL 13 to 18.
func TestInvalidPages(t *testing.T) {
	for line, want := range map[string]string{
		`2026-05-06 07:08:09.123 UTC [7] WARNING:  page 17 of relation base/5/16401 does not exist`:                                  "base/5/16401",
		`2026-05-06 07:08:09.123 UTC [7] WARNING:  page 0 of relation base/5/16401_vm is uninitialized`:                              "base/5/16401",
		`2026-05-06 07:08:09.123 UTC [7] WARNING:  page 0 of relation base/5/16401_fsm does not exist`:                               "base/5/16401",
		`2026-05-06 07:08:09.123 UTC [7] WARNING:  page 3 of relation pg_tblspc/16390/PG_15_202209061/5/16401_init is uninitialized`: "pg_tblspc/16390/PG_15_202209061/5/16401",
		`2026-05-06 07:08:09.123 UTC [7] WARNING:  WAL contains references to invalid pages`:                                         "",
	} {
		if got := recovertable.Invalid(line); got != want {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
}

// What is looked for is what takes rows of the tables away, their partitions' too, or their database.
func TestWhatIsLost(t *testing.T) {
	orders := bringback.Table{Database: "shop", Schema: "public", Name: "orders"}
	relation := func(schema, name string, oid uint32) []events.Relation {
		return []events.Relation{{OID: 1, Schema: "public", Name: "beside"}, {OID: oid, Schema: schema, Name: name}}
	}
	rows := func(what events.What, ofOrders, ofPart, beside uint64) events.Event {
		e := events.Event{What: what, DatabaseName: "shop", Relations: []events.Relation{
			{OID: 1, Schema: "public", Name: "beside"}, {OID: 5, Schema: "public", Name: "orders"}, {OID: 16390, Schema: "parts", Name: "orders_1"}}}
		for i, n := range []uint64{beside, ofOrders, ofPart} {
			if what == events.DeleteRows {
				e.Relations[i].Deleted = n
			} else {
				e.Relations[i].Updated = n
			}
		}
		return e
	}
	tables, database, transaction := recovertable.Search{Tables: []bringback.Table{orders}, Rows: 1000}, recovertable.Search{Database: "shop"}, recovertable.Search{XID: 77}
	family := recovertable.Family{16390: true}
	for _, x := range []struct {
		what   string
		search recovertable.Search
		event  events.Event
		want   bool
	}{
		{"dropped", tables, events.Event{What: events.Drop, DatabaseName: "shop", Relations: relation("public", "orders", 5)}, true},
		{"truncated", tables, events.Event{What: events.Truncate, DatabaseName: "shop", Relations: relation("public", "orders", 0)}, true},
		{"deleted from", tables, rows(events.DeleteRows, 1000, 0, 1), true},
		{"updated", tables, rows(events.UpdateRows, 1000, 0, 0), true},
		{"deleted from it and a partition", tables, rows(events.DeleteRows, 400, 600, 0), true},
		{"deleted from others", tables, rows(events.DeleteRows, 1, 0, 2000), false},
		{"updated others", tables, rows(events.UpdateRows, 1, 998, 2000), false},
		{"rewritten", tables, events.Event{What: events.Rewrite, DatabaseName: "shop", Relations: relation("public", "orders", 0)}, false},
		{"in another schema", tables, events.Event{What: events.Drop, DatabaseName: "shop", Relations: relation("old", "orders", 5)}, false},
		{"in another database", tables, events.Event{What: events.Drop, DatabaseName: "shed", Relations: relation("public", "orders", 5)}, false},
		{"another table", tables, events.Event{What: events.Drop, DatabaseName: "shop", Relations: relation("public", "order", 5)}, false},
		{"a partition", tables, events.Event{What: events.Truncate, DatabaseName: "shop", Relations: relation("parts", "orders_1", 16390)}, true},
		{"its database", tables, events.Event{What: events.DropDatabase, DatabaseName: "shop"}, true},
		{"no name", tables, events.Event{What: events.DropDatabase}, false},
		{"database", database, events.Event{What: events.DropDatabase, DatabaseName: "shop"}, true},
		{"other database", database, events.Event{What: events.DropDatabase, DatabaseName: "shed"}, false},
		{"table of it", database, events.Event{What: events.Drop, DatabaseName: "shop", Relations: relation("public", "orders", 5)}, false},
		{"transaction", transaction, events.Event{What: events.Rewrite, XID: 77}, true},
		{"other transaction", transaction, events.Event{What: events.Drop, XID: 78}, false},
	} {
		if got := recovertable.Lost(&x.search, &x.event, family); got != x.want {
			t.Errorf("%s: %t, want %t", x.what, got, x.want)
		}
	}
}
