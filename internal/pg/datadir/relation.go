package datadir

import (
	"strconv"
	"strings"
)

// Fork is which of a relation's forks a file belongs to.
type Fork uint8

// The forks (src/include/common/relpath.h).
const (
	MainFork Fork = iota
	FreeSpaceFork
	VisibilityFork
	InitFork // the empty state of an unlogged relation
)

// String returns the fork's name as in a file's name, "main" for the one that has none there.
func (f Fork) String() string {
	return [...]string{"main", "fsm", "vm", "init"}[f]
}

// A relation is what the name of a relation's file says.
type relation struct {
	number  string // relfilenode, the digits the names of all its files begin with
	fork    Fork
	segment uint32
}

// parseRelation reads <relfilenode>[_<fork>][.<segment>] (parse_filename_for_nontemp_relation).
func parseRelation(name string) (relation, bool) {
	name, segment, ok := cutSegment(name)
	if !ok {
		return relation{}, false
	}
	number, fork, ok := cutFork(name)
	if _, isOID := parseOID(number); !ok || !isOID {
		return relation{}, false
	}
	return relation{number, fork, segment}, true
}

// isTemporary reports whether name is t<backend>_<relfilenode>[_<fork>][.<segment>], a file of a session's temporary relation
// (looks_like_temp_rel_name).
func isTemporary(name string) bool {
	name, found := strings.CutPrefix(name, "t")
	if !found {
		return false
	}
	backend, name, found := strings.Cut(name, "_")
	if !found || !isDigits(backend) {
		return false
	}
	name, _, ok := cutSegment(name)
	if !ok {
		return false
	}
	number, _, ok := cutFork(name)
	return ok && isDigits(number)
}

// cutSegment takes ".<segment>" off name, a positive number; without one the segment is 0.
func cutSegment(name string) (rest string, segment uint32, ok bool) {
	rest, digits, found := strings.Cut(name, ".")
	if !found {
		return name, 0, true
	}
	segment, ok = parseOID(digits)
	return rest, segment, ok
}

// cutFork takes "_<fork>" off name.
func cutFork(name string) (rest string, fork Fork, ok bool) {
	rest, suffix, found := strings.Cut(name, "_")
	if !found {
		return name, MainFork, true
	}
	for _, f := range []Fork{FreeSpaceFork, VisibilityFork, InitFork} {
		if suffix == f.String() {
			return rest, f, true
		}
	}
	return "", 0, false
}

func isDigits(s string) bool {
	_, err := strconv.ParseUint(s, 10, 32)
	return err == nil
}
