package datadir

import (
	"path"
	"slices"
	"strings"

	"holdfast/internal/pg/control"
)

// ByName says what a path of a data directory is by its name alone, as a walk would that finds a directory or a regular file there: where
// a server sends its files over the wire there is nothing else to look at. why is not empty for what a backup leaves out. Which forks
// are of unlogged relations cannot be told this way; a server that starts empties them.
func ByName(name string, isDir bool) (kind Kind, fork Fork, segment uint32, why Reason) {
	if name == "." {
		return Directory, 0, 0, ""
	}
	at, dir := top, ""
	for rest := name; ; {
		base, further, more := strings.Cut(rest, "/")
		if why := leftOutByName(base, at); why != "" {
			return 0, 0, 0, why
		}
		if !more {
			break
		}
		full := path.Join(dir, base)
		if at == top && slices.Contains(emptied[:], base) || full == "pg_wal" && !(isDir && (further == "archive_status" || further == "summaries")) {
			return 0, 0, 0, Volatile
		}
		at, dir, rest = below(at, base), full, further
	}
	base := path.Base(name)
	switch {
	case isDir:
		return Directory, 0, 0, ""
	case name == control.Name:
		return Control, 0, 0, ""
	case at == global || at == database:
		if r, ok := parseRelation(base); ok {
			return Relation, r.fork, r.segment, ""
		}
	}
	return File, 0, 0, ""
}

// leftOutByName judges name by the place it is in.
func leftOutByName(name string, at place) Reason {
	switch {
	case name == ".DS_Store":
		return Temporary
	case at == top:
		return dropped[name]
	case (at == base || at == version) && strings.HasPrefix(name, "pgsql_tmp"):
		return Temporary
	case (at == global || at == database) && strings.HasPrefix(name, "pg_internal.init"):
		return Volatile
	case at == database && isTemporary(name):
		return Temporary
	}
	return ""
}
