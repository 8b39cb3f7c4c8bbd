// Package unfinished names the files that hold objects while they are being written.
package unfinished

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"holdfast/internal/store"
)

const (
	mark   = ".tmp."
	layout = "20060102T150405Z" // always UTC
	tail   = len(mark) + len(layout) + len("-") + 16
)

// Name returns a new name for a file that holds the object base while it is being written.
func Name(base string, now time.Time) string {
	var random [8]byte
	rand.Read(random[:]) // never fails
	return fmt.Sprintf("%s%s%s-%016x", base, mark, now.UTC().Format(layout), binary.BigEndian.Uint64(random[:]))
}

// Since returns when the temporary file with this name was begun, and whether it is the name of one at all.
func Since(base string) (time.Time, bool) {
	if len(base) <= tail {
		return time.Time{}, false
	}
	end := base[len(base)-tail:]
	date, random, dash := strings.Cut(strings.TrimPrefix(end, mark), "-")
	if !strings.HasPrefix(end, mark) || !dash || len(random) != 16 || strings.Trim(random, "0123456789abcdef") != "" {
		return time.Time{}, false
	}
	begun, err := time.Parse(layout, date)
	return begun, err == nil && begun.Format(layout) == date
}

// Check is store.Check where objects are files: none can have the name of one that is unfinished.
func Check(op, name string) error {
	if err := store.Check(op, name); err != nil {
		return err
	}
	for elem := range strings.SplitSeq(name, "/") {
		if _, temp := Since(elem); temp {
			return fmt.Errorf("%s %s: names ending in .tmp.<time>-<16 digits> are those of unfinished objects: %w", op, name, fs.ErrInvalid)
		}
	}
	return nil
}
