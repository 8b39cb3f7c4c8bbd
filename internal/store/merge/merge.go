// Package merge makes one answer of what several stores say: of their listings, and of a miss that not all of them vouch for.
package merge

import (
	"fmt"
	"iter"

	"holdfast/internal/store"
)

// An Entry is one name, and what each of the listings that have it says about it.
type Entry struct {
	Name string
	In   []Found // in the order of the listings, never empty
}

// Found is what one listing says.
type Found struct {
	From   int // the listing's place among those given to Listings
	Object store.Object
}

// Listings yields the names of all lists in ascending byte order, each once. Every list must be in that order itself; one
// that is not counts as failed. Nothing is yielded before each list has given its first entry. What a failure means failed
// decides: with nil it goes on without that list, any other error is yielded and ends it. It holds one entry of each list
// in memory.
func Listings(lists []iter.Seq2[store.Object, error], failed func(list int, err error) error) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		heads := make([]head, len(lists))
		for i, list := range lists {
			next, stop := iter.Pull2(list)
			defer stop()
			heads[i].next = next
		}
		for i := range heads {
			if err := heads[i].advance(i, failed); err != nil {
				yield(Entry{}, err)
				return
			}
		}
		for {
			e, ok := least(heads)
			if !ok || !yield(e, nil) {
				return
			}
			for _, f := range e.In {
				if err := heads[f.From].advance(f.From, failed); err != nil {
					yield(Entry{}, err)
					return
				}
			}
		}
	}
}

// head is the first entry of a list that was not yielded yet.
type head struct {
	next func() (store.Object, error, bool)
	o    store.Object
	live bool
}

func (h *head) advance(i int, failed func(int, error) error) error {
	o, err, ok := h.next()
	if ok && err == nil && h.live && o.Name <= h.o.Name {
		err = fmt.Errorf("listing is out of order: %q after %q", o.Name, h.o.Name)
	}
	if ok && err != nil {
		h.live = false
		return failed(i, err)
	}
	h.o, h.live = o, ok
	return nil
}

// least returns the first name among the heads, and who has it.
func least(heads []head) (e Entry, ok bool) {
	for i, h := range heads {
		switch {
		case !h.live || ok && h.o.Name > e.Name:
			continue
		case !ok || h.o.Name < e.Name:
			e = Entry{Name: h.o.Name}
			ok = true
		}
		e.In = append(e.In, Found{From: i, Object: h.o})
	}
	return e, ok
}
