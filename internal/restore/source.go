package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"

	"holdfast/internal/crc32c"
	"holdfast/internal/pg/control"
	"holdfast/internal/tarpart"
)

// A Source is where the files of a backup come from that lies in no archive of ours. What it yields has been compared with the checksums that go with it.
type Source struct {
	Members iter.Seq[*tarpart.Member] // directories and files, as a Batch has them
	Batches iter.Seq[Batch]           // all of them, each once
	Objects int                       // that are read, and how many bytes of them
	Stored  int64
	User    string // whom the files belonged to; "" where that is not known
	Damaged error  // is what errors are that say the backup itself is not what it was
}

// A Batch is what one worker restores at once. It asks skip of each member whether to pass it over; skip may call same to compare content with what
// the member must have. It hands the others to put, the content nil for a directory, and returns the first error.
type Batch = func(ctx context.Context, skip func(m *tarpart.Member, same func(content io.Reader) (bool, error)) bool, put func(m *tarpart.Member, content io.Reader) error) error

// surveySource looks at what there is to restore of a backup that lies in no archive of ours.
func (p *Plan) surveySource(s *Source) error {
	p.source, p.Verified, p.Parts, p.Stored = s, true, s.Objects, s.Stored
	c := newCensus(p)
	whole := false
	for m := range s.Members {
		if err := m.Check(); err != nil {
			return fmt.Errorf("restore %s: %w", p.Backup, err)
		}
		whole = whole || m.Path == control.Name
		c.count(m)
		c.see(m)
	}
	c.tell()
	switch {
	case !whole:
		return fmt.Errorf("restore %s: the backup holds no %s", p.Backup, control.Name)
	case p.Files == 0 && p.Mask != "":
		return p.noMatch()
	}
	return p.measure(c.bytes, c.files)
}

// dealSource hands out the batches of the plan's source.
func (r *run) dealSource(ctx context.Context, tasks chan<- task) (last []task, err error) {
	for b := range r.plan.source.Batches {
		if err := send(ctx, tasks, sourced(b)); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// sourced is a task: a batch of a source.
type sourced Batch

func (b sourced) do(w *worker) error {
	err := b(w.ctx, w.skips, w.put)
	if is := w.plan.source.Damaged; err != nil && is != nil && errors.Is(err, is) {
		err = &damagedError{err}
	}
	return err
}

// damagedError is an error of a source that is errDamaged.
type damagedError struct{ error }

func (e *damagedError) Unwrap() error        { return e.error }
func (e *damagedError) Is(target error) bool { return target == errDamaged }

// skips reports whether a member is not restored: it is not asked for, has no business in a restored cluster, or is in place from before an interruption.
func (w *worker) skips(m *tarpart.Member, same func(io.Reader) (bool, error)) bool {
	if !w.plan.wants(m.Path, m.Type) {
		return true
	}
	if w.plan.leaves(m.Path) {
		w.notes.add("%s of the backup is left out", m.Path)
		return true
	}
	if !w.plan.Resume || isHeld(m.Path) {
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
	content := &summing{Reader: f}
	if ok, err := same(content); err != nil || !ok || w.ctx.Err() != nil {
		return false
	}
	if w.folder.settle(w.tree, m.Path, m.Perm(), m.ModTime) != nil || w.listFile(m.Path, m.Size, m.ModTime, content.sum) != nil {
		return false
	}
	w.keptFiles.Add(1)
	w.keptBytes.Add(m.Size)
	w.Progress.done.Add(m.Size)
	return true
}

// put restores a member of a source.
func (w *worker) put(m *tarpart.Member, content io.Reader) error {
	switch {
	case w.ctx.Err() != nil:
		return context.Cause(w.ctx)
	case m.Type != tarpart.File:
		if !w.plan.wants(m.Path, m.Type) {
			return nil
		}
		return w.other(m.Path, m.Type, m.Perm(), m.Link)
	case isHeld(m.Path):
		held, err := w.hold(m.Path, m.Size, m.Perm())
		if err == nil {
			held.modTime = m.ModTime
			_, err = io.Copy(&held.content, content)
		}
		return err
	}
	f, err := w.folder.create(w.tree, m.Path, m.Perm())
	if err != nil {
		return err
	}
	var at, begun int64
	sum := uint32(0)
	for err == nil {
		n := 0
		for n < len(w.buf) && err == nil {
			var k int
			k, err = content.Read(w.buf[n:])
			n += k
		}
		sum = crc32c.Update(sum, w.buf[:n])
		if _, errWrite := f.WriteAt(w.buf[:n], at); errWrite != nil {
			return errors.Join(errWrite, f.Close())
		}
		if at += int64(n); at-begun >= writeBackEvery {
			writeBack(f, begun, at-begun)
			begun = at
		}
		w.Progress.done.Add(int64(n))
		if w.ctx.Err() != nil {
			err = context.Cause(w.ctx)
		}
	}
	switch {
	case err != io.EOF:
		return errors.Join(err, f.Close())
	case at != m.Size:
		return errors.Join(fmt.Errorf("it has %d bytes, and should have %d", at, m.Size), f.Close())
	}
	if begun > 0 { // a large file: the rest too
		writeBack(f, begun, at-begun)
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := w.folder.touch(w.tree, m.Path, m.ModTime); err != nil {
		return err
	}
	w.files.Add(1)
	w.bytes.Add(m.Size)
	return w.listFile(m.Path, m.Size, m.ModTime, sum)
}
