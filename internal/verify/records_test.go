package verify_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"

	"holdfast/internal/archive"
	"holdfast/internal/crypt"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
	"holdfast/internal/verify"
)

// watched is a store that keeps which objects were opened.
type watched struct {
	store.Store
	mu     sync.Mutex
	opened []string
}

func (w *watched) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	w.mu.Lock()
	w.opened = append(w.opened, name)
	w.mu.Unlock()
	return w.Store.Open(ctx, name)
}

func (w *watched) OpenRange(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	w.mu.Lock()
	w.opened = append(w.opened, name)
	w.mu.Unlock()
	return w.Store.OpenRange(ctx, name, offset, length)
}

// content returns which objects with content were opened: what every command reads, to know what there is, is left out.
func (w *watched) content() (names []string) {
	for _, name := range w.opened {
		if kind := kindOf(name); kind != "" && kind != "sentinel" && kind != "metadata.json" && kind != "history" && !strings.Contains(name, "/verified/") {
			names = append(names, name)
		}
	}
	w.opened = nil
	return names
}

// What was found to be right is not read again before its time, unless it has changed. What is new is, and what was damaged.
func TestSecondRunReadsWhatIsDue(t *testing.T) {
	m := story(t, 1, archive.Options{})
	w := &watched{Store: m.store}
	a := archive.New(w, archive.Options{})
	all := verify.Request{All: true}
	first := verified(t, a, all, verify.Options{By: "me@here", Tool: "1.2"})
	if first.Result != verify.OK || first.Read.Objects != 26 || first.Read.Segments < 5 || first.Before != 0 {
		t.Errorf("the first run: %+v", first)
	}
	if n := len(w.content()); n < 25 {
		t.Errorf("the first run opened %d objects", n)
	}
	second := verified(t, a, all, verify.Options{})
	if opened := w.content(); len(opened) > 0 || second.Result != verify.OK || second.Before < 30 {
		t.Errorf("the second run opened %s\n%+v", opened, second)
	}
	// One backup alone, as part of what all was.
	verified(t, a, verify.Request{Backup: m.name, WAL: true}, verify.Options{})
	if opened := w.content(); len(opened) > 0 {
		t.Errorf("a run for a backup opened %s", opened)
	}
	verified(t, a, verify.Request{All: true, Again: true}, verify.Options{})
	if n := len(w.content()); n < 25 {
		t.Errorf("a run of all again opened %d objects", n)
	}
	time.Sleep(2 * time.Millisecond)
	verified(t, a, verify.Request{All: true, MaxAge: time.Millisecond}, verify.Options{ReadOnly: true})
	if n := len(w.content()); n < 25 {
		t.Errorf("a run after its time opened %d objects", n)
	}

	// New WAL: read with the segment before it, if a record goes on from there.
	m.log.records(20, 1<<16)
	m.push()
	verified(t, a, all, verify.Options{})
	opened := w.content()
	if len(opened) != 2 && len(opened) != 3 || !strings.Contains(strings.Join(opened, " "), "000000020000000000000006") {
		t.Errorf("with new WAL it opened %s", opened)
	}
	verified(t, a, all, verify.Options{})
	if opened := w.content(); len(opened) > 0 {
		t.Errorf("behind the new WAL it opened %s", opened)
	}

	// Something was stored again, though it is the same.
	part := archive.Folder(m.name) + "tar_partitions/part_001.tar.zst"
	good := get(t, m.store, part)
	time.Sleep(time.Millisecond)
	put(t, m.store, part, good)
	verified(t, a, all, verify.Options{})
	if opened := strings.Join(w.content(), " "); !strings.Contains(opened, part) || strings.Contains(opened, "part_002.tar.zst") {
		t.Errorf("with a part stored again it opened %s", opened)
	}

	// Damage is found each time, and once mended it is gone.
	bad := append([]byte{}, good...)
	bad[len(bad)/2] ^= 4
	put(t, m.store, part, bad)
	for range 2 {
		if rep := verified(t, a, all, verify.Options{}); rep.Result != verify.Damage {
			t.Errorf("a damaged part: %s", found(rep))
		}
	}
	put(t, m.store, part, good)
	if rep := verified(t, a, all, verify.Options{}); rep.Result != verify.OK {
		t.Errorf("a part that is whole again: %s", found(rep))
	}

	// An object that was there, and is gone: the listing tells, and it is named.
	if err := m.store.Delete(t.Context(), part); err != nil {
		t.Fatal(err)
	}
	w.content()
	rep := verified(t, a, all, verify.Options{})
	if rep.Result != verify.Damage || rep.Findings[0].Object != part {
		t.Errorf("a part that is gone: %s", found(rep))
	}
}

// A record says who found what, and when.
func TestRecords(t *testing.T) {
	m := story(t, 1, archive.Options{})
	a := m.archive()
	segment := archive.WALDir + "000000010000000000000003.zst"
	b := get(t, m.store, segment)
	b[len(b)/2] ^= 1
	put(t, m.store, segment, b)
	begin := time.Now()
	verified(t, a, verify.Request{All: true}, verify.Options{By: "me@here", Tool: "1.2"})
	n := 0
	for rec, err := range archive.Records[verify.BackupRecord](t.Context(), a, archive.VerifiedDir(m.name)) {
		if err != nil {
			t.Fatal(err)
		}
		n++
		d := rec.Doc
		if d.By != "me@here" || d.Version != "1.2" || d.At.Before(begin.Add(-time.Second)) || d.Backup != m.name || d.Result != "ok" || len(d.Objects) != 13 || d.Read == 0 || len(d.Sentinel) != 64 {
			t.Errorf("record %+v", d)
		}
	}
	if n != 1 {
		t.Errorf("%d records of the backup", n)
	}
	n = 0
	for rec, err := range archive.Records[verify.WALRecord](t.Context(), a, archive.VerifiedWALDir) {
		if err != nil {
			t.Fatal(err)
		}
		d := rec.Doc
		if n++; d.Timeline == 2 {
			continue
		}
		if d.First != "000000010000000000000002" || d.Last != "000000010000000000000004" && d.Last != "000000010000000000000005" || len(d.Problems) != 1 || d.Problems[0].Segment != "000000010000000000000003" {
			t.Errorf("record %+v", d)
		}
	}
	if n != 2 {
		t.Errorf("%d records of WAL", n)
	}
}

// Whichever store call fails, a run ends with an error, or says that it could not look at something: never that there is damage, nor that all is well. What it had done
// until then is done.
func TestAFailingStoreIsNoDamage(t *testing.T) {
	m := story(t, 1, archive.Options{})
	for what, fails := range map[string]func(store.Store, int) *storetest.Flaky{"before": storetest.FailAt, "midway": storetest.FailMidway, "after": storetest.FailAfter} {
		t.Run(what, func(t *testing.T) { failing(t, m, fails, what != "before") })
	}
}

// failing lets each store call of a run fail in turn. What fails late may not be noticed where that much is not asked for: of the listing in which the catalog
// looks for history files, and of the owner, of whom there is none here.
func failing(t *testing.T, m *maker, fails func(store.Store, int) *storetest.Flaky, late bool) {
	step := 1
	if testing.Short() {
		step = 5
	}
	for n := 0; ; n += step {
		s := clone(t, m.store)
		flaky := fails(s, n)
		a := archive.New(flaky, archive.Options{})
		var rep *verify.Report
		p, err := verify.Decide(t.Context(), a, verify.Request{All: true})
		if err == nil {
			rep, err = verify.Run(t.Context(), a, p, verify.Options{Workers: 1})
		}
		if !flaky.Reached() {
			break
		}
		calls := flaky.Calls()
		last := calls[min(n, len(calls)-1)]
		if err != nil {
			if !errors.Is(err, storetest.ErrInjected) {
				t.Errorf("call %d, %s: %v", n, last, err)
			}
			continue
		}
		recorded := len(rep.Notes) > 0                                                                                                                     // it was a record that could not be left
		summary := strings.Contains(last, archive.SummaryDir) || strings.Contains(last, archive.TombstoneDir) || strings.HasSuffix(last, "/metadata.json") // nothing depends on these, or they are read again
		unasked := late && (last == "list "+archive.WALDir || last == "open holdfast/cluster.json")
		if rep.Result == verify.Damage || !unasked && rep.Result == verify.OK && !recorded && !summary {
			t.Errorf("call %d, %s: %s", n, last, found(rep))
		}
		if again := verified(t, archive.New(s, archive.Options{}), verify.Request{All: true}, verify.Options{}); again.Result != verify.OK {
			t.Errorf("behind call %d, %s: %s", n, last, found(again))
		}
	}
}

// However often a run leaves records, the last one says what came of the whole.
func TestLastRecordIsOfTheWhole(t *testing.T) {
	m := story(t, 1, archive.Options{})
	verified(t, m.archive(), verify.Request{All: true}, verify.Options{Every: time.Nanosecond})
	var results []string
	objects := map[string]bool{}
	for rec, err := range archive.Records[verify.BackupRecord](t.Context(), m.archive(), archive.VerifiedDir(m.name)) {
		if err != nil {
			t.Fatal(err)
		}
		results = append(results, rec.Doc.Result)
		for _, o := range rec.Doc.Objects {
			objects[o.Name] = true
		}
	}
	if n := len(results); n < 5 || results[n-1] != "ok" || results[0] != "incomplete" || len(objects) != 13 {
		t.Errorf("records say %s of %d objects", results, len(objects))
	}
	rep := verified(t, m.archive(), verify.Request{All: true}, verify.Options{})
	if rep.Read.Objects+rep.Read.Segments > 0 || rep.Result != verify.OK {
		t.Errorf("then %+v was read: %s", rep.Read, found(rep))
	}
}

// An interrupted run keeps what it has done.
func TestInterruptedRunKeepsWhatItHasDone(t *testing.T) {
	m := story(t, 1, archive.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	w := &stopping{Store: m.store, at: archive.WALDir + "000000010000000000000004", stop: cancel}
	a := archive.New(w, archive.Options{})
	p, err := verify.Decide(ctx, a, verify.Request{All: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := verify.Run(ctx, a, p, verify.Options{Workers: 1}); !errors.Is(err, context.Canceled) {
		t.Fatalf("Run: %v", err)
	}
	next, err := verify.Decide(t.Context(), m.archive(), verify.Request{All: true})
	if err != nil {
		t.Fatal(err)
	}
	if next.Due.Objects != 0 || next.Due.Segments == 0 || next.Due.Segments >= p.Due.Segments {
		t.Errorf("then %+v is due, before it was %+v", next.Due, p.Due)
	}
}

// stopping is a store that stops what is being done once an object is opened.
type stopping struct {
	store.Store
	at   string
	stop func()
}

func (s *stopping) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	if strings.HasPrefix(name, s.at) {
		s.stop()
		return nil, context.Canceled
	}
	return s.Store.Open(ctx, name)
}

// A sample reads about as much as asked, finds what it meets, and lets nothing count as verified.
func TestSample(t *testing.T) {
	m := story(t, 1, archive.Options{})
	w := &watched{Store: m.store}
	a := archive.New(w, archive.Options{})
	rep := verified(t, a, verify.Request{All: true, Sample: 0.3}, verify.Options{Seed: 7})
	if rep.Result != verify.OK || rep.Sample != 0.3 || rep.Backups[0].Result != "incomplete" {
		t.Errorf("%+v", rep)
	}
	p, err := verify.Decide(t.Context(), a, verify.Request{All: true})
	if err != nil {
		t.Fatal(err)
	}
	if p.Due.Segments != p.Segments || p.Due.Objects < 4 {
		t.Errorf("behind a sample %+v is due of %d segments", p.Due, p.Segments)
	}
	part := archive.Folder(m.name) + "tar_partitions/part_002.tar.zst"
	b := get(t, m.store, part)
	b[len(b)/2] ^= 1
	put(t, m.store, part, b)
	hits := 0
	for seed := range uint64(20) {
		rep := verified(t, archive.New(clone(t, m.store), archive.Options{}), verify.Request{All: true, Sample: 0.3}, verify.Options{Seed: seed + 1})
		if rep.Result == verify.Damage {
			if hits++; rep.Findings[0].Object != part {
				t.Errorf("seed %d: %s", seed, found(rep))
			}
		}
	}
	if hits == 0 || hits == 20 {
		t.Errorf("samples of 30%% found the damage %d times out of 20", hits)
	}
}

// keys returns a key that can both, one that can encrypt only, and another one that can both.
func keys(t *testing.T) (both, public, other crypt.Key) {
	t.Helper()
	make := func(recipient, identity string) crypt.Key {
		k, err := crypt.Open(t.Context(), crypt.Options{Age: crypt.AgeKeys{Recipients: recipient, Identities: identity}})
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	id, err1 := age.GenerateX25519Identity()
	stranger, err2 := age.GenerateX25519Identity()
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return make(id.Recipient().String(), id.String()), make(id.Recipient().String(), ""), make(stranger.Recipient().String(), stranger.String())
}

// Without the key nothing is called damaged that is not, and nothing well; what is stored is compared all the same.
func TestWithoutTheKey(t *testing.T) {
	both, public, other := keys(t)
	m := story(t, 1, archive.Options{Key: both, Notes: true})
	part := archive.Folder(m.name) + "tar_partitions/part_002.tar.zst"
	for what, c := range map[string]struct {
		key   crypt.Key
		noKey bool
	}{"none": {}, "public": {public, true}, "another": {other, false}} {
		o := archive.Options{Key: c.key}
		rep := verified(t, archive.New(clone(t, m.store), o), verify.Request{All: true, NoKey: c.noKey}, verify.Options{})
		if rep.Result != verify.Unknown {
			t.Errorf("%s: %s", what, found(rep))
		}
		s := clone(t, m.store)
		b := get(t, s, part)
		b[len(b)/2] ^= 1
		put(t, s, part, b)
		rep = verified(t, archive.New(s, o), verify.Request{All: true, NoKey: c.noKey}, verify.Options{})
		if rep.Result != verify.Damage || rep.Findings[0].Object != part {
			t.Errorf("%s, with a damaged part: %s", what, found(rep))
		}
	}
}
