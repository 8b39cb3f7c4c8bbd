package legacy_test

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/describe"
	"holdfast/internal/ribbon"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
	"holdfast/internal/transfer"
)

// What WAL-G and WAL-E wrote is copied to the byte without a key, and described as far as it tells.
func TestCopyAndShow(t *testing.T) {
	for _, name := range []string{"pg15-zstd-full", "pg15-lz4-delta", "pg15-lz4-remote", "pg15-lz4-sodium-hex", "pg15-lz4-pgp-pass", "pg15-brotli-full", "pg17-zstd-timeline", "wale-pg13-lzo"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := load(t, name)
			from := s.at(t, "", nil)
			target := &storetest.Memory{}
			to := from.Over(target)
			for range 2 {
				plan, err := transfer.Decide(t.Context(), from, to, transfer.Request{})
				if err != nil {
					t.Fatal(err)
				}
				if _, err := transfer.Run(t.Context(), from, to, plan, transfer.Options{}); err != nil || len(plan.Skipped) > 0 || len(plan.Notes) > 0 {
					t.Fatalf("%v, skipped %+v, notes %q", err, plan.Skipped, plan.Notes)
				}
			}
			got := map[string][]byte{}
			for o, err := range store.Walk(t.Context(), target, "") {
				if err != nil {
					t.Fatal(err)
				}
				if got[o.Name], err = store.ReadFile(t.Context(), target, o.Name, 1<<30); err != nil {
					t.Fatal(err)
				}
			}
			delete(got, archive.OwnerName) // ours
			if !maps.EqualFunc(got, s.objects, func(x, y []byte) bool { return string(x) == string(y) }) {
				t.Errorf("the copy has %d objects, the source %d, and they are not the same", len(got), len(s.objects))
			}

			in, err := ribbon.Load(t.Context(), to, to, ribbon.Options{})
			if err != nil {
				t.Fatal(err)
			}
			for i := range in.Catalog.Backups {
				r, err := describe.Backup(t.Context(), to, &in, in.Catalog.Backups[i].Name)
				if err != nil {
					t.Fatal(err)
				}
				wale := strings.HasPrefix(name, "wale")
				tool := map[bool]string{true: "WAL-E", false: "WAL-G"}[wale]
				if r.Tool != tool || len(r.Problems) > 0 || r.WAL.Verdict != ribbon.Restorable || r.WAL.Lacks > 0 || r.Server.PgVersion == 0 || r.Cost.Fetch == 0 || r.Cost.Disk == 0 {
					t.Errorf("%+v", r)
				}
				if !wale && (r.Contents.Source != "list of files" || r.Contents.Files < 100 || r.Server.WALLevel == "") {
					t.Errorf("%+v, %+v", r.Contents, r.Server)
				}
				if locked := strings.Contains(name, "sodium") || strings.Contains(name, "pgp"); locked != (r.Objects.Encryption != nil) || locked && !r.Objects.Encryption.Readable {
					t.Errorf("%+v", r.Objects.Encryption)
				}
				if strings.Contains(name, "pgp") && !slices.Equal(r.Objects.Encryption.For, []string{"D61508F4D96548B6"}) {
					t.Errorf("for %q", r.Objects.Encryption.For)
				}
			}
		})
	}
}
