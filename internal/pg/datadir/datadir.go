// Package datadir walks a PostgreSQL data directory (10 to 18) and says what each file is, and what a base backup leaves out.
//
// What is left out is what the server's own BASE_BACKUP leaves out (src/backend/backup/basebackup.c), further the content of
// the server's log directory and files that steer a recovery. Names are judged by their exact place: a directory "log" or a
// file "postmaster.pid" that lies anywhere but at the top is somebody's data.
package datadir

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"holdfast/internal/pg/control"
)

// A Dir is the data directory of a cluster, running or not.
type Dir struct {
	Root    string       // absolute
	Control control.Data // as it was when the directory was opened
}

// Open looks at root and refuses what is not the data directory of a supported PostgreSQL. Nothing is held open.
func Open(root string) (*Dir, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join(root, "PG_VERSION"))
	if err != nil {
		return nil, fmt.Errorf("%s is not a data directory: %w", root, err)
	}
	data, _, err := control.Read(filepath.Join(root, control.Name))
	if err != nil {
		return nil, fmt.Errorf("%s is not a data directory: %w", root, err)
	}
	if major := string(bytes.TrimSpace(b)); major != strconv.Itoa(data.Major) {
		return nil, fmt.Errorf("%s: PG_VERSION says %.20q, pg_control is one of PostgreSQL %d", root, major, data.Major)
	}
	return &Dir{Root: root, Control: data}, nil
}

// A Tablespace is a place outside base and global that holds relations.
type Tablespace struct {
	OID      uint32
	Location string // what the link pg_tblspc/<OID> points to; "" where it is a directory itself (allow_in_place_tablespaces)
}

// InPlace reports whether t lies in the data directory's own pg_tblspc.
func (t Tablespace) InPlace() bool { return t.Location == "" }

// Tablespaces lists the tablespaces of the data directory root, by ascending OID.
func Tablespaces(root string) ([]Tablespace, error) {
	dir := filepath.Join(root, "pg_tblspc")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var spaces []Tablespace
	for _, e := range entries {
		oid, ok := parseOID(e.Name())
		if !ok {
			continue
		}
		switch e.Type() {
		case fs.ModeDir:
			spaces = append(spaces, Tablespace{OID: oid})
		case fs.ModeSymlink:
			location, err := os.Readlink(filepath.Join(dir, e.Name()))
			if gone(err) {
				continue
			}
			if err != nil {
				return nil, err
			}
			spaces = append(spaces, Tablespace{OID: oid, Location: location})
		}
	}
	slices.SortFunc(spaces, func(a, b Tablespace) int { return int(int64(a.OID) - int64(b.OID)) })
	return spaces, nil
}

// parseOID reads a directory's name that is an OID: a positive decimal number of 32 bits without leading zeros.
func parseOID(name string) (uint32, bool) {
	if name == "" || name[0] < '1' || name[0] > '9' {
		return 0, false
	}
	oid, err := strconv.ParseUint(name, 10, 32)
	return uint32(oid), err == nil
}
