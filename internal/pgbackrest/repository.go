// Package pgbackrest reads repositories of pgBackRest, in place, and never writes to one.
//
// A repository has a directory per stanza below two others:
//
//	archive/<stanza>/archive.info                                    the clusters the stanza was for, one after the other
//	archive/<stanza>/<version>-<id>/<16 digits>/<segment>-<sha1><ext>  WAL of the cluster of that id
//	archive/<stanza>/<version>-<id>/<timeline>.history
//	backup/<stanza>/backup.info                                      the backups
//	backup/<stanza>/<label>/backup.manifest                          what a backup is made of, in this backup and those before
//	backup/<stanza>/<label>/<name of a file><ext>                    a file, as it is or compressed
//	backup/<stanza>/<label>/<name of a file>.pgbi                    the blocks of a file that have changed, and a map of all
//	backup/<stanza>/<label>/bundle/<n>                               many small files, one behind the other
//
// The info files and the manifest have a copy each, with .copy behind. In an encrypted repository the passphrase of the operator opens the two info
// files, the one in backup.info the manifests, the one in a manifest the files of its backup and of those it builds on; the one in archive.info opens WAL.
//
// Nothing read is trusted: documents have checksums, everything else the SHA-1 that they name, compared while it is read. The facts are
// those of pgBackRest's documentation and public source, and of repositories that releases 2.45 and 2.60 wrote.
package pgbackrest

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/pg/wal"
	"holdfast/internal/store"
)

// ErrDamaged says that something in the repository is not what it was when it was stored.
var ErrDamaged = errors.New("the repository is damaged")

// Options says what of a repository is meant. Stanza must be set.
type Options struct {
	Stanza     string
	Passphrase string // "" where the repository is not encrypted
	Location   string // of the repository, for errors; "" where it has no name
}

// Repository is a repository's stanza. Its methods may be called by several goroutines at once.
type Repository struct {
	store store.Store
	opts  Options
}

// New returns the stanza of the repository whose root is that of s. It does no I/O.
func New(s store.Store, o Options) (*Repository, error) {
	if o.Stanza == "" || path.Base(o.Stanza) != o.Stanza || o.Stanza == "." || o.Stanza == ".." {
		return nil, fmt.Errorf("%q is not the name of a stanza", o.Stanza)
	}
	return &Repository{s, o}, nil
}

func (r *Repository) backups() string { return "backup/" + r.opts.Stanza + "/" }
func (r *Repository) archive() string { return "archive/" + r.opts.Stanza + "/" }

// Cluster is one that the stanza was, or is, for: pg_upgrade begins another.
type Cluster struct {
	ID               int    // of pgBackRest, ascending from 1
	Version          string // of PostgreSQL, such as 15 or 9.6
	SystemIdentifier uint64
}

// Name is what pgBackRest calls the cluster's directory of WAL.
func (c Cluster) Name() string { return c.Version + "-" + strconv.Itoa(c.ID) }

// Info is what backup.info says.
type Info struct {
	Clusters []Cluster // ascending by ID; the last is the current one
	Backups  []Backup  // in the order they were made

	passphrase string // of the manifests
}

// Kind of a backup, in pgBackRest's words.
type Kind string

// The kinds.
const (
	Full         Kind = "full"
	Differential Kind = "diff"
	Incremental  Kind = "incr"
)

// Backup is an entry of backup.info. What it builds on is in other backups, which a restore of it needs.
type Backup struct {
	Label       string
	Kind        Kind
	ClusterID   int
	Prior       string   // label of the backup that it was compared with; "" of a full one
	References  []string // labels of all backups that hold something of it
	Started     time.Time
	Finished    time.Time
	StartLSN    *wal.LSN // nil of a backup that was taken while the server was stopped
	StopLSN     *wal.LSN
	StartWAL    string // segments; "" of such a backup
	StopWAL     string
	Size        int64 // bytes of the cluster
	DeltaSize   int64 // of them those that were copied
	RepoSize    int64 // bytes of all that a restore reads, where that is known
	RepoDelta   int64 // bytes that the backup takes in the repository
	Version     string
	PageErrors  bool // pages were found whose checksum did not hold
	Annotations map[string]string
}

// Offline reports whether the backup was taken while the server was stopped.
func (b *Backup) Offline() bool { return b.StartLSN == nil }

// labels matches the names of backups. Times in them are those of the host that took it.
var labels = regexp.MustCompile(`^[0-9]{8}-[0-9]{6}F(_[0-9]{8}-[0-9]{6}[DI])?$`)

// Info reads backup.info. That there is no such stanza is a *NoStanzaError.
func (r *Repository) Info(ctx context.Context) (*Info, error) {
	var i *Info
	err := r.readInfo(ctx, r.backups()+"backup.info", r.opts.Passphrase, func() { i = &Info{} }, func(section, key string, value json.RawMessage) error {
		switch section {
		case "db:history":
			return addCluster(&i.Clusters, key, value)
		case "backup:current":
			return i.add(key, value)
		case "cipher":
			return passphrase(&i.passphrase, key, value)
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, r.noStanza(ctx, err)
	}
	if err != nil {
		return nil, err
	}
	for _, b := range i.Backups {
		if !slices.ContainsFunc(i.Clusters, func(c Cluster) bool { return c.ID == b.ClusterID }) {
			return nil, fmt.Errorf("read %sbackup.info: %s is of the cluster %d, which is not described", r.backups(), b.Label, b.ClusterID)
		}
	}
	slices.SortStableFunc(i.Backups, func(x, y Backup) int { return cmp.Or(x.Finished.Compare(y.Finished), cmp.Compare(x.Label, y.Label)) })
	return i, nil
}

// passphrase takes the value of a section "cipher".
func passphrase(into *string, key string, value json.RawMessage) error {
	if key != "cipher-pass" {
		return nil
	}
	if err := json.Unmarshal(value, into); err != nil || *into == "" {
		return errors.New("cipher-pass is no passphrase") // which the error must not tell
	}
	return nil
}

// addCluster takes an entry of the section "db:history". In archive.info the system identifier goes by another name.
func addCluster(all *[]Cluster, key string, value json.RawMessage) error {
	id, err := strconv.ParseUint(key, 10, 31)
	if err != nil || id == 0 {
		return fmt.Errorf("%q is no number of a cluster", key)
	}
	var v struct {
		System    uint64 `json:"db-system-id"`
		InArchive uint64 `json:"db-id"`
		Version   string `json:"db-version"`
	}
	if err := json.Unmarshal(value, &v); err != nil {
		return err
	}
	if _, err := serverVersion(v.Version); err != nil {
		return err
	}
	*all = append(*all, Cluster{ID: int(id), Version: v.Version, SystemIdentifier: cmp.Or(v.System, v.InArchive)})
	slices.SortFunc(*all, func(x, y Cluster) int { return cmp.Compare(x.ID, y.ID) })
	return nil
}

// serverVersion turns 15 or 9.6 into server_version_num, without its minor release.
func serverVersion(text string) (int, error) {
	major, minor, old := strings.Cut(text, ".")
	n, err := strconv.ParseUint(major, 10, 8)
	if err == nil && old {
		var m uint64
		if m, err = strconv.ParseUint(minor, 10, 8); err == nil && n < 10 {
			return int(n)*10000 + int(m)*100, nil
		}
	}
	if err != nil || n < 10 || old {
		return 0, fmt.Errorf("%q is no version of PostgreSQL", text)
	}
	return int(n) * 10000, nil
}

// add takes an entry of the section "backup:current".
func (i *Info) add(label string, value json.RawMessage) error {
	if !labels.MatchString(label) {
		return fmt.Errorf("%q is no label of a backup", label)
	}
	var v struct {
		Kind        Kind              `json:"backup-type"`
		Cluster     int               `json:"db-id"`
		Prior       string            `json:"backup-prior"`
		References  []string          `json:"backup-reference"`
		Started     int64             `json:"backup-timestamp-start"`
		Finished    int64             `json:"backup-timestamp-stop"`
		StartLSN    *string           `json:"backup-lsn-start"`
		StopLSN     *string           `json:"backup-lsn-stop"`
		StartWAL    *string           `json:"backup-archive-start"`
		StopWAL     *string           `json:"backup-archive-stop"`
		Size        int64             `json:"backup-info-size"`
		DeltaSize   int64             `json:"backup-info-size-delta"`
		RepoSize    int64             `json:"backup-info-repo-size"`
		RepoDelta   int64             `json:"backup-info-repo-size-delta"`
		Version     string            `json:"backrest-version"`
		PageErrors  bool              `json:"backup-error"`
		Annotations map[string]string `json:"backup-annotation"`
	}
	if err := json.Unmarshal(value, &v); err != nil {
		return fmt.Errorf("%s: %w", label, err)
	}
	b := Backup{
		Label: label, Kind: v.Kind, ClusterID: v.Cluster, Prior: v.Prior, References: v.References,
		Started: time.Unix(v.Started, 0).UTC(), Finished: time.Unix(v.Finished, 0).UTC(),
		Size: v.Size, DeltaSize: v.DeltaSize, RepoSize: v.RepoSize, RepoDelta: v.RepoDelta, Version: v.Version, PageErrors: v.PageErrors, Annotations: v.Annotations,
	}
	switch {
	case v.Kind != Full && v.Kind != Differential && v.Kind != Incremental:
		return fmt.Errorf("%s: type %q of a backup is unknown", label, v.Kind)
	case (v.Kind == Full) != (v.Prior == "") || v.Prior != "" && !labels.MatchString(v.Prior):
		return fmt.Errorf("%s: a backup of type %s builds on %q", label, v.Kind, v.Prior)
	}
	for _, reference := range v.References {
		if !labels.MatchString(reference) {
			return fmt.Errorf("%s: it refers to %q, which is no label of a backup", label, reference)
		}
	}
	for _, lsn := range []struct {
		text *string
		into **wal.LSN
	}{{v.StartLSN, &b.StartLSN}, {v.StopLSN, &b.StopLSN}} {
		if lsn.text != nil {
			at, err := wal.ParseLSN(*lsn.text)
			if err != nil {
				return fmt.Errorf("%s: %w", label, err)
			}
			*lsn.into = &at
		}
	}
	for _, segment := range []struct{ text, into *string }{{v.StartWAL, &b.StartWAL}, {v.StopWAL, &b.StopWAL}} {
		if segment.text != nil {
			if !wal.IsSegment(*segment.text) {
				return fmt.Errorf("%s: %q is no name of a WAL segment", label, *segment.text)
			}
			*segment.into = *segment.text
		}
	}
	if (b.StartLSN == nil) != (b.StartWAL == "") {
		return fmt.Errorf("%s: of its first position and its first segment it has only one", label)
	}
	i.Backups = append(i.Backups, b)
	return nil
}

// Find returns the backup of that label; LATEST is the one that was made last.
func (i *Info) Find(label string) (*Backup, error) {
	if label == "LATEST" && len(i.Backups) > 0 {
		return &i.Backups[len(i.Backups)-1], nil
	}
	at := slices.IndexFunc(i.Backups, func(b Backup) bool { return b.Label == label })
	if at < 0 {
		return nil, fmt.Errorf("the repository has no backup %s: %w", label, fs.ErrNotExist)
	}
	return &i.Backups[at], nil
}

// Cluster returns that of a backup.
func (i *Info) Cluster(b *Backup) Cluster {
	return i.Clusters[slices.IndexFunc(i.Clusters, func(c Cluster) bool { return c.ID == b.ClusterID })] // Info has looked
}

// NoStanzaError says that a repository has no such stanza.
type NoStanzaError struct {
	Stanza   string
	Location string   // of the repository; "" where it has no name
	Others   []string // that it has, some of them
	Err      error    // fs.ErrNotExist of the document that is missing
}

func (e *NoStanzaError) Error() string {
	where := ""
	if e.Location != "" {
		where = " at " + e.Location
	}
	return fmt.Sprintf("the repository%s has no stanza %s: %v", where, e.Stanza, e.Err)
}

// Hint says which there are.
func (e *NoStanzaError) Hint() string {
	if len(e.Others) == 0 {
		return "a repository of pgBackRest has the directories archive and backup: look whether this is one, and whether repo1-path or the storage prefix leads to it"
	}
	return "it has " + strings.Join(e.Others, ", ") + ": set PGBACKREST_STANZA or --stanza"
}

// noStanza returns why there is no document, with the stanzas that there are.
func (r *Repository) noStanza(ctx context.Context, err error) error {
	e := &NoStanzaError{Stanza: r.opts.Stanza, Location: r.opts.Location, Err: err}
	for _, dir := range []string{"backup/", "archive/"} {
		for o, err := range r.store.List(ctx, dir, "") {
			if err != nil || len(e.Others) == 10 {
				break
			}
			if name := path.Base(o.Name); o.IsDir() && !slices.Contains(e.Others, name) && name != r.opts.Stanza {
				e.Others = append(e.Others, name)
			}
		}
	}
	return e
}
