//go:build !linux

package cli

// unload is of Linux: elsewhere nobody counts what of a program's file is in memory.
func unload() {}
