package config

import (
	"slices"
	"strings"
)

// foreign is a group of settings of WAL-G or WAL-E that do nothing here, for one reason.
type foreign struct {
	names   []string // one that ends in * stands for all that begin so
	why     string   // reads after "ignored: ", or as the reason of the refusal
	refused string   // what to do instead; not "" means that the setting is an error, not ignored
	quiet   []string // values of which nothing need be said, in lower case: they ask for what is done anyhow
	shared  bool     // the bare names belong to other programs too, so that in the environment they say nothing about us
	used    []string // commands that it would matter to; nil means all
}

const (
	discovered = "read from the server or from the files, never configured"
	later      = "belongs to a part of WAL-G that this release does not have"
	oneEngine  = "one restore engine does this always"
	noDriver   = "the PostgreSQL driver does not know it, and would connect elsewhere or less safely than was asked for"
)

// foreigners returns what of WAL-G's and WAL-E's settings is known and not in the table.
func foreigners() []foreign {
	return []foreign{
		// Errors: to go on would not be what the operator asked for.
		{names: []string{"WALG_ENVELOPE_*", "YC_CSE_KMS_KEY_ID", "WALG_YC_CSE_KMS_KEY_ID"}, why: "keys in Yandex's KMS are not supported",
			refused: "for a new archive use HOLDFAST_AGE_RECIPIENTS; read the old one with WAL-G"},
		{names: []string{"WALG_OSS_PREFIX", "WALE_OSS_PREFIX"}, why: "Alibaba's OSS is not supported by its own protocol",
			refused: "use the S3 protocol, which OSS speaks too: WALG_S3_PREFIX, AWS_ENDPOINT=https://s3.oss-REGION.aliyuncs.com, and the same keys"},
		{names: adapter("S3_ENDPOINT_SOURCE", "S3_ENDPOINT_PORT", "S3_ENDPOINT_PROTOCOL"),
			why: "this release does not ask another service for the endpoint", refused: "set AWS_ENDPOINT"},
		{names: adapter("S3_USE_YC_SESSION_TOKEN"), quiet: []string{"false"}, why: "this release does not fetch tokens of Yandex Cloud",
			refused: "use a static access key"},
		{names: []string{"PGHOSTADDR"}, why: noDriver, refused: "set PGHOST to the address", used: asks},
		{names: []string{"PGREQUIRESSL"}, quiet: no, why: noDriver, refused: "set PGSSLMODE=require", used: asks},
		{names: []string{"PGGSSENCMODE"}, quiet: []string{"disable", "prefer"}, why: noDriver, refused: "unset it, and set PGSSLMODE=require", used: asks},
		{names: []string{"PGSSLMINPROTOCOLVERSION"}, quiet: []string{"tlsv1", "tlsv1.1", "tlsv1.2"}, why: "the PostgreSQL driver takes TLS 1.2 and later",
			refused: "unset it; ssl_min_protocol_version of the server can demand more", used: asks},
		{names: []string{"PGREQUIREPEER", "PGSSLCRL", "PGSSLCRLDIR"}, why: noDriver, refused: "unset it once the connection is safe without it", used: asks},

		// Notices: what is ignored does not change what is stored.
		{names: []string{"WALG_PREVENT_WAL_OVERWRITE"}, quiet: yes, why: "archived WAL is never overwritten with other contents", used: walPush},
		{names: []string{"WALG_VERIFY_PAGE_CHECKSUMS"}, quiet: yes, why: "page checksums are always verified where the cluster has them", used: push},
		{names: []string{"WALG_UPLOAD_QUEUE"}, why: "a part is stored while it is filled, so none waits", used: push},
		{names: []string{"WALG_USE_RATING_COMPOSER", "WALG_USE_COPY_COMPOSER", "WALG_USE_DATABASE_COMPOSER"}, quiet: no,
			why: "files are dealt to parts in one way, the largest first", used: push},
		{names: []string{"WALG_WITHOUT_FILES_METADATA"}, quiet: no, why: "the list of files is always written, restoring needs it", used: push},
		{names: []string{"WALG_DISABLE_PARTIAL_RESTORE"}, why: "names of databases and tables are not collected in this release", used: push},
		{names: []string{"WALG_DIRECT_IO", "WALG_DIRECT_IO_BLOCK_COUNT"}, quiet: no, why: "files are read through the page cache", used: push},
		{names: []string{"WALG_USE_REVERSE_UNPACK", "WALG_SKIP_REDUNDANT_TARS"}, quiet: yes, why: oneEngine, used: fetch},
		{names: []string{"WALG_TAR_DISABLE_FSYNC"}, quiet: no, why: "what is restored is synced once, at the end, which takes little time", used: fetch},
		{names: []string{"WALG_DOWNLOAD_FILE_RETRIES"}, why: "what breaks on the way is tried again S3_MAX_RETRIES times, from where it broke; what is corrupt is not", used: fetch},
		{names: []string{"WALG_UPLOAD_WAL_METADATA"}, quiet: []string{"nometadata"}, why: "times of WAL files are those of their objects", used: walPush},
		{names: []string{"WALG_PG_WAL_SIZE", "WALG_PG_WAL_PAGE_SIZE", "WALG_PG_BLOCK_SIZE"}, why: discovered},
		{names: []string{"WALG_SERIALIZER_TYPE"}, why: "retired by WAL-G itself"},
		{names: []string{"GOMAXPROCS", "GODEBUG"}, shared: true, why: "the Go runtime reads it from the environment only"},
		{names: []string{"NOTIFY_SOCKET"}, shared: true, why: "systemd gives it to the daemon in the environment"},
		{names: []string{"HOLDFAST_PROGRAM"}, shared: true, why: "it is for holdfast-client, in the environment"},
		{names: []string{"HTTP_LISTEN", "HTTP_EXPOSE_PPROF", "HTTP_EXPOSE_EXPVAR", "PROFILE_SAMPLING_RATIO", "PROFILE_MODE", "PROFILE_PATH",
			"WALG_STREAM_*"}, why: later},
		{names: adapter("S3_MIN_THROTTLING_RETRY_DELAY", "S3_MAX_THROTTLING_RETRY_DELAY"), why: "waits between attempts grow by themselves"},
		{names: adapter("S3_RANGE_BATCH_ENABLED", "S3_RANGE_MAX_RETRIES"), quiet: yes, why: "a download that breaks is always continued where it broke"},
		{names: adapter("S3_LOG_LEVEL"), why: "requests are not logged one by one"},
		{names: adapter("S3_SKIP_VALIDATION"), quiet: yes, why: "there is no check of the bucket apart from using it"},
		{names: adapter("S3_ENABLE_VERSIONING"), why: "only current versions of objects are looked at"},
		{names: adapter("AWS_DEFAULT_OUTPUT"), shared: true, why: "it is of the AWS command line"},
		{names: []string{"AWS_INSTANCE_PROFILE", "WALE_AWS_INSTANCE_PROFILE"}, shared: true, why: "credentials of the instance are found without it"},
		{names: []string{"WALE_LOG_DESTINATION", "WALE_SYSLOG_FACILITY"}, shared: true, why: "it is WAL-E's; the log goes to WALG_LOG_DESTINATION"},
		{names: adapter("OSS_*", "YC_SERVICE_ACCOUNT_KEY_FILE"), shared: true, why: idleStorage},
		{names: []string{"AZURE_*", "OS_*", "ST_*"}, shared: true, why: "what connects reads it from the environment only"},
		{names: []string{"WALG_FAILOVER_STORAGES_CACHE_EMA_*"}, why: "a storage is alive or dead as it was seen last, without averages"},
		{names: []string{"PGTZ", "PGDATESTYLE", "PGGEQO", "PGCLIENTENCODING", "PGSYSCONFDIR", "PGLOCALEDIR", "PGKRBSRVNAME", "PGGSSLIB", "PGGSSDELEGATION",
			"PGSSLCOMPRESSION", "PGLOADBALANCEHOSTS", "PGMINPROTOCOLVERSION", "PGMAXPROTOCOLVERSION", "PGSSLCERTMODE"}, shared: true,
			why: "our sessions have no use for it"},
		{names: []string{"PGREALM", "PGSSLMAXPROTOCOLVERSION"}, why: "the PostgreSQL driver does not know it", used: takes},
		{names: []string{"WALG_MYSQL_*", "WALG_MONGO_*", "WALG_MONGODB_*", "MONGODB_*", "WALG_REDIS_*", "WALG_GP_*", "WALG_ETCD_*", "WALG_SQLSERVER_*",
			"SQLSERVER_*", "OPLOG_*", "WALG_OPLOG_*", "WALG_CLICKHOUSE_*", "WALG_FDB_*", "WALG_BINLOG_*", "WALG_AEROSPIKE_*"}, shared: true, why: "it is for another database"},
	}
}

// Values of booleans, as WAL-G reads them.
var (
	yes = []string{"1", "t", "true"}
	no  = []string{"0", "f", "false"}
)

// adapter returns names and what they are with WALG_ and WALE_ before them.
func adapter(names ...string) []string {
	var all []string
	for _, n := range names {
		all = append(all, n, "WALG_"+n, "WALE_"+n)
	}
	return all
}

// find returns the group that name, in capitals, belongs to. What is known by its full name comes before patterns.
func find(groups []foreign, name string) *foreign {
	for i := range groups {
		if slices.Contains(groups[i].names, name) {
			return &groups[i]
		}
	}
	for i := range groups {
		for _, n := range groups[i].names {
			if prefix, ok := strings.CutSuffix(n, "*"); ok && strings.HasPrefix(name, prefix) {
				return &groups[i]
			}
		}
	}
	return nil
}
