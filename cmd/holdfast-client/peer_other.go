//go:build !linux

package main

// trusted goes by the directory of the socket, to which others must not be able to write.
func trusted(int) error { return nil }
