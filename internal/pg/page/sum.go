package page

import "encoding/binary"

// A page's checksum folds 32 lanes: lane i takes every 32nd word of the page, in a variant of FNV-1a that mixes high bits
// into low ones and starts from offsets[i], and last two zeros.
const (
	lanes = 32
	prime = 16777619
)

// offsets are where the lanes start (checksumBaseOffsets in checksum_impl.h): the first bits of random numbers, fixed for ever.
var offsets = [lanes]uint32{
	0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
	0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
	0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
	0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
}

// sumScalar returns the checksum of p before the block number goes into it, taking the field of the checksum as 0. It
// does eight lanes at a time, which is what fits into registers.
func sumScalar(p *[Size]byte) (folded uint32) {
	for lane := 0; lane < lanes; lane += 8 {
		s0, s1, s2, s3 := offsets[lane], offsets[lane+1], offsets[lane+2], offsets[lane+3]
		s4, s5, s6, s7 := offsets[lane+4], offsets[lane+5], offsets[lane+6], offsets[lane+7]
		if lane == 0 {
			s2 ^= uint32(binary.LittleEndian.Uint16(p[8:])) // undoes the field of the checksum: x ^ f ^ f
		}
		for at := lane * 4; at < Size; at += lanes * 4 {
			row := p[at : at+32 : at+32]
			s0 = mix(s0 ^ binary.LittleEndian.Uint32(row[0:]))
			s1 = mix(s1 ^ binary.LittleEndian.Uint32(row[4:]))
			s2 = mix(s2 ^ binary.LittleEndian.Uint32(row[8:]))
			s3 = mix(s3 ^ binary.LittleEndian.Uint32(row[12:]))
			s4 = mix(s4 ^ binary.LittleEndian.Uint32(row[16:]))
			s5 = mix(s5 ^ binary.LittleEndian.Uint32(row[20:]))
			s6 = mix(s6 ^ binary.LittleEndian.Uint32(row[24:]))
			s7 = mix(s7 ^ binary.LittleEndian.Uint32(row[28:]))
		}
		folded ^= mix(mix(s0)) ^ mix(mix(s1)) ^ mix(mix(s2)) ^ mix(mix(s3)) ^ mix(mix(s4)) ^ mix(mix(s5)) ^ mix(mix(s6)) ^ mix(mix(s7))
	}
	return folded
}

func mix(x uint32) uint32 { return x*prime ^ x>>17 }
