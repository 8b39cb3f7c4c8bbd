package notify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"syscall"
	"time"
)

// Command runs a line of the shell (/bin/sh) with the event as JSON on its standard input: nothing of it is an argument, where it would be seen and be taken for words of the
// shell. What it prints shows in the error when it fails. Once its time is over it is killed, with what it started.
type Command struct {
	Line string
	Env  []string // its environment
}

// Name implements Sender.
func (*Command) Name() string { return "command" }

// Send implements Sender.
func (c *Command) Send(ctx context.Context, e *Event) (string, error) {
	in, err := json.Marshal(e)
	if err != nil {
		return "", &FinalError{err}
	}
	var out tail
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", c.Line)
	cmd.Env = append([]string{}, c.Env...) // an empty one would be ours
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(append(in, '\n')), &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	said := cut(line(string(out.bytes)), 200)
	if errors.Is(err, exec.ErrWaitDelay) { // it ended well, and something that it started keeps its output
		err = nil
	}
	var ended *exec.ExitError
	switch {
	case err == nil && said == "":
		return "exit status 0", nil
	case err == nil:
		return "exit status 0: " + said, nil
	case errors.As(err, &ended) && said != "":
		err = fmt.Errorf("%w: %s", err, said)
	}
	if ended != nil && (ended.ExitCode() == 126 || ended.ExitCode() == 127) {
		err = &FinalError{err} // there is no such program
	}
	return said, err
}

// tail keeps the end of what is written to it.
type tail struct{ bytes []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.bytes = append(t.bytes, p...)
	if extra := len(t.bytes) - maxAnswer; extra > 0 {
		t.bytes = append(t.bytes[:0], t.bytes[extra:]...)
	}
	return len(p), nil
}
