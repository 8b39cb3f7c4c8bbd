// Package archive lays backups and WAL out in a store, the way WAL-G does.
//
//	basebackups_005/
//	  base_<WAL>_backup_stop_sentinel.json   the backup exists if and only if this object does
//	  base_<WAL>/
//	    metadata.json                        the same facts for lists; the permanent flag lives here
//	    files_metadata.json                  what stock WAL-G needs to restore
//	    manifest.json.zst                    ours: every member with its checksum, part and offset; of a delta what is unchanged
//	    page_sums/<part>.crc32c              ours: the CRC-32C of each page in that part, four bytes each
//	    objects.json                         ours: size and XXH64 of each object as it was stored
//	    config.tar.<ext>                     ours: configuration that lives outside the data directory
//	    backup_manifest.zst                  ours: the server's own manifest of a backup that it sent over the wire
//	    push.json                            ours: who is writing this backup right now
//	    tar_partitions/part_001.tar.<ext> …  the data; pg_control.tar and backup_label.tar last
//	catchup_005/ …                           as basebackups_005: what has changed since a position of the WAL, see Archive.CatchUps
//	wal_005/<name of the WAL file>.<ext>
//	wal_005/<name of the WAL file>.sum.json    ours: a note of its content, for hosts that cannot decrypt
//	holdfast/cluster.json                    ours: the system identifier of the cluster that owns the archive
//
// With a key everything that holds content is encrypted after it was compressed; the JSON documents that WAL-G reads stay in clear.
//
// A backup is written through a Draft and appears with Commit. WAL is never overwritten: the same bytes again are
// welcome, other bytes are a *ConflictError. Nothing read from the store is trusted; every document has a bound.
package archive

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"path"
	"strings"
	"sync/atomic"
	"time"

	"holdfast/internal/compress"
	"holdfast/internal/crypt"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store"
)

// Directories of the layout, each with its closing slash.
const (
	BackupDir  = "basebackups_005/"
	CatchUpDir = "catchup_005/"
	WALDir     = "wal_005/"
)

const sentinelSuffix = "_backup_stop_sentinel.json"

// Bounds of the JSON documents that are read whole, in bytes.
const (
	// MaxSentinel is for sentinels: those of WAL-G before 1.1.1 carry the list of files.
	MaxSentinel = 64 << 20
	// MaxUserData is for what a user has stored with a backup. It is in the sentinel and in metadata.json.
	MaxUserData = 1 << 20
	// maxDocument is for metadata, owner and push marker. User data may have grown sixfold in JSON.
	maxDocument = 8 << 20
)

// Options says how new objects are written. The zero value writes zstd at its fastest level.
type Options struct {
	Method   compress.Method // "" means zstd
	Level    compress.Level
	Parallel int // frames of one WAL file compressed at once; 0 means 1

	// Key encrypts what is compressed, before it is stored: parts, configuration, manifests and WAL. nil leaves all as it is.
	Key crypt.Key
	// WriteOnly says that Key can encrypt and not decrypt, as on a host that has public keys only.
	WriteOnly bool
	// Notes says that Key has a public part, so that other hosts may be WriteOnly: WAL gets notes for them. WriteOnly includes it.
	Notes bool

	// ProofKeys are who may vouch for records of drills: with them only a record that one of them has signed counts as proof. None: any record does.
	ProofKeys []ed25519.PublicKey

	// Settle is for how long Abort looks again for objects whose put was broken off, as a store may go on with it: 0 means 0.9 s, and less not at all.
	Settle time.Duration
}

// Archive is one cluster's archive in a store.
type Archive struct {
	store   store.Store
	opts    Options
	backups string // directory of the backups
	fence   Fence  // nil: every draft may be committed
	slot    string // that drafts are made for, "" for none
}

// New returns the archive whose root is the root of s.
func New(s store.Store, opts Options) *Archive {
	if opts.Method == "" {
		opts.Method = compress.Zstd
	}
	return &Archive{store: s, opts: opts, backups: BackupDir}
}

// CatchUps returns the same archive with the catch-ups in place of the backups: what brings a standby forward that lags behind. They have the layout
// of backups, in a directory of their own; see Sentinel.CatchUp.
func (a *Archive) CatchUps() *Archive {
	c := *a
	c.backups = CatchUpDir
	return &c
}

// IsCatchUps reports whether a is what CatchUps returns.
func (a *Archive) IsCatchUps() bool { return a.backups == CatchUpDir }

// WriteOnly says that what is encrypted cannot be read here: there is no key for that.
func (a *Archive) WriteOnly() bool { return a.opts.WriteOnly }

// ProofKeys returns those of its Options.
func (a *Archive) ProofKeys() []ed25519.PublicKey { return a.opts.ProofKeys }

// Store returns the store below the archive.
func (a *Archive) Store() store.Store { return a.store }

// packed returns r compressed and encrypted as new objects are, and a counter of the bytes taken from it so far.
func (a *Archive) packed(r io.Reader, m compress.Method, parallel int) (io.ReadCloser, *counter) {
	var z io.ReadCloser = compress.Compress(r, m, compress.Options{Level: a.opts.Level, Parallel: parallel})
	if a.opts.Key != nil {
		z = layers{a.opts.Key.Encrypt(z), z}
	}
	c := &counter{ReadCloser: z}
	return c, c
}

// unpacked returns what raw holds, decrypted and decompressed, and closes raw with it. Errors name the object.
func (a *Archive) unpacked(raw io.ReadCloser, name string, m compress.Method) io.ReadCloser {
	if a.opts.Key != nil {
		raw = layers{a.opts.Key.Decrypt(raw), raw}
		return &named{ReadCloser: layers{compress.Decompress(raw, m), raw}, name: name}
	}
	begin := &beginning{ReadCloser: raw, refuse: m == compress.None}
	return &named{ReadCloser: layers{compress.Decompress(begin, m), begin}, name: name, begin: begin}
}

// beginning keeps how an object begins that is read without a key, to tell whether it needs one.
type beginning struct {
	io.ReadCloser
	refuse bool   // what is encrypted is not passed on: no codec would notice
	read   bool   // head has been read
	head   []byte // what object begins with
	rest   []byte // of head, not passed on yet
	err    error  // of the store, not io.EOF
}

// headLen is what tells of an object that it is encrypted, in bytes.
const headLen = 64

func (b *beginning) Read(p []byte) (n int, err error) {
	if !b.read {
		b.read = true
		b.head = make([]byte, headLen)
		if n, err = io.ReadFull(b.ReadCloser, b.head); err == io.ErrUnexpectedEOF || err == io.EOF {
			err = nil // the store says it again
		}
		b.head = b.head[:n]
		b.rest, b.err = b.head, err
	}
	if b.refuse && b.locked() != "" {
		return 0, errLocked
	}
	if len(b.rest) > 0 {
		n = copy(p, b.rest)
		b.rest = b.rest[n:]
		return n, nil
	}
	if b.err == nil {
		n, err = b.ReadCloser.Read(p)
		if err == io.EOF {
			return n, err
		}
		b.err = err
	}
	return n, b.err
}

// locked returns with what the object is encrypted, "" where nothing shows that it is.
func (b *beginning) locked() crypt.Kind { return crypt.Encrypted(b.head) }

var errLocked = errors.New("it is encrypted")

// lockedError says that an object is encrypted and that there is no key.
type lockedError struct {
	object string
	kind   crypt.Kind
}

func (e *lockedError) Error() string {
	if e.kind == "" { // not looked at: here nothing can be read
		return fmt.Sprintf("read %s: it is encrypted, and the keys that are set are public ones", e.object)
	}
	return fmt.Sprintf("read %s: it is encrypted with %s, and no key is set", e.object, e.kind)
}

// Hint says how to go on.
func (e *lockedError) Hint() string {
	return "set the secret key, such as HOLDFAST_AGE_IDENTITIES_PATH or WALG_PGP_KEY_PATH; `holdfast key check --read` tries it"
}

// layers is a stream made of another one. It closes both.
type layers struct {
	io.ReadCloser
	below io.Closer
}

func (l layers) WriteTo(w io.Writer) (int64, error) { return io.Copy(w, l.ReadCloser) }

func (l layers) Close() error { return errors.Join(l.ReadCloser.Close(), l.below.Close()) }

// counter counts the bytes that pass, by Read or WriteTo.
type counter struct {
	io.ReadCloser
	n atomic.Int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.n.Add(int64(n))
	return n, err
}

func (c *counter) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(&countingWriter{w, &c.n}, c.ReadCloser)
}

type countingWriter struct {
	io.Writer
	n *atomic.Int64
}

func (w *countingWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	w.n.Add(int64(n))
	return n, err
}

// BackupName names the full backup that starts in the WAL file segment.
func BackupName(segment string) string { return "base_" + segment }

// DeltaName names the delta that starts in the WAL file segment and builds on parent.
func DeltaName(segment, parent string) string {
	return BackupName(segment) + "_D_" + strings.TrimPrefix(parent, "base_")[:24]
}

// CheckBackupName reports whether name has the form of a backup's: base_ and 24 hexadecimal digits, then optionally
// _D_ and 24 of a delta's parent, then optionally _ and 8 of WAL-E's offset.
func CheckBackupName(name string) error {
	rest, ok := strings.CutPrefix(name, "base_")
	ok = ok && len(rest) >= 24 && wal.IsSegment(rest[:24])
	if ok {
		rest = rest[24:]
		if parent, isDelta := strings.CutPrefix(rest, "_D_"); isDelta {
			ok = len(parent) >= 24 && wal.IsSegment(parent[:24])
			if ok {
				rest = parent[24:]
			}
		}
	}
	if ok && rest != "" {
		ok = len(rest) == 9 && rest[0] == '_' && strings.Trim(rest[1:], "0123456789ABCDEF") == ""
	}
	if !ok {
		return fmt.Errorf("%q is not the name of a backup, such as base_000000010000000000000003", name)
	}
	return nil
}

// IsDelta reports whether a well-formed backup name is that of a delta.
func IsDelta(name string) bool { return strings.Contains(name, "_D_") }

// Folder is the directory of a backup's objects.
func Folder(name string) string { return BackupDir + name + "/" }

func (a *Archive) folder(name string) string       { return a.backups + name + "/" }
func (a *Archive) partsDir(name string) string     { return a.folder(name) + "tar_partitions/" }
func (a *Archive) sentinelName(name string) string { return a.backups + name + sentinelSuffix }

// Backups yields a sentinel's object for each backup that exists, with the backup's name, in order of names. An
// object that ends like a sentinel but whose name is not a backup's is passed over.
func (a *Archive) Backups(ctx context.Context) iter.Seq2[Found, error] {
	return func(yield func(Found, error) bool) {
		for o, err := range a.store.List(ctx, a.backups, "") {
			if err != nil {
				yield(Found{}, fmt.Errorf("list backups: %w", err))
				return
			}
			name, ok := strings.CutSuffix(path.Base(o.Name), sentinelSuffix)
			if !ok || o.IsDir() || CheckBackupName(name) != nil {
				continue
			}
			if !yield(Found{Name: name, Object: o}, nil) {
				return
			}
		}
	}
}

// Found is a backup as a listing shows it: its name and its sentinel.
type Found struct {
	Name   string
	Object store.Object
}

// Part is one object of a backup's tar_partitions.
type Part struct {
	Name   string // base name, "part_001.tar.zst"
	Base   string // without the codec's extension, "part_001.tar"
	Method compress.Method
	Size   int64 // bytes as stored
}

// IsControl and IsLabel tell the two parts that a restore unpacks last.
func (p Part) IsControl() bool { return p.Base == "pg_control.tar" }

// IsLabel reports whether p holds backup_label and tablespace_map.
func (p Part) IsLabel() bool { return p.Base == "backup_label.tar" }

// Parts lists what lies in a backup's tar_partitions, in order of names.
func (a *Archive) Parts(ctx context.Context, name string) ([]Part, error) {
	var parts []Part
	for o, err := range a.store.List(ctx, a.partsDir(name), "") {
		if err != nil {
			return nil, fmt.Errorf("list the parts of %s: %w", name, err)
		}
		if o.IsDir() {
			continue
		}
		parts = append(parts, PartOf(o))
	}
	return parts, nil
}

// PartOf returns the part that a listing of a backup's tar_partitions shows as o.
func PartOf(o store.Object) Part {
	base, method := compress.Split(path.Base(o.Name))
	return Part{Name: path.Base(o.Name), Base: base, Method: method, Size: o.Size}
}

// OpenPart reads a part's tar stream, decrypted and decompressed. The caller closes it.
func (a *Archive) OpenPart(ctx context.Context, backup string, p Part) (io.ReadCloser, error) {
	return a.open(ctx, a.partsDir(backup)+p.Name, p.Method)
}

// open reads an object decrypted and decompressed.
func (a *Archive) open(ctx context.Context, name string, method compress.Method) (io.ReadCloser, error) {
	raw, err := a.store.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	return a.unpacked(raw, name, method), nil
}

// named says which object an error came from.
type named struct {
	io.ReadCloser
	name  string
	begin *beginning // nil where it is read with a key
}

func (d *named) Read(p []byte) (int, error) {
	n, err := d.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		err = d.fail(err)
	}
	return n, err
}

func (d *named) WriteTo(w io.Writer) (int64, error) {
	n, err := io.Copy(w, d.ReadCloser)
	if err != nil {
		err = d.fail(err)
	}
	return n, err
}

// fail says what it means that reading failed. Whatever is missing, such as a file with a token for KMS, the object is not: no error of reading
// is fs.ErrNotExist, which callers take for an object that is not there.
func (d *named) fail(err error) error {
	switch {
	case d.begin != nil && d.begin.err == nil && d.begin.locked() != "":
		return &lockedError{d.name, d.begin.locked()}
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("read %s: %v", d.name, err)
	}
	return fmt.Errorf("read %s: %w", d.name, err)
}

// exists reports whether there is an object of that name.
func (a *Archive) exists(ctx context.Context, name string) (bool, error) {
	_, err := a.store.Stat(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
