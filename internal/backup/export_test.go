package backup

import (
	"time"

	"holdfast/internal/pg/blockset"
)

// Changed is changed, of a delta that goes by set.
func Changed(set *blockset.Set, rel blockset.Relation, first uint32, size, was int64) (blocks []uint32, all bool) {
	return (&delta{set: set}).changed(rel, first, size, was)
}

// UnknownSize is unknownSize.
const UnknownSize = unknownSize

// FileTimes is what is known of a file.
type FileTimes struct {
	Size              int64
	Inode             uint64
	Modified, Changed time.Time
}

// Untouched is untouched, for a parent that began at begun.
func Untouched(begun time.Time, was, is FileTimes) bool {
	d := &delta{sealed: nanoseconds(begun.Add(-sealMargin))}
	return d.untouched(&knownFile{size: was.Size, inode: was.Inode, modified: nanoseconds(was.Modified), changed: nanoseconds(was.Changed)},
		is.Size, is.Modified, is.Inode, is.Changed)
}

// Known is known.
type Known = known

// ReadKnown is readKnown.
var ReadKnown = readKnown

// Size returns what is known of a file's size.
func (k *known) Size(path string) (size int64, ok bool) {
	f := k.find(path)
	if f == nil {
		return 0, false
	}
	return f.size, true
}
