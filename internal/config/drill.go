package config

import (
	"errors"
	"strings"
	"time"
)

// Drill says how backups are proven.
type Drill struct {
	Dir       string        // below which copies are made; HOLDFAST_DRILL_DIR
	User      string        // account of the copy where root makes it, "" for postgres; HOLDFAST_DRILL_USER
	Role      string        // superuser of the cluster, "" for the usual; HOLDFAST_DRILL_ROLE
	Programs  string        // directories of PostgreSQL's programs with colons between them, perhaps patterns; HOLDFAST_PG_BIN
	Memory    int64         // of the copy, in bytes; HOLDFAST_DRILL_MEMORY
	Nice      int           // HOLDFAST_DRILL_NICE
	Budget    time.Duration // of checks of indexes and tables, and of pages; 0 is no limit; HOLDFAST_DRILL_BUDGET
	Timeout   time.Duration // of all of it; 0 is no limit; HOLDFAST_DRILL_TIMEOUT
	RTO, RPO  time.Duration // what is to be kept; 0 is no limit; HOLDFAST_DRILL_RTO, HOLDFAST_DRILL_RPO
	Heartbeat string        // database:statement, or ""; HOLDFAST_DRILL_HEARTBEAT
	Checks    string        // in YAML or JSON, or ""; HOLDFAST_DRILL_CHECKS
	Key       string        // that signs records, in PEM, or ""; HOLDFAST_PROOF_KEY

	PublicKeys string // of those whose records count, in PEM, one after another; "" for that of Key, or anybody's; HOLDFAST_PROOF_PUBLIC_KEY
	Beat       string // database in which the agent leaves a sign of life, or off; HOLDFAST_HEARTBEAT
}

// heartbeat checks a database and a statement.
func heartbeat(text string) error {
	if database, statement, ok := strings.Cut(text, ":"); !ok || strings.TrimSpace(database) == "" || strings.TrimSpace(statement) == "" {
		return errors.New("must be a database, a colon, and a statement")
	}
	return nil
}
