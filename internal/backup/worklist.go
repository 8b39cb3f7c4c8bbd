package backup

import (
	"cmp"
	"io"
	"iter"
	"slices"
	"sync"

	"holdfast/internal/pg/datadir"
	"holdfast/internal/tarpart"
)

// bigFile is the size in bytes from which files are dealt out first, largest before smaller, so that no worker is left
// alone with a large one at the end. A cluster of 14 TiB has some twenty thousand of them: the list stays small.
const bigFile = 64 << 20

// worklist deals the entries of a data directory to the workers, each to one.
type worklist struct {
	mu    sync.Mutex
	first []datadir.Entry // in the order to deal them
	dealt map[string]bool // paths of first: the walk meets them again, whatever their size is then
	rest  func() (datadir.Entry, error, bool)
	pack  func(datadir.Entry) (tarpart.Entry, bool, error) // how an entry is stored; false where it is not
	done  error                                            // why there is no more: io.EOF or the walk's error
}

// newWorklist deals out big, then what else walk yields. The caller calls stop at the end.
func newWorklist(big []datadir.Entry, walk iter.Seq2[datadir.Entry, error], pack func(datadir.Entry) (tarpart.Entry, bool, error)) (w *worklist, stop func()) {
	slices.SortFunc(big, func(a, b datadir.Entry) int {
		return cmp.Or(cmp.Compare(b.Size, a.Size), cmp.Compare(a.Path, b.Path))
	})
	next, stop := iter.Pull2(walk)
	w = &worklist{first: big, dealt: make(map[string]bool, len(big)), rest: next, pack: pack}
	for _, e := range big {
		w.dealt[e.Path] = true
	}
	return w, stop
}

// next returns the next entry to pack, io.EOF when all are dealt out. pg_control is left out: it goes last.
func (w *worklist) next() (tarpart.Entry, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.done == nil {
		e, err := w.entry()
		if err != nil {
			w.done = err
			break
		}
		t, stored, err := w.pack(e)
		if err != nil {
			w.done = err
			break
		}
		if stored {
			return t, nil
		}
	}
	return tarpart.Entry{}, w.done
}

// entry returns the next entry of the directory.
func (w *worklist) entry() (datadir.Entry, error) {
	if len(w.first) > 0 {
		e := w.first[0]
		w.first = w.first[1:]
		return e, nil
	}
	for {
		e, err, ok := w.rest()
		switch {
		case !ok:
			return e, io.EOF
		case err != nil:
			return e, err
		case e.Kind != datadir.Control && !w.dealt[e.Path]:
			return e, nil
		}
	}
}
