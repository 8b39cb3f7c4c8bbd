package cli

import "github.com/spf13/cobra"

// onlyWALG lists WAL-G's commands for PostgreSQL that are not among ours.
var onlyWALG = []string{"catchup-receive", "catchup-send", "wal-restore"}

// commands lists the commands in the order of the help.
func (a *app) commands() []*cobra.Command {
	return []*cobra.Command{
		a.backupPush(),
		a.backupFetch(),
		a.backupList(),
		a.backupMark(),
		a.backupShow(),
		a.backupMerge(),
		a.copy(),
		a.verify(),
		a.catchupPush(),
		a.catchupFetch(),
		a.catchupList(),
		a.walPush(),
		a.walFetch(),
		a.walPrefetch(),
		a.daemon(),
		a.walReceive(),
		a.walShow(),
		a.walVerify(),
		a.timeline(),
		a.ribbon(),
		a.check(),
		a.doctor(),
		a.metrics(),
		a.walGap(),
		a.pgbackrest(),
		a.delete(),
		a.retention(),
		a.undelete(),
		a.hold(),
		a.lease(),
		a.alert(),
		a.st(),
		a.key(),
		a.settings(),
		a.completion(),
		a.demo(),
	}
}
