package pgbackrest

import (
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"iter"
	"path"
	"regexp"
	"slices"
	"strings"

	"holdfast/internal/archive"
	"holdfast/internal/compress"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store"
)

// WALInfo is what archive.info says.
type WALInfo struct {
	Clusters []Cluster // ascending by ID; the last is the current one

	passphrase string // of WAL
}

// WALInfo reads archive.info. That there is no such stanza is a *NoStanzaError.
func (r *Repository) WALInfo(ctx context.Context) (*WALInfo, error) {
	var i *WALInfo
	err := r.readInfo(ctx, r.archive()+"archive.info", r.opts.Passphrase, func() { i = &WALInfo{} }, func(section, key string, value json.RawMessage) error {
		switch section {
		case "db:history":
			return addCluster(&i.Clusters, key, value)
		case "cipher":
			return passphrase(&i.passphrase, key, value)
		}
		return nil
	})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, r.noStanza(ctx, err)
	case err == nil && len(i.Clusters) == 0:
		err = fmt.Errorf("read %sarchive.info: it describes no cluster", r.archive())
	}
	if err != nil {
		return nil, err
	}
	return i, nil
}

// Of returns the directories with the WAL of the cluster with that system identifier, the newest first: there are several where a stanza was
// upgraded and turned back.
func (i *WALInfo) Of(system uint64) (found []Cluster) {
	for _, c := range slices.Backward(i.Clusters) {
		if c.SystemIdentifier == system {
			found = append(found, c)
		}
	}
	return found
}

// Match returns the cluster of archive.info that one of backup.info is. The two documents number clusters each by itself, as a rule alike; where not, it is the
// newest one with that system identifier and version.
func (i *WALInfo) Match(c Cluster) (Cluster, error) {
	if slices.Contains(i.Clusters, c) {
		return c, nil
	}
	for _, found := range i.Of(c.SystemIdentifier) {
		if found.Version == c.Version {
			return found, nil
		}
	}
	return Cluster{}, fmt.Errorf("archive.info describes no cluster of PostgreSQL %s with system identifier %d, and backup.info does: they are not of the same stanza, or one is out of date",
		c.Version, c.SystemIdentifier)
}

// WAL shows the WAL of one cluster as that of an archive of ours: every file by its own name, neither compressed nor encrypted. It has no backups, and cannot
// be written to.
func (r *Repository) WAL(i *WALInfo, c Cluster) *archive.Archive {
	v := &walView{r: r, cluster: c, dir: r.archive() + c.Name() + "/", passphrase: i.passphrase}
	return archive.New(v, archive.Options{Method: compress.None})
}

// walView is a store with the WAL of a cluster.
type walView struct {
	r          *Repository
	cluster    Cluster
	dir        string
	passphrase string
}

// ownerName is what an archive of ours says in whose it is: archive.info does, and that it was read tells that there is an archive, though it may lack a file.
const ownerName = "holdfast/cluster.json"

// owner returns that document.
func (v *walView) owner() ([]byte, error) {
	return json.Marshal(archive.Owner{SystemIdentifier: v.cluster.SystemIdentifier, By: "pgBackRest"})
}

// An entry is a WAL file in the repository.
type entry struct {
	store.Object
	name  string // of the file, as PostgreSQL has it
	sum   string // SHA-1 of the content, hexadecimal; "" where the name does not say
	codec codec
}

// walObject matches names of WAL files: segments, whole or partial, have a checksum of their content, labels and histories do not.
var walObject = regexp.MustCompile(`^([0-9A-F]{24}(?:\.partial)?)-([0-9a-f]{40})$`)

// entryOf reads an object's name; false for what is no WAL file.
func entryOf(o store.Object) (entry, bool) {
	base, codec := splitCodec(path.Base(o.Name))
	e := entry{Object: o, name: base, codec: codec}
	if found := walObject.FindStringSubmatch(base); found != nil {
		e.name, e.sum = found[1], found[2]
		return e, true
	}
	kind := wal.KindOf(base)
	return e, kind == wal.History || kind == wal.Label
}

// entries yields the WAL files whose names lie behind after, in the order of their names.
func (v *walView) entries(ctx context.Context, after string) iter.Seq2[entry, error] {
	return func(yield func(entry, error) bool) {
		for o, err := range v.r.store.List(ctx, v.dir, "") {
			if err != nil {
				yield(entry{}, err)
				return
			}
			base := path.Base(o.Name)
			if !o.IsDir() {
				if e, ok := entryOf(o); ok && e.name > after && !yield(e, nil) {
					return
				}
				continue
			}
			if len(base) != 16 || !wal.IsSegment(base+"00000000") || base < after[:min(16, len(after))] {
				continue
			}
			if !v.within(ctx, o.Name, after, yield) {
				return
			}
		}
	}
}

// within yields those of one directory.
func (v *walView) within(ctx context.Context, dir, after string, yield func(entry, error) bool) bool {
	begin := ""
	if strings.HasPrefix(after, path.Base(dir)) {
		begin = dir + after // behind it are the objects of that file, too
	}
	for o, err := range v.r.store.List(ctx, dir, begin) {
		if err != nil {
			yield(entry{}, err)
			return false
		}
		if e, ok := entryOf(o); ok && !o.IsDir() && e.name > after && !yield(e, nil) {
			return false
		}
	}
	return true
}

// find returns the object of a WAL file. Several with other contents are an error: pgBackRest stores no second one, so that only an operator can know which is right.
func (v *walView) find(ctx context.Context, name string) (entry, error) {
	kind := wal.KindOf(name)
	if kind == wal.Other {
		return entry{}, &fs.PathError{Op: "open", Path: archive.WALDir + name, Err: fs.ErrNotExist}
	}
	dir, begin := v.dir, v.dir+name[:8]+"."
	if kind != wal.History {
		dir = v.dir + name[:16] + "/"
		begin = dir + name[:23] // sorts before it, whatever is behind
	}
	var found *entry
	for o, err := range v.r.store.List(ctx, dir, begin) {
		if err != nil {
			return entry{}, err
		}
		e, ok := entryOf(o)
		if o.IsDir() || !strings.HasPrefix(path.Base(o.Name), name[:min(24, len(name))]) {
			if path.Base(o.Name) > name {
				break
			}
			continue
		}
		switch {
		case !ok || e.name != name:
		case found == nil:
			found = &e
		case found.sum != e.sum || e.sum == "":
			return entry{}, fmt.Errorf("%s is in the repository twice, as %s and %s, and they differ", name, path.Base(found.Name), path.Base(e.Name))
		}
	}
	if found == nil {
		return entry{}, &fs.PathError{Op: "open", Path: dir + name, Err: fs.ErrNotExist}
	}
	return *found, nil
}

// fileOf returns the name of a WAL file that a name of our archives stands for.
func fileOf(op, object string) (string, error) {
	name, ok := strings.CutPrefix(object, archive.WALDir)
	if !ok || wal.KindOf(name) == wal.Other {
		return "", &fs.PathError{Op: op, Path: object, Err: fs.ErrNotExist}
	}
	return name, nil
}

// Open implements store.Store. What is read to its end without an error has the checksum that its name says.
func (v *walView) Open(ctx context.Context, object string) (io.ReadCloser, error) {
	if object == ownerName {
		b, err := v.owner()
		return io.NopCloser(bytes.NewReader(b)), err
	}
	name, err := fileOf("open", object)
	if err != nil {
		return nil, err
	}
	e, err := v.find(ctx, name)
	if err != nil {
		return nil, err
	}
	body, err := v.r.open(ctx, e.Name, 0, -1)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s was listed, and is gone", e.Name) // and so not missing for good
	}
	if err != nil {
		return nil, err
	}
	in := io.Reader(body)
	if v.passphrase != "" {
		in = newDecrypter(body, v.passphrase, false)
	}
	return &checkedWAL{in: e.codec.open(in), body: body, entry: e, sum: sha1.New()}, nil
}

// checkedWAL compares what is read with the checksum in the object's name.
type checkedWAL struct {
	in, body io.ReadCloser
	entry    entry
	sum      hash.Hash
	err      error // stays
}

// Read implements io.Reader.
func (c *checkedWAL) Read(p []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	n, err := c.in.Read(p)
	c.sum.Write(p[:n]) // never fails
	switch {
	case err == io.EOF:
		c.err = io.EOF
		if got := hex.EncodeToString(c.sum.Sum(nil)); c.entry.sum != "" && got != c.entry.sum {
			c.err = fmt.Errorf("%s: its content has the SHA-1 %s: %w", c.entry.Name, got, ErrDamaged)
		}
	case err != nil:
		c.err = fmt.Errorf("%s: %w", c.entry.Name, damaged(err))
	}
	return n, c.err
}

// Close implements io.Closer.
func (c *checkedWAL) Close() error { return errors.Join(c.in.Close(), c.body.Close()) }

// OpenRange implements store.Store.
func (v *walView) OpenRange(ctx context.Context, object string, offset, length int64) (io.ReadCloser, error) {
	if offset < 0 || length < -1 {
		return nil, fmt.Errorf("open %s from %d for %d bytes: %w", object, offset, length, fs.ErrInvalid)
	}
	body, err := v.Open(ctx, object)
	if err != nil || offset == 0 && length < 0 {
		return body, err
	}
	if _, err := io.CopyN(io.Discard, body, offset); err == io.EOF {
		return io.NopCloser(bytes.NewReader(nil)), body.Close()
	} else if err != nil {
		return nil, errors.Join(err, body.Close())
	}
	in := io.Reader(body)
	if length >= 0 {
		in = io.LimitReader(body, length)
	}
	return struct {
		io.Reader
		io.Closer
	}{in, body}, nil
}

// Stat implements store.Store. The size is that in the repository.
func (v *walView) Stat(ctx context.Context, object string) (store.Object, error) {
	if object == ownerName {
		b, err := v.owner()
		return store.Object{Name: object, Size: int64(len(b))}, err
	}
	name, err := fileOf("stat", object)
	if err != nil {
		return store.Object{}, err
	}
	e, err := v.find(ctx, name)
	e.Object.Name = object
	return e.Object, err
}

// List implements store.Store. Sizes are those in the repository.
func (v *walView) List(ctx context.Context, dir, after string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		if dir != archive.WALDir {
			if dir == "" && after < archive.WALDir {
				yield(store.Object{Name: archive.WALDir}, nil)
			}
			return
		}
		behind, inside := strings.CutPrefix(after, archive.WALDir)
		switch {
		case !inside && after > archive.WALDir:
			return
		case !inside:
			behind = ""
		}
		last := ""
		for e, err := range v.entries(ctx, behind) {
			if err != nil {
				yield(store.Object{}, err)
				return
			}
			if e.name == last {
				continue
			}
			last = e.name
			o := e.Object
			o.Name = archive.WALDir + e.name
			if !yield(o, nil) {
				return
			}
		}
	}
}

// Put implements store.Store: it refuses.
func (v *walView) Put(_ context.Context, object string, _ io.Reader) error {
	return &fs.PathError{Op: "put", Path: object, Err: errReadOnly}
}

// Delete implements store.Store: it refuses.
func (v *walView) Delete(_ context.Context, object string) error {
	return &fs.PathError{Op: "delete", Path: object, Err: errReadOnly}
}

// errReadOnly says why nothing is written.
var errReadOnly = fmt.Errorf("repositories of pgBackRest are only read: %w", fs.ErrPermission)
