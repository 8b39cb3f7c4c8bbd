package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/config"
	"holdfast/internal/pg/server"
	"holdfast/internal/pg/wal"
	"holdfast/internal/retention"
	"holdfast/internal/walverify"
)

// verifyFlags are those of wal-verify.
type verifyFlags struct {
	asJSON, all           bool
	timeline, lsn, backup string
}

// The checks of wal-verify.
const (
	integrityCheck = "integrity"
	timelineCheck  = "timeline"
)

func (a *app) walVerify() *cobra.Command {
	var f verifyFlags
	cmd := &cobra.Command{
		Use:   "wal-verify integrity|timeline [integrity|timeline]",
		Short: "Check that no WAL is missing, and that nobody else writes to the archive",
		Long: "integrity looks, in all storages, for every WAL segment from the start of the oldest backup to the one that the server is writing; of\n" +
			"the newest some may be late (WALG_INTEGRITY_MAX_DELAYED_WALS). Segments that somebody has accepted as lost (`wal-gap accept`), or that\n" +
			"retention has removed, count as fine. Of backups that HOLDFAST_RETENTION keeps for their own moment (gfs beside recovery_window or full) their\n" +
			"own WAL is looked for, and none behind it. It goes by names: `verify` reads what is in them. How far all was found is kept in the archive,\n" +
			"and the next call goes on there; of what lies before it asks again for 10,000 segments, which may be all, and once a day, or with --full,\n" +
			"for everything.\n\n" +
			"timeline compares the highest timeline in the archive with the server's: where they differ another server archives there too, or did.\n\n" +
			"The server is asked for its timeline and position, unless --timeline and --lsn say them. The exit status is that of the worse check, as\n" +
			"Nagios has it: 0 OK, 1 WARNING or not judged, 2 FAILURE.",
		Example: "  holdfast wal-verify integrity timeline\n  holdfast wal-verify integrity --json --timeline 3 --lsn 16/B374D848",
		Args:    a.args(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			for i, arg := range args {
				if arg != integrityCheck && arg != timelineCheck || slices.Contains(args[:i], arg) {
					return a.usage(cmd, fmt.Errorf("%q is not one of the checks: %s, %s", arg, integrityCheck, timelineCheck))
				}
			}
			if (f.timeline == "") != (f.lsn == "") {
				return a.usage(cmd, errors.New("--timeline and --lsn go together"))
			}
			s, err := a.load(cmd)
			if err != nil {
				return err
			}
			return a.verifyWAL(cmd.Context(), s, args, f)
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&f.asJSON, "json", false, "print JSON")
	flags.StringVar(&f.timeline, "timeline", "", "the timeline that the cluster is on, instead of asking the server")
	flags.StringVar(&f.lsn, "lsn", "", "the position that the cluster is at, such as 16/B374D848")
	flags.StringVar(&f.backup, "backup-name", "", "look for WAL from the start of this backup on, or LATEST")
	flags.BoolVar(&f.all, "full", false, "look at all names, whatever was found before")
	targetFlag(cmd)
	return cmd
}

// verifiedJSON is what wal-verify prints as JSON: WAL-G's keys, then ours.
type verifiedJSON struct {
	Integrity *integrityJSON `json:"integrity,omitempty"`
	Timeline  *timelineJSON  `json:"timeline,omitempty"`
}

type integrityJSON struct {
	Status  walverify.Status `json:"status"`
	Details []integrityRow   `json:"details"`
	Backup  string           `json:"backup_name,omitempty"`
	Since   string           `json:"looked_since,omitempty"` // the segment with which this look began
	Notes   []string         `json:"notes,omitempty"`
}

type integrityRow struct {
	Timeline wal.Timeline    `json:"timeline_id"`
	First    string          `json:"start_segment"`
	Last     string          `json:"end_segment"`
	Count    uint64          `json:"segments_count"`
	Status   walverify.Found `json:"status"`
	By       string          `json:"accepted_by,omitempty"`
	Reason   string          `json:"reason,omitempty"`
}

type timelineJSON struct {
	Status  walverify.Status `json:"status"`
	Details struct {
		Current wal.Timeline `json:"current_timeline_id"`
		Highest wal.Timeline `json:"highest_storage_timeline_id"`
	} `json:"details"`
}

// clusterPosition says where the cluster is: as the flags say, or the server.
func (a *app) clusterPosition(ctx context.Context, s *config.Settings, f verifyFlags) (*server.Position, error) {
	if f.timeline == "" {
		return askPosition(ctx, s)
	}
	t, err1 := parseTimeline(f.timeline)
	lsn, err2 := wal.ParseLSN(f.lsn)
	return &server.Position{Timeline: t, LSN: lsn}, errors.Join(err1, err2)
}

// verifyWAL runs the checks and prints what they found.
func (a *app) verifyWAL(ctx context.Context, s *config.Settings, checks []string, f verifyFlags) error {
	a.starts("wal-verify")
	at, err := a.clusterPosition(ctx, s, f)
	if err != nil {
		return err
	}
	ar, err := a.openArchive(ctx, s, toRead)
	if err != nil {
		return err
	}
	var out verifiedJSON
	if slices.Contains(checks, integrityCheck) {
		if out.Integrity, err = a.checkIntegrity(ctx, s, ar, at, f); err != nil {
			return err
		}
	}
	if slices.Contains(checks, timelineCheck) {
		highest, err := walverify.Highest(ctx, ar)
		if err != nil {
			return err
		}
		out.Timeline = &timelineJSON{Status: walverify.JudgeTimeline(highest, at.Timeline)}
		out.Timeline.Details.Current, out.Timeline.Details.Highest = at.Timeline, highest
	}
	if f.asJSON {
		err = a.printJSON(out)
	} else {
		err = a.printVerified(checks, out)
	}
	if err != nil {
		return err
	}
	return out.verdict()
}

func (a *app) checkIntegrity(ctx context.Context, s *config.Settings, ar *archive.Archive, at *server.Position, f verifyFlags) (*integrityJSON, error) {
	c, err := catalog.Load(ctx, ar)
	if err != nil {
		return nil, err
	}
	size := at.SegmentSize
	if size == 0 {
		var known bool
		if size, known = c.SegmentSize(); !known {
			a.log.Info(fmt.Sprintf("no backup says how large WAL segments are: they are taken to have %d MiB", size>>20))
		}
	}
	if id := cluster(c); id != 0 && at.SystemIdentifier != 0 && id != at.SystemIdentifier {
		a.log.Warn(fmt.Sprintf("the newest backup is of the cluster with system identifier %d, the server's is %d: its backups do not count", id, at.SystemIdentifier))
	}
	accepted, bad, err := catalog.LoadAccepted(ctx, ar, size)
	if err != nil {
		return nil, err
	}
	for _, err := range bad {
		a.log.Warn(fmt.Sprintf("a record is passed over: %v", err))
	}
	name := f.backup
	if name == "LATEST" {
		b, err := c.Latest()
		if err != nil {
			return nil, err
		}
		name = b.Name
	}
	r := walverify.Request{
		Timeline: at.Timeline, LSN: at.LSN, System: at.SystemIdentifier, Size: size, Backup: name, Delayed: s.WAL.Delayed, Uploading: s.WAL.Parallel,
		All: f.all, Now: time.Now(), By: archive.NewRecordHead("", release()),
	}
	if r.System == 0 {
		r.System = cluster(c)
	}
	keep, err := policy(s)
	if err != nil {
		return nil, err
	}
	if keep.Moments() {
		damaged, err := retention.LoadDamaged(ctx, ar, c)
		if err != nil {
			return nil, err
		}
		r.Since = keep.Continuous(c, damaged, r.Now)
	}
	found, err := walverify.Check(ctx, ar, c, accepted, r)
	if err != nil {
		return nil, err
	}
	for _, note := range found.Notes {
		a.log.Info(note)
	}
	out := &integrityJSON{Status: found.Status, Details: []integrityRow{}, Backup: found.Backup, Since: found.Since, Notes: found.Notes}
	for _, row := range found.Rows {
		d := integrityRow{Timeline: row.Timeline, First: size.Name(row.Timeline, row.First), Last: size.Name(row.Timeline, row.Last), Count: row.Count(), Status: row.Found}
		if row.Accepted != nil {
			d.By, d.Reason = row.Accepted.By, row.Accepted.Reason
		}
		out.Details = append(out.Details, d)
	}
	return out, nil
}

// printVerified prints what was found in WAL-G's form.
func (a *app) printVerified(checks []string, out verifiedJSON) error {
	var b strings.Builder
	for _, check := range checks {
		if check == integrityCheck {
			fmt.Fprintf(&b, "[wal-verify] integrity check status: %s\n[wal-verify] integrity check details:\n", out.Integrity.Status)
			t := table.NewWriter()
			t.AppendHeader(table.Row{"TLI", "Start", "End", "Segments count", "Status"})
			for _, d := range out.Integrity.Details {
				t.AppendRow(table.Row{uint32(d.Timeline), d.First, d.Last, d.Count, d.Status})
			}
			fmt.Fprintln(&b, t.Render())
			for _, d := range out.Integrity.Details {
				if d.Status == walverify.Accepted {
					fmt.Fprintf(&b, "%s to %s: accepted by %s: %s\n", d.First, d.Last, cell(d.By), cell(d.Reason))
				}
			}
			continue
		}
		d := out.Timeline.Details
		fmt.Fprintf(&b, "[wal-verify] timeline check status: %s\n[wal-verify] timeline check details:\n", out.Timeline.Status)
		if d.Highest == 0 {
			fmt.Fprintln(&b, "Highest timeline found in storage: none")
		} else {
			fmt.Fprintf(&b, "Highest timeline found in storage: %d\n", uint32(d.Highest))
		}
		fmt.Fprintf(&b, "Current cluster timeline: %d\n", uint32(d.Current))
	}
	_, err := a.env.Stdout.Write([]byte(b.String()))
	return err
}

// adviceUnread says what to do about a backup whose documents cannot be read.
const adviceUnread = "`holdfast backup-list` and `holdfast st cat` show what is there; `holdfast wal-verify integrity --backup-name NAME` looks from another backup on"

// verdict makes an error of what is not well, with the exit status.
func (v verifiedJSON) verdict() error {
	var errs []error
	worst := walverify.OK
	if i := v.Integrity; i != nil && i.Status != walverify.OK {
		worst = walverify.Worst(worst, i.Status)
		var lost, late uint64
		first := ""
		for _, d := range i.Details {
			switch d.Status {
			case walverify.Lost:
				if lost += d.Count; first == "" {
					first = d.First
				}
			case walverify.Delayed, walverify.Uploading:
				late += d.Count
			}
		}
		switch {
		case i.Status == walverify.Failure:
			errs = append(errs, &advised{fmt.Errorf("%s of WAL missing, the first is %s: what was written from there on cannot be restored by an older backup", manyOf(lost, "segment"), first),
				"they may still lie in the pg_wal of the primary or of a standby: `holdfast wal-push --repair` there. Where they are gone take a backup, then `holdfast wal-gap accept`, as also where they were removed on purpose"})
		case lost > 0:
			errs = append(errs, &advised{errors.New("there is no backup that the archived WAL belongs to"), "take one: `holdfast backup-push`"})
		case late == 0:
			errs = append(errs, &advised{errors.New("not judged: a backup cannot be read, and it may need older WAL than was looked for"), adviceUnread})
		default:
			errs = append(errs, &advised{fmt.Errorf("%s of WAL not archived yet", manyOf(late, "segment")), "where that lasts look at pg_stat_archiver and at the log of the server"})
		}
	}
	if t := v.Timeline; t != nil && t.Status != walverify.OK {
		worst = walverify.Worst(worst, t.Status)
		d := t.Details
		err := &advised{errors.New("the archive has no WAL"), "look whether the server archives (pg_stat_archiver)"}
		switch {
		case d.Highest > d.Current:
			err = &advised{fmt.Errorf("the cluster is on timeline %d, and the archive has timeline %d: another server archives there, or did", uint32(d.Current), uint32(d.Highest)),
				fmt.Sprintf("stop it, and put aside what it pushed: `holdfast wal-show`, `holdfast timeline forget %d`", uint32(d.Highest))}
		case d.Highest != 0 && d.Highest < d.Current:
			err = &advised{fmt.Errorf("the cluster is on timeline %d, of which the archive has nothing yet: timeline %d is the highest", uint32(d.Current), uint32(d.Highest)),
				"where that lasts look at pg_stat_archiver and at the log of the server"}
		}
		errs = append(errs, err)
	}
	if worst == walverify.OK {
		return nil
	}
	return judgement(errors.Join(errs...), int(worst))
}
