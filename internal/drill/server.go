package drill

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/catalog"
	"holdfast/internal/pg/control"
	"holdfast/internal/pg/instance"
	"holdfast/internal/pg/wal"
)

// actors are libraries that do something by themselves once they are loaded, such as running jobs or joining other servers. A copy must not.
var actors = []string{"babelfishpg_tds", "bdr", "citus", "multimaster", "pg_cron", "pg_failover_slots", "pg_net", "pg_partman_bgw", "pg_squeeze", "pg_task", "pg_tle_bgw", "pgactive",
	"pgautofailover", "pglogical", "pgpro_scheduler", "powa", "repmgr", "repmgr_funcs", "spock", "vectorize"}

// settings are those of the copy that keep it to itself: they win over any configuration. Paths are all in the scratch directory, which those of the backup are not.
func (d *drill) settings(c *control.Data) map[string]string {
	memory := cmp.Or(d.Memory, defaultMemory)
	size := int64(c.SegmentSize)
	s := map[string]string{
		"data_directory": d.plan.data(), "external_pid_file": filepath.Join(d.plan.run(), "postgres.pid"),
		"hba_file": filepath.Join(d.plan.run(), "pg_hba.conf"), "ident_file": filepath.Join(d.plan.run(), "pg_ident.conf"),
		"unix_socket_permissions": "0700", "unix_socket_group": "", "ssl": "off", "bonjour": "off",

		// Nothing leaves the copy, nothing waits for others, and nothing works in it by itself.
		"archive_mode": "off", "synchronous_standby_names": "", "max_logical_replication_workers": "0", "autovacuum": "off", "restart_after_crash": "off",
		"session_preload_libraries": "", "local_preload_libraries": "",

		// What is judged by the log is in it, in the words that are expected.
		"log_min_messages": "warning", "log_line_prefix": "%m [%p] ", "log_timezone": "UTC", "lc_messages": "C", "log_error_verbosity": "default",
		"log_statement": "none", "log_min_duration_statement": "-1", "log_min_error_statement": "panic", "log_connections": "off", "log_disconnections": "off",

		"huge_pages": "off", "max_wal_size": kilobytes(maxWAL(c.SegmentSize)), "min_wal_size": kilobytes(max(2*size, 80<<20)),
		"work_mem": kilobytes(max(memory/64, 1<<20)), "maintenance_work_mem": kilobytes(max(memory/8, 1<<20)), "max_parallel_workers_per_gather": "0",
		"hot_standby": "off", // so that no setting of the source's has to be matched
	}
	if c.Major >= 11 {
		s["jit"] = "off"
	}
	if c.Major >= 13 {
		s["hash_mem_multiplier"] = "1"
	}
	if archiving := d.plan.request.Archiving; archiving != nil {
		s["archive_mode"], s["archive_command"], s["archive_library"], s["wal_level"] = "on", archiving(d.plan.Scratch), "", "replica"
		if c.Major < 15 {
			delete(s, "archive_library")
		}
	}
	if d.plan.request.Hollow != nil {
		s["ignore_invalid_pages"] = "on"
	}
	if d.fleeting {
		s["fsync"], s["synchronous_commit"] = "off", "off"
	}
	if c.Major >= 15 {
		s["allow_in_place_tablespaces"] = "on" // or it does not start where there is one
	}
	if c.Major < 15 {
		s["stats_temp_directory"] = "pg_stat_tmp" // elsewhere it may be a live server's
	}
	return s
}

// defaultMemory is how much memory PostgreSQL is given, in bytes: half of it for shared buffers.
const defaultMemory = 512 << 20

func kilobytes(n int64) string { return strconv.FormatInt(n>>10, 10) + "kB" }

// configure settles how the copy is started: by the backup's configuration, or one of our own where it has none.
func (d *drill) configure(ctx context.Context) error {
	data, err := os.OpenRoot(d.plan.data())
	if err != nil {
		return err
	}
	defer data.Close() // what is written is closed by itself
	const conf = "postgresql.conf"
	if _, err := data.Lstat(conf); errors.Is(err, fs.ErrNotExist) {
		if err := d.write(data, conf, "# Made by holdfast drill: the backup has no configuration.\n"); err != nil {
			return err
		}
		d.note("the backup has no configuration: the copy runs on PostgreSQL's defaults")
	} else if err != nil {
		return err
	}
	c, _, err := control.Read(filepath.Join(d.plan.data(), control.Name))
	if err != nil {
		return err
	}
	d.control = c
	d.server = instance.Options{
		Programs: d.plan.programs, DataDir: d.plan.data(), SocketDir: d.plan.run(), Settings: d.settings(&c), LogFile: d.log(), User: d.plan.Account, Detached: d.Keep, Without: withheld,
		Env: append(slices.Clone(d.plan.request.Env), d.plan.marks()...),
	}
	demands := map[string]int{"max_connections": c.Demands.MaxConnections, "max_worker_processes": c.Demands.MaxWorkerProcesses,
		"max_wal_senders": c.Demands.MaxWALSenders, "max_prepared_transactions": c.Demands.MaxPreparedTransactions, "max_locks_per_transaction": c.Demands.MaxLocksPerTransaction}
	if d.plan.request.StreamFrom == "" { // then nothing has to be as at the source, and no library gets a process of its own, known for one or not
		d.server.Settings["max_worker_processes"] = "0"
		delete(demands, "max_worker_processes")
	}
	was, err := d.configured(ctx, slices.Sorted(maps.Keys(demands))...)
	if err != nil {
		return err
	}
	half := cmp.Or(d.Memory, defaultMemory) / 2
	if n, err := strconv.ParseInt(was[buffersName], 10, 64); err != nil || n > half/int64(c.BlockSize) { // it is a number of blocks
		d.server.Settings[buffersName] = kilobytes(half)
	}
	for name, demand := range demands {
		if n, err := strconv.Atoi(was[name]); err == nil && n < demand {
			d.server.Settings[name] = strconv.Itoa(demand)
		}
	}
	libraries := was[librariesName]
	d.setLibraries(slices.DeleteFunc(splitLibraries(libraries), func(l string) bool {
		acts := slices.Contains(actors, libraryName(l))
		if acts {
			d.note("%s is not loaded: it does things by itself", l)
		}
		return acts
	}))
	if d.plan.request.StreamFrom != "" {
		return d.standBy(data)
	}
	return nil
}

// withheld are variables that the copy's processes do not get: who can be in its account shall not sign records.
var withheld = []string{"HOLDFAST_PROOF_KEY", "HOLDFAST_PROOF_KEY_FILE"}

// write makes a file that belongs to the copy. Whatever is in its directory, none outside of that is written.
func (d *drill) write(data *os.Root, name, text string) error {
	f, err := data.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if a := d.plan.account; a != nil && err == nil {
		err = f.Chown(a.uid, a.gid)
	}
	return errors.Join(err, f.Close())
}

// Settings that decide how the copy is started, whatever it demands.
const (
	buffersName   = "shared_buffers"
	librariesName = "shared_preload_libraries"
)

// ErrConfiguration is in the error of a backup whose configuration PostgreSQL does not even read.
var ErrConfiguration = errors.New("PostgreSQL cannot use the backup's configuration")

// unknownLocale matches why a configuration is refused that names a locale. What the command line says of the parameter makes no difference: PostgreSQL looks at both.
var unknownLocale = regexp.MustCompile(`invalid value for parameter "lc_(?:messages|monetary|numeric|time)": "([^"]*)"`)

// noLocale advises where a locale is missing.
const noLocale = "install that locale here, by the operating system's locale-gen or language packages (`locale -a` lists those that are there), and make the drill again"

// configured asks what the copy's configuration says of these settings, and of buffersName and librariesName.
func (d *drill) configured(ctx context.Context, names ...string) (map[string]string, error) {
	names = append(names, buffersName, librariesName)
	values := make([]string, len(names))
	g, asking := errgroup.WithContext(ctx) // each starts the program
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, name := range names {
		g.Go(func() (err error) {
			values[i], err = instance.Configured(asking, d.server, name)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		if m := unknownLocale.FindStringSubmatch(err.Error()); m != nil {
			return nil, &HostError{fmt.Errorf("this host does not have the locale %s that the backup's configuration names: %w", m[1], err), noLocale}
		}
		return nil, d.failed(ctx, ReasonStart, fmt.Errorf("%w: %w", ErrConfiguration, err))
	}
	all := map[string]string{}
	for i, name := range names {
		all[name] = values[i]
	}
	return all, nil
}

// splitLibraries reads a list of libraries as PostgreSQL does (SplitDirectoriesString): with commas between them, perhaps in quotation marks.
func splitLibraries(text string) (all []string) {
	for one := range strings.SplitSeq(text, ",") {
		if one = strings.Trim(strings.TrimSpace(one), `"`); one != "" {
			all = append(all, one)
		}
	}
	return all
}

// libraryName is a library without directory and extension.
func libraryName(l string) string { return strings.TrimSuffix(path.Base(l), ".so") }

// setLibraries says which libraries the copy loads.
func (d *drill) setLibraries(all []string) {
	d.libraries = all
	d.server.Settings[librariesName] = strings.Join(all, ",")
	delete(d.server.Settings, "timescaledb.max_background_workers")
	if slices.ContainsFunc(all, func(l string) bool { return libraryName(l) == "timescaledb" }) {
		d.server.Settings["timescaledb.max_background_workers"] = "0" // or it would run its jobs
	}
}

// standBy makes the copy a standby of the server that it is to stream from, by a relay.
func (d *drill) standBy(data *os.Root) error {
	from := fmt.Sprintf("host='%s' port=%d user=holdfast sslmode=disable", strings.NewReplacer("'", `\'`, `\`, `\\`).Replace(d.plan.Scratch), relayPort)
	if d.control.Major >= 12 {
		d.server.Settings["primary_conninfo"], d.server.Settings["primary_slot_name"] = from, ""
		d.server.Settings["recovery_min_apply_delay"] = "0" // before 12 it is in recovery.conf, which is ours
	} else {
		const name = "recovery.conf"
		was, err := data.ReadFile(name)
		if err != nil {
			return err
		}
		if err := d.write(data, name, string(was)+"primary_conninfo = '"+strings.NewReplacer("'", "''", `\`, `\\`).Replace(from)+"'\n"); err != nil {
			return err
		}
	}
	d.server.Settings["hot_standby"] = "on" // or it would let nobody in before it is promoted
	d.server.Settings["max_standby_archive_delay"], d.server.Settings["hot_standby_feedback"] = "0", "off"
	return nil
}

// log is where the server's output goes: a directory in which its account can change nothing.
func (d *drill) log() string { return filepath.Join(d.plan.Scratch, "postgres.log") }

// lacking matches the reason why a library cannot be loaded.
var lacking = regexp.MustCompile(`FATAL:  could not (?:access file|load library) "([^"]+)"`)

// start starts the copy and waits until it has replayed what it is to replay. Libraries that are not on this host are left away.
func (d *drill) start(ctx context.Context) error {
	if to := d.plan.request.StreamFrom; to != "" {
		from, _ := d.plan.request.Choice.Backup.StartLSN() // 0 where the backup does not say
		r, err := newRelay(ctx, d.plan.Scratch, to, d.plan.account, watch{run: d.plan.run(), from: from, page: wal.LSN(d.control.WALBlockSize), segment: d.control.SegmentSize})
		if err != nil {
			return &HostError{fmt.Errorf("let the copy stream: %w", err), "see --stream-from"}
		}
		defer func() {
			r.close()
			var space *TablespaceError
			if errors.As(r.stopped(), &space) {
				d.note("the stream ended where the server creates a tablespace at %s, which a replay here would write into", space.Path)
			}
		}()
	}
	for {
		d.facts = &facts{}
		stop := d.follow()
		i, err := instance.Start(ctx, d.server)
		if err == nil {
			d.instance = i
			err = d.replayed(ctx)
		}
		stop()
		if refused := d.plan.refused(); refused != nil && ctx.Err() == nil {
			return refused
		}
		if err == nil || ctx.Err() != nil {
			return err
		}
		m := lacking.FindStringSubmatch(err.Error())
		if m == nil {
			err = d.explain(err)
			if strings.Contains(strings.ToLower(err.Error()), "no space left on device") {
				return &HostError{err, noRoom}
			}
			reason := ReasonReplay
			if !d.facts.get().begun {
				reason = ReasonStart
			}
			return d.failed(ctx, reason, err)
		}
		kept := slices.DeleteFunc(slices.Clone(d.libraries), func(l string) bool { return libraryName(l) == libraryName(m[1]) })
		if len(kept) == len(d.libraries) {
			return d.failed(ctx, ReasonStart, err)
		}
		d.note("%s is not loaded: this host does not have it", libraryName(m[1]))
		d.setLibraries(kept)
		if err := os.Truncate(d.log(), 0); err != nil {
			return err
		}
	}
}

// replayed waits until recovery has ended. A standby does not end it by itself.
func (d *drill) replayed(ctx context.Context) error {
	if d.plan.request.StreamFrom == "" {
		return d.instance.AwaitRecovery(ctx)
	}
	begun := time.Now()
	if err := d.awaitStream(ctx); err != nil {
		d.checked(Check{Name: "streaming", Result: Failed, Text: err.Error(), Seconds: time.Since(begun).Seconds()})
		if ctx.Err() != nil {
			return err
		}
	} else {
		d.checked(Check{Name: "streaming", Result: Passed, Text: "it streams from the server: " + d.facts.get().streaming, Seconds: time.Since(begun).Seconds()})
	}
	return d.instance.Promote(ctx)
}

// streamPatience is how long a standby may do nothing before it streams.
const streamPatience = 30 * time.Second

// awaitStream waits until the copy streams.
func (d *drill) awaitStream(ctx context.Context) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	restored, since := -1, time.Now()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
		f := d.facts.get()
		switch {
		case f.streaming != "":
			return nil
		case f.restored != restored:
			restored, since = f.restored, time.Now()
		case time.Since(since) > streamPatience:
			return fmt.Errorf("it does not stream: %s", cmp.Or(f.refused, "the server said nothing"))
		}
	}
}

// explain adds to why a server did not come up what its log says of it.
func (d *drill) explain(err error) error {
	if f := d.facts.get(); f.problem != "" && !strings.Contains(err.Error(), f.problem) {
		return fmt.Errorf("%w\n%s", err, f.problem)
	}
	return err
}

// target reports whether recovery was to stop before the end of the WAL.
func (d *drill) target() bool { return d.plan.request.Choice.Target.Kind != catalog.Latest }
