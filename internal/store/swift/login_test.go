package swift_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ncw/swift/v2/swifttest"

	"holdfast/internal/store/servicetest"
	"holdfast/internal/store/swift"
)

// keystone is an identity service that gives tokens of a Swift for the right user, and calls see with each request.
func keystone(t *testing.T, swiftURL string, see func(w http.ResponseWriter, body map[string]any) (answered bool)) string {
	t.Helper()
	storage := strings.Replace(swiftURL, "/v1.0", "/v1/AUTH_"+swifttest.TEST_ACCOUNT, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, err := io.ReadAll(r.Body)
		body := map[string]any{}
		if err != nil || json.Unmarshal(text, &body) != nil {
			t.Errorf("the request for a token is %q, %v", text, err)
		}
		if see != nil && see(w, body) {
			return
		}
		if !strings.Contains(string(text), `"the-password"`) {
			http.Error(w, `{"error":{"message":"The request you have made requires authentication.","code":401}}`, http.StatusUnauthorized)
			return
		}
		// The token is one of the Swift itself.
		login, err := http.NewRequest(http.MethodGet, swiftURL, nil)
		if err != nil {
			t.Error(err)
			return
		}
		login.Header.Set("X-Auth-User", swifttest.TEST_ACCOUNT)
		login.Header.Set("X-Auth-Key", swifttest.TEST_ACCOUNT)
		resp, err := http.DefaultClient.Do(login)
		if err != nil {
			t.Error(err)
			return
		}
		resp.Body.Close()
		token, end := resp.Header.Get("X-Auth-Token"), time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
		w.Header().Set("Content-Type", "application/json")
		switch r.URL.Path {
		case "/v2.0/tokens":
			fmt.Fprintf(w, `{"access":{"token":{"id":%q,"expires":%q},"serviceCatalog":[{"type":"object-store","endpoints":[
				{"region":"elsewhere","publicURL":"http://127.0.0.1:1"},{"region":"here","publicURL":%q}]}]}}`, token, end, storage)
		case "/v3/auth/tokens":
			w.Header().Set("X-Subject-Token", token)
			w.WriteHeader(http.StatusCreated)
			fmt.Fprintf(w, `{"token":{"expires_at":%q,"catalog":[{"type":"object-store","endpoints":[{"interface":"public","region":"elsewhere","url":"http://127.0.0.1:1"},
				{"interface":"public","region":"here","url":%q}]}]}}`, end, storage)
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(server.Close)
	return server.URL
}

func TestEachVersionOfAuthenticationOpensTheContainer(t *testing.T) {
	swiftURL := start(t, nil)
	made(t, swiftURL, nil)
	var sent map[string]any
	identity := keystone(t, swiftURL, func(_ http.ResponseWriter, body map[string]any) bool {
		sent = body
		return false
	})
	for what, c := range map[string]struct {
		change func(*swift.Options)
		want   []string // of the request for a token
	}{
		"1": {func(o *swift.Options) { o.AuthURL = swiftURL }, nil},
		"2": {func(o *swift.Options) { o.AuthURL, o.Tenant, o.Region = identity+"/v2.0", "the-tenant", "here" }, []string{`"tenantName":"the-tenant"`, `"username":"the-user"`}},
		"3 by name": {func(o *swift.Options) {
			o.AuthURL, o.Tenant, o.Region, o.Domain, o.TenantDomain = identity+"/v3", "the-tenant", "here", "the-domain", "the-tenants-domain"
			o.EndpointType = "publicURL" // as WAL-E has it
		}, []string{`"name":"the-user"`, `"domain":{"name":"the-domain"}`, `"project":{"domain":{"name":"the-tenants-domain"},"name":"the-tenant"}`}},
		"3 by id": {func(o *swift.Options) {
			o.AuthURL, o.AuthVersion, o.User, o.UserID, o.TenantID, o.Region = identity+"/v3", 3, "", "the-user-id", "the-tenant-id", "here"
		}, []string{`"id":"the-user-id"`, `"project":{"id":"the-tenant-id"}`}},
		"3 by application credential": {func(o *swift.Options) {
			o.AuthURL, o.User, o.Password, o.Region = identity+"/v3", "", "", "here"
			o.ApplicationCredentialID, o.ApplicationCredentialSecret = "the-credential", "the-password"
		}, []string{`"methods":["application_credential"]`, `"id":"the-credential"`}},
	} {
		sent = nil
		s := open(t, "", func(o *swift.Options) {
			o.User, o.Password = "the-user", "the-password"
			if what == "1" {
				o.User, o.Password = swifttest.TEST_ACCOUNT, swifttest.TEST_ACCOUNT
			}
			c.change(o)
		})
		servicetest.Put(t, s, "o", []byte(what))
		servicetest.WantContent(t, s, "o", []byte(what))
		text, err := json.Marshal(sent)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range c.want {
			if !strings.Contains(string(text), want) {
				t.Errorf("version %s: the request for a token is %s, want %s in it", what, text, want)
			}
		}
	}
}

func TestATokenThatEndsIsRenewed(t *testing.T) {
	var logins atomic.Int32
	authURL := start(t, func(_ http.ResponseWriter, r *http.Request) bool {
		if isLogin(r) {
			logins.Add(1)
		}
		return false
	})
	var log servicetest.Log
	s := made(t, authURL, func(o *swift.Options) { o.Logger = log.Logger() })
	servicetest.Put(t, s, "o", servicetest.Content(3<<20))
	for range 2 {
		before := logins.Load()
		s.Expire()
		servicetest.WantContent(t, s, "o", servicetest.Content(3<<20))
		s.Expire()
		servicetest.Put(t, s, "o", servicetest.Content(3<<20))
		if got := logins.Load() - before; got < 2 || got > 6 { // several requests may find out at once
			t.Errorf("after the token ended twice there were %d logins", got)
		}
	}
	if log.Lines() > 0 {
		t.Errorf("that a token ends is nothing to tell:\n%s", log.String())
	}
}

func TestRefusedCredentialsAreExplained(t *testing.T) {
	swiftURL := start(t, nil)
	made(t, swiftURL, nil)
	identity := keystone(t, swiftURL, nil)
	at := func(offset time.Duration) string {
		return keystone(t, swiftURL, func(w http.ResponseWriter, _ map[string]any) bool {
			w.Header().Set("Date", time.Now().Add(offset).UTC().Format(http.TimeFormat))
			w.Header().Set("X-Subject-Token", "the-token")
			w.WriteHeader(http.StatusCreated)
			fmt.Fprintf(w, `{"token":{"expires_at":%q,"catalog":[{"type":"object-store","endpoints":[{"interface":"public","region":"here","url":"http://127.0.0.1:1"}]}]}}`,
				time.Now().Add(offset+time.Hour).UTC().Format(time.RFC3339))
			return true
		})
	}
	for want, c := range map[string]struct {
		change func(*swift.Options)
		kind   error
	}{
		"does not take ST_USER and ST_KEY":          {func(o *swift.Options) { o.AuthURL, o.Password = swiftURL, "wrong-secret" }, fs.ErrPermission},
		"does not take OS_USERNAME and OS_PASSWORD": {func(o *swift.Options) { o.Password = "wrong-secret" }, fs.ErrPermission},
		"names no object store: see OS_REGION_NAME": {func(o *swift.Options) { o.Region = "nowhere" }, fs.ErrInvalid},
		"it may have to end with /v3":               {func(o *swift.Options) { o.AuthURL, o.AuthVersion = identity+"/elsewhere", 3 }, fs.ErrInvalid},
		"OS_AUTH_TOKEN is not valid any more": {func(o *swift.Options) {
			o.AuthURL, o.StorageURL, o.AuthToken = "", strings.Replace(swiftURL, "/v1.0", "/v1/AUTH_swifttest", 1), "AUTH_tkwrong-secret"
		}, fs.ErrPermission},
		"is wrong, 2h0m0s ahead of the service's: synchronize it": {func(o *swift.Options) { o.AuthURL = at(-2*time.Hour) + "/v3" }, fs.ErrPermission},
	} {
		var log servicetest.Log
		s := open(t, identity+"/v3", func(o *swift.Options) {
			o.User, o.Password, o.Region, o.Logger = "the-user", "the-password", "here", log.Logger()
			c.change(o)
		})
		for op, err := range servicetest.EachCall(t, s) {
			if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), want) || errors.Is(err, fs.ErrNotExist) || strings.Contains(err.Error(), "wrong-secret") {
				t.Errorf("%s: %v; want …%s…", op, err, want)
			}
		}
		if log.Lines() > 0 {
			t.Errorf("%s: it was tried again:\n%s", want, log.String())
		}
	}
}

func TestBadOptionsAreRefused(t *testing.T) {
	good := swift.Options{Container: "c", AuthURL: "https://host/v3"}
	for want, change := range map[string]func(*swift.Options){
		`"" is not the name of a container`:    func(o *swift.Options) { o.Container = "" },
		`"a/b" is not the name of a container`: func(o *swift.Options) { o.Container = "a/b" },
		"set OS_AUTH_URL":                      func(o *swift.Options) { o.AuthURL = "" },
		"set ST_AUTH_VERSION":                  func(o *swift.Options) { o.AuthURL = "https://host:5000" },
		"ST_AUTH_VERSION is 4":                 func(o *swift.Options) { o.AuthVersion = 4 },
		"is not a URL":                         func(o *swift.Options) { o.AuthURL = "https://user:pass-secret@host/v3" },
		"not between 1 MiB":                    func(o *swift.Options) { o.SegmentSize = 1000 },
		"that of the objects":                  func(o *swift.Options) { o.SegmentContainer = "c" },
	} {
		o := good
		change(&o)
		if _, err := swift.New(o); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "pass-secret") {
			t.Errorf("New: %v; want …%s…", err, want)
		}
	}
	if _, err := swift.New(good); err != nil {
		t.Error(err)
	}
}
