package cli

import (
	"context"
	"io"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"

	"holdfast/internal/config"
	"holdfast/internal/ribbon"
	"holdfast/internal/store"
	"holdfast/internal/store/failover"
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

// Examine is examine, for a storage without settings.
func Examine(ctx context.Context, s store.Store) (findings map[string]string, err error) {
	e := examine(ctx, &config.Settings{}, failover.Member{Name: "one", Store: s})
	findings = map[string]string{}
	for _, f := range e.Findings {
		findings[f.What] = f.Text
	}
	return findings, e.err
}

// RibbonText is what `ribbon` prints.
func RibbonText(r ribbon.Ribbon) string {
	var b strings.Builder
	ribbonText(&b, &r, false)
	return b.String()
}

// Unheard is what doctor says where nobody would hear that backups fail.
func Unheard(s *config.Settings) string { return (&app{inForce: s}).unheard() }
