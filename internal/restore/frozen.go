package restore

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
)

// thawing says how long it takes until objects of a class can be read, by the service's own account.
var thawing = map[string]string{
	"GLACIER":             "3 to 5 hours, in bulk up to 12, expedited minutes",
	"DEEP_ARCHIVE":        "about 12 hours, in bulk up to 48",
	"ARCHIVE_ACCESS":      "3 to 5 hours",
	"DEEP_ARCHIVE_ACCESS": "about 12 hours",
}

// CheckThawed returns a *RefusedError where some of what a backup is put together from lies in a class of storage from which it must be brought back first, and says how
// much that is and how long it takes.
func CheckThawed(ctx context.Context, a *archive.Archive, chain []*catalog.Backup) error {
	type frozen struct {
		objects int
		bytes   int64
	}
	classes := map[string]frozen{}
	var of []string
	for _, b := range chain {
		objects, err := a.Frozen(ctx, b.Name)
		if err != nil {
			return err
		}
		for _, o := range objects {
			c := classes[o.Frozen]
			classes[o.Frozen] = frozen{c.objects + 1, c.bytes + o.Size}
		}
		if len(objects) > 0 {
			of = append(of, archive.Folder(b.Name))
		}
	}
	if len(classes) == 0 {
		return nil
	}
	var parts, times []string
	for _, class := range slices.Sorted(maps.Keys(classes)) {
		c := classes[class]
		parts = append(parts, fmt.Sprintf("%d objects, %s, in storage class %s", c.objects, humanize.IBytes(uint64(c.bytes)), class))
		if t := thawing[class]; t != "" {
			times = append(times, fmt.Sprintf("from %s that takes %s", class, t))
		}
	}
	return &RefusedError{
		Reason: fmt.Sprintf("backup %s cannot be read yet: %s", chain[0].Name, strings.Join(parts, "; ")),
		Advice: strings.Join(append([]string{"have the service restore (thaw) all objects below " + strings.Join(of, " and ") +
			", for some days (aws s3api restore-object), and so the WAL to be replayed; then run this again"}, times...), "; "),
	}
}
