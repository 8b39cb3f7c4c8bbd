package main_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"holdfast/test/pgtest"
)

// The demo brings its table back on the oldest and the newest major, and leaves nothing behind.
func TestDemoBringsTheTableBack(t *testing.T) {
	program := pgtest.Build(t, "holdfast/cmd/holdfast")
	for _, major := range []int{10, 15, 18} {
		p := pgtest.Require(t, major)
		t.Run(p.Version, func(t *testing.T) {
			scratch := pgtest.Dir(t)
			cmd := pgtest.Command(t, program, "demo", "--rows", "5000", "--programs", p.Dir)
			// Whoever watches may have settings of their own.
			cmd.Env = append(os.Environ(), "TMPDIR="+scratch, "WALG_S3_PREFIX=s3://not/here", "WALG_LOG_LEVEL=nonsense", "PGHOST=/not/here", "PGPORT=1")
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			for _, want := range []string{"DROP TABLE orders", "rows before the drop    | 5,500", "rows brought back       | 5,500", "The dropped table is back"} {
				if !bytes.Contains(out, []byte(want)) {
					t.Errorf("%q is missing in\n%s", want, out)
				}
			}
			if left, err := filepath.Glob(filepath.Join(scratch, "*")); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}
