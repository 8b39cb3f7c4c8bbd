package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"holdfast/internal/catalog"
	"holdfast/internal/config"
	"holdfast/internal/pg/wal"
	"holdfast/internal/pgbackrest"
)

// theirBackup is a backup of pgBackRest as JSON shows it.
type theirBackup struct {
	Name    string          `json:"backup_name"`
	Time    time.Time       `json:"time"`
	Segment string          `json:"wal_file_name"`
	Kind    pgbackrest.Kind `json:"type"`
	Prior   string          `json:"prior,omitempty"` // what it was compared with
	*theirDetails
}

// theirDetails is what is known beyond that.
type theirDetails struct {
	Started          time.Time         `json:"start_time"`
	Finished         time.Time         `json:"finish_time"`
	StartLSN         *wal.LSN          `json:"start_lsn"`
	FinishLSN        *wal.LSN          `json:"finish_lsn"`
	LastSegment      string            `json:"last_wal_file_name"`
	Version          string            `json:"pg_version"`
	SystemIdentifier uint64            `json:"system_identifier"`
	Cluster          string            `json:"cluster"` // the directory of its WAL
	References       []string          `json:"references,omitempty"`
	Size             int64             `json:"uncompressed_size"`
	DeltaSize        int64             `json:"copied_size"`
	RepoSize         int64             `json:"restore_reads,omitempty"`
	RepoDelta        int64             `json:"compressed_size"`
	PageErrors       bool              `json:"page_errors"`
	Tool             string            `json:"pgbackrest_version"`
	Annotations      map[string]string `json:"annotations,omitempty"`
}

func (t *theirs) backupList() *cobra.Command {
	var pretty, asJSON, detail bool
	cmd := &cobra.Command{
		Use:     "backup-list",
		Short:   "List the backups of a stanza",
		Long:    "Lists the backups of a stanza under their labels, oldest first, those of clusters before pg_upgrade too.",
		Example: "  holdfast pgbackrest backup-list --pretty\n  holdfast pgbackrest backup-list --detail --json | jq -r '.[].backup_name'",
		Args:    t.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, p, err := t.start(cmd)
			if err != nil {
				return err
			}
			info, err := p.Info(cmd.Context())
			if err != nil {
				return err
			}
			return t.list(info, pretty, asJSON, detail)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&pretty, "pretty", false, "print a table with borders; with --json indent")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	f.BoolVar(&detail, "detail", false, "print what is known of each backup")
	targetFlag(cmd)
	return cmd
}

// list prints the backups of a stanza.
func (t *theirs) list(info *pgbackrest.Info, pretty, asJSON, detail bool) error {
	rows := make([]theirBackup, len(info.Backups))
	for i := range info.Backups {
		b := &info.Backups[i]
		rows[i] = theirBackup{Name: b.Label, Time: b.Finished, Segment: b.StartWAL, Kind: b.Kind, Prior: b.Prior}
		if detail {
			c := info.Cluster(b)
			rows[i].theirDetails = &theirDetails{
				Started: b.Started, Finished: b.Finished, StartLSN: b.StartLSN, FinishLSN: b.StopLSN, LastSegment: b.StopWAL, Version: c.Version,
				SystemIdentifier: c.SystemIdentifier, Cluster: c.Name(), References: b.References, Size: b.Size, DeltaSize: b.DeltaSize,
				RepoSize: b.RepoSize, RepoDelta: b.RepoDelta, PageErrors: b.PageErrors, Tool: b.Version, Annotations: b.Annotations,
			}
		}
	}
	if len(rows) == 0 {
		t.log.Info("No backups found")
	}
	switch {
	case asJSON && pretty:
		out := json.NewEncoder(t.env.Stdout)
		out.SetIndent("", "    ")
		return out.Encode(rows)
	case asJSON:
		return t.printJSON(rows)
	case len(rows) == 0:
		return nil
	}
	head := []string{"backup_name", "modified", "wal_file_name", "type", "prior"}
	if detail {
		head = append(head, "start_time", "start_lsn", "finish_lsn", "last_wal_file_name", "pg_version", "system_identifier", "size", "stored", "page_errors")
	}
	lines := make([][]string, len(rows))
	for i, r := range rows {
		lines[i] = []string{r.Name, r.Time.Format(time.RFC3339), dash(r.Segment), string(r.Kind), dash(r.Prior)}
		if d := r.theirDetails; d != nil {
			lines[i] = append(lines[i], d.Started.Format(time.RFC3339), position(d.StartLSN), position(d.FinishLSN), dash(d.LastSegment), d.Version,
				fmt.Sprint(d.SystemIdentifier), fmt.Sprint(d.Size), fmt.Sprint(d.RepoDelta), fmt.Sprint(d.PageErrors))
		}
	}
	if pretty {
		w := table.NewWriter()
		w.AppendHeader(cells(head))
		for _, line := range lines {
			w.AppendRow(cells(line))
		}
		_, err := fmt.Fprintln(t.env.Stdout, w.Render())
		return err
	}
	w := tabwriter.NewWriter(t.env.Stdout, 0, 0, 1, ' ', 0)
	fmt.Fprintln(w, strings.Join(head, "\t"))
	for _, line := range lines {
		fmt.Fprintln(w, strings.Join(line, "\t"))
	}
	return w.Flush()
}

// cells makes a row of a table.
func cells(texts []string) (row table.Row) {
	for _, text := range texts {
		row = append(row, text)
	}
	return row
}

// dash stands for nothing in a column.
func dash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// position prints one, or a dash.
func position(at *wal.LSN) string {
	if at == nil {
		return "-"
	}
	return at.String()
}

// theirWAL is the WAL of a cluster as JSON shows it.
type theirWAL struct {
	Cluster          string  `json:"cluster"` // the directory of its WAL
	Version          string  `json:"pg_version"`
	SystemIdentifier uint64  `json:"system_identifier"`
	Timelines        []shown `json:"timelines"`
}

func (t *theirs) walShow() *cobra.Command {
	var asJSON, without bool
	cmd := &cobra.Command{
		Use:   "wal-show",
		Short: "Show the WAL in a repository of pgBackRest: timelines, promotions, what is missing",
		Long: "Shows which WAL the repository has, as `holdfast wal-show` does of an archive of ours, for each of the clusters that the stanza was for,\n" +
			"the current one last.",
		Example: "  holdfast pgbackrest wal-show\n  holdfast pgbackrest wal-show --detailed-json | jq '.[].timelines[].missing_segments'",
		Args:    t.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, p, err := t.start(cmd)
			if err != nil {
				return err
			}
			return t.showWAL(cmd.Context(), s, p, asJSON, !without)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&asJSON, "detailed-json", false, "print JSON, with each missing segment and each backup")
	f.BoolVar(&without, "without-backups", false, "leave the backups out")
	targetFlag(cmd)
	return cmd
}

// showWAL prints the WAL of all clusters of a stanza.
func (t *theirs) showWAL(ctx context.Context, s *config.Settings, p *place, asJSON, backups bool) error {
	info, err := p.Info(ctx)
	if err != nil {
		return err
	}
	wals, err := p.WALInfo(ctx)
	if err != nil {
		return err
	}
	all := []theirWAL{}
	for _, c := range wals.Clusters {
		h := &history{archive: p.WAL(wals, c), theirs: true}
		if h.catalog, err = info.Catalog(ctx, h.archive, c); err != nil {
			return err
		}
		if err := t.loadEvidence(ctx, s, h); err != nil {
			return err
		}
		infos := h.describe()
		if asJSON {
			all = append(all, theirWAL{c.Name(), c.Version, c.SystemIdentifier, h.shown(infos, backups, "")})
			continue
		}
		if len(wals.Clusters) > 1 {
			fmt.Fprintf(t.env.Stdout, "%s, the cluster with system identifier %d:\n", c.Name(), c.SystemIdentifier)
		}
		if err := t.printShow(h, infos, backups); err != nil {
			return err
		}
	}
	if asJSON {
		return t.printJSON(all)
	}
	return nil
}

func (t *theirs) verify() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify [NAME|LATEST|all]",
		Short: "Read backups of pgBackRest and compare them with their checksums",
		Long: "Reads every file of a backup, whatever backups hold it, and the WAL from its start to its end, and compares all with the checksums that\n" +
			"pgBackRest keeps. Without a name it is the newest backup. The exit status is 1 where anything is missing or damaged.",
		Example: "  holdfast pgbackrest verify\n  holdfast pgbackrest verify all --json",
		Args:    t.args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, p, err := t.start(cmd)
			if err != nil {
				return err
			}
			info, err := p.Info(cmd.Context())
			if err != nil {
				return err
			}
			names := []string{"LATEST"}
			if len(args) == 1 {
				names = args
			}
			if len(args) == 1 && args[0] == "all" {
				names = nil
				for _, b := range info.Backups {
					names = append(names, b.Label)
				}
			}
			all := []*pgbackrest.Verification{} // JSON shows a list, though nothing is in it
			bad := 0
			for _, name := range names {
				v, err := t.verifyOne(cmd.Context(), s, p, name)
				if err != nil && (len(names) == 1 || cmd.Context().Err() != nil) {
					return err
				}
				if err != nil { // of the others there is still something to tell
					v = &pgbackrest.Verification{Backup: name, Unread: true, Problems: []pgbackrest.Problem{{Text: err.Error()}}}
				}
				if all = append(all, v); !v.OK() {
					bad++
				}
			}
			if asJSON {
				err = t.printJSON(all)
			} else {
				err = t.printVerified(all)
			}
			if err == nil && bad > 0 {
				err = &advised{fmt.Errorf("of %d backups %d cannot be restored as they were, or not be read", len(all), bad), "take a new full backup; one that is whole can be restored and brought further by its WAL"}
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a report as JSON")
	targetFlag(cmd)
	return cmd
}

// reading is where a verification is.
type reading struct {
	done  atomic.Int64
	total int64
}

func (r *reading) Phase() string              { return "read" }
func (r *reading) Bytes() (done, total int64) { return r.done.Load(), r.total }

// verifyOne verifies a backup.
func (t *theirs) verifyOne(ctx context.Context, s *config.Settings, p *place, name string) (*pgbackrest.Verification, error) {
	b, err := t.choose(ctx, s, p, name, catalog.Target{})
	if err != nil {
		return nil, err
	}
	m, err := p.Manifest(ctx, b.info, b.backup)
	if err != nil {
		return nil, err
	}
	if err := m.Describe(b.choice.Backup); err != nil {
		return nil, err
	}
	at := &reading{total: b.backup.Size}
	stop := t.progress(ctx, "verify "+m.Label, at)
	defer stop()
	return p.Verify(ctx, m, b.choice.Backup, b.wal, runtime.GOMAXPROCS(0), func(n int64) { at.done.Add(n) })
}

// printVerified prints a line per backup, and one per problem.
func (t *theirs) printVerified(all []*pgbackrest.Verification) error {
	var b strings.Builder
	for _, v := range all {
		verdict := "OK"
		switch {
		case v.Unread:
			fmt.Fprintf(&b, "UNREAD %s: %s\n", v.Backup, v.Problems[0].Text)
			continue
		case !v.OK():
			verdict = "DAMAGED"
		}
		fmt.Fprintf(&b, "%s %s: %d files, %s, and %d WAL segments are right\n", verdict, v.Backup, v.Files, humanize.IBytes(uint64(v.Bytes)), v.Segments)
		if v.BadFiles > 0 {
			fmt.Fprintf(&b, "  %d files had pages with wrong checksums already when the backup was taken, the first is %s\n", v.BadFiles, cell(v.FirstBad))
		}
		for _, p := range v.Problems {
			what := ""
			if p.What != "" {
				what = cell(p.What) + ": "
			}
			fmt.Fprintf(&b, "  %s%s\n", what, p.Text)
		}
		if v.More > 0 {
			fmt.Fprintf(&b, "  and %d more\n", v.More)
		}
	}
	_, err := t.env.Stdout.Write([]byte(b.String()))
	return err
}
