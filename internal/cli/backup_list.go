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

	"github.com/dustin/go-humanize"
	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/config"
	"holdfast/internal/describe"
	"holdfast/internal/proof"
	"holdfast/internal/ribbon"
)

func (a *app) backupList() *cobra.Command {
	return a.listing("backup-list", "List the backups of the archive",
		"Lists the backups, oldest first. Times are those of their creation, also in a copy of the archive. A backup whose documents\n"+
			"cannot be read is listed all the same, with the reason on standard error, and in JSON under the key error.\n\n"+
			"With --detail, behind WAL-G's columns: its kind; how many backups it is restored from; bytes as stored; whether it can be restored, as\n"+
			"`ribbon` says; bytes of WAL from its start to the newest moment that it leads to; when `verify` last read all of it, or damaged; when a\n"+
			"restore of it was last proven, or failed; when retention removes it, if it has condemned it. JSON has them too, and the whole chain.\n"+
			"`backup-show` tells all of one.",
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
	*judged
	Error string `json:"error,omitempty"`
}

// judged is what we add to the details of WAL-G.
type judged struct {
	Kind       string         `json:"kind"` // as describe.Kind has it
	DeltaFrom  string         `json:"delta_from,omitempty"`
	Chain      []string       `json:"chain,omitempty"`        // what it is restored from, newest first, itself included; missing where one of them is
	ChainBytes int64          `json:"chain_stored,omitempty"` // of all of these
	Verdict    ribbon.Verdict `json:"verdict,omitempty"`      // "" of a backup of another cluster
	Why        string         `json:"why,omitempty"`
	Replay     *uint64        `json:"wal_to_replay"` // bytes, from its start to Until; null where it cannot be restored
	Until      time.Time      `json:"restorable_until,omitzero"`
	Verified   time.Time      `json:"verified_at,omitzero"`
	Damaged    string         `json:"damaged,omitempty"`
	Proven     time.Time      `json:"proven_at,omitzero"`
	RTO        float64        `json:"rto_seconds,omitempty"` // that the restore took which proved it
	Failed     time.Time      `json:"proof_failed_at,omitzero"`
	Condemned  *condemned     `json:"condemned,omitempty"`
}

type condemned struct {
	At         time.Time `json:"at"`
	By         string    `json:"by"`
	PurgeAfter time.Time `json:"purge_after"`
	Request    string    `json:"request,omitempty"`
}

// condemnedOf returns what retention says of a backup; nil for nothing.
func condemnedOf(b *catalog.Backup) *condemned {
	if b.Condemned == nil {
		return nil
	}
	return &condemned{b.Condemned.At, b.Condemned.By, b.Condemned.PurgeAfter, b.Condemned.Request}
}

// judge says of each backup what is known beside its documents.
func judge(in *ribbon.Input) map[string]*judged {
	verdicts := map[string]ribbon.Backup{}
	for _, v := range ribbon.Compute(*in).Backups {
		verdicts[v.Name] = v
	}
	all := map[string]*judged{}
	for i := range in.Catalog.Backups {
		b := &in.Catalog.Backups[i]
		j := &judged{Kind: describe.Kind(b), Condemned: condemnedOf(b)}
		all[b.Name] = j
		if b.Sentinel == nil {
			continue
		}
		j.DeltaFrom = b.Sentinel.DeltaFrom
		if chain, err := in.Catalog.Chain(b); err == nil {
			for _, one := range chain {
				j.Chain = append(j.Chain, one.Name)
				j.ChainBytes += one.Sentinel.CompressedSize
			}
		}
		if e, known := in.Backups[b.Name]; known {
			j.Verified, j.Damaged, j.Proven, j.RTO, j.Failed = e.Verified, e.Damaged, e.Proven, e.RTO.Seconds(), e.Failed
		}
		if v, known := verdicts[b.Name]; known {
			j.Verdict, j.Why, j.Until = v.Verdict, v.Why, v.UntilTime
			if v.Verdict == ribbon.Restorable || v.ReplayBytes > 0 {
				j.Replay = &v.ReplayBytes
			}
		}
	}
	return all
}

// provenCell is where cells says whether a restore was proven.
const provenCell = 6

// proof says when a restore of the backup was last proven, and how long it took.
func (j *judged) proof(now time.Time) string {
	text := ribbon.Ago(max(0, now.Sub(j.Proven))) + " ago"
	if j.RTO > 0 {
		text += ", RTO " + time.Duration(j.RTO*float64(time.Second)).Round(time.Second).String()
	}
	return text
}

// cells returns j's columns: size is bytes as stored, at prints a time and bytes a size.
func (j *judged) cells(size int64, at func(time.Time) string, bytes func(int64) string) []string {
	time := func(t time.Time) string {
		if t.IsZero() {
			return "-"
		}
		return at(t.UTC())
	}
	chain, replay, verified, proven, going := "broken", "-", time(j.Verified), time(j.Proven), "-"
	if len(j.Chain) > 0 {
		chain = strconv.Itoa(len(j.Chain))
	}
	if j.Replay != nil {
		replay = bytes(int64(*j.Replay))
	}
	if j.Damaged != "" {
		verified = "damaged"
	}
	if !j.Failed.IsZero() {
		proven = "failed"
	}
	if j.Condemned != nil {
		going = at(j.Condemned.PurgeAfter.UTC())
	}
	return []string{j.Kind, chain, bytes(size), cmp.Or(string(j.Verdict), "-"), replay, verified, proven, going}
}

func (a *app) list(ctx context.Context, s *config.Settings, ar *archive.Archive, pretty, asJSON, detail bool) error {
	var c *catalog.Catalog
	var more map[string]*judged
	if detail && !ar.IsCatchUps() {
		in, err := a.loadRibbon(ctx, s, ribbonFlags{})
		if err != nil {
			return err
		}
		if c = in.Catalog; c != nil {
			more = judge(&in)
			if text := proof.Tell(in.RefusedProofs()); text != "" {
				a.log.Warn(text)
			}
		}
	}
	if c == nil { // or it says why nothing is known
		var err error
		if c, err = catalog.Load(ctx, ar); err != nil {
			return err
		}
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
			rows[i].Metadata, rows[i].judged = b.Details(), more[b.Name]
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
	ours := slices.ContainsFunc(rows, func(r listed) bool { return r.judged != nil })
	head := "backup_name\tmodified\twal_file_name\tstorage_name"
	if detail {
		head += "\tstart_time\tfinish_time\thostname\tdata_dir\tpg_version\tstart_lsn\tfinish_lsn\tis_permanent"
	}
	if ours {
		head += "\tkind\tchain\tsize\tverdict\twal_to_replay\tverified\tproven\tcondemned"
	}
	fmt.Fprintln(w, head)
	for _, r := range rows {
		fields := []string{r.Name, r.Time.Format(time.RFC3339), r.Segment, r.Storage}
		if m := r.Metadata; m != nil {
			fields = append(fields, m.StartTime.UTC().Format(time.RFC3339), m.FinishTime.UTC().Format(time.RFC3339), cell(m.Hostname), cell(m.DataDir),
				fmt.Sprint(m.PgVersion), m.StartLSN.String(), m.FinishLSN.String(), fmt.Sprint(m.IsPermanent))
		}
		if r.judged != nil {
			at := func(t time.Time) string { return t.Format(time.RFC3339) }
			fields = append(fields, r.cells(r.CompressedSize, at, func(n int64) string { return strconv.FormatInt(n, 10) })...)
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
	if slices.ContainsFunc(rows, func(r listed) bool { return r.judged != nil }) {
		head = append(head, "Kind", "Chain", "Size", "Verdict", "WAL to replay", "Verified", "Proven", "Condemned")
	}
	t.AppendHeader(head)
	for i, r := range rows {
		row := table.Row{i, r.Name, r.Time.Format(time.RFC850), r.Segment, r.Storage}
		if m := r.Metadata; m != nil {
			row = append(row, m.StartTime.UTC().Format(time.RFC850), m.FinishTime.UTC().Format(time.RFC850), cell(m.Hostname), cell(m.DataDir),
				m.PgVersion, m.StartLSN, m.FinishLSN, m.IsPermanent)
		}
		if r.judged != nil {
			at := func(t time.Time) string { return t.Format(time.DateTime) }
			for i, text := range r.cells(r.CompressedSize, at, func(n int64) string { return humanize.IBytes(uint64(max(0, n))) }) {
				if i == provenCell && !r.Proven.IsZero() && r.Failed.IsZero() {
					text = r.proof(time.Now())
				}
				row = append(row, text)
			}
		}
		if r.Error != "" {
			row[1] = r.Name + " (unreadable)"
		}
		t.AppendRow(row)
	}
	_, err := fmt.Fprintln(a.env.Stdout, t.Render())
	return err
}
