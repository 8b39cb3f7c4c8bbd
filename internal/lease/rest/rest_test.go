package rest_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"holdfast/internal/lease/rest"
)

func serve(t *testing.T, status int, body string) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body)) // who reads may leave
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func client(addresses ...string) *rest.Client {
	return &rest.Client{Service: "etcd", Addresses: addresses, HTTP: &http.Client{}}
}

func TestTheFirstThatAnswersIsAsked(t *testing.T) {
	gone, ill, well := "http://127.0.0.1:1", serve(t, http.StatusServiceUnavailable, "no leader"), serve(t, http.StatusOK, `{"a":1}`)
	a, err := client(gone, ill, well).Do(t.Context(), http.MethodGet, "/x", nil)
	var got struct{ A int }
	if err != nil || a.Decode(&got) != nil || got.A != 1 {
		t.Errorf("%+v, %v", a, err)
	}
	_, err = client(gone, ill).Do(t.Context(), http.MethodGet, "/x?secret", nil)
	var said *rest.Error
	if !errors.As(err, &said) || said.Status != http.StatusServiceUnavailable || !strings.Contains(err.Error(), "no leader") || !strings.Contains(err.Error(), "refused") {
		t.Errorf("none is well: %v", err)
	}
}

// What a service refuses the next address would refuse, too.
func TestARefusalIsFinal(t *testing.T) {
	refuses, well := serve(t, http.StatusForbidden, `{"message":"forbidden\nto you"}`), serve(t, http.StatusOK, `{}`)
	_, err := client(refuses, well).Do(t.Context(), http.MethodGet, "/x", nil)
	var said *rest.Error
	if !errors.As(err, &said) || said.Status != http.StatusForbidden || strings.Contains(err.Error(), "\n") {
		t.Errorf("%v", err)
	}
	if a, err := client(refuses).Do(t.Context(), http.MethodGet, "/x", nil, http.StatusForbidden); err != nil || a.Status != http.StatusForbidden {
		t.Errorf("expected: %v, %v", a, err)
	}
}

func TestAnAnswerHasABound(t *testing.T) {
	if _, err := client(serve(t, http.StatusOK, strings.Repeat("x", 2<<20))).Do(t.Context(), http.MethodGet, "/x", nil); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("%v", err)
	}
}
