package walfetch

import (
	"bufio"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
)

// Situation says what a server that calls restore_command is doing, by the files in its data directory.
type Situation int

// What the data directory says.
const (
	Unknown  Situation = iota // none of the files is there, so it is no server, or none in archive recovery
	Recovery                  // it replays the archive and then opens: recovery.signal, or recovery.conf without standby_mode
	Standby                   // it waits for more: standby.signal, or recovery.conf with standby_mode
)

// SituationOf returns what the first of the directories says that says anything.
func SituationOf(dirs ...string) Situation {
	for _, dir := range dirs {
		if s := situationIn(dir); s != Unknown {
			return s
		}
	}
	return Unknown
}

// situationIn reads the files as PostgreSQL does (readRecoverySignalFile): with both signals it is a standby.
func situationIn(dir string) Situation {
	has := func(name string) bool {
		_, err := os.Stat(filepath.Join(dir, name))
		return err == nil
	}
	switch {
	case dir == "":
		return Unknown
	case has("standby.signal"):
		return Standby
	case has("recovery.signal"):
		return Recovery
	}
	f, err := os.Open(filepath.Join(dir, "recovery.conf")) // before PostgreSQL 12
	if err != nil {
		return Unknown
	}
	defer f.Close() // only read: nothing to lose
	s := Recovery
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if on, ok := standbyMode(lines.Text()); ok { // the last one counts
			s = Recovery
			if on {
				s = Standby
			}
		}
	}
	return s
}

// standbyMode reads a line of recovery.conf; ok says whether it sets standby_mode.
func standbyMode(line string) (on, ok bool) {
	line, _, _ = strings.Cut(line, "#")
	line = strings.ToLower(strings.TrimSpace(line))
	value, ok := strings.CutPrefix(line, "standby_mode")
	if !ok || value == "" || !strings.ContainsAny(value[:1], "= \t'") {
		return false, false
	}
	value = strings.Trim(strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(value), "=")), "'")
	// parse_bool takes any prefix that is not ambiguous.
	for _, yes := range []string{"true", "yes", "on", "1"} {
		if value != "" && value != "o" && strings.HasPrefix(yes, value) {
			return true, true
		}
	}
	return false, true
}

// Exit statuses of restore_command, to PostgreSQL: up to 125 a file is not available, and what that means depends on the
// situation; above, recovery cannot go on and the server stops (RestoreArchivedFile in xlogarchive.c).
const (
	statusMissing    = 74  // EX_IOERR, which WAL-G chose
	statusTryAgain   = 75  // EX_TEMPFAIL: a standby asks again
	statusTerminated = 143 // 128 + SIGTERM: PostgreSQL is shutting down itself
	StatusStop       = 200 // to PostgreSQL: the recovery must not go on, on a standby either
)

// Status returns what restore_command exits with after Fetch, or anything before it, returned err. Failures are not taken for
// the end of the archive: a standby tries again, anything else stops, since it would open with less than there is.
func Status(err error, s Situation) int {
	var missing *MissingError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &missing):
		return statusMissing
	case errors.Is(err, context.Canceled):
		return statusTerminated
	case s == Standby:
		return statusTryAgain
	}
	return StatusStop
}
