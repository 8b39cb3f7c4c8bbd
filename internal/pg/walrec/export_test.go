package walrec

import "holdfast/internal/pg/blockset"

// Effects hands what a record changes to add and truncate.
func Effects(rec *Record, version int, to interface {
	Add(k blockset.Key, block uint32)
	Truncate(k blockset.Key, limit uint32)
},
) error {
	c := collector{blocks: to, version: version}
	return c.add(rec)
}

// PGLZ decompresses src into dst.
func PGLZ(dst, src []byte) (int, error) { return pglz(dst, src) }
