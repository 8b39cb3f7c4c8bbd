package archive

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"os/user"
	"path"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/store"
)

// Directories of records that belong to no single backup. Those of a backup lie in directories below Folder.
const (
	GapDir         = "holdfast/gaps/"         // holes in the WAL that somebody has accepted
	QuarantineDir  = "holdfast/quarantine/"   // timelines that were put aside
	TombstoneDir   = "holdfast/tombstones/"   // what retention has condemned
	HoldDir        = "holdfast/holds/"        // what must not go
	VerifiedWALDir = "holdfast/verified/wal/" // what was found when WAL was read
	WatermarkDir   = "holdfast/watermark/"    // up to where WAL is known to be continuous
)

// VerifiedDir and ProvenDir are the directories of records of what was found when a backup was read, and when it was restored.
func VerifiedDir(backup string) string { return Folder(backup) + "verified/" }

// ProvenDir is described beside VerifiedDir.
func ProvenDir(backup string) string { return Folder(backup) + "proven/" }

// RecordHead is how every record begins: embed it in the document.
type RecordHead struct {
	At      time.Time `json:"at"` // by the clock of the host that wrote it
	By      string    `json:"by"` // user@host
	Version string    `json:"version"`
}

// NewRecordHead returns the head of a record that is written now by this process. by is who it is to speak for, "" for the user and host of the process.
func NewRecordHead(by, version string) RecordHead {
	if by == "" {
		name, host := "unknown", "unknown"
		if u, err := user.Current(); err == nil {
			name = u.Username
		}
		if h, err := os.Hostname(); err == nil {
			host = h
		}
		by = name + "@" + host
	}
	return RecordHead{At: time.Now().UTC().Truncate(time.Microsecond), By: by, Version: version}
}

// Record is a small document of ours beside the backups: what a person or a command has found or decided. Records are added and removed, never changed.
type Record[T any] struct {
	Name     string    // of the object
	Modified time.Time // when it was stored, by the store's clock
	Doc      T
}

// recordTime is how the name of a record begins, in UTC: names ascend as time does.
const recordTime = "20060102T150405.000000Z"

const recordSuffix = ".json"

// RecordTime returns the time by which AddRecord has named a record.
func RecordTime(name string) (at time.Time, ok bool) {
	text, _, ok := strings.Cut(path.Base(name), "-")
	at, err := time.Parse(recordTime, text)
	return at, ok && err == nil
}

// maxTogether bounds what is read at once of records, in bytes and in objects.
const (
	maxTogether   = 2 * maxDocument
	maxReadAtOnce = 16
)

// AddRecord stores doc, which encodes as a JSON object of at most 8 MiB, in dir, one of the directories above. Its object is named after this moment and
// id, 1 to 40 of a-z, 0-9 and "-"; "" chooses one at random. A record is never encrypted, and replaces none: one of that name is fs.ErrExist.
func (a *Archive) AddRecord(ctx context.Context, dir, id string, doc any) (name string, err error) {
	if id == "" {
		id = strings.ToLower(rand.Text())
	}
	if len(id) > 40 || strings.Trim(id, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return "", fmt.Errorf("add a record to %s: %q is no id: 1 to 40 of a-z, 0-9 and -: %w", dir, id, fs.ErrInvalid)
	}
	if err := checkRecordDir(dir); err != nil {
		return "", err
	}
	b, err := json.Marshal(doc)
	if err != nil {
		return "", fmt.Errorf("encode a record of %s: %w", dir, err)
	}
	if len(b) > maxDocument || b[0] != '{' {
		return "", fmt.Errorf("add a record to %s: it has %d bytes: a record is a JSON object of at most %d: %w", dir, len(b), maxDocument, fs.ErrInvalid)
	}
	name = dir + time.Now().UTC().Format(recordTime) + "-" + id + recordSuffix
	err = store.PutIfAbsent(ctx, a.store, name, bytes.NewReader(b))
	if errors.Is(err, fs.ErrExist) { // or the answer to our own put got lost
		if there, err2 := store.ReadFile(ctx, a.store, name, maxDocument); err2 == nil && bytes.Equal(there, b) {
			err = nil
		}
	}
	if err != nil {
		return "", err
	}
	return name, nil
}

// RemoveRecord removes a record by the name of its object. One that is gone is no error.
func (a *Archive) RemoveRecord(ctx context.Context, name string) error {
	if err := checkRecordDir(path.Dir(name) + "/"); err != nil || !strings.HasSuffix(name, recordSuffix) {
		return fmt.Errorf("%q is not the name of a record: %w", name, fs.ErrInvalid)
	}
	return a.store.Delete(ctx, name)
}

// checkRecordDir reports whether records may lie in dir: nothing but records must be reached by what adds and removes them.
func checkRecordDir(dir string) error {
	inBackup := false
	if backup, below, ok := strings.Cut(strings.TrimPrefix(dir, BackupDir), "/"); ok && strings.HasPrefix(dir, BackupDir) {
		inBackup = CheckBackupName(backup) == nil && below != "" && below != "tar_partitions/" && below != "page_sums/"
	}
	ours := strings.HasPrefix(dir, "holdfast/") && dir != "holdfast/" && !strings.HasPrefix(dir, SummaryDir)
	if store.CheckDir(dir) != nil || !inBackup && !ours {
		return fmt.Errorf("%q is not a directory of records: %w", dir, fs.ErrInvalid)
	}
	return nil
}

// Records yields the records of dir in order of their names, which is that of their times. One that cannot be read, or is not a JSON object that fits T, is
// an error beside a Record with nothing but Name and Modified, and the others follow: the caller decides whether it can do without. One that was removed
// meanwhile is passed over. An error beside a Record without a Name ends it: the listing failed.
func Records[T any](ctx context.Context, a *Archive, dir string) iter.Seq2[Record[T], error] {
	return func(yield func(Record[T], error) bool) {
		if err := checkRecordDir(dir); err != nil {
			yield(Record[T]{}, err)
			return
		}
		readAll[T](ctx, a, func(yield func(store.Object, error) bool) {
			for o, err := range a.store.List(ctx, dir, "") {
				if err != nil {
					err = fmt.Errorf("list %s: %w", dir, err)
				}
				if !yield(o, err) {
					return
				}
			}
		})(yield)
	}
}

// RecordsOf is Records for what a listing has shown already of a directory, in order of names.
func RecordsOf[T any](ctx context.Context, a *Archive, listed []store.Object) iter.Seq2[Record[T], error] {
	return readAll[T](ctx, a, func(yield func(store.Object, error) bool) {
		for _, o := range listed {
			if !yield(o, nil) {
				return
			}
		}
	})
}

// readAll reads the records among objects, some at once.
func readAll[T any](ctx context.Context, a *Archive, objects iter.Seq2[store.Object, error]) iter.Seq2[Record[T], error] {
	return func(yield func(Record[T], error) bool) {
		var some []store.Object
		var size int64
		for o, err := range objects {
			if err != nil {
				yield(Record[T]{}, err)
				return
			}
			if o.IsDir() || !strings.HasSuffix(o.Name, recordSuffix) {
				continue
			}
			if len(some) == maxReadAtOnce || len(some) > 0 && size+o.Size > maxTogether {
				if !readRecords(ctx, a, some, yield) {
					return
				}
				some, size = some[:0], 0
			}
			some, size = append(some, o), size+o.Size
		}
		readRecords(ctx, a, some, yield)
	}
}

// readRecords reads some records at once, a round trip each, and yields them in their order.
func readRecords[T any](ctx context.Context, a *Archive, objects []store.Object, yield func(Record[T], error) bool) bool {
	records := make([]Record[T], len(objects))
	errs := make([]error, len(objects))
	var group errgroup.Group
	for i, o := range objects {
		group.Go(func() error {
			records[i], errs[i] = ReadRecord[T](ctx, a, o)
			return nil
		})
	}
	group.Wait() // each has its own error
	for i, r := range records {
		if errors.Is(errs[i], fs.ErrNotExist) && ctx.Err() == nil {
			continue
		}
		if !yield(r, errs[i]) {
			return false
		}
	}
	return true
}

// ReadRecord reads the record that a listing of its directory shows as o. One that is gone is fs.ErrNotExist.
func ReadRecord[T any](ctx context.Context, a *Archive, o store.Object) (Record[T], error) {
	r := Record[T]{Name: o.Name, Modified: o.Modified}
	b, err := store.ReadFile(ctx, a.store, o.Name, maxDocument)
	if err != nil {
		return r, err
	}
	if b = bytes.TrimLeft(b, " \t\r\n"); !bytes.HasPrefix(b, []byte("{")) {
		return r, fmt.Errorf("read %s: it is not a JSON object", o.Name)
	}
	if err := json.Unmarshal(b, &r.Doc); err != nil {
		return Record[T]{Name: o.Name, Modified: o.Modified}, fmt.Errorf("read %s: %w", o.Name, err)
	}
	return r, nil
}
