package cli

import (
	"github.com/spf13/cobra"

	"holdfast/internal/demo"
)

func (a *app) demo() *cobra.Command {
	opts := demo.Options{Program: a.env.Program, Out: a.env.Stdout}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Watch a dropped table come back, on a throwaway PostgreSQL",
		Long: "Makes a cluster and an archive in a scratch directory, backs it up, drops a table, and restores the database as it was the\n" +
			"moment before, with the commands an operator would type. Nothing else is touched and nothing is left behind.",
		Example: "  holdfast demo\n  holdfast demo --major 17 --rows 1000000",
		Args:    a.args(cobra.NoArgs),
		RunE:    func(cmd *cobra.Command, _ []string) error { return demo.Run(cmd.Context(), opts) },
	}
	cmd.Flags().IntVar(&opts.Major, "major", 0, "major version of PostgreSQL; the newest found without it")
	cmd.Flags().StringVar(&opts.Servers, "programs", "", "directory of PostgreSQL's programs, where they are in no usual place")
	cmd.Flags().IntVar(&opts.Rows, "rows", 200_000, "rows in the table to be dropped")
	cmd.Flags().BoolVar(&opts.Keep, "keep", false, "leave the scratch directory")
	return cmd
}
