package config

import (
	"errors"
	"path/filepath"
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
	Type    Kind
	Default string   // "" is not set
	Values  []string // what an Enum may be
	Secret  bool     // never shown; Name with _FILE after it names a file that holds the value
	EnvOnly bool     // says where the settings file is, so it is not looked for in there, and its flag is --config
	Meaning string   // one or two sentences
	Used    []string // commands that use it; nil means all that touch the archive

	Min, Max int64 // of numbers, bytes and nanoseconds; Max 0 is no bound

	field func(*Settings) any // points to where the value goes; nil for a variable of libpq
	check func(string) error  // further than its type says
}

// Kind says what a value looks like.
func (s *Setting) Kind() Kind { return s.Type }

// Names returns every name the setting may be given by, in capitals: its own, ours, the others.
func (s *Setting) Names() []string {
	names := append([]string{s.Name}, s.Also...)
	if s.Ours != s.Name {
		names = append(names, s.Ours)
	}
	return names
}

// set puts a value that was given as text into into.
func (s *Setting) set(into *Settings, text string) error {
	if s.check != nil {
		if err := s.check(text); err != nil {
			return err
		}
	}
	if s.field == nil {
		v := text
		if err := s.assign(&v, text); err != nil {
			return err
		}
		if into.Postgres.Vars == nil {
			into.Postgres.Vars = map[string]string{}
		}
		into.Postgres.Vars[s.Name] = v
		return nil
	}
	return s.assign(s.field(into), text)
}

// get returns the value in from as text that set reads.
func (s *Setting) get(from *Settings) string {
	if s.field == nil {
		return from.Postgres.Vars[s.Name]
	}
	return format(s.field(from))
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

// Table returns all settings, by section. cores is the default number of workers.
func Table(cores int) []Setting {
	t := []Setting{
		// ---- Where the archive is.
		{Section: "Archive", Name: "WALG_FILE_PREFIX", Type: Path, check: absolute,
			field:   func(s *Settings) any { return &s.Storage.filePrefix },
			Meaning: "Directory that holds the archive: an absolute path, or `file://` and one. One storage prefix, and only one, must be set."},
		{Section: "Archive", Name: "WALG_S3_PREFIX", check: bucket,
			field:   func(s *Settings) any { return &s.Storage.s3Prefix },
			Meaning: "Bucket and path that hold the archive: `s3://bucket/path`."},
		{Section: "Archive", Name: "WALG_STORAGE_PREFIX", check: relative,
			field:   func(s *Settings) any { return &s.Storage.folder },
			Meaning: "A further folder below the storage prefix."},
		{Section: "Archive", Name: "WALG_NETWORK_RATE_LIMIT", Type: Size, Default: "0",
			field:   func(s *Settings) any { return &s.Storage.NetworkRate },
			Meaning: "Bytes a second that go to and come from the storage at most, in each command; 0 is no limit. Unlike in WAL-G it holds for WAL too."},

		// ---- S3.
		{Section: "S3", Name: "AWS_ACCESS_KEY_ID", Also: []string{"AWS_ACCESS_KEY"}, Secret: true,
			field:   func(s *Settings) any { return &s.Storage.S3.AccessKeyID },
			Meaning: "Access key. Without one the AWS SDK looks in its usual places: shared files, container and instance roles."},
		{Section: "S3", Name: "AWS_SECRET_ACCESS_KEY", Also: []string{"AWS_SECRET_KEY"}, Secret: true,
			field:   func(s *Settings) any { return &s.Storage.S3.SecretAccessKey },
			Meaning: "Secret of the access key."},
		{Section: "S3", Name: "AWS_SESSION_TOKEN", Also: []string{"AWS_SECURITY_TOKEN"}, Secret: true,
			field:   func(s *Settings) any { return &s.Storage.S3.SessionToken },
			Meaning: "Session token of temporary credentials."},
		{Section: "S3", Name: "AWS_ROLE_ARN",
			field:   func(s *Settings) any { return &s.Storage.S3.RoleARN },
			Meaning: "Role to assume."},
		{Section: "S3", Name: "AWS_ROLE_SESSION_NAME",
			field:   func(s *Settings) any { return &s.Storage.S3.RoleSessionName },
			Meaning: "Name of the session in which the role is assumed."},
		{Section: "S3", Name: "AWS_PROFILE",
			field:   func(s *Settings) any { return &s.Storage.S3.Profile },
			Meaning: "Profile of the AWS SDK's shared files."},
		{Section: "S3", Name: "AWS_SHARED_CREDENTIALS_FILE", Type: Path,
			field:   func(s *Settings) any { return &s.Storage.S3.CredentialsFile },
			Meaning: "Shared credentials file, in place of `~/.aws/credentials`."},
		{Section: "S3", Name: "AWS_CONFIG_FILE", Type: Path,
			field:   func(s *Settings) any { return &s.Storage.S3.ConfigFile },
			Meaning: "Shared config file, in place of `~/.aws/config`."},
		{Section: "S3", Name: "AWS_REGION",
			field:   func(s *Settings) any { return &s.Storage.S3.Region },
			Meaning: "Region of the bucket. Without it AWS_DEFAULT_REGION is used, else the bucket is asked, or it is `us-east-1` where AWS_ENDPOINT is set."},
		{Section: "S3", Name: "AWS_DEFAULT_REGION",
			field:   func(s *Settings) any { return &s.Storage.S3.defaultRegion },
			Meaning: "Region where AWS_REGION is not set."},
		{Section: "S3", Name: "AWS_ENDPOINT", check: endpoint,
			field:   func(s *Settings) any { return &s.Storage.S3.Endpoint },
			Meaning: "URL of an S3 service that is not AWS's; a host alone means https."},
		{Section: "S3", Name: "WALE_S3_ENDPOINT", check: waleEndpoint,
			field:   func(s *Settings) any { return &s.Storage.S3.walEEndpoint },
			Meaning: "The same as WAL-E writes it: `http+path://host:port`, with https, and virtualhost or subdomain, as the alternatives."},
		{Section: "S3", Name: "AWS_S3_FORCE_PATH_STYLE", Type: Bool, Default: "false",
			field:   func(s *Settings) any { return &s.Storage.S3.PathStyle },
			Meaning: "Put the bucket into the path of a URL, not into its host; most services of others want this."},
		{Section: "S3", Name: "AWS_DUAL_STACK", Type: Bool, Default: "false",
			field:   func(s *Settings) any { return &s.Storage.S3.DualStack },
			Meaning: "Use AWS's endpoints that answer on IPv6 too."},
		{Section: "S3", Name: "S3_CA_CERT_FILE", Type: Path,
			field:   func(s *Settings) any { return &s.Storage.S3.CACert },
			Meaning: "PEM file of the certificate authorities to trust, in place of the system's."},
		{Section: "S3", Name: "AWS_CA_BUNDLE", Type: Path,
			field:   func(s *Settings) any { return &s.Storage.S3.caBundle },
			Meaning: "The same where S3_CA_CERT_FILE is not set."},
		{Section: "S3", Name: "S3_STORAGE_CLASS", Used: pushes,
			field:   func(s *Settings) any { return &s.Storage.S3.StorageClass },
			Meaning: "Storage class of new objects, `STANDARD_IA` for instance; not set means the service's default."},
		{Section: "S3", Name: "S3_SSE", Type: Enum, Values: []string{"AES256", "aws:kms"}, Used: pushes,
			field:   func(s *Settings) any { return &s.Storage.S3.SSE },
			Meaning: "Encryption by the service of new objects. `aws:kms` needs S3_SSE_KMS_ID."},
		{Section: "S3", Name: "S3_SSE_KMS_ID", Used: pushes,
			field:   func(s *Settings) any { return &s.Storage.S3.SSEKMSKeyID },
			Meaning: "Key that `S3_SSE=aws:kms` encrypts with."},
		{Section: "S3", Name: "S3_SSE_C", Secret: true, check: customerKey,
			field:   func(s *Settings) any { return &s.Storage.S3.SSECustomerKey },
			Meaning: "Key of 32 bytes in base64 that the service encrypts and decrypts with and does not keep."},
		{Section: "S3", Name: "S3_RETENTION_MODE", Type: Enum, Values: []string{"GOVERNANCE", "COMPLIANCE"}, Used: pushes,
			field:   func(s *Settings) any { return &s.Storage.S3.LockMode },
			Meaning: "Object lock of new objects, for S3_RETENTION_PERIOD."},
		{Section: "S3", Name: "S3_RETENTION_PERIOD", Type: Int, Default: "-1", Min: -1, Max: 100 * 366 * 24 * 3600, Used: pushes,
			field:   func(s *Settings) any { return &s.Storage.S3.lockSeconds },
			Meaning: "Seconds for which new objects are locked; -1 and 0 are off."},
		{Section: "S3", Name: "S3_REQUEST_ADDITIONAL_HEADERS", Type: Map, Secret: true,
			field:   func(s *Settings) any { return &s.Storage.S3.Headers },
			Meaning: "Headers sent with every request."},
		{Section: "S3", Name: "S3_USE_LIST_OBJECTS_V1", Type: Bool, Default: "false",
			field:   func(s *Settings) any { return &s.Storage.S3.ListV1 },
			Meaning: "List objects in the old way, for services that have only this."},
		{Section: "S3", Name: "S3_DISABLE_100_CONTINUE", Type: Bool, Default: "false", Used: pushes,
			field:   func(s *Settings) any { return &s.Storage.S3.NoContinue },
			Meaning: "Send bodies without asking first, for services that do not know `Expect: 100-continue`."},
		{Section: "S3", Name: "S3_DELETE_BATCH_SIZE", Type: Int, Default: "1000", Min: 1, Max: 1000,
			field:   func(s *Settings) any { return &s.Storage.S3.DeleteBatch },
			Meaning: "Objects deleted by one call."},
		{Section: "S3", Name: "S3_MAX_PART_SIZE", Type: Size, Default: "20MiB", Min: 5 << 20, Max: 5 << 30, Used: pushes,
			field:   func(s *Settings) any { return &s.Storage.S3.PartSize },
			Meaning: "Size of a part of a multipart upload. Later parts of very large objects are larger."},
		{Section: "S3", Name: "UPLOAD_CONCURRENCY", Ours: "HOLDFAST_S3_UPLOAD_CONCURRENCY", Type: Int, Default: "4", Min: 1, Max: 1000, Used: pushes,
			field:   func(s *Settings) any { return &s.Storage.S3.Parts },
			Meaning: "Parts of one object in flight at once, as far as HOLDFAST_MEMORY_BUDGET has room for them. WAL-G takes WALG_UPLOAD_CONCURRENCY's 16."},
		{Section: "S3", Name: "S3_MAX_RETRIES", Type: Int, Default: "15", Min: 0, Max: 1000,
			field:   func(s *Settings) any { return &s.Storage.S3.Retries },
			Meaning: "Further attempts after a call failed in a way that may pass."},

		// ---- Compression.
		{Section: "Compression", Name: "WALG_COMPRESSION_METHOD", Type: Enum, Default: "zstd", Values: []string{"zstd", "lz4", "none"}, check: method, Used: pushes,
			field:   func(s *Settings) any { return &s.Compression.Method },
			Meaning: "How new objects are compressed. WAL-G's default is lz4. What is there is read whatever its method."},
		{Section: "Compression", Name: "WALG_ZSTD_LEVEL", Type: Enum, Default: "fastest", Values: []string{"fastest", "default", "better", "best"}, Used: pushes,
			field:   func(s *Settings) any { return &s.Compression.Level },
			Meaning: "How hard zstd tries. WAL-G's default is `default`."},

		// ---- WAL.
		{Section: "WAL", Name: "WALG_UPLOAD_CONCURRENCY", Type: Int, Default: "16", Min: 1, Max: 1000, Used: walPush,
			field:   func(s *Settings) any { return &s.WAL.Parallel },
			Meaning: "WAL files in flight at once: the one asked for, and those PostgreSQL will ask for next. 1 stores only what is asked for."},
		{Section: "WAL", Name: "TOTAL_BG_UPLOADED_LIMIT", Type: Int, Default: "32", Min: 1, Max: 1 << 20, Used: walPush,
			field:   func(s *Settings) any { return &s.WAL.Limit },
			Meaning: "WAL files that one call stores at most, the one asked for included."},
		{Section: "WAL", Name: "PG_READY_RENAME", Type: Bool, Default: "false", Used: walPush,
			field:   func(s *Settings) any { return &s.WAL.ReadyRename },
			Meaning: "Rename `.ready` to `.done` for a file stored ahead of being asked, so that PostgreSQL does not ask for it."},
		{Section: "WAL", Name: "WALG_DOWNLOAD_CONCURRENCY", Type: Int, Default: "10", Min: 1, Max: 1000, Used: []string{"wal-fetch", "backup-fetch"},
			field:   func(s *Settings) any { return &s.WAL.Prefetch },
			Meaning: "Segments that wal-fetch fetches ahead at most; 1 fetches none ahead. Where it is set, also the parts that backup-fetch restores at once; else that is one per core."},
		{Section: "WAL", Name: "WALG_PREFETCH_DIR", Type: Path, Used: walFetch,
			field:   func(s *Settings) any { return &s.WAL.PrefetchDir },
			Meaning: "Where `.wal-g/prefetch` is kept; the directory of the destination when not set. It must be on the file system of the destination."},

		// ---- Backups.
		{Section: "Backups", Name: "WALG_UPLOAD_DISK_CONCURRENCY", Type: Int, Default: strconv.Itoa(cores), Min: 1, Max: 1000, Used: push,
			field:   func(s *Settings) any { return &s.Backup.Workers },
			Meaning: "Parts filled and stored at once. The default is the number of cores; WAL-G's is 1."},
		{Section: "Backups", Name: "WALG_TAR_SIZE_THRESHOLD", Type: Size, Default: "1073741823", Min: 64 << 10, Max: 128 << 30, Used: push,
			field:   func(s *Settings) any { return &s.Backup.PartSize },
			Meaning: "Bytes of content after which a part is closed."},
		{Section: "Backups", Name: "WALG_DISK_RATE_LIMIT", Type: Size, Default: "0", Used: push,
			field:   func(s *Settings) any { return &s.Backup.DiskRate },
			Meaning: "Bytes a second read from the data directory at most; 0 is no limit."},
		{Section: "Backups", Name: "WALG_STORE_ALL_CORRUPT_BLOCKS", Type: Bool, Default: "false", Used: push,
			field:   func(s *Settings) any { return &s.Backup.AllCorrupt },
			Meaning: "Record every corrupt block of a file, not the first ten."},
		{Section: "Backups", Name: "WALG_SENTINEL_USER_DATA", Type: JSON, Used: push,
			field:   func(s *Settings) any { return &s.Backup.UserData },
			Meaning: "Data of yours stored with the backup."},
		{Section: "Backups", Name: "WALG_STOP_BACKUP_TIMEOUT", Type: Duration, Default: "0s", Used: push,
			field:   func(s *Settings) any { return &s.Backup.Stop },
			Meaning: "How long stopping the backup may take on the server; 0 is no limit."},
		{Section: "Backups", Name: "WALG_ALIVE_CHECK_INTERVAL", Type: Duration, Default: "1m0s", Used: push,
			field:   func(s *Settings) any { return &s.Backup.Alive },
			Meaning: "How often the session that holds the backup is asked whether it is still there; 0 is never."},
		{Section: "Backups", Name: "HOLDFAST_WAL_WAIT_TIMEOUT", Type: Duration, Default: "1h0m0s", Min: int64(time.Second), Used: push,
			field:   func(s *Settings) any { return &s.Backup.WALTimeout },
			Meaning: "How long a backup waits at its end for the WAL it needs to be in the archive, before it fails."},

		// ---- Restore.
		{Section: "Restore", Name: "WALG_FETCH_TARGET_USER_DATA", Type: JSON, Used: fetch,
			field:   func(s *Settings) any { return &s.Restore.UserData },
			Meaning: "Restore the backup with this user data."},

		// ---- PostgreSQL.
		{Section: "PostgreSQL", Name: "PGDATA", Type: Path, Used: []string{"backup-push", "wal-push"},
			field:   func(s *Settings) any { return &s.Postgres.DataDir },
			Meaning: "The data directory, where the command line does not name it."},
		libpq("PGHOST", String, "Host name, or directory of the socket."),
		libpq("PGPORT", String, "Port.").where(port),
		libpq("PGUSER", String, "Role to connect as."),
		libpq("PGPASSWORD", String, "Its password.").secret(),
		libpq("PGPASSFILE", Path, "Password file, in place of `~/.pgpass`."),
		libpq("PGDATABASE", String, "Database to connect to."),
		libpq("PGSERVICE", String, "Service in the service file that holds these settings."),
		libpq("PGSERVICEFILE", Path, "Service file, in place of `~/.pg_service.conf`."),
		libpq("PGOPTIONS", String, "Options sent to the server."),
		libpq("PGAPPNAME", String, "application_name of the session. WAL-G's default is `wal-g`.").or("holdfast"),
		libpq("PGCONNECT_TIMEOUT", String, "Seconds to wait for a connection."),
		libpq("PGSSLMODE", Enum, "Whether and how TLS is used.", "disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
		libpq("PGSSLNEGOTIATION", Enum, "How TLS begins.", "postgres", "direct"),
		libpq("PGSSLCERT", Path, "Certificate of the client."),
		libpq("PGSSLKEY", Path, "Key of that certificate."),
		libpq("PGSSLPASSWORD", String, "Password of that key.").secret(),
		libpq("PGSSLROOTCERT", Path, "Certificates of the authorities to trust."),
		libpq("PGSSLSNI", Enum, "Whether the host's name is sent in TLS.", "0", "1"),
		libpq("PGCHANNELBINDING", Enum, "Whether authentication is bound to the TLS channel.", "disable", "prefer", "require"),
		libpq("PGREQUIREAUTH", String, "Methods of authentication that are accepted."),
		libpq("PGTARGETSESSIONATTRS", Enum, "Which kind of server is accepted.", "any", "read-write", "read-only", "primary", "standby", "prefer-standby"),

		// ---- Log and process.
		{Section: "Log and process", Name: "WALG_CONFIG_PATH", Ours: "HOLDFAST_CONFIG", Type: Path, EnvOnly: true,
			field:   func(s *Settings) any { return &s.File },
			Meaning: "The settings file, where `--config` does not name it: YAML, JSON or TOML by its extension."},
		{Section: "Log and process", Name: "WALG_LOG_LEVEL", Type: Enum, Default: "NORMAL", Values: []string{"NORMAL", "DEVEL", "ERROR"},
			field:   func(s *Settings) any { return &s.Log.Level },
			Meaning: "What is logged: `ERROR` errors only, `NORMAL` what happens too, `DEVEL` details and every setting too."},
		{Section: "Log and process", Name: "WALG_LOG_DESTINATION", Type: Path, Default: "stderr",
			field:   func(s *Settings) any { return &s.Log.Destination },
			Meaning: "`stderr`, or a file to append the log to. Errors that end a command go to stderr in any case."},
		{Section: "Log and process", Name: "HOLDFAST_LOG_FORMAT", Type: Enum, Default: "text", Values: []string{"text", "json"},
			field:   func(s *Settings) any { return &s.Log.Format },
			Meaning: "`text` is WAL-G's line, `json` one JSON object per line."},
		{Section: "Log and process", Name: "HOLDFAST_MEMORY_BUDGET", Type: Size, Default: "256MiB", Min: 64 << 20,
			field:   func(s *Settings) any { return &s.MemoryBudget },
			Meaning: "Memory the process aims to stay below; parts on their way to S3 get half of it. GOMEMLIMIT in the environment wins."},
	}
	for i := range t {
		s := &t[i]
		if s.Type == "" {
			s.Type = String
		}
		s.Ours, s.Also = otherNames(s.Name, s.Ours, s.Also)
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

// libpq makes the row of one of libpq's variables.
func libpq(name string, t Kind, meaning string, values ...string) Setting {
	return Setting{Section: "PostgreSQL", Name: name, Type: t, Meaning: meaning, Values: values, Used: server}
}

func (s Setting) where(check func(string) error) Setting { s.check = check; return s }
func (s Setting) secret() Setting                        { s.Secret = true; return s }
func (s Setting) or(value string) Setting                { s.Default = value; return s }

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
		return errors.New("is a method that this release cannot write; it can zstd, lz4 and none")
	}
	return nil
}
