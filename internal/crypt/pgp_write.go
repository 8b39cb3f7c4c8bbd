package crypt

import (
	"bytes"
	"crypto/aes"
	"crypto/rand"
	"crypto/sha1"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// A message of ours is one encrypted session key for each recipient, and then (RFC 4880, 5.13)
//
//	d2 …                     encrypted data with integrity protection: content in partial lengths of 64 KiB
//	    01                   version 1
//	    the rest is encrypted with AES in CFB, from 16 random bytes, whose last two are repeated, on:
//	    cb …                 literal data: content in partial lengths of 64 KiB
//	        'b' 00 00000000  binary, without name and time; then the text
//	    d3 14 …              modification detection code: SHA-1 of all that is encrypted before it, the random bytes included
//
// A message that fits into one partial length has its true length instead.
const (
	pgpPiece   = 64 << 10
	pgpPartial = 0xe0 | 16 // as a length: 2¹⁶ bytes, and more to come
	pgpData    = 0xc0 | 18
	pgpLiteral = 0xc0 | 11
	pgpMDC     = 0xc0 | 19
)

// A pgpWriter makes a message of what src yields.
type pgpWriter struct {
	src   io.Reader
	cfb   *cfb
	sum   hash.Hash
	buf   *pgpBuffer
	step  pgpStep // what goes into buf.in next
	rest  []byte  // of buf.in, to be encrypted
	used  int     // bytes of content in buf.out
	first bool    // the packet has not begun
}

type pgpStep int

const (
	pgpBegin pgpStep = iota // the random bytes and the first piece of the text
	pgpText                 // the next piece
	pgpEnd                  // the modification detection code
	pgpOver                 // nothing
)

// A pgpBuffer is a piece before and after encryption, each behind room for what goes before it.
type pgpBuffer struct {
	in  [pgpRoom + pgpPiece]byte
	out [pgpRoom + pgpPiece]byte
}

const pgpRoom = 32 // the random bytes, a tag and a length are 24

var pgpBuffers = sync.Pool{New: func() any { return new(pgpBuffer) }}

// encryptPGP encrypts src for all of to.
func encryptPGP(to openpgp.EntityList, src io.Reader) (io.ReadCloser, error) {
	head, session, err := pgpHead(to, time.Now())
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(session)
	if err != nil {
		return nil, err
	}
	w := &pgpWriter{src: src, cfb: newCFB(block), sum: sha1.New(), buf: pgpBuffers.Get().(*pgpBuffer), first: true}
	w.buf.out[pgpRoom], w.used = 1, 1 // the version, which is not encrypted
	return &chunks{next: w.next, free: func() { pgpBuffers.Put(w.buf) }, rest: head}, nil
}

// pgpHead makes a session key and encrypts it for all of to.
func pgpHead(to openpgp.EntityList, now time.Time) (head, session []byte, err error) {
	keys, cipher, err := pgpRecipients(to, now)
	if err != nil {
		return nil, nil, err
	}
	session = make([]byte, cipher.KeySize())
	rand.Read(session)
	var b bytes.Buffer
	for _, k := range keys {
		if err := packet.SerializeEncryptedKeyAEAD(&b, k, cipher, false, session, nil); err != nil {
			return nil, nil, fmt.Errorf("key %s: %w", k.KeyIdString(), err)
		}
	}
	return b.Bytes(), session, nil
}

// pgpRecipients returns the keys that encrypt for to at a moment, and the cipher: AES-256 unless one of them does not list it.
func pgpRecipients(to openpgp.EntityList, now time.Time) ([]*packet.PublicKey, packet.CipherFunction, error) {
	cipher := packet.CipherAES256
	var keys []*packet.PublicKey
	for _, e := range to {
		k, ok := e.EncryptionKey(now)
		if !ok {
			return nil, 0, fmt.Errorf("key %s: %s", e.PrimaryKey.KeyIdString(), whyNotPGP(e, now))
		}
		keys = append(keys, k.PublicKey)
		if sig, _ := e.PrimarySelfSignature(); sig == nil || !slices.Contains(sig.PreferredSymmetric, uint8(packet.CipherAES256)) {
			cipher = packet.CipherAES128 // which all must know
		}
	}
	return keys, cipher, nil
}

// whyNotPGP says why nothing can be encrypted for e.
func whyNotPGP(e *openpgp.Entity, now time.Time) string {
	switch sig, _ := e.PrimarySelfSignature(); {
	case sig == nil:
		return "nothing signed by itself says what it is for"
	case e.Revoked(now):
		return "revoked"
	case e.PrimaryKey.KeyExpired(sig, now) || sig.SigExpired(now):
		return "expired: extend it, for nothing is stored without a key that is valid"
	}
	for _, s := range e.Subkeys {
		if s.Sig != nil && s.Sig.FlagEncryptCommunications && s.PublicKey.KeyExpired(s.Sig, now) {
			return "its subkey for encryption has expired: extend it, for nothing is stored without a key that is valid"
		}
	}
	return "no part of it is for encryption"
}

// next makes the next piece of the packet.
func (w *pgpWriter) next() ([]byte, error) {
	for {
		if len(w.rest) == 0 {
			if w.step == pgpOver {
				return w.emit(true), io.EOF
			}
			if err := w.refill(); err != nil {
				return nil, err
			}
		}
		n := min(len(w.rest), pgpPiece-w.used)
		w.cfb.encrypt(w.buf.out[pgpRoom+w.used:][:n], w.rest[:n])
		w.rest = w.rest[n:]
		if w.used += n; w.used == pgpPiece && (len(w.rest) > 0 || w.step != pgpOver) {
			return w.emit(false), nil
		}
	}
}

// emit returns what buf.out holds as a part of the packet, with its length before it.
func (w *pgpWriter) emit(last bool) []byte {
	at := pgpLength(w.buf.out[:pgpRoom], w.used, last)
	if w.first {
		w.first = false
		at--
		w.buf.out[at] = pgpData
	}
	b := w.buf.out[at : pgpRoom+w.used]
	w.used = 0
	return b
}

// refill brings into buf.in what is to be encrypted next, and counts it in.
func (w *pgpWriter) refill() error {
	if w.step == pgpEnd {
		w.sum.Write([]byte{pgpMDC, sha1.Size})
		w.rest = w.sum.Sum(append(w.buf.in[:0], pgpMDC, sha1.Size))
		w.step = pgpOver
		return nil
	}
	in := w.buf.in[:]
	n := 0
	if w.step == pgpBegin {
		n = copy(in[pgpRoom:], "b\x00\x00\x00\x00\x00")
	}
	k, err := fill(w.src, in[pgpRoom+n:])
	if err != nil && err != io.EOF {
		return err
	}
	n += k
	at := pgpLength(in[:pgpRoom], n, err == io.EOF)
	if w.step == pgpBegin {
		at--
		in[at] = pgpLiteral
		at -= 18
		rand.Read(in[at : at+16])
		copy(in[at+16:], in[at+14:at+16])
	}
	w.rest = in[at : pgpRoom+n]
	w.sum.Write(w.rest)
	w.step = pgpText
	if err == io.EOF {
		w.step = pgpEnd
	}
	return nil
}

// pgpLength writes the length of n bytes at the end of room, whether or not more follow, and returns where it begins (RFC
// 9580, 4.2.1).
func pgpLength(room []byte, n int, last bool) int {
	end := len(room)
	switch {
	case !last:
		room[end-1] = pgpPartial
		return end - 1
	case n < 192:
		room[end-1] = byte(n)
		return end - 1
	case n < 8384:
		binary.BigEndian.PutUint16(room[end-2:], uint16(n-192+192<<8))
		return end - 2
	}
	room[end-5] = 255
	binary.BigEndian.PutUint32(room[end-4:], uint32(n))
	return end - 5
}
