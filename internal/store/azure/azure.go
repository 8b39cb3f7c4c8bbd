// Package azure keeps objects as block blobs in a container of Azure Blob Storage.
//
// Memory does not depend on the size of objects: all puts of a Store share one budget for the blocks that are on their way.
// Nothing waits for ever: a connection over which no byte came or went for a while is broken off and the request made again,
// a body that breaks off is continued where it broke, and both only for a time without progress. Every block carries a
// CRC-64, which the service checks.
//
// Blocks of a put that was not finished are seen by nobody and removed by the service after a week, so there is nothing to sweep.
// An account with a hierarchical namespace keeps directories that became empty, and its listings show them.
package azure

import (
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"holdfast/internal/budget"
	"holdfast/internal/store/patience"
)

// Options says which container, and how to use it. Container and, unless Endpoint names the account, Account are required; the rest
// works as zero value. The comments give WAL-G's names of the settings, and WAL-E's where it had one.
//
// AccessKey comes before SASToken. With neither, the Azure SDK looks in its usual places: its own variables in the environment
// (AZURE_TENANT_ID, AZURE_CLIENT_ID and so on), the workload identity of a pod, the managed identity of the machine, the tools az,
// azd and PowerShell. AZURE_TOKEN_CREDENTIALS=prod leaves the tools out.
type Options struct {
	Container string // WALG_AZ_PREFIX, azure://container/path; WALE_WABS_PREFIX, wabs://container/path
	Prefix    string // the path of WALG_AZ_PREFIX, before all names of blobs; slashes at its ends do not count

	Account   string // AZURE_STORAGE_ACCOUNT; WABS_ACCOUNT_NAME
	AccessKey string // AZURE_STORAGE_ACCESS_KEY, in base64; WABS_ACCESS_KEY
	SASToken  string // AZURE_STORAGE_SAS_TOKEN, with or without "?" before it; WABS_SAS_TOKEN

	Environment    string // AZURE_ENVIRONMENT_NAME: AzurePublicCloud, which "" means, AzureUSGovernmentCloud, AzureChinaCloud or AzureGermanCloud
	EndpointSuffix string // AZURE_ENDPOINT_SUFFIX, such as core.windows.net; "" is the one of Environment
	Endpoint       string // URL of the account's blob service where it is not https://<Account>.blob.<EndpointSuffix>; no setting of WAL-G's
	CAFile         string // PEM certificates trusted beside the system's; no setting of WAL-G's
	APIVersion     string // AZURE_BLOB_STORE_API_VERSION; "" is the SDK's

	BlockSize   int64         // AZURE_BUFFER_SIZE: bytes, 1 KiB to 4000 MiB; 0 means 8 MiB. Later blocks of objects above 10,000 blocks are larger
	Concurrency int           // AZURE_MAX_BUFFERS: blocks of one object under way at once; 0 means 4
	Buffer      int64         // bytes that the blocks of all objects may take in memory; 0 means 8 times BlockSize; no setting of WAL-G's
	TryTimeout  time.Duration // AZURE_TRY_TIMEOUT, there in minutes: for one try of a request that is no read; 0 means that only StallTimeout bounds it

	MaxRetries int           // of one request, and of a body without progress; 0 means 15, below 0 none
	MaxBackoff time.Duration // between two tries; 0 means 20 s
	Patience   time.Duration // from the first failure without progress, after which nothing is tried again; 0 means MaxRetries times MaxBackoff, or 5 min if that is more
	Retried    *atomic.Int64 // counts the tries behind the first; nil is not counted

	Logger *slog.Logger // hears of every request that will be made again; nil discards

	// Wrap returns each new connection as it is to be used, such as under a limit; nil leaves them. Time that a call on the
	// result waits before it calls the connection does not count towards StallTimeout.
	Wrap func(net.Conn) net.Conn

	// StallTimeout is how long a connection may go without a byte in either direction; 0 means 30 s. Committing, copying and deleting
	// many, during which the service is silent while it works, may take twice as long; it gives itself a minute to commit.
	StallTimeout time.Duration
}

const (
	minBlock = 1 << 10
	maxBlock = 4000 << 20 // the service's bound
)

// environments are the clouds as AZURE_ENVIRONMENT_NAME names them.
var environments = map[string]struct {
	suffix string
	config cloud.Configuration
}{
	"AzurePublicCloud":       {"core.windows.net", cloud.AzurePublic},
	"AzureUSGovernmentCloud": {"core.usgovcloudapi.net", cloud.AzureGovernment},
	"AzureChinaCloud":        {"core.chinacloudapi.cn", cloud.AzureChina},
	"AzureGermanCloud":       {"core.cloudapi.de", cloud.Configuration{ActiveDirectoryAuthorityHost: "https://login.microsoftonline.de/"}},
}

// Store keeps objects in a container. It is a store.PutIfAbsenter, Copier, ManyDeleter and Walker.
type Store struct {
	o         Options
	budget    *budget.Budget
	retry     *patience.Policy
	client    *container.Client
	key       *container.SharedKeyCredential // nil without one
	token     azcore.TokenCredential         // nil with a key or a SAS
	pageSize  *int32                         // of listings; nil is the service's, 5000
	copyBlock int64                          // bytes that the service copies at once
}

// New returns the Store of a container. It reads CAFile and asks nothing yet.
func New(o Options) (*Store, error) {
	s, err := newStore(o)
	if err != nil {
		return nil, fmt.Errorf("storage azure://%s: %w", o.Container, err)
	}
	return s, nil
}

func newStore(o Options) (*Store, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	s := &Store{o: o, budget: budget.New(o.Buffer), copyBlock: copyBlock}
	s.retry = &patience.Policy{Service: "Azure", MaxRetries: o.MaxRetries, MaxBackoff: o.MaxBackoff, Patience: o.Patience,
		MayPass: s.mayPass, Reason: reason, Logger: o.Logger, Retried: o.Retried, Asked: asked}
	var roots *x509.CertPool // nil is the system's
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("certificates of the authority: %w", err)
		}
		if roots, err = x509.SystemCertPool(); err != nil {
			roots = x509.NewCertPool()
		}
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("certificates of the authority: there is none in %s", o.CAFile)
		}
	}
	base := policy.ClientOptions{
		Cloud:     environments[o.Environment].config,
		Transport: newTransport(&o, roots),
		Telemetry: policy.TelemetryOptions{ApplicationID: "holdfast"},
	}
	blobs := base
	blobs.PerCallPolicies = []policy.Policy{&retrier{s}}
	blobs.Retry = policy.RetryOptions{MaxRetries: -1, TryTimeout: o.TryTimeout} // the retrier does it
	opts := &container.ClientOptions{ClientOptions: blobs}
	where := strings.TrimRight(o.Endpoint, "/") + "/" + o.Container
	var err error
	switch {
	case o.AccessKey != "":
		if s.key, err = container.NewSharedKeyCredential(o.Account, o.AccessKey); err != nil {
			return nil, errors.New("AZURE_STORAGE_ACCESS_KEY is not in base64") // what was wrong with it would quote it
		}
		s.client, err = container.NewClientWithSharedKeyCredential(where, s.key, opts)
	case o.SASToken != "":
		s.client, err = container.NewClientWithNoCredential(where+"?"+o.SASToken, opts)
	default:
		if s.token, err = azidentity.NewDefaultAzureCredential(&azidentity.DefaultAzureCredentialOptions{ClientOptions: base}); err != nil {
			return nil, fmt.Errorf("credentials: %w", err)
		}
		s.client, err = container.NewClient(where, s.token, opts)
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// complete checks o and fills in what 0 means.
func (o *Options) complete() error {
	if o.Container == "" || strings.ContainsAny(o.Container, "/?#%") {
		return fmt.Errorf("%q is not the name of a container: see WALG_AZ_PREFIX", o.Container)
	}
	o.Prefix = strings.Trim(o.Prefix, "/")
	o.Environment = cmp.Or(o.Environment, "AzurePublicCloud")
	env, ok := environments[o.Environment]
	if !ok {
		return fmt.Errorf("AZURE_ENVIRONMENT_NAME is %q, and not AzurePublicCloud, AzureUSGovernmentCloud, AzureChinaCloud or AzureGermanCloud", o.Environment)
	}
	if strings.ContainsFunc(o.Account, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' }) {
		return fmt.Errorf("AZURE_STORAGE_ACCOUNT is %q, and account names have only lower case letters and digits", o.Account)
	}
	if o.Account == "" && (o.Endpoint == "" || o.AccessKey != "") {
		return errors.New("AZURE_STORAGE_ACCOUNT is not set")
	}
	if o.Endpoint == "" {
		o.Endpoint = "https://" + o.Account + ".blob." + cmp.Or(o.EndpointSuffix, env.suffix)
	}
	if u, err := url.Parse(o.Endpoint); err != nil || u.User != nil || u.Host == "" || u.RawQuery != "" || u.Scheme != "https" && u.Scheme != "http" {
		return errors.New("the endpoint is not a URL such as https://account.blob.core.windows.net") // not quoted: it may hold a secret
	}
	o.SASToken = strings.TrimPrefix(o.SASToken, "?")
	if o.SASToken != "" {
		if q, err := url.ParseQuery(o.SASToken); err != nil || q.Get("sig") == "" {
			return errors.New("AZURE_STORAGE_SAS_TOKEN is not a shared access signature such as sv=…&sig=…")
		}
	}
	if o.AccessKey == "" && o.SASToken == "" && !strings.HasPrefix(o.Endpoint, "https://") {
		return errors.New("an identity is only shown to an endpoint that begins with https://: set AZURE_STORAGE_ACCESS_KEY or AZURE_STORAGE_SAS_TOKEN")
	}
	o.BlockSize = cmp.Or(o.BlockSize, 8<<20)
	if o.BlockSize < minBlock || o.BlockSize > maxBlock {
		return fmt.Errorf("block size %d (AZURE_BUFFER_SIZE) is not between 1 KiB and 4000 MiB", o.BlockSize)
	}
	o.Buffer = max(cmp.Or(o.Buffer, 8*o.BlockSize), o.BlockSize, 1<<20)
	o.Concurrency = max(cmp.Or(o.Concurrency, 4), 1)
	o.MaxRetries = max(cmp.Or(o.MaxRetries, 15), 0)
	o.MaxBackoff = cmp.Or(o.MaxBackoff, 20*time.Second)
	o.Patience = cmp.Or(o.Patience, max(time.Duration(o.MaxRetries)*o.MaxBackoff, 5*time.Minute))
	o.StallTimeout = cmp.Or(o.StallTimeout, 30*time.Second)
	o.Logger = cmp.Or(o.Logger, slog.New(slog.DiscardHandler))
	return nil
}

// blobName returns the name of an object's blob, or the prefix of those in a directory.
func (s *Store) blobName(name string) string {
	if s.o.Prefix != "" {
		return s.o.Prefix + "/" + name
	}
	return name
}

// expired returns when the SAS ended, or will begin, and whether that explains a refusal now.
func (o *Options) expired(now time.Time) (text string, is bool) {
	q, err := url.ParseQuery(o.SASToken)
	if err != nil {
		return "", false
	}
	at := func(field string) (time.Time, bool) {
		for layout := range slices.Values([]string{time.RFC3339, "2006-01-02T15:04Z", time.DateOnly}) {
			if t, err := time.Parse(layout, q.Get(field)); err == nil {
				return t, true
			}
		}
		return time.Time{}, false
	}
	if t, ok := at("se"); ok && now.After(t) {
		return "it expired at " + t.UTC().Format(time.RFC3339), true
	}
	if t, ok := at("st"); ok && now.Before(t) {
		return "it is valid from " + t.UTC().Format(time.RFC3339) + " on", true
	}
	return "", false
}
