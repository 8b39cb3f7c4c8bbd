package chain

import (
	"fmt"

	"holdfast/internal/tarpart"
)

// maxPart bounds a part's tar stream in bytes, far beyond what a store takes as one object.
const maxPart = 16 << 40

// Contents adds up what the manifest says is in a part, and refuses contents that overlap or that no part can hold.
func Contents(part string, members []tarpart.Member) (total int64, err error) {
	var end int64
	for i := range members {
		m := &members[i]
		switch {
		case m.Type != tarpart.File || m.Size == 0:
			continue
		case m.Offset < end:
			return 0, fmt.Errorf("the manifest has %s at byte %d of %s, inside of what comes before", m.Path, m.Offset, part)
		case m.Offset > maxPart || m.Size > maxPart-m.Offset:
			return 0, fmt.Errorf("the manifest has %s of %d bytes at byte %d of %s, which no part reaches", m.Path, m.Size, m.Offset, part)
		}
		end = m.Offset + m.Size
		total += m.Size
	}
	return total, nil
}
