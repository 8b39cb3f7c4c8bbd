package restore

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"holdfast/internal/chain"
	"holdfast/internal/pg/page"
)

// deskTask is a task that writes to a file; 0 stands for one of many files.
func deskTask(file int) task {
	if file == 0 {
		return settled(nil)
	}
	return &picks{picks: []pick{{Take: &chain.Take{File: file}}}}
}

// What writes to another file than those that are being written comes first, and of files with as much to do what was dealt first; each task comes once.
func TestDeskOrder(t *testing.T) {
	d := newDesk()
	var dealt []task
	for _, file := range []int{1, 1, 1, 2, 2, 3} {
		dealt = append(dealt, deskTask(file))
		d.put(dealt[len(dealt)-1])
	}
	d.close()
	var got []int
	take := func(done int) {
		var before task
		if done >= 0 {
			before = dealt[done]
		}
		got = append(got, slices.Index(dealt, d.take(before)))
	}
	take(-1) // 0, of file 1
	take(-1) // 3, of file 2
	take(0)  // 1, of file 1 again
	take(3)  // 4, of file 2
	take(4)  // 5: file 1 is being written, file 2 has no more
	take(5)  // 2, for there is no other
	take(1)
	if want := []int{0, 3, 1, 4, 5, 2, -1}; !slices.Equal(got, want) {
		t.Errorf("taken were %v, want %v", got, want)
	}
}

// Of files that are not being written the one with most tasks comes first, so that files end at about the same time.
func TestDeskBalance(t *testing.T) {
	d := newDesk()
	var dealt []task
	for _, file := range []int{1, 1, 2, 2, 2, 3, 3, 3, 3} {
		dealt = append(dealt, deskTask(file))
		d.put(dealt[len(dealt)-1])
	}
	d.close()
	var got []int
	for before := task(nil); len(got) < len(dealt); {
		before = d.take(before)
		got = append(got, slices.Index(dealt, before))
	}
	if want := []int{5, 2, 6, 0, 3, 7, 1, 4, 8}; !slices.Equal(got, want) {
		t.Errorf("taken were %v, want %v", got, want)
	}
}

// Who deals waits while there is no room, and no longer than until the desk is closed; who takes waits for what is dealt.
func TestDeskWaits(t *testing.T) {
	const tasks = 10 * deskSize
	d := newDesk()
	go func() {
		for i := range tasks {
			d.put(deskTask(i % 7))
			if n := func() int { d.mu.Lock(); defer d.mu.Unlock(); return len(d.ready) }(); n > deskSize {
				t.Errorf("%d tasks are ready", n)
			}
		}
		d.close()
	}()
	n := 0
	for done := d.take(nil); done != nil; done = d.take(done) {
		n++
	}
	if n != tasks {
		t.Errorf("%d tasks were taken of %d", n, tasks)
	}
	full := newDesk()
	ended := make(chan bool)
	go func() {
		for range deskSize + 1 {
			full.put(deskTask(1))
		}
		close(ended)
	}()
	full.close()
	<-ended
}

// A unit is of whole pages, whatever there is to write: their sums are of whole ones.
func TestUnitIsWholePages(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := newRun(nil, &Plan{Delta: &Differences{Write: rapid.Int64Range(0, 1<<40).Draw(t, "write")}}, Options{Workers: rapid.IntRange(1, 99).Draw(t, "workers")})
		if n := r.unit(); n%page.Size != 0 || n < page.Size || n > unitSize {
			t.Errorf("%d bytes", n)
		}
	})
}
