package object_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"holdfast/internal/lease"
	"holdfast/internal/lease/object"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
)

// What happens to one call of a host on the store.
const (
	fine     = iota
	denied   // it fails, and nothing was done
	unheard  // it was done, and fails
	late     // it fails, and is done some time later
	slow     // it is done after a while
	tardy    // it is done, and the answer takes a while
	frozen   // the whole process stands still for a while, before the call
	freezing // and after it
	killed   // the process ends before the call
	killing  // and after it
	cut      // the host cannot reach the store for a while
	hazards
)

var errCut = errors.New("no route to host")

// errDead is what the goroutines of a process that was killed see: nothing that they do counts any more.
var errDead = errors.New("killed")

// hazard befalls the n-th call of a process.
type hazard struct {
	call, what int
	long       time.Duration
}

// process is one process of a host: a store as seen from it.
type process struct {
	store.Full
	hazards []hazard

	mu     sync.Mutex
	calls  int
	until  time.Time // it stands still
	cut    time.Time // it is cut off
	dead   chan struct{}
	ending sync.Once
}

func (p *process) die() { p.ending.Do(func() { close(p.dead) }) }

func (p *process) killed() bool {
	select {
	case <-p.dead:
		return true
	default:
		return false
	}
}

// thaw waits until the process does not stand still.
func (p *process) thaw() error {
	for {
		p.mu.Lock()
		still := time.Until(p.until)
		p.mu.Unlock()
		if p.killed() {
			return errDead
		}
		if still <= 0 {
			return nil
		}
		time.Sleep(still)
	}
}

func (p *process) freeze(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if t := time.Now().Add(d); t.After(p.until) {
		p.until = t
	}
}

// do does one call, or what befalls it.
func (p *process) do(ctx context.Context, writes bool, call func(context.Context) error) error {
	p.mu.Lock()
	p.calls++
	h := hazard{what: fine}
	for _, one := range p.hazards {
		if one.call == p.calls {
			h = one
		}
	}
	away := time.Until(p.cut)
	p.mu.Unlock()
	time.Sleep(10 * time.Millisecond)
	if err := p.thaw(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if away > 0 {
		return errCut
	}
	err := func() error {
		switch h.what {
		case denied:
			return errCut
		case cut:
			p.mu.Lock()
			p.cut = time.Now().Add(h.long)
			p.mu.Unlock()
			return errCut
		case unheard:
			_ = call(context.WithoutCancel(ctx))
			return errCut
		case late:
			if !writes {
				return errCut
			}
			go func() {
				time.Sleep(h.long)
				_ = call(context.WithoutCancel(ctx))
			}()
			return errCut
		case slow:
			time.Sleep(h.long)
		case frozen:
			p.freeze(h.long)
			if err := p.thaw(); err != nil {
				return err
			}
		case killed:
			p.die()
			return errDead
		}
		err := call(context.WithoutCancel(ctx)) // a call that is under way may be done however its context ends
		switch h.what {
		case tardy:
			time.Sleep(h.long)
		case freezing:
			p.freeze(h.long)
		case killing:
			p.die()
		}
		return err
	}()
	if stopped := p.thaw(); stopped != nil {
		return stopped
	}
	return err
}

func (p *process) Open(ctx context.Context, name string) (r io.ReadCloser, err error) {
	err = p.do(ctx, false, func(ctx context.Context) error { r, err = p.Full.Open(ctx, name); return err })
	return r, err
}

func (p *process) Stat(ctx context.Context, name string) (o store.Object, err error) {
	err = p.do(ctx, false, func(ctx context.Context) error { o, err = p.Full.Stat(ctx, name); return err })
	return o, err
}

func (p *process) Put(ctx context.Context, name string, r io.Reader) error {
	b, _ := io.ReadAll(r) // of bytes.Reader
	return p.do(ctx, true, func(ctx context.Context) error { return p.Full.Put(ctx, name, bytes.NewReader(b)) })
}

func (p *process) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	b, _ := io.ReadAll(r) // of bytes.Reader
	return p.do(ctx, true, func(ctx context.Context) error { return p.Full.PutIfAbsent(ctx, name, bytes.NewReader(b)) })
}

func (p *process) Delete(ctx context.Context, name string) error {
	return p.do(ctx, true, func(ctx context.Context) error { return p.Full.Delete(ctx, name) })
}

func (p *process) DeleteMany(ctx context.Context, names []string) error {
	return p.do(ctx, true, func(ctx context.Context) error { return p.Full.DeleteMany(ctx, names) })
}

func (p *process) List(ctx context.Context, dir, after string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		var all []store.Object
		err := p.do(ctx, false, func(ctx context.Context) error {
			all = nil
			for o, err := range p.Full.List(ctx, dir, after) {
				if err != nil {
					return err
				}
				all = append(all, o)
			}
			return nil
		})
		for _, o := range all {
			if err == nil && !yield(o, nil) {
				return
			}
		}
		if err != nil {
			yield(store.Object{}, err)
		}
	}
}

// now is the store's clock as the process sees it.
func (p *process) now(ctx context.Context) (now time.Time, err error) {
	err = p.do(ctx, false, func(context.Context) error { now = time.Now(); return nil })
	return now, err
}

// finish puts what another process had said to commit.
func (p *process) finish(ctx context.Context, _, object string, content []byte) (bool, error) {
	if _, err := p.Stat(ctx, partOf(object)); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	return true, putSame(ctx, p, object, content)
}

func partOf(sentinel string) string { return strings.TrimSuffix(sentinel, ".sentinel") + ".part" }

// putSame puts an object that may be there already, and is the same then.
func putSame(ctx context.Context, s store.Full, object string, content []byte) error {
	err := s.PutIfAbsent(ctx, object, bytes.NewReader(content))
	if errors.Is(err, fs.ErrExist) {
		there, read := store.ReadFile(ctx, s, object, 1<<20)
		if err = read; err == nil && !bytes.Equal(there, content) {
			err = errors.New("another backup has that name")
		}
	}
	return err
}

const (
	modelTTL  = 30 * time.Second
	modelSlot = time.Hour
	modelJob  = "backup-push"
)

// backUp makes the backup of a slot, unless there is one: a part, then, sealed, the sentinel. What could not be committed is removed.
func (p *process) backUp(ctx context.Context, host string, slot int, work time.Duration, g *object.Grant) (err error) {
	dir := fmt.Sprintf("backups/%d/", slot)
	for o, err := range p.List(ctx, dir, "") {
		if err != nil {
			return err
		}
		if strings.HasSuffix(o.Name, ".sentinel") {
			return nil
		}
	}
	sentinel := fmt.Sprintf("%s%s-%x.sentinel", dir, host, g.Token())
	content := []byte(g.ID())
	final := false
	defer func() {
		if err != nil && !final {
			_ = p.Delete(context.WithoutCancel(ctx), sentinel)
			_ = p.Delete(context.WithoutCancel(ctx), partOf(sentinel))
		}
	}()
	if err := p.Put(ctx, partOf(sentinel), bytes.NewReader(content)); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(work):
	}
	if err := p.thaw(); err != nil {
		return err
	}
	if final, err = g.Seal(ctx, sentinel, content); err != nil {
		return err
	}
	return putSame(context.WithoutCancel(ctx), p, sentinel, content)
}

// run runs one process of a host until the job of the slot is done or it is killed, as an agent would: who finds the lease taken comes back.
func (p *process) run(host string, slot int, skew, work time.Duration, end time.Time, service lease.Keeper) {
	k := object.New(p, p.now, object.Options{Finish: p.finish, Service: service})
	for time.Now().Before(end) && !p.killed() {
		h := lease.Holder{Host: host, PID: 1, Since: time.Now().Add(skew)}
		err := lease.Hold(context.Background(), k, modelJob, h, modelTTL, func(ctx context.Context, g lease.Grant) error {
			return p.backUp(ctx, host, slot, work, g.(*object.Grant))
		})
		if err == nil {
			return
		}
		time.Sleep(modelTTL / 2)
	}
}

// generous is a service that gives everybody what he wants.
type generous struct{}

func (generous) Acquire(context.Context, string, lease.Holder, time.Duration) (lease.Grant, error) {
	return generous{}, nil
}
func (generous) Holder(context.Context, string) (*lease.Holder, error) { return nil, nil }
func (generous) Token() uint64                                         { return 1 }
func (generous) Renew(context.Context) error                           { return nil }
func (generous) Check(context.Context) error                           { return nil }
func (generous) Release(context.Context, bool) error                   { return nil }

// Whatever is killed, stands still, is cut off or told lies by its network: of every slot comes exactly one backup, and it is whole.
func TestExactlyOneBackupComesOfASlot(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		type start struct {
			host    string
			slot    int
			begin   time.Duration
			skew    time.Duration
			work    time.Duration
			hazards []hazard
		}
		slots := rapid.IntRange(1, 3).Draw(rt, "slots")
		// Where a service gives the lease to everybody they may keep one another from working. That two commit it cannot bring about.
		var service lease.Keeper
		if rapid.IntRange(0, 3).Draw(rt, "service") == 0 {
			service = generous{}
		}
		var starts []start
		for slot := range slots {
			for _, host := range []string{"db1", "db2", "db3"} {
				s := start{
					host: host, slot: slot,
					begin: time.Duration(slot)*modelSlot + time.Duration(rapid.IntRange(0, 5000).Draw(rt, "ms"))*time.Millisecond,
					skew:  time.Duration(rapid.IntRange(-3600, 3600).Draw(rt, "clock")) * time.Second,
					work:  time.Duration(rapid.IntRange(0, 100).Draw(rt, "work")) * time.Second,
				}
				for range rapid.IntRange(0, 4).Draw(rt, "hazards") {
					h := hazard{
						call: rapid.IntRange(1, 30).Draw(rt, "call"),
						what: rapid.IntRange(1, hazards-1).Draw(rt, "what"),
						long: time.Duration(rapid.SampledFrom([]int{1, 20, 31, 40, 100, 900, 4000}).Draw(rt, "seconds")) * time.Second,
					}
					if (h.what == killed || h.what == killing) && host == "db3" { // one of them has to live
						h.what = frozen
					}
					s.hazards = append(s.hazards, h)
				}
				starts = append(starts, s)
			}
		}
		var wrong []string
		synctest.Test(t, func(*testing.T) {
			disk := &storetest.Memory{}
			begun := time.Now()
			var all sync.WaitGroup
			for _, s := range starts {
				all.Go(func() {
					time.Sleep(s.begin)
					p := &process{Full: disk, hazards: s.hazards, dead: make(chan struct{})}
					p.run(s.host, s.slot, s.skew, s.work, begun.Add(time.Duration(slots+3)*modelSlot), service)
				})
			}
			all.Wait()
			time.Sleep(2 * modelSlot) // what was under way arrives
			made := make([]int, slots)
			for o, err := range disk.Walk(context.Background(), "backups/") {
				if err != nil {
					panic(err) // of a store in memory
				}
				if !strings.HasSuffix(o.Name, ".sentinel") {
					continue
				}
				var slot int
				fmt.Sscanf(o.Name, "backups/%d/", &slot)
				made[slot]++
				if _, err := disk.Stat(context.Background(), partOf(o.Name)); err != nil {
					wrong = append(wrong, o.Name+" lacks its part")
				}
			}
			for slot, n := range made {
				if n > 1 || n == 0 && service == nil {
					wrong = append(wrong, fmt.Sprintf("%d backups came of slot %d", n, slot))
				}
			}
			if len(wrong) > 0 {
				for o := range disk.Walk(context.Background(), "") {
					b, _ := store.ReadFile(context.Background(), disk, o.Name, 1<<20)
					wrong = append(wrong, fmt.Sprintf("%s %s %s", o.Name, o.Modified.Sub(begun), b))
				}
			}
		})
		if len(wrong) > 0 {
			rt.Fatalf("%s", strings.Join(wrong, "\n"))
		}
	})
}
