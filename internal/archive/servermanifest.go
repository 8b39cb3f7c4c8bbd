package archive

import (
	"context"
	"io"

	"holdfast/internal/compress"
)

// serverManifest is the backup_manifest that the server made of a backup it sent over the wire, as it came.
const serverManifest = "backup_manifest.zst"

// PutServerManifest stores the backup_manifest that the server has sent.
func (d *Draft) PutServerManifest(ctx context.Context, manifest io.Reader) error {
	body, _ := d.archive.packed(manifest, compress.Zstd, 1)
	defer body.Close() // gives its buffers back
	return d.put(ctx, d.archive.folder(d.name)+serverManifest, body)
}

// OpenServerManifest reads what PutServerManifest stored. Backups that no server sent have none: fs.ErrNotExist.
func (a *Archive) OpenServerManifest(ctx context.Context, backup string) (io.ReadCloser, error) {
	return a.open(ctx, a.folder(backup)+serverManifest, compress.Zstd)
}
