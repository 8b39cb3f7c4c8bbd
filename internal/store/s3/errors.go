package s3

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"

	"holdfast/internal/store"
)

// fail says what became of op on the object name.
func (s *Store) fail(op, name string, err error) error {
	if err == nil {
		return nil
	}
	if own := (*store.OpError)(nil); errors.As(err, &own) || errors.Is(err, fs.ErrExist) {
		return err
	}
	e := &store.OpError{Op: op, Name: name, Err: err, Text: err.Error()}
	switch {
	case strings.Contains(err.Error(), "get credentials") && !errors.Is(err, context.Canceled):
		hint := "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give this machine a role"
		if s.o.RoleARN != "" {
			hint = fmt.Sprintf("see AWS_ROLE_ARN, which is %s, and whether the credentials found may assume it", s.o.RoleARN)
		}
		e.Text += ": " + hint
		e.Kind, e.Err = fs.ErrPermission, errors.New(e.Text) // a deadline in it is that of asking the machine for its role
		return e
	case errors.Is(err, context.Canceled):
		e.Text = context.Canceled.Error()
		return e
	case errors.Is(err, context.DeadlineExceeded):
		e.Text = context.DeadlineExceeded.Error()
		return e
	}
	code, status, response := codes(err)
	switch {
	case code == "" && status == 0:
		if network := (*url.Error)(nil); errors.As(err, &network) {
			e.Text = network.Error()
		}
		stays, hint := s.unreached(err)
		if stays {
			e.Kind = fs.ErrInvalid
		}
		if hint != "" {
			e.Text += ": " + hint
		}
		return e
	}
	hint := ""
	e.Kind, hint = s.judge(code, status, response)
	if e.Kind == fs.ErrNotExist && op == "list" { // must not read as a missing object
		e.Kind = fs.ErrInvalid
	}
	if e.Kind == fs.ErrNotExist {
		e.Text = fs.ErrNotExist.Error()
		return e
	}
	api, garbled := smithy.APIError(nil), (*smithy.DeserializationError)(nil)
	switch {
	case code == "" && errors.As(err, &garbled):
		e.Text = garbled.Error()
	case errors.As(err, &api):
		e.Text = code
		if api.ErrorMessage() != "" {
			e.Text += ": " + api.ErrorMessage()
		}
	}
	if status != 0 {
		e.Text += fmt.Sprintf(" (status %d", status)
		if r := (*awshttp.ResponseError)(nil); errors.As(err, &r) && r.ServiceRequestID() != "" {
			e.Text += ", request " + r.ServiceRequestID()
		}
		e.Text += ")"
	}
	if hint != "" {
		e.Text += ": " + hint
	}
	return e
}

// codes returns the service's code and the HTTP status in err, as far as there are any.
func codes(err error) (code string, status int, header http.Header) {
	if api := smithy.APIError(nil); errors.As(err, &api) {
		code = api.ErrorCode()
	}
	if r := (*awshttp.ResponseError)(nil); errors.As(err, &r) {
		status = r.HTTPStatusCode()
		if r.Response != nil && r.Response.Response != nil {
			header = r.Response.Header
		}
	}
	return code, status, header
}

// unreached says of an error that came without an answer whether it will stay, and what the operator should look at.
func (s *Store) unreached(err error) (stays bool, hint string) {
	var authority x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	var dns *net.DNSError
	switch {
	case errors.Is(err, http.ErrSchemeMismatch):
		return true, "begin AWS_ENDPOINT with http://, as the service does not speak https there"
	case strings.HasPrefix(s.o.Endpoint, "http://") && strings.Contains(err.Error(), "malformed HTTP response"):
		return true, "begin AWS_ENDPOINT with https://, as the service does not speak http there"
	case errors.As(err, &authority):
		return true, "set S3_CA_CERT_FILE to the certificate of the authority that signed the service's"
	case errors.As(err, &host):
		return true, "see AWS_ENDPOINT, and set AWS_S3_FORCE_PATH_STYLE=true where buckets are no host names"
	case errors.As(err, &invalid):
		return true, "see the certificate of the service, and the clock of this machine"
	case errors.As(err, &dns) && dns.IsNotFound:
		return true, "see AWS_ENDPOINT and AWS_REGION, and set AWS_S3_FORCE_PATH_STYLE=true where buckets are no host names"
	case s.custom:
		return false, "see AWS_ENDPOINT, or whether the service is up"
	}
	return false, ""
}

// wantsTLS reports whether an answer looks like that of a server that was spoken to in plain text and wants https.
func (s *Store) wantsTLS(status int, header http.Header) bool {
	return status == http.StatusBadRequest && strings.HasPrefix(s.o.Endpoint, "http://") && !strings.Contains(header.Get("Content-Type"), "xml")
}

// judge returns what callers may decide on, and what the operator should look at.
func (s *Store) judge(code string, status int, header http.Header) (kind error, hint string) {
	switch code {
	case "NoSuchKey":
		return fs.ErrNotExist, ""
	case "NoSuchBucket":
		return fs.ErrInvalid, fmt.Sprintf("there is no bucket %s: see WALG_S3_PREFIX, AWS_ENDPOINT and AWS_REGION, or create it", s.o.Bucket)
	case "InvalidBucketName":
		return fs.ErrInvalid, fmt.Sprintf("%q cannot be the name of a bucket: see WALG_S3_PREFIX", s.o.Bucket)
	case "InvalidAccessKeyId", "XAdminUserNotFound":
		return fs.ErrPermission, "the service does not know this AWS_ACCESS_KEY_ID"
	case "SignatureDoesNotMatch":
		return fs.ErrPermission, "AWS_SECRET_ACCESS_KEY is not the one of this AWS_ACCESS_KEY_ID, or AWS_REGION is not what the service expects"
	case "ExpiredToken", "InvalidToken", "TokenRefreshRequired":
		return fs.ErrPermission, "AWS_SESSION_TOKEN has expired or is not valid"
	case "RequestTimeTooSkewed", "RequestExpired":
		return fs.ErrPermission, "the clocks of this machine and of the service differ by more than 15 minutes: synchronize the clock"
	case "InvalidObjectState":
		return fs.ErrInvalid, "the object lies in a storage class for archiving: restore it with the tools of the service first"
	case "KMS.NotFoundException", "KMS.DisabledException", "KMS.InvalidStateException":
		return fs.ErrInvalid, "see S3_SSE_KMS_ID, and whether that key is enabled in the region of the bucket"
	case "InvalidStorageClass":
		return fs.ErrInvalid, fmt.Sprintf("see WALG_S3_STORAGE_CLASS, which is %q", s.o.StorageClass)
	case "RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "OperationAborted",
		conflict, "BadDigest", "XAmzContentChecksumMismatch":
		return nil, ""
	}
	if there := header.Get(regionHeader); there != "" && s.client.Load() != nil && there != s.client.Load().Options().Region {
		return fs.ErrInvalid, fmt.Sprintf("the bucket is in region %s: see AWS_REGION, which is %s", there, s.client.Load().Options().Region)
	}
	switch {
	case status == http.StatusForbidden || status == http.StatusUnauthorized || code == "AccessDenied":
		return fs.ErrPermission, fmt.Sprintf("these credentials may not do that in bucket %s; without s3:ListBucket a missing object is answered this way too", s.o.Bucket)
	case status == http.StatusMovedPermanently || code == "PermanentRedirect" || code == "AuthorizationHeaderMalformed":
		return fs.ErrInvalid, "the bucket is in another region or at another endpoint: see AWS_REGION and AWS_ENDPOINT"
	case status == http.StatusRequestTimeout || status == http.StatusConflict || status == http.StatusTooManyRequests || status == http.StatusTooEarly:
		return nil, ""
	case status == http.StatusNotImplemented || status == http.StatusMethodNotAllowed:
		return errors.ErrUnsupported, "the service cannot do that"
	case status == http.StatusNotFound && s.bucketSeen.Load() && code == "NotFound": // to a HEAD
		return fs.ErrNotExist, ""
	case status == http.StatusNotFound:
		return fs.ErrInvalid, "there is no such bucket, or no S3: see AWS_ENDPOINT and WALG_S3_PREFIX"
	case s.wantsTLS(status, header):
		return fs.ErrInvalid, "the answer is not one of S3: see AWS_ENDPOINT, which perhaps has to begin with https://"
	case status >= 400 && status < 500:
		return fs.ErrInvalid, ""
	}
	return nil, ""
}
