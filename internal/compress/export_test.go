package compress

import "io"

var pure = newEngine(newPureEncoder, newPureDecoder)

// CompressPure and DecompressPure are Compress and Decompress of zstd with the engine of builds without cgo.
func CompressPure(src io.Reader, o Options) io.ReadCloser { return pure.compress(src, o) }
func DecompressPure(src io.Reader) io.ReadCloser          { return pure.decompress(src) }
