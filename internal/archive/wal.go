package archive

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"sync"

	"github.com/cespare/xxhash/v2"

	"holdfast/internal/compress"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store"
)

// ConflictError says that a WAL file is archived already with other contents. The archived one stays as it is.
type ConflictError struct {
	Name   string // of the WAL file
	Object string // in the store
}

// Error keeps WAL-G's words, which people search logs for.
func (e *ConflictError) Error() string {
	return fmt.Sprintf("WAL file '%s' already archived, contents differ, unable to overwrite %s", e.Name, e.Object)
}

// Hint says what usually is behind it.
func (e *ConflictError) Hint() string {
	return "it is already archived with other contents: two servers write to one archive, a former primary that was promoted away, or a clone. Stop the wrong one. " +
		"If the archived file is the wrong one, move it aside in the store, and " + e.Name + walNoteSuffix + " and what is below " + SummaryDir + " of that name where they are; " +
		"Holdfast does not overwrite WAL"
}

// walNames lists the object names under which a WAL file may be archived and the codec of each, ours first, then the
// other methods, and last the trailing dot that WAL-G before 3.0.9 wrote for no codec.
func (a *Archive) walNames(name string) []walObject {
	names := []walObject{{WALDir + name + a.opts.Method.Extension(), a.opts.Method}}
	for _, m := range compress.Methods() {
		if m != a.opts.Method {
			names = append(names, walObject{WALDir + name + m.Extension(), m})
		}
	}
	return append(names, walObject{WALDir + name + ".", compress.None})
}

// WALName returns the name of the WAL file that is archived as object, in whatever codec.
func WALName(object string) string {
	name, _ := compress.Split(path.Base(object))
	return name
}

type walObject struct {
	name   string
	method compress.Method
}

// PutWAL stores the WAL file name, whose content open yields from its start each time it is called. When PutWAL
// returned nil the content is durable in the archive; stored says whether this call put it there or it was there
// before. Other content under that name, whatever its codec, is a *ConflictError.
func (a *Archive) PutWAL(ctx context.Context, name string, open func() (io.ReadCloser, error)) (stored int64, err error) {
	if wal.KindOf(name) == wal.Other {
		return 0, fmt.Errorf("%q is not the name of a WAL file", name)
	}
	names := a.walNames(name)
	look := names[1:]
	if a.notes() {
		look = names // before the note is left, which would speak for what is there
	}
	if other, err := a.findWAL(ctx, look); err != nil {
		return 0, err
	} else if other != nil {
		return 0, a.sameWAL(ctx, name, *other, open)
	}
	if a.notes() {
		if err := a.leaveNote(ctx, name, open); err != nil {
			return 0, err
		}
	}
	src, err := open()
	if err != nil {
		return 0, err
	}
	defer src.Close() // only read: nothing to lose
	body, n := a.packed(src, a.opts.Method, a.opts.Parallel)
	defer body.Close() // gives its buffers back
	err = store.PutIfAbsent(ctx, a.store, names[0].name, body)
	if errors.Is(err, fs.ErrExist) { // another host was quicker, or it is ours and the answer got lost
		return 0, a.sameWAL(ctx, name, names[0], open)
	}
	return n.n.Load(), err
}

// A walNote stands beside a WAL file as <name>.sum.json. With it a host that can encrypt and not decrypt tells a second push of the same
// content from a conflict. It is left before the file is, by every host that encrypts with the kind of key that has a public part, it is never
// replaced or removed here, and nobody puts the file whose content is another than the note's: so that where both are, the note speaks for the file,
// whoever put it, and whoever died between the two. It knows nothing of files that WAL-G, or Holdfast without the key, puts at the same time.
// WAL-G passes it over, and deletes it with the file.
type walNote struct {
	Size int64  `json:"size"`     // bytes
	Hash string `json:"xxhash64"` // of the content, hexadecimal
}

const walNoteSuffix = ".sum.json"

// notes reports whether WAL files get notes.
func (a *Archive) notes() bool { return a.opts.Notes || a.opts.WriteOnly }

// note returns the note of what open yields, as it is stored.
func note(open func() (io.ReadCloser, error)) ([]byte, error) {
	src, err := open()
	if err != nil {
		return nil, err
	}
	defer src.Close() // only read
	hash := xxhash.New()
	size, err := io.CopyBuffer(hash, struct{ io.Reader }{src}, make([]byte, 256<<10))
	if err != nil {
		return nil, err
	}
	return json.Marshal(walNote{Size: size, Hash: fmt.Sprintf("%016x", hash.Sum64())})
}

// leaveNote stores the note of a WAL file. One that is there already is of the same content, or the error is a *ConflictError.
func (a *Archive) leaveNote(ctx context.Context, name string, open func() (io.ReadCloser, error)) error {
	ours, err := note(open)
	if err != nil {
		return err
	}
	err = store.PutIfAbsent(ctx, a.store, WALDir+name+walNoteSuffix, bytes.NewReader(ours))
	if errors.Is(err, fs.ErrExist) {
		err = a.compareNote(ctx, name, ours)
	}
	return err
}

// compareNote returns nil where the note of a WAL file is ours, and a *ConflictError where it is another.
func (a *Archive) compareNote(ctx context.Context, name string, ours []byte) error {
	object := WALDir + name + walNoteSuffix
	theirs, err := store.ReadFile(ctx, a.store, object, 4<<10)
	if errors.Is(err, fs.ErrNotExist) {
		return &unreadableError{name}
	}
	if err == nil && !bytes.Equal(theirs, ours) {
		err = &ConflictError{Name: name, Object: object}
	}
	return err
}

// unreadableError says that a WAL file is archived and nobody here can tell whether it is the same.
type unreadableError struct{ name string }

func (e *unreadableError) Error() string {
	return fmt.Sprintf("WAL file '%s' already archived, and this host has no key to read it and compare", e.name)
}

// Hint says how to go on.
func (e *unreadableError) Hint() string {
	return "it was pushed by a program or a host that leaves no note of its content. Take it to a host that may have the key that reads the archive " +
		"(HOLDFAST_AGE_IDENTITIES_PATH, or the secret key of OpenPGP), and run wal-push there once, with the public key set too: it compares, and leaves the note"
}

// sameWAL returns nil when the archived object holds what open yields, and a *ConflictError when it does not.
func (a *Archive) sameWAL(ctx context.Context, name string, o walObject, open func() (io.ReadCloser, error)) error {
	if a.opts.WriteOnly {
		ours, err := note(open)
		if err != nil {
			return err
		}
		return a.compareNote(ctx, name, ours)
	}
	theirs, err := a.open(ctx, o.name, o.method)
	if err != nil {
		return err
	}
	defer theirs.Close() // only read
	ours, err := open()
	if err != nil {
		return err
	}
	defer ours.Close() // only read
	same, err := sameContent(theirs, ours)
	if err != nil {
		return fmt.Errorf("compare %s with what is archived: %w", name, err)
	}
	if !same {
		return &ConflictError{Name: name, Object: o.name}
	}
	if !a.notes() {
		return nil
	}
	err = a.leaveNote(ctx, name, open) // for hosts that cannot compare
	if errors.As(err, new(*ConflictError)) {
		err = nil // it is archived, as we have seen, whatever a note says
	}
	return err
}

// CompareWAL returns nil when the WAL file name is archived and holds what open yields, a *ConflictError when it holds something else, and
// fs.ErrNotExist when it is not archived.
func (a *Archive) CompareWAL(ctx context.Context, name string, open func() (io.ReadCloser, error)) error {
	there, err := a.findWAL(ctx, a.walNames(name))
	if err == nil && there == nil {
		err = notExist("Archive '%s'", name)
	}
	if err != nil {
		return err
	}
	return a.sameWAL(ctx, name, *there, open)
}

// sameContent reads two streams side by side, 256 KiB of each at a time.
func sameContent(a, b io.Reader) (bool, error) {
	const chunk = 256 << 10
	bufA, bufB := make([]byte, chunk), make([]byte, chunk)
	for {
		n, errA := io.ReadFull(a, bufA)
		m, errB := io.ReadFull(b, bufB)
		for _, err := range []error{errA, errB} {
			if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
				return false, err
			}
		}
		if !bytes.Equal(bufA[:n], bufB[:m]) {
			return false, nil
		}
		if n < chunk {
			return true, nil
		}
	}
}

// OpenWAL reads a WAL file, decompressed. A segment of which there are only pieces (TailDir) is read too, with zeros behind them; such a reader has a
// method Unfinished() bool. A file that is not archived is fs.ErrNotExist, but only in an archive that is there: where nothing at all is found, as when
// the storage is not mounted or the prefix is wrong, the error is another.
func (a *Archive) OpenWAL(ctx context.Context, name string) (io.ReadCloser, error) {
	for range 3 {
		r, err := a.openWhole(ctx, name)
		if !errors.Is(err, fs.ErrNotExist) {
			return r, err
		}
		if !wal.IsSegment(name) {
			return nil, a.missing(ctx, name)
		}
		t, err := a.openTail(ctx, name)
		switch {
		case err == nil:
			return t, nil
		case errors.Is(err, errVanished):
			continue
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
		// Pieces go once the whole segment has come: that it has not, only a look after the one for pieces can tell.
		there, err := a.findWAL(ctx, a.walNames(name))
		if err != nil {
			return nil, err
		}
		if there == nil {
			return nil, a.missing(ctx, name)
		}
	}
	return nil, fmt.Errorf("read %s: %w", name, errVanished)
}

// OpenWholeWAL is OpenWAL for what is archived whole.
func (a *Archive) OpenWholeWAL(ctx context.Context, name string) (io.ReadCloser, error) {
	r, err := a.openWhole(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		err = a.missing(ctx, name)
	}
	return r, err
}

func (a *Archive) openWhole(ctx context.Context, name string) (io.ReadCloser, error) {
	if wal.KindOf(name) == wal.Other {
		return nil, fmt.Errorf("%q is not the name of a WAL file", name)
	}
	names := a.walNames(name)
	r, err := a.open(ctx, names[0].name, names[0].method)
	if !errors.Is(err, fs.ErrNotExist) {
		return r, err
	}
	other, err := a.findWAL(ctx, names[1:])
	if err != nil {
		return nil, err
	}
	if other == nil {
		return nil, fs.ErrNotExist
	}
	r, err = a.open(ctx, other.name, other.method)
	if errors.Is(err, fs.ErrNotExist) { // just now it was there
		err = fmt.Errorf("%v", err)
	}
	return r, err
}

// missing is the error for a WAL file that is not there: fs.ErrNotExist where there is an archive.
func (a *Archive) missing(ctx context.Context, name string) error {
	there, err := a.there(ctx)
	if err != nil {
		return fmt.Errorf("look whether there is an archive: %w", err)
	}
	if !there {
		return errors.New("there is no archive: its storage is not mounted, or the prefix is wrong, or nothing was archived yet")
	}
	return notExist("Archive '%s'", name)
}

// findWAL returns which of the objects exists; nil when none does. It asks for all of them at once: one round trip,
// whatever the store's delay.
func (a *Archive) findWAL(ctx context.Context, names []walObject) (*walObject, error) {
	found := make([]error, len(names))
	var group sync.WaitGroup
	for i, o := range names {
		group.Go(func() { _, found[i] = a.store.Stat(ctx, o.name) })
	}
	group.Wait()
	for i, err := range found {
		switch {
		case err == nil:
			return &names[i], nil
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
	}
	return nil, nil
}

// there reports whether anything of an archive is in the store.
func (a *Archive) there(ctx context.Context) (bool, error) {
	if owned, err := a.exists(ctx, ownerName); owned || err != nil {
		return owned, err
	}
	for _, dir := range []string{WALDir, BackupDir} { // WAL-G leaves no ownerName
		for _, err := range a.store.List(ctx, dir, "") {
			return err == nil, err
		}
	}
	return false, nil
}

// MissingWAL returns which of the segments first to last of timeline t the archive lacks, at most max of them
// (0: all), in ascending order. An object without a byte is no segment.
func (a *Archive) MissingWAL(ctx context.Context, t wal.Timeline, first, last wal.SegmentNo, size wal.SegmentSize, max int) ([]string, error) {
	var missing []string
	full := func() bool { return max > 0 && len(missing) >= max }
	next := first
	lack := func(until wal.SegmentNo) { // all from next to before until are missing
		for ; next < until && next <= last && !full(); next++ {
			missing = append(missing, size.Name(t, next))
		}
	}
	// Names sort after the segment they begin with; "." sorts before every digit, so this starts at first itself.
	after := WALDir + size.Name(t, first)[:23]
	for o, err := range a.store.List(ctx, WALDir, after) {
		if err != nil {
			return nil, fmt.Errorf("list WAL: %w", err)
		}
		name := WALName(o.Name)
		if o.IsDir() || !wal.IsSegment(name) || o.Size == 0 {
			continue
		}
		tl, no, err := size.ParseSegment(name)
		if err != nil || tl < t || (tl == t && no < next) {
			continue
		}
		if tl > t || no > last || full() {
			break
		}
		lack(no)
		next = no + 1
	}
	lack(last + 1)
	return missing, nil
}
