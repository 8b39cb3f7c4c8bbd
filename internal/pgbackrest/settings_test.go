package pgbackrest_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/pgbackrest"
)

// The environment comes before a stanza's section, and that before the section of all.
func TestOptions(t *testing.T) {
	var s pgbackrest.Settings
	s.ReadEnviron([]string{"PGBACKREST_REPO1_S3_REGION=from-environment", "PGBACKREST_REPO2_PATH=/two", "PATH=/bin", "PGBACKREST_REPO1_TYPE="})
	file := "[global]\nrepo1-path=/global\n repo1-type = s3 \n#repo1-path=/comment\nrepo-s3-bucket=old-name\nrepo1-s3-region=of-global\n\n" +
		"[demo]\nrepo1-path=/demo\n\n[demo:restore]\nrepo1-path=/never\n[global:archive-get]\nrepo1-path=/never\n"
	if err := s.ReadFile("pgbackrest.conf", []byte(file)); err != nil {
		t.Fatal(err)
	}
	if err := s.ReadFile("conf.d/more.conf", []byte("[global]\nrepo1-s3-key=more\n")); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		stanza       string
		number       int
		option, want string
		source       string
	}{
		{"demo", 1, "path", "/demo", "pgbackrest.conf:9"}, {"main", 1, "path", "/global", "pgbackrest.conf:2"}, {"main", 1, "type", "s3", "pgbackrest.conf:3"},
		{"main", 1, "s3-bucket", "old-name", "pgbackrest.conf:5"}, {"main", 1, "s3-region", "from-environment", "environment"}, {"main", 1, "s3-key", "more", "conf.d/more.conf:2"},
		{"main", 2, "path", "/two", "environment"}, {"main", 2, "type", "posix", ""}, {"main", 3, "path", "/var/lib/pgbackrest", ""},
	} {
		r := s.Repo(x.stanza, x.number)
		if got := r.Get(x.option); got != x.want || r.Source(x.option) != x.source {
			t.Errorf("%s of repository %d for %s is %q (%s), want %q (%s)", x.option, x.number, x.stanza, got, r.Source(x.option), x.want, x.source)
		}
	}
	if r := s.Repo("main", 3); r.Named() || !s.Repo("main", 2).Named() {
		t.Error("which of them are named")
	}
	if got := s.Repo("main", 1).FromEnviron(); !slices.Equal(got, []string{"PGBACKREST_REPO1_S3_REGION"}) {
		t.Errorf("of the environment are %v", got)
	}
}

// What is missing or cannot be honoured is named, with where it was given, and without secrets.
func TestOptionsThatWillNotDo(t *testing.T) {
	for text, want := range map[string]string{
		"repo1-path=relative":                                   "repo1-path (f:2) is no absolute path",
		"repo1-host=backup.example":                             "on another host",
		"repo1-type=tape":                                       `repo1-type (f:2) is "tape"`,
		"repo1-type=s3\nrepo1-s3-bucket=b":                      "repo1-s3-endpoint is not set",
		"repo1-type=gcs\nrepo1-gcs-bucket=b":                    "repo1-gcs-key is not set",
		"repo1-type=azure\nrepo1-azure-container=c":             "repo1-azure-account is not set",
		"repo1-type=sftp":                                       "repo1-sftp-host is not set",
		"repo1-cipher-type=aes-256-cbc":                         "repo1-cipher-pass is not set",
		"repo1-cipher-type=aes-256-gcm\nrepo1-cipher-pass=hush": "does not read",
		"repo1-type=sftp\nrepo1-sftp-host=h\nrepo1-sftp-host-user=u\nrepo1-storage-verify-tls=n": "looks at certificates",
	} {
		var s pgbackrest.Settings
		if err := s.ReadFile("f", []byte("[global]\n"+text+"\n")); err != nil {
			t.Fatal(err)
		}
		r := s.Repo("main", 1)
		_, err := r.Passphrase()
		err = errors.Join(err, r.Check())
		var option *pgbackrest.OptionError
		if err == nil || !strings.Contains(err.Error(), want) || !errors.As(err, &option) || option.Hint() == "" || strings.Contains(err.Error(), "hush") {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	for _, text := range []string{"path=/x", "[global\nx=y", "[global]\nnothing", "[global]\n=x"} {
		var s pgbackrest.Settings
		if err := s.ReadFile("f", []byte(text)); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}
