package file

import (
	"os"
)

// The ways to publish a new object, so that those which this machine's file systems never need are tested too.
var Ways = map[string]func(d, f *os.File, temp, base string) error{"rename": renameNew, "link": linkNew, "lock": lockNew}
