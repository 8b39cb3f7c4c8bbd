package verify

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
)

// explain says of each finding what it means for restores, and what to do.
func (r *run) explain() {
	damaged := map[string]bool{}
	for i := range r.findings {
		if f := &r.findings[i]; f.Severity == Damage && f.Backup != "" && r.vital(f.Backup, f.Object) {
			damaged[f.Backup] = true
		}
	}
	for i := range r.findings {
		f := &r.findings[i]
		switch {
		case f.Severity == Unknown && f.Kind == Key:
			f.Next = "verify on a host that has the secret key"
		case f.Severity == Unknown && f.Kind == Store:
			f.Next = "try again; `holdfast st check` tells whether the storage can be read"
		case f.Severity != Damage:
		case strings.HasPrefix(f.Object, archive.WALDir):
			r.explainWAL(f)
		case strings.HasPrefix(f.Object, archive.TailDir):
			f.Means = "a restore to the latest moment does not reach the last commits"
			f.Next = "wait for the server to finish the segment, or have it do so: `SELECT pg_switch_wal()`; where it is lost wal-receive's spool may have the segment"
		case f.Backup != "":
			r.explainBackup(f, damaged)
		}
	}
}

// vital reports whether a restore of a backup fails of damage to an object.
func (r *run) vital(backup, object string) bool {
	rest := strings.TrimPrefix(object, archive.Folder(backup))
	switch {
	case strings.HasPrefix(rest, sumsDir), rest == metadataName, rest == serverManifestName, rest == objectsName, strings.HasPrefix(rest, archive.ConfigName):
		return false
	case rest == fileListName:
		t := r.target(backup)
		return t == nil || t.object(manifestName) == nil
	}
	return true
}

func (r *run) target(name string) *target {
	i := slices.IndexFunc(r.targets, func(t *target) bool { return t.name == name })
	if i < 0 {
		return nil
	}
	return r.targets[i]
}

// explainBackup says what damage in a backup means.
func (r *run) explainBackup(f *Finding, damaged map[string]bool) {
	rest := strings.TrimPrefix(f.Object, archive.Folder(f.Backup))
	copies := "copy the object from a mirror or a copy of the archive, if there is one, and verify again"
	switch {
	case strings.HasPrefix(rest, sumsDir):
		f.Means, f.Next = "the backup can be restored, its files being checked as a whole; deltas on it and `backup-fetch --delta` cannot read single pages of that part", copies
	case rest == metadataName:
		f.Means = "the backup can be restored; lists, and whether it is permanent, cannot be relied on: it may be deleted though it was marked"
		f.Next = "`holdfast backup-mark` writes the flag anew once the document is mended; else " + copies
	case rest == serverManifestName:
		f.Means, f.Next = "the backup can be restored; it is no parent of a delta over the wire", copies
	case rest == objectsName:
		f.Means, f.Next = "the backup can be restored; without a key it cannot be verified", copies
	case strings.HasPrefix(rest, archive.ConfigName):
		f.Means, f.Next = "the backup can be restored, without the configuration that lay outside of the data directory", "keep a copy of that configuration elsewhere; "+copies
	case !r.vital(f.Backup, f.Object):
		f.Means, f.Next = "Holdfast restores the backup; stock WAL-G cannot", copies
	default:
		on := r.builtOn(f.Backup)
		f.Means = fmt.Sprintf("%s cannot be restored", f.Backup)
		if f.Member != "" && f.Kind == Content {
			f.Means = fmt.Sprintf("%s can be restored without %s at best", f.Backup, f.Member)
		}
		if n := len(on); n > 0 {
			f.Means += fmt.Sprintf(", nor what builds on it: %s", strings.Join(on[:min(n, 3)], ", "))
			if n > 3 {
				f.Means += fmt.Sprintf(" and %d others", n-3)
			}
		}
		f.Next = copies + r.instead(f.Backup, damaged)
	}
}

// builtOn names the backups that build on one.
func (r *run) builtOn(name string) (names []string) {
	known := map[string]bool{name: true}
	for again := true; again; {
		again = false
		for i := range r.catalog.Backups {
			b := &r.catalog.Backups[i]
			if b.Sentinel != nil && known[b.Sentinel.DeltaFrom] && !known[b.Name] {
				known[b.Name], again = true, true
				names = append(names, b.Name)
			}
		}
	}
	return names
}

// instead names a backup to restore instead of a damaged one: the newest before it, else the first behind it, in which no damage was found.
func (r *run) instead(name string, damaged map[string]bool) string {
	i := slices.IndexFunc(r.catalog.Backups, func(b catalog.Backup) bool { return b.Name == name })
	usable := func(b *catalog.Backup) bool {
		chain, err := r.catalog.Chain(b)
		return err == nil && b.Condemned == nil && !slices.ContainsFunc(chain, func(c *catalog.Backup) bool { return damaged[c.Name] || c.Name == name })
	}
	for k := i - 1; k >= 0; k-- {
		if b := &r.catalog.Backups[k]; usable(b) {
			return fmt.Sprintf("; restore %s instead, from which the WAL leads to the same moments", b.Name)
		}
	}
	for k := i + 1; i >= 0 && k < len(r.catalog.Backups); k++ {
		if b := &r.catalog.Backups[k]; usable(b) {
			return fmt.Sprintf("; %s can be restored, and with it what came later", b.Name)
		}
	}
	return "; take a full backup now: there is no other one"
}

// explainWAL says what damage in the WAL means: which moments are lost.
func (r *run) explainWAL(f *Finding) {
	name := archive.WALName(f.Object)
	if wal.KindOf(name) == wal.History {
		f.Means = "no restore reaches timeline " + fmt.Sprint(uint32(f.segment.t)) + " from a backup that was taken before it began"
		f.Next = "push it again with `holdfast wal-push` from pg_wal of the primary or a standby, once the damaged object is moved aside"
		return
	}
	if f.segment == nil {
		return
	}
	s := f.segment
	start := r.wal.size.Start(s.no)
	var before, next *catalog.Backup // that goes over it; that begins behind it
	for i := range r.catalog.Backups {
		b := &r.catalog.Backups[i]
		lsn, ok := b.StartLSN()
		switch {
		case !ok || b.Timeline() < s.t && false:
		case lsn >= start+wal.LSN(r.wal.size) && b.Timeline() >= s.t && next == nil:
			next = b
		case lsn < start+wal.LSN(r.wal.size):
			before = b
		}
	}
	f.Means = fmt.Sprintf("recovery from earlier backups ends at %s", start)
	if f.LSN != "" {
		f.Means = "recovery from earlier backups ends at " + f.LSN
	}
	if archived := r.archivedBefore(s); !archived.IsZero() {
		f.Means += ", about " + catalog.FormatTime(archived)
	}
	if before != nil {
		if finish, ok := before.FinishLSN(); ok && finish > start {
			f.Means = fmt.Sprintf("%s cannot be made consistent: its WAL is damaged", before.Name)
			if f.Kind == Missing {
				f.Means = fmt.Sprintf("%s cannot be made consistent: its WAL is missing", before.Name)
			}
		}
	}
	f.Next = "`holdfast wal-push --repair` on the primary or a standby, if its pg_wal still has the segment"
	if f.Kind != Missing {
		f.Next += " (move the damaged object aside first)"
	}
	if next != nil {
		f.Next += fmt.Sprintf("; moments from %s on are restored from %s", catalog.FormatTime(next.Created()), next.Name)
	} else {
		f.Next += "; else take a backup now: only what comes after it can be restored"
	}
}

// archivedBefore returns when the last segment before s was archived.
func (r *run) archivedBefore(s *segment) time.Time {
	segments := r.wal.timeline(s.t).segments
	for i := range slices.Backward(segments) {
		if segments[i].no < s.no {
			return segments[i].modified
		}
	}
	return time.Time{}
}
