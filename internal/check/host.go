package check

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/daemon"
	"holdfast/internal/pg/control"
	"holdfast/internal/pg/server"
	"holdfast/internal/pg/wal"
)

// lookAtHost looks at the files of the server whose data directory is dir, and at who archives them. s is what the server said; nil where it did not answer.
func lookAtHost(dir string, s *server.Health) (*Host, error) {
	data, _, err := control.Read(filepath.Join(dir, control.Name))
	if errors.Is(err, os.ErrNotExist) {
		return nil, &elsewhereError{err}
	}
	if err != nil {
		return nil, err
	}
	if s != nil && data.SystemIdentifier != s.SystemIdentifier {
		return nil, &elsewhereError{fmt.Errorf("%s is of the cluster with system identifier %d, the server of %d", dir, data.SystemIdentifier, s.SystemIdentifier)}
	}
	h := &Host{}
	if h.Backlog, h.Free, err = daemon.ReadBacklog(dir); err != nil {
		return nil, err
	}
	pgwal := filepath.Join(dir, "pg_wal")
	var fs unix.Statfs_t
	if err := unix.Statfs(pgwal, &fs); err != nil {
		return nil, &os.PathError{Op: "statfs", Path: pgwal, Err: err}
	}
	used := int64(fs.Blocks-fs.Bfree) * int64(fs.Bsize)
	h.Size = used + h.Free // as df has it: what is kept for root is nobody's
	if h.Waiting, err = readWaiting(filepath.Join(pgwal, "archive_status")); err != nil {
		return nil, err
	}
	if h.Waiting.First != "" {
		h.Pushing = findProcess(h.Waiting.First)
	}
	if s != nil {
		h.Script = readScript(s.ArchiveCommand)
	}
	return h, nil
}

// lastWritten returns when a segment in the pg_wal of the data directory dir was written to last.
func lastWritten(dir, segment string) (time.Time, error) {
	info, err := os.Stat(filepath.Join(dir, "pg_wal", segment))
	if err != nil {
		return time.Time{}, err
	}
	return info.ModTime(), nil
}

// elsewhereError says that a directory is none of the server's.
type elsewhereError struct{ error }

func (e *elsewhereError) Unwrap() error { return e.error }

// readWaiting looks which files have a .ready in the directory status.
func readWaiting(status string) (w server.Waiting, err error) {
	d, err := os.Open(status)
	if err != nil {
		return w, err
	}
	defer d.Close()                     // only read
	earlier := func(a, b string) bool { // in the order in which the server archives
		ha, hb := wal.KindOf(a) == wal.History, wal.KindOf(b) == wal.History
		return ha && !hb || ha == hb && a < b
	}
	for {
		names, err := d.Readdirnames(1024)
		for _, e := range names {
			if name, ok := strings.CutSuffix(e, ".ready"); ok {
				if w.Files++; w.First == "" || earlier(name, w.First) {
					w.First = name
				}
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return w, err
		}
	}
	if w.First != "" {
		info, err := os.Stat(filepath.Join(status, w.First+".ready"))
		switch {
		case err == nil:
			w.Since = info.ModTime()
		case !errors.Is(err, os.ErrNotExist):
			return w, err
		default: // archived meanwhile: things move
			w = server.Waiting{}
		}
	}
	return w, nil
}

// maxScript bounds the scripts that are read, in bytes.
const maxScript = 64 << 10

// readScript returns the text of the program that an archive_command calls, where that is a shell script that can be read; empty where not.
func readScript(command string) string {
	calls := parseShell(command)
	if len(calls) == 0 || !filepath.IsAbs(calls[0].words[0]) {
		return ""
	}
	info, err := os.Stat(calls[0].words[0])
	if err != nil || !info.Mode().IsRegular() || info.Size() > maxScript {
		return ""
	}
	b, err := os.ReadFile(calls[0].words[0])
	if err != nil || len(b) > maxScript {
		return ""
	}
	if first, _, _ := strings.Cut(string(b), "\n"); !strings.HasPrefix(first, "#!") || !strings.Contains(first, "sh") {
		return ""
	}
	return string(b)
}
