package verify

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/RoaringBitmap/roaring/v2"

	"holdfast/internal/archive"
	"holdfast/internal/compress"
	"holdfast/internal/crc32c"
	"holdfast/internal/increment"
	"holdfast/internal/pg/control"
	"holdfast/internal/pg/page"
	"holdfast/internal/pg/wal"
	"holdfast/internal/tarpart"
)

const (
	// bufferLen is how much content is looked at at once: a frame of a part.
	bufferLen = 256 << 10
	// maxSmall bounds files that are looked into as a whole, in bytes.
	maxSmall = 8 << 20
	// maxPerPart is how many members of a part are named.
	maxPerPart = 20
	// usualSegment is how many blocks a file of a relation has at most, unless PostgreSQL was built otherwise: 1 GiB.
	usualSegment = 131072
)

// cluster is what is known of the cluster of a backup while its parts are read.
type cluster struct {
	*target
	run *run

	control *control.Data // nil where it could not be read
	start   wal.LSN
}

// part is a part that is to be read, with what the manifest says of it.
type part struct {
	*archive.ManifestPart
	archive.Part
	part, sums *object // sums is nil where there are none
}

// unit makes the task of a part; nil where nothing of it is due, or it is not there.
func (t *target) unit(p *archive.ManifestPart) *part {
	base, method := compress.Split(p.Name)
	u := &part{ManifestPart: p, Part: archive.Part{Name: p.Name, Base: base, Method: method, Size: p.Size},
		part: t.object(partsDir + p.Name), sums: t.object(sumsDir + base + ".crc32c")}
	if u.part == nil || !u.part.verified.IsZero() && (u.sums == nil || !u.sums.verified.IsZero()) {
		return nil
	}
	u.Part.Size = u.part.size
	return u
}

// first reads the parts that say what cluster it is.
func (c *cluster) first(ctx context.Context, m *contents) error {
	c.start, _ = c.StartLSN()
	for _, p := range m.last {
		u := c.unit(p)
		if u == nil && slices.ContainsFunc(p.Members, func(m tarpart.Member) bool { return m.Path == control.Name }) {
			c.glance(ctx, p)
		}
		if u == nil {
			continue
		}
		if err := c.part(ctx, u); err != nil {
			return err
		}
	}
	return nil
}

// glance reads pg_control out of a part that is not due. Whatever is wrong was told when it was.
func (c *cluster) glance(ctx context.Context, p *archive.ManifestPart) {
	base, method := compress.Split(p.Name)
	body, err := c.run.archive.OpenPart(ctx, c.name, archive.Part{Name: p.Name, Base: base, Method: method, Size: p.Size})
	if err != nil {
		return
	}
	defer body.Close() // only read
	_ = tarpart.Each(body, func(h tarpart.Header, content io.Reader) error {
		if b, err := io.ReadAll(io.LimitReader(content, maxSmall)); h.Path == control.Name && err == nil {
			if d, err := control.Decode(b); err == nil {
				c.control = &d
			}
		}
		return nil
	})
}

// deal calls do for each part that is due, but for those that first has read.
func (r *run) deal(ctx context.Context, t *target, do func(*part)) error {
	m, err := r.archive.OpenManifest(ctx, t.name)
	if errors.Is(err, fs.ErrNotExist) {
		f := t.finding(manifestName)
		f.Severity, f.Kind, f.Text, f.gone = Damage, Missing, "it is not there any more", true
		r.add(f)
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the manifest of %s again: %w", t.name, err)
	}
	defer m.Close() // only read
	for ctx.Err() == nil {
		p, err := m.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("read the manifest of %s again: %w", t.name, err)
		}
		if u := t.unit(p); u != nil && !u.IsControl() && !u.IsLabel() {
			do(u)
		}
	}
	return nil
}

// check is one part under way.
type check struct {
	*cluster
	u    *part
	in   *counting // the tar stream
	sums *bufio.Reader
	buf  []byte

	found  []Finding // in the part
	more   int
	bad    []Finding         // of page_sums
	pages  int64             // so far
	kept   map[string][]byte // the small files that say what backup it is
	broken error             // of reading sums
	whole  bool              // all members were looked at
}

// part verifies a part and the sums of its pages together.
func (c *cluster) part(ctx context.Context, u *part) error {
	r := c.run
	if r.request.Sample != 0 && !u.IsControl() && !u.IsLabel() {
		return c.sample(ctx, u)
	}
	k := &check{cluster: c, u: u, buf: make([]byte, bufferLen), kept: map[string][]byte{}}
	sumsName := sumsDir + u.Base + ".crc32c"
	sums, sumsTap := r.tapped()
	var sumsBody io.ReadCloser
	var sumsErr error
	if u.sums != nil {
		if sumsBody, sumsErr = sums.OpenSums(ctx, c.name, u.Base); sumsErr == nil {
			k.sums = bufio.NewReaderSize(sumsBody, 32<<10)
		}
	}
	a, tap := r.tapped()
	body, err := a.OpenPart(ctx, c.name, u.Part)
	k.in = &counting{}
	if err == nil {
		body = archive.ReadAhead(body)
		k.in.Reader = body
		err = k.members()
		if errClose := body.Close(); err == nil {
			err = errClose
		}
	}
	f := c.finding(partsDir + u.Part.Name)
	if err == nil && len(k.found) > 0 {
		err = &wrong{k.found[0]}
		k.found = k.found[1:]
	}
	ok, errRun := r.judge(ctx, f, c.partAsPut(u), tap, k.in.n, err)
	if errRun != nil {
		return errRun
	}
	if tap.err == nil {
		for i := range k.found {
			k.found[i].Backup, k.found[i].Object = f.Backup, f.Object
			r.add(k.found[i])
		}
		if k.more > 0 {
			f := f
			f.Severity, f.Kind, f.Text = Damage, Content, fmt.Sprintf("and %d further files in it", k.more)
			r.add(f)
		}
	}
	if err := r.noted(ctx, c.target, u.part, ok); err != nil {
		return err
	}
	if u.sums == nil {
		return c.sumsMissing(u)
	}
	if sumsBody != nil {
		if k.whole && sumsErr == nil {
			sumsErr = k.sumsEnd()
		}
		sumsErr = cmpErr(sumsErr, sumsBody.Close())
	}
	okSums, errRun := r.judge(ctx, c.finding(sumsName), c.known(sumsName), sumsTap, k.pages, sumsErr)
	if errRun != nil {
		return errRun
	}
	for _, f := range k.bad {
		g := c.finding(sumsName)
		f.Backup, f.Object = g.Backup, g.Object
		if !okSums || c.known(sumsName) == nil {
			r.add(f)
		}
	}
	if !k.whole && okSums && c.known(sumsName) == nil {
		return nil // not all of them were compared: due again
	}
	return r.noted(ctx, c.target, u.sums, okSums && len(k.bad) == 0)
}

func cmpErr(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// partAsPut returns how a part was put: by objects.json, and where that has it not, as far as the manifest says.
func (c *cluster) partAsPut(u *part) *archive.Stored { return c.known(partsDir + u.Part.Name) }

// sumsMissing tells of sums that are not there and should be.
func (c *cluster) sumsMissing(u *part) error {
	name := sumsDir + u.Base + ".crc32c"
	if c.known(name) != nil || !slices.ContainsFunc(u.Members, func(m tarpart.Member) bool { return m.Pages > 0 }) || c.stored != nil {
		return nil // told, or never made
	}
	f := c.finding(name)
	f.Severity, f.Kind, f.Text = Warning, Missing, "it is not there: lost, or the backup is of a release that made none"
	c.run.add(f)
	return nil
}

// members goes through the part's tar stream and its list side by side.
func (k *check) members() error {
	i := 0
	err := tarpart.Each(k.in, func(h tarpart.Header, content io.Reader) error {
		begin := k.in.n
		if i == len(k.u.Members) {
			return &wrong{Finding{Member: h.Path, Offset: at(begin), Text: "it has members that the manifest does not list, such as " + h.Path}}
		}
		m := &k.u.Members[i]
		i++
		if text := k.header(h, m, begin); text != "" {
			return &wrong{Finding{Member: m.Path, Offset: at(begin), Text: text}}
		}
		if m.Type != tarpart.File {
			return nil
		}
		if err := k.member(m, content, begin); err != nil {
			if w := (*wrong)(nil); errors.As(err, &w) {
				return err
			}
			return &located{err, m.Path}
		}
		return nil
	})
	var l *located
	switch {
	case errors.As(err, &l):
		return &wrong{Finding{Member: l.member, Offset: at(k.in.n), Text: fmt.Sprintf("it breaks off in %s: %s", l.member, plain(l.error, k.object().name))}}
	case err == nil && i < len(k.u.Members):
		return &wrong{Finding{Kind: Size, Member: k.u.Members[i].Path, Offset: at(k.in.n), Text: "it ends before " + k.u.Members[i].Path}}
	case err != nil && i > 0:
		if w := (*wrong)(nil); errors.As(err, &w) {
			return err
		}
		return &wrong{Finding{Offset: at(k.in.n), Text: fmt.Sprintf("it breaks off behind %s: %s", k.u.Members[i-1].Path, plain(err, k.object().name))}}
	case err != nil:
		return err
	}
	k.whole = true
	return k.labels()
}

func (k *check) object() *object { return k.u.part }

// located is an error of reading the content of a member.
type located struct {
	error
	member string
}

func (l *located) Unwrap() error { return l.error }

// header compares a member's header with the list.
func (k *check) header(h tarpart.Header, m *tarpart.Member, begin int64) string {
	switch {
	case h.Path != m.Path:
		return fmt.Sprintf("it has %s where the manifest has %s", h.Path, m.Path)
	case h.Skipped != "" || h.Type != m.Type:
		return "it is of another type than the manifest says"
	case h.Type == tarpart.File && h.Size != m.Size:
		return fmt.Sprintf("it has %d bytes, the manifest says %d", h.Size, m.Size)
	case h.Type == tarpart.Symlink && h.Link != m.Link:
		return fmt.Sprintf("it leads to %q, the manifest says %q", h.Link, m.Link)
	case fs.FileMode(h.Mode)&fs.ModePerm != m.Perm():
		return fmt.Sprintf("its mode is %s, the manifest says %s", fs.FileMode(h.Mode)&fs.ModePerm, m.Perm())
	case m.ModTime.Unix() > 0 && h.ModTime.Sub(m.ModTime).Abs() > time.Second: // a header has whole ones
		return fmt.Sprintf("its time is %s, the manifest says %s", h.ModTime.UTC(), m.ModTime.UTC())
	case h.Type == tarpart.File && m.Size > 0 && m.Offset != begin:
		return fmt.Sprintf("it begins at byte %d, the manifest says %d", begin, m.Offset)
	}
	return ""
}

// tell keeps a finding in the part.
func (k *check) tell(f Finding) {
	if len(k.found) >= maxPerPart {
		k.more++
		return
	}
	k.found = append(k.found, f)
}

// member compares the content of a file. What is wrong in it is told, and the next is looked at.
func (k *check) member(m *tarpart.Member, content io.Reader, begin int64) error {
	keep := (m.Path == control.Name || k.u.IsLabel()) && m.Size <= maxSmall
	sum, want := uint32(0), uint32(0)
	var blocks []uint32
	if m.Increment != nil {
		in := &summing{Reader: content}
		h, err := increment.Read(in, m.Size)
		if err != nil {
			if errors.Is(err, io.ErrUnexpectedEOF) || k.in.n < begin+m.Size {
				return err
			}
			return &wrong{Finding{Member: m.Path, Offset: at(k.in.n), Text: err.Error()}}
		}
		set, err := m.Blocks()
		if err != nil {
			return &wrong{Finding{Member: m.Path, Text: err.Error()}}
		}
		if h.FileSize != m.Increment.Size || !set.Equals(roaring.BitmapOf(h.Blocks...)) {
			k.tell(Finding{Severity: Damage, Kind: Content, Member: m.Path, Offset: at(begin), Text: "its list of blocks is not that of the manifest"})
		}
		sum, want, blocks = in.sum, in.sum, h.Blocks
	}
	l := looker{k: k, m: m, blocks: blocks, first: -1}
	left := m.Size
	if m.Increment != nil {
		left = int64(m.Pages) * page.Size
	}
	for left > 0 {
		b := k.buf[:min(int64(len(k.buf)), left)]
		if _, err := io.ReadFull(content, b); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		left -= int64(len(b))
		if keep {
			k.kept[m.Path] = append(k.kept[m.Path], b...)
		}
		if m.Pages == 0 {
			sum = crc32c.Update(sum, b)
			continue
		}
		var err error
		if sum, want, err = l.look(b, sum, want); err != nil {
			return err
		}
	}
	if m.Pages == 0 {
		want = m.CRC
	}
	l.judge(sum, want, begin)
	return nil
}

// looker looks at the pages of a file.
type looker struct {
	k      *check
	m      *tarpart.Member
	blocks []uint32 // of an increment
	n      int64    // pages so far

	first int64 // page that is not as page_sums has it; -1 for none
	other int64 // how many
	bad   int64 // pages whose own checksum does not hold
	block int64 // the first of those
}

// look takes further pages.
func (l *looker) look(b []byte, sum, want uint32) (uint32, uint32, error) {
	var four [4]byte
	l.checksums(b)
	for p := range slices.Chunk(b, page.Size) {
		one := crc32c.Checksum(p)
		sum = page.AppendCRC(sum, one)
		if l.k.sums != nil && l.k.broken == nil {
			if _, err := io.ReadFull(l.k.sums, four[:]); err != nil {
				l.k.broken = err
			} else if should := binary.LittleEndian.Uint32(four[:]); should != one {
				if l.first < 0 {
					l.first = l.n
				}
				l.other++
				want = page.AppendCRC(want, should)
			} else {
				want = page.AppendCRC(want, one)
			}
		}
		l.n++
		l.k.pages++
	}
	return sum, want, nil
}

// checksums looks at the pages' own checksums.
func (l *looker) checksums(b []byte) {
	c := l.k.control
	if c == nil || c.ChecksumVersion == 0 || c.BlockSize != page.Size {
		return
	}
	base := segmentOf(l.m.Path) * c.BlocksPerSegment
	for n := l.n; len(b) > 0; {
		run := len(b) / page.Size
		block := uint32(n)
		if l.blocks != nil {
			block = l.blocks[n]
			run = 1
			for run < len(b)/page.Size && l.blocks[n+int64(run)] == block+uint32(run) {
				run++
			}
		}
		for at := 0; at < run; {
			i := page.Verify(b[at*page.Size:run*page.Size], base+block+uint32(at))
			if i < 0 {
				break
			}
			at += i
			h, err := page.ReadHeader(b[at*page.Size:])
			if err == nil && (l.k.start == 0 || h.LSN < l.k.start) && !slices.Contains(l.m.Corrupt, block+uint32(at)) { // else replaying the WAL writes it anew
				if l.bad == 0 {
					l.block = int64(block) + int64(at)
				}
				l.bad++
			}
			at++
		}
		b, n = b[run*page.Size:], n+int64(run)
	}
}

// segmentOf returns which segment of a relation's fork a file is.
func segmentOf(path string) uint32 {
	name := path[strings.LastIndexByte(path, '/')+1:]
	_, suffix, _ := strings.Cut(name, ".")
	n, err := strconv.ParseUint(suffix, 10, 15)
	if err != nil {
		return 0
	}
	return uint32(n)
}

// judge says what is wrong with a file, whose content has the checksum sum and by page_sums should have want.
func (l *looker) judge(sum, want uint32, begin int64) {
	m, k := l.m, l.k
	head := m.Size - int64(m.Pages)*page.Size
	place := func(n int64) (offset int64, text string) {
		block := n
		if l.blocks != nil {
			block = int64(l.blocks[n])
		}
		return begin + head + n*page.Size, fmt.Sprintf("block %d", block)
	}
	switch {
	case sum != m.CRC:
		f := Finding{Severity: Damage, Kind: Content, Member: m.Path, Offset: at(begin), Text: fmt.Sprintf("its content has the CRC-32C %08X, the manifest says %08X", sum, m.CRC)}
		if l.first >= 0 && want == m.CRC {
			offset, block := place(l.first)
			f.Offset = at(offset)
			f.Text = fmt.Sprintf("%d of its pages are not what was backed up, the first is %s", l.other, block)
		}
		k.tell(f)
		if want != m.CRC && m.Pages > 0 && k.sums != nil && k.broken == nil {
			k.badSums(l, "the sums of "+m.Path+" are not those of the manifest either")
		}
	case l.first >= 0:
		k.badSums(l, fmt.Sprintf("the sums of %d pages of %s are wrong; the pages are right", l.other, m.Path))
	case l.bad > int64(m.CorruptCount-len(m.Corrupt)):
		k.run.add(Finding{Severity: Warning, Kind: Pages, Backup: k.name, Object: k.object().name, Member: m.Path,
			Text: fmt.Sprintf("the page checksums of %d pages do not hold, the first in block %d; the content is what was backed up: they were so in the cluster", l.bad, l.block)})
	}
	if m.CorruptCount > 0 {
		k.run.add(Finding{Severity: Warning, Kind: Pages, Backup: k.name, Object: k.object().name, Member: m.Path,
			Text: fmt.Sprintf("%d pages were corrupt when the backup was taken; they are stored as they were", m.CorruptCount)})
	}
}

func (k *check) badSums(l *looker, text string) {
	n := max(l.first, 0)
	if len(k.bad) < maxPerPart {
		k.bad = append(k.bad, Finding{Severity: Damage, Kind: Content, Member: l.m.Path, Offset: at(4 * (k.pages - l.n + n)), Text: text})
	}
}

// sumsEnd makes sure that the sums are as many as the pages.
func (k *check) sumsEnd() error {
	if k.broken == io.EOF || k.broken == io.ErrUnexpectedEOF {
		return &wrong{Finding{Kind: Size, Text: "it ends before the sum of the part's last page"}}
	}
	if k.broken != nil {
		return k.broken
	}
	if _, err := k.sums.ReadByte(); err == nil {
		return &wrong{Finding{Kind: Size, Offset: at(4 * k.pages), Text: "it has more sums than the part has pages"}}
	} else if err != io.EOF {
		return err
	}
	return nil
}

// summing sums up what is read.
type summing struct {
	io.Reader
	sum uint32 // CRC-32C
}

func (s *summing) Read(b []byte) (int, error) {
	n, err := s.Reader.Read(b)
	s.sum = crc32c.Update(s.sum, b[:n])
	return n, err
}

// labels looks at what the small files say.
func (k *check) labels() error {
	if b, ok := k.kept[control.Name]; ok {
		d, err := control.Decode(b)
		if err != nil {
			k.tell(Finding{Severity: Damage, Kind: Content, Member: control.Name, Text: err.Error()})
			return nil
		}
		if text := k.cluster.otherControl(&d); text != "" {
			k.tell(Finding{Severity: Damage, Kind: Foreign, Member: control.Name, Text: text})
			return nil
		}
		k.control = &d
	}
	if b, ok := k.kept["backup_label"]; ok {
		if text := otherLabel(k.target, b); text != "" {
			k.tell(Finding{Severity: Damage, Kind: Foreign, Member: "backup_label", Text: text})
		}
	}
	if b, ok := k.kept["tablespace_map"]; ok && k.Sentinel != nil && k.Sentinel.Spec != nil {
		for _, ts := range k.Sentinel.Spec.Tablespaces {
			if !bytes.Contains(append([]byte("\n"), b...), []byte("\n"+ts.OID+" ")) {
				k.tell(Finding{Severity: Damage, Kind: Document, Member: "tablespace_map", Text: "it does not have tablespace " + ts.OID + ", which the sentinel has"})
			}
		}
	}
	return nil
}

// otherControl says why a control file is not that of the backup's cluster, "" where it is.
func (c *cluster) otherControl(d *control.Data) string {
	s := c.Sentinel
	switch {
	case s == nil:
	case s.SystemIdentifier != nil && *s.SystemIdentifier != d.SystemIdentifier:
		return fmt.Sprintf("it is of the cluster %d, the sentinel says %d", d.SystemIdentifier, *s.SystemIdentifier)
	case s.SegmentSize != 0 && s.SegmentSize != uint64(d.SegmentSize):
		return fmt.Sprintf("it says that WAL segments have %d bytes, the sentinel %d", d.SegmentSize, s.SegmentSize)
	case s.PgVersion >= 100000 && s.PgVersion/10000 != d.Major:
		return fmt.Sprintf("it is of PostgreSQL %d, the sentinel says %d", d.Major, s.PgVersion/10000)
	}
	return ""
}

// otherLabel says why a backup_label is not that of the backup, "" where it is.
func otherLabel(t *target, label []byte) string {
	first, _, _ := strings.Cut(string(label), "\n")
	var text string
	if n, _ := fmt.Sscanf(first, "START WAL LOCATION: %s", &text); n != 1 {
		return fmt.Sprintf("it does not begin with where the backup starts: %.80q", first)
	}
	start, err := wal.ParseLSN(text)
	if err != nil {
		return err.Error()
	}
	if want, ok := t.StartLSN(); ok && start != want {
		return fmt.Sprintf("it is of a backup that starts at %s, this one starts at %s", start, want)
	}
	return ""
}

// tarIsWhole reads a tar stream to its end.
func tarIsWhole(r io.Reader) error {
	return tarpart.Each(r, func(_ tarpart.Header, content io.Reader) error {
		_, err := io.Copy(io.Discard, content)
		return err
	})
}
