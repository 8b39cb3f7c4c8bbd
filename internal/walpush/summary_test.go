package walpush_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/pg/wal"
	"holdfast/internal/pg/walrec"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
	"holdfast/internal/walpush"
	"holdfast/test/pgtest"
)

// group is how many segments one of WAL-G's delta objects is about.
const group = 16

// written returns segments that a server wrote, by their names: a group of them, the one before it and the one after it. The names ascend.
func written(t *testing.T) (names []string, contents map[string][]byte) {
	t.Helper()
	c := pgtest.New(t, pgtest.Require(t, 15), pgtest.Options{SegmentSize: size, Settings: map[string]string{
		"autovacuum": "off", "max_wal_size": "1GB", "wal_keep_size": "1GB"}})
	c.Exec(t, `create table filled (id int, what text)`)
	for c.Value(t, fmt.Sprintf(`pg_current_wal_lsn() < '%s'::pg_lsn`, size.Start(2*group+1))) == "true" {
		c.Exec(t, `insert into filled select g, repeat('x', 100) from generate_series(1, 5000) g`)
	}
	c.Stop(t)
	contents = map[string][]byte{}
	for no := wal.SegmentNo(group - 1); no <= 2*group; no++ {
		name := size.Name(1, no)
		b, err := os.ReadFile(filepath.Join(c.Data, "pg_wal", name))
		if err != nil {
			t.Fatal(err)
		}
		names, contents[name] = append(names, name), b
	}
	return names, contents
}

// fill puts all of contents into a new directory.
func fill(t *testing.T, contents map[string][]byte) pgWAL {
	d := newWAL(t)
	for name, b := range contents {
		d.put(name, b)
	}
	return d
}

// told returns options with summaries and deltas, and what is logged.
func told() (walpush.Options, *bytes.Buffer) {
	var log bytes.Buffer
	o := options()
	o.Summaries, o.Deltas, o.Logger = true, true, slog.New(slog.NewTextHandler(&log, nil))
	return o, &log
}

// summarized returns the objects in s that tell what segments change.
func summarized(t *testing.T, s store.Store) (names []string) {
	t.Helper()
	for o, err := range store.Walk(t.Context(), s, "") {
		if err != nil {
			t.Fatal(err)
		}
		if ofSummaries(o.Name) {
			names = append(names, o.Name)
		}
	}
	return names
}

// ofSummaries says whether a call, or an object, is about what segments change.
func ofSummaries(call string) bool {
	return strings.Contains(call, archive.SummaryDir) || strings.Contains(call, "_delta")
}

// Summaries end up in the archive with what they are of; and nothing does that was not asked for.
func TestPushStoresSummaries(t *testing.T) {
	names, contents := written(t)
	for what, parallel := range map[string]int{"one by one": 1, "ahead": 4} {
		t.Run(what, func(t *testing.T) {
			d, m := fill(t, contents), &storetest.Memory{}
			d.put("00000002.history", []byte("1\t0/300000\tno recovery target specified\n"))
			d.put(names[5]+".partial", contents[names[5]])
			a := archive.New(m, archive.Options{})
			o, log := told()
			o.Parallel, o.Limit = parallel, len(names)
			for _, name := range append(slices.Clone(names), "00000002.history", names[5]+".partial") {
				if _, err := push(t.Context(), a, d.path(name), o); err != nil {
					t.Fatal(err)
				}
				if parallel > 1 && len(summarized(t, m)) < len(names)+1 {
					t.Errorf("after the first push there are %q", summarized(t, m))
				}
				d.done(name)
			}
			if log.Len() > 0 {
				t.Errorf("logged: %s", log)
			}
			for _, name := range names {
				want, err := walrec.Summarize(bytes.NewReader(contents[name]), size)
				if err != nil {
					t.Fatal(err)
				}
				got, _, err := a.OpenSummary(t.Context(), name, size)
				if err != nil || !bytes.Equal(got.Encode(), want.Encode()) {
					t.Errorf("%s: %v", name, err)
				}
			}
			delta := archive.WALDir + names[1] + "_delta.zst"
			if got := summarized(t, m); len(got) != len(names)+1 || !slices.Contains(got, delta) {
				t.Errorf("there are %q, want a summary each and %s", got, delta)
			}
		})
	}
	d, m := fill(t, contents), &storetest.Memory{}
	calls := storetest.FailAt(m, -1)
	o := options()
	o.Parallel = 4
	o.Deltas = true // of what is not there
	if _, err := push(t.Context(), archive.New(calls, archive.Options{}), d.path(names[0]), o); err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(calls.Calls(), ofSummaries) {
		t.Errorf("without summaries: %q", calls.Calls())
	}
}

// Whatever fails of summaries, the push succeeds, warning once; and there is no summary of what is not archived.
func TestSummariesFailNoPush(t *testing.T) {
	names, contents := written(t)
	last := names[group] // of its group
	for what, fail := range map[string]func(store.Store, int) *storetest.Flaky{
		"before": storetest.FailAt, "midway": storetest.FailMidway, "after": storetest.FailAfter,
	} {
		before := &storetest.Memory{}
		o, _ := told()
		for _, name := range names[:group] {
			if _, err := push(t.Context(), archive.New(before, archive.Options{}), fill(t, map[string][]byte{name: contents[name]}).path(name), o); err != nil {
				t.Fatal(err)
			}
		}
		warned := 0
		for n := 0; ; n++ {
			m := &storetest.Memory{}
			for o, err := range store.Walk(t.Context(), before, "") {
				b, err2 := store.ReadFile(t.Context(), before, o.Name, 1<<30)
				if err := errors.Join(err, err2, m.Put(t.Context(), o.Name, bytes.NewReader(b))); err != nil {
					t.Fatal(err)
				}
			}
			d := fill(t, map[string][]byte{last: contents[last]})
			flaky := fail(m, n)
			o, log := told()
			_, err := push(t.Context(), archive.New(flaky, archive.Options{}), d.path(last), o)
			if !flaky.Reached() {
				break
			}
			call := flaky.Calls()[n]
			if ofSummaries(call) {
				warned++
				// A listing that fails behind its end has told all, and an answer that is lost may be had in another way.
				if lines := strings.Count(log.String(), "level=WARN"); err != nil || lines > 1 || lines == 0 && what == "before" {
					t.Errorf("%s failed %s: %v, logged: %s", call, what, err, log)
				}
			}
			if err == nil {
				whole(t, m, last, contents[last])
				continue
			}
			a := archive.New(m, archive.Options{})
			r, err := a.OpenWAL(t.Context(), last)
			if err == nil {
				r.Close()
			} else if _, _, err := a.OpenSummary(t.Context(), last, size); err == nil {
				t.Errorf("%s failed %s: there is a summary, and no segment", call, what)
			}
		}
		if warned < 20 { // the summary, two listings, the group's summaries, the object
			t.Errorf("%d calls about summaries failed %s", warned, what)
		}
	}
}

// A segment that cannot be summed up is archived like any other.
func TestSegmentsThatCannotBeSummedUp(t *testing.T) {
	d, m := newWAL(t), &storetest.Memory{}
	names := d.segments(5)
	o, log := told()
	o.Parallel = 3
	if _, err := push(t.Context(), archive.New(m, archive.Options{}), d.path(names[0]), o); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		whole(t, m, name, segment(name, cluster, 1))
	}
	if got := summarized(t, m); len(got) != 0 || strings.Count(log.String(), "level=WARN") != 1 {
		t.Errorf("summaries %q, logged: %s", got, log)
	}
}

// hanging is a store that does not answer when it is given a summary.
type hanging struct{ *storetest.Memory }

func (h hanging) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	if ofSummaries(name) {
		<-ctx.Done()
		return ctx.Err()
	}
	return h.Memory.PutIfAbsent(ctx, name, r)
}

// PostgreSQL does not wait for long, however many files are stored ahead.
func TestSummariesDelayNoPush(t *testing.T) {
	names, contents := written(t)
	d := fill(t, contents)
	synctest.Test(t, func(t *testing.T) {
		m := &storetest.Memory{}
		o, log := told()
		o.Parallel = 3
		begin := time.Now()
		report, err := push(t.Context(), archive.New(hanging{m}, archive.Options{}), d.path(names[0]), o)
		if err != nil || len(report.Ahead) != len(names)-1 {
			t.Errorf("%+v, %v", report, err)
		}
		if took := time.Since(begin); took > 15*time.Second {
			t.Errorf("it took %s", took)
		}
		if strings.Count(log.String(), "level=WARN") != 1 {
			t.Errorf("logged: %s", log)
		}
	})
	for _, name := range names {
		if _, err := os.Stat(d.path("holdfast/pushed/" + name)); (err == nil) == (name == names[0]) {
			t.Errorf("marker of %s: %v", name, err)
		}
	}
}
