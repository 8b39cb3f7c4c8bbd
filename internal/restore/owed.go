package restore

import (
	"errors"
	"io/fs"
	"os"
)

// owedName is a file in the data directory while deltas are restored, for sets of blocks. It has no name for longer than a moment.
const owedName = "holdfast_restore.owed"

// hidden makes a file that no name leads to.
func hidden(root *os.Root) (*os.File, error) {
	if err := root.Remove(owedName); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f, err := root.OpenFile(owedName, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err := root.Remove(owedName); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
