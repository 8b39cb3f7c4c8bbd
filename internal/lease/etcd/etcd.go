// Package etcd keeps leases in etcd, by its JSON gateway (https://etcd.io/docs/v3.4/dev-guide/api_grpc_gateway/): a key a job, created where there is none, with a
// lease of etcd's own that the holder keeps alive. Who dies or stands still loses it once its time is over, by the clock of etcd.
package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strings"
	"sync"
	"time"

	"holdfast/internal/lease"
	"holdfast/internal/lease/rest"
)

// Options says how to reach etcd. The zero value needs no password.
type Options struct {
	User, Password string       // "" for an etcd without authentication
	HTTP           *http.Client // nil is one of its own
}

// Keeper keeps leases in etcd.
type Keeper struct {
	client rest.Client
	prefix string
	opts   Options

	mu    sync.Mutex
	token string // of authentication
}

// New returns a Keeper whose keys begin with prefix, in the etcd whose members are at addresses, URLs such as http://h:2379.
func New(addresses []string, prefix string, opts Options) *Keeper {
	if opts.HTTP == nil {
		opts.HTTP = &http.Client{}
	}
	return &Keeper{client: rest.Client{Service: "etcd", Addresses: addresses, HTTP: opts.HTTP}, prefix: prefix, opts: opts}
}

// post calls a method of the gateway; once more where the token of authentication has ended.
func (k *Keeper) post(ctx context.Context, path string, in, out any) error {
	for again := k.opts.User != ""; ; again = false {
		token, err := k.authenticated(ctx)
		if err != nil {
			return err
		}
		c := k.client
		if token != "" {
			c.Header = func() (http.Header, error) { return http.Header{"Authorization": {token}}, nil }
		}
		a, err := c.Do(ctx, http.MethodPost, path, in)
		if refused := (*rest.Error)(nil); errors.As(err, &refused) && refused.Status == http.StatusUnauthorized && again {
			k.mu.Lock()
			k.token = ""
			k.mu.Unlock()
			continue
		}
		if err != nil {
			return err
		}
		return a.Decode(out)
	}
}

// authenticated returns a token, "" where none is needed.
func (k *Keeper) authenticated(ctx context.Context) (string, error) {
	k.mu.Lock()
	token := k.token
	k.mu.Unlock()
	if k.opts.User == "" || token != "" {
		return token, nil
	}
	a, err := k.client.Do(ctx, http.MethodPost, "/v3/auth/authenticate", map[string]string{"name": k.opts.User, "password": k.opts.Password})
	if err != nil {
		return "", err
	}
	var said struct{ Token string }
	if err := a.Decode(&said); err != nil {
		return "", fmt.Errorf("etcd: %w", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.token = said.Token
	return said.Token, nil
}

// pair is a key with its value as the gateway shows it.
type pair struct {
	Value  []byte `json:"value"`
	Create int64  `json:"create_revision,string"`
	Lease  int64  `json:"lease,string"`
}

// answer is that of a range, or of one in a transaction.
type answer struct {
	Pairs []pair `json:"kvs"`
}

func (k *Keeper) key(job string) []byte { return []byte(k.prefix + job) }

// get reads who has a job's key, by which lease of etcd's; nil where nobody has.
func (k *Keeper) get(ctx context.Context, job string) (h *lease.Holder, id int64, err error) {
	if err := lease.CheckJob(job); err != nil {
		return nil, 0, err
	}
	var a answer
	if err := k.post(ctx, "/v3/kv/range", map[string]any{"key": k.key(job)}, &a); err != nil || len(a.Pairs) == 0 {
		return nil, 0, err
	}
	return a.Pairs[0].holder(job), a.Pairs[0].Lease, nil
}

func (p *pair) holder(job string) *lease.Holder {
	return lease.ReadHolder(p.Value, job, uint64(p.Create))
}

// Holder implements lease.Keeper.
func (k *Keeper) Holder(ctx context.Context, job string) (*lease.Holder, error) {
	h, _, err := k.get(ctx, job)
	return h, err
}

// Acquire implements lease.Keeper. etcd makes a lease of less than about 2 s longer.
func (k *Keeper) Acquire(ctx context.Context, job string, h lease.Holder, ttl time.Duration) (lease.Grant, error) {
	if err := lease.CheckJob(job); err != nil {
		return nil, err
	}
	h.Job = job
	value, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	var granted struct {
		ID int64 `json:"ID,string"`
	}
	if err := k.post(ctx, "/v3/lease/grant", map[string]any{"TTL": fmt.Sprint(int64(math.Ceil(ttl.Seconds())))}, &granted); err != nil {
		return nil, err
	}
	g := &grant{keeper: k, job: job, id: granted.ID}
	key := k.key(job)
	var done struct {
		Responses []struct {
			Range answer `json:"response_range"`
		} `json:"responses"`
	}
	// What is put is read back in one step with it. It may be our own of a request that was sent twice.
	read := map[string]any{"request_range": map[string]any{"key": key}}
	err = k.post(ctx, "/v3/kv/txn", map[string]any{
		"compare": []any{map[string]any{"target": "CREATE", "result": "EQUAL", "key": key, "create_revision": "0"}},
		"success": []any{map[string]any{"request_put": map[string]any{"key": key, "value": value, "lease": fmt.Sprint(g.id)}}, read},
		"failure": []any{read},
	}, &done)
	if err == nil {
		for _, r := range done.Responses {
			for _, p := range r.Range.Pairs {
				if p.Lease == g.id {
					g.token = uint64(p.Create)
					return g, nil
				}
				err = lease.Held(p.holder(job), h)
			}
		}
		if err == nil {
			err = errors.New("etcd: the answer to a transaction does not say what became of it")
		}
	}
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	_ = g.revoke(ending) // it ends by itself
	return nil, err
}

type grant struct {
	keeper *Keeper
	job    string
	id     int64
	token  uint64
}

func (g *grant) Token() uint64 { return g.token }

// Renew implements lease.Grant.
func (g *grant) Renew(ctx context.Context) error {
	var said struct {
		Result struct {
			TTL int64 `json:"TTL,string"`
		} `json:"result"`
	}
	if err := g.keeper.post(ctx, "/v3/lease/keepalive", map[string]any{"ID": fmt.Sprint(g.id)}, &said); err != nil {
		return err
	}
	if said.Result.TTL <= 0 {
		return &lease.LostError{Job: g.job, Why: "etcd has ended it"}
	}
	return g.Check(ctx) // somebody may have removed the key
}

// Check implements lease.Grant.
func (g *grant) Check(ctx context.Context) error {
	h, id, err := g.keeper.get(ctx, g.job)
	if err == nil && (h == nil || id != g.id) {
		err = lease.Taken(g.job, h, "it is not in etcd any more")
	}
	return err
}

// Release implements lease.Grant.
func (g *grant) Release(ctx context.Context, _ bool) error { return g.revoke(ctx) }

// revoke ends etcd's lease, and the key with it. One that has ended is no error.
func (g *grant) revoke(ctx context.Context) error {
	var out struct{}
	err := g.keeper.post(ctx, "/v3/lease/revoke", map[string]any{"ID": fmt.Sprint(g.id)}, &out)
	if refused := (*rest.Error)(nil); errors.As(err, &refused) && (refused.Status == http.StatusNotFound || strings.Contains(refused.Text, "lease not found")) {
		return nil
	}
	return err
}
