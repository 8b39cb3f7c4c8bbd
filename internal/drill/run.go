package drill

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/control"
	"holdfast/internal/pg/instance"
	"holdfast/internal/pg/wal"
	"holdfast/internal/restore"
	"holdfast/internal/walfetch"
)

// Options tunes Run. The zero value is ready to use.
type Options struct {
	Release string             // of the program, for the record
	Key     ed25519.PrivateKey // signs the record; nil does not

	Roles     []string      // the first of these that is a superuser is whom to connect as; none means postgres and the accounts
	Databases []string      // where to ask if there is no postgres and no template1
	Workers   int           // of the restore; 0 means restore.Workers()
	Memory    int64         // that PostgreSQL gets, in bytes; 0 means 512 MiB
	Nice      int           // for the processor, from 0 to 19
	Budget    time.Duration // how long indexes and tables are checked at most, and then pages again; 0 checks all
	MaxRTO    time.Duration // how long it may take until the copy takes writes; 0 is no limit
	MaxRPO    time.Duration // how old what was lost may be; 0 is no limit
	Heartbeat string        // statement that returns when the source last wrote its sign of life, a timestamptz, with a database and a colon before it; "" for none
	Beat      string        // database with the table holdfast.heartbeat (server.Conn.Heartbeat), which is read where Heartbeat is ""; "" for none
	Questions []Question
	Dump      bool // read every row of every table
	Keep      bool // leave the copy running

	Read     func() int64 // how many bytes were read of the archive so far; nil: that is not known
	Progress *Progress
	Logger   *slog.Logger // nil discards
}

// Progress is where a drill is. Run keeps it up to date; others read it at any time.
type Progress struct {
	phase       atomic.Pointer[string]
	restore     atomic.Pointer[restore.Progress]
	done, total atomic.Int64
}

// Phase says what is being done, in a word.
func (p *Progress) Phase() string {
	if s := p.phase.Load(); s != nil {
		return *s
	}
	return ""
}

// Bytes returns how many bytes of the phase are done and how many there are: of the backup while it is restored, of WAL while that is replayed, of files while their
// pages are checked.
func (p *Progress) Bytes() (done, total int64) {
	if r := p.restore.Load(); r != nil {
		return r.Bytes()
	}
	return p.done.Load(), p.total.Load()
}

func (p *Progress) enter(phase string, total int64) {
	p.restore.Store(nil)
	p.done.Store(0)
	p.total.Store(total)
	p.phase.Store(&phase)
}

// Copy is a copy that was kept, and how to reach it.
type Copy struct {
	Scratch string `json:"scratch"`
	Data    string `json:"data"`
	Socket  string `json:"socket"`
	Port    int    `json:"port"`
	Role    string `json:"role"`
	Pid     int    `json:"pid"`
}

// drill is one at work.
type drill struct {
	Options
	archive   *archive.Archive
	plan      *Plan
	record    *Record
	control   control.Data
	server    instance.Options
	instance  *instance.Instance // nil while there is none
	libraries []string
	facts     *facts
	segment   int64 // bytes of WAL in one file, for the progress
	begun     time.Time
	copying   time.Time // when the restore itself began
	done      bool      // it came to its end, whatever that was, in time
	role      string
	host      *HostError // why a check could not be made, the first reason
	home      string     // database in which that is asked which is of no database
	databases []string
	marked    string // what retention is told of the restore; "" for nothing
	fleeting  bool   // what becomes of the copy when the host goes down is nobody's business: nothing waits for the disk

	mu sync.Mutex // guards record.Notes and record.Checks
}

// Run makes a drill. What it has found is in the record, which is in the archive too unless the drill found out nothing about the backup: then it is nil, as where
// the host cannot do it (*HostError) or ctx was cancelled. A backup that did not prove itself is a *FailedError. A deadline of ctx is one that the drill has to keep. The
// copy is nil unless it was to be kept.
func Run(ctx context.Context, a *archive.Archive, r Request, o Options) (*Record, *Copy, error) {
	o.Progress = cmp.Or(o.Progress, &Progress{})
	o.Logger = cmp.Or(o.Logger, slog.New(slog.DiscardHandler))
	d := &drill{Options: o, archive: a, facts: &facts{}, begun: time.Now()}
	b := r.Choice.Backup
	d.record = &Record{Started: d.begun.UTC().Truncate(time.Millisecond), Asked: r.Asked, Target: r.Choice.Target.String(), Backup: b.Name, Finished: b.Created().UTC(),
		Seconds: map[string]float64{}}
	if b.Sentinel != nil {
		d.record.PgVersion, d.record.Sentinel = b.Sentinel.PgVersion, b.Sentinel.Sum
		if id := b.Sentinel.SystemIdentifier; id != nil {
			d.record.System = *id
		}
	}
	for _, link := range r.Choice.Chain {
		if len(r.Choice.Chain) > 1 {
			d.record.Chain = append(d.record.Chain, link.Name)
		}
	}
	copy, err := d.run(ctx, r)
	var host *HostError
	switch {
	case errors.As(err, &host):
		return nil, nil, err
	case d.done: // whatever came of ctx while it was cleaned up
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		err = &FailedError{ReasonLate, fmt.Errorf("the drill was not done in time, after %s: %w", time.Since(d.begun).Round(time.Second), cmp.Or(err, context.Cause(ctx)))}
	case ctx.Err() != nil:
		return nil, nil, cmp.Or(err, context.Cause(ctx))
	}
	err = d.judge(err)
	d.record.Seconds["total"] = time.Since(d.begun).Seconds()
	d.record.RecordHead = archive.NewRecordHead("", o.Release)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	name, errStore := d.record.store(ctx, a, o.Key)
	if errStore != nil {
		err = errors.Join(err, fmt.Errorf("the record of the drill is not in the archive: %w", errStore))
	} else {
		o.Logger.Debug("the record of the drill is " + name)
	}
	return d.record, copy, err
}

// patience is how long clean-up, and storing the record, may take.
const patience = time.Minute

// judge says in the record what came of the drill, and returns that as an error where it is a failure.
func (d *drill) judge(err error) error {
	r := d.record
	if err == nil {
		var bad []string
		for _, c := range r.Checks {
			if c.Result == Failed {
				bad = append(bad, c.Name+": "+c.Text)
			}
		}
		if len(bad) > 0 {
			err = &FailedError{ReasonCheck, errors.New(strings.Join(bad, "; "))}
		}
	}
	r.OK = err == nil
	if err == nil {
		return nil
	}
	var failed *FailedError
	if !errors.As(err, &failed) {
		failed = &FailedError{ReasonFetch, err}
		err = failed
	}
	r.Reason, r.Error = failed.Reason, truncate(err.Error(), maxError)
	return fmt.Errorf("%s did not prove itself: %w", r.Backup, err)
}

// maxError bounds what a record quotes of an error, in bytes.
const maxError = 4 << 10

func truncate(text string, n int) string {
	if len(text) > n {
		text = strings.ToValidUTF8(text[:n], "") + "…"
	}
	return text
}

// failed says why a backup did not prove itself, unless it is that the drill was ended.
func (d *drill) failed(ctx context.Context, reason Reason, err error) error {
	if ctx.Err() != nil {
		return err
	}
	return &FailedError{reason, err}
}

func (d *drill) note(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.record.Notes = append(d.record.Notes, fmt.Sprintf(format, args...))
}

// checked enters the result of a check.
func (d *drill) checked(c Check) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c.Text = truncate(strings.ToValidUTF8(c.Text, "?"), maxError)
	d.record.Checks = append(d.record.Checks, c)
}

// run does all that leaves something behind, and removes that.
func (d *drill) run(ctx context.Context, r Request) (_ *Copy, err error) {
	s, err := d.prepare(ctx, r)
	if err != nil {
		return nil, err
	}
	err = d.barred(d.prove(ctx))
	d.done = err == nil || ctx.Err() == nil
	if d.Keep && ctx.Err() == nil && d.instance != nil && !errors.As(err, new(*HostError)) { // with which Run returns no copy
		if errKeep := s.keep(); errKeep == nil {
			return d.kept(), err
		} else {
			err = errors.Join(err, errKeep)
		}
	}
	return nil, errors.Join(err, d.cleanUp(ctx, s))
}

// prepare makes the directory of the copy, as d.plan has it where there is one.
func (d *drill) prepare(ctx context.Context, r Request) (*scratch, error) {
	if d.Nice > 0 {
		beNice(d.Nice)
	}
	if d.plan == nil {
		Clear(ctx, d.archive, r.Dir, d.Logger)
	}
	d.copying = time.Now()
	d.Progress.enter("plan", 0)
	if d.plan == nil {
		var err error
		if d.plan, err = Decide(ctx, d.archive, r); err != nil {
			return nil, err
		}
	}
	d.record.PostgreSQL = d.plan.Version
	for _, n := range d.plan.Notes {
		d.note("%s", n)
	}
	s, err := makeScratch(d.plan)
	if err != nil {
		return nil, &HostError{fmt.Errorf("make a directory for the copy: %w", err), "name a directory that may be written to: --dir or HOLDFAST_DRILL_DIR"}
	}
	return s, nil
}

// kept says how to reach the copy that is left.
func (d *drill) kept() *Copy {
	return &Copy{Scratch: d.plan.Scratch, Data: d.plan.data(), Socket: d.instance.Host(), Port: d.instance.Port(), Role: d.role, Pid: d.instance.Pid()}
}

// cleanUp leaves nothing behind.
func (d *drill) cleanUp(ctx context.Context, s *scratch) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	if d.instance != nil {
		d.instance.Kill()
	}
	var errs []error
	if err := s.remove(); err != nil {
		errs = append(errs, fmt.Errorf("the copy is not all removed: %w", err))
	}
	if d.marked != "" {
		errs = append(errs, d.archive.UnmarkRestore(ctx, d.marked))
	}
	if err := errors.Join(errs...); err != nil {
		d.note("%v", err)
		d.Logger.Warn(err.Error())
	}
	return nil // it is no fault of the backup's
}

// prove restores, starts and asks.
func (d *drill) prove(ctx context.Context) error {
	if err := d.bring(ctx); err != nil {
		return err
	}
	begun := time.Now()
	defer func() { d.record.Seconds["checks"] = time.Since(begun).Seconds() }()
	return d.ask(ctx)
}

// bring restores and starts.
func (d *drill) bring(ctx context.Context) error {
	if err := d.tryFetch(ctx); err != nil {
		return err
	}
	if err := d.fetch(ctx); err != nil {
		return err
	}
	begun := time.Now()
	d.Progress.enter("replay", d.walBytes())
	var f *feed
	if d.fleeting {
		var err error
		if f, err = d.feed(ctx); err != nil {
			return err
		}
		defer f.end()
	}
	err := d.configure(ctx)
	if err == nil {
		f.use(d.server.Settings)
		err = d.start(ctx)
	}
	d.record.Seconds["replay"] = time.Since(begun).Seconds()
	if err != nil {
		return err
	}
	d.record.RTO = time.Since(d.copying).Seconds()
	return nil
}

// tryFetch sees, where that is another account than ours, whether PostgreSQL will be able to fetch WAL. This may fail for what has nothing to do with the backup.
func (d *drill) tryFetch(ctx context.Context) error {
	a := d.plan.account
	if a == nil || d.plan.Restore.FirstWAL == "" {
		return nil
	}
	args := []string{"wal-fetch", d.plan.Restore.FirstWAL, d.plan.run() + "/first"}
	if c := d.plan.request.Config; c != "" {
		args = append([]string{"--config", c}, args...)
	}
	cmd := exec.CommandContext(ctx, d.plan.request.Program, args...)
	cmd.Dir = d.plan.run()
	cmd.Env = append(slices.Concat(os.Environ(), d.plan.request.Env), "WALG_DOWNLOAD_CONCURRENCY=1", "HOME=/", "USER="+a.Name)
	cmd.Env = instance.Leave(append(cmd.Env, d.plan.marks()...), withheld)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid), Groups: a.groups}}
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if refused := d.plan.refused(); refused != nil {
		return refused
	}
	if err != nil {
		if own := d.readFirst(ctx); own != nil { // then it is not the account
			return d.failed(ctx, ReasonFetch, own)
		}
		text := strings.TrimSpace(truncate(string(out), maxError))
		return &HostError{fmt.Errorf("the account %s, as which PostgreSQL runs, cannot fetch WAL: %w: %s", a.Name, err, text),
			"let it read the settings, the keys and the archive, and run " + d.plan.request.Program + "; or make the drill as that account"}
	}
	return os.Remove(d.plan.run() + "/first")
}

// readFirst fetches the first segment that is needed ourselves.
func (d *drill) readFirst(ctx context.Context) error {
	dest := filepath.Join(d.plan.Scratch, "first")
	open := func(context.Context) (walfetch.Archive, error) { return d.archive, nil }
	if _, err := walfetch.Fetch(ctx, open, d.plan.Restore.FirstWAL, dest, walfetch.Options{}); err != nil {
		return err
	}
	return os.Remove(dest)
}

// ofHost returns what an error says that this host lacks, nil where it says nothing of that kind.
func ofHost(err error) *HostError {
	var host *HostError
	var pg *pgconn.PgError
	switch {
	case errors.As(err, &host):
		return host
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), hasCode(err, "53100"), // disk_full
		errors.As(err, &pg) && strings.HasSuffix(pg.Message, "Disk quota exceeded"): // of which PostgreSQL makes an internal error
		return &HostError{err, noRoom}
	}
	return nil
}

// barred makes of an error, and of checks of which none failed and some could not be made, what this host lacks, where that is why.
func (d *drill) barred(err error) error {
	if host := ofHost(err); host != nil {
		return &HostError{err, host.Advice}
	}
	if err == nil && d.host != nil && !slices.ContainsFunc(d.record.Checks, func(c Check) bool { return c.Result == Failed }) {
		return d.host
	}
	return err
}

// noRoom advises where there is too little.
const noRoom = "free some space, or name a directory on another file system: --dir or HOLDFAST_DRILL_DIR"

// read returns how many bytes were read of the archive.
func (d *drill) read() int64 {
	if d.Read == nil {
		return 0
	}
	return d.Read()
}

// fetch restores the backup.
func (d *drill) fetch(ctx context.Context) error {
	begun := time.Now()
	read := d.read()
	p := &restore.Progress{}
	d.Progress.enter("fetch", 0)
	d.Progress.restore.Store(p)
	mark := archive.NewRestoreID()
	if err := os.WriteFile(filepath.Join(d.plan.Scratch, markedName), []byte(mark), 0o600); err != nil {
		return err
	}
	report, err := restore.Run(ctx, d.archive, d.plan.Restore, restore.Options{Workers: d.Workers, Progress: p, Announce: d.Release, Mark: mark})
	took := time.Since(begun).Seconds()
	d.record.Seconds["fetch"] = took
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return &HostError{err, noRoom}
	}
	if err != nil {
		return d.failed(ctx, ReasonFetch, err)
	}
	d.marked = report.Mark
	d.record.Fetched = Fetched{Files: report.Files, Bytes: report.Bytes, Stored: d.plan.Restore.Stored, Read: d.read() - read, Rate: float64(report.Bytes) / took, Verified: report.Verified}
	if report.BadPages > 0 {
		d.note("%d pages have a checksum that does not hold", report.BadPages)
	}
	return nil
}

// walBytes is how much WAL there is to replay, about.
func (d *drill) walBytes() int64 {
	p := d.plan.Restore
	size, err := d.plan.request.Choice.Backup.SegmentSize()
	if err != nil || p.FirstWAL == "" {
		return 0
	}
	d.segment = int64(size)
	last := p.LastWAL
	if d.plan.request.Choice.Target.Kind == catalog.Immediate {
		last = p.NeededWAL
	}
	_, from, err1 := size.ParseSegment(p.FirstWAL)
	_, to, err2 := size.ParseSegment(last)
	if err1 != nil || err2 != nil || to < from {
		return 0
	}
	if t := d.plan.request.Choice.Target; t.Kind == catalog.AtLSN {
		to = max(from, min(to, size.Segment(t.LSN)))
	}
	return int64(to-from+1) * int64(size)
}

// replaying notes how many files of WAL were brought.
func (d *drill) replaying(files int) {
	if d.segment > 0 {
		d.Progress.done.Store(min(int64(files)*d.segment, d.Progress.total.Load()))
	}
}

// Summary says in a line what a drill came to.
func (r *Record) Summary() string {
	var b strings.Builder
	if r.OK {
		fmt.Fprintf(&b, "%s is proven", r.Backup)
	} else {
		fmt.Fprintf(&b, "%s is NOT proven (%s)", r.Backup, r.Reason)
	}
	if r.RTO > 0 {
		fmt.Fprintf(&b, ": RTO %s", round(r.RTO))
	}
	if r.RPO != nil {
		fmt.Fprintf(&b, ", RPO %s", round(*r.RPO))
	}
	if r.Fetched.Bytes > 0 {
		fmt.Fprintf(&b, "; %s restored in %s", humanize.IBytes(uint64(r.Fetched.Bytes)), round(r.Seconds["fetch"]))
	}
	if r.Replay != nil {
		fmt.Fprintf(&b, ", %s of WAL replayed in %s", humanize.IBytes(uint64(max(0, r.Replay.Bytes))), round(r.Seconds["replay"]))
	}
	count := map[Result]int{}
	for _, c := range r.Checks {
		count[c.Result]++
	}
	var parts []string
	for _, result := range slices.Sorted(maps.Keys(count)) {
		parts = append(parts, fmt.Sprintf("%d %s", count[result], result))
	}
	if len(parts) > 0 {
		b.WriteString("; checks: " + strings.Join(parts, ", "))
	}
	return b.String()
}

// round prints seconds as people read them.
func round(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	if d < 10*time.Second {
		return d.Round(10 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// lsnOf reads a position that the server printed; 0 where it printed none.
func lsnOf(text string) wal.LSN {
	l, err := wal.ParseLSN(text)
	if err != nil {
		return 0
	}
	return l
}
