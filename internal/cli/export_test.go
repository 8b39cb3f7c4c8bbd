package cli

import (
	"io"
	"log/slog"

	"github.com/spf13/cobra"
)

// Root returns the command above all others.
func Root() *cobra.Command {
	a := &app{env: Env{Stdout: io.Discard, Stderr: io.Discard}, settingFlags: settingFlags()}
	return a.root()
}

// NewHandler is newHandler.
func NewHandler(out io.Writer, level slog.Level) slog.Handler { return newHandler(out, level) }

// Parts is parts.
func Parts(err error) []error { return parts(err) }
