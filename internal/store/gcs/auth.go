package gcs

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"cloud.google.com/go/auth"
	"cloud.google.com/go/auth/credentials"
)

// scope is what tokens are good for: objects, not the settings of buckets.
const scope = "https://www.googleapis.com/auth/devstorage.read_write"

// client returns the client for requests to the service.
func (s *Store) client() (*http.Client, error) {
	// Nothing of the service redirects, and credentials do not follow to where somebody else sends them.
	stay := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	if s.anonymous {
		return &http.Client{Transport: s.transport, CheckRedirect: stay}, nil
	}
	creds, err := credentials.DetectDefault(&credentials.DetectOptions{
		Scopes:          []string{scope},
		CredentialsFile: s.o.CredentialsFile,
		Client:          &http.Client{Transport: s.transport},
	})
	if err != nil {
		return nil, &noCredentialsError{err}
	}
	return &http.Client{Transport: &authorized{s.transport, creds}, CheckRedirect: stay}, nil
}

// authorized sends requests with a token.
type authorized struct {
	base  http.RoundTripper
	creds *auth.Credentials
}

func (a *authorized) RoundTrip(r *http.Request) (*http.Response, error) {
	token, err := a.creds.Token(r.Context())
	if err != nil {
		if r.Body != nil {
			r.Body.Close() // RoundTrip has to; nothing was read
		}
		return nil, &tokenError{err}
	}
	r = r.Clone(r.Context())
	kind := token.Type
	if kind == "" {
		kind = "Bearer"
	}
	r.Header.Set("Authorization", kind+" "+token.Value)
	return a.base.RoundTrip(r)
}

// noCredentialsError says that there are no credentials, or none that can be read. It does not unwrap: that a file of credentials is
// missing says nothing about an object.
type noCredentialsError struct{ err error }

func (e *noCredentialsError) Error() string { return fmt.Sprintf("find credentials: %v", e.err) }

// tokenError says that the credentials brought no token. Of what is beneath it only types can be asked for, and whether the caller is gone.
type tokenError struct{ err error }

func (e *tokenError) Error() string { return fmt.Sprintf("get a token: %v", e.err) }

func (e *tokenError) As(target any) bool { return errors.As(e.err, target) }

func (e *tokenError) Is(target error) bool {
	return (target == context.Canceled || target == context.DeadlineExceeded) && errors.Is(e.err, target)
}
