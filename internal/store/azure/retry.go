package azure

import (
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"

	"holdfast/internal/store/patience"
)

// retrier makes a request again whose failure may pass.
type retrier struct{ store *Store }

// Do implements policy.Policy.
func (r *retrier) Do(req *policy.Request) (*http.Response, error) {
	raw := req.Raw()
	if version := r.store.o.APIVersion; version != "" {
		raw.Header["x-ms-version"] = []string{version} // where the SDK puts its own; it has no way to ask for another
	}
	for tries := (patience.Tries{}); ; {
		if err := req.RewindBody(); err != nil {
			return nil, err
		}
		resp, err := req.Clone(raw.Context()).Next()
		failure := err
		if err == nil && resp.StatusCode >= 400 {
			failure = runtime.NewResponseError(resp)
		}
		if failure == nil || r.store.retry.Again(raw.Context(), &tries, raw.Method+" "+raw.URL.Path, failure) != nil {
			return resp, err
		}
		if resp != nil {
			resp.Body.Close() // read already
		}
	}
}

// mayPass reports whether doing it again may help against err.
func (s *Store) mayPass(err error) bool {
	answer := (*azcore.ResponseError)(nil)
	if !errors.As(err, &answer) {
		stays, _ := s.unreached(err)
		return !stays && !noCredential(err)
	}
	kind, _ := s.judge(answer)
	return kind == nil && answer.ErrorCode != string(bloberror.InvalidBlockList)
}

// asked returns how long the service wants us to wait.
func asked(err error) time.Duration {
	answer := (*azcore.ResponseError)(nil)
	if !errors.As(err, &answer) || answer.RawResponse == nil {
		return 0
	}
	seconds, err := strconv.Atoi(answer.RawResponse.Header.Get("Retry-After"))
	if err != nil || seconds < 0 || seconds > 1<<20 {
		return 0
	}
	return time.Duration(seconds) * time.Second
}

// reason is an error in one line.
func reason(err error) string {
	if answer := (*azcore.ResponseError)(nil); errors.As(err, &answer) {
		return describe(answer)
	}
	return err.Error()
}
