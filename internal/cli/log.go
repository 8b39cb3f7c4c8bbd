package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
)

// handler writes log lines in WAL-G's form, which people's scrapers know:
//
//	INFO: 2021/09/02 15:57:42.138682 message key=value
type handler struct {
	level slog.Level
	attrs string // of WithAttrs, as they show
	mu    *sync.Mutex
	out   io.Writer
}

func newHandler(out io.Writer, level slog.Level) *handler {
	return &handler{level: level, mu: &sync.Mutex{}, out: out}
}

// Enabled implements slog.Handler.
func (h *handler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level }

// Handle implements slog.Handler.
func (h *handler) Handle(_ context.Context, r slog.Record) error {
	var b bytes.Buffer
	level := r.Level.String()
	if r.Level == slog.LevelWarn {
		level = "WARNING"
	}
	fmt.Fprintf(&b, "%s: %s %s%s", level, r.Time.Format("2006/01/02 15:04:05.000000"), printable(r.Message), h.attrs)
	r.Attrs(func(a slog.Attr) bool { b.WriteString(attribute(a)); return true })
	b.WriteByte('\n')
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := h.out.Write(b.Bytes())
	return err
}

// printable returns a message in which what comes from outside, a file's name for instance, cannot begin a line that looks like one of
// ours, nor steer a terminal.
func printable(message string) string {
	var b strings.Builder
	for _, r := range message {
		switch {
		case r == '\n':
			b.WriteString("\n\t")
		case r == '\t' || unicode.IsPrint(r):
			b.WriteRune(r)
		default:
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
	}
	return b.String()
}

// WithAttrs implements slog.Handler.
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	for _, a := range attrs {
		c.attrs += attribute(a)
	}
	return &c
}

// attribute is how a shows in a line, quoted where it would not show where it ends.
func attribute(a slog.Attr) string {
	if a.Equal(slog.Attr{}) {
		return ""
	}
	text := a.Value.Resolve().String()
	if strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) || r == ' ' || r == '"' || r == '=' }) {
		text = strconv.Quote(text)
	}
	return " " + a.Key + "=" + text
}

// WithGroup implements slog.Handler. Groups do not show.
func (h *handler) WithGroup(string) slog.Handler { return h }

// lines prints how an operation is getting on: a line every half minute, to the log.
func (a *app) lines(ctx context.Context, line func() string) (stop func()) {
	done := make(chan struct{})
	var wait sync.WaitGroup
	wait.Go(func() {
		tick := time.NewTicker(30 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				a.log.Info(line())
			case <-ctx.Done():
				return
			case <-done:
				return
			}
		}
	})
	return func() { close(done); wait.Wait() }
}
