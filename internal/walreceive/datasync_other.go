//go:build !linux

package walreceive

import "os"

// datasync brings a file's content and length to disk.
func datasync(f *os.File) error { return f.Sync() }
