package page

// SumScalar and Sum are what Checksum is made of without and with the instructions of this CPU.
func SumScalar(p *[Size]byte) uint32 { return sumScalar(p) }
func Sum(p *[Size]byte) uint32       { return sum(p) }
