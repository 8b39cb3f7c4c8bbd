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

	encrypts bool // an empty value in a settings file is an error where nothing else encrypts

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
	pushes   = []string{"backup-push", "catchup-push", "wal-push", "wal-receive", "daemon"}
	push     = []string{"backup-push"}
	takes    = []string{"backup-push", "catchup-push"}
	fetch    = []string{"backup-fetch"}
	walPush  = []string{"wal-push", "daemon"}
	walFetch = []string{"wal-fetch", "daemon"}
	readers  = []string{"wal-fetch", "wal-prefetch", "backup-fetch"} // which store nothing, and which a restore needs
	receive  = []string{"wal-receive"}
	jobs     = []string{"backup-push", "backup-fetch", "backup-merge", "catchup-push", "copy", "delete", "drill", "retention", "verify", "wal-verify"}
	agents   = []string{"agent"}
	leased   = []string{"backup-push", "backup-merge", "delete", "drill", "retention", "verify", "agent", "metrics", "lease"}
	drills   = []string{"drill"}
	proofs   = []string{"drill", "backup-list", "backup-show", "ribbon", "check", "doctor", "metrics", "agent", "retention", "delete"}
	alerts   = []string{"drill", "backup-push", "backup-merge", "delete", "retention", "verify", "wal-verify", "ribbon", "check", "agent", "alert"}
	asks     = []string{"backup-push", "catchup-push", "wal-receive", "wal-verify", "wal-show", "timeline"}
	server   = []string{"backup-push", "catchup-push", "wal-receive", "heartbeat", "backup-fetch", "drill", "wal-show", "wal-verify", "timeline", "check", "doctor"}
)

// Table returns all settings, by section. Defaults of how much is done at once follow from the number of cores.
func Table(cores int) []Setting { return table(&Settings{}, cores) }

// table returns the settings, with their places in s. Rows without a place are libpq's variables.
func table(s *Settings, cores int) []Setting {
	st := &s.Storage
	s3, gcs, az, swift, ssh, enc := &st.S3, &st.GCS, &st.Azure, &st.Swift, &st.SFTP, &s.Encryption
	s.Postgres.Vars = map[string]string{}
	t := slices.Concat(
		section("Archive", []Setting{
			{Name: "WALG_FILE_PREFIX", Type: Path, check: absolute, into: &st.filePrefix,
				Meaning: "Directory that holds the archive: an absolute path, or `file://` and one. One storage prefix, and only one, must be set."},
			{Name: "WALG_S3_PREFIX", check: bucket("s3"), into: &st.s3Prefix,
				Meaning: "Bucket and path that hold the archive: `s3://bucket/path`."},
			{Name: "WALG_GS_PREFIX", check: bucket("gs"), into: &st.gsPrefix,
				Meaning: "Bucket of Google Cloud Storage, and path: `gs://bucket/path`. An archive of WAL-E, whose names begin with a slash, is found by itself."},
			{Name: "WALG_AZ_PREFIX", Also: []string{"WALE_WABS_PREFIX"}, check: bucket("azure", "wabs"), into: &st.azPrefix,
				Meaning: "Container of Azure Blob Storage, and path: `azure://container/path`, or as in WAL-E `wabs://container/path`."},
			{Name: "WALG_SWIFT_PREFIX", check: bucket("swift"), into: &st.swiftPrefix,
				Meaning: "Container of OpenStack Swift, and path: `swift://container/path`."},
			{Name: "WALG_SSH_PREFIX", check: sshAddress, into: &st.sshPrefix,
				Meaning: "Host and directory there, reached by SFTP: `ssh://host/absolute/path`. The directory must exist, and the host be in known_hosts."},
			{Name: "WALG_STORAGE_PREFIX", check: relative, into: &st.folder,
				Meaning: "A further folder below the storage prefix."},
			{Name: "WALG_NETWORK_RATE_LIMIT", Default: "0", into: &s.NetworkRate,
				Meaning: "Bytes a second that go to and come from the storage at most, in each command; 0 is no limit. Unlike in WAL-G it holds for WAL too."},
		}),
		section("Several storages", []Setting{
			{Name: "WALG_FAILOVER_STORAGES", Secret: true, into: &s.failover,
				Meaning: "Further storages of the same archive: a map from a name to a map of that storage's own settings, its prefix first. What is read is the union of all, the storage outside of the map being called `default`; what is written goes to the first, in order of names behind `default`, that is alive. `st transfer` brings it home. A storage takes no setting from outside its map."},
			{Name: "WALG_FAILOVER_STORAGES_CHECK", Default: "true", into: &s.Health.Check,
				Meaning: "Check whether storages are alive before they are used; `false` learns it from use only."},
			{Name: "WALG_FAILOVER_STORAGES_CHECK_TIMEOUT", Default: "30s", Min: int64(time.Millisecond), into: &s.Health.Timeout,
				Meaning: "How long a storage may take to answer a check."},
			{Name: "WALG_FAILOVER_STORAGES_CHECK_SIZE", Default: "1MiB", Min: 1, Max: 1 << 30, into: &s.Health.Size,
				Meaning: "Bytes that a check writes."},
			{Name: "WALG_FAILOVER_STORAGES_CACHE_LIFETIME", Default: "15m0s", Min: int64(time.Second), into: &s.Health.Lifetime,
				Meaning: "How long it counts that a storage was seen alive, or dead."},
			{Name: "HOLDFAST_MIRRORS", Secret: true, into: &s.mirrors,
				Meaning: "Storages that hold the same as the one outside of the map: a map from a name to a map of that storage's own settings. What is archived is read once and written to all; a read is answered by the first that can."},
			{Name: "HOLDFAST_MIRRORS_RULE", Default: "all", Values: []string{"all", "any"}, into: &s.Mirroring.Rule,
				Meaning: "When something counts as archived: when `all` of the storages have it, or when `any` has. With `any` what a mirror lacks is owed to it, and repaid by later pushes and `st repay`."},
			{Name: "HOLDFAST_MIRRORS_JOURNAL", Type: Path, check: absolutePath, into: &s.Mirroring.Journal,
				Meaning: "Directory in which is noted what is owed to mirrors; it must stay, and be of the account that archives. The default is in HOLDFAST_STATE_DIR."},
			{Name: "HOLDFAST_MIRRORS_STALL", Default: "1m0s", Min: int64(time.Second), into: &s.Mirroring.Stall,
				Meaning: "With the rule `any`: how long a mirror may do nothing before it is left behind."},
			{Name: "HOLDFAST_MIRRORS_PAUSE", Default: "1m0s", Min: int64(time.Second), into: &s.Mirroring.Pause,
				Meaning: "With the rule `any`: how long a mirror that failed is left alone."},
			{Name: "HOLDFAST_STATE_DIR", Type: Path, check: absolutePath, into: &s.StateDir,
				Meaning: "Directory for what this host remembers: which storages are alive, what is owed to mirrors, who was told of which failure; and where `agent status` finds the agent. " +
					"All commands of one archive should have the same. The default is `.holdfast` in the account's home directory."},
			{Name: "WALG_TARGET_STORAGE", into: &s.Target,
				Meaning: "Use the storage of this name alone, `default` or one of the maps; `all` is as if it were not set."},
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
		section("Google Cloud Storage", []Setting{
			{Name: "GOOGLE_APPLICATION_CREDENTIALS", Type: Path, into: &gcs.CredentialsFile,
				Meaning: "File with the key of a service account, or a workload identity. Without it Google's usual places are looked at, the machine's own account last."},
			{Name: "GCS_ENCRYPTION_KEY", Secret: true, check: customerKey, into: &gcs.EncryptionKey,
				Meaning: "Key of 32 bytes in base64 that the service encrypts and decrypts with and does not keep."},
			{Name: "GCS_NORMALIZE_PREFIX", Default: "true", into: &gcs.normalize,
				Meaning: "`false` takes all slashes of WALG_GS_PREFIX but the one behind the bucket into the names of objects, as archives of WAL-E need."},
			{Name: "GCS_MAX_CHUNK_SIZE", Default: "16MiB", Min: 256 << 10, Max: 5 << 30, Used: pushes, into: &gcs.ChunkSize,
				Meaning: "Bytes of one request of an upload. WAL-G's default is 50 MiB."},
			{Name: "GCS_CONTEXT_TIMEOUT", Default: "0", Max: 365 * 24 * 3600, into: &gcs.timeoutSeconds,
				Meaning: "Seconds that a call may take with all its attempts; 0 is no limit, as nothing waits for a connection that is dead. WAL-G's default is 3600."},
			{Name: "GCS_MAX_RETRIES", Default: "16", Max: 1000, into: &gcs.Retries,
				Meaning: "Further attempts after a call failed in a way that may pass."},
			{Name: "STORAGE_EMULATOR_HOST", into: &gcs.Endpoint,
				Meaning: "Address of a service that stands in for Google's. It is asked without credentials unless GOOGLE_APPLICATION_CREDENTIALS is set."},
		}),
		section("Azure Blob Storage", []Setting{
			{Name: "AZURE_STORAGE_ACCOUNT", Also: []string{"WABS_ACCOUNT_NAME"}, into: &az.Account, Meaning: "Storage account."},
			{Name: "AZURE_STORAGE_ACCESS_KEY", Also: []string{"WABS_ACCESS_KEY"}, Secret: true, into: &az.AccessKey,
				Meaning: "Key of the account. Without key and token the Azure SDK looks in its usual places: its variables in the environment, workload identity, managed identity."},
			{Name: "AZURE_STORAGE_SAS_TOKEN", Also: []string{"WABS_SAS_TOKEN"}, Secret: true, into: &az.SASToken,
				Meaning: "Shared access signature, in place of a key."},
			{Name: "AZURE_ENVIRONMENT_NAME", Default: "AzurePublicCloud",
				Values: []string{"AzurePublicCloud", "AzureUSGovernmentCloud", "AzureChinaCloud", "AzureGermanCloud"}, into: &az.Environment,
				Meaning: "Which of Azure's clouds."},
			{Name: "AZURE_ENDPOINT_SUFFIX", into: &az.EndpointSuffix, Meaning: "What follows `blob.` in the address, in place of the cloud's `core.windows.net`."},
			{Name: "HOLDFAST_AZURE_ENDPOINT", check: endpoint, into: &az.Endpoint,
				Meaning: "URL of the account's blob service, where it is not `https://ACCOUNT.blob.core.windows.net`."},
			{Name: "HOLDFAST_AZURE_CA_CERT_FILE", Type: Path, into: &az.CACert,
				Meaning: "PEM file of certificate authorities to trust besides the system's."},
			{Name: "AZURE_BUFFER_SIZE", Default: "8MiB", Min: 1 << 10, Max: 4000 << 20, Used: pushes, into: &az.BlockSize,
				Meaning: "Size of a block. Later blocks of very large objects are larger."},
			{Name: "AZURE_MAX_BUFFERS", Default: "4", Min: 1, Max: 1000, Used: pushes, into: &az.Blocks,
				Meaning: "Blocks of one object in flight at once, as far as HOLDFAST_MEMORY_BUDGET has room for them."},
			{Name: "AZURE_TRY_TIMEOUT", Default: "0", Max: 7 * 24 * 60, into: &az.tryMinutes,
				Meaning: "Minutes that one attempt at a request may take; 0 is no limit, as nothing waits for a connection that is dead. WAL-G's default is 5."},
			{Name: "AZURE_BLOB_STORE_API_VERSION", into: &az.APIVersion, Meaning: "Version of the service's interface, in place of the SDK's."},
			{Name: "HOLDFAST_AZURE_MAX_RETRIES", Default: "15", Max: 1000, into: &az.Retries,
				Meaning: "Further attempts after a call failed in a way that may pass."},
		}),
		section("Swift", []Setting{
			{Name: "OS_AUTH_URL", Also: []string{"ST_AUTH", "SWIFT_AUTHURL"}, into: &swift.AuthURL, Meaning: "Address of the identity service: `https://host:5000/v3`."},
			{Name: "OS_USERNAME", Also: []string{"ST_USER", "SWIFT_USER"}, into: &swift.User, Meaning: "User."},
			{Name: "OS_PASSWORD", Also: []string{"ST_KEY", "SWIFT_PASSWORD"}, Secret: true, into: &swift.Password, Meaning: "Its password."},
			{Name: "OS_TENANT_NAME", Also: []string{"OS_PROJECT_NAME", "SWIFT_TENANT"}, into: &swift.Tenant, Meaning: "Project."},
			{Name: "OS_REGION_NAME", Also: []string{"SWIFT_REGION"}, into: &swift.Region, Meaning: "Region; without it the first one that the service names."},
			{Name: "OS_USER_DOMAIN_NAME", into: &swift.Domain, Meaning: "Domain of the user."},
			{Name: "OS_PROJECT_DOMAIN_NAME", into: &swift.TenantDomain, Meaning: "Domain of the project, where it is not that of the user."},
			{Name: "OS_USER_ID", into: &swift.UserID, Meaning: "User, by id."},
			{Name: "OS_TENANT_ID", Also: []string{"OS_PROJECT_ID"}, into: &swift.TenantID, Meaning: "Project, by id."},
			{Name: "OS_USER_DOMAIN_ID", into: &swift.DomainID, Meaning: "Domain of the user, by id."},
			{Name: "OS_PROJECT_DOMAIN_ID", into: &swift.TenantDomainID, Meaning: "Domain of the project, by id."},
			{Name: "OS_TRUST_ID", into: &swift.TrustID, Meaning: "Trust, by id."},
			{Name: "OS_APPLICATION_CREDENTIAL_ID", into: &swift.CredentialID, Meaning: "Application credential, by id, in place of user and password."},
			{Name: "OS_APPLICATION_CREDENTIAL_NAME", into: &swift.CredentialName, Meaning: "Application credential, by name, with the user."},
			{Name: "OS_APPLICATION_CREDENTIAL_SECRET", Secret: true, into: &swift.CredentialSecret, Meaning: "Its secret."},
			{Name: "OS_ENDPOINT_TYPE", Also: []string{"OS_INTERFACE"}, into: &swift.EndpointType, Meaning: "Which of the addresses of Swift: `public`, `internal` or `admin`; not set is public."},
			{Name: "OS_STORAGE_URL", into: &swift.StorageURL, Meaning: "Address of Swift, with OS_AUTH_TOKEN in place of the identity service."},
			{Name: "OS_AUTH_TOKEN", Secret: true, into: &swift.AuthToken, Meaning: "Token for OS_STORAGE_URL."},
			{Name: "ST_AUTH_VERSION", Default: "0", Max: 3, into: &swift.AuthVersion, Meaning: "Version of the identity service, 1 to 3; 0 takes the one that OS_AUTH_URL ends in."},
			{Name: "HOLDFAST_SWIFT_SEGMENT_SIZE", Default: "32MiB", Min: 1 << 20, Max: 5 << 30, Used: pushes, into: &swift.SegmentSize,
				Meaning: "Size of a segment of a large object, and of the largest object that has none."},
			{Name: "HOLDFAST_SWIFT_SEGMENT_CONTAINER", into: &swift.SegmentContainer,
				Meaning: "Container for segments; without it that of WALG_SWIFT_PREFIX with `_segments` behind."},
			{Name: "GOSWIFT_RETRIES", Ours: "HOLDFAST_SWIFT_MAX_RETRIES", Default: "15", Max: 1000, into: &swift.Retries,
				Meaning: "Further attempts after a call failed in a way that may pass."},
		}),
		section("SSH", []Setting{
			{Name: "SSH_PORT", Default: "22", Min: 1, Max: 65535, into: &ssh.Port, Meaning: "Port."},
			{Name: "SSH_USERNAME", into: &ssh.User, Meaning: "User; without it the account that runs this."},
			{Name: "SSH_PRIVATE_KEY_PATH", Type: Path, into: &ssh.PrivateKeyFile, Meaning: "File of the private key."},
			{Name: "HOLDFAST_SSH_PRIVATE_KEY_PASSPHRASE", Secret: true, into: &ssh.Passphrase, Meaning: "Passphrase of the private key."},
			{Name: "SSH_AUTH_SOCK", Type: Path, into: &ssh.AgentSocket, Meaning: "Socket of the agent whose keys are tried after SSH_PRIVATE_KEY_PATH."},
			{Name: "SSH_PASSWORD", Secret: true, into: &ssh.Password, Meaning: "Password, tried last."},
			{Name: "HOLDFAST_SSH_KNOWN_HOSTS", Type: Path, into: &ssh.KnownHosts,
				Meaning: "File with the keys of hosts, in place of `~/.ssh/known_hosts` and `/etc/ssh/ssh_known_hosts`. A host that is in none is refused."},
			{Name: "HOLDFAST_SSH_MAX_RETRIES", Default: "15", Max: 1000, into: &ssh.Retries,
				Meaning: "Further attempts after a call failed in a way that may pass."},
		}),
		section("Encryption", []Setting{
			{Name: "HOLDFAST_AGE_RECIPIENTS", encrypts: true, into: &enc.AgeRecipients,
				Meaning: "Public keys of age, several between commas: `age1…`, `ssh-ed25519 …`, `ssh-rsa …`. Each of them can decrypt what is written; none is secret. `holdfast key generate` makes one."},
			{Name: "HOLDFAST_AGE_RECIPIENTS_PATH", Type: Path, encrypts: true, into: &enc.AgeRecipientsPath, Meaning: "A file of such keys, one a line."},
			{Name: "HOLDFAST_AGE_IDENTITIES", Secret: true, into: &enc.AgeIdentities,
				Meaning: "Secret keys of age, `AGE-SECRET-KEY-1…`, which decrypt. A host that only writes needs none."},
			{Name: "HOLDFAST_AGE_IDENTITIES_PATH", Type: Path, into: &enc.AgeIdentitiesPath,
				Meaning: "A file of such keys, or of an SSH key without a passphrase."},
			{Name: "WALG_LIBSODIUM_KEY", Secret: true, into: &enc.SodiumKey, Meaning: "The secret key of libsodium's secretstream, of 32 bytes."},
			{Name: "WALG_LIBSODIUM_KEY_PATH", Type: Path, into: &enc.SodiumKeyPath, Meaning: "A file with that key."},
			{Name: "WALG_LIBSODIUM_KEY_TRANSFORM", Values: []string{"none", "base64", "hex"}, into: &enc.SodiumTransform,
				Meaning: "How that key is written; not set is `none`, as it is."},
			{Name: "WALG_PGP_KEY", Secret: true, into: &enc.PGPKey,
				Meaning: "Keys of OpenPGP in armor, public ones to write, secret ones to read; a backslash and an n may stand for each line break."},
			{Name: "WALG_PGP_KEY_PATH", Type: Path, into: &enc.PGPKeyPath, Meaning: "A file with such keys."},
			{Name: "WALG_PGP_KEY_PASSPHRASE", Secret: true, into: &enc.PGPPassphrase, Meaning: "Passphrase of the secret keys."},
			{Name: "WALG_GPG_KEY_ID", Also: []string{"WALE_GPG_KEY_ID", "GPG_KEY_ID"}, into: &enc.GPGKeyID,
				Meaning: "A key in the key ring of `gpg`, which is asked for it. WAL-G 3 ignores this setting and stores in clear."},
			{Name: "WALG_CSE_KMS_ID", Also: []string{"CSE_KMS_ID"}, into: &enc.KMSKeyID,
				Meaning: "Key of AWS KMS, by id, alias or ARN, that encrypts the keys of objects. Credentials are those of S3."},
			{Name: "WALG_CSE_KMS_REGION", Also: []string{"CSE_KMS_REGION"}, into: &enc.KMSRegion, Meaning: "Region of that key."},
			{Name: "HOLDFAST_ENCRYPTION", Values: []string{"age", "openpgp", "aws-kms", "libsodium"}, Used: pushes, into: &enc.Kind,
				Meaning: "Which keys encrypt, where keys of several kinds are set. What any of them can decrypt is read."},
			{Name: "HOLDFAST_ALLOW_UNENCRYPTED", Default: "false", into: &enc.AllowPlain,
				Meaning: "Read what is not encrypted although keys are set, as after encryption was turned on. Who can write to the archive can then have bytes of his own restored."},
		}),
		section("Compression", []Setting{
			{Name: "WALG_COMPRESSION_METHOD", Default: "zstd", Values: []string{"zstd", "lz4", "brotli", "lzma", "none"}, Used: pushes, into: &s.Compression.Method,
				Meaning: "How new objects are compressed. WAL-G's default is lz4. What is there is read whatever its method, gzip and lzop too."},
			{Name: "WALG_ZSTD_LEVEL", Default: "fastest", Values: []string{"fastest", "default", "better", "best"}, Used: pushes, into: &s.Compression.Level,
				Meaning: "How hard zstd tries. WAL-G's default is `default`."},
		}),
		section("WAL", []Setting{
			{Name: "WALG_INTEGRITY_MAX_DELAYED_WALS", Default: "0", Max: 1 << 20, Used: []string{"wal-verify"}, into: &s.WAL.Delayed,
				Meaning: "How many of the newest segments may be missing, as not archived yet, without being lost. Behind them as many may as wal-push has in flight."},
			{Name: "WALG_UPLOAD_CONCURRENCY", Default: "16", Min: 1, Max: 1000, Used: []string{"wal-push", "daemon", "wal-verify"}, into: &s.WAL.Parallel,
				Meaning: "WAL files in flight at once: the one asked for, and those PostgreSQL will ask for next. 1 stores only what is asked for."},
			{Name: "TOTAL_BG_UPLOADED_LIMIT", Default: "32", Min: 1, Max: 1 << 20, Used: walPush, into: &s.WAL.Limit,
				Meaning: "WAL files that one call stores at most, the one asked for included."},
			{Name: "PG_READY_RENAME", Default: "false", Used: walPush, into: &s.WAL.ReadyRename,
				Meaning: "Rename `.ready` to `.done` for a file stored ahead of being asked, so that PostgreSQL does not ask for it. Where the archive is another one by the next push, PostgreSQL is made to ask for what went to the old one and is still in pg_wal."},
			{Name: "HOLDFAST_WAL_SUMMARIES", Default: "auto", Values: []string{"auto", "on", "off"}, Used: walPush, into: &s.WAL.Summaries,
				Meaning: "Store with each segment which blocks it changes, so that a delta backup need not read the segment to know: `auto` is `on` where WALG_USE_WAL_DELTA is, or WALG_DELTA_MAX_STEPS is above 0."},
			{Name: "WALG_USE_WAL_DELTA", Default: "false", Used: walPush, into: &s.WAL.Deltas,
				Meaning: "Store for every 16 segments the `_delta` object by which WAL-G takes delta backups. Delta backups of ours go by the summaries, with it or without; without summaries nothing is stored."},
			{Name: "WALG_DOWNLOAD_CONCURRENCY", Default: "10", Min: 1, Max: 1000, Used: []string{"wal-fetch", "daemon", "backup-fetch", "catchup-fetch"}, into: &s.WAL.Prefetch,
				Meaning: "Segments that wal-fetch fetches ahead at most; 1 fetches none ahead. Where it is set, also the parts that backup-fetch and catchup-fetch restore at once; else that is one per core."},
			{Name: "WALG_PREFETCH_DIR", Type: Path, Used: walFetch, into: &s.WAL.PrefetchDir,
				Meaning: "Where `.wal-g/prefetch` is kept; the directory of the destination when not set. It must be on the file system of the destination."},
			{Name: "WALG_DAEMON_WAL_UPLOAD_TIMEOUT", Default: "60s", Used: []string{"daemon"}, into: &s.WAL.DaemonTimeout,
				Meaning: "How long the daemon tries to store a WAL file, until it says that it failed and PostgreSQL asks again; 0 is as long as the storage itself tries."},
		}),
		section("Streaming", []Setting{
			{Name: "WALG_SLOTNAME", Default: "walg", Used: receive, into: &s.Receive.Slot,
				Meaning: "Physical replication slot that `wal-receive` streams through; it is created where there is none. 1 to 63 of `a-z`, `0-9` and `_`."},
			{Name: "HOLDFAST_RECEIVE_DIR", Type: Path, check: absolutePath, Used: receive, into: &s.Receive.Dir,
				Meaning: "Directory in which `wal-receive` keeps WAL until it is archived; it must stay. The default is in HOLDFAST_STATE_DIR, one for each archive."},
			{Name: "HOLDFAST_TAIL_INTERVAL", Default: "1s", Max: int64(time.Hour), Used: receive, into: &s.Receive.TailInterval,
				Meaning: "How often `wal-receive` stores what has come of the segment that the server is writing; 0 stores whole segments only, and with `--synchronous` the rest once no server is there or it ends."},
			{Name: "HOLDFAST_TAIL_BYTES", Default: "1MiB", Min: 8 << 10, Max: 1 << 30, Used: receive, into: &s.Receive.TailBytes,
				Meaning: "Or once so much has come."},
			{Name: "HOLDFAST_RECEIVE_SYNC", Default: "local,store", Values: []string{"local,store", "local", "store"}, Used: receive, into: &s.Receive.Sync,
				Meaning: "Where WAL must be safe before `wal-receive --synchronous` says that it is: synced in HOLDFAST_RECEIVE_DIR, in the store, or both."},
		}),
		section("Backups", []Setting{
			{Name: "WALG_UPLOAD_DISK_CONCURRENCY", Default: strconv.Itoa(max(cores, 4)), Min: 1, Max: 1000, Used: takes, into: &s.Backup.Workers,
				Meaning: "Parts filled and stored at once: where there are few cores some more than those, as one waits for the disk while another is compressed. WAL-G's default is 1."},
			{Name: "WALG_TAR_SIZE_THRESHOLD", Default: "1073741823", Min: 64 << 10, Max: 128 << 30, Used: takes, into: &s.Backup.PartSize,
				Meaning: "Bytes of content after which a part is closed."},
			{Name: "WALG_DISK_RATE_LIMIT", Default: "0", Used: takes, into: &s.Backup.DiskRate,
				Meaning: "Bytes a second read from the data directory at most; 0 is no limit. Over the wire the server keeps to it, from 32 KiB a second to 1 GiB, and counts what it sends: what it compresses is read faster."},
			{Name: "HOLDFAST_WIRE_COMPRESSION", Default: "off", Values: []string{"off", "auto", "gzip", "lz4", "zstd"}, Used: push, into: &s.Backup.Wire,
				Meaning: "How the server compresses what it sends, of a backup over the wire and from PostgreSQL 15 on: it pays where the network is slower than one core of the server compresses. `auto` takes the best the server was built with."},
			{Name: "WALG_STORE_ALL_CORRUPT_BLOCKS", Default: "false", Used: takes, into: &s.Backup.AllCorrupt,
				Meaning: "Record every corrupt block of a file, not the first ten."},
			{Name: "WALG_DELTA_MAX_STEPS", Default: "0", Max: 10000, Used: []string{"backup-push", "wal-push", "daemon"}, into: &s.Backup.Delta.MaxSteps,
				Meaning: "How many delta backups may build on one another before a full one is taken; 0 takes full ones only. A delta holds what changed since the backup it builds on, and is restored with all those below it."},
			{Name: "WALG_DELTA_ORIGIN", Default: "LATEST", Values: []string{"LATEST", "LATEST_FULL"}, Used: push, into: &s.Backup.Delta.Origin,
				Meaning: "What a delta builds on: the newest backup, or the full backup below that."},
			{Name: "WALG_DELTA_FROM_NAME", Used: push, into: &s.Backup.Delta.Name, Meaning: "The backup that a delta builds on, by its name."},
			{Name: "WALG_DELTA_FROM_USER_DATA", Used: push, into: &s.Backup.Delta.UserData,
				Meaning: "A delta builds on the newest backup that has this user data. Goes with no WALG_DELTA_FROM_NAME."},
			{Name: "HOLDFAST_DELTA_SOURCE", Default: "auto", Values: []string{"auto", "summaries", "archive", "lsn"}, Used: takes, into: &s.Backup.Delta.Source,
				Meaning: "How a delta knows what has changed: by PostgreSQL's WAL summaries (17 and later, `summarize_wal = on`), by the summaries of archived WAL " +
					"(`archive`, see HOLDFAST_WAL_SUMMARIES), or by reading all relations and comparing each page's LSN. `auto` takes the first of these that knows."},
			{Name: "WALG_FORCE_WAL_DELTA", Default: "false", Used: takes, into: &s.Backup.Delta.Force,
				Meaning: "Fail when neither kind of summaries covers the time since the backup to build on, rather than read all relations."},
			{Name: "HOLDFAST_DELTA_SAMPLE", Default: "0.001", Used: takes, into: &s.Backup.Delta.Sample,
				Meaning: "Of the blocks that have not changed by the summaries, how many are read to see whether that is so; 0 is none, 1 all. " +
					"Where one has changed the relation is read as a whole, and an error is logged."},
			{Name: "WALG_SENTINEL_USER_DATA", Used: takes, into: &s.Backup.UserData, Meaning: "Data of yours stored with the backup."},
			{Name: "WALG_STOP_BACKUP_TIMEOUT", Default: "0s", Used: takes, into: &s.Backup.Stop,
				Meaning: "How long stopping the backup may take on the server; 0 is no limit."},
			{Name: "WALG_ALIVE_CHECK_INTERVAL", Default: "1m0s", Used: takes, into: &s.Backup.Alive,
				Meaning: "How often the session that holds the backup is asked whether it is still there; 0 is never."},
			{Name: "HOLDFAST_WAL_WAIT_TIMEOUT", Default: "1h0m0s", Min: int64(time.Second), Used: takes, into: &s.Backup.WALTimeout,
				Meaning: "How long a backup waits at its end for the WAL it needs to be in the archive, before it fails."},
		}),
		section("Restore", []Setting{
			{Name: "WALG_FETCH_TARGET_USER_DATA", Used: fetch, into: &s.Restore.UserData,
				Meaning: "Restore the backup with this user data."},
		}),
		section("Retention", []Setting{
			{Name: "HOLDFAST_RETENTION", Type: Rules, Used: []string{"retention", "wal-verify"}, into: &s.Retention.Policy,
				Meaning: "Which backups `retention` keeps: a map of `recovery_window` (a duration such as 14d), `full` (a number), `gfs` (a map of `daily`, `weekly`, `monthly` and `yearly` numbers), `minimum` (a number) and `keep_last_proven` (true or false). What one rule wants stays. Without it nothing goes."},
			{Name: "HOLDFAST_RETENTION_GRACE", Default: "72h0m0s", Max: int64(10 * 365 * 24 * time.Hour), Used: []string{"retention"}, into: &s.Retention.Grace,
				Meaning: "How long `retention apply` leaves what it has condemned, so that `undelete` can take that back."},
			{Name: "HOLDFAST_DELETE_GRACE", Default: "0s", Max: int64(10 * 365 * 24 * time.Hour), Used: []string{"delete"}, into: &s.Retention.DeleteGrace,
				Meaning: "The same for `delete --confirm`, which as in WAL-G removes at once. What was condemned is removed by the next `retention apply` behind that time."},
		}),
		section("Verification", []Setting{
			{Name: "HOLDFAST_VERIFY_BUDGET", Default: "0", Used: []string{"verify"}, into: &s.Verify.Budget,
				Meaning: "Bytes a second that `verify` reads from the storage at most; 0 is no limit but WALG_NETWORK_RATE_LIMIT."},
			{Name: "HOLDFAST_VERIFY_MAX_AGE", Default: "720h0m0s", Min: int64(time.Second), Used: []string{"verify"}, into: &s.Verify.MaxAge,
				Meaning: "How long it counts what `verify` has found of an object. It is not read again until then, unless its size or time has changed."},
		}),
		section("Proof", []Setting{
			{Name: "HOLDFAST_DRILL_DIR", Type: Path, Default: "/var/tmp", check: absolutePath, Used: drills, into: &s.Drill.Dir,
				Meaning: "Directory below which `drill` makes its copy of the cluster, tablespaces included, and removes it. Its file system needs room for all of it, and the account of the copy must be let into it."},
			{Name: "HOLDFAST_DRILL_USER", Used: drills, into: &s.Drill.User,
				Meaning: "Account as which PostgreSQL runs the copy where root makes the drill; the default is `postgres`. It must be able to read the archive, as it fetches WAL."},
			{Name: "HOLDFAST_DRILL_ROLE", Used: drills, into: &s.Drill.Role,
				Meaning: "Superuser of the cluster, as whom the copy is asked; where it is not set PGUSER, `postgres` and the accounts are tried."},
			{Name: "HOLDFAST_PG_BIN", Used: drills, into: &s.Drill.Programs,
				Meaning: "Directories of PostgreSQL's server programs with colons between them, perhaps with `*`, where they are in no usual place: the major version of the backup is chosen among them, and those of Debian, RHEL, SUSE, Alpine, Homebrew and PATH."},
			{Name: "HOLDFAST_DRILL_MEMORY", Default: "512MiB", Min: 32 << 20, Used: drills, into: &s.Drill.Memory,
				Meaning: "Memory that PostgreSQL gets for the copy, about: shared buffers are half of it at most."},
			{Name: "HOLDFAST_DRILL_NICE", Default: "10", Max: 19, Used: drills, into: &s.Drill.Nice,
				Meaning: "How far a drill steps back behind other processes: as nice(1) has it, and at the lowest priority for disks. 0 is not at all."},
			{Name: "HOLDFAST_DRILL_BUDGET", Default: "30m0s", Used: drills, into: &s.Drill.Budget,
				Meaning: "How long a drill verifies indexes and tables with amcheck at most, and then pages; each drill begins elsewhere. 0 verifies all."},
			{Name: "HOLDFAST_DRILL_TIMEOUT", Default: "0s", Used: drills, into: &s.Drill.Timeout,
				Meaning: "How long a drill may take; after that it counts as failed. 0 is no limit."},
			{Name: "HOLDFAST_DRILL_RTO", Default: "0s", Used: drills, into: &s.Drill.RTO,
				Meaning: "How long it may take, from the begin of the drill, until the copy takes writes: a drill that takes longer fails. 0 is no limit."},
			{Name: "HOLDFAST_DRILL_RPO", Default: "0s", Used: drills, into: &s.Drill.RPO,
				Meaning: "How much may be lost: a drill to the end of the WAL fails where the last commit, and the last segment that was archived, or the heartbeat, is older than this when it begins. 0 is no limit."},
			{Name: "HOLDFAST_DRILL_HEARTBEAT", check: heartbeat, Used: drills, into: &s.Drill.Heartbeat,
				Meaning: "What tells how old the copy's data is: a database, a colon, and a statement that returns a timestamptz, such as `postgres:select max(at) from heartbeat`."},
			{Name: "HOLDFAST_DRILL_CHECKS", Type: List, Used: drills, into: &s.Drill.Checks,
				Meaning: "Questions that the copy is asked: a list of maps of `database`, `sql` (or `table`, for the number of its rows), `expect` (what the first column of the first row must be, perhaps `null`; or a number behind `<`, `<=`, `>`, `>=`, `!=`) and `name`. What is answered is in the record, which is not encrypted."},
			{Name: "HOLDFAST_HEARTBEAT", Default: "off", Used: []string{"heartbeat", "agent", "drill"}, into: &s.Drill.Beat,
				Meaning: "Database in which the agent, or `holdfast heartbeat` from cron, leaves a sign of life each minute: time and position, in the table `holdfast.heartbeat`, one row for each host that was the primary. A drill reads that where HOLDFAST_DRILL_HEARTBEAT is not set, so that what would have been lost is measured also of a cluster in which nothing happens. With an `archive_timeout` such a cluster archives a segment for each then, where it archived none: with one of a minute 1440 a day. Not a database of which a publication sends all tables. `off` is none."},
			{Name: "HOLDFAST_PROOF_KEY", Secret: true, Used: proofs, into: &s.Drill.Key,
				Meaning: "Private key that signs what a drill has found: Ed25519 in PEM, as `openssl genpkey -algorithm ed25519` writes it. Where it is set only records that it has signed count as proof, unless HOLDFAST_PROOF_PUBLIC_KEY says otherwise."},
			{Name: "HOLDFAST_PROOF_PUBLIC_KEY", Secret: true, Used: proofs, into: &s.Drill.PublicKeys,
				Meaning: "Public keys, one behind another, as `openssl pkey -pubout` writes them: only records of drills that one of them has signed count as proof, for backup-list, ribbon, check, metrics and retention. It is for hosts without the private key, and for a change of keys."},
		}),
		section("Checks", []Setting{
			{Name: "HOLDFAST_CHECK", Used: []string{"check", "doctor"}, into: &s.Checks,
				Meaning: "Limits of checks other than those of docs/checks.md, as `backup-age=26h:50h,wal-age=5m:20m,proof=off`: a WARNING and a CRITICAL one, or `off` for no such check."},
		}),
		section("Several hosts", []Setting{
			{Name: "HOLDFAST_ROLE", Values: []string{"replica", "primary", "prefer-replica", "any"}, Used: leased, into: &s.Lease.Role,
				Meaning: "On which kind of server backup-push, backup-merge, `retention apply`, `delete --confirm` and verify do something, the server being asked: on others they say so and end with 0. `prefer-replica` is the primary only while no standby streams from it. Not set, or `any`: wherever it is called."},
			{Name: "HOLDFAST_LEASE", check: leaseKeeper, Used: leased, into: &s.Lease.Keeper,
				Meaning: "Who sees to it that of several hosts one does these: `archive` (by objects in it), `postgres` (an advisory lock of the primary; `postgres://db1,db2/postgres` says where that is), `etcd://host:2379`, `consul://host:8500` (`etcds`, `consuls` over TLS; several hosts with commas between them, a prefix of keys behind a slash), `kube://namespace/name`, or `none`. The others say who has the lease, and end with 0. Where it is not set it is `archive` if HOLDFAST_ROLE is set, and `none` if not."},
			{Name: "HOLDFAST_LEASE_TTL", Default: "1m0s", Min: int64(5 * time.Second), Max: int64(24 * time.Hour), Used: leased, into: &s.Lease.TTL,
				Meaning: "How long a lease lasts without a sign of life of its holder; and how long after it was taken other hosts leave alone what was done, so it must be longer than their clocks differ."},
			{Name: "HOLDFAST_LEASE_HOST", check: hostName, Used: leased, into: &s.Lease.Host,
				Meaning: "Name of this host in leases, where its own does not tell it from others."},
			{Name: "HOLDFAST_LEASE_SECRET", Secret: true, Used: leased, into: &s.Lease.Secret,
				Meaning: "What the service that keeps leases wants: `user:password` for etcd, a token for Consul."},
		}),
		section("Agent", []Setting{
			{Name: "HOLDFAST_SCHEDULE_BACKUP", Used: agents, into: &s.Agent.Backup,
				Meaning: "When `holdfast agent` has backup-push run: a cron expression of five fields, or of six with the seconds first, or `@daily` and the like, perhaps with `by=06:00` (or `by=3h`: until when it is to be done), and `jitter=10m` behind it. `off`, or not set, is never. It is the same on all hosts; one of them does it."},
			{Name: "HOLDFAST_SCHEDULE_FULL", Used: agents, into: &s.Agent.Full,
				Meaning: "When it takes a full backup (`backup-push --full`). At an instant that is of HOLDFAST_SCHEDULE_BACKUP too there is this one alone."},
			{Name: "HOLDFAST_SCHEDULE_RETENTION", Used: agents, into: &s.Agent.Retention,
				Meaning: "When it has `retention apply` run."},
			{Name: "HOLDFAST_SCHEDULE_VERIFY", Used: agents, into: &s.Agent.Verify,
				Meaning: "When it has `verify` run."},
			{Name: "HOLDFAST_SCHEDULE_DRILL", Used: agents, into: &s.Agent.Drill,
				Meaning: "When it has the latest backup proven: `drill`. One drill runs at a time on a host; it needs HOLDFAST_DRILL_DIR."},
			{Name: "HOLDFAST_SCHEDULE_DRILL_RANDOM", Used: agents, into: &s.Agent.DrillRandom,
				Meaning: "When it has a random moment proven: `drill random`."},
			{Name: "HOLDFAST_SCHEDULE_DRILL_OLDEST", Used: agents, into: &s.Agent.DrillOldest,
				Meaning: "When it has the backup proven that is the oldest without a drill, or whose drill is the longest ago: `drill oldest`."},
			{Name: "HOLDFAST_SCHEDULE_CHECK", Default: "*/10 * * * *", Used: agents, into: &s.Agent.Check,
				Meaning: "When it has `check` run, on each host for itself."},
			{Name: "HOLDFAST_SCHEDULE_ZONE", check: zone, Used: agents, into: &s.Agent.Zone,
				Meaning: "Time zone of these, such as `Europe/Berlin`; the default is the host's."},
			{Name: "HOLDFAST_SCHEDULE_JITTER", Default: "0s", Max: int64(24 * time.Hour), Used: agents, into: &s.Agent.Jitter,
				Meaning: "How long after its instant something is begun at the latest, where `jitter=` does not say it: not every cluster of a storage at once. How long it is follows from the archive and the job, and is the same on all hosts."},
			{Name: "HOLDFAST_SCHEDULE_CATCH_UP", Default: "12h0m0s", Min: int64(time.Second), Max: int64(31 * 24 * time.Hour), Used: agents, into: &s.Agent.CatchUp,
				Meaning: "How long after its instant something may still be begun, as after the hosts were down; but not behind the next instant of the same."},
			{Name: "HOLDFAST_AGENT_LISTEN", Default: "127.0.0.1:9351", check: listenAddress, Used: agents, into: &s.Agent.Listen,
				Meaning: "Where the agent serves /metrics, or `off`."},
			{Name: "HOLDFAST_AGENT_SOCKET", Type: Path, check: absolutePath, Used: agents, into: &s.Agent.Socket,
				Meaning: "Has the agent run `holdfast daemon` at this socket, for holdfast-client."},
			{Name: "HOLDFAST_AGENT_RECEIVE", Default: "off", Values: []string{"off", "on", "synchronous"}, Used: agents, into: &s.Agent.Receive,
				Meaning: "Has the agent run `holdfast wal-receive`, perhaps with `--synchronous`."},
			{Name: "HOLDFAST_AGENT_INTERVAL", Default: "5m0s", Used: agents, into: &s.Agent.Interval,
				Meaning: "How often the agent has the archive looked at, for /metrics; 0 is never."},
		}),
		section("Metrics", []Setting{
			{Name: "HOLDFAST_PUSHGATEWAY", Secret: true, check: webAddress, Used: jobs, into: &s.Metrics.Pushgateway,
				Meaning: "Address of a Prometheus Pushgateway, such as `http://host:9091`, perhaps with name and password, which each job tells at its end what it came to, also where it failed. docs/metrics.md says what."},
			{Name: "HOLDFAST_PUSHGATEWAY_LABELS", check: labelList, Used: append([]string{"metrics"}, jobs...), into: &s.Metrics.Labels,
				Meaning: "Labels that tell this cluster from others, such as `shard=1,tier=gold`: those of its groups in the Pushgateway, beside `job` (`holdfast`, unless it is among them) and `type` (the command, likewise), and of all samples in files."},
			{Name: "HOLDFAST_METRICS_TEXTFILE_DIR", Type: Path, check: absolutePath, Used: jobs, into: &s.Metrics.TextfileDir,
				Meaning: "Directory of node_exporter's textfile collector, in which each job writes at its end what it came to, also where it failed."},
			{Name: "WALG_STATSD_ADDRESS", check: hostPort, into: &s.Metrics.StatsD,
				Meaning: "Host and port to which each command sends by UDP, as StatsD has it, what it did with the storage; unlike in WAL-G also where it failed."},
			{Name: "WALG_STATSD_EXTRA_TAGS", into: &s.Metrics.StatsDTags,
				Meaning: "Tags for each of these values, in InfluxDB's form."},
		}),
		section("Alerts", []Setting{
			{Name: "HOLDFAST_ALERT_SLACK", Secret: true, check: hook, Used: alerts, into: &s.Alerts.Slack,
				Meaning: "Incoming webhook of Slack, or of what takes the same, as Mattermost does: it is told when a job fails, and once when it works again. `alert test` tries this and all that follow."},
			{Name: "HOLDFAST_ALERT_WEBHOOK", Secret: true, check: hook, Used: alerts, into: &s.Alerts.Webhook,
				Meaning: "Address to which the same is posted as JSON."},
			{Name: "HOLDFAST_ALERT_WEBHOOK_SECRET", Secret: true, check: hookSecret, Used: alerts, into: &s.Alerts.WebhookSecret,
				Meaning: "Signs what is posted there, as standardwebhooks.com says: HMAC-SHA256 over id, time and body. Behind `whsec_` it is base64, else it counts as it is."},
			{Name: "HOLDFAST_ALERT_MAIL_TO", check: mailAddresses, Used: alerts, into: &s.Alerts.MailTo,
				Meaning: "Who gets mail about the same: addresses with commas between them."},
			{Name: "HOLDFAST_ALERT_MAIL_FROM", check: mailAddress, Used: alerts, into: &s.Alerts.MailFrom,
				Meaning: "The address that it comes from."},
			{Name: "HOLDFAST_ALERT_MAIL_SERVER", Secret: true, check: mailServer, Used: alerts, into: &s.Alerts.MailServer,
				Meaning: "The server that takes it: `smtp://host:port` (STARTTLS is used where it is offered) or `smtps://host:port` (TLS from the start). Without a port it is 465 for `smtps`, else 587 with a user and 25 without."},
			{Name: "HOLDFAST_ALERT_MAIL_USER", Used: alerts, into: &s.Alerts.MailUser,
				Meaning: "User to log in as. Over the network that needs TLS."},
			{Name: "HOLDFAST_ALERT_MAIL_PASSWORD", Secret: true, Used: alerts, into: &s.Alerts.MailPassword,
				Meaning: "That user's password."},
			{Name: "HOLDFAST_ALERT_COMMAND", Secret: true, Used: alerts, into: &s.Alerts.Command,
				Meaning: "Line of the shell that is run for the same, with the JSON on its standard input. Its environment is ours without secrets of this table."},
			{Name: "HOLDFAST_ALERT_REPEAT", Default: "24h0m0s", Min: int64(time.Second), Used: alerts, into: &s.Alerts.Repeat,
				Meaning: "While a job keeps failing, how long after it was told of it is told of again. HOLDFAST_STATE_DIR remembers that."},
			{Name: "HOLDFAST_ALERT_CLUSTER", Used: alerts, into: &s.Alerts.Cluster,
				Meaning: "What alerts call the cluster; the default is where the archive is."},
			{Name: "HOLDFAST_ALERT_LINK", check: hook, Used: alerts, into: &s.Alerts.Link,
				Meaning: "Address that alerts point to, such as your runbook's."},
			{Name: "HOLDFAST_PING_BACKUP", Secret: true, check: hook, Used: push, into: &s.Alerts.PingBackup,
				Meaning: "Dead man's switch of backup-push: a service that raises an alarm when it did not hear in time that a backup was made."},
			{Name: "HOLDFAST_PING_VERIFY", Secret: true, check: hook, Used: []string{"verify"}, into: &s.Alerts.PingVerify,
				Meaning: "The same of verify, which hears of runs that found all well."},
			{Name: "HOLDFAST_PING_RETENTION", Secret: true, check: hook, Used: []string{"retention"}, into: &s.Alerts.PingRetention,
				Meaning: "The same of `retention apply`."},
			{Name: "HOLDFAST_PING_DRILL", Secret: true, check: hook, Used: drills, into: &s.Alerts.PingDrill,
				Meaning: "The same of drill, which hears of backups that were proven."},
			{Name: "HOLDFAST_PING_STYLE", Default: "healthchecks", Values: []string{"healthchecks", "snitch"}, Used: []string{"backup-push", "verify", "retention", "drill"}, into: &s.Alerts.PingStyle,
				Meaning: "How these are told: as healthchecks.io has it, start, success and failure with a report, or as Dead Man's Snitch has it, success alone."},
		}),
		section("pgBackRest", []Setting{
			{Name: "PGBACKREST_STANZA", Default: "main", Used: []string{"pgbackrest"}, into: &s.Stanza,
				Meaning: "Stanza of a repository of pgBackRest. Where the repository is, and how it is encrypted, pgBackRest's own variables and files say."},
		}),
		section("PostgreSQL", []Setting{
			{Name: "PGDATA", Type: Path, Used: []string{"backup-push", "catchup-push", "wal-fetch", "wal-push --repair"}, into: &s.Postgres.DataDir,
				Meaning: "The data directory, where the command line does not name it. wal-fetch looks there for what the server is doing when it is not called from there."},
			{Name: "PGHOST", Meaning: "Host name, or directory of the socket. `wal-receive` takes several, with commas between them, as it does ports."},
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
				Meaning: "`text` is WAL-G's line, `json` one JSON object per line, with job, backup and segment where they are known. journald gets these as fields either way."},
			{Name: "HOLDFAST_LOG_TO", check: logTo, into: &s.Log.To,
				Meaning: "`stderr`, `syslog` or `journald`, where WALG_LOG_DESTINATION names no file; `syslog:/path` and `journald:/path` name the socket. Lines that it does not take go to stderr."},
			{Name: "HOLDFAST_MEMORY_BUDGET", Default: "256MiB", Min: 64 << 20, into: &s.MemoryBudget,
				Meaning: "Memory the process aims to stay below; parts on their way to a storage get half of it. wal-push takes 96 MiB of it at most. GOMEMLIMIT in the environment wins."},
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

// adapters are the beginnings of the names of settings that belong to one kind of storage.
var adapters = []string{"AWS_", "S3_", "GCS_", "GOOGLE_", "AZURE_", "OS_", "ST_", "SSH_"}

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
	case slices.ContainsFunc(adapters, func(begin string) bool { return strings.HasPrefix(name, begin) }):
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
	case *float64:
		return Fraction
	case *time.Duration:
		return Duration
	case *json.RawMessage:
		return JSON
	case *map[string]string:
		return Map
	case *storages:
		return Storages
	}
	if s.Values != nil {
		return Enum
	}
	return String
}

// port checks a TCP port, or several with commas between them.
func port(text string) error {
	for one := range strings.SplitSeq(text, ",") {
		if n, err := strconv.Atoi(one); err != nil || n < 1 || n > 65535 {
			return errors.New("must be a port, from 1 to 65535")
		}
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
