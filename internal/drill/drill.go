// Package drill proves a backup: it restores it into a scratch directory, starts PostgreSQL there, asks it questions, and writes down what came of that.
//
// Decide says what will be done, and refuses what this host cannot do. Run does it. The copy is private: its socket is in the scratch directory and it has no port,
// it does not archive, its logical replication does not start, and nothing of it lies outside that directory, tablespaces included. What was started is
// stopped and what was made is removed, however the drill ends; what one left that was killed, the next one removes.
//
// Of each drill that said something about the backup a record stays in the archive, whatever it said: see Record.
package drill

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	"github.com/dustin/go-humanize"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/instance"
	"holdfast/internal/pg/wal"
	"holdfast/internal/restore"
)

// Request says what to prove, and where.
type Request struct {
	Choice catalog.Choice // backup and target; the kind of target is not catalog.None
	Asked  string         // for what, in the words of who asked: LATEST, oldest, random, or a backup's name

	Dir      string   // an existing directory below which the copy is made; absolute
	Account  string   // whose processes and files the copy has when we are root; "" means postgres. Nobody else can choose
	Programs []string // where to look for PostgreSQL's programs before the usual places; may be patterns of filepath.Glob

	Program string   // the holdfast that the copy fetches its WAL with
	Config  string   // its file of settings, or ""
	Env     []string // NAME=value for it, beside this process's own

	// Before says that replay is to stop before the target, which is a time, a transaction or a position, rather than behind it.
	Before bool
	// Hollow says which files the copy has without their content: see restore.Request. It runs on PostgreSQL 13 or later then, and passes over what WAL says of pages that
	// are not there: who opens it looks at its log. nil for none.
	Hollow func(path string) bool

	// Archiving returns the archive_command of the copy in a scratch directory, for one that goes on as a primary: with an archive of its own. nil: it does not archive.
	Archiving func(scratch string) string

	StreamFrom string // connection string of a server that the copy is to stream from, without a password; "" for none
}

// Plan is what Run will do.
type Plan struct {
	Backup   string        `json:"backup"`
	Target   string        `json:"target"`
	Scratch  string        `json:"scratch"` // the directory that will be made, and removed
	Account  string        `json:"account,omitempty"`
	Programs string        `json:"programs"` // directory
	Version  string        `json:"version"`  // of these
	Restore  *restore.Plan `json:"restore"`
	Notes    []string      `json:"notes,omitempty"`

	request  Request
	programs instance.Programs
	account  *account // nil: ourselves
	wal      int64    // room that WAL takes while it is replayed, in bytes
}

// Need returns how much room the copy takes where it is made, with the WAL that it replays, in bytes.
func (p *Plan) Need() int64 {
	if len(p.Restore.Rooms) == 0 {
		return p.wal
	}
	return p.Restore.Rooms[0].Need + p.wal
}

// HostError says why a drill cannot be made on this host. It says nothing about the backup.
type HostError struct {
	Err    error
	Advice string
}

func (e *HostError) Error() string { return e.Err.Error() }
func (e *HostError) Unwrap() error { return e.Err }

// Hint says what to do about it.
func (e *HostError) Hint() string { return e.Advice }

// Names in a scratch directory. Directories belong to the account, if there is one, the rest and the scratch directory itself to us.
const (
	prefix    = "holdfast-drill-" // of its own name
	lockName  = "drill.lock"      // held as long as the drill lives
	keptName  = "kept"            // no drill removes it
	dataName  = "data"
	spaceName = "tablespaces"
	runName   = "run" // socket, log and what else belongs to the server
)

// maxSocket is how long the path of a socket may be; see instance.Start.
const maxSocket = 107 - len("/.s.PGSQL.5432")

// Decide works out a drill. Nothing is written. What this host lacks is a *HostError; other errors are of the backup.
func Decide(ctx context.Context, a *archive.Archive, r Request) (*Plan, error) {
	b := r.Choice.Backup
	if b.Sentinel == nil {
		return nil, fmt.Errorf("restore %s: %w", b.Name, b.Err)
	}
	p := &Plan{Backup: b.Name, Target: r.Choice.Target.String(), Scratch: filepath.Join(r.Dir, prefix+newID()), request: r}
	if info, err := os.Stat(r.Dir); err != nil || !info.IsDir() {
		return nil, &HostError{fmt.Errorf("make a copy below %s: %w", r.Dir, cmp.Or(err, error(fs.ErrInvalid))), "make the directory, or name another: --dir or HOLDFAST_DRILL_DIR"}
	}
	if run := filepath.Join(p.Scratch, runName); len(run) > maxSocket {
		return nil, &HostError{fmt.Errorf("make a copy below %s: the path of the socket would have %d bytes too many", r.Dir, len(run)-maxSocket),
			"name a directory with a shorter path: --dir or HOLDFAST_DRILL_DIR"}
	}
	if err := p.findAccount(); err != nil {
		return nil, err
	}
	if err := p.findPrograms(ctx, b.Sentinel.PgVersion); err != nil {
		return nil, err
	}
	request := restore.Request{
		Destination: p.data(), Choice: r.Choice, TablespaceMapping: map[string]string{}, Hollow: r.Hollow,
		Recovery: &restore.Recovery{Command: restore.Command(r.Program, r.Config), Standby: r.StreamFrom != "", Exclusive: r.Before},
	}
	if p.account != nil {
		request.Owner = p.account.Name
	}
	if r.Choice.Target.Kind != catalog.Latest {
		request.Recovery.Action = "promote"
	}
	if spec := b.Sentinel.Spec; spec != nil {
		for _, t := range spec.Tablespaces {
			request.TablespaceMapping[t.OID] = filepath.Join(p.Scratch, spaceName, t.OID)
		}
	}
	switch body, err := a.OpenConfig(ctx, b.Name); {
	case err == nil:
		request.ConfigIntoData = true
		if err := body.Close(); err != nil {
			return nil, fmt.Errorf("read the configuration beside %s: %w", b.Name, err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	var err error
	if p.Restore, err = restore.Decide(ctx, a, request); err != nil {
		var refused *restore.RefusedError
		if errors.As(err, &refused) {
			return nil, &HostError{err, refused.Advice}
		}
		return nil, err
	}
	return p, p.checkRoom()
}

func (p *Plan) data() string { return filepath.Join(p.Scratch, dataName) }
func (p *Plan) run() string  { return filepath.Join(p.Scratch, runName) }

// account is who the copy belongs to.
type account struct {
	Name     string
	uid, gid int
	groups   []uint32 // all that it is in
}

// findAccount says who the copy belongs to.
func (p *Plan) findAccount() error {
	name := p.request.Account
	if os.Geteuid() != 0 {
		if me, err := user.Current(); name != "" && (err != nil || me.Username != name) {
			return &HostError{fmt.Errorf("only root can make a copy as another account, %s", name), "leave --user and HOLDFAST_DRILL_USER away, or run it as root"}
		}
		return nil
	}
	u, err := user.Lookup(cmp.Or(name, "postgres"))
	if err != nil {
		return &HostError{fmt.Errorf("PostgreSQL does not run as root: %w", err), "name another account for it: --user or HOLDFAST_DRILL_USER"}
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err1 != nil || err2 != nil || uid == 0 {
		return &HostError{fmt.Errorf("PostgreSQL does not run as %s, whose number is %s", u.Username, u.Uid), "name another account for it: --user or HOLDFAST_DRILL_USER"}
	}
	groups, err := u.GroupIds()
	if err != nil {
		return &HostError{fmt.Errorf("the groups of %s, as which PostgreSQL runs: %w", u.Username, err), "name another account for it: --user or HOLDFAST_DRILL_USER"}
	}
	p.account, p.Account = &account{Name: u.Username, uid: uid, gid: gid}, u.Username
	for _, g := range groups {
		if n, err := strconv.ParseUint(g, 10, 32); err == nil {
			p.account.groups = append(p.account.groups, uint32(n))
		}
	}
	return nil
}

// findPrograms finds the server programs for a backup of that server_version_num.
func (p *Plan) findPrograms(ctx context.Context, version int) (err error) {
	major := version / 10000
	if p.programs, err = instance.Find(ctx, major, p.request.Programs...); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return &HostError{err, toInstall(major, readOSRelease()) + "; where it is in no usual place name its directory: HOLDFAST_PG_BIN"}
	}
	p.Programs, p.Version = p.programs.Dir, p.programs.Version
	if minor, ok := minorOf(p.programs); ok && minor < version%10000 {
		p.note("the backup is of PostgreSQL %d.%d, and the copy runs on the older %s", major, version%10000, p.Version)
	}
	return nil
}

// minorOf returns the 18 of 15.18.
func minorOf(p instance.Programs) (minor int, ok bool) {
	var major int
	_, err := fmt.Sscanf(p.Version, "%d.%d", &major, &minor)
	return minor, err == nil
}

func (p *Plan) note(format string, args ...any) {
	p.Notes = append(p.Notes, fmt.Sprintf(format, args...))
}

// maxWAL is how much WAL the copy keeps at once, at most, but for what is fetched ahead, which is as much: its max_wal_size, which is never below four segments.
func maxWAL(size wal.SegmentSize) int64 { return max(1<<30, 4*int64(size)) }

// checkRoom refuses where the WAL that is to be replayed does not fit beside the data.
func (p *Plan) checkRoom() error {
	b := p.request.Choice.Backup
	size, err := b.SegmentSize()
	start, ok := b.StartLSN()
	if err != nil || !ok || p.Restore.LastWAL == "" || len(p.Restore.Rooms) == 0 {
		return nil // an offline backup, or a very old one
	}
	_, last, err := size.ParseSegment(p.Restore.LastWAL)
	if err != nil {
		return err
	}
	replay := int64(size.Start(last+1) - min(start, size.Start(last)))
	if p.request.Choice.Target.Kind == catalog.Immediate {
		replay = int64(size)
	}
	room := p.Restore.Rooms[0]
	p.wal = min(replay, 2*maxWAL(size))
	if h := p.Restore.Hollowed; h != nil { // WAL has pages of these files whole, and they take room then
		p.wal += min(replay, h.Bytes)
	}
	if need := p.Need(); need > room.Free {
		return &HostError{fmt.Errorf("%s has %s free, the copy and the WAL that it replays need %s", p.request.Dir, humanize.IBytes(uint64(room.Free)), humanize.IBytes(uint64(need))),
			"free some space, or name a directory on another file system: --dir or HOLDFAST_DRILL_DIR"}
	}
	return nil
}
