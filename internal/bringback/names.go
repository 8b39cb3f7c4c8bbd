package bringback

import (
	"regexp"

	"github.com/jackc/pgx/v5"
)

// plain matches the names that SQL takes without quotation marks, but for its keywords.
var plain = regexp.MustCompile(`^[a-z_][a-z0-9_$]*$`)

// quoteIfNeeded is a name for people, in quotation marks where it is not plain.
func quoteIfNeeded(name string) string {
	if plain.MatchString(name) {
		return name
	}
	return pgx.Identifier{name}.Sanitize()
}
