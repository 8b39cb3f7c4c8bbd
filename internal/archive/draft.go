package archive

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"holdfast/internal/compress"
	"holdfast/internal/store"
	"holdfast/internal/tarpart"
)

// stalePush is how long after its last sign of life a push counts as dead.
const stalePush = 15 * time.Minute

// Push describes a backup-push at work; push.json in the backup's folder holds it until the backup is committed.
type Push struct {
	Host    string    `json:"host"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	Beat    time.Time `json:"beat"` // rewritten by Draft.Beat
}

// InUseError says that a backup of that name exists or is being written.
type InUseError struct {
	Backup string
	Reason string
	Advice string
}

func (e *InUseError) Error() string { return fmt.Sprintf("backup %s %s", e.Backup, e.Reason) }

// Hint says how to go on.
func (e *InUseError) Hint() string { return e.Advice }

// Draft is a backup in the making. It becomes a backup with Commit and leaves nothing after Abort. Parts may be put
// from several goroutines; Commit and Abort come last.
type Draft struct {
	archive *Archive
	name    string
	push    Push
	number  atomic.Int64

	mu       sync.Mutex
	parts    []draftPart
	contents int64 // bytes of member contents
	stored   int64 // bytes handed to the store
}

// draftPart is a finished part; line is its manifest line, compressed, so that a million members cost some 20 MB.
type draftPart struct {
	name string
	line []byte
}

// Begin claims name for a new backup. A backup that exists under that name, or a push that is writing it, is an
// *InUseError; what a dead push left behind under that name is removed.
func (a *Archive) Begin(ctx context.Context, name, host string) (*Draft, error) {
	if err := CheckBackupName(name); err != nil {
		return nil, err
	}
	now := time.Now().UTC()
	d := &Draft{archive: a, name: name, push: Push{Host: host, PID: os.Getpid(), Started: now, Beat: now}}
	if err := a.refuseTaken(ctx, name, host); err != nil {
		return nil, err
	}
	marker, err := json.Marshal(d.push)
	if err != nil {
		return nil, err
	}
	err = store.PutIfAbsent(ctx, a.store, d.marker(), bytes.NewReader(marker))
	if errors.Is(err, fs.ErrExist) {
		mine, err := d.mine(ctx) // it is when the store tried again because its first answer got lost
		if err == nil && !mine {
			err = &InUseError{name, "was begun by another push at this moment", "wait for it to end, then try again"}
		}
		if err != nil {
			return nil, err
		}
		return d, nil
	}
	if err != nil {
		return nil, err
	}
	return d, nil
}

// mine reports whether the marker in the store is that of d.
func (d *Draft) mine(ctx context.Context) (bool, error) {
	b, err := store.ReadFile(ctx, d.archive.store, d.marker(), maxDocument)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	var p Push
	if err == nil {
		err = json.Unmarshal(b, &p)
	}
	if err != nil {
		return false, fmt.Errorf("read who is writing %s: %w", d.name, err)
	}
	return p.Host == d.push.Host && p.PID == d.push.PID && p.Started.Equal(d.push.Started), nil
}

// hold returns an *InUseError when d lost its name: another push took it for dead, or somebody removed its marker.
func (d *Draft) hold(ctx context.Context) error {
	mine, err := d.mine(ctx)
	if err == nil && !mine {
		err = &InUseError{d.name, "was given up: push.json is gone or another push's, which took this one for dead", "take the backup again"}
	}
	return err
}

func (d *Draft) marker() string { return Folder(d.name) + "push.json" }

// Name returns the backup's name.
func (d *Draft) Name() string { return d.name }

// refuseTaken returns nil when nothing is stored for name, after removing what a dead push left there.
func (a *Archive) refuseTaken(ctx context.Context, name, host string) error {
	switch taken, err := a.exists(ctx, sentinelName(name)); {
	case err != nil:
		return err
	case taken:
		return &InUseError{name, "exists already",
			"its name is that of the WAL segment it starts in: try again after a checkpoint in the next segment " +
				"(`SELECT pg_switch_wal()` and `CHECKPOINT` on the primary)"}
	}
	var left []string
	var newest time.Time
	for o, err := range store.Walk(ctx, a.store, Folder(name)) {
		if err != nil {
			return fmt.Errorf("list %s: %w", Folder(name), err)
		}
		left = append(left, o.Name)
		if o.Modified.After(newest) {
			newest = o.Modified
		}
	}
	if len(left) == 0 {
		return nil
	}
	push := Push{Beat: newest} // WAL-G leaves no marker: its last object is its last sign of life
	b, err := store.ReadFile(ctx, a.store, Folder(name)+"push.json", maxDocument)
	if err == nil {
		err = json.Unmarshal(b, &push)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read who is writing %s: %w", name, err)
	}
	dead := time.Since(push.Beat) > stalePush || (push.Host == host && push.PID > 0 && !alive(push.PID))
	if !dead {
		who := "by another program"
		if push.Host != "" {
			who = fmt.Sprintf("by process %d on %s since %s", push.PID, push.Host, push.Started.Format(time.RFC3339))
		}
		return &InUseError{name, "is being written " + who,
			fmt.Sprintf("wait for it to end; when it is dead, try again after %s, or after the next WAL segment",
				push.Beat.Add(stalePush).Format(time.RFC3339))}
	}
	if err := a.remove(ctx, left); err != nil {
		return fmt.Errorf("remove what a broken-off push of %s left: %w", name, err)
	}
	return nil
}

// remove deletes objects, a push marker last, so that a removal that is cut short can be taken up again.
func (a *Archive) remove(ctx context.Context, names []string) error {
	isMarker := func(n string) bool { return strings.HasSuffix(n, "/push.json") }
	data := slices.DeleteFunc(slices.Clone(names), isMarker)
	if err := store.DeleteMany(ctx, a.store, data); err != nil {
		return err
	}
	return store.DeleteMany(ctx, a.store, slices.DeleteFunc(slices.Clone(names), func(n string) bool { return !isMarker(n) }))
}

// alive reports whether there is a process of that number on this host.
func alive(pid int) bool {
	err := syscall.Kill(pid, 0)
	return err == nil || errors.Is(err, syscall.EPERM)
}

// Beat leaves a sign of life, which keeps others from taking the push for dead. Call it about once a minute. An *InUseError
// says that it came too late: the name is another push's now.
func (d *Draft) Beat(ctx context.Context) error {
	if err := d.hold(ctx); err != nil {
		return err
	}
	d.push.Beat = time.Now().UTC()
	return d.archive.putJSON(ctx, d.marker(), d.push)
}

// NextPart names the next data part, without the codec's extension: part_001.tar, part_002.tar and so on.
func (d *Draft) NextPart() string { return fmt.Sprintf("part_%03d.tar", d.number.Add(1)) }

// Names of the parts that are not numbered.
const (
	ControlPart = "pg_control.tar"
	LabelPart   = "backup_label.tar"
)

// PutPart compresses and stores a tar stream as the part base. members is called once the stream was read to its
// end, and says what was in it.
func (d *Draft) PutPart(ctx context.Context, base string, tar io.Reader, members func() []tarpart.Member) error {
	name := base + d.archive.opts.Method.Extension()
	body, n := d.archive.compressed(tar, 1)
	defer body.Close() // gives its buffers back
	if err := d.archive.store.Put(ctx, partsDir(d.name)+name, body); err != nil {
		return err
	}
	p := ManifestPart{Name: name, Size: n.n.Load(), Members: members()}
	line, err := json.Marshal(p)
	if err != nil {
		return err
	}
	packed, err := io.ReadAll(compress.Compress(bytes.NewReader(append(line, '\n')), compress.Zstd, compress.Options{}))
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.parts = append(d.parts, draftPart{name: name, line: packed})
	d.stored += p.Size
	for _, m := range p.Members {
		d.contents += m.Size
	}
	return nil
}

// ConfigName names the object that holds configuration from outside the data directory, without extension.
const ConfigName = "config.tar"

// PutConfig stores a tar stream of configuration files beside the backup.
func (d *Draft) PutConfig(ctx context.Context, tar io.Reader) error {
	body, _ := d.archive.compressed(tar, 1)
	defer body.Close() // gives its buffers back
	return d.archive.store.Put(ctx, Folder(d.name)+ConfigName+d.archive.opts.Method.Extension(), body)
}

// OpenConfig reads the tar stream that PutConfig stored. A backup without it is fs.ErrNotExist.
func (a *Archive) OpenConfig(ctx context.Context, backup string) (io.ReadCloser, error) {
	for o, err := range a.store.List(ctx, Folder(backup), Folder(backup)+ConfigName[:len(ConfigName)-1]) {
		if err != nil {
			return nil, err
		}
		base, method := compress.Split(strings.TrimPrefix(o.Name, Folder(backup)))
		if base == ConfigName {
			return a.open(ctx, o.Name, method)
		}
		if base > ConfigName {
			break
		}
	}
	return nil, notExist("configuration beside %s", backup)
}

// Sizes returns the bytes of member contents and the bytes stored so far.
func (d *Draft) Sizes() (contents, stored int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.contents, d.stored
}

// Commit makes the draft a backup: it stores manifest, file list and metadata, and then the sentinel. s is complete
// but for the sizes, which Commit fills in. An *InUseError says that the name is another push's now.
func (d *Draft) Commit(ctx context.Context, s *Sentinel) error {
	if err := d.hold(ctx); err != nil {
		return err
	}
	s.UncompressedSize, s.CompressedSize = d.Sizes()
	s.Version, s.DateFmt = 2, dateFmt
	// Data parts by number, then control, then label: the order a restore wants. Longer names have more digits.
	slices.SortFunc(d.parts, func(a, b draftPart) int {
		return cmp.Or(cmp.Compare(partRank(a.name), partRank(b.name)), cmp.Compare(len(a.name), len(b.name)), cmp.Compare(a.name, b.name))
	})
	if err := d.putManifest(ctx, s); err != nil {
		return fmt.Errorf("store the manifest of %s: %w", d.name, err)
	}
	if err := d.archive.putJSON(ctx, Folder(d.name)+"metadata.json", s.Metadata()); err != nil {
		return err
	}
	if err := d.putFileList(ctx); err != nil {
		return fmt.Errorf("store the file list of %s: %w", d.name, err)
	}
	if err := d.archive.putJSON(ctx, sentinelName(d.name), s); err != nil {
		return err
	}
	// The backup exists. A marker that stays behind beside a sentinel means nothing, so its removal cannot fail it.
	_ = d.archive.store.Delete(ctx, d.marker())
	return nil
}

func partRank(name string) int {
	switch base, _ := compress.Split(name); base {
	case ControlPart:
		return 1
	case LabelPart:
		return 2
	}
	return 0
}

// Abort removes everything the draft stored, the sentinel first in case a failed Commit left one. Where the name is another
// push's now Abort removes nothing, as that may be a good backup, and returns an *InUseError.
func (d *Draft) Abort(ctx context.Context) error {
	if err := d.hold(ctx); err != nil {
		return err
	}
	if err := d.archive.store.Delete(ctx, sentinelName(d.name)); err != nil {
		return err
	}
	var names []string
	for o, err := range store.Walk(ctx, d.archive.store, Folder(d.name)) {
		if err != nil {
			return err
		}
		names = append(names, o.Name)
	}
	return d.archive.remove(ctx, names)
}

func (d *Draft) putManifest(ctx context.Context, s *Sentinel) error {
	return pipe(func(w io.Writer) error {
		h := ManifestHeader{Holdfast: 1, Backup: d.name, Checksum: "CRC32C", Started: s.StartTime, Parts: len(d.parts)}
		if s.SystemIdentifier != nil {
			h.SystemIdentifier = *s.SystemIdentifier
		}
		if err := json.NewEncoder(w).Encode(h); err != nil {
			return err
		}
		for _, p := range d.parts {
			if _, err := io.Copy(w, compress.Decompress(bytes.NewReader(p.line), compress.Zstd)); err != nil {
				return err
			}
		}
		return nil
	}, func(r io.Reader) error {
		z := compress.Compress(r, compress.Zstd, compress.Options{})
		defer z.Close() // gives its buffers back
		return d.archive.store.Put(ctx, Folder(d.name)+manifestName, z)
	})
}

// each decodes the parts' members one part after the other.
func (d *Draft) each(do func(p *ManifestPart) error) error {
	for _, packed := range d.parts {
		line, err := io.ReadAll(compress.Decompress(bytes.NewReader(packed.line), compress.Zstd))
		if err != nil {
			return err
		}
		var p ManifestPart
		if err := json.Unmarshal(line, &p); err != nil {
			return err
		}
		if err := do(&p); err != nil {
			return err
		}
	}
	return nil
}

// fileEntry is what files_metadata.json says of a member.
type fileEntry struct {
	IsIncremented bool
	IsSkipped     bool
	MTime         time.Time
	CorruptBlocks *corruptBlocks `json:",omitempty"`
	UpdatesCount  uint64
}

type corruptBlocks struct {
	CorruptBlocksCount int
	SomeCorruptBlocks  []uint32
}

// putFileList stores files_metadata.json, which stock WAL-G restores by: a member it does not list is not extracted.
func (d *Draft) putFileList(ctx context.Context) error {
	return pipe(func(w io.Writer) error {
		b := &jsonWriter{w: bufio.NewWriterSize(w, 64<<10)}
		b.raw(`{"Files":{`)
		first := true
		err := d.each(func(p *ManifestPart) error {
			if partRank(p.Name) != 0 {
				return nil // control file and labels are restored whether listed or not
			}
			for _, m := range p.Members {
				e := fileEntry{MTime: m.ModTime}
				if m.CorruptCount > 0 {
					e.CorruptBlocks = &corruptBlocks{m.CorruptCount, m.Corrupt}
				}
				b.comma(&first)
				b.value(tarpart.Name(m.Path))
				b.raw(":")
				b.value(e)
			}
			return b.err
		})
		if err != nil {
			return err
		}
		b.raw(`},"TarFileSets":{`)
		first = true
		err = d.each(func(p *ManifestPart) error {
			names := make([]string, len(p.Members))
			for i, m := range p.Members {
				names[i] = tarpart.Name(m.Path)
				if partRank(p.Name) == 2 {
					names[i] = m.Path // labels have no leading slash
				}
			}
			b.comma(&first)
			b.value(p.Name)
			b.raw(":")
			b.value(names)
			return b.err
		})
		if err != nil {
			return err
		}
		b.raw("}}")
		if b.err != nil {
			return b.err
		}
		return b.w.Flush()
	}, func(r io.Reader) error {
		return d.archive.store.Put(ctx, Folder(d.name)+"files_metadata.json", r)
	})
}

// jsonWriter writes a document piece by piece and keeps the first error.
type jsonWriter struct {
	w   *bufio.Writer
	err error
}

func (j *jsonWriter) raw(s string) {
	if j.err == nil {
		_, j.err = j.w.WriteString(s)
	}
}

func (j *jsonWriter) comma(first *bool) {
	if !*first {
		j.raw(",")
	}
	*first = false
}

func (j *jsonWriter) value(v any) {
	if j.err != nil {
		return
	}
	var b []byte
	if b, j.err = json.Marshal(v); j.err == nil {
		_, j.err = j.w.Write(b)
	}
}

// pipe runs fill and drain at the two ends of a stream and waits for both. When one fails the other sees that error,
// not a short stream, and pipe returns it.
func pipe(fill func(io.Writer) error, drain func(io.Reader) error) error {
	r, w := io.Pipe()
	filled := make(chan error, 1)
	go func() {
		err := fill(w)
		w.CloseWithError(err) // nil reads as io.EOF
		filled <- err
	}()
	err := drain(r)
	r.CloseWithError(err)
	return cmp.Or(err, <-filled)
}
