package verify

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
	"maps"
	"reflect"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/chain"
	"holdfast/internal/compress"
	"holdfast/internal/pg/manifest"
)

// Names of a backup's objects, from its folder on.
const (
	metadataName       = "metadata.json"
	fileListName       = "files_metadata.json"
	manifestName       = "manifest.json.zst"
	objectsName        = "objects.json"
	serverManifestName = "backup_manifest.zst"
	pushName           = "push.json"
	partsDir           = "tar_partitions/"
	sumsDir            = "page_sums/"
	versionName        = "extended_version.txt" // of WAL-E
)

// eachBackup verifies the targets, one after the other.
func (r *run) eachBackup(ctx context.Context) error {
	for _, t := range r.targets {
		r.opts.Progress.phase.Store(t.name)
		var err error
		if t.Backup == nil {
			r.orphan(t)
		} else {
			err = r.backup(ctx, t)
		}
		if err != nil {
			return err
		}
		t.ended = true
	}
	return nil
}

// backup verifies what is due of one.
func (r *run) backup(ctx context.Context, t *target) error {
	r.chain(t)
	if !t.due() {
		return nil
	}
	if err := r.sentinel(ctx, t); err != nil {
		return err
	}
	if err := r.objects(ctx, t); err != nil {
		return err
	}
	if err := r.metadata(ctx, t); err != nil {
		return err
	}
	r.shape(t)
	switch {
	case t.object(manifestName) == nil && (t.Sentinel == nil || t.Sentinel.Manifest == ""):
		if t.stored == nil {
			return r.legacy(ctx, t)
		}
		return r.asStored(ctx, t)
	case r.request.NoKey:
		return r.asStored(ctx, t)
	}
	return r.ours(ctx, t)
}

// finding begins one about an object of t, by its name from the folder on.
func (t *target) finding(name string) Finding {
	return Finding{Backup: t.name, Object: archive.Folder(t.name) + name}
}

// known returns how an object of t was put, nil where that is not known.
func (t *target) known(name string) *archive.Stored {
	if s, ok := t.stored[name]; ok {
		return &s
	}
	return nil
}

// chain compares a delta with what it builds on, as far as sentinels tell.
func (r *run) chain(t *target) {
	if t.Sentinel == nil || t.Sentinel.DeltaFrom == "" {
		if archive.IsDelta(t.name) && t.Sentinel != nil {
			f := Finding{Severity: Damage, Kind: Chain, Backup: t.name, Object: sentinelOf(t.name), Text: "it is named like a delta, and its sentinel names no backup that it builds on"}
			r.add(f)
		}
		return
	}
	f := Finding{Severity: Damage, Kind: Chain, Backup: t.name, Object: sentinelOf(t.Sentinel.DeltaFrom)}
	parent, err := r.catalog.Find(t.Sentinel.DeltaFrom)
	s := t.Sentinel
	switch {
	case err != nil:
		f.Kind, f.Text = Missing, fmt.Sprintf("%s builds on this backup, and the archive does not have it", t.name)
	case parent.Sentinel == nil:
		return // told where that is verified
	case parent.Sentinel.LSN != nil && *parent.Sentinel.LSN != *s.DeltaLSN:
		f.Kind, f.Text = Foreign, fmt.Sprintf("%s builds on a backup that starts at %s, and this one starts at %s: it was replaced", t.name, s.DeltaLSN, parent.Sentinel.LSN)
	case s.Parent != "" && parent.Sentinel.Sum != s.Parent:
		f.Kind, f.Text = Foreign, fmt.Sprintf("it is not the sentinel that was there when %s was built on it: it was changed or replaced since", t.name)
	default:
		return
	}
	r.add(f)
}

// objects reads objects.json.
func (r *run) objects(ctx context.Context, t *target) error {
	o := t.object(objectsName)
	f := t.finding(objectsName)
	if o == nil {
		if t.Sentinel != nil && t.Sentinel.Objects != "" {
			f.Severity, f.Kind, f.Text = Damage, Missing, "it is not there, and the sentinel has its checksum"
			r.add(f)
		}
		return nil
	}
	var sum string
	a, tap := r.tapped()
	var err error
	t.stored, sum, err = a.Objects(ctx, t.name)
	if err == nil && t.Sentinel != nil && t.Sentinel.Objects != "" && sum != t.Sentinel.Objects {
		other, errRun := r.otherSentinel(ctx, t)
		if errRun != nil {
			return errRun
		}
		if other {
			return r.forsake(ctx, t, o)
		}
		err = &wrong{Finding{Text: "it is not the one that the sentinel names"}}
		t.stored = nil
	}
	ok, err := r.judge(ctx, f, nil, tap, tap.size, err)
	if err != nil {
		return err
	}
	if err := r.noted(ctx, t, o, ok); err != nil || !ok {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(t.stored)) { // what is missing or has another size needs not be read
		f, there := t.finding(name), t.object(name)
		if there == nil {
			f.Severity, f.Kind, f.Text = Damage, Missing, "it is not there, and was put with the backup"
			r.add(f)
		}
	}
	return nil
}

// otherSentinel reports whether a sentinel that does not name the objects.json that is there is the odd one: the manifest is as that document has it.
func (r *run) otherSentinel(ctx context.Context, t *target) (bool, error) {
	known, o := t.known(manifestName), t.object(manifestName)
	if known == nil || o == nil {
		return false, nil
	}
	a, tap := r.tapped()
	body, err := a.Store().Open(ctx, o.name)
	if err == nil {
		err = body.Close() // having read all of it
	}
	return err == nil && tap.err == nil && tap.stored() == *known, stopped(ctx)
}

// forsake goes on without the sentinel, which is not that of the backup.
func (r *run) forsake(ctx context.Context, t *target, objects *object) error {
	r.add(Finding{Severity: Damage, Kind: Foreign, Backup: t.name, Object: t.objects[0].name,
		Text: "it is of another backup than what lies in the folder: it names another manifest and another objects.json, and these two agree. It was replaced, or is an old one"})
	r.distrust(t)
	return r.noted(ctx, t, objects, true)
}

// noted notes that an object was read, and what came of it. What could not be looked at is as it was before.
func (r *run) noted(ctx context.Context, t *target, o *object, ok bool) error {
	return r.note(ctx, t, o, ok, false)
}

// note is noted of what was, or was not, looked into.
func (r *run) note(ctx context.Context, t *target, o *object, ok, asStored bool) error {
	r.mu.Lock()
	trouble, problem := r.troubles[o.name], ""
	switch {
	case trouble != nil && r.severity(trouble.verdict) == Damage:
		trouble.recorded = true
		problem = trouble.problem.text()
	case !ok || trouble != nil:
		t.read++
		r.mu.Unlock()
		return nil
	}
	r.mu.Unlock()
	return r.done(ctx, t, o, problem, asStored)
}

// sentinel checks the sentinel itself.
func (r *run) sentinel(ctx context.Context, t *target) error {
	o := &t.objects[0]
	f := Finding{Backup: t.name, Object: o.name}
	ok, err := r.content(ctx, f, nil, r.plainly(ctx, o.name), func(in io.Reader) error {
		b, err := io.ReadAll(io.LimitReader(in, archive.MaxSentinel+1))
		if err != nil {
			return err
		}
		s, err := archive.ParseSentinel(b)
		if err != nil {
			return syntax(err)
		}
		if t.Sentinel == nil {
			return &unsure{"it could not be read a moment ago, so that what it names was not looked at: " + t.Err.Error()}
		}
		sum := sha256.Sum256(b)
		if t.Sentinel.Sum != hex.EncodeToString(sum[:]) {
			return &unsure{"it was replaced while it was looked at"}
		}
		sealed, err := archive.CheckSeal(b)
		switch {
		case err != nil:
			return &wrong{Finding{Text: err.Error()}}
		case !sealed && s.Objects != "":
			return &wrong{Finding{Text: "its seal is gone: it is not what was stored"}}
		}
		if text := r.agrees(t); text != "" {
			return &wrong{Finding{Kind: Foreign, Text: text}}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if !ok && t.Sentinel != nil {
		r.distrust(t)
	}
	return r.noted(ctx, t, o, ok)
}

// distrust goes on as if the sentinel said nothing.
func (r *run) distrust(t *target) {
	b := *t.Backup
	b.Sentinel = nil
	t.Backup = &b
	r.mu.Lock()
	defer r.mu.Unlock()
	r.findings = slices.DeleteFunc(r.findings, func(f Finding) bool {
		gone := f.segment != nil && f.Backup == t.name // which WAL it needs is not known
		if gone {
			r.count(&f, -1, false)
		}
		return gone
	})
	if !r.request.All {
		r.wal.systems = nil
	}
}

// agrees compares a sentinel with its own name.
func (r *run) agrees(t *target) string {
	size, err := t.SegmentSize()
	if err != nil {
		return err.Error()
	}
	lsn, ok := t.StartLSN()
	if !ok || t.IsWALE() {
		return ""
	}
	if n := t.Segment(); size.Name(t.Timeline(), size.Segment(lsn)) != n && size.Name(t.Timeline(), size.LastSegment(lsn)) != n {
		return fmt.Sprintf("it is of a backup that starts at %s, which does not lie in the segment of its name", lsn)
	}
	return ""
}

// syntax is what is wrong with a document that does not parse, with the place where it is known.
func syntax(err error) error {
	w := &wrong{Finding{Text: err.Error()}}
	if s := (*json.SyntaxError)(nil); errors.As(err, &s) {
		w.Offset = at(s.Offset)
	}
	return w
}

// plainly opens an object as it is stored.
func (r *run) plainly(ctx context.Context, name string) func(*archive.Archive) (io.ReadCloser, error) {
	return func(a *archive.Archive) (io.ReadCloser, error) { return a.Store().Open(ctx, name) }
}

// metadata checks metadata.json, against the sentinel too.
func (r *run) metadata(ctx context.Context, t *target) error {
	o := t.object(metadataName)
	f := t.finding(metadataName)
	ours := t.Sentinel != nil && t.Sentinel.Objects != ""
	if o == nil {
		if t.Sentinel != nil && t.Sentinel.Manifest != "" {
			f.Severity, f.Kind, f.Text = Damage, Missing, "it is not there"
			r.add(f)
		}
		return nil
	}
	if !o.verified.IsZero() {
		return nil
	}
	ok, err := r.content(ctx, f, nil, r.plainly(ctx, o.name), func(in io.Reader) error {
		b, err := io.ReadAll(io.LimitReader(in, archive.MaxSentinel+1))
		if err != nil {
			return err
		}
		var m archive.Metadata
		sealed, err := archive.CheckSeal(b)
		if err != nil {
			return &wrong{Finding{Text: err.Error()}}
		}
		d := json.NewDecoder(bytes.NewReader(b))
		if ours && !sealed {
			d.DisallowUnknownFields() // as WAL-G's backup-mark writes it anew
		}
		if err := d.Decode(&m); err != nil {
			return syntax(err)
		}
		if t.Sentinel == nil {
			return nil
		}
		if name := unlike(t, &m, ours); name != "" {
			return &wrong{Finding{Kind: Document, Text: "its " + name + " is not that of the sentinel: one of the two is damaged, or of another backup"}}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return r.noted(ctx, t, o, ok)
}

// unlike names what metadata has otherwise than the sentinel, "" for nothing. Of other programs less is compared.
func unlike(t *target, m *archive.Metadata, ours bool) string {
	want := t.Sentinel.Metadata()
	want.IsPermanent = m.IsPermanent
	x, y := reflect.ValueOf(*m), reflect.ValueOf(want)
	for i := range x.NumField() {
		name := x.Type().Field(i).Name
		if !ours && name != "StartLSN" && name != "FinishLSN" && name != "SystemIdentifier" {
			continue
		}
		if !ours && t.Sentinel.LSN == nil {
			continue
		}
		j, err1 := json.Marshal(x.Field(i).Interface())
		k, err2 := json.Marshal(y.Field(i).Interface())
		if err1 != nil || err2 != nil || !bytes.Equal(j, k) {
			return name
		}
	}
	return ""
}

// shape looks for objects that belong to nothing.
func (r *run) shape(t *target) {
	stray := func(name, text string) {
		f := t.finding(name)
		f.Severity, f.Kind, f.Text = Warning, Stray, text
		r.add(f)
	}
	for _, o := range t.objects[1:] {
		name := strings.TrimPrefix(o.name, archive.Folder(t.name))
		_, put := t.stored[name]
		switch {
		case name == metadataName, name == objectsName, put:
		case name == pushName:
			stray(name, "the mark of a push that has ended: it means nothing")
		case t.stored != nil:
			stray(name, "it was not put with the backup: it is left alone")
		case name == fileListName, name == manifestName, name == serverManifestName, name == versionName,
			strings.HasPrefix(name, partsDir), strings.HasPrefix(name, sumsDir), strings.HasPrefix(name, archive.ConfigName):
		default:
			stray(name, "it is of no kind that a backup has: it is left alone")
		}
	}
}

// orphan says what a folder without a sentinel is.
func (r *run) orphan(t *target) {
	f := Finding{Severity: Warning, Kind: Stray, Backup: t.name, Object: archive.Folder(t.name)}
	switch {
	case slices.ContainsFunc(r.catalog.Tombstones, func(tomb catalog.Tombstone) bool {
		return slices.Contains(tomb.Backups, t.name) && tomb.PurgeAfter.Before(r.now)
	}):
		f.Text = fmt.Sprintf("%d objects, and no sentinel: retention is removing the backup, or was broken off", len(t.objects))
	case t.object(pushName) != nil:
		f.Text = "a push is at work here, or has died: there is no sentinel, and so no backup"
	case t.object(objectsName) != nil && t.object(metadataName) != nil || len(t.lost) > 0 && slices.Contains(t.lost, sentinelOf(t.name)):
		f.Severity, f.Kind, f.Object = Damage, Missing, sentinelOf(t.name)
		f.Text = fmt.Sprintf("the sentinel is not there, and %d objects of the backup are: it was lost, or the backup is being deleted", len(t.objects))
	case len(t.objects) > 0:
		f.Text = fmt.Sprintf("%d objects, and no sentinel: what a push or a deletion has left that was broken off", len(t.objects))
	default:
		return
	}
	r.add(f)
}

func sentinelOf(backup string) string {
	return archive.BackupDir + backup + "_backup_stop_sentinel.json"
}

// asStored compares what is due as it is stored with what was put: for who has no key, and for what nothing else speaks.
func (r *run) asStored(ctx context.Context, t *target) error {
	f := Finding{Severity: Unknown, Kind: Key, Backup: t.name, Object: archive.Folder(t.name)}
	switch {
	case t.stored == nil && !r.request.NoKey:
		f.Kind, f.Text = NotListed, "its manifest is of no use, and nothing else says what its objects should be: they were not looked at"
		r.add(f)
		return nil
	case t.stored == nil:
		f.Text = "its objects are encrypted, no key is set that decrypts, and nothing says in clear how they were put: only names and sizes were looked at"
		r.add(f)
		return nil
	case r.request.NoKey:
		t.limits = "no key that decrypts is set: objects were compared as they are stored, by their checksums, and not looked into"
	default:
		t.limits = "it has no manifest: objects were compared as they are stored"
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(r.opts.Workers)
	for i := range t.objects {
		o := &t.objects[i]
		name := strings.TrimPrefix(o.name, archive.Folder(t.name))
		if t.known(name) == nil || !o.verified.IsZero() {
			continue
		}
		if strings.HasPrefix(name, partsDir) && !r.chosen() {
			continue
		}
		group.Go(func() error { return r.stored(ctx, t, o, name) })
	}
	return group.Wait()
}

// stored compares one object as it is stored with how it was put.
func (r *run) stored(ctx context.Context, t *target, o *object, name string) error {
	ok, err := r.content(ctx, t.finding(name), t.known(name), r.plainly(ctx, o.name), func(io.Reader) error { return nil })
	if err != nil {
		return err
	}
	return r.note(ctx, t, o, ok, true)
}

// ours verifies a backup that has a manifest.
func (r *run) ours(ctx context.Context, t *target) error {
	m, err := r.manifest(ctx, t)
	if err != nil {
		return err
	}
	if m == nil { // what can be told without
		return r.asStored(ctx, t)
	}
	c := &cluster{target: t, run: r}
	if err := c.first(ctx, m); err != nil {
		return err
	}
	group, parts := errgroup.WithContext(ctx)
	group.SetLimit(r.opts.Workers)
	err = r.deal(parts, t, func(u *part) { group.Go(func() error { return c.part(parts, u) }) })
	for _, small := range []func(context.Context, *target) error{r.fileList, r.config, r.serverManifest} {
		if err == nil {
			group.Go(func() error { return small(parts, t) })
		}
	}
	if errGroup := group.Wait(); errGroup != nil {
		err = errGroup
	}
	if err == nil {
		err = r.complete(ctx, t)
	}
	return err
}

// contents is what a pass over a manifest keeps.
type contents struct {
	last  []*archive.ManifestPart // control file and labels
	names map[string]bool         // of all parts
	bases map[string]bool         // the same without the codec's extension
}

// manifest reads the manifest, and compares it with sentinel and listing. It is nil where it is of no use.
func (r *run) manifest(ctx context.Context, t *target) (*contents, error) {
	o := t.object(manifestName)
	f := t.finding(manifestName)
	if o == nil {
		f.Severity, f.Kind, f.Text = Damage, Missing, "it is not there: what else there is can be compared as it is stored at best"
		r.add(f)
		return nil, nil
	}
	c := &contents{names: map[string]bool{}, bases: map[string]bool{}}
	var found []Finding
	a, tap := r.tapped()
	read := int64(0)
	m, err := a.OpenManifest(ctx, t.name)
	if err == nil {
		read = 1
		found, err = r.readManifest(t, m, c)
		if errClose := m.Close(); err == nil {
			err = errClose
		}
	}
	ok, err := r.judge(ctx, f, t.known(manifestName), tap, read, err)
	if err != nil {
		return nil, err
	}
	if err := r.noted(ctx, t, o, ok); err != nil || !ok {
		return nil, err
	}
	for _, f := range found {
		r.add(f)
	}
	for _, o := range t.objects[1:] {
		name, isPart := strings.CutPrefix(o.name, archive.Folder(t.name)+partsDir)
		sums, isSums := strings.CutPrefix(o.name, archive.Folder(t.name)+sumsDir)
		if isSums {
			base := strings.TrimSuffix(sums, ".crc32c")
			isSums = !c.bases[base]
		}
		if (isPart && !c.names[name] || isSums) && t.stored == nil {
			f := t.finding(strings.TrimPrefix(o.name, archive.Folder(t.name)))
			f.Severity, f.Kind, f.Text = Warning, Stray, "it lies beside the backup's parts, and the manifest does not list it: it is left alone"
			r.add(f)
		}
	}
	return c, nil
}

// readManifest goes through a manifest once. It returns what is wrong with other objects.
func (r *run) readManifest(t *target, m *archive.Manifest, c *contents) (found []Finding, err error) {
	h, s := &m.Header, t.Sentinel
	for {
		p, err := m.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		if c.names[p.Name] {
			return nil, &wrong{Finding{Text: "it lists " + p.Name + " twice"}}
		}
		base, _ := compress.Split(p.Name)
		c.names[p.Name], c.bases[base] = true, true
		if _, err := chain.Contents(p.Name, p.Members); err != nil {
			return nil, &wrong{Finding{Text: err.Error()}}
		}
		if base == archive.ControlPart || base == archive.LabelPart {
			c.last = append(c.last, p)
		}
		f := t.finding(partsDir + p.Name)
		f.Severity, f.Kind = Damage, Missing
		switch o := t.object(partsDir + p.Name); {
		case o == nil && t.known(partsDir+p.Name) == nil: // else it was told
			f.Text = "it is not there, and the manifest lists it"
			found = append(found, f)
		case o != nil && o.size != p.Size:
			f.Kind, f.Text = Size, fmt.Sprintf("it has %d bytes, and was put with %d", o.size, p.Size)
			if o.verified.IsZero() {
				continue // will be read, which tells more
			}
			found = append(found, f)
		}
	}
	for h.Unchanged > 0 {
		if _, err := m.NextUnchanged(); err == io.EOF {
			break
		} else if err != nil {
			return nil, err
		}
	}
	if s == nil {
		return found, nil
	}
	parent := archive.ManifestParent{}
	if h.Parent != nil {
		parent = *h.Parent
	}
	switch {
	case s.Manifest != "" && m.Sum() != s.Manifest:
		return nil, &wrong{Finding{Text: "it is not the one that the sentinel names: its SHA-256 is another"}}
	case s.SystemIdentifier != nil && h.SystemIdentifier != *s.SystemIdentifier:
		return nil, &wrong{Finding{Kind: Foreign, Text: fmt.Sprintf("it is of the cluster %d, the sentinel of %d", h.SystemIdentifier, *s.SystemIdentifier)}}
	case parent.Backup != s.DeltaFrom || s.Parent != "" && parent.Sum != s.Parent:
		return nil, &wrong{Finding{Kind: Document, Text: "it names another backup to build on than the sentinel does"}}
	}
	return found, nil
}

// fileList compares the list of files with what it is by the manifest.
func (r *run) fileList(ctx context.Context, t *target) error {
	o := t.object(fileListName)
	f := t.finding(fileListName)
	if o == nil {
		if t.known(fileListName) == nil && (t.Sentinel == nil || !t.Sentinel.FilesMetadataDisabled) {
			f.Severity, f.Kind, f.Text = Damage, Missing, "it is not there"
			r.add(f)
		}
		return nil
	}
	if !o.verified.IsZero() {
		return nil
	}
	ok, err := r.content(ctx, f, t.known(fileListName), r.plainly(ctx, o.name), func(in io.Reader) error {
		if t.known(fileListName) != nil {
			if _, err := io.Copy(io.Discard, in); err != nil { // what was put then was right
				return err
			}
			return nil
		}
		c := &comparer{in: in, buf: make([]byte, 64<<10)}
		err := r.archive.WriteFileList(ctx, t.name, c)
		if err == nil {
			err = c.end()
		}
		return err
	})
	if err != nil {
		return err
	}
	return r.noted(ctx, t, o, ok)
}

// comparer is written what a stream should yield.
type comparer struct {
	in  io.Reader
	buf []byte
	n   int64
}

func (c *comparer) Write(b []byte) (int, error) {
	for rest := b; len(rest) > 0; {
		k, err := io.ReadFull(c.in, c.buf[:min(len(c.buf), len(rest))])
		for i, x := range c.buf[:k] {
			if x != rest[i] {
				return 0, c.differs(int64(i))
			}
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return 0, &wrong{Finding{Kind: Size, Offset: at(c.n + int64(k)), Text: "it ends too early"}}
		}
		if err != nil {
			return 0, err
		}
		c.n += int64(k)
		rest = rest[k:]
	}
	return len(b), nil
}

func (c *comparer) differs(i int64) error {
	return &wrong{Finding{Offset: at(c.n + i), Text: fmt.Sprintf("from byte %d on it is not what it must be by the manifest", c.n+i)}}
}

// end makes sure that nothing follows.
func (c *comparer) end() error {
	if n, err := io.ReadFull(c.in, c.buf[:1]); n > 0 {
		return &wrong{Finding{Kind: Size, Offset: at(c.n), Text: "it goes on behind its end"}}
	} else if err != io.EOF {
		return err
	}
	return nil
}

// config reads the configuration from outside the data directory.
func (r *run) config(ctx context.Context, t *target) error {
	for i := range t.objects[1:] {
		o := &t.objects[i+1]
		name := strings.TrimPrefix(o.name, archive.Folder(t.name))
		if !strings.HasPrefix(name, archive.ConfigName) || !o.verified.IsZero() {
			continue
		}
		ok, err := r.content(ctx, t.finding(name), t.known(name), func(a *archive.Archive) (io.ReadCloser, error) { return a.OpenObject(ctx, o.name) },
			func(in io.Reader) error { return tarIsWhole(in) })
		if err == nil {
			err = r.noted(ctx, t, o, ok)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// serverManifest reads the manifest that the server sent.
func (r *run) serverManifest(ctx context.Context, t *target) error {
	o := t.object(serverManifestName)
	if o == nil || !o.verified.IsZero() {
		return nil
	}
	ok, err := r.content(ctx, t.finding(serverManifestName), t.known(serverManifestName),
		func(a *archive.Archive) (io.ReadCloser, error) { return a.OpenServerManifest(ctx, t.name) },
		func(in io.Reader) error {
			m, err := manifest.NewReader(in)
			for err == nil {
				_, err = m.Next()
			}
			if err != io.EOF {
				return err
			}
			start, ok := t.StartLSN()
			if ranges := m.WALRanges(); ok && (len(ranges) == 0 || ranges[len(ranges)-1].Start > start) {
				return &wrong{Finding{Kind: Foreign, Text: fmt.Sprintf("it is of a backup that does not start at %s", start)}}
			}
			return nil
		})
	if err != nil {
		return err
	}
	return r.noted(ctx, t, o, ok)
}

// complete makes sure of a delta that, by the manifests, each page of it is somewhere in what it builds on.
func (r *run) complete(ctx context.Context, t *target) error {
	if !t.IsDelta() {
		return nil
	}
	backups, err := r.catalog.Chain(t.Backup)
	if err != nil {
		return nil // told
	}
	if slices.ContainsFunc(backups, func(b *catalog.Backup) bool { return r.ofBackup(b.Name) != OK }) {
		return nil // it would say so again
	}
	whole, err := chain.Complete(ctx, r.archive, backups)
	if err == nil && !whole {
		return nil // of WAL-G
	}
	var c *chain.Chain
	if err == nil {
		c, err = chain.Load(ctx, r.archive, backups)
	}
	if err == nil {
		err = c.Walk(ctx, func(*chain.Part) error { return nil })
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		f := t.finding(manifestName)
		f.Severity, f.Kind, f.Text = Damage, Chain, "it does not fit the backups that it builds on: "+err.Error()
		if errors.As(err, new(*fs.PathError)) && !errors.Is(err, fs.ErrNotExist) {
			f.Severity, f.Kind, f.Text = Unknown, Store, "whether it fits the backups that it builds on is not known: "+err.Error()
		}
		r.add(f)
	}
	return nil
}

// altered says of an object that is not as it was put what it is instead, as far as that can be told.
func (r *run) altered(f Finding, known *archive.Stored, t *tap) string {
	is := t.stored()
	for _, target := range r.targets {
		for name, s := range target.stored {
			if s == is {
				return fmt.Sprintf("what is stored under its name is %s%s", archive.Folder(target.name), name)
			}
		}
	}
	if t.size != known.Size {
		return fmt.Sprintf("it was put with %d bytes, and has %d", known.Size, t.size)
	}
	return "what is stored is not what was put: its checksum is another"
}
