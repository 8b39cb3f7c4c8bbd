// Package leasetest holds the tests that every keeper of leases must pass.
package leasetest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/internal/lease"
)

// Service is a service that keeps leases, as a test has it.
type Service struct {
	Open func(t *testing.T) lease.Keeper // as another host would
	TTL  time.Duration                   // as short as it can be
	Pass func(d time.Duration)           // lets time pass; nil is time.Sleep
	Late time.Duration                   // how much later than TTL the service may end a lease
}

// Test checks that the keepers of a service do what package lease promises. fresh makes one in which nobody holds anything.
func Test(t *testing.T, fresh func(t *testing.T) Service) {
	for name, test := range map[string]func(*testing.T, Service){
		"OneHoldsIt":              oneHolds,
		"OfManyOneHoldsIt":        ofMany,
		"RenewedItLasts":          lasts,
		"NotRenewedItEnds":        ends,
		"JobsAreApart":            jobs,
		"ReleasedItIsFreeAtOnce":  released,
		"AFailedNameTakesNothing": names,
	} {
		t.Run(name, func(t *testing.T) {
			s := fresh(t)
			if s.Pass == nil {
				s.Pass = time.Sleep
			}
			test(t, s)
		})
	}
}

const job = "backup-push"

func holder(host string) lease.Holder {
	return lease.Holder{Host: host, PID: 7, Since: time.Date(2026, 11, 21, 3, 0, 0, 0, time.UTC)}
}

func (s Service) take(t *testing.T, k lease.Keeper, job, host string) lease.Grant {
	t.Helper()
	g, err := k.Acquire(t.Context(), job, holder(host), s.TTL)
	if err != nil {
		t.Fatalf("%s: %v", host, err)
	}
	t.Cleanup(func() { _ = g.Release(t.Context(), false) }) // it may have been given up
	return g
}

// refused fails t unless db1 holds the lease.
func (s Service) refused(t *testing.T, k lease.Keeper, host string) {
	t.Helper()
	g, err := k.Acquire(t.Context(), job, holder(host), s.TTL)
	var held *lease.HeldError
	if !errors.As(err, &held) || held.Holder.Host != "db1" || held.Here != (host == "db1") {
		t.Errorf("%s: %v, %v, want that db1 holds it", host, g, err)
	}
}

// patient is a Service whose leases last, however busy the machine is, for tests that let no time pass.
func (s Service) patient() Service {
	s.TTL = max(s.TTL, time.Minute)
	return s
}

func oneHolds(t *testing.T, s Service) {
	s = s.patient()
	one, two := s.Open(t), s.Open(t)
	if h, err := two.Holder(t.Context(), job); h != nil || err != nil {
		t.Errorf("before anybody: %v, %v", h, err)
	}
	g := s.take(t, one, job, "db1")
	s.refused(t, two, "db2")
	s.refused(t, s.Open(t), "db1")
	if h, err := two.Holder(t.Context(), job); err != nil || h == nil || h.Host != "db1" || h.Since.IsZero() {
		t.Errorf("holder %+v, %v", h, err)
	}
	if err := g.Check(t.Context()); err != nil {
		t.Errorf("check: %v", err)
	}
}

func ofMany(t *testing.T, s Service) {
	s = s.patient()
	var all sync.WaitGroup
	errs, grants := make([]error, 8), make([]lease.Grant, 8) // which are kept: a session that nothing holds on to ends
	for i := range errs {
		k := s.Open(t)
		all.Go(func() {
			grants[i], errs[i] = k.Acquire(t.Context(), job, holder(fmt.Sprint("db", i)), s.TTL)
		})
	}
	all.Wait()
	for _, g := range grants {
		if g != nil {
			defer g.Release(t.Context(), false)
		}
	}
	got := 0
	for i, err := range errs {
		switch {
		case err == nil:
			got++
		case !errors.As(err, new(*lease.HeldError)):
			t.Errorf("db%d: %v", i, err)
		}
	}
	if got != 1 {
		t.Errorf("%d hold it", got)
	}
}

func lasts(t *testing.T, s Service) {
	for range 5 {
		if s.tryLasts(t) {
			return
		}
	}
	t.Skip("the machine is too busy to renew in time")
}

// tryLasts renews a lease for twice as long as it lasts. It reports false where that came too late once.
func (s Service) tryLasts(t *testing.T) (inTime bool) {
	g, other := s.take(t, s.Open(t), job, "db1"), s.Open(t)
	defer g.Release(t.Context(), false) // once more, for the next try
	last := time.Now()
	late := func() bool { return time.Since(last) > s.TTL }
	for range 6 {
		s.Pass(s.TTL / 3)
		begin := time.Now()
		err := g.Renew(t.Context())
		if late() {
			return false
		}
		if err != nil {
			t.Fatalf("renew: %v", err)
		}
		last = begin
	}
	_, err := other.Acquire(t.Context(), job, holder("db2"), s.TTL)
	lost := g.Check(t.Context())
	if late() {
		return false
	}
	if !errors.As(err, new(*lease.HeldError)) {
		t.Errorf("another one: %v", err)
	}
	if lost != nil {
		t.Errorf("check: %v", lost)
	}
	return true
}

func ends(t *testing.T, s Service) {
	one, two := s.Open(t), s.Open(t)
	lost := s.take(t, one, job, "db1")
	s.Pass(s.TTL + s.Late)
	s = s.patient()
	var g lease.Grant
	for tries := 0; ; tries++ { // on a busy machine the service may see later that time has passed
		var err error
		if g, err = two.Acquire(t.Context(), job, holder("db2"), s.TTL); err == nil {
			break
		}
		if !errors.As(err, new(*lease.HeldError)) || tries == 20 {
			t.Fatalf("db2: %v", err)
		}
		s.Pass(time.Second)
	}
	t.Cleanup(func() { _ = g.Release(t.Context(), false) })
	if g.Token() <= lost.Token() {
		t.Errorf("token %d after %d", g.Token(), lost.Token())
	}
	if err := lost.Check(t.Context()); !errors.As(err, new(*lease.LostError)) {
		t.Errorf("check of who lost it: %v", err)
	}
	if err := lost.Renew(t.Context()); !errors.As(err, new(*lease.LostError)) {
		t.Errorf("renew of who lost it: %v", err)
	}
	if err := lost.Release(t.Context(), true); err != nil {
		t.Errorf("release of who lost it: %v", err)
	}
	if err := g.Check(t.Context()); err != nil {
		t.Errorf("then who has it: %v", err)
	}
}

func jobs(t *testing.T, s Service) {
	s = s.patient()
	s.take(t, s.Open(t), "verify", "db1")
	s.take(t, s.Open(t), job, "db2")
}

func released(t *testing.T, s Service) {
	s = s.patient()
	one, two := s.Open(t), s.Open(t)
	var last uint64
	for range 3 {
		for _, k := range []lease.Keeper{one, two} {
			g := s.take(t, k, job, "db1")
			if g.Token() <= last {
				t.Errorf("token %d after %d", g.Token(), last)
			}
			last = g.Token()
			if err := g.Release(t.Context(), true); err != nil {
				t.Fatalf("release: %v", err)
			}
		}
	}
	if h, err := two.Holder(t.Context(), job); h != nil || err != nil {
		t.Errorf("after all: %v, %v", h, err)
	}
}

func names(t *testing.T, s Service) {
	for _, bad := range []string{"", "../x", "A", "a b", "a/b"} {
		if _, err := s.Open(t).Acquire(t.Context(), bad, holder("db1"), s.TTL); err == nil {
			t.Errorf("a job %q", bad)
		}
	}
}

// Refused checks that a service that refuses whoever gives secret is an error, which says why and tells no secret.
func Refused(t *testing.T, k lease.Keeper, secret, why string) {
	t.Helper()
	_, err := k.Acquire(t.Context(), job, holder("db1"), time.Minute)
	if err == nil || !strings.Contains(err.Error(), why) || strings.Contains(err.Error(), secret) {
		t.Errorf("%v, want %q in it and not %q", err, why, secret)
	}
}

// Nonsense checks of a service that may answer nonsense that it either gives a lease or says why not.
func Nonsense(t *testing.T, k lease.Keeper) {
	t.Helper()
	g, err := k.Acquire(t.Context(), job, holder("db1"), time.Minute)
	if (g == nil) == (err == nil) {
		t.Errorf("%v, %v", g, err)
	}
}

// Says is a service that answers each request with what it returns.
type Says func(r *http.Request) []byte

// Client returns a client of that service alone.
func (s Says) Client() *http.Client { return &http.Client{Transport: s} }

// RoundTrip implements http.RoundTripper.
func (s Says) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Date": {"Sat, 21 Nov 2026 03:00:00 GMT"}}, Body: io.NopCloser(bytes.NewReader(s(r))), Request: r}, nil
}
