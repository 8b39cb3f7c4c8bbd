// Package config is the one table of settings: what each is called, what it may be, what it means, and how a value is found.
//
// A setting has WAL-G's name where WAL-G has one (WALG_S3_PREFIX) and a name of ours (HOLDFAST_S3_PREFIX). Its value comes from a
// command-line flag, else from the environment, else from a settings file (YAML, JSON or TOML), else it is the default.
// An empty value counts as not given, unless what was to be encrypted by it would be stored in clear. Load collects everything that is wrong, so that nothing starts with settings
// that do not mean what the operator wrote: a file that does not parse, an unknown name, a value out of range, a setting that
// this release cannot honour are errors. Settings of WAL-G that have nothing to act on here are named in notices.
//
// The environment and the home directory are passed in. Only Load reads files; nothing is exported to anybody's environment.
package config

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Settings is what the sources say, as plain values. Fields have the setting's name in their comment.
type Settings struct {
	File         string    // the settings file that was read, or ""; WALG_CONFIG_PATH
	Content      []byte    // of that file: with secrets
	Storage      Storage   // the one called default
	Failover     []Storage // further ones of the same archive, by name; WALG_FAILOVER_STORAGES
	Health       Health    // of the storages, where there are Failover
	Mirrors      []Storage // that hold the same as Storage, by name; HOLDFAST_MIRRORS
	Mirroring    Mirroring
	Target       string // name of the one storage to use, "" for as many as there are; WALG_TARGET_STORAGE
	NetworkRate  int64  // bytes a second at most to and from all storages, both ways; 0 is no limit; WALG_NETWORK_RATE_LIMIT
	StateDir     string // of what this host remembers of storages, or ""; HOLDFAST_STATE_DIR
	Encryption   Encryption
	Compression  Compression
	WAL          WAL
	Receive      Receive
	Checks       string // limits of checks that are not the default ones, see internal/check; HOLDFAST_CHECK
	Backup       Backup
	Restore      Restore
	Verify       Verify
	Drill        Drill
	Retention    Retention
	Lease        Lease
	Agent        Agent
	Alerts       Alerts
	Metrics      Metrics
	Stanza       string // of pgBackRest; PGBACKREST_STANZA
	Postgres     Postgres
	Log          Log
	MemoryBudget int64 // bytes the whole process should stay below; HOLDFAST_MEMORY_BUDGET

	rows    []Setting
	values  []Value
	notices []string
	given   given

	failover, mirrors storages
}

// Storage says where the archive, or a copy or a part of it, is. One of Dir, S3.Bucket, GCS.Bucket, Azure.Container, Swift.Container and
// SFTP.Host is set, or none when no prefix was given.
type Storage struct {
	Name  string // "default", or what the map that it is in calls it
	Dir   string // absolute path of the archive's root; WALG_FILE_PREFIX with WALG_STORAGE_PREFIX
	S3    S3     // WALG_S3_PREFIX and what S3 needs
	GCS   GCS    // WALG_GS_PREFIX
	Azure Azure  // WALG_AZ_PREFIX
	Swift Swift  // WALG_SWIFT_PREFIX
	SFTP  SFTP   // WALG_SSH_PREFIX

	filePrefix, s3Prefix, gsPrefix, azPrefix, swiftPrefix, sshPrefix, folder string
}

// S3 says how to reach a bucket, and how objects are kept in it.
type S3 struct {
	Bucket string // "" when the archive is not in S3
	Path   string // of the archive's root below the bucket, without slashes at its ends; WALG_STORAGE_PREFIX included

	Endpoint  string // URL with scheme, or "" for AWS itself; AWS_ENDPOINT
	Region    string // "" means: ask the bucket, or us-east-1 at an Endpoint; AWS_REGION
	PathStyle bool   // AWS_S3_FORCE_PATH_STYLE
	DualStack bool   // AWS_DUAL_STACK
	CACert    string // file of certificates to trust instead of the system's; S3_CA_CERT_FILE or AWS_CA_BUNDLE

	AccessKeyID, SecretAccessKey, SessionToken string // all "" means the SDK's chain of credential sources
	RoleARN, RoleSessionName                   string // role to assume with them
	Profile, CredentialsFile, ConfigFile       string // of the SDK's shared files

	StorageClass   string // "" is the bucket's default; S3_STORAGE_CLASS
	SSE            string // "", "AES256" or "aws:kms"; S3_SSE
	SSEKMSKeyID    string // S3_SSE_KMS_ID
	SSECustomerKey string // 32 bytes in base64, or ""; S3_SSE_C

	PartSize int64 // bytes of a part of a multipart upload; S3_MAX_PART_SIZE
	Parts    int   // parts of one object in flight at once; UPLOAD_CONCURRENCY
	Retries  int   // further attempts after a failed call; S3_MAX_RETRIES

	LockMode string        // "", "GOVERNANCE" or "COMPLIANCE"; S3_RETENTION_MODE
	LockTime time.Duration // 0 with LockMode ""; S3_RETENTION_PERIOD

	Headers     map[string]string // sent with every request; S3_REQUEST_ADDITIONAL_HEADERS
	ListV1      bool              // S3_USE_LIST_OBJECTS_V1
	NoContinue  bool              // S3_DISABLE_100_CONTINUE
	DeleteBatch int               // objects deleted by one call; S3_DELETE_BATCH_SIZE

	walEEndpoint, caBundle, defaultRegion string
	lockSeconds                           int
}

// GCS says how to reach a bucket of Google Cloud Storage.
type GCS struct {
	Bucket          string        // "" when the archive is not there
	Path            string        // below the bucket, WALG_STORAGE_PREFIX included; without slashes at its ends unless Raw
	Raw             bool          // slashes of the path are part of names, as WAL-E had it; GCS_NORMALIZE_PREFIX=false
	CredentialsFile string        // "" means Google's own sources; GOOGLE_APPLICATION_CREDENTIALS
	EncryptionKey   string        // 32 bytes in base64, or ""; GCS_ENCRYPTION_KEY
	Endpoint        string        // "" for Google's; STORAGE_EMULATOR_HOST
	ChunkSize       int64         // bytes of one request at most; GCS_MAX_CHUNK_SIZE
	Timeout         time.Duration // of one call; 0 is none; GCS_CONTEXT_TIMEOUT
	Retries         int           // further attempts after a failed call; GCS_MAX_RETRIES

	normalize      bool
	timeoutSeconds int
}

// Azure says how to reach a container of Azure Blob Storage.
type Azure struct {
	Container string // "" when the archive is not there
	Path      string // below the container, without slashes at its ends; WALG_STORAGE_PREFIX included

	Account, AccessKey, SASToken string // without key and token: Azure's own sources of credentials
	Environment                  string // AZURE_ENVIRONMENT_NAME
	EndpointSuffix               string // "" is that of Environment; AZURE_ENDPOINT_SUFFIX
	Endpoint                     string // URL of the account's service, or ""; HOLDFAST_AZURE_ENDPOINT
	CACert                       string // file of certificates to trust besides the system's; HOLDFAST_AZURE_CA_CERT_FILE
	APIVersion                   string // AZURE_BLOB_STORE_API_VERSION
	BlockSize                    int64  // bytes; AZURE_BUFFER_SIZE
	Blocks                       int    // blocks of one object in flight at once; AZURE_MAX_BUFFERS
	TryTimeout                   time.Duration
	Retries                      int // HOLDFAST_AZURE_MAX_RETRIES

	tryMinutes int
}

// Swift says how to reach a container of OpenStack Swift.
type Swift struct {
	Container string // "" when the archive is not there
	Path      string // below the container, without slashes at its ends; WALG_STORAGE_PREFIX included

	AuthURL     string // OS_AUTH_URL
	AuthVersion int    // 0 is the one in AuthURL; ST_AUTH_VERSION

	User, UserID, Domain, DomainID, Password       string // OS_USERNAME, OS_USER_…
	Tenant, TenantID, TenantDomain, TenantDomainID string // OS_TENANT_NAME, OS_PROJECT_…
	TrustID                                        string // OS_TRUST_ID
	CredentialID, CredentialName, CredentialSecret string // OS_APPLICATION_CREDENTIAL_…
	Region, EndpointType                           string // OS_REGION_NAME, OS_ENDPOINT_TYPE
	StorageURL, AuthToken                          string // OS_STORAGE_URL, OS_AUTH_TOKEN

	SegmentSize      int64  // bytes; HOLDFAST_SWIFT_SEGMENT_SIZE
	SegmentContainer string // "" is Container with _segments behind; HOLDFAST_SWIFT_SEGMENT_CONTAINER
	Retries          int    // GOSWIFT_RETRIES
}

// SFTP says how to reach a directory of another host over SSH.
type SFTP struct {
	Host           string // "" when the archive is not there
	Dir            string // absolute path there; WALG_STORAGE_PREFIX included
	Port           int    // SSH_PORT
	User           string // "" is the account that runs this; SSH_USERNAME
	PrivateKeyFile string // SSH_PRIVATE_KEY_PATH
	Passphrase     string // of the private key; HOLDFAST_SSH_PRIVATE_KEY_PASSPHRASE
	AgentSocket    string // SSH_AUTH_SOCK
	Password       string // SSH_PASSWORD
	KnownHosts     string // file, or "" for those of ssh; HOLDFAST_SSH_KNOWN_HOSTS
	Retries        int    // HOLDFAST_SSH_MAX_RETRIES
}

// Encryption is the operator's keys, as package crypt takes them.
type Encryption struct {
	Kind       string // of the keys that encrypt, where several could: age, openpgp, aws-kms, libsodium; HOLDFAST_ENCRYPTION
	AllowPlain bool   // HOLDFAST_ALLOW_UNENCRYPTED

	AgeRecipients, AgeRecipientsPath, AgeIdentities, AgeIdentitiesPath string // HOLDFAST_AGE_…
	PGPKey, PGPKeyPath, PGPPassphrase, GPGKeyID                        string // WALG_PGP_…, WALG_GPG_KEY_ID
	SodiumKey, SodiumKeyPath, SodiumTransform                          string // WALG_LIBSODIUM_…
	KMSKeyID, KMSRegion                                                string // WALG_CSE_KMS_…
}

// encrypts reports whether a key is named by which what is stored is encrypted, or nothing is stored at all: one that only decrypts stores nothing in clear.
func (e *Encryption) encrypts() bool {
	return cmp.Or(e.AgeRecipients, e.AgeRecipientsPath, e.AgeIdentities, e.AgeIdentitiesPath, e.PGPKey, e.PGPKeyPath, e.GPGKeyID, e.SodiumKey, e.SodiumKeyPath, e.KMSKeyID) != ""
}

// Compression says how new objects are compressed.
type Compression struct {
	Method string // zstd, lz4, brotli, lzma or none; WALG_COMPRESSION_METHOD
	Level  string // of zstd: fastest, default, better or best; WALG_ZSTD_LEVEL
}

// WAL says how WAL files travel.
type WAL struct {
	Parallel    int    // files that wal-push has in flight at once, the one asked for included; WALG_UPLOAD_CONCURRENCY
	Delayed     int    // newest segments that may be missing without being lost; WALG_INTEGRITY_MAX_DELAYED_WALS
	Limit       int    // files that one wal-push stores at most; TOTAL_BG_UPLOADED_LIMIT
	ReadyRename bool   // PG_READY_RENAME
	Summaries   string // of segments, beside them: auto, on or off; HOLDFAST_WAL_SUMMARIES
	Deltas      bool   // objects of every 16 segments as WAL-G wants them; WALG_USE_WAL_DELTA
	Prefetch    int    // segments that wal-fetch fetches ahead; 1 means none; WALG_DOWNLOAD_CONCURRENCY
	PrefetchDir string // "" means the directory of the destination; WALG_PREFETCH_DIR

	DaemonTimeout time.Duration // of a push by the daemon; 0 is none; WALG_DAEMON_WAL_UPLOAD_TIMEOUT
}

// SummarizesWAL reports whether wal-push stores with each segment which blocks it changes.
func (s *Settings) SummarizesWAL() bool {
	return s.WAL.Summaries == "on" || s.WAL.Summaries == "auto" && (s.WAL.Deltas || s.Backup.Delta.MaxSteps > 0)
}

// Backup says how base backups are taken.
type Backup struct {
	Workers    int             // tar parts filled at once; WALG_UPLOAD_DISK_CONCURRENCY
	PartSize   int64           // bytes of content after which a tar part is closed; WALG_TAR_SIZE_THRESHOLD
	DiskRate   int64           // bytes a second read at most; 0 is no limit; WALG_DISK_RATE_LIMIT
	Wire       string          // how the server compresses what it sends over the wire: off, auto, gzip, lz4 or zstd; HOLDFAST_WIRE_COMPRESSION
	AllCorrupt bool            // WALG_STORE_ALL_CORRUPT_BLOCKS
	UserData   json.RawMessage // nil when not given; WALG_SENTINEL_USER_DATA
	Stop       time.Duration   // how long stopping the backup may take on the server; 0 is no limit; WALG_STOP_BACKUP_TIMEOUT
	Alive      time.Duration   // how often the server is asked whether it is there; 0 is never; WALG_ALIVE_CHECK_INTERVAL
	WALTimeout time.Duration   // how long to wait for the WAL a backup needs; HOLDFAST_WAL_WAIT_TIMEOUT
	Delta      Delta
}

// Delta says when a backup is a delta of another, and how what has changed is found.
type Delta struct {
	MaxSteps int             // how many may build on one another; 0 is none; WALG_DELTA_MAX_STEPS
	Origin   string          // LATEST or LATEST_FULL; WALG_DELTA_ORIGIN
	Name     string          // of the backup to build on; WALG_DELTA_FROM_NAME
	UserData json.RawMessage // of the backup to build on; nil when not given; WALG_DELTA_FROM_USER_DATA
	Source   string          // auto, summaries, archive or lsn; HOLDFAST_DELTA_SOURCE
	Force    bool            // fail rather than read everything; WALG_FORCE_WAL_DELTA
	Sample   float64         // of the blocks that did not change by the source, how many are looked at; HOLDFAST_DELTA_SAMPLE
}

// Restore says how backups are brought back.
type Restore struct {
	Workers  int             // parts restored at once; 0 means one per core; WALG_DOWNLOAD_CONCURRENCY where it is set
	UserData json.RawMessage // of the backup to restore; nil when not given; WALG_FETCH_TARGET_USER_DATA
}

// Retention says which backups stay, and how soon what goes is gone.
type Retention struct {
	Policy      string        // in YAML or JSON, "" for none; HOLDFAST_RETENTION
	Grace       time.Duration // from when a policy has condemned something; HOLDFAST_RETENTION_GRACE
	DeleteGrace time.Duration // from when a command has; HOLDFAST_DELETE_GRACE
}

// Lease says which of several hosts does what they are all told to.
type Lease struct {
	Role   string        // replica, primary, prefer-replica or any, "" where it is not given; HOLDFAST_ROLE
	Keeper string        // none, archive or the address of a service, "" where it is not given, see Service; HOLDFAST_LEASE
	TTL    time.Duration // how long a lease lasts without a sign of life; HOLDFAST_LEASE_TTL
	Host   string        // name of this host there, "" for its own; HOLDFAST_LEASE_HOST
	Secret string        // for the service, or ""; HOLDFAST_LEASE_SECRET
}

// Agent says what `holdfast agent` has done when, and what it runs itself.
type Agent struct {
	Backup, Full, Retention, Verify, Check string // schedules, see internal/agent; "" and off are never; HOLDFAST_SCHEDULE_…
	Drill, DrillRandom, DrillOldest        string // likewise

	Zone    string        // of the schedules, "" for the host's; HOLDFAST_SCHEDULE_ZONE
	Jitter  time.Duration // HOLDFAST_SCHEDULE_JITTER
	CatchUp time.Duration // HOLDFAST_SCHEDULE_CATCH_UP

	Listen   string        // address of /metrics, or off; HOLDFAST_AGENT_LISTEN
	Socket   string        // of the daemon, "" for none; HOLDFAST_AGENT_SOCKET
	Receive  string        // off, on or synchronous; HOLDFAST_AGENT_RECEIVE
	Interval time.Duration // between two looks at the archive; 0 is never; HOLDFAST_AGENT_INTERVAL
}

// Metrics says who is told what jobs came to.
type Metrics struct {
	Pushgateway string            // address, "" for none; HOLDFAST_PUSHGATEWAY
	Labels      string            // name=value pairs, see LabelMap; HOLDFAST_PUSHGATEWAY_LABELS
	TextfileDir string            // absolute, "" for none; HOLDFAST_METRICS_TEXTFILE_DIR
	StatsD      string            // host:port, "" for none; WALG_STATSD_ADDRESS
	StatsDTags  map[string]string // WALG_STATSD_EXTRA_TAGS
}

// Verify says how archives are verified.
type Verify struct {
	Budget int64         // bytes a second read at most; 0 is no limit but that of the network; HOLDFAST_VERIFY_BUDGET
	MaxAge time.Duration // how long what was found of an object counts; HOLDFAST_VERIFY_MAX_AGE
}

// Receive says how WAL is streamed.
type Receive struct {
	Slot         string        // WALG_SLOTNAME
	Dir          string        // of what is not archived yet, "" for one in StateDir; HOLDFAST_RECEIVE_DIR
	TailInterval time.Duration // 0 means whole segments only; HOLDFAST_TAIL_INTERVAL
	TailBytes    int64         // HOLDFAST_TAIL_BYTES
	Sync         string        // where synchronous WAL must be: local, store, or both with a comma; HOLDFAST_RECEIVE_SYNC
}

// Postgres says which server to talk to.
type Postgres struct {
	DataDir string            // PGDATA
	Vars    map[string]string // what is set of libpq's variables, by name: PGHOST, PGPORT …
}

// Lookup returns the value of one of libpq's variables, and whether it is set.
func (p Postgres) Lookup(name string) (string, bool) {
	v, ok := p.Vars[name]
	return v, ok
}

// Health says how to find out which of several storages are alive.
type Health struct {
	Check    bool          // before they are used; WALG_FAILOVER_STORAGES_CHECK
	Timeout  time.Duration // of a check; WALG_FAILOVER_STORAGES_CHECK_TIMEOUT
	Size     int64         // bytes that a check writes; WALG_FAILOVER_STORAGES_CHECK_SIZE
	Lifetime time.Duration // of what was found; WALG_FAILOVER_STORAGES_CACHE_LIFETIME
}

// Mirroring says how to write to Storage and Mirrors.
type Mirroring struct {
	Rule    string        // all or any of them must have what is written; HOLDFAST_MIRRORS_RULE
	Journal string        // directory that holds what is owed, "" for one in StateDir; HOLDFAST_MIRRORS_JOURNAL
	Stall   time.Duration // of a mirror, by any; HOLDFAST_MIRRORS_STALL
	Pause   time.Duration // after one failed, by any; HOLDFAST_MIRRORS_PAUSE
}

// Log says what is logged, how and where.
type Log struct {
	Level       string // NORMAL, DEVEL or ERROR; WALG_LOG_LEVEL
	Destination string // "stderr" or a path; WALG_LOG_DESTINATION
	Format      string // text or json; HOLDFAST_LOG_FORMAT
	To          string // stderr, syslog or journald, perhaps with a colon and a socket's path, "" where it is not given; HOLDFAST_LOG_TO
}

// Location names the archive: equal for equal archives, different for different ones. It is "" when no prefix was given.
func (s *Settings) Location() string {
	in := s.InUse()
	var all []string
	for i := range in {
		all = append(all, in[i].Location())
	}
	return strings.Join(all, " and ")
}

// InUse returns the storages that a command works with, the one called default first: all there are, or the one that Target names.
func (s *Settings) InUse() []Storage {
	all := s.Storages()
	for i := range all {
		if all[i].Name == s.Target {
			return all[i : i+1]
		}
	}
	return all
}

// Storages returns all storages, the one called default first.
func (s *Settings) Storages() []Storage {
	return slices.Concat([]Storage{s.Storage}, s.Failover, s.Mirrors)
}

// RequireStorage returns a *Problem when no storage prefix was given, else nil.
func (s *Settings) RequireStorage() error {
	if s.Storage.Location() != "" {
		return nil
	}
	return &Problem{
		What: "storage", Why: "no setting says where the archive is",
		Do: "set WALG_FILE_PREFIX=/path/of/a/directory or WALG_S3_PREFIX=s3://bucket/path, or the prefix of another storage, in the environment or in a settings file",
	}
}

// Called returns the name by which a setting was given, and where, for a message; its own name when it was not given.
func (s *Settings) Called(setting string) string {
	if v, ok := s.given(setting); ok {
		return v.name + " (" + v.where + ")"
	}
	return setting
}

// Value is one setting as it is in effect.
type Value struct {
	Name   string `json:"name"`
	Value  string `json:"value"` // "" when not set; Hidden for a secret that is set
	Source string `json:"source"`
	Secret bool   `json:"secret,omitempty"`
}

// Hidden stands for the value of a secret.
const Hidden = "--HIDDEN--"

// Effective returns every setting with its value and where that came from, in the order of the table.
func (s *Settings) Effective() []Value { return s.values }

// Fingerprint stands for what a command is told by the settings, secrets included: it is another one where that has changed.
func (s *Settings) Fingerprint(command string) string {
	h := sha256.New()
	for i := range s.rows {
		if row := &s.rows[i]; row.Used == nil || slices.Contains(row.Used, command) {
			fmt.Fprintf(h, "%s=%q\n", row.Name, row.get())
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Notices returns a line for each reason why settings that were given do nothing in the command that runs.
func (s *Settings) Notices() []string { return s.notices }
