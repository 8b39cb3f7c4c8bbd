package cli

import (
	"encoding/json"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"
)

func (a *app) settings() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "settings",
		Short:   "Print every setting in force and where it came from",
		Long:    "Prints every setting, its value and whether that is a default, or came from the file, the environment or a flag. Secrets are hidden.",
		Example: "  holdfast settings\n  holdfast --config /etc/holdfast.yaml settings --json",
		Args:    a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.load(cmd)
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(s.Effective())
			}
			t := table.NewWriter()
			t.SetOutputMirror(a.env.Stdout)
			style := table.StyleDefault
			style.Options = table.OptionsNoBordersAndSeparators
			t.SetStyle(style)
			for _, v := range s.Effective() {
				t.AppendRow(table.Row{v.Name, v.Value, v.Source})
			}
			t.Render()
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// printJSON prints v on one line.
func (a *app) printJSON(v any) error { return json.NewEncoder(a.env.Stdout).Encode(v) }
