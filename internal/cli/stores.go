package cli

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/compress"
	"holdfast/internal/config"
	"holdfast/internal/proof"
	"holdfast/internal/store"
	"holdfast/internal/store/azure"
	"holdfast/internal/store/failover"
	"holdfast/internal/store/file"
	"holdfast/internal/store/gcs"
	"holdfast/internal/store/meter"
	"holdfast/internal/store/mirror"
	"holdfast/internal/store/retry"
	"holdfast/internal/store/s3"
	"holdfast/internal/store/sftp"
	"holdfast/internal/store/swift"
	"holdfast/internal/store/throttle"
)

// advised is an error with what the operator can do.
type advised struct {
	error
	hint string
}

func (e *advised) Hint() string  { return e.hint }
func (e *advised) Unwrap() error { return e.error }

// bareStore opens one storage. Its connections, where it has such, are under limit; nil is none. Patience is for how long it tries again
// what fails; 0 is its own.
func (a *app) bareStore(ctx context.Context, s *config.Settings, st *config.Storage, limit *throttle.Limit, patience time.Duration) (store.Store, error) {
	var wrap func(net.Conn) net.Conn
	if limit != nil {
		wrap = limit.Conn
	}
	buffer := bufferOf(s)
	switch {
	case st.Dir != "":
		return file.Open(st.Dir)
	case st.S3.Bucket != "":
		o := s3Options(&st.S3, buffer)
		o.Logger, o.Wrap, o.Patience, o.Retried = a.log, wrap, patience, a.traffic.Retried()
		return s3.New(ctx, o)
	case st.GCS.Bucket != "":
		g := &st.GCS
		return gcs.New(gcs.Options{
			Bucket: g.Bucket, Prefix: g.Path, RawPrefix: g.Raw, CredentialsFile: g.CredentialsFile, EncryptionKey: g.EncryptionKey, Endpoint: g.Endpoint,
			Timeout: g.Timeout, ChunkSize: g.ChunkSize, MaxRetries: orNone(g.Retries), Patience: patience, Buffer: buffer, Wrap: wrap, Logger: a.log, Retried: a.traffic.Retried(),
		})
	case st.Azure.Container != "":
		z := &st.Azure
		return azure.New(azure.Options{
			Container: z.Container, Prefix: z.Path, Account: z.Account, AccessKey: z.AccessKey, SASToken: z.SASToken,
			Environment: z.Environment, EndpointSuffix: z.EndpointSuffix, Endpoint: z.Endpoint, CAFile: z.CACert, APIVersion: z.APIVersion,
			BlockSize: z.BlockSize, Concurrency: z.Blocks, Buffer: max(z.BlockSize, buffer), TryTimeout: z.TryTimeout, MaxRetries: orNone(z.Retries),
			Patience: patience, Wrap: wrap, Logger: a.log, Retried: a.traffic.Retried(),
		})
	case st.Swift.Container != "":
		w := &st.Swift
		return swift.New(swift.Options{
			Container: w.Container, Prefix: w.Path, AuthURL: w.AuthURL, AuthVersion: w.AuthVersion,
			User: w.User, UserID: w.UserID, Password: w.Password, Domain: w.Domain, DomainID: w.DomainID,
			Tenant: w.Tenant, TenantID: w.TenantID, TenantDomain: w.TenantDomain, TenantDomainID: w.TenantDomainID, TrustID: w.TrustID,
			ApplicationCredentialID: w.CredentialID, ApplicationCredentialName: w.CredentialName, ApplicationCredentialSecret: w.CredentialSecret,
			Region: w.Region, EndpointType: w.EndpointType, StorageURL: w.StorageURL, AuthToken: w.AuthToken, MaxRetries: orNone(w.Retries),
			SegmentSize: w.SegmentSize, SegmentContainer: w.SegmentContainer, Buffer: buffer, Patience: patience, Wrap: wrap, Logger: a.log, Retried: a.traffic.Retried(),
		})
	case st.SFTP.Host != "":
		h := &st.SFTP
		o := sftp.Options{
			Host: h.Host, Root: h.Dir, Port: h.Port, User: h.User, PrivateKeyFile: h.PrivateKeyFile, Passphrase: h.Passphrase,
			AgentSocket: h.AgentSocket, Password: h.Password, MaxRetries: orNone(h.Retries), Patience: patience, Wrap: wrap, Logger: a.log, Retried: a.traffic.Retried(),
		}
		if h.KnownHosts != "" {
			o.KnownHosts = []string{h.KnownHosts}
		}
		return sftp.New(o)
	}
	return nil, fmt.Errorf("storage %s: this release cannot keep archives at %s", st.Name, st.Location())
}

// bufferOf returns the bytes that parts on their way to one storage may take: all get half of the memory.
func bufferOf(s *config.Settings) int64 { return s.MemoryBudget / 2 / int64(len(s.InUse())) }

// putsAtOnce returns how many objects every storage has buffers for at once, 0 where none needs any.
func putsAtOnce(s *config.Settings) (puts int) {
	for _, st := range s.InUse() {
		var one int64
		switch {
		case st.S3.Bucket != "":
			one = st.S3.PartSize
		case st.GCS.Bucket != "":
			one = 2 * st.GCS.ChunkSize
		case st.Azure.Container != "":
			one = st.Azure.BlockSize
		case st.Swift.Container != "":
			one = st.Swift.SegmentSize
		}
		if one > 0 {
			n := int(max(1, bufferOf(s)/one))
			puts = min(cmp.Or(puts, n), n)
		}
	}
	return puts
}

// orNone turns a setting's number of retries into that of a store's Options, where 0 is the store's own default.
func orNone(retries int) int {
	if retries == 0 {
		return -1
	}
	return retries
}

// s3Options says which bucket the settings name, and how to use it. Parts on their way take up to buffer bytes.
func s3Options(b *config.S3, buffer int64) s3.Options {
	return s3.Options{
		Bucket: b.Bucket, Prefix: b.Path,
		Endpoint: b.Endpoint, Region: b.Region, PathStyle: b.PathStyle, DualStack: b.DualStack, CAFile: b.CACert, ListV1: b.ListV1,
		AccessKey: b.AccessKeyID, SecretKey: b.SecretAccessKey, SessionToken: b.SessionToken,
		RoleARN: b.RoleARN, RoleSessionName: b.RoleSessionName,
		Profile: b.Profile, ConfigFile: b.ConfigFile, CredentialsFile: b.CredentialsFile,
		StorageClass: b.StorageClass, SSE: b.SSE, SSEKMSKeyID: b.SSEKMSKeyID, SSECKey: b.SSECustomerKey,
		ObjectLockMode: b.LockMode, ObjectLockRetention: b.LockTime,
		PartSize: b.PartSize, Concurrency: b.Parts, Buffer: max(b.PartSize, buffer), DeleteBatch: b.DeleteBatch,
		MaxRetries: orNone(b.Retries), Disable100Continue: b.NoContinue, Headers: b.Headers,
	}
}

// brief is how long a storage may go on failing for which another one stands in, which is not to keep WAL waiting.
const brief = 15 * time.Second

// standsIn reports whether what is meant for one storage goes to another when that fails.
func standsIn(s *config.Settings) bool {
	return len(s.InUse()) > 1 && (len(s.Failover) > 0 || s.Mirroring.Rule == mirror.Any.String())
}

// sweepTime bounds what is spent on clearing one storage, which may be down.
const sweepTime = 2 * time.Minute

// sweep removes what writers that died long ago left unfinished in the storages. Nobody reads that, so failing here fails nothing.
func (a *app) sweep(ctx context.Context, s *config.Settings) {
	for _, one := range s.InUse() {
		ctx, cancel := context.WithTimeout(ctx, sweepTime)
		defer cancel()
		var removed []string
		st, err := a.bareStore(ctx, s, &one, nil, brief)
		if sweeper, ok := st.(store.Sweeper); err == nil && ok {
			removed, err = sweeper.Sweep(ctx)
		}
		if len(removed) > 0 {
			a.log.Info(fmt.Sprintf("removed %d unfinished files that broken-off pushes had left", len(removed)))
		}
		switch {
		case errors.Is(err, fs.ErrPermission): // who may only write; it is for who may remove
			a.log.Debug(fmt.Sprintf("what broken-off pushes left stays: %v", err))
		case err != nil:
			a.log.Warn(fmt.Sprintf("what broken-off pushes left was not all removed: %v", err))
		}
	}
}

// A purpose is what an archive is opened for. It decides what a storage that is down means, and which keys are needed.
type purpose int

const (
	toRead  purpose = iota // what is missing counts as missing only when all storages said so
	toJudge                // so it does; a storage that is down is not waited for long where there are others, as that it is down is part of the answer
	toList                 // storages that are down are passed over, with a warning
	toWrite                // so they are, and there must be a key that encrypts if there is any
)

// stores opens the storages that a command works with: calls counted, slowed to the limit of the network, and tried again when
// what failed may pass, for as long as patience, or each kind of storage, has it.
func (a *app) stores(ctx context.Context, s *config.Settings, patience time.Duration) ([]failover.Member, error) {
	if err := s.RequireStorage(); err != nil {
		return nil, err
	}
	var limit *throttle.Limit
	if s.NetworkRate > 0 {
		limit = throttle.New(s.NetworkRate)
	}
	var all []failover.Member
	several := len(s.InUse()) > 1
	for _, one := range s.InUse() {
		st, err := a.bareStore(ctx, s, &one, limit, patience)
		if err != nil && several && one.Dir != "" {
			st, err = &away{err}, nil // a directory that is not mounted is a storage that is down
		}
		if err != nil {
			return nil, err
		}
		if c, ok := st.(io.Closer); ok && a.opening != nil {
			a.opening(c)
		}
		_, gone := st.(*away)
		st = meter.New(st, &a.traffic)
		if one.Dir != "" && !gone { // others try again by themselves, request by request; their connections have the limit
			if limit != nil {
				st = limit.Store(st)
			}
			st = retry.New(st, retry.Options{Logger: a.log, Retried: a.traffic.Retried()})
		}
		all = append(all, failover.Member{Name: one.Name, Store: st})
	}
	return all, nil
}

// away is a storage that cannot be reached.
type away struct{ err error }

func (s *away) Open(context.Context, string) (io.ReadCloser, error) { return nil, s.err }
func (s *away) OpenRange(context.Context, string, int64, int64) (io.ReadCloser, error) {
	return nil, s.err
}
func (s *away) Put(context.Context, string, io.Reader) error         { return s.err }
func (s *away) PutIfAbsent(context.Context, string, io.Reader) error { return s.err }
func (s *away) Stat(context.Context, string) (store.Object, error)   { return store.Object{}, s.err }
func (s *away) Delete(context.Context, string) error                 { return s.err }
func (s *away) List(context.Context, string, string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) { yield(store.Object{}, s.err) }
}

// openStore opens what the settings name as one store.
func (a *app) openStore(ctx context.Context, s *config.Settings, p purpose) (store.Store, error) {
	var patience time.Duration
	if p != toRead && (p == toJudge && len(s.InUse()) > 1 || standsIn(s)) {
		patience = brief
	}
	members, err := a.stores(ctx, s, patience)
	if err != nil {
		return nil, err
	}
	if len(members) == 1 {
		return members[0].Store, nil
	}
	if len(s.Mirrors) > 0 {
		m, err := a.openMirrors(s, members, p)
		if err != nil {
			return nil, err
		}
		if p == toRead || p == toJudge {
			return m.Store(), nil
		}
		return m.Alive(), nil
	}
	several, err := a.failover(s, members)
	if err != nil {
		return nil, err
	}
	if p == toRead || p == toJudge {
		return several.Union(), nil
	}
	return several.Alive(), nil
}

// openMirrors makes one of several storages that hold the same.
func (a *app) openMirrors(s *config.Settings, members []failover.Member, p purpose) (*mirror.Mirror, error) {
	rule, err := mirror.ParseRule(s.Mirroring.Rule)
	if err != nil {
		return nil, err
	}
	o := mirror.Options{Rule: rule, Journal: s.Mirroring.Journal, Stall: s.Mirroring.Stall, Pause: s.Mirroring.Pause, Puts: putsAtOnce(s), Logger: a.log}
	if o.Journal == "" {
		dir, err := stateDir(s)
		switch {
		case err == nil:
			o.Journal = filepath.Join(dir, "owed")
		case rule == mirror.Any && p == toWrite:
			return nil, err
		default: // who reads, on another host, has nothing noted there; by the rule all nothing is ever owed
			o.Rule = mirror.All
		}
	}
	all := make([]mirror.Member, len(members))
	for i, m := range members {
		all[i] = mirror.Member(m)
	}
	a.mirrors, err = mirror.New(all, o)
	return a.mirrors, err
}

// repay brings mirrors up to date with what they were owed before begin: at most limit objects, 0 being all. Nothing is tried while
// something has been owed since, for then a mirror is down. What comes of it fails nothing.
func (a *app) repay(ctx context.Context, begin time.Time, limit int) {
	if a.mirrors == nil {
		return
	}
	owed, err := a.mirrors.Owed()
	if err != nil {
		a.log.Warn(fmt.Sprintf("what is owed to mirrors cannot all be read: %v", err))
	}
	if len(owed) == 0 {
		return
	}
	if slices.ContainsFunc(owed, func(d mirror.Debt) bool { return !d.Since.Before(begin) }) {
		a.log.Warn(fmt.Sprintf("%d objects are owed to mirrors, the oldest since %s; `holdfast st repay` copies them once the mirror answers",
			len(owed), owed[0].Since.UTC().Format(time.RFC3339)))
		return
	}
	done, err := a.mirrors.Repay(ctx, limit)
	a.log.Info(fmt.Sprintf("repaid mirrors: copied %d objects, removed %d, %d are still owed", done.Copied, done.Deleted, done.Left))
	if err != nil {
		a.log.Warn(fmt.Sprintf("mirrors were not all repaid: %v", err))
	}
}

// failover makes one of several storages.
func (a *app) failover(s *config.Settings, members []failover.Member) (*failover.Stores, error) {
	o := failover.Options{
		NoCheck: !s.Health.Check, CheckTimeout: s.Health.Timeout, CheckSize: s.Health.Size, CacheLifetime: s.Health.Lifetime, Logger: a.log,
	}
	if dir, err := stateDir(s); err != nil {
		a.log.Warn(fmt.Sprintf("which storages are alive is not remembered: %v", err))
	} else {
		all := *s
		all.Target = ""
		o.CacheFile = filepath.Join(dir, "alive-"+short(all.Location())+".json")
	}
	return failover.New(members, o)
}

// stateDir returns the directory for what this host remembers of an archive and its further storages, and makes it.
func stateDir(s *config.Settings) (string, error) {
	if s.StateDir == "" {
		return "", &advised{errors.New("this account has no home directory to keep state in"), "set HOLDFAST_STATE_DIR to a directory that stays"}
	}
	dir := filepath.Join(s.StateDir, short(s.Storage.Location()))
	return dir, os.MkdirAll(dir, 0o700)
}

// short is a name for a file that stands for text.
func short(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:8])
}

// tellTraffic logs what went to and came from the store, for those who look for where time goes.
func (a *app) tellTraffic() {
	if a.log == nil {
		return
	}
	c := a.traffic.Read()
	for _, k := range []struct {
		kind string
		op   meter.Op
	}{{"open", c.Open}, {"put", c.Put}, {"stat", c.Stat}, {"list", c.List}, {"delete", c.Delete}} {
		if k.op.Calls > 0 {
			a.log.Debug("store: "+k.kind, "calls", k.op.Calls, "failed", k.op.Failed, "objects", k.op.Objects, "time", k.op.Time)
		}
	}
	if c.Read+c.Written > 0 {
		a.log.Debug("store: bytes", "read", c.Read, "written", c.Written)
	}
}

// openArchive opens the archive that the settings name.
func (a *app) openArchive(ctx context.Context, s *config.Settings, p purpose) (*archive.Archive, error) {
	st, err := a.openStore(ctx, s, p)
	if err != nil {
		return nil, err
	}
	o, err := a.archiveOptions(ctx, s, p)
	if err != nil {
		return nil, err
	}
	o.Parallel = runtime.GOMAXPROCS(0)
	if o.ProofKeys, err = proofKeys(s); err != nil { // who restores must be able to, whatever else is set
		a.log.Warn(err.Error() + ": no record of a drill counts")
		nobody, _, err := ed25519.GenerateKey(nil)
		if err != nil {
			return nil, err
		}
		o.ProofKeys = []ed25519.PublicKey{nobody}
	}
	return archive.New(st, o), nil
}

// proofKeys returns the public keys of whoever may vouch for records of drills: those that are set, or else that of the private one; none where neither is.
func proofKeys(s *config.Settings) ([]ed25519.PublicKey, error) {
	d := &s.Drill
	if d.PublicKeys != "" {
		keys, err := proof.ParsePublicKeys(d.PublicKeys)
		if err != nil {
			return nil, &config.Problem{What: s.Called("HOLDFAST_PROOF_PUBLIC_KEY"), Why: err.Error(), Do: "make it of the private one with `openssl pkey -pubout`"}
		}
		return keys, nil
	}
	if d.Key == "" {
		return nil, nil
	}
	key, err := proofKey(s)
	if err != nil {
		return nil, err
	}
	return []ed25519.PublicKey{key.Public().(ed25519.PublicKey)}, nil
}

// proofKey returns the private key that signs records of drills.
func proofKey(s *config.Settings) (ed25519.PrivateKey, error) {
	key, err := proof.ParseKey(s.Drill.Key)
	if err != nil {
		return nil, &config.Problem{What: s.Called("HOLDFAST_PROOF_KEY"), Why: err.Error(), Do: "make one with `openssl genpkey -algorithm ed25519`"}
	}
	return key, nil
}

// archiveOptions says how the settings want new objects compressed, on one core, and encrypted.
func (a *app) archiveOptions(ctx context.Context, s *config.Settings, p purpose) (archive.Options, error) {
	method, err1 := compress.ParseMethod(s.Compression.Method)
	level, err2 := compress.ParseLevel(s.Compression.Level)
	if err := errors.Join(err1, err2); err != nil {
		return archive.Options{}, err
	}
	o := archive.Options{Method: method, Level: level, Parallel: 1}
	keys, err := a.openKeys(ctx, s)
	if err != nil || keys == nil {
		return o, err
	}
	o.Key = keys
	if p == toWrite {
		o.WriteOnly, o.Notes, err = writes(keys)
	}
	return o, err
}
