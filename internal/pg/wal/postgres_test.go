package wal_test

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"holdfast/internal/pg/control"
	"holdfast/internal/pg/instance"
	"holdfast/internal/pg/wal"
	"holdfast/test/pgtest"
)

// The first segment that initdb makes, of the smallest and of larger segments, says which cluster it belongs to and what it is.
func TestReadHeaderOfInitdb(t *testing.T) {
	p := pgtest.Require(t, 15)
	for _, size := range []wal.SegmentSize{1 << 20, 64 << 20} {
		pgdata := filepath.Join(pgtest.Dir(t), "data")
		if err := instance.Init(t.Context(), p, pgdata, instance.InitOptions{SegmentSize: size, NoSync: true}); err != nil {
			t.Fatal(err)
		}
		cluster, _, err := control.Read(filepath.Join(pgdata, control.Name))
		if err != nil {
			t.Fatal(err)
		}
		n := size.Segment(cluster.CheckpointRedo)
		f, err := os.Open(filepath.Join(pgdata, "pg_wal", size.Name(1, n)))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		b := make([]byte, wal.HeaderLen)
		if _, err := io.ReadFull(f, b); err != nil {
			t.Fatal(err)
		}
		got, err := wal.ReadHeader(b)
		want := wal.Header{Magic: 0xD110, Timeline: 1, Address: size.Start(n), SystemIdentifier: cluster.SystemIdentifier, SegmentSize: size}
		if err != nil || got != want {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
	}
}
