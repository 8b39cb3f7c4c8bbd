// Package notify tells people what became of a job: through webhooks, mail and a command, and a dead man's switch.
//
// An Event says what happened. Deliver hands it to Senders, each of which it gives a deadline, and tries again until a minute has passed: a receiver that is down
// delays a job's end by that and fails nothing. State remembers who was told what, so that a job that keeps failing is told of once and then now and then, and its
// recovery once, to those who were told that it failed. A Ping is told of each run, and that a job succeeded only once it has.
//
// Where a receiver's address is a secret, as that of a Slack webhook, no error repeats it.
package notify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"
)

// Result is what an Event says of a job.
type Result string

// The results.
const (
	Failed    Result = "failed"
	Recovered Result = "recovered" // it succeeded, after it had failed
	Late      Result = "late"      // it will not be done when it should be
	Absent    Result = "absent"    // it was not done when it should have been
	Succeeded Result = "succeeded"
)

// Words says the same behind the name of a job.
func (r Result) Words() string {
	words := map[Result]string{Failed: "failed", Recovered: "works again", Late: "will be late", Absent: "did not run", Succeeded: "succeeded"}[r]
	return cmp.Or(words, string(r))
}

// Event is what people are told. As JSON it is what the webhook and the command get.
type Event struct {
	Job     string    `json:"job"` // such as backup-push
	Result  Result    `json:"result"`
	Host    string    `json:"host"`
	Cluster string    `json:"cluster"`          // which, for people: the archive's location where nobody gave it a name
	Summary string    `json:"summary"`          // one line
	Detail  string    `json:"detail,omitempty"` // further lines: errors and what can be done
	At      time.Time `json:"at"`
	Since   time.Time `json:"since,omitzero"`  // of a failure: since when it lasts, or lasted
	Times   int       `json:"times,omitempty"` // of a failure: how many runs have failed since then
	Status  int       `json:"exit_status"`     // of the command
	Link    string    `json:"link,omitempty"`  // where people look next
	Test    bool      `json:"test,omitempty"`  // it says nothing about the job
}

// Title is the event in one line, at most 200 characters of it.
func (e *Event) Title() string {
	title := fmt.Sprintf("%s %s on %s: %s", e.Job, e.Result.Words(), e.Host, e.Summary)
	if e.Test {
		title = fmt.Sprintf("test from %s: %s", e.Host, e.Summary)
	}
	return cut(line(title), 200)
}

// Text is the event as people read it, without the title.
func (e *Event) Text() string {
	var b strings.Builder
	b.WriteString(block(e.Summary) + "\n")
	if e.Detail != "" {
		b.WriteString("\n" + block(e.Detail) + "\n")
	}
	b.WriteString("\n")
	for _, row := range []struct{ what, text string }{{"job", e.Job}, {"host", e.Host}, {"cluster", e.Cluster}, {"at", stamp(e.At)}, {"since", stamp(e.Since)}, {"see", e.Link}} {
		if row.text != "" {
			fmt.Fprintf(&b, "%-8s %s\n", row.what+":", line(row.text))
		}
	}
	if e.Times > 1 {
		fmt.Fprintf(&b, "%-8s %d in a row\n", "failed:", e.Times)
	}
	return b.String()
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04:05Z")
}

// line is text in one line, of which nothing steers a terminal.
func line(text string) string { return strings.Join(strings.Fields(block(text)), " ") }

// block is text of valid UTF-8 without control characters but ends of lines and tabs.
func block(text string) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, strings.ToValidUTF8(text, "?")))
}

// cut returns at most n characters of text.
func cut(text string, n int) string {
	if utf8.RuneCountInString(text) <= n {
		return text
	}
	return string([]rune(text)[:n-1]) + "…"
}

// Sender is one way to reach people.
type Sender interface {
	// Name says which, without anything secret. No two of one Deliver have the same.
	Name() string
	// Send hands e over, and returns what the receiver answered in a few words. Where it makes no sense to try again the error is a *FinalError.
	Send(ctx context.Context, e *Event) (string, error)
}

// FinalError is one that trying again would not help.
type FinalError struct{ Err error }

func (e *FinalError) Error() string { return e.Err.Error() }

// Unwrap returns what went wrong.
func (e *FinalError) Unwrap() error { return e.Err }

// Options says how long Deliver tries. The zero value is ready to use.
type Options struct {
	Try    time.Duration // how long one try may take; 0 means 15 s
	Within time.Duration // how long all tries of a sender may take together; 0 means a minute
	Tries  int           // how often a sender is tried at most; 0: as often as there is time
	Pause  time.Duration // after the first try; twice as long after each further one; 0 means 1 s
	Logger *slog.Logger  // is told of tries that failed; nil discards
}

const defaultTry = 15 * time.Second // mail servers take their time to greet

// Answer is what became of an event at one sender.
type Answer struct {
	Sender string
	Said   string // what the receiver answered
	Err    error  // nil: it has the event
}

// Deliver hands e to all senders at once, and returns their answers in the order of senders once the last is there.
func Deliver(ctx context.Context, senders []Sender, e Event, o Options) []Answer {
	answers := make([]Answer, len(senders))
	var wait sync.WaitGroup
	for i, s := range senders {
		wait.Go(func() {
			said, err := again(ctx, s.Name(), o, func(ctx context.Context) (string, error) { return s.Send(ctx, &e) })
			answers[i] = Answer{s.Name(), said, err}
		})
	}
	wait.Wait()
	return answers
}

// again tries send until it succeeds, cannot, or its time is over.
func again(ctx context.Context, name string, o Options, send func(context.Context) (string, error)) (string, error) {
	logger := o.Logger
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(o.Within, time.Minute))
	defer cancel()
	pause := cmp.Or(o.Pause, time.Second)
	for tried := 1; ; tried++ {
		said, err := once(ctx, cmp.Or(o.Try, defaultTry), send)
		if err == nil {
			return said, nil
		}
		if final := (*FinalError)(nil); errors.As(err, &final) || ctx.Err() != nil || tried == o.Tries {
			return said, err
		}
		logger.Debug(name+": tried in vain", "error", err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return said, err
		}
		pause *= 2
	}
}

// once tries send once. What is at work when the time is over says so by itself, as it has the context.
func once(ctx context.Context, limit time.Duration, send func(context.Context) (string, error)) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %s", limit))
	defer cancel()
	said, err := send(ctx)
	if err != nil && ctx.Err() != nil {
		if why := context.Cause(ctx); why != nil && !errors.Is(err, why) {
			err = fmt.Errorf("%w (%w)", why, err)
		}
	}
	return said, err
}
