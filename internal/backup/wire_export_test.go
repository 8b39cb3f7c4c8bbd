package backup

import (
	"io"

	"github.com/RoaringBitmap/roaring/v2"

	"holdfast/internal/increment"
	"holdfast/internal/pg/server"
)

// ReadServersIncrement is increment, of a server whose files have most pages.
func ReadServersIncrement(r io.Reader, size int64, most uint32) (*increment.Header, error) {
	return (&wire{run: run{facts: server.Facts{RelationSegment: most}}}).increment(r, size)
}

// Filled is filled.
func Filled(r io.Reader, listed, blocks []uint32) io.Reader {
	return &filled{r: r, listed: listed, blocks: roaring.BitmapOf(blocks...).Iterator()}
}
