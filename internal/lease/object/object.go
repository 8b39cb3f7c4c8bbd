// Package object keeps leases in the archive itself, and fences what a job ends with, whoever keeps the lease.
//
// Each time the lease of a job is taken it gets the next number, its token. What became of a token is in up to three objects:
//
//	holdfast/leases/<job>/<token, 16 hex digits>.json   a claim: who has taken it. Put anew by its holder for a sign of life
//	holdfast/leases/<job>/<token>.end.json              how it ended: "released", "fenced" or "commits"
//	holdfast/leases/<job>/<token>.done.json             that what "commits" names is there, or never will be
//
// # Who has the lease
//
// The highest token counts. It is held until it has an end, or for its ttl after its last sign of life, by the clock of the store, the one that all hosts
// share. Who wants it then ends it, if nobody has, and creates the claim of the next token. An object is created only where there is none
// (store.PutIfAbsent), so of several that try one succeeds. Where Options.Service is set that service says who has the lease instead.
//
// A job that was done keeps its lease closed to other hosts until ttl after it was taken: those whose clocks are behind, or who came late, do
// not do it a second time.
//
// # Why exactly one commit comes of a token
//
// A clock decides who may begin, and no clock can decide who may finish: a process may stand still for any time between any two of its steps,
// and a put may reach the store any time after it was sent. So the last step of a job, the object without which nothing else of it counts (of
// a backup its sentinel), is preceded by Grant.Seal: the holder creates the end of its token, saying "commits", with that object's name and
// content. Who takes over creates the same object, saying "fenced". One of them is first, and that decides, for ever:
//
//   - "fenced": Seal fails, and the holder puts nothing more, whenever it wakes. It may also have died: nobody will put that object, as nobody else knows
//     its content. Hence whoever took over may do the job anew, and may treat what the other left as garbage (Grant.Ended).
//   - "commits": from now on the object is as good as put. Everything it needs is durable, and its holder must not take it back. If the holder dies before it
//     has put it, or stands still, who comes next puts it, the same bytes, by Options.Finish; that the holder wakes and does that too
//     changes nothing. Only then the next token is claimed. So such a commit is not lost, and not made twice.
//
// The next token is claimed only when the highest one has an end, and "commits" among them has been seen to. That makes old tokens
// history, which is removed but for the newest few: a holder that wakes after that could create its end a second time. So Seal, once it
// has created it, looks whether a higher token is there: then somebody has put its object already, or it has lost.
//
// # A store that cannot decide
//
// Where the store has no PutIfAbsent that decides among all writers (OpenStack Swift, and some that speak S3: Options.Lax), it looks first and puts then: two that act
// within the same instant may both believe to have created an object. Then the later put is the one that stays, and each reads back after
// Options.Settle what stayed. That narrows the window to puts that take longer than Settle, and does not close it: there a service should keep the lease.
package object

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"sync"
	"time"

	"holdfast/internal/lease"
	"holdfast/internal/store"
)

// Options tunes a Keeper. The zero value keeps leases of jobs that commit nothing.
type Options struct {
	// Finish puts the object that the holder called id (Grant.ID) had said to commit, with that content, unless it is there. Neither is to be trusted. made is
	// false where that cannot be done any more, and need not be tried again. nil does nothing of the kind, and such a lease is not taken over.
	Finish func(ctx context.Context, id, object string, content []byte) (made bool, err error)

	// Service says who has the lease; nil is the objects themselves. Objects fence all the same.
	Service lease.Keeper

	// Lax says that the store may not decide although it is a store.PutIfAbsenter: some that speak S3 take the condition and do not heed it.
	Lax bool

	// Settle is how long is waited before it is read back what was created, where the store does not decide; 0 means 2 seconds.
	Settle time.Duration
}

// Keeper keeps leases as objects. It is a lease.Keeper whose grants are *Grant.
type Keeper struct {
	store store.Store
	now   func(ctx context.Context) (time.Time, error)
	Options
}

// New returns a Keeper of leases in s. now returns the time by the clock of s.
func New(s store.Store, now func(ctx context.Context) (time.Time, error), opts Options) *Keeper {
	opts.Settle = cmp.Or(opts.Settle, 2*time.Second)
	return &Keeper{s, now, opts}
}

const (
	// slack is what clocks of a store's servers, and the whole seconds that some of them count in, may differ by.
	slack = 2 * time.Second
	// kept is how many tokens of a job stay.
	kept = 16
	// tries is how often a step is tried that others came in between.
	tries = 20
)

// state is what there is of the newest token of a job.
type state struct {
	token uint64 // 0: there is none
	claim *claim // nil where it is not there, or cannot be read
	beat  time.Time
	end   *end
	ended time.Time // by the store's clock
	done  *finished
	didAt time.Time
	old   []string // objects of tokens that are history
}

// over reports whether the token has ended, and nothing is left to be seen to.
func (s *state) over() bool {
	return s.token == 0 || s.end != nil && (s.end.How != commits || s.done != nil)
}

// holder says who has, or had, the token.
func (s *state) holder(job string) lease.Holder {
	h := lease.Holder{Job: job, Token: s.token}
	if s.claim != nil {
		h = s.claim.Holder
		h.Job, h.Token = job, s.token
	}
	return h
}

// load reads the newest token of job.
func (k *Keeper) load(ctx context.Context, job string) (*state, error) {
	if err := lease.CheckJob(job); err != nil {
		return nil, err
	}
	s := &state{}
	var newest []store.Object
	var err error
	if s.token, newest, s.old, err = list(ctx, k.store, job); err != nil {
		return nil, err
	}
	for _, o := range newest {
		if err := k.read(ctx, s, o); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// list returns the newest token of job, its objects, and those of tokens that are history.
func list(ctx context.Context, st store.Store, job string) (token uint64, newest []store.Object, old []string, err error) {
	dir := Dir + job + "/"
	all := map[uint64][]store.Object{}
	for o, err := range st.List(ctx, dir, "") {
		if err != nil {
			return 0, nil, nil, fmt.Errorf("list %s: %w", dir, err)
		}
		if t, _, ok := parse(o.Name); ok && !o.IsDir() {
			all[t] = append(all[t], o)
			token = max(token, t)
		}
	}
	for t, objects := range all {
		if t+kept <= token {
			for _, o := range objects {
				old = append(old, o.Name)
			}
		}
	}
	return token, all[token], old, nil
}

// Sweep removes what is history of the leases of all jobs: those who take them do, where they may remove anything.
func Sweep(ctx context.Context, s store.Store) error {
	jobs, err := New(s, nil, Options{}).Jobs(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, job := range jobs {
		_, _, old, err := list(ctx, s, job)
		if err == nil && len(old) > 0 {
			err = store.DeleteMany(ctx, s, old)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// read reads one object of the newest token.
func (k *Keeper) read(ctx context.Context, s *state, o store.Object) error {
	_, what, _ := parse(o.Name)
	most := int64(maxClaim)
	if what == anEnd {
		most = maxEnd
	}
	b, err := store.ReadFile(ctx, k.store, o.Name, most)
	if err != nil {
		return fmt.Errorf("read a lease: %w", err)
	}
	switch what {
	case aClaim:
		s.beat = o.Modified
		var c claim
		if json.Unmarshal(b, &c) == nil { // one that cannot be read counts by its age
			s.claim = &c
		}
	case anEnd:
		s.ended = o.Modified
		if s.end, err = decodeEnd(b); err != nil {
			return fmt.Errorf("read %s: %w", o.Name, err)
		}
	case aDone:
		s.didAt = o.Modified
		var d finished
		if err := json.Unmarshal(b, &d); err != nil {
			return fmt.Errorf("read %s: %w", o.Name, err)
		}
		s.done = &d
	}
	return nil
}

// alive reports whether the token's last sign of life is recent enough, ttl being what counts where the claim does not say.
func (s *state) alive(now time.Time, ttl time.Duration) bool {
	if s.claim != nil && s.claim.ttl() > 0 {
		ttl = s.claim.ttl()
	}
	age := now.Sub(s.beat)
	return age <= ttl+slack && age >= -ttl-slack // one from the future is from before the clock was set back
}

// closedTo reports whether the job is done for now, for a host.
func (s *state) closedTo(host string, now time.Time) bool {
	if s.claim == nil || s.claim.Host == host || s.end == nil {
		return false
	}
	since, length := s.ended, closed(s.end.Closed)
	if s.done != nil {
		since, length = s.didAt, closed(s.done.Closed)
	}
	age := now.Sub(since)
	return age < length && age >= -length-slack // as with a sign of life: the clock may have been set back
}

// mayBeClosed reports whether it takes a clock to tell.
func (s *state) mayBeClosed(host string) bool {
	return s.claim != nil && s.claim.Host != host && s.end != nil && (s.end.Closed > 0 || s.done != nil && s.done.Closed > 0)
}

// Acquire implements lease.Keeper.
func (k *Keeper) Acquire(ctx context.Context, job string, h lease.Holder, ttl time.Duration) (_ lease.Grant, err error) {
	if err := lease.CheckJob(job); err != nil {
		return nil, err
	}
	h.Job = job
	var service lease.Grant
	if k.Service != nil {
		if service, err = k.Service.Acquire(ctx, job, h, ttl); err != nil {
			return nil, k.told(ctx, job, h, err)
		}
	}
	g, err := k.acquire(ctx, job, h, ttl, service)
	if err != nil && service != nil {
		releasing, cancel := context.WithTimeout(context.WithoutCancel(ctx), k.Settle+10*time.Second)
		defer cancel()
		err = errors.Join(err, service.Release(releasing, false))
	}
	if err != nil {
		return nil, err
	}
	return g, nil
}

// told completes what a service says of the holder of a lease by what the holder said itself.
func (k *Keeper) told(ctx context.Context, job string, h lease.Holder, err error) error {
	held := (*lease.HeldError)(nil)
	if !errors.As(err, &held) {
		return err
	}
	if s, failed := k.load(ctx, job); failed == nil && !s.over() && s.claim != nil && (held.Holder.Host == "" || held.Holder.Host == s.claim.Host) {
		who := s.holder(job)
		return &lease.HeldError{Holder: who, Here: who.Host == h.Host}
	}
	return err
}

func (k *Keeper) acquire(ctx context.Context, job string, h lease.Holder, ttl time.Duration, service lease.Grant) (*Grant, error) {
	for range tries {
		begun := time.Now()
		s, err := k.load(ctx, job)
		if err != nil {
			return nil, err
		}
		switch ended, err := k.conclude(ctx, s, job, h, ttl, service); {
		case err != nil:
			return nil, err
		case !ended:
			continue
		}
		h.Token = s.token + 1
		body, err := json.Marshal(claim{h, ttl.Seconds(), rand.Text()})
		if err != nil {
			return nil, err
		}
		mine, err := k.create(ctx, name(job, h.Token, aClaim), body)
		if err != nil {
			return nil, fmt.Errorf("take the lease of %s: %w", job, err)
		}
		if !mine {
			continue
		}
		g := &Grant{keeper: k, holder: h, ttl: ttl, claim: body, begun: begun, service: service}
		switch err := g.check(ctx); { // or so long went by that this token is history already
		case errors.As(err, new(*lease.LostError)):
			continue
		case err != nil:
			return nil, err
		}
		if len(s.old) > 0 {
			_ = store.DeleteMany(ctx, k.store, s.old) // history: the next one tries again
		}
		return g, nil
	}
	return nil, fmt.Errorf("take the lease of %s: others came in between %d times", job, tries)
}

// conclude sees to it that the newest token has ended; false says that somebody else did something meanwhile.
func (k *Keeper) conclude(ctx context.Context, s *state, job string, h lease.Holder, ttl time.Duration, service lease.Grant) (bool, error) {
	if s.over() && !s.mayBeClosed(h.Host) {
		return true, nil
	}
	now, err := k.now(ctx)
	if err != nil {
		return false, fmt.Errorf("ask the store for the time: %w", err)
	}
	who := s.holder(job)
	held := &lease.HeldError{Holder: who, Here: who.Host == h.Host}
	switch {
	case s.over() && s.closedTo(h.Host, now):
		return false, held
	case s.over():
		return true, nil
	case !s.alive(now, ttl):
	case service == nil:
		return false, held
	default: // the service says that it is ours; unless that was long ago
		if err := service.Check(ctx); err != nil {
			return false, err
		}
	}
	if s.end == nil {
		body, err := json.Marshal(end{How: fenced, By: h.Host, At: time.Now().UTC(), Nonce: rand.Text()})
		if err != nil {
			return false, err
		}
		mine, err := k.create(ctx, name(job, s.token, anEnd), body)
		if err != nil {
			return false, fmt.Errorf("fence off %s, who held the lease of %s: %w", who.Host, job, err)
		}
		return mine, nil
	}
	if k.Finish == nil {
		return false, fmt.Errorf("%s had begun to commit %s, which is not finished: a command that makes such a thing finishes it", who.Host, s.end.Object)
	}
	made, err := k.Finish(ctx, id(job, s.token), s.end.Object, s.end.Content)
	if err != nil {
		return false, fmt.Errorf("finish what %s had begun to commit: %w", who.Host, err)
	}
	return true, k.finished(ctx, job, s.token, h.Host, made, 0)
}

// finished notes that nothing is left to be done about a token that commits.
func (k *Keeper) finished(ctx context.Context, job string, token uint64, host string, made bool, closed time.Duration) error {
	body, err := json.Marshal(finished{Made: made, By: host, At: time.Now().UTC(), Closed: closed.Seconds()})
	if err != nil {
		return err
	}
	err = store.PutIfAbsent(ctx, k.store, name(job, token, aDone), bytes.NewReader(body))
	if errors.Is(err, fs.ErrExist) { // whoever it was
		err = nil
	}
	return err
}

// create creates an object, and reports whether the one that is there is this one. After an error nobody knows.
func (k *Keeper) create(ctx context.Context, object string, body []byte) (mine bool, err error) {
	err = store.PutIfAbsent(ctx, k.store, object, bytes.NewReader(body))
	_, decides := k.store.(store.PutIfAbsenter)
	switch {
	case err == nil && decides && !k.Lax:
		return true, nil
	case err == nil:
		select {
		case <-ctx.Done():
			return false, context.Cause(ctx)
		case <-time.After(k.Settle):
		}
	case !errors.Is(err, fs.ErrExist): // which it also is where the answer to our own put got lost
		return false, err
	}
	there, err := store.ReadFile(ctx, k.store, object, maxEnd)
	return err == nil && bytes.Equal(there, body), err
}

// Holder implements lease.Keeper.
func (k *Keeper) Holder(ctx context.Context, job string) (*lease.Holder, error) {
	s, err := k.Look(ctx, job)
	if err != nil || !s.Held {
		return nil, err
	}
	return &s.Holder, nil
}

// Status says how a lease stands.
type Status struct {
	lease.Holder
	Held    bool      `json:"held"`              // by a living holder; else Holder is who had it last
	Beat    time.Time `json:"beat,omitzero"`     // the last sign of life, by the store's clock
	Expires time.Time `json:"expires,omitzero"`  // by the store's clock, where it is held
	Ended   string    `json:"ended,omitempty"`   // released, fenced, commits; "" where nobody has ended it
	Commits string    `json:"commits,omitempty"` // the object that is not put yet, as far as is known
}

// Look says how the lease of job stands. Where nobody ever had it Token is 0.
func (k *Keeper) Look(ctx context.Context, job string) (*Status, error) {
	s, err := k.load(ctx, job)
	if err != nil {
		return nil, err
	}
	st := &Status{Holder: s.holder(job), Beat: s.beat}
	if s.end != nil {
		st.Ended = s.end.How
	}
	if s.end != nil && !s.over() {
		st.Commits = s.end.Object
	}
	if k.Service != nil {
		h, err := k.Service.Holder(ctx, job)
		if err != nil || h == nil {
			return st, err
		}
		st.Held = true
		if s.claim == nil || s.over() || s.claim.Host != h.Host {
			st.Holder = *h
			st.Job = job
		}
		return st, nil
	}
	if s.over() {
		return st, nil
	}
	now, err := k.now(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask the store for the time: %w", err)
	}
	if st.Held = s.alive(now, time.Minute); st.Held && s.claim != nil {
		st.Expires = s.beat.Add(s.claim.ttl())
	}
	return st, nil
}

// Jobs lists the jobs of which the lease was ever taken, in byte order.
func (k *Keeper) Jobs(ctx context.Context) (jobs []string, err error) {
	for o, err := range k.store.List(ctx, Dir, "") {
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", Dir, err)
		}
		if job := path.Base(o.Name); o.IsDir() && lease.CheckJob(job) == nil {
			jobs = append(jobs, job)
		}
	}
	return jobs, nil
}

// Break takes the lease of job from whoever has it, in the name of a host: the holder can commit nothing any more, and ends what it does when it notices.
// It also opens one that is closed. false says that there was nothing to take. What a holder has begun to commit stays for who takes the lease next.
func (k *Keeper) Break(ctx context.Context, job, host string) (bool, error) {
	for range tries {
		s, err := k.load(ctx, job)
		if err != nil {
			return false, err
		}
		body, err := json.Marshal(end{How: released, By: host, At: time.Now().UTC(), Nonce: rand.Text()})
		if err != nil {
			return false, err
		}
		object := name(job, s.token, anEnd)
		switch {
		case s.token == 0 || !s.over() && s.end != nil || s.over() && !s.mayBeClosed(""):
			return false, nil
		case s.over(): // closed: a token that is over stands in front of it
			object = name(job, s.token+1, anEnd)
		}
		switch mine, err := k.create(ctx, object, body); {
		case err != nil:
			return false, fmt.Errorf("take the lease of %s away: %w", job, err)
		case mine:
			return true, nil
		}
	}
	return false, fmt.Errorf("take the lease of %s away: others came in between %d times", job, tries)
}

// Grant is a lease that is ours.
type Grant struct {
	keeper  *Keeper
	holder  lease.Holder
	ttl     time.Duration
	claim   []byte
	begun   time.Time   // when it was asked for
	service lease.Grant // nil: the objects themselves

	mu     sync.Mutex
	sealed bool // its end says "commits", or may say so, or is about to
	over   bool // it was given up, or is about to
}

// Token implements lease.Grant.
func (g *Grant) Token() uint64 { return g.holder.Token }

// ID names the grant among those of all jobs, for what it leaves in the archive.
func (g *Grant) ID() string { return id(g.holder.Job, g.holder.Token) }

func id(job string, token uint64) string { return fmt.Sprintf("%s/%016x", job, token) }

// Ended reports whether id names an earlier grant of the same job: that one can commit nothing any more.
func (g *Grant) Ended(id string) bool {
	job, token, _ := strings.Cut(id, "/")
	return job == g.holder.Job && len(token) == 16 && id < g.ID()
}

func (g *Grant) lost(format string, args ...any) error {
	return &lease.LostError{Job: g.holder.Job, Why: fmt.Sprintf(format, args...)}
}

// Renew implements lease.Grant.
func (g *Grant) Renew(ctx context.Context) error {
	if g.service != nil {
		if err := g.service.Renew(ctx); err != nil {
			return err
		}
	}
	if err := g.keeper.store.Put(ctx, name(g.holder.Job, g.holder.Token, aClaim), bytes.NewReader(g.claim)); err != nil {
		return err
	}
	return g.check(ctx)
}

// Check implements lease.Grant.
func (g *Grant) Check(ctx context.Context) error {
	if g.service != nil {
		if err := g.service.Check(ctx); err != nil {
			return err
		}
	}
	return g.check(ctx)
}

// ending reports whether an end of the token may be ours.
func (g *Grant) ending() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.sealed || g.over
}

// check looks whether the token has an end that is not ours, or is not the newest.
func (g *Grant) check(ctx context.Context) error {
	dir := Dir + g.holder.Job + "/"
	for o, err := range g.keeper.store.List(ctx, dir, fmt.Sprintf("%s%016x", dir, g.holder.Token)) {
		if err != nil {
			return fmt.Errorf("list %s: %w", dir, err)
		}
		token, what, ok := parse(o.Name)
		switch {
		case !ok:
		case token > g.holder.Token:
			return g.lost("another one has taken it since")
		case token == g.holder.Token && what == anEnd && !g.ending():
			return g.ender(ctx)
		}
	}
	return nil
}

// ender says who has ended the token.
func (g *Grant) ender(ctx context.Context) error {
	object := name(g.holder.Job, g.holder.Token, anEnd)
	b, err := store.ReadFile(ctx, g.keeper.store, object, maxEnd)
	if err != nil {
		return g.lost("somebody has ended it")
	}
	e, err := decodeEnd(b)
	switch {
	case err != nil:
		return g.lost("somebody has ended it, saying what is not understood: %s: %v", object, err)
	case e.How == released:
		return g.lost("it was taken away on %s at %s", e.By, e.At.UTC().Format(time.RFC3339))
	}
	return g.lost("%s took it for dead at %s, as there was no sign of life for %s", e.By, e.At.UTC().Format(time.RFC3339), g.ttl)
}

// Seal says that the object of that name, with that content, is about to be put, as the last step of the job. After nil nobody else can have the lease without putting
// it first. final says that others may put it, or have, whatever the error says: nothing that it needs may be removed; after an error it must not be put either. An error
// without final is a *lease.LostError.
func (g *Grant) Seal(ctx context.Context, object string, content []byte) (final bool, err error) {
	body, err := json.Marshal(end{How: commits, By: g.holder.Host, At: time.Now().UTC(), Nonce: rand.Text(), Object: object, Content: content})
	if err != nil {
		return false, err
	}
	g.mu.Lock()
	late := g.over || g.sealed
	g.sealed = true
	g.mu.Unlock()
	if late {
		return false, g.lost("it was given up, or used")
	}
	own := name(g.holder.Job, g.holder.Token, anEnd)
	mine, err := g.keeper.create(ctx, own, body)
	if err != nil {
		return true, fmt.Errorf("say what is committed: %w", err)
	}
	if !mine {
		g.mu.Lock()
		g.sealed = false
		g.mu.Unlock()
		return false, g.ender(ctx)
	}
	err = g.check(ctx)
	if errors.As(err, new(*lease.LostError)) {
		return g.late(ctx, err)
	}
	return true, err
}

// late says what it means that a higher token is there although our end says "commits": somebody has seen to it already, or it was so long ago that our end had been
// removed when we created it anew, and nobody looks at it any more.
func (g *Grant) late(ctx context.Context, lost error) (final bool, err error) {
	b, err := store.ReadFile(ctx, g.keeper.store, name(g.holder.Job, g.holder.Token, aDone), maxClaim)
	var d finished
	if err == nil {
		err = json.Unmarshal(b, &d)
	}
	switch {
	case err != nil: // which of the two nobody knows any more: nothing is put, and nothing removed
		return true, lost
	case d.Made:
		return true, nil
	}
	return false, lost
}

// Release implements lease.Grant. Where Seal has succeeded and the job was not done, whoever takes the lease next puts what was to be committed.
func (g *Grant) Release(ctx context.Context, done bool) error {
	g.mu.Lock()
	again, sealed := g.over, g.sealed
	g.over = true
	g.mu.Unlock()
	if again {
		return nil
	}
	var close time.Duration
	if done {
		close = max(0, g.ttl-time.Since(g.begun))
	}
	err := g.conclude(ctx, done, sealed, close)
	if g.service != nil {
		err = errors.Join(err, g.service.Release(ctx, done))
	}
	return err
}

// conclude notes that the token is not ours any more.
func (g *Grant) conclude(ctx context.Context, done, sealed bool, close time.Duration) error {
	switch {
	case sealed && done:
		return g.keeper.finished(ctx, g.holder.Job, g.holder.Token, g.holder.Host, true, close)
	case sealed:
		return nil
	}
	body, err := json.Marshal(end{How: released, By: g.holder.Host, At: time.Now().UTC(), Nonce: rand.Text(), Closed: close.Seconds()})
	if err != nil {
		return err
	}
	_, err = g.keeper.create(ctx, name(g.holder.Job, g.holder.Token, anEnd), body) // where it has an end it is not ours
	return err
}
