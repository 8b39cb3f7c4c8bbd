package cli

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"log/syslog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"holdfast/internal/config"
)

// What lines of a log are about, beside what they say.
const (
	jobKey     = "job"
	backupKey  = "backup"
	segmentKey = "segment"
)

// subject adds to each line what it is about: the job, and the backup and the segment that the line names or, where it names none, the command line does. What a line has by
// itself stays.
type subject struct {
	slog.Handler
	job, backup, segment string
	given                []string // keys that With has given already
}

// Handle implements slog.Handler.
func (h *subject) Handle(ctx context.Context, r slog.Record) error {
	given := slices.Clone(h.given)
	texts := []string{r.Message}
	r.Attrs(func(a slog.Attr) bool {
		given = append(given, a.Key)
		texts = append(texts, a.Value.Resolve().String())
		return true
	})
	backup, segment := named(texts)
	if backup == "" {
		backup = h.backup
	}
	if segment == "" {
		segment = h.segment
	}
	r = r.Clone()
	for _, a := range []slog.Attr{slog.String(jobKey, h.job), slog.String(backupKey, backup), slog.String(segmentKey, segment)} {
		if a.Value.String() != "" && !slices.Contains(given, a.Key) {
			r.AddAttrs(a)
		}
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h *subject) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	c.Handler, c.given = h.Handler.WithAttrs(attrs), slices.Clone(h.given)
	for _, a := range attrs {
		c.given = append(c.given, a.Key)
	}
	return &c
}

// WithGroup implements slog.Handler.
func (h *subject) WithGroup(name string) slog.Handler {
	c := *h
	c.Handler = h.Handler.WithGroup(name)
	return &c
}

// named returns the backup and the segment that texts name; "" where it is none, or more than one.
func named(texts []string) (backup, segment string) {
	var backups, segments []string
	for _, text := range texts {
		for word := range strings.FieldsFuncSeq(text, func(r rune) bool {
			return r != '_' && (r < '0' || r > '9') && (r|0x20 < 'a' || r|0x20 > 'z')
		}) {
			begin, rest, delta := strings.Cut(strings.TrimPrefix(word, "base_"), "_D_")
			switch {
			case !isSegment(begin) || delta && !isSegment(rest):
			case strings.HasPrefix(word, "base_"):
				if !slices.Contains(backups, word) {
					backups = append(backups, word)
				}
			case !delta && !slices.Contains(segments, word):
				segments = append(segments, word)
			}
		}
	}
	if len(backups) == 1 {
		backup = backups[0]
	}
	if len(segments) == 1 {
		segment = segments[0]
	}
	return backup, segment
}

// isSegment reports whether it is the name of a WAL segment.
func isSegment(word string) bool {
	return len(word) == 24 && strings.Trim(word, "0123456789ABCDEF") == ""
}

// aboutOf returns the backup and the segment that a command line is about.
func aboutOf(args []string) (backup, segment string) {
	var words []string
	for _, arg := range args {
		words = append(words, filepath.Base(arg))
	}
	return named(words)
}

// system hands lines to a log of the system. Those that it does not take go to spare, with one warning.
type system struct {
	level  slog.Level
	name   string
	send   func(level slog.Level, message string, attrs []slog.Attr) error
	attrs  []slog.Attr
	spare  slog.Handler
	warned *atomic.Bool
}

// Enabled implements slog.Handler.
func (h *system) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level }

// Handle implements slog.Handler.
func (h *system) Handle(ctx context.Context, r slog.Record) error {
	attrs := slices.Clone(h.attrs)
	r.Attrs(func(a slog.Attr) bool { attrs = append(attrs, a); return true })
	err := h.send(r.Level, r.Message, attrs)
	if err == nil {
		return nil
	}
	if !h.warned.Swap(true) {
		w := slog.NewRecord(time.Now(), slog.LevelWarn, fmt.Sprintf("%s does not take the log, which goes on here: %v", h.name, err), 0)
		if err := h.spare.Handle(ctx, w); err != nil {
			return err
		}
	}
	return h.spare.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h *system) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	c.attrs, c.spare = append(slices.Clone(h.attrs), attrs...), h.spare.WithAttrs(attrs)
	return &c
}

// WithGroup implements slog.Handler. Groups do not show.
func (h *system) WithGroup(string) slog.Handler { return h }

// maxLine is how many bytes of a message go to a log of the system, which takes a line in one datagram.
const maxLine = 64 << 10

// bounded is at most maxLine bytes of text.
func bounded(text string) string {
	if len(text) > maxLine {
		return strings.ToValidUTF8(text[:maxLine], "") + "…"
	}
	return text
}

// A logger that does not read is waited for as long as the first, and then left alone as long as the second: WAL does not wait for a log.
const (
	logPatience = time.Second
	logRest     = time.Minute
)

// sysLog speaks to the system's logger (RFC 3164, as local sockets take it). It connects when there is something to say.
type sysLog struct {
	socket string // "" for where it usually is
	json   bool
	rest   atomic.Int64 // until when it is not tried, since it does not read; nanoseconds since 1970

	mu  sync.Mutex // who holds it for long waits for a logger that does not read
	out *syslog.Writer
}

func (l *sysLog) send(level slog.Level, message string, attrs []slog.Attr) error {
	text := strings.ReplaceAll(printable(message), "\n\t", " | ")
	if l.json {
		var b bytes.Buffer
		r := slog.NewRecord(time.Time{}, level, message, 0)
		r.AddAttrs(attrs...)
		if err := slog.NewJSONHandler(&b, &slog.HandlerOptions{Level: level}).Handle(context.Background(), r); err != nil {
			return err
		}
		text = strings.TrimSpace(b.String())
	} else {
		for _, a := range attrs {
			text += attribute(a)
		}
	}
	if time.Now().UnixNano() < l.rest.Load() {
		return os.ErrDeadlineExceeded
	}
	sent := make(chan error, 1)
	go func() { sent <- l.write(level, bounded(text)) }() // the library for it knows no deadline
	select {
	case err := <-sent:
		return err
	case <-time.After(logPatience):
		l.rest.Store(time.Now().Add(logRest).UnixNano())
		return os.ErrDeadlineExceeded
	}
}

func (l *sysLog) write(level slog.Level, text string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.out == nil {
		network := "unixgram"
		if l.socket == "" {
			network = ""
		}
		out, err := syslog.Dial(network, l.socket, syslog.LOG_DAEMON|syslog.LOG_INFO, "holdfast")
		if err != nil {
			return err
		}
		l.out = out
	}
	switch {
	case level >= slog.LevelError:
		return l.out.Err(text)
	case level >= slog.LevelWarn:
		return l.out.Warning(text)
	case level >= slog.LevelInfo:
		return l.out.Info(text)
	}
	return l.out.Debug(text)
}

// Close closes the connection; what is sent after it opens another.
func (l *sysLog) Close() error {
	if !l.mu.TryLock() { // it would have to wait, and this process is to end
		return nil
	}
	defer l.mu.Unlock()
	if l.out == nil {
		return nil
	}
	defer func() { l.out = nil }()
	return l.out.Close()
}

// journal speaks to journald (https://systemd.io/JOURNAL_NATIVE_PROTOCOL): a datagram of fields for each line. The library for it knows one socket, and keeps that for all.
type journal struct {
	socket string // "" for where it usually is

	mu   sync.Mutex
	conn net.Conn
	rest time.Time // until when it is not tried, since it does not read
}

const journalSocket = "/run/systemd/journal/socket"

func (j *journal) send(level slog.Level, message string, attrs []slog.Attr) error {
	priority := syslog.LOG_DEBUG
	switch {
	case level >= slog.LevelError:
		priority = syslog.LOG_ERR
	case level >= slog.LevelWarn:
		priority = syslog.LOG_WARNING
	case level >= slog.LevelInfo:
		priority = syslog.LOG_INFO
	}
	text := message
	var fields bytes.Buffer
	for _, a := range attrs {
		key := strings.Map(func(r rune) rune {
			if r >= 'a' && r <= 'z' {
				return r &^ 0x20
			}
			if r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
				return r
			}
			return '_'
		}, a.Key)
		field(&fields, "HOLDFAST_"+key, a.Value.Resolve().String())
		if !slices.Contains([]string{jobKey, backupKey, segmentKey}, a.Key) {
			text += attribute(a)
		}
	}
	var b bytes.Buffer
	field(&b, "MESSAGE", strings.ReplaceAll(printable(text), "\n\t", "\n"))
	field(&b, "PRIORITY", strconv.Itoa(int(priority)))
	field(&b, "SYSLOG_IDENTIFIER", "holdfast")
	b.Write(fields.Bytes())
	j.mu.Lock()
	defer j.mu.Unlock()
	if time.Now().Before(j.rest) {
		return os.ErrDeadlineExceeded
	}
	for again := j.conn != nil; ; again = false { // what was connected once may be another journald's by now
		err := j.write(b.Bytes())
		if errors.Is(err, os.ErrDeadlineExceeded) {
			j.rest, again = time.Now().Add(logRest), false
		}
		if err == nil || !again {
			return err
		}
		j.conn.Close() // it is of no use
		j.conn = nil
	}
}

func (j *journal) write(datagram []byte) error {
	if j.conn == nil {
		socket := j.socket
		if socket == "" {
			socket = journalSocket
		}
		conn, err := net.Dial("unixgram", socket)
		if err != nil {
			return err
		}
		j.conn = conn
	}
	if err := j.conn.SetWriteDeadline(time.Now().Add(logPatience)); err != nil {
		return err
	}
	_, err := j.conn.Write(datagram)
	return err
}

// Close closes the connection; what is sent after it opens another.
func (j *journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.conn == nil {
		return nil
	}
	defer func() { j.conn = nil }()
	return j.conn.Close()
}

// field writes one field: in one line, or where it has several behind its length.
func field(b *bytes.Buffer, name, value string) {
	value = bounded(value)
	if !strings.Contains(value, "\n") {
		fmt.Fprintf(b, "%s=%s\n", name, value)
		return
	}
	b.WriteString(name + "\n")
	b.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(value))))
	b.WriteString(value + "\n")
}

// toSystem has the log go to the system's, where HOLDFAST_LOG_TO says so.
func (a *app) toSystem(s *config.Settings, level slog.Level, spare slog.Handler) slog.Handler {
	name, socket, _ := strings.Cut(s.Log.To, ":")
	h := &system{level: level, name: name, spare: spare, warned: &atomic.Bool{}}
	switch name {
	case "syslog":
		l := &sysLog{socket: socket, json: s.Log.Format == "json"}
		h.send, a.logTo = l.send, l
	case "journald":
		j := &journal{socket: socket}
		h.send, a.logTo = j.send, j
		a.journal = stderrIsJournal(a.env)
	default:
		return nil
	}
	return h
}

// stderrIsJournal reports whether what goes to standard error gets to journald by itself, as in a unit of systemd, which says so in JOURNAL_STREAM.
func stderrIsJournal(env Env) bool {
	f, ok := env.Stderr.(*os.File)
	if !ok {
		return false
	}
	st, err := f.Stat()
	if err != nil {
		return false
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	return ok && slices.Contains(env.Environ, fmt.Sprintf("JOURNAL_STREAM=%d:%d", sys.Dev, sys.Ino))
}

// recent keeps the last lines of a log, without details, for reports.
type recent struct {
	mu    sync.Mutex
	lines []string
	bytes int
}

// maxRecent is how many bytes of lines are kept.
const maxRecent = 8 << 10

// Write keeps a line.
func (r *recent) Write(line []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, bounded(string(line)))
	for r.bytes += len(r.lines[len(r.lines)-1]); r.bytes > maxRecent && len(r.lines) > 1; r.lines = r.lines[1:] {
		r.bytes -= len(r.lines[0])
	}
	return len(line), nil
}

// String returns what was kept.
func (r *recent) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.lines, "")
}

// alsoTo has the log go to r, too.
func (a *app) alsoTo(r *recent) {
	a.log = slog.New(slog.NewMultiHandler(a.log.Handler(), newHandler(r, slog.LevelInfo)))
}
