package archive_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
)

const noted = "000000010000000000000001"

// overtaken is a store in which somebody else acts just before the WAL file is put.
type overtaken struct {
	*storetest.Memory
	first func()
}

func (s *overtaken) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	if first := s.first; first != nil && !strings.HasSuffix(name, ".json") {
		s.first = nil
		first()
	}
	return s.Memory.PutIfAbsent(ctx, name, r)
}

// Two hosts with the public key alone archive one cluster, as with archive_mode = always: the one that comes second has done its work, now and
// whenever it is asked again.
func TestTwoWriteOnlyHostsPushTheSame(t *testing.T) {
	_, public := ageKeys(t)
	content := random(1, 1<<20)
	m := &storetest.Memory{}
	other := archive.New(m, archive.Options{Key: public, WriteOnly: true})
	s := &overtaken{Memory: m, first: func() {
		if _, err := other.PutWAL(t.Context(), noted, opener(content)); err != nil {
			t.Errorf("the first: %v", err)
		}
	}}
	a := archive.New(s, archive.Options{Key: public, WriteOnly: true})
	for i := range 2 {
		if stored, err := a.PutWAL(t.Context(), noted, opener(content)); stored != 0 || err != nil {
			t.Errorf("push %d of the second: %d, %v", i, stored, err)
		}
	}
}

// A file whose put was answered by nobody is there at the next try, and is known to be ours.
func TestWriteOnlyAnswerLost(t *testing.T) {
	both, public := ageKeys(t)
	content := random(1, 1<<20)
	for n := 0; ; n++ {
		m := &storetest.Memory{}
		flaky := storetest.FailAfter(m, n)
		_, _ = archive.New(flaky, archive.Options{Key: public, WriteOnly: true}).PutWAL(t.Context(), noted, opener(content))
		if !flaky.Reached() {
			break
		}
		if _, err := archive.New(m, archive.Options{Key: public, WriteOnly: true}).PutWAL(t.Context(), noted, opener(content)); err != nil {
			t.Errorf("the answer to call %d was lost, the push after it: %v", n, err)
		}
		if got := readWAL(t, archive.New(m, archive.Options{Key: both}), noted); string(got) != string(content) {
			t.Errorf("the answer to call %d was lost, and the content is another", n)
		}
	}
	a := archive.New(twice{&storetest.Memory{}}, archive.Options{Key: public, WriteOnly: true})
	if _, err := a.PutWAL(t.Context(), noted, opener(content)); err != nil {
		t.Errorf("where the store itself tries again: %v", err)
	}
}

// twice is a store that never hears the first answer to a put, and tries again.
type twice struct{ *storetest.Memory }

func (s twice) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	b, err := io.ReadAll(r)
	if err == nil {
		err = s.Memory.PutIfAbsent(ctx, name, bytes.NewReader(b))
	}
	if err == nil {
		err = s.Memory.PutIfAbsent(ctx, name, bytes.NewReader(b))
	}
	return err
}

// What a host that can read has pushed, one that cannot may push too.
func TestWriteOnlyAfterReader(t *testing.T) {
	both, public := ageKeys(t)
	m := &storetest.Memory{}
	first, second := random(1, 1<<20), random(2, 1<<20)
	if _, err := archive.New(m, archive.Options{Key: both, Notes: true}).PutWAL(t.Context(), noted, opener(first)); err != nil {
		t.Fatal(err)
	}
	a := archive.New(m, archive.Options{Key: public, WriteOnly: true})
	if stored, err := a.PutWAL(t.Context(), noted, opener(first)); stored != 0 || err != nil {
		t.Errorf("the same: %d, %v", stored, err)
	}
	if _, err := a.PutWAL(t.Context(), noted, opener(second)); !errors.As(err, new(*archive.ConflictError)) {
		t.Errorf("other content: %v, want a ConflictError", err)
	}
}

// A file that has no note gets one from the first host that can compare: that is what the hint says.
func TestReaderLeavesMissingNote(t *testing.T) {
	both, public := ageKeys(t)
	m := &storetest.Memory{}
	content := random(1, 1<<20)
	if _, err := archive.New(m, archive.Options{Key: both}).PutWAL(t.Context(), noted, opener(content)); err != nil {
		t.Fatal(err)
	}
	a := archive.New(m, archive.Options{Key: public, WriteOnly: true})
	if _, err := a.PutWAL(t.Context(), noted, opener(content)); err == nil {
		t.Fatal("a file without a note was taken for the same")
	}
	if _, err := archive.New(m, archive.Options{Key: both, Notes: true}).PutWAL(t.Context(), noted, opener(content)); err != nil {
		t.Fatal(err)
	}
	if _, err := a.PutWAL(t.Context(), noted, opener(content)); err != nil {
		t.Errorf("after a host that can read pushed it: %v", err)
	}
}

// A host dies between its note and its file. Nobody may put other content then: its next push would take that for its own.
func TestNoteClaimsTheName(t *testing.T) {
	both, public := ageKeys(t)
	m := &storetest.Memory{}
	mine, theirs := random(1, 1<<20), random(2, 1<<20)
	dying := &overtaken{Memory: m, first: func() { panic("killed") }}
	func() {
		defer func() { _ = recover() }()
		_, _ = archive.New(dying, archive.Options{Key: public, WriteOnly: true}).PutWAL(t.Context(), noted, opener(mine))
	}()
	for name, o := range map[string]archive.Options{"write only": {Key: public, WriteOnly: true}, "reading": {Key: both, Notes: true}} {
		if _, err := archive.New(m, o).PutWAL(t.Context(), noted, opener(theirs)); !errors.As(err, new(*archive.ConflictError)) {
			t.Errorf("a %s host puts other content: %v, want a ConflictError", name, err)
		}
	}
	if _, err := archive.New(m, archive.Options{Key: public, WriteOnly: true}).PutWAL(t.Context(), noted, opener(mine)); err != nil {
		t.Error(err)
	}
	if got := readWAL(t, archive.New(m, archive.Options{Key: both}), noted); string(got) != string(mine) {
		t.Error("the content is another's")
	}
}

// Hosts of both kinds push at once, of two contents, and each may fail at any call: who was told that it is archived finds its own content there, in
// that moment and for good; and who has that content gets no other answer in the end.
func TestNotesInAnyOrder(t *testing.T) {
	both, public := ageKeys(t)
	contents := [][]byte{random(1, 40_000), random(2, 40_000)}
	r := rand.New(rand.NewPCG(3, 3))
	for round := range 300 {
		m := &storetest.Memory{}
		type host struct {
			o       archive.Options
			content int
			err     error
		}
		hosts := make([]*host, 4)
		var all sync.WaitGroup
		for i := range hosts {
			h := &host{o: archive.Options{Key: public, WriteOnly: true}, content: r.IntN(2)}
			if r.IntN(2) == 0 {
				h.o = archive.Options{Key: both, Notes: true}
			}
			var s store.Store = m
			switch n := r.IntN(14); r.IntN(3) {
			case 0:
				s = storetest.FailAt(m, n)
			case 1:
				s = storetest.FailAfter(m, n)
			}
			hosts[i] = h
			all.Go(func() { _, h.err = archive.New(s, h.o).PutWAL(t.Context(), noted, opener(contents[h.content])) })
		}
		all.Wait()
		there := -1
		for again := range 2 {
			for _, h := range hosts {
				if again == 1 {
					_, h.err = archive.New(m, h.o).PutWAL(t.Context(), noted, opener(contents[h.content]))
				}
			}
			for _, h := range hosts {
				if again == 0 && h.err != nil {
					continue
				}
				if there < 0 {
					got := readWAL(t, archive.New(m, archive.Options{Key: both}), noted)
					for i := range contents {
						if string(got) == string(contents[i]) {
							there = i
						}
					}
				}
				switch {
				case h.err == nil && h.content != there:
					t.Fatalf("round %d: content %d is said to be archived, and %d is", round, h.content, there)
				case h.err != nil && h.content == there:
					t.Fatalf("round %d: content %d is archived, and its push fails: %v", round, there, h.err)
				case h.err != nil && !errors.As(h.err, new(*archive.ConflictError)):
					t.Fatalf("round %d: %v", round, h.err)
				}
			}
		}
	}
}
