package retention_test

import (
	"testing"

	"holdfast/internal/retention"
)

// A policy that is accepted is written as one that means the same.
func FuzzParsePolicy(f *testing.F) {
	for _, s := range []string{"{recovery_window: 14d, full: 7, gfs: {daily: 7, weekly: 4, monthly: 12, yearly: 3}, minimum: 2, keep_last_proven: true}",
		`{"full": 1}`, "minimum: 2\nkeep_last_proven: false\n", "{recovery_window: 1y2w3d4h5m6s}", "gfs: {daily: 1}", "{recovery_window: 1500ms}", "*a", "&a {full: 1}"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := retention.ParsePolicy(s)
		if err != nil {
			return
		}
		again, err := retention.ParsePolicy(p.String())
		if err != nil || again != p {
			t.Errorf("%q is %+v, written as %s, which is %+v, %v", s, p, p, again, err)
		}
	})
}

// A duration that is accepted is written as one that means the same.
func FuzzParseDuration(f *testing.F) {
	for _, s := range []string{"14d", "1y", "2w", "36h", "1d12h", "90m", "1d0s", "1.5h", "-1h", "d", "99999999y", "1d1d", "1h1d"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := retention.ParseDuration(s)
		if err != nil {
			return
		}
		if again, err := retention.ParseDuration(retention.FormatDuration(d)); err != nil || again != d {
			t.Errorf("%q is %d, written as %s, which is %d, %v", s, d, retention.FormatDuration(d), again, err)
		}
	})
}

// A moment is the name of a backup, or has a zone.
func FuzzParseMoment(f *testing.F) {
	for _, s := range []string{"base_000000010000000000000003", "base_", "b", "2026-05-06T07:08:09Z", "2026-05-06 07:08:09.5+02", "2026-05-06", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, err := retention.ParseMoment(s)
		if err != nil || m.Name != "" {
			return
		}
		if again, err := retention.ParseMoment(m.String()); err != nil || !again.Time.Equal(m.Time) {
			t.Errorf("%q is %s, read again it is %s, %v", s, m, again, err)
		}
	})
}
