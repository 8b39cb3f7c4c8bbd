package azure

import (
	"context"
	"crypto/x509"
	"encoding/xml"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"

	"holdfast/internal/store"
)

// fail says what became of op on the object name. ctx is the caller's.
func (s *Store) fail(ctx context.Context, op, name string, err error) error {
	if err == nil {
		return nil
	}
	if own := (*store.OpError)(nil); errors.As(err, &own) || errors.Is(err, fs.ErrExist) {
		return err
	}
	e := &store.OpError{Op: op, Name: name, Err: err, Text: err.Error()}
	if done := ctx.Err(); done != nil {
		e.Text, e.Err = done.Error(), done
		return e
	}
	answer, hint := (*azcore.ResponseError)(nil), ""
	switch {
	case errors.As(err, &answer):
		e.Kind, hint = s.judge(answer)
		if e.Kind == fs.ErrNotExist {
			e.Text = fs.ErrNotExist.Error()
			return e
		}
		e.Text = describe(answer)
	case noCredential(err):
		if refusal := (*azidentity.AuthenticationFailedError)(nil); !errors.As(err, &refusal) || refusal.RawResponse != nil && refusal.RawResponse.StatusCode < 500 {
			e.Kind = fs.ErrPermission
		}
		e.Text = strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\t' }), "; ")
		hint = "set AZURE_STORAGE_ACCESS_KEY or AZURE_STORAGE_SAS_TOKEN, or give this machine or pod an identity that may use the storage account"
	default:
		var stays bool
		if stays, hint = s.unreached(err); stays {
			e.Kind = fs.ErrInvalid
		}
	}
	if hint != "" {
		e.Text += ": " + hint
	}
	return e
}

// noCredential reports whether err is about getting a token rather than about using it.
func noCredential(err error) bool {
	var given interface{ NonRetriable() }
	return errors.As(err, &given)
}

// code returns the service's code in err, "" if there is none.
func code(err error) bloberror.Code {
	if answer := (*azcore.ResponseError)(nil); errors.As(err, &answer) {
		return bloberror.Code(answer.ErrorCode)
	}
	return ""
}

// status returns the HTTP status in err, 0 if there is none.
func status(err error) int {
	if answer := (*azcore.ResponseError)(nil); errors.As(err, &answer) {
		return answer.StatusCode
	}
	return 0
}

// describe is an answer in one line.
func describe(answer *azcore.ResponseError) string {
	text := answer.ErrorCode
	if message := messageOf(answer); message != "" && text != "" {
		text += ": " + message
	}
	if text == "" {
		text = "refused"
	}
	text += fmt.Sprintf(" (status %d", answer.StatusCode)
	if answer.RawResponse != nil && answer.RawResponse.Header.Get("X-Ms-Request-Id") != "" {
		text += ", request " + answer.RawResponse.Header.Get("X-Ms-Request-Id")
	}
	return text + ")"
}

// messageOf returns the first line of what the service said, and of its details what is no signature.
func messageOf(answer *azcore.ResponseError) string {
	if answer.RawResponse == nil {
		return ""
	}
	body, err := runtime.Payload(answer.RawResponse)
	if err != nil || len(body) > 64<<10 {
		return ""
	}
	var said struct {
		Message string
		Detail  string `xml:"AuthenticationErrorDetail"`
	}
	if xml.Unmarshal(body, &said) != nil {
		return ""
	}
	text, _, _ := strings.Cut(strings.TrimSpace(said.Message), "\n")
	for _, harmless := range []string{"Signature not valid in the specified time frame", "Request date header too old"} {
		if strings.HasPrefix(said.Detail, harmless) {
			text += " " + said.Detail
		}
	}
	return strings.TrimSpace(text)
}

// unreached says of an error that came without an answer whether it will stay, and what the operator should look at.
func (s *Store) unreached(err error) (stays bool, hint string) {
	var authority x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	var dns *net.DNSError
	switch {
	case errors.Is(err, http.ErrSchemeMismatch):
		return true, "begin the endpoint with http://, as the service does not speak https there"
	case strings.HasPrefix(s.o.Endpoint, "http://") && strings.Contains(err.Error(), "malformed HTTP response"):
		return true, "begin the endpoint with https://, as the service does not speak http there"
	case errors.As(err, &authority):
		return true, "the certificate of the service is signed by an authority that this machine does not trust"
	case errors.As(err, &host):
		return true, "see AZURE_ENDPOINT_SUFFIX, and the endpoint if one is set: the service there has another name"
	case errors.As(err, &invalid):
		return true, "see the certificate of the service, and the clock of this machine"
	case errors.As(err, &dns) && dns.IsNotFound:
		return true, fmt.Sprintf("see AZURE_STORAGE_ACCOUNT, which is %q, AZURE_ENVIRONMENT_NAME and AZURE_ENDPOINT_SUFFIX", s.o.Account)
	}
	return false, ""
}

// judge returns what callers may decide on, and what the operator should look at.
func (s *Store) judge(answer *azcore.ResponseError) (kind error, hint string) {
	switch bloberror.Code(answer.ErrorCode) {
	case bloberror.BlobNotFound:
		return fs.ErrNotExist, ""
	case bloberror.ContainerNotFound, bloberror.ContainerDisabled, bloberror.ContainerBeingDeleted:
		return fs.ErrInvalid, fmt.Sprintf("there is no container %s in the account: see WALG_AZ_PREFIX and AZURE_STORAGE_ACCOUNT, or create it", s.o.Container)
	case bloberror.ResourceNotFound:
		return fs.ErrInvalid, "see WALG_AZ_PREFIX, AZURE_STORAGE_ACCOUNT and the endpoint if one is set"
	case bloberror.InvalidResourceName:
		return fs.ErrInvalid, fmt.Sprintf("%q cannot be the name of a container: see WALG_AZ_PREFIX", s.o.Container)
	case bloberror.AccountIsDisabled:
		return fs.ErrPermission, "the storage account is disabled: see AZURE_STORAGE_ACCOUNT"
	case "KeyBasedAuthenticationNotPermitted":
		return fs.ErrPermission, "this account takes no keys: unset AZURE_STORAGE_ACCESS_KEY and give this machine or pod an identity that may use it"
	case bloberror.AuthenticationFailed, bloberror.InvalidAuthenticationInfo, bloberror.NoAuthenticationInformation:
		return fs.ErrPermission, s.unknown(answer)
	case bloberror.AuthorizationFailure, bloberror.AuthorizationPermissionMismatch, bloberror.InsufficientAccountPermissions,
		bloberror.AuthorizationResourceTypeMismatch, bloberror.AuthorizationServiceMismatch, bloberror.AuthorizationProtocolMismatch,
		bloberror.AuthorizationSourceIPMismatch:
		return fs.ErrPermission, s.forbidden(bloberror.Code(answer.ErrorCode))
	case bloberror.BlobArchived, bloberror.BlobBeingRehydrated:
		return fs.ErrInvalid, "the blob lies in the archive tier: rehydrate it with the tools of the service first"
	case bloberror.BlobImmutableDueToPolicy:
		return fs.ErrPermission, "an immutability policy or a legal hold protects the blob"
	case bloberror.LeaseIDMissing:
		return fs.ErrPermission, "somebody holds a lease on the blob"
	case bloberror.SnapshotsPresent:
		return fs.ErrInvalid, "the blob has snapshots, which Holdfast did not make and does not delete"
	case bloberror.InvalidBlobOrBlock, bloberror.InvalidBlockID:
		return fs.ErrInvalid, "another program left blocks of another kind under this name: the service forgets them after a week"
	case bloberror.InvalidBlockList:
		return nil, "another writer put this object meanwhile, which makes the service forget the blocks of all others"
	case bloberror.MD5Mismatch, bloberror.CRC64Mismatch, bloberror.ServerBusy, bloberror.OperationTimedOut, bloberror.InternalError, bloberror.SystemInUse:
		return nil, ""
	}
	switch n := answer.StatusCode; {
	case n == http.StatusForbidden || n == http.StatusUnauthorized:
		return fs.ErrPermission, s.unknown(answer)
	case n == http.StatusRequestTimeout || n == http.StatusTooManyRequests || n == http.StatusTooEarly:
		return nil, ""
	case n == http.StatusNotImplemented || n == http.StatusMethodNotAllowed:
		return errors.ErrUnsupported, "the service cannot do that"
	case n < 500 && answer.ErrorCode == "":
		return fs.ErrInvalid, "the answer is not one of Azure Blob Storage: see AZURE_STORAGE_ACCOUNT, AZURE_ENDPOINT_SUFFIX and the endpoint if one is set"
	case n < 500:
		return fs.ErrInvalid, ""
	}
	return nil, ""
}

// tolerance is how far the service lets the clocks of those differ who sign requests; it is 15 minutes, less a doubt.
const tolerance = 14 * time.Minute

// unknown says why the service may not know who we are.
func (s *Store) unknown(answer *azcore.ResponseError) string {
	now := time.Now()
	if answer.RawResponse != nil {
		if there, err := http.ParseTime(answer.RawResponse.Header.Get("Date")); err == nil {
			switch d := now.Sub(there).Round(time.Second); {
			case d > tolerance:
				return fmt.Sprintf("the clock of this machine is %s ahead of the service's: synchronize the clock", d)
			case d < -tolerance:
				return fmt.Sprintf("the clock of this machine is %s behind the service's: synchronize the clock", -d)
			}
		}
	}
	switch {
	case s.key != nil:
		return fmt.Sprintf("AZURE_STORAGE_ACCESS_KEY is not a key of AZURE_STORAGE_ACCOUNT, which is %s", s.o.Account)
	case s.token != nil:
		return "the storage account does not accept the identity of this machine or pod: see AZURE_STORAGE_ACCOUNT, and the tenant of the identity"
	}
	if why, is := s.o.expired(now); is {
		return "see AZURE_STORAGE_SAS_TOKEN: " + why
	}
	return "AZURE_STORAGE_SAS_TOKEN is not valid for this account and container: its key was perhaps exchanged, or its policy removed"
}

// forbidden says why the service may not let us do something.
func (s *Store) forbidden(code bloberror.Code) string {
	switch {
	case code == bloberror.AuthorizationProtocolMismatch:
		return "AZURE_STORAGE_SAS_TOKEN is for https only, see the endpoint"
	case code == bloberror.AuthorizationSourceIPMismatch:
		return "AZURE_STORAGE_SAS_TOKEN is not for the address of this machine"
	case s.key != nil:
		return fmt.Sprintf("AZURE_STORAGE_ACCESS_KEY is not a key of AZURE_STORAGE_ACCOUNT, which is %s, or the account's network rules keep this machine out", s.o.Account)
	case s.token != nil:
		return fmt.Sprintf("give the identity of this machine or pod the role Storage Blob Data Contributor on container %s, or see the account's network rules", s.o.Container)
	}
	if why, is := s.o.expired(time.Now()); is {
		return "see AZURE_STORAGE_SAS_TOKEN: " + why
	}
	return fmt.Sprintf("AZURE_STORAGE_SAS_TOKEN may not do that in container %s: it needs the permissions racwdl", s.o.Container)
}
