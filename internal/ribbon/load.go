package ribbon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
	"holdfast/internal/proof"
	"holdfast/internal/store"
	"holdfast/internal/store/merge"
)

// Options tunes Load. The zero value is ready to use.
type Options struct {
	Storages   []string         // the names of all storages that the archive lies in
	Evidence   catalog.Evidence // what tells which timeline the cluster is on, as far as the caller knows
	Live       wal.Timeline     // to judge whatever the evidence says; 0 is none
	ProvenOnly bool             // what was never verified is Unknown
	Brief      bool             // the catalog comes without what no verdict needs, a request less for each backup: see catalog.LoadBrief
	Shallow    bool             // of segments in pieces the first piece is tried, no more: that they are right is believed, and when the last commit was is not known
	Now        time.Time        // zero is the present
}

const (
	inFlight  = 16 // small objects that are read at once
	tryRuns   = 64 // stretches of WAL, the newest ones, of which it is tried whether they can be read
	tryWithin = 32 // segments of one of them that are tried at most to find where that changes
	maxTails  = 8  // segments in pieces that are read, the youngest
)

// Load gathers what Compute judges by. The archive is looked at through strict, for which a storage that does not answer is an error; then through
// lenient, which passes over such, and Input says which. Only the end of ctx is an error: where nothing answers, nothing is known.
func Load(ctx context.Context, strict, lenient *archive.Archive, o Options) (Input, error) {
	in := Input{Live: o.Live, ProvenOnly: o.ProvenOnly, Now: o.Now}
	if in.Now.IsZero() {
		in.Now = time.Now()
	}
	for _, name := range o.Storages {
		in.Stores = append(in.Stores, Store{Name: name})
	}
	err := in.load(ctx, strict, o)
	if err != nil && ctx.Err() == nil {
		silent := &merge.UnaskedError{}
		if errors.As(err, &silent) {
			in.silence(silent.Storages, err)
			err = in.load(ctx, lenient, o)
		}
		if err != nil {
			in.silence(o.Storages, err)
			in.Catalog, in.WAL = nil, nil
		}
	}
	if ctx.Err() != nil {
		return Input{}, context.Cause(ctx)
	}
	if in.Catalog != nil {
		in.Catalog.Evidence = o.Evidence
	}
	return in, nil
}

// silence notes which storages did not answer.
func (in *Input) silence(storages []string, err error) {
	for i := range in.Stores {
		if s := &in.Stores[i]; slices.Contains(storages, s.Name) && s.Err == nil {
			s.Err = err
		}
	}
	if len(in.Stores) == 0 {
		in.Stores = []Store{{Name: "default", Err: err}}
	}
}

// load reads everything anew. Its error is that nothing can be said.
func (in *Input) load(ctx context.Context, a *archive.Archive, o Options) (err error) {
	in.Gaps, in.Checked, in.Locked, in.Tails, in.Trouble, in.Backups = nil, nil, nil, nil, nil, map[string]Evidence{}
	loadCatalog := catalog.Load
	if o.Brief {
		loadCatalog = catalog.LoadBrief
	}
	if in.Catalog, err = loadCatalog(ctx, a); err != nil {
		return err
	}
	var size wal.SegmentSize
	size, in.SizeKnown = in.Catalog.SegmentSize()
	if in.WAL, err = catalog.LoadWAL(ctx, a, size); err != nil {
		return err
	}
	in.Trouble = append(in.Trouble, in.Catalog.BadTombstones...)
	switch owner, err := a.Owner(ctx); {
	case err == nil:
		in.System = owner.SystemIdentifier
	case !errors.Is(err, fs.ErrNotExist):
		in.Trouble = append(in.Trouble, err)
	}
	in.loadGaps(ctx, a)
	in.loadChecked(ctx, a)
	in.look(ctx, a)
	in.tryWAL(ctx, a)
	in.readTails(ctx, a, o.Shallow)
	return ctx.Err()
}

func (in *Input) loadGaps(ctx context.Context, a *archive.Archive) {
	size := in.WAL.SegmentSize
	accepted, bad, err := catalog.LoadAccepted(ctx, a, size)
	if err != nil {
		bad = append(bad, err)
	}
	in.Trouble = append(in.Trouble, bad...)
	for _, g := range accepted {
		in.Gaps = append(in.Gaps, Gap{RecordHead: archive.RecordHead{At: g.At, By: g.By}, Timeline: g.Timeline, First: size.Name(g.Timeline, g.First),
			Last: size.Name(g.Timeline, g.Last), Reason: g.Reason, Removed: g.Removed})
	}
}

// walRecord is what the verdict needs of a record in archive.VerifiedWALDir.
type walRecord struct {
	Timeline wal.Timeline `json:"timeline"`
	First    string       `json:"first"`
	Last     string       `json:"last"`
	Problems []struct {
		Segment string `json:"segment"`
		Kind    string `json:"kind"`
		Text    string `json:"text"`
	} `json:"problems"`
	Sample float64 `json:"sample"`
}

// unread are the kinds of problems that say nothing of a segment's content: it was not there then, or not to be read.
var unread = []string{"missing", "store", "key"}

func (in *Input) loadChecked(ctx context.Context, a *archive.Archive) {
	size := in.WAL.SegmentSize
	for r, err := range archive.Records[walRecord](ctx, a, archive.VerifiedWALDir) {
		if err != nil {
			in.Trouble = append(in.Trouble, err)
			continue
		}
		t, first, err1 := size.ParseSegment(r.Doc.First)
		t2, last, err2 := size.ParseSegment(r.Doc.Last)
		if err1 != nil || err2 != nil || t != t2 || t != r.Doc.Timeline || last < first {
			in.Trouble = append(in.Trouble, fmt.Errorf("read %s: %.40q to %.40q is no stretch of timeline %d", r.Name, r.Doc.First, r.Doc.Last, r.Doc.Timeline))
			continue
		}
		if r.Doc.Sample == 0 {
			in.Checked = append(in.Checked, Checked{When: r.Modified, Timeline: t, First: first, Last: last})
		}
		for _, p := range r.Doc.Problems {
			pt, n, err := size.ParseSegment(p.Segment)
			if err != nil {
				continue
			}
			k := Checked{When: r.Modified, Timeline: pt, First: n, Last: n, Problem: cmp.Or(p.Text, p.Kind, "damaged")}
			if slices.Contains(unread, p.Kind) {
				k.Problem, k.Unread = "", true
			}
			in.Checked = append(in.Checked, k)
		}
	}
}

// look finds out of each backup what is known of its content, and whether it can be read here.
func (in *Input) look(ctx context.Context, a *archive.Archive) {
	found := make([]Evidence, len(in.Catalog.Backups))
	errs := make([]error, len(found))
	var group errgroup.Group
	group.SetLimit(inFlight)
	for i := range in.Catalog.Backups {
		b := &in.Catalog.Backups[i]
		if b.Sentinel == nil {
			continue
		}
		group.Go(func() error {
			found[i], errs[i] = evidence(ctx, a, b)
			return nil
		})
	}
	group.Wait() // each has its own error
	for i := range found {
		in.Backups[in.Catalog.Backups[i].Name] = found[i]
		if errs[i] != nil {
			in.Trouble = append(in.Trouble, errs[i])
		}
	}
}

// partsDir is where the parts lie in a backup's folder.
const partsDir = "tar_partitions/"

// A folder is what lies in a backup's folder, as far as it tells something of the backup, in order of names.
type folder struct {
	parts            []archive.Part
	verified, proven []store.Object // records
}

// listFolder lists a backup's folder as a whole: one request, where directories would be one each.
func listFolder(ctx context.Context, a *archive.Archive, backup string) (f folder, err error) {
	for o, err := range store.Walk(ctx, a.Store(), archive.Folder(backup)) {
		if err != nil {
			return folder{}, fmt.Errorf("list what there is of %s: %w", backup, err)
		}
		record := strings.HasSuffix(o.Name, ".json")
		switch dir := path.Dir(o.Name) + "/"; {
		case dir == archive.Folder(backup)+partsDir:
			f.parts = append(f.parts, archive.PartOf(o))
		case dir == archive.VerifiedDir(backup) && record:
			f.verified = append(f.verified, o)
		case dir == archive.ProvenDir(backup) && record:
			f.proven = append(f.proven, o)
		}
	}
	return f, nil
}

func evidence(ctx context.Context, a *archive.Archive, b *catalog.Backup) (e Evidence, err error) {
	f, err := listFolder(ctx, a, b.Name)
	switch {
	case err != nil:
		e.Locked = err.Error()
	case len(f.parts) == 0:
		e.Missing = archive.Folder(b.Name) + "tar_partitions: none of its parts is there"
	default:
		if e.Missing, err = lacking(ctx, a, b, f.parts); err != nil {
			return e, err
		}
		smallest := slices.MinFunc(f.parts, func(x, y archive.Part) int { return cmp.Compare(x.Size, y.Size) })
		if err := try(a.OpenPart(ctx, b.Name, smallest)); err != nil {
			e.Locked = strings.TrimPrefix(err.Error(), "read "+archive.Folder(b.Name)+partsDir)
		}
	}
	if ctx.Err() != nil {
		return Evidence{}, ctx.Err()
	}
	return e, errors.Join(e.recall(ctx, a, b, f.verified), e.proof(ctx, a, b, f.proven))
}

// lacking returns what of the parts of a backup is not there, or is not as long as it was stored, as far as the listing tells; "" for nothing. Holdfast
// keeps how many bytes all of them have; which one it is that lacks some is looked up only then.
func lacking(ctx context.Context, a *archive.Archive, b *catalog.Backup, parts []archive.Part) (string, error) {
	var total int64
	sizes := map[string]int64{}
	for _, p := range parts {
		total += p.Size
		sizes[partsDir+p.Name] = p.Size
	}
	if !b.IsWALE() && !slices.ContainsFunc(parts, archive.Part.IsControl) {
		return archive.Folder(b.Name) + partsDir + ": the part with pg_control is not there", nil
	}
	if b.Sentinel.Tool == "" || total == b.Sentinel.CompressedSize {
		return "", nil
	}
	stored, _, err := a.Objects(ctx, b.Name)
	for _, name := range slices.Sorted(maps.Keys(stored)) {
		want := stored[name].Size
		switch size, there := sizes[name]; {
		case !strings.HasPrefix(name, partsDir):
		case !there:
			return archive.Folder(b.Name) + name, nil
		case size != want:
			return fmt.Sprintf("%s%s as it was stored: it has %d bytes of %d", archive.Folder(b.Name), name, size, want), nil
		}
	}
	if total < b.Sentinel.CompressedSize {
		return fmt.Sprintf("parts: those that are there have %d bytes, and %d were stored", total, b.Sentinel.CompressedSize), nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return "", err // there is more than there was, which does no harm
}

// try reads a byte of an object, to see whether there is a key for it.
func try(r io.ReadCloser, err error) error {
	if err != nil {
		return err
	}
	defer r.Close() // only read
	if _, err = io.ReadFull(r, make([]byte, 1)); err == io.EOF || errors.Is(err, context.Canceled) {
		err = nil // there is nothing in it
	}
	return err
}

// backupRecord is what the verdict needs of a record in archive.VerifiedDir.
type backupRecord struct {
	Backup   string `json:"backup"`
	Sentinel string `json:"sentinel_sha256"`
	Result   string `json:"result"`
	Objects  []struct {
		Name     string `json:"name"`
		Problem  string `json:"problem"`
		Harmless bool   `json:"harmless"`
	} `json:"objects"`
	Sample float64 `json:"sample"`
}

// proof reads the newest record that counts of a restore that was to prove the backup.
func (e *Evidence) proof(ctx context.Context, a *archive.Archive, b *catalog.Backup, records []store.Object) error {
	p, refused, err := proof.Newest(ctx, a, b.Name, b.Sentinel.Sum, records)
	e.Refused = refused
	switch {
	case p == nil:
	case p.OK:
		e.Proven, e.RTO = p.When, p.Took()
	default:
		e.Failed = p.When
	}
	return err
}

// recall reads the records of verifications, the newest first, as far back as the last that came to an end. Of an object the newest that names it counts.
func (e *Evidence) recall(ctx context.Context, a *archive.Archive, b *catalog.Backup, records []store.Object) error {
	seen := map[string]bool{}
	var errs []error
	for _, o := range slices.Backward(records) {
		r, err := archive.ReadRecord[backupRecord](ctx, a, o)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if r.Doc.Sentinel != "" && r.Doc.Sentinel != b.Sentinel.Sum {
			continue // of another backup of that name
		}
		for _, o := range r.Doc.Objects {
			if !seen[o.Name] && o.Problem != "" && !o.Harmless && e.Damaged == "" {
				e.Damaged = path.Base(o.Name) + ": " + o.Problem
			}
			seen[o.Name] = true
		}
		switch {
		case r.Doc.Result == "damaged" && e.Damaged == "" && len(r.Doc.Objects) == 0:
			e.Damaged = "so says " + r.Name
		case r.Doc.Result == "ok" && r.Doc.Sample == 0:
			if e.Damaged == "" {
				e.Verified = r.Modified
			}
			return errors.Join(errs...)
		}
	}
	return errors.Join(errs...)
}

// tryWAL finds out which WAL cannot be read here, for want of a key: it tries the first and the last segment of each stretch, and where they differ looks
// for where that changes.
func (in *Input) tryWAL(ctx context.Context, a *archive.Archive) {
	type stretch struct {
		timeline wal.Timeline
		run      *catalog.Run
	}
	var all []stretch
	for i := range in.WAL.Timelines {
		of := &in.WAL.Timelines[i]
		for j := range of.Runs {
			all = append(all, stretch{of.Timeline, &of.Runs[j]})
		}
	}
	slices.SortStableFunc(all, func(x, y stretch) int { return y.run.Newest.Compare(x.run.Newest) })
	all = all[:min(len(all), tryRuns)]
	locked := make([]Locked, len(all))
	var group errgroup.Group
	group.SetLimit(inFlight)
	for i, s := range all {
		group.Go(func() error {
			why := func(n wal.SegmentNo) string {
				err := try(a.OpenWholeWAL(ctx, in.WAL.SegmentSize.Name(s.timeline, n)))
				if err == nil || errors.Is(err, fs.ErrNotExist) || ctx.Err() != nil { // that it has gone since, the next look will tell
					return ""
				}
				// The segment is named where this is told.
				text := err.Error()
				if object, why, ok := strings.Cut(text, ": "); ok && strings.HasPrefix(object, "read "+archive.WALDir) {
					text = why
				}
				return text
			}
			l := Locked{Timeline: s.timeline, First: s.run.First, Last: s.run.Last}
			first, last := why(l.First), ""
			if last = first; l.Last > l.First {
				last = why(l.Last)
			}
			// Between lo and hi it changes; once, as keys do.
			lo, hi := l.First, l.Last
			for range tryWithin {
				if (first == "") == (last == "") || hi-lo <= 1 {
					break
				}
				mid := lo + (hi-lo)/2
				if (why(mid) == "") == (first == "") {
					lo = mid
				} else {
					hi = mid
				}
			}
			switch {
			case first == "" && last == "":
				return nil
			case first == "":
				l.First, l.Why = hi, last
			case last == "":
				l.Last, l.Why = lo, first
			default:
				l.Why = first
			}
			locked[i] = l
			return nil
		})
	}
	group.Wait() // none fails
	for _, l := range locked {
		if l.Why != "" {
			in.Locked = append(in.Locked, l)
		}
	}
}
