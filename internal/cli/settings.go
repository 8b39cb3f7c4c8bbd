package cli

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"
)

func (a *app) settings() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:        "settings",
		SuggestFor: []string{"flags"},
		Short:      "Print every setting in force and where it came from",
		Long: "Prints every setting, its value, and whether that is the default or came from a flag, the environment or the settings file.\n" +
			"Secrets are hidden. Settings that are wrong are errors here as in every other command, so this checks them, too.",
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
			for _, v := range s.Effective() {
				if _, err := fmt.Fprintf(a.env.Stdout, "%-30s = %-26s # %s\n", v.Name, v.Value, v.Source); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// printJSON prints v on one line.
func (a *app) printJSON(v any) error { return json.NewEncoder(a.env.Stdout).Encode(v) }
