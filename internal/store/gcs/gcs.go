// Package gcs keeps objects in a bucket of Google Cloud Storage.
//
// Memory does not depend on the size of objects: all puts of a Store share one budget. What fits into one chunk is put in one
// request, everything else chunk by chunk in a resumable upload, of which the service shows nothing before its end. Contents are
// checked by CRC-32C both ways: the service refuses a put that arrives damaged, and a whole read that does not match is an error. Nothing waits for ever: a
// connection over which no byte came or went for a while is broken off and the request made again, a body that breaks off is
// continued where it broke, and both only for a time without progress.
//
// It speaks through the client that Google generates from the description of its JSON API. The one above it,
// cloud.google.com/go/storage, opens a body that keeps breaking again and again without a pause, a word or an end.
//
// WAL-G puts an object as "<name>_chunks/chunk0" and so on, composes those and then removes them; when it dies they stay. No listing
// here shows what lies in a directory whose name ends in "_chunks", nothing can be put there, and Sweep removes what is old.
//
// WAL-E's objects have names that begin with a slash. Where there is no archive below "path/" and a WAL-E archive below "/path/", the
// Store is the latter, and the Logger hears of it.
package gcs

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/api/option"
	"google.golang.org/api/storage/v1"

	"holdfast/internal/budget"
	"holdfast/internal/store/patience"
	"holdfast/internal/store/stall"
)

// Options says which bucket, and how to use it. Bucket is required; the rest works as zero value. WAL-G's name of a setting stands
// with the field that it goes to; it may be written with WALG_ or WALE_ in front.
type Options struct {
	Bucket    string // the host of WALG_GS_PREFIX
	Prefix    string // the path of WALG_GS_PREFIX without the slash behind the bucket; slashes at its ends do not count unless RawPrefix
	RawPrefix bool   // GCS_NORMALIZE_PREFIX=false: Prefix is taken as it is, as archives of WAL-E need it that begin with a slash. Nothing is looked for then

	CredentialsFile string // GOOGLE_APPLICATION_CREDENTIALS: a service account's key, or a workload identity; "" looks where Google's tools do, ending with the machine's own account
	EncryptionKey   string // GCS_ENCRYPTION_KEY: 32 bytes in base64; then every object is encrypted with this key, which the service forgets
	Endpoint        string // STORAGE_EMULATOR_HOST: URL, or host and port, of a service that stands in for Google's; it is asked without credentials unless CredentialsFile is set

	Timeout    time.Duration // GCS_CONTEXT_TIMEOUT (seconds there): of one call with all its tries; 0 means none. Reading a body is not bounded by it
	ChunkSize  int64         // GCS_MAX_CHUNK_SIZE: bytes that one request of a larger object sends at most, rounded down to 256 KiB; 0 means 16 MiB
	MaxRetries int           // GCS_MAX_RETRIES: of one request, and of a body without progress; 0 means 16, below 0 none

	Buffer      int64 // bytes that the puts of all objects may take in memory; 0 means 8 times ChunkSize, up to 128 MiB. A put takes up to 2 chunks, which get smaller where they do not fit
	Concurrency int   // requests of one DeleteMany under way at once; 0 means 16

	MaxBackoff   time.Duration // between two tries; 0 means 20 s
	Patience     time.Duration // from the first failure without progress, after which nothing is tried again; 0 means MaxRetries times MaxBackoff, or 5 min if that is more
	Retried      *atomic.Int64 // counts the tries behind the first; nil is not counted
	StallTimeout time.Duration // without a byte in either direction, after which a connection is broken off; 0 means 30 s. Copying may take ten times as long

	Wrap   func(net.Conn) net.Conn // returns each new connection as it is to be used, such as under a limit; nil leaves it
	Logger *slog.Logger            // hears of every request that will be made again; nil discards
}

// chunkUnit is what the service wants chunks to be multiples of, in bytes.
const chunkUnit = 256 << 10

// Store keeps objects in a bucket. It is a store.PutIfAbsenter, Copier, ManyDeleter, Walker and Sweeper.
type Store struct {
	o         Options
	anonymous bool        // no credentials are sent
	key       http.Header // the customer's key, for objects
	sourceKey http.Header // and for the source of a copy
	budget    *budget.Budget
	transport *stall.Transport
	retry     *patience.Policy

	mu    sync.Mutex // held while the place is looked for
	found atomic.Pointer[place]

	bucketSeen atomic.Bool // the bucket is known to exist
}

// place is where the objects of a Store are.
type place struct {
	api  *storage.Service
	root string // that all keys begin with
}

// New returns the Store of a bucket. It asks nothing yet; the first call that needs the service does.
func New(o Options) (*Store, error) {
	s := &Store{o: o}
	if err := s.o.complete(); err != nil {
		return nil, fmt.Errorf("storage gs://%s: %w", o.Bucket, err)
	}
	if err := s.setKey(); err != nil {
		return nil, fmt.Errorf("storage gs://%s: %w", o.Bucket, err)
	}
	s.anonymous = s.o.Endpoint != "" && s.o.CredentialsFile == ""
	s.budget = budget.New(s.o.Buffer)
	s.transport = stall.NewTransport(s.o.StallTimeout, s.o.Wrap)
	s.retry = &patience.Policy{Service: "GCS", MaxRetries: s.o.MaxRetries, MaxBackoff: s.o.MaxBackoff, Patience: s.o.Patience,
		MayPass: s.mayPass, Reason: reason, Logger: s.o.Logger, Retried: s.o.Retried}
	return s, nil
}

// complete checks o and fills in what 0 means.
func (o *Options) complete() error {
	if o.Bucket == "" || strings.Contains(o.Bucket, "/") {
		return fmt.Errorf("%q is not the name of a bucket", o.Bucket)
	}
	if !o.RawPrefix {
		o.Prefix = strings.Trim(o.Prefix, "/")
	}
	if o.Prefix != "" && !strings.HasSuffix(o.Prefix, "/") {
		o.Prefix += "/"
	}
	if o.Endpoint != "" && !strings.Contains(o.Endpoint, "://") {
		o.Endpoint = "http://" + o.Endpoint
	}
	if u, err := url.Parse(o.Endpoint); err != nil || u.User != nil || o.Endpoint != "" && u.Host == "" {
		return errors.New("the endpoint is not a URL such as http://host:port") // not quoted: it may hold a password
	}
	o.ChunkSize = cmp.Or(o.ChunkSize, 16<<20)
	if o.ChunkSize < chunkUnit {
		return fmt.Errorf("chunk size %d is less than 256 KiB", o.ChunkSize)
	}
	if o.Buffer == 0 {
		o.Buffer = min(8*o.ChunkSize, 128<<20)
	}
	o.Buffer = max(o.Buffer, 2*chunkUnit)
	o.ChunkSize = min(o.ChunkSize, o.Buffer/2) / chunkUnit * chunkUnit
	o.Concurrency = max(cmp.Or(o.Concurrency, 16), 1)
	o.MaxRetries = max(cmp.Or(o.MaxRetries, 16), 0)
	o.MaxBackoff = cmp.Or(o.MaxBackoff, 20*time.Second)
	o.Patience = cmp.Or(o.Patience, max(time.Duration(o.MaxRetries)*o.MaxBackoff, 5*time.Minute))
	o.StallTimeout = cmp.Or(o.StallTimeout, 30*time.Second)
	o.Logger = cmp.Or(o.Logger, slog.New(slog.DiscardHandler))
	return nil
}

// setKey makes the headers that carry the customer's key.
func (s *Store) setKey() error {
	if s.o.EncryptionKey == "" {
		return nil
	}
	key, err := base64.StdEncoding.DecodeString(s.o.EncryptionKey)
	if err != nil || len(key) != 32 {
		return errors.New("the customer's encryption key (GCS_ENCRYPTION_KEY) is not 32 bytes in base64")
	}
	sum := sha256.Sum256(key)
	headers := func(prefix string) http.Header {
		h := http.Header{}
		h.Set(prefix+"encryption-algorithm", "AES256")
		h.Set(prefix+"encryption-key", s.o.EncryptionKey)
		h.Set(prefix+"encryption-key-sha256", base64.StdEncoding.EncodeToString(sum[:]))
		return h
	}
	s.key, s.sourceKey = headers("x-goog-"), headers("x-goog-copy-source-")
	return nil
}

// place returns where the objects are. The first call finds credentials, and the archive of WAL-E.
func (s *Store) place(ctx context.Context) (*place, error) {
	if p := s.found.Load(); p != nil {
		return p, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.found.Load(); p != nil {
		return p, nil
	}
	client, err := s.client()
	if err != nil {
		return nil, err
	}
	opts := []option.ClientOption{option.WithHTTPClient(client)}
	if s.o.Endpoint != "" {
		opts = append(opts, option.WithEndpoint(strings.TrimRight(s.o.Endpoint, "/")+"/storage/v1/"))
	}
	service, err := storage.NewService(ctx, opts...)
	if err != nil {
		return nil, err
	}
	service.UserAgent = "holdfast"
	p := &place{api: service, root: s.o.Prefix}
	if !s.o.RawPrefix {
		if p.root, err = s.findRoot(ctx, p); err != nil {
			return nil, err
		}
	}
	s.found.Store(p)
	return p, nil
}

// findRoot returns the root of p, or that with a slash in front where only there is an archive.
func (s *Store) findRoot(ctx context.Context, p *place) (string, error) {
	walE := "/" + p.root
	for _, at := range []struct{ root, dir string }{{p.root, "basebackups_005/"}, {p.root, "wal_005/"}, {walE, "basebackups_005/"}} {
		found, err := p.api.Objects.List(s.o.Bucket).Prefix(at.root + at.dir).MaxResults(1).Fields("nextPageToken,items(name)").Context(ctx).Do()
		switch {
		case code(err) == http.StatusForbidden:
			return p.root, nil // whoever may not list has no way to know
		case code(err) == http.StatusNotFound:
			return "", errNoBucket
		case err != nil:
			return "", err
		}
		s.bucketSeen.Store(true)
		if len(found.Items) == 0 && found.NextPageToken == "" {
			continue
		}
		if at.root == walE {
			s.o.Logger.Warn(fmt.Sprintf("GCS: the names of this archive begin with a slash, as WAL-E's do; to say so, set WALG_GS_PREFIX=gs://%s/%s and GCS_NORMALIZE_PREFIX=false",
				s.o.Bucket, walE))
		}
		return at.root, nil
	}
	return p.root, nil
}
