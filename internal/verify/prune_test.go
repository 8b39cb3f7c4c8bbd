package verify_test

import (
	"context"
	"iter"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
	"holdfast/internal/verify"
)

// hiding is a store whose records of WAL are hidden where they are removed.
type hiding struct {
	store.Store
	hidden map[string]bool
}

func (s *hiding) Delete(ctx context.Context, name string) error {
	if strings.HasPrefix(name, archive.VerifiedWALDir) {
		s.hidden[name] = true
		return nil
	}
	return s.Store.Delete(ctx, name)
}

func (s *hiding) List(ctx context.Context, dir, after string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		for o, err := range s.Store.List(ctx, dir, after) {
			if !s.hidden[o.Name] && !yield(o, err) {
				return
			}
		}
	}
}

// walRecords counts the records of WAL.
func walRecords(t *testing.T, s store.Store) (n int) {
	t.Helper()
	for _, err := range s.List(t.Context(), archive.VerifiedWALDir, "") {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	return n
}

// However often WAL is verified, and however often its records are left, only so many stay, and these say what all of them would.
func TestRecordsOfWALStayFew(t *testing.T) {
	for seed := range uint64(2) {
		random := rand.New(rand.NewPCG(seed, 1))
		all := &storetest.Memory{}
		m := newMaker(t, 1, &hiding{all, map[string]bool{}}, archive.Options{})
		m.backup()
		most, known := 0, false
		segment := archive.WALDir + segmentSize.Name(1, 3) + ".zst"
		for day := range 40 {
			m.log.records(random.IntN(40), 1<<16)
			m.push()
			req := verify.Request{All: true, Again: random.IntN(10) == 0}
			if random.IntN(5) == 0 {
				req.Sample = 0.5
			}
			var from store.Store = m.store
			if rots := day >= 10 && day < 30; rots {
				from = &rotten{m.store, segment}
			} else {
				known = false
			}
			rep := verified(t, archive.New(from, archive.Options{}), req, verify.Options{Every: time.Duration(1 + random.IntN(2)*1e12), Workers: 1})
			if known && req.Sample == 0 && rep.Result != verify.Damage {
				t.Fatalf("seed %d, day %d: %s", seed, day, found(rep))
			}
			known = known || rep.Result == verify.Damage
			most = max(most, walRecords(t, m.store))
			few, err1 := verify.Decide(t.Context(), m.archive(), verify.Request{All: true})
			full, err2 := verify.Decide(t.Context(), archive.New(all, archive.Options{}), verify.Request{All: true})
			if err1 != nil || err2 != nil || few.Due != full.Due || few.Before != full.Before {
				t.Fatalf("seed %d, day %d: by %d records %+v is due, by all %d %+v, %v, %v", seed, day, walRecords(t, m.store), few.Due, walRecords(t, all), full.Due, err1, err2)
			}
		}
		t.Logf("of %d records up to %d were there", walRecords(t, all), most)
		if most > 12 || walRecords(t, all) < 40 {
			t.Errorf("seed %d: of %d records up to %d were there", seed, walRecords(t, all), most)
		}
	}
}
