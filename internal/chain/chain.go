// Package chain says where each page of a backup's files lies: in the backup itself, or in one of those that it builds on.
//
// All of it comes from the backups' manifests. A Chain knows the files of the newest backup; Walk goes through the parts of all
// backups, the newest first, and hands out of each what the newest backup's files are made of. Each page is handed out once, from the newest backup
// that has it. Nothing is read but manifests and sums of pages, and nothing is written; a restore, or whoever else wants the files, reads
// the stretches of the parts by what is handed out.
package chain

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"

	"github.com/RoaringBitmap/roaring/v2"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/page"
	"holdfast/internal/tarpart"
)

// Chain is a backup and what it builds on, all of which have manifests.
type Chain struct {
	Backups []*catalog.Backup // newest first

	archive *archive.Archive
	parts   []map[string]archive.Part // of each backup, what the store holds
	files   *table
}

// Complete reports whether all backups have the manifest that a Chain needs. Those that another program took have none.
func Complete(ctx context.Context, a *archive.Archive, backups []*catalog.Backup) (bool, error) {
	for _, b := range backups {
		m, err := a.OpenManifest(ctx, b.Name)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		m.Close() // only looked at
	}
	return true, nil
}

// maxBackups bounds how many backups build on one another.
const maxBackups = 10_000

// Load reads the manifest of the newest backup, and which parts of all there are.
func Load(ctx context.Context, a *archive.Archive, backups []*catalog.Backup) (*Chain, error) {
	if len(backups) > maxBackups {
		return nil, fmt.Errorf("%s builds on %d backups, more than the %d that are possible", backups[0].Name, len(backups)-1, maxBackups)
	}
	c := &Chain{Backups: backups, archive: a, files: newTable()}
	for _, b := range backups {
		parts, err := a.Parts(ctx, b.Name)
		if err != nil {
			return nil, err
		}
		known := make(map[string]archive.Part, len(parts))
		for _, p := range parts {
			known[p.Name] = p
		}
		c.parts = append(c.parts, known)
	}
	err := c.Members(ctx, func(m *tarpart.Member) error {
		c.files.add(m)
		return nil
	})
	if err == nil {
		if err = c.files.sort(); err != nil {
			err = fmt.Errorf("the manifest of %s: %w", backups[0].Name, err)
		}
	}
	return c, err
}

// Members calls do for everything in the newest backup's manifest: its members in the order of the parts, then what it left to its
// parent.
func (c *Chain) Members(ctx context.Context, do func(m *tarpart.Member) error) error {
	m, err := c.archive.OpenManifest(ctx, c.Backups[0].Name)
	if err != nil {
		return err
	}
	defer m.Close() // only read
	for {
		p, err := m.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		for i := range p.Members {
			if err := do(&p.Members[i]); err != nil {
				return err
			}
		}
	}
	return eachUnchanged(m, do)
}

// eachUnchanged calls do for each file that a backup left to its parent, once its parts have been read.
func eachUnchanged(m *archive.Manifest, do func(m *tarpart.Member) error) error {
	if m.Header.Unchanged == 0 {
		return nil
	}
	for {
		files, err := m.NextUnchanged()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		for i := range files {
			if err := do(&files[i]); err != nil {
				return err
			}
		}
	}
}

// Parts returns how many parts the backup at level has.
func (c *Chain) Parts(level int) int { return len(c.parts[level]) }

// Len returns how many files, directories and links the newest backup has.
func (c *Chain) Len() int { return c.files.len }

// Find returns the number of a path, below Len, or -1.
func (c *Chain) Find(path string) int { return c.files.find(path) }

// File returns what has that number.
func (c *Chain) File(i int) File { return c.files.of(i).file() }

// Part is a part of which something is needed.
type Part struct {
	archive.Part
	Backup  string
	Level   int              // of the backup in the chain; 0 is the newest
	Content int64            // bytes of all contents in it
	Members []tarpart.Member // all that is in it
	Takes   []Take

	pages int64 // in all contents
}

// Take is what is needed of a member.
type Take struct {
	*tarpart.Member
	File   int             // its number in the chain
	Blocks *roaring.Bitmap // of the file; nil: the member is the file, or what else it is
	Zeros  *roaring.Bitmap // blocks of the file that no backup has: they came to it later, as zeros. nil for none

	before int64 // pages of the part's members before this one
}

// Run is a stretch of a member's content that is one stretch of the file too, in bytes.
type Run struct {
	Content int64 // where it begins in the content
	File    int64 // where in the file
	Length  int64
	Page    int64 // number of its first page among those of the member; of what is not made of pages 0
}

// Runs returns where the given blocks of the file are in the member, ascending; nil stands for all that are to be taken. Blocks that the
// member does not have are passed over.
func (t *Take) Runs(blocks *roaring.Bitmap) (iter.Seq[Run], error) {
	if blocks == nil {
		if blocks = t.Blocks; blocks == nil {
			return func(yield func(Run) bool) { yield(Run{Length: t.Size}) }, nil
		}
	}
	if t.Increment == nil {
		return func(yield func(Run) bool) {
			for from, to := range blocks.Ranges() {
				at := int64(from) * page.Size
				if length := min(int64(to)*page.Size, t.Size) - at; length <= 0 || !yield(Run{at, at, length, int64(from)}) {
					return
				}
			}
		}, nil
	}
	stored, err := t.Member.Blocks()
	if err != nil {
		return nil, err
	}
	head := t.Size - int64(t.Pages)*page.Size
	blocks = roaring.And(blocks, stored)
	return func(yield func(Run) bool) {
		for from, to := range blocks.Ranges() {
			n := int64(stored.Rank(from)) - 1
			if !yield(Run{head + n*page.Size, int64(from) * page.Size, (int64(to) - int64(from)) * page.Size, n}) {
				return
			}
		}
	}, nil
}

// Walk calls do for each part of which something is needed, the parts of the newest backup first. It stops at the first error. A chain in which
// anything is missing is an error, though perhaps at the end only.
func (c *Chain) Walk(ctx context.Context, do func(*Part) error) error {
	w := &walk{Chain: c, state: make([]progress, c.files.len), rest: Sets{File: Unnamed}}
	defer w.rest.Close()
	for level := range c.Backups {
		if err := w.backup(ctx, level, do); err != nil {
			return err
		}
		if w.owed == 0 {
			return nil
		}
	}
	return fmt.Errorf("the full backup %s does not have all that is built on it", c.Backups[len(c.Backups)-1].Name)
}

// walk is one walk under way.
type walk struct {
	*Chain
	state []progress
	rest  Sets // blocks that older backups owe
	owed  int  // files of which something is owed
}

// progress is how far a file has been found.
type progress struct {
	rest  uint32 // its set in rest; 0 where all of the file is owed
	named uint16 // number of the last backup that names it, counted from 1
	held  uint16 // of the last that has an increment of it; found once nothing is owed
}

// found is more than there are backups.
const found = 1<<16 - 1

// backup walks through the parts of one backup.
func (w *walk) backup(ctx context.Context, level int, do func(*Part) error) error {
	name := w.Backups[level].Name
	m, err := w.archive.OpenManifest(ctx, name)
	if err != nil {
		return err
	}
	defer m.Close() // only read
	if level == 0 {
		w.owed = w.files.len
	}
	for {
		p, err := m.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		part := &Part{Backup: name, Level: level, Members: p.Members}
		if part.Content, err = Contents(p.Name, p.Members); err != nil {
			return fmt.Errorf("the manifest of %s: %w", name, err)
		}
		for i := range p.Members {
			member := &p.Members[i]
			if err := w.take(part, member); err != nil {
				return fmt.Errorf("%s, %s: %s: %w", name, p.Name, member.Path, err)
			}
			part.pages += int64(member.Pages)
		}
		if len(part.Takes) == 0 {
			continue
		}
		if part.Part, err = w.find(level, p); err != nil {
			return err
		}
		if err := do(part); err != nil {
			return err
		}
	}
	err = eachUnchanged(m, func(m *tarpart.Member) error {
		if i := w.Find(m.Path); i >= 0 {
			if w.state[i].named == uint16(level+1) {
				return fmt.Errorf("the manifest of %s names %s twice", name, m.Path)
			}
			w.state[i].named = uint16(level + 1)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if got, want := m.Sum(), w.Backups[level].Sentinel.Manifest; want != "" && got != want {
		return fmt.Errorf("the manifest of %s is not the one that its sentinel names", name)
	}
	for i := range w.state {
		if s := &w.state[i]; s.held != found && int(s.named) != level+1 {
			return w.forsaken(ctx, i, level)
		}
	}
	return nil
}

// find returns the part as it is in the store.
func (w *walk) find(level int, p *archive.ManifestPart) (archive.Part, error) {
	part, ok := w.parts[level][p.Name]
	switch {
	case !ok:
		return part, fmt.Errorf("%s of %s is missing in the archive: %w", p.Name, w.Backups[level].Name, fs.ErrNotExist)
	case part.Size != p.Size:
		return part, fmt.Errorf("%s of %s has %d bytes in the archive, the manifest says %d", p.Name, w.Backups[level].Name, part.Size, p.Size)
	}
	return part, nil
}

// forsaken says that a backup does not name a file that a newer one builds on.
func (w *walk) forsaken(ctx context.Context, file, level int) error {
	found := errors.New("found")
	path := "a file"
	err := w.Members(ctx, func(m *tarpart.Member) error {
		if w.Find(m.Path) == file {
			path = m.Path
			return found
		}
		return nil
	})
	if err != nil && !errors.Is(err, found) {
		return err
	}
	return fmt.Errorf("%s builds on %s of %s, whose manifest does not name it", w.Backups[0].Name, path, w.Backups[level].Name)
}

// take enters what is needed of a member in part.
func (w *walk) take(part *Part, m *tarpart.Member) error {
	i := w.Find(m.Path)
	if i < 0 && part.Level == 0 {
		return errors.New("the manifest has changed")
	}
	if i < 0 || w.state[i].held == found && part.Level > 0 {
		return nil
	}
	e, s := w.files.of(i), &w.state[i]
	switch {
	case s.held == found || int(s.named) == part.Level+1:
		return errors.New("the manifest names it twice")
	case kindOf(m.Type) != e.kind || m.Type != tarpart.File && part.Level > 0:
		return errors.New("it is no file, though a newer backup builds on it as one")
	}
	s.named = uint16(part.Level + 1)
	t := Take{Member: m, File: i, before: part.pages}
	if m.Increment == nil && s.rest == 0 {
		if m.Size != e.size && m.Type == tarpart.File {
			return unlike(m.Size, e.size)
		}
		w.done(s)
		part.Takes = append(part.Takes, t)
		return nil
	}
	if s.rest == 0 && m.Total() != e.size {
		return unlike(m.Total(), e.size)
	}
	rest, err := w.owes(e, s)
	if err != nil {
		return err
	}
	if m.Increment == nil {
		if m.Size%page.Size != 0 && rest.Contains(uint32(m.Size/page.Size)) {
			return fmt.Errorf("it ends within block %d, which a newer backup builds on", m.Size/page.Size)
		}
		if t.Zeros, err = w.cut(rest, m.Size/page.Size, s); err != nil {
			return err
		}
		t.Blocks = rest
		w.done(s)
	} else {
		stored, err := m.Blocks()
		if err != nil {
			return err
		}
		if t.Zeros, err = w.cut(rest, m.Increment.Size/page.Size, s); err != nil {
			return err
		}
		t.Blocks = roaring.And(rest, stored)
		s.held = uint16(part.Level + 1)
		if rest.AndNot(stored); rest.IsEmpty() {
			w.done(s)
		} else if s.rest, err = w.rest.Put(s.rest, rest); err != nil {
			return err
		}
	}
	if !t.Blocks.IsEmpty() || t.Zeros != nil || e.size == 0 {
		part.Takes = append(part.Takes, t)
	}
	return nil
}

func unlike(size, want int64) error {
	return fmt.Errorf("it has %d bytes, and %d in a newer backup that left it out as unchanged", size, want)
}

func (w *walk) done(s *progress) {
	s.held = found
	w.owed--
}

// owes returns the blocks of a file that are still owed.
func (w *walk) owes(e *entry, s *progress) (*roaring.Bitmap, error) {
	if s.rest != 0 {
		return w.rest.Get(s.rest)
	}
	all := roaring.New()
	all.AddRange(0, uint64(e.size/page.Size))
	return all, nil
}

// cut takes the blocks from end on, where a file ended in a backup, out of set and returns them; nil for none. They came to the file later, and the
// backup that has an increment of the file then has nothing of them. Where it was taken by what is known to be logged, they never were, and are zeros. Where
// pages were looked at, or segments read, it would have stored them: something is missing.
func (w *walk) cut(set *roaring.Bitmap, end int64, s *progress) (*roaring.Bitmap, error) {
	if end > 1<<32-1 || set.IsEmpty() || int64(set.Maximum()) < end {
		return nil, nil
	}
	over := set.Clone()
	over.RemoveRange(0, uint64(end))
	set.RemoveRange(uint64(end), 1<<32)
	if newer := w.Backups[s.held-1]; newer.Sentinel.DeltaSource == "lsn" || newer.Sentinel.DeltaSource == "archive" {
		return nil, fmt.Errorf("it ends before block %d, which %s has not either, and which is part of the file there", over.Minimum(), newer.Name)
	}
	return over, nil
}
