package walpush_test

import (
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/store/storetest"
	"holdfast/test/pgtest"
)

// One file that takes long keeps none behind it from going ahead: as PostgreSQL asks for more, more go.
func TestResidentGoesOnBesideWhatTakesLong(t *testing.T) {
	d, m := newWAL(t), &storetest.Memory{}
	names := d.segments(12)
	settled(t, d, names)
	held := make(chan struct{})
	g := &gate{Archive: archive.New(m, archive.Options{}), closed: map[string]chan struct{}{names[5]: held}}
	o := options()
	o.Parallel, o.Limit = 3, 6 // two ahead at once, at most five behind what is asked for
	r := resident(t, d, g, o)
	for n, name := range names[:5] {
		if _, err := r.Push(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		d.done(name)
		pgtest.Eventually(t, "the last that may is stored", func() bool { return g.times(names[n+5]) == 1 })
	}
	if n := g.times(names[10]); n != 0 {
		t.Errorf("%s was stored, which is too far ahead", names[10])
	}
	close(held)
	for _, name := range names[5:] {
		if _, err := r.Push(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		d.done(name)
	}
	for _, name := range names {
		whole(t, m, name, segment(name, cluster, 1))
		if n := g.times(name); n != 1 {
			t.Errorf("%s was stored %d times", name, n)
		}
	}
}
