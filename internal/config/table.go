package config

import (
	"cmp"
	"encoding/json"
	"errors"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Setting is one row of the table.
type Setting struct {
	Name    string   // WAL-G's where it has one
	Ours    string   // HOLDFAST_…
	Also    []string // further names that mean the same: WAL-G's and WAL-E's
	Section string
	Type    Kind     // follows from where the value goes, but for a Path
	Default string   // "" is not set
	Values  []string // what an Enum may be
	Secret  bool     // never shown; Name with _FILE after it names a file that holds the value
	EnvOnly bool     // says where the settings file is, so it is not looked for in there, and its flag is --config
	Meaning string   // one or two sentences
	Used    []string // commands that use it; nil means all that touch the archive

	Min, Max int64 // of numbers, bytes and nanoseconds; Max 0 is no bound

	into  any                // points to where the value goes, or is a variable of libpq's
	check func(string) error // further than its type says
}

// Names returns every name the setting may be given by, in capitals: its own, ours, the others.
func (s *Setting) Names() []string {
	names := append([]string{s.Name}, s.Also...)
	if s.Ours != s.Name {
		names = append(names, s.Ours)
	}
	return names
}

// set puts a value that was given as text into its place.
func (s *Setting) set(text string) error {
	if s.check != nil {
		if err := s.check(text); err != nil {
			return err
		}
	}
	if v, ok := s.into.(variable); ok {
		var value string
		if err := s.assign(&value, text); err != nil {
			return err
		}
		v.all[v.name] = value
		return nil
	}
	return s.assign(s.into, text)
}

// get returns the value as text that set reads.
func (s *Setting) get() string {
	if v, ok := s.into.(variable); ok {
		return v.all[v.name]
	}
	return format(s.into)
}

// Commands that settings are for.
var (
	pushes   = []string{"backup-push", "wal-push"}
	push     = []string{"backup-push"}
	fetch    = []string{"backup-fetch"}
	walPush  = []string{"wal-push"}
	walFetch = []string{"wal-fetch"}
	server   = []string{"backup-push"}
)

// Table returns all settings, by section. Defaults of how much is done at once follow from the number of cores.
func Table(cores int) []Setting { return table(&Settings{}, cores) }

// table returns the settings, with their places in s. Rows without a place are libpq's variables.
func table(s *Settings, cores int) []Setting {
	s3 := &s.Storage.S3
	s.Postgres.Vars = map[string]string{}
	t := slices.Concat(
		section("Archive", []Setting{
			{Name: "WALG_FILE_PREFIX", Type: Path, check: absolute, into: &s.Storage.filePrefix,
				Meaning: "Directory that holds the archive: an absolute path, or `file://` and one. One storage prefix, and only one, must be set."},
			{Name: "WALG_S3_PREFIX", check: bucket, into: &s.Storage.s3Prefix,
				Meaning: "Bucket and path that hold the archive: `s3://bucket/path`."},
			{Name: "WALG_STORAGE_PREFIX", check: relative, into: &s.Storage.folder,
				Meaning: "A further folder below the storage prefix."},
			{Name: "WALG_NETWORK_RATE_LIMIT", Default: "0", into: &s.Storage.NetworkRate,
				Meaning: "Bytes a second that go to and come from the storage at most, in each command; 0 is no limit. Unlike in WAL-G it holds for WAL too."},
		}),
		section("S3", []Setting{
			{Name: "AWS_ACCESS_KEY_ID", Also: []string{"AWS_ACCESS_KEY"}, Secret: true, into: &s3.AccessKeyID,
				Meaning: "Access key. Without one the AWS SDK looks in its usual places: shared files, container and instance roles."},
			{Name: "AWS_SECRET_ACCESS_KEY", Also: []string{"AWS_SECRET_KEY"}, Secret: true, into: &s3.SecretAccessKey,
				Meaning: "Secret of the access key."},
			{Name: "AWS_SESSION_TOKEN", Also: []string{"AWS_SECURITY_TOKEN"}, Secret: true, into: &s3.SessionToken,
				Meaning: "Session token of temporary credentials."},
			{Name: "AWS_ROLE_ARN", into: &s3.RoleARN, Meaning: "Role to assume."},
			{Name: "AWS_ROLE_SESSION_NAME", into: &s3.RoleSessionName, Meaning: "Name of the session in which the role is assumed."},
			{Name: "AWS_PROFILE", into: &s3.Profile, Meaning: "Profile of the AWS SDK's shared files."},
			{Name: "AWS_SHARED_CREDENTIALS_FILE", Type: Path, into: &s3.CredentialsFile,
				Meaning: "Shared credentials file, in place of `~/.aws/credentials`."},
			{Name: "AWS_CONFIG_FILE", Type: Path, into: &s3.ConfigFile, Meaning: "Shared config file, in place of `~/.aws/config`."},
			{Name: "AWS_REGION", into: &s3.Region,
				Meaning: "Region of the bucket. Without it AWS_DEFAULT_REGION is used, else the bucket is asked, or it is `us-east-1` where AWS_ENDPOINT is set."},
			{Name: "AWS_DEFAULT_REGION", into: &s3.defaultRegion, Meaning: "Region where AWS_REGION is not set."},
			{Name: "AWS_ENDPOINT", check: endpoint, into: &s3.Endpoint,
				Meaning: "URL of an S3 service that is not AWS's; a host alone means https."},
			{Name: "WALE_S3_ENDPOINT", check: waleEndpoint, into: &s3.walEEndpoint,
				Meaning: "The same as WAL-E writes it: `http+path://host:port`, with https, and virtualhost or subdomain, as the alternatives."},
			{Name: "AWS_S3_FORCE_PATH_STYLE", Default: "false", into: &s3.PathStyle,
				Meaning: "Put the bucket into the path of a URL, not into its host; most services of others want this."},
			{Name: "AWS_DUAL_STACK", Default: "false", into: &s3.DualStack, Meaning: "Use AWS's endpoints that answer on IPv6 too."},
			{Name: "S3_CA_CERT_FILE", Type: Path, into: &s3.CACert,
				Meaning: "PEM file of the certificate authorities to trust, in place of the system's."},
			{Name: "AWS_CA_BUNDLE", Type: Path, into: &s3.caBundle, Meaning: "The same where S3_CA_CERT_FILE is not set."},
			{Name: "S3_STORAGE_CLASS", Used: pushes, into: &s3.StorageClass,
				Meaning: "Storage class of new objects, `STANDARD_IA` for instance; not set means the service's default."},
			{Name: "S3_SSE", Values: []string{"AES256", "aws:kms"}, Used: pushes, into: &s3.SSE,
				Meaning: "Encryption by the service of new objects. `aws:kms` needs S3_SSE_KMS_ID."},
			{Name: "S3_SSE_KMS_ID", Used: pushes, into: &s3.SSEKMSKeyID, Meaning: "Key that `S3_SSE=aws:kms` encrypts with."},
			{Name: "S3_SSE_C", Secret: true, check: customerKey, into: &s3.SSECustomerKey,
				Meaning: "Key of 32 bytes in base64 that the service encrypts and decrypts with and does not keep."},
			{Name: "S3_RETENTION_MODE", Values: []string{"GOVERNANCE", "COMPLIANCE"}, Used: pushes, into: &s3.LockMode,
				Meaning: "Object lock of new objects, for S3_RETENTION_PERIOD."},
			{Name: "S3_RETENTION_PERIOD", Default: "-1", Min: -1, Max: 100 * 366 * 24 * 3600, Used: pushes, into: &s3.lockSeconds,
				Meaning: "Seconds for which new objects are locked; -1 and 0 are off."},
			{Name: "S3_REQUEST_ADDITIONAL_HEADERS", Secret: true, into: &s3.Headers, Meaning: "Headers sent with every request."},
			{Name: "S3_USE_LIST_OBJECTS_V1", Default: "false", into: &s3.ListV1,
				Meaning: "List objects in the old way, for services that have only this."},
			{Name: "S3_DISABLE_100_CONTINUE", Default: "false", Used: pushes, into: &s3.NoContinue,
				Meaning: "Send bodies without asking first, for services that do not know `Expect: 100-continue`."},
			{Name: "S3_DELETE_BATCH_SIZE", Default: "1000", Min: 1, Max: 1000, into: &s3.DeleteBatch,
				Meaning: "Objects deleted by one call."},
			{Name: "S3_MAX_PART_SIZE", Default: "20MiB", Min: 5 << 20, Max: 5 << 30, Used: pushes, into: &s3.PartSize,
				Meaning: "Size of a part of a multipart upload. Later parts of very large objects are larger."},
			{Name: "UPLOAD_CONCURRENCY", Ours: "HOLDFAST_S3_UPLOAD_CONCURRENCY", Default: "4", Min: 1, Max: 1000, Used: pushes, into: &s3.Parts,
				Meaning: "Parts of one object in flight at once, as far as HOLDFAST_MEMORY_BUDGET has room for them. WAL-G takes WALG_UPLOAD_CONCURRENCY's 16."},
			{Name: "S3_MAX_RETRIES", Default: "15", Min: 0, Max: 1000, into: &s3.Retries,
				Meaning: "Further attempts after a call failed in a way that may pass."},
		}),
		section("Compression", []Setting{
			{Name: "WALG_COMPRESSION_METHOD", Default: "zstd", Values: []string{"zstd", "lz4", "none"}, check: method, Used: pushes, into: &s.Compression.Method,
				Meaning: "How new objects are compressed. WAL-G's default is lz4. What is there is read whatever its method."},
			{Name: "WALG_ZSTD_LEVEL", Default: "fastest", Values: []string{"fastest", "default", "better", "best"}, Used: pushes, into: &s.Compression.Level,
				Meaning: "How hard zstd tries. WAL-G's default is `default`."},
		}),
		section("WAL", []Setting{
			{Name: "WALG_UPLOAD_CONCURRENCY", Default: "16", Min: 1, Max: 1000, Used: walPush, into: &s.WAL.Parallel,
				Meaning: "WAL files in flight at once: the one asked for, and those PostgreSQL will ask for next. 1 stores only what is asked for."},
			{Name: "TOTAL_BG_UPLOADED_LIMIT", Default: "32", Min: 1, Max: 1 << 20, Used: walPush, into: &s.WAL.Limit,
				Meaning: "WAL files that one call stores at most, the one asked for included."},
			{Name: "PG_READY_RENAME", Default: "false", Used: walPush, into: &s.WAL.ReadyRename,
				Meaning: "Rename `.ready` to `.done` for a file stored ahead of being asked, so that PostgreSQL does not ask for it."},
			{Name: "WALG_DOWNLOAD_CONCURRENCY", Default: "10", Min: 1, Max: 1000, Used: []string{"wal-fetch", "backup-fetch"}, into: &s.WAL.Prefetch,
				Meaning: "Segments that wal-fetch fetches ahead at most; 1 fetches none ahead. Where it is set, also the parts that backup-fetch restores at once; else that is one per core."},
			{Name: "WALG_PREFETCH_DIR", Type: Path, Used: walFetch, into: &s.WAL.PrefetchDir,
				Meaning: "Where `.wal-g/prefetch` is kept; the directory of the destination when not set. It must be on the file system of the destination."},
		}),
		section("Backups", []Setting{
			{Name: "WALG_UPLOAD_DISK_CONCURRENCY", Default: strconv.Itoa(max(cores, 4)), Min: 1, Max: 1000, Used: push, into: &s.Backup.Workers,
				Meaning: "Parts filled and stored at once: where there are few cores some more than those, as one waits for the disk while another is compressed. WAL-G's default is 1."},
			{Name: "WALG_TAR_SIZE_THRESHOLD", Default: "1073741823", Min: 64 << 10, Max: 128 << 30, Used: push, into: &s.Backup.PartSize,
				Meaning: "Bytes of content after which a part is closed."},
			{Name: "WALG_DISK_RATE_LIMIT", Default: "0", Used: push, into: &s.Backup.DiskRate,
				Meaning: "Bytes a second read from the data directory at most; 0 is no limit."},
			{Name: "WALG_STORE_ALL_CORRUPT_BLOCKS", Default: "false", Used: push, into: &s.Backup.AllCorrupt,
				Meaning: "Record every corrupt block of a file, not the first ten."},
			{Name: "WALG_SENTINEL_USER_DATA", Used: push, into: &s.Backup.UserData, Meaning: "Data of yours stored with the backup."},
			{Name: "WALG_STOP_BACKUP_TIMEOUT", Default: "0s", Used: push, into: &s.Backup.Stop,
				Meaning: "How long stopping the backup may take on the server; 0 is no limit."},
			{Name: "WALG_ALIVE_CHECK_INTERVAL", Default: "1m0s", Used: push, into: &s.Backup.Alive,
				Meaning: "How often the session that holds the backup is asked whether it is still there; 0 is never."},
			{Name: "HOLDFAST_WAL_WAIT_TIMEOUT", Default: "1h0m0s", Min: int64(time.Second), Used: push, into: &s.Backup.WALTimeout,
				Meaning: "How long a backup waits at its end for the WAL it needs to be in the archive, before it fails."},
		}),
		section("Restore", []Setting{
			{Name: "WALG_FETCH_TARGET_USER_DATA", Used: fetch, into: &s.Restore.UserData,
				Meaning: "Restore the backup with this user data."},
		}),
		section("PostgreSQL", []Setting{
			{Name: "PGDATA", Type: Path, Used: []string{"backup-push", "wal-fetch"}, into: &s.Postgres.DataDir,
				Meaning: "The data directory, where the command line does not name it. wal-fetch looks there for what the server is doing when it is not called from there."},
			{Name: "PGHOST", Meaning: "Host name, or directory of the socket."},
			{Name: "PGPORT", check: port, Meaning: "Port."},
			{Name: "PGUSER", Meaning: "Role to connect as."},
			{Name: "PGPASSWORD", Secret: true, Meaning: "Its password."},
			{Name: "PGPASSFILE", Type: Path, Meaning: "Password file, in place of `~/.pgpass`."},
			{Name: "PGDATABASE", Meaning: "Database to connect to."},
			{Name: "PGSERVICE", Meaning: "Service in the service file that holds these settings."},
			{Name: "PGSERVICEFILE", Type: Path, Meaning: "Service file, in place of `~/.pg_service.conf`."},
			{Name: "PGOPTIONS", Meaning: "Options sent to the server."},
			{Name: "PGAPPNAME", Default: "holdfast", Meaning: "application_name of the session. WAL-G's default is `wal-g`."},
			{Name: "PGCONNECT_TIMEOUT", Meaning: "Seconds to wait for a connection."},
			{Name: "PGSSLMODE", Values: []string{"disable", "allow", "prefer", "require", "verify-ca", "verify-full"},
				Meaning: "Whether and how TLS is used."},
			{Name: "PGSSLNEGOTIATION", Values: []string{"postgres", "direct"}, Meaning: "How TLS begins."},
			{Name: "PGSSLCERT", Type: Path, Meaning: "Certificate of the client."},
			{Name: "PGSSLKEY", Type: Path, Meaning: "Key of that certificate."},
			{Name: "PGSSLPASSWORD", Secret: true, Meaning: "Password of that key."},
			{Name: "PGSSLROOTCERT", Type: Path, Meaning: "Certificates of the authorities to trust."},
			{Name: "PGSSLSNI", Values: []string{"0", "1"}, Meaning: "Whether the host's name is sent in TLS."},
			{Name: "PGCHANNELBINDING", Values: []string{"disable", "prefer", "require"},
				Meaning: "Whether authentication is bound to the TLS channel."},
			{Name: "PGREQUIREAUTH", Meaning: "Methods of authentication that are accepted."},
			{Name: "PGTARGETSESSIONATTRS", Values: []string{"any", "read-write", "read-only", "primary", "standby", "prefer-standby"},
				Meaning: "Which kind of server is accepted."},
		}),
		section("Log and process", []Setting{
			{Name: "WALG_CONFIG_PATH", Ours: "HOLDFAST_CONFIG", Type: Path, EnvOnly: true, into: &s.File,
				Meaning: "The settings file, where `--config` does not name it: YAML, JSON or TOML by its extension."},
			{Name: "WALG_LOG_LEVEL", Default: "NORMAL", Values: []string{"NORMAL", "DEVEL", "ERROR"}, into: &s.Log.Level,
				Meaning: "What is logged: `ERROR` errors only, `NORMAL` what happens too, `DEVEL` details and every setting too."},
			{Name: "WALG_LOG_DESTINATION", Type: Path, Default: "stderr", into: &s.Log.Destination,
				Meaning: "`stderr`, or a file to append the log to. Errors that end a command go to stderr in any case."},
			{Name: "HOLDFAST_LOG_FORMAT", Default: "text", Values: []string{"text", "json"}, into: &s.Log.Format,
				Meaning: "`text` is WAL-G's line, `json` one JSON object per line."},
			{Name: "HOLDFAST_MEMORY_BUDGET", Default: "256MiB", Min: 64 << 20, into: &s.MemoryBudget,
				Meaning: "Memory the process aims to stay below; parts on their way to S3 get half of it. wal-push takes 96 MiB of it at most. GOMEMLIMIT in the environment wins."},
		}),
	)
	for i := range t {
		row := &t[i]
		if row.into == nil {
			row.into, row.Used = variable{s.Postgres.Vars, row.Name}, server
		}
		row.Type = cmp.Or(row.Type, row.kind())
		row.Ours, row.Also = otherNames(row.Name, row.Ours, row.Also)
	}
	return t
}

// otherNames completes the names of the setting called name. Storage adapters' settings may be given bare, or with WALG_ or
// WALE_ before them, as in WAL-G; storage prefixes also with WALE_.
func otherNames(name, ours string, also []string) (string, []string) {
	core, known := strings.CutPrefix(name, "WALG_")
	if ours == "" && strings.HasPrefix(name, "HOLDFAST_") {
		ours = name
	}
	if ours == "" {
		ours = "HOLDFAST_" + core
	}
	var names []string
	switch {
	case strings.HasSuffix(core, "_PREFIX") && core != "STORAGE_PREFIX" && known:
		names = append(names, "WALE_"+core)
	case name == "UPLOAD_CONCURRENCY": // WALG_UPLOAD_CONCURRENCY is another
	case strings.HasPrefix(name, "AWS_"), strings.HasPrefix(name, "S3_"):
		for _, n := range append([]string{name}, also...) {
			names = append(names, "WALG_"+n, "WALE_"+n)
		}
	}
	return ours, append(also, names...)
}

// section puts rows under a heading.
func section(name string, rows []Setting) []Setting {
	for i := range rows {
		rows[i].Section = name
	}
	return rows
}

// variable is one of libpq's variables, as a place for a value.
type variable struct {
	all  map[string]string
	name string
}

// kind tells what a value looks like by where it goes.
func (s *Setting) kind() Kind {
	switch s.into.(type) {
	case *bool:
		return Bool
	case *int:
		return Int
	case *int64:
		return Size
	case *time.Duration:
		return Duration
	case *json.RawMessage:
		return JSON
	case *map[string]string:
		return Map
	}
	if s.Values != nil {
		return Enum
	}
	return String
}

// port checks a TCP port.
func port(text string) error {
	if n, err := strconv.Atoi(text); err != nil || n < 1 || n > 65535 {
		return errors.New("must be a port, from 1 to 65535")
	}
	return nil
}

// relative checks a folder below a prefix.
func relative(text string) error {
	if !filepath.IsLocal(strings.Trim(text, "/")) {
		return errors.New("must be a folder below the storage prefix, without ..")
	}
	return nil
}

// method refuses what WAL-G can write and this release cannot.
func method(text string) error {
	switch strings.ToLower(text) {
	case "brotli", "lzma":
		return errors.New("is a method that this release cannot write; it writes zstd, lz4 and none")
	}
	return nil
}
