package kube_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/internal/lease"
	"holdfast/internal/lease/kube"
	"holdfast/internal/lease/leasetest"
)

// apiServer is a Kubernetes as far as Leases go: an object is created where there is none, and replaced in the version that was read.
type apiServer struct {
	mu      sync.Mutex
	now     time.Time
	version int
	leases  map[string]map[string]any
}

const collection = "/apis/coordination.k8s.io/v1/namespaces/postgres/leases"

func (s *apiServer) pass(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = s.now.Add(d)
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w.Header().Set("Date", s.now.UTC().Format(http.TimeFormat))
	answer := func(status int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(v)
	}
	refuse := func(status int, words string) {
		answer(status, map[string]any{"kind": "Status", "status": "Failure", "message": words, "code": status})
	}
	if r.Header.Get("Authorization") != "Bearer hush" {
		refuse(http.StatusForbidden, "leases.coordination.k8s.io is forbidden")
		return
	}
	name := strings.TrimPrefix(r.URL.Path, collection+"/")
	var in map[string]any
	if r.Method != http.MethodGet {
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			refuse(http.StatusBadRequest, err.Error())
			return
		}
		spec := in["spec"].(map[string]any)
		for _, at := range []string{"acquireTime", "renewTime"} {
			if text, ok := spec[at].(string); ok {
				if _, err := time.Parse("2006-01-02T15:04:05.000000Z07:00", text); err != nil {
					refuse(http.StatusBadRequest, err.Error())
					return
				}
			}
		}
		if n, ok := spec["leaseDurationSeconds"].(float64); ok && n <= 0 {
			refuse(http.StatusUnprocessableEntity, "must be greater than 0")
			return
		}
	}
	meta := func(o map[string]any) map[string]any { return o["metadata"].(map[string]any) }
	store := func(name string, o map[string]any) {
		s.version++
		meta(o)["resourceVersion"] = fmt.Sprint(s.version)
		s.leases[name] = o
	}
	switch there := s.leases[name]; {
	case r.Method == http.MethodPost && r.URL.Path == collection:
		name, _ := meta(in)["name"].(string)
		switch {
		case s.leases[name] != nil:
			refuse(http.StatusConflict, name+" already exists")
		case meta(in)["resourceVersion"] != nil:
			refuse(http.StatusBadRequest, "resourceVersion should not be set on objects to be created")
		default:
			store(name, in)
			answer(http.StatusCreated, in)
		}
	case there == nil:
		refuse(http.StatusNotFound, name+" not found")
	case r.Method == http.MethodGet:
		answer(http.StatusOK, there)
	case r.Method == http.MethodPut && meta(in)["resourceVersion"] != meta(there)["resourceVersion"]:
		refuse(http.StatusConflict, "the object has been modified; please apply your changes to the latest version and try again")
	case r.Method == http.MethodPut:
		store(name, in)
		answer(http.StatusOK, in)
	default:
		refuse(http.StatusMethodNotAllowed, r.Method)
	}
}

func serve(t *testing.T) (*apiServer, string) {
	s := &apiServer{now: time.Date(2026, 11, 21, 3, 0, 0, 0, time.UTC), leases: map[string]map[string]any{}}
	at := httptest.NewServer(s)
	t.Cleanup(at.Close)
	return s, at.URL
}

func token(words string) kube.Options {
	return kube.Options{Token: func() (string, error) { return words, nil }}
}

func TestKubernetesKeepsLeases(t *testing.T) {
	leasetest.Test(t, func(t *testing.T) leasetest.Service {
		s, at := serve(t)
		return leasetest.Service{TTL: 30 * time.Second, Late: 3 * time.Second, Pass: s.pass, Open: func(*testing.T) lease.Keeper {
			return kube.New(at, "postgres", "orders", token("hush"))
		}}
	})
}

func TestKubernetesThatRefusesIsAnError(t *testing.T) {
	_, at := serve(t)
	leasetest.Refused(t, kube.New(at, "postgres", "orders", token("wrong-one")), "wrong-one", "is forbidden")
}

// A Lease of another program's, such as one that an operator has made by hand, is respected while it is held, and taken when it is not.
func TestALeaseOfAnotherProgramIsRespected(t *testing.T) {
	s, at := serve(t)
	s.leases["orders-verify"] = map[string]any{
		"metadata": map[string]any{"name": "orders-verify", "resourceVersion": "1", "labels": map[string]any{"a": "b"}},
		"spec":     map[string]any{"holderIdentity": "someone", "leaseDurationSeconds": 60, "renewTime": "2026-11-21T03:00:00.000000Z"},
	}
	k := kube.New(at, "postgres", "orders", token("hush"))
	if _, err := k.Acquire(t.Context(), "verify", lease.Holder{Host: "db1"}, time.Minute); err == nil || !strings.Contains(err.Error(), "Another host (someone)") {
		t.Errorf("%v", err)
	}
	s.pass(63 * time.Second)
	if _, err := k.Acquire(t.Context(), "verify", lease.Holder{Host: "db1"}, time.Minute); err != nil {
		t.Error(err)
	}
	if labels := s.leases["orders-verify"]["metadata"].(map[string]any)["labels"]; fmt.Sprint(labels) != "map[a:b]" {
		t.Errorf("its labels are %v", labels)
	}
}

// A service that answers nonsense is an error, or a lease that somebody holds.
func FuzzAnswers(f *testing.F) {
	f.Add([]byte(`{"metadata":{"resourceVersion":"1"},"spec":{"holderIdentity":"x","leaseDurationSeconds":60,"renewTime":"2026-11-21T03:00:00.000000Z"}}`))
	f.Add([]byte(`{"metadata":{"annotations":{"holdfast/holder":"[]"}},"spec":{"leaseTransitions":2147483647}}`))
	f.Add([]byte(`{"spec":{"leaseTransitions":-5,"leaseDurationSeconds":-1,"renewTime":"never"}}`))
	f.Fuzz(func(t *testing.T, answer []byte) {
		says := leasetest.Says(func(*http.Request) []byte { return answer })
		leasetest.Nonsense(t, kube.New("http://kube", "postgres", "orders", kube.Options{HTTP: says.Client()}))
	})
}
