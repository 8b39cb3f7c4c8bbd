package consul_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/internal/lease"
	"holdfast/internal/lease/consul"
	"holdfast/internal/lease/leasetest"
)

// agent is a Consul as far as sessions and locks go: a key is acquired by one living session at a time, and a session ends after its TTL.
type agent struct {
	mu       sync.Mutex
	now      time.Duration
	index    uint64
	token    string
	sessions map[string]*session
	keys     map[string]*key
}

type session struct {
	ttl   time.Duration
	until time.Duration
}

type key struct {
	Key         string
	Value       []byte
	Session     string `json:",omitempty"`
	LockIndex   uint64
	CreateIndex uint64
	ModifyIndex uint64
}

func (a *agent) pass(d time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.now += d
	for id, s := range a.sessions {
		if a.now > s.until {
			a.end(id)
		}
	}
}

func (a *agent) end(id string) {
	delete(a.sessions, id)
	for _, k := range a.keys {
		if k.Session == id {
			a.index++
			k.Session, k.ModifyIndex = "", a.index
		}
	}
}

func (a *agent) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	say := func(v any) { _ = json.NewEncoder(w).Encode(v) }
	if r.Header.Get("X-Consul-Token") != a.token {
		http.Error(w, "Permission denied", http.StatusForbidden)
		return
	}
	call, id := r.Method+" "+r.URL.Path, r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	switch {
	case call == "PUT /v1/session/create":
		var in struct{ TTL, Behavior string }
		ttl := time.Duration(0)
		err := json.Unmarshal(body, &in)
		if err == nil {
			ttl, err = time.ParseDuration(in.TTL)
		}
		if err != nil || ttl < 10*time.Second || ttl > 24*time.Hour || in.Behavior != "release" {
			http.Error(w, "Request decode failed: Invalid Session TTL", http.StatusBadRequest)
			return
		}
		a.index++
		id := fmt.Sprintf("adf4238a-%d", a.index)
		a.sessions[id] = &session{ttl, a.now + ttl}
		say(map[string]string{"ID": id})
	case strings.HasPrefix(call, "PUT /v1/session/renew/"):
		s := a.sessions[id]
		if s == nil {
			http.Error(w, "Session id '"+id+"' not found", http.StatusNotFound)
			return
		}
		s.until = a.now + s.ttl
		say([]any{map[string]string{"ID": id}})
	case strings.HasPrefix(call, "PUT /v1/session/destroy/"):
		a.end(id)
		say(true)
	case strings.HasPrefix(call, "GET /v1/kv/"):
		k := a.keys[strings.TrimPrefix(r.URL.Path, "/v1/kv/")]
		if k == nil {
			http.Error(w, "", http.StatusNotFound)
			return
		}
		say([]any{k})
	case strings.HasPrefix(call, "PUT /v1/kv/") && r.URL.Query().Has("acquire"):
		id, name := r.URL.Query().Get("acquire"), strings.TrimPrefix(r.URL.Path, "/v1/kv/")
		k := a.keys[name]
		switch {
		case a.sessions[id] == nil:
			http.Error(w, "invalid session", http.StatusInternalServerError)
		case k != nil && k.Session != "" && k.Session != id:
			say(false)
		default:
			a.index++
			if k == nil {
				k = &key{Key: name, CreateIndex: a.index}
				a.keys[name] = k
			}
			if k.Session != id {
				k.LockIndex++
			}
			k.Session, k.Value, k.ModifyIndex = id, body, a.index
			say(true)
		}
	default:
		http.Error(w, call, http.StatusMethodNotAllowed)
	}
}

func serve(t *testing.T, token string) (*agent, string) {
	a := &agent{token: token, sessions: map[string]*session{}, keys: map[string]*key{}}
	s := httptest.NewServer(a)
	t.Cleanup(s.Close)
	return a, s.URL
}

func TestConsulKeepsLeases(t *testing.T) {
	leasetest.Test(t, func(t *testing.T) leasetest.Service {
		a, at := serve(t, "hush")
		return leasetest.Service{TTL: 10 * time.Second, Late: time.Second, Pass: a.pass, Open: func(*testing.T) lease.Keeper {
			return consul.New([]string{"http://127.0.0.1:1", at}, "holdfast/a b/", consul.Options{Token: "hush"})
		}}
	})
}

func TestConsulThatRefusesIsAnError(t *testing.T) {
	_, at := serve(t, "hush")
	leasetest.Refused(t, consul.New([]string{at}, "holdfast/", consul.Options{Token: "wrong-one"}), "wrong-one", "Permission denied")
}

// A service that answers nonsense is an error, not a lease.
func FuzzAnswers(f *testing.F) {
	f.Add([]byte(`{"ID":"a"}`), []byte(`[{"Session":"a","Value":"e30=","ModifyIndex":7}]`))
	f.Add([]byte(`{"ID":"a"}`), []byte(`[{"Session":"b","Value":"bnVsbA=="}]`))
	f.Add([]byte(`{}`), []byte(`[]`))
	f.Fuzz(func(t *testing.T, made, key []byte) {
		says := leasetest.Says(func(r *http.Request) []byte {
			switch {
			case r.URL.Path == "/v1/session/create":
				return made
			case r.Method == http.MethodGet:
				return key
			}
			return []byte("true")
		})
		leasetest.Nonsense(t, consul.New([]string{"http://consul"}, "x/", consul.Options{HTTP: says.Client()}))
	})
}
