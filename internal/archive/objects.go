package archive

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"holdfast/internal/compress"
	"holdfast/internal/store"
)

// objectsName is the document that says of each object of a backup how many bytes were stored and with which checksum. It is not encrypted, so that what
// is stored can be checked by whoever can read it, without a key; the sentinel has its SHA-256. metadata.json is not in it, as that may change.
const objectsName = "objects.json"

// maxObjects bounds objects.json in bytes: some 100 for each part.
const maxObjects = 64 << 20

// Stored is an object of a backup as it was put.
type Stored struct {
	Size int64 `json:"size"`     // bytes
	Sum  Sum   `json:"xxhash64"` // of them
}

// Sum is an XXH64, which JSON shows as 16 hexadecimal digits. It is no CRC-32C because files that hold one of themselves, as pg_control does, have the same
// CRC-32C whatever else is in them.
type Sum uint64

// MarshalText implements encoding.TextMarshaler.
func (s Sum) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%016x", uint64(s)), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Sum) UnmarshalText(text []byte) error {
	n, err := strconv.ParseUint(string(text), 16, 64)
	if err != nil || len(text) != 16 {
		return fmt.Errorf("%.40q is not an XXH64 in hexadecimal digits", text)
	}
	*s = Sum(n)
	return nil
}

type objectsDocument struct {
	Backup  string            `json:"backup"`
	Objects map[string]Stored `json:"objects"` // by name, from the backup's folder
}

// Objects reads how the objects of a backup were stored, by their names from Folder on, and the SHA-256 of the document: what Sentinel.Objects says. Backups
// that Holdfast did not make, or made before it kept this, have none: fs.ErrNotExist.
func (a *Archive) Objects(ctx context.Context, backup string) (objects map[string]Stored, sum string, err error) {
	name := a.folder(backup) + objectsName
	b, err := store.ReadFile(ctx, a.store, name, maxObjects)
	if err != nil {
		return nil, "", err
	}
	hash := sha256.Sum256(b)
	sum = hex.EncodeToString(hash[:])
	var doc objectsDocument
	ok, err := CheckSeal(b)
	if err == nil && !ok {
		err = errors.New("it has no seal")
	}
	if err == nil {
		err = json.Unmarshal(b, &doc)
	}
	if err == nil && doc.Backup != backup {
		err = fmt.Errorf("it is of %.100q", doc.Backup)
	}
	if err != nil {
		return nil, sum, fmt.Errorf("read %s: %w", name, err)
	}
	return doc.Objects, sum, nil
}

// note keeps how an object of d was stored.
func (d *Draft) note(name string, s Stored) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.objects == nil {
		d.objects = map[string]Stored{}
	}
	d.objects[strings.TrimPrefix(name, d.archive.folder(d.name))] = s
}

// noteCopy keeps how a copy of another backup's object was stored, if that says it.
func (d *Draft) noteCopy(ctx context.Context, from, object, to string) {
	d.mu.Lock()
	if d.copied == nil {
		d.copied = map[string]map[string]Stored{}
	}
	known, read := d.copied[from]
	d.mu.Unlock()
	if !read {
		var err error
		if known, _, err = d.archive.Objects(ctx, from); err != nil {
			known = nil // a copy without is as its original
		}
		d.mu.Lock()
		d.copied[from] = known
		d.mu.Unlock()
	}
	if s, ok := known[strings.TrimPrefix(object, d.archive.folder(from))]; ok {
		d.note(to, s)
	}
}

// putObjects stores objects.json, and returns its SHA-256.
func (d *Draft) putObjects(ctx context.Context) (string, error) {
	d.mu.Lock()
	b, err := json.Marshal(objectsDocument{d.name, d.objects})
	d.mu.Unlock()
	if err != nil {
		return "", err
	}
	b = sealed(b)
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), d.putDocument(ctx, d.archive.folder(d.name)+objectsName, b)
}

// sealKey is the last key of a document that has a seal: the SHA-256 of what the document is without it.
const sealKey = "HoldfastSeal"

// sealed gives a JSON object of at least one key a seal.
func sealed(doc []byte) []byte {
	sum := sha256.Sum256(doc)
	return fmt.Appendf(doc[:len(doc)-1:len(doc)-1], `,%q:"%x"}`, sealKey, sum)
}

// CheckSeal reports whether a document, a sentinel, metadata.json or objects.json, has a seal, and returns an error where that does not hold. WAL-G's have none,
// nor has a metadata.json that WAL-G's backup-mark has written anew.
func CheckSeal(doc []byte) (ok bool, err error) {
	const length = 2 + len(sealKey) + 2 + 1 + 2*sha256.Size + 2 // of ,"key":"…"}
	head := []byte(`,"` + sealKey + `":"`)
	if len(doc) < length || !bytes.HasPrefix(doc[len(doc)-length:], head) {
		if bytes.Contains(doc, []byte(sealKey)) {
			return true, errors.New("its seal is not where it should be")
		}
		return false, nil
	}
	body := append(bytes.Clone(doc[:len(doc)-length]), '}')
	if !bytes.Equal(sealed(body), doc) {
		return true, errors.New("its seal does not hold: it is not what was stored")
	}
	return true, nil
}

// HasKey reports whether what is encrypted is read with a key.
func (a *Archive) HasKey() bool { return a.opts.Key != nil }

// Over returns the same archive as it is in another store, such as one around that of a.
func (a *Archive) Over(s store.Store) *Archive {
	c := *a
	c.store = s
	return &c
}

// IsLocked reports whether err says that an object is encrypted and that no key is set.
func IsLocked(err error) bool { return errors.As(err, new(*lockedError)) }

// WriteFileList writes what a backup's files_metadata.json is by its manifest.
func (a *Archive) WriteFileList(ctx context.Context, backup string, w io.Writer) error {
	read := func(part func(*ManifestPart) error, unchanged func(*unchangedLine) error) error {
		m, err := a.OpenManifest(ctx, backup)
		if err != nil {
			return err
		}
		defer m.Close() // only read
		for {
			p, err := m.Next()
			if err == io.EOF {
				break
			}
			if err == nil {
				err = part(p)
			}
			if err != nil {
				return err
			}
		}
		for m.Header.Unchanged > 0 && unchanged != nil {
			files, err := m.NextUnchanged()
			if err == io.EOF {
				break
			}
			if err == nil {
				err = unchanged(&unchangedLine{files})
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	return writeFileList(w, read)
}

// OpenObject reads an object by its own name, decrypted, and decompressed by its extension: a WAL file, a part, or config.tar.
func (a *Archive) OpenObject(ctx context.Context, object string) (io.ReadCloser, error) {
	_, method := compress.Split(object)
	return a.open(ctx, object, method)
}

// WALNote reads the note that hosts without a key compare by: length in bytes and XXH64, in hexadecimal digits, of the content of a WAL file. A file without
// one is fs.ErrNotExist.
func (a *Archive) WALNote(ctx context.Context, name string) (size int64, hash string, err error) {
	object := WALDir + name + walNoteSuffix
	b, err := store.ReadFile(ctx, a.store, object, 4<<10)
	if err != nil {
		return 0, "", err
	}
	var n walNote
	if err := json.Unmarshal(b, &n); err != nil || len(n.Hash) != 16 {
		return 0, "", fmt.Errorf("read %s: it is not a note of ours: %.100q", object, b)
	}
	return n.Size, n.Hash, nil
}
