package main

import (
	"bytes"
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
	putStore, putAlone, putPaced        = "the store alone", "the archive alone", "the archive alone, one now and then"
	pushProgram, pushClient             = "holdfast, look-ahead off", "holdfast-client, look-ahead off"
	pushProgramAhead, pushClientAhead   = "holdfast, look-ahead on", "holdfast-client, look-ahead on"
	pushPaced                           = "holdfast-client, one now and then"
	fetchProgram, fetchClient           = "holdfast, prefetch off", "holdfast-client, prefetch off"
	fetchProgramAhead, fetchClientAhead = "holdfast, prefetch on", "holdfast-client, prefetch on"
	startClient, startShell, startCheck = "holdfast-client --help", "sh -c true", "sh -c 'holdfast-client …', for an empty daemon"
)

// What comes now and then comes so long after the one before was stored, and is so much of all.
const (
	pause = 50 * time.Millisecond
	few   = 50
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

// archiverPlaces makes what the daemon is measured with: the client, and empty places for archives. end removes all of it.
func (b *bench) archiverPlaces(ctx context.Context) (client string, places []*archiverPlace, end func() error, err error) {
	client = filepath.Join(filepath.Dir(b.holdfast), "holdfast-client")
	if out, err := exec.CommandContext(ctx, "install", "-m", "755", filepath.Join(filepath.Dir(b.source), "holdfast-client"), client).CombinedOutput(); err != nil {
		return "", nil, nil, fmt.Errorf("copy holdfast-client: %w: %s: `make build` makes it", err, out)
	}
	gateway := b.archivePath("gateway")
	dir := b.archivePath("daemon")
	for _, d := range []string{gateway, filepath.Join(gateway, "bucket"), dir} {
		if err := b.fresh(d); err != nil {
			return "", nil, nil, err
		}
	}
	url, stop, err := b.gateway(ctx, gateway)
	if err != nil {
		return "", nil, nil, err
	}
	places = []*archiverPlace{
		{name: "a directory", env: holdfastEnv(dir, oursZstd), root: dir, open: func() (store.Store, error) { return file.Open(dir) }},
		{name: "S3 (versitygw on this host)", root: filepath.Join(gateway, "bucket", "wal"),
			env: []string{"WALG_S3_PREFIX=s3://bucket/wal", "AWS_ENDPOINT=" + url, "AWS_S3_FORCE_PATH_STYLE=true", "AWS_REGION=us-east-1",
				"AWS_ACCESS_KEY_ID=" + gatewayKey, "AWS_SECRET_ACCESS_KEY=" + gatewayKey},
			open: func() (store.Store, error) {
				return s3.New(ctx, s3.Options{Bucket: "bucket", Prefix: "wal", Endpoint: url, PathStyle: true, Region: "us-east-1", AccessKey: gatewayKey, SecretKey: gatewayKey})
			}},
	}
	for _, p := range places {
		p.push, p.fetch = &table{}, &table{}
	}
	return client, places, func() error {
		stop()
		return errors.Join(os.RemoveAll(b.archivePath("")), os.RemoveAll(b.walData()))
	}, nil
}

// archiver measures the program against the client and the daemon, with the archive in a directory and in a service on this host.
func (b *bench) archiver(ctx context.Context) (r *archiver, err error) {
	segments := filepath.Join(b.dir, b.segmentsName())
	names, err := segmentsIn(segments)
	if err != nil {
		return nil, err
	}
	client, places, end, err := b.archiverPlaces(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, end()) }()
	r = &archiver{start: &table{}, places: places}
	for round := range b.rounds {
		for _, p := range r.places {
			if err := b.archiverRound(ctx, p, client, segments, names, round); err != nil {
				return nil, err
			}
		}
		if err := b.archiverStarts(ctx, r.start, client, round); err != nil {
			return nil, err
		}
	}
	return r, ctx.Err()
}

// archiverStarts measures what there is to a call before anything is done.
func (b *bench) archiverStarts(ctx context.Context, t *table, client string, round int) error {
	socket := filepath.Join(b.dir, "sock")
	if err := errors.Join(b.makeWALData("", nil), b.fresh(b.archivePath("empty"))); err != nil {
		return err
	}
	end, err := b.daemon(ctx, b.walData(), holdfastEnv(b.archivePath("empty"), oursZstd), socket)
	if err != nil {
		return err
	}
	defer end()
	for _, row := range []struct {
		name string
		args []string
	}{{startClient, []string{client, "--help"}}, {startShell, []string{"sh", "-c", "true"}}, {startCheck, []string{"sh", "-c", quote(client) + " " + socket + " check"}}} {
		var s sample
		s.usage, s.Err = b.measure(ctx, 0, func(m *meter) error {
			for range 50 {
				begin := time.Now()
				if err := m.run(b.command(ctx, nil, row.args[0], row.args[1:]...)); err != nil {
					return err
				}
				s.Calls = append(s.Calls, time.Since(begin).Seconds()*1000)
			}
			return nil
		})
		b.note(t, "start", row.name, startClient, round, s)
	}
	return nil
}

// archiverRound gives each row of one place its turn.
func (b *bench) archiverRound(ctx context.Context, p *archiverPlace, client, segments string, names []string, round int) error {
	socket := filepath.Join(b.dir, "sock")
	const off = "WALG_UPLOAD_CONCURRENCY=1"
	b.note(p.push, "put", putAlone, putAlone, round, b.putAlone(ctx, p, segments, names, 0))
	b.note(p.push, "put", putStore, putAlone, round, b.putStore(ctx, p))
	for _, row := range []struct {
		name   string
		daemon bool
		env    []string
	}{{pushPaced, true, []string{off}}, {pushProgram, false, []string{off}}, {pushClient, true, []string{off}}, {pushProgramAhead, false, nil}, {pushClientAhead, true, nil}} { // what is fetched below is what the last has pushed
		t := walTool{name: row.name, env: append(row.env, p.env...), archive: p.root, command: quote(b.holdfast) + " wal-push %p"}
		end := func() {}
		if row.daemon {
			t.command = quote(client) + " " + socket + " wal-push %p"
			t.prepare = func(ctx context.Context) (err error) {
				end, err = b.daemon(ctx, b.walData(), t.env, socket)
				return err
			}
		}
		some, base := names, putAlone
		if row.name == pushPaced {
			t.pause, some, base = pause, names[:min(few, len(names))], putPaced
			b.note(p.push, "put", putPaced, putAlone, round, b.putAlone(ctx, p, segments, some, pause))
		}
		s := b.pushAll(ctx, t, segments, some)
		end()
		b.note(p.push, "push", row.name, base, round, s)
	}
	if p.name == "a directory" {
		for _, t := range b.pushTools() {
			if t.name == backrestAsyncZst {
				b.note(p.push, "push", t.name, putAlone, round, b.pushAll(ctx, t, segments, names))
			}
		}
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

// putAlone measures what the archive takes for each segment in this process: looked for, compressed and stored. pause is between them.
func (b *bench) putAlone(ctx context.Context, p *archiverPlace, segments string, names []string, pause time.Duration) (s sample) {
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
	u, err := b.measure(ctx, 0, func(*meter) error { // which costs something, as it does where calls are measured
		for _, name := range names {
			time.Sleep(pause)
			at := time.Now()
			open := func() (io.ReadCloser, error) { return os.Open(filepath.Join(segments, name)) }
			if _, err := a.PutWAL(ctx, name, open); err != nil {
				return err
			}
			s.Calls = append(s.Calls, time.Since(at).Seconds()*1000)
		}
		return nil
	})
	s.Wall = u.Wall
	if s.Err = err; err == nil {
		s.Stored, _, s.Err = size(p.root)
	}
	return s
}

// putStore measures what the store takes for the objects that putAlone has left there, one after the other: their bytes as they are, under other names.
func (b *bench) putStore(ctx context.Context, p *archiverPlace) (s sample) {
	st, err := p.open()
	if err != nil {
		s.Err = err
		return s
	}
	var all []string
	for o, err := range store.Walk(ctx, st, archive.WALDir) {
		if err != nil {
			s.Err = err
			return s
		}
		all = append(all, o.Name)
	}
	for _, name := range all {
		content, err := store.ReadFile(ctx, st, name, 32<<20)
		if err != nil {
			s.Err = err
			return s
		}
		at := time.Now()
		if s.Err = store.PutIfAbsent(ctx, st, "alone/"+name, bytes.NewReader(content)); s.Err != nil {
			return s
		}
		took := time.Since(at).Seconds()
		s.Calls = append(s.Calls, took*1000)
		s.Wall += took
	}
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
		end, err := b.daemon(ctx, b.walData(), t.env, socket)
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

// daemon starts one for a data directory, which end ends.
func (b *bench) daemon(ctx context.Context, data string, env []string, socket string) (end func(), err error) {
	cmd := b.command(ctx, append([]string{"PGDATA=" + data}, env...), b.holdfast, "daemon", socket)
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
	beyond := func(t *table, client, alone string) (ms []float64) {
		a, c := t.figures(alone, call), t.figures(client, call)
		for i := range min(len(a), len(c)) {
			if a[i] > 0 && c[i] > 0 {
				ms = append(ms, c[i]-a[i])
			}
		}
		return ms
	}
	for _, p := range r.places {
		all = append(all,
			target{what: "archive_command by holdfast-client beyond the archive's own time, all waiting, " + p.name, bound: 5, strict: true, rounds: beyond(p.push, pushClient, putAlone), unit: " ms"},
			target{what: "archive_command by holdfast-client beyond the archive's own time, one now and then, " + p.name, bound: 5, strict: true, rounds: beyond(p.push, pushPaced, putPaced), unit: " ms"},
			target{what: "archive_command by holdfast-client beyond the store's own time, look-ahead on, " + p.name, bound: 5, strict: true, rounds: beyond(p.push, pushClientAhead, putStore), unit: " ms"},
			target{what: "archive_command by holdfast-client over a start of holdfast, " + p.name, bound: 1, strict: true, rounds: ratios(p.push.figures(pushClientAhead, call), p.push.figures(pushProgramAhead, call))},
			target{what: "restore_command by holdfast-client from prefetch, " + p.name, bound: 3, strict: true, rounds: good(p.fetch.figures(fetchClientAhead, call)), unit: " ms"})
		if p.push.row(backrestAsyncZst) != nil {
			all = append(all, target{what: "archive_command by holdfast-client over pgBackRest asynchronous, " + p.name, bound: 1, strict: true,
				rounds: ratios(p.push.figures(pushClientAhead, call), p.push.figures(backrestAsyncZst, call))})
		}
	}
	return append(all, target{what: "cold start of holdfast-client", bound: 2, strict: true, rounds: good(r.start.figures(startClient, call)), unit: " ms"})
}

// print writes what was measured.
func (r *archiver) print(w io.Writer, segments int) {
	for _, p := range r.places {
		fmt.Fprintf(w, "\n## %d WAL segments through the daemon, archive in %s\n\n"+
			"All waiting, one call of the shell each. \"The store alone\" is Store.PutIfAbsent of the compressed bytes, from memory, in a process that is warm: what no archiver can be\n"+
			"quicker than that stores a segment when it is asked to. \"The archive alone\" is that and what has to be done for it: to look whether the segment is there, to read and to\n"+
			"compress it, on all cores; without a process to start and a daemon to ask. \"One now and then\" is with %s between the calls, for the first %d.\n"+
			"CPU seconds and memory are those of the calls, not of the daemon.\n\n", segments, p.name, pause, min(few, segments))
		p.push.print(w, pushColumns)
		fmt.Fprintf(w, "\nFetched, with %s between the calls, as a server takes for the replay:\n\n", replay)
		p.fetch.print(w, fetchColumns)
	}
	fmt.Fprint(w, "\n## Cold start of the client\n\nThe median of 50 calls.\n\n")
	r.start.print(w, startColumns)
}
