package crypt

import (
	"crypto/cipher"
	"encoding/binary"
)

// A cfb is AES in the cipher feedback mode of OpenPGP's encrypted data: the initial vector is zero (RFC 9580, 5.13.1). The
// stream of go-crypto goes byte by byte, at a third of the speed.
type cfb struct {
	block cipher.Block
	mask  [16]byte // for the bytes to come, of which used have been, and are cipher text
	used  int
}

func newCFB(block cipher.Block) *cfb {
	c := &cfb{block: block}
	block.Encrypt(c.mask[:], c.mask[:])
	return c
}

// encrypt writes the cipher text of src to dst, which is as long and may be src.
func (c *cfb) encrypt(dst, src []byte) {
	for len(src) > 0 {
		if c.used == 16 {
			c.block.Encrypt(c.mask[:], c.mask[:])
			c.used = 0
		}
		if c.used == 0 && len(src) >= 16 {
			n := len(src) &^ 15
			c.encryptBlocks(dst[:n], src[:n])
			dst, src = dst[n:], src[n:]
			continue
		}
		c.mask[c.used] ^= src[0]
		dst[0] = c.mask[c.used]
		c.used++
		dst, src = dst[1:], src[1:]
	}
}

// encryptBlocks encrypts whole blocks; the mask is fresh before and used up after.
func (c *cfb) encryptBlocks(dst, src []byte) {
	mask := c.mask[:]
	for i := 0; ; {
		lo := binary.NativeEndian.Uint64(mask) ^ binary.NativeEndian.Uint64(src[i:])
		hi := binary.NativeEndian.Uint64(mask[8:]) ^ binary.NativeEndian.Uint64(src[i+8:])
		binary.NativeEndian.PutUint64(mask, lo)
		binary.NativeEndian.PutUint64(mask[8:], hi)
		binary.NativeEndian.PutUint64(dst[i:], lo)
		binary.NativeEndian.PutUint64(dst[i+8:], hi)
		if i += 16; i == len(src) {
			c.used = 16
			return
		}
		c.block.Encrypt(mask, mask)
	}
}

// decrypt writes the plain text of src to dst, which is as long and may be src.
func (c *cfb) decrypt(dst, src []byte) {
	for len(src) > 0 {
		if c.used == 16 {
			c.block.Encrypt(c.mask[:], c.mask[:])
			c.used = 0
		}
		if c.used == 0 && len(src) >= 16 {
			n := len(src) &^ 15
			c.decryptBlocks(dst[:n], src[:n])
			dst, src = dst[n:], src[n:]
			continue
		}
		b := src[0]
		dst[0] = c.mask[c.used] ^ b
		c.mask[c.used] = b
		c.used++
		dst, src = dst[1:], src[1:]
	}
}

// decryptBlocks decrypts whole blocks; the mask is fresh before and used up after.
func (c *cfb) decryptBlocks(dst, src []byte) {
	var last [16]byte
	for i := 0; ; {
		mask := c.mask[:]
		copy(last[:], src[i:i+16])
		binary.NativeEndian.PutUint64(dst[i:], binary.NativeEndian.Uint64(mask)^binary.NativeEndian.Uint64(last[:]))
		binary.NativeEndian.PutUint64(dst[i+8:], binary.NativeEndian.Uint64(mask[8:])^binary.NativeEndian.Uint64(last[8:]))
		if i += 16; i == len(src) {
			c.mask, c.used = last, 16
			return
		}
		c.block.Encrypt(mask, last[:])
	}
}
