package walrec

import "holdfast/internal/crc32c"

// gather collects bytes that come in pieces: the first of them, up to limit, and the CRC-32C of the others.
type gather struct {
	limit  int
	kept   []byte
	rest   uint32 // CRC-32C of the bytes after kept
	length int64  // of all
}

func (g *gather) reset() { g.kept, g.rest, g.length = g.kept[:0], 0, 0 }

func (g *gather) add(b []byte) {
	g.length += int64(len(b))
	if room := min(g.limit-len(g.kept), len(b)); room > 0 {
		g.kept, b = append(g.kept, b[:room]...), b[room:]
	}
	g.rest = crc32c.Update(g.rest, b)
}

// crc returns the CRC-32C of all bytes but the first skipped, which must be among those kept.
func (g *gather) crc(skipped int) uint32 {
	kept := crc32c.Checksum(g.kept[skipped:])
	return crc32c.Combine(kept, g.rest, g.length-int64(len(g.kept)))
}

// fragment returns what was gathered, of which MaxFragment bytes are kept. It shares memory with g.
func (g *gather) fragment() Fragment {
	n := min(len(g.kept), MaxFragment)
	beyond := crc32c.Checksum(g.kept[n:])
	return Fragment{
		Bytes:  g.kept[:n:n],
		Length: uint32(g.length),
		Rest:   crc32c.Combine(beyond, g.rest, g.length-int64(len(g.kept))),
	}
}

// addFragment adds what f was made from.
func (g *gather) addFragment(f Fragment) {
	if g.length == int64(len(g.kept)) {
		g.add(f.Bytes)
	} else {
		g.rest = crc32c.Combine(g.rest, crc32c.Checksum(f.Bytes), int64(len(f.Bytes)))
		g.length += int64(len(f.Bytes))
	}
	beyond := int64(f.Length) - int64(len(f.Bytes))
	g.rest = crc32c.Combine(g.rest, f.Rest, beyond)
	g.length += beyond
}
