package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sync"
	"time"

	"holdfast/internal/store"
)

const chunkSize = 256 << 10 // bytes of the source that go to the mirrors at once

var (
	errStalled   = errors.New("the mirror did nothing for too long")
	errAbandoned = errors.New("the put was given up because of another mirror")
	errUnread    = errors.New("the mirror stored the object without having read it to its end")
)

// A fan hands what one source yields to several takers. It holds no more than its slots: the source waits for the slowest taker.
type fan struct {
	rule     Rule
	ifAbsent bool
	stall    time.Duration

	mu      sync.Mutex
	moved   *sync.Cond // something below has changed
	slots   [][]byte   // chunk n is in slots[n % len(slots)]
	filled  int        // chunks so far
	ended   bool       // there are no more
	decided bool       // a member has the new object
	fail    error      // nobody is to go on
	takers  []*taker
}

// A taker is the reader of one member's put.
type taker struct {
	*fan
	member int
	cancel context.CancelCauseFunc // of the put

	pos, off int       // chunk to be read next, and how much of it was
	mayEnd   bool      // it may be told that the source has ended
	read     bool      // it was
	done     bool      // the put has returned
	err      error     // its error
	left     error     // why it is not waited for any more
	since    time.Time // when it last did something or was given something to do
}

// Read implements io.Reader for the member's put.
func (t *taker) Read(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		switch {
		case t.fail != nil:
			return 0, t.fail
		case t.left != nil:
			return 0, t.left
		case t.pos < t.filled:
			chunk := t.slots[t.pos%len(t.slots)]
			n := copy(p, chunk[t.off:])
			t.off += n
			t.since = time.Now()
			if t.off == len(chunk) {
				t.pos, t.off = t.pos+1, 0
				t.moved.Broadcast()
			}
			return n, nil
		case t.ended && t.mayEnd:
			t.read = true
			return 0, io.EOF
		}
		t.moved.Wait()
	}
}

func (t *taker) live() bool   { return !t.done && t.left == nil }
func (t *taker) stored() bool { return t.done && t.err == nil }

// result is what became of the member's put.
func (t *taker) result() error {
	if t.left != nil && !t.stored() {
		return t.left
	}
	return t.err
}

// fanOut puts what src yields into members, under one name, and returns what became of each, in their order. broken is the error of
// the source. By All no member is told that the source has ended before all have read everything; a new object is
// finished by one member, the first of deciders that lives, before the others are let finish it.
//
// So a put holds the buffers of one member until another one's put goes on. Two puts, each with the buffers of one member and waiting for
// those of the other, would wait for ever: there are only as many puts as every member has buffers for.
func (m *Mirror) fanOut(ctx context.Context, name string, src io.Reader, members []int, ifAbsent bool) (results []error, broken error) {
	if m.puts != nil {
		select {
		case m.puts <- struct{}{}:
			defer func() { <-m.puts }()
		case <-ctx.Done():
			return slices.Repeat([]error{ctx.Err()}, len(members)), nil
		}
	}
	f := &fan{rule: m.opts.Rule, ifAbsent: ifAbsent, stall: m.opts.Stall, slots: make([][]byte, max(2, m.opts.Buffer/chunkSize))}
	f.moved = sync.NewCond(&f.mu)
	for _, i := range members {
		mctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		t := &taker{fan: f, member: i, cancel: cancel, since: time.Now()}
		f.takers = append(f.takers, t)
		go func() {
			var err error
			if ifAbsent {
				err = store.PutIfAbsent(mctx, m.members[i].Store, name, t)
			} else {
				err = m.members[i].Store.Put(mctx, name, t)
			}
			f.returned(t, err)
		}()
	}
	defer context.AfterFunc(ctx, func() { f.giveUp(ctx.Err()) })()
	if f.rule == Any {
		defer f.watch()()
	}
	if err := f.pump(src); err != io.EOF {
		broken = err
	}
	f.finish(m.deciders(f.takers))
	return f.results(), broken
}

func (f *fan) results() []error {
	f.mu.Lock() // who was left behind may still come back
	defer f.mu.Unlock()
	all := make([]error, len(f.takers))
	for n, t := range f.takers {
		all[n] = t.result()
	}
	return all
}

// deciders orders takers by who is to decide: those whose store can before those that look first.
func (m *Mirror) deciders(takers []*taker) []*taker {
	rank := func(t *taker) int {
		if _, ok := m.members[t.member].Store.(store.PutIfAbsenter); ok {
			return 0
		}
		return 1
	}
	all := slices.Clone(takers)
	slices.SortStableFunc(all, func(a, b *taker) int { return rank(a) - rank(b) })
	return all
}

func (f *fan) returned(t *taker, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil && !t.read {
		err = errUnread
	}
	t.done, t.err = true, err
	f.moved.Broadcast()
}

// giveUp makes every put that is still at work fail.
func (f *fan) giveUp(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.abandon(err)
}

// abandon is giveUp with mu held.
func (f *fan) abandon(err error) {
	if f.fail != nil {
		return
	}
	f.fail = err
	for _, t := range f.takers {
		t.since = time.Now()
		t.cancel(err)
	}
	f.moved.Broadcast()
}

// over reports whether there is no point in going on, and then gives up. The caller holds mu.
func (f *fan) over() bool {
	live := false
	for _, t := range f.takers {
		live = live || t.live()
		taken := f.ifAbsent && errors.Is(t.err, fs.ErrExist)
		if taken && !f.decided || !taken && t.err != nil && f.rule == All {
			f.abandon(errAbandoned)
		}
	}
	return f.fail != nil || !live
}

// pump reads src until it ends or nobody wants more, and returns its error: io.EOF when it was read to its end.
func (f *fan) pump(src io.Reader) (err error) {
	for {
		slot, ok := f.room()
		if !ok {
			return nil
		}
		var n int
		n, err = readFull(src, slot)
		f.fill(slot[:n], err)
		if err != nil {
			return err
		}
	}
}

// readFull fills p. The error is io.EOF where the source ended before or with it, and that of the source where it broke: io.ReadFull would
// not tell an end from an io.ErrUnexpectedEOF, which is how a body that was cut off ends.
func readFull(src io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var more int
		more, err = src.Read(p[n:])
		n += more
	}
	return n, err
}

// room waits for a free slot; not ok is that nobody wants more.
func (f *fan) room() (slot []byte, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		if f.over() {
			return nil, false
		}
		slowest := f.filled
		for _, t := range f.takers {
			if t.live() {
				slowest = min(slowest, t.pos)
			}
		}
		if f.filled-slowest < len(f.slots) {
			i := f.filled % len(f.slots)
			if f.slots[i] == nil {
				f.slots[i] = make([]byte, chunkSize)
			}
			return f.slots[i][:chunkSize], true
		}
		f.moved.Wait()
	}
}

// fill hands a chunk out. err is what its reading ended with, nil if there is more to come.
func (f *fan) fill(chunk []byte, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(chunk) > 0 {
		for _, t := range f.takers {
			if t.pos == f.filled {
				t.since = time.Now()
			}
		}
		f.slots[f.filled%len(f.slots)] = chunk
		f.filled++
	}
	switch {
	case err == io.EOF:
		f.ended = true
	case err != nil:
		f.abandon(err)
	}
	f.moved.Broadcast()
}

// finish lets the takers come to their end, and waits until all have, or are left behind.
func (f *fan) finish(deciders []*taker) {
	f.mu.Lock()
	defer f.mu.Unlock()
	wait := func(until func() bool) {
		for !f.over() && !until() {
			f.moved.Wait()
		}
	}
	if f.rule == All {
		wait(func() bool {
			return !slices.ContainsFunc(f.takers, func(t *taker) bool { return t.pos < f.filled })
		})
	}
	if f.ifAbsent {
		for _, t := range deciders {
			if f.over() {
				break
			}
			t.end()
			wait(func() bool { return !t.live() })
			if f.decided = t.stored(); f.decided {
				break
			}
		}
	}
	for _, t := range f.takers {
		t.end()
	}
	for {
		f.over()
		if !slices.ContainsFunc(f.takers, (*taker).live) {
			return
		}
		f.moved.Wait()
	}
}

// end lets t be told that the source has ended.
func (t *taker) end() {
	if !t.mayEnd {
		t.mayEnd, t.since = true, time.Now()
		t.moved.Broadcast()
	}
}

// watch leaves behind, until stopped, who has something to do and does nothing, unless it is the last one.
func (f *fan) watch() (stop func()) {
	done := make(chan struct{})
	go func() {
		ticker := time.NewTicker(max(f.stall/8, time.Millisecond))
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				f.leaveBehind()
			case <-done:
				return
			}
		}
	}()
	return func() { close(done) }
}

func (f *fan) leaveBehind() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, t := range f.takers {
		busy := t.pos < f.filled || f.ended && t.mayEnd || f.fail != nil
		if !t.live() || !busy || time.Since(t.since) < f.stall {
			continue
		}
		others := slices.ContainsFunc(f.takers, func(o *taker) bool { return o != t && (o.live() || o.stored()) })
		if others || f.fail != nil {
			t.left = fmt.Errorf("%w (%v)", errStalled, f.stall)
			t.cancel(t.left)
			f.moved.Broadcast()
		}
	}
}
