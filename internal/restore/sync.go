package restore

import (
	"io/fs"
	"os"
)

// syncEach makes all below the roots durable file by file and directory by directory.
func syncEach(roots []*os.Root) error {
	for _, root := range roots {
		err := fs.WalkDir(root.FS(), ".", func(p string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() && !d.Type().IsRegular() {
				return err
			}
			return syncPath(root, p)
		})
		if err != nil {
			return err
		}
	}
	return nil
}
