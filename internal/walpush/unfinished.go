package walpush

import (
	"errors"
	"fmt"
	"path/filepath"

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
	if _, err := walrec.Check(r, f.segmentSize); errors.Is(err, walrec.ErrEnd) {
		return &unfinishedError{f.name, err}
	}
	return nil // what else may be wrong with it is for who reads it to say
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
