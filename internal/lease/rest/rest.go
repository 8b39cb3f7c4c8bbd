// Package rest speaks JSON with a service over HTTP, of several addresses with the first that answers.
package rest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// Client is a service. It may be used by several goroutines; set its fields before.
type Client struct {
	Service   string   // what it is called in errors
	Addresses []string // URLs without a path behind the host
	HTTP      *http.Client
	Header    func() (http.Header, error) // sent with each request; nil is none
}

// Bounds of one attempt at one address: its time, and what is read of the answer in bytes.
const (
	attempt = 5 * time.Second
	maxBody = 1 << 20
)

// Answer is what a service answered.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// Decode reads the body as JSON.
func (a *Answer) Decode(into any) error {
	if err := json.Unmarshal(a.Body, into); err != nil {
		return fmt.Errorf("its answer is not understood: %w", err)
	}
	return nil
}

// Error says that a service answered with a status that it did not expect its caller to be content with.
type Error struct {
	Service string
	Doing   string
	Status  int
	Text    string
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s: %s: status %d %s: %s", e.Service, e.Doing, e.Status, http.StatusText(e.Status), e.Text)
}

// Do sends body, as JSON unless it is a []byte or nil, and returns the answer. Where an address cannot be reached, or its server is out of order (5xx), the next one is
// asked: so what was asked for may have been done although an earlier address gave no answer. want are the statuses that are no *Error.
func (c *Client) Do(ctx context.Context, method, path string, body any, want ...int) (*Answer, error) {
	raw, ok := body.([]byte)
	if !ok && body != nil {
		var err error
		if raw, err = json.Marshal(body); err != nil {
			return nil, err
		}
	}
	doing := method + " " + strings.SplitN(path, "?", 2)[0]
	var errs []error
	for _, address := range c.Addresses {
		a, err := c.once(ctx, method, address+path, raw)
		if err == nil && a.Status < 500 {
			for _, s := range append(want, http.StatusOK) {
				if a.Status == s {
					return a, nil
				}
			}
		}
		if err == nil {
			err = &Error{c.Service, doing, a.Status, text(a.Body)}
			if a.Status < 500 {
				return nil, err
			}
		} else if ctx.Err() == nil {
			err = fmt.Errorf("%s: %w", c.Service, err)
		}
		if errs = append(errs, err); ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

func (c *Client) once(ctx context.Context, method, url string, body []byte) (*Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if c.Header != nil {
		h, err := c.Header()
		if err != nil {
			return nil, err
		}
		for name, values := range h {
			req.Header[name] = values
		}
	}
	if len(body) > 0 {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.HTTP.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close() // only read
	b, err := io.ReadAll(io.LimitReader(res.Body, maxBody+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s %s: read the answer: %w", method, req.URL.Redacted(), err)
	case len(b) > maxBody:
		return nil, fmt.Errorf("%s %s: the answer is longer than %d bytes", method, req.URL.Redacted(), maxBody)
	}
	return &Answer{res.StatusCode, res.Header, b}, nil
}

// text is what a service says of an error, in a line that is not too long.
func text(b []byte) string {
	var said struct{ Message, Error string }
	words := string(b)
	if json.Unmarshal(b, &said) == nil && said.Message+said.Error != "" {
		words = said.Message
		if words == "" {
			words = said.Error
		}
	}
	return fmt.Sprintf("%.300q", strings.TrimSpace(words))
}
