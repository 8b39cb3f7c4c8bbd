package drill

import (
	"math"
	"slices"
	"time"
)

// Model says how long a restore takes, by what drills have measured: bytes to restore, then WAL to replay, each a fixed time and a rate, then what is left. It is fitted to
// each of the phases alone, so that neither is taken for the other where both grow together.
//
// The lines are those of Theil and Sen: the slope is the median of those between any two measurements that differ by a tenth at least, and what remains over it, in the
// median, is the fixed time. A fifth of the measurements may be anything. Where all are of about one size, or more took less time, it is taken to be in proportion, or where
// that fits far better not to depend on the size.
// How far a prediction may be off is what it was off by, at least, when each measurement in turn was left out and predicted from the others (jackknife+; Barber, Candès,
// Ramdas, Tibshirani 2021), in proportion to what was predicted; so that it widens where sizes are asked for that are far from those that were measured.
type Model struct {
	Drills  int     `json:"drills"` // that it was fitted to
	Restore Line    `json:"restore"`
	Replay  Line    `json:"replay"`
	Rest    float64 `json:"rest_seconds"` // of all that is neither, in the median
	Error   float64 `json:"error"`        // in the median, by how much of a measurement it was off where that was predicted from the others; 0 where there were too few

	samples []Sample
	without []Model // one for each sample: fitted to the others
}

// Line is seconds by bytes.
type Line struct {
	Fixed float64 `json:"fixed_seconds"`
	Rate  float64 `json:"bytes_per_second"` // 0: it does not depend on the bytes
}

// At returns how long that many bytes take.
func (l Line) At(bytes float64) float64 {
	if l.Rate == 0 {
		return l.Fixed
	}
	return l.Fixed + bytes/l.Rate
}

// Sample is what a drill has measured.
type Sample struct {
	Bytes, WAL           float64 // restored and replayed
	Restore, Replay, RTO float64 // seconds
}

// Estimate is a prediction, in seconds.
type Estimate struct {
	Seconds float64 `json:"seconds"`
	Low     float64 `json:"low_seconds"`
	High    float64 `json:"high_seconds"`
}

// Bounds of what a model is fitted to.
const (
	minSamples = 3   // fewer say nothing
	maxSamples = 100 // the newest: machines change
)

// sampleOf returns what a record measured, and whether it went so far.
func sampleOf(r *Record) (s Sample, ok bool) {
	s = Sample{Bytes: float64(r.Fetched.Bytes), Restore: r.Seconds["fetch"], Replay: r.Seconds["replay"], RTO: r.RTO}
	if r.Replay != nil {
		s.WAL = float64(r.Replay.Bytes)
	}
	for _, f := range []*float64{&s.Restore, &s.Replay, &s.RTO} {
		if *f < 0 || *f > 1e9 {
			return s, false
		}
		*f = max(*f, 1e-6)
	}
	return s, s.Bytes > 0 && s.WAL >= 0 && r.RTO > 0
}

// Fit fits a model to samples, oldest first, of which it heeds the last 100. There is none of fewer than three.
func Fit(samples []Sample) (m Model, ok bool) {
	samples = slices.Clone(samples[max(0, len(samples)-maxSamples):])
	if len(samples) < minSamples {
		return Model{}, false
	}
	m = fit(samples)
	m.samples = samples
	var off []float64
	for i, s := range samples {
		others := slices.Concat(samples[:i:i], samples[i+1:])
		m.without = append(m.without, fit(others))
		off = append(off, math.Abs(m.without[i].seconds(s.Bytes, s.WAL)-s.RTO)/s.RTO)
	}
	m.Error = median(off)
	return m, true
}

// fit fits the lines.
func fit(samples []Sample) Model {
	column := func(of func(Sample) float64) (c []float64) {
		for _, s := range samples {
			c = append(c, of(s))
		}
		return c
	}
	return Model{
		Drills:  len(samples),
		Restore: fitLine(column(func(s Sample) float64 { return s.Bytes }), column(func(s Sample) float64 { return s.Restore })),
		Replay:  fitLine(column(func(s Sample) float64 { return s.WAL }), column(func(s Sample) float64 { return s.Replay })),
		Rest:    max(0, median(column(func(s Sample) float64 { return s.RTO - s.Restore - s.Replay }))),
	}
}

// apart is how far two sizes must be from each other, as a part of the larger, to say something of a rate.
const apart = 0.1

// agree is which part of the slopes must rise for a line to be believed.
const agree = 0.6

// fitLine fits seconds to bytes.
func fitLine(bytes, seconds []float64) Line {
	var slopes, ratios []float64
	rising := 0
	for i := range bytes {
		if bytes[i] > 0 {
			ratios = append(ratios, seconds[i]/bytes[i])
		}
		for j := range i {
			if d := bytes[i] - bytes[j]; math.Abs(d) > apart*max(bytes[i], bytes[j]) {
				slope := (seconds[i] - seconds[j]) / d
				slopes = append(slopes, slope)
				if slope > 0 {
					rising++
				}
			}
		}
	}
	if slope := median(slopes); slope > 0 && float64(rising) >= agree*float64(len(slopes)) {
		left := make([]float64, len(bytes))
		for i := range bytes {
			left[i] = seconds[i] - slope*bytes[i]
		}
		if fixed := median(left); fixed >= 0 {
			return Line{fixed, 1 / slope}
		}
	}
	flat := Line{Fixed: median(seconds)}
	if ratio := median(ratios); len(ratios) == len(bytes) && ratio > 0 {
		if steep := (Line{Rate: 1 / ratio}); flat.off(bytes, seconds) >= steep.off(bytes, seconds)/2 {
			return steep
		}
	}
	return flat
}

// off says by how many seconds the line is off, in the median.
func (l Line) off(bytes, seconds []float64) float64 {
	var off []float64
	for i := range bytes {
		off = append(off, math.Abs(l.At(bytes[i])-seconds[i]))
	}
	return median(off)
}

// seconds predicts the RTO.
func (m *Model) seconds(bytes, wal float64) float64 {
	return m.Restore.At(bytes) + m.Replay.At(wal) + m.Rest
}

// confidence is how much of what will be measured should lie between Low and High, where there is enough to tell; of fewer than ten drills all that was seen counts.
const confidence = 0.9

// Predict says how long it takes to restore that many bytes and to replay that much WAL.
func (m *Model) Predict(bytes, wal float64) Estimate {
	e := Estimate{Seconds: m.seconds(bytes, wal)}
	var low, high []float64
	for i, s := range m.samples {
		of := &m.without[i]
		off := math.Abs(of.seconds(s.Bytes, s.WAL)-s.RTO) / of.seconds(s.Bytes, s.WAL)
		at := of.seconds(bytes, wal)
		low, high = append(low, max(0, at*(1-off))), append(high, at*(1+off))
	}
	slices.Sort(low)
	slices.Sort(high)
	n := len(low)
	k := min(n, int(math.Ceil((1+confidence)/2*float64(n+1)))) // the k-th largest
	e.Low, e.High = min(e.Seconds, low[n-k]), max(e.Seconds, high[k-1])
	return e
}

// median returns the middle of the values, 0 of none.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// Growth is how a cluster grows, by the sizes of backups: from the newest on as in the median between any two of them.
type Growth struct {
	At    time.Time `json:"at"`
	Bytes float64   `json:"bytes"`         // then
	Daily float64   `json:"bytes_per_day"` // more each day; less where it is below 0
}

// Size is how large a cluster was.
type Size struct {
	At    time.Time
	Bytes float64
}

// minSpan is how far the first and the last size must be apart to say something of growth.
const minSpan = 24 * time.Hour

// Grow fits a line to sizes, oldest first, of which it heeds the last 400. There is none of fewer than three, or of less than a day.
func Grow(sizes []Size) (g Growth, ok bool) {
	sizes = sizes[max(0, len(sizes)-400):]
	if len(sizes) < minSamples || sizes[len(sizes)-1].At.Sub(sizes[0].At) < minSpan {
		return Growth{}, false
	}
	g.At = sizes[len(sizes)-1].At
	days := func(t time.Time) float64 { return t.Sub(g.At).Hours() / 24 }
	var slopes []float64
	for i, x := range sizes {
		for _, y := range sizes[:i] {
			if d := days(x.At) - days(y.At); d > 0.04 { // an hour
				slopes = append(slopes, (x.Bytes-y.Bytes)/d)
			}
		}
	}
	g.Daily = median(slopes)
	g.Bytes = sizes[len(sizes)-1].Bytes
	return g, true
}

// Then returns how large it will be.
func (g *Growth) Then(t time.Time) float64 {
	return max(0, g.Bytes+g.Daily*t.Sub(g.At).Hours()/24)
}

// horizon is how far ahead it is looked when an objective will be missed.
const horizon = 3 * 365 * 24 * time.Hour

// Missed says from when on an objective, in seconds, will be missed, by the middle of the estimate, if growth goes on; ok is false where it will not be for three years. wal is what is
// to be replayed.
func (m *Model) Missed(g *Growth, wal, objective float64, now time.Time) (from time.Time, ok bool) {
	late := func(t time.Time) bool { return m.seconds(g.Then(t), wal) > objective }
	if late(now) {
		return now, true
	}
	low, high := now, now.Add(horizon)
	if !late(high) {
		return time.Time{}, false
	}
	for high.Sub(low) > time.Hour { // it grows all the time, or shrinks and was never late
		if mid := low.Add(high.Sub(low) / 2); late(mid) {
			high = mid
		} else {
			low = mid
		}
	}
	return high, true
}
