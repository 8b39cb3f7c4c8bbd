package cli

import "github.com/spf13/cobra"

// commands lists the commands in the order of the help.
func (a *app) commands() []*cobra.Command {
	return []*cobra.Command{
		a.backupPush(),
		a.backupFetch(),
		a.backupList(),
		a.walPush(),
		a.walFetch(),
		a.walPrefetch(),
		a.settings(),
		a.completion(),
		a.demo(),
	}
}
