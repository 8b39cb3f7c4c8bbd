package config

import (
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// filePath returns the path that a file prefix names: file:///path, file://localhost/path or /path.
func filePath(prefix string) string {
	if rest, ok := strings.CutPrefix(prefix, "file://"); ok {
		return strings.TrimPrefix(rest, "localhost")
	}
	return prefix
}

// absolute checks a file prefix. A relative one would be another directory for archive_command, which PostgreSQL runs in
// its data directory.
func absolute(text string) error {
	if !filepath.IsAbs(filePath(text)) {
		return errors.New("must be an absolute path, or file:// and one")
	}
	return nil
}

// absolutePath checks the path of a directory here.
func absolutePath(text string) error {
	if !filepath.IsAbs(text) {
		return errors.New("must be an absolute path")
	}
	return nil
}

// bucket returns a check of a prefix of one of the schemes: scheme://bucket/path.
func bucket(schemes ...string) func(string) error {
	return func(text string) error {
		scheme, rest, _ := strings.Cut(text, "://")
		name, below, _ := strings.Cut(rest, "/")
		if scheme == "gs" { // WAL-E's archives begin with one slash more
			below = strings.TrimPrefix(below, "/")
		}
		if below = strings.Trim(below, "/"); !slices.Contains(schemes, scheme) || name == "" || strings.ContainsAny(text, "?#@ ") ||
			below != "" && path.Clean(below) != below || strings.HasPrefix(below, "..") {
			return fmt.Errorf("must be %[1]s://%[2]s or %[1]s://%[2]s/path", schemes[0], container(schemes[0]))
		}
		return nil
	}
}

// container is what a service calls the place of objects.
func container(scheme string) string {
	if scheme == "s3" || scheme == "gs" {
		return "bucket"
	}
	return "container"
}

// split takes a prefix apart that bucket has checked, and puts folder below it.
func split(prefix, folder string) (bucket, below string) {
	if prefix == "" {
		return "", ""
	}
	_, rest, _ := strings.Cut(prefix, "://")
	bucket, below, _ = strings.Cut(rest, "/")
	return bucket, strings.Trim(path.Join(below, folder), "/")
}

// sshAddress checks the prefix of a directory of another host.
func sshAddress(text string) error {
	if u, err := url.Parse(text); err != nil || u.Scheme != "ssh" || u.Hostname() == "" || u.User != nil || u.Port() != "" || u.Path == "" || u.RawQuery != "" {
		return errors.New("must be ssh://host/absolute/path; the port is SSH_PORT, the user SSH_USERNAME")
	}
	return nil
}

// endpointURL completes an endpoint that is a host alone.
func endpointURL(text string) string {
	if !strings.Contains(text, "://") {
		text = "https://" + text
	}
	return strings.TrimSuffix(text, "/")
}

// endpoint checks the address of an S3 service.
func endpoint(text string) error {
	u, err := url.Parse(endpointURL(text))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" {
		return errors.New("must be a URL such as https://host:port, without a user")
	}
	return nil
}

// parseWALEEndpoint reads scheme+style://host:port.
func parseWALEEndpoint(text string) (url string, pathStyle bool, err error) {
	scheme, host, _ := strings.Cut(text, "://")
	scheme, style, _ := strings.Cut(scheme, "+")
	if style != "path" && style != "virtualhost" && style != "subdomain" {
		return "", false, errors.New("must be scheme+style://host:port with path, virtualhost or subdomain as the style")
	}
	url = scheme + "://" + host
	return url, style == "path", endpoint(url)
}

// waleEndpoint checks such an address.
func waleEndpoint(text string) error {
	_, _, err := parseWALEEndpoint(text)
	return err
}

// customerKey checks a key for S3 to encrypt with.
func customerKey(text string) error {
	if b, err := base64.StdEncoding.DecodeString(text); err != nil || len(b) != 32 {
		return errors.New("must be 32 bytes in base64")
	}
	return nil
}

// given tells whether, by which name and where a setting of the table was given.
type given func(setting string) (value value, ok bool)

// prefixes are the settings that say where a storage is, each with the section that is for such storages only.
var prefixes = [...]prefix{
	{"WALG_FILE_PREFIX", ""}, {"WALG_S3_PREFIX", "S3"}, {"WALG_GS_PREFIX", "Google Cloud Storage"}, {"WALG_AZ_PREFIX", "Azure Blob Storage"},
	{"WALG_SWIFT_PREFIX", "Swift"}, {"WALG_SSH_PREFIX", "SSH"},
}

type prefix struct{ setting, section string }

// Section returns the title of the section of the table that is for storages of this kind only, "" when there is none.
func (s *Storage) Section() string {
	switch {
	case s.S3.Bucket != "":
		return "S3"
	case s.GCS.Bucket != "":
		return "Google Cloud Storage"
	case s.Azure.Container != "":
		return "Azure Blob Storage"
	case s.Swift.Container != "":
		return "Swift"
	case s.SFTP.Host != "":
		return "SSH"
	}
	return ""
}

// Location names the storage: equal for equal ones, different for different ones. It is "" when no prefix was given.
func (s *Storage) Location() string {
	below := func(path string) string {
		if path == "" {
			return ""
		}
		return "/" + path
	}
	at := func(address string) string {
		if address == "" {
			return ""
		}
		return " at " + address
	}
	switch {
	case s.Dir != "":
		return "file://" + s.Dir
	case s.S3.Bucket != "":
		return "s3://" + s.S3.Bucket + below(s.S3.Path) + at(s.S3.Endpoint)
	case s.GCS.Bucket != "":
		return "gs://" + s.GCS.Bucket + below(s.GCS.Path) + at(s.GCS.Endpoint)
	case s.Azure.Container != "":
		return "azure://" + s.Azure.Container + below(s.Azure.Path) + at(cmp.Or(s.Azure.Endpoint, s.Azure.Account))
	case s.Swift.Container != "":
		return "swift://" + s.Swift.Container + below(s.Swift.Path) + at(s.Swift.AuthURL)
	case s.SFTP.Host != "":
		return "ssh://" + net.JoinHostPort(s.SFTP.Host, strconv.Itoa(s.SFTP.Port)) + s.SFTP.Dir
	}
	return ""
}

// resolve fills the fields that follow from several settings, and returns what is wrong between those.
func (s *Storage) resolve(given given) (problems []*Problem) {
	wrong := func(setting, why, do string) {
		v, _ := given(setting)
		problems = append(problems, &Problem{What: v.name, Where: v.where, Why: why, Do: do})
	}
	first := ""
	for _, p := range prefixes {
		v, ok := given(p.setting)
		switch {
		case ok && first != "":
			wrong(p.setting, "two storage prefixes are set: "+first+" too", "unset one of them: an archive has one place")
		case ok:
			first = v.name + " (" + v.where + ")"
		}
	}
	folder := strings.Trim(s.folder, "/")
	if s.filePrefix != "" {
		s.Dir = filepath.Join(filePath(s.filePrefix), folder)
	}
	s.S3.Bucket, s.S3.Path = split(s.s3Prefix, folder)
	s.GCS.Bucket, s.GCS.Path = split(s.gsPrefix, folder)
	s.Azure.Container, s.Azure.Path = split(s.azPrefix, folder)
	s.Swift.Container, s.Swift.Path = split(s.swiftPrefix, folder)
	if u, err := url.Parse(s.sshPrefix); err == nil && s.sshPrefix != "" {
		s.SFTP.Host, s.SFTP.Dir = u.Hostname(), path.Join(u.Path, folder)
	}
	if gcs := &s.GCS; gcs.Bucket != "" && !gcs.normalize {
		_, rest, _ := strings.Cut(s.gsPrefix, "://")
		_, raw, _ := strings.Cut(rest, "/")
		if folder != "" {
			raw += "/" + folder
		}
		gcs.Raw, gcs.Path = true, raw
	}
	s.GCS.Timeout = time.Duration(s.GCS.timeoutSeconds) * time.Second
	s.Azure.TryTimeout = time.Duration(s.Azure.tryMinutes) * time.Minute
	if s.Azure.Endpoint != "" {
		s.Azure.Endpoint = endpointURL(s.Azure.Endpoint)
	}
	s.S3.resolve(wrong)
	return problems
}

// resolve does so for S3; wrong takes what is wrong.
func (s3 *S3) resolve(wrong func(setting, why, do string)) {
	if s3.Endpoint != "" {
		s3.Endpoint = endpointURL(s3.Endpoint)
	}
	if s3.walEEndpoint != "" {
		url, style, err := parseWALEEndpoint(s3.walEEndpoint)
		switch {
		case err != nil: // has been reported
		case s3.Endpoint != "" && s3.Endpoint != url:
			wrong("WALE_S3_ENDPOINT", "AWS_ENDPOINT names another address", "unset one of them")
		default:
			s3.Endpoint, s3.PathStyle = url, s3.PathStyle || style
		}
	}
	if s3.Region == "" {
		s3.Region = s3.defaultRegion
	}
	if s3.CACert == "" {
		s3.CACert = s3.caBundle
	}
	switch {
	case s3.Bucket == "": // whatever AWS_… say is for other programs
	case s3.AccessKeyID != "" && s3.SecretAccessKey == "":
		wrong("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY is not set", "set both, or none to use the AWS SDK's own sources")
	case s3.AccessKeyID == "" && s3.SecretAccessKey != "":
		wrong("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID is not set", "set both, or none to use the AWS SDK's own sources")
	case s3.AccessKeyID == "" && s3.SessionToken != "":
		wrong("AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID is not set", "set all three, or none to use the AWS SDK's own sources")
	}
	if s3.SSE == "aws:kms" && s3.SSEKMSKeyID == "" {
		wrong("S3_SSE", "aws:kms needs a key", "set S3_SSE_KMS_ID to the key's id or ARN")
	}
	if s3.SSEKMSKeyID != "" && s3.SSE != "aws:kms" {
		wrong("S3_SSE_KMS_ID", "S3_SSE is not aws:kms, so the key would not be used", "set S3_SSE=aws:kms")
	}
	if s3.SSECustomerKey != "" && s3.SSE != "" {
		wrong("S3_SSE_C", "S3_SSE is set too, and an object is encrypted in one way", "unset one of them")
	}
	s3.LockTime = time.Duration(max(s3.lockSeconds, 0)) * time.Second
	switch {
	case s3.LockMode != "" && s3.LockTime == 0:
		wrong("S3_RETENTION_MODE", "S3_RETENTION_PERIOD does not say for how long objects are locked", "set it to a number of seconds")
	case s3.LockMode == "" && s3.LockTime != 0:
		wrong("S3_RETENTION_PERIOD", "S3_RETENTION_MODE does not say how objects are locked", "set it to GOVERNANCE or COMPLIANCE")
	}
}

// resolve fills the fields that follow from several settings, and returns what is wrong between those.
func (s *Settings) resolve() (problems []*Problem) {
	wrong := func(setting, why, do string) {
		v, _ := s.given(setting)
		problems = append(problems, &Problem{What: v.name, Where: v.where, Why: why, Do: do})
	}
	is := func(setting string) bool { _, ok := s.given(setting); return ok }
	if is("WALG_ZSTD_LEVEL") && s.Compression.Method != "zstd" {
		wrong("WALG_ZSTD_LEVEL", "WALG_COMPRESSION_METHOD is "+s.Compression.Method, "unset it, or set WALG_COMPRESSION_METHOD=zstd")
	}
	if is("WALG_DOWNLOAD_CONCURRENCY") {
		s.Restore.Workers = s.WAL.Prefetch
	}
	if len(s.Failover) > 0 && len(s.Mirrors) > 0 {
		wrong("HOLDFAST_MIRRORS", "WALG_FAILOVER_STORAGES is set too, and an archive is either kept twice or continued elsewhere",
			"keep one of them; mirrors with HOLDFAST_MIRRORS_RULE=any go on while one of them is down, too")
	}
	if is("HOLDFAST_MIRRORS_RULE") && len(s.Mirrors) == 0 {
		wrong("HOLDFAST_MIRRORS_RULE", "HOLDFAST_MIRRORS is not set", "name the mirrors there, or unset this")
	}
	s.alerts(is, wrong)
	problems = append(problems, s.several()...)
	return problems
}
