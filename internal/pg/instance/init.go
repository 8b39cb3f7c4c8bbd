package instance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"holdfast/internal/pg/wal"
)

// Superuser is the role that Init creates.
const Superuser = "postgres"

// InitOptions says what cluster to create. The zero value is a cluster without data checksums, with segments of 16 MiB.
type InitOptions struct {
	User        string          // account to run initdb as when we are root: it will own the cluster; "" means "postgres"
	Checksums   bool            // data checksums
	SegmentSize wal.SegmentSize // 0 means 16 MiB; other sizes need PostgreSQL 11
	NoSync      bool            // leave flushing to the kernel, for clusters that nobody will miss
}

// Init creates a cluster in dir, which must be empty or not exist below a directory the account may write to. The cluster is in UTF-8,
// sorts by bytes, and lets every local user in as Superuser: keep its socket in a directory closed to others.
func Init(ctx context.Context, p Programs, dir string, opts InitOptions) error {
	name := opts.User
	if name == "" && os.Geteuid() == 0 {
		name = "postgres"
	}
	id, err := runAs(name, dir)
	if err != nil {
		return err
	}
	args := []string{"-D", dir, "-U", Superuser, "-E", "UTF8", "--no-locale", "-A", "trust"}
	switch {
	case opts.Checksums:
		args = append(args, "--data-checksums")
	case p.Major >= 18: // where they are the default
		args = append(args, "--no-data-checksums")
	}
	if size := opts.SegmentSize; size != 0 {
		switch {
		case !size.Valid():
			return fmt.Errorf("create a cluster in %s: %d bytes is no size of a WAL segment", dir, size)
		case p.Major >= 11:
			args = append(args, "--wal-segsize="+strconv.FormatUint(uint64(size)>>20, 10))
		case size != 16<<20:
			return fmt.Errorf("create a cluster in %s: PostgreSQL %d has segments of 16 MiB only", dir, p.Major)
		}
	}
	if opts.NoSync {
		args = append(args, "--no-sync")
	}
	cmd := exec.CommandContext(ctx, p.path("initdb"), args...)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "LC_ALL=C") // initdb refuses locales that the machine does not have
	id.apply(cmd)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("create a cluster in %s: initdb: %w: %s", dir, errors.Join(ctx.Err(), err), strings.TrimSpace(string(out)))
	}
	return nil
}
