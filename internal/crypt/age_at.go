package crypt

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"sync"

	"filippo.io/age"
)

// How age-encryption.org/v1 cuts what follows the header and 16 bytes of nonce: pieces of 64 KiB of plain text, each with a
// MAC.
const (
	agePiece  = 64 << 10
	ageSealed = agePiece + 16
	ageNonce  = 16
	ageAtOnce = 16 // pieces that are read at once
	ageBlock  = 4 << 10
)

// An ageFile is an object that is decrypted here and there. The library reads one piece at a time, which in a store would be
// a request each; so every reader of the library's reads from an ageWindow, into which all that is needed has been read
// before.
type ageFile struct {
	src   io.ReaderAt
	size  int64
	body  int64        // offset of the first piece
	head  []byte       // the header, the nonce, and some more
	tail  []byte       // the last piece as it is
	key   age.Identity // knows the file's key, so that no other is needed any more
	plain int64        // length of the plain text

	mu   sync.Mutex
	idle []*ageWindow // not in use
}

// An ageWindow is what one goroutine reads through.
type ageWindow struct {
	f   *ageFile
	off int64       // offset of buf in src
	buf []byte      // some pieces
	r   io.ReaderAt // decrypts what ReadAt below reads
}

// ageWindows keeps memory for buf.
var ageWindows = sync.Pool{New: func() any { return new([]byte) }}

// decryptAt opens an object that begins with begin.
func (k *ageKeys) decryptAt(src io.ReaderAt, size int64, begin []byte) (io.ReaderAt, int64, error) {
	f := &ageFile{src: src, size: size, head: begin}
	w := &witness{}
	header, err := age.ExtractHeader(bufio.NewReaderSize(&ageHead{f: f}, ageBlock))
	if err != nil {
		return nil, 0, k.explain(err, w)
	}
	key, err := age.DecryptHeader(header, append(append([]age.Identity(nil), k.identities...), w)...)
	if err != nil {
		return nil, 0, k.explain(err, w)
	}
	f.key = age.NewInjectedFileKeyIdentity(key)
	f.body = int64(len(header)) + ageNonce
	rest := size - f.body
	if rest < 16 {
		return nil, 0, fmt.Errorf("in the header: %w", io.ErrUnexpectedEOF)
	}
	f.tail = make([]byte, rest-(rest-1)/ageSealed*ageSealed)
	if err := readAt(src, f.tail, size-int64(len(f.tail))); err != nil {
		return nil, 0, err
	}
	first, err := f.window()
	if err != nil {
		return nil, 0, fmt.Errorf("damaged, or the end is missing: %w", err)
	}
	f.put(first)
	f.plain = rest - (rest+ageSealed-1)/ageSealed*(ageSealed-agePiece) // which the library has verified
	return f, f.plain, nil
}

// An ageHead reads the beginning of an object and keeps it.
type ageHead struct {
	f  *ageFile
	at int
}

func (h *ageHead) Read(p []byte) (int, error) {
	f := h.f
	if h.at == len(f.head) {
		n := min(ageBlock, f.size-int64(h.at))
		switch {
		case n <= 0:
			return 0, io.EOF
		case h.at >= ageHeader:
			return 0, errHeader
		}
		f.head = append(f.head, make([]byte, n)...)
		if err := readAt(f.src, f.head[h.at:], int64(h.at)); err != nil {
			return 0, err
		}
	}
	n := copy(p, f.head[h.at:])
	h.at += n
	return n, nil
}

// window returns a window that is not in use.
func (f *ageFile) window() (*ageWindow, error) {
	f.mu.Lock()
	if n := len(f.idle); n > 0 {
		w := f.idle[n-1]
		f.idle = f.idle[:n-1]
		f.mu.Unlock()
		return w, nil
	}
	f.mu.Unlock()
	w := &ageWindow{f: f}
	r, _, err := age.DecryptReaderAt(w, f.size, f.key) // reads head and tail only
	w.r = r
	return w, err
}

func (f *ageFile) put(w *ageWindow) {
	w.buf = nil
	f.mu.Lock()
	defer f.mu.Unlock()
	f.idle = append(f.idle, w)
}

// ReadAt implements io.ReaderAt for the library.
func (w *ageWindow) ReadAt(p []byte, off int64) (int, error) {
	f := w.f
	for _, have := range []struct {
		off int64
		b   []byte
	}{{w.off, w.buf}, {f.size - int64(len(f.tail)), f.tail}, {0, f.head}} {
		if i := off - have.off; i >= 0 && i+int64(len(p)) <= int64(len(have.b)) {
			return copy(p, have.b[i:]), nil
		}
	}
	return len(p), readAt(f.src, p, off)
}

// ReadAt implements io.ReaderAt for plain text.
func (f *ageFile) ReadAt(p []byte, off int64) (n int, err error) {
	switch {
	case off < 0:
		return 0, errors.New("decrypt age: negative offset")
	case off >= f.plain:
		return 0, io.EOF
	}
	if rest := f.plain - off; int64(len(p)) > rest {
		p, err = p[:rest], io.EOF
	}
	w, werr := f.window()
	if werr != nil {
		return 0, fmt.Errorf("decrypt %s: %w", Age, werr)
	}
	defer f.put(w)
	memory := ageWindows.Get().(*[]byte)
	defer ageWindows.Put(memory)
	for n < len(p) {
		first := (off + int64(n)) / agePiece
		end := min((off+int64(len(p))-1)/agePiece+1, first+ageAtOnce)
		w.off = f.body + first*ageSealed
		if length := min(f.body+end*ageSealed, f.size) - w.off; length > int64(len(f.tail)) || w.off+length < f.size {
			if int64(cap(*memory)) < length {
				*memory = make([]byte, length)
			}
			w.buf = (*memory)[:length]
			if err := readAt(f.src, w.buf, w.off); err != nil {
				return n, err
			}
		}
		k := min(int(end*agePiece-off-int64(n)), len(p)-n)
		if k, err := w.r.ReadAt(p[n:n+k], off+int64(n)); err != nil && err != io.EOF {
			return n + k, fmt.Errorf("decrypt %s: %w", Age, err)
		}
		n += k
	}
	return n, err
}

// readAt fills p from src; an end within p is io.ErrUnexpectedEOF.
func readAt(src io.ReaderAt, p []byte, off int64) error {
	switch n, err := src.ReadAt(p, off); {
	case n == len(p):
		return nil
	case err == io.EOF || err == nil:
		return io.ErrUnexpectedEOF
	default:
		return err
	}
}
