package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/compress"
)

// The codec's limit is measured on slices of the data in memory. Each is dealt to one worker per core in units, small enough that none of
// them waits long for the last.
const (
	sliceSize = 1 << 30
	unitSize  = 8 << 20
)

// codecMode is the first argument that makes this program compress a data directory and print the seconds it took. It is a process
// of its own so that its memory is gone afterwards.
const codecMode = "codec"

// codec returns the seconds that compressing what a backup of data holds takes all cores, reading and writing excluded.
func (b *bench) codec(ctx context.Context, data string, method compress.Method) (float64, error) {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", codecMode, string(method), data)
	cmd.Stderr = b.log
	out, err := cmd.Output()
	if err != nil {
		return 0, fmt.Errorf("compress %s in memory: %w", data, err)
	}
	return strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
}

// codecMain is the program in codecMode.
func codecMain(method, data string) error {
	m, err := compress.ParseMethod(method)
	if err != nil {
		return err
	}
	var paths []string
	err = walkFiles(data, func(path string, _ fs.FileInfo) error {
		if inBackup(strings.TrimPrefix(path, data+"/")) {
			paths = append(paths, path)
		}
		return nil
	})
	if err != nil {
		return err
	}
	src := &files{paths: paths}
	slice := make([]byte, sliceSize)
	var spent time.Duration
	for first := true; ; first = false {
		n, err := io.ReadFull(src, slice)
		if errors.Is(err, io.EOF) {
			fmt.Println(spent.Seconds())
			return nil
		}
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return err
		}
		if first { // so that the codec's own buffers are there
			if _, err := compressUnits(slice[:min(n, runtime.NumCPU()*unitSize)], m); err != nil {
				return err
			}
		}
		took, err := compressUnits(slice[:n], m)
		if err != nil {
			return err
		}
		spent += took
	}
}

// compressUnits compresses slice on all cores and says how long that took.
func compressUnits(slice []byte, m compress.Method) (time.Duration, error) {
	var next atomic.Int64
	var g errgroup.Group
	begin := time.Now()
	for range runtime.NumCPU() {
		g.Go(func() error {
			for {
				at := int(next.Add(unitSize)) - unitSize
				if at >= len(slice) {
					return nil
				}
				z := compress.Compress(bytes.NewReader(slice[at:min(at+unitSize, len(slice))]), m, compress.Options{})
				_, err := io.Copy(io.Discard, z)
				if err := errors.Join(err, z.Close()); err != nil {
					return err
				}
			}
		})
	}
	err := g.Wait()
	return time.Since(begin), err
}

// inBackup reports whether a backup has the file at path below the data directory: PostgreSQL's list of what to leave out
// (src/backend/backup/basebackup.c), as far as an idle server has any of it.
func inBackup(path string) bool {
	switch dir, _, _ := strings.Cut(path, "/"); dir {
	case "pg_wal", "pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans",
		"postmaster.pid", "postmaster.opts":
		return false
	}
	return filepath.Base(path) != "pg_internal.init"
}

// files is the content of files, one behind the other.
type files struct {
	paths []string
	open  *os.File // the file being read; nil between two
}

func (f *files) Read(p []byte) (int, error) {
	for {
		if f.open == nil {
			if len(f.paths) == 0 {
				return 0, io.EOF
			}
			var err error
			if f.open, err = os.Open(f.paths[0]); err != nil {
				return 0, err
			}
			f.paths = f.paths[1:]
		}
		n, err := f.open.Read(p)
		if errors.Is(err, io.EOF) {
			err = f.open.Close()
			f.open = nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}
