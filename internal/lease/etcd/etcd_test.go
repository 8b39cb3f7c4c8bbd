package etcd_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"holdfast/internal/lease"
	"holdfast/internal/lease/etcd"
	"holdfast/internal/lease/leasetest"
	"holdfast/test/etcdtest"
)

func TestEtcdKeepsLeases(t *testing.T) {
	at := etcdtest.Serve(t)
	n := 0
	leasetest.Test(t, func(t *testing.T) leasetest.Service {
		n++
		prefix := fmt.Sprintf("holdfast/%d/", n)
		return leasetest.Service{TTL: 3 * time.Second, Late: 3 * time.Second, Open: func(*testing.T) lease.Keeper {
			// The first member is gone.
			return etcd.New([]string{"http://127.0.0.1:1", at}, prefix, etcd.Options{})
		}}
	})
}

func TestEtcdWithUsers(t *testing.T) {
	at := etcdtest.Serve(t)
	post := func(path, body string) {
		t.Helper()
		res, err := http.Post(at+path, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s", path, res.Status)
		}
	}
	post("/v3/auth/user/add", `{"name":"root","password":"secret"}`)
	post("/v3/auth/role/add", `{"name":"root"}`)
	post("/v3/auth/user/grant", `{"user":"root","role":"root"}`)
	post("/v3/auth/enable", `{}`)
	who := lease.Holder{Host: "db1"}
	if _, err := etcd.New([]string{at}, "x/", etcd.Options{}).Acquire(t.Context(), "verify", who, time.Minute); err == nil {
		t.Error("without a user it is given")
	}
	leasetest.Refused(t, etcd.New([]string{at}, "x/", etcd.Options{User: "root", Password: "wrong-one"}), "wrong-one", "")
	g, err := etcd.New([]string{at}, "x/", etcd.Options{User: "root", Password: "secret"}).Acquire(t.Context(), "verify", who, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Renew(t.Context()); err != nil {
		t.Error(err)
	}
	if err := g.Release(t.Context(), true); err != nil {
		t.Error(err)
	}
}

// A service that answers nonsense is an error, not a lease.
func FuzzAnswers(f *testing.F) {
	f.Add([]byte(`{"ID":"7","TTL":"60"}`), []byte(`{"responses":[{},{"response_range":{"kvs":[{"value":"e30=","create_revision":"3","lease":"7"}]}}]}`))
	f.Add([]byte(`{}`), []byte(`{"responses":[{"response_range":{"kvs":[{"value":"bnVsbA==","lease":"8"}]}}]}`))
	f.Add([]byte(`[]`), []byte(`{"responses":null}`))
	f.Fuzz(func(t *testing.T, granted, transaction []byte) {
		answers := map[string][]byte{"/v3/lease/grant": granted, "/v3/kv/txn": transaction, "/v3/lease/revoke": []byte(`{}`)}
		says := leasetest.Says(func(r *http.Request) []byte { return answers[r.URL.Path] })
		leasetest.Nonsense(t, etcd.New([]string{"http://etcd"}, "x/", etcd.Options{HTTP: says.Client()}))
	})
}
