package pgbackrest

import (
	"context"
	"fmt"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
)

// Catalog returns the backups of one cluster as a catalog of ours has them, under their labels, with the timelines of its WAL, which wal shows. Those that were
// taken while the server was stopped are not among them: no WAL is known to come behind them. Where a backup's tablespaces lay only its manifest says: see
// Manifest.Describe.
func (i *Info) Catalog(ctx context.Context, wal *archive.Archive, c Cluster) (*catalog.Catalog, error) {
	all, err := catalog.Load(ctx, wal)
	if err != nil {
		return nil, err
	}
	all.Backups = nil
	for n := range i.Backups {
		if b := &i.Backups[n]; i.Cluster(b) == c && !b.Offline() {
			all.Backups = append(all.Backups, *i.Entry(b))
		}
	}
	return all, nil
}

// Entry describes a backup as a catalog of ours does.
func (i *Info) Entry(b *Backup) *catalog.Backup {
	c := i.Cluster(b)
	version, err := serverVersion(c.Version)
	s := &archive.Sentinel{
		LSN: b.StartLSN, FinishLSN: b.StopLSN, PgVersion: version, SystemIdentifier: &c.SystemIdentifier,
		UncompressedSize: b.Size, CompressedSize: b.RepoDelta, StartTime: b.Started, FinishTime: b.Finished,
	}
	e := &catalog.Backup{Name: b.Label, Modified: b.Finished, Sentinel: s, Start: b.StartWAL, Err: err}
	if b.Prior == "" {
		return e
	}
	// That what it builds on is there the catalog sees to.
	s.DeltaFrom, s.DeltaCount = b.Prior, len(b.References)
	prior, err := i.Find(b.Prior)
	switch {
	case err != nil:
	case prior.Offline(): // which has no position to compare
		s.DeltaFrom = ""
	default:
		s.DeltaLSN = prior.StartLSN
	}
	return e
}

// Describe tells the catalog's entry of a backup what the manifest says: where its tablespaces and its data directory lay.
func (m *Manifest) Describe(b *catalog.Backup) error {
	s := b.Sentinel
	for _, lsn := range []struct {
		what      string
		here, was any
	}{{"starts", m.StartLSN, s.LSN}, {"ends", m.StopLSN, s.FinishLSN}} {
		if fmt.Sprint(lsn.here) != fmt.Sprint(lsn.was) {
			return fmt.Errorf("the manifest of %s says that it %s at %v, backup.info says %v: %w", b.Name, lsn.what, lsn.here, lsn.was, ErrDamaged)
		}
	}
	spec := &archive.TablespaceSpec{BasePrefix: m.DataDir}
	for _, t := range m.Tablespaces {
		spec.Tablespaces = append(spec.Tablespaces, archive.Tablespace{OID: t.OID, Location: t.Location, Link: "pg_tblspc/" + t.OID})
	}
	s.Spec, s.DataDir = spec, m.DataDir
	return nil
}
