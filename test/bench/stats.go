package main

import "slices"

// median returns the middle of values, the mean of the two in the middle of an even number, and 0 of none.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	mid := len(s) / 2
	if len(s)%2 == 1 {
		return s[mid]
	}
	return (s[mid-1] + s[mid]) / 2
}

// ratios divides two rows of figures round by round. Rounds in which either has no figure, written 0, are left out.
func ratios(numerator, denominator []float64) (r []float64) {
	for i := range min(len(numerator), len(denominator)) {
		if numerator[i] != 0 && denominator[i] != 0 {
			r = append(r, numerator[i]/denominator[i])
		}
	}
	return r
}

// A target is one line of what the product must show: the median of a figure's rounds against a bound.
type target struct {
	what    string
	bound   float64
	atLeast bool      // the figure must be bound or more; otherwise less
	strict  bool      // the bound itself is a miss
	rounds  []float64 // the figure of each round; none when not measured
	unit    string
}

// verdict is "pass", "miss" or, without a figure, "not measured".
func (t target) verdict() string {
	figure := median(t.rounds)
	switch {
	case len(t.rounds) == 0:
		return "not measured"
	case t.strict && figure == t.bound:
		return "miss"
	case t.atLeast && figure >= t.bound, !t.atLeast && figure <= t.bound:
		return "pass"
	}
	return "miss"
}
