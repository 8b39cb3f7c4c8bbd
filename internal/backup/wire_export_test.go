package backup

import (
	"io"

	"github.com/RoaringBitmap/roaring/v2"

	"holdfast/internal/increment"
	"holdfast/internal/pg/blockset"
	"holdfast/internal/pg/page"
	"holdfast/internal/pg/server"
	"holdfast/internal/tarpart"
)

// ReadServersIncrement is increment, of a server whose files have most pages.
func ReadServersIncrement(r io.Reader, size int64, most uint32) (*increment.Header, error) {
	return (&wire{run: run{facts: server.Facts{RelationSegment: most}}}).increment(r, size)
}

// Filled is filled.
func Filled(r io.Reader, listed, blocks []uint32) io.Reader {
	return &filled{r: r, listed: listed, blocks: roaring.BitmapOf(blocks...).Iterator()}
}

// PackServersIncrement is packIncrement of a file of the parent that had so many pages, which was truncated to limit pages since and of which
// only the blocks logged were written to then: whether the file is stored, and which of its blocks.
func PackServersIncrement(r io.Reader, size int64, pages, limit uint32, logged ...uint32) (store bool, blocks []uint32, err error) {
	const file = "base/5/16384"
	key := blockset.Key{Relation: blockset.Relation{Tablespace: 1663, Database: 5, Number: 16384}}
	set, files := &blockset.Set{}, newKnown()
	set.Truncate(key, limit)
	for _, block := range logged {
		set.Add(key, block)
	}
	files.add(file, knownFile{size: int64(pages) * page.Size})
	w := &wire{run: run{facts: server.Facts{RelationSegment: 131072}}}
	w.delta = &delta{run: &w.run, files: files, set: set}
	e := tarpart.Entry{Path: file, Stream: r}
	if store, err = w.packIncrement(&e, size); e.Increment != nil {
		blocks = e.Increment.Blocks
	}
	return store, blocks, err
}
