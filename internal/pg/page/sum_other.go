//go:build !amd64

package page

func sum(p *[Size]byte) uint32 { return sumScalar(p) }
