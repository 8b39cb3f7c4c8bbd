package archive

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"

	"holdfast/internal/compress"
	"holdfast/internal/store"
	"holdfast/internal/tarpart"
)

// Draft is a backup in the making. It becomes a backup with Commit and leaves nothing after Abort. Parts may be put
// from several goroutines; Commit and Abort come last.
type Draft struct {
	Parallel int // frames of a part compressed at once; 0 means 1. Set it before the first part

	archive *Archive
	name    string
	push    Push
	marker  []byte // push.json
	number  atomic.Int64

	ending sync.Mutex // held while the marker is stored anew or removed
	ended  bool       // the marker is not to be stored again
	final  bool       // others may put the sentinel: nothing is to be removed

	broken atomic.Bool // a put was broken off: the store may come to finish it all the same

	sentinel []byte // once Commit tries to store it
	files    int64  // once Commit has counted them

	mu       sync.Mutex
	parts    []draftPart
	contents int64 // bytes of member contents
	stored   int64 // bytes handed to the store

	objects map[string]Stored            // what is stored, by name from the folder on
	copied  map[string]map[string]Stored // the same of backups that objects were copied from

	same      []tarpart.Member // files that are as in the parent, until they fill a line
	sameNames int              // bytes of their paths
	unchanged []manifestLine   // of such files
}

// draftPart is a finished part.
type draftPart struct {
	name string
	line manifestLine
}

// manifestLine is a line of the manifest, compressed, so that a million members cost some 30 MB.
type manifestLine []byte

func newManifestLine(v any) (manifestLine, error) {
	line, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	if line = append(line, '\n'); len(line) >= maxManifestLine {
		return nil, fmt.Errorf("%d bytes are more than a line of the manifest may have: a smaller WALG_TAR_SIZE_THRESHOLD makes smaller parts", len(line))
	}
	z := compress.Compress(bytes.NewReader(line), compress.Zstd, compress.Options{})
	defer z.Close() // gives its buffers back
	return io.ReadAll(z)
}

// open reads the line. The caller closes it.
func (l manifestLine) open() io.ReadCloser {
	return compress.Decompress(bytes.NewReader(l), compress.Zstd)
}

// decode decodes the line.
func (l manifestLine) decode(v any) error {
	r := l.open()
	line, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close()); err != nil {
		return err
	}
	return json.Unmarshal(line, v)
}

// Name returns the backup's name.
func (d *Draft) Name() string { return d.name }

// Storage returns the name of the storage that the draft is in, where there are several.
func (d *Draft) Storage(ctx context.Context) (string, error) {
	o, err := d.archive.store.Stat(ctx, d.markerName())
	return o.Storage, err
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
	body, n := d.archive.packed(tar, d.archive.opts.Method, max(1, d.Parallel))
	defer body.Close() // gives its buffers back
	if err := d.put(ctx, d.archive.partsDir(d.name)+name, body); err != nil {
		return err
	}
	return d.add(ManifestPart{Name: name, Size: n.n.Load(), Members: members()})
}

// add notes a part that is stored.
func (d *Draft) add(p ManifestPart) error {
	line, err := newManifestLine(p)
	if err != nil {
		return fmt.Errorf("describe %s: %w", p.Name, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.parts = append(d.parts, draftPart{name: p.Name, line: line})
	d.stored += p.Size
	for _, m := range p.Members {
		d.contents += m.Size
	}
	return nil
}

func (a *Archive) sumsName(backup, base string) string {
	return a.folder(backup) + "page_sums/" + base + ".crc32c"
}

// PutSums stores the checksums of the pages in the part base, as tarpart.Packer.Sums has them. Without any it does nothing.
func (d *Draft) PutSums(ctx context.Context, base string, sums []byte) error {
	if len(sums) == 0 {
		return nil
	}
	body, _ := d.archive.packed(bytes.NewReader(sums), compress.None, 1)
	defer body.Close() // gives its buffers back
	return d.put(ctx, d.archive.sumsName(d.name, base), body)
}

// OpenSums reads what PutSums stored for the part base, which is its name without the codec's extension. fs.ErrNotExist where nothing in it is made
// of pages, and for backups whose manifest has form 1.
func (a *Archive) OpenSums(ctx context.Context, backup, base string) (io.ReadCloser, error) {
	name := a.sumsName(backup, base)
	raw, err := a.store.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	if a.opts.Key == nil { // sums may look like anything, also like something encrypted; the manifest tells what is right
		return &named{ReadCloser: raw, name: name}, nil
	}
	return a.unpacked(raw, name, compress.None), nil
}

// Unchanged notes a file of which a delta stores nothing, as it is what it was in the parent: its Path, Mode, Size, ModTime,
// Inode and Changed. It may be called from several goroutines.
func (d *Draft) Unchanged(m tarpart.Member) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.same = append(d.same, m)
	if d.sameNames += len(m.Path); len(d.same) < MaxPartMembers && d.sameNames < MaxPartNames {
		return nil
	}
	return d.flushUnchanged()
}

func (d *Draft) flushUnchanged() error {
	if len(d.same) == 0 {
		return nil
	}
	line, err := newManifestLine(unchangedLine{d.same})
	if err != nil {
		return fmt.Errorf("describe what is unchanged: %w", err)
	}
	d.unchanged = append(d.unchanged, line)
	d.same, d.sameNames = d.same[:0], 0
	return nil
}

// ConfigName names the object that holds configuration from outside the data directory, without extension.
const ConfigName = "config.tar"

// PutConfig stores a tar stream of configuration files beside the backup.
func (d *Draft) PutConfig(ctx context.Context, tar io.Reader) error {
	body, _ := d.archive.packed(tar, d.archive.opts.Method, 1)
	defer body.Close() // gives its buffers back
	return d.put(ctx, d.archive.folder(d.name)+ConfigName+d.archive.opts.Method.Extension(), body)
}

// OpenConfig reads the tar stream that PutConfig stored. A backup without it is fs.ErrNotExist.
func (a *Archive) OpenConfig(ctx context.Context, backup string) (io.ReadCloser, error) {
	object, method, err := a.findConfig(ctx, backup)
	if err != nil {
		return nil, err
	}
	return a.open(ctx, object, method)
}

// findConfig returns the object that PutConfig stored.
func (a *Archive) findConfig(ctx context.Context, backup string) (object string, method compress.Method, err error) {
	for o, err := range a.store.List(ctx, a.folder(backup), a.folder(backup)+ConfigName[:len(ConfigName)-1]) {
		if err != nil {
			return "", "", err
		}
		base, method := compress.Split(strings.TrimPrefix(o.Name, a.folder(backup)))
		if base == ConfigName {
			return o.Name, method, nil
		}
		if base > ConfigName {
			break
		}
	}
	return "", "", notExist("configuration beside %s", backup)
}

// Sizes returns the bytes of member contents and the bytes stored so far.
func (d *Draft) Sizes() (contents, stored int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.contents, d.stored
}

// Files returns how many files the backup holds, labels aside. It is known once Commit returned nil.
func (d *Draft) Files() int64 { return d.files }

// Commit makes the draft a backup: it stores manifest, metadata and file list, makes sure that the store holds the parts that
// were put and no others, and stores the sentinel, where the archive's Fence lets it. s is complete but for the sizes, which Commit fills in. An *InUseError says
// that the name is another push's now, or that another program interfered; a *SealedError that others may make a backup of it.
func (d *Draft) Commit(ctx context.Context, s *Sentinel) error {
	if err := d.hold(ctx); err != nil {
		return err
	}
	s.UncompressedSize, s.CompressedSize = d.Sizes()
	s.Version, s.DateFmt = 2, dateFmt
	if d.archive.slot != "" {
		s.Slot = d.archive.slot
	}
	if err := d.flushUnchanged(); err != nil {
		return err
	}
	// Data parts by number, then control, then label: the order a restore wants. Longer names have more digits.
	slices.SortFunc(d.parts, func(a, b draftPart) int {
		return cmp.Or(cmp.Compare(partRank(a.name), partRank(b.name)), cmp.Compare(len(a.name), len(b.name)), cmp.Compare(a.name, b.name))
	})
	if err := d.putManifest(ctx, s); err != nil {
		return fmt.Errorf("store the manifest of %s: %w", d.name, err)
	}
	metadata, err := json.Marshal(s.Metadata())
	if err != nil {
		return fmt.Errorf("encode the metadata of %s: %w", d.name, err)
	}
	if err := d.putDocument(ctx, d.archive.folder(d.name)+"metadata.json", sealed(metadata)); err != nil {
		return err
	}
	sizes, err := d.putFileList(ctx)
	if err != nil {
		return fmt.Errorf("store the file list of %s: %w", d.name, err)
	}
	if s.Objects, err = d.putObjects(ctx); err != nil {
		return fmt.Errorf("store the checksums of the objects of %s: %w", d.name, err)
	}
	sentinel, err := s.encode()
	if err != nil {
		return fmt.Errorf("encode the sentinel of %s: %w", d.name, err)
	}
	sentinel = sealed(sentinel)
	if err := d.whole(ctx, sizes); err != nil {
		return err
	}
	if err := d.hold(ctx); err != nil {
		return err
	}
	d.sentinel = sentinel
	if err := d.putSentinel(ctx); err != nil {
		return err
	}
	// The backup exists. A marker that stays behind beside a sentinel means nothing, so its removal cannot fail it.
	d.ending.Lock()
	defer d.ending.Unlock()
	d.ended = true
	_ = d.archive.store.Delete(ctx, d.markerName())
	return nil
}

// whole returns an *InUseError unless the parts in the store are those that were put, by name and size.
func (d *Draft) whole(ctx context.Context, sizes map[string]int64) error {
	parts, err := d.archive.Parts(ctx, d.name)
	if err != nil {
		return err
	}
	wrong := func(format string, args ...any) error {
		return &InUseError{d.name, "was interfered with: " + fmt.Sprintf(format, args...),
			"another program writes or deletes there, perhaps a push on another host; see to it that there is one at a time, and take the backup again"}
	}
	for _, p := range parts {
		switch size, put := sizes[p.Name]; {
		case !put:
			return wrong("%s is not of this push", d.archive.partsDir(d.name)+p.Name)
		case size != p.Size:
			return wrong("%s has %d bytes, and was put with %d", d.archive.partsDir(d.name)+p.Name, p.Size, size)
		}
		delete(sizes, p.Name)
	}
	for name := range sizes {
		return wrong("%s is gone", d.archive.partsDir(d.name)+name)
	}
	return nil
}

// put stores what r yields as an object of d, never over another: that would be of a push that took this one for dead, or that
// this one took for dead. Such a one is an *InUseError.
func (d *Draft) put(ctx context.Context, name string, r io.Reader) error {
	ours := &summed{Reader: r}
	err := store.PutIfAbsent(ctx, d.archive.store, name, ours)
	if err == nil {
		d.note(name, Stored{ours.n, ours.xxh64()})
	}
	if !errors.Is(err, fs.ErrExist) {
		if ctx.Err() != nil {
			d.broken.Store(true)
		}
		return err
	}
	// Where all of it had been sent it may be our own, stored though the answer got lost.
	if ours.ended {
		body, err := d.archive.store.Open(ctx, name)
		if err != nil {
			return err
		}
		defer body.Close() // only read
		theirs := &summed{Reader: body}
		if _, err := io.Copy(io.Discard, theirs); err != nil {
			return fmt.Errorf("compare %s with what was put: %w", name, err)
		}
		if theirs.n == ours.n && theirs.xxh64() == ours.xxh64() {
			d.note(name, Stored{ours.n, ours.xxh64()})
			return nil
		}
	}
	return d.taken(name)
}

// putDocument is put for what is small enough to be sent again.
func (d *Draft) putDocument(ctx context.Context, name string, b []byte) error {
	err := store.PutIfAbsent(ctx, d.archive.store, name, bytes.NewReader(b))
	if !errors.Is(err, fs.ErrExist) {
		if ctx.Err() != nil {
			d.broken.Store(true)
		}
		return err
	}
	there, err := store.ReadFile(ctx, d.archive.store, name, MaxSentinel)
	if err == nil && !bytes.Equal(there, b) {
		err = d.taken(name)
	}
	return err
}

func (d *Draft) taken(object string) error {
	return &InUseError{d.name, fmt.Sprintf("is being written by another push at this moment: there is a %s of it", object),
		"wait for it to end, then try again"}
}

// summed counts and sums up what is read, by Read or WriteTo.
type summed struct {
	io.Reader
	n     int64
	hash  *xxhash.Digest // nil before the first byte
	ended bool           // all was read
}

func (s *summed) add(p []byte) {
	if s.hash == nil {
		s.hash = xxhash.New()
	}
	s.n += int64(len(p))
	s.hash.Write(p)
}

// xxh64 returns the XXH64 of what was read.
func (s *summed) xxh64() Sum {
	if s.hash == nil {
		return Sum(xxhash.Sum64(nil))
	}
	return Sum(s.hash.Sum64())
}

func (s *summed) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	s.add(p[:n])
	s.ended = s.ended || err == io.EOF
	return n, err
}

func (s *summed) WriteTo(w io.Writer) (int64, error) {
	n, err := io.Copy(&summingWriter{w, s}, s.Reader)
	s.ended = err == nil
	return n, err
}

type summingWriter struct {
	io.Writer
	s *summed
}

func (w *summingWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	w.s.add(p[:n])
	return n, err
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

// retake takes the name again that d has lost, to remove what d has put since. It is an *InUseError where there is a backup of that name, or another push.
func (d *Draft) retake(ctx context.Context) error {
	whole, err := d.archive.exists(ctx, d.archive.sentinelName(d.name))
	switch {
	case err != nil:
		return err
	case whole:
		return d.taken(d.archive.sentinelName(d.name))
	}
	return d.take(ctx, false)
}

// unmake removes the sentinel that d has put. One that another has put is an *InUseError.
func (d *Draft) unmake(ctx context.Context) error {
	sentinel := d.archive.sentinelName(d.name)
	there, err := store.ReadFile(ctx, d.archive.store, sentinel, MaxSentinel)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !bytes.Equal(there, d.sentinel):
		return &InUseError{d.name, "was made by another push meanwhile", "nothing was removed: see whether that backup restores"}
	}
	return d.archive.store.Delete(ctx, sentinel)
}

// Abort removes everything the draft stored, the sentinel first in case a failed Commit left one. Where the name, or the sentinel, is
// another push's now Abort removes nothing, as that may be a good backup, and returns an *InUseError, but for one who
// had lost its turn by the archive's Fence: that is told so already, and removes what it has put since its name was swept. After a *SealedError it removes nothing either.
func (d *Draft) Abort(ctx context.Context) error {
	d.ending.Lock()
	defer d.ending.Unlock()
	if d.final {
		d.ended = true
		return nil
	}
	told := func(err error) bool { return d.archive.fence != nil && errors.As(err, new(*InUseError)) }
	err := d.hold(ctx)
	if told(err) {
		if err = d.retake(ctx); told(err) {
			d.ended = true
			return nil
		}
	}
	if err != nil {
		return err
	}
	d.ended = true
	settle := cmp.Or(d.archive.opts.Settle, 900*time.Millisecond)
	for pause := settle / 7; ; pause *= 2 {
		if err := d.unmake(ctx); err != nil {
			return err
		}
		var names []string
		for o, err := range store.Walk(ctx, d.archive.store, d.archive.folder(d.name)) {
			if err != nil {
				return err
			}
			if o.Name != d.markerName() {
				names = append(names, o.Name)
			}
		}
		switch err := d.erase(ctx, names); {
		case told(err):
			return nil
		case err != nil:
			return err
		}
		if !d.broken.Load() || pause <= 0 || pause > settle {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
	return d.archive.store.Delete(ctx, d.markerName()) // last, so that a removal that is cut short can be taken up again
}

func (d *Draft) putManifest(ctx context.Context, s *Sentinel) error {
	sum := sha256.New()
	err := pipe(func(w io.Writer) error {
		w = io.MultiWriter(w, sum)
		h := ManifestHeader{Holdfast: manifestForm, Backup: d.name, Checksum: "CRC32C", Started: s.StartTime, Parts: len(d.parts), Unchanged: len(d.unchanged)}
		if s.SystemIdentifier != nil {
			h.SystemIdentifier = *s.SystemIdentifier
		}
		if s.CatchUp() {
			h.Since = s.DeltaLSN
		}
		if s.DeltaFrom != "" {
			h.Parent = &ManifestParent{Backup: s.DeltaFrom, Sum: s.Parent}
		}
		if err := json.NewEncoder(w).Encode(h); err != nil {
			return err
		}
		for line := range d.lines() {
			r := line.open()
			_, err := io.Copy(w, r)
			if err := errors.Join(err, r.Close()); err != nil {
				return err
			}
		}
		return nil
	}, func(r io.Reader) error {
		z, _ := d.archive.packed(r, compress.Zstd, 1)
		defer z.Close() // gives its buffers back
		return d.put(ctx, d.archive.folder(d.name)+manifestName, z)
	})
	s.Manifest = hex.EncodeToString(sum.Sum(nil))
	return err
}

// lines yields the manifest's lines behind the first.
func (d *Draft) lines() iter.Seq[manifestLine] {
	return func(yield func(manifestLine) bool) {
		for _, p := range d.parts {
			if !yield(p.line) {
				return
			}
		}
		for _, line := range d.unchanged {
			if !yield(line) {
				return
			}
		}
	}
}

// each decodes the parts' members one part after the other.
func (d *Draft) each(do func(p *ManifestPart) error) error {
	for _, packed := range d.parts {
		var p ManifestPart
		if err := packed.line.decode(&p); err != nil {
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
	Size          *int64 `json:"HoldfastSize,omitempty"` // ours: bytes of the whole file, for hosts that cannot read the manifest
}

func newFileEntry(m *tarpart.Member) fileEntry {
	e := fileEntry{MTime: m.ModTime, IsIncremented: m.Increment != nil}
	if m.Type == tarpart.File {
		size := m.Total()
		e.Size = &size
	}
	if m.Type == tarpart.File && m.Inode == 0 && m.ModTime.Nanosecond() == 0 {
		// As it came over the wire, in whole seconds, within which a file may be written to again: WAL-G takes a file with the same time
		// for the same, and must compare its pages instead.
		e.MTime = time.Time{}
	}
	if m.CorruptCount > 0 {
		e.CorruptBlocks = &corruptBlocks{m.CorruptCount, m.Corrupt}
	}
	return e
}

type corruptBlocks struct {
	CorruptBlocksCount int
	SomeCorruptBlocks  []uint32
}

// putFileList stores files_metadata.json, which stock WAL-G restores by: a member it does not list is not extracted. It
// counts the files, and returns the parts' sizes as stored, in bytes, by name.
func (d *Draft) putFileList(ctx context.Context) (sizes map[string]int64, err error) {
	sizes, d.files = make(map[string]int64, len(d.parts)), 0
	err = d.each(func(p *ManifestPart) error {
		sizes[p.Name] = p.Size
		for i := range p.Members {
			if p.Members[i].Type == tarpart.File && partRank(p.Name) != 2 {
				d.files++
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = pipe(func(w io.Writer) error {
		return writeFileList(w, func(part func(*ManifestPart) error, unchanged func(*unchangedLine) error) error {
			if err := d.each(part); err != nil || unchanged == nil {
				return err
			}
			for _, packed := range d.unchanged {
				var line unchangedLine
				if err := packed.decode(&line); err != nil {
					return err
				}
				if err := unchanged(&line); err != nil {
					return err
				}
			}
			return nil
		})
	}, func(r io.Reader) error {
		return d.put(ctx, d.archive.folder(d.name)+"files_metadata.json", r)
	})
	return sizes, err
}

// writeFileList writes files_metadata.json. It is made of the manifest alone, which read goes through as often as it is called: the parts, then, unless that
// is nil, what is unchanged.
func writeFileList(w io.Writer, read func(part func(*ManifestPart) error, unchanged func(*unchangedLine) error) error) error {
	b := &jsonWriter{w: bufio.NewWriterSize(w, 64<<10)}
	b.raw(`{"Files":{`)
	first := true
	file := func(m *tarpart.Member, skipped bool) {
		b.comma(&first)
		b.value(tarpart.Name(m.Path))
		b.raw(":")
		e := newFileEntry(m)
		e.IsSkipped = skipped
		b.value(e)
	}
	err := read(func(p *ManifestPart) error {
		for i := range p.Members {
			if partRank(p.Name) == 0 { // control file and labels are restored whether listed or not
				file(&p.Members[i], false)
			}
		}
		return b.err
	}, func(line *unchangedLine) error {
		for i := range line.Unchanged {
			file(&line.Unchanged[i], true)
		}
		return b.err
	})
	if err != nil {
		return err
	}
	b.raw(`},"TarFileSets":{`)
	first = true
	err = read(func(p *ManifestPart) error {
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
	}, nil)
	if err != nil {
		return err
	}
	b.raw("}}")
	if b.err != nil {
		return b.err
	}
	return b.w.Flush()
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
