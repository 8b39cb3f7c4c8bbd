package drill_test

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"

	"holdfast/internal/drill"
)

// line is what a restore takes in a model world.
type line struct{ fixed, rate, start, replay, rest float64 }

func (l line) sample(bytes, wal, noise float64) drill.Sample {
	s := drill.Sample{Bytes: bytes, WAL: wal, Restore: (l.fixed + bytes/l.rate) * noise, Replay: (l.start + wal/l.replay) * noise}
	s.RTO = s.Restore + s.Replay + l.rest*noise
	return s
}

func drawLine(t *rapid.T) line {
	draw := rapid.Float64Range
	return line{draw(0.1, 30).Draw(t, "fixed"), draw(1e6, 1e9).Draw(t, "rate"), draw(0.1, 30).Draw(t, "start"), draw(1e6, 1e9).Draw(t, "replay"), draw(0, 5).Draw(t, "rest")}
}

// Of exact measurements the model is exact, whatever a fifth of them say, and wherever it is asked.
func TestExactWithOutliers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := drawLine(t)
		n := rapid.IntRange(5, 25).Draw(t, "drills")
		bytes, wal := rapid.Float64Range(1e7, 1e9).Draw(t, "bytes"), rapid.Float64Range(1e7, 1e9).Draw(t, "wal")
		var samples []drill.Sample
		for range n {
			samples = append(samples, l.sample(bytes, wal, 1))
			bytes *= rapid.Float64Range(1.2, 2).Draw(t, "larger")
			wal *= rapid.Float64Range(1.2, 2).Draw(t, "more")
		}
		for _, i := range rapid.Permutation(makeRange(n)).Draw(t, "which")[:rapid.IntRange(0, n/5).Draw(t, "outliers")] {
			slow := rapid.Float64Range(0.01, 100).Draw(t, "slow")
			samples[i] = l.sample(samples[i].Bytes, samples[i].WAL, slow)
		}
		m, ok := drill.Fit(samples)
		if !ok {
			t.Fatal("there is no model")
		}
		far := rapid.Float64Range(0.1, 10).Draw(t, "far")
		want := l.sample(bytes*far, wal*far, 1).RTO
		got := m.Predict(bytes*far, wal*far)
		if math.Abs(got.Seconds-want) > 1e-6*want {
			t.Errorf("expected %g, measured %g; %+v of %+v", got.Seconds, want, m, l)
		}
		if got.Low > got.Seconds || got.High < got.Seconds || got.Low < 0 {
			t.Errorf("%+v", got)
		}
	})
}

// Measurements that differ by 3 % from what they should be, one way or the other, predict a restore of twice the size to within 20 %, which is what is promised.
func TestPredictsLargerSizes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := drawLine(t)
		var samples []drill.Sample
		n := rapid.IntRange(6, 20).Draw(t, "drills")
		for i := range n {
			grown := math.Pow(8, float64(i)/float64(n-1)) // eightfold
			samples = append(samples, l.sample(1e9*grown, 1e9*grown, rapid.Float64Range(0.97, 1.03).Draw(t, "noise")))
		}
		m, _ := drill.Fit(samples)
		want := l.sample(16e9, 16e9, 1).RTO
		if got := m.Predict(16e9, 16e9); math.Abs(got.Seconds-want) > 0.2*want {
			t.Errorf("expected %+v, measured %g; %+v of %+v", got, want, m, l)
		}
	})
}

// Where all drills were of one size it is in proportion, which is the worst that a growing cluster can come to; where WAL makes no difference it makes none.
func TestOneSize(t *testing.T) {
	var samples []drill.Sample
	for i := range 10 {
		wal := float64(int(1) << (10 + i)) // from 1 KiB to 512 KiB: it is over before it is seen
		restore, replay := 100+float64(i%3), 0.5+0.1*float64(i%4)
		samples = append(samples, drill.Sample{Bytes: 1e9 * (1 + float64(i)/1000), WAL: wal, Restore: restore, Replay: replay, RTO: restore + replay + 1})
	}
	m, ok := drill.Fit(samples)
	if e := m.Predict(2e9, 100e3); !ok || e.Seconds < 195 || e.Seconds > 210 {
		t.Errorf("twice the size takes %+v", e)
	}
	if e := m.Predict(1e9, 10e6); e.Seconds > 110 {
		t.Errorf("with a little more WAL it takes %+v: %+v", e, m)
	}
	if m.Drills != 10 || m.Error <= 0 || m.Error > 0.05 {
		t.Errorf("%+v", m)
	}
}

// The stretch that is told holds what is measured where drills differ as much as those that were made, nine times of ten.
func TestStretchHolds(t *testing.T) {
	seed := uint64(1)
	noise := func() float64 { // from 0.85 to 1.15, the same in each run
		seed = seed*6364136223846793005 + 1442695040888963407
		return 0.85 + 0.3*float64(seed>>40)/float64(1<<24)
	}
	l := line{fixed: 4, rate: 2e8, start: 2, replay: 1e8, rest: 1}
	held, tries := 0, 400
	for range tries {
		var samples []drill.Sample
		for i := range 15 {
			samples = append(samples, l.sample(1e10*(1+float64(i)/10), 1e9, noise()))
		}
		m, _ := drill.Fit(samples)
		e, s := m.Predict(2.4e10, 1e9), l.sample(2.4e10, 1e9, noise())
		if e.Low <= s.RTO && s.RTO <= e.High {
			held++
		}
	}
	if part := float64(held) / float64(tries); part < 0.85 {
		t.Errorf("%.0f %% of what was measured lay where it was expected", 100*part)
	}
}

// Fewer than three drills predict nothing.
func TestTooFew(t *testing.T) {
	s := line{1, 1e8, 1, 1e8, 0}.sample(1e9, 1e6, 1)
	for n := range 4 {
		samples := make([]drill.Sample, n)
		for i := range samples {
			samples[i] = s
		}
		if _, ok := drill.Fit(samples); ok != (n >= 3) {
			t.Errorf("of %d drills: %t", n, ok)
		}
	}
	now := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	if _, ok := drill.Grow([]drill.Size{{now, 1}, {now.Add(time.Hour), 2}, {now.Add(2 * time.Hour), 3}}); ok {
		t.Error("two hours tell how a cluster grows")
	}
}

// Growth is told from sizes, and from it the day on which an objective will be missed first.
func TestMissed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := drawLine(t)
		var samples []drill.Sample
		for i := range 8 {
			samples = append(samples, l.sample(1e10*math.Pow(1.3, float64(i)), 1e8*math.Pow(1.3, float64(i)), 1))
		}
		m, _ := drill.Fit(samples)
		now := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
		daily := rapid.Float64Range(-1e8, 1e8).Draw(t, "daily")
		var sizes []drill.Size
		for i := range 20 {
			sizes = append(sizes, drill.Size{At: now.AddDate(0, 0, i-20), Bytes: 1e11 + daily*float64(i)})
		}
		g, ok := drill.Grow(sizes)
		if !ok || math.Abs(g.Daily-daily) > 1e-6*math.Abs(daily)+1 || math.Abs(g.Then(now)-(1e11+20*daily)) > 1e-6*1e11 {
			t.Fatalf("grows by %g a day: %+v", daily, g)
		}
		const wal = 1e8
		objective := m.Predict(g.Then(now), wal).Seconds * rapid.Float64Range(0.8, 2).Draw(t, "objective")
		from, missed := m.Missed(&g, wal, objective, now)
		after := func(d time.Duration) float64 { return m.Predict(g.Then(from.Add(d)), wal).Seconds }
		switch {
		case !missed:
			if late := m.Predict(g.Then(now.AddDate(3, 0, -1)), wal).Seconds; late > objective {
				t.Errorf("kept for ever, and %g of %g in three years", late, objective)
			}
		case from.Equal(now):
			if after(0) <= objective {
				t.Errorf("missed now at %g of %g", after(0), objective)
			}
		case after(0) < objective || after(-2*time.Hour) > objective:
			t.Errorf("missed from %s on: %g then, and before %g, of %g", from, after(0), after(-2*time.Hour), objective)
		}
	})
}

func makeRange(n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	return all
}
