package cli

import "github.com/spf13/cobra"

func (a *app) completion() *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Print the script that completes commands in a shell",
		Long:  "Prints the script that makes a shell complete holdfast's commands and flags.",
		Example: "  holdfast completion bash > /etc/bash_completion.d/holdfast\n" +
			"  holdfast completion zsh > \"${fpath[1]}/_holdfast\"\n" +
			"  holdfast completion fish > ~/.config/fish/completions/holdfast.fish",
		Args:                  a.args(cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs)),
		ValidArgs:             []string{"bash", "zsh", "fish"},
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch root := cmd.Root(); args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.env.Stdout, true)
			case "zsh":
				return root.GenZshCompletion(a.env.Stdout)
			default:
				return root.GenFishCompletion(a.env.Stdout, true)
			}
		},
	}
}
