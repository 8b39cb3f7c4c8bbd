package main

import (
	"os"
	"slices"
	"syscall"
	"testing"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want float64
	}{
		{nil, 0},
		{[]float64{7}, 7},
		{[]float64{9, 1, 5}, 5},
		{[]float64{4, 1, 3, 2}, 2.5},
	} {
		in := slices.Clone(c.in)
		if got := median(c.in); got != c.want {
			t.Errorf("median(%v) = %v, want %v", c.in, got, c.want)
		}
		if !slices.Equal(in, c.in) {
			t.Errorf("median(%v) changed its argument to %v", in, c.in)
		}
	}
}

// A round that failed has no ratio, and the others keep their partners.
func TestRatiosPairRounds(t *testing.T) {
	got := ratios([]float64{8, 0, 9, 10}, []float64{4, 5, 3, 0})
	if want := []float64{2, 3}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := ratios(nil, []float64{1}); got != nil {
		t.Errorf("got %v of nothing", got)
	}
}

func TestVerdict(t *testing.T) {
	for _, c := range []struct {
		t    target
		want string
	}{
		{target{bound: 1.15, atLeast: true, rounds: []float64{1.15}}, "pass"},
		{target{bound: 1.15, atLeast: true, rounds: []float64{1.3, 1.14, 1.1}}, "miss"},
		{target{bound: 1.25, rounds: []float64{1.25}}, "pass"},
		{target{bound: 1.25, rounds: []float64{1, 1.26, 1.27}}, "miss"},
		{target{bound: 256, strict: true, rounds: []float64{256}}, "miss"},
		{target{bound: 256, strict: true, rounds: []float64{255.9}}, "pass"},
		{target{bound: 1, atLeast: true}, "not measured"},
		{target{bound: 1}, "not measured"},
	} {
		if got := c.t.verdict(); got != c.want {
			t.Errorf("%+v: %s, want %s", c.t, got, c.want)
		}
	}
}

// A program may be called anything, also something that looks like the fields behind its name.
func TestStatTicks(t *testing.T) {
	const line = "42 (a) R 1 (b) S 1 42 42 0 -1 4194560 100 200 0 0 7 11 13 17 20 0 1 0 5 6 7"
	if got := statTicks(line); got != 7+11+13+17 {
		t.Errorf("%d ticks in %q, want %d", got, line, 7+11+13+17)
	}
	if got := statTicks("42 (a) R 1"); got != 0 {
		t.Errorf("%d ticks in half a line", got)
	}
}

// What a command leaves running counts, and so does what it uses: a shell ends while its child works on.
func TestMeasureCountsOrphans(t *testing.T) {
	if err := becomeReaper(); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(t.TempDir() + "/log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	b := &bench{dir: t.TempDir(), log: log, account: account{uid: os.Geteuid(), gid: os.Getegid()}}
	const busy = `(i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; head -c 200000000 /dev/zero | tail -n 1 > /dev/null) &`
	u, err := b.measure(t.Context(), 0, func(m *meter) error { return m.run(b.command(t.Context(), nil, "sh", "-c", busy)) })
	if err != nil {
		t.Fatal(err)
	}
	if u.CPU <= 0 || u.Peak < 100<<20 {
		t.Errorf("the orphan's %+v: want processor time, and the 200 MB that tail keeps", u)
	}
	if _, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); err != syscall.ECHILD {
		t.Errorf("something is left running: %v", err)
	}
}

// The error of a command that failed has what it said.
func TestRunQuotesOutput(t *testing.T) {
	log, err := os.Create(t.TempDir() + "/log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	b := &bench{dir: t.TempDir(), log: log, account: account{uid: os.Geteuid(), gid: os.Getegid()}}
	err = b.run(b.command(t.Context(), nil, "sh", "-c", "echo something broke >&2; exit 3"))
	if want := "sh -c echo something broke >&2; exit 3: exit status 3\n    something broke"; err == nil || err.Error() != want {
		t.Errorf("got %v", err)
	}
}

// What pgBackRest waited for the server is the time between two lines of its log.
func TestBetween(t *testing.T) {
	const log = "2026-11-21 11:24:04.460 P00   INFO: execute backup start: backup begins after the requested immediate checkpoint completes\n" +
		"2026-11-21 11:24:04.499 P00   INFO: backup start archive = 000000010000000000000004, lsn = 0/4000028\n" +
		"2026-11-21 11:24:05.831 P00   INFO: execute backup stop and wait for all WAL segments to archive\n"
	got, err := between(log, "execute backup start", "backup start archive = ")
	if err != nil || got != 0.039 {
		t.Errorf("%v s, %v, want 0.039", got, err)
	}
	if got, err := between(log, "execute backup stop", "backup stop archive = "); err == nil {
		t.Errorf("a log without its end gave %v s", got)
	}
}
