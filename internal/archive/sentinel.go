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
	"io/fs"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/pg/wal"
	"holdfast/internal/store"
)

// dateFmt is the strptime hint that WAL-G writes beside its times.
const dateFmt = "%Y-%m-%dT%H:%M:%S.%fZ"

// Sentinel is the document whose existence makes a backup. Times are UTC; LSNs are decimal numbers in the JSON.
type Sentinel struct {
	LSN                   *wal.LSN        `json:"LSN"` // where the backup starts; nil in those of WAL-E
	DeltaLSN              *wal.LSN        `json:"DeltaLSN,omitempty"`
	DeltaFrom             string          `json:"DeltaFrom,omitempty"`
	DeltaFullName         string          `json:"DeltaFullName,omitempty"`
	DeltaCount            int             `json:"DeltaCount,omitempty"`
	PgVersion             int             `json:"PgVersion"` // server_version_num
	FinishLSN             *wal.LSN        `json:"FinishLSN"`
	SystemIdentifier      *uint64         `json:"SystemIdentifier,omitempty"`
	UncompressedSize      int64           `json:"UncompressedSize"` // bytes of member contents
	CompressedSize        int64           `json:"CompressedSize"`   // bytes handed to the store
	DataCatalogSize       int64           `json:"DataCatalogSize,omitempty"`
	Spec                  *TablespaceSpec `json:"Spec,omitempty"`
	UserData              json.RawMessage `json:"UserData,omitempty"`
	FilesMetadataDisabled bool            `json:"FilesMetadataDisabled,omitempty"`
	ChkpNum               *uint32         `json:"ChkpNum"` // OrioleDB; null on PostgreSQL
	Version               int             `json:"Version"` // 2; 0 in those without files_metadata.json
	StartTime             time.Time       `json:"StartTime"`
	FinishTime            time.Time       `json:"FinishTime"`
	DateFmt               string          `json:"DateFmt"`
	Hostname              string          `json:"Hostname"`
	DataDir               string          `json:"DataDir"`
	IsPermanent           bool            `json:"IsPermanent"`

	// What follows is ours; WAL-G ignores it.
	SegmentSize   uint64 `json:"HoldfastSegmentSize,omitempty"`   // bytes of a WAL segment
	CorruptBlocks int64  `json:"HoldfastCorruptBlocks,omitempty"` // pages whose checksum did not hold
	WALIncomplete bool   `json:"HoldfastWALIncomplete,omitempty"` // taken with --no-wait-wal
	Tool          string `json:"HoldfastVersion,omitempty"`       // the release that wrote it
	Manifest      string `json:"HoldfastManifest,omitempty"`      // SHA-256 of the manifest as Manifest.Sum returns it
	Objects       string `json:"HoldfastObjects,omitempty"`       // SHA-256 of objects.json, see Archive.Objects
	Parent        string `json:"HoldfastParent,omitempty"`        // of a delta: SHA-256 of its parent's sentinel, see Sum
	DeltaSource   string `json:"HoldfastDeltaSource,omitempty"`   // of a delta: how it was known what has changed
	Checksums     *bool  `json:"HoldfastChecksums,omitempty"`     // whether pages had checksums as it began; nil where it is not said

	Slot string `json:"HoldfastSlot,omitempty"` // of the schedule that it was made for, as Slot.String has it

	Merged *Merged `json:"HoldfastMergedFrom,omitempty"` // of a full backup that was put together from others

	// Sum is the SHA-256 of the document that was read, in hexadecimal digits; "" where it was not read from an archive.
	Sum string `json:"-"`

	// FilesEmbedded says that the list of files is in the sentinel itself, as before WAL-G 1.1.1. See Archive.ReadFileList.
	FilesEmbedded bool `json:"-"`
}

// Merged says what a full backup was put together from that was not taken from a server.
type Merged struct {
	Backup string   `json:"backup"`          // the delta that holds the same
	Sum    string   `json:"sentinel_sha256"` // of that one, see Sentinel.Sum
	Chain  []string `json:"chain"`           // what that one is put together from, newest first, itself included
}

// Metadata is the document that lists are made from, and where the permanent flag counts.
type Metadata struct {
	StartTime        time.Time       `json:"start_time"`
	FinishTime       time.Time       `json:"finish_time"`
	DateFmt          string          `json:"date_fmt"`
	Hostname         string          `json:"hostname"`
	DataDir          string          `json:"data_dir"`
	PgVersion        int             `json:"pg_version"`
	StartLSN         wal.LSN         `json:"start_lsn"`
	FinishLSN        wal.LSN         `json:"finish_lsn"`
	IsPermanent      bool            `json:"is_permanent"`
	SystemIdentifier *uint64         `json:"system_identifier"`
	UncompressedSize int64           `json:"uncompressed_size"`
	CompressedSize   int64           `json:"compressed_size"`
	UserData         json.RawMessage `json:"user_data,omitempty"`
}

// CatchUp reports whether s is of a catch-up: what has changed since DeltaLSN, on top of whatever the standby has that it is for.
func (s *Sentinel) CatchUp() bool { return s.DeltaLSN != nil && s.DeltaFrom == "" }

// encode returns the document. In that of a catch-up WAL-G has empty names, where those of deltas name others and full backups have none.
func (s *Sentinel) encode() ([]byte, error) {
	if !s.CatchUp() {
		return json.Marshal(s)
	}
	return json.Marshal(struct {
		*Sentinel
		DeltaFrom     string
		DeltaFullName string
	}{Sentinel: s})
}

// Metadata returns what metadata.json says of the same backup.
func (s *Sentinel) Metadata() Metadata {
	m := Metadata{
		StartTime: s.StartTime, FinishTime: s.FinishTime, DateFmt: dateFmt, Hostname: s.Hostname, DataDir: s.DataDir,
		PgVersion: s.PgVersion, IsPermanent: s.IsPermanent, SystemIdentifier: s.SystemIdentifier,
		UncompressedSize: s.UncompressedSize, CompressedSize: s.CompressedSize, UserData: s.UserData,
	}
	if s.LSN != nil {
		m.StartLSN = *s.LSN
	}
	if s.FinishLSN != nil {
		m.FinishLSN = *s.FinishLSN
	}
	return m
}

// TablespaceSpec says where tablespaces lay: WAL-G's form, which is also that of a --restore-spec file.
type TablespaceSpec struct {
	BasePrefix  string
	Tablespaces []Tablespace // in the order of the document
}

// Tablespace is one entry of a TablespaceSpec.
type Tablespace struct {
	OID      string // decimal
	Location string // absolute directory
	Link     string // pg_tblspc/<oid>
}

// MarshalJSON writes {"base_prefix":…,"tablespaces":[oid…],"<oid>":{"loc":…,"link":…}}.
func (t TablespaceSpec) MarshalJSON() ([]byte, error) {
	doc := map[string]any{"base_prefix": t.BasePrefix}
	oids := []string{}
	for _, ts := range t.Tablespaces {
		oids = append(oids, ts.OID)
		doc[ts.OID] = map[string]string{"loc": ts.Location, "link": ts.Link}
	}
	doc["tablespaces"] = oids
	return json.Marshal(doc)
}

// UnmarshalJSON reads what MarshalJSON writes, and WAL-E's variant with trailing slashes.
func (t *TablespaceSpec) UnmarshalJSON(b []byte) error {
	var doc map[string]json.RawMessage
	if err := json.Unmarshal(b, &doc); err != nil {
		return err
	}
	*t = TablespaceSpec{}
	if raw, ok := doc["base_prefix"]; ok {
		if err := json.Unmarshal(raw, &t.BasePrefix); err != nil {
			return fmt.Errorf("base_prefix of the tablespace spec: %w", err)
		}
		t.BasePrefix = trimSlashes(t.BasePrefix)
	}
	var oids []string
	raw, ok := doc["tablespaces"]
	if !ok {
		return errors.New("tablespace spec: it lists no tablespaces, not even none")
	}
	if err := json.Unmarshal(raw, &oids); err != nil {
		return fmt.Errorf("tablespaces of the tablespace spec: %w", err)
	}
	seen := make(map[string]bool, len(oids))
	for _, oid := range oids {
		if n, err := strconv.ParseUint(oid, 10, 32); err != nil || strconv.FormatUint(n, 10) != oid {
			return fmt.Errorf("tablespace spec: %q is not the object identifier of a tablespace", oid)
		}
		if seen[oid] {
			return fmt.Errorf("tablespace spec: %s is listed twice", oid)
		}
		seen[oid] = true
		var e struct {
			Loc  string `json:"loc"`
			Link string `json:"link"`
		}
		raw, ok := doc[oid]
		if !ok {
			return fmt.Errorf("tablespace spec: %s is listed but not described", oid)
		}
		if err := json.Unmarshal(raw, &e); err != nil {
			return fmt.Errorf("tablespace spec: entry of %s: %w", oid, err)
		}
		if e.Loc == "" {
			return fmt.Errorf("tablespace spec: entry of %s names no loc", oid)
		}
		t.Tablespaces = append(t.Tablespaces, Tablespace{OID: oid, Location: trimSlashes(e.Loc), Link: "pg_tblspc/" + oid})
	}
	return nil
}

func trimSlashes(p string) string {
	for len(p) > 1 && p[len(p)-1] == '/' {
		p = p[:len(p)-1]
	}
	return p
}

// ParseSentinel decodes a sentinel that is in memory: see ReadSentinel.
func ParseSentinel(b []byte) (*Sentinel, error) { return ReadSentinel(bytes.NewReader(b)) }

// ReadSentinel decodes a sentinel of any WAL-G release or of WAL-E, and checks that a delta's names its parents. The list of
// files in those of WAL-G before 1.1.1, which may be larger than memory, is passed over.
func ReadSentinel(r io.Reader) (*Sentinel, error) {
	s, err := readSentinel(r)
	if err != nil {
		return nil, fmt.Errorf("sentinel is not valid: %w", err)
	}
	return s, nil
}

func readSentinel(r io.Reader) (*Sentinel, error) {
	d := newDocument(r)
	if err := d.enter('{'); err != nil {
		return nil, err
	}
	embedded := false
	small := []byte{'{'} // the document without what may be large
	for {
		key, more, err := d.key()
		if err != nil {
			return nil, err
		}
		if !more {
			break
		}
		switch key {
		case "Files", "TarFileSets", "DatabasesByNames":
			null, err := d.pass()
			if err != nil {
				return nil, err
			}
			embedded = embedded || key == "Files" && !null
			continue
		}
		var value json.RawMessage
		if err := d.value(&value); err != nil {
			return nil, err
		}
		if len(small) > 1 {
			small = append(small, ',')
		}
		name, err := json.Marshal(key)
		if err != nil {
			return nil, err
		}
		small = append(append(append(small, name...), ':'), value...)
		if len(small) > maxDocument {
			return nil, fmt.Errorf("it has more than %d bytes beside the list of files", maxDocument)
		}
	}
	if err := d.end(); err != nil {
		return nil, err
	}
	var doc struct {
		Sentinel
		DeltaFromLSN *wal.LSN        `json:"DeltaFromLSN"` // WAL-G before 1.1.1
		WALESpec     *TablespaceSpec `json:"spec"`         // WAL-E; exact case wins in encoding/json

		// WAL-E too; the offset has decimal digits.
		StopSegment string `json:"wal_segment_backup_stop"`
		StopOffset  string `json:"wal_segment_offset_backup_stop"`
		Expanded    int64  `json:"expanded_size_bytes"`
	}
	if err := json.Unmarshal(append(small, '}'), &doc); err != nil {
		return nil, err
	}
	s := doc.Sentinel
	s.FilesEmbedded = embedded
	if s.Spec == nil {
		s.Spec = doc.WALESpec
	}
	if s.DeltaLSN == nil {
		s.DeltaLSN = doc.DeltaFromLSN
	}
	if s.FinishLSN == nil {
		s.FinishLSN = walEFinish(doc.StopSegment, doc.StopOffset)
	}
	if s.UncompressedSize == 0 {
		s.UncompressedSize = max(0, doc.Expanded)
	}
	if s.DeltaFrom != "" {
		switch {
		case CheckBackupName(s.DeltaFrom) != nil:
			return nil, fmt.Errorf("DeltaFrom %q is not the name of a backup", s.DeltaFrom)
		case s.DeltaLSN == nil || s.DeltaFullName == "" || s.DeltaCount <= 0:
			return nil, errors.New("DeltaFrom without DeltaLSN, DeltaFullName or DeltaCount")
		}
	}
	return &s, nil
}

// walEFinish returns where a backup of WAL-E was finished, nil where that is not known. Its segments have 16 MiB.
func walEFinish(segment, offset string) *wal.LSN {
	const size = wal.SegmentSize(16 << 20)
	if !wal.IsSegment(segment) {
		return nil
	}
	_, n, err := size.ParseSegment(segment)
	at, errOffset := strconv.ParseUint(offset, 10, 32)
	if err != nil || errOffset != nil || at >= uint64(size) {
		return nil
	}
	finish := size.Start(n) + wal.LSN(at)
	return &finish
}

// Sentinel reads a backup's sentinel. A backup that does not exist is fs.ErrNotExist.
func (a *Archive) Sentinel(ctx context.Context, name string) (*Sentinel, error) {
	body, err := a.store.Open(ctx, a.sentinelName(name))
	if err != nil {
		return nil, err
	}
	defer body.Close() // only read
	sum := sha256.New()
	s, err := ReadSentinel(io.TeeReader(body, sum)) // reads to the end
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", a.sentinelName(name), err)
	}
	s.Sum = hex.EncodeToString(sum.Sum(nil))
	return s, nil
}

// ServerVersion returns of which PostgreSQL a backup of WAL-E is, as server_version_num: its sentinel does not say, an object
// beside it does. fs.ErrNotExist where there is none.
func (a *Archive) ServerVersion(ctx context.Context, name string) (int, error) {
	object := a.folder(name) + "extended_version.txt"
	b, err := store.ReadFile(ctx, a.store, object, 64<<10)
	if err != nil {
		return 0, err
	}
	var major, minor, patch int
	if n, _ := fmt.Sscanf(string(b), "PostgreSQL %d.%d.%d", &major, &minor, &patch); n == 0 || min(major, minor, patch) < 0 || max(major, minor, patch) > 99 {
		return 0, fmt.Errorf("read %s: %.80q does not begin with the version of a PostgreSQL", object, b)
	}
	if major < 10 {
		return major*10000 + minor*100 + patch, nil
	}
	return major*10000 + minor, nil
}

// Metadata reads a backup's metadata.json. Backups before WAL-G 0.2.10 have none: fs.ErrNotExist.
func (a *Archive) Metadata(ctx context.Context, name string) (*Metadata, error) {
	object := a.folder(name) + "metadata.json"
	b, err := store.ReadFile(ctx, a.store, object, maxDocument)
	if err != nil {
		return nil, err
	}
	var m Metadata
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("read %s: %w", object, err)
	}
	return &m, nil
}

// MarkPermanent sets the permanent flag in a backup's metadata.json, see Mark. A backup without that document is fs.ErrNotExist.
func (a *Archive) MarkPermanent(ctx context.Context, name string) error {
	_, err := a.Mark(ctx, name, true)
	return err
}

// Mark sets or clears the permanent flag in a backup's metadata.json, and keeps the rest of it as it is, keys that we do not know included. It reports whether
// that had to be changed. A backup without that document is fs.ErrNotExist. Of two that mark a backup at once the later one wins, as each says.
func (a *Archive) Mark(ctx context.Context, name string, permanent bool) (changed bool, err error) {
	object := a.folder(name) + "metadata.json"
	b, err := store.ReadFile(ctx, a.store, object, maxDocument)
	if err != nil {
		return false, err
	}
	marked, err := markDocument(b, permanent)
	if err != nil {
		return false, fmt.Errorf("read %s: %w", object, err)
	}
	if marked == nil {
		return false, nil
	}
	return true, a.store.Put(ctx, object, bytes.NewReader(marked))
}

// markDocument returns a metadata.json with the permanent flag as it is to be; nil where it is so already. Keys stay in their order.
func markDocument(doc []byte, permanent bool) ([]byte, error) {
	d := newDocument(bytes.NewReader(doc))
	if err := d.enter('{'); err != nil {
		return nil, err
	}
	want := []byte(strconv.FormatBool(permanent))
	out, flags, same := []byte{'{'}, 0, false
	for {
		key, more, err := d.key()
		if err != nil {
			return nil, err
		}
		if !more {
			break
		}
		var value json.RawMessage
		if err := d.value(&value); err != nil {
			return nil, err
		}
		if strings.EqualFold(key, "is_permanent") {
			same = key == "is_permanent" && bytes.Equal(value, want)
			flags++
			continue // of several, readers differ in which one counts
		}
		if key != sealKey {
			out = appendKey(out, key, value)
		}
	}
	if err := d.end(); err != nil {
		return nil, err
	}
	if same && flags == 1 {
		return nil, nil
	}
	return sealed(append(appendKey(out, "is_permanent", want), '}')), nil
}

// appendKey appends a key and its value to the beginning of a JSON object.
func appendKey(doc []byte, key string, value []byte) []byte {
	name, err := json.Marshal(key)
	if err != nil {
		panic(err) // strings always can be
	}
	if len(doc) > 1 {
		doc = append(doc, ',')
	}
	return append(append(append(doc, name...), ':'), value...)
}

// AddMetadata gives a backup that has no metadata.json, as those of WAL-E and early WAL-G, the document that its sentinel makes, with the permanent flag.
// Where there is one by now the error is fs.ErrExist.
func (a *Archive) AddMetadata(ctx context.Context, name string, m *Metadata) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return store.PutIfAbsent(ctx, a.store, a.folder(name)+"metadata.json", bytes.NewReader(sealed(b)))
}

// notExist makes an error that says what is missing and is fs.ErrNotExist.
func notExist(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, fs.ErrNotExist)...)
}
