package drill

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/catalog"
	"holdfast/internal/pg/control"
	"holdfast/internal/pg/wal"
	"holdfast/internal/restore"
	"holdfast/internal/walfetch"
)

// Directories of a feed in the scratch directory. What is fed to the copy is put together in one that is closed to its account.
const (
	feedName   = "wal"
	formedName = "wal.coming"
)

// Names in the directory of what is fed, before the name of a file.
const (
	absentPrefix = "absent-" // the archive does not have it
	askedPrefix  = "asked-"  // PostgreSQL wanted it and it was not there: wal-fetch had to bring it
)

// How much a feed is ahead of replay, at most.
const (
	feedFiles = 8
	feedBytes = 256 << 20
	feedAtOne = 4 // files that are fetched at once, once the first is there
)

// maxCommand is how long a restore_command may be that PostgreSQL puts names into: before 16 it cuts off what is longer than MAXPGPATH, 1024 bytes.
const maxCommand = 800

// feed lays WAL ready that the copy will ask for, so that no program has to be started for each segment: its restore_command finds it, and has wal-fetch bring what is
// not there. It does nothing that wal-fetch cannot do alone, and gives up where it is in doubt.
type feed struct {
	drill  *drill
	dir    string   // of what is ready
	formed string   // of what is not yet
	names  []string // to come, in the order in which PostgreSQL wants them
	ahead  int

	prefetches bool // the copy would look ahead in WAL

	cancel context.CancelFunc
	first  chan struct{} // closed when the first lies ready
	ended  chan struct{}
}

// fed is a segment on its way.
type fed struct {
	name string
	file string
	err  error
	done chan struct{}
}

// feed begins to lay WAL ready; nil where PostgreSQL could make no use of it. End it.
func (d *drill) feed(ctx context.Context) (*feed, error) {
	c, _, err := control.Read(filepath.Join(d.plan.data(), control.Name))
	if err != nil {
		return nil, err
	}
	label, err := os.ReadFile(filepath.Join(d.plan.data(), "backup_label"))
	if err != nil || c.Major < 12 { // before 12 the command is in a file that is the restore's
		return nil, nil
	}
	return d.feedFrom(ctx, wanted(d.plan.Restore, d.plan.request.Choice, c.SegmentSize, label), c)
}

// feedFrom begins to lay these segments ready.
func (d *drill) feedFrom(ctx context.Context, names []string, c control.Data) (*feed, error) {
	f := &feed{drill: d, dir: filepath.Join(d.plan.Scratch, feedName), formed: filepath.Join(d.plan.Scratch, formedName), names: names, prefetches: c.Major >= 15,
		ahead: min(max(2, int(feedBytes/int64(c.SegmentSize))), feedFiles)}
	if len(names) == 0 || len(f.command()) > maxCommand {
		return nil, nil
	}
	for _, dir := range []string{f.dir, f.formed} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return nil, err
		}
	}
	if a := d.plan.account; a != nil {
		if err := os.Lchown(f.dir, a.uid, a.gid); err != nil {
			return nil, err
		}
	}
	ctx, f.cancel = context.WithCancel(ctx)
	f.first, f.ended = make(chan struct{}), make(chan struct{})
	go func() {
		defer close(f.ended)
		var g errgroup.Group
		g.Go(func() error { return f.run(ctx) })
		g.Go(func() error { return f.tellAbsent(ctx) })
		if err := g.Wait(); err != nil && ctx.Err() == nil {
			d.Logger.Debug("WAL is no longer laid ready for the copy: " + err.Error())
		}
	}()
	return f, nil
}

// use has the copy that runs with these settings use what lies ready. It returns once something does, or nothing will.
func (f *feed) use(settings map[string]string) {
	if f == nil {
		return
	}
	select {
	case <-f.first:
	case <-f.ended:
	}
	settings["restore_command"] = f.command()
	if f.prefetches {
		settings["recovery_prefetch"] = "off" // it would ask for segments behind the last one
	}
}

// end returns once nothing is done any more, and what nobody took is gone: after its recovery the copy asks for nothing.
func (f *feed) end() {
	if f == nil {
		return
	}
	f.cancel()
	<-f.ended
	for _, dir := range []string{f.dir, f.formed} {
		_ = os.RemoveAll(dir) // it goes with the scratch directory, at the latest
	}
}

// command is a restore_command that takes what lies ready, and has wal-fetch bring the rest.
func (f *feed) command() string {
	r := f.drill.plan.request
	return fmt.Sprintf(`w=%s; mv -f "$w/%%f" "%%p" 2>/dev/null || { test ! -e "$w/%s%%f" && { (: >"$w/%s%%f") 2>/dev/null; %s; }; }`,
		restore.ShellWord(f.dir), absentPrefix, askedPrefix, restore.Command(r.Program, r.Config))
}

// wanted lists the segments that replay will ask for: that with the checkpoint comes first, and the last one again, when recovery ends in it.
func wanted(p *restore.Plan, c catalog.Choice, size wal.SegmentSize, label []byte) (names []string) {
	_, first, errFirst := size.ParseSegment(p.FirstWAL)
	end := p.LastWAL
	if c.Target.Kind == catalog.Immediate {
		end = p.NeededWAL
	}
	_, last, errLast := size.ParseSegment(end)
	if errFirst != nil || errLast != nil {
		return nil
	}
	if c.Target.Kind == catalog.AtLSN {
		last = min(last, size.Segment(c.Target.LSN))
	}
	for s := range c.Path.Stretches(size, first) {
		for no := s.First; no <= min(s.Last, last); no++ {
			names = append(names, size.Name(s.Timeline, no))
		}
	}
	if len(names) == 0 {
		return nil
	}
	if _, rest, ok := bytes.Cut(label, []byte("CHECKPOINT LOCATION: ")); ok {
		text, _, _ := bytes.Cut(rest, []byte("\n"))
		if at := lsnOf(strings.TrimSpace(string(text))); at != 0 && size.Segment(at) > first && size.Segment(at) <= last {
			names = slices.Insert(names, 0, names[size.Segment(at)-first])
		}
	}
	return append(names, names[len(names)-1])
}

// run lays ready what is wanted, until all is or it cannot.
func (f *feed) run(ctx context.Context) error {
	run, err := os.OpenRoot(f.drill.plan.run())
	if err != nil {
		return err
	}
	defer run.Close() // what is written is closed by itself
	ctx, cancel := context.WithCancel(ctx)
	var coming []*fed
	defer func() {
		cancel()
		for _, one := range coming {
			<-one.done
		}
	}()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	var ready []string
	number, laid := 0, 0
	defer func() {
		left := slices.DeleteFunc(ready, func(name string) bool { return !exists(filepath.Join(f.dir, name)) })
		f.drill.Logger.Debug(fmt.Sprintf("%d segments were laid ready, %d of them taken", laid, laid-len(left)))
	}()
	asked := func() error {
		if len(coming) > 0 && exists(filepath.Join(f.dir, askedPrefix+coming[0].name)) {
			return fmt.Errorf("%s was asked for before it was there", coming[0].name)
		}
		return nil
	}
	for len(f.names) > 0 || len(coming) > 0 {
		ready = slices.DeleteFunc(ready, func(name string) bool { return !exists(filepath.Join(f.dir, name)) })
		for len(f.names) > 0 && (len(coming) == 0 || number > 1 || len(ready) > 0) && len(coming) < feedAtOne && len(coming)+len(ready) < f.ahead {
			one := &fed{name: f.names[0], file: filepath.Join(f.formed, "RECOVERY"+strconv.Itoa(number)), done: make(chan struct{})}
			f.names, number = f.names[1:], number+1
			coming = append(coming, one)
			go func() {
				defer close(one.done)
				open := func(context.Context) (walfetch.Archive, error) { return walfetch.Finished(f.drill.archive), nil }
				_, one.err = walfetch.Fetch(ctx, open, one.name, one.file, walfetch.Options{})
			}()
		}
		if err := asked(); err != nil {
			return err
		}
		var next chan struct{}
		if len(coming) > 0 && !slices.Contains(ready, coming[0].name) {
			next = coming[0].done
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		case <-next:
			one := coming[0]
			if err := errors.Join(asked(), one.err); err != nil {
				return err
			}
			coming = coming[1:]
			if err := f.layReady(run, one); err != nil {
				return err
			}
			if ready = append(ready, one.name); laid == 0 {
				close(f.first)
			}
			laid++
		}
	}
	return nil
}

// layReady lets PostgreSQL have a segment that was looked through.
func (f *feed) layReady(run *os.Root, one *fed) error {
	from, _ := f.drill.plan.request.Choice.Backup.StartLSN() // 0 where the backup does not say: then all is looked at
	a := f.drill.plan.account
	if err := lookThrough(run, one.name, one.file, from, a); err != nil {
		return err
	}
	if a != nil {
		if err := os.Lchown(one.file, a.uid, a.gid); err != nil {
			return err
		}
	}
	return os.Rename(one.file, filepath.Join(f.dir, one.name))
}

// tellAbsent lets PostgreSQL know which histories there are not, of those that it asks for at the end.
func (f *feed) tellAbsent(ctx context.Context) error {
	t := f.drill.plan.request.Choice.Path.Timeline()
	for _, t := range []wal.Timeline{t, t + 1} {
		name := wal.HistoryName(t)
		r, err := f.drill.archive.OpenWAL(ctx, name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			file := filepath.Join(f.formed, name)
			if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Rename(file, filepath.Join(f.dir, absentPrefix+name))); err != nil {
				return err
			}
		case err != nil:
			return err
		default:
			_ = r.Close() // only looked for
		}
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
