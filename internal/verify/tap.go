package verify

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"strings"
	"sync/atomic"

	"github.com/cespare/xxhash/v2"

	"holdfast/internal/archive"
	"holdfast/internal/store"
)

// tap is a store through which one goroutine reads one object after the other. Of each it knows what was stored: how many bytes, with which checksum, and
// whether it was the store that failed.
type tap struct {
	store.Store
	done *atomic.Int64 // bytes, of all taps

	size int64
	hash *xxhash.Digest
	err  error // of the store
	open bool  // an object was opened
}

// stored says what was read.
func (t *tap) stored() archive.Stored {
	return archive.Stored{Size: t.size, Sum: archive.Sum(t.hash.Sum64())}
}

// tapped returns the archive as it is read through a new tap.
func (r *run) tapped() (*archive.Archive, *tap) {
	t := &tap{Store: r.archive.Store(), done: &r.opts.Progress.done, hash: xxhash.New()}
	return r.archive.Over(t), t
}

// Open implements store.Store.
func (t *tap) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	t.size = 0
	t.hash.Reset()
	var body io.ReadCloser
	body, t.err = t.Store.Open(ctx, name)
	if t.err != nil {
		return nil, t.err
	}
	t.open = true
	return &passing{ReadCloser: body, tap: t, whole: true}, nil
}

// OpenRange implements store.Store.
func (t *tap) OpenRange(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	var body io.ReadCloser
	body, t.err = t.Store.OpenRange(ctx, name, offset, length)
	if t.err != nil {
		return nil, t.err
	}
	return &passing{ReadCloser: body, tap: t}, nil
}

// passing is a body that is looked at as it passes.
type passing struct {
	io.ReadCloser
	tap   *tap
	whole bool // the object, of which all is summed up
	ended bool
}

func (p *passing) Read(b []byte) (int, error) {
	n, err := p.ReadCloser.Read(b)
	p.tap.size += int64(n)
	p.tap.hash.Write(b[:n])
	p.tap.done.Add(int64(n))
	if err != nil {
		p.ended = true
		if err != io.EOF {
			p.tap.err = err
		}
	}
	return n, err
}

// Close reads what is left first, so that all of the object is summed up.
func (p *passing) Close() error {
	if p.whole && !p.ended {
		buf := make([]byte, 64<<10)
		for !p.ended {
			p.Read(buf) // keeps its error
		}
	}
	err := p.ReadCloser.Close()
	if err != nil && p.tap.err == nil {
		p.tap.err = err
	}
	return err
}

// content reads an object to its end through what open makes of it, and judges what came of it. do takes what is in it, and returns what is wrong with that. The
// error is one that ends the run.
func (r *run) content(ctx context.Context, f Finding, known *archive.Stored, open func(*archive.Archive) (io.ReadCloser, error), do func(io.Reader) error) (ok bool, err error) {
	a, t := r.tapped()
	body, err := open(a)
	in := &counting{}
	if err == nil {
		in.Reader = body
		if err = do(in); err == nil {
			_, err = io.Copy(io.Discard, struct{ io.Reader }{in}) // no document is longer, and no codec ends sooner, unseen
		}
		if errClose := body.Close(); err == nil {
			err = errClose
		}
	}
	return r.judge(ctx, f, known, t, in.n, err)
}

// counting counts what is read.
type counting struct {
	io.Reader
	n int64
}

func (c *counting) Read(b []byte) (int, error) {
	n, err := c.Reader.Read(b)
	c.n += int64(n)
	return n, err
}

// wrong is what a reader found in content that could be read: a finding with at least a text. Others may have been added before it.
type wrong struct{ Finding }

func (w *wrong) Error() string { return w.Text }

// unsure is why nothing can be said of an object.
type unsure struct{ text string }

func (u *unsure) Error() string { return u.text }

// judge makes findings of what came of reading an object: err, of which the tap knows whether the store is to blame, after read bytes of content; and how it is
// stored against how it was put, where that is known. ok says that nothing is wrong.
func (r *run) judge(ctx context.Context, f Finding, known *archive.Stored, t *tap, read int64, err error) (ok bool, _ error) {
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	r.mu.Lock()
	r.Plan.touch(&r.read, f.Object, t.size)
	r.mu.Unlock()
	altered := known != nil && t.open && t.err == nil && t.stored() != *known
	if err == nil && !altered {
		if read > 0 && read != t.size && r.archive.HasKey() && !strings.HasSuffix(f.Object, ".json") { // it was decrypted
			r.opened.Store(true)
		}
		return true, nil
	}
	f.Severity = Damage
	var w *wrong
	var u *unsure
	switch {
	case t.err != nil && errors.Is(t.err, fs.ErrNotExist):
		f.Kind, f.Text, f.gone = Missing, "it is not there", true
	case t.err != nil:
		f.Severity, f.Kind, f.Text = Unknown, Store, "it could not be read: "+t.err.Error()
	case errors.As(err, &u):
		f.Severity, f.Kind, f.Text = Unknown, Store, u.text
	case errors.As(err, &w):
		was := f
		f = w.Finding
		f.Severity, f.Backup, f.Object, f.segment, f.soft = Damage, was.Backup, was.Object, was.segment, was.soft
		if f.LSN == "" {
			f.LSN = was.LSN
		}
		if f.Kind == "" {
			f.Kind = Content
		}
	case err != nil && archive.IsLocked(err) && !altered:
		f.Severity, f.Kind, f.Text = Unknown, Key, "it is encrypted, and no key is set"
	case err != nil:
		f.Kind, f.Text = Content, plain(err, f.Object)
		f.doubt = read == 0 && r.archive.HasKey()
		if f.doubt && known != nil && !altered {
			f.Severity, f.Kind = Unknown, Key
			f.Text += ": it is stored as it was put, so that the key is not the one it was encrypted for"
		} else if f.Offset == nil {
			f.Offset = at(read)
		}
	default:
		f.Kind, f.Text = Content, "what can be read of it is right"
	}
	if altered {
		f.doubt = false
		if t.size != known.Size {
			f.Kind = Size
		}
		f.Text += "; " + r.altered(f, known, t)
	}
	if f.soft && f.Severity == Damage {
		f.Severity = Warning
	}
	r.add(f)
	return false, nil
}

// plain is the text of an error without the name of the object, which stands beside it.
func plain(err error, object string) string {
	text := strings.ReplaceAll(err.Error(), "read "+object+": ", "")
	if rest, ok := strings.CutPrefix(text, "read the manifest of "); ok {
		_, text, _ = strings.Cut(rest, ": ")
	}
	return text
}
