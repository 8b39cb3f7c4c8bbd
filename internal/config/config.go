// Package config is the one table of settings: what each is called, what it may be, what it means, and how a value is found.
//
// A setting has WAL-G's name where WAL-G has one (WALG_S3_PREFIX) and a name of ours (HOLDFAST_S3_PREFIX). Its value comes from a
// command-line flag, else from the environment, else from a settings file (YAML, JSON or TOML), else it is the default.
// An empty value counts as not given. Load collects everything that is wrong, so that nothing starts with settings
// that do not mean what the operator wrote: a file that does not parse, an unknown name, a value out of range, a setting that
// this release cannot honour are errors. Settings of WAL-G that have nothing to act on here are named in notices.
//
// The environment and the home directory are passed in. Only Load reads files; nothing is exported to anybody's environment.
package config

import (
	"encoding/json"
	"time"
)

// Settings is what the sources say, as plain values. Fields have the setting's name in their comment.
type Settings struct {
	File         string // the settings file that was read, or ""; WALG_CONFIG_PATH
	Storage      Storage
	Compression  Compression
	WAL          WAL
	Backup       Backup
	Restore      Restore
	Postgres     Postgres
	Log          Log
	MemoryBudget int64 // bytes the whole process should stay below; HOLDFAST_MEMORY_BUDGET

	values  []Value
	notices []string
}

// Storage says where the archive is. Exactly one of Dir and S3.Bucket is set, or none when no prefix was given.
type Storage struct {
	Dir         string // absolute path of the archive's root; WALG_FILE_PREFIX with WALG_STORAGE_PREFIX
	S3          S3     // WALG_S3_PREFIX and what S3 needs
	NetworkRate int64  // bytes a second at most, both ways; 0 is no limit; WALG_NETWORK_RATE_LIMIT

	filePrefix, s3Prefix, folder string
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

// Compression says how new objects are compressed.
type Compression struct {
	Method string // zstd, lz4 or none; WALG_COMPRESSION_METHOD
	Level  string // of zstd: fastest, default, better or best; WALG_ZSTD_LEVEL
}

// WAL says how WAL files travel.
type WAL struct {
	Parallel    int    // files that wal-push has in flight at once, the one asked for included; WALG_UPLOAD_CONCURRENCY
	Limit       int    // files that one wal-push stores at most; TOTAL_BG_UPLOADED_LIMIT
	ReadyRename bool   // PG_READY_RENAME
	Prefetch    int    // segments that wal-fetch fetches ahead; 1 means none; WALG_DOWNLOAD_CONCURRENCY
	PrefetchDir string // "" means the directory of the destination; WALG_PREFETCH_DIR
}

// Backup says how base backups are taken.
type Backup struct {
	Workers    int             // tar parts filled at once; WALG_UPLOAD_DISK_CONCURRENCY
	PartSize   int64           // bytes of content after which a tar part is closed; WALG_TAR_SIZE_THRESHOLD
	DiskRate   int64           // bytes a second read at most; 0 is no limit; WALG_DISK_RATE_LIMIT
	AllCorrupt bool            // WALG_STORE_ALL_CORRUPT_BLOCKS
	UserData   json.RawMessage // nil when not given; WALG_SENTINEL_USER_DATA
	Stop       time.Duration   // how long stopping the backup may take on the server; 0 is no limit; WALG_STOP_BACKUP_TIMEOUT
	Alive      time.Duration   // how often the server is asked whether it is there; 0 is never; WALG_ALIVE_CHECK_INTERVAL
	WALTimeout time.Duration   // how long to wait for the WAL a backup needs; HOLDFAST_WAL_WAIT_TIMEOUT
}

// Restore says how backups are brought back.
type Restore struct {
	Workers  int             // parts restored at once; 0 means one per core; WALG_DOWNLOAD_CONCURRENCY where it is set
	UserData json.RawMessage // of the backup to restore; nil when not given; WALG_FETCH_TARGET_USER_DATA
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

// Log says what is logged, how and where.
type Log struct {
	Level       string // NORMAL, DEVEL or ERROR; WALG_LOG_LEVEL
	Destination string // "stderr" or a path; WALG_LOG_DESTINATION
	Format      string // text or json; HOLDFAST_LOG_FORMAT
}

// Location names the archive: equal for equal archives, different for different ones. It is "" when no prefix was given.
func (s Storage) Location() string {
	switch {
	case s.Dir != "":
		return "file://" + s.Dir
	case s.S3.Bucket == "":
		return ""
	}
	l := "s3://" + s.S3.Bucket
	if s.S3.Path != "" {
		l += "/" + s.S3.Path
	}
	if s.S3.Endpoint != "" {
		l += " at " + s.S3.Endpoint
	}
	return l
}

// RequireStorage returns a *Problem when no storage prefix was given, else nil.
func (s *Settings) RequireStorage() error {
	if s.Storage.Location() != "" {
		return nil
	}
	return &Problem{
		What: "storage", Why: "no setting says where the archive is",
		Do: "set WALG_FILE_PREFIX=/path/of/a/directory or WALG_S3_PREFIX=s3://bucket/path, in the environment or in a settings file",
	}
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

// Notices returns a line for each reason why settings that were given do nothing in the command that runs.
func (s *Settings) Notices() []string { return s.notices }
