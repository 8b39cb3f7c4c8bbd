package verify

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/archive"
	"holdfast/internal/compress"
	"holdfast/internal/increment"
	"holdfast/internal/pg/control"
	"holdfast/internal/pg/page"
	"holdfast/internal/tarpart"
)

// What cannot be found where there is no manifest.
const (
	limitsSummed   = "it has no manifest: what is compared is codec and encryption, tar, the lists, pg_control, backup_label and page checksums. An object that was replaced by one with the same members goes unnoticed"
	limitsUnsummed = limitsSummed + "; and its codec has no checksum, so that a changed bit does in what has no page checksums"
)

// legacy is a backup of WAL-G or WAL-E.
type legacy struct {
	*target
	run  *run
	seed maphash.Seed

	mu      sync.Mutex
	listed  map[uint64]uint8 // by path
	members map[uint64]bool  // by part and path: whether it has still to come
	parts   map[string]int   // that the list has something in, and how much of that did not come
	sets    bool             // there is something in parts
	absent  bool             // some of that was told
	hasList bool
	control *control.Data
	label   bool
	pages   []badPages
}

const (
	isListed = 1 << iota
	isIncremented
	isSkipped
	hasCome
)

// badPages are those of one file whose checksum does not hold.
type badPages struct {
	part, path string
	method     compress.Method
	n, block   int64
	size       uint32 // blocks of a segment that were counted with
}

func (l *legacy) hash(s string) uint64 { return maphash.String(l.seed, s) }

func (l *legacy) hashMember(part, path string) uint64 { return l.hash(part + "\x00" + path) }

// legacy verifies a backup without a manifest, as far as that goes.
func (r *run) legacy(ctx context.Context, t *target) error {
	l := &legacy{target: t, run: r, seed: maphash.MakeSeed(), listed: map[uint64]uint8{}, members: map[uint64]bool{}, parts: map[string]int{}}
	if r.request.NoKey {
		return r.asStored(ctx, t)
	}
	t.limits = limitsSummed
	var parts []*object
	for i := range t.objects {
		o := &t.objects[i]
		name, ok := strings.CutPrefix(o.name, archive.Folder(t.name)+partsDir)
		if !ok || strings.Contains(name, "/") {
			continue
		}
		base, method := compress.Split(name)
		if t.IsWALE() && !strings.HasPrefix(base, "part_") {
			continue
		}
		if method == compress.Brotli || method == compress.LZMA || method == compress.None {
			t.limits = limitsUnsummed
		}
		parts = append(parts, o)
	}
	if err := l.list(ctx); err != nil {
		return err
	}
	l.gaps(parts)
	// Where nothing says which part a file is in, all are read together until all of them are found to be right. What says which cluster it is always is.
	due := slices.ContainsFunc(parts, func(o *object) bool { return o.verified.IsZero() })
	together := !t.settled && !l.sets
	reads := func(o *object) bool {
		base, _ := compress.Split(strings.TrimPrefix(o.name, archive.Folder(t.name)+partsDir))
		return o.verified.IsZero() || together || due && (base == archive.ControlPart || base == archive.LabelPart)
	}
	all := (due || together) && !slices.ContainsFunc(parts, func(o *object) bool { return !reads(o) })
	group, reading := errgroup.WithContext(ctx)
	group.SetLimit(r.opts.Workers)
	for _, o := range parts {
		name := strings.TrimPrefix(o.name, archive.Folder(t.name)+partsDir)
		base, _ := compress.Split(name)
		if !reads(o) || l.stray(name) || base != archive.ControlPart && base != archive.LabelPart && !r.chosen() {
			continue
		}
		group.Go(func() error { return l.part(reading, o, name) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if all && r.request.Sample == 0 {
		if err := l.settle(ctx); err != nil {
			return err
		}
	} else {
		l.settlePages()
	}
	for i := range t.objects[1:] { // what is left that has a content of its own
		o := &t.objects[i+1]
		if name := strings.TrimPrefix(o.name, archive.Folder(t.name)); name == versionName && o.verified.IsZero() {
			if err := r.stored(ctx, t, o, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// list reads the list of files.
func (l *legacy) list(ctx context.Context) error {
	r := l.run
	if l.Sentinel == nil {
		return nil
	}
	name := fileListName
	if l.Sentinel.FilesEmbedded {
		name = ""
	}
	o := l.object(name)
	f := l.finding(name)
	if name == "" {
		o, f.Object = &l.objects[0], l.objects[0].name
	}
	a, tap := r.tapped()
	err := a.ReadFileList(ctx, l.name, l.Sentinel, archive.FileListVisitor{
		File: func(e archive.ListedFile) error {
			flags := uint8(isListed)
			if e.Incremented {
				flags |= isIncremented
			}
			if e.Skipped {
				flags |= isSkipped
			}
			h := l.hash(e.Path)
			if l.listed[h] != 0 {
				return &wrong{Finding{Text: "it names " + e.Path + " twice"}}
			}
			l.listed[h] = flags
			return nil
		},
		Member: func(part, path string) error {
			if h := l.hashMember(part, path); !l.members[h] {
				l.parts[part]++
				l.members[h] = true // nothing has come yet
			}
			return nil
		},
	})
	if errors.Is(err, archive.ErrNoFileList) {
		if l.limits += "; it has no list of its files, so that a part at the end can be missing unseen"; o != nil && name != "" {
			return nil
		}
		return nil
	}
	l.hasList, l.sets = err == nil, len(l.parts) > 0
	ok, errRun := r.judge(ctx, f, nil, tap, tap.size, err)
	if errRun != nil || o == nil || name == "" {
		return errRun
	}
	return r.noted(ctx, l.target, o, ok)
}

// stray reports whether a part is one that the list knows nothing of, beside others: what a push that died has left.
func (l *legacy) stray(name string) bool {
	base, _ := compress.Split(name)
	if !l.hasList || !l.sets || l.has(name) || base == archive.ControlPart || base == archive.LabelPart {
		return false
	}
	f := l.finding(partsDir + name)
	f.Severity, f.Kind, f.Text = Warning, Stray, "the backup's list has nothing in it: left by a push that died, and left alone"
	l.run.add(f)
	return true
}

// has reports whether the list has something in a part.
func (l *legacy) has(part string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.parts[part]
	return ok
}

// gaps looks for parts that are missing.
func (l *legacy) gaps(parts []*object) {
	there := map[string]bool{}
	bases := map[string]bool{}
	numbers := map[int]bool{}
	most, digits := 0, ""
	for _, o := range parts {
		name := strings.TrimPrefix(o.name, archive.Folder(l.name)+partsDir)
		base, _ := compress.Split(name)
		there[name], bases[base] = true, true
		if number, ok := strings.CutPrefix(strings.TrimSuffix(base, ".tar"), "part_"); ok {
			if n, err := strconv.Atoi(number); err == nil {
				numbers[n], most, digits = true, max(most, n), name
			}
		}
	}
	missing := func(name, text string) {
		f := l.finding(partsDir + name)
		f.Severity, f.Kind, f.Text = Damage, Missing, text
		l.run.add(f)
	}
	for name := range l.parts {
		if !there[name] {
			missing(name, "it is not there, and the backup's list has files in it")
		}
	}
	if len(l.parts) == 0 {
		for n := 1; n < most && len(numbers) < most; n++ {
			if !numbers[n] {
				missing(fmt.Sprintf("part_%03d.tar", n), fmt.Sprintf("no part has the number %d, and there are later ones, such as %s", n, digits))
			}
		}
	}
	if !l.IsWALE() && !bases[archive.ControlPart] {
		missing(archive.ControlPart, "there is no part with pg_control: the backup cannot be restored")
	}
	if len(parts) == 0 {
		missing("", "there is no part at all")
	}
}

// part reads a part by its own headers.
func (l *legacy) part(ctx context.Context, o *object, name string) error {
	r := l.run
	base, method := compress.Split(name)
	p := archive.Part{Name: name, Base: base, Method: method, Size: o.size}
	f := l.finding(partsDir + name)
	var found []Finding
	ok, err := r.content(ctx, f, nil, func(a *archive.Archive) (io.ReadCloser, error) { return a.OpenPart(ctx, l.name, p) }, func(in io.Reader) error {
		counted := in.(*counting)
		buf := make([]byte, bufferLen)
		last := "its beginning"
		err := tarpart.Each(in, func(h tarpart.Header, content io.Reader) error {
			begin := counted.n
			w, err := l.member(p, h, content, buf)
			if w != nil {
				w.Severity, w.Backup, w.Object, w.Offset = Damage, f.Backup, f.Object, at(begin)
				if w.Kind == "" {
					w.Kind = Content
				}
				found = append(found, *w)
			}
			if err != nil {
				last = "in " + h.Path
				return err
			}
			last = "behind " + h.Path
			return nil
		})
		if errors.Is(err, tarpart.ErrNoEnd) && (method != compress.None || l.hasList && !p.IsLabel()) {
			return nil // of a remote backup by WAL-G: the codec, or the list, says that nothing is missing
		}
		if err != nil && counted.n > 0 && last != "its beginning" {
			return &wrong{Finding{Offset: at(counted.n), Text: "it breaks off " + last + ": " + plain(err, o.name)}}
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, w := range found {
		r.add(w)
	}
	if ok && len(found) == 0 {
		if err := l.whole(ctx, f, name); err != nil {
			return err
		}
	}
	return r.noted(ctx, l.target, o, ok && len(found) == 0)
}

// whole makes sure that all has come that the list has in a part.
func (l *legacy) whole(ctx context.Context, f Finding, name string) error {
	l.mu.Lock()
	absent := l.parts[name]
	l.absent = l.absent || absent > 0
	l.mu.Unlock()
	if absent == 0 {
		return nil
	}
	err := l.run.archive.ReadFileList(ctx, l.name, l.Sentinel, archive.FileListVisitor{
		File: func(archive.ListedFile) error { return nil },
		Member: func(part, path string) error {
			l.mu.Lock()
			defer l.mu.Unlock()
			if part == name && f.Member == "" && l.members[l.hashMember(part, path)] {
				f.Member = path
			}
			return nil
		},
	})
	if err != nil {
		return err
	}
	f.Severity, f.Kind = Damage, Content
	f.Text = fmt.Sprintf("%d files that the backup's list has in it did not come, such as %s", absent, f.Member)
	if l.Sentinel.Version < 2 { // these list files that vanished before they were packed
		f.Severity = Warning
	}
	l.add(f)
	return nil
}

// member looks at a member; what is wrong with it comes back as a finding, an error ends the part.
func (l *legacy) member(p archive.Part, h tarpart.Header, content io.Reader, buf []byte) (*Finding, error) {
	flags := l.come(p.Name, h.Path)
	if h.Type != tarpart.File || h.Skipped != "" {
		return nil, nil
	}
	small := h.Path == control.Name || h.Path == "backup_label"
	if small && h.Size <= maxSmall {
		b, err := io.ReadAll(content)
		if err != nil {
			return nil, err
		}
		return l.small(h.Path, b), nil
	}
	bad := badPages{part: p.Name, path: h.Path, method: p.Method, size: usualSegment}
	var blocks []uint32
	paged := isPaged(h.Path)
	if flags&isIncremented != 0 {
		header, err := increment.Read(content, h.Size)
		if err != nil {
			if _, errRead := io.Copy(io.Discard, content); errRead != nil {
				return nil, errRead
			}
			return &Finding{Member: h.Path, Text: "it is listed as an increment: " + err.Error()}, nil
		}
		blocks, paged = header.Blocks, true
	} else if h.Size%page.Size != 0 {
		paged = false
	}
	start, _ := l.StartLSN()
	for n := int64(0); ; {
		k, err := io.ReadFull(content, buf)
		if paged {
			for q := range slices.Chunk(buf[:k], page.Size) {
				if len(q) < page.Size {
					break
				}
				block := uint32(n)
				if blocks != nil {
					block = blocks[n]
				}
				n++
				if page.Verify(q, segmentOf(h.Path)*usualSegment+block) < 0 {
					continue
				}
				if head, err := page.ReadHeader(q); err == nil && (start == 0 || head.LSN < start) {
					if bad.n == 0 {
						bad.block = int64(block)
					}
					bad.n++
				}
			}
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	if bad.n > 0 {
		l.mu.Lock()
		if len(l.pages) < maxFindings {
			l.pages = append(l.pages, bad)
		}
		l.mu.Unlock()
	}
	return nil, nil
}

// come notes that a member came, and returns what the list says of it.
func (l *legacy) come(part, path string) uint8 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h := l.hashMember(part, path); l.members[h] {
		l.members[h] = false
		l.parts[part]--
	}
	h := l.hash(path)
	flags := l.listed[h]
	if flags != 0 {
		l.listed[h] = flags | hasCome
	}
	return flags
}

// small looks into the control file and the label.
func (l *legacy) small(path string, b []byte) *Finding {
	if path == "backup_label" {
		l.mu.Lock()
		l.label = true
		l.mu.Unlock()
		if text := otherLabel(l.target, b); text != "" {
			return &Finding{Kind: Foreign, Member: path, Text: text}
		}
		return nil
	}
	d, err := control.Decode(b)
	if err != nil {
		return &Finding{Member: path, Text: err.Error()}
	}
	c := cluster{target: l.target}
	if text := c.otherControl(&d); text != "" {
		return &Finding{Kind: Foreign, Member: path, Text: text}
	}
	l.mu.Lock()
	l.control = &d
	l.mu.Unlock()
	return nil
}

// isPaged reports whether a path is that of a relation.
func isPaged(path string) bool {
	i := strings.LastIndexByte(path, '/')
	if i < 0 || !strings.HasPrefix(path, "base/") && !strings.HasPrefix(path, "pg_tblspc/") && path[:i] != "global" {
		return false
	}
	name, _, _ := strings.Cut(path[i+1:], ".")
	number, fork, forked := strings.Cut(name, "_")
	_, err := strconv.ParseUint(number, 10, 32)
	return err == nil && (!forked || fork == "fsm" || fork == "vm" || fork == "init")
}

// settle makes sure that whatever the list names has come.
func (l *legacy) settle(ctx context.Context) error {
	l.settlePages()
	if !l.label {
		f := l.finding(partsDir)
		f.Severity, f.Kind, f.Text = Damage, Missing, "no part has a backup_label"
		l.add(f)
	}
	if l.control == nil && l.run.ofBackup(l.name) != Damage {
		f := l.finding(partsDir)
		f.Severity, f.Kind, f.Text = Damage, Missing, "no part has a pg_control"
		l.add(f)
	}
	if !l.hasList {
		return nil
	}
	missing := 0
	for _, flags := range l.listed {
		if flags&(hasCome|isSkipped) == 0 {
			missing++
		}
	}
	if missing == 0 || l.absent {
		return nil
	}
	var first string
	err := l.run.archive.ReadFileList(ctx, l.name, l.Sentinel, archive.FileListVisitor{
		File: func(e archive.ListedFile) error {
			if first == "" && l.listed[l.hash(e.Path)]&(hasCome|isSkipped) == 0 {
				first = e.Path
			}
			return nil
		},
		Member: func(part, path string) error { return nil },
	})
	if err != nil {
		return err
	}
	f := l.finding(partsDir)
	f.Severity, f.Kind, f.Member = Damage, Content, first
	f.Text = fmt.Sprintf("%d files that the backup's list has did not come, such as %s", missing, first)
	if l.Sentinel.Version < 2 { // these list files that vanished before they were packed
		f.Severity = Warning
	}
	if len(l.run.found(func(f *Finding) bool { return f.Backup == l.name && f.Severity != Warning && f.Kind != Document })) == 0 { // else they are in what is missing or breaks off
		l.add(f)
	}
	return nil
}

// settlePages tells of pages whose checksum does not hold, now that it is known whether they have one.
func (l *legacy) settlePages() {
	c := l.control
	if c == nil || c.ChecksumVersion == 0 || c.BlockSize != page.Size || c.BlocksPerSegment != usualSegment {
		return
	}
	for _, p := range l.pages {
		f := l.finding(partsDir + p.part)
		f.Severity, f.Kind, f.Member = Warning, Pages, p.path
		f.Text = fmt.Sprintf("the page checksums of %d pages do not hold, the first in block %d", p.n, p.block)
		if p.method == compress.Brotli || p.method == compress.LZMA || p.method == compress.None {
			f.Severity, f.Text = Damage, f.Text+": damaged in the archive, whose codec would not notice, or in the cluster before"
		} else {
			f.Text += ": the codec's checksum holds, so that they were so in the cluster"
		}
		l.add(f)
	}
}

func (l *legacy) add(f Finding) { l.run.add(f) }
