package restore

import (
	"slices"
	"sync"
)

// A desk lies between the one who deals tasks and the workers. It has some ready, and hands out first what writes to another file than those that are being
// written: the system lets one at a time write to a file, and large files are many tasks.
type desk struct {
	mu     sync.Mutex
	change sync.Cond // of what follows
	ready  []task
	busy   []any // files that are being written
	closed bool
}

const (
	// deskSize is how many tasks are ready at most: so many that those of another large file are among them.
	deskSize = 32
	// deskOthers is how many are when one comes that is not of a large file, which takes more memory.
	deskOthers = 2
)

func newDesk() *desk {
	d := &desk{}
	d.change.L = &d.mu
	return d
}

// put adds a task once there is room.
func (d *desk) put(t task) {
	room := deskSize
	if writes(t) == nil {
		room = deskOthers
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(d.ready) >= room && !d.closed {
		d.change.Wait()
	}
	d.ready = append(d.ready, t)
	d.change.Broadcast()
}

// close says that no more is to come.
func (d *desk) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	d.change.Broadcast()
}

// take returns the task to do after the one that is done; nil for none. It waits for one that is to come.
func (d *desk) take(done task) task {
	d.mu.Lock()
	defer d.mu.Unlock()
	if i := slices.Index(d.busy, writes(done)); i >= 0 {
		d.busy = slices.Delete(d.busy, i, i+1)
	}
	for len(d.ready) == 0 {
		if d.closed {
			return nil
		}
		d.change.Wait()
	}
	i := d.best()
	t := d.ready[i]
	d.ready = slices.Delete(d.ready, i, i+1)
	if f := writes(t); f != nil {
		d.busy = append(d.busy, f)
	}
	d.change.Broadcast()
	return t
}

// best returns which of the ready tasks is to be done first: of the file that is not being written and has most of them, so that in the end not all that is
// left is of one file. Among equals it is the first.
func (d *desk) best() (best int) {
	tasks := map[any]int{}
	for _, t := range d.ready {
		tasks[writes(t)]++
	}
	tasks[nil] = 1
	most := 0
	for i, t := range d.ready {
		if f := writes(t); tasks[f] > most && !slices.Contains(d.busy, f) {
			best, most = i, tasks[f]
		}
	}
	return best
}

// writes says which file a task writes to, if it is a large one; nil otherwise.
func writes(t task) any {
	switch t := t.(type) {
	case *picks:
		if t.picks[0].File == t.picks[len(t.picks)-1].File {
			return t.picks[0].File
		}
	case *weave:
		return t.layers[0].File
	case unit:
		if len(t.pieces) == 1 && t.pieces[0].split != nil {
			return t.pieces[0].split
		}
	}
	return nil
}
