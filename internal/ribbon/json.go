package ribbon

import (
	"encoding/json"
	"time"

	"holdfast/internal/pg/wal"
)

// MarshalJSON writes a number of seconds.
func (s Seconds) MarshalJSON() ([]byte, error) {
	return json.Marshal(int64(time.Duration(s).Seconds()))
}

// MarshalJSON writes the position as PostgreSQL prints it.
func (p Point) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Timeline wal.Timeline `json:"timeline"`
		LSN      string       `json:"lsn"`
		Time     time.Time    `json:"time,omitzero"`
		Commit   time.Time    `json:"last_commit,omitzero"`
	}{p.Timeline, p.LSN.String(), p.Time.UTC(), p.Commit.UTC()})
}

// MarshalJSON writes positions as PostgreSQL prints them.
func (s Stretch) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Timeline wal.Timeline `json:"timeline"`
		From     string       `json:"from_lsn"`
		To       string       `json:"to_lsn"`
		FromTime time.Time    `json:"from_time,omitzero"`
		ToTime   time.Time    `json:"to_time,omitzero"`
		Verdict  Verdict      `json:"verdict"`
		Backup   string       `json:"backup_name,omitempty"`
		Bases    []string     `json:"backups,omitempty"`
		Replay   uint64       `json:"wal_to_replay,omitempty"`
		Max      uint64       `json:"max_wal_to_replay,omitempty"`
		Verified any          `json:"verified_until_lsn"`
		Storages []string     `json:"storages,omitempty"`
		First    string       `json:"first_segment,omitempty"`
		Last     string       `json:"last_segment,omitempty"`
		Segments uint64       `json:"segments,omitempty"`
		Why      string       `json:"why,omitempty"`
		Advice   string       `json:"advice,omitempty"`
		Removed  bool         `json:"removed_by_retention,omitempty"`
	}{s.Timeline, s.From.String(), s.To.String(), s.FromTime.UTC(), s.ToTime.UTC(), s.Verdict, s.Backup, s.Bases, s.ReplayBytes, s.MaxReplay,
		lsn(s.Verified), s.Storages, s.First, s.Last, s.Segments, s.Why, s.Advice, s.Removed})
}

// MarshalJSON adds the positions as PostgreSQL prints them.
func (t Timeline) MarshalJSON() ([]byte, error) {
	type plain Timeline
	return json.Marshal(struct {
		plain
		Switch any `json:"switch_lsn"`
	}{plain(t), lsn(t.Switch)})
}

// MarshalJSON adds the positions as PostgreSQL prints them.
func (b Backup) MarshalJSON() ([]byte, error) {
	type plain Backup
	return json.Marshal(struct {
		plain
		Until any `json:"restorable_until_lsn"`
	}{plain(b), lsn(b.Until)})
}
