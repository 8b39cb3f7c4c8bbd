package compress

import (
	"io"
	"sync/atomic"
)

var pure = newEngine(newPureEncoder, newPureDecoder)

// CompressPure and DecompressPure are Compress and Decompress of zstd with the engine of builds without cgo.
func CompressPure(src io.Reader, o Options) io.ReadCloser { return pure.compress(src, o) }
func DecompressPure(src io.Reader) io.ReadCloser          { return pure.decompress(src) }

// CompressInTurns returns a Compress of zstd that has at most n frames compressed at once, and the most that ever were. Each tells working and then waits for go on.
func CompressInTurns(n int, working chan<- struct{}, goOn <-chan struct{}) (compress func(io.Reader, Options) io.ReadCloser, most *atomic.Int32) {
	w := &crowd{working: working, goOn: goOn}
	e := newEngine(inTurns(n, func() encoder { return &crowded{newPureEncoder(), w} }), newPureDecoder)
	return func(src io.Reader, o Options) io.ReadCloser { return e.compress(src, o) }, &w.most
}

type crowd struct {
	now, most atomic.Int32
	working   chan<- struct{}
	goOn      <-chan struct{}
}

type crowded struct {
	encoder
	*crowd
}

func (e *crowded) encode(dst, src []byte, l Level) ([]byte, error) {
	now := e.now.Add(1)
	defer e.now.Add(-1)
	for most := e.most.Load(); now > most && !e.most.CompareAndSwap(most, now); most = e.most.Load() {
	}
	e.working <- struct{}{}
	<-e.goOn
	return e.encoder.encode(dst, src, l)
}
