package verify_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/store"
	"holdfast/internal/verify"
)

// What was never there when it was looked for is missed by each run, not by the first alone.
func TestWhatIsMissingIsMissedByEachRun(t *testing.T) {
	for _, name := range []string{"tar_partitions/part_001.tar.zst", "files_metadata.json", "metadata.json", "page_sums/part_001.tar.crc32c"} {
		m := story(t, 1, archive.Options{})
		object := archive.Folder(m.name) + name
		if err := m.store.Delete(t.Context(), object); err != nil {
			t.Fatal(err)
		}
		for n := range 3 {
			if rep := verified(t, m.archive(), verify.Request{All: true}, verify.Options{}); rep.Result != verify.Damage || rep.Findings[0].Object != object {
				t.Errorf("run %d without %s: %s", n+1, name, found(rep))
			}
		}
	}
}

// unreadable is a store that lists everything and gives no segment.
type unreadable struct{ store.Store }

func (s unreadable) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	if strings.HasPrefix(name, archive.WALDir) && !strings.Contains(name, ".history") {
		return nil, errors.New("access denied")
	}
	return s.Store.Open(ctx, name)
}

// However much there is to tell, what could not be read is not recorded as verified, and not called well.
func TestManyFindingsHideNothing(t *testing.T) {
	m := story(t, 1, archive.Options{})
	for n := range 1100 {
		put(t, m.store, fmt.Sprintf("%sstray%04d", archive.WALDir, n), []byte("x"))
	}
	rep := verified(t, archive.New(unreadable{m.store}, archive.Options{}), verify.Request{All: true}, verify.Options{})
	if rep.Result != verify.Unknown || rep.More == 0 {
		t.Errorf("with a store that gives no WAL: %s, %d left out", rep.Result, rep.More)
	}
	for _, w := range rep.WAL {
		if w.Result != "incomplete" {
			t.Errorf("of %s to %s it says %s", w.First, w.Last, w.Result)
		}
	}
	p, err := verify.Decide(t.Context(), m.archive(), verify.Request{All: true})
	if err != nil {
		t.Fatal(err)
	}
	if p.Due.Segments != p.Segments {
		t.Errorf("of %d segments, of which none could be read, %d are due", p.Segments, p.Due.Segments)
	}
}

// rotten is a store of which one object has changed without anybody having put it.
type rotten struct {
	store.Store
	name string
}

func (s *rotten) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	return s.OpenRange(ctx, name, 0, -1)
}

func (s *rotten) OpenRange(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	if name != s.name {
		return s.Store.OpenRange(ctx, name, offset, length)
	}
	b, err := store.ReadFile(ctx, s.Store, name, 1<<30)
	if err != nil {
		return nil, err
	}
	b[len(b)/2] ^= 1
	b = b[offset:]
	if length >= 0 {
		b = b[:min(length, int64(len(b)))]
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

// What a sample finds to be damaged is damaged for later runs too, also where an earlier one has found it to be right.
func TestDamageInASampleIsRemembered(t *testing.T) {
	for _, of := range []string{archive.WALDir + "000000010000000000000003.zst", "tar_partitions/part_002.tar.zst"} {
		m := story(t, 1, archive.Options{})
		verified(t, m.archive(), verify.Request{All: true}, verify.Options{})
		object := of
		if !strings.HasPrefix(of, archive.WALDir) {
			object = archive.Folder(m.name) + of
		}
		a := archive.New(&rotten{m.store, object}, archive.Options{})
		hit := false
		for seed := uint64(1); seed < 40 && !hit; seed++ {
			rep := verified(t, a, verify.Request{All: true, Sample: 0.4, Again: true}, verify.Options{Seed: seed})
			hit = rep.Result == verify.Damage
		}
		if !hit {
			t.Fatalf("no sample met %s", object)
		}
		if rep := verified(t, a, verify.Request{All: true}, verify.Options{}); rep.Result != verify.Damage {
			t.Errorf("behind a sample that met the damage of %s: %s", object, found(rep))
		}
	}
}

// With the wrong key nothing is recorded to be damaged.
func TestTheWrongKeyIsNotRecordedAsDamage(t *testing.T) {
	both, _, other := keys(t)
	m := story(t, 1, archive.Options{Key: both})
	verified(t, archive.New(m.store, archive.Options{Key: other}), verify.Request{All: true}, verify.Options{})
	for rec, err := range archive.Records[verify.WALRecord](t.Context(), m.archive(), archive.VerifiedWALDir) {
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range rec.Doc.Problems {
			if p.Kind != verify.Key {
				t.Errorf("of %s it is recorded: %+v", p.Segment, p)
			}
		}
	}
	for rec, err := range archive.Records[verify.BackupRecord](t.Context(), m.archive(), archive.VerifiedDir(m.name)) {
		if err != nil || rec.Doc.Result != "incomplete" {
			t.Errorf("of the backup it is recorded: %+v, %v", rec.Doc, err)
		}
	}
	if rep := verified(t, m.archive(), verify.Request{All: true}, verify.Options{}); rep.Result != verify.OK || rep.Before > 10 {
		t.Errorf("then with the right key: %s, %d were verified before", found(rep), rep.Before)
	}
}

// What was compared as it is stored, without a key, is looked into once there is one.
func TestWithAKeyMoreIsLookedAt(t *testing.T) {
	both, public, _ := keys(t)
	m := story(t, 1, archive.Options{Key: both, Notes: true})
	without := archive.New(m.store, archive.Options{Key: public})
	for n := range 4 {
		a := without
		if n > 1 {
			a = archive.New(m.store, archive.Options{}) // who knows of no key at all asks whether there is any manifest to be read
		}
		rep := verified(t, a, verify.Request{All: true, NoKey: n < 2}, verify.Options{})
		if most := []int{100, 0, 12, 12}[n]; rep.Read.Objects > most || rep.Result != verify.Unknown {
			t.Errorf("run %d without a key read %d objects: %s", n+1, rep.Read.Objects, found(rep))
		}
	}
	p, err := verify.Decide(t.Context(), m.archive(), verify.Request{All: true})
	if err != nil {
		t.Fatal(err)
	}
	if p.Due.Objects < p.Objects-8 { // sentinels, metadata.json and such
		t.Errorf("with the key %d of %d objects are due", p.Due.Objects, p.Objects)
	}
	verified(t, m.archive(), verify.Request{All: true}, verify.Options{})
	for _, noKey := range []bool{false, true} {
		if p, err = verify.Decide(t.Context(), m.archive(), verify.Request{All: true, NoKey: noKey}); err != nil || p.Due.Objects > 0 {
			t.Errorf("then, without a key %v, %d objects are due, %v", noKey, p.Due.Objects, err)
		}
	}
}

// A segment that turns out not to fit the one before it after that was recorded, is damaged for later runs, and so are both.
func TestWhatIsRecordedTooSoonIsTakenBack(t *testing.T) {
	m, other := story(t, 1, archive.Options{}), story(t, 2, archive.Options{})
	object := archive.WALDir + "000000010000000000000003.zst"
	put(t, m.store, object, get(t, other.store, object))
	for n := range 3 {
		rep := verified(t, m.archive(), verify.Request{All: true}, verify.Options{Every: 1, Workers: 1})
		if rep.Result != verify.Damage || !strings.Contains(found(rep), object) {
			t.Errorf("run %d: %s", n+1, found(rep))
		}
	}
}

// What a record says of damage tells whether restores fail of it.
func TestRecordsTellWhetherRestoresFail(t *testing.T) {
	for name, harmless := range map[string]bool{"metadata.json": true, "page_sums/part_001.tar.crc32c": true, "tar_partitions/part_001.tar.zst": false, "manifest.json.zst": false} {
		for _, missing := range []bool{false, true} {
			m := story(t, 1, archive.Options{})
			object := archive.Folder(m.name) + name
			if b := get(t, m.store, object); !missing {
				put(t, m.store, object, append(b[:len(b)/2:len(b)/2], "damaged"...))
			} else if err := m.store.Delete(t.Context(), object); err != nil {
				t.Fatal(err)
			}
			verified(t, m.archive(), verify.Request{All: true}, verify.Options{})
			n := 0
			for rec, err := range archive.Records[verify.BackupRecord](t.Context(), m.archive(), archive.VerifiedDir(m.name)) {
				if err != nil {
					t.Fatal(err)
				}
				for _, o := range rec.Doc.Objects {
					if o.Name == object {
						if n++; o.Problem == "" || o.Harmless != harmless {
							t.Errorf("of %s, missing %v, it is recorded: %+v", name, missing, o)
						}
					} else if o.Problem != "" {
						t.Errorf("with %s, missing %v, it is recorded: %+v", name, missing, o)
					}
				}
			}
			if n == 0 {
				t.Errorf("of %s, missing %v, nothing is recorded", name, missing)
			}
		}
	}
}
