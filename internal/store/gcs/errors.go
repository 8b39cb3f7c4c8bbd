package gcs

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"cloud.google.com/go/auth"
	"google.golang.org/api/googleapi"

	"holdfast/internal/store"
	"holdfast/internal/store/stall"
)

var (
	errNoBucket = errors.New("there is no such bucket")
	errTimeout  = errors.New("a call took too long")
	errDamaged  = errors.New("the bytes do not match their checksum")
	errLost     = errors.New("the service has lost this upload")
)

// spentError is the failure of a put whose source has been read: trying again is for whoever can begin it anew.
type spentError struct{ err error }

func (e *spentError) Error() string { return e.err.Error() }
func (e *spentError) Unwrap() error { return e.err }

// checkNew reports whether op can make an object of that name.
func checkNew(op, name string) error {
	if leftover(name) {
		return fmt.Errorf("%s %s: such names belong to unfinished puts of WAL-G: %w", op, name, fs.ErrInvalid)
	}
	return store.Check(op, name)
}

// fail says what became of op on the object name.
func (s *Store) fail(op, name string, err error) error {
	return store.Explain(op, name, err, reason, s.judge)
}

// code returns the HTTP status with which the service answered, 0 where it did not.
func code(err error) int {
	if api := (*googleapi.Error)(nil); errors.As(err, &api) {
		return api.Code
	}
	return 0
}

// reason is an error of the client in a few words.
func reason(err error) string {
	var api *googleapi.Error
	var token *auth.Error
	var network *url.Error
	switch {
	case errors.As(err, &token):
		why, status := tokenRefusal(token)
		return fmt.Sprintf("get a token: %s (status %d)", why, status)
	case errors.As(err, &api):
		text, _ := answer(api)
		return fmt.Sprintf("%s (status %d)", text, api.Code)
	case errors.As(err, &network):
		address, _, _ := strings.Cut(network.URL, "?") // an upload's holds a key to it
		return fmt.Sprintf("%s %q: %v", network.Op, address, network.Err)
	}
	return err.Error()
}

// answer returns what the service says in a refusal, and its reasons. The client reads them only where a content was not asked for.
func answer(err *googleapi.Error) (message string, reasons []string) {
	var body struct {
		Error struct {
			Message string                `json:"message"`
			Errors  []googleapi.ErrorItem `json:"errors"`
		} `json:"error"`
	}
	message, items := err.Message, err.Errors
	if message == "" && json.Unmarshal([]byte(err.Body), &body) == nil {
		message, items = body.Error.Message, body.Error.Errors
	}
	if message == "" && len(err.Body) < 200 {
		message = strings.TrimSpace(err.Body)
	}
	for _, item := range items {
		reasons = append(reasons, strings.ToLower(item.Reason))
	}
	return cmp.Or(message, http.StatusText(err.Code)), reasons
}

// tokenRefusal returns why there is no token, as RFC 6749 has it, and the HTTP status.
func tokenRefusal(err *auth.Error) (why string, status int) {
	var body struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}
	if err.Response != nil {
		status = err.Response.StatusCode
	}
	if json.Unmarshal(err.Body, &body) != nil || body.Error == "" {
		return http.StatusText(status), status
	}
	if body.Description != "" {
		return body.Error + ": " + body.Description, status
	}
	return body.Error, status
}

// mayPass reports whether doing it again may help against err.
func (s *Store) mayPass(err error) bool {
	spent := (*spentError)(nil)
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, fs.ErrExist) || errors.As(err, &spent) {
		return false
	}
	kind, _ := s.judge(err)
	return kind == nil
}

// judge returns what callers may decide on, and what the operator should look at.
func (s *Store) judge(err error) (kind error, hint string) {
	var api *googleapi.Error
	var refused *auth.Error
	var token *tokenError
	var none *noCredentialsError
	var network net.Error
	switch {
	case errors.Is(err, errNoBucket):
		return fs.ErrInvalid, fmt.Sprintf("there is no bucket %s: see WALG_GS_PREFIX, or create it", s.o.Bucket)
	case errors.As(err, &none):
		if s.o.CredentialsFile != "" {
			return fs.ErrPermission, "see GOOGLE_APPLICATION_CREDENTIALS, which is " + s.o.CredentialsFile
		}
		return fs.ErrPermission, "set GOOGLE_APPLICATION_CREDENTIALS to the file of a service account's key, or give this machine an account"
	case errors.As(err, &refused):
		return judgeToken(refused)
	case errors.As(err, &token) && !errors.As(token.err, &network):
		return fs.ErrPermission, "see GOOGLE_APPLICATION_CREDENTIALS, or the account of this machine"
	case errors.As(err, &api):
		return s.judgeAnswer(api)
	}
	return s.unreached(err)
}

// judgeToken judges a refusal of a token.
func judgeToken(err *auth.Error) (kind error, hint string) {
	why, status := tokenRefusal(err)
	if status < 400 || status >= 500 || status == http.StatusRequestTimeout || status == http.StatusTooManyRequests {
		return nil, ""
	}
	skew := time.Duration(0)
	if err.Response != nil {
		skew = skewOf(err.Response.Header)
	}
	if skew.Abs() > time.Minute || strings.Contains(why, "iat and exp") { // what Google answers to tokens from another time
		return fs.ErrPermission, "the clock of this machine is wrong" + byHow(skew) + ": synchronize it"
	}
	return fs.ErrPermission, "Google does not take the key that GOOGLE_APPLICATION_CREDENTIALS names: it may be deleted or disabled, or its account"
}

// skewOf returns how far ahead this machine's clock is of the one that an answer was given by; 0 where it does not say.
func skewOf(answer http.Header) time.Duration {
	there, err := http.ParseTime(answer.Get("Date"))
	if err != nil {
		return 0
	}
	return time.Since(there)
}

func byHow(skew time.Duration) string {
	switch {
	case skew > time.Minute:
		return fmt.Sprintf(", %s ahead of the service's", skew.Round(time.Minute))
	case skew < -time.Minute:
		return fmt.Sprintf(", %s behind the service's", -skew.Round(time.Minute))
	}
	return ""
}

// judgeAnswer judges an answer of the service.
func (s *Store) judgeAnswer(err *googleapi.Error) (kind error, hint string) {
	message, reasons := answer(err)
	for _, reason := range reasons {
		switch {
		case strings.Contains(reason, "ratelimitexceeded") || strings.Contains(reason, "backenderror"):
			return nil, ""
		case strings.Contains(reason, "encryptionkey"):
			return fs.ErrInvalid, "see GCS_ENCRYPTION_KEY: it is not the one that this object was encrypted with"
		case strings.Contains(reason, "retentionpolicynotmet") || strings.Contains(reason, "underactivehold"):
			return fs.ErrPermission, fmt.Sprintf("bucket %s keeps this object for longer, by a retention policy or a hold", s.o.Bucket)
		}
	}
	switch c := err.Code; {
	case c == http.StatusNotFound:
		return fs.ErrNotExist, ""
	case c == http.StatusUnauthorized:
		if skew := skewOf(err.Header); skew.Abs() > 5*time.Minute {
			return fs.ErrPermission, "the clock of this machine is wrong" + byHow(skew) + ": synchronize it"
		}
		if s.anonymous {
			return fs.ErrPermission, "the service at STORAGE_EMULATOR_HOST wants credentials: set GOOGLE_APPLICATION_CREDENTIALS"
		}
		return fs.ErrPermission, "the service does not know these credentials: see GOOGLE_APPLICATION_CREDENTIALS"
	case c == http.StatusForbidden:
		return fs.ErrPermission, fmt.Sprintf("see the account that GOOGLE_APPLICATION_CREDENTIALS names and its roles on bucket %s; without storage.objects.list a missing object is answered this way too", s.o.Bucket)
	case c == http.StatusRequestTimeout || c == http.StatusConflict || c == http.StatusGone || c == http.StatusTooManyRequests:
		return nil, ""
	case c == http.StatusNotImplemented:
		return errors.ErrUnsupported, "the service cannot do that"
	case c == http.StatusBadRequest && strings.Contains(message, "match calculated CRC32C"): // a put got damaged on its way
		return nil, ""
	case c == http.StatusBadRequest && strings.Contains(strings.ToLower(message), "bucket name"):
		return fs.ErrInvalid, fmt.Sprintf("%q cannot be the name of a bucket: see WALG_GS_PREFIX", s.o.Bucket)
	case c >= 300 && c < 500:
		return fs.ErrInvalid, ""
	}
	return nil, ""
}

// unreached judges an error that came without an answer, or with one that is none.
func (s *Store) unreached(err error) (kind error, hint string) {
	var authority x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	var syntax *json.SyntaxError
	var network *url.Error
	var operation *net.OpError
	var stalled *stall.Error
	switch {
	case errors.Is(err, http.ErrSchemeMismatch):
		return fs.ErrInvalid, "begin STORAGE_EMULATOR_HOST with http://, as the service does not speak https there"
	case errors.As(err, &invalid):
		return fs.ErrInvalid, "see the clock of this machine, or the certificate of the service"
	case errors.As(err, &authority), errors.As(err, &host):
		return fs.ErrInvalid, "it is not Google that answers: see the proxy and the certificates of this machine"
	case errors.As(err, &syntax):
		return fs.ErrInvalid, "the answer is not one of Google Cloud Storage: see the proxy of this machine, and STORAGE_EMULATOR_HOST"
	case errors.Is(err, fs.ErrInvalid): // such as another range than was asked for
		return fs.ErrInvalid, ""
	case errors.Is(err, errDamaged), errors.Is(err, errLost), errors.Is(err, io.ErrUnexpectedEOF):
		return nil, ""
	case errors.As(err, &network) || errors.As(err, &operation) || errors.As(err, &stalled):
		if s.o.Endpoint != "" {
			return nil, "see STORAGE_EMULATOR_HOST, or whether the service is up"
		}
	}
	return nil, ""
}
