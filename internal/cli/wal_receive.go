package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"holdfast/internal/archive"
	"holdfast/internal/compress"
	"holdfast/internal/config"
	"holdfast/internal/pg/server"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store/file"
	"holdfast/internal/walpush"
	"holdfast/internal/walreceive"
)

func (a *app) walReceive() *cobra.Command {
	var synchronous, acceptGap bool
	cmd := &cobra.Command{
		Use:   "wal-receive",
		Short: "Stream WAL from a server into the archive",
		Long: "Streams WAL from the server that PGHOST and its like name, through the replication slot WALG_SLOTNAME, which it creates where there is none. Whole\n" +
			"segments go into the archive as wal-push stores them, and of the one that the server is writing what has come every HOLDFAST_TAIL_INTERVAL:\n" +
			"wal-fetch reads that too, so that a restore lacks seconds. It runs until it is stopped, connects anew for ever, and follows the server to another\n" +
			"timeline. PGHOST and PGPORT may name several servers, separated by commas; PGTARGETSESSIONATTRS=primary finds the primary among them.\n\n" +
			"With --synchronous it may stand in the server's synchronous_standby_names, by its application_name (PGAPPNAME, default holdfast): what is committed\n" +
			"is acknowledged once it is in HOLDFAST_RECEIVE_DIR and in the store, or where HOLDFAST_RECEIVE_SYNC says.\n\n" +
			"WAL that the server no longer has, and neither archive nor HOLDFAST_RECEIVE_DIR, ends it with an error; with --accept-gap it goes on behind that, once.",
		Example: "  PGHOST=db1,db2 PGUSER=replicator PGTARGETSESSIONATTRS=primary holdfast wal-receive --synchronous",
		Args:    a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.load(cmd)
			if err != nil {
				return err
			}
			o := walreceive.Options{
				Slot: s.Receive.Slot, Dir: s.Receive.Dir, TailInterval: s.Receive.TailInterval, TailBytes: s.Receive.TailBytes, Synchronous: synchronous,
				Local: strings.Contains(s.Receive.Sync, "local"), Store: strings.Contains(s.Receive.Sync, "store"), AcceptGap: acceptGap, Logger: a.log,
			}
			if o.Host, err = os.Hostname(); err != nil {
				return err
			}
			if o.Dir == "" {
				state, err := stateDir(s)
				if err != nil {
					return err
				}
				o.Dir = filepath.Join(state, "receive")
			}
			return a.receive(cmd.Context(), s, o)
		},
	}
	cmd.Flags().BoolVar(&synchronous, "synchronous", false, "report WAL as flushed as soon as it is safe, and nothing else")
	cmd.Flags().BoolVar(&acceptGap, "accept-gap", false, "where WAL is missing, go on with the oldest that the server has")
	targetFlag(cmd)
	return cmd
}

// receive opens the archive once, and receives until it is told to stop, or the archive is another one by then.
func (a *app) receive(ctx context.Context, s *config.Settings, o walreceive.Options) error {
	st, err := a.openStore(ctx, s, toWrite)
	if err != nil {
		return err
	}
	ao, err := a.archiveOptions(ctx, s, toWrite)
	if err != nil {
		return err
	}
	parallel := ao
	parallel.Parallel = runtime.GOMAXPROCS(0)
	whole, tails := archive.New(st, parallel), archive.New(st, ao)
	all, err := a.openArchive(ctx, s, toRead)
	if err != nil {
		return err
	}
	opened := func(context.Context) (asked, ahead walpush.Archive, err error) { return whole, tails, nil }
	ext := compress.Method(s.Compression.Method).Extension()
	o.Push = func(ctx context.Context, path string) error {
		report, err := walpush.Push(ctx, opened, path, walpush.Options{
			Location: s.Location(), Host: o.Host, Parallel: 1, Summaries: s.SummarizesWAL(), Deltas: s.WAL.Deltas, Logger: a.log,
		})
		if err == nil && report.Outcome == walpush.Stored {
			a.log.Info("FILE PATH: " + report.Name + ext)
		}
		return moved(err)
	}
	cfg := server.ConfigFromEnv(s.Postgres.Lookup)
	connect := func(ctx context.Context) (*server.Replication, error) { return server.ConnectStream(ctx, cfg) }
	report, err := walreceive.Run(ctx, connect, received{tails, all}, o)
	if report.Received != 0 {
		a.log.Info(fmt.Sprintf("received up to %s of timeline %d, stored up to %s; %d segments archived", report.Received, uint32(report.Timeline), report.Stored, report.Segments))
	}
	return err
}

// received is an archive that goes on taking WAL while a storage is down, and yet says what WAL it has only when all have said so: behind what one alone
// knows of would be WAL that the server is told not to keep.
type received struct {
	*archive.Archive
	all *archive.Archive
}

// moved returns err, as a receiver understands it where the archive's directory is another one than when it was opened.
func moved(err error) error {
	if other, ok := errors.AsType[*file.MovedError](err); ok {
		return &walreceive.MovedError{Dir: other.Dir}
	}
	return err
}

// PutTail implements walreceive.Archive.
func (r received) PutTail(ctx context.Context, segment string, start, end int64, body io.ReadSeeker) (archive.TailPiece, error) {
	piece, err := r.Archive.PutTail(ctx, segment, start, end, body)
	return piece, moved(err)
}

// HasWAL implements walreceive.Archive.
func (r received) HasWAL(ctx context.Context, name string) (bool, error) {
	return r.all.HasWAL(ctx, name)
}

// NewestWAL implements walreceive.Archive.
func (r received) NewestWAL(ctx context.Context, t wal.Timeline, end wal.LSN, size wal.SegmentSize) (wal.SegmentNo, bool, error) {
	return r.all.NewestWAL(ctx, t, end, size)
}
