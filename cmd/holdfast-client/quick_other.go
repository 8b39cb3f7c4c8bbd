//go:build !linux || !amd64

package main

// taken returns the connection on which the daemon was asked before main began: here none.
func taken() (conn, bool) { return 0, false }
