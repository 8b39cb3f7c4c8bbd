// Package ribbon says for which moments a cluster can be restored from an archive, and why not for the others.
//
// A moment is a position of the WAL along a timeline. It can be restored when there is a backup on the timeline's line of descent that was finished by then,
// with all it builds on, and every segment from the backup's start to the moment. A ribbon is the positions of a timeline, cut into stretches that
// have one verdict each. Compute is pure: it looks at what Load has gathered, and reads nothing. Where something could not be looked at, the verdict is
// neither that it can be restored nor that it cannot.
//
// Positions are exact. Times are those at which backups were finished and segments were stored: a commit in a segment is older than the segment's time.
// A segment that the server is still writing counts as far as its pieces (archive.TailDir) hold it without a gap.
package ribbon

import (
	"slices"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
)

// Verdict says of a stretch or a backup whether it can be restored.
type Verdict string

// The verdicts.
const (
	Restorable Verdict = "restorable"
	Broken     Verdict = "broken"    // something it needs is missing or damaged
	Unknown    Verdict = "unknown"   // something it needs could not be looked at: a document, a storage, a key; or was not verified, where only that counts
	Accepted   Verdict = "accepted"  // it cannot be restored, for nothing but segments that retention removed or whose loss somebody has accepted, and there is a later backup
	Uncovered  Verdict = "uncovered" // WAL that is older than the oldest backup: it cannot be restored, and need not be
)

// Status sums a ribbon up for monitoring. The numbers are those of its exit status, as Nagios has them.
type Status int

// The statuses.
const (
	OK      Status = 0
	Warning Status = 1 // the newest state can be restored; something else is wrong, or could not be judged
	Failure Status = 2 // the newest state that was archived cannot be restored
)

func (s Status) String() string {
	switch s {
	case OK:
		return "OK"
	case Warning:
		return "WARNING"
	}
	return "FAILURE"
}

// MarshalText makes the status a word in JSON.
func (s Status) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Input is all that a verdict depends on.
type Input struct {
	Catalog *catalog.Catalog
	WAL     *catalog.WAL
	Stores  []Store // the storages that were asked
	Gaps    []Gap   // accepted holes that were not revoked
	Backups map[string]Evidence
	Checked []Checked    // what was found when WAL was read, oldest first
	Locked  []Locked     // WAL that cannot be read here
	Tails   []Tail       // segments in pieces that were read
	Trouble []error      // why records could not be read, on which the verdict may depend
	System  uint64       // system identifier of the cluster that is judged; 0 is that of the newest backup that says one
	Live    wal.Timeline // the timeline that the cluster is on; 0 where that is not known
	Now     time.Time

	ProvenOnly bool // what was never verified is Unknown
	SizeKnown  bool // the segment size is a backup's, not a guess
	Keyless    bool // of what cannot be read here, which there is, it counts that it is there: see WithoutKey
}

// WithoutKey has in judged by what a host can know that has public keys only: it can read nothing that is encrypted, and never will, so that this says nothing of
// whether the cluster can be restored.
func (in *Input) WithoutKey() {
	in.Keyless = in.Keyless || len(in.Locked) > 0
	in.Locked = nil
	for name, e := range in.Backups {
		in.Keyless = in.Keyless || e.Locked != ""
		e.Locked = ""
		in.Backups[name] = e
	}
}

// RefusedProofs returns the records of drills that do not count as proof, newer than those that do: *proof.RefusedError.
func (in *Input) RefusedProofs() (all []error) {
	if in.Catalog == nil {
		return nil
	}
	for i := range in.Catalog.Backups {
		all = append(all, in.Backups[in.Catalog.Backups[i].Name].Refused...)
	}
	return all
}

// Store is a storage that was asked for what it holds.
type Store struct {
	Name string
	Err  error // why it did not answer; nil where it did
}

// Gap is a record in archive.GapDir: segments of a timeline that are lost, and that is how it is. With Revoked it takes back a record of the same segments.
type Gap struct {
	archive.RecordHead
	Timeline wal.Timeline `json:"timeline"`
	First    string       `json:"first"` // names of segments
	Last     string       `json:"last"`
	Reason   string       `json:"reason,omitempty"`
	Revoked  bool         `json:"revoked,omitempty"`
	Removed  bool         `json:"removed,omitempty"` // by retention, behind a backup that stays: nothing needs it
}

// Evidence is what is known of the content of a backup.
type Evidence struct {
	Verified time.Time     // when all of it was read last, and was found good; zero for never
	Damaged  string        // what was found to be wrong with it, later than that; "" for nothing
	Missing  string        // which object is known not to be there; "" for none
	Locked   string        // why it cannot be read here; "" where it can
	Proven   time.Time     // when it was restored, started and queried last, and that went well; zero for never
	RTO      time.Duration // how long it took then until it took writes; 0 where that is not known
	Failed   time.Time     // when that was tried last, and did not go well, later than that; zero for never
	Refused  []error       // records of such trials that are newer, and do not count: *proof.RefusedError
}

// Checked is what was found when segments of a timeline were read.
type Checked struct {
	When        time.Time // by the store's clock. Of segments that were stored later it says nothing
	Timeline    wal.Timeline
	First, Last wal.SegmentNo
	Problem     string // "" where they were good
	Unread      bool   // nothing is known of them: they could not be read then
}

// Locked is a stretch of WAL that is there and cannot be read here.
type Locked struct {
	Timeline    wal.Timeline
	First, Last wal.SegmentNo
	Why         string
}

// Tail is what was found when a segment was read of which there are pieces.
type Tail struct {
	Timeline wal.Timeline
	Segment  wal.SegmentNo
	Good     int64     // bytes of it whose records are right, from its first on
	Problem  string    // what is wrong behind those; "" for nothing
	Commit   time.Time // when the last transaction in it was committed; zero where none was
}

// tail returns what reading a segment in pieces has shown; nil where it was not read.
func (in *Input) tail(t wal.Timeline, n wal.SegmentNo) *Tail {
	i := slices.IndexFunc(in.Tails, func(r Tail) bool { return r.Timeline == t && r.Segment == n })
	if i < 0 {
		return nil
	}
	return &in.Tails[i]
}

// Ribbon is the verdict on an archive.
type Ribbon struct {
	Status    Status     `json:"status"`
	Verdict   string     `json:"verdict"`             // in one sentence
	Notes     []string   `json:"notes,omitempty"`     // what else the operator should know, the most urgent first
	Timeline  int64      `json:"timeline"`            // that the verdict is about; 0 where there is none
	Until     *Point     `json:"restorable_until"`    // nil where nothing can be restored for certain
	From      *Point     `json:"restorable_from"`     // since when without a break up to Until
	Newest    *Point     `json:"newest"`              // the end of what is archived along Timeline, restorable or not
	Age       *Seconds   `json:"rpo_seconds"`         // from Until to now
	Main      []Stretch  `json:"stretches"`           // along the whole path to Timeline
	Timelines []Timeline `json:"timelines,omitempty"` // ascending
	Backups   []Backup   `json:"backups,omitempty"`   // of this cluster, in the order they were made
	Others    []Other    `json:"other_clusters,omitempty"`
	Stores    []Asked    `json:"storages,omitempty"`
	Now       time.Time  `json:"now"`
}

// Seconds is a duration, which JSON shows as a number of seconds.
type Seconds time.Duration

// Point is the end of a stretch.
type Point struct {
	Timeline wal.Timeline
	LSN      wal.LSN
	Time     time.Time // when the last segment before it was archived, or the backup that begins there was finished; zero where that is not known
	Commit   time.Time // of Until, when the last transaction before it was committed; zero where that is not known
}

// Timeline is what can be restored of the WAL that one timeline contributed: since it left its parent.
type Timeline struct {
	Timeline  wal.Timeline `json:"timeline"`
	Parent    wal.Timeline `json:"parent,omitempty"` // 0: it has none, or none is known
	Switch    wal.LSN      `json:"-"`                // where it left its parent
	Reason    string       `json:"reason,omitempty"` // why, as PostgreSQL wrote it
	Active    time.Time    `json:"active,omitzero"`  // when something of it was stored last
	Stretches []Stretch    `json:"stretches"`
	Notes     []string     `json:"notes,omitempty"`
}

// Stretch is positions that have one verdict: from From to To, both included where they can be restored.
type Stretch struct {
	Timeline wal.Timeline // on which it ends
	From, To wal.LSN
	FromTime time.Time // when the backup was finished at From, or else when the last segment before From was stored; zero where that is not known
	ToTime   time.Time // when the last segment before To was stored
	Verdict  Verdict

	Backup      string   // the newest that restores to To; of what is broken the backup that is, where that is the reason
	Bases       []string // all that restore to To, oldest first
	ReplayBytes uint64   // WAL to replay over Backup up to To
	MaxReplay   uint64   // the most that is to be replayed for any position, over the nearest backup before it
	Verified    wal.LSN  // up to here backup and WAL were read and found good; 0 for not at all
	Storages    []string // which backups and WAL lie in, where there are several

	First, Last string // the first segments that are missing, damaged, or cannot be looked at; "" where it is not for such
	Segments    uint64 // how many there are of such in all
	Why         string // why it cannot be restored, or is not known to be
	Removed     bool   // of Accepted: all that is missing retention has removed, as nothing that stays needs it
	Advice      string // the next command; "" for none
}

// Backup is the verdict on one backup.
type Backup struct {
	Name        string       `json:"backup_name"`
	Timeline    wal.Timeline `json:"timeline"`
	Verdict     Verdict      `json:"verdict"` // of the moment it was finished at
	Why         string       `json:"why,omitempty"`
	Until       wal.LSN      `json:"-"` // how far WAL is continuous behind it, along the timeline of the ribbon or else its own
	UntilTime   time.Time    `json:"restorable_until,omitzero"`
	ReplayBytes uint64       `json:"wal_to_replay"` // from its start to Until
	Verified    time.Time    `json:"verified_at,omitzero"`
	Proven      time.Time    `json:"proven_at,omitzero"`
	Condemned   bool         `json:"condemned,omitempty"` // retention removes it: nothing counts on it
	Storage     string       `json:"storage,omitempty"`
}

// Other is a cluster that had the archive before, or has it too: it is not judged.
type Other struct {
	System  uint64 `json:"system_identifier,string"`
	Backups int    `json:"backups"`
}

// Asked is a storage, and why it did not answer if so.
type Asked struct {
	Name  string `json:"name"`
	Error string `json:"error,omitempty"`
}
