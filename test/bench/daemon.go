package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	socket "net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/daemon"
	"holdfast/internal/store"
	"holdfast/internal/store/file"
	"holdfast/internal/store/s3"
)

// Names of rows of the section of the daemon; targets look for them.
const (
	putAlone, pushProgram, pushClient, pushProgramAhead, pushClientAhead = "the archive alone", "holdfast, look-ahead off", "holdfast-client, look-ahead off",
		"holdfast, look-ahead on", "holdfast-client, look-ahead on"
	fetchProgram, fetchClient, fetchProgramAhead, fetchClientAhead = "holdfast, prefetch off", "holdfast-client, prefetch off",
		"holdfast, prefetch on", "holdfast-client, prefetch on"
	startClient = "holdfast-client --help"
)

// replay is how long a server takes for a segment, so that what is fetched ahead can be.
const replay = 100 * time.Millisecond

// archiver is what the section of the daemon has measured.
type archiver struct {
	places []*archiverPlace
	start  *table
}

// archiverPlace is that with an archive in one kind of store.
type archiverPlace struct {
	name        string
	push, fetch *table

	env  []string
	root string                      // directory that has the objects
	open func() (store.Store, error) // the archive, for this process
}

// archiver measures the program against the client and the daemon, with the archive in a directory and in a service on this host.
func (b *bench) archiver(ctx context.Context) (r *archiver, err error) {
	client := filepath.Join(filepath.Dir(b.holdfast), "holdfast-client")
	if out, err := exec.CommandContext(ctx, "install", "-m", "755", filepath.Join(filepath.Dir(b.source), "holdfast-client"), client).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("copy holdfast-client: %w: %s: `make build` makes it", err, out)
	}
	segments := filepath.Join(b.dir, b.segmentsName())
	names, err := segmentsIn(segments)
	if err != nil {
		return nil, err
	}
	gateway := b.archivePath("gateway")
	dir := b.archivePath("daemon")
	for _, d := range []string{gateway, filepath.Join(gateway, "bucket"), dir} {
		if err := b.fresh(d); err != nil {
			return nil, err
		}
	}
	url, stop, err := b.gateway(ctx, gateway)
	if err != nil {
		return nil, err
	}
	defer func() {
		stop()
		err = errors.Join(err, os.RemoveAll(b.archivePath("")), os.RemoveAll(b.walData()))
	}()
	r = &archiver{start: &table{}, places: []*archiverPlace{
		{name: "a directory", env: holdfastEnv(dir, oursZstd), root: dir, open: func() (store.Store, error) { return file.Open(dir) }},
		{name: "S3 (versitygw on this host)", root: filepath.Join(gateway, "bucket", "wal"),
			env: []string{"WALG_S3_PREFIX=s3://bucket/wal", "AWS_ENDPOINT=" + url, "AWS_S3_FORCE_PATH_STYLE=true", "AWS_REGION=us-east-1",
				"AWS_ACCESS_KEY_ID=" + gatewayKey, "AWS_SECRET_ACCESS_KEY=" + gatewayKey},
			open: func() (store.Store, error) {
				return s3.New(ctx, s3.Options{Bucket: "bucket", Prefix: "wal", Endpoint: url, PathStyle: true, Region: "us-east-1", AccessKey: gatewayKey, SecretKey: gatewayKey})
			}},
	}}
	for _, p := range r.places {
		p.push, p.fetch = &table{}, &table{}
	}
	for round := range b.rounds {
		for _, p := range r.places {
			if err := b.archiverRound(ctx, p, client, segments, names, round); err != nil {
				return nil, err
			}
		}
		var s sample
		s.usage, s.Err = b.measure(ctx, 0, func(m *meter) error {
			for range 50 {
				begin := time.Now()
				if err := m.run(b.command(ctx, nil, client, "--help")); err != nil {
					return err
				}
				s.Calls = append(s.Calls, time.Since(begin).Seconds()*1000)
			}
			return nil
		})
		b.note(r.start, "start", startClient, startClient, round, s)
	}
	return r, ctx.Err()
}

// archiverRound gives each row of one place its turn.
func (b *bench) archiverRound(ctx context.Context, p *archiverPlace, client, segments string, names []string, round int) error {
	socket := filepath.Join(b.dir, "sock")
	const off = "WALG_UPLOAD_CONCURRENCY=1"
	b.note(p.push, "put", putAlone, putAlone, round, b.putAlone(ctx, p, segments, names))
	for _, row := range []struct {
		name   string
		daemon bool
		env    []string
	}{{pushProgram, false, []string{off}}, {pushClient, true, []string{off}}, {pushProgramAhead, false, nil}, {pushClientAhead, true, nil}} {
		t := walTool{name: row.name, env: append(row.env, p.env...), archive: p.root, command: quote(b.holdfast) + " wal-push %p"}
		end := func() {}
		if row.daemon {
			t.command = quote(client) + " " + socket + " wal-push %p"
			t.prepare = func(ctx context.Context) (err error) { end, err = b.daemon(ctx, t.env, socket); return err }
		}
		s := b.pushAll(ctx, t, segments, names)
		end()
		b.note(p.push, "push", row.name, putAlone, round, s)
	}
	for _, row := range []struct {
		name   string
		daemon bool
		env    []string
	}{{fetchProgram, false, []string{"WALG_DOWNLOAD_CONCURRENCY=1"}}, {fetchClient, true, []string{"WALG_DOWNLOAD_CONCURRENCY=1"}}, {fetchProgramAhead, false, nil}, {fetchClientAhead, true, nil}} {
		t := walTool{name: row.name, env: append(row.env, p.env...), archive: p.root, command: quote(b.holdfast) + " wal-fetch %f %p"}
		if row.daemon {
			t.command = quote(client) + " " + socket + " wal-fetch %f %p"
		}
		b.note(p.fetch, "fetch", row.name, fetchProgram, round, b.fetchPaced(ctx, t, row.daemon, socket, names))
	}
	return ctx.Err()
}

// putAlone measures what the archive takes for each segment, compression included, in this process.
func (b *bench) putAlone(ctx context.Context, p *archiverPlace, segments string, names []string) (s sample) {
	if s.Err = errors.Join(b.fresh(p.root), warm(segments)); s.Err != nil {
		return s
	}
	st, err := p.open()
	if err != nil {
		s.Err = err
		return s
	}
	a := archive.New(st, archive.Options{Parallel: runtime.GOMAXPROCS(0)})
	syscall.Sync()
	begin := time.Now()
	for _, name := range names {
		at := time.Now()
		open := func() (io.ReadCloser, error) { return os.Open(filepath.Join(segments, name)) }
		if _, s.Err = a.PutWAL(ctx, name, open); s.Err != nil {
			return s
		}
		s.Calls = append(s.Calls, time.Since(at).Seconds()*1000)
	}
	s.Wall = time.Since(begin).Seconds()
	s.Stored, _, s.Err = size(p.root)
	return s
}

// fetchPaced plays PostgreSQL's recovery as fetchAll does, and takes its time for each segment. Of a data directory that says that it recovers.
func (b *bench) fetchPaced(ctx context.Context, t walTool, daemon bool, socket string, names []string) (s sample) {
	data := b.walData()
	s.Err = b.makeWALData("", nil)
	for _, name := range []string{"recovery.signal", "postmaster.pid"} {
		s.Err = errors.Join(s.Err, os.WriteFile(filepath.Join(data, name), nil, 0o644))
	}
	if s.Err = errors.Join(s.Err, warm(t.archive)); s.Err != nil {
		return s
	}
	if daemon {
		end, err := b.daemon(ctx, t.env, socket)
		if err != nil {
			s.Err = err
			return s
		}
		defer end()
	}
	const into = "pg_wal/RECOVERYXLOG"
	s.usage, s.Err = b.measure(ctx, 0, func(m *meter) error {
		for i, name := range names {
			ms, err := b.call(ctx, m, t, name, into)
			if err != nil {
				return err
			}
			s.Calls = append(s.Calls, ms)
			if err := keep(filepath.Join(data, into), filepath.Join(data, "pg_wal", name)); err != nil {
				return err
			}
			if i+1 == len(names) { // and so it ends
				return os.Remove(filepath.Join(data, "recovery.signal"))
			}
			time.Sleep(replay)
		}
		return nil
	})
	return s
}

// daemon starts one for walData, which end ends.
func (b *bench) daemon(ctx context.Context, env []string, socket string) (end func(), err error) {
	cmd := b.command(ctx, append([]string{"PGDATA=" + b.walData()}, env...), b.holdfast, "daemon", socket)
	return b.serve(ctx, cmd, func() error { return daemon.Alive(ctx, socket) })
}

// gatewayKey is the name and the secret of who may use the service.
const gatewayKey = "benchmark"

// gateway starts an S3 service that keeps its buckets in dir.
func (b *bench) gateway(ctx context.Context, dir string) (url string, end func(), err error) {
	l, err := socket.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	at := l.Addr().String()
	if err := l.Close(); err != nil {
		return "", nil, err
	}
	cmd := b.command(ctx, []string{"ROOT_ACCESS_KEY=" + gatewayKey, "ROOT_SECRET_KEY=" + gatewayKey}, filepath.Join(testCache(), "bin/versitygw"), "--port", at, "--quiet", "posix", dir)
	end, err = b.serve(ctx, cmd, func() error {
		conn, err := socket.Dial("tcp", at)
		if err != nil {
			return err
		}
		return conn.Close()
	})
	return "http://" + at, end, err
}

// serve starts a process that stays and waits until it answers.
func (b *bench) serve(ctx context.Context, cmd *exec.Cmd, alive func() error) (end func(), err error) {
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if err = alive(); err == nil {
			return func() {
				_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
				<-ended
			}, nil
		}
		select {
		case died := <-ended:
			return nil, fmt.Errorf("%s: %w", strings.Join(cmd.Args, " "), errors.Join(died, err))
		default:
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			_ = cmd.Process.Kill()
			return nil, fmt.Errorf("%s does not answer: %w", strings.Join(cmd.Args, " "), err)
		}
	}
}

// tables lists what was measured.
func (r *archiver) tables() (all []*table) {
	if r == nil {
		return nil
	}
	for _, p := range r.places {
		all = append(all, p.push, p.fetch)
	}
	return append(all, r.start)
}

// targets of the daemon.
func (r *archiver) targets() (all []target) {
	if r == nil {
		return nil
	}
	for _, p := range r.places {
		alone, client := p.push.figures(putAlone, call), p.push.figures(pushClient, call)
		var beyond []float64
		for i := range min(len(alone), len(client)) {
			if alone[i] > 0 && client[i] > 0 {
				beyond = append(beyond, client[i]-alone[i])
			}
		}
		all = append(all,
			target{what: "archive_command by holdfast-client beyond the archive's own time, " + p.name, bound: 5, strict: true, rounds: beyond, unit: " ms"},
			target{what: "restore_command by holdfast-client from prefetch, " + p.name, bound: 3, strict: true, rounds: good(p.fetch.figures(fetchClientAhead, call)), unit: " ms"})
	}
	return append(all, target{what: "cold start of holdfast-client", bound: 2, strict: true, rounds: good(r.start.figures(startClient, call)), unit: " ms"})
}

// print writes what was measured.
func (r *archiver) print(w io.Writer, segments int) {
	for _, p := range r.places {
		fmt.Fprintf(w, "\n## %d WAL segments through the daemon, archive in %s\n\n"+
			"All waiting, one call of the shell each. \"The archive alone\" is compressing and storing them in a process that is warm, without PostgreSQL's part of it.\n"+
			"CPU seconds and memory are those of the calls, not of the daemon.\n\n", segments, p.name)
		p.push.print(w, pushColumns)
		fmt.Fprintf(w, "\nFetched, with %s between the calls, as a server takes for the replay:\n\n", replay)
		p.fetch.print(w, fetchColumns)
	}
	fmt.Fprint(w, "\n## Cold start of the client\n\nThe median of 50 calls.\n\n")
	r.start.print(w, startColumns)
}
