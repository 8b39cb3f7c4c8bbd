package restore

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"

	"holdfast/internal/archive"
	"holdfast/internal/chain"
	"holdfast/internal/crc32c"
	"holdfast/internal/pg/control"
	"holdfast/internal/tarpart"
)

const (
	// unitSize is about how many bytes of content a worker takes at once, where a part can be read in pieces: so few that no
	// worker is left alone for long at the end, so many that asking for them costs nothing.
	unitSize = 64 << 20
	// copyBuffer is what content passes through, in bytes: a frame of a part, which stays in the second-level cache.
	copyBuffer = 256 << 10
	// writeBackEvery is after how many bytes of a file the system is asked to begin writing them to disk.
	writeBackEvery = 8 << 20
	// writeBackLeast is of how many bytes that is worth a call where the writing of a file ends.
	writeBackLeast = 1 << 20
	// maxGap is how many bytes between two wanted contents are read rather than passed over with another request.
	maxGap = 1 << 20
)

// unit is a task: a stretch of a part, or a whole one.
type unit struct {
	part   archive.Part
	ranges *archive.Ranges // nil: the part is read from its beginning
	pieces []piece         // what is in it; nil where only the part's own headers say

	// Of a backup that is restored by the parts' own headers:
	level int               // its index in the chain
	sums  map[string]uint32 // checksums of contents by path, where it has a manifest
}

// piece is a member, or a stretch of a large one.
type piece struct {
	*tarpart.Member
	from, length int64      // of the member's content
	split        *splitFile // what the pieces of one member share; nil for a whole one
}

// start returns where the piece begins in the part's tar stream.
func (p *piece) start() int64 { return p.Offset + p.from }

// splitFile is a file that several workers write, each its pieces.
type splitFile struct {
	mu   sync.Mutex
	file *os.File // nil until the first piece comes
	sums []uint32 // of the pieces, in their order
	left int      // pieces to come
}

func (s *splitFile) close() {
	if s.file != nil {
		s.file.Close() // of a failed run
	}
}

// cut divides a part's members into units.
func (r *run) cut(ctx context.Context, part archive.Part, members []tarpart.Member) ([]unit, error) {
	total, err := chain.Contents(part.Name, members)
	if err != nil {
		return nil, err
	}
	whole := unit{part: part, pieces: make([]piece, 0, len(members))}
	var ranges *archive.Ranges
	if total > unitSize || r.plan.Mask != "" {
		if ranges, err = r.archive.Ranges(ctx, r.plan.Backup, part); err != nil {
			return nil, err
		}
	}
	if ranges == nil {
		for i := range members {
			whole.pieces = append(whole.pieces, piece{Member: &members[i], length: members[i].Size})
		}
		return []unit{whole}, nil
	}
	var units []unit
	u := unit{part: part, ranges: ranges}
	var size, end int64 // of the unit's content; where in the stream it ends
	flush := func() {
		if len(u.pieces) > 0 {
			units = append(units, u)
		}
		u.pieces, size = nil, 0
	}
	for i := range members {
		m := &members[i]
		if m.Type == tarpart.File && m.Size > 0 {
			if m.Offset-end > maxGap {
				flush()
			}
			end = m.Offset + m.Size
		}
		if m.Type == tarpart.File && m.Size > unitSize+unitSize/2 && !r.plan.Resume && !r.plan.leaves(m.Path) {
			flush()
			s := &splitFile{}
			for from := int64(0); from < m.Size; from += unitSize {
				u.pieces = append(u.pieces, piece{Member: m, from: from, length: min(unitSize, m.Size-from), split: s})
				s.left++
				flush()
			}
			s.sums = make([]uint32, s.left)
			continue
		}
		u.pieces = append(u.pieces, piece{Member: m, length: m.Size})
		if size += m.Size; size >= unitSize {
			flush()
		}
	}
	flush()
	return units, nil
}

// worker does units one after the other.
type worker struct {
	*run
	ctx    context.Context // of the run: a worker lives no longer
	folder folder
	buf    []byte
}

// do restores one unit.
func (u unit) do(w *worker) error {
	var err error
	if u.pieces != nil {
		err = w.listed(u)
	} else {
		err = w.unlisted(u)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", u.part.Name, err)
	}
	return nil
}

// open begins to read a unit: as a stream that begins at position pos of the part.
func (w *worker) open(u unit) (body io.ReadCloser, pos int64, err error) {
	if u.ranges == nil {
		body, err = w.archive.OpenPart(w.ctx, w.plan.Backup, u.part)
		return body, 0, err
	}
	from, to := int64(-1), int64(0)
	for i := range u.pieces {
		if p := &u.pieces[i]; p.Type == tarpart.File && p.length > 0 {
			if from < 0 {
				from = p.start()
			}
			to = p.start() + p.length
		}
	}
	body, err = u.ranges.Open(w.ctx, from, to-from)
	return body, from, err
}

// listed restores a unit whose members the manifest lists.
func (w *worker) listed(u unit) (err error) {
	if w.plan.Resume {
		u.pieces = slices.DeleteFunc(u.pieces, func(p piece) bool { return w.whole(p.Member) })
	}
	s := &sink{worker: w, pieces: u.pieces}
	defer s.close()
	if err := s.advance(); err != nil {
		return err
	}
	if len(s.pieces) == 0 {
		return nil // nothing with content
	}
	body, pos, err := w.open(u)
	if err != nil {
		return err
	}
	defer body.Close() // only read
	s.pos = pos
	if u.ranges == nil {
		_, err = io.Copy(s, body) // hands over whole frames without another copy
	} else {
		_, err = io.CopyBuffer(s, struct{ io.Reader }{body}, w.buf)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", s.where(), err)
	}
	if len(s.pieces) > 0 {
		return fmt.Errorf("%s: %w", s.pieces[0].Path, io.ErrUnexpectedEOF)
	}
	return nil
}

// whole reports whether a member is in place already, from before an interruption, with the content it must have.
func (w *worker) whole(m *tarpart.Member) bool {
	if m.Type != tarpart.File || isHeld(m.Path) || w.plan.leaves(m.Path) {
		return false
	}
	name, err := w.folder.enter(w.tree, m.Path)
	if err != nil {
		return false
	}
	info, err := w.folder.root.Lstat(name)
	if err != nil || !info.Mode().IsRegular() || info.Size() != m.Size {
		return false
	}
	f, err := w.folder.root.Open(name)
	if err != nil {
		return false
	}
	defer f.Close() // only read
	sum := uint32(0)
	for {
		n, err := f.Read(w.buf)
		sum = crc32c.Update(sum, w.buf[:n])
		if err == io.EOF {
			break
		}
		if err != nil || w.ctx.Err() != nil {
			return false
		}
	}
	if sum != m.CRC || w.folder.settle(w.tree, m.Path, m.Perm(), m.ModTime) != nil || w.listFile(m.Path, m.Size, m.ModTime, sum) != nil {
		return false
	}
	w.keptFiles.Add(1)
	w.keptBytes.Add(m.Size)
	w.Progress.done.Add(m.Size)
	return true
}

// isHeld reports whether a file is written in the end only.
func isHeld(path string) bool { return path == control.Name || path == labelFile || path == mapFile }

// hold begins to gather a file that is written in the end. What came before under its name is forgotten.
func (r *run) hold(path string, size int64, mode fs.FileMode) (*heldFile, error) {
	if size > maxHeld {
		return nil, fmt.Errorf("%s has %d bytes, more than it can have", path, size)
	}
	h := &heldFile{mode: mode&0o777 | 0o600}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held[path] = h
	return h, nil
}

// other restores a member that is not a file.
func (r *run) other(path string, kind tarpart.Type, mode fs.FileMode, link string) error {
	if oid, ok := strings.CutPrefix(path, "pg_tblspc/"); ok && r.tree.tablespaces[oid] != nil {
		return nil // the link is ours to make
	}
	if kind == tarpart.Dir {
		return r.tree.directory(path, mode)
	}
	if path == "pg_wal" || path == "." {
		r.notes.add("%s was a symbolic link to %s; it is a directory now", path, link)
		return r.tree.directory(path, mode)
	}
	if base := path[strings.LastIndex(path, "/")+1:]; link == "" || link == base {
		r.notes.add("%s: the backup has lost where this symbolic link led to; it is left out", path)
		return nil
	}
	r.notes.add("%s is a symbolic link to %s; what it leads to is not in the backup", path, link)
	return r.tree.symlink(path, link)
}

// sink takes the bytes of a part's tar stream in their order and puts those of its pieces where they belong.
type sink struct {
	*worker
	pieces []piece // to come; while one is being written it is the first
	pos    int64   // in the tar stream, of the next byte

	open  bool     // pieces[0] has been begun
	file  *os.File // nil where the content is held
	held  *heldFile
	drop  bool // the content goes nowhere
	done  int64
	begun int64 // offset in the file up to which writing to disk has been asked for
	sum   uint32
}

// where names where the sink is, for errors.
func (s *sink) where() string {
	if len(s.pieces) == 0 {
		return "behind the last member"
	}
	return s.pieces[0].Path
}

// Write implements io.Writer.
func (s *sink) Write(b []byte) (int, error) {
	if s.ctx.Err() != nil {
		return 0, context.Cause(s.ctx)
	}
	for rest := b; len(rest) > 0; {
		if len(s.pieces) == 0 { // padding
			s.pos += int64(len(rest))
			break
		}
		p := &s.pieces[0]
		if gap := p.start() - s.pos; !s.open && gap > 0 {
			n := min(gap, int64(len(rest)))
			s.pos += n
			rest = rest[n:]
			continue
		}
		if !s.open {
			if err := s.begin(p); err != nil {
				return 0, err
			}
		}
		n := min(p.length-s.done, int64(len(rest)))
		if err := s.put(p, rest[:n]); err != nil {
			return 0, err
		}
		rest = rest[n:]
		s.pos += n
		if s.done == p.length {
			if err := s.end(p); err != nil {
				return 0, err
			}
			s.pieces = s.pieces[1:]
			if err := s.advance(); err != nil {
				return 0, err
			}
		}
	}
	return len(b), nil
}

// advance does the pieces that have no content, up to the next one that has.
func (s *sink) advance() error {
	for ; len(s.pieces) > 0; s.pieces = s.pieces[1:] {
		p := &s.pieces[0]
		var err error
		switch {
		case p.Type != tarpart.File:
			err = s.other(p.Path, p.Type, p.Perm(), p.Link)
		case p.length > 0:
			return nil
		default:
			if err = s.begin(p); err == nil {
				err = s.end(p)
			}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", p.Path, err)
		}
	}
	return nil
}

// begin opens where a piece goes.
func (s *sink) begin(p *piece) (err error) {
	s.open, s.done, s.begun, s.sum, s.drop = true, 0, p.from, 0, false
	switch {
	case isHeld(p.Path):
		s.held, err = s.hold(p.Path, p.Size, p.Perm())
		if err == nil {
			s.held.modTime = p.ModTime
		}
	case s.plan.leaves(p.Path):
		s.drop = true
		s.notes.add("%s of the backup is left out", p.Path)
	case p.split == nil:
		s.file, err = s.folder.create(s.tree, p.Path, p.Perm())
	default:
		p.split.mu.Lock()
		defer p.split.mu.Unlock()
		if p.split.file == nil {
			if p.split.file, err = s.folder.create(s.tree, p.Path, p.Perm()); err != nil {
				return err
			}
			s.mu.Lock()
			s.split[p.split] = struct{}{}
			s.mu.Unlock()
		}
		s.file = p.split.file
	}
	return err
}

// put writes content of a piece.
func (s *sink) put(p *piece, b []byte) error {
	s.sum = crc32c.Update(s.sum, b)
	at := p.from + s.done
	s.done += int64(len(b))
	switch {
	case s.held != nil:
		s.held.content.Write(b)
	case s.file != nil:
		if _, err := s.file.WriteAt(b, at); err != nil {
			return err
		}
		if at += int64(len(b)); at-s.begun >= writeBackEvery {
			writeBack(s.file, s.begun, at-s.begun)
			s.begun = at
		}
		s.Progress.done.Add(int64(len(b)))
	}
	return nil
}

// end closes a piece, and with the last piece of a file checks its content.
func (s *sink) end(p *piece) (err error) {
	file, held, drop := s.file, s.held, s.drop
	s.open, s.file, s.held = false, nil, nil
	sum := s.sum
	if s.begun > p.from { // a large file: the rest too
		writeBack(file, s.begun, p.from+p.length-s.begun)
	}
	if p.split != nil {
		whole := false
		if sum, whole = p.split.finish(p, sum); !whole {
			return nil
		}
		s.mu.Lock()
		delete(s.split, p.split)
		s.mu.Unlock()
	}
	if file != nil {
		if err := file.Close(); err != nil {
			return err
		}
	}
	if sum != p.CRC {
		return mismatch(sum, p.CRC)
	}
	if held != nil || drop {
		return nil
	}
	if err := s.folder.touch(s.tree, p.Path, p.ModTime); err != nil {
		return err
	}
	s.files.Add(1)
	s.bytes.Add(p.Size)
	return s.listFile(p.Path, p.Size, p.ModTime, sum)
}

// finish notes a piece's checksum; with the last one it returns that of the file.
func (f *splitFile) finish(p *piece, sum uint32) (_ uint32, whole bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sums[p.from/unitSize] = sum
	if f.left--; f.left > 0 {
		return 0, false
	}
	sum = 0
	for i, s := range f.sums {
		sum = crc32c.Combine(sum, s, min(unitSize, p.Size-int64(i)*unitSize))
	}
	return sum, true
}

// close closes what a failed sink left open.
func (s *sink) close() {
	if s.open && s.file != nil && s.pieces[0].split == nil {
		s.file.Close() // the run has failed
	}
}
