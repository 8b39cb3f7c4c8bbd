// Package crc32c computes CRC-32C, the checksum of PostgreSQL's manifests and WAL, and that of a whole from those of its pieces.
package crc32c

import "hash/crc32"

var table = crc32.MakeTable(crc32.Castagnoli)

// Checksum returns the CRC-32C of b.
func Checksum(b []byte) uint32 { return crc32.Checksum(b, table) }

// Update returns the CRC-32C of something and b behind it, given that of the former; 0 is that of nothing.
func Update(sum uint32, b []byte) uint32 { return crc32.Update(sum, table, b) }

// Combine returns the CRC-32C of a followed by b, given those of a and of b and how many bytes b has. Where all b are of one
// length an Appender is faster.
func Combine(a, b uint32, length int64) uint32 { return multiply(zeros(length), a) ^ b }

// An Appender is Combine for pieces of one length.
type Appender struct {
	shifted [4][256]uint32 // what each byte of a becomes, the lowest first
}

// NewAppender returns one for pieces of length bytes.
func NewAppender(length int64) *Appender {
	by := zeros(length)
	p := &Appender{}
	for i := range p.shifted {
		t := &p.shifted[i]
		for bit := uint32(1); bit < 256; bit <<= 1 {
			t[bit] = multiply(by, bit<<(8*i))
			for rest := uint32(1); rest < bit; rest++ {
				t[bit|rest] = t[bit] ^ t[rest]
			}
		}
	}
	return p
}

// Append returns the CRC-32C of a followed by a piece whose CRC-32C is b.
func (p *Appender) Append(a, b uint32) uint32 {
	return p.shifted[0][a&0xFF] ^ p.shifted[1][a>>8&0xFF] ^ p.shifted[2][a>>16&0xFF] ^ p.shifted[3][a>>24] ^ b
}

// zeros returns what multiplies a remainder when n zero bytes are appended, a power of x. A polynomial's highest
// power is its lowest bit here, as in the checksum.
func zeros(n int64) uint32 {
	shift := uint32(1) << 31 // the polynomial 1
	for i := 0; n > 0; i, n = i+1, n>>1 {
		if n&1 != 0 {
			shift = multiply(shift, powers[i])
		}
	}
	return shift
}

// powers are what multiplies a remainder when 1, 2, 4 and so on zero bytes are appended.
var powers = func() (p [63]uint32) {
	p[0] = 1 << (31 - 8) // x^8
	for i := range p[1:] {
		p[i+1] = multiply(p[i], p[i])
	}
	return p
}()

// multiply multiplies two polynomials modulo that of CRC-32C.
func multiply(a, b uint32) (product uint32) {
	for ; a != 0; a <<= 1 {
		if a&(1<<31) != 0 {
			product ^= b
		}
		low := b & 1
		b >>= 1
		if low != 0 {
			b ^= crc32.Castagnoli
		}
	}
	return product
}
