package notify_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/internal/notify"
)

var at = time.Date(2026, 11, 21, 3, 0, 0, 0, time.UTC)

func event() notify.Event {
	return notify.Event{Job: "backup-push", Result: notify.Failed, Host: "db1", Cluster: "s3://bucket/main", Summary: "connect: refused",
		Detail: "connect: refused\nhint: look", At: at, Since: at.Add(-time.Hour), Times: 2, Link: "https://wiki/runbook"}
}

// sender answers as it is told: the n-th call gets the n-th error.
type sender struct {
	name string
	mu   sync.Mutex
	errs []error
	got  []notify.Event
}

func (s *sender) Name() string { return s.name }

func (s *sender) Send(_ context.Context, e *notify.Event) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got = append(s.got, *e)
	if n := len(s.got); n <= len(s.errs) {
		return "", s.errs[n-1]
	}
	return "thanks", nil
}

// A sender that fails is tried again until it succeeds; one that cannot is not; another that never does ends with the time. None keeps the others waiting.
func TestDeliverTriesAgainWithinBounds(t *testing.T) {
	down := errors.New("down")
	var never []error
	for range 10000 {
		never = append(never, down)
	}
	senders := []*sender{{name: "late", errs: []error{down, down}}, {name: "gone", errs: []error{&notify.FinalError{Err: down}}}, {name: "dead", errs: never}, {name: "well"}}
	var all []notify.Sender
	for _, s := range senders {
		all = append(all, s)
	}
	begin := time.Now()
	answers := notify.Deliver(t.Context(), all, event(), notify.Options{Within: 200 * time.Millisecond, Pause: time.Millisecond})
	if took := time.Since(begin); took > 30*time.Second {
		t.Errorf("it took %s", took)
	}
	for i, want := range []struct {
		calls int
		fails bool
	}{{3, false}, {1, true}, {0, true}, {1, false}} {
		if n := len(senders[i].got); want.calls != 0 && n != want.calls || n == 0 || (answers[i].Err != nil) != want.fails || answers[i].Sender != senders[i].name {
			t.Errorf("%s: %d calls, answer %v; want %d calls, an error: %v", senders[i].name, n, answers[i], want.calls, want.fails)
		}
	}
}

// Where somebody waits a sender is tried so often and no more.
func TestTriesAreCounted(t *testing.T) {
	down := errors.New("down")
	s := &sender{name: "dead", errs: []error{down, down, down}}
	if a := notify.Deliver(t.Context(), []notify.Sender{s}, event(), notify.Options{Tries: 2, Pause: time.Millisecond}); !errors.Is(a[0].Err, down) || len(s.got) != 2 {
		t.Errorf("%d tries, %v", len(s.got), a[0].Err)
	}
}

// stuck answers when it is given up.
type stuck struct{}

func (stuck) Name() string { return "stuck" }

func (stuck) Send(ctx context.Context, _ *notify.Event) (string, error) {
	<-ctx.Done()
	return "", ctx.Err()
}

func TestATryHasADeadline(t *testing.T) {
	a := notify.Deliver(t.Context(), []notify.Sender{stuck{}}, event(), notify.Options{Try: 5 * time.Millisecond, Within: 50 * time.Millisecond, Pause: time.Millisecond})
	if a[0].Err == nil || !strings.Contains(a[0].Err.Error(), "no answer within") && !errors.Is(a[0].Err, context.DeadlineExceeded) {
		t.Errorf("got %v", a[0].Err)
	}
}

// What comes from outside neither begins lines of a mail's head nor steers terminals.
func TestTitleIsOneLine(t *testing.T) {
	e := event()
	e.Summary = "put a\r\nBcc: all@example.com\x1b[2J\xff" + strings.Repeat("é", 500)
	title := e.Title()
	if strings.ContainsAny(title, "\r\n\x1b\xff") || len([]rune(title)) > 200 || !strings.HasPrefix(title, "backup-push failed on db1: put a Bcc:") && !strings.HasPrefix(title, "backup-push failed on db1: put a? Bcc:") {
		t.Errorf("title %q", title)
	}
	if text := e.Text(); strings.ContainsAny(text, "\r\x1b\xff") || !strings.Contains(text, "2 in a row") || !strings.Contains(text, "https://wiki/runbook") {
		t.Errorf("text %q", text)
	}
}

// A failure is told once, then after the time to repeat it; its end once, to those who were told; who could not be reached hears it later.
func TestStateTellsOnce(t *testing.T) {
	a, b := &sender{name: "a"}, &sender{name: "b"}
	both := []notify.Sender{a, b}
	path := filepath.Join(t.TempDir(), "s.json")
	down := errors.New("down")
	for i, step := range []struct {
		hour  int // since the begin
		fails bool
		lost  string // the sender that cannot be reached
		want  []string
		since int
		times int
	}{
		{0, false, "", nil, 0, 0},
		{1, true, "b", []string{"a", "b"}, 1, 1}, // b does not hear it
		{2, true, "", []string{"b"}, 1, 2},
		{3, true, "", nil, 1, 3},
		{25, true, "", []string{"a"}, 1, 4}, // a day after a was told
		{26, true, "", []string{"b"}, 1, 5},
		{27, false, "a", []string{"a", "b"}, 1, 5}, // a does not hear that it works again
		{28, false, "", []string{"a"}, 1, 5},
		{29, false, "", nil, 0, 0},
		{30, true, "", []string{"a", "b"}, 30, 1},
		{20, true, "", []string{"a", "b"}, 30, 2}, // the clock was put back
		{31, false, "", []string{"a", "b"}, 30, 2},
	} {
		s, err := notify.LoadState(path)
		if err != nil {
			t.Fatal(err)
		}
		e := notify.Event{At: at.Add(time.Duration(step.hour) * time.Hour)}
		due := s.Work
		if step.fails {
			due = func(e *notify.Event, all []notify.Sender) []notify.Sender { return s.Fail(e, all, 24*time.Hour) }
		}
		var got []string
		var answers []notify.Answer
		for _, one := range due(&e, both) {
			got = append(got, one.Name())
			answer := notify.Answer{Sender: one.Name()}
			if one.Name() == step.lost {
				answer.Err = down
			}
			answers = append(answers, answer)
		}
		if !slices.Equal(got, step.want) || len(got) > 0 && (!e.Since.Equal(at.Add(time.Duration(step.since)*time.Hour)) || e.Times != step.times) {
			t.Errorf("step %d: told %v since %v, %d times; want %v since hour %d, %d times", i, got, e.Since, e.Times, step.want, step.since, step.times)
		}
		s.Heard(&e, answers)
		if err := s.Save(path); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a job that works, and of which all know it, leaves a file: %v", err)
	}
}

// Who was told of one exit status is told of another at once, as damage is more than what could not be looked at.
func TestStateTellsOfAnotherStatus(t *testing.T) {
	a := &sender{name: "a"}
	var s notify.State
	for i, step := range []struct {
		status int
		err    error
		told   bool
	}{{1, nil, true}, {1, nil, false}, {2, errors.New("down"), true}, {2, nil, true}, {2, nil, false}, {1, nil, true}} {
		e := notify.Event{At: at.Add(time.Duration(i) * time.Minute), Status: step.status}
		due := s.Fail(&e, []notify.Sender{a}, 24*time.Hour)
		if (len(due) == 1) != step.told {
			t.Errorf("step %d: %d are told, want %v", i, len(due), step.told)
		}
		if len(due) == 1 {
			s.Heard(&e, []notify.Answer{{Sender: "a", Err: step.err}})
		}
	}
}

// FuzzParseState: what is accepted is written back the same.
func FuzzParseState(f *testing.F) {
	f.Add([]byte(`{"failing":true,"since":"2026-11-21T03:00:00Z","times":3,"told":{"mail":{"at":"2026-11-21T03:00:00Z","exit_status":2}}}`))
	f.Add([]byte(`{}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := notify.ParseState(text)
		if err != nil {
			return
		}
		once, err := json.Marshal(&s)
		if err != nil {
			return // a year that JSON has not
		}
		again, err := notify.ParseState(once)
		if err != nil {
			t.Fatalf("%q is read, and not what it is written as, %q: %v", text, once, err)
		}
		if twice, err := json.Marshal(&again); err != nil || string(once) != string(twice) {
			t.Errorf("%q becomes %q (%v)", once, twice, err)
		}
	})
}

// A command has the event on its standard input, no argument, and the environment that it is given, no other.
func TestCommandGetsTheEvent(t *testing.T) {
	t.Setenv("AWS_SECRET_ACCESS_KEY", "hush")
	dir := t.TempDir()
	c := &notify.Command{Line: `cat > "$DIR/in"; env > "$DIR/env"; echo "$#" > "$DIR/args"; echo done`, Env: []string{"DIR=" + dir, "PATH=" + os.Getenv("PATH")}}
	e := event()
	said, err := c.Send(t.Context(), &e)
	if err != nil || said != "exit status 0: done" {
		t.Fatalf("got %q, %v", said, err)
	}
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	var got notify.Event
	if err := json.Unmarshal([]byte(read("in")), &got); err != nil || got != e {
		t.Errorf("standard input has %q (%v), want %+v", read("in"), err, e)
	}
	if args := read("args"); args != "0\n" {
		t.Errorf("%q arguments", args)
	}
	if env := read("env"); strings.Contains(env, "hush") {
		t.Errorf("its environment has %s", env)
	}
}

func TestCommandFails(t *testing.T) {
	e := event()
	for line, want := range map[string]struct {
		words string
		final bool
	}{
		"echo no such channel >&2; exit 3": {"exit status 3: no such channel", false},
		"/no/such/program":                 {"exit status 127", true},
		"kill -9 $$":                       {"signal: killed", false},
	} {
		_, err := (&notify.Command{Line: line}).Send(t.Context(), &e)
		if final := (*notify.FinalError)(nil); err == nil || !strings.Contains(err.Error(), want.words) || errors.As(err, &final) != want.final {
			t.Errorf("%s: got %v, want %+v", line, err, want)
		}
	}
}

// A command whose time is over is killed with all that it started.
func TestCommandIsKilled(t *testing.T) {
	alive := filepath.Join(t.TempDir(), "alive")
	ctx, cancel := context.WithCancel(t.Context())
	c := &notify.Command{Line: fmt.Sprintf("(while :; do echo >> %s; sleep 0.01; done) & echo started; wait", alive), Env: []string{"PATH=" + os.Getenv("PATH")}}
	done := make(chan error, 1)
	e := event()
	go func() { _, err := c.Send(ctx, &e); done <- err }()
	for {
		if st, err := os.Stat(alive); err == nil && st.Size() > 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-done; err == nil {
		t.Error("no error")
	}
	before, err := os.ReadFile(alive)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	if after, err := os.ReadFile(alive); err != nil || len(after) != len(before) {
		t.Errorf("what it started goes on: %d lines, then %d (%v)", len(before), len(after), err)
	}
}
