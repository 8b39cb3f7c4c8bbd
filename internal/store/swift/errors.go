package swift

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/ncw/swift/v2"

	"holdfast/internal/store"
	"holdfast/internal/store/stall"
)

var (
	errNoContainer = errors.New("there is no such container")
	errNoSegments  = errors.New("the container of segments cannot be made")
	errNoLarge     = errors.New("the service has no static large objects")
	errDamaged     = errors.New("the bytes do not match their checksum")
)

// authError says that authentication failed.
type authError struct{ err error }

func (e *authError) Error() string { return "log in: " + e.err.Error() }
func (e *authError) Unwrap() error { return e.err }

func isLogin(err error) bool {
	login := (*authError)(nil)
	return errors.As(err, &login)
}

// fail says what became of op on the object name.
func (s *Store) fail(op, name string, err error) error {
	return store.Explain(op, name, err, reason, s.judge)
}

// code returns the HTTP status with which the service answered, 0 where it did not.
func code(err error) int {
	if answer := (*swift.Error)(nil); errors.As(err, &answer) {
		return answer.StatusCode
	}
	return 0
}

// reason is an error of the library in a few words.
func reason(err error) string {
	if network := (*url.Error)(nil); errors.As(err, &network) {
		return network.Error()
	}
	text := strings.Join(strings.Fields(err.Error()), " ") // what comes with a status may have many lines
	if len(text) > 300 {
		text = strings.ToValidUTF8(text[:300], "") + "…"
	}
	if c := code(err); c != 0 {
		text = strings.Replace(text, fmt.Sprintf("HTTP Error: %d: %d ", c, c), "", 1) + fmt.Sprintf(" (status %d)", c)
	}
	return text
}

// mayPass reports whether doing it again may help against err.
func (s *Store) mayPass(err error) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	kind, _ := s.judge(err)
	return kind == nil
}

// judge returns what callers may decide on, and what the operator should look at.
func (s *Store) judge(err error) (kind error, hint string) {
	switch {
	case errors.Is(err, errNoContainer):
		return fs.ErrInvalid, fmt.Sprintf("there is no container %s: see WALG_SWIFT_PREFIX, OS_TENANT_NAME and OS_REGION_NAME, or create it", s.o.Container)
	case errors.Is(err, errNoSegments):
		return fs.ErrPermission, fmt.Sprintf("objects above %d bytes need a container %s: create it", s.o.SegmentSize, s.o.SegmentContainer)
	case errors.Is(err, errNoLarge):
		return errors.ErrUnsupported, fmt.Sprintf("no object can be larger than a segment, which is %d bytes", s.o.SegmentSize)
	case errors.Is(err, fs.ErrInvalid): // such as another range than was asked for
		return fs.ErrInvalid, ""
	case isLogin(err):
		return s.judgeLogin(err)
	}
	switch c := code(err); {
	case c == 0 || c == http.StatusRequestTimeout && errors.Is(err, swift.TimeoutError):
		if s.o.StorageURL != "" {
			return s.unreached(err, "OS_STORAGE_URL")
		}
		return s.unreached(err, "OS_REGION_NAME and OS_ENDPOINT_TYPE")
	case c == http.StatusNotFound:
		return fs.ErrNotExist, ""
	case c == http.StatusUnauthorized:
		if hint := s.clockHint(); hint != "" {
			return fs.ErrPermission, hint
		}
		return fs.ErrPermission, "the service does not take the token that it gave: see OS_REGION_NAME, or OS_AUTH_TOKEN where that is set"
	case c == http.StatusForbidden:
		return fs.ErrPermission, fmt.Sprintf("see OS_USERNAME and OS_TENANT_NAME, and the rights of that user on container %s", s.o.Container)
	case c == http.StatusRequestEntityTooLarge:
		return fs.ErrInvalid, "the quota of the container or of OS_TENANT_NAME is used up, or the object is larger than the service takes"
	case c == http.StatusUnprocessableEntity, c == http.StatusRequestTimeout, c == http.StatusConflict, c == http.StatusTooManyRequests, c == swift.RateLimit.StatusCode:
		return nil, ""
	case c == http.StatusNotImplemented || c == http.StatusMethodNotAllowed:
		return errors.ErrUnsupported, "the service cannot do that"
	case c >= 300 && c < 500:
		return fs.ErrInvalid, ""
	}
	return nil, ""
}

// judgeLogin judges a failure of authentication.
func (s *Store) judgeLogin(err error) (kind error, hint string) {
	user, password := "OS_USERNAME", "OS_PASSWORD"
	if s.o.AuthVersion == 1 || s.o.AuthVersion == 0 && strings.Contains(s.o.AuthURL, "v1") {
		user, password = "ST_USER", "ST_KEY"
	}
	switch c := code(err); {
	case s.o.AuthURL == "": // the token given has come to its end
		return fs.ErrPermission, "OS_AUTH_TOKEN is not valid any more: renew it, or set OS_AUTH_URL"
	case c == http.StatusUnauthorized || c == http.StatusForbidden || c == http.StatusBadRequest:
		if hint := s.clockHint(); hint != "" {
			return fs.ErrPermission, hint
		}
		return fs.ErrPermission, fmt.Sprintf("the service at %s does not take %s and %s (SWIFT_USER and SWIFT_PASSWORD of WAL-E), or see OS_TENANT_NAME, OS_USER_DOMAIN_NAME and OS_PROJECT_DOMAIN_NAME",
			s.o.AuthURL, user, password)
	case c == http.StatusNotFound || c == http.StatusMultipleChoices || c == http.StatusMethodNotAllowed:
		return fs.ErrInvalid, fmt.Sprintf("there is no authentication at OS_AUTH_URL, which is %s: it may have to end with /v3", s.o.AuthURL)
	case strings.Contains(err.Error(), "Response didn't have storage url"): // which the library also says of tokens that end before they came
		if hint := s.clockHint(); hint != "" {
			return fs.ErrPermission, hint
		}
		return fs.ErrInvalid, fmt.Sprintf("the service at %s names no object store: see OS_REGION_NAME and OS_ENDPOINT_TYPE, and whether ST_AUTH_VERSION fits", s.o.AuthURL)
	case c == 0 || c == http.StatusRequestTimeout:
		return s.unreached(err, "OS_AUTH_URL")
	case c == http.StatusTooManyRequests || c >= 500:
		return nil, ""
	}
	return fs.ErrInvalid, "see OS_AUTH_URL, which is " + s.o.AuthURL
}

// clockHint says what is wrong with the clock, "" where nothing is.
func (s *Store) clockHint() string {
	skew := time.Duration(s.transport.skew.Load()).Round(time.Minute)
	switch {
	case skew > 4*time.Minute:
		return fmt.Sprintf("the clock of this machine is wrong, %s ahead of the service's: synchronize it", skew)
	case skew < -4*time.Minute:
		return fmt.Sprintf("the clock of this machine is wrong, %s behind the service's: synchronize it", -skew)
	}
	return ""
}

// unreached judges an error that came without an answer, or with one that is none.
func (s *Store) unreached(err error, setting string) (kind error, hint string) {
	var authority x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	var syntax *json.SyntaxError
	var dns *net.DNSError
	var network *url.Error
	var stalled *stall.Error
	switch {
	case errors.Is(err, http.ErrSchemeMismatch):
		return fs.ErrInvalid, "begin " + setting + " with http://, as the service does not speak https there"
	case errors.As(err, &invalid):
		return fs.ErrInvalid, "see the clock of this machine, or the certificate of the service"
	case errors.As(err, &authority):
		return fs.ErrInvalid, "add the certificate of the authority that signed the service's to those of this machine, or name its file in SSL_CERT_FILE"
	case errors.As(err, &host):
		return fs.ErrInvalid, "the certificate is that of another host: see " + setting
	case errors.As(err, &syntax):
		return fs.ErrInvalid, "the answer is not one of OpenStack: see " + setting
	case errors.As(err, &dns) && dns.IsNotFound:
		return fs.ErrInvalid, "see " + setting
	case errors.As(err, &network) || errors.As(err, &stalled):
		return nil, "see " + setting + ", or whether the service is up"
	}
	return nil, ""
}
