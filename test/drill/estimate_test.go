package drill_test

import (
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/drill"
	"holdfast/test/pgtest"
)

var backTest = flag.Bool("estimate", false, "hold estimates of restore times against drills of up to 400 MB, three of each, on a machine that does nothing else")

// What drills of small backups have measured foretells what larger ones take: to within 20 %, where the machine does nothing else (-estimate). In any case the report has them, and an estimate.
func TestEstimate(t *testing.T) {
	sizes, times, fitted := []int{8, 12, 18, 27}, 1, 3
	if *backTest {
		sizes, times, fitted = []int{50, 75, 100, 150, 200, 300, 400}, 3, 5
	}
	s, _ := build(t, pgtest.Require(t, 17), pgtest.Options{})
	s.Exec(t, `create table filler (i bigint, text text)`, `create table traffic (i bigint, text text)`)
	var samples [][]drill.Sample // by size
	filled := 0
	for _, mb := range sizes {
		s.Exec(t, fmt.Sprintf(`insert into filler select i, repeat(md5(random()::text), 30) from generate_series(1, %d) i`, (mb-filled)*1000), `checkpoint`)
		filled = mb
		name := s.Push(t, "--full")
		s.Exec(t, fmt.Sprintf(`insert into traffic select i, repeat(md5(random()::text), 30) from generate_series(1, %d) i`, mb*200), `truncate traffic`)
		s.Switch(t)
		var of []drill.Sample
		for range times {
			r := s.drill(t, 0, []string{"HOLDFAST_DRILL_BUDGET=100ms", "HOLDFAST_DRILL_NICE=0"}, name, "--target", "latest")
			t.Logf("%.0f MB in %.2f s, %.0f MB of WAL in %.2f s, all in all %.2f s", float64(r.Fetched.Bytes)/1e6, r.Seconds["fetch"], float64(r.Replay.Bytes)/1e6, r.Seconds["replay"], r.RTO)
			of = append(of, drill.Sample{Bytes: float64(r.Fetched.Bytes), WAL: float64(r.Replay.Bytes), Restore: r.Seconds["fetch"], Replay: r.Seconds["replay"], RTO: r.RTO})
		}
		samples = append(samples, of)
	}

	var report drill.Report
	if err := json.Unmarshal([]byte(s.OK(t, "drill", "report", "--format", "json", "--objective", "24h").Stdout), &report); err != nil {
		t.Fatal(err)
	}
	last := samples[len(samples)-1][0]
	if tr := report.Trend; len(report.Drills) != len(sizes)*times || report.Proven != len(sizes) || tr == nil || tr.Model.Drills != len(sizes)*times || math.Abs(float64(tr.Size)-last.Bytes) > 0.05*last.Bytes ||
		tr.At.Low > tr.At.Seconds || tr.At.High < tr.At.Seconds || tr.At.Seconds <= 0 || !strings.Contains(strings.Join(tr.Text, " "), "Your objective of 24 h is kept now") {
		t.Errorf("%d drills, %d proven, %+v", len(report.Drills), report.Proven, tr)
	}

	m, ok := drill.Fit(slices.Concat(samples[:fitted]...))
	if !ok {
		t.Fatal("there is no model")
	}
	for _, of := range samples[fitted:] {
		slices.SortFunc(of, func(x, y drill.Sample) int { return cmp.Compare(x.RTO, y.RTO) })
		took := of[len(of)/2].RTO
		e := m.Predict(of[0].Bytes, of[0].WAL)
		off := (e.Seconds - took) / took
		t.Logf("%.0f MB and %.0f MB of WAL: %s (%.2f s) was expected, by drills of up to %.0f MB, and it took %s: off by %+.0f %%", of[0].Bytes/1e6, of[0].WAL/1e6, e, e.Seconds,
			samples[fitted-1][0].Bytes/1e6, time.Duration(took*float64(time.Second)).Round(10*time.Millisecond), 100*off)
		if *backTest && math.Abs(off) > 0.2 {
			t.Errorf("the estimate is off by %.0f %%", 100*off)
		}
	}
}
