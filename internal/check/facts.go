package check

import (
	"errors"
	"time"

	"holdfast/internal/daemon"
	"holdfast/internal/pg/server"
	"holdfast/internal/ribbon"
)

// Facts is all that a judgement depends on. Of each part either there is the part, or an error why it is not known, or neither where it was not asked.
type Facts struct {
	Now  time.Time
	Took time.Duration // to gather them

	Named     bool // a server is, whether it was asked or not
	Server    *server.Health
	ServerErr error

	Host    *Host
	HostErr error

	Archive    *Archive
	ArchiveErr error

	Stores    []Store
	StoresErr error

	Deltas    bool // delta backups are taken
	Summaries bool // WAL is archived with summaries

	given map[string]bool // see Choice
	only  bool
}

// ErrUnasked says that a part of the facts is none of this host's.
var ErrUnasked = errors.New("not asked")

// Host is what is seen of the server's files, on its host.
type Host struct {
	Waiting server.Waiting
	Backlog daemon.Backlog // the segments among those
	Free    int64          // bytes of the file system of pg_wal that the server can have
	Size    int64          // bytes of that file system
	Pushing *Process       // at work on Waiting.First; nil where none was found
	Missing time.Time      // when the first segment that the server has whole, and the archive has not, was written to last; zero where that is not seen
	Script  string         // the text of the program that archive_command calls, where that is a script; empty where not
}

// Process is one that is at work on a file.
type Process struct {
	PID     int
	Command string
	State   string // in a word, as ps has them: running, sleeping, stopped …
	Waits   string // what it waits for, in words; empty where that is not known
}

// Archive is what is known of the archive.
type Archive struct {
	Ribbon    ribbon.Ribbon
	Backups   []Backup // in the order they were made; those that are condemned are left out
	System    uint64   // the cluster that it belongs to; 0 where it does not say
	WriteOnly bool     // this host can encrypt and not decrypt
	Encrypted bool     // there are keys
	Locked    string   // why the newest backup or WAL cannot be read here; empty where it can, and where there is none
	Refused   string   // which records of drills do not count as proof, newer than all that do; empty for none
}

// Backup is one of the archive's.
type Backup struct {
	Name     string
	Finished time.Time
	Full     bool
	Verdict  ribbon.Verdict
	Verified time.Time // zero is never, here and below
	Proven   time.Time
	Failed   time.Time // when the last proof failed, later than Proven
}

// Store is a storage that was tried.
type Store struct {
	Name   string
	Err    error         // why it cannot be written; nil where it can
	Kept   bool          // it may not be removed from
	Took   time.Duration // to write, look and remove
	Ahead  time.Duration // of our clock as far as it is certain, below 0 for behind
	Silent bool          // it did not answer in time
	Reads  bool          // it may not be written, and can be read
}
