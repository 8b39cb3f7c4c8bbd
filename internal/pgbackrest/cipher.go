package pgbackrest

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha1"
	"errors"
	"fmt"
	"io"
)

// saltMagic begins what is encrypted as `openssl enc` does: magic, salt of 8 bytes, blocks of AES-256 in CBC mode with padding (PKCS #7).
const saltMagic = "Salted__"

// errCipher says that something was encrypted with another passphrase, or is damaged.
var errCipher = errors.New("it cannot be decrypted: another passphrase, or damage")

// A decrypter yields what aes-256-cbc holds. Key and first vector follow from passphrase and salt as EVP_BytesToKey makes them with SHA-1 and
// one round. There is no checksum: what comes out is checked elsewhere.
type decrypter struct {
	src        io.Reader
	passphrase string
	raw        bool // the salt may come without the magic
	mode       cipher.BlockMode
	buf        []byte // encrypted, then decrypted in place
	ready      []byte // of buf, to be read
	held       int    // bytes behind ready that are decrypted when it is known whether they are the last
	err        error  // stays
}

// newDecrypter returns one for src. Where raw is set the magic may be missing, as in bundles and block incrementals.
func newDecrypter(src io.Reader, passphrase string, raw bool) *decrypter {
	return &decrypter{src: src, passphrase: passphrase, raw: raw}
}

// begin reads the salt.
func (d *decrypter) begin() error {
	head := make([]byte, len(saltMagic)+8)
	if _, err := io.ReadFull(d.src, head[:len(saltMagic)]); err != nil {
		return cut(err)
	}
	salt := head[:len(saltMagic)]
	if string(salt) == saltMagic {
		salt = head[len(saltMagic):]
		if _, err := io.ReadFull(d.src, salt); err != nil {
			return cut(err)
		}
	} else if !d.raw {
		return fmt.Errorf("it does not begin with %q: it is not encrypted, or damaged", saltMagic)
	}
	var made, last []byte
	for len(made) < 32+aes.BlockSize {
		h := sha1.New()
		h.Write(last)
		io.WriteString(h, d.passphrase)
		h.Write(salt)
		last = h.Sum(nil)
		made = append(made, last...)
	}
	block, err := aes.NewCipher(made[:32])
	if err != nil {
		return err
	}
	d.mode = cipher.NewCBCDecrypter(block, made[32:][:aes.BlockSize])
	d.buf = make([]byte, 0, 32<<10)
	return nil
}

// cut makes the end of a stream that is too short an error.
func cut(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// next decrypts more into ready, all of which has been read.
func (d *decrypter) next() error {
	if d.mode == nil {
		if err := d.begin(); err != nil {
			return err
		}
	}
	// The last block waits until something comes behind it: it holds the padding.
	held := copy(d.buf[:cap(d.buf)], d.buf[len(d.buf)-d.held:])
	n, err := io.ReadFull(d.src, d.buf[held:cap(d.buf)])
	d.buf = d.buf[:held+n]
	last := err == io.EOF || err == io.ErrUnexpectedEOF
	if err != nil && !last {
		return err
	}
	if last && (len(d.buf) == 0 || len(d.buf)%aes.BlockSize != 0) {
		return io.ErrUnexpectedEOF
	}
	d.held = aes.BlockSize
	if last {
		d.held = 0
	}
	d.ready = d.buf[:len(d.buf)-d.held]
	d.mode.CryptBlocks(d.ready, d.ready)
	if !last {
		return nil
	}
	pad := int(d.ready[len(d.ready)-1])
	if pad == 0 || pad > aes.BlockSize || !bytes.Equal(d.ready[len(d.ready)-pad:], bytes.Repeat([]byte{byte(pad)}, pad)) {
		return errCipher
	}
	d.ready = d.ready[:len(d.ready)-pad]
	return io.EOF
}

// Read implements io.Reader.
func (d *decrypter) Read(p []byte) (int, error) {
	for len(d.ready) == 0 {
		if d.err != nil {
			return 0, d.err
		}
		if d.err = d.next(); d.err != nil && d.err != io.EOF {
			d.ready = nil
		}
	}
	n := copy(p, d.ready)
	d.ready = d.ready[n:]
	return n, nil
}
