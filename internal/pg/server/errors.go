package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// What a caller may act on.
var (
	// ErrPromoted means that the standby became a primary while the backup was taken, which therefore is worthless.
	ErrPromoted = errors.New("the standby was promoted while it was being backed up")
	// ErrStandby means that only a primary can do what was asked.
	ErrStandby = errors.New("the server is a standby")
)

// Error is what went wrong between us and the server.
type Error struct {
	Op     string // what was being done
	Err    error  // often wraps a *pgconn.PgError
	advice string
}

// Error says what was being done and what the server or the network answered, in one line.
func (e *Error) Error() string {
	var pg *pgconn.PgError
	if !errors.As(e.Err, &pg) {
		return e.Op + ": " + e.Err.Error()
	}
	detail := ""
	if pg.Detail != "" {
		detail = " (" + pg.Detail + ")"
	}
	return fmt.Sprintf("%s: %s%s, SQLSTATE %s", e.Op, pg.Message, detail, pg.Code)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Hint says what the operator can do, or is empty.
func (e *Error) Hint() string {
	var pg *pgconn.PgError
	if e.advice == "" && errors.As(e.Err, &pg) {
		return pg.Hint
	}
	return e.advice
}

// Unsupported reports whether the server said that it was built without what it was asked for: a compression is a syntax_error then
// (parse_basebackup_options in src/backend/backup/basebackup.c), other things are feature_not_supported.
func Unsupported(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "42601" || pg.Code == "0A000")
}

// Refused reports whether err is the server's answer, so that its session can go on.
func Refused(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.SeverityUnlocalized == "ERROR"
}

// error describes what a statement came to.
func (c *Conn) error(ctx context.Context, op string, err error) error {
	// A cancelled statement reports that somebody cancelled it; that was us.
	if cause := context.Cause(ctx); cause != nil {
		return &Error{Op: op, Err: cause}
	}
	e := &Error{Op: op, Err: err}
	var pg *pgconn.PgError
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		e.Err = errors.New("the server returned no row")
	case c.pg.IsClosed():
		e.advice = "the session is gone, and with it a backup that was running; the server's log may say why"
	case errors.As(err, &pg) && pg.Code == "42501": // insufficient_privilege
		e.advice = c.grants()
	}
	return e
}

// grants says which rights a role needs that is no superuser.
func (c *Conn) grants() string {
	user := pgx.Identifier{c.pg.Config().User}.Sanitize()
	functions := "pg_backup_start(text, boolean), pg_backup_stop(boolean), pg_switch_wal()"
	if c.version < firstRenamed {
		functions = "pg_start_backup(text, boolean, boolean), pg_stop_backup(boolean, boolean), pg_switch_wal()"
	}
	return fmt.Sprintf("connect as a superuser, or let one run in database %s: GRANT pg_read_all_settings TO %s; GRANT EXECUTE ON FUNCTION %s TO %s;",
		c.pg.Config().Database, user, functions, user)
}

// connectError describes why there is no session. The driver's own text repeats itself over several lines.
func connectError(ctx context.Context, op string, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return &Error{Op: op, Err: cause}
	}
	e := &Error{Op: op, Err: err}
	var connect *pgconn.ConnectError
	if errors.As(err, &connect) {
		e.Err = connect.Unwrap()
	}
	var errno syscall.Errno
	if errors.As(err, &errno) && (errno == syscall.ECONNREFUSED || errors.Is(errno, fs.ErrNotExist)) {
		e.Err = errno
		e.advice = "is the server running, and does it listen there? host and port come from PGHOST and PGPORT"
	}
	var certificate *tls.CertificateVerificationError
	if errors.As(err, &certificate) {
		e.Err = certificate
		e.advice = "PGSSLROOTCERT names the file with the authority that signed the server's certificate, which with PGSSLMODE=verify-full has to be of the very name in PGHOST"
	}
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return e
	}
	switch pg.Code {
	case "28P01": // invalid_password
		e.advice = "check PGUSER and the password, in PGPASSWORD or the file that PGPASSFILE names"
	case "28000": // invalid_authorization_specification: no such role, or no line in pg_hba.conf
		e.advice = "check PGUSER, and that pg_hba.conf has a line that lets this role in from here"
	case "3D000": // invalid_catalog_name
		e.advice = "set PGDATABASE to a database that exists, such as postgres"
	case "53300": // too_many_connections
		e.advice = "all connections are taken; superusers and, since PostgreSQL 16, members of pg_use_reserved_connections have some set aside"
	case "57P03": // cannot_connect_now
		e.advice = "the server is starting or recovering; a standby accepts connections once it is consistent and only with hot_standby=on"
	}
	return e
}
