// Package consul keeps leases in Consul, by its HTTP API: a session a holder (https://developer.hashicorp.com/consul/api-docs/session), which locks a key a job
// (https://developer.hashicorp.com/consul/api-docs/kv, acquire and release). Consul ends a session some time between one and two TTLs after it was last renewed.
package consul

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"strings"
	"time"

	"holdfast/internal/lease"
	"holdfast/internal/lease/rest"
)

// leastTTL is the shortest that a session of Consul's lasts.
const leastTTL = 10 * time.Second

// Options says how to reach Consul. The zero value needs no token.
type Options struct {
	Token string       // of its access control, "" for none
	HTTP  *http.Client // nil is one of its own
}

// Keeper keeps leases in Consul.
type Keeper struct {
	client rest.Client
	prefix string
}

// New returns a Keeper whose keys begin with prefix, in the Consul whose agents are at addresses, URLs such as http://h:8500.
func New(addresses []string, prefix string, opts Options) *Keeper {
	if opts.HTTP == nil {
		opts.HTTP = &http.Client{}
	}
	c := rest.Client{Service: "Consul", Addresses: addresses, HTTP: opts.HTTP}
	if opts.Token != "" {
		c.Header = func() (http.Header, error) { return http.Header{"X-Consul-Token": {opts.Token}}, nil }
	}
	return &Keeper{c, prefix}
}

// entry is a key as Consul shows it.
type entry struct {
	Session     string
	Value       []byte
	ModifyIndex uint64
}

func (k *Keeper) path(job string) string {
	return "/v1/kv/" + (&url.URL{Path: k.prefix + job}).EscapedPath()
}

// get reads who has a job's key, in which session; nil where nobody has.
func (k *Keeper) get(ctx context.Context, job string) (*lease.Holder, string, error) {
	if err := lease.CheckJob(job); err != nil {
		return nil, "", err
	}
	a, err := k.client.Do(ctx, http.MethodGet, k.path(job)+"?consistent", nil, http.StatusNotFound)
	if err != nil || a.Status == http.StatusNotFound {
		return nil, "", err
	}
	var all []entry
	if err := a.Decode(&all); err != nil || len(all) == 0 || all[0].Session == "" {
		return nil, "", err
	}
	return lease.ReadHolder(all[0].Value, job, all[0].ModifyIndex), all[0].Session, nil
}

// Holder implements lease.Keeper.
func (k *Keeper) Holder(ctx context.Context, job string) (*lease.Holder, error) {
	h, _, err := k.get(ctx, job)
	return h, err
}

// Acquire implements lease.Keeper. A ttl below 10 s is taken for that.
func (k *Keeper) Acquire(ctx context.Context, job string, h lease.Holder, ttl time.Duration) (_ lease.Grant, err error) {
	if err := lease.CheckJob(job); err != nil {
		return nil, err
	}
	h.Job = job
	value, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	// Of a session without a node's checks the TTL alone decides; what its holder does late is fenced elsewhere, so nobody has to wait after it (LockDelay).
	a, err := k.client.Do(ctx, http.MethodPut, "/v1/session/create", map[string]any{
		"Name": "holdfast " + job, "TTL": fmt.Sprintf("%ds", int64(math.Ceil(max(ttl, leastTTL).Seconds()))), "Behavior": "release", "LockDelay": "0s", "NodeChecks": []string{},
	})
	if err != nil {
		return nil, err
	}
	var made struct{ ID string }
	if err := a.Decode(&made); err != nil {
		return nil, fmt.Errorf("Consul: %w", err)
	}
	if made.ID == "" {
		return nil, errors.New("Consul: a session without an ID")
	}
	g := &grant{keeper: k, job: job, session: made.ID}
	defer func() {
		if err != nil {
			ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()
			_ = g.destroy(ending) // it ends by itself
		}
	}()
	// Another one may give it up between our two questions.
	for range 3 {
		if _, err = k.client.Do(ctx, http.MethodPut, k.path(job)+"?acquire="+url.QueryEscape(g.session), value); err != nil {
			return nil, err
		}
		who, session, err := k.get(ctx, job)
		switch {
		case err != nil:
			return nil, err
		case session == g.session:
			g.token = who.Token
			return g, nil
		case who != nil:
			return nil, lease.Held(who, h)
		}
	}
	return nil, errors.New("Consul: the lock is free, and is not given")
}

type grant struct {
	keeper  *Keeper
	job     string
	session string
	token   uint64
}

func (g *grant) Token() uint64 { return g.token }

// Renew implements lease.Grant.
func (g *grant) Renew(ctx context.Context) error {
	a, err := g.keeper.client.Do(ctx, http.MethodPut, "/v1/session/renew/"+url.PathEscape(g.session), nil, http.StatusNotFound)
	if err != nil {
		return err
	}
	if a.Status == http.StatusNotFound {
		return &lease.LostError{Job: g.job, Why: "Consul has ended its session"}
	}
	return g.Check(ctx)
}

// Check implements lease.Grant.
func (g *grant) Check(ctx context.Context) error {
	h, session, err := g.keeper.get(ctx, g.job)
	if err == nil && session != g.session {
		err = lease.Taken(g.job, h, "Consul has ended it")
	}
	return err
}

// Release implements lease.Grant.
func (g *grant) Release(ctx context.Context, _ bool) error { return g.destroy(ctx) }

// destroy ends the session, which frees the key. One that has ended is no error.
func (g *grant) destroy(ctx context.Context) error {
	_, err := g.keeper.client.Do(ctx, http.MethodPut, "/v1/session/destroy/"+url.PathEscape(g.session), nil, http.StatusNotFound)
	if refused := (*rest.Error)(nil); errors.As(err, &refused) && strings.Contains(strings.ToLower(refused.Text), "session not found") {
		return nil
	}
	return err
}
