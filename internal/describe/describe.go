// Package describe tells everything about one backup that its archive knows: what it is made of, whether it can be restored, and what that would cost.
//
// It reads documents, manifests and the beginnings of a few objects, and no data. What cannot be looked at, for want of a key or because something is damaged,
// is among a Report's Problems, and the rest is told all the same.
package describe

import (
	"archive/tar"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/chain"
	"holdfast/internal/compress"
	"holdfast/internal/crypt"
	"holdfast/internal/pg/control"
	"holdfast/internal/pg/page"
	"holdfast/internal/pg/wal"
	"holdfast/internal/proof"
	"holdfast/internal/retention"
	"holdfast/internal/ribbon"
	"holdfast/internal/store"
)

// Report is what is known of a backup. Sizes are in bytes, times in UTC.
type Report struct {
	Name    string    `json:"backup_name"`
	Kind    string    `json:"kind"` // full; merged, which is a full one made of others; or delta
	Storage string    `json:"storage_name,omitempty"`
	Tool    string    `json:"taken_with"` // program and, where it says, its version
	Wire    bool      `json:"over_the_wire"`
	Host    string    `json:"hostname,omitempty"`
	DataDir string    `json:"data_dir,omitempty"`
	Started time.Time `json:"start_time,omitzero"`
	Ended   time.Time `json:"finish_time,omitzero"`

	Permanent bool            `json:"is_permanent"`
	UserData  json.RawMessage `json:"user_data,omitempty"`
	Condemned *Condemned      `json:"condemned,omitempty"`
	Holds     []Hold          `json:"holds,omitempty"`

	Server      Server   `json:"server"`
	DeltaSource string   `json:"delta_source,omitempty"` // how it was known what had changed
	Chain       []Link   `json:"chain,omitempty"`        // what it is restored from, newest first, itself included
	ChainError  string   `json:"chain_error,omitempty"`
	Children    []string `json:"children,omitempty"` // backups that build on it

	WAL      WAL      `json:"wal"`
	Contents Contents `json:"contents"`
	Objects  Objects  `json:"objects"`
	Proofs   Proofs   `json:"proofs"`
	Cost     Cost     `json:"restore_cost"`
	Problems []string `json:"problems,omitempty"` // what could not be looked at, or is not as it should be
}

// Server is what the backup says of the server that it is of.
type Server struct {
	PgVersion        int    `json:"pg_version,omitempty"` // server_version_num
	SystemIdentifier uint64 `json:"system_identifier,omitempty"`
	SegmentSize      uint64 `json:"wal_segment_size,omitempty"`
	BlockSize        uint32 `json:"block_size,omitempty"`
	CatalogVersion   uint32 `json:"catalog_version,omitempty"`
	Checksums        *bool  `json:"data_checksums,omitempty"` // nil where nothing says it
	WALLevel         string `json:"wal_level,omitempty"`
	CorruptBlocks    int64  `json:"corrupt_blocks,omitempty"` // pages whose checksum did not hold as they were read
	// Configuration are the files of it that lay outside the data directory and were taken along.
	Configuration []string `json:"configuration,omitempty"`
}

// Condemned says that retention removes the backup.
type Condemned struct {
	At         time.Time `json:"at"`
	By         string    `json:"by"`
	PurgeAfter time.Time `json:"purge_after"`
	Request    string    `json:"request,omitempty"` // the command that named it; "" for a policy
}

// Hold is one by which the backup must not go.
type Hold struct {
	ID     string    `json:"id"`
	Reason string    `json:"reason"`
	By     string    `json:"by"`
	Until  time.Time `json:"until,omitzero"`
}

// Link is a backup of the chain.
type Link struct {
	Name     string    `json:"backup_name"`
	Kind     string    `json:"kind"`
	Ended    time.Time `json:"finish_time"`
	Contents int64     `json:"uncompressed_size"`
	Stored   int64     `json:"compressed_size"`
	Storage  string    `json:"storage_name,omitempty"`
}

// WAL is what the backup needs of it, and where it leads.
type WAL struct {
	Timeline  wal.Timeline   `json:"timeline"`
	StartLSN  string         `json:"start_lsn,omitempty"`
	FinishLSN string         `json:"finish_lsn,omitempty"`
	First     string         `json:"first_segment,omitempty"` // replaying begins with it
	Needed    string         `json:"last_segment,omitempty"`  // and must reach this one for the backup to be consistent
	Segments  int            `json:"segments,omitempty"`      // from the one to the other
	Missing   []string       `json:"missing,omitempty"`       // of these, at most maxMissing
	Lacks     int            `json:"missing_segments,omitempty"`
	Verdict   ribbon.Verdict `json:"verdict,omitempty"`
	Why       string         `json:"why,omitempty"`
	Until     string         `json:"restorable_until_lsn,omitempty"`
	UntilTime time.Time      `json:"restorable_until,omitzero"`
	Replay    uint64         `json:"wal_to_replay,omitempty"` // from the start to Until
}

const maxMissing = 10

// Proofs are what was found out about the content.
type Proofs struct {
	Verified time.Time `json:"verified_at,omitzero"` // when all of it was read last, and was found good
	Damaged  string    `json:"damaged,omitempty"`    // what was found wrong later
	Proven   time.Time `json:"proven_at,omitzero"`   // when it was restored, started and queried last, and that went well
	Failed   time.Time `json:"proof_failed_at,omitzero"`
	Records  []Record  `json:"records,omitempty"` // the last few, oldest first
}

// Record is one result.
type Record struct {
	At      time.Time `json:"at"`
	By      string    `json:"by"`
	Version string    `json:"version"`
	What    string    `json:"what"` // verify or restore
	Result  string    `json:"result"`
}

// Cost is what restoring the backup would take, as far as that can be told beforehand.
type Cost struct {
	Fetch       int64 `json:"bytes_to_fetch"`
	Parts       int   `json:"parts_to_read"`
	Exact       bool  `json:"exact"`                  // of the chain only what is needed is counted; else all of its parts
	Disk        int64 `json:"disk_bytes"`             // that the data directory and its tablespaces take
	Replay      int64 `json:"wal_to_replay"`          // to the newest moment
	ReplayCount int   `json:"wal_segments_to_replay"` // segments
}

// recordsShown is how many records of each kind are told.
const recordsShown = 3

// describer gathers a Report.
type describer struct {
	Report
	ctx     context.Context
	archive *archive.Archive
	in      *ribbon.Input
	backup  *catalog.Backup
	chain   []*catalog.Backup
	parts   []archive.Part
}

// Backup describes the backup of in.Catalog that has that name, or the LATEST.
func Backup(ctx context.Context, a *archive.Archive, in *ribbon.Input, name string) (*Report, error) {
	b, err := Find(in.Catalog, name)
	if err != nil {
		return nil, err
	}
	d := &describer{ctx: ctx, archive: a, in: in, backup: b}
	d.base()
	d.retention()
	d.family()
	d.wal()
	d.objects()
	if b.Sentinel != nil {
		d.contents()
		d.control()
		d.configuration()
		d.cost()
	}
	d.proofs()
	return &d.Report, ctx.Err()
}

// Find returns the backup of that name, or the LATEST.
func Find(c *catalog.Catalog, name string) (*catalog.Backup, error) {
	if name == "LATEST" {
		return c.Latest()
	}
	return c.Find(name)
}

// trouble notes what could not be looked at. What is not there at all is no trouble.
func (d *describer) trouble(what string, err error) {
	if err != nil && d.ctx.Err() == nil {
		d.Problems = append(d.Problems, fmt.Sprintf("%s: %v", what, err))
	}
}

// Kind says what a backup is: full, merged (a full one made of others) or delta.
func Kind(b *catalog.Backup) string {
	switch {
	case b.IsDelta():
		return "delta"
	case b.Sentinel != nil && b.Sentinel.Merged != nil:
		return "merged"
	}
	return "full"
}

// base tells what the documents say.
func (d *describer) base() {
	b := d.backup
	m := b.Details()
	d.Name, d.Kind, d.Storage = b.Name, Kind(b), b.Storage
	d.Host, d.DataDir, d.Started, d.Ended = m.Hostname, m.DataDir, m.StartTime.UTC(), m.FinishTime.UTC()
	d.Permanent, d.UserData = m.IsPermanent, m.UserData
	if b.Metadata == nil && b.Sentinel != nil {
		d.Permanent = b.Sentinel.IsPermanent
	}
	d.trouble("its documents", b.Err)
	d.Tool = "WAL-G"
	if b.IsWALE() {
		d.Tool = "WAL-E"
	}
	s := b.Sentinel
	if s == nil {
		return
	}
	if s.Tool != "" || s.Manifest != "" {
		d.Tool = strings.TrimSpace("Holdfast " + s.Tool)
	}
	d.DeltaSource = s.DeltaSource
	d.Server = Server{PgVersion: s.PgVersion, Checksums: s.Checksums, CorruptBlocks: s.CorruptBlocks}
	if s.SystemIdentifier != nil {
		d.Server.SystemIdentifier = *s.SystemIdentifier
	}
	if size, err := b.SegmentSize(); err == nil {
		d.Server.SegmentSize = uint64(size)
	} else {
		d.trouble("its WAL", err)
	}
	if b.IsWALE() {
		v, err := d.archive.ServerVersion(d.ctx, b.Name)
		if d.Server.PgVersion = v; !errors.Is(err, fs.ErrNotExist) {
			d.trouble("its server's version", err)
		}
	}
}

// retention tells what keeps the backup, and what lets it go.
func (d *describer) retention() {
	if c := d.backup.Condemned; c != nil {
		d.Condemned = &Condemned{c.At, c.By, c.PurgeAfter, c.Request}
	}
	holds, err := retention.LoadHolds(d.ctx, d.archive, d.in.Now)
	d.trouble("holds", err)
	for _, h := range holds {
		at := d.backup.Created()
		if h.Backup == d.Name || h.Backup == "" && !at.Before(h.From) && !at.After(h.To) {
			d.Holds = append(d.Holds, Hold{h.ID(), h.Reason, h.By, h.Until})
		}
	}
}

// family tells what the backup builds on, and what builds on it.
func (d *describer) family() {
	if d.backup.Sentinel != nil {
		var err error
		if d.chain, err = d.in.Catalog.Chain(d.backup); err != nil {
			d.ChainError = err.Error()
		}
	}
	for _, b := range d.chain {
		d.Chain = append(d.Chain, Link{b.Name, Kind(b), b.Created().UTC(), b.Sentinel.UncompressedSize, b.Sentinel.CompressedSize, b.Storage})
	}
	for i := range d.in.Catalog.Backups {
		if b := &d.in.Catalog.Backups[i]; b.Sentinel != nil && b.Sentinel.DeltaFrom == d.Name {
			d.Children = append(d.Children, b.Name)
		}
	}
}

// wal tells which WAL the backup needs, whether that is there, and where it leads.
func (d *describer) wal() {
	b, w := d.backup, &d.Report.WAL
	w.Timeline = b.Timeline()
	if lsn, ok := b.StartLSN(); ok {
		w.StartLSN = lsn.String()
	}
	if lsn, ok := b.FinishLSN(); ok {
		w.FinishLSN = lsn.String()
	}
	for _, v := range ribbon.Compute(*d.in).Backups {
		if v.Name != b.Name {
			continue
		}
		w.Verdict, w.Why, w.UntilTime, w.Replay = v.Verdict, v.Why, v.UntilTime, v.ReplayBytes
		if v.Until != 0 {
			w.Until = v.Until.String()
		}
	}
	size := wal.SegmentSize(d.Server.SegmentSize)
	if size == 0 || d.in.WAL == nil || d.in.WAL.SegmentSize != size {
		return
	}
	_, first, err := size.ParseSegment(b.Segment())
	if err != nil {
		return
	}
	last := first
	if lsn, ok := b.StartLSN(); ok {
		first = size.Segment(lsn)
	}
	if lsn, ok := b.FinishLSN(); ok {
		last = max(first, size.LastSegment(lsn))
	}
	w.First, w.Needed, w.Segments = size.Name(w.Timeline, first), size.Name(w.Timeline, last), int(last-first)+1
	path, err := d.in.Catalog.PathTo(w.Timeline)
	if err != nil {
		d.trouble("the history of its timeline", err)
		path = catalog.Path{{Timeline: w.Timeline}}
	}
	for s := range path.Stretches(size, first) {
		next, end := s.First, min(s.Last, last)
		var runs []catalog.Run
		if of := d.in.WAL.Timeline(s.Timeline); of != nil {
			runs = of.Runs
		}
		for _, r := range runs {
			if r.Last >= next && r.First <= end {
				d.lack(size, s.Timeline, next, r.First)
				next = r.Last + 1
			}
		}
		d.lack(size, s.Timeline, next, end+1)
	}
}

// lack notes that the segments from first to before end are missing, if there are such: not those whose pieces have what the backup needs.
func (d *describer) lack(size wal.SegmentSize, t wal.Timeline, first, end wal.SegmentNo) {
	w := &d.Report.WAL
	finish, _ := d.backup.FinishLSN()
	if of := d.in.WAL.Timeline(t); of != nil {
		for i := range of.Tails {
			if p := &of.Tails[i]; !p.Whole && p.Segment >= first && p.Segment < end && finish > 0 && p.End(size) >= min(finish, size.Start(p.Segment+1)) {
				w.lack(size, t, first, p.Segment)
				first = p.Segment + 1
			}
		}
	}
	w.lack(size, t, first, end)
}

// lack notes that the segments from first to before end are missing, if there are such.
func (w *WAL) lack(size wal.SegmentSize, t wal.Timeline, first, end wal.SegmentNo) {
	if first >= end {
		return
	}
	w.Lacks += int(end - first)
	for n := first; n < end && len(w.Missing) < maxMissing; n++ {
		w.Missing = append(w.Missing, size.Name(t, n))
	}
}

// Objects are what the backup consists of in its store.
type Objects struct {
	Parts       []Part      `json:"parts"`
	Other       []Object    `json:"other"` // beside the parts, the sentinel aside; checksums of pages are one
	Count       int         `json:"count"`
	Bytes       int64       `json:"bytes"` // of all
	Compression []string    `json:"compression"`
	Encryption  *Encryption `json:"encryption,omitempty"` // nil where nothing shows any
}

// Part is an object with data.
type Part struct {
	Name     string `json:"part"`
	Bytes    int64  `json:"size"`               // as stored
	Contents int64  `json:"contents,omitempty"` // bytes of all files in it; 0 where it is not known
	Members  int    `json:"members,omitempty"`
}

// Object is another one.
type Object struct {
	Name  string `json:"name"` // from the backup's folder on
	Bytes int64  `json:"size"`
}

// Encryption says how the objects are encrypted.
type Encryption struct {
	Kind     crypt.Kind `json:"kind,omitempty"` // "" where it is not known which
	For      []string   `json:"for,omitempty"`  // ids of keys, or kinds of recipients, as far as an object tells
	Readable bool       `json:"readable_here"`
	Why      string     `json:"why,omitempty"` // why not
}

// objects lists what lies in the folder.
func (d *describer) objects() {
	o := &d.Report.Objects
	o.Parts, o.Other = []Part{}, []Object{}
	all, err := d.archive.FolderOf(d.ctx, d.Name)
	if err != nil {
		d.trouble("its objects", err)
		return
	}
	folder := archive.Folder(d.Name)
	sums := Object{Name: "page_sums/"}
	for _, x := range all {
		rest := strings.TrimPrefix(x.Name, folder)
		o.Count++
		o.Bytes += x.Size
		switch {
		case strings.HasPrefix(rest, "tar_partitions/"):
			o.Parts = append(o.Parts, Part{Name: path.Base(rest), Bytes: x.Size})
			base, method := compress.Split(path.Base(rest))
			d.parts = append(d.parts, archive.Part{Name: path.Base(rest), Base: base, Method: method, Size: x.Size})
			if name := string(method); !slices.Contains(o.Compression, name) {
				o.Compression = append(o.Compression, name)
			}
		case strings.HasPrefix(rest, sums.Name):
			sums.Bytes += x.Size
		default:
			o.Other = append(o.Other, Object{rest, x.Size})
			d.Wire = d.Wire || rest == "backup_manifest.zst"
		}
	}
	if sums.Bytes > 0 {
		o.Other = append(o.Other, sums)
	}
	slices.SortStableFunc(d.parts, func(x, y archive.Part) int {
		return cmp.Or(rank(x)-rank(y), len(x.Base)-len(y.Base), cmp.Compare(x.Name, y.Name))
	})
	slices.SortStableFunc(o.Parts, func(x, y Part) int {
		index := func(name string) int {
			return slices.IndexFunc(d.parts, func(p archive.Part) bool { return p.Name == name })
		}
		return index(x.Name) - index(y.Name)
	})
	if len(d.parts) == 0 {
		d.Problems = append(d.Problems, "none of its parts is there")
		return
	}
	d.encryption(slices.MinFunc(d.parts, func(x, y archive.Part) int { return cmp.Compare(x.Size, y.Size) }))
}

func rank(p archive.Part) int {
	switch {
	case p.IsLabel():
		return 2
	case p.IsControl():
		return 1
	}
	return 0
}

// encryption looks at how a part begins, and whether it can be read here.
func (d *describer) encryption(p archive.Part) {
	name := archive.Folder(d.Name) + "tar_partitions/" + p.Name
	raw, err := d.archive.Store().OpenRange(d.ctx, name, 0, crypt.RecipientsAhead)
	var begin []byte
	if err == nil {
		begin, err = io.ReadAll(io.LimitReader(raw, crypt.RecipientsAhead))
		err = errors.Join(err, raw.Close())
	}
	if err != nil {
		d.trouble("how it is encrypted", err)
		return
	}
	e := &Encryption{}
	e.Kind, e.For = crypt.Recipients(begin)
	r, err := d.archive.OpenPart(d.ctx, d.Name, p)
	if err == nil {
		_, err = io.ReadFull(r, make([]byte, 1))
		err = errors.Join(err, r.Close())
	}
	if e.Readable = err == nil; err != nil {
		e.Why = err.Error()
	}
	switch {
	case e.Kind == "" && e.Readable && !d.archive.HasKey(): // in clear
	case e.Kind == "" && e.Readable && crypt.IsPlain(begin): // although there is a key
	case e.Kind == "" && !e.Readable && crypt.IsPlain(begin):
		d.trouble("part "+p.Name, err)
	default:
		d.Report.Objects.Encryption = e
	}
}

// control reads the control file, which notes how the server was made and set up.
func (d *describer) control() {
	i := slices.IndexFunc(d.parts, archive.Part.IsControl)
	if i < 0 {
		return
	}
	r, err := d.archive.OpenPart(d.ctx, d.Name, d.parts[i])
	if err != nil {
		d.trouble("the control file", err)
		return
	}
	defer r.Close() // only read
	t := tar.NewReader(io.LimitReader(r, 1<<20))
	for {
		h, err := t.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			d.trouble("the control file", err)
			return
		}
		if path.Base(h.Name) != path.Base(control.Name) {
			continue
		}
		b, err := io.ReadAll(io.LimitReader(t, control.Size))
		var c control.Data
		if err == nil {
			c, err = control.Decode(b)
		}
		if err != nil {
			d.trouble("the control file", err)
			return
		}
		s := &d.Server
		s.BlockSize, s.CatalogVersion, s.WALLevel = c.BlockSize, c.CatalogVersion, c.WALLevel.String()
		if s.Checksums == nil {
			on := c.ChecksumVersion != 0
			s.Checksums = &on
		}
		if s.SystemIdentifier != 0 && s.SystemIdentifier != c.SystemIdentifier {
			d.Problems = append(d.Problems, fmt.Sprintf("its control file is of another cluster: the system identifier there is %d", c.SystemIdentifier))
		}
		s.SystemIdentifier = c.SystemIdentifier
		return
	}
}

// maxConfiguration bounds how many files of configuration are named.
const maxConfiguration = 100

// configuration lists the files beside the data directory that were taken along.
func (d *describer) configuration() {
	r, err := d.archive.OpenConfig(d.ctx, d.Name)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		d.trouble("its configuration", err)
		return
	}
	defer r.Close() // only read
	t := tar.NewReader(r)
	for len(d.Server.Configuration) < maxConfiguration {
		h, err := t.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			d.trouble("its configuration", err)
			return
		}
		if h.Typeflag != tar.TypeDir {
			d.Server.Configuration = append(d.Server.Configuration, h.Name)
		}
	}
}

// proofs tells what verifications and restores have found.
func (d *describer) proofs() {
	e := d.in.Backups[d.Name]
	p := &d.Report.Proofs
	p.Verified, p.Damaged, p.Proven, p.Failed = e.Verified, e.Damaged, e.Proven, e.Failed
	type doc struct {
		archive.RecordHead
		Result string `json:"result"`
	}
	for _, of := range []struct{ dir, what string }{{archive.VerifiedDir(d.Name), "verify"}, {archive.ProvenDir(d.Name), "restore"}} {
		var objects []store.Object
		for o, err := range d.archive.Store().List(d.ctx, of.dir, "") {
			if err != nil {
				d.trouble("what is known of its content", err)
				break
			}
			if !o.IsDir() && strings.HasSuffix(o.Name, ".json") {
				objects = append(objects, o)
			}
		}
		for _, o := range objects[max(0, len(objects)-recordsShown):] {
			r, err := archive.ReadRecord[doc](d.ctx, d.archive, o)
			if err != nil {
				d.trouble("what is known of its content", err)
				continue
			}
			result := r.Doc.Result
			if of.dir == archive.ProvenDir(d.Name) {
				result = d.proof(o)
			}
			p.Records = append(p.Records, Record{r.Doc.At, r.Doc.By, r.Doc.Version, of.what, result})
		}
	}
	slices.SortStableFunc(p.Records, func(x, y Record) int { return x.At.Compare(y.At) })
}

// proof says what the record of a drill came to.
func (d *describer) proof(o store.Object) string {
	sum := ""
	if b, err := d.in.Catalog.Find(d.Name); err == nil && b.Sentinel != nil {
		sum = b.Sentinel.Sum
	}
	p, err := proof.Read(d.ctx, d.archive, d.Name, sum, o)
	var refused *proof.RefusedError
	switch {
	case errors.As(err, &refused):
		return "does not count: " + refused.Err.Error()
	case err != nil:
		return err.Error()
	case p.OK:
		return "ok"
	}
	return "failed"
}

// cost works out what a restore would take.
func (d *describer) cost() {
	c := &d.Cost
	c.Replay = int64(d.Report.WAL.Replay)
	if size := d.Server.SegmentSize; size > 0 {
		c.ReplayCount = int((d.Report.WAL.Replay + size - 1) / size)
	}
	c.Disk = d.Contents.Bytes
	if d.chain == nil {
		return
	}
	if err := d.exactly(); err == nil {
		return
	}
	// All parts of the chain, which is more than is read of it.
	c.Fetch, c.Parts, c.Exact = 0, 0, len(d.chain) == 1
	for i, b := range d.chain {
		parts := d.parts
		if i > 0 {
			var err error
			if parts, err = d.archive.Parts(d.ctx, b.Name); err != nil {
				d.trouble("the parts of "+b.Name, err)
			}
		}
		for _, p := range parts {
			c.Fetch += p.Size
			c.Parts++
		}
	}
}

// exactly goes through the manifests of the chain for what a restore reads of it.
func (d *describer) exactly() error {
	if len(d.chain) == 1 {
		return errors.New("all of it is read")
	}
	whole, err := chain.Complete(d.ctx, d.archive, d.chain)
	if err != nil || !whole {
		return cmp.Or(err, errors.New("not all have a manifest"))
	}
	loaded, err := chain.Load(d.ctx, d.archive, d.chain)
	if err != nil {
		return err
	}
	var disk int64
	for i := range loaded.Len() {
		disk += loaded.File(i).Size
	}
	c := &d.Cost
	err = loaded.Walk(d.ctx, func(p *chain.Part) error {
		var needed int64
		for _, t := range p.Takes {
			if t.Blocks == nil {
				needed += t.Size
			} else {
				needed += int64(t.Blocks.GetCardinality()) * page.Size
			}
		}
		c.Parts++
		if p.Content > 0 && needed < p.Content {
			c.Fetch += int64(float64(p.Size) * float64(needed) / float64(p.Content))
		} else {
			c.Fetch += p.Size
		}
		return nil
	})
	if err == nil {
		c.Exact = true
		c.Disk = max(c.Disk, disk)
	}
	return err
}
