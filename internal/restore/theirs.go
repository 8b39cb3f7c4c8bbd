package restore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/RoaringBitmap/roaring/v2"

	"holdfast/internal/archive"
	"holdfast/internal/compress"
	"holdfast/internal/crc32c"
	"holdfast/internal/increment"
	"holdfast/internal/pg/page"
	"holdfast/internal/tarpart"
)

// dealLink hands out the parts of a backup that are read by their own headers, the largest first, and returns those that must come last.
func (r *run) dealLink(ctx context.Context, level int, tasks chan<- task) (last []task, err error) {
	l := r.plan.links[level]
	if l.sums {
		return r.dealSums(ctx, level, tasks)
	}
	parts := slices.Clone(l.parts)
	slices.SortStableFunc(parts, func(x, y archive.Part) int {
		return cmp.Or(cmp.Compare(lastRank(x), lastRank(y)), cmp.Compare(y.Size, x.Size))
	})
	for _, p := range parts {
		u := unit{part: p, level: level}
		if lastRank(p) > 0 {
			last = append(last, u)
		} else if err := send(ctx, tasks, u); err != nil {
			return nil, err
		}
	}
	return last, nil
}

// dealSums is dealLink for a backup with a manifest, such as ours below a delta of WAL-G: each part comes with its checksums.
func (r *run) dealSums(ctx context.Context, level int, tasks chan<- task) (last []task, err error) {
	l := r.plan.links[level]
	m, err := r.archive.OpenManifest(ctx, l.Name)
	if err != nil {
		return nil, err
	}
	defer m.Close() // only read
	for {
		p, err := m.Next()
		if err == io.EOF {
			return last, nil
		}
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(l.parts, func(part archive.Part) bool { return part.Name == p.Name })
		if i < 0 {
			continue // nothing in it is needed
		}
		u := unit{part: l.parts[i], level: level, sums: make(map[string]uint32, len(p.Members))}
		for _, member := range p.Members {
			if member.Type == tarpart.File {
				u.sums[member.Path] = member.CRC
			}
		}
		if lastRank(u.part) > 0 {
			last = append(last, u)
		} else if err := send(ctx, tasks, u); err != nil {
			return nil, err
		}
	}
}

// maxNamed bounds how many files an error names.
const maxNamed = 5

// allCame makes sure that whatever the lists say has come from somewhere. It knows nothing where there was no list.
func (r *run) allCame(ctx context.Context) error {
	t := r.plan.files
	if t == nil {
		return nil
	}
	found, all := t.missing(maxNamed)
	if all == 0 {
		return nil
	}
	names, err := r.plan.names(ctx, r.archive, found...)
	if err != nil {
		return err
	}
	if len(r.plan.links) == 1 && r.plan.newest.Sentinel.Version < 2 { // these list files that vanished before they were packed
		r.notes.add("%d files that the backup lists are not in its parts, such as %s: those that were being removed then PostgreSQL removes again",
			all, strings.Join(names, ", "))
		return nil
	}
	i := t.find(names[0])
	e := t.of(i)
	what := fmt.Sprintf("%s and %d other files", names[0], all-1)
	if all == 1 {
		what = names[0]
	}
	if int(e.last) == int(e.whole)+1 {
		return fmt.Errorf("%s: by their lists %d backups hold something of it, by their parts %d: %w", what, e.due, e.seen, errDamaged)
	}
	blocks := ""
	if e.set != 0 {
		owed, err := r.owed.Get(e.set)
		if err != nil {
			return err
		}
		if !owed.IsEmpty() {
			blocks = fmt.Sprintf(", from which block %d and %d others were to come", owed.Minimum(), owed.GetCardinality()-1)
		}
	}
	return fmt.Errorf("%s: the list of %s has it, its parts do not%s: %w", what, r.plan.links[e.whole].Name, blocks, errDamaged)
}

// unlisted restores a part by its own headers.
func (w *worker) unlisted(u unit) error {
	body, err := w.archive.OpenPart(w.ctx, w.plan.links[u.level].Name, u.part)
	if err != nil {
		return err
	}
	defer body.Close() // only read
	err = tarpart.Each(body, func(h tarpart.Header, content io.Reader) error {
		if err := w.member(u, h, content); err != nil {
			return fmt.Errorf("%s: %w", h.Path, err)
		}
		return nil
	})
	if errors.Is(err, tarpart.ErrNoEnd) && (u.part.Method != compress.None || w.plan.files != nil && !u.part.IsLabel()) {
		// Of a remote backup by WAL-G. That nothing is missing the codec says, which knows where its stream ends, or the list,
		// which does not name the labels: those of a remote backup are at the beginning of a larger part.
		_, err = io.Copy(io.Discard, body)
	}
	return err
}

// member restores one member of a part that is read by its own headers.
func (w *worker) member(u unit, h tarpart.Header, content io.Reader) error {
	if w.ctx.Err() != nil {
		return context.Cause(w.ctx)
	}
	isFile := h.Type == tarpart.File && h.Skipped == ""
	if isHeld(h.Path) && isFile {
		if u.level > 0 || !w.plan.wants(h.Path, h.Type) {
			return nil
		}
		return w.holdMember(h, content)
	}
	i, what := -1, whole
	if t := w.plan.files; t != nil {
		var err error
		if i, what, err = t.take(h.Path, isFile, u.level); err != nil || what == nothing {
			return err
		}
	}
	mode := fs.FileMode(h.Mode) & 0o777
	switch {
	case !w.plan.wants(h.Path, h.Type):
		return nil
	case what == unnamed && isFile:
		w.notes.add("%s is left out: it is in %s, and the backup's list does not name it", h.Path, u.part.Name)
		return nil
	case !isFile && (u.level > 0 || what == part):
		return errors.New("it is no file, though a newer backup builds on it as one")
	case h.Skipped != "":
		w.notes.add("%s is left out: %s", h.Path, h.Skipped)
		return nil
	case !isFile:
		return w.other(h.Path, h.Type, mode, h.Link)
	case w.plan.leaves(h.Path):
		w.notes.add("%s of the backup is left out", h.Path)
		return nil
	}
	f, err := w.beginFile(i, h, what == part)
	if err != nil {
		return err
	}
	sum, listed := u.sums[h.Path]
	if what == part {
		err = f.patch(content, h.Size, sum, listed)
	} else {
		err = f.fill(content, sum, listed)
	}
	return errors.Join(err, f.end(err != nil))
}

// holdMember gathers a file that is written in the end.
func (w *worker) holdMember(h tarpart.Header, content io.Reader) error {
	held, err := w.hold(h.Path, h.Size, fs.FileMode(h.Mode)&0o777)
	if err == nil {
		held.modTime = h.ModTime
		_, err = io.Copy(&held.content, content)
	}
	return err
}

// A building is a file that a worker writes content of: all of it, or the blocks that it is still owed.
type building struct {
	*worker
	entry int // in the table; -1 without one
	path  string
	file  *os.File
	owed  *roaring.Bitmap // blocks; nil where the file has just been made
	set   uint32          // where owed is kept; 0 for nowhere
	check pageCheck
	at    fs.FileInfo // of a file that was there: its time stays
	head  tarpart.Header
	begun int64 // from where on writing to disk has not been asked for
}

// beginFile makes the file of a member, or opens it where a newer backup's increment made it.
func (w *worker) beginFile(i int, h tarpart.Header, partly bool) (_ *building, err error) {
	f := &building{worker: w, entry: i, path: h.Path, head: h, check: w.pages.check(h.Path)}
	if i >= 0 {
		f.set = w.plan.files.at(i)
	}
	if f.set == 0 {
		f.file, err = w.folder.create(w.tree, h.Path, fs.FileMode(h.Mode)&0o777)
		return f, err
	}
	if f.owed, err = w.run.owed.Get(f.set); err != nil {
		return nil, err
	}
	if f.file, err = w.folder.open(w.tree, h.Path); err != nil {
		return nil, err
	}
	if f.at, err = f.file.Stat(); err != nil {
		return nil, errors.Join(err, f.file.Close())
	}
	return f, nil
}

// fill takes what the file was in the backup that has it whole. Blocks behind its end came to the file later, as zeros.
func (f *building) fill(content io.Reader, want uint32, listed bool) error {
	sum := uint32(0)
	for at := int64(0); ; {
		n, err := io.ReadFull(content, f.buf)
		b := f.buf[:n]
		if listed {
			sum = crc32c.Update(sum, b)
		}
		if errWrite := f.write(b, at); errWrite != nil {
			return errWrite
		}
		at += int64(n)
		if err == io.EOF || err == io.ErrUnexpectedEOF && at == f.head.Size {
			break
		}
		if err != nil {
			return err
		}
	}
	if listed && sum != want {
		return mismatch(sum, want)
	}
	if f.owed != nil {
		f.owed.Clear()
	}
	f.files.Add(1)
	return nil
}

// write puts content where it belongs, if it is owed. A block begins where b does.
func (f *building) write(b []byte, at int64) error {
	if f.owed == nil {
		return f.put(b, at)
	}
	for len(b) > 0 { // a run of blocks that are owed, or one that is not
		n := 0
		for n < len(b) && f.owed.Contains(uint32((at+int64(n))/page.Size)) {
			n = min(n+page.Size, len(b))
		}
		if n > 0 {
			if err := f.put(b[:n], at); err != nil {
				return err
			}
		} else {
			n = min(page.Size, len(b))
		}
		b, at = b[n:], at+int64(n)
	}
	return nil
}

// put writes content.
func (f *building) put(b []byte, at int64) error {
	if len(b) == 0 {
		return nil
	}
	f.check.look(b, at/page.Size)
	if _, err := f.file.WriteAt(b, at); err != nil {
		return err
	}
	f.bytes.Add(int64(len(b)))
	f.Progress.done.Add(int64(len(b)))
	if end := at + int64(len(b)); end-f.begun >= writeBackEvery {
		writeBack(f.file, f.begun, end-f.begun)
		f.begun = end
	}
	return nil
}

// patch takes an increment of size bytes: the pages of it that are owed, and with the first one how long the file is.
func (f *building) patch(content io.Reader, size int64, want uint32, listed bool) error {
	in := &summing{Reader: content}
	h, err := increment.Read(in, size)
	if err != nil {
		return err
	}
	return f.pages(in, h, want, listed)
}

// pages takes the pages of an increment whose header was read.
func (f *building) pages(in *summing, h *increment.Header, want uint32, listed bool) error {
	blocks := uint64(h.FileSize / page.Size)
	if f.owed == nil {
		if err := f.file.Truncate(h.FileSize); err != nil {
			return err
		}
		f.owed = roaring.New()
		f.owed.AddRange(0, blocks)
	}
	for rest := h.Blocks; len(rest) > 0; {
		n := min(len(rest), len(f.buf)/page.Size)
		b := f.buf[:n*page.Size]
		if _, err := io.ReadFull(in, b); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		for numbers := rest[:n]; len(numbers) > 0; {
			k := 1
			for k < len(numbers) && numbers[k] == numbers[0]+uint32(k) {
				k++
			}
			if err := f.write(b[:k*page.Size], int64(numbers[0])*page.Size); err != nil {
				return err
			}
			b, numbers = b[k*page.Size:], numbers[k:]
		}
		rest = rest[n:]
	}
	if listed && in.sum != want {
		return mismatch(in.sum, want)
	}
	f.owed.AndNot(roaring.BitmapOf(h.Blocks...))
	f.owed.RemoveRange(blocks, 1<<32) // what the file has beyond came later, as zeros
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

// mismatch says that content is not what was backed up.
func mismatch(sum, want uint32) error {
	return fmt.Errorf("its content has the checksum %08X, the manifest says %08X: %w", sum, want, errDamaged)
}

// end closes the file, keeps what it is owed still, and gives it the time the newest backup knows.
func (f *building) end(failed bool) error {
	err := f.file.Close()
	if failed || err != nil {
		return err
	}
	f.check.done()
	if f.owed != nil && f.entry >= 0 {
		number, err := f.run.owed.Put(f.set, f.owed)
		if err != nil {
			return err
		}
		if f.set == 0 {
			f.plan.files.keep(f.entry, number)
		}
	}
	at := f.head.ModTime
	if f.at != nil {
		at = f.at.ModTime()
	}
	return f.folder.touch(f.tree, f.path, at)
}
