package check

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/pg/server"
	"holdfast/internal/proof"
	"holdfast/internal/ribbon"
	"holdfast/internal/store"
)

// Sources is where the facts come from.
type Sources struct {
	Server  server.Config // nil: none is named
	Slot    string        // name of wal-receive's replication slot
	DataDir string        // of the server; empty for what it says itself, where Local
	Local   bool          // the server is on this host

	// Archive loads what the verdict on the archive depends on.
	Archive func(ctx context.Context) (Loaded, error)
	// Storages opens them, to be tried.
	Storages func(ctx context.Context) ([]Storage, error)

	Host      string // name of this one
	Deltas    bool   // see Facts
	Summaries bool
}

// Loaded is an archive as it was loaded, and which keys there are to it.
type Loaded struct {
	Input     ribbon.Input
	WriteOnly bool
	Encrypted bool
}

// Storage is one of those that hold the archive.
type Storage struct {
	Name  string
	Store store.Store
}

// grace is how long after the deadline answers are still taken: they say on what time was spent.
const grace = 500 * time.Millisecond

// SilentError says that something did not answer in time.
type SilentError struct {
	Patience time.Duration
	Err      error // what was going on; nil where that is not known
}

func (e *SilentError) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("no answer within %s: %v", e.Patience, e.Err)
	}
	return fmt.Sprintf("no answer within %s", e.Patience)
}

// an answer is what a source says.
type answer[T any] struct {
	value T
	err   error
}

// ask asks a source. It may hang for ever; that harms nobody.
func ask[T any](ctx context.Context, source func(context.Context) (T, error)) <-chan answer[T] {
	answers := make(chan answer[T], 1)
	go func() {
		v, err := source(ctx)
		answers <- answer[T]{v, err}
	}()
	return answers
}

// Gather asks all sources that the chosen checks need, and returns after patience at the latest. What has not answered by then is a *SilentError.
func Gather(ctx context.Context, s Sources, c *Choice, patience time.Duration) *Facts {
	begun := time.Now()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	late, tooLate := context.WithCancel(context.WithoutCancel(ctx))
	defer tooLate()
	context.AfterFunc(ctx, func() { time.AfterFunc(grace, tooLate) })
	needs := c.needs()

	var serverAnswer <-chan answer[*server.Health]
	if needs&needServer != 0 && s.Server != nil {
		serverAnswer = ask(ctx, func(ctx context.Context) (*server.Health, error) {
			ctx, cancel := context.WithTimeout(ctx, patience/2) // files of the server are looked at afterwards
			defer cancel()
			return askServer(ctx, s.Server, s.Slot)
		})
	}
	var loaded <-chan answer[Loaded]
	if needs&needArchive != 0 {
		loaded = ask(ctx, s.Archive)
	}
	var stores <-chan answer[[]Store]
	if needs&needStores != 0 {
		stores = ask(ctx, func(ctx context.Context) ([]Store, error) { return tryAll(ctx, late, s, patience) })
	}

	f := &Facts{Named: s.Server != nil, ServerErr: ErrUnasked, HostErr: ErrUnasked, ArchiveErr: ErrUnasked, StoresErr: ErrUnasked, Deltas: s.Deltas, Summaries: s.Summaries}
	if serverAnswer != nil {
		f.Server, f.ServerErr = take(late, serverAnswer, patience)
	}
	dir := s.DataDir
	if dir == "" && s.Local && f.Server != nil {
		dir = f.Server.DataDirectory
	}
	if needs&needHost != 0 && dir != "" {
		host := ask(ctx, func(context.Context) (*Host, error) { return lookAtHost(dir, f.Server) })
		if f.Host, f.HostErr = take(late, host, patience); s.DataDir == "" && elsewhere(f.HostErr) {
			f.HostErr = ErrUnasked
		}
	}
	if loaded != nil {
		l, err := take(late, loaded, patience)
		f.archive(l, err)
	}
	if name := f.missing(); name != "" {
		written := ask(ctx, func(context.Context) (time.Time, error) { return lastWritten(dir, name) })
		f.Host.Missing, _ = take(late, written, patience) // zero is not seen
	}
	if stores != nil {
		f.Stores, f.StoresErr = take(late, stores, patience)
	}
	f.Now = time.Now()
	f.Took = f.Now.Sub(begun)
	return f
}

// elsewhere reports whether an error says that the directory which a server names is none of its own here, as where that runs in a container and its port is ours.
func elsewhere(err error) bool {
	none := (*elsewhereError)(nil)
	return errors.As(err, &none)
}

// take waits for an answer until it is too late.
func take[T any](late context.Context, answers <-chan answer[T], patience time.Duration) (T, error) {
	select {
	case a := <-answers:
		return a.value, silent(a.err, patience)
	case <-late.Done():
		var none T
		return none, &SilentError{Patience: patience}
	}
}

// silent says of an error that it is for want of an answer, where it is.
func silent(err error, patience time.Duration) error {
	if already := (*SilentError)(nil); err == nil || errors.As(err, &already) || !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return &SilentError{patience, err}
}

func askServer(ctx context.Context, cfg server.Config, slot string) (*server.Health, error) {
	conn, err := server.Connect(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer func() { go conn.Close() }() // a server that hangs is not waited for; the session ends with this process at the latest
	h, err := conn.Health(ctx, slot)
	if err != nil {
		return nil, err
	}
	return &h, nil
}

// archive judges what was loaded, along the timeline of the server.
func (f *Facts) archive(l Loaded, err error) {
	in := l.Input
	for _, s := range in.Stores {
		if err == nil && in.Catalog == nil && s.Err != nil {
			err = s.Err
		}
	}
	if err == nil && in.Catalog == nil {
		err = errors.New("nothing could be read")
	}
	if f.ArchiveErr = err; err != nil {
		return
	}
	if f.Server != nil && (in.System == 0 || in.System == f.Server.SystemIdentifier) {
		in.Catalog.Evidence.Server = f.Server.Timeline
	}
	if l.WriteOnly { // what can be decrypted is not for this host to say
		in.WithoutKey()
	}
	a := &Archive{Ribbon: ribbon.Compute(in), System: in.System, WriteOnly: l.WriteOnly, Encrypted: l.Encrypted, Refused: proof.Tell(refusedSince(&in))}
	for i := range in.Catalog.Backups {
		if s := in.Catalog.Backups[i].Sentinel; in.System == 0 && s != nil && s.SystemIdentifier != nil {
			a.System = *s.SystemIdentifier
		}
	}
	for _, b := range a.Ribbon.Backups {
		found, err := in.Catalog.Find(b.Name)
		if err != nil || b.Condemned {
			continue
		}
		a.Backups = append(a.Backups, Backup{
			Name: b.Name, Finished: found.NoLater(found.Created()), Full: !found.IsDelta(), Verdict: b.Verdict, Verified: b.Verified, Proven: b.Proven, Failed: in.Backups[b.Name].Failed,
		})
	}
	if n := len(a.Backups); n > 0 {
		a.Locked = in.Backups[a.Backups[n-1].Name].Locked
	}
	if newest := a.Ribbon.Newest; newest != nil && newest.LSN > 0 && a.Locked == "" {
		n := in.WAL.SegmentSize.LastSegment(newest.LSN)
		for _, k := range in.Locked {
			if k.Timeline == newest.Timeline && k.First <= n && n <= k.Last {
				a.Locked = fmt.Sprintf("%s: %s", in.WAL.SegmentSize.Name(k.Timeline, n), k.Why)
			}
		}
	}
	f.Archive = a
}

// missing returns the name of the first segment that the server has whole and the archive has not, where its files are seen; "" where there is none.
func (f *Facts) missing() string {
	if f.Host == nil || f.Server == nil || f.Archive == nil {
		return ""
	}
	newest := f.Archive.Ribbon.Newest
	if newest == nil || f.Server.Behind(newest.LSN) == 0 {
		return ""
	}
	return f.Server.SegmentSize.Name(f.Server.Timeline, f.Server.SegmentSize.Segment(newest.LSN))
}

// refusedSince returns the records of drills that do not count, and were stored since the newest that proves a backup. Older ones are what there was before keys were
// introduced or changed, for as long as their backups stay.
func refusedSince(in *ribbon.Input) []error {
	var last time.Time
	for _, e := range in.Backups {
		if e.Proven.After(last) {
			last = e.Proven
		}
	}
	return slices.DeleteFunc(in.RefusedProofs(), func(err error) bool {
		var no *proof.RefusedError
		return errors.As(err, &no) && no.When.Before(last)
	})
}

// tryAll tries all storages at once.
func tryAll(ctx, late context.Context, s Sources, patience time.Duration) ([]Store, error) {
	storages, err := s.Storages(ctx)
	if err != nil {
		return nil, err
	}
	answers := make([]<-chan answer[Store], len(storages))
	for i, one := range storages {
		answers[i] = ask(ctx, func(ctx context.Context) (Store, error) { return try(ctx, one, s.Host) })
	}
	all := make([]Store, len(storages))
	for i, one := range storages {
		found, err := take(late, answers[i], patience)
		found.Name, found.Err = one.Name, err
		silence := (*SilentError)(nil)
		found.Silent = errors.As(err, &silence)
		all[i] = found
	}
	sortStores(all)
	return all, nil
}

// probe is what try writes.
var probe = []byte("holdfast check: this object may be removed\n")

// try writes an object and removes it. It has the name of the host, so that where nothing may be removed there is one of it, and no heap.
func try(ctx context.Context, s Storage, host string) (found Store, err error) {
	name := archive.OwnDir + "check/" + objectName(host)
	begin := time.Now()
	if err := s.Store.Put(ctx, name, bytes.NewReader(probe)); err != nil {
		if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
			_, reads := s.Store.Stat(ctx, name)
			found.Reads = reads == nil || errors.Is(reads, fs.ErrNotExist)
		}
		return found, err
	}
	end := time.Now()
	o, err := s.Store.Stat(ctx, name)
	switch {
	case err == nil:
		switch { // times are of whole seconds in many services
		case o.Modified.After(end):
			found.Ahead = o.Modified.Sub(end)
		case o.Modified.Before(begin.Truncate(time.Second)):
			found.Ahead = o.Modified.Sub(begin.Truncate(time.Second))
		}
	case !errors.Is(err, fs.ErrNotExist): // another check of this host has removed it
		return found, err
	}
	switch err := s.Store.Delete(ctx, name); {
	case errors.Is(err, fs.ErrPermission):
		found.Kept = true
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return found, fmt.Errorf("it can be written, and not cleared: %w", err)
	}
	found.Took = time.Since(begin)
	return found, nil
}

// objectName makes a part of an object's name of that of a host.
func objectName(host string) string {
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' {
			return r
		}
		return '_'
	}, host)
	return cmp.Or(name[:min(len(name), 100)], "host")
}
