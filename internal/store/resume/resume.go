// Package resume reads an object by as many requests as it takes: a body that breaks off is continued where it broke.
package resume

import (
	"context"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"net/http"
	"strings"

	"holdfast/internal/store/patience"
)

// Object is an object to be read. All fields but Check are required.
type Object struct {
	Name  string
	Retry *patience.Policy // for a body that breaks off, without a byte in between

	Open  func(at, end int64) (Answer, error) // requests bytes as Header has it, always of the version that the first answer was of, as often as may be
	Stat  func() error                        // says whether there is the object
	Ended func(error) bool                    // whether an error of Open says that the object ends before at
	Check func() error                        // judges what all bodies yielded, at the end of the last; nil for no judgement
	Fail  func(op string, err error) error    // makes an error of the store
}

// Answer is what a service answers to a request for an object.
type Answer struct {
	Body   io.ReadCloser
	Range  string // the header Content-Range
	Length int64  // of Body in bytes; -1 where the service does not say
}

// Summed returns body, of which sum gets what is read.
func Summed(body io.ReadCloser, sum hash.Hash) io.ReadCloser {
	return struct {
		io.Reader
		io.Closer
	}{io.TeeReader(body, sum), body}
}

// Header returns the header Range of a request for the bytes from at to before end, or to the object's end where that is -1; "" for all.
func Header(at, end int64) string {
	switch {
	case end >= 0:
		return fmt.Sprintf("bytes=%d-%d", at, end-1)
	case at > 0:
		return fmt.Sprintf("bytes=%d-", at)
	}
	return ""
}

// Range returns length bytes from offset on, or all there are where length is -1, as store.Store has it. ctx ends waiting.
func (o *Object) Range(ctx context.Context, offset, length int64) (io.ReadCloser, error) {
	switch {
	case offset < 0 || length < -1:
		return nil, fmt.Errorf("open %s from %d for %d bytes: %w", o.Name, offset, length, fs.ErrInvalid)
	case length == 0: // HTTP has no empty ranges
		if err := o.Stat(); err != nil {
			return nil, err
		}
		return http.NoBody, nil
	}
	b := &body{Object: o, ctx: ctx, at: offset, end: -1}
	if length > 0 {
		b.end = offset + length
	}
	switch err := b.open(); {
	case err != nil && o.Ended(err):
		return http.NoBody, nil
	case err != nil:
		return nil, o.Fail("open", err)
	}
	return b, nil
}

type body struct {
	*Object
	ctx   context.Context // of the open, which covers what continues it
	at    int64           // offset in the object
	end   int64           // where to end; -1 where not known yet
	known bool            // the service has said that there is so much
	now   io.ReadCloser   // nil without
	tries patience.Tries  // since the last byte
}

// open requests what is still to be read.
func (b *body) open() error {
	got, err := b.Open(b.at, b.end)
	if err != nil {
		return err
	}
	asked, ends := Header(b.at, b.end), b.at+got.Length
	switch {
	case asked != "" && got.Length != 0 && !strings.HasPrefix(got.Range, fmt.Sprintf("bytes %d-", b.at)), // an empty object has no ranges
		got.Length >= 0 && b.end >= 0 && (ends > b.end || ends < b.end && b.known):
		got.Body.Close() // of no use
		return fmt.Errorf("the service answered a request for %s with %d bytes, range %q: %w", asked, got.Length, got.Range, fs.ErrInvalid)
	case got.Length >= 0:
		b.end, b.known = ends, true
	}
	b.now = got.Body
	return nil
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	for {
		if b.now == nil {
			if b.at == b.end {
				return 0, b.ended()
			}
			if err := b.open(); err != nil {
				return 0, b.Fail("read", err)
			}
		}
		n, err := b.now.Read(p)
		if b.at += int64(n); n > 0 {
			b.tries.Progress()
		}
		switch {
		case err == nil:
			return n, nil
		case err == io.EOF && b.at >= b.end:
			return n, b.ended()
		case err == io.EOF:
			err = io.ErrUnexpectedEOF
		}
		b.now.Close() // broken already
		if b.now = nil; n > 0 {
			return n, nil // the next call goes on
		}
		if err := b.Retry.Again(b.ctx, &b.tries, fmt.Sprintf("read %s from byte %d on", b.Name, b.at), err); err != nil {
			return 0, b.Fail("read", err)
		}
	}
}

// ended returns io.EOF, unless what came is not what should have come.
func (b *body) ended() error {
	if b.Check == nil {
		return io.EOF
	}
	if err := b.Check(); err != nil {
		return b.Fail("read", err)
	}
	return io.EOF
}

// Close implements io.Closer.
func (b *body) Close() error {
	if b.now == nil {
		return nil
	}
	return b.now.Close()
}
