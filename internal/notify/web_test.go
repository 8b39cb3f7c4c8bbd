package notify_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/internal/notify"
)

// A request is what a receiver got.
type request struct {
	method, path, query, body string
	head                      http.Header
}

// receiver answers the n-th request with the n-th status, then with 200, and keeps what came.
type receiver struct {
	*httptest.Server
	mu       sync.Mutex
	statuses []int
	got      []request
}

func receive(t *testing.T, statuses ...int) *receiver {
	r := &receiver{statuses: statuses}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			t.Error(err)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.got = append(r.got, request{req.Method, req.URL.Path, req.URL.RawQuery, string(body), req.Header})
		if n := len(r.got); n <= len(r.statuses) {
			w.Header().Set("Location", "http://127.0.0.1:1/elsewhere")
			w.WriteHeader(r.statuses[n-1])
			fmt.Fprintf(w, "cannot POST %s", req.URL)
			return
		}
		fmt.Fprint(w, "ok")
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) requests() []request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.got
}

func TestSlackGetsText(t *testing.T) {
	r := receive(t)
	e := event()
	e.Detail = "a < b & <!channel> ``` c"
	said, err := (&notify.Slack{URL: r.URL + "/services/T0/B0/hush"}).Send(t.Context(), &e)
	if err != nil || said != "200 ok" {
		t.Fatalf("got %q, %v", said, err)
	}
	var got map[string]string
	if err := json.Unmarshal([]byte(r.requests()[0].body), &got); err != nil {
		t.Fatal(err)
	}
	text := got["text"]
	if !strings.Contains(text, "backup-push failed on db1: connect: refused") || !strings.Contains(text, "a &lt; b &amp; &lt;!channel&gt; ''' c") || strings.Count(text, "```") != 2 || len(got) != 1 {
		t.Errorf("got %q", text)
	}
}

// A signed webhook can be checked as standardwebhooks.com says, and each try of one event has the same id.
func TestWebhookIsSigned(t *testing.T) {
	for secret, key := range map[string]string{"hush": "hush", "whsec_" + base64.StdEncoding.EncodeToString([]byte("\x00\x01key")): "\x00\x01key"} {
		r := receive(t, 500, 429)
		clock := at
		w := &notify.Webhook{URL: r.URL + "/in", Secret: secret, Now: func() time.Time { clock = clock.Add(time.Minute); return clock }}
		e := event()
		if a := notify.Deliver(t.Context(), []notify.Sender{w}, e, notify.Options{Pause: time.Millisecond}); a[0].Err != nil {
			t.Fatal(a[0].Err)
		}
		got := r.requests()
		if len(got) != 3 {
			t.Fatalf("%d requests", len(got))
		}
		for i, one := range got {
			id, stamp := one.head.Get("webhook-id"), one.head.Get("webhook-timestamp")
			mac := hmac.New(sha256.New, []byte(key))
			fmt.Fprintf(mac, "%s.%s.%s", id, stamp, one.body)
			if want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)); one.head.Get("webhook-signature") != want {
				t.Errorf("signature %q, want %q", one.head.Get("webhook-signature"), want)
			}
			if want := fmt.Sprint(at.Unix() + int64(i+1)*60); stamp != want || id == "" || id != got[0].head.Get("webhook-id") {
				t.Errorf("try %d at %s with id %q, want at %s with the id of the first", i, stamp, id, want)
			}
			var sent notify.Event
			if err := json.Unmarshal([]byte(one.body), &sent); err != nil || sent != e {
				t.Errorf("body %q (%v), want %+v", one.body, err, e)
			}
		}
		e.At = e.At.Add(time.Hour)
		if _, err := w.Send(t.Context(), &e); err != nil || r.requests()[3].head.Get("webhook-id") == got[0].head.Get("webhook-id") {
			t.Errorf("another event has the same id (%v)", err)
		}
	}
	r := receive(t)
	e := event()
	if _, err := (&notify.Webhook{URL: r.URL}).Send(t.Context(), &e); err != nil || r.requests()[0].head.Get("webhook-signature") != "" {
		t.Errorf("signed with no secret (%v)", err)
	}
}

// What makes no sense is not tried again, no redirection is followed, and no error repeats the address, which is a secret, whatever the receiver answers.
func TestErrorsOfReceivers(t *testing.T) {
	gone := httptest.NewServer(nil)
	gone.Close()
	tls := httptest.NewUnstartedServer(nil)
	tls.Config.ErrorLog = log.New(io.Discard, "", 0)
	tls.StartTLS()
	defer tls.Close()
	for _, c := range []struct {
		url   string
		final bool
		want  string
	}{
		{receive(t, 404, 404).URL, true, "answered 404"},
		{receive(t, 302, 302).URL, true, "answered 302"},
		{receive(t, 307, 307).URL, true, "answered 307"},
		{receive(t, 503, 503).URL, false, "answered 503"},
		{receive(t, 429, 429).URL, false, "answered 429"},
		{gone.URL, false, "refused"},
		{tls.URL, false, "certificate"},
		{"http://host name", true, "not a URL"},
	} {
		e := event()
		for _, s := range []notify.Sender{&notify.Slack{URL: c.url + "/services/T123/hush?token=quiet"}, &notify.Webhook{URL: c.url + "/services/T123/hush?token=quiet", Secret: "mute"}} {
			said, err := s.Send(t.Context(), &e)
			final := (*notify.FinalError)(nil)
			if err == nil {
				t.Errorf("%s: no error from %s", c.url, s.Name())
				continue
			}
			if !strings.Contains(err.Error(), c.want) || errors.As(err, &final) != c.final {
				t.Errorf("%s: got %v, final: %v, want %q, %v", c.url, err, !c.final, c.want, c.final)
			}
			for _, secret := range []string{"hush", "quiet", "mute", "T123"} {
				if strings.Contains(err.Error()+said, secret) {
					t.Errorf("%s: a secret shows: %v", c.url, err)
				}
			}
		}
	}
}

// A dead man's switch hears of start, success and failure by their own addresses, with the report.
func TestPingHealthchecks(t *testing.T) {
	r := receive(t)
	p := &notify.Ping{URL: r.URL + "/uuid?create=1"}
	for _, err := range []error{p.Start(t.Context()), p.Fail(t.Context(), "it broke"), p.Start(t.Context()), p.Done(t.Context(), "all well"+strings.Repeat("x", 20000))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	got := r.requests()
	if len(got) != 4 {
		t.Fatalf("%d requests", len(got))
	}
	for i, want := range []struct{ path, body string }{{"/uuid/start", ""}, {"/uuid/fail", "it broke"}, {"/uuid/start", ""}, {"/uuid", "all well"}} {
		if g := got[i]; g.path != want.path || !strings.HasPrefix(g.body, want.body) || len(g.body) > 10000 || !strings.Contains(g.query, "create=1") || !strings.Contains(g.query, "rid=") {
			t.Errorf("request %d: %s?%s %.20q, want %+v", i, g.path, g.query, g.body, want)
		}
	}
	if got[0].query != got[1].query || got[1].query == got[2].query {
		t.Errorf("runs have the ids %s, %s, %s", got[0].query, got[1].query, got[2].query)
	}
}

// A snitch hears of success only.
func TestPingSnitch(t *testing.T) {
	r := receive(t, 502)
	p := &notify.Ping{URL: r.URL + "/token", Style: notify.Snitch, Options: notify.Options{Pause: time.Millisecond}}
	for _, err := range []error{p.Start(t.Context()), p.Fail(t.Context(), "it broke"), p.Done(t.Context(), "all\nwell")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if got := r.requests(); len(got) != 2 || got[1].path != "/token" || got[1].body != "m=all+well" {
		t.Errorf("got %+v, want one message after one that failed", got)
	}
}
