package sftp

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"strings"
	"time"
)

const (
	tempMark = ".tmp."
	tempDate = "20060102T150405Z" // always UTC
	tempTail = len(tempMark) + len(tempDate) + len("-") + 16
)

// tempName returns a new name for a file that holds the object base while it is being written.
func tempName(base string, now time.Time) string {
	var random [8]byte
	rand.Read(random[:]) // never fails
	return fmt.Sprintf("%s%s%s-%016x", base, tempMark, now.UTC().Format(tempDate), binary.BigEndian.Uint64(random[:]))
}

// tempTime returns when the temporary file with this name was begun, and whether it is the name of one at all.
func tempTime(base string) (time.Time, bool) {
	if len(base) <= tempTail {
		return time.Time{}, false
	}
	tail := base[len(base)-tempTail:]
	date, random, dash := strings.Cut(strings.TrimPrefix(tail, tempMark), "-")
	if !strings.HasPrefix(tail, tempMark) || !dash || len(random) != 16 || strings.Trim(random, "0123456789abcdef") != "" {
		return time.Time{}, false
	}
	begun, err := time.Parse(tempDate, date)
	return begun, err == nil && begun.Format(tempDate) == date
}
