package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/config"
)

func (a *app) backupList() *cobra.Command {
	return a.listing("backup-list", "List the backups of the archive",
		"Lists the backups, oldest first. Times are those of their creation, also in a copy of the archive. A backup whose documents\n"+
			"cannot be read is listed all the same, with the reason on standard error, and in JSON under the key error.",
		"  holdfast backup-list\n  holdfast backup-list --detail --json | jq -r '.[].backup_name'",
		func(ar *archive.Archive) *archive.Archive { return ar })
}

// listing makes a command that lists what of makes of an archive.
func (a *app) listing(use, short, long, example string, of func(*archive.Archive) *archive.Archive) *cobra.Command {
	var pretty, asJSON, detail bool
	cmd := &cobra.Command{
		Use:     use,
		Short:   short,
		Long:    long,
		Example: example,
		Args:    a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.load(cmd)
			if err != nil {
				return err
			}
			ar, err := a.openArchive(cmd.Context(), s, toList)
			if err != nil {
				return err
			}
			return a.list(cmd.Context(), s, of(ar), pretty, asJSON, detail)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&pretty, "pretty", false, "print a table with borders; with --json indent")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	f.BoolVar(&detail, "detail", false, "print what is known of each backup")
	targetFlag(cmd)
	return cmd
}

// listed is a backup as JSON shows it; with details the keys of metadata.json follow.
type listed struct {
	Name    string    `json:"backup_name"`
	Time    time.Time `json:"time"`
	Segment string    `json:"wal_file_name"`
	Storage string    `json:"storage_name"`
	*archive.Metadata
	Error string `json:"error,omitempty"`
}

func (a *app) list(ctx context.Context, s *config.Settings, ar *archive.Archive, pretty, asJSON, detail bool) error {
	c, err := catalog.Load(ctx, ar)
	if err != nil {
		return err
	}
	backups := c.Backups
	storages, err := a.storageNames(ctx, s, ar)
	if err != nil {
		return err
	}
	started := func(b catalog.Backup) bool { return b.Started().IsZero() }
	if detail && !slices.ContainsFunc(backups, started) {
		slices.SortStableFunc(backups, func(x, y catalog.Backup) int { return x.Started().Compare(y.Started()) })
	}
	rows := make([]listed, len(backups))
	for i := range backups {
		b := &backups[i]
		rows[i] = listed{Name: b.Name, Time: b.Created().UTC(), Segment: b.Segment(), Storage: cmp.Or(storages[b.Name], s.InUse()[0].Name)}
		if detail {
			rows[i].Metadata = b.Details()
		}
		if b.Err != nil {
			rows[i].Error = b.Err.Error()
			a.log.Error(fmt.Sprintf("backup %s cannot be read: %v", b.Name, b.Err))
		}
	}
	if len(rows) == 0 {
		a.log.Info("No backups found")
	}
	switch {
	case asJSON && pretty:
		out := json.NewEncoder(a.env.Stdout)
		out.SetIndent("", "    ")
		return out.Encode(rows)
	case asJSON:
		return a.printJSON(rows)
	case len(rows) == 0:
		return nil
	case pretty:
		return a.listTable(rows, detail)
	}
	return a.listPlain(rows, detail)
}

// storageNames returns which storage each backup lies in, where there are several.
func (a *app) storageNames(ctx context.Context, s *config.Settings, ar *archive.Archive) (map[string]string, error) {
	names := map[string]string{}
	if len(s.InUse()) == 1 {
		return names, nil
	}
	for f, err := range ar.Backups(ctx) {
		if err != nil {
			return nil, err
		}
		names[f.Name] = f.Object.Storage
	}
	return names, nil
}

// listPlain prints columns with spaces between them, as scripts expect them.
func (a *app) listPlain(rows []listed, detail bool) error {
	w := tabwriter.NewWriter(a.env.Stdout, 0, 0, 1, ' ', 0)
	head := "backup_name\tmodified\twal_file_name\tstorage_name"
	if detail {
		head += "\tstart_time\tfinish_time\thostname\tdata_dir\tpg_version\tstart_lsn\tfinish_lsn\tis_permanent"
	}
	fmt.Fprintln(w, head)
	for _, r := range rows {
		fields := []string{r.Name, r.Time.Format(time.RFC3339), r.Segment, r.Storage}
		if m := r.Metadata; m != nil {
			fields = append(fields, m.StartTime.UTC().Format(time.RFC3339), m.FinishTime.UTC().Format(time.RFC3339), cell(m.Hostname), cell(m.DataDir),
				fmt.Sprint(m.PgVersion), m.StartLSN.String(), m.FinishLSN.String(), fmt.Sprint(m.IsPermanent))
		}
		if r.Error != "" {
			fields = append(fields, "unreadable")
		}
		fmt.Fprintln(w, strings.Join(fields, "\t"))
	}
	return w.Flush()
}

// cell shows what an archive says on one line and in one column.
func cell(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}

// listTable prints a table with borders.
func (a *app) listTable(rows []listed, detail bool) error {
	t := table.NewWriter()
	head := table.Row{"#", "Backup name", "Modified", "WAL file name", "Storage name"}
	if detail {
		head = append(head, "Start time", "Finish time", "Hostname", "Datadir", "PG Version", "Start LSN", "Finish LSN", "Permanent")
	}
	t.AppendHeader(head)
	for i, r := range rows {
		row := table.Row{i, r.Name, r.Time.Format(time.RFC850), r.Segment, r.Storage}
		if m := r.Metadata; m != nil {
			row = append(row, m.StartTime.UTC().Format(time.RFC850), m.FinishTime.UTC().Format(time.RFC850), cell(m.Hostname), cell(m.DataDir),
				m.PgVersion, m.StartLSN, m.FinishLSN, m.IsPermanent)
		}
		if r.Error != "" {
			row[1] = r.Name + " (unreadable)"
		}
		t.AppendRow(row)
	}
	_, err := fmt.Fprintln(a.env.Stdout, t.Render())
	return err
}
