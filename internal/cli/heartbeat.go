package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"holdfast/internal/config"
	"holdfast/internal/pg/server"
)

const (
	heartbeatEvery    = time.Minute      // how often the agent has a sign of life left
	heartbeatPatience = 30 * time.Second // how long one may take
)

func (a *app) heartbeat() *cobra.Command {
	var every time.Duration
	cmd := &cobra.Command{
		Use:   "heartbeat",
		Short: "Write a heartbeat row, by which a drill measures what would have been lost",
		Long: "Writes time and position into the row of this host in the table holdfast.heartbeat, of the database that HOLDFAST_HEARTBEAT names, on the server that PGHOST and its\n" +
			"like name; it makes the table where there is none. A drill to the end of the WAL looks how old the newest of these is in its copy: without them nothing tells a\n" +
			"cluster in which nothing happens from one whose WAL no longer arrives. On a standby nothing is done.\n\n" +
			"The agent does this each minute where HOLDFAST_HEARTBEAT is set. Without an agent it is a line for cron, which says where the settings and the program are, and logs\n" +
			"errors alone: cron mails the rest.\n\n" +
			"Not in a database of which a publication sends all tables: its subscribers would stop at one that they do not have. A server in which nothing else happens archives a\n" +
			"segment for each archive_timeout then, where it archived none: with one of a minute 1440 a day.\n\n" +
			"Exit status: 0 it is written, or this is a standby; 1 it could not be.",
		Example: "  HOLDFAST_HEARTBEAT=postgres holdfast heartbeat\n  * * * * * postgres HOLDFAST_CONFIG=/etc/holdfast/holdfast.yaml WALG_LOG_LEVEL=ERROR /usr/local/bin/holdfast heartbeat",
		Args:    a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.load(cmd)
			if err != nil {
				return err
			}
			if s.Drill.Beat == "off" {
				return &config.Problem{What: "HOLDFAST_HEARTBEAT", Why: "it says in which database the sign of life is left, and is off", Do: "set it, such as HOLDFAST_HEARTBEAT=postgres"}
			}
			if every < 0 {
				return a.usage(cmd, errors.New("--every: want a duration such as 1m"))
			}
			return a.beats(cmd.Context(), s, every)
		},
	}
	cmd.Flags().DurationVar(&every, "every", 0, "go on, and do it that often")
	return cmd
}

// beats leaves signs of life: one, or where every is not 0 until ctx is over. What fails ends it: whoever wants it to go on starts it again.
func (a *app) beats(ctx context.Context, s *config.Settings, every time.Duration) error {
	said := ""
	for {
		text, err := a.beat(ctx, s)
		switch {
		case err != nil && every > 0 && ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		case text != said:
			a.log.Info(text)
			said = text
		}
		if every == 0 {
			return nil
		}
		select {
		case <-time.After(every):
		case <-ctx.Done():
			return nil
		}
	}
}

// beat leaves one, and says what was done.
func (a *app) beat(ctx context.Context, s *config.Settings) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, heartbeatPatience)
	defer cancel()
	host := s.Lease.Host
	if host == "" {
		var err error
		if host, err = os.Hostname(); err != nil {
			return "", err
		}
	}
	cfg := server.ConfigFromEnv(s.Postgres.Lookup)
	cfg["dbname"] = s.Drill.Beat
	cfg["application_name"] = cmp.Or(cfg["application_name"], "holdfast heartbeat")
	conn, err := server.Connect(ctx, cfg)
	if err != nil {
		return "", err
	}
	defer conn.Close() // nothing is pending on it
	switch _, err := conn.Heartbeat(ctx, host); {
	case errors.Is(err, server.ErrStandby):
		return "This is a standby: nothing to do.", nil
	case err != nil:
		return "", err
	}
	return fmt.Sprintf("Left a sign of life of %s in database %s", host, s.Drill.Beat), nil
}
