package walrec_test

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"holdfast/internal/pg/walrec"
	"holdfast/test/pgtest"
)

// BenchmarkSummarize sums up segments of two kinds: with full page images, as after a checkpoint, and of small records alone.
func BenchmarkSummarize(b *testing.B) {
	const major = 17
	settings := keepWAL(major)
	settings["wal_level"] = "replica"
	c := pgtest.New(b, pgtest.Require(b, major), pgtest.Options{Checksums: true, Settings: settings})
	c.Exec(b, `create table t (i int primary key, n int, filler text) with (fillfactor = 80)`,
		`insert into t select i, 0, repeat('x', 80) from generate_series(1, 400000) i`, `vacuum t`, `checkpoint`)
	middle := func() string { // of what was just written
		return c.Value(b, "select pg_walfile_name(pg_current_wal_insert_lsn() - 20000000)")
	}
	c.Exec(b, `update t set n = n + 1 where i % 40 = 0`)
	images := middle()
	c.Exec(b, `insert into t select i, 0, repeat('x', 8) from generate_series(400001, 800000) i`)
	small := middle()
	for name, file := range map[string]string{"images": images, "small": small} {
		content, err := os.ReadFile(c.Data + "/pg_wal/" + file)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(content)))
			b.ReportAllocs()
			records := 0
			r, err := walrec.NewReader(bytes.NewReader(content), 0)
			if err != nil {
				b.Fatal(err)
			}
			for ; ; records++ {
				if _, err := r.Next(); err != nil {
					if errors.Is(err, walrec.ErrEnd) {
						b.Fatal(err)
					}
					break
				}
			}
			for b.Loop() {
				if _, err := walrec.Summarize(bytes.NewReader(content), 16<<20); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(records), "records")
		})
	}
}
