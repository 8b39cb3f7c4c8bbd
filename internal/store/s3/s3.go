// Package s3 keeps objects in a bucket of Amazon S3 or of a service that speaks its protocol.
//
// Memory does not depend on the size of objects: all puts of a Store share one budget for the parts that are on their
// way. Nothing waits for ever: a connection over which no byte came or went for a while is broken off and the request
// made again, a body that breaks off is continued where it broke, and both only for a time without progress. Parts carry a CRC-32C instead of a signed SHA-256,
// which costs a ninth of the processor time.
package s3

import (
	"bytes"
	"cmp"
	"context"
	"crypto/md5"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go/logging"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"holdfast/internal/budget"
	"holdfast/internal/store/patience"
	"holdfast/internal/store/stall"
)

// Options says which bucket, and how to use it. Bucket is required; the rest works as zero value. Where keys, region or
// profile are empty, the AWS SDK looks in its usual places: environment, shared files, the metadata service.
type Options struct {
	Bucket string
	Prefix string // of all keys; slashes at its ends do not count

	Endpoint  string // URL, or host and port to be reached by https; "" is AWS
	Region    string // "" is us-east-1 at a custom endpoint; of a bucket on AWS it is asked for on first use
	PathStyle bool   // the bucket goes into the path of URLs, not into the host name
	DualStack bool   // AWS's endpoints that have IPv6 too
	CAFile    string // PEM certificates that take the place of the system's
	ListV1    bool   // for services without ListObjectsV2

	AccessKey, SecretKey, SessionToken string
	RoleARN, RoleSessionName           string // role to assume with the credentials found
	Profile                            string // of the shared files
	ConfigFile, CredentialsFile        string // the shared files, where not in their usual places

	StorageClass string // of new objects; "" is the bucket's way, STANDARD
	SSE          string // AES256, aws:kms or aws:kms:dsse
	SSEKMSKeyID  string // for aws:kms; "" is the account's default key
	SSECKey      string // 32 bytes in base64; then every object is encrypted with this key, which the service forgets

	ObjectLockMode      string        // GOVERNANCE or COMPLIANCE
	ObjectLockRetention time.Duration // from the put on; required with ObjectLockMode

	PartSize           int64 // bytes, 5 MiB to 5 GiB; 0 means 20 MiB. Later parts of objects above 2000 parts are larger
	Concurrency        int   // parts of one object under way at once; 0 means 4
	Buffer             int64 // bytes that the parts of all objects may take in memory; 0 means 8 times PartSize
	MaxCopy            int64 // bytes above which an object is copied in parts; 0 means 5 GiB, which is S3's bound
	DeleteBatch        int   // keys per call, 1 to 1000; 0 means 1000
	Disable100Continue bool  // for services that do not know "Expect: 100-continue"

	MaxRetries int           // of one request, and of a body without progress; 0 means 15, below 0 none
	MaxBackoff time.Duration // between two tries; 0 means 20 s
	Patience   time.Duration // from the first failure without progress, after which nothing is tried again; 0 means MaxRetries times MaxBackoff, or 5 min if that is more
	Retried    *atomic.Int64 // counts the tries behind the first; nil is not counted

	Headers map[string]string // sent with every request

	Logger *slog.Logger // hears of every request that will be made again; nil discards

	// Wrap returns each new connection as it is to be used, such as under a limit; nil leaves them. Time that a call on the
	// result waits before it calls the connection does not count towards StallTimeout.
	Wrap func(net.Conn) net.Conn

	// StallTimeout is how long a connection may go without a byte in either direction; 0 means 30 s. Completing and
	// copying, during which services are silent while they work, may take ten times as long.
	StallTimeout time.Duration
}

const (
	minPart = 5 << 20
	maxPart = 5 << 30
)

// Store keeps objects in a bucket. It is a store.PutIfAbsenter, Copier, ManyDeleter, Walker and Sweeper.
type Store struct {
	o       Options
	sse     sse
	budget  *budget.Budget
	retry   *patience.Policy
	connect func(region string) *s3.Client // "" leaves the configured one
	patient func(*s3.Options)              // lets the service work in silence
	custom  bool                           // endpoint is not AWS's

	mu     sync.Mutex // held while the region is asked for
	client atomic.Pointer[s3.Client]

	bucketSeen   atomic.Bool // the bucket is known to exist
	noConditions atomic.Bool // the service answered that it has no conditional puts
}

// sse holds the fields that requests carry for encryption; nil where not asked for.
type sse struct {
	method              types.ServerSideEncryption
	kmsKey              *string
	cAlgo, cKey, cKeyMD *string
}

// New returns the Store of a bucket. It reads files and, where credentials come from there, asks nothing yet; the first
// call that needs the service does.
func New(ctx context.Context, o Options) (*Store, error) {
	s, err := newStore(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("storage s3://%s: %w", o.Bucket, err)
	}
	return s, nil
}

func newStore(ctx context.Context, o Options) (*Store, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	s := &Store{o: o, budget: budget.New(o.Buffer)}
	s.retry = &patience.Policy{Service: "S3", MaxRetries: o.MaxRetries, MaxBackoff: o.MaxBackoff, Patience: o.Patience,
		MayPass: func(error) bool { return true }, Reason: reason, Logger: o.Logger, Retried: o.Retried} // who asks has judged the error
	if err := s.setSSE(); err != nil {
		return nil, err
	}
	cfg, err := s.loadConfig(ctx)
	if err != nil {
		return nil, err
	}
	s.connect = func(region string) *s3.Client {
		return s3.NewFromConfig(cfg, func(c *s3.Options) {
			c.RetryMaxAttempts = 0 // AWS_MAX_ATTEMPTS; Options.MaxRetries says it
			c.UsePathStyle = o.PathStyle
			c.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
			c.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
			c.Region = cmp.Or(region, c.Region)
			if o.Endpoint != "" {
				c.BaseEndpoint = &o.Endpoint
			}
			if o.DualStack {
				c.EndpointOptions.UseDualStackEndpoint = aws.DualStackEndpointStateEnabled
			}
			if o.Disable100Continue {
				c.ContinueHeaderThresholdBytes = -1
			}
			for name, value := range o.Headers {
				c.APIOptions = append(c.APIOptions, smithyhttp.SetHeaderValue(name, value))
			}
		})
	}
	quick, ok := cfg.HTTPClient.(*awshttp.BuildableClient) // with the certificates of the configuration
	if !ok {
		return nil, fmt.Errorf("the AWS SDK brought an HTTP client of its own, a %T", cfg.HTTPClient)
	}
	slow := quick.WithTransportOptions(o.tune(10 * o.StallTimeout))
	s.patient = func(c *s3.Options) { c.HTTPClient = slow }
	client := s.connect("")
	s.custom = client.Options().BaseEndpoint != nil
	if client.Options().Region == "" && s.custom {
		client = s.connect("us-east-1")
	}
	if client.Options().Region != "" {
		s.client.Store(client)
	}
	return s, nil
}

// complete checks o and fills in what 0 means.
func (o *Options) complete() error {
	if o.Bucket == "" || strings.Contains(o.Bucket, "/") {
		return fmt.Errorf("%q is not the name of a bucket", o.Bucket)
	}
	o.Prefix = strings.Trim(o.Prefix, "/")
	if o.Endpoint != "" && !strings.Contains(o.Endpoint, "://") {
		o.Endpoint = "https://" + o.Endpoint
	}
	if u, err := url.Parse(o.Endpoint); err != nil || u.User != nil || o.Endpoint != "" && u.Host == "" {
		return errors.New("the endpoint is not a URL such as https://host:port") // not quoted: it may hold a password
	}
	if (o.AccessKey == "") != (o.SecretKey == "") {
		return errors.New("access key and secret key: one is set, the other is not")
	}
	if (o.ObjectLockMode == "") != (o.ObjectLockRetention <= 0) {
		return errors.New("object lock: mode and retention period: one is set, the other is not")
	}
	o.PartSize = cmp.Or(o.PartSize, 20<<20)
	if o.PartSize < minPart || o.PartSize > maxPart {
		return fmt.Errorf("part size %d is not between 5 MiB and 5 GiB", o.PartSize)
	}
	o.Buffer = max(cmp.Or(o.Buffer, 8*o.PartSize), o.PartSize)
	o.MaxCopy = cmp.Or(o.MaxCopy, 5<<30)
	if o.MaxCopy < minPart || o.MaxCopy > 5<<30 {
		return fmt.Errorf("size of a copy in one piece %d is not between 5 MiB and 5 GiB", o.MaxCopy)
	}
	o.DeleteBatch = cmp.Or(o.DeleteBatch, 1000)
	if o.DeleteBatch < 1 || o.DeleteBatch > 1000 {
		return fmt.Errorf("delete batch %d is not between 1 and 1000", o.DeleteBatch)
	}
	o.Concurrency = max(cmp.Or(o.Concurrency, 4), 1)
	o.MaxRetries = max(cmp.Or(o.MaxRetries, 15), 0)
	o.MaxBackoff = cmp.Or(o.MaxBackoff, 20*time.Second)
	o.Patience = cmp.Or(o.Patience, max(time.Duration(o.MaxRetries)*o.MaxBackoff, 5*time.Minute))
	o.StallTimeout = cmp.Or(o.StallTimeout, 30*time.Second)
	o.Logger = cmp.Or(o.Logger, slog.New(slog.DiscardHandler))
	return nil
}

// tune makes connections break off after a time without a byte.
func (o *Options) tune(timeout time.Duration) func(*http.Transport) {
	return func(t *http.Transport) { stall.Tune(t, timeout, o.Wrap) }
}

func (s *Store) setSSE() error {
	if s.o.SSE != "" {
		s.sse.method = types.ServerSideEncryption(s.o.SSE)
	}
	if s.o.SSEKMSKeyID != "" {
		s.sse.kmsKey = &s.o.SSEKMSKeyID
	}
	if s.o.SSECKey == "" {
		return nil
	}
	key, err := base64.StdEncoding.DecodeString(s.o.SSECKey)
	if err != nil || len(key) != 32 {
		return errors.New("the customer's encryption key (SSE-C) is not 32 bytes in base64")
	}
	if s.o.SSE != "" {
		return errors.New("encryption with the customer's key (SSE-C) and with the service's (SSE) exclude each other")
	}
	sum := md5.Sum(key)
	s.sse.cAlgo, s.sse.cKey = aws.String("AES256"), &s.o.SSECKey
	s.sse.cKeyMD = aws.String(base64.StdEncoding.EncodeToString(sum[:]))
	return nil
}

func (s *Store) loadConfig(ctx context.Context) (aws.Config, error) {
	o := s.o
	load := []func(*config.LoadOptions) error{
		config.WithHTTPClient(awshttp.NewBuildableClient().WithTransportOptions(o.tune(o.StallTimeout))),
		config.WithRetryer(s.retryer),
		config.WithLogger(logging.LoggerFunc(func(_ logging.Classification, format string, v ...any) { // else it writes to stderr
			o.Logger.Debug("AWS SDK: " + fmt.Sprintf(format, v...))
		})),
		config.WithAPIOptions([]func(*middleware.Stack) error{countTries}),
	}
	if o.Region != "" {
		load = append(load, config.WithRegion(o.Region))
	}
	if o.Profile != "" {
		load = append(load, config.WithSharedConfigProfile(o.Profile))
	}
	if o.ConfigFile != "" {
		load = append(load, config.WithSharedConfigFiles([]string{o.ConfigFile}))
	}
	if o.CredentialsFile != "" {
		load = append(load, config.WithSharedCredentialsFiles([]string{o.CredentialsFile}))
	}
	if o.AccessKey != "" {
		load = append(load, config.WithCredentialsProvider(credentials.NewStaticCredentialsProvider(o.AccessKey, o.SecretKey, o.SessionToken)))
	}
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return aws.Config{}, fmt.Errorf("certificates of the authority: %w", err)
		}
		load = append(load, config.WithCustomCABundle(bytes.NewReader(pem)))
	}
	cfg, err := config.LoadDefaultConfig(ctx, load...)
	if err != nil {
		return aws.Config{}, fmt.Errorf("load the AWS configuration: %w", err)
	}
	if o.RoleARN != "" {
		inSomeRegion := cfg.Copy()
		inSomeRegion.Region = cmp.Or(cfg.Region, "us-east-1")
		cfg.Credentials = aws.NewCredentialsCache(stscreds.NewAssumeRoleProvider(sts.NewFromConfig(inSomeRegion), o.RoleARN,
			func(a *stscreds.AssumeRoleOptions) { a.RoleSessionName = cmp.Or(o.RoleSessionName, "holdfast") }))
	}
	return cfg, nil
}

// api returns the client. Where nobody said in which region the bucket is, it asks once.
func (s *Store) api(ctx context.Context) (*s3.Client, error) {
	if c := s.client.Load(); c != nil {
		return c, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.client.Load(); c != nil {
		return c, nil
	}
	region, err := s.region(ctx, s.connect("us-east-1"))
	if err != nil {
		return nil, err
	}
	s.client.Store(s.connect(region))
	return s.client.Load(), nil
}

// region asks in which region the bucket is, which AWS answers in a header, to anybody and along with any error.
func (s *Store) region(ctx context.Context, c *s3.Client) (string, error) {
	anybody := s3.New(c.Options(), func(c *s3.Options) { c.Credentials = aws.AnonymousCredentials{} })
	out, err := anybody.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: &s.o.Bucket})
	var failed *awshttp.ResponseError
	switch {
	case err == nil && aws.ToString(out.BucketRegion) != "":
		return *out.BucketRegion, nil
	case errors.As(err, &failed) && failed.Response != nil && failed.Response.Header.Get(regionHeader) != "":
		return failed.Response.Header.Get(regionHeader), nil
	case errors.As(err, &failed) && failed.HTTPStatusCode() == http.StatusNotFound:
		return "", s.fail("find the region of", "the bucket", &types.NoSuchBucket{})
	case err != nil:
		return "", s.fail("find the region of", "the bucket", err)
	}
	return "", errors.New("the service does not say in which region the bucket is: set AWS_REGION")
}

const regionHeader = "X-Amz-Bucket-Region"

// key returns the key of an object, or the prefix of the keys in a directory.
func (s *Store) key(name string) *string {
	if s.o.Prefix != "" {
		name = s.o.Prefix + "/" + name
	}
	return &name
}
