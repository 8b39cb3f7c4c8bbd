//go:build !cgo

package compress

// native is the engine of this build: klauspost/compress.
var native = newEngine(newPureEncoder, newPureDecoder)
