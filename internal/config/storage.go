package config

import (
	"encoding/base64"
	"errors"
	"net/url"
	"path"
	"path/filepath"
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

// bucket checks an S3 prefix.
func bucket(text string) error {
	rest, ok := strings.CutPrefix(text, "s3://")
	name, below, _ := strings.Cut(rest, "/")
	if below = strings.Trim(below, "/"); !ok || name == "" || strings.ContainsAny(text, "?#@ ") || below != "" && path.Clean(below) != below || strings.HasPrefix(below, "..") {
		return errors.New("must be s3://bucket or s3://bucket/path")
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

// resolve fills the fields that follow from several settings, and returns what is wrong between those.
func (s *Settings) resolve(given given) (problems []*Problem) {
	wrong := func(setting, why, do string) {
		v, _ := given(setting)
		problems = append(problems, &Problem{What: v.name, Where: v.where, Why: why, Do: do})
	}
	is := func(setting string) bool { _, ok := given(setting); return ok }
	st, s3 := &s.Storage, &s.Storage.S3

	if is("WALG_FILE_PREFIX") && is("WALG_S3_PREFIX") {
		f, _ := given("WALG_FILE_PREFIX")
		wrong("WALG_S3_PREFIX", "two storage prefixes are set: "+f.name+" ("+f.where+") too", "unset one of them: an archive has one place")
	}
	folder := strings.Trim(st.folder, "/")
	if st.filePrefix != "" {
		st.Dir = filepath.Join(filePath(st.filePrefix), folder)
	}
	if st.s3Prefix != "" {
		name, below, _ := strings.Cut(strings.TrimPrefix(st.s3Prefix, "s3://"), "/")
		s3.Bucket, s3.Path = name, strings.Trim(path.Join(below, folder), "/")
	}

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
	case st.s3Prefix == "": // whatever AWS_… say is for other programs
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
	if is("WALG_ZSTD_LEVEL") && s.Compression.Method != "zstd" {
		wrong("WALG_ZSTD_LEVEL", "WALG_COMPRESSION_METHOD is "+s.Compression.Method, "unset it, or set WALG_COMPRESSION_METHOD=zstd")
	}
	if is("WALG_DOWNLOAD_CONCURRENCY") {
		s.Restore.Workers = s.WAL.Prefetch
	}
	return problems
}
