package restore

import "hash/crc32"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// combine returns the CRC-32C of a followed by b, given those of a and of b and how many bytes b has. Appending zeros to
// a is multiplying its remainder by a power of x; a polynomial's highest power is its lowest bit here, as in the checksum.
func combine(a, b uint32, length int64) uint32 {
	shift := uint32(1) << 31       // the polynomial 1
	power := uint32(1) << (31 - 8) // x^8: one byte
	for ; length > 0; length >>= 1 {
		if length&1 != 0 {
			shift = multiply(shift, power)
		}
		power = multiply(power, power)
	}
	return multiply(shift, a) ^ b
}

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
