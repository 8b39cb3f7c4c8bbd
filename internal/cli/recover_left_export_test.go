package cli

import (
	"fmt"
	"strings"

	"holdfast/internal/bringback"
)

// LeftText is what recover-table prints of what it leaves to the operator.
func LeftText(left []bringback.Left) string { return harmless(leftText(left)) }

// DatabaseText is what recover-table prints of the tables of a whole database, without its paragraphs.
func DatabaseText(r *bringback.Report) string {
	var b strings.Builder
	databaseLines(r, func(name, format string, args ...any) { fmt.Fprintf(&b, name+"|"+format+"\n", args...) })
	return b.String()
}
