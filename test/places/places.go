// Package places gives tests a place for an archive in a store of every kind, each a real service on the loopback interface: a
// directory, S3 (versitygw), Google Cloud Storage (fake-gcs-server), Azure Blob Storage (azurite), SFTP (OpenSSH's sshd) and Swift
// (the server of the client library's own tests, in a process of its own). Services run as the account of the servers and end with the test.
package places

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	clients "github.com/ncw/swift/v2"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"holdfast/internal/store"
	"holdfast/internal/store/azure"
	"holdfast/internal/store/file"
	"holdfast/internal/store/gcs"
	"holdfast/internal/store/s3"
	"holdfast/internal/store/sftp"
	"holdfast/internal/store/swift"
	"holdfast/test/pgtest"
)

// A Place is where an archive can be.
type Place struct {
	Name  string      // of the kind of store
	Env   []string    // settings that name it
	Store store.Store // the same place, as tests look at it
}

// path is that of the archive in a bucket.
const path = "some/path"

// Each runs test once per kind of store, as a subtest of that name.
func Each(t *testing.T, test func(t *testing.T, p Place)) {
	t.Helper()
	for _, kind := range []struct {
		name string
		make func(t testing.TB) Place
	}{
		{"file", File}, {"S3", func(t testing.TB) Place { return NewS3(t).Place(t) }}, {"GCS", GCS}, {"Azure", Azure}, {"SFTP", SFTP}, {"Swift", Swift},
	} {
		t.Run(kind.name, func(t *testing.T) { test(t, kind.make(t)) })
	}
}

// File returns a directory.
func File(t testing.TB) Place {
	t.Helper()
	root := filepath.Join(pgtest.Dir(t), "archive")
	if err := os.Mkdir(root, 0o700); err != nil {
		t.Fatal(err)
	}
	pgtest.Give(t, root)
	st, err := file.Open(root)
	return place(t, "file", st, err, "WALG_FILE_PREFIX="+root)
}

// place returns the place of a store that was just opened.
func place(t testing.TB, name string, st store.Store, err error, env ...string) Place {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return Place{name, env, st}
}

// S3 is a versitygw with one bucket, archive.
type S3 struct {
	Dir  string // holds a directory per bucket, in which each object is a file
	URL  string
	Stop func() // ends the service; Start starts it again
}

// The administrator of every S3, and the secret of all who have an account there.
const (
	AccessKey = "operator"
	SecretKey = "swordfish"
)

// users have accounts in every S3, and no rights but what a policy gives them.
var users = [...]string{"writer", "reader", "verifier", "expirer"}

// NewS3 starts one.
func NewS3(t testing.TB) *S3 {
	t.Helper()
	g := &S3{Dir: filepath.Join(pgtest.Dir(t), "s3")}
	if err := os.MkdirAll(filepath.Join(g.Dir, "archive"), 0o700); err != nil {
		t.Fatal(err)
	}
	at := pgtest.Address(t)
	g.URL = "http://" + at
	var iam struct {
		Accounts map[string]any `json:"accessAccounts"`
	}
	iam.Accounts = map[string]any{}
	for _, name := range users {
		iam.Accounts[name] = map[string]string{"access": name, "secret": SecretKey, "role": "user"}
	}
	b, err := json.Marshal(iam)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Mkdir(g.iam(), 0o700), os.WriteFile(filepath.Join(g.iam(), "users.json"), b, 0o600)); err != nil {
		t.Fatal(err)
	}
	pgtest.Give(t, filepath.Dir(g.Dir))
	g.Start(t)
	return g
}

// iam is the directory of the accounts.
func (g *S3) iam() string { return filepath.Join(filepath.Dir(g.Dir), "iam") }

// Allow makes policies of identities, each with the name of the user it is for, the policy of the bucket.
func (g *S3) Allow(t testing.TB, policies map[string]string) {
	t.Helper()
	type object = map[string]any
	users := map[string][]string{} // by what is allowed, as versitygw keeps the whole in an attribute of a directory: 4 KiB
	for user, text := range policies {
		var policy struct{ Statement []object }
		if err := json.Unmarshal([]byte(text), &policy); err != nil {
			t.Fatalf("the policy of %s: %v", user, err)
		}
		for _, s := range policy.Statement {
			delete(s, "Sid")
			what, err := json.Marshal(s)
			if err != nil {
				t.Fatal(err)
			}
			users[string(what)] = append(users[string(what)], user)
		}
	}
	var statements []object
	for what, who := range users {
		var s object
		if err := json.Unmarshal([]byte(what), &s); err != nil {
			t.Fatal(err)
		}
		s["Principal"] = object{"AWS": who}
		statements = append(statements, s)
	}
	b, err := json.Marshal(object{"Version": "2012-10-17", "Statement": statements})
	if err != nil {
		t.Fatal(err)
	}
	client := awss3.New(awss3.Options{BaseEndpoint: &g.URL, UsePathStyle: true, Region: "us-east-1",
		Credentials: credentials.NewStaticCredentialsProvider(AccessKey, SecretKey, "")})
	if _, err := client.PutBucketPolicy(t.Context(), &awss3.PutBucketPolicyInput{Bucket: aws.String("archive"), Policy: aws.String(string(b))}); err != nil {
		t.Fatal(err)
	}
}

// Start starts the service again where it was.
func (g *S3) Start(t testing.TB) {
	t.Helper()
	at := strings.TrimPrefix(g.URL, "http://")
	cmd := pgtest.Command(t, pgtest.Service(t, "versitygw"), "--port", at, "--quiet", "--iam-dir", g.iam(), "posix", g.Dir)
	cmd.Env = append(cmd.Environ(), "ROOT_ACCESS_KEY="+AccessKey, "ROOT_SECRET_KEY="+SecretKey)
	g.Stop = pgtest.Serve(t, cmd, at)
}

// Env names an archive in the bucket, by the address of whatever stands before it; further settings win.
func (g *S3) Env(url string, further ...string) []string {
	return append([]string{
		"WALG_S3_PREFIX=s3://archive/" + path, "AWS_ENDPOINT=" + url, "AWS_S3_FORCE_PATH_STYLE=true",
		"AWS_ACCESS_KEY_ID=" + AccessKey, "AWS_SECRET_ACCESS_KEY=" + SecretKey, "AWS_REGION=us-east-1",
	}, further...)
}

// Root is the directory with the objects of the archive.
func (g *S3) Root() string { return filepath.Join(g.Dir, "archive", path) }

// Place is that archive.
func (g *S3) Place(t testing.TB) Place {
	t.Helper()
	st, err := s3.New(t.Context(), s3.Options{Bucket: "archive", Prefix: path, Endpoint: g.URL, PathStyle: true, AccessKey: AccessKey, SecretKey: SecretKey})
	return place(t, "S3", st, err, g.Env(g.URL)...)
}

// GCS starts a Google Cloud Storage with a bucket.
func GCS(t testing.TB) Place {
	t.Helper()
	at := pgtest.Address(t)
	host, port, _ := strings.Cut(at, ":")
	pgtest.Serve(t, pgtest.Command(t, pgtest.Service(t, "fake-gcs-server"), "-scheme", "http", "-host", host, "-port", port,
		"-public-host", at, "-backend", "memory", "-log-level", "error"), at)
	url := "http://" + at
	resp, err := http.Post(url+"/storage/v1/b?project=test", "application/json", strings.NewReader(`{"name":"archive"}`))
	if err != nil {
		t.Fatal(err)
	}
	if resp.Body.Close(); resp.StatusCode != http.StatusOK {
		t.Fatalf("the bucket is not made: %s", resp.Status)
	}
	st, err := gcs.New(gcs.Options{Bucket: "archive", Prefix: path, Endpoint: url})
	return place(t, "GCS", st, err, "WALG_GS_PREFIX=gs://archive/"+path, "STORAGE_EMULATOR_HOST="+url)
}

// Azure starts a Blob Storage with a container.
func Azure(t testing.TB) Place {
	t.Helper()
	at := pgtest.Address(t)
	host, port, _ := strings.Cut(at, ":")
	const account = "account1"
	key := base64.StdEncoding.EncodeToString([]byte("the-secret-access-key"))
	cmd := pgtest.Command(t, pgtest.Service(t, "azurite-blob"), "--blobHost", host, "--blobPort", port, "--inMemoryPersistence", "--skipApiVersionCheck",
		"--silent", "--disableTelemetry")
	cmd.Dir = pgtest.Dir(t)
	cmd.Env = append(cmd.Environ(), "AZURITE_ACCOUNTS="+account+":"+key)
	pgtest.Serve(t, cmd, at)
	url := "http://" + at + "/" + account
	cred, err := azblob.NewSharedKeyCredential(account, key)
	if err != nil {
		t.Fatal(err)
	}
	client, err := azblob.NewClientWithSharedKeyCredential(url, cred, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.CreateContainer(t.Context(), "archive", nil); err != nil {
		t.Fatal(err)
	}
	st, err := azure.New(azure.Options{Container: "archive", Prefix: path, Endpoint: url, Account: account, AccessKey: key})
	return place(t, "Azure", st, err, "WALG_AZ_PREFIX=azure://archive/"+path, "HOLDFAST_AZURE_ENDPOINT="+url,
		"AZURE_STORAGE_ACCOUNT="+account, "AZURE_STORAGE_ACCESS_KEY="+key)
}

// SFTP starts an SSH server and returns a directory that it serves. The host's key is known, and a private key lets in.
func SFTP(t testing.TB) Place {
	t.Helper()
	const program = "/usr/sbin/sshd"
	if _, err := os.Stat(program); err != nil {
		pgtest.Missing(t, "sshd")
	}
	dir := pgtest.Dir(t)
	at := pgtest.Address(t)
	host, port, _ := strings.Cut(at, ":")
	root, hostKey, key := filepath.Join(dir, "archive"), filepath.Join(dir, "host"), filepath.Join(dir, "key")
	authorized, known := filepath.Join(dir, "authorized_keys"), filepath.Join(dir, "known_hosts")
	server, public := newKey(t, hostKey), newKey(t, key)
	for name, content := range map[string]string{
		authorized: string(ssh.MarshalAuthorizedKey(public)), known: knownhosts.Line([]string{at}, server) + "\n",
	} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(root, 0o700); err != nil {
		t.Fatal(err)
	}
	pgtest.Give(t, dir)
	// Run by the account it lets in, it needs no privileges.
	cmd := pgtest.Command(t, program, "-D", "-e", "-f", "/dev/null", "-p", port, "-h", hostKey)
	for _, option := range []string{"ListenAddress=" + host, "UsePAM=no", "StrictModes=no", "PidFile=none", "PasswordAuthentication=no",
		"MaxStartups=100", "LogLevel=ERROR", "AuthorizedKeysFile=" + authorized, "Subsystem=sftp internal-sftp"} {
		cmd.Args = append(cmd.Args, "-o", option)
	}
	pgtest.Serve(t, cmd, at)
	user := pgtest.Account(t)
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	st, err := sftp.New(sftp.Options{Host: host, Port: n, Root: root, User: user, PrivateKeyFile: key, KnownHosts: []string{known}})
	if err == nil {
		t.Cleanup(func() { st.Close() })
	}
	return place(t, "SFTP", st, err, "WALG_SSH_PREFIX=ssh://"+host+root, "SSH_PORT="+port, "SSH_USERNAME="+user,
		"SSH_PRIVATE_KEY_PATH="+key, "HOLDFAST_SSH_KNOWN_HOSTS="+known)
}

// newKey writes a new private key and returns its public half.
func newKey(t testing.TB, path string) ssh.PublicKey {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// Swift starts a Swift with a container.
func Swift(t testing.TB) Place {
	t.Helper()
	at := pgtest.Address(t)
	pgtest.Serve(t, pgtest.Command(t, pgtest.Build(t, "holdfast/test/places/swiftd"), at), at)
	const user = "swifttest"
	auth := "http://" + at + "/v1.0"
	conn := &clients.Connection{AuthUrl: auth, UserName: user, ApiKey: user}
	if err := conn.ContainerCreate(t.Context(), "archive", nil); err != nil {
		t.Fatal(err)
	}
	st, err := swift.New(swift.Options{Container: "archive", Prefix: path, AuthURL: auth, User: user, Password: user})
	return place(t, "Swift", st, err, "WALG_SWIFT_PREFIX=swift://archive/"+path, "OS_AUTH_URL="+auth, "OS_USERNAME="+user, "OS_PASSWORD="+user)
}
