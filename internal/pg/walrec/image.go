package walrec

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"holdfast/internal/pg/page"
)

// image is a full page image as a record holds it.
type image struct {
	data          []byte
	hole, holeLen int // what was left out of the page: zeros
	method        imageMethod
}

type imageMethod uint8

const (
	imagePlain imageMethod = iota
	imagePGLZ
	imageLZ4
	imageZstd
)

// block returns the data and the image of the i-th of rec.Blocks; nil where the record has none, or is too long to have been kept whole.
func (rec *Record) block(i int) (data []byte, img *image) {
	le := binary.LittleEndian
	b := rec.body
	if i >= len(rec.Blocks) || uint32(len(b)) != rec.Length {
		return nil, nil
	}
	// decode has accepted the headers; here they are gone through again.
	var before, imageLen, dataLen int // bytes of what is announced before what block i has, and of that
	var announced int
	n := -1
	p := recordHeaderLen
	for len(b)-p > announced {
		switch b[p] {
		case 255:
			announced, p = announced+int(b[p+1]), p+2
			continue
		case 254:
			announced, p = announced+int(le.Uint32(b[p+1:])), p+5
			continue
		case 253:
			p += 3
			continue
		case 252:
			p += 5
			continue
		}
		n++
		flags := b[p+1]
		length, stored := int(le.Uint16(b[p+2:])), 0
		p += 4
		if flags&0x10 != 0 { // BKPBLOCK_HAS_IMAGE
			stored = int(le.Uint16(b[p:]))
			found := image{hole: int(le.Uint16(b[p+2:])), method: methodOf(b[p+4], rec.version)}
			hasHole := b[p+4]&0x01 != 0
			p += 5
			switch {
			case hasHole && found.method == imagePlain:
				found.holeLen = page.Size - stored
			case hasHole:
				found.holeLen = int(le.Uint16(b[p:]))
				p += 2
			}
			if n == i {
				img = &found
			}
		}
		if n == i {
			before, imageLen, dataLen = announced, stored, length
		}
		announced += stored + length
		if flags&0x80 == 0 { // not BKPBLOCK_SAME_REL
			p += 12
		}
		p += 4
	}
	from := p + before
	if img != nil {
		img.data = b[from : from+imageLen]
	}
	return b[from+imageLen : from+imageLen+dataLen], img
}

// methodOf returns how an image is compressed that has info (BKPIMAGE_…).
func methodOf(info uint8, version int) imageMethod {
	switch {
	case version < 15 && info&0x02 != 0, version >= 15 && info&0x04 != 0:
		return imagePGLZ
	case version >= 15 && info&0x08 != 0:
		return imageLZ4
	case version >= 15 && info&0x10 != 0:
		return imageZstd
	}
	return imagePlain
}

// restore returns the page (RestoreBlockImage).
func (i *image) restore() ([]byte, error) {
	if i.hole < 0 || i.holeLen < 0 || i.hole+i.holeLen > page.Size {
		return nil, fmt.Errorf("image of a page with a hole of %d bytes at %d", i.holeLen, i.hole)
	}
	want := page.Size - i.holeLen
	full := make([]byte, page.Size)
	var n int
	var err error
	switch i.method {
	case imagePlain:
		n = copy(full[:want], i.data)
		if len(i.data) != want {
			err = fmt.Errorf("%d bytes", len(i.data))
		}
	case imagePGLZ:
		n, err = pglz(full[:want], i.data)
	case imageLZ4:
		n, err = lz4.UncompressBlock(i.data, full[:want])
	case imageZstd:
		var d *zstd.Decoder
		if d, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<10)); err == nil {
			var b []byte
			b, err = d.DecodeAll(i.data, nil)
			d.Close()
			n = copy(full[:want], b)
			if len(b) > want {
				err = errors.New("it is too long")
			}
		}
	}
	if err == nil && n != want {
		err = fmt.Errorf("%d bytes of %d", n, want)
	}
	if err != nil {
		return nil, fmt.Errorf("image of a page: %w", err)
	}
	copy(full[i.hole+i.holeLen:], full[i.hole:want])
	clear(full[i.hole : i.hole+i.holeLen])
	return full, nil
}

// pglz decompresses what PostgreSQL's own method made of a page into dst, and returns how many bytes that are (src/common/pg_lzcompress.c): a byte of
// eight flags, then for each flag a byte as it is, or two or three that say how far back to copy from and how much.
func pglz(dst, src []byte) (n int, err error) {
	short := errors.New("it ends too soon")
	for len(src) > 0 && n < len(dst) {
		flags := src[0]
		src = src[1:]
		for range 8 {
			if len(src) == 0 || n == len(dst) {
				break
			}
			if flags&1 == 0 {
				dst[n], src = src[0], src[1:]
				n++
				flags >>= 1
				continue
			}
			flags >>= 1
			if len(src) < 2 {
				return n, short
			}
			length, back := int(src[0]&0x0F)+3, int(src[0]&0xF0)<<4|int(src[1])
			src = src[2:]
			if length == 18 {
				if len(src) == 0 {
					return n, short
				}
				length += int(src[0])
				src = src[1:]
			}
			if back == 0 || back > n {
				return n, fmt.Errorf("it goes %d bytes back of %d", back, n)
			}
			for length = min(length, len(dst)-n); length > 0; length-- { // what is copied may reach into itself
				dst[n] = dst[n-back]
				n++
			}
		}
	}
	if len(src) > 0 {
		return n, errors.New("it is too long")
	}
	return n, nil
}
