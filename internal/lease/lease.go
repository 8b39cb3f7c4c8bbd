// Package lease lets one host at a time do a job.
//
// Several hosts are told to do the same at the same hour, by the same line of cron for instance. Each asks a Keeper for the lease of that job: one gets
// it, the others a *HeldError that says who has it. Hold keeps the lease while the job is done, and ends the job once it is not ours any more.
//
// A process that stands still, or whose network does, learns too late that it has lost its lease: no clock can help against that. What must not
// happen then, a backup committed by two, is kept from happening by fencing, where the last step is taken: see package object below this one.
// The services (etcd, Consul, Kubernetes, PostgreSQL) only see to it that two do not work in vain at the same time.
package lease

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Holder is who holds a lease.
type Holder struct {
	Host  string    `json:"host"`
	PID   int       `json:"pid"`
	Job   string    `json:"job"`
	Since time.Time `json:"since"` // by the host's clock; for people
	Token uint64    `json:"token"` // higher than that of any holder before; 0 before there is one
}

// ReadHolder reads who holds the lease of job from what a service keeps with it, a Holder in JSON. Of what is not understood nobody knows who it is.
func ReadHolder(text []byte, job string, token uint64) *Holder {
	var h Holder
	if json.Unmarshal(text, &h) != nil {
		h = Holder{}
	}
	h.Job, h.Token = job, token
	return &h
}

// Keeper gives leases. There is one implementation a service.
type Keeper interface {
	// Acquire takes the lease of job for h. Where another holder has it the error is a *HeldError. It is ours for ttl from the moment Acquire was
	// called, and for ttl from the beginning of each Renew that succeeds.
	Acquire(ctx context.Context, job string, h Holder, ttl time.Duration) (Grant, error)

	// Holder says who holds the lease of job; nil is nobody.
	Holder(ctx context.Context, job string) (*Holder, error)
}

// Grant is a lease that is ours. Its methods may be called from several goroutines.
type Grant interface {
	// Token is higher than that of any grant of this job before, for as long as the service remembers.
	Token() uint64
	// Renew keeps the lease for a further ttl. A *LostError says that it is not ours any more.
	Renew(ctx context.Context) error
	// Check asks the service whether the lease is still ours. A *LostError says that it is not.
	Check(ctx context.Context) error
	// Release gives the lease up; one that is lost already is no error. done says that the job was done.
	Release(ctx context.Context, done bool) error
}

// HeldError says that another holder has the lease.
type HeldError struct {
	Holder Holder
	Here   bool // it is a process of the host that asked
}

func (e *HeldError) Error() string {
	who := "Another host (" + e.Holder.Host + ")"
	switch {
	case e.Here:
		who = fmt.Sprintf("Another process (%d) of this host", e.Holder.PID)
	case e.Holder.Host == "":
		who = "Another host"
	}
	since := ""
	if !e.Holder.Since.IsZero() {
		since = " since " + e.Holder.Since.UTC().Format(time.RFC3339)
	}
	return who + " holds the lease" + since + ": nothing to do."
}

// Held returns the error of one who asks for a lease that holder has.
func Held(holder *Holder, asks Holder) *HeldError {
	return &HeldError{Holder: *holder, Here: holder.Host != "" && holder.Host == asks.Host}
}

// LostError says that a lease that was ours is not any more, or may not be.
type LostError struct {
	Job string
	Why string
	Err error // nil where another one took it
}

func (e *LostError) Error() string {
	return fmt.Sprintf("the lease of %s is lost: %s", e.Job, e.Why)
}

func (e *LostError) Unwrap() error { return e.Err }

// Taken returns the error of one who had the lease of job and finds that holder has it; where nobody has, why is the reason.
func Taken(job string, holder *Holder, why string) *LostError {
	if holder != nil {
		why = holder.Host + " has it by now"
	}
	return &LostError{Job: job, Why: why}
}

// ReleaseError says that the job was done, and the lease could not be given up. It ends by itself.
type ReleaseError struct{ Err error }

func (e *ReleaseError) Error() string { return "give the lease up: " + e.Err.Error() }
func (e *ReleaseError) Unwrap() error { return e.Err }

// CheckJob reports whether job may be the name of one: 1 to 40 of a-z, 0-9 and "-", which services take as part of a key.
func CheckJob(job string) error {
	ok := len(job) >= 1 && len(job) <= 40
	for _, c := range []byte(job) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-')
	}
	if !ok {
		return fmt.Errorf("%q is no name of a job: want 1 to 40 of a-z, 0-9 and -", job)
	}
	return nil
}

// releaseTime bounds what is spent on giving a lease up: it ends by itself in any case.
const releaseTime = 15 * time.Second

// Hold takes the lease of job, calls run, and gives the lease up. Meanwhile it renews the lease in the background, every third of ttl. The context of run
// ends, with a *LostError as its cause, once the lease is not ours, or could not be renewed for so long that another one may have it; where
// run failed then that is the error. What Acquire returns is returned as it is; a *ReleaseError comes after a run that succeeded.
func Hold(ctx context.Context, k Keeper, job string, h Holder, ttl time.Duration, run func(ctx context.Context, g Grant) error) error {
	begun := time.Now()
	g, err := k.Acquire(ctx, job, h, ttl)
	if err != nil {
		return err
	}
	if time.Since(begun) > ttl/3 { // it had something to finish for another one
		begun = time.Now()
		if err := g.Renew(ctx); err != nil {
			return errors.Join(err, release(ctx, g, false))
		}
	}
	held, lose := context.WithCancelCause(ctx)
	var renewing sync.WaitGroup
	stop := make(chan struct{})
	renewing.Go(func() { renew(held, g, job, begun, ttl, stop, lose) })
	err = func() error {
		defer renewing.Wait()
		defer close(stop)
		return run(held, g)
	}()
	var lost *LostError
	if err != nil && errors.As(context.Cause(held), &lost) && !errors.As(err, new(*LostError)) {
		err = fmt.Errorf("%w (%w)", lost, err)
	}
	lose(nil)
	if failed := release(ctx, g, err == nil); failed != nil && err == nil {
		err = &ReleaseError{failed}
	}
	return err
}

// release gives g up, although ctx may be over.
func release(ctx context.Context, g Grant, done bool) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTime)
	defer cancel()
	return g.Release(ctx, done)
}

// renew renews g, which is ours until ttl from begun, until stop is closed or it is lost.
func renew(ctx context.Context, g Grant, job string, begun time.Time, ttl time.Duration, stop <-chan struct{}, lose context.CancelCauseFunc) {
	pause := ttl / 3
	var last error
	for {
		left := ttl - time.Since(begun)
		if left <= 0 {
			why := fmt.Sprintf("it could not be renewed for %s, and another host may have it by now", ttl)
			if last != nil {
				why += ": " + last.Error()
			}
			lose(&LostError{Job: job, Why: why, Err: last})
			return
		}
		timer := time.NewTimer(min(pause, left))
		select {
		case <-stop:
			timer.Stop()
			return
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		begin := time.Now()
		if left = ttl - begin.Sub(begun); left <= 0 {
			continue
		}
		renewing, cancel := context.WithTimeout(ctx, left)
		err := g.Renew(renewing)
		cancel()
		switch lost := (*LostError)(nil); {
		case err == nil:
			begun, pause, last = begin, ttl/3, nil
		case errors.As(err, &lost):
			lose(lost)
			return
		default:
			pause, last = ttl/12, err
		}
	}
}
