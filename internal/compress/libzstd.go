//go:build cgo

package compress

import (
	"runtime"

	"github.com/DataDog/zstd"
)

// native is the engine of this build: libzstd.
var native = newEngine(inTurns(runtime.GOMAXPROCS(0), newLibEncoder), newLibDecoder)

type libEncoder struct{ ctx zstd.Ctx }

func newLibEncoder() encoder { return libEncoder{zstd.NewCtx()} }

func (libEncoder) bound(n int) int { return zstd.CompressBound(n) }

func (e libEncoder) encode(dst, src []byte, l Level) ([]byte, error) {
	return e.ctx.CompressLevel(dst, src, [...]int{1, 3, 7, 11}[l])
}

type libDecoder struct{ ctx zstd.Ctx }

func newLibDecoder() decoder { return libDecoder{zstd.NewCtx()} }

func (d libDecoder) decode(dst, frame []byte) error {
	want := len(dst)
	if want == 0 {
		dst = make([]byte, 1) // the binding takes its address
	}
	n, err := d.ctx.DecompressInto(dst, frame)
	if err == nil && n != want {
		err = errCorrupt
	}
	return err
}
