package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/chain"
	"holdfast/internal/compress"
	"holdfast/internal/pg/control"
	"holdfast/internal/pg/page"
	"holdfast/internal/tarpart"
)

// Link is one of the backups that a delta is put together from.
type Link struct {
	Backup   string    `json:"backup"`
	Finished time.Time `json:"finished"`
	Parts    int       `json:"parts"`        // to be read
	Of       int       `json:"parts_of"`     // that it has
	Stored   int64     `json:"stored_bytes"` // to be read
}

// link is a backup as Run takes it.
type link struct {
	*catalog.Backup
	parts []archive.Part // to be read; of the newest backup those of control file and label are among them
	sums  bool           // it has a manifest to check contents against
}

// chainOf returns what the choice's backup is put together from, newest first.
func chainOf(c catalog.Choice) ([]*catalog.Backup, error) {
	switch {
	case len(c.Chain) == 0 && c.Backup.IsDelta():
		return nil, fmt.Errorf("restore %s: it is a delta, and what it builds on was not looked for", c.Backup.Name)
	case len(c.Chain) == 0:
		return []*catalog.Backup{c.Backup}, nil
	case len(c.Chain) > maxChain:
		return nil, fmt.Errorf("restore %s: it builds on %d backups, more than the %d that are possible", c.Backup.Name, len(c.Chain)-1, maxChain)
	}
	if len(c.Chain) > 1 {
		for _, b := range c.Chain {
			if b.Sentinel.ChkpNum != nil {
				return nil, &RefusedError{
					fmt.Sprintf("%s is of a cluster with OrioleDB, whose deltas this release does not restore", b.Name),
					"restore a full backup: with a target the WAL brings it to the same moment",
				}
			}
		}
	}
	return c.Chain, nil
}

// maxChain bounds how many backups build on one another.
const maxChain = 10_000

// walEPart matches the objects of WAL-E's backups that are parts.
var walEPart = regexp.MustCompile(`^part_[0-9]+\.tar\.lzo$`)

// partsOf lists the parts of a backup.
func (p *Plan) partsOf(ctx context.Context, a *archive.Archive, b *catalog.Backup) ([]archive.Part, error) {
	parts, err := a.Parts(ctx, b.Name)
	if err != nil {
		return nil, err
	}
	if b.IsWALE() {
		parts = slices.DeleteFunc(parts, func(part archive.Part) bool {
			alien := !walEPart.MatchString(part.Name)
			if alien {
				p.note("%s lies beside the backup's parts and is none of WAL-E's: it is left alone", part.Name)
			}
			return alien
		})
	}
	if len(parts) == 0 {
		return nil, fmt.Errorf("restore %s: the backup has no parts", b.Name)
	}
	return parts, nil
}

// surveyLists looks at what there is to restore of backups that have no manifest, or not all: at their lists of files.
func (p *Plan) surveyLists(ctx context.Context, a *archive.Archive, chain []*catalog.Backup) error {
	p.files = newTable()
	for level, b := range chain {
		l := link{Backup: b}
		var err error
		if level == 0 {
			l.parts = p.parts
		} else if l.parts, err = p.partsOf(ctx, a, b); err != nil {
			return err
		}
		all := len(l.parts)
		l.parts = slices.Clone(l.parts)
		if level > 0 {
			l.parts = slices.DeleteFunc(l.parts, func(part archive.Part) bool { return lastRank(part) > 0 })
		}
		if err := p.surveyList(ctx, a, &l, level, len(chain)); err != nil {
			return fmt.Errorf("restore %s: %w", p.Backup, err)
		}
		if err := p.readable(b.Name, l.parts); err != nil {
			return err
		}
		if m, err := a.OpenManifest(ctx, b.Name); err == nil {
			l.sums = true
			m.Close() // only looked at
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		p.links = append(p.links, l)
		step := Link{Backup: b.Name, Finished: b.Created(), Parts: len(l.parts), Of: all}
		for _, part := range l.parts {
			step.Stored += part.Size
		}
		p.Parts += step.Parts
		p.Stored += step.Stored
		p.Chain = append(p.Chain, step)
	}
	p.describeChain()
	if p.Mask == "" {
		p.Bytes = expected(chain)
	} else if p.files != nil && p.files.len == 0 {
		return p.noMatch()
	}
	if err := p.readControl(ctx, a, chain[0]); err != nil {
		return err
	}
	// How the bytes divide among tablespaces is not known: they are all asked of the destination's file system.
	files := map[string]int64{}
	if p.files != nil {
		files[p.Destination] = int64(p.files.len)
	}
	return p.measure(map[string]int64{p.Destination: p.Bytes}, files)
}

// describeChain says in notes what the restore is made of, and what of it can be verified.
func (p *Plan) describeChain() {
	if len(p.Chain) == 1 {
		p.Chain = nil
		p.note("the contents cannot be verified: the backup has no manifest with checksums, WAL-G and WAL-E made none. " +
			"Looked at are the codec's checksums, the structure of the parts, whether all listed files are there, and in a cluster with checksums its pages")
		return
	}
	for i, l := range p.Chain {
		how := "on top of " + l.Backup
		switch i {
		case 0:
			how = l.Backup + ", a delta"
		case len(p.Chain) - 1:
			how = "on top of the full backup " + l.Backup
		}
		p.note("restored is %s: %d of %d parts, %s", how, l.Parts, l.Of, humanize.IBytes(uint64(l.Stored)))
	}
	if p.Verified {
		return
	}
	p.note("the contents of deltas cannot be verified: WAL-G keeps no checksums of files. " +
		"Looked at are the codec's checksums, the structure of the parts, whether all files and blocks are there, and in a cluster with checksums its pages")
}

// noMatch refuses a mask that nothing matches.
func (p *Plan) noMatch() error {
	return &RefusedError{fmt.Sprintf("backup %s holds no file that matches %q", p.Backup, p.Mask),
		"a mask is matched with whole paths in the data directory, such as base/16384/2619; * does not match a slash"}
}

// expected returns about how many bytes the restored cluster has.
func expected(chain []*catalog.Backup) (n int64) {
	if n = chain[0].Sentinel.DataCatalogSize; len(chain) > 1 && n > 0 && n < math.MaxInt64/2 {
		return n
	}
	n = 0
	for _, b := range chain {
		n = max(n, b.Sentinel.UncompressedSize)
	}
	return n
}

// surveyList reads the list of the backup at level: what it holds of each file, and with that which parts are needed. It drops
// those of l.parts that are not.
func (p *Plan) surveyList(ctx context.Context, a *archive.Archive, l *link, level, levels int) error {
	if p.files == nil { // the only backup, without a list
		return nil
	}
	last := level == levels-1
	type spelling struct { // a list may spell the end of a name otherwise
		base   string
		method compress.Method
	}
	type use struct{ listed, needed bool }
	uses := map[spelling]*use{}
	for _, part := range l.parts {
		uses[spelling{part.Base, part.Method}] = &use{}
	}
	anyListed := false
	lost := map[string]bool{}
	wanted := func(path string) bool {
		if isHeld(path) {
			return level == 0
		}
		return p.wants(path, tarpart.File) && (level == 0 || p.files.wanted(path, level))
	}
	err := a.ReadFileList(ctx, l.Name, l.Sentinel, archive.FileListVisitor{
		File: func(f archive.ListedFile) error {
			stored := !f.Skipped
			whole := stored && !f.Incremented
			switch {
			case isHeld(f.Path) || !p.wants(f.Path, tarpart.File):
				return nil
			case last && !whole && (level == 0 || p.files.wanted(f.Path, level)):
				return fmt.Errorf("%s is a full backup, and its list says that %s builds on another", l.Name, f.Path)
			case level == 0:
				p.files.add(f.Path, stored, whole)
				return nil
			}
			return p.files.describe(f.Path, level, stored, whole)
		},
		Member: func(part, path string) error {
			base, method := compress.Split(part)
			if lastRank(archive.Part{Base: base}) > 0 {
				return nil
			}
			anyListed = true
			u := uses[spelling{base, method}]
			switch {
			case u != nil:
				u.listed = true
				u.needed = u.needed || wanted(path)
			case len(lost) < maxLost:
				lost[part] = true
			}
			return nil
		},
	})
	switch {
	case errors.Is(err, archive.ErrNoFileList) && levels == 1:
		p.files = nil
		return nil
	case errors.Is(err, archive.ErrNoFileList) && level == 0:
		return fmt.Errorf("%s is a delta: %w", l.Name, err)
	case errors.Is(err, archive.ErrNoFileList):
		p.files.unlisted(level)
		return nil
	case err != nil:
		return err
	}
	if level == 0 {
		if err := p.files.sort(); err != nil {
			return fmt.Errorf("%s: %w", l.Name, err)
		}
	} else if i := p.files.forsaken(level); i >= 0 {
		names, err := p.names(ctx, a, i)
		if err != nil {
			return err
		}
		return fmt.Errorf("%s builds on %s of %s, whose list does not name it", p.Backup, names[0], l.Name)
	}
	if err := p.lostParts(ctx, a, l, level, lost); err != nil {
		return err
	}
	l.parts = slices.DeleteFunc(l.parts, func(part archive.Part) bool {
		u := uses[spelling{part.Base, part.Method}]
		switch {
		case lastRank(part) > 0 || !anyListed: // remote backups do not say what their parts hold
			return false
		case !u.listed:
			p.note("%s lies beside the parts of %s but its list does not name it: it is left alone", part.Name, l.Name)
			return true
		}
		return !u.needed && (level > 0 || p.Mask != "") // parts with directories only are needed too
	})
	return nil
}

// maxLost bounds how many parts that are listed and not there are looked at closer.
const maxLost = 1000

// lostParts refuses a backup that lacks a part with something in it that is needed.
func (p *Plan) lostParts(ctx context.Context, a *archive.Archive, l *link, level int, lost map[string]bool) error {
	if len(lost) == 0 {
		return nil
	}
	return a.ReadFileList(ctx, l.Name, l.Sentinel, archive.FileListVisitor{Member: func(part, path string) error {
		if lost[part] && !isHeld(path) && p.files.wanted(path, level) {
			return fmt.Errorf("%s of %s, which holds %s, is missing in the archive: %w", part, l.Name, path, fs.ErrNotExist)
		}
		return nil
	}})
}

// names returns the paths of files of the table, in the order of the list.
func (p *Plan) names(ctx context.Context, a *archive.Archive, which ...int) (names []string, err error) {
	enough := errors.New("enough")
	newest := p.newest
	err = a.ReadFileList(ctx, newest.Name, newest.Sentinel, archive.FileListVisitor{File: func(f archive.ListedFile) error {
		if i := p.files.find(f.Path); slices.Contains(which, i) {
			if names = append(names, f.Path); len(names) == len(which) {
				return enough
			}
		}
		return nil
	}})
	if errors.Is(err, enough) {
		err = nil
	}
	if err == nil && len(names) == 0 {
		err = fmt.Errorf("the list of %s has changed", newest.Name)
	}
	return names, err
}

// readable refuses parts that could only fail later.
func (p *Plan) readable(backup string, parts []archive.Part) error {
	for _, part := range parts {
		if !strings.HasSuffix(part.Base, ".tar") {
			return &RefusedError{fmt.Sprintf("%s of backup %s is compressed in a way that this release does not read", part.Name, backup),
				"restore it with the program that wrote it"}
		}
	}
	return nil
}

// readControl reads the backup's control file where it has a part of its own: what is to be restored is known then, and
// whether it fits together.
func (p *Plan) readControl(ctx context.Context, a *archive.Archive, b *catalog.Backup) error {
	i := slices.IndexFunc(p.parts, archive.Part.IsControl)
	if i < 0 && p.Mask != "" {
		return nil
	}
	if i < 0 {
		return p.readVersion(ctx, a, b)
	}
	content, err := readMember(ctx, a, b.Name, p.parts[i], control.Name)
	if err != nil {
		return fmt.Errorf("restore %s: %w", b.Name, err)
	}
	c, err := control.Decode(content)
	if err != nil {
		return fmt.Errorf("restore %s: %w", b.Name, err)
	}
	p.control = &c
	if p.PgVersion == 0 {
		p.PgVersion = c.Major * 10000
	}
	if p.PgVersion/10000 != c.Major {
		return fmt.Errorf("restore %s: its %s is of PostgreSQL %d, the backup says %d", b.Name, control.Name, c.Major, p.PgVersion)
	}
	if err := p.checkSystem(c); err != nil {
		return fmt.Errorf("restore %s: %w", b.Name, err)
	}
	if len(p.links) > 1 && c.BlockSize != page.Size {
		return &RefusedError{fmt.Sprintf("backup %s is a delta of a cluster with pages of %d bytes", b.Name, c.BlockSize),
			"this release restores deltas of clusters with pages of 8192 bytes; restore a full backup"}
	}
	return nil
}

// readVersion finds out of which PostgreSQL a backup of WAL-E is.
func (p *Plan) readVersion(ctx context.Context, a *archive.Archive, b *catalog.Backup) error {
	p.note("WAL-E left postgresql.conf, pg_hba.conf and pg_ident.conf out of its backups: copy yours into the restored directory, " +
		"without settings of recovery, before you start PostgreSQL")
	version, err := a.ServerVersion(ctx, b.Name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if version < 100000 {
		return &RefusedError{fmt.Sprintf("backup %s is of PostgreSQL %d.%d; 10 and later are supported", b.Name, version/10000, version/100%100),
			"restore it with the program that took it"}
	}
	p.PgVersion = version
	return nil
}

// readMember reads one small member of a part.
func readMember(ctx context.Context, a *archive.Archive, backup string, part archive.Part, path string) (content []byte, err error) {
	body, err := a.OpenPart(ctx, backup, part)
	if err != nil {
		return nil, err
	}
	defer body.Close() // only read
	err = tarpart.Each(body, func(h tarpart.Header, r io.Reader) error {
		if h.Path != path || h.Type != tarpart.File {
			return nil
		}
		if h.Size > maxHeld {
			return fmt.Errorf("%s has %d bytes, more than it can have", path, h.Size)
		}
		content, err = io.ReadAll(r)
		return err
	})
	if errors.Is(err, tarpart.ErrNoEnd) {
		err = nil
	}
	if err == nil && content == nil {
		err = fmt.Errorf("it holds no %s", path)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", part.Name, err)
	}
	return content, nil
}

// checkSystem refuses the control file of another cluster.
func (p *Plan) checkSystem(c control.Data) error {
	if s := p.systemIdentifier; s != 0 && s != c.SystemIdentifier {
		return fmt.Errorf("%s in the backup is of the cluster with system identifier %d, the backup says %d", control.Name, c.SystemIdentifier, s)
	}
	return nil
}

// surveyChain looks at what there is to restore by the manifests of all backups that a delta is put together from, or of the one that a directory is
// compared with.
func (p *Plan) surveyChain(ctx context.Context, a *archive.Archive, backups []*catalog.Backup) (err error) {
	if p.chain, err = chain.Load(ctx, a, backups); err != nil {
		return fmt.Errorf("restore %s: %w", p.Backup, err)
	}
	p.Verified = true
	c := newCensus(p)
	err = p.chain.Members(ctx, func(m *tarpart.Member) error {
		c.count(m)
		return nil
	})
	if err != nil {
		return fmt.Errorf("restore %s: %w", p.Backup, err)
	}
	if p.Files == 0 && p.Mask != "" {
		return p.noMatch()
	}
	for level, b := range backups {
		p.Chain = append(p.Chain, Link{Backup: b.Name, Finished: b.Created(), Of: p.chain.Parts(level)})
	}
	// This sees too that all is there.
	if err := newRun(a, p, Options{}).estimate(ctx, c.see); err != nil {
		return fmt.Errorf("restore %s: %w", p.Backup, err)
	}
	c.tell()
	switch {
	case len(backups) == 1:
		p.Chain = nil
	case p.Delta == nil: // else little of it is read
		p.describeChain()
	}
	if err := p.readControl(ctx, a, backups[0]); err != nil {
		return err
	}
	if p.Delta != nil || p.Resume { // what is there already is not known yet
		return nil
	}
	return p.measure(c.bytes, c.files)
}
