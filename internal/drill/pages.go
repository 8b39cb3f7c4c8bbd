package drill

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"time"

	"github.com/dustin/go-humanize"

	"holdfast/internal/pg/datadir"
	"holdfast/internal/pg/instance"
	"holdfast/internal/pg/page"
)

// errBudget ends a walk for which there is no more time.
var errBudget = errors.New("the time is over")

// checkPages looks at each page of the stopped copy, within the budget. A copy that is kept is started again.
func (d *drill) checkPages(ctx context.Context) error {
	begun, c := time.Now(), Check{Name: "pages"}
	if err := d.stop(ctx); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		d.tell(c, begun, []error{err}, "")
		return nil
	}
	if d.control.BlockSize != page.Size {
		d.checked(Check{Name: c.Name, Result: Skipped, Text: fmt.Sprintf("pages have %d bytes, only those of %d can be checked", d.control.BlockSize, page.Size)})
	} else {
		w := &pageWalk{drill: d, sums: d.control.ChecksumVersion != 0, buffer: make([]byte, 128*page.Size)}
		if d.Budget > 0 {
			w.until = time.Now().Add(d.Budget)
		}
		err := w.all(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			w.problems = append(w.problems, err)
		}
		c.Done, c.Total = w.done, w.total
		fine := "sums of " + humanize.Comma(w.pages) + " pages hold"
		if !w.sums {
			fine = humanize.Comma(w.pages) + " pages have heads as they should; the cluster has no checksums"
		}
		if w.done < w.total {
			fine += fmt.Sprintf(": %s of %s, for the rest there was no time within %s", humanize.IBytes(uint64(w.done)), humanize.IBytes(uint64(w.total)), d.Budget)
		}
		if len(w.problems) == 0 && w.done == 0 && w.total > 0 {
			c.Result, c.Text, c.Seconds = Skipped, fine, time.Since(begun).Seconds()
			d.checked(c)
		} else {
			d.tell(c, begun, w.problems, fine)
		}
	}
	if !d.Keep {
		return nil
	}
	var err error
	d.instance, err = instance.Start(ctx, d.server)
	return err
}

// pageWalk goes through the files of all relations.
type pageWalk struct {
	*drill
	sums     bool
	until    time.Time // zero is no end
	buffer   []byte
	pages    int64 // that were looked at
	done     int64 // bytes
	total    int64
	problems []error
}

// all looks at all files, from one drawn at random on, so that a budget that does not do for all does for all in the course of many drills.
func (w *pageWalk) all(ctx context.Context) error {
	dir, err := datadir.Open(w.plan.data())
	if err != nil {
		return err
	}
	files := 0
	for e, err := range dir.Walk(datadir.Options{}) {
		if err != nil {
			return err
		}
		if e.Kind == datadir.Relation {
			files++
			w.total += e.Size
		}
	}
	if files == 0 {
		return errors.New("there are no relations")
	}
	w.Progress.enter("pages", w.total)
	first := 0
	if !w.until.IsZero() {
		first = rand.IntN(files)
	}
	for _, behind := range []bool{true, false} {
		n := 0
		for e, err := range dir.Walk(datadir.Options{}) {
			if err != nil {
				return err
			}
			if e.Kind != datadir.Relation {
				continue
			}
			if n++; n > first != behind {
				continue
			}
			switch err := w.file(ctx, e); {
			case errors.Is(err, errBudget):
				return nil
			case err != nil:
				return err
			}
		}
	}
	return nil
}

// file looks at one file.
func (w *pageWalk) file(ctx context.Context, e datadir.Entry) error {
	f, err := os.Open(e.OSPath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close() // only read
	block := e.Segment * w.control.BlocksPerSegment
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !w.until.IsZero() && time.Now().After(w.until) {
			return errBudget
		}
		n, err := io.ReadFull(f, w.buffer)
		whole := n / page.Size * page.Size
		for at := 0; at < whole; {
			i := w.bad(w.buffer[at:whole], block+uint32(at/page.Size))
			if i < 0 {
				break
			}
			at += i * page.Size
			w.problems = append(w.problems, fmt.Errorf("%s: block %d is damaged", e.Path, block+uint32(at/page.Size)))
			at += page.Size
			if len(w.problems) > 10*shown { // there is no need to know all
				return errBudget
			}
		}
		block += uint32(whole / page.Size)
		w.pages += int64(whole / page.Size)
		w.done += int64(n)
		w.Progress.done.Store(w.done)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// bad returns the index of the first page that is damaged, -1 for none.
func (w *pageWalk) bad(pages []byte, first uint32) int {
	if w.sums {
		return page.Verify(pages, first)
	}
	for i := 0; (i+1)*page.Size <= len(pages); i++ {
		p := pages[i*page.Size : (i+1)*page.Size]
		if page.IsNew(p) {
			continue
		}
		if h, err := page.ReadHeader(p); err != nil || h.Check() != nil {
			return i
		}
	}
	return -1
}
