//go:build !linux

package pgtest

func spread(string) error { return nil }
