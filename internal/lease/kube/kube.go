// Package kube keeps leases in Kubernetes, as Lease objects of coordination.k8s.io/v1, one a job.
//
// A Lease is replaced only in the version that was read (metadata.resourceVersion), so of two that try one succeeds. Its times are the API server's, taken from
// the Date of its answers: clocks of hosts play no part.
package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"sync"
	"time"

	"holdfast/internal/lease"
	"holdfast/internal/lease/rest"
)

// Options says how to reach the API server.
type Options struct {
	Token func() (string, error) // of the service account, asked for each request as it is changed by and by; nil is none
	HTTP  *http.Client           // that trusts the server; nil is one of its own
}

// Keeper keeps leases in a namespace.
type Keeper struct {
	client    rest.Client
	namespace string
	name      string
}

// New returns a Keeper of Leases called name and a job, in a namespace of the Kubernetes whose API server is at address, a URL.
func New(address, namespace, name string, opts Options) *Keeper {
	if opts.HTTP == nil {
		opts.HTTP = &http.Client{}
	}
	c := rest.Client{Service: "Kubernetes", Addresses: []string{address}, HTTP: opts.HTTP}
	if opts.Token != nil {
		c.Header = func() (http.Header, error) {
			token, err := opts.Token()
			return http.Header{"Authorization": {"Bearer " + token}}, err
		}
	}
	return &Keeper{c, namespace, name}
}

// micro is how Kubernetes writes a MicroTime.
const micro = "2006-01-02T15:04:05.000000Z07:00"

// holderKey is the annotation that holds who has it, in JSON.
const holderKey = "holdfast/holder"

// object is a Lease, as far as it matters here.
type object struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Name            string            `json:"name"`
		Namespace       string            `json:"namespace"`
		ResourceVersion string            `json:"resourceVersion,omitempty"`
		Annotations     map[string]string `json:"annotations,omitempty"`

		// What others have put there stays.
		Labels     json.RawMessage `json:"labels,omitempty"`
		Owners     json.RawMessage `json:"ownerReferences,omitempty"`
		Finalizers json.RawMessage `json:"finalizers,omitempty"`
	} `json:"metadata"`
	Spec struct {
		Holder      string `json:"holderIdentity,omitempty"`
		Seconds     int32  `json:"leaseDurationSeconds,omitempty"`
		Acquired    string `json:"acquireTime,omitempty"`
		Renewed     string `json:"renewTime,omitempty"`
		Transitions int32  `json:"leaseTransitions"`
	} `json:"spec"`
}

// identity is unlike that of any other holder: hosts, processes and times tell them apart.
func identity(h lease.Holder) string {
	return fmt.Sprintf("%s_%d_%s", h.Host, h.PID, h.Since.UTC().Format(micro))
}

// holder says who has, or had, the Lease.
func (o *object) holder(job string) *lease.Holder {
	h := lease.ReadHolder([]byte(o.Metadata.Annotations[holderKey]), job, uint64(max(0, o.Spec.Transitions)))
	if h.Host == "" {
		h.Host = o.Spec.Holder // of another program
	}
	return h
}

// held reports whether somebody has the Lease at the time now.
func (o *object) held(now time.Time) bool {
	renewed, err := time.Parse(time.RFC3339Nano, o.Spec.Renewed)
	if o.Spec.Holder == "" || err != nil {
		return false
	}
	return !now.After(renewed.Add(time.Duration(o.Spec.Seconds)*time.Second + slack))
}

// slack is the whole second that a Date is in, twice.
const slack = 2 * time.Second

func (k *Keeper) path(job string) string {
	path := "/apis/coordination.k8s.io/v1/namespaces/" + url.PathEscape(k.namespace) + "/leases"
	if job != "" {
		path += "/" + url.PathEscape(k.name+"-"+job)
	}
	return path
}

// date is the time by the clock of the API server.
func date(a *rest.Answer) (time.Time, error) {
	now, err := http.ParseTime(a.Header.Get("Date"))
	if err != nil {
		err = fmt.Errorf("Kubernetes: the API server does not say what time it is: %w", err)
	}
	return now, err
}

// get reads the Lease of job, nil where there is none, and the server's clock.
func (k *Keeper) get(ctx context.Context, job string) (*object, time.Time, error) {
	if err := lease.CheckJob(job); err != nil {
		return nil, time.Time{}, err
	}
	a, err := k.client.Do(ctx, http.MethodGet, k.path(job), nil, http.StatusNotFound)
	if err != nil {
		return nil, time.Time{}, err
	}
	now, err := date(a)
	if err != nil || a.Status == http.StatusNotFound {
		return nil, now, err
	}
	var o object
	if err := a.Decode(&o); err != nil {
		return nil, now, fmt.Errorf("Kubernetes: %w", err)
	}
	return &o, now, nil
}

// put stores the Lease of job: in place of the version that was read, or where there was none. The error is errOvertaken where somebody was quicker.
func (k *Keeper) put(ctx context.Context, job string, o *object) (*object, error) {
	method, path := http.MethodPut, k.path(job)
	if o.Metadata.ResourceVersion == "" {
		method, path = http.MethodPost, k.path("")
	}
	a, err := k.client.Do(ctx, method, path, o, http.StatusCreated, http.StatusConflict, http.StatusNotFound)
	if err != nil {
		return nil, err
	}
	if a.Status == http.StatusConflict || a.Status == http.StatusNotFound {
		return nil, errOvertaken
	}
	var stored object
	if err := a.Decode(&stored); err != nil {
		return nil, fmt.Errorf("Kubernetes: %w", err)
	}
	return &stored, nil
}

var errOvertaken = errors.New("Kubernetes: the Lease was changed meanwhile")

// Holder implements lease.Keeper.
func (k *Keeper) Holder(ctx context.Context, job string) (*lease.Holder, error) {
	o, now, err := k.get(ctx, job)
	if err != nil || o == nil || !o.held(now) {
		return nil, err
	}
	return o.holder(job), nil
}

// Acquire implements lease.Keeper.
func (k *Keeper) Acquire(ctx context.Context, job string, h lease.Holder, ttl time.Duration) (lease.Grant, error) {
	h.Job = job
	value, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	for range 5 {
		o, now, err := k.get(ctx, job)
		switch {
		case err != nil:
			return nil, err
		case o == nil:
			o = &object{APIVersion: "coordination.k8s.io/v1", Kind: "Lease"}
			o.Metadata.Name, o.Metadata.Namespace = k.name+"-"+job, k.namespace
		case o.held(now):
			return nil, lease.Held(o.holder(job), h)
		}
		if o.Spec.Transitions == math.MaxInt32 {
			return nil, errors.New("Kubernetes: the Lease has changed hands too often: remove it")
		}
		if o.Metadata.Annotations == nil {
			o.Metadata.Annotations = map[string]string{}
		}
		o.Metadata.Annotations[holderKey] = string(value)
		o.Spec.Holder, o.Spec.Seconds, o.Spec.Transitions = identity(h), int32(math.Ceil(ttl.Seconds())), o.Spec.Transitions+1
		o.Spec.Acquired, o.Spec.Renewed = now.UTC().Format(micro), now.UTC().Format(micro)
		stored, err := k.put(ctx, job, o)
		if errors.Is(err, errOvertaken) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return &grant{keeper: k, job: job, identity: o.Spec.Holder, token: uint64(stored.Spec.Transitions)}, nil
	}
	return nil, errOvertaken
}

type grant struct {
	keeper   *Keeper
	job      string
	identity string
	token    uint64

	mu sync.Mutex // one change at a time: of two the second would be overtaken
}

func (g *grant) Token() uint64 { return g.token }

// mine reads the Lease; a *lease.LostError where it is not ours any more.
func (g *grant) mine(ctx context.Context) (*object, time.Time, error) {
	o, now, err := g.keeper.get(ctx, g.job)
	switch {
	case err != nil:
		return nil, now, err
	case o == nil:
		return nil, now, &lease.LostError{Job: g.job, Why: "the Lease was removed"}
	case o.Spec.Holder != g.identity || uint64(o.Spec.Transitions) != g.token:
		return nil, now, lease.Taken(g.job, o.holder(g.job), "")
	case !o.held(now):
		return nil, now, &lease.LostError{Job: g.job, Why: "it was not renewed in time"}
	}
	return o, now, nil
}

// change replaces the Lease, which has to be ours.
func (g *grant) change(ctx context.Context, how func(o *object, now time.Time)) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for range 3 { // others may change what is none of ours, such as labels
		o, now, err := g.mine(ctx)
		if err != nil {
			return err
		}
		how(o, now)
		if _, err = g.keeper.put(ctx, g.job, o); !errors.Is(err, errOvertaken) {
			return err
		}
	}
	return errOvertaken
}

// Renew implements lease.Grant.
func (g *grant) Renew(ctx context.Context) error {
	return g.change(ctx, func(o *object, now time.Time) { o.Spec.Renewed = now.UTC().Format(micro) })
}

// Check implements lease.Grant.
func (g *grant) Check(ctx context.Context) error {
	_, _, err := g.mine(ctx)
	return err
}

// Release implements lease.Grant.
func (g *grant) Release(ctx context.Context, _ bool) error {
	err := g.change(ctx, func(o *object, _ time.Time) {
		o.Spec.Holder, o.Spec.Renewed, o.Spec.Acquired = "", "", ""
		delete(o.Metadata.Annotations, holderKey)
	})
	if errors.As(err, new(*lease.LostError)) {
		return nil
	}
	return err
}
