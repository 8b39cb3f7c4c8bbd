package walpush

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
	"holdfast/internal/pg/walrec"
)

// checkFinished refuses a segment that a server in recovery hands over and that is not whole, as its records tell. With archive_mode = always such a server
// archives what it has restored, and of the segment that the primary is writing an archive gives it what wal-receive has stored so far.
func (f *file) checkFinished() error {
	if f.kind != wal.Segment {
		return nil
	}
	recovering := false
	for _, signal := range []string{"standby.signal", "recovery.signal", "recovery.conf"} {
		there, err := exists(filepath.Join(filepath.Dir(filepath.Dir(f.path)), signal))
		if err != nil {
			return err
		}
		recovering = recovering || there
	}
	if !recovering {
		return nil
	}
	r, err := f.open()
	if err != nil {
		return err
	}
	defer r.Close() // only read
	_, unfinished := walrec.Check(r, f.segmentSize)
	if !errors.Is(unfinished, walrec.ErrEnd) {
		return nil // what else may be wrong with it is for who reads it to say
	}
	if left, err := f.leftHere(); err != nil || left {
		return err
	}
	return &unfinishedError{f.name, unfinished}
}

// leftHere reports whether a history file beside the segment says that its timeline was left in it: then it ends there, and nobody finishes it. A standby with
// archive_mode = always archives it as it is (walreceiver.c, at the end of a timeline), and would try for ever.
func (f *file) leftHere() (bool, error) {
	dir := filepath.Dir(f.path)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false, err
	}
	for _, e := range entries {
		if wal.KindOf(e.Name()) != wal.History {
			continue
		}
		t, err := wal.TimelineOf(e.Name())
		if err != nil || t <= f.timeline {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return false, err
		}
		branches, err := catalog.ParseHistory(t, b)
		if err != nil {
			continue // a file that says nothing
		}
		for _, b := range branches {
			if b.Timeline == f.timeline && f.segmentSize.Name(b.Timeline, f.segmentSize.Segment(b.Switch)) == f.name {
				return true, nil
			}
		}
	}
	return false, nil
}

type unfinishedError struct {
	name string
	why  error
}

func (e *unfinishedError) Error() string {
	return fmt.Sprintf("store %s: it is not finished: %v", e.name, e.why)
}

func (e *unfinishedError) Unwrap() error { return e.why }

// Hint says how to go on.
func (e *unfinishedError) Hint() string {
	return "a standby with archive_mode = always archives what it has restored before its primary has finished it; the next attempt will do. Better set archive_mode = on: what a standby receives its primary archives, or wal-receive"
}
