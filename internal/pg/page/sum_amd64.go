package page

import "golang.org/x/sys/cpu"

// sumAVX2 does what sumScalar does, on CPUs that have AVX2.
//
//go:noescape
func sumAVX2(p *[Size]byte) uint32

func sum(p *[Size]byte) uint32 {
	if cpu.X86.HasAVX2 {
		return sumAVX2(p)
	}
	return sumScalar(p)
}
