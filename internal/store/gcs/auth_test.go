package gcs_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/store/gcs"
	"holdfast/internal/store/servicetest"
)

// keyFile writes the key of a service account whose tokens come from tokenURL.
func keyFile(t *testing.T, tokenURL string) string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(map[string]string{
		"type": "service_account", "project_id": "project", "private_key_id": "id", "client_email": "archiver@project.example", "client_id": "1",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), "token_uri": tokenURL,
	})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "key.json")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// guarded is a service that wants a token of the-token.
func guarded(t *testing.T) string {
	return behind(t, service(t), func(w http.ResponseWriter, r *http.Request) bool {
		return r.Header.Get("Authorization") != "Bearer the-token" && refuse(w, r, 401, "authError")
	})
}

// tokens gives tokens where answer does not answer otherwise, and counts what it is asked.
func tokens(t *testing.T, answer func(w http.ResponseWriter, nth int32) bool) (url string, asked *atomic.Int32) {
	t.Helper()
	asked = new(atomic.Int32)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := asked.Add(1)
		if err := r.ParseForm(); err != nil || strings.Count(r.Form.Get("assertion"), ".") != 2 {
			t.Errorf("the token is asked for with %v, %v", r.Form, err)
		}
		w.Header().Set("Content-Type", "application/json")
		if answer == nil || !answer(w, n) {
			fmt.Fprint(w, `{"access_token":"the-token","token_type":"Bearer","expires_in":3600}`)
		}
	}))
	t.Cleanup(server.Close)
	return server.URL, asked
}

func TestAServiceAccountsKeyOpensTheBucket(t *testing.T) {
	endpoint := guarded(t)
	url, asked := tokens(t, nil)
	file := keyFile(t, url)
	s := made(t, endpoint, func(o *gcs.Options) { o.CredentialsFile = file })
	servicetest.Put(t, s, "small", []byte("x"))
	servicetest.Put(t, s, "large", servicetest.Content(3<<20))
	servicetest.WantContent(t, s, "large", servicetest.Content(3<<20))
	if asked.Load() > 2 { // the one that made the bucket is another
		t.Errorf("a token was asked for %d times", asked.Load())
	}
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", file) // where Google's tools look
	byDefault := open(t, endpoint, nil)
	byDefault.UseDefaultCredentials()
	servicetest.WantContent(t, byDefault, "small", []byte("x"))
}

func TestTheMachinesOwnAccountOpensTheBucket(t *testing.T) {
	metadata := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Metadata-Flavor", "Google")
		if !strings.HasSuffix(r.URL.Path, "/service-accounts/default/token") {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		fmt.Fprint(w, `{"access_token":"the-token","token_type":"Bearer","expires_in":3600}`)
	}))
	defer metadata.Close()
	t.Setenv("GCE_METADATA_HOST", strings.TrimPrefix(metadata.URL, "http://"))
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", "")
	t.Setenv("HOME", t.TempDir())
	s := open(t, guarded(t), nil)
	s.UseDefaultCredentials()
	if err := s.CreateBucket(t.Context()); err != nil {
		t.Fatal(err)
	}
	servicetest.Put(t, s, "o", []byte("x"))
	servicetest.WantContent(t, s, "o", []byte("x"))
}

func TestATokenThatIsLateIsWaitedFor(t *testing.T) {
	url, asked := tokens(t, func(w http.ResponseWriter, nth int32) bool {
		if nth > 2 {
			return false
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	})
	var log servicetest.Log
	endpoint, file := guarded(t), keyFile(t, url)
	s := open(t, endpoint, func(o *gcs.Options) { o.CredentialsFile, o.Logger = file, log.Logger() })
	for _, err := range s.List(t.Context(), "", "") {
		if !strings.Contains(fmt.Sprint(err), "there is no bucket") { // which is what was to be learned
			t.Errorf("list: %v", err)
		}
	}
	if asked.Load() != 3 || log.Lines() != 2 || !strings.Contains(log.String(), "get a token: Service Unavailable (status 503)") {
		t.Errorf("%d requests for a token, and the log says\n%s", asked.Load(), log.String())
	}
}

func TestCredentialsThatAreRefusedAreExplained(t *testing.T) {
	grant := func(description string, date time.Time) func(http.ResponseWriter, int32) bool {
		return func(w http.ResponseWriter, _ int32) bool {
			w.Header().Set("Date", date.UTC().Format(http.TimeFormat))
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprintf(w, `{"error":"invalid_grant","error_description":%q}`, description)
			return true
		}
	}
	now := time.Now()
	broken := filepath.Join(t.TempDir(), "broken.json")
	if err := os.WriteFile(broken, []byte(`{"type":"service_account","private_key":"the-secret`), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, c := range map[string]struct {
		answer func(http.ResponseWriter, int32) bool
		file   string
	}{
		"invalid_grant: Invalid grant: account not found (status 400): Google does not take the key that GOOGLE_APPLICATION_CREDENTIALS names": {answer: grant("Invalid grant: account not found", now)},
		"the clock of this machine is wrong: synchronize it":                                {answer: grant("Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. Check your iat and exp values in the JWT claim.", now)},
		"the clock of this machine is wrong, 2h0m0s ahead of the service's: synchronize it": {answer: grant("Invalid JWT", now.Add(-2*time.Hour))},
		"the clock of this machine is wrong, 2h0m0s behind the service's: synchronize it":   {answer: grant("Invalid JWT", now.Add(2*time.Hour))},
		"the service does not know these credentials: see GOOGLE_APPLICATION_CREDENTIALS": {answer: func(w http.ResponseWriter, _ int32) bool {
			fmt.Fprint(w, `{"access_token":"another-token","expires_in":3600}`)
			return true
		}},
		"no such file or directory: see GOOGLE_APPLICATION_CREDENTIALS, which is /nowhere/key.json": {file: "/nowhere/key.json"},
		"see GOOGLE_APPLICATION_CREDENTIALS, which is " + broken:                                    {file: broken},
	} {
		file := c.file
		if file == "" {
			url, _ := tokens(t, c.answer)
			file = keyFile(t, url)
		}
		var log servicetest.Log
		endpoint := guarded(t)
		s := open(t, endpoint, func(o *gcs.Options) { o.CredentialsFile, o.Logger = file, log.Logger() })
		for op, err := range servicetest.EachCall(t, s) {
			if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), want) || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %v; want …%s…", op, err, want)
			}
			for _, secret := range []string{"another-token", "the-secret", "PRIVATE KEY"} {
				if strings.Contains(fmt.Sprint(err), secret) {
					t.Errorf("%s: the error holds a secret: %v", op, err)
				}
			}
		}
		if log.Lines() > 0 {
			t.Errorf("%s: it was tried again:\n%s", want, log.String())
		}
	}
}

func TestAServiceThatStandsInMayWantCredentials(t *testing.T) {
	s := open(t, guarded(t), nil)
	if _, err := s.Stat(t.Context(), "o"); !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "the service at STORAGE_EMULATOR_HOST wants credentials: set GOOGLE_APPLICATION_CREDENTIALS") {
		t.Errorf("stat: %v", err)
	}
}
