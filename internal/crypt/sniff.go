package crypt

import (
	"bytes"
	"encoding/binary"
)

// What an object is, by its first bytes, begins with a Kind or is one of these.
const (
	yandexKMS   Kind = "Yandex KMS"       // recognised, to refuse it
	envelopePGP Kind = "envelope OpenPGP" // recognised, to refuse it
	plainText   Kind = "plain"            // not encrypted
)

// marks are what begins an object of a kind, beyond doubt.
var marks = []struct {
	kind  Kind
	bytes string
}{
	{Age, ageMagic},
	{yandexKMS, "yckms\x01"},
	{envelopePGP, "envelope-yc-kms\x01"},
}

// recognise returns the kind of the object that begins with begin, and whether that is sure. It is "" if it has none of the
// marks; then it may be of libsodium, which has no marks, as an object of any kind that is not sure may. begin is the whole
// object if whole.
func recognise(begin []byte, whole bool) (kind Kind, sure bool) {
	for _, m := range marks {
		if bytes.HasPrefix(begin, []byte(m.bytes)) {
			return m.kind, true
		}
		if whole && len(begin) > 0 && len(begin) < len(m.bytes) && bytes.HasPrefix([]byte(m.bytes), begin) {
			return m.kind, false
		}
	}
	switch {
	case len(begin) == 0:
		return "", false
	case beginsPGP(begin):
		return PGP, false
	case findDARE(begin, whole) >= 0:
		return KMS, false
	case plainName(begin) != "":
		return plainText, false
	}
	return "", false
}

// Encrypted returns with what an object is encrypted that begins with begin, some 64 bytes of it; "" where they do not show it, as they never do with
// libsodium and KMS. What has no codec, and is WAL or tar, is never taken for encrypted.
func Encrypted(begin []byte) Kind {
	switch kind, sure := recognise(begin, false); {
	case sure, kind == PGP:
		return kind
	}
	return ""
}

// beginsPGP reports whether begin is the beginning of an encrypted OpenPGP message: of a packet with an encrypted session
// key, in either of the two header formats (RFC 9580, 4.2), or of encrypted data without one.
func beginsPGP(begin []byte) bool {
	at := func(i int, ok func(byte) bool) bool { return i >= len(begin) || ok(begin[i]) } // what is not there fits
	is := func(set ...byte) func(byte) bool {
		return func(b byte) bool { return bytes.IndexByte(set, b) >= 0 }
	}
	var body int    // where the packet's content begins
	var length int  // of the content
	const some = -1 // a length that is not there yet
	switch b := begin[0]; b {
	case 0x84, 0x85, 0x86, 0x8c: // old format, tags 1 and 3, with 1, 2 or 4 bytes of length
		n := 1 << (b & 3)
		if body, length = 1+n, some; len(begin) >= body {
			length = 0
			for _, l := range begin[1:body] {
				length = length<<8 | int(l)
			}
		}
	case 0xc1, 0xc3: // new format, tags 1 and 3
		switch {
		case len(begin) < 2:
			return true
		case begin[1] < 192:
			body, length = 2, int(begin[1])
		case begin[1] < 224:
			if body, length = 3, some; len(begin) >= 3 {
				length = int(begin[1]-192)<<8 + int(begin[2]) + 192
			}
		case begin[1] == 255:
			if body, length = 6, some; len(begin) >= 6 {
				length = int(binary.BigEndian.Uint32(begin[2:]))
			}
		default:
			return false
		}
	case 0xd2: // encrypted data, integrity protected, of version 1 or 2; a length of any form
		if len(begin) < 2 {
			return true
		}
		n := 1
		if begin[1] >= 192 && begin[1] < 224 {
			n = 2
		} else if begin[1] == 255 {
			n = 5
		}
		return at(1+n, is(1, 2))
	default:
		return false
	}
	if length != some && (length < 12 || length > 8<<10) {
		return false
	}
	if begin[0] == 0x8c || begin[0] == 0xc3 {
		return at(body, is(4, 5, 6))
	}
	// Version 3 is followed by the key's id and an algorithm that encrypts: RSA, Elgamal, ECDH, X25519, X448, ML-KEM.
	return at(body, is(3, 6)) && (at(body, is(6)) || at(body+9, is(1, 2, 16, 18, 25, 26, 35, 36)))
}

const (
	kmsBlob    = 184  // bytes of the encrypted data key that AWS makes of 32
	kmsBlobMin = 48   // less than any
	kmsBlobMax = 6144 // more than KMS takes
	dareHead   = 16
	darePiece  = 64 << 10

	// kmsAhead is how much of an object has to be seen to tell where the data key ends: all of it, if one package follows.
	kmsAhead = kmsBlobMax + dareHead + darePiece + 16 + 1
)

// findDARE returns where the first package of a DARE 2.0 stream begins, after an encrypted data key; -1 if there is none.
// begin is kmsAhead bytes, or the whole object; of a longer object less will do if the data key is as long as AWS's.
func findDARE(begin []byte, whole bool) int {
	if beginsDARE(begin, kmsBlob, whole) {
		return kmsBlob
	}
	for at := kmsBlobMin; at <= min(kmsBlobMax, len(begin)-dareHead); at++ {
		if beginsDARE(begin, at, whole) {
			return at
		}
	}
	if at := kmsBlob; whole && len(begin) >= at+dareHead && begin[at] == 0x20 && begin[at+1] <= 1 && begin[at+4]&0x80 != 0 {
		return at // where it should be, with a length that it should not have
	}
	return -1
}

// beginsDARE reports whether at begin[at:] there is the header of a first package: version 2.0, a cipher, a length less one,
// and in the nonce's first bit whether it is the last one too. One that is not the last is full; one that is has the rest of
// the object.
func beginsDARE(begin []byte, at int, whole bool) bool {
	if len(begin) < at+dareHead || begin[at] != 0x20 || begin[at+1] > 1 {
		return false
	}
	length := int(binary.LittleEndian.Uint16(begin[at+2:])) + 1
	if begin[at+4]&0x80 == 0 {
		return length == darePiece
	}
	return whole && at+dareHead+length+16 == len(begin)
}

// plainName says what an object is that is not encrypted, if its first bytes tell; "" if not.
func plainName(begin []byte) string {
	for _, m := range []struct {
		at   int
		mark string
		name string
	}{
		{0, "\x28\xb5\x2f\xfd", "zstd"},
		{0, "\x04\x22\x4d\x18", "lz4"},
		{0, "\x1f\x8b\x08", "gzip"},
		{0, "\x89LZO\x00\x0d\x0a\x1a\x0a", "lzop"},
		{0, "\x5d\x00\x00\x80\x00\xff\xff\xff\xff\xff\xff\xff\xff\x00", "lzma"},
		{0, "\xfd7zXZ\x00", "xz"},
		{257, "ustar", "tar"},
	} {
		if len(begin) > m.at && bytes.HasPrefix(begin[m.at:], []byte(m.mark)) {
			return m.name
		}
	}
	if isWAL(begin) {
		return "WAL"
	}
	return ""
}

// isWAL reports whether begin is that of a WAL segment: the magic of PostgreSQL 9.2 to 20 or so (XLOG_PAGE_MAGIC in
// xlog_internal.h), a long header, and in it a size of segments and pages (XLogLongPageHeaderData), in either byte order.
func isWAL(begin []byte) bool {
	if len(begin) < 40 {
		return false
	}
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		magic, info := order.Uint16(begin), order.Uint16(begin[2:])
		segment, page := order.Uint32(begin[32:]), order.Uint32(begin[36:])
		if magic >= 0xD071 && magic < 0xD200 && info&2 != 0 && info < 16 &&
			segment >= 1<<20 && segment&(segment-1) == 0 && page >= 1<<10 && page&(page-1) == 0 {
			return true
		}
	}
	return false
}
