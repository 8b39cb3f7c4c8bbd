// Package swift keeps objects in a container of OpenStack Swift.
//
// Memory does not depend on the size of objects: what does not fit into one segment is put as a static large object (SLO), whose
// segments lie in a container of their own, called "<container>_segments" as OpenStack's tools have it, under
// "<prefix>/<name>/holdfast-<time>-<random>/<number>". No listing of the archive's container shows them. The object appears with its
// manifest, which is put last; the segments of what it replaces go after that. A manifest names no more segments than the service
// allows, but one of manifests as many times that: there is no bound on the size of an object.
//
// Every put carries an MD5, which the service compares. Nothing waits for ever: a connection over which no byte came or went for a
// while is broken off and the request made again, a body that breaks off is continued where it broke, and both only for a time without
// progress.
//
// Swift is eventually consistent. What was put is there for whoever asks for it by name, but a listing may show it only seconds later,
// or go on showing what was deleted, and after an overwrite a replica that was down may answer with what was there before. Of two
// writers the later one wins, by the clocks of the service. Swift's condition on a put, If-None-Match, is looked at when the put begins:
// of several that begin before the first one has ended all succeed, as a test against OpenStack's own server shows. That decides
// nothing that looking before does not, so the Store has no PutIfAbsent, and callers have what package store does in its place.
//
// WAL-E's objects have names that begin with a slash. Where there is no archive below "path/" and a WAL-E archive below "/path/", the
// Store is the latter, and the Logger hears of it.
package swift

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ncw/swift/v2"

	"holdfast/internal/budget"
	"holdfast/internal/store/patience"
	"holdfast/internal/store/stall"
)

// Options says which container, and how to use it. Container is required, and AuthURL or StorageURL with AuthToken; the rest works
// as zero value. The names of the settings stand with the fields that they go to: OS_ are OpenStack's, which WAL-G reads (itself or
// through its Swift library), as are ST_ for the first version of authentication; SWIFT_ are WAL-E's.
type Options struct {
	Container string // the host of WALG_SWIFT_PREFIX or WALE_SWIFT_PREFIX
	Prefix    string // its path; slashes at its ends do not count

	AuthURL     string // OS_AUTH_URL, ST_AUTH, SWIFT_AUTHURL
	AuthVersion int    // ST_AUTH_VERSION: 1, 2 or 3; 0 takes the v1, v2 or v3 in AuthURL
	User        string // OS_USERNAME, ST_USER, SWIFT_USER
	UserID      string // OS_USER_ID
	Password    string // OS_PASSWORD, ST_KEY, SWIFT_PASSWORD

	Tenant         string // OS_TENANT_NAME, OS_PROJECT_NAME, SWIFT_TENANT
	TenantID       string // OS_TENANT_ID, OS_PROJECT_ID
	Domain         string // OS_USER_DOMAIN_NAME
	DomainID       string // OS_USER_DOMAIN_ID
	TenantDomain   string // OS_PROJECT_DOMAIN_NAME; "" is the user's
	TenantDomainID string // OS_PROJECT_DOMAIN_ID
	TrustID        string // OS_TRUST_ID

	ApplicationCredentialID     string // OS_APPLICATION_CREDENTIAL_ID
	ApplicationCredentialName   string // OS_APPLICATION_CREDENTIAL_NAME
	ApplicationCredentialSecret string // OS_APPLICATION_CREDENTIAL_SECRET

	Region       string // OS_REGION_NAME, SWIFT_REGION; "" is the first that the service names
	EndpointType string // OS_ENDPOINT_TYPE: public, internal or admin, or with URL behind it; "" is public
	StorageURL   string // OS_STORAGE_URL: what authentication would bring; with AuthToken
	AuthToken    string // OS_AUTH_TOKEN

	MaxRetries int // GOSWIFT_RETRIES: of one request, and of a body without progress; 0 means 15, below 0 none

	SegmentSize      int64  // bytes of one segment, and of the largest object put without; 0 means 32 MiB, at least 1 MiB. No setting of WAL-G's
	SegmentContainer string // for the segments; "" is Container with _segments behind it. It is made when it is missing
	Concurrency      int    // segments of one object under way at once; 0 means 4
	Buffer           int64  // bytes that the puts of all objects may take in memory; 0 means 4 times SegmentSize

	MaxBackoff   time.Duration // between two tries; 0 means 20 s
	Patience     time.Duration // from the first failure without progress, after which nothing is tried again; 0 means MaxRetries times MaxBackoff, or 5 min if that is more
	Retried      *atomic.Int64 // counts the tries behind the first; nil is not counted
	StallTimeout time.Duration // without a byte in either direction, after which a connection is broken off; 0 means 30 s. Copying and putting a manifest may take ten times as long

	Wrap   func(net.Conn) net.Conn // returns each new connection as it is to be used, such as under a limit; nil leaves it
	Logger *slog.Logger            // hears of every request that will be made again; nil discards
}

// Store keeps objects in a container. It is a store.Copier, ManyDeleter, Walker and Sweeper.
type Store struct {
	o         Options
	budget    *budget.Budget
	conn      *swift.Connection
	transport *transport
	retry     *patience.Policy

	mu    sync.Mutex // held while something below is found out
	root  atomic.Pointer[string]
	large atomic.Pointer[largeObjects]

	containerSeen atomic.Bool // the container is known to exist
	segmentsSeen  atomic.Int32
}

// What is known of the container of segments.
const (
	segmentsUnknown = iota
	segmentsMissing
	segmentsThere
)

// New returns the Store of a container. It asks nothing yet; the first call that needs the service does.
func New(o Options) (*Store, error) {
	s := &Store{o: o}
	if err := s.o.complete(); err != nil {
		return nil, fmt.Errorf("storage swift://%s: %w", o.Container, err)
	}
	o = s.o
	s.budget = budget.New(o.Buffer)
	s.transport = &transport{Transport: stall.NewTransport(o.StallTimeout, o.Wrap)}
	s.retry = &patience.Policy{Service: "Swift", MaxRetries: o.MaxRetries, MaxBackoff: o.MaxBackoff, Patience: o.Patience,
		MayPass: s.mayPass, Reason: reason, Logger: o.Logger, Retried: o.Retried}
	s.conn = &swift.Connection{
		AuthUrl: o.AuthURL, AuthVersion: o.AuthVersion, UserName: o.User, UserId: o.UserID, ApiKey: o.Password,
		Tenant: o.Tenant, TenantId: o.TenantID, Domain: o.Domain, DomainId: o.DomainID,
		TenantDomain: o.TenantDomain, TenantDomainId: o.TenantDomainID, TrustId: o.TrustID,
		ApplicationCredentialId: o.ApplicationCredentialID, ApplicationCredentialName: o.ApplicationCredentialName,
		ApplicationCredentialSecret: o.ApplicationCredentialSecret,
		Region:                      o.Region, EndpointType: swift.EndpointType(o.EndpointType), StorageUrl: o.StorageURL, AuthToken: o.AuthToken,
		UserAgent: "holdfast", Transport: s.transport,
		// It neither tries again nor limits the time: that is done here, with a word, and by the silence of connections.
		Retries: -1, ConnectTimeout: 20 * o.StallTimeout, Timeout: 20 * o.StallTimeout,
	}
	return s, nil
}

// complete checks o and fills in what 0 means.
func (o *Options) complete() error {
	if o.Container == "" || strings.Contains(o.Container, "/") {
		return fmt.Errorf("%q is not the name of a container", o.Container)
	}
	if o.Prefix = strings.Trim(o.Prefix, "/"); o.Prefix != "" {
		o.Prefix += "/"
	}
	if o.SegmentContainer = cmp.Or(o.SegmentContainer, o.Container+"_segments"); o.SegmentContainer == o.Container {
		return errors.New("the container of segments is that of the objects")
	}
	for _, address := range []string{o.AuthURL, o.StorageURL} {
		if u, err := url.Parse(address); err != nil || u.User != nil || address != "" && u.Host == "" {
			return errors.New("OS_AUTH_URL or OS_STORAGE_URL is not a URL such as https://host:port/v3") // not quoted: it may hold a password
		}
	}
	switch {
	case o.AuthURL == "" && (o.StorageURL == "" || o.AuthToken == ""):
		return errors.New("no address of authentication: set OS_AUTH_URL")
	case o.AuthURL != "" && o.AuthVersion == 0 && !regexp.MustCompile("v[123]").MatchString(o.AuthURL):
		return errors.New("OS_AUTH_URL does not say its version, as https://host:port/v3 does: set ST_AUTH_VERSION")
	case o.AuthVersion < 0 || o.AuthVersion > 3:
		return fmt.Errorf("ST_AUTH_VERSION is %d, not 1, 2 or 3", o.AuthVersion)
	}
	o.EndpointType = strings.TrimSuffix(o.EndpointType, "URL")
	o.SegmentSize = cmp.Or(o.SegmentSize, 32<<20)
	if o.SegmentSize < 1<<20 || o.SegmentSize > 5<<30 {
		return fmt.Errorf("segment size %d is not between 1 MiB and 5 GiB", o.SegmentSize)
	}
	o.Buffer = cmp.Or(o.Buffer, 4*o.SegmentSize)
	o.SegmentSize = min(o.SegmentSize, max(o.Buffer, 1<<20))
	o.Concurrency = max(cmp.Or(o.Concurrency, 4), 1)
	o.MaxRetries = max(cmp.Or(o.MaxRetries, 15), 0)
	o.MaxBackoff = cmp.Or(o.MaxBackoff, 20*time.Second)
	o.Patience = cmp.Or(o.Patience, max(time.Duration(o.MaxRetries)*o.MaxBackoff, 5*time.Minute))
	o.StallTimeout = cmp.Or(o.StallTimeout, 30*time.Second)
	o.Logger = cmp.Or(o.Logger, slog.New(slog.DiscardHandler))
	return nil
}

// transport notes how far the clocks are apart, and does not let the library follow to other services, which it would do with its token.
type transport struct {
	*stall.Transport
	skew atomic.Int64 // how far ahead this machine's clock is of the service's, as a time.Duration
}

func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.Transport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if there, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		t.skew.Store(int64(time.Since(there)))
	}
	if resp.StatusCode >= 300 && resp.StatusCode < 400 {
		resp.Header.Del("Location")
	}
	return resp, nil
}

// key returns what the service calls an object.
func (s *Store) key(name string) string { return *s.root.Load() + name }

// prepare logs in, and finds the archive, where that was not done yet. Either is progress.
func (s *Store) prepare(ctx context.Context, t *patience.Tries) error {
	if !s.conn.Authenticated() {
		if err := s.conn.Authenticate(ctx); err != nil {
			return &authError{err}
		}
		t.Progress()
	}
	if s.root.Load() != nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.root.Load() != nil {
		return nil
	}
	root, err := s.findRoot(ctx, t)
	if err != nil {
		return err
	}
	s.root.Store(&root)
	return nil
}

// findRoot returns what names begin with: the prefix, or that with a slash in front where only there is an archive.
func (s *Store) findRoot(ctx context.Context, t *patience.Tries) (string, error) {
	root, walE := s.o.Prefix, "/"+s.o.Prefix
	for _, at := range []struct{ root, dir string }{{root, "basebackups_005/"}, {root, "wal_005/"}, {walE, "basebackups_005/"}} {
		found, err := s.conn.Objects(ctx, s.o.Container, &swift.ObjectsOpts{Prefix: at.root + at.dir, Limit: 1})
		switch {
		case code(err) == http.StatusForbidden:
			return root, nil // whoever may not list has no way to know
		case code(err) == http.StatusNotFound:
			return "", errNoContainer
		case err != nil:
			return "", err
		}
		s.containerSeen.Store(true)
		t.Progress()
		if len(found) == 0 {
			continue
		}
		if at.root == walE {
			s.o.Logger.Warn(fmt.Sprintf("Swift: the names of this archive begin with a slash, as WAL-E's do: it is read and written as %s in container %s", walE, s.o.Container))
		}
		return at.root, nil
	}
	return root, nil
}
