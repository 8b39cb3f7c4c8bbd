package tarpart_test

import (
	"io"
	"path/filepath"
	"testing"

	"holdfast/internal/pg/page"
	"holdfast/internal/tarpart"
)

// What packing costs beside reading: checksums of pages verified, and a sum for each page kept or one for the whole file.
func BenchmarkPack(b *testing.B) {
	const blocks = 8192
	file := write(b, filepath.Join(b.TempDir(), "16384"), pages(1, 0, blocks))
	for name, e := range map[string]tarpart.Entry{
		"plain": {}, "sums": {Paged: true}, "verified": {Paged: true, Verify: true},
	} {
		b.Run(name, func(b *testing.B) {
			e.Path, e.File = "base/5/16384", file
			buf := make([]byte, 256<<10)
			b.SetBytes(blocks * page.Size)
			for b.Loop() {
				p := tarpart.NewPacker(list(e), tarpart.Options{})
				for {
					_, err := p.Read(buf)
					if err == io.EOF {
						break
					}
					if err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
