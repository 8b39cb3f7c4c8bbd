// Package recovertable makes a private copy of a cluster in which tables, or a database, are as they were at a moment: what a dropped table is brought back from.
//
// Decide says what will be done, Run does it: a restore into a scratch directory, a server of its own, replay to just before the moment, and a look whether what is
// wanted is all there. What the copy is made of, and what is left of it, is as with a drill; bringback takes the rows from there.
//
// The restore is partial where PostgreSQL lets it be, from 13 on: of relations that are not wanted a file has its size and no content. Wanted are the tables, their
// partitions and children, indexes and TOAST tables, all sequences, and catalogues. What WAL says of pages that are not there is passed over then
// (ignore_invalid_pages), which could hide that a page is missing that is wanted. So the log is read, which names each such page; and the files that what is
// wanted consists of in the end are compared with those that were restored: a table may have become a partition, or have changed its name. Where either shows that something
// is missing, or a partial copy fails for any other reason, a full one is made.
//
// Find looks for the moment at which something was lost, in archived WAL.
package recovertable

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/bringback"
	"holdfast/internal/catalog"
	"holdfast/internal/drill"
	"holdfast/internal/events"
)

// Request says what is wanted, and as of when.
type Request struct {
	Tables   []bringback.Table // at least one, or
	Database string            // a whole database
	OIDs     []uint32          // of the tables, where an event told them; they may have had other names before
	Copy     drill.Request     // backup and moment, and where the copy is made. Its Hollow is not looked at
	Full     bool              // restore all of the backup
	Names    *events.Backup    // of a backup, where they are read already; nil for none

	// Rates are how many bytes a second restore and replay take, for the estimate; 0 for what is usual on small hosts.
	Restoring, Replaying float64
}

// Plan is what Run will do.
type Plan struct {
	Backup   string            `json:"backup"`
	Finished time.Time         `json:"backup_finished"`
	Target   string            `json:"target"`
	Before   bool              `json:"before,omitempty"` // replay stops before the target
	Tables   []bringback.Table `json:"tables,omitempty"`
	Database string            `json:"database,omitempty"`

	Partial  bool   `json:"partial"`
	Why      string `json:"why"`            // it is so
	Fetch    int64  `json:"fetch_bytes"`    // of the backup, as it is stored
	Of       int64  `json:"backup_bytes"`   // that a full restore would fetch
	Write    int64  `json:"write_bytes"`    //
	Segments int    `json:"wal_segments"`   // to be replayed, at most
	WAL      int64  `json:"wal_bytes"`      // in these
	Need     int64  `json:"need_bytes"`     // room for the copy and its WAL
	Free     int64  `json:"free_bytes"`     // where the copy is made
	Seconds  int64  `json:"estimate"`       // about, until the copy can be read
	Scratch  string `json:"scratch"`        // the directory that will be made
	Programs string `json:"programs"`       // of PostgreSQL
	Version  string `json:"server_version"` // of these

	Notes []string `json:"notes,omitempty"`

	request   Request
	selection *selection     // nil for a full restore
	names     *events.Backup // of the backup; nil for a full restore
	drill     *drill.Plan    // of the copy
}

// Rates that are taken where nothing better is known, in bytes a second, and what starting a server takes, in seconds.
const (
	usualRestoring = 150e6
	usualReplaying = 40e6
	usualStart     = 5
)

// Decide works out what to do. Nothing is written. What this host cannot do is a *drill.HostError.
func Decide(ctx context.Context, a *archive.Archive, r Request) (*Plan, error) {
	if len(r.Tables) == 0 && r.Database == "" {
		return nil, errors.New("no table and no database is named")
	}
	b := r.Copy.Choice.Backup
	p := &Plan{Backup: b.Name, Finished: b.Created().UTC(), Before: r.Copy.Before, Tables: r.Tables, Database: r.Database, request: r}
	var err error
	if p.selection, p.names, p.Why, err = part(ctx, a, r); err != nil {
		return nil, err
	}
	p.Partial = p.selection != nil
	d, err := drill.Decide(ctx, a, p.copy(p.Partial))
	if err != nil {
		return nil, err
	}
	p.drill = d
	p.Target, p.Scratch, p.Programs, p.Version, p.Notes = d.Target, d.Scratch, d.Programs, d.Version, d.Notes
	p.Fetch, p.Write = d.Restore.Stored, d.Restore.Bytes
	p.Of = p.Fetch
	if h := d.Restore.Hollowed; h != nil {
		p.Of += h.Stored
	}
	size, errSize := b.SegmentSize()
	_, first, errFirst := size.ParseSegment(d.Restore.FirstWAL)
	_, last, errLast := size.ParseSegment(cmp.Or(d.Restore.LastWAL, d.Restore.FirstWAL))
	if errSize == nil && errFirst == nil && errLast == nil {
		if t := r.Copy.Choice.Target; t.Kind == catalog.AtLSN {
			last = min(last, size.Segment(t.LSN))
		}
		p.Segments = int(max(last, first) - first + 1)
		p.WAL = int64(p.Segments) * int64(size)
	}
	p.Need, p.Free = d.Need(), 0
	if len(d.Restore.Rooms) > 0 {
		p.Free = d.Restore.Rooms[0].Free
	}
	p.Seconds = usualStart + int64(float64(p.Write)/cmp.Or(r.Restoring, usualRestoring)+float64(p.WAL)/cmp.Or(r.Replaying, usualReplaying))
	return p, nil
}

// part decides how much of the backup is restored, and says why. A nil selection stands for all of it.
func part(ctx context.Context, a *archive.Archive, r Request) (*selection, *events.Backup, string, error) {
	b := r.Copy.Choice.Backup
	switch {
	case b.Sentinel == nil:
		return nil, nil, "", fmt.Errorf("restore %s: %w", b.Name, b.Err)
	case r.Full:
		return nil, nil, "it was asked for", nil
	case b.Sentinel.PgVersion < 13_00_00:
		return nil, nil, fmt.Sprintf("PostgreSQL %d does not start on a part of a cluster, 13 and later do", b.Sentinel.PgVersion/1_00_00), nil
	}
	names := r.Names
	var err error
	if names == nil || !names.Of(b) {
		names, err = events.FromBackup(ctx, a, r.Copy.Choice.Chain)
	}
	var s *selection
	if err == nil {
		s, err = choose(ctx, names, r.Tables, r.Database, r.OIDs)
	}
	switch {
	case ctx.Err() != nil:
		return nil, nil, "", context.Cause(ctx)
	case err != nil:
		return nil, nil, err.Error(), nil
	case r.Database != "":
		return s, names, "of other databases no content is needed", nil
	}
	return s, names, "of other tables no content is needed", nil
}

// copy returns what the copy is to be.
func (p *Plan) copy(partial bool) drill.Request {
	c := p.request.Copy
	c.Hollow = nil
	if partial {
		c.Hollow = p.selection.hollow
	}
	return c
}

// Moment says which moment of the cluster is wanted, for people.
func (p *Plan) Moment() string {
	if !p.Before {
		return p.Target
	}
	return "just before " + p.Target
}
