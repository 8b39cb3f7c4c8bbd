package azure

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"

	"holdfast/internal/store/stall"
)

// transport makes requests over connections that are broken off when they stall.
type transport struct{ client *http.Client }

func newTransport(o *Options, roots *x509.CertPool) *transport {
	base := &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: &tls.Config{RootCAs: roots}}
	return &transport{&http.Client{
		Transport: stall.Pair(base, o.StallTimeout, 2*o.StallTimeout, o.Wrap),
		// The service redirects nobody, and whoever does must not get what we send.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Do implements policy.Transporter. Its errors hold no URL, which may have a shared access signature in it.
func (t *transport) Do(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		body, again := &requestBody{body: req.Body}, req.GetBody
		defer body.stop()
		req = req.WithContext(req.Context()) // a copy
		req.Body = body
		req.GetBody = func() (io.ReadCloser, error) { // for a connection that turned out to be closed; nobody reads any more what went there
			_, err := again()
			return body, err
		}
	}
	resp, err := t.client.Do(req)
	if err != nil {
		if bare := (*url.Error)(nil); errors.As(err, &bare) {
			err = bare.Err
		}
		return nil, &networkError{req.Method + " " + req.URL.Host, err}
	}
	return resp, nil
}

// requestBody is a body that nobody reads any more once there is an answer. An HTTP client may go on reading the body of a request that
// was answered early, while the next try reads it anew.
type requestBody struct {
	mu      sync.Mutex // held while the body is read
	body    io.ReadCloser
	stopped bool
}

func (b *requestBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stopped {
		return 0, errors.New("the request is over")
	}
	return b.body.Read(p)
}

func (b *requestBody) Close() error { return nil } // who made it closes it

func (b *requestBody) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stopped = true
}

// networkError is the failure of a request that got no answer.
type networkError struct {
	what string // method and host
	err  error
}

func (e *networkError) Error() string { return e.what + ": " + e.err.Error() }

// Unwrap hides what reads as the caller's own deadline and is ours: those of the dialer and of one try.
func (e *networkError) Unwrap() error {
	if errors.Is(e.err, context.DeadlineExceeded) {
		return nil
	}
	return e.err
}

// Timeout makes it a net.Error, together with Temporary.
func (e *networkError) Timeout() bool {
	var timeout net.Error
	return errors.As(e.err, &timeout) && timeout.Timeout()
}

// Temporary is what net.Error asks for.
func (e *networkError) Temporary() bool { return true }
