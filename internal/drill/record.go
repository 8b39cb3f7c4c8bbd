package drill

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/proof"
)

// Record is what a drill has found. It is stored in archive.ProvenDir, never encrypted, and never changed. What other commands make of it is for package proof to say.
type Record struct {
	archive.RecordHead
	OK     bool   `json:"ok"`
	Reason Reason `json:"reason,omitempty"` // of what is not OK
	Error  string `json:"error,omitempty"`

	Started time.Time `json:"started"`
	Asked   string    `json:"asked"`
	Target  string    `json:"target"`

	Backup     string    `json:"backup"`
	Sentinel   string    `json:"sentinel_sha256,omitempty"` // which one of that name: see archive.Sentinel.Sum
	Chain      []string  `json:"chain,omitempty"`           // what it was put together from, newest first, where that is more than itself
	Finished   time.Time `json:"backup_finished"`
	System     uint64    `json:"system_identifier,string,omitempty"`
	PgVersion  int       `json:"pg_version"` // server_version_num of the backup
	PostgreSQL string    `json:"postgresql"` // that the copy ran on

	Seconds map[string]float64 `json:"seconds"` // of the phases fetch, replay, checks, and total
	Fetched Fetched            `json:"fetched"`
	Replay  *Replay            `json:"replay,omitempty"` // nil where it did not come that far
	RTO     float64            `json:"rto_seconds,omitempty"`
	RPO     *float64           `json:"rpo_seconds,omitempty"`
	RPOOf   string             `json:"rpo_of,omitempty"` // what that is measured by

	Changed []Change `json:"changed,omitempty"`
	Checks  []Check  `json:"checks,omitempty"`
	Notes   []string `json:"notes,omitempty"`
}

// Reason says in a word what kept a drill from proving the backup.
type Reason string

// The reasons, in the order in which they can occur.
const (
	ReasonFetch  Reason = "fetch"  // the backup cannot be read, or lacks something
	ReasonStart  Reason = "start"  // PostgreSQL does not start on it
	ReasonReplay Reason = "replay" // WAL cannot be replayed as far as the archive promises
	ReasonCheck  Reason = "check"  // the copy is not as it should be
	ReasonLate   Reason = "late"   // it took longer than it may
)

// Fetched is what was restored.
type Fetched struct {
	Files    int64   `json:"files,omitempty"`
	Bytes    int64   `json:"bytes,omitempty"`
	Stored   int64   `json:"stored_bytes,omitempty"` // to be read of the archive, as planned
	Read     int64   `json:"read_bytes,omitempty"`   // that were read of it; 0 where that is not known
	Rate     float64 `json:"bytes_per_second,omitempty"`
	Verified bool    `json:"verified"` // all of it agrees with the backup's manifest
}

// Replay is the WAL that was replayed over it.
type Replay struct {
	From       string    `json:"from_lsn,omitempty"`
	To         string    `json:"to_lsn"`
	Timeline   uint32    `json:"timeline"` // that the copy was on then
	Bytes      int64     `json:"bytes"`
	Rate       float64   `json:"bytes_per_second,omitempty"`
	LastCommit time.Time `json:"last_commit,omitzero"` // zero where none was replayed
	LastWAL    string    `json:"last_wal,omitempty"`   // the last segment that the archive had without a gap
	ArchivedAt time.Time `json:"last_wal_archived,omitzero"`
}

// Change is a setting that is other than in the backup's configuration.
type Change struct {
	Name string `json:"name"`
	From string `json:"from"`
	To   string `json:"to"`
}

// Result is how a check ended.
type Result string

// The results.
const (
	Passed  Result = "ok"
	Failed  Result = "failed"
	Skipped Result = "skipped" // it could not be made, and says why
)

// Check is one question that the copy was asked.
type Check struct {
	Name    string  `json:"name"`
	Result  Result  `json:"result"`
	Text    string  `json:"text"`
	Done    int64   `json:"done,omitempty"` // of Total, where it has parts
	Total   int64   `json:"total,omitempty"`
	Seconds float64 `json:"seconds"`
}

// FailedError says that a backup did not prove itself.
type FailedError struct {
	Reason Reason
	Err    error
}

func (e *FailedError) Error() string { return e.Err.Error() }
func (e *FailedError) Unwrap() error { return e.Err }

// Encode writes the record as it is stored, signed where there is a key: see proof.Sign.
func (r *Record) Encode(key ed25519.PrivateKey) ([]byte, error) {
	b, err := json.Marshal(r)
	if err != nil || key == nil {
		return b, err
	}
	return proof.Sign(b, key)
}

// store puts the record into the archive, beside the backup.
func (r *Record) store(ctx context.Context, a *archive.Archive, key ed25519.PrivateKey) (string, error) {
	b, err := r.Encode(key)
	if err != nil {
		return "", fmt.Errorf("encode the record of the drill: %w", err)
	}
	return a.AddRecord(ctx, archive.ProvenDir(r.Backup), "", json.RawMessage(b))
}
