package verify_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"strings"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
	"holdfast/internal/verify"
)

// An archive that began when the cluster was on a later timeline lacks nothing.
func TestAnArchiveMayBeginOnALaterTimeline(t *testing.T) {
	m := newMaker(t, 1, &storetest.Memory{}, archive.Options{})
	m.log.timeline = 3
	m.backup()
	m.log.records(20, 1<<16)
	m.push()
	if rep := verified(t, m.archive(), verify.Request{All: true}, verify.Options{}); rep.Result != verify.OK {
		t.Error(found(rep))
	}
}

// What retention leaves where a backup is kept for its own moment alone is no hole; anything less is.
func TestWALBetweenBackupsMayBeGone(t *testing.T) {
	m := newMaker(t, 1, &storetest.Memory{}, archive.Options{})
	m.backup()
	_, behind, _ := segmentSize.ParseSegment(segmentSize.Name(1, segmentSize.LastSegment(*m.last.FinishLSN)+1))
	m.log.records(80, 1<<16)
	m.backup()
	first := segmentSize.Segment(*m.last.LSN)
	m.log.records(80, 1<<16)
	m.push()
	if first < behind+2 {
		t.Fatalf("the backups are too near: %d, %d", behind, first)
	}
	for no := behind; no < first; no++ {
		if err := m.store.Delete(t.Context(), archive.WALDir+segmentSize.Name(1, no)+".zst"); err != nil {
			t.Fatal(err)
		}
	}
	rep := verified(t, m.archive(), verify.Request{All: true}, verify.Options{})
	if rep.Result != verify.OK || len(rep.Findings) != 1 || rep.Findings[0].Severity != verify.Warning {
		t.Errorf("with what retention leaves: %s", found(rep))
	}
	// Retention says so: of that no word. In two records, one for each time.
	half := (behind + first) / 2
	for _, s := range [][2]wal.SegmentNo{{behind, half}, {half + 1, first - 1}} {
		doc := map[string]any{"at": time.Now(), "timeline": 1, "first": segmentSize.Name(1, s[0]), "last": segmentSize.Name(1, s[1]), "reason": "gone", "removed": true}
		if _, err := m.archive().AddRecord(t.Context(), archive.GapDir, "", doc); err != nil {
			t.Fatal(err)
		}
	}
	if rep := verified(t, m.archive(), verify.Request{All: true}, verify.Options{}); rep.Result != verify.OK || len(rep.Findings) != 0 {
		t.Errorf("with what retention says it removed: %s", found(rep))
	}
	if err := m.store.Delete(t.Context(), archive.WALDir+segmentSize.Name(1, first)+".zst"); err != nil {
		t.Fatal(err)
	}
	if rep := verified(t, m.archive(), verify.Request{All: true}, verify.Options{}); rep.Result != verify.Damage {
		t.Errorf("with a segment less: %s", found(rep))
	}
}

// A backup that was taken a moment ago waits for its WAL.
func TestWALMayComeBehindItsBackup(t *testing.T) {
	for _, c := range []struct {
		age  time.Duration
		want verify.Severity
	}{{time.Minute, verify.Unknown}, {24 * time.Hour, verify.Damage}} {
		one := newMaker(t, 1, &storetest.Memory{}, archive.Options{})
		one.now = time.Now().Add(-c.age)
		one.backup()
		if rep := verified(t, one.archive(), verify.Request{All: true}, verify.Options{}); rep.Result != c.want {
			t.Errorf("%s behind the backup: %s", c.age, found(rep))
		}
	}
}

// removing is a store from which something is removed once an object is opened.
type removing struct {
	store.Store
	at     string
	remove func()
}

func (s *removing) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	if s.remove != nil && strings.HasSuffix(name, s.at) {
		s.remove()
		s.remove = nil
	}
	return s.Store.Open(ctx, name)
}

// What is removed while it is verified, as retention does, is not damaged, and gets no records; what is lost is.
func TestWhatIsRemovedMeanwhileIsNoDamage(t *testing.T) {
	for _, lost := range []bool{false, true} {
		m := newMaker(t, 1, &storetest.Memory{}, archive.Options{})
		old := m.backup()
		m.log.records(40, 1<<16)
		m.backup()
		first := segmentSize.Segment(*m.last.LSN)
		m.log.records(20, 1<<16)
		m.push()
		if lost { // beside it what is damaged stays so
			put(t, m.store, archive.BackupDir+"base_000000010000000000000001/metadata.json", []byte("{}"))
			put(t, m.store, archive.BackupDir+"base_000000010000000000000001/objects.json", []byte("{}"))
		}
		s := &removing{Store: m.store, at: old + "/tar_partitions/pg_control.tar.zst", remove: func() {
			if !lost {
				if err := m.store.Delete(t.Context(), archive.BackupDir+old+"_backup_stop_sentinel.json"); err != nil {
					t.Error(err)
				}
			}
			for o, err := range store.Walk(t.Context(), m.store, archive.Folder(old)) {
				if err == nil {
					err = m.store.Delete(t.Context(), o.Name)
				}
				if err != nil {
					t.Error(err)
				}
			}
			for no := wal.SegmentNo(0); no < first; no++ {
				if err := m.store.Delete(t.Context(), archive.WALDir+segmentSize.Name(1, no)+".zst"); err != nil && !lost {
					t.Error(err)
				}
			}
		}}
		rep := verified(t, archive.New(s, archive.Options{}), verify.Request{All: true}, verify.Options{Workers: 1, Every: 1})
		if lost != (rep.Result == verify.Damage) || lost && !strings.Contains(found(rep), "base_000000010000000000000001_backup_stop_sentinel.json") {
			t.Errorf("lost %v: %s", lost, found(rep))
		}
		if lost {
			continue
		}
		for o, err := range store.Walk(t.Context(), m.store, archive.Folder(old)) {
			t.Errorf("then there is %s, %v", o.Name, err)
		}
		if rep := verified(t, m.archive(), verify.Request{All: true}, verify.Options{}); rep.Result != verify.OK {
			t.Errorf("then: %s", found(rep))
		}
	}
}

// A sample whose page sums the store does not give says nothing of the part.
func TestASampleWithoutSumsIsNoDamage(t *testing.T) {
	m := story(t, 1, archive.Options{})
	bad := &refusing{m.store, "page_sums/"}
	rep := verified(t, archive.New(bad, archive.Options{}), verify.Request{All: true, Sample: 0.9}, verify.Options{Seed: 3})
	if rep.Result != verify.Unknown {
		t.Error(found(rep))
	}
}

// refusing is a store that does not give what has a word in its name.
type refusing struct {
	store.Store
	word string
}

func (s *refusing) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	if strings.Contains(name, s.word) {
		return nil, errors.New("access denied")
	}
	return s.Store.Open(ctx, name)
}

// A segment whose content is not what its note says was replaced, whatever its codec is called.
func TestNotesSpeakForSegments(t *testing.T) {
	other := story(t, 2, archive.Options{Notes: true})
	for _, n := range []string{"000000010000000000000002", "000000010000000000000003"} {
		s := clone(t, other.store)
		put(t, s, archive.WALDir+n+".sum.json", []byte(`{"size":1048576,"xxhash64":"0123456789abcdef"}`))
		rep := verified(t, archive.New(s, archive.Options{}), verify.Request{All: true}, verify.Options{})
		if rep.Result != verify.Damage || !strings.Contains(found(rep), n) {
			t.Errorf("with another note of %s: %s", n, found(rep))
		}
	}
}

// foreign makes of a backup one as WAL-G leaves it: without a manifest and all that speaks for its objects.
func foreign(t *testing.T, m *maker) {
	t.Helper()
	for o, err := range store.Walk(t.Context(), m.store, archive.Folder(m.name)) {
		if err != nil {
			t.Fatal(err)
		}
		if rest := strings.TrimPrefix(o.Name, archive.Folder(m.name)); strings.HasPrefix(rest, "page_sums/") || rest == "manifest.json.zst" || rest == "objects.json" || rest == "backup_manifest.zst" {
			if err := m.store.Delete(t.Context(), o.Name); err != nil {
				t.Fatal(err)
			}
		}
	}
	name := archive.BackupDir + m.name + "_backup_stop_sentinel.json"
	var doc map[string]any
	d := json.NewDecoder(bytes.NewReader(get(t, m.store, name)))
	d.UseNumber()
	if err := d.Decode(&doc); err != nil {
		t.Fatal(err)
	}
	for key := range doc {
		if strings.HasPrefix(key, "Holdfast") {
			delete(doc, key)
		}
	}
	b, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	put(t, m.store, name, b)
}

// Of a backup that WAL-G made a run that was broken off leaves nothing unseen: what its list has in a part must come with that, or in any.
func TestWhatWALGListsMustCome(t *testing.T) {
	for _, sets := range []bool{true, false} {
		m := newMaker(t, 1, &storetest.Memory{}, archive.Options{})
		m.backup()
		m.push()
		foreign(t, m)
		list := archive.Folder(m.name) + "files_metadata.json"
		var doc map[string]json.RawMessage
		if err := json.Unmarshal(get(t, m.store, list), &doc); err != nil {
			t.Fatal(err)
		}
		if !sets {
			doc["TarFileSets"] = []byte("{}")
			b, err := json.Marshal(doc)
			if err != nil {
				t.Fatal(err)
			}
			put(t, m.store, list, b)
		}
		if rep := verified(t, archive.New(clone(t, m.store), archive.Options{}), verify.Request{All: true}, verify.Options{}); rep.Result != verify.OK {
			t.Fatalf("sets %v: %s", sets, found(rep))
		}
		// The first part is what another backup has under that name, with fewer files.
		part := archive.Folder(m.name) + "tar_partitions/part_001.tar.zst"
		put(t, m.store, part, get(t, m.store, archive.Folder(m.name)+"tar_partitions/part_002.tar.zst"))
		for _, at := range []string{"part_002.tar.zst", "part_001.tar.zst"} {
			s := clone(t, m.store)
			ctx, cancel := context.WithCancel(t.Context())
			w := &stopping{Store: s, at: archive.Folder(m.name) + "tar_partitions/" + at, stop: cancel}
			a := archive.New(w, archive.Options{})
			p, err := verify.Decide(ctx, a, verify.Request{All: true})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := verify.Run(ctx, a, p, verify.Options{Workers: 1}); !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			for n := range 3 {
				if rep := verified(t, archive.New(s, archive.Options{}), verify.Request{All: true}, verify.Options{}); rep.Result != verify.Damage {
					t.Errorf("sets %v, run %d behind one that was stopped at %s: %s", sets, n+1, at, found(rep))
				}
			}
		}
	}
}

// A backup that is removed while it is listed is none.
func TestABackupMayGoWhileItIsListed(t *testing.T) {
	m := newMaker(t, 1, &storetest.Memory{}, archive.Options{})
	old := m.backup()
	m.log.records(40, 1<<16)
	m.backup()
	m.push()
	s := &listing{Store: m.store, at: archive.BackupDir + old + "_backup_stop_sentinel.json"}
	if rep := verified(t, archive.New(s, archive.Options{}), verify.Request{All: true}, verify.Options{}); len(rep.Backups) != 1 || rep.Result != verify.OK {
		t.Errorf("%+v: %s", rep.Backups, found(rep))
	}
}

// listing is a store that has an object no more once it was opened.
type listing struct {
	store.Store
	at string
}

func (s *listing) Stat(ctx context.Context, name string) (store.Object, error) {
	if name == s.at {
		return store.Object{}, &fs.PathError{Op: "stat", Path: name, Err: fs.ErrNotExist}
	}
	return s.Store.Stat(ctx, name)
}
