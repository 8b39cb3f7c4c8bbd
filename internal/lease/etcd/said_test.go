package etcd_test

import (
	"bytes"
	"io"
	"net/http"
)

// said answers requests with what there is for their path.
type said map[string][]byte

func (s said) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(bytes.NewReader(s[r.URL.Path])), Request: r}, nil
}
