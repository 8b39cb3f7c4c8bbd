package config_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"holdfast/internal/config"
)

// where is a store that every test may name.
const where = "WALG_FILE_PREFIX=/archive"

// problems loads and returns what is wrong, each as "what (where): why".
func problems(t *testing.T, src config.Sources) []string {
	t.Helper()
	_, err := config.Load(src)
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		t.Fatalf("Load returned %T, want errors that were joined", err)
	}
	var all []string
	for _, e := range joined.Unwrap() {
		p, ok := e.(*config.Problem)
		if !ok {
			t.Fatalf("Load returned a %T among its errors: %v", e, e)
		}
		if p.Hint() == "" || p.What == "" || p.Why == "" {
			t.Errorf("%q lacks what, why or what to do: %#v", p.Error(), p)
		}
		all = append(all, p.Error()+" // "+p.Hint())
	}
	return all
}

// load loads what must be right.
func load(t *testing.T, src config.Sources) *config.Settings {
	t.Helper()
	s, err := config.Load(src)
	if err != nil {
		t.Fatalf("Load(%v): %v", src, err)
	}
	return s
}

// file writes a settings file and returns its path.
func file(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// effective returns one value of s.
func effective(t *testing.T, s *config.Settings, name string) config.Value {
	t.Helper()
	for _, v := range s.Effective() {
		if v.Name == name {
			return v
		}
	}
	t.Fatalf("%s is not among the effective values", name)
	return config.Value{}
}

func TestTableIsConsistent(t *testing.T) {
	kinds := map[string][]config.Kind{
		"string": {config.String, config.Path, config.Enum, config.Rules, config.List}, "bool": {config.Bool}, "int": {config.Int}, "int64": {config.Size}, "float64": {config.Fraction},
		"time.Duration": {config.Duration}, "json.RawMessage": {config.JSON}, "map[string]string": {config.Map}, "config.storages": {config.Storages},
	}
	seen := map[string]string{}
	for _, s := range config.Table(2) {
		if !slices.Contains(kinds[config.FieldKind(s)], s.Type) {
			t.Errorf("%s is said to be a %s and goes into a %s", s.Name, s.Type, config.FieldKind(s))
		}
		if (s.Type == config.Enum) != (s.Values != nil) {
			t.Errorf("%s: type %s with values %q", s.Name, s.Type, s.Values)
		}
		if !strings.HasPrefix(s.Ours, "HOLDFAST_") || !strings.HasSuffix(s.Meaning, ".") || s.Section == "" {
			t.Errorf("%s: name of ours %q, meaning %q, section %q", s.Name, s.Ours, s.Meaning, s.Section)
		}
		names := s.Names()
		if s.Secret {
			for _, n := range s.Names() {
				names = append(names, n+"_FILE")
			}
		}
		for _, n := range names {
			if seen[n] != "" {
				t.Errorf("%s is a name of %s and of %s", n, seen[n], s.Name)
			}
			seen[n] = s.Name
		}
	}
	for _, g := range config.Foreign() {
		for _, n := range g.Names {
			if seen[n] != "" {
				t.Errorf("%s is known as foreign and as a name of %s", n, seen[n])
			}
			seen[n] = n
		}
	}
}

func TestDefaults(t *testing.T) {
	s := load(t, config.Sources{Cores: 6})
	want := &config.Settings{
		Storage: config.Storage{Name: "default",
			S3:    config.S3{PartSize: 20 << 20, Parts: 4, Retries: 15, DeleteBatch: 1000},
			GCS:   config.GCS{ChunkSize: 16 << 20, Retries: 16},
			Azure: config.Azure{Environment: "AzurePublicCloud", BlockSize: 8 << 20, Blocks: 4, Retries: 15},
			Swift: config.Swift{SegmentSize: 32 << 20, Retries: 15},
			SFTP:  config.SFTP{Port: 22, Retries: 15}},
		Health:      config.Health{Check: true, Timeout: 30 * time.Second, Size: 1 << 20, Lifetime: 15 * time.Minute},
		Mirroring:   config.Mirroring{Rule: "all", Stall: time.Minute, Pause: time.Minute},
		Compression: config.Compression{Method: "zstd", Level: "fastest"},
		WAL:         config.WAL{Parallel: 16, Limit: 32, Summaries: "auto", Prefetch: 10, DaemonTimeout: time.Minute},
		Receive:     config.Receive{Slot: "walg", TailInterval: time.Second, TailBytes: 1 << 20, Sync: "local,store"},
		Backup: config.Backup{Workers: 6, PartSize: 1<<30 - 1, Wire: "off", Alive: time.Minute, WALTimeout: time.Hour,
			Delta: config.Delta{Origin: "LATEST", Source: "auto", Sample: 0.001}},
		Retention:    config.Retention{Grace: 72 * time.Hour},
		Verify:       config.Verify{MaxAge: 30 * 24 * time.Hour},
		Drill:        config.Drill{Dir: "/var/tmp", Memory: 512 << 20, Nice: 10, Budget: 30 * time.Minute, Beat: "off"},
		Lease:        config.Lease{TTL: time.Minute},
		Agent:        config.Agent{Check: "*/10 * * * *", CatchUp: 12 * time.Hour, Listen: "127.0.0.1:9351", Receive: "off", Interval: 5 * time.Minute},
		Alerts:       config.Alerts{Repeat: 24 * time.Hour, PingStyle: "healthchecks"},
		Stanza:       "main",
		Postgres:     config.Postgres{Vars: map[string]string{"PGAPPNAME": "holdfast"}},
		Log:          config.Log{Level: "NORMAL", Destination: "stderr", Format: "text"},
		MemoryBudget: 256 << 20,
	}
	if d := cmp.Diff(want, s, cmpopts.IgnoreUnexported(config.Settings{}, config.Storage{}, config.S3{}, config.GCS{}, config.Azure{})); d != "" {
		t.Error(d)
	}
	var p *config.Problem
	if err := s.RequireStorage(); !errors.As(err, &p) || !strings.Contains(p.Hint(), "WALG_S3_PREFIX") {
		t.Errorf("RequireStorage of nothing: %v", err)
	}
}

func TestFlagBeatsEnvironmentBeatsFileBeatsDefault(t *testing.T) {
	src := config.Sources{}
	step := func(want string, source string) {
		t.Helper()
		v := effective(t, load(t, src), "WALG_LOG_LEVEL")
		if v.Value != want || v.Source != source {
			t.Errorf("got %s from %q, want %s from %q", v.Value, v.Source, want, source)
		}
	}
	step("NORMAL", "default")
	src.File = file(t, "s.yaml", "# levels\nwalg_log_level: error\n")
	step("ERROR", src.File+":2")
	src.Environ = []string{"WALG_LOG_LEVEL=", "HOLDFAST_LOG_LEVEL=normal"}
	step("NORMAL", "environment HOLDFAST_LOG_LEVEL")
	src.Flags = []config.Flag{{Flag: "--walg-log-level", Setting: "WALG_LOG_LEVEL", Value: "devel"}}
	step("DEVEL", "flag --walg-log-level")
}

// sample returns a value that s takes, unlike its default.
func sample(s config.Setting) string {
	switch {
	case s.Values != nil:
		return s.Values[0]
	case s.Type == config.Bool:
		return "true"
	case s.Type == config.Int, s.Type == config.Size:
		if s.Max != 0 && s.Min+7 > s.Max {
			return fmt.Sprint(s.Max)
		}
		return fmt.Sprint(s.Min + 7)
	case s.Type == config.Storages:
		return `{"a":{"WALG_FILE_PREFIX":"/elsewhere"}}`
	case s.Type == config.Fraction:
		return "0.07"
	case s.Type == config.Duration:
		return "7m0s"
	case s.Type == config.JSON:
		return `{"a":1}`
	case s.Type == config.Map:
		return `{"a":"b"}`
	}
	if special := map[string]string{
		"WALG_FILE_PREFIX": "/a", "WALG_S3_PREFIX": "s3://b/c", "AWS_ENDPOINT": "https://h", "WALE_S3_ENDPOINT": "http+path://h:9000",
		"S3_SSE_C": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "PGPORT": "5433", "GCS_ENCRYPTION_KEY": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
		"WALG_GS_PREFIX": "gs://b/c", "WALG_AZ_PREFIX": "azure://b/c", "WALG_SWIFT_PREFIX": "swift://b/c", "WALG_SSH_PREFIX": "ssh://h/c",
		"HOLDFAST_AZURE_ENDPOINT": "https://h", "HOLDFAST_STATE_DIR": "/s", "HOLDFAST_MIRRORS_JOURNAL": "/j", "HOLDFAST_RECEIVE_DIR": "/r", "WALG_TARGET_STORAGE": "default",
		"HOLDFAST_LEASE": "archive", "HOLDFAST_PUSHGATEWAY": "http://h:9091", "HOLDFAST_PUSHGATEWAY_LABELS": "tier=gold", "HOLDFAST_METRICS_TEXTFILE_DIR": "/t", "WALG_STATSD_ADDRESS": "h:8125",
		"HOLDFAST_ALERT_SLACK": "https://h/s", "HOLDFAST_ALERT_WEBHOOK": "https://h/w", "HOLDFAST_ALERT_LINK": "https://h/l",
		"HOLDFAST_PING_BACKUP": "https://h/b", "HOLDFAST_PING_VERIFY": "https://h/v", "HOLDFAST_PING_DRILL": "https://h/p", "HOLDFAST_PING_RETENTION": "https://h/r",
		"HOLDFAST_SCHEDULE_ZONE": "UTC", "HOLDFAST_AGENT_LISTEN": ":7", "HOLDFAST_AGENT_SOCKET": "/a.sock",
		"HOLDFAST_ALERT_MAIL_TO": "a@h, b@h", "HOLDFAST_ALERT_MAIL_FROM": "c@h", "HOLDFAST_ALERT_MAIL_SERVER": "smtp://h", "HOLDFAST_LOG_TO": "syslog", "HOLDFAST_DRILL_DIR": "/srv/drills", "HOLDFAST_DRILL_HEARTBEAT": "postgres:select now()",
	}[s.Name]; special != "" {
		return special
	}
	return "seven"
}

// What a command is told has another fingerprint when it has changed, secrets included, and not when something else has.
func TestFingerprints(t *testing.T) {
	of := func(command string, environ ...string) string {
		return load(t, config.Sources{Environ: append(environ, "WALG_S3_PREFIX=s3://b/c", "AWS_ACCESS_KEY_ID=k")}).Fingerprint(command)
	}
	before := of("daemon", "AWS_SECRET_ACCESS_KEY=one", "HOLDFAST_SCHEDULE_BACKUP=@daily")
	for environ, same := range map[string]bool{"AWS_SECRET_ACCESS_KEY=one": true, "AWS_SECRET_ACCESS_KEY=two": false} {
		if got := of("daemon", environ, "HOLDFAST_SCHEDULE_BACKUP=@hourly"); (got == before) != same {
			t.Errorf("with %s: %s; before it was %s", environ, got, before)
		}
	}
}

// Where the content of the settings file was read before it is not read again.
func TestContentStandsForTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.yaml")
	if err := os.WriteFile(path, []byte("WALG_FILE_PREFIX: /new\nNO_SETTING: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := load(t, config.Sources{File: path, Content: []byte("WALG_FILE_PREFIX: /old\n")})
	if s.Storage.Dir != "/old" || s.File != path {
		t.Errorf("the archive is %s, of %s", s.Storage.Dir, s.File)
	}
	if again := load(t, config.Sources{File: path, Content: s.Content}); again.Storage.Dir != "/old" {
		t.Errorf("by what was read the archive is %s", again.Storage.Dir)
	}
}

func TestLabelsAreRead(t *testing.T) {
	for _, c := range []struct {
		text string
		want map[string]string // nil is an error
	}{
		{"", map[string]string{}},
		{"shard=1, tier=gold", map[string]string{"shard": "1", "tier": "gold"}},
		{"job=walg-basebackup,type=full,path=a/b=c", map[string]string{"job": "walg-basebackup", "type": "full", "path": "a/b=c"}},
		{"shard", nil}, {"shard=", nil}, {"=1", nil}, {"1a=b", nil}, {"__name__=x", nil}, {"a=1,a=2", nil}, {"operation=x", nil}, {"le=5", nil},
	} {
		s, err := config.Load(config.Sources{Environ: []string{"HOLDFAST_PUSHGATEWAY_LABELS=" + c.text}})
		if (err == nil) != (c.want != nil) || err == nil && !cmp.Equal(s.Metrics.LabelMap(), c.want) {
			t.Errorf("%q: got %v; want %v", c.text, err, c.want)
		}
	}
}

func TestEveryNameOfASettingWorks(t *testing.T) {
	for _, s := range config.Table(1) {
		for _, name := range s.Names() {
			if s.EnvOnly {
				continue
			}
			env := []string{name + "=" + sample(s)}
			switch s.Name {
			case "S3_SSE_KMS_ID":
				env = append(env, "S3_SSE=aws:kms")
			case "S3_RETENTION_MODE":
				env = append(env, "S3_RETENTION_PERIOD=7")
			case "S3_RETENTION_PERIOD":
				env = append(env, "S3_RETENTION_MODE=COMPLIANCE")
			case "WALG_ZSTD_LEVEL":
				env = append(env, "WALG_COMPRESSION_METHOD=zstd")
			case "WALG_FAILOVER_STORAGES", "HOLDFAST_MIRRORS":
				env = append(env, where)
			case "HOLDFAST_MIRRORS_RULE":
				env = append(env, where, `HOLDFAST_MIRRORS={"a":{"WALG_FILE_PREFIX":"/elsewhere"}}`)
			}
			mail := strings.HasPrefix(s.Name, "HOLDFAST_ALERT_MAIL_")
			for name, text := range map[string]string{"TO": "a@h", "FROM": "c@h", "SERVER": "smtp://h", "USER": "u", "PASSWORD": "p"} {
				if mail && s.Name != "HOLDFAST_ALERT_MAIL_"+name {
					env = append(env, "HOLDFAST_ALERT_MAIL_"+name+"="+text)
				}
			}
			if s.Name == "HOLDFAST_ALERT_WEBHOOK_SECRET" {
				env = append(env, "HOLDFAST_ALERT_WEBHOOK=https://h/w")
			}
			v := effective(t, load(t, config.Sources{Environ: env}), s.Name)
			if want := sample(s); v.Value != want && !(s.Secret && v.Value == config.Hidden) || v.Source != "environment "+name {
				t.Errorf("%s: %s is %q from %q, want %q", env, s.Name, v.Value, v.Source, want)
			}
			if got := problems(t, config.Sources{File: file(t, "s.json", fmt.Sprintf("{%q: %q}", strings.ToLower(name), sample(s)))}); got != nil &&
				s.Name != "S3_SSE_KMS_ID" && !strings.HasPrefix(s.Name, "S3_RETENTION_") && s.Type != config.Storages && s.Name != "HOLDFAST_MIRRORS_RULE" && s.Name != "HOLDFAST_ALERT_WEBHOOK_SECRET" && !mail { // which need another one beside them
				t.Errorf("%s in a file: %q", name, got)
			}
		}
	}
}

func TestWhatIsWrongIsAnError(t *testing.T) {
	bad := func(env ...string) config.Sources { return config.Sources{Environ: env} }
	inFile := func(name, text string) config.Sources { return config.Sources{File: file(t, name, text)} }
	for name, c := range map[string]struct {
		src  config.Sources
		want []string // a part of each problem
	}{
		"unknown variable":      {bad("WALG_UPLOAD_CONCURENCY=4"), []string{"WALG_UPLOAD_CONCURENCY (environment): unknown setting // did you mean WALG_UPLOAD_CONCURRENCY?"}},
		"unknown variable ours": {bad("HOLDFAST_S3_PREFX=x"), []string{"did you mean HOLDFAST_S3_PREFIX?"}},
		"unknown and far":       {bad("WALG_QQQQQQQQ=1"), []string{"unknown setting // `holdfast settings`"}},
		"unknown key":           {inFile("s.yaml", "pghost: /tmp\npghosst: /tmp\n"), []string{"s.yaml:2): unknown setting // did you mean PGHOST?"}},
		"unknown key in JSON":   {inFile("s.json", "{\n\t\"PGHOST\": \"x\",\n\t\"WALG_FLIE_PREFIX\": \"/a\"\n}"), []string{"s.json:3): unknown setting // did you mean WALG_FILE_PREFIX?"}},
		"unknown key in TOML":   {inFile("s.toml", "[pghosst]\na.b=1"), []string{"pghosst", "did you mean PGHOST?"}},
		"file missing":          {config.Sources{File: "/no/such.yaml"}, []string{"/no/such.yaml (flag --config): open /no/such.yaml: no such file"}},
		"file missing, by env":  {bad("WALG_CONFIG_PATH=/no/such.yaml"), []string{"/no/such.yaml (environment WALG_CONFIG_PATH): open"}},
		"file named twice":      {bad("WALG_CONFIG_PATH=/a.yaml", "HOLDFAST_CONFIG=/b.yaml"), []string{"/a.yaml (env", "is the same setting and has another value"}},
		"file names file":       {inFile("s.yaml", "walg_config_path: /x"), []string{"cannot be in here"}},
		"file not YAML":         {inFile("s.yaml", "a: b\n\tc: d"), []string{"line 2"}},
		"file not JSON":         {inFile("s.json", "{\n\"a\": \"b\",\n}"), []string{"line 3"}},
		"file not TOML":         {inFile("s.toml", "a = 1\nb = = 2"), []string{"line 2"}},
		"file of unknown type":  {inFile("s.ini", "a=b"), []string{`the extension ".ini" is not one of`}},
		"list for a string":     {inFile("s.yaml", "pghost: [a, b]"), []string{"must be one value"}},
		"two names":             {bad("WALG_S3_PREFIX=s3://a", "HOLDFAST_S3_PREFIX=s3://b"), []string{"HOLDFAST_S3_PREFIX (environment): WALG_S3_PREFIX (environment) is the same setting"}},
		"two prefixes":          {bad("WALG_S3_PREFIX=s3://a", where), []string{"two storage prefixes are set: WALG_FILE_PREFIX"}},
		"two prefixes, sources": {config.Sources{Environ: []string{where}, File: file(t, "s.json", `{"WALE_S3_PREFIX":"s3://a"}`)}, []string{"two storage prefixes"}},
		"relative directory":    {bad("WALG_FILE_PREFIX=archive"), []string{`"archive" must be an absolute path`}},
		"not a bucket":          {bad("WALG_S3_PREFIX=bucket/path"), []string{"must be s3://bucket"}},
		"path upwards":          {bad(where, "WALG_STORAGE_PREFIX=a/../../b"), []string{"without .."}},
		"not a number":          {bad("WALG_UPLOAD_CONCURRENCY=many"), []string{`"many" must be a whole number`}},
		"out of range":          {bad("WALG_UPLOAD_CONCURRENCY=0"), []string{`"0" must be from 1 to 1000`}},
		"part too small":        {bad("WALG_S3_PREFIX=s3://a", "S3_MAX_PART_SIZE=1MiB"), []string{"must be from 5MiB to 5GiB"}},
		"negative rate":         {bad("WALG_DISK_RATE_LIMIT=-1"), []string{"must be at least 0"}},
		"not a bool":            {bad("PG_READY_RENAME=yes"), []string{"must be true or false"}},
		"not a duration":        {bad("WALG_ALIVE_CHECK_INTERVAL=60"), []string{"must be a duration"}},
		"not JSON":              {bad("WALG_SENTINEL_USER_DATA={"), []string{"must be JSON"}},
		"level":                 {bad("WALG_LOG_LEVEL=LOUD"), []string{"must be one of NORMAL, DEVEL, ERROR"}},
		"method":                {bad("WALG_COMPRESSION_METHOD=gzip"), []string{"must be one of zstd, lz4, brotli, lzma, none"}},
		"level without zstd":    {bad("WALG_COMPRESSION_METHOD=lz4", "WALG_ZSTD_LEVEL=best"), []string{"WALG_COMPRESSION_METHOD is lz4"}},
		"kms without key":       {bad("WALG_S3_PREFIX=s3://a", "S3_SSE=aws:kms"), []string{"S3_SSE (environment): aws:kms needs a key"}},
		"key without kms":       {bad("S3_SSE=AES256", "S3_SSE_KMS_ID=k"), []string{"would not be used"}},
		"two encryptions":       {bad("S3_SSE=AES256", "S3_SSE_C=AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="), []string{"S3_SSE is set too"}},
		"key too short":         {bad("WALG_S3_PREFIX=s3://a", "S3_SSE_C=AAEC"), []string{"S3_SSE_C (environment): must be 32 bytes in base64"}},
		"mail from nobody":      {bad("HOLDFAST_ALERT_MAIL_TO=a@h"), []string{"HOLDFAST_ALERT_MAIL_FROM is not set", "HOLDFAST_ALERT_MAIL_SERVER is not set"}},
		"mail to nobody":        {bad("HOLDFAST_ALERT_MAIL_FROM=a@h"), []string{"HOLDFAST_ALERT_MAIL_TO is not set"}},
		"mail to no address":    {bad("HOLDFAST_ALERT_MAIL_FROM=a@h", "HOLDFAST_ALERT_MAIL_SERVER=smtp://h", "HOLDFAST_ALERT_MAIL_TO=the team"), []string{"must be addresses with commas between them"}},
		"mail server":           {bad("HOLDFAST_ALERT_MAIL_SERVER=smtp://u:hush@h"), []string{"must be smtp://host:port or smtps://host:port", "HOLDFAST_ALERT_MAIL_TO is not set"}},
		"half a mail login":     {bad("HOLDFAST_ALERT_MAIL_TO=a@h", "HOLDFAST_ALERT_MAIL_FROM=a@h", "HOLDFAST_ALERT_MAIL_SERVER=smtp://h", "HOLDFAST_ALERT_MAIL_PASSWORD=hush"), []string{"HOLDFAST_ALERT_MAIL_PASSWORD (environment): HOLDFAST_ALERT_MAIL_USER is not set"}},
		"hook without scheme":   {bad("HOLDFAST_ALERT_SLACK=hooks.slack.com/hush"), []string{"HOLDFAST_ALERT_SLACK (environment): must be the address of a web server"}},
		"secret of nothing":     {bad("HOLDFAST_ALERT_WEBHOOK_SECRET=hush"), []string{"HOLDFAST_ALERT_WEBHOOK is not set"}},
		"secret not base64":     {bad("HOLDFAST_ALERT_WEBHOOK=https://h", "HOLDFAST_ALERT_WEBHOOK_SECRET=whsec_hush!"), []string{"must be base64 behind whsec_"}},
		"two logs":              {bad("HOLDFAST_LOG_TO=syslog", "WALG_LOG_DESTINATION=/l"), []string{"the log goes to one place"}},
		"log nowhere":           {bad("HOLDFAST_LOG_TO=syslog:log"), []string{"must be stderr, syslog or journald"}},
		"half of a credential":  {bad("WALG_S3_PREFIX=s3://a", "AWS_ACCESS_KEY_ID=k"), []string{"AWS_SECRET_ACCESS_KEY is not set"}},
		"other half":            {bad("WALG_S3_PREFIX=s3://a", "AWS_SECRET_KEY=k"), []string{"AWS_SECRET_KEY (environment): AWS_ACCESS_KEY_ID is not set"}},
		"endpoints":             {bad("AWS_ENDPOINT=https://a", "WALE_S3_ENDPOINT=http+path://b:1"), []string{"names another address"}},
		"endpoint":              {bad("WALG_S3_PREFIX=s3://a", "AWS_ENDPOINT=ftp://a"), []string{"must be a URL"}},
		"another storage":       {bad("WALG_OSS_PREFIX=oss://a"), []string{"Alibaba's OSS is not supported"}},
		"a key elsewhere":       {bad(where, "YC_CSE_KMS_KEY_ID=hush"), []string{"keys in Yandex's KMS are not supported"}},
		"an envelope":           {bad(where, "WALG_ENVELOPE_PGP_KEY=hush"), []string{"keys in Yandex's KMS are not supported"}},
		"not a Google bucket":   {bad("WALG_GS_PREFIX=gs://b/a/../c"), []string{"must be gs://bucket or"}},
		"not a container":       {bad("WALE_WABS_PREFIX=wabs:/b"), []string{"WALE_WABS_PREFIX (environment): \"wabs:/b\" must be azure://container"}},
		"not a host":            {bad("WALG_SSH_PREFIX=ssh://u@h:22/p"), []string{"the port is SSH_PORT"}},
		"four prefixes":         {bad(where, "WALG_GS_PREFIX=gs://a", "WALG_SSH_PREFIX=ssh://h/p"), []string{"WALG_GS_PREFIX (environment): two storage prefixes", "WALG_SSH_PREFIX"}},
		"level of brotli":       {bad("WALG_COMPRESSION_METHOD=brotli", "WALG_ZSTD_LEVEL=best"), []string{"WALG_COMPRESSION_METHOD is brotli"}},
		"target storage":        {bad(where, "WALG_TARGET_STORAGE=second"), []string{`there is no storage "second" // name one of: default`}},
		"both kinds of several": {bad(where, `WALG_FAILOVER_STORAGES={a: {WALG_FILE_PREFIX: /b}}`, `HOLDFAST_MIRRORS={c: {WALG_FILE_PREFIX: /d}}`), []string{"either kept twice or continued elsewhere"}},
		"several, not a map":    {bad(where, `WALG_FAILOVER_STORAGES=[a]`), []string{"must be a map of names to maps"}},
		"several, no name":      {bad(where, `WALG_FAILOVER_STORAGES={Default: {WALG_FILE_PREFIX: /b}}`), []string{`must not name a storage "default"`}},
		"several, odd name":     {bad(where, `WALG_FAILOVER_STORAGES={a b: {WALG_FILE_PREFIX: /b}}`), []string{"letters, digits"}},
		"several, twice":        {bad(where, `WALG_FAILOVER_STORAGES={a: {WALG_FILE_PREFIX: /b}, A: {WALG_FILE_PREFIX: /c}}`), []string{`"a" is there twice`}},
		"several, same place":   {bad(where, `WALG_FAILOVER_STORAGES={a: {WALG_FILE_PREFIX: /archive/}}`), []string{"same place as default"}},
		"several, no place":     {bad(where, `HOLDFAST_MIRRORS={a: {SSH_PORT: 23}}`), []string{"a (environment, storage a): no setting says where this storage is"}},
		"several, no first":     {bad(`HOLDFAST_MIRRORS={a: {WALG_FILE_PREFIX: /b}}`), []string{"there is no storage outside of the map"}},
		"several, typo":         {inFile("s.yaml", "WALG_FILE_PREFIX: /a\nWALG_FAILOVER_STORAGES:\n  b:\n    WALG_FLIE_PREFIX: /b\n"), []string{"WALG_FLIE_PREFIX", "s.yaml:2, storage b): unknown setting // did you mean WALG_FILE_PREFIX?"}},
		"several, of the whole": {bad(where, `HOLDFAST_MIRRORS={a: {WALG_FILE_PREFIX: /b, WALG_LOG_LEVEL: ERROR}}`), []string{"WALG_LOG_LEVEL (environment, storage a): it is a setting of the whole"}},
		"several, a value":      {bad(where, `HOLDFAST_MIRRORS={a: {WALG_FILE_PREFIX: /b, WALG_AZURE_BUFFER_SIZE: lots, WALG_SSH_PORT: 0}}`), []string{"storage a): \"0\" must be from 1 to 65535", "WALG_AZURE_BUFFER_SIZE"}},
		"rule without mirrors":  {bad(where, "HOLDFAST_MIRRORS_RULE=any"), []string{"HOLDFAST_MIRRORS is not set"}},
		"relative state":        {bad(where, "HOLDFAST_STATE_DIR=state"), []string{"must be an absolute path"}},
		"connection elsewhere":  {bad("PGHOSTADDR=10.0.0.1"), []string{"would connect elsewhere or less safely"}},
		"connection in clear":   {bad("PGREQUIRESSL=1"), []string{"would connect elsewhere or less safely than was asked for // set PGSSLMODE=require"}},
		"TLS too old":           {bad("PGSSLMINPROTOCOLVERSION=TLSv1.3"), []string{"takes TLS 1.2 and later"}},
		"lock without mode":     {bad("S3_RETENTION_PERIOD=3600"), []string{"S3_RETENTION_MODE does not say how"}},
		"lock without time":     {bad("S3_RETENTION_MODE=GOVERNANCE"), []string{"does not say for how long"}},
		"headers":               {bad("WALG_S3_REQUEST_ADDITIONAL_HEADERS=[hush]"), []string{"must be a map of strings"}},
		"secret as a flag":      {config.Sources{Flags: []config.Flag{{Flag: "--pgpassword", Setting: "PGPASSWORD", Value: "hush"}}}, []string{"can be read by everybody"}},
		"secret's file missing": {bad("PGPASSWORD_FILE=/no/such"), []string{"PGPASSWORD_FILE (environment): open /no/such"}},
		"secret's file empty":   {bad("PGPASSWORD_FILE=" + file(t, "pw", "\n")), []string{"is empty"}},
		"secret in two ways":    {bad("PGPASSWORD=a", "PGPASSWORD_FILE="+file(t, "pw", "b\n")), []string{"is the same setting"}},
		"port":                  {bad("PGPORT=70000"), []string{"must be a port"}},
		"all at once": {config.Sources{Environ: []string{"WALG_FOO=1", "PGPORT=0"}, File: file(t, "s.yaml", "walg_log_level: x\nwalg_bar: 1")},
			[]string{"WALG_FOO", "PGPORT", "walg_log_level", "walg_bar"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := problems(t, c.src)
			all := strings.Join(got, "\n")
			for _, w := range c.want {
				if !strings.Contains(all, w) {
					t.Errorf("got\n%s\nwant %q", all, w)
				}
			}
			if len(got) == 0 || len(got) > max(2, len(c.want)) {
				t.Errorf("%d problems: %s", len(got), all)
			}
			if strings.Contains(all, "hush") || strings.Contains(all, "AAEC") {
				t.Errorf("a secret shows:\n%s", all)
			}
		})
	}
}

// Every key arrives where package crypt is told of it, by whatever name it was given, and no secret shows.
func TestKeysArrive(t *testing.T) {
	for name, field := range map[string]func(config.Encryption) string{
		"HOLDFAST_AGE_RECIPIENTS":      func(e config.Encryption) string { return e.AgeRecipients },
		"HOLDFAST_AGE_RECIPIENTS_PATH": func(e config.Encryption) string { return e.AgeRecipientsPath },
		"HOLDFAST_AGE_IDENTITIES":      func(e config.Encryption) string { return e.AgeIdentities },
		"HOLDFAST_AGE_IDENTITIES_PATH": func(e config.Encryption) string { return e.AgeIdentitiesPath },
		"WALG_LIBSODIUM_KEY":           func(e config.Encryption) string { return e.SodiumKey },
		"WALG_LIBSODIUM_KEY_PATH":      func(e config.Encryption) string { return e.SodiumKeyPath },
		"WALG_PGP_KEY":                 func(e config.Encryption) string { return e.PGPKey },
		"WALG_PGP_KEY_PATH":            func(e config.Encryption) string { return e.PGPKeyPath },
		"WALG_PGP_KEY_PASSPHRASE":      func(e config.Encryption) string { return e.PGPPassphrase },
		"WALG_GPG_KEY_ID":              func(e config.Encryption) string { return e.GPGKeyID },
		"WALE_GPG_KEY_ID":              func(e config.Encryption) string { return e.GPGKeyID },
		"GPG_KEY_ID":                   func(e config.Encryption) string { return e.GPGKeyID },
		"WALG_CSE_KMS_ID":              func(e config.Encryption) string { return e.KMSKeyID },
		"HOLDFAST_CSE_KMS_REGION":      func(e config.Encryption) string { return e.KMSRegion },
		"HOLDFAST_LIBSODIUM_KEY_FILE":  func(e config.Encryption) string { return e.SodiumKey },
		"HOLDFAST_AGE_IDENTITIES_FILE": func(e config.Encryption) string { return e.AgeIdentities },
		"WALG_PGP_KEY_PASSPHRASE_FILE": func(e config.Encryption) string { return e.PGPPassphrase },
		"HOLDFAST_LIBSODIUM_KEY_PATH":  func(e config.Encryption) string { return e.SodiumKeyPath },
		"HOLDFAST_PGP_KEY":             func(e config.Encryption) string { return e.PGPKey },
		"HOLDFAST_GPG_KEY_ID":          func(e config.Encryption) string { return e.GPGKeyID },
		"HOLDFAST_PGP_KEY_PASSPHRASE":  func(e config.Encryption) string { return e.PGPPassphrase },
		"HOLDFAST_CSE_KMS_ID":          func(e config.Encryption) string { return e.KMSKeyID },
		"WALG_CSE_KMS_REGION":          func(e config.Encryption) string { return e.KMSRegion },
	} {
		given := "hush"
		if strings.HasSuffix(name, "_FILE") {
			given = file(t, "key", "hush\n")
		}
		for _, src := range []config.Sources{
			{Environ: []string{where, name + "=" + given}},
			{Environ: []string{where}, File: file(t, "s.toml", fmt.Sprintf("%s = %q", strings.ToLower(name), given))},
		} {
			s := load(t, src)
			if got := field(s.Encryption); got != "hush" {
				t.Errorf("%s arrives as %q", name, got)
			}
			for _, v := range s.Effective() {
				if v.Secret && strings.Contains(v.Value, "hush") {
					t.Errorf("%s shows %s = %s", name, v.Name, v.Value)
				}
			}
			setting := map[bool]string{true: "WALG_GPG_KEY_ID", false: name}[strings.Contains(name, "GPG_KEY_ID")]
			if called := s.Called(setting); !strings.HasPrefix(strings.ToUpper(called), name+" (") && !strings.HasPrefix(name, "HOLDFAST_") && !strings.HasSuffix(name, "_FILE") {
				t.Errorf("%s was given, and is called %s", name, called)
			}
		}
	}
	if got := load(t, config.Sources{Environ: []string{where}}).Called("WALG_PGP_KEY"); got != "WALG_PGP_KEY" {
		t.Errorf("what was not given is called %q", got)
	}
}

// Each of several storages has the settings of its own map and none from outside of it.
func TestSeveralStorages(t *testing.T) {
	secret := file(t, "secret", "hush2\n")
	s := load(t, config.Sources{Environ: []string{"AWS_ACCESS_KEY_ID=outside", "AWS_SECRET_ACCESS_KEY=hush", "WALG_S3_PREFIX=s3://first"}, File: file(t, "s.yaml", `
WALG_FAILOVER_STORAGES:
  Second:
    WALE_S3_PREFIX: s3://second/x
    WALG_STORAGE_PREFIX: y
    aws_access_key_id: inside
    AWS_SECRET_ACCESS_KEY_FILE: `+secret+`
    S3_MAX_RETRIES: 3
    S3_REQUEST_ADDITIONAL_HEADERS: {X-A: b}
  by-ssh:
    WALG_SSH_PREFIX: ssh://host/dir
    SSH_PASSWORD: hush3
    SSH_PORT: "2222"
walg_target_storage: SECOND
WALG_FAILOVER_STORAGES_CHECK_SIZE: 2mb
`)})
	if len(s.Failover) != 2 || s.Failover[0].Name != "by-ssh" || s.Failover[1].Name != "second" {
		t.Fatalf("storages %+v", s.Failover)
	}
	if got := s.Failover[1]; got.Location() != "s3://second/x/y" || got.S3.AccessKeyID != "inside" || got.S3.SecretAccessKey != "hush2" || got.S3.Retries != 3 ||
		got.S3.Headers["X-A"] != "b" || got.S3.PartSize != 20<<20 {
		t.Errorf("second: %+v", got)
	}
	if got := s.Failover[0]; got.Location() != "ssh://host:2222/dir" || got.SFTP.Password != "hush3" || got.S3.AccessKeyID != "" {
		t.Errorf("by-ssh: %+v", got)
	}
	if s.Storage.S3.AccessKeyID != "outside" || s.Health.Size != 2<<20 {
		t.Errorf("default: %+v, check %+v", s.Storage, s.Health)
	}
	if in := s.InUse(); len(in) != 1 || in[0].Name != "second" || s.Location() != "s3://second/x/y" {
		t.Errorf("in use: %v at %s", in, s.Location())
	}
	shown := effective(t, s, "WALG_FAILOVER_STORAGES").Value
	if strings.Contains(shown, "hush") || !strings.Contains(shown, `"SSH_PASSWORD":"--HIDDEN--"`) || !strings.Contains(shown, "ssh://host/dir") {
		t.Errorf("shown as %s", shown)
	}

	s = load(t, config.Sources{Environ: []string{where, `HOLDFAST_MIRRORS={"b":{"WALG_FILE_PREFIX":"/b"}}`, "WALG_TARGET_STORAGE=all"}, Home: "/no/home"})
	if in := s.InUse(); len(in) != 2 || s.Location() != "file:///archive and file:///b" || s.StateDir != "/no/home/.holdfast" {
		t.Errorf("in use: %v at %s, state in %s", in, s.Location(), s.StateDir)
	}
}

func TestIgnoredSettingsAreNamed(t *testing.T) {
	for _, c := range []struct {
		env     string
		notice  string // a part of it; "" for none
		command string // that it is for; "" for all
	}{
		{"WALG_PREVENT_WAL_OVERWRITE=false", "never overwritten", "wal-push"},
		{"WALG_PREVENT_WAL_OVERWRITE=True", "", ""},
		{"WALG_VERIFY_PAGE_CHECKSUMS=0", "always verified", "backup-push"},
		{"WALG_UPLOAD_QUEUE=4", "stored while it is filled", "backup-push"},
		{"WALG_TAR_DISABLE_FSYNC=true", "synced once", "backup-fetch"},
		{"WALG_PG_WAL_SIZE=64", "never configured", ""},
		{"WALG_SERIALIZER_TYPE=x", "retired", ""},
		{"HTTP_LISTEN=x:1", "does not have", ""},
		{"WALG_MYSQL_DATASOURCE_NAME=x", "another database", ""},
		{"MONGODB_URI=x", "", ""},
		{"GOMAXPROCS=2", "", ""},
		{"AZURE_STORAGE_ACCOUNT=x", "", ""},
		{"WALG_AZURE_STORAGE_ACCOUNT=x", "no storage of this kind is in use", ""},
		{"SSH_PORT=of another program", "", ""},
		{"ST_AUTH_VERSION=9", "", ""},
		{"WALG_FAILOVER_STORAGES_CACHE_EMA_ALIVE_LIMIT=0.9", "without averages", ""},
		{"PGSSLMAXPROTOCOLVERSION=TLSv1.3", "does not know it", "backup-push"},
		{"PGSSLMINPROTOCOLVERSION=TLSv1.2", "", ""},
		{"PGTZ=UTC", "", ""},
		{"WALE_S3_PREFIXX=typo", "", ""}, // WAL-E's own names are many
		{"HOLDFAST_TEST_CACHE=/x", "", ""},
		{"PATH=/bin", "", ""},
	} {
		notices := load(t, config.Sources{Environ: []string{c.env}}).Notices()
		switch {
		case c.notice == "" && len(notices) > 0:
			t.Errorf("%s: %q, want no notice", c.env, notices)
		case c.notice == "":
		case len(notices) != 1 || !strings.Contains(notices[0], c.notice) || !strings.Contains(notices[0], strings.Split(c.env, "=")[0]):
			t.Errorf("%s: %q, want one notice with %q", c.env, notices, c.notice)
		}
		for _, command := range []string{"backup-push", "backup-fetch", "wal-push", "backup-list"} {
			want := c.notice != "" && (c.command == "" || c.command == command)
			if got := load(t, config.Sources{Environ: []string{c.env}, Command: command}).Notices(); (len(got) > 0) != want {
				t.Errorf("%s in %s: %q, want a notice: %t", c.env, command, got, want)
			}
		}
	}
	got := load(t, config.Sources{Environ: []string{"WALG_MYSQL_A=1", "WALG_REDIS_B=2"}}).Notices()
	if len(got) != 1 || !strings.Contains(got[0], "WALG_MYSQL_A (environment), WALG_REDIS_B (environment)") {
		t.Errorf("settings for other databases: %v, want one line", got)
	}
	if got := load(t, config.Sources{File: file(t, "s.yaml", "gomaxprocs: 4")}).Notices(); len(got) != 1 {
		t.Errorf("GOMAXPROCS in a file: %v, want a notice", got)
	}
}

// How a server is reached matters to what connects: wal-push has an operator's variables in its environment and goes on.
func TestOnlyWhatConnectsRefusesConnections(t *testing.T) {
	load(t, config.Sources{Environ: []string{where, "PGHOSTADDR=10.0.0.1", "PGSSLCRL=/crl"}, Command: "wal-push"})
	if got := problems(t, config.Sources{Environ: []string{where, "PGHOSTADDR=10.0.0.1"}, Command: "backup-push"}); len(got) != 1 {
		t.Errorf("backup-push with PGHOSTADDR: %q", got)
	}
}

// What is for other programs, and would contradict itself here, stops nobody whose archive is elsewhere.
func TestOtherProgramsVariablesAreTheirs(t *testing.T) {
	env := []string{"OS_TENANT_NAME=a", "OS_PROJECT_NAME=b", "OS_AUTH_URL=x", "AZURE_STORAGE_ACCOUNT=c", "WABS_ACCOUNT_NAME=d"}
	load(t, config.Sources{Environ: append(env, where)})
	if got := problems(t, config.Sources{Environ: append(env, "WALG_SWIFT_PREFIX=swift://c")}); len(got) != 1 || !strings.Contains(got[0], "OS_PROJECT_NAME") {
		t.Errorf("with an archive in Swift: %q", got)
	}
}

// Accounts of services may have a home directory that is none.
func TestHomeDirectoryMayBeAFile(t *testing.T) {
	if s := load(t, config.Sources{Home: "/dev/null"}); s.File != "" {
		t.Errorf("read %q", s.File)
	}
}

func TestFilesOfEachKindReadAlike(t *testing.T) {
	texts := map[string]string{
		"s.json": "{\n\t\"WALG_S3_PREFIX\": \"s3://b/p\",\n\t\"pgPort\": 5433, \"PG_READY_RENAME\": true, \"PGHOST\": null,\n\"WALG_SENTINEL_USER_DATA\": {\"a\": [1]}}\n",
		"s.yaml": "WALG_S3_PREFIX: s3://b/p\npgPort: 5433\nPG_READY_RENAME: true\nPGHOST:\nWALG_SENTINEL_USER_DATA:\n  a: [1]\n",
		"s.yml":  "---\nWALG_S3_PREFIX: &x s3://b/p\nWALE_S3_PREFIX: *x\npgPort: '5433'\nPG_READY_RENAME: \"1\"\nWALG_SENTINEL_USER_DATA: '{\"a\": [1]}'\n",
		"s.toml": "WALG_S3_PREFIX = \"s3://b/p\"\npgPort = 5433\nPG_READY_RENAME = true\nPGHOST = \"\"\n[WALG_SENTINEL_USER_DATA]\na = [1]\n",
	}
	for name, text := range texts {
		path := file(t, name, text)
		s := load(t, config.Sources{File: path})
		if s.Storage.S3.Bucket != "b" || s.Storage.S3.Path != "p" || s.Postgres.Vars["PGPORT"] != "5433" || !s.WAL.ReadyRename ||
			string(s.Backup.UserData) != `{"a":[1]}` || s.File != path {
			t.Errorf("%s: %+v", name, s)
		}
		if _, set := s.Postgres.Lookup("PGHOST"); set {
			t.Errorf("%s: PGHOST is set by an empty value", name)
		}
	}
}

func TestSettingsFileInTheHomeDirectory(t *testing.T) {
	home := t.TempDir()
	put := func(name string) {
		if err := os.WriteFile(filepath.Join(home, name), []byte("{PGHOST: here}"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if s := load(t, config.Sources{Home: home}); s.File != "" {
		t.Errorf("read %q from an empty home", s.File)
	}
	put(".walg.yaml")
	s := load(t, config.Sources{Home: home})
	if v := effective(t, s, "WALG_CONFIG_PATH"); s.Postgres.Vars["PGHOST"] != "here" || v.Value != filepath.Join(home, ".walg.yaml") {
		t.Errorf("PGHOST %q from %q", s.Postgres.Vars["PGHOST"], v.Value)
	}
	put(".holdfast.yml")
	if got := problems(t, config.Sources{Home: home}); len(got) != 1 || !strings.Contains(got[0], "there are several") {
		t.Errorf("two files in the home directory: %q", got)
	}
	load(t, config.Sources{Home: home, File: filepath.Join(home, ".walg.yaml")})
	load(t, config.Sources{Home: home, Environ: []string{"HOLDFAST_CONFIG=" + filepath.Join(home, ".walg.yaml")}})

	home = t.TempDir()
	put(".walg.properties")
	if got := problems(t, config.Sources{Home: home}); len(got) != 1 || !strings.Contains(got[0], "extension") {
		t.Errorf("a file that WAL-G would read and we cannot: %q", got)
	}
}

func TestArchivesAreWhereTheSettingsSay(t *testing.T) {
	for _, c := range []struct {
		env  []string
		want string
	}{
		{[]string{"WALG_FILE_PREFIX=/a/b/"}, "file:///a/b"},
		{[]string{"WALG_FILE_PREFIX=file:///a"}, "file:///a"},
		{[]string{"WALE_FILE_PREFIX=file://localhost/a", "WALG_STORAGE_PREFIX=/x/"}, "file:///a/x"},
		{[]string{"WALG_S3_PREFIX=s3://b"}, "s3://b"},
		{[]string{"WALG_S3_PREFIX=s3://b/", "WALG_STORAGE_PREFIX=x"}, "s3://b/x"},
		{[]string{"WALE_S3_PREFIX=s3://b/c/d/", "AWS_ENDPOINT=minio:9000"}, "s3://b/c/d at https://minio:9000"},
		{[]string{"WALG_GS_PREFIX=gs://b/c/", "WALG_STORAGE_PREFIX=x"}, "gs://b/c/x"},
		{[]string{"WALE_GS_PREFIX=gs://b//c", "GCS_NORMALIZE_PREFIX=false", "WALG_STORAGE_PREFIX=x"}, "gs://b//c/x"},
		{[]string{"WALG_GS_PREFIX=gs://b", "STORAGE_EMULATOR_HOST=h:1"}, "gs://b at h:1"},
		{[]string{"WALG_AZ_PREFIX=azure://c/p", "AZURE_STORAGE_ACCOUNT=acc"}, "azure://c/p at acc"},
		{[]string{"WALE_WABS_PREFIX=wabs://c/p", "WABS_ACCOUNT_NAME=acc"}, "azure://c/p at acc"},
		{[]string{"WALE_SWIFT_PREFIX=swift://c/p", "SWIFT_AUTHURL=http://h/v3"}, "swift://c/p at http://h/v3"},
		{[]string{"WALG_SSH_PREFIX=ssh://h/a/b/", "WALG_STORAGE_PREFIX=c"}, "ssh://h:22/a/b/c"},
		{[]string{"WALG_SSH_PREFIX=ssh://[::1]/a", "WALG_SSH_PORT=23"}, "ssh://[::1]:23/a"},
		{[]string{"WALE_S3_PREFIX=s3://b/c", "WALE_S3_ENDPOINT=http+path://minio:9000"}, "s3://b/c at http://minio:9000"},
	} {
		s := load(t, config.Sources{Environ: c.env})
		if got := s.Location(); got != c.want {
			t.Errorf("%q: %q, want %q", c.env, got, c.want)
		}
		if err := s.RequireStorage(); err != nil {
			t.Errorf("%q: %v", c.env, err)
		}
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]int64{
		"64KiB": 64 << 10, "1048576": 1 << 20, "1mb": 1 << 20, "1 GB": 1 << 30, "2g": 2 << 30, "70000B": 70000,
		"1XB": 0, "1ib": 0, "MB": 0, "1.5M": 0, "9999999999T": 0, "1bb": 0, "1kk": 0, "": 0,
	} {
		s, err := config.Load(config.Sources{Environ: []string{"WALG_TAR_SIZE_THRESHOLD=" + text}})
		switch {
		case text == "" && (err != nil || s.Backup.PartSize != 1<<30-1):
			t.Errorf("empty: %v, %v, want the default", s, err)
		case text == "":
		case want == 0 && err == nil:
			t.Errorf("%q: %d, want an error", text, s.Backup.PartSize)
		case want != 0 && (err != nil || s.Backup.PartSize != want):
			t.Errorf("%q: %v, want %d", text, err, want)
		}
	}
}

func TestSecretsComeFromFilesAndStayHidden(t *testing.T) {
	s := load(t, config.Sources{Environ: []string{
		"PGPASSWORD_FILE=" + file(t, "pw", "hush\n"), "HOLDFAST_AWS_SECRET_ACCESS_KEY_FILE=" + file(t, "k", "hush2"), "AWS_ACCESS_KEY=id",
	}})
	if s.Postgres.Vars["PGPASSWORD"] != "hush" || s.Storage.S3.SecretAccessKey != "hush2" {
		t.Errorf("password %q, key %q", s.Postgres.Vars["PGPASSWORD"], s.Storage.S3.SecretAccessKey)
	}
	if all := fmt.Sprint(s.Effective()); strings.Contains(all, "hush") || strings.Count(all, config.Hidden) != 3 {
		t.Errorf("effective: %s", all)
	}
}

func TestTurboLiftsLimits(t *testing.T) {
	src := config.Sources{Environ: []string{"WALG_DISK_RATE_LIMIT=1M", "WALG_NETWORK_RATE_LIMIT=1M"}}
	if s := load(t, src); s.Backup.DiskRate != 1<<20 || s.NetworkRate != 1<<20 {
		t.Errorf("limits %d and %d", s.Backup.DiskRate, s.NetworkRate)
	}
	src.Turbo = true
	s := load(t, src)
	if v := effective(t, s, "WALG_DISK_RATE_LIMIT"); s.Backup.DiskRate != 0 || s.NetworkRate != 0 || v.Source != "flag --turbo" || v.Value != "0" {
		t.Errorf("limits %d and %d, %v", s.Backup.DiskRate, s.NetworkRate, v)
	}
}

// Segments are summed up where somebody is going to want to know.
func TestWALIsSummarizedForDeltas(t *testing.T) {
	for environ, want := range map[string]bool{
		"": false, "WALG_DELTA_MAX_STEPS=0": false, "WALG_DELTA_MAX_STEPS=6": true, "WALG_USE_WAL_DELTA=true": true,
		"HOLDFAST_WAL_SUMMARIES=on": true, "HOLDFAST_WAL_SUMMARIES=off WALG_DELTA_MAX_STEPS=6 WALG_USE_WAL_DELTA=true": false,
	} {
		if got := load(t, config.Sources{Environ: strings.Fields(environ)}).SummarizesWAL(); got != want {
			t.Errorf("%q: %v", environ, got)
		}
	}
}

func TestDownloadConcurrencyIsForBothFetches(t *testing.T) {
	if s := load(t, config.Sources{Environ: []string{"WALG_DOWNLOAD_CONCURRENCY=3"}}); s.Restore.Workers != 3 || s.WAL.Prefetch != 3 {
		t.Errorf("restore %d, prefetch %d, want 3 and 3", s.Restore.Workers, s.WAL.Prefetch)
	}
}

// What `holdfast settings` prints can be given again and means the same.
func TestPrintedSettingsReadTheSame(t *testing.T) {
	dir := t.TempDir()
	table := config.Table(2)
	rapid.Check(t, func(t *rapid.T) {
		var env []string
		chosen := rapid.SliceOfNDistinct(rapid.IntRange(0, len(table)-1), 0, 6, func(i int) int { return i }).Draw(t, "settings")
		for _, i := range chosen {
			s := &table[i]
			if s.EnvOnly {
				continue
			}
			var text string
			top := s.Max
			if top == 0 {
				top = 1 << 50
			}
			switch {
			case s.Values != nil:
				text = rapid.SampledFrom(s.Values).Draw(t, s.Name)
			case s.Type == config.Bool:
				text = fmt.Sprint(rapid.Bool().Draw(t, s.Name))
			case s.Type == config.Int, s.Type == config.Size:
				text = fmt.Sprint(rapid.Int64Range(s.Min, top).Draw(t, s.Name))
			case s.Type == config.Duration:
				text = time.Duration(rapid.Int64Range(s.Min, top).Draw(t, s.Name)).String()
			case s.Type == config.Storages:
				continue // a secret
			case s.Type == config.JSON:
				text = fmt.Sprintf(`{"k": %q}`, rapid.StringMatching(`[a-z"\\ ]*`).Draw(t, s.Name))
			case sample(*s) != "seven":
				text = sample(*s)
			default:
				text = rapid.StringMatching(`[/a-z0-9 .'"\\:#%é-]{1,12}`).Draw(t, s.Name)
			}
			env = append(env, s.Name+"="+text)
		}
		first, err := config.Load(config.Sources{Environ: env})
		if err != nil {
			t.Skip(err)
		}
		var again strings.Builder
		for _, v := range first.Effective() {
			if v.Source != "default" && !v.Secret {
				fmt.Fprintf(&again, "%q: %q\n", v.Name, v.Value)
			}
		}
		path := filepath.Join(dir, "s.yaml")
		if err := os.WriteFile(path, []byte(again.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		var secrets []string
		for _, e := range env {
			if i := slices.IndexFunc(table, func(s config.Setting) bool { return strings.HasPrefix(e, s.Name+"=") }); table[i].Secret {
				secrets = append(secrets, e)
			}
		}
		second, err := config.Load(config.Sources{File: path, Environ: secrets})
		if err != nil {
			t.Fatalf("%s\n%v", again.String(), err)
		}
		second.File = ""
		if d := cmp.Diff(first, second, cmpopts.IgnoreFields(config.Settings{}, "Content", "rows", "values", "notices", "given"),
			cmp.Exporter(func(reflect.Type) bool { return true })); d != "" {
			t.Errorf("%s\n%s", again.String(), d)
		}
	})
}

// quote writes s as JSON. Text that is not UTF-8 has no JSON form.
func quote(t *testing.T, s string) string {
	if !utf8.ValidString(s) {
		t.Skip("not UTF-8")
	}
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// What a settings file is read as, written as JSON, reads the same.
func FuzzParseFile(f *testing.F) {
	for _, seed := range []string{
		"{\"A\": 1, \"b\": [true, null], \"c\": {\"d\": 1e3}}", "a: b\nc:\n  - d\n", "a = 1\n[b]\nc = 1979-05-27\n", "&a [*a]", "{", "\ufeff{}",
		"a: !!binary x", "? [a]\n: b", "a: &x {b: *x}", "a = inf\nb = nan", "--- a\n--- b",
	} {
		for _, ext := range []string{".json", ".yaml", ".toml"} {
			f.Add(ext, []byte(seed))
		}
	}
	f.Fuzz(func(t *testing.T, ext string, data []byte) {
		entries, err := config.ParseFile("s"+ext, data)
		if err != nil {
			return
		}
		var b strings.Builder
		for i, e := range entries {
			b.WriteString([]string{"{", ","}[min(i, 1)])
			value := quote(t, e.Text)
			if e.Structured {
				value = e.Text
			}
			b.WriteString(quote(t, e.Key) + ":" + value)
		}
		if len(entries) == 0 {
			b.WriteString("{")
		}
		b.WriteString("}")
		again, err := config.ParseFile("s.json", []byte(b.String()))
		if err != nil {
			t.Fatalf("%q was read as %q, which cannot be read: %v", data, b.String(), err)
		}
		if d := cmp.Diff(entries, again); d != "" {
			t.Errorf("%q: %s", data, d)
		}
	})
}

// An empty value counts as none, but for one by which the file means to encrypt: nothing is stored in clear for a variable that was not filled in.
func TestEmptyRecipients(t *testing.T) {
	const key = "age1qyqszqgpqyqszqgpqyqszqgpqyqszqgpqyqszqgpqyqszqgpqyqs3290gq"
	for _, c := range []struct {
		name, text string
		environ    []string
		refused    bool
	}{
		{"a.yaml", "HOLDFAST_AGE_RECIPIENTS:\n", nil, true},
		{"a.yaml", "HOLDFAST_AGE_RECIPIENTS: ''\n", nil, true},
		{"a.yaml", "holdfast_age_recipients: null\n", nil, true},
		{"a.yaml", "HOLDFAST_AGE_RECIPIENTS_PATH: ''\n", nil, true},
		{"a.json", `{"HOLDFAST_AGE_RECIPIENTS": ""}`, nil, true},
		{"a.json", `{"HOLDFAST_AGE_RECIPIENTS": null}`, nil, true},
		{"a.json", `{"HOLDFAST_AGE_RECIPIENTS": "\n"}`, nil, true},
		{"a.json", `{"HOLDFAST_AGE_RECIPIENTS_PATH": "\r\n"}`, nil, true},
		{"a.toml", "HOLDFAST_AGE_RECIPIENTS = ''\n", nil, true},
		{"a.yaml", "HOLDFAST_AGE_RECIPIENTS: ''\n", []string{"HOLDFAST_AGE_RECIPIENTS="}, true},
		{"a.yaml", "HOLDFAST_AGE_RECIPIENTS: ''\n", []string{"HOLDFAST_AGE_RECIPIENTS=" + key}, false},
		{"a.yaml", "HOLDFAST_AGE_RECIPIENTS: ''\nWALG_LIBSODIUM_KEY_PATH: /k\n", nil, false},
		{"a.yaml", "HOLDFAST_AGE_RECIPIENTS: " + key + "\nHOLDFAST_AGE_RECIPIENTS_PATH:\n", nil, false},
		{"a.yaml", "HOLDFAST_AGE_RECIPIENTS: " + key + "\n", []string{"HOLDFAST_AGE_RECIPIENTS="}, false},
		{"a.yaml", "WALG_LIBSODIUM_KEY: ''\nWALG_PGP_KEY:\nnothing_of_ours:\n", nil, false},
		{"a.yaml", "PGHOST: ''\n", []string{"HOLDFAST_AGE_RECIPIENTS="}, false},
		// Where backups are restored: with a key that only decrypts nothing is stored.
		{"a.yaml", "HOLDFAST_AGE_RECIPIENTS: ''\nHOLDFAST_AGE_IDENTITIES_PATH: /k\n", nil, false},
		{"a.yaml", "HOLDFAST_AGE_RECIPIENTS: ''\n", []string{"HOLDFAST_AGE_IDENTITIES=AGE-SECRET-KEY-1"}, false},
	} {
		s, err := config.Load(config.Sources{File: file(t, c.name, c.text), Environ: c.environ})
		switch {
		case c.refused && (err == nil || !strings.Contains(err.Error(), "stored in clear")):
			t.Errorf("%q, %q: %v", c.text, c.environ, err)
		case !c.refused && err != nil:
			t.Errorf("%q, %q: %v", c.text, c.environ, err)
		case !c.refused && strings.Contains(c.text, key) && s.Encryption.AgeRecipients != key:
			t.Errorf("%q, %q: recipients are %q", c.text, c.environ, s.Encryption.AgeRecipients)
		}
	}
	// What only reads is not refused for it: a recovery would end.
	empty := file(t, "b.yaml", "HOLDFAST_AGE_RECIPIENTS: ''\n")
	for _, command := range []string{"wal-fetch", "wal-prefetch", "backup-fetch"} {
		s, err := config.Load(config.Sources{File: empty, Command: command})
		if err != nil {
			t.Errorf("%s: %v", command, err)
		} else if n := s.Notices(); len(n) != 1 || !strings.Contains(n[0], "HOLDFAST_AGE_RECIPIENTS ("+empty+":1)") {
			t.Errorf("%s: notices are %q", command, n)
		}
	}
	for _, command := range []string{"wal-push", "backup-push", "daemon", "backup-list"} {
		if _, err := config.Load(config.Sources{File: empty, Command: command}); err == nil {
			t.Errorf("%s: not refused", command)
		}
	}
}
