package azure_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/store/azure"
	"holdfast/internal/store/servicetest"
	"holdfast/test/pgtest"
)

// certificate writes a certificate of 127.0.0.1 that signs itself, and its key.
func certificate(t *testing.T) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	of := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	cert, err := x509.CreateCertificate(rand.Reader, of, of, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: cert}, keyFile: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

// noIdentity takes away whatever would give this process an identity.
func noIdentity(t *testing.T) {
	for _, name := range []string{"AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_FEDERATED_TOKEN_FILE", "IDENTITY_ENDPOINT", "IDENTITY_HEADER", "MSI_ENDPOINT"} {
		t.Setenv(name, "") // which puts back what was there
		os.Unsetenv(name)
	}
	t.Setenv("AZURE_TOKEN_CREDENTIALS", "prod")
}

// With neither key nor SAS the identity of the machine is enough, here one of App Service.
func TestAManagedIdentityIsEnough(t *testing.T) {
	encode := base64.RawURLEncoding.EncodeToString
	var asked int
	identity := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Identity-Header") != "the-secret" || r.URL.Query().Get("resource") != "https://storage.azure.com" {
			t.Errorf("the identity is asked by %v with %v", r.URL, r.Header)
		}
		asked++
		token := encode([]byte(`{"alg":"none","typ":"JWT"}`)) + "." + encode(fmt.Appendf(nil,
			`{"iss":"https://sts.windows.net/ab1f708d-50f6-404c-a006-d71b2ac7a606/","aud":"https://storage.azure.com","iat":%d,"nbf":%[1]d,"exp":%d}`,
			time.Now().Add(-time.Minute).Unix(), time.Now().Add(time.Hour).Unix())) + "." + encode([]byte("signature"))
		fmt.Fprintf(w, `{"access_token":%q,"expires_on":"%d","resource":"https://storage.azure.com","token_type":"Bearer"}`, token, time.Now().Add(time.Hour).Unix())
	}))
	defer identity.Close()
	noIdentity(t)
	t.Setenv("IDENTITY_ENDPOINT", identity.URL)
	t.Setenv("IDENTITY_HEADER", "the-secret")

	ca, key := certificate(t)
	secure := start(pgtest.Service(t, "azurite-blob"), "https", "--oauth", "basic", "--cert", ca, "--key", key)
	if secure.err != nil {
		t.Fatal(secure.err)
	}
	defer secure.stop()
	if err := open(t, secure.url, func(o *azure.Options) { o.CAFile = ca }).CreateContainer(t.Context()); err != nil {
		t.Fatal(err)
	}
	s := open(t, secure.url, func(o *azure.Options) { o.AccessKey, o.CAFile = "", ca })
	servicetest.Put(t, s, "small", []byte("x"))
	servicetest.Put(t, s, "large", servicetest.Content(12<<20))
	servicetest.WantContent(t, s, "large", servicetest.Content(12<<20))
	if err := s.DeleteMany(t.Context(), []string{"small", "large"}); err != nil {
		t.Error(err)
	}
	for o, err := range s.Walk(t.Context(), "") {
		t.Errorf("left is %v, %v", o, err)
	}
	if asked != 1 {
		t.Errorf("the identity was asked %d times for a token that is valid for an hour", asked)
	}

	distrusted := open(t, secure.url, func(o *azure.Options) { o.AccessKey = "" })
	for op, err := range servicetest.EachCall(t, distrusted) {
		if !errors.Is(err, fs.ErrInvalid) || !strings.Contains(err.Error(), "authority that this machine does not trust") {
			t.Errorf("%s without knowing the authority: %v", op, err)
		}
	}
}

func TestMissingCredentialsAreSaidSoon(t *testing.T) {
	noIdentity(t)
	t.Setenv("AZURE_CLIENT_ID", "4b1f708d-50f6-404c-a006-d71b2ac7a606") // nobody's, for which the SDK has no token from before
	t.Setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://127.0.0.1:1") // where the metadata of a machine in the cloud would be
	s := open(t, fake(t, func(http.ResponseWriter, *http.Request) { t.Error("a request went out") }), func(o *azure.Options) {
		o.AccessKey = ""
		o.Endpoint = strings.Replace(o.Endpoint, "http:", "https:", 1)
	})
	begin := time.Now()
	_, err := s.Stat(t.Context(), "o")
	if err == nil || !strings.Contains(err.Error(), "set AZURE_STORAGE_ACCESS_KEY or AZURE_STORAGE_SAS_TOKEN") || strings.Contains(err.Error(), "\n") || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stat without credentials: %v", err)
	}
	if took := time.Since(begin); took > 30*time.Second {
		t.Errorf("it took %v to say so", took)
	}
}
