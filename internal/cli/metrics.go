package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"holdfast/internal/archive"
	"holdfast/internal/config"
	"holdfast/internal/daemon"
	"holdfast/internal/describe"
	"holdfast/internal/metrics"
	"holdfast/internal/pg/server"
	"holdfast/internal/ribbon"
	"holdfast/internal/walverify"
)

// metricsFlags are those of metrics.
type metricsFlags struct {
	textfile, listen, path string
	interval, walInterval  time.Duration
	config                 string // --walg.config-path
}

// metricsAddress is where `metrics --listen` listens when it is not told: where WAL-G's exporter does, but for this host alone.
const metricsAddress = "127.0.0.1:9351"

func (a *app) metrics() *cobra.Command {
	var f metricsFlags
	cmd := &cobra.Command{
		Use:   "metrics",
		Short: "Print what the archive holds as metrics for Prometheus, or serve them",
		Long: "Looks at the archive as `ribbon` and `backup-list --detail` do, and prints what there is as samples in Prometheus' text format; docs/metrics.md\n" +
			"lists them. With --textfile they go into a file for node_exporter's textfile collector, which is replaced as a whole. With --listen the command\n" +
			"stays, looks again every --interval, and answers at /metrics with what it saw last: a scrape causes no request of the storage.\n\n" +
			"With PGHOST or its like set the server is asked where it is, for `wal-verify`; with PGDATA the segments that wait there are counted.\n\n" +
			"The flags of WAL-G's exporter are taken too, also with one dash, and its names are among the samples: --web.listen-address and --web.telemetry-path,\n" +
			"--backup-list.scrape-interval (--interval), --wal-verify.scrape-interval (--wal-verify-interval), --walg.config-path (--config); --walg.path and\n" +
			"--storage-check.scrape-interval change nothing.\n\n" +
			"Exit status: 0; 1 the archive could not be looked at: then holdfast_archive_up says so.",
		Example: "  holdfast metrics --textfile /var/lib/prometheus/node-exporter/holdfast.prom\n  holdfast metrics --listen=127.0.0.1:9351",
		Args:    a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.config != "" {
				a.config = f.config
			}
			for _, flag := range []string{"web.listen-address", "web.telemetry-path", "backup-list.scrape-interval", "wal-verify.scrape-interval", "storage-check.scrape-interval"} {
				if f.listen == "" && cmd.Flags().Changed(flag) {
					f.listen = metricsAddress
				}
			}
			switch {
			case f.listen != "" && f.textfile != "":
				return a.usage(cmd, errors.New("--textfile is written once, and --listen stays: give one of them"))
			case f.interval < time.Second || f.walInterval < time.Second:
				return a.usage(cmd, errors.New("the archive is looked at once a second at most: the intervals are too short"))
			case !strings.HasPrefix(f.path, "/"):
				return a.usage(cmd, fmt.Errorf("--web.telemetry-path %q does not begin with a slash", f.path))
			}
			s, err := a.load(cmd)
			if err != nil {
				return err
			}
			if err := s.RequireStorage(); err != nil {
				return err
			}
			if f.listen != "" {
				return a.serveMetrics(cmd.Context(), s, f)
			}
			return a.printMetrics(cmd.Context(), s, f.textfile)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.textfile, "textfile", "", "write the samples to this file, whose name ends in .prom")
	flags.StringVar(&f.listen, "listen", "", "serve the samples at this `address`; without one at "+metricsAddress)
	flags.Lookup("listen").NoOptDefVal = metricsAddress
	flags.DurationVar(&f.interval, "interval", time.Minute, "with --listen: how often to look at the archive")
	flags.DurationVar(&f.walInterval, "wal-verify-interval", 5*time.Minute, "with --listen: how often to look for each segment")
	flags.StringVar(&f.path, "web.telemetry-path", "/metrics", "")
	flags.StringVar(&f.listen, "web.listen-address", "", "")
	flags.DurationVar(&f.interval, "backup-list.scrape-interval", time.Minute, "")
	flags.DurationVar(&f.walInterval, "wal-verify.scrape-interval", 5*time.Minute, "")
	flags.Duration("storage-check.scrape-interval", 0, "")
	flags.String("walg.path", "", "")
	flags.StringVar(&f.config, "walg.config-path", "", "")
	for _, name := range exporterFlags {
		_ = flags.MarkHidden(name) // it was made above
	}
	targetFlag(cmd)
	return cmd
}

// exporterFlags are those of WAL-G's exporter.
var exporterFlags = []string{"web.telemetry-path", "web.listen-address", "backup-list.scrape-interval", "wal-verify.scrape-interval", "storage-check.scrape-interval", "walg.path", "walg.config-path"}

// twoDashes gives the flags of WAL-G's exporter, which have one dash there, the two that flags have here.
func twoDashes(args []string) []string {
	if len(args) == 0 || args[0] != "metrics" {
		return args
	}
	out := append([]string(nil), args...)
	for i, arg := range out {
		for _, name := range exporterFlags {
			if arg == "-"+name || strings.HasPrefix(arg, "-"+name+"=") {
				out[i] = "-" + arg
			}
		}
	}
	return out
}

// printMetrics prints the samples, or writes them to a file.
func (a *app) printMetrics(ctx context.Context, s *config.Settings, textfile string) error {
	if a.child != nil { // the agent hands it to Prometheus
		facts, err := a.look(ctx, s)
		a.child.end.Archive = facts
		return err
	}
	version, revision, _ := build()
	o := metrics.Options{Release: version, Revision: revision}
	if textfile == "" {
		o.Store = &a.traffic
	} else { // files of jobs have the same names for what was done with the store
		o.Labels = fileLabels(&s.Metrics)
	}
	r := metrics.New(o)
	facts, failed := a.look(ctx, s)
	if failed != nil {
		r.ArchiveDown(a.waiting(s), a.answering(ctx, s)...)
	} else {
		r.SetArchive(*facts)
	}
	var err error
	if textfile != "" {
		err = r.WriteTextfile(textfile)
	} else {
		err = r.WriteText(a.env.Stdout)
	}
	return errors.Join(failed, err)
}

// look looks at the archive, and with a server at where it is.
func (a *app) look(ctx context.Context, s *config.Settings) (*metrics.Archive, error) {
	out, at, err := a.lookAtArchive(ctx, s)
	if err != nil {
		return nil, err
	}
	if at != nil {
		a.lookForWAL(ctx, s, at, out)
	}
	return out, ctx.Err()
}

// lookAtArchive looks at backups, WAL and storages, and asks the server where it is, nil where there is none to ask.
func (a *app) lookAtArchive(ctx context.Context, s *config.Settings) (*metrics.Archive, *server.Position, error) {
	begin := time.Now()
	in, err := a.loadRibbon(ctx, s, ribbonFlags{})
	if err != nil {
		return nil, nil, err
	}
	if in.Catalog == nil {
		errs := []error{errors.New("the archive could not be looked at")}
		for _, st := range in.Stores {
			if st.Err != nil {
				errs = append(errs, fmt.Errorf("storage %s: %w", st.Name, st.Err))
			}
		}
		return nil, nil, errors.Join(append(errs, in.Trouble...)...)
	}
	took := time.Since(begin)
	at := a.live(ctx, s, in.Catalog)
	if at != nil {
		in.Catalog.Evidence.Server = at.Timeline
	}
	out := archiveFacts(&in)
	out.Took = took
	if out.Storages, err = a.askStorages(ctx, s); err != nil {
		return nil, nil, err
	}
	out.Waiting = a.waiting(s)
	if out.Leases, err = a.leaseHolders(ctx, s); err != nil {
		a.log.Warn(fmt.Sprintf("who holds which lease is not known: %v", err))
	}
	return &out, at, nil
}

// leaseHolders returns the host that has the lease, by job, where there are leases.
func (a *app) leaseHolders(ctx context.Context, s *config.Settings) (map[string]string, error) {
	if s.Lease.Service() == "none" {
		return nil, nil
	}
	host, err := leaseHost(s)
	if err != nil {
		return nil, err
	}
	ar, err := a.openArchive(ctx, s, toRead)
	if err != nil {
		return nil, err
	}
	k, err := a.leases(ctx, s, ar, host)
	if err != nil {
		return nil, err
	}
	jobs, err := k.Jobs(ctx)
	if err != nil {
		return nil, err
	}
	holders := map[string]string{}
	for _, job := range jobs {
		st, err := k.Look(ctx, job)
		if err != nil {
			return nil, err
		}
		if st.Held {
			holders[job] = st.Host
		}
	}
	return holders, nil
}

// waiting counts the segments of the server here that wait; nil where there is none, or it is not known.
func (a *app) waiting(s *config.Settings) *metrics.Waiting {
	if s.Postgres.DataDir == "" {
		return nil
	}
	backlog, free, err := daemon.ReadBacklog(s.Postgres.DataDir)
	if err != nil {
		a.log.Warn(fmt.Sprintf("which segments wait to be archived is not known: %v", err))
		return nil
	}
	return &metrics.Waiting{Segments: backlog.Segments, Bytes: backlog.Bytes, Since: backlog.Since, Free: free}
}

// archiveFacts says what metrics tell of what is known of an archive.
func archiveFacts(in *ribbon.Input) metrics.Archive {
	r := ribbon.Compute(*in)
	out := metrics.Archive{Looked: in.Now, Status: int(r.Status)}
	verdicts := map[string]ribbon.Verdict{}
	for _, b := range r.Backups {
		verdicts[b.Name] = b.Verdict
	}
	for i := range in.Catalog.Backups {
		b := &in.Catalog.Backups[i]
		m := b.Details()
		verdict, ours := verdicts[b.Name]
		f := metrics.Backup{
			Name: b.Name, Kind: describe.Kind(b), Segment: b.Segment(), PostgreSQL: m.PgVersion, Started: b.NoLater(b.Started()), Finished: b.NoLater(b.Created()),
			Size: m.UncompressedSize, Stored: m.CompressedSize, Permanent: m.IsPermanent,
			Broken: !ours || verdict == ribbon.Broken, Condemned: b.Condemned != nil,
		}
		if lsn, ok := b.StartLSN(); ok {
			f.StartLSN = lsn.String()
		}
		if lsn, ok := b.FinishLSN(); ok {
			f.FinishLSN = lsn.String()
		}
		if b.Sentinel != nil {
			f.DeltaOrigin = b.Sentinel.DeltaFrom
		}
		if e, known := in.Backups[b.Name]; known {
			f.Verified, f.Damaged, f.Proven, f.ProofFailed = e.Verified, e.Damaged != "", e.Proven, e.Failed
		}
		out.Backups = append(out.Backups, f)
	}
	if in.WAL != nil {
		for i := range in.WAL.Timelines {
			t := &in.WAL.Timelines[i]
			for _, run := range t.Runs {
				at := run.Newest
				if aside, was := in.Catalog.Evidence.Forgotten[t.Timeline]; was {
					at = aside.Of(at)
				}
				if at.After(out.NewestWAL) {
					out.NewestWAL = at
				}
			}
		}
	}
	if r.Until != nil {
		out.Until = r.Until.Time
	}
	if r.From != nil {
		out.From = r.From.Time
	}
	for _, stretch := range r.Main {
		switch stretch.Verdict {
		case ribbon.Broken:
			out.Holes++
			out.Missing += stretch.Segments
		case ribbon.Unknown:
			out.Unknown++
		}
	}
	return out
}

// answering asks each storage of an archive that could not be looked at; nil where that is not known.
func (a *app) answering(ctx context.Context, s *config.Settings) []metrics.Storage {
	all, err := a.askStorages(ctx, s)
	if err != nil {
		return nil // why was told of the archive
	}
	return all
}

// askStorages asks each storage whether an object is there.
func (a *app) askStorages(ctx context.Context, s *config.Settings) (all []metrics.Storage, err error) {
	members, err := a.stores(ctx, s, brief)
	if err != nil {
		return nil, err
	}
	for _, m := range members {
		ctx, cancel := context.WithTimeout(ctx, brief)
		begin := time.Now()
		_, err := m.Store.Stat(ctx, archive.WALDir+"00000000.history") // which there never is
		cancel()
		up := err == nil || errors.Is(err, fs.ErrNotExist)
		all = append(all, metrics.Storage{Name: m.Name, Up: up, Latency: time.Since(begin)})
	}
	return all, ctx.Err()
}

// lookForWAL has out say what wal-verify does of a server that is at that position. What cannot be judged is not known.
func (a *app) lookForWAL(ctx context.Context, s *config.Settings, at *server.Position, out *metrics.Archive) {
	begin := time.Now()
	verdict := map[walverify.Status]metrics.Verdict{walverify.OK: metrics.OK, walverify.Warning: metrics.Warning, walverify.Failure: metrics.Failure}
	check := metrics.WALCheck{Integrity: metrics.NotKnown, Timeline: metrics.NotKnown}
	ar, err := a.openArchive(ctx, s, toRead)
	if err == nil {
		var found *integrityJSON
		if found, err = a.checkIntegrity(ctx, s, ar, at, verifyFlags{}); err == nil {
			check.Integrity = verdict[found.Status]
			out.TimelineOK = map[uint32]bool{}
			for _, row := range found.Details {
				t := uint32(row.Timeline)
				if _, seen := out.TimelineOK[t]; !seen {
					out.TimelineOK[t] = true
				}
				if row.Status == walverify.Lost {
					out.TimelineOK[t] = false
				}
			}
		}
		highest, err2 := walverify.Highest(ctx, ar)
		if err2 == nil {
			check.Timeline = verdict[walverify.JudgeTimeline(highest, at.Timeline)]
		}
		err = errors.Join(err, err2)
	}
	if err != nil {
		a.log.Warn(fmt.Sprintf("whether all WAL is there is not known: %v", err))
	}
	out.Check, out.CheckTook = &check, time.Since(begin)
}

// serveMetrics serves the samples until the command is to end.
func (a *app) serveMetrics(ctx context.Context, s *config.Settings, f metricsFlags) error {
	socket, err := net.Listen("tcp", f.listen)
	if err != nil {
		return err
	}
	version, revision, _ := build()
	r := metrics.New(metrics.Options{Release: version, Revision: revision, Store: &a.traffic, Process: true})
	web := metricsServer(r, f.path)
	served := make(chan error, 1)
	go func() { served <- web.Serve(socket) }()
	a.log.Info(fmt.Sprintf("serving metrics of %s at http://%s%s", s.Location(), socket.Addr(), f.path))
	looks, stop := context.WithCancel(ctx)
	looked := make(chan struct{})
	go func() { defer close(looked); a.keepLooking(looks, s, r, f) }()
	select {
	case err = <-served:
	case <-ctx.Done():
		err = web.Close()
	}
	stop()
	<-looked
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return err
}

// metricsServer answers Prometheus at path.
func metricsServer(r *metrics.Registry, path string) *http.Server {
	mux := http.NewServeMux()
	mux.Handle("GET "+path, r.Handler())
	if path != "/" {
		mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, "holdfast: see %s\n", path) })
	}
	return &http.Server{Handler: mux, ReadTimeout: 10 * time.Second, WriteTimeout: time.Minute, IdleTimeout: 5 * time.Minute, MaxHeaderBytes: 16 << 10}
}

// keepLooking looks at the archive again and again. That it cannot is logged once, and so is that it can again.
func (a *app) keepLooking(ctx context.Context, s *config.Settings, r *metrics.Registry, f metricsFlags) {
	tick := time.NewTicker(f.interval)
	defer tick.Stop()
	var walLooked time.Time
	var last metrics.Archive // with what wal-verify said
	failing := ""
	for {
		facts, at, err := a.lookAtArchive(ctx, s)
		if ctx.Err() != nil {
			return
		}
		switch {
		case err != nil:
			r.ArchiveDown(a.waiting(s), a.answering(ctx, s)...)
			if err.Error() != failing {
				a.log.Warn(fmt.Sprintf("the archive cannot be looked at: %v", err))
			}
			failing = err.Error()
		default:
			if failing != "" {
				a.log.Info("the archive can be looked at again")
			}
			failing = ""
			switch {
			case at == nil: // nobody says where the cluster is
				last, walLooked = metrics.Archive{}, time.Time{}
			case time.Since(walLooked) >= f.walInterval:
				walLooked = time.Now()
				a.lookForWAL(ctx, s, at, facts)
				last = *facts
			}
			facts.Check, facts.CheckTook, facts.TimelineOK = last.Check, last.CheckTook, last.TimelineOK
			r.SetArchive(*facts)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
