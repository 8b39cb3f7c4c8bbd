package config

// Kind is what a setting's value is made of, and how it is written.
type Kind string

// The kinds of values.
const (
	String   Kind = "text"
	Path     Kind = "path"
	Bool     Kind = "yes or no" // as strconv.ParseBool, and yes, no, on, off
	Int      Kind = "number"
	Size     Kind = "size"     // bytes, or with a unit: 64MiB, 1gb
	Duration Kind = "duration" // 90s, 1h30m
	Enum     Kind = "one of"
	JSON     Kind = "JSON"
	Map      Kind = "map" // in a file a mapping; elsewhere JSON
)

// Setting is one line of the table of settings.
type Setting struct {
	Name     string   // WAL-G's, libpq's or the cloud's name; HOLDFAST_… where it is only ours
	Aliases  []string // other names it is known by, WAL-E's among them
	Group    string   // heading in the documentation
	Kind     Kind
	Default  string // as it would be written; "" is unset
	Values   []string
	Min, Max int64 // of Int and Size (bytes) and Duration (nanoseconds); 0, 0 is any that is not negative
	Secret   bool  // never shown; may come from a file that NAME_FILE names
	Help     string

	into func(*Settings) any // *string, *bool, *int, *int64, *time.Duration or *map[string]string
}

// Groups in the order of the documentation.
const (
	groupStore    = "Where the archive is"
	groupS3       = "S3"
	groupWrite    = "How it is written"
	groupLimits   = "Speed and memory"
	groupBackup   = "Backups"
	groupWAL      = "WAL"
	groupPostgres = "PostgreSQL"
	groupLog      = "Log"
)

// adapter names a setting of a storage adapter, which WAL-G looks up bare, with WALG_ and with WALE_.
func adapter(name string) []string { return []string{"WALG_" + name, "WALE_" + name} }

// Table lists every setting. It is a function because a table that could change would be global state.
func Table() []Setting {
	return []Setting{
		{Name: "WALG_FILE_PREFIX", Aliases: []string{"WALE_FILE_PREFIX"}, Group: groupStore, Kind: String, Help: "Directory of the archive: an absolute path, or file://localhost/path. It must exist.", into: func(s *Settings) any { return &s.FilePrefix }},
		{Name: "WALG_S3_PREFIX", Aliases: []string{"WALE_S3_PREFIX"}, Group: groupStore, Kind: String, Help: "Bucket and path of the archive: s3://bucket/path.", into: func(s *Settings) any { return &s.S3Prefix }},
		{Name: "WALG_STORAGE_PREFIX", Group: groupStore, Kind: String, Help: "A further folder below the prefix.", into: func(s *Settings) any { return &s.StoragePrefix }},

		{Name: "AWS_ACCESS_KEY_ID", Aliases: append(adapter("AWS_ACCESS_KEY_ID"), "AWS_ACCESS_KEY"), Group: groupS3, Kind: String, Help: "Access key. Without it the SDK's chain is asked: profile, container, instance.", into: func(s *Settings) any { return &s.S3.AccessKey }},
		{Name: "AWS_SECRET_ACCESS_KEY", Aliases: append(adapter("AWS_SECRET_ACCESS_KEY"), "AWS_SECRET_KEY"), Group: groupS3, Kind: String, Secret: true, Help: "Secret of the access key.", into: func(s *Settings) any { return &s.S3.SecretKey }},
		{Name: "AWS_SESSION_TOKEN", Aliases: append(adapter("AWS_SESSION_TOKEN"), "AWS_SECURITY_TOKEN"), Group: groupS3, Kind: String, Secret: true, Help: "Token of temporary credentials.", into: func(s *Settings) any { return &s.S3.SessionToken }},
		{Name: "AWS_ROLE_ARN", Aliases: adapter("AWS_ROLE_ARN"), Group: groupS3, Kind: String, Help: "Role to assume.", into: func(s *Settings) any { return &s.S3.RoleARN }},
		{Name: "AWS_ROLE_SESSION_NAME", Aliases: adapter("AWS_ROLE_SESSION_NAME"), Group: groupS3, Kind: String, Help: "Name of the session with that role.", into: func(s *Settings) any { return &s.S3.RoleSessionName }},
		{Name: "AWS_PROFILE", Group: groupS3, Kind: String, Help: "Profile of the shared AWS configuration.", into: func(s *Settings) any { return &s.S3.Profile }},
		{Name: "AWS_SHARED_CREDENTIALS_FILE", Group: groupS3, Kind: Path, Help: "The shared credentials file, where it is not ~/.aws/credentials.", into: func(s *Settings) any { return &s.S3.CredentialsFile }},
		{Name: "AWS_CONFIG_FILE", Group: groupS3, Kind: Path, Help: "The shared configuration file, where it is not ~/.aws/config.", into: func(s *Settings) any { return &s.S3.ConfigFile }},
		{Name: "AWS_REGION", Aliases: append(adapter("AWS_REGION"), "AWS_DEFAULT_REGION"), Group: groupS3, Kind: String, Help: "Region of the bucket. Without it the bucket is asked; with an endpoint of one's own it is us-east-1.", into: func(s *Settings) any { return &s.S3.Region }},
		{Name: "AWS_ENDPOINT", Aliases: append(adapter("AWS_ENDPOINT"), "AWS_ENDPOINT_URL"), Group: groupS3, Kind: String, Help: "URL of a server that is compatible with S3.", into: func(s *Settings) any { return &s.S3.Endpoint }},
		{Name: "AWS_S3_FORCE_PATH_STYLE", Aliases: adapter("AWS_S3_FORCE_PATH_STYLE"), Group: groupS3, Kind: Bool, Default: "false", Help: "Put the bucket into the path, not into the host's name.", into: func(s *Settings) any { return &s.S3.PathStyle }},
		{Name: "AWS_DUAL_STACK", Aliases: adapter("AWS_DUAL_STACK"), Group: groupS3, Kind: Bool, Default: "false", Help: "Use endpoints that speak IPv6 too.", into: func(s *Settings) any { return &s.S3.DualStack }},
		{Name: "S3_CA_CERT_FILE", Aliases: append(adapter("S3_CA_CERT_FILE"), "AWS_CA_BUNDLE"), Group: groupS3, Kind: Path, Help: "Certificates to trust instead of the system's.", into: func(s *Settings) any { return &s.S3.CAFile }},
		{Name: "S3_STORAGE_CLASS", Aliases: adapter("S3_STORAGE_CLASS"), Group: groupS3, Kind: String, Help: "Storage class of new objects; without it the bucket's default, STANDARD.", into: func(s *Settings) any { return &s.S3.StorageClass }},
		{Name: "S3_SSE", Aliases: adapter("S3_SSE"), Group: groupS3, Kind: Enum, Values: []string{"AES256", "aws:kms"}, Help: "Encryption by the server.", into: func(s *Settings) any { return &s.S3.SSE }},
		{Name: "S3_SSE_KMS_ID", Aliases: adapter("S3_SSE_KMS_ID"), Group: groupS3, Kind: String, Help: "Key for S3_SSE=aws:kms, which needs it.", into: func(s *Settings) any { return &s.S3.SSEKMSKeyID }},
		{Name: "S3_SSE_C", Aliases: adapter("S3_SSE_C"), Group: groupS3, Kind: String, Secret: true, Help: "A key of one's own for encryption by the server: 32 bytes in base64. Every access needs it.", into: func(s *Settings) any { return &s.S3.SSECKey }},
		{Name: "S3_MAX_PART_SIZE", Aliases: adapter("S3_MAX_PART_SIZE"), Group: groupS3, Kind: Size, Default: "20971520", Min: 5 << 20, Max: 5 << 30, Help: "Size of the parts of an upload. Larger objects get larger parts when 10 000 would not do.", into: func(s *Settings) any { return &s.S3.PartSize }},
		{Name: "S3_MAX_RETRIES", Aliases: adapter("S3_MAX_RETRIES"), Group: groupS3, Kind: Int, Default: "15", Max: 1000, Help: "Attempts at one request.", into: func(s *Settings) any { return &s.S3.MaxRetries }},
		{Name: "S3_USE_LIST_OBJECTS_V1", Aliases: adapter("S3_USE_LIST_OBJECTS_V1"), Group: groupS3, Kind: Bool, Default: "false", Help: "List by the older request.", into: func(s *Settings) any { return &s.S3.ListV1 }},
		{Name: "S3_DELETE_BATCH_SIZE", Aliases: adapter("S3_DELETE_BATCH_SIZE"), Group: groupS3, Kind: Int, Default: "1000", Min: 1, Max: 1000, Help: "Objects removed by one request.", into: func(s *Settings) any { return &s.S3.DeleteBatch }},
		{Name: "S3_REQUEST_ADDITIONAL_HEADERS", Aliases: adapter("S3_REQUEST_ADDITIONAL_HEADERS"), Group: groupS3, Kind: Map, Help: "Headers to add to every request.", into: func(s *Settings) any { return &s.S3.Headers }},
		{Name: "S3_RETENTION_MODE", Aliases: adapter("S3_RETENTION_MODE"), Group: groupS3, Kind: Enum, Values: []string{"GOVERNANCE", "COMPLIANCE"}, Help: "Object lock of new objects; needs S3_RETENTION_PERIOD.", into: func(s *Settings) any { return &s.S3.RetentionMode }},
		{Name: "S3_RETENTION_PERIOD", Aliases: adapter("S3_RETENTION_PERIOD"), Group: groupS3, Kind: Int, Default: "-1", Min: -1, Max: 1 << 40, Help: "Seconds of object lock; -1 is none.", into: func(s *Settings) any { return &s.S3.RetentionSeconds }},

		{Name: "WALG_COMPRESSION_METHOD", Group: groupWrite, Kind: Enum, Default: "zstd", Values: []string{"zstd", "lz4", "none"}, Help: "Codec of what is written; everything is read whatever its codec. WAL-G's own default is lz4.", into: func(s *Settings) any { return &s.Compression }},
		{Name: "WALG_ZSTD_LEVEL", Group: groupWrite, Kind: Enum, Default: "fastest", Values: []string{"fastest", "default", "better", "best"}, Help: "How hard zstd tries. Each step costs about twice the time of the one before and saves a few per cent.", into: func(s *Settings) any { return &s.ZstdLevel }},

		{Name: "WALG_UPLOAD_DISK_CONCURRENCY", Group: groupLimits, Kind: Int, Default: "0", Max: 1024, Help: "Tar parts filled at once by backup-push; 0 is one per core. WAL-G's own default is 1.", into: func(s *Settings) any { return &s.Workers }},
		{Name: "WALG_UPLOAD_CONCURRENCY", Aliases: []string{"UPLOAD_CONCURRENCY"}, Group: groupLimits, Kind: Int, Default: "16", Min: 1, Max: 1024, Help: "WAL files wal-push stores at once, and parts of uploads to S3 at once; 1 switches look-ahead off. Memory and cores bound it further.", into: func(s *Settings) any { return &s.UploadConcurrency }},
		{Name: "WALG_DOWNLOAD_CONCURRENCY", Group: groupLimits, Kind: Int, Default: "10", Min: 1, Max: 1024, Help: "WAL files fetched ahead at once; 1 switches prefetch off. A restore uses one worker per core, and no more than this.", into: func(s *Settings) any { return &s.DownloadConcurrency }},
		{Name: "WALG_DISK_RATE_LIMIT", Group: groupLimits, Kind: Size, Default: "0", Help: "Bytes backup-push reads from disk in a second at most; 0 is no limit.", into: func(s *Settings) any { return &s.DiskRate }},
		{Name: "WALG_NETWORK_RATE_LIMIT", Group: groupLimits, Kind: Size, Default: "0", Help: "Bytes a command sends to and takes from the archive in a second at most; 0 is no limit.", into: func(s *Settings) any { return &s.NetworkRate }},
		{Name: "HOLDFAST_MEMORY_BUDGET", Group: groupLimits, Kind: Size, Default: "256MiB", Min: 64 << 20, Max: 1 << 40, Help: "Memory a command aims to stay below.", into: func(s *Settings) any { return &s.Memory }},

		{Name: "WALG_TAR_SIZE_THRESHOLD", Group: groupBackup, Kind: Size, Default: "1073741823", Min: 1 << 20, Max: 1 << 40, Help: "A tar part is closed when its content exceeds this.", into: func(s *Settings) any { return &s.PartSize }},
		{Name: "WALG_STORE_ALL_CORRUPT_BLOCKS", Group: groupBackup, Kind: Bool, Default: "false", Help: "Record every corrupt block of a file, not just the first ten.", into: func(s *Settings) any { return &s.AllCorrupt }},
		{Name: "WALG_SENTINEL_USER_DATA", Group: groupBackup, Kind: JSON, Help: "Stored with each new backup.", into: func(s *Settings) any { return &s.UserData }},
		{Name: "WALG_FETCH_TARGET_USER_DATA", Group: groupBackup, Kind: JSON, Help: "backup-fetch takes the newest backup with this user data.", into: func(s *Settings) any { return &s.TargetUserData }},
		{Name: "WALG_STOP_BACKUP_TIMEOUT", Group: groupBackup, Kind: Duration, Default: "0s", Help: "How long PostgreSQL may take to stop a backup; 0 is no limit.", into: func(s *Settings) any { return &s.StopTimeout }},
		{Name: "WALG_ALIVE_CHECK_INTERVAL", Group: groupBackup, Kind: Duration, Default: "1m", Help: "How often PostgreSQL is asked during a backup whether it still is there; 0 is once a minute.", into: func(s *Settings) any { return &s.AliveInterval }},
		{Name: "HOLDFAST_WAL_WAIT_TIMEOUT", Group: groupBackup, Kind: Duration, Default: "1h", Min: 1, Max: 1 << 62, Help: "How long backup-push waits for the WAL that the backup needs to reach the archive.", into: func(s *Settings) any { return &s.WALTimeout }},

		{Name: "TOTAL_BG_UPLOADED_LIMIT", Group: groupWAL, Kind: Int, Default: "32", Min: 1, Max: 1 << 20, Help: "WAL files one wal-push stores at most, the one it was called for included.", into: func(s *Settings) any { return &s.AheadLimit }},
		{Name: "PG_READY_RENAME", Group: groupWAL, Kind: Bool, Default: "false", Help: "wal-push renames .ready to .done for what it stored ahead, so that PostgreSQL does not ask for it.", into: func(s *Settings) any { return &s.ReadyRename }},
		{Name: "WALG_PREFETCH_DIR", Group: groupWAL, Kind: Path, Help: "wal-fetch keeps what it fetched ahead in .wal-g/prefetch below this directory; without it, below the one it fetches to.", into: func(s *Settings) any { return &s.PrefetchDir }},

		{Name: "PGDATA", Group: groupPostgres, Kind: Path, Help: "Data directory of the server.", into: func(s *Settings) any { return &s.PGData }},
		pg("PGHOST", "Host, or directory of the socket."), pg("PGPORT", "Port."), pg("PGUSER", "Role."), pg("PGDATABASE", "Database to connect to."),
		{Name: "PGPASSWORD", Group: groupPostgres, Kind: String, Secret: true, Help: "Password; PGPASSFILE is the better place for one.", into: pgInto("PGPASSWORD")},
		pg("PGPASSFILE", "File of passwords."), pg("PGSERVICE", "Service to look up."), pg("PGSERVICEFILE", "File of services."),
		pg("PGOPTIONS", "Options for the server."), pg("PGAPPNAME", "How the session calls itself."), pg("PGCONNECT_TIMEOUT", "Seconds to wait for a connection."),
		pg("PGSSLMODE", "Whether to use TLS."), pg("PGSSLCERT", "Certificate of the client."), pg("PGSSLKEY", "Its key."), pg("PGSSLROOTCERT", "Certificates to trust."),
		{Name: "PGSSLPASSWORD", Group: groupPostgres, Kind: String, Secret: true, Help: "Password of the key.", into: pgInto("PGSSLPASSWORD")},
		pg("PGSSLSNI", "Whether to name the host in TLS."), pg("PGSSLNEGOTIATION", "How TLS begins."), pg("PGTARGETSESSIONATTRS", "What kind of server is wanted."),
		pg("PGCHANNELBINDING", "Whether to bind to the channel."), pg("PGREQUIREAUTH", "Ways to authenticate that are acceptable."),

		{Name: "WALG_LOG_LEVEL", Group: groupLog, Kind: Enum, Default: "NORMAL", Values: []string{"NORMAL", "DEVEL", "ERROR"}, Help: "NORMAL tells what is done, DEVEL each step, ERROR only what fails.", into: func(s *Settings) any { return &s.LogLevel }},
		{Name: "WALG_LOG_DESTINATION", Group: groupLog, Kind: String, Default: "stderr", Help: "stderr, or a file to append to.", into: func(s *Settings) any { return &s.LogDestination }},
		{Name: "HOLDFAST_LOG_FORMAT", Group: groupLog, Kind: Enum, Default: "text", Values: []string{"text", "json"}, Help: "Lines as WAL-G's, or JSON.", into: func(s *Settings) any { return &s.LogFormat }},
	}
}

// pg is a setting of libpq, kept under its own name.
func pg(name, help string) Setting {
	kind := String
	if name == "PGPASSFILE" || name == "PGSERVICEFILE" || name == "PGSSLCERT" || name == "PGSSLKEY" || name == "PGSSLROOTCERT" {
		kind = Path
	}
	return Setting{Name: name, Group: groupPostgres, Kind: kind, Help: help, into: pgInto(name)}
}

func pgInto(name string) func(*Settings) any {
	return func(s *Settings) any { return libpq{s, name} }
}

// libpq is the place of a libpq setting: a key of Settings.Postgres.
type libpq struct {
	s    *Settings
	name string
}

// Ignored lists settings of WAL-G that are understood and have no effect here, each with the reason.
func Ignored() map[string]string {
	composer := "parts are always filled largest file first, by one worker per core"
	delta := "this release takes full backups only"
	found := "it is read from the cluster, never configured"
	return map[string]string{
		"WALG_PG_WAL_SIZE": found, "WALG_PG_WAL_PAGE_SIZE": found, "WALG_PG_BLOCK_SIZE": found,
		"WALG_UPLOAD_QUEUE": "a part is stored while it is filled, there is no queue", "WALG_SERIALIZER_TYPE": "retired by WAL-G itself",
		"WALG_USE_RATING_COMPOSER": composer, "WALG_USE_COPY_COMPOSER": composer, "WALG_USE_DATABASE_COMPOSER": composer,
		"WALG_VERIFY_PAGE_CHECKSUMS":  "page checksums are always verified where the cluster has them",
		"WALG_PREVENT_WAL_OVERWRITE":  "archived WAL is never overwritten",
		"WALG_TAR_DISABLE_FSYNC":      "a restore syncs whole filesystems once, at its end",
		"WALG_DOWNLOAD_FILE_RETRIES":  "each request is retried while it makes progress, and what is permanent is not retried",
		"WALG_WITHOUT_FILES_METADATA": "the file list is a stream and costs no memory", "WALG_DISABLE_PARTIAL_RESTORE": "the list of tables for WAL-G's partial restore is not written",
		"WALG_USE_REVERSE_UNPACK": "there is one way of unpacking", "WALG_SKIP_REDUNDANT_TARS": "there is one way of unpacking",
		"WALG_DELTA_MAX_STEPS": delta, "WALG_DELTA_ORIGIN": delta, "WALG_DELTA_FROM_NAME": delta, "WALG_DELTA_FROM_USER_DATA": delta,
		"WALG_USE_WAL_DELTA": delta, "WALG_FORCE_WAL_DELTA": delta, "WALG_UPLOAD_WAL_METADATA": "the archive's own listing has the times",
		"WALG_DIRECT_IO": "files are read through the page cache", "WALG_DIRECT_IO_BLOCK_COUNT": "files are read through the page cache",
		"WALG_INTEGRITY_MAX_DELAYED_WALS": "wal-verify is not part of this release", "WALG_SLOTNAME": "wal-receive is not part of this release",
		"WALG_DAEMON_WAL_UPLOAD_TIMEOUT": "the daemon is not part of this release", "WALG_STATSD_ADDRESS": "metrics are not part of this release",
		"WALG_STATSD_EXTRA_TAGS": "metrics are not part of this release",
		"S3_RANGE_BATCH_ENABLED": "a download that breaks off goes on where it stopped", "S3_RANGE_MAX_RETRIES": "a download that breaks off goes on where it stopped",
		"S3_MIN_THROTTLING_RETRY_DELAY": "waits grow by themselves", "S3_MAX_THROTTLING_RETRY_DELAY": "waits grow by themselves",
		"S3_LOG_LEVEL": "WALG_LOG_LEVEL=DEVEL tells each request", "S3_SKIP_VALIDATION": "the bucket is not asked before it is used",
		"S3_DISABLE_100_CONTINUE": "requests do not ask for 100-continue", "S3_ENABLE_VERSIONING": "the bucket's own versioning is left alone",
		"AWS_DEFAULT_OUTPUT": "of the AWS command line only", "GOMAXPROCS": "heeded by the runtime itself", "GODEBUG": "heeded by the runtime itself",
		"HTTP_LISTEN": "there is no debug server", "HTTP_EXPOSE_PPROF": "there is no debug server", "HTTP_EXPOSE_EXPVAR": "there is no debug server",
		"PROFILE_SAMPLING_RATIO": "runs are not sampled", "PROFILE_MODE": "runs are not sampled", "PROFILE_PATH": "runs are not sampled",
		"WALG_STREAM_CREATE_COMMAND": "of other databases", "WALG_STREAM_RESTORE_COMMAND": "of other databases",
	}
}

// Refused lists settings that would have to be honoured and cannot be in this release, each with the reason. Going on without
// one of them would put data into the wrong place or store it in clear.
func Refused() map[string]string {
	crypt := "this release does not encrypt, and will not store in clear what was to be encrypted"
	other := "this release stores in files and S3 only"
	return map[string]string{
		"WALG_LIBSODIUM_KEY": crypt, "WALG_LIBSODIUM_KEY_PATH": crypt, "WALG_LIBSODIUM_KEY_TRANSFORM": crypt,
		"WALG_PGP_KEY": crypt, "WALG_PGP_KEY_PATH": crypt, "WALG_PGP_KEY_PASSPHRASE": crypt, "WALG_GPG_KEY_ID": crypt, "WALE_GPG_KEY_ID": crypt,
		"WALG_ENVELOPE_PGP_KEY": crypt, "WALG_ENVELOPE_PGP_KEY_PATH": crypt, "WALG_ENVELOPE_PGP_YC_CSE_KMS_KEY_ID": crypt,
		"WALG_ENVELOPE_PGP_YC_SERVICE_ACCOUNT_KEY_FILE": crypt, "WALG_ENVELOPE_PGP_YC_ENDPOINT": crypt, "WALG_ENVELOPE_CACHE_EXPIRATION": crypt,
		"WALG_CSE_KMS_ID": crypt, "WALG_CSE_KMS_REGION": crypt, "YC_CSE_KMS_KEY_ID": crypt, "YC_SERVICE_ACCOUNT_KEY_FILE": crypt,
		"WALG_GS_PREFIX": other, "WALE_GS_PREFIX": other, "WALG_AZ_PREFIX": other, "WALE_AZ_PREFIX": other, "WALE_WABS_PREFIX": other,
		"WALG_SWIFT_PREFIX": other, "WALE_SWIFT_PREFIX": other, "WALG_OSS_PREFIX": other, "WALG_SSH_PREFIX": other, "WALE_SSH_PREFIX": other,
		"WALG_FAILOVER_STORAGES": "this release has one store", "WALG_TARGET_STORAGE": "this release has one store",
		"S3_ENDPOINT_SOURCE": "name the server with AWS_ENDPOINT", "S3_USE_YC_SESSION_TOKEN": "pass the token as AWS_SESSION_TOKEN",
		"WALE_S3_ENDPOINT": "name the server with AWS_ENDPOINT, and AWS_S3_FORCE_PATH_STYLE where it is a path",
	}
}
