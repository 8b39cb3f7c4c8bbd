package retention_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/retention"
	"holdfast/internal/store/file"
)

// BenchmarkLarge plans and applies over 100 000 segments and 2 000 backups, a full one a week and a delta each day, on the file store.
func BenchmarkLarge(b *testing.B) {
	w := newWorld(b)
	for n := range 2000 {
		parent := ""
		if n%7 != 0 {
			parent = w.last
		}
		w.last = w.take(parent, 2, nil)
		w.write(48)
		w.days(0.9)
	}
	for b.Loop() {
		b.StopTimer()
		dir := b.TempDir()
		for o, err := range w.memory.Walk(b.Context(), "") {
			if err != nil {
				b.Fatal(err)
			}
			r, err := w.memory.Open(b.Context(), o.Name)
			if err != nil {
				b.Fatal(err)
			}
			content := make([]byte, o.Size)
			if _, err := r.Read(content); err != nil && o.Size > 0 {
				b.Fatal(err)
			}
			name := filepath.Join(dir, o.Name)
			if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
				b.Fatal(err)
			}
			if err := os.WriteFile(name, content, 0o600); err != nil {
				b.Fatal(err)
			}
			if at := w.store.modified[o.Name]; !at.IsZero() {
				if err := os.Chtimes(name, at, at); err != nil {
					b.Fatal(err)
				}
			}
		}
		s, err := file.Open(dir)
		if err != nil {
			b.Fatal(err)
		}
		a := archive.New(s, archive.Options{})
		b.StartTimer()
		begin := time.Now()
		in, err := retention.Load(b.Context(), a, "here", true)
		if err != nil {
			b.Fatal(err)
		}
		loaded := time.Now()
		p, err := retention.Decide(in, must(retention.Retain(1000, retention.FindFull, nil)), w.now)
		if err != nil {
			b.Fatal(err)
		}
		decided := time.Now()
		n := 0
		for _, err := range retention.Objects(b.Context(), a, p) {
			if err != nil {
				b.Fatal(err)
			}
			n++
		}
		listed := time.Now()
		r, err := retention.Apply(b.Context(), a, p, retention.Options{Host: "here"})
		if err != nil || r.Objects != n {
			b.Fatalf("%d objects of %d removed, %v", r.Objects, n, err)
		}
		b.ReportMetric(loaded.Sub(begin).Seconds(), "s-load")
		b.ReportMetric(decided.Sub(loaded).Seconds(), "s-decide")
		b.ReportMetric(listed.Sub(decided).Seconds(), "s-objects")
		b.ReportMetric(time.Since(listed).Seconds(), "s-apply")
		b.ReportMetric(float64(n), "objects")
		s.Close()
	}
}
