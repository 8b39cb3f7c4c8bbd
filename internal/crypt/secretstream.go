package crypt

import (
	"crypto/cipher"
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"

	"golang.org/x/crypto/chacha20"
	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/crypto/poly1305" //nolint:staticcheck // a MAC by itself is what the odd chunk needs
)

// The stream of crypto_secretstream_xchacha20poly1305, in WAL-G's chunks:
//
//	header    24 bytes, random: 16 from which HChaCha20 makes the stream's key, 8 of nonce
//	chunk     8192 bytes of plain text as 1 byte of tag, the text, 16 bytes of MAC; tag MESSAGE
//	last      the same with 0 to 8191 bytes of plain text; tag FINAL
//
// A chunk is what ChaCha20-Poly1305 of RFC 8439 makes of a block of 64 bytes, the tag and zeros, followed by the text,
// except that all of the block but its first byte is left out, and that the MAC covers other padding when the text's length
// is no multiple of 8. The nonce is a counter of chunks, from 1, and 8 bytes that every MAC is mixed into.
const (
	sodiumKeySize  = 32
	sodiumHeader   = 24
	sodiumChunk    = 8192
	sodiumOverhead = 1 + 16
	sodiumSealed   = sodiumChunk + sodiumOverhead

	tagMessage = 0
	tagFinal   = 3
)

var (
	errSodiumForged = errors.New("not authentic")
	errSodiumLong   = errors.New("more than 2³² chunks")
)

// A secretstream is the state of one stream.
type secretstream struct {
	key   []byte
	nonce [12]byte
	aead  cipher.AEAD
}

func newSecretstream(key *[sodiumKeySize]byte, header []byte) (*secretstream, error) {
	k, err := chacha20.HChaCha20(key[:], header[:16])
	if err != nil {
		return nil, err
	}
	aead, err := chacha20poly1305.New(k)
	if err != nil {
		return nil, err
	}
	s := &secretstream{key: k, aead: aead, nonce: [12]byte{1}}
	copy(s.nonce[4:], header[16:sodiumHeader])
	return s, nil
}

// next makes the nonce that of the chunk after the one with mac.
func (s *secretstream) next(mac []byte) error {
	n := binary.LittleEndian.Uint32(s.nonce[:])
	if n == math.MaxUint32 {
		return errSodiumLong // libsodium changes the key here, at 32 TiB: longer than an object of any store
	}
	binary.LittleEndian.PutUint32(s.nonce[:], n+1)
	subtle.XORBytes(s.nonce[4:], s.nonce[4:], mac[:8])
	return nil
}

// seal encrypts the text b[64:] in place, for which b has a capacity of 16 bytes more. It returns the chunk, which begins at
// b[63].
func (s *secretstream) seal(b []byte, tag byte) ([]byte, error) {
	clear(b[:64])
	b[0] = tag
	if len(b)%8 == 0 {
		b = s.aead.Seal(b[:0], s.nonce[:], b, nil)
	} else {
		c, err := s.blocks(1)
		if err != nil {
			return nil, err
		}
		c.XORKeyStream(b, b)
		if b, err = s.sum(b); err != nil {
			return nil, err
		}
	}
	b[63] = b[0]
	return b[63:], s.next(b[len(b)-16:])
}

// open decrypts the chunk b[63:] in place, which is at least sodiumOverhead bytes, and returns its text.
func (s *secretstream) open(b []byte) (text []byte, tag byte, err error) {
	end := len(b) - 16
	mac := [16]byte(b[end:])
	c, err := s.blocks(1)
	if err != nil {
		return nil, 0, err
	}
	var first [64]byte
	c.XORKeyStream(first[:], first[:])
	b[0] = b[63]
	copy(b[1:64], first[1:])
	if end%8 == 0 {
		if _, err := s.aead.Open(b[:0], s.nonce[:], b, nil); err != nil {
			return nil, 0, errSodiumForged
		}
	} else {
		sealed, err := s.sum(b[:end:end]) // a copy
		if err != nil {
			return nil, 0, err
		}
		if subtle.ConstantTimeCompare(sealed[end:], mac[:]) != 1 {
			return nil, 0, errSodiumForged
		}
		b[0] ^= first[0]
		c.XORKeyStream(b[64:end], b[64:end])
	}
	return b[64:end], b[0], s.next(mac[:])
}

// blocks returns the cipher stream of the chunk from a block on.
func (s *secretstream) blocks(from uint32) (*chacha20.Cipher, error) {
	c, err := chacha20.NewUnauthenticatedCipher(s.key, s.nonce[:])
	if err == nil {
		c.SetCounter(from)
	}
	return c, err
}

// sum appends the MAC to the encrypted bytes b.
func (s *secretstream) sum(b []byte) ([]byte, error) {
	c, err := s.blocks(0)
	if err != nil {
		return nil, err
	}
	var key [32]byte
	c.XORKeyStream(key[:], key[:])
	m := poly1305.New(&key)
	m.Write(b)
	pad := len(b) & 15 // libsodium's way; RFC 8439 fills up to the next 16
	var tail [15 + 16]byte
	binary.LittleEndian.PutUint64(tail[pad+8:], uint64(len(b)))
	m.Write(tail[:pad+16])
	return m.Sum(b), nil
}

// sodiumBatch is how many chunks are made at once.
const sodiumBatch = 8

// sodiumBuffers hold a batch of chunks, after the 63 bytes that seal and open need before one.
var sodiumBuffers = sync.Pool{New: func() any { return new([63 + sodiumBatch*sodiumSealed]byte) }}

// A sodiumWriter makes chunks of what src yields.
type sodiumWriter struct {
	src io.Reader
	s   *secretstream
	buf *[63 + sodiumBatch*sodiumSealed]byte
}

func encryptSodium(key *[sodiumKeySize]byte, src io.Reader) (io.ReadCloser, error) {
	header := make([]byte, sodiumHeader)
	rand.Read(header)
	s, err := newSecretstream(key, header)
	if err != nil {
		return nil, err
	}
	w := &sodiumWriter{src: src, s: s, buf: sodiumBuffers.Get().(*[63 + sodiumBatch*sodiumSealed]byte)}
	return &chunks{next: w.next, free: func() { sodiumBuffers.Put(w.buf) }, rest: header}, nil
}

// next makes a batch of chunks.
func (w *sodiumWriter) next() ([]byte, error) {
	for i := range sodiumBatch {
		b := w.buf[i*sodiumSealed:]
		n, err := fill(w.src, b[64:64+sodiumChunk])
		if err != nil && err != io.EOF {
			return nil, err
		}
		tag := byte(tagMessage)
		if err == io.EOF {
			tag = tagFinal
		}
		before := [63]byte(b) // the end of the chunk before
		_, sealErr := w.s.seal(b[:64+n], tag)
		copy(b, before[:])
		if sealErr != nil {
			return nil, sealErr
		}
		if err == io.EOF {
			return w.buf[63 : 63+i*sodiumSealed+n+sodiumOverhead], io.EOF
		}
	}
	return w.buf[63:], nil
}

// A sodiumReader makes text of the chunks that src yields.
type sodiumReader struct {
	src io.Reader
	s   *secretstream
	n   int64 // chunks read
	buf *[63 + sodiumBatch*sodiumSealed]byte
	key string // the key's setting
}

func decryptSodium(key *[sodiumKeySize]byte, setting string, src io.Reader) (io.ReadCloser, error) {
	header := make([]byte, sodiumHeader)
	if _, err := fill(src, header); err == io.EOF {
		return nil, fmt.Errorf("in the header: %w", io.ErrUnexpectedEOF)
	} else if err != nil {
		return nil, err
	}
	s, err := newSecretstream(key, header)
	if err != nil {
		return nil, err
	}
	r := &sodiumReader{src: src, s: s, key: setting, buf: sodiumBuffers.Get().(*[63 + sodiumBatch*sodiumSealed]byte)}
	return &chunks{next: r.next, free: func() { sodiumBuffers.Put(r.buf) }}, nil
}

// next opens one chunk.
func (r *sodiumReader) next() ([]byte, error) {
	n, err := fill(r.src, r.buf[63:63+sodiumSealed])
	if err != nil && err != io.EOF {
		return nil, err
	}
	if n < sodiumOverhead {
		return nil, fmt.Errorf("after chunk %d: %w", r.n, io.ErrUnexpectedEOF)
	}
	text, tag, err := r.s.open(r.buf[:63+n])
	switch {
	case err == errSodiumForged && r.n == 0:
		return nil, fmt.Errorf("%w: encrypted with another key than that of %s, or damaged", err, r.key)
	case err == errSodiumForged:
		return nil, fmt.Errorf("chunk %d: %w: damaged, or the end is missing", r.n+1, err)
	case err != nil:
		return nil, err
	}
	r.n++
	switch {
	case tag == tagFinal:
		return text, io.EOF
	case tag != tagMessage || n < sodiumSealed:
		return nil, fmt.Errorf("chunk %d: tag %d and %d bytes: not of WAL-G's way", r.n, tag, len(text))
	}
	return text, nil
}

// opensSodium reports whether the beginning of an object, as far as its first chunk, is authentic under key.
func opensSodium(key *[sodiumKeySize]byte, begin []byte) bool {
	if len(begin) < sodiumHeader+sodiumOverhead {
		return false
	}
	s, err := newSecretstream(key, begin)
	if err != nil {
		return false
	}
	begin = begin[sodiumHeader:]
	b := make([]byte, 63, 63+sodiumSealed)
	_, _, err = s.open(append(b, begin[:min(len(begin), sodiumSealed)]...))
	return err == nil
}
