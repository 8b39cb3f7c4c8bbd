package cli

import "github.com/spf13/cobra"

// onlyWALG lists WAL-G's commands for PostgreSQL that are not among ours.
var onlyWALG = []string{"catchup-receive", "catchup-send", "wal-restore"}

// groups are the headings of the help, and what is below each.
func (a *app) groups() []group {
	return []group{
		{"archive", "Archive:", []*cobra.Command{a.backupPush(), a.backupMerge(), a.walPush(), a.walReceive(), a.daemon(), a.heartbeat(), a.copy()}},
		{"restore", "Restore:", []*cobra.Command{a.backupFetch(), a.recoverTable(), a.walFetch(), a.catchupPush(), a.catchupFetch(), a.catchupList(), a.pgbackrest()}},
		{"look", "See what is there, and whether it is good:", []*cobra.Command{a.doctor(), a.ribbon(), a.backupList(), a.backupShow(), a.events(), a.walShow(), a.walVerify(), a.verify(),
			a.drill(), a.firedrill(), a.check(), a.metrics()}},
		{"keep", "Keep and remove:", []*cobra.Command{a.retention(), a.delete(), a.undelete(), a.hold(), a.backupMark(), a.timeline(), a.walGap()}},
		{"run", "Set up and run:", []*cobra.Command{a.settings(), a.key(), a.st(), a.agent(), a.lease(), a.alert(), a.demo(), a.completion()}},
		{"", "", []*cobra.Command{a.walPrefetch()}}, // is not shown
	}
}

// group is a heading of the help with its commands.
type group struct {
	id, title string
	commands  []*cobra.Command
}

// addTo adds the commands to root, below their heading.
func (g group) addTo(root *cobra.Command) {
	if g.id != "" {
		root.AddGroup(&cobra.Group{ID: g.id, Title: g.title})
	}
	for _, c := range g.commands {
		c.GroupID = g.id
	}
	root.AddCommand(g.commands...)
}
