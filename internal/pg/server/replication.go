package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
	"github.com/jackc/pgx/v5/pgproto3"

	"holdfast/internal/pg/wal"
)

// Replication is a session that speaks the replication protocol ("Streaming Replication Protocol" in PostgreSQL's documentation). It
// needs a role with the attribute REPLICATION and nothing else, and may come from another host. It is for one goroutine. Close it.
type Replication struct {
	pg      *pgconn.PgConn
	cfg     Config // to open another one
	version int    // server_version_num
	stream  *BaseBackup
}

// maxMessage bounds a message of the server, bytes. Pieces of a base backup have some 32 KiB.
const maxMessage = 4 << 20

// ConnectReplication opens a replication session with the one server that cfg names. Errors are *Error.
func ConnectReplication(ctx context.Context, cfg Config) (*Replication, error) {
	return connectReplication(ctx, cfg, Config.parse)
}

// connectReplication opens a replication session with what parse makes of cfg.
func connectReplication(ctx context.Context, cfg Config, parse func(Config) (*pgx.ConnConfig, error)) (*Replication, error) {
	cfg = maps.Clone(cfg)
	if cfg == nil {
		cfg = Config{}
	}
	cfg["replication"] = "true"
	cfg["default_transaction_read_only"] = "off" // so that before 14 transaction_read_only tells a standby
	pgcfg, err := cfg.parseReplication(parse)
	if err != nil {
		return nil, &Error{Op: "connect to PostgreSQL", Err: err}
	}
	pgcfg.BuildContextWatcherHandler = func(c *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.CancelRequestContextWatcherHandler{Conn: c, DeadlineDelay: 5 * time.Second}
	}
	// A server whose machine vanished is noticed within two minutes, also while it has nothing to say: a checkpoint takes its time.
	pgcfg.DialFunc = (&net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: 10 * time.Second, Count: 6}}).DialContext
	op := fmt.Sprintf("connect to PostgreSQL at %s port %d as %s for replication", pgcfg.Host, pgcfg.Port, pgcfg.User)
	pg, err := pgconn.ConnectConfig(ctx, &pgcfg.Config)
	if err != nil {
		return nil, replicationError(connectError(ctx, op, err), pgcfg)
	}
	pg.Frontend().SetMaxBodyLen(maxMessage)
	c := &Replication{pg: pg, cfg: cfg}
	version, err := c.show(ctx, "server_version_num")
	if err == nil {
		c.version, err = strconv.Atoi(version)
	}
	if err == nil && c.version < oldest {
		err = fmt.Errorf("the server is PostgreSQL %s, the oldest supported is 10", pg.ParameterStatus("server_version"))
	}
	if err != nil {
		_ = c.Close()
		return nil, c.error(ctx, op, err)
	}
	return c, nil
}

// parseReplication is parse of a session for replication, which has no database. In a file of passwords the line for it has the database
// "replication", as libpq's programs read it; that of the database which is named does as well.
func (c Config) parseReplication(parse func(Config) (*pgx.ConnConfig, error)) (*pgx.ConnConfig, error) {
	named, err := parse(c)
	if err != nil {
		return nil, err
	}
	c = maps.Clone(c)
	c["dbname"] = "replication"
	cfg, err := parse(c)
	if err == nil && cfg.Password == "" {
		cfg.Password = named.Password
	}
	return cfg, err
}

// replicationError adds what is to be done where a server lets nobody in for replication.
func replicationError(err error, cfg *pgx.ConnConfig) error {
	var e *Error
	var pg *pgconn.PgError
	if !errors.As(err, &e) || !errors.As(e.Err, &pg) {
		return err
	}
	user := pgx.Identifier{cfg.User}.Sanitize()
	switch pg.Code {
	case "28000": // invalid_authorization_specification: no such role, or no line in pg_hba.conf
		line := "host replication " + user + " ADDRESS/32 scram-sha-256"
		if strings.HasPrefix(cfg.Host, "/") {
			line = "local replication " + user + " peer"
		}
		e.advice = "check PGUSER, and that the server's pg_hba.conf has a line such as `" + line +
			"`: a line for all databases is not one for replication. Then `SELECT pg_reload_conf()`"
	case "42501": // insufficient_privilege
		e.advice = "run on the primary: ALTER ROLE " + user + " REPLICATION;"
	case "53300": // too_many_connections
		e.advice = "raise max_wal_senders, and restart PostgreSQL: each standby, WAL receiver and backup over the wire takes one; with wal_level = minimal there can be none"
	}
	return err
}

// error describes what a command came to.
func (c *Replication) error(ctx context.Context, op string, err error) error {
	if cause := context.Cause(ctx); cause != nil { // a cancelled command reports that somebody cancelled it; that was us
		return &Error{Op: op, Err: cause}
	}
	var e *Error
	if errors.As(err, &e) {
		return err
	}
	e = &Error{Op: op, Err: err}
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		e.advice = "the session is gone, and with it a backup that was running; the server's log may say why"
	}
	return e
}

// Version returns the server's server_version_num, 150018 for 15.18.
func (c *Replication) Version() int { return c.version }

// rows runs a command and returns what it answers. A *pgconn.PgError leaves the session usable.
func (c *Replication) rows(ctx context.Context, command string) ([][][]byte, error) {
	results, err := c.pg.Exec(ctx, command).ReadAll()
	if err != nil {
		return nil, err
	}
	if len(results) == 0 {
		return nil, nil
	}
	return results[0].Rows, results[0].Err
}

// show returns a setting of the server's. name is not quoted.
func (c *Replication) show(ctx context.Context, name string) (string, error) {
	rows, err := c.rows(ctx, "SHOW "+name)
	if err != nil {
		return "", err
	}
	if len(rows) != 1 || len(rows[0]) != 1 {
		return "", fmt.Errorf("SHOW %s returned %d rows", name, len(rows))
	}
	return string(rows[0][0]), nil
}

// Facts asks the server, as far as the replication protocol has answers: files that configuration includes are not known, and those
// of the server's that lie outside the data directory cannot be read over the wire.
func (c *Replication) Facts(ctx context.Context) (Facts, error) {
	const op = "ask PostgreSQL about itself"
	f := Facts{Version: c.version}
	var err error
	if f.SystemIdentifier, f.Timeline, _, err = c.identify(ctx); err != nil {
		return Facts{}, c.error(ctx, op, err)
	}
	recovery := "in_hot_standby"
	if f.Major() < 14 {
		recovery = "transaction_read_only" // see ConnectReplication
	}
	var segment, block, relation, checksums, standby, mode string
	for _, s := range []struct {
		name   string
		since  int
		secret bool // from roles without pg_read_all_settings
		into   *string
	}{
		{"server_version", 10, false, &f.VersionText},
		{recovery, 10, false, &standby},
		{"wal_segment_size", 10, false, &segment},
		{"block_size", 10, false, &block},
		{"segment_size", 10, false, &relation},
		{"data_checksums", 10, false, &checksums},
		{"archive_mode", 10, false, &f.ArchiveMode},
		{"archive_command", 10, false, &f.ArchiveCommand},
		{"archive_library", 15, false, &f.ArchiveLibrary},
		{"wal_level", 10, false, &f.WALLevel},
		{"data_directory_mode", 11, false, &mode},
		{"data_directory", 10, true, &f.DataDirectory},
		{"config_file", 10, true, &f.ConfigFile},
		{"hba_file", 10, true, &f.HBAFile},
		{"ident_file", 10, true, &f.IdentFile},
	} {
		if f.Major() < s.since {
			continue
		}
		*s.into, err = c.show(ctx, s.name)
		var pg *pgconn.PgError
		if s.secret && errors.As(err, &pg) && pg.Code == "42501" {
			continue
		}
		if err != nil {
			return Facts{}, c.error(ctx, op, err)
		}
	}
	f.Standby, f.Checksums, f.GroupAccess = standby == "on", checksums == "on", strings.HasSuffix(mode, "50")
	bytes, err := parseBytes(segment)
	if f.SegmentSize = wal.SegmentSize(bytes); err == nil && !f.SegmentSize.Valid() {
		err = fmt.Errorf("WAL segments of %s", segment)
	}
	if err != nil {
		return Facts{}, c.error(ctx, op, err)
	}
	if f.BlockSize, err = strconv.Atoi(block); err != nil || f.BlockSize <= 0 {
		return Facts{}, c.error(ctx, op, fmt.Errorf("block_size is %.40q", block))
	}
	if bytes, err = parseBytes(relation); err != nil || bytes/uint64(f.BlockSize) > 1<<32-1 {
		return Facts{}, c.error(ctx, op, fmt.Errorf("segment_size is %.40q", relation))
	}
	f.RelationSegment = uint32(bytes / uint64(f.BlockSize))
	if f.ArchiveMode == "off" || f.ArchiveCommand == "(disabled)" { // how the server shows it then
		f.ArchiveCommand = ""
	}
	return f, nil
}

// identify asks for the cluster, the timeline, and how far its write-ahead log is flushed, or on a standby replayed.
func (c *Replication) identify(ctx context.Context) (system uint64, t wal.Timeline, at wal.LSN, err error) {
	rows, err := c.rows(ctx, "IDENTIFY_SYSTEM")
	if err != nil {
		return 0, 0, 0, err
	}
	if len(rows) != 1 || len(rows[0]) < 3 {
		return 0, 0, 0, errors.New("IDENTIFY_SYSTEM returned something else than one row")
	}
	if system, err = strconv.ParseUint(string(rows[0][0]), 10, 64); err != nil {
		return 0, 0, 0, fmt.Errorf("IDENTIFY_SYSTEM returned the system identifier %.40q", rows[0][0])
	}
	at, t, err = position([][][]byte{{rows[0][2], rows[0][1]}})
	return system, t, at, err
}

// Position returns how far the write-ahead log is flushed, or on a standby replayed, and on which timeline.
func (c *Replication) Position(ctx context.Context) (wal.LSN, wal.Timeline, error) {
	_, t, at, err := c.identify(ctx)
	if err != nil {
		return 0, 0, c.error(ctx, "ask PostgreSQL for its position", err)
	}
	return at, t, nil
}

// History returns the content of the history file of timeline t, which is not the first.
func (c *Replication) History(ctx context.Context, t wal.Timeline) ([]byte, error) {
	const op = "ask PostgreSQL for the history of its timeline"
	rows, err := c.rows(ctx, fmt.Sprintf("TIMELINE_HISTORY %d", uint32(t)))
	if err == nil && (len(rows) != 1 || len(rows[0]) < 2) {
		err = errors.New("TIMELINE_HISTORY returned something else than one row")
	}
	if err != nil {
		return nil, c.error(ctx, op, err)
	}
	return rows[0][1], nil
}

// parseBytes reads a size as SHOW prints it: a number with B, kB, MB, GB or TB behind it.
func parseBytes(s string) (uint64, error) {
	digits := strings.TrimRight(s, "kMGTB")
	shift, ok := map[string]int{"": 0, "B": 0, "kB": 10, "MB": 20, "GB": 30, "TB": 40}[s[len(digits):]]
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || !ok || n == 0 || n > 1<<62>>shift {
		return 0, fmt.Errorf("%.40q is not a size", s)
	}
	return n << shift, nil
}

// UploadManifest sends the backup_manifest of an earlier backup, of version 2, which an incremental BaseBackup is to build upon. It takes
// PostgreSQL 17. An error that is a *pgconn.PgError leaves the session usable.
func (c *Replication) UploadManifest(ctx context.Context, manifest io.Reader) error {
	const op = "send the earlier backup's manifest to PostgreSQL"
	if c.stream != nil {
		return &Error{Op: op, Err: errors.New("a backup is running on this session")}
	}
	if _, err := c.pg.CopyFrom(ctx, manifest, "UPLOAD_MANIFEST"); err != nil {
		return c.error(ctx, op, err)
	}
	return nil
}

// Close ends the session and with it a backup that did not come to its end, and returns once the server has let go of both, as far
// as it answers. An error means that the server was not seen to end the session.
func (c *Replication) Close() error {
	if c.pg.IsClosed() {
		return nil
	}
	conn := c.pg.Conn()
	defer conn.Close()
	if c.stream != nil {
		c.stream.abandon()
	}
	if err := conn.SetDeadline(time.Now().Add(closeTimeout)); err != nil {
		return nil // closed already
	}
	front := c.pg.Frontend()
	front.Send(&pgproto3.Terminate{})
	if err := front.Flush(); err != nil {
		return nil // the connection is broken: the server has ended the session or is about to
	}
	for {
		_, err := front.Receive()
		var timeout net.Error
		switch {
		case err == nil:
		case errors.As(err, &timeout) && timeout.Timeout():
			return fmt.Errorf("close the session with PostgreSQL: the server did not end it within %s", closeTimeout)
		default:
			return nil
		}
	}
}

// watch has a connection's reads end when ctx does.
type watch struct {
	conn  net.Conn
	cause func() error
	stop  func() bool

	mu   sync.Mutex
	over bool
}

func newWatch(ctx context.Context, conn net.Conn) *watch {
	w := &watch{conn: conn, cause: func() error { return context.Cause(ctx) }}
	w.stop = context.AfterFunc(ctx, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.over = true
		_ = w.conn.SetReadDeadline(time.Unix(1, 0)) // of a closed connection nobody reads
	})
	return w
}

// patience gives the next read so long; 0 is no limit.
func (w *watch) patience(d time.Duration) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		return w.cause()
	}
	var until time.Time
	if d > 0 {
		until = time.Now().Add(d)
	}
	return w.conn.SetReadDeadline(until)
}
