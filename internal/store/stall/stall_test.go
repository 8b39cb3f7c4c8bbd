package stall_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/store/stall"
)

// timeout is short enough to wait for and long enough for a machine that is busy.
const timeout = 500 * time.Millisecond

func get(t *testing.T, tr *stall.Transport, url string, patient bool, body io.Reader) (string, error) {
	t.Helper()
	ctx := t.Context()
	if patient {
		ctx = stall.Patient(ctx)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: tr}).Do(r)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

func wantStalled(t *testing.T, what string, err error) {
	t.Helper()
	var stalled *stall.Error
	var network net.Error
	if !errors.As(err, &stalled) || stalled.After != timeout || !errors.As(err, &network) || !network.Timeout() {
		t.Errorf("%s: %v; want an error that says that the connection stalled", what, err)
	}
}

func TestSilenceBreaksAConnection(t *testing.T) {
	over := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/body" {
			w.Header().Set("Content-Length", "10")
			io.WriteString(w, "half")
			w.(http.Flusher).Flush()
		}
		<-over
	}))
	defer server.Close()
	defer close(over)
	tr := stall.NewTransport(timeout, nil)
	_, err := get(t, tr, server.URL, false, nil)
	wantStalled(t, "no answer", err)
	got, err := get(t, tr, server.URL+"/body", false, nil)
	wantStalled(t, "half a body", err)
	if got != "half" {
		t.Errorf("of a body that stalled %q came", got)
	}
	_, err = get(t, tr, server.URL, false, bytes.NewReader(make([]byte, 64<<20))) // which nobody reads
	wantStalled(t, "a body that is not taken", err)
	tr.CloseIdleConnections()
}

// The dialer's own deadline is not taken for the caller's, which is no reason to try again.
func TestAConnectionThatIsNotMadeInTimeTimesOut(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	_, err := get(t, stall.NewTransport(time.Nanosecond, nil), server.URL, false, nil) // over before it is made
	var network net.Error
	if errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &network) || !network.Timeout() || !strings.Contains(err.Error(), server.Listener.Addr().String()) {
		t.Errorf("%v; want a timeout that names the address", err)
	}
}

func TestSlowIsNotStalled(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for range 10 { // altogether twice the time that a stall may last
			time.Sleep(timeout / 5)
			io.WriteString(w, "x")
			w.(http.Flusher).Flush()
		}
	}))
	defer server.Close()
	if got, err := get(t, stall.NewTransport(timeout, nil), server.URL, false, nil); err != nil || len(got) != 10 {
		t.Errorf("a slow body: %q, %v", got, err)
	}
}

func TestPatientRequestsWaitLonger(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(2 * timeout)
		io.WriteString(w, "done")
	}))
	defer server.Close()
	if got, err := get(t, stall.NewTransport(timeout, nil), server.URL, true, nil); err != nil || got != "done" {
		t.Errorf("a patient request: %q, %v", got, err)
	}
}

type tap struct {
	net.Conn
	read *atomic.Int64
}

func (c *tap) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.read.Add(int64(n))
	return n, err
}

func TestEveryByteGoesThroughWrap(t *testing.T) {
	var read atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write(make([]byte, 100_000)) }))
	defer server.Close()
	tr := stall.NewTransport(timeout, func(c net.Conn) net.Conn { return &tap{c, &read} })
	if _, err := get(t, tr, server.URL, false, nil); err != nil || read.Load() < 100_000 {
		t.Errorf("%d bytes went through, %v", read.Load(), err)
	}
}
