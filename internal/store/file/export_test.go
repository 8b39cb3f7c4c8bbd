package file

import (
	"os"
	"time"
)

// The ways to publish a new object, so that those which this machine's file systems never need are tested too.
var Ways = map[string]func(d, f *os.File, temp, base string) error{"rename": renameNew, "link": linkNew, "lock": lockNew}

func TempName(base string, now time.Time) string { return tempName(base, now) }
func TempTime(base string) (time.Time, bool)     { return tempTime(base) }
