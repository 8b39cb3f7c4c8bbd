// Package outage_test takes the store away from a server under load, and gives it back: nothing is lost, people are told of it and of its end, and what has heaped
// up goes up as fast as the store takes it.
package outage_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/archive"
	"holdfast/internal/daemon"
	"holdfast/internal/notify"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store/s3"
	"holdfast/test/pgtest"
	"holdfast/test/places"
	"holdfast/test/site"
)

// outage is how long the store is away. Up to a minute segments are small and no rate is held to be one; from a minute on forecasts and rates are judged, too.
var outage = flag.Duration("outage", 6*time.Second, "how long the store is away; 10m is the whole of it")

// long reports whether the outage is one of which rates can be taken.
func long() bool { return *outage > time.Minute }

// atOnce is how many files are in flight, WALG_UPLOAD_CONCURRENCY.
const atOnce = 16

// An archiver is a way of archiving.
type archiver struct {
	name    string
	command func(t *testing.T, socket string) string // archive_command
	daemon  bool
}

var archivers = []archiver{
	{"daemon", func(t *testing.T, socket string) string {
		pgtest.Build(t, "holdfast/cmd/holdfast") // lies beside it
		return pgtest.Build(t, "holdfast/cmd/holdfast-client") + " " + socket + ` wal-push "%p"`
	}, true},
	{"wal-push", func(t *testing.T, _ string) string {
		return pgtest.Build(t, "holdfast/cmd/holdfast") + ` wal-push "%p"`
	}, false},
}

// While the store is away the server goes on, and people are told once. When it is back they are told once more, all that was written is archived, and a restore has
// all of it.
func TestStoreIsDown(t *testing.T) {
	for _, a := range archivers {
		t.Run(a.name, func(t *testing.T) { storeIsDown(t, a) })
	}
}

func storeIsDown(t *testing.T, a archiver) {
	p := pgtest.Require(t, 17)
	pgbench := pgtest.Tool(t, 17, "pgbench")
	gateway := places.NewS3(t)
	people := listen(t)
	dir := pgtest.Dir(t)
	socket := filepath.Join(dir, "sock")
	place := gateway.Place(t)
	env := place.Env
	size, scale, rate := wal.SegmentSize(1<<20), "5", "300"
	if long() {
		size, scale, rate = 16<<20, "20", "400"
	} else {
		env = append(env, "S3_MAX_RETRIES=3") // which is known within a second; PostgreSQL asks again
	}
	env = append(env, "HOLDFAST_ALERT_WEBHOOK="+people.url, "HOLDFAST_STATE_DIR="+filepath.Join(dir, "state"), "WALG_UPLOAD_CONCURRENCY="+strconv.Itoa(atOnce))
	s := site.At(t, p, pgtest.Options{SegmentSize: size, Env: env, Settings: map[string]string{
		"archive_command": a.command(t, socket), "wal_keep_size": "100GB", // so that what was archived can be stored once more, to compare
		// Every page goes into the WAL again and again: that is what makes much of it.
		"checkpoint_timeout": "30s", "max_wal_size": "256MB", "autovacuum": "off", "synchronous_commit": "off",
	}}, place.Store, env...)
	s.Env = append(s.Env, "PGDATA="+s.Data)

	var d *exec.Cmd
	var log text
	if a.daemon {
		d = s.Command(t, "daemon", socket)
		d.Stdout, d.Stderr = &log, &log
		if err := d.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = d.Process.Kill() // the test ends it in order
			_ = d.Wait()
			if t.Failed() {
				t.Logf("the daemon said:\n%s", last(log.String(), 40))
			}
		})
		pgtest.Eventually(t, "the daemon answers", func() bool { return daemon.Alive(t.Context(), socket) == nil })
	}
	run(t, s, pgbench, "-i", "-q", "-s", scale)
	s.Push(t)

	load := s.Command(t)
	load.Path, load.Args = pgbench, []string{"pgbench", "-n", "-N", "-M", "prepared", "-c", "2", "-R", rate, "-T", "100000"}
	var said text
	load.Stdout, load.Stderr = &said, &said
	if err := load.Start(); err != nil {
		t.Fatal(err)
	}
	loading := true
	unload := func() {
		if loading {
			loading = false
			_ = load.Process.Signal(syscall.SIGINT) // pgbench has no way to end a run early but this
			_ = load.Wait()
		}
	}
	t.Cleanup(unload)

	// Once already, for a moment: what a backlog takes in memory is no news afterwards.
	gateway.Stop()
	heap(t, s, 4)
	gateway.Start(t)
	drained(t, s, gateway.Root(), waiting(t, s))
	tell(t, s, "OK")
	before := peak(t, d)

	gone := time.Now()
	gateway.Stop()
	heap(t, s, 4)
	pgtest.Eventually(t, "the server's log says what is wrong", func() bool {
		b, err := os.ReadFile(s.Server.LogFile())
		return err == nil && trouble.Match(b)
	})
	for left := *outage - time.Since(gone); left > 0; left = *outage - time.Since(gone) {
		tell(t, s, "CRITICAL")
		if time.Since(gone) > 3*time.Minute {
			if f := found(t, s, "disk-full"); !forecast.MatchString(f) {
				t.Errorf("the check tells nothing of when the disk is full: %q", f)
			}
		}
		time.Sleep(min(left, 30*time.Second))
	}
	tell(t, s, "CRITICAL") // however short it was
	if d != nil && long() && !forecast.MatchString(log.String()) {
		t.Error("the daemon's log tells nothing of when the disk is full")
	}
	backlog := waiting(t, s)
	if len(backlog) < 4 {
		t.Fatalf("only %d segments wait", len(backlog))
	}

	gateway.Start(t)
	back := time.Now()
	first, up, end := drained(t, s, gateway.Root(), backlog)
	tell(t, s, "OK")
	ours := float64(len(backlog)-1) / end.Sub(first).Seconds()
	theirs := putAgain(t, s, gateway, backlog)
	t.Logf("%s away; of %d segments (%d MiB) that waited the first was stored %s after it was back, the last %s after that, and PostgreSQL knew after %s: %.1f a second; "+
		"the same stored again, %d at once: %.1f a second", back.Sub(gone).Round(time.Second), len(backlog), int64(len(backlog))*int64(size)>>20, first.Sub(back).Round(10*time.Millisecond),
		up.Sub(first).Round(10*time.Millisecond), end.Sub(first).Round(10*time.Millisecond), ours, atOnce, theirs)
	if a.daemon && long() && ours < 0.8*theirs {
		t.Errorf("what had heaped up went up at %.0f %% of the rate that the store takes", 100*ours/theirs)
	}
	if d != nil {
		after := peak(t, d)
		t.Logf("the daemon's memory at most: %d MiB before the outage, %d MiB after it", before>>20, after>>20)
		if after > before+48<<20 || after > 256<<20 {
			t.Errorf("the outage has made the daemon's memory grow from %d to %d MiB", before>>20, after>>20)
		}
		pgtest.Eventually(t, "the daemon's log says that it is over", func() bool { return strings.Contains(log.String(), "WAL is being archived again") })
	}
	people.all(t, notify.Failed, notify.Recovered)

	unload()
	s.Switch(t)
	pgtest.Eventually(t, "all is archived", func() bool { return len(waiting(t, s)) == 0 })
	whole(t, s, gateway.Root(), size)
	want := content(t, s.Cluster)
	if d != nil {
		if err := d.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := d.Wait(); err != nil {
			t.Errorf("the daemon ended with %v", err)
		}
	}
	if got := content(t, s.Restored(t, "LATEST", "--target", "latest")); got != want {
		t.Errorf("restored:\n%s\nwant:\n%s", got, want)
	}
}

// trouble is how the server's log tells that archiving fails: its own words, or those of a wal-push that tries again.
var trouble = regexp.MustCompile(`archive command failed|S3: .* failed, attempt \d+ of`)

// forecast is how a backlog is told of that fills the disk.
var forecast = regexp.MustCompile(`segments wait to be archived \([^)]*\), the disk of pg_wal has .* left and is full in about \d+ (minutes|hours|days)`)

// text is what a process says, while others read it.
type text struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *text) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *text) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// last returns the last n lines of text.
func last(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// run runs a client of the server to its end.
func run(t *testing.T, s *site.Site, program string, args ...string) {
	t.Helper()
	cmd := s.Command(t)
	cmd.Path, cmd.Args = program, append([]string{program}, args...)
	if r := site.Run(t, cmd); r.Status != 0 {
		t.Fatalf("%s: exit status %d\n%s", filepath.Base(program), r.Status, r.Stderr)
	}
}

// waiting lists the segments that wait to be archived, in order.
func waiting(t *testing.T, s *site.Site) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.Data, "pg_wal/archive_status"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".ready"); ok && wal.IsSegment(name) {
			names = append(names, name)
		}
	}
	return names
}

// heap waits until n segments wait to be archived.
func heap(t *testing.T, s *site.Site, n int) {
	t.Helper()
	pgtest.Eventually(t, fmt.Sprintf("%d segments wait", n), func() bool { return len(waiting(t, s)) >= n })
}

// drained waits until all of the backlog is archived, and returns when the first and the last of it were in the store, and when PostgreSQL had heard of all.
func drained(t *testing.T, s *site.Site, root string, backlog []string) (first, up, end time.Time) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if up.IsZero() {
			there := 0
			for _, name := range stored(t, root) {
				if _, ours := slices.BinarySearch(backlog, name); ours {
					there++
				}
			}
			if there > 0 && first.IsZero() {
				first = time.Now()
			}
			if there == len(backlog) {
				up = time.Now()
			}
		}
		left := waiting(t, s)
		if !up.IsZero() && !slices.ContainsFunc(backlog, func(name string) bool { _, there := slices.BinarySearch(left, name); return there }) {
			return first, up, time.Now()
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d segments still wait", len(left), len(backlog))
		}
	}
}

// stored lists the segments in the archive below root, in order.
func stored(t *testing.T, root string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(root, "wal_005"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if name, _, _ := strings.Cut(e.Name(), "."); wal.IsSegment(name) && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// putAgain stores the segments in another place of the same store, as many at once as the archiver does, and returns how many went up in a second. It is what this
// host and this store are able to do beside the load: compressed, with nothing to ask and nobody to tell.
func putAgain(t *testing.T, s *site.Site, gateway *places.S3, names []string) float64 {
	t.Helper()
	st, err := s3.New(t.Context(), s3.Options{Bucket: "archive", Prefix: "again", Endpoint: gateway.URL, PathStyle: true, AccessKey: places.AccessKey, SecretKey: places.SecretKey})
	if err != nil {
		t.Fatal(err)
	}
	a := archive.New(st, archive.Options{})
	g, ctx := errgroup.WithContext(t.Context())
	g.SetLimit(atOnce)
	begin := time.Now()
	for _, name := range names {
		g.Go(func() error {
			_, err := a.PutWAL(ctx, name, func() (io.ReadCloser, error) { return os.Open(filepath.Join(s.Data, "pg_wal", name)) })
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	return float64(len(names)) / time.Since(begin).Seconds()
}

// peak returns how much memory a process has had at most, bytes; 0 of none.
func peak(t *testing.T, cmd *exec.Cmd) int64 {
	t.Helper()
	if cmd == nil {
		return 0
	}
	most := site.Peak(cmd.Process.Pid)
	if most == 0 {
		t.Fatalf("%s has no memory", cmd)
	}
	return most
}

// whole fails the test unless the archive has every segment that the server has finished since the backup, each as it is there.
func whole(t *testing.T, s *site.Site, root string, size wal.SegmentSize) {
	t.Helper()
	names := stored(t, root)
	_, first, err := size.ParseSegment(names[0])
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range names {
		if want := size.Name(1, first+wal.SegmentNo(i)); name != want {
			t.Fatalf("a hole: %s follows, not %s", name, want)
		}
	}
	dir := filepath.Join(s.Data, "pg_wal")
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if _, err := os.Stat(filepath.Join(dir, "archive_status", e.Name()+".done")); err == nil && wal.IsSegment(e.Name()) && !slices.Contains(names, e.Name()) {
			t.Errorf("PostgreSQL was told that %s is archived, and it is not", e.Name())
		}
	}
}

// content sums up what the tables of pgbench hold.
func content(t *testing.T, c *pgtest.Cluster) (sums string) {
	t.Helper()
	for _, table := range []string{"pgbench_accounts", "pgbench_branches", "pgbench_tellers", "pgbench_history"} {
		sums += table + ": " + c.Value(t, `select count(*) || ' rows, ' || coalesce(sum(hashtextextended(r::text, 0)::numeric), 0) from `+table+` r`) + "\n"
	}
	return sums
}

// people are told what happens, at a webhook.
type people struct {
	url string

	mu   sync.Mutex
	told []notify.Event
}

// listen starts a webhook.
func listen(t *testing.T) *people {
	t.Helper()
	p := &people{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var e notify.Event
		if err := json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(&e); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.told = append(p.told, e)
	}))
	t.Cleanup(server.Close)
	p.url = server.URL
	return p
}

// checks are those that tell of the store and of what waits for it.
const checks = "store,wal-push,ready,disk-full"

// tell runs the checks as cron does, which tell people, and compares the verdict.
func tell(t *testing.T, s *site.Site, want string) {
	t.Helper()
	r := s.Do(t, "check", "--only", checks, "--ready", ":100000", "--wal-push", ":1h", "--disk-full", ":1s")
	if !strings.HasPrefix(r.Stdout, "HOLDFAST "+want+" ") {
		t.Errorf("the check says, with exit status %d, want %s:\n%s%s", r.Status, want, r.Stdout, r.Stderr)
	}
}

// found returns what one check says.
func found(t *testing.T, s *site.Site, name string) string {
	t.Helper()
	var r struct{ Findings []struct{ Text string } }
	out := s.Do(t, "doctor", "--json", "--only", name).Stdout
	if err := json.Unmarshal([]byte(out), &r); err != nil || len(r.Findings) != 1 {
		t.Fatalf("check %s: %v\n%s", name, err, out)
	}
	return r.Findings[0].Text
}

// all fails the test unless people were told these results of the checks, and nothing else.
func (p *people) all(t *testing.T, want ...notify.Result) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	var got []notify.Result
	for _, e := range p.told {
		got = append(got, e.Result)
		if e.Job != "check --only "+checks {
			t.Errorf("people were told of %q", e.Job)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("people were told %q, want %q: %+v", got, want, p.told)
	}
}
