package crypt

import (
	"bufio"
	"bytes"
	"crypto/aes"
	"crypto/sha1"
	"crypto/subtle"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

const (
	pgpHeader  = 1 << 20           // bytes that all encrypted session keys of a message may have
	pgpMost    = 1000              // and how many there may be
	pgpMDCSize = 2 + sha1.Size     // the packet at the end of encrypted data
	pgpRandom  = aes.BlockSize + 2 // and the bytes at its beginning
)

var errPGPForged = errors.New("not authentic: damaged, or the end is missing")

// A sessionKey is the key of one message.
type sessionKey struct {
	cipher packet.CipherFunction
	key    []byte
}

// decrypt reads a message of any form that gpg writes: encrypted session keys, then encrypted data with integrity
// protection, in which there is literal data, compressed and signed or not. Signatures are not looked at.
func (k *pgpKeys) decrypt(src *watch, in *bufio.Reader) (io.ReadCloser, error) {
	src.limit(pgpHeader)
	begin := &recorder{in: in}
	packets := packet.NewReader(begin)
	var asked []*packet.EncryptedKey
	var passphrase bool
	for {
		p, err := packets.Next()
		switch p := p.(type) {
		case *packet.EncryptedKey:
			if asked = append(asked, p); len(asked) > pgpMost {
				return nil, errHeader
			}
			begin.keys = len(begin.b)
			continue
		case *packet.SymmetricKeyEncrypted:
			passphrase = true
			continue
		case packet.EncryptedDataPacket:
			if old, ok := p.(*packet.SymmetricallyEncrypted); ok && !old.IntegrityProtected {
				return nil, errors.New("the message has no modification detection code, so that damage could not be told: refused")
			}
			begin.done = true
			src.limit(-1)
			session, err := k.session(asked, passphrase, begin.b[:begin.keys])
			if err != nil {
				return nil, err
			}
			return openPGPData(p, session)
		}
		switch {
		case err == io.EOF, errors.Is(err, io.ErrUnexpectedEOF):
			return nil, fmt.Errorf("in the header: %w", io.ErrUnexpectedEOF)
		case errors.Is(err, errHeader):
			return nil, errHeader
		case err != nil:
			return nil, fmt.Errorf("the header is damaged: %w", err)
		}
		return nil, errors.New("the message is not encrypted")
	}
}

// A recorder keeps what is read of a header.
type recorder struct {
	in   io.Reader
	b    []byte
	keys int // bytes of b until behind the last encrypted session key
	done bool
}

func (r *recorder) Read(p []byte) (int, error) {
	n, err := r.in.Read(p)
	if !r.done {
		r.b = append(r.b, p[:n]...)
	}
	return n, err
}

// session finds the key of a message that asks for the given keys, and begins so: with the secret keys at hand, then with gpg.
func (k *pgpKeys) session(asked []*packet.EncryptedKey, passphrase bool, begin []byte) (sessionKey, error) {
	s, locked := k.try(k.secret, asked)
	if s.key == nil && k.gpg != nil {
		s, _ = k.try(k.exported(), asked)
	}
	if s.key != nil {
		return s, nil
	}
	var why string
	switch {
	case k.gpg != nil:
		session, err := k.gpg.session(k.ctx, begin)
		if err == nil {
			return session, nil
		}
		why = err.Error()
	case locked != nil:
		return sessionKey{}, locked
	case len(k.secret) == 0:
		why = "no secret key is set in " + k.settings
	default:
		why = "of the secret keys none fits that are set in " + k.settings
	}
	var who []string
	for _, p := range asked {
		if s := fmt.Sprintf("%016X", p.KeyId); !slices.Contains(who, s) && len(who) < 8 {
			who = append(who, s)
		}
	}
	switch {
	case len(who) > 0:
		for i := range who {
			if who[i] == "0000000000000000" {
				who[i] = "(hidden)"
			}
		}
		return sessionKey{}, fmt.Errorf("it is for the keys %s; %s", strings.Join(who, ", "), why)
	case passphrase:
		return sessionKey{}, errors.New("it is encrypted with a passphrase, not for a key")
	}
	return sessionKey{}, errors.New("it is for no key")
}

// try decrypts one of the asked session keys with one of the secret ones. It returns none if none fits, and an error if one
// could not be unlocked.
func (k *pgpKeys) try(secret []*secretKey, asked []*packet.EncryptedKey) (s sessionKey, locked error) {
	for _, p := range asked {
		for _, s := range secret {
			if p.KeyId != 0 && p.KeyId != s.key.KeyId {
				continue
			}
			if err := s.unlock(k.passphrase); err != nil {
				locked = fmt.Errorf("secret key %s: %w: see %s", s.key.KeyIdString(), err, k.name("WALG_PGP_KEY_PASSPHRASE"))
				continue
			}
			if err := p.Decrypt(s.key, nil); err == nil {
				return sessionKey{p.CipherFunc, p.Key}, nil
			}
		}
	}
	return sessionKey{}, locked
}

// pgpContent is the content of encrypted data. verify is called once all has been read, and says whether it is authentic.
type pgpContent interface {
	io.ReadCloser
	verify() error
}

// openPGPData decrypts data and returns the text in it.
func openPGPData(data packet.EncryptedDataPacket, session sessionKey) (io.ReadCloser, error) {
	content, err := openContent(data, session)
	if err != nil {
		return nil, pgpDamage(err)
	}
	m := &pgpMessage{content: content, packets: packet.NewReader(content)}
	if err := m.begin(); err != nil {
		content.Close()
		return nil, pgpDamage(err)
	}
	return m, nil
}

func openContent(data packet.EncryptedDataPacket, session sessionKey) (pgpContent, error) {
	if d, ok := data.(*packet.SymmetricallyEncrypted); ok && d.Version == 1 {
		switch session.cipher {
		case packet.CipherAES128, packet.CipherAES192, packet.CipherAES256:
			return openMDC(d.Contents, session.key)
		}
	}
	r, err := data.Decrypt(session.cipher, session.key) // old ciphers, and AEAD
	if err != nil {
		return nil, err
	}
	return libraryContent{r}, nil
}

// libraryContent is content that the library decrypts. The library verifies in Close, for which it reads on.
type libraryContent struct{ r io.ReadCloser }

func (c libraryContent) Read(p []byte) (int, error) { return c.r.Read(p) }
func (c libraryContent) verify() error              { return c.r.Close() }
func (c libraryContent) Close() error               { return nil }

// pgpDamage words an error of the library or of ours.
func pgpDamage(err error) error {
	switch {
	case err == errPGPForged, err == errSource:
		return err
	case err == io.EOF, errors.Is(err, io.ErrUnexpectedEOF):
		return io.ErrUnexpectedEOF
	}
	return fmt.Errorf("damaged, or the end is missing: %w", err)
}

// A pgpMessage is the text in decrypted data, which is good once all of it has been read and the data is authentic.
type pgpMessage struct {
	content pgpContent
	packets *packet.Reader
	body    io.Reader
}

// begin finds the literal data.
func (m *pgpMessage) begin() error {
	for {
		p, err := m.packets.Next()
		if err != nil {
			return err
		}
		switch p := p.(type) {
		case *packet.Compressed:
			if err := m.packets.Push(p.Body); err != nil {
				return err
			}
		case *packet.LiteralData:
			m.body = p.Body
			return nil
		case *packet.OnePassSignature, *packet.Signature:
		default:
			return fmt.Errorf("a %T where the text should be", p)
		}
	}
}

func (m *pgpMessage) Read(p []byte) (int, error) {
	n, err := m.body.Read(p)
	if err == io.EOF {
		if err = m.end(); err == nil {
			return n, io.EOF
		}
	}
	if err != nil {
		err = pgpDamage(err)
	}
	return n, err
}

// end reads what may be behind the text, and verifies.
func (m *pgpMessage) end() error {
	for {
		switch p, err := m.packets.Next(); {
		case err == io.EOF:
			return m.content.verify()
		case err != nil:
			return err
		default:
			if _, ok := p.(*packet.Signature); !ok {
				return fmt.Errorf("a %T behind the text", p)
			}
		}
	}
}

func (m *pgpMessage) Close() error { return m.content.Close() }

// An mdcReader decrypts data of version 1 whose cipher is AES. It holds back the modification detection code and checks it.
type mdcReader struct {
	src  io.Reader
	cfb  *cfb
	sum  hash.Hash
	buf  *[mdcBuffer]byte
	rest []byte // of buf: decrypted
	used int    // bytes of buf; the last pgpMDCSize of them may be the code
	end  bool
	err  error
}

const mdcBuffer = 64 << 10

var mdcBuffers = sync.Pool{New: func() any { return new([mdcBuffer]byte) }}

func openMDC(src io.Reader, key []byte) (*mdcReader, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	r := &mdcReader{src: src, cfb: newCFB(block), sum: sha1.New(), buf: mdcBuffers.Get().(*[mdcBuffer]byte)}
	if err := r.more(); err != nil && err != io.EOF {
		r.Close()
		return nil, err
	}
	if len(r.rest) < pgpRandom {
		r.Close()
		return nil, io.ErrUnexpectedEOF
	}
	random := r.rest[:pgpRandom]
	if !bytes.Equal(random[14:16], random[16:]) {
		r.Close()
		return nil, errors.New("the beginning does not decrypt: damaged, or encrypted with another session key")
	}
	r.rest = r.rest[pgpRandom:]
	return r, nil
}

// more decrypts what comes next into rest, which has been read.
func (r *mdcReader) more() error {
	if r.end {
		return io.EOF
	}
	r.used = copy(r.buf[:], r.buf[max(r.used-pgpMDCSize, 0):r.used])
	n, err := fill(r.src, r.buf[r.used:])
	if err != nil && err != io.EOF {
		return err
	}
	r.end = err == io.EOF
	r.cfb.decrypt(r.buf[r.used:r.used+n], r.buf[r.used:r.used+n])
	r.used += n
	if r.used < pgpMDCSize {
		return io.ErrUnexpectedEOF
	}
	r.rest = r.buf[:r.used-pgpMDCSize]
	r.sum.Write(r.rest)
	return nil
}

func (r *mdcReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		r.err = r.more()
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// verify compares the code with what has been read, which must be all there is.
func (r *mdcReader) verify() error {
	if len(r.rest) > 0 || !r.end {
		return errPGPForged
	}
	mdc := r.buf[r.used-pgpMDCSize : r.used]
	r.sum.Write(mdc[:2])
	if mdc[0] != pgpMDC || mdc[1] != sha1.Size || subtle.ConstantTimeCompare(r.sum.Sum(nil), mdc[2:]) != 1 {
		return errPGPForged
	}
	return nil
}

func (r *mdcReader) Close() error {
	mdcBuffers.Put(r.buf)
	return nil
}
