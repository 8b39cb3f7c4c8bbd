package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// handler writes log lines in WAL-G's form, which people's scrapers know:
//
//	INFO: 2021/09/02 15:57:42.138682 message key=value
type handler struct {
	level slog.Level
	attrs []slog.Attr
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
	// One record, one line, whatever the message holds, but for the continuation lines of several problems.
	fmt.Fprintf(&b, "%s: %s %s", level, r.Time.Format("2006/01/02 15:04:05.000000"), r.Message)
	for _, a := range h.attrs {
		fmt.Fprintf(&b, " %s=%v", a.Key, a.Value)
	}
	r.Attrs(func(a slog.Attr) bool { fmt.Fprintf(&b, " %s=%v", a.Key, a.Value); return true })
	b.WriteByte('\n')
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := h.out.Write(b.Bytes())
	return err
}

// WithAttrs implements slog.Handler.
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	c.attrs = append(slices.Clone(h.attrs), attrs...)
	return &c
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
