package cli

import (
	"io"
	"log/slog"

	"holdfast/internal/config"
)

// SystemHandler is the handler of HOLDFAST_LOG_TO.
func SystemHandler(to string, spare io.Writer) slog.Handler {
	return (&app{}).toSystem(&config.Settings{Log: config.Log{To: to}}, slog.LevelInfo, newHandler(spare, slog.LevelInfo))
}

// Named is named.
func Named(text string) (backup, segment string) { return named([]string{text}) }
