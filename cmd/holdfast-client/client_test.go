package main_test

import (
	"bytes"
	"debug/elf"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"holdfast/internal/daemon/wire"
)

const segment = "00000001000000000000002A"

// client builds the program as the Makefile does, and returns its path. Beside it is a holdfast that says how it was called.
func client(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf") // short, for the path of a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "holdfast-client")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-trimpath", "-ldflags", "-s -w", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	stand(t, filepath.Join(dir, "holdfast"), 42)
	return path
}

// stand writes a program that stands for holdfast.
func stand(t *testing.T, path string, status byte) {
	t.Helper()
	script := "#!/bin/sh\necho \"in place: $*\"\nexit " + string([]byte{'0' + status/10, '0' + status%10}) + "\n"
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
}

// It is small, and needs nothing of the host.
func TestSmallAndStatic(t *testing.T) {
	path := client(t)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > 2_000_000 {
		t.Errorf("it has %d bytes", info.Size())
	}
	f, err := elf.Open(path)
	if err != nil {
		t.Skip(err) // another format than that of Linux
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Errorf("it is linked dynamically: %v", p.Type)
		}
	}
}

// daemon answers one client as the test says, and returns what the client said.
func daemon(t *testing.T, path string, answer func(conn net.Conn)) <-chan string {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	said := make(chan string, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		var all []string
		for {
			kind, body, err := wire.Read(conn)
			if err != nil {
				break
			}
			all = append(all, string(rune(kind))+string(body))
			if kind != wire.Hello {
				break
			}
		}
		said <- strings.Join(all, " ")
		answer(conn)
	}()
	return said
}

// call runs the program in a directory like a data directory, and returns how it ended.
func call(t *testing.T, path, dir string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	cmd := exec.Command(path, args...)
	cmd.Dir = dir
	var out, err bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &err
	if e := cmd.Run(); e != nil && !errors.As(e, new(*exec.ExitError)) {
		t.Fatal(e)
	}
	return cmd.ProcessState.ExitCode(), out.String(), err.String()
}

// What the daemon answers becomes the exit status, and its words PostgreSQL's log; and the whole program does what it does not.
func TestAnswers(t *testing.T) {
	program := client(t)
	data := t.TempDir()
	if err := os.MkdirAll(filepath.Join(data, "pg_wal"), 0o700); err != nil {
		t.Fatal(err)
	}
	say := func(kind wire.Type, body string) func(net.Conn) {
		return func(conn net.Conn) {
			m, err := wire.Append(nil, kind, []byte(body)...)
			if err == nil {
				_, err = conn.Write(m)
			}
			if err != nil {
				t.Error(err)
			}
		}
	}
	silent := func(conn net.Conn) { io.Copy(io.Discard, conn) }
	working := func(n int, then func(net.Conn)) func(net.Conn) {
		return func(conn net.Conn) {
			for range n {
				say(wire.Working, "")(conn)
			}
			then(conn)
		}
	}
	// For ever, until the client has gone.
	always := func(conn net.Conn) {
		for {
			if m, err := wire.Append(nil, wire.Working); err != nil {
				return
			} else if _, err := conn.Write(m); err != nil {
				return
			}
		}
	}
	push, fetch := []string{"wal-push", "pg_wal/" + segment}, []string{"wal-fetch", segment, "pg_wal/RECOVERYXLOG"}
	inPlaceOfPush, inPlaceOfFetch := "in place: wal-push pg_wal/"+segment+"\n", "in place: wal-fetch "+segment+" pg_wal/RECOVERYXLOG\n"
	for what, c := range map[string]struct {
		flags  []string
		words  []string
		answer func(net.Conn) // nil: nobody listens
		status int
		stdout string
		stderr string
	}{
		"check":                   {nil, []string{"check"}, say(wire.OK, ""), 0, "", ""},
		"check, failed":           {nil, []string{"check"}, say(wire.Failed, "\x01no"), 1, "", "no\n"},
		"check, nobody":           {nil, []string{"check"}, nil, 1, "", "no such file"},
		"push":                    {nil, push, say(wire.OK, ""), 0, "", ""},
		"push, at work first":     {nil, push, working(3, say(wire.OK, "")), 0, "", ""},
		"push, failed":            {nil, push, say(wire.Failed, "\x01the store is down\nhint: look"), 1, "", "holdfast-client: the store is down\nholdfast-client: hint: look\n"},
		"push, declined":          {nil, push, say(wire.Declined, "not mine"), 42, inPlaceOfPush, "not mine; running"},
		"push, hung up":           {nil, push, func(net.Conn) {}, 42, inPlaceOfPush, "hung up"},
		"push, hung up later":     {nil, push, working(2, func(net.Conn) {}), 42, inPlaceOfPush, "hung up"},
		"push, WAL-G's daemon":    {nil, push, func(conn net.Conn) { conn.Write([]byte("E")) }, 42, inPlaceOfPush, "hung up"},
		"push, another protocol":  {nil, push, say('z', ""), 42, inPlaceOfPush, "another protocol"},
		"push, no status":         {nil, push, say(wire.Failed, ""), 42, inPlaceOfPush, "did not say"},
		"push, status 0":          {nil, push, say(wire.Failed, "\x00"), 42, inPlaceOfPush, "did not say"},
		"push, nobody":            {nil, push, nil, 42, inPlaceOfPush, "no such file"},
		"push, silence":           {[]string{"-connection-timeout", "50ms"}, push, silent, 42, inPlaceOfPush, "no sign of life"},
		"push, silence later":     {[]string{"--connection-timeout=50ms"}, push, working(2, silent), 42, inPlaceOfPush, "no sign of life"},
		"push, too long":          {[]string{"-timeout", "50ms"}, push, always, 1, "", "took longer than 50ms"},
		"push, a name":            {nil, []string{"wal-push", segment}, say(wire.Declined, "x"), 42, inPlaceOfPush, ""},
		"fetch":                   {nil, fetch, say(wire.OK, ""), 0, "", ""},
		"fetch, missing":          {nil, fetch, say(wire.Missing, "Archive 'x' does not exist."), 74, "", "Archive 'x' does not exist."},
		"fetch, failed, standby":  {nil, fetch, say(wire.Failed, "\x4bno"), 75, "", "no\n"},
		"fetch, failed, recovery": {nil, fetch, say(wire.Failed, "\xc8no"), 200, "", "no\n"},
		"fetch, declined":         {nil, fetch, say(wire.Declined, "not mine"), 42, inPlaceOfFetch, "not mine"},
		"fetch, nobody":           {nil, fetch, nil, 42, inPlaceOfFetch, ""},
		"fetch, too long":         {[]string{"-timeout=50ms"}, fetch, always, 42, inPlaceOfFetch, "took longer"},
	} {
		t.Run(what, func(t *testing.T) {
			socket := filepath.Join(filepath.Dir(program), "s")
			var said <-chan string
			if c.answer != nil {
				said = daemon(t, socket, c.answer)
			}
			status, stdout, stderr := call(t, program, data, append(append(c.flags, socket), c.words...)...)
			if status != c.status || stdout != c.stdout || !strings.Contains(stderr, c.stderr) || c.stderr == "" && c.status == 0 && stderr != "" {
				t.Errorf("exit status %d, printed %q and %q; want %d, %q and %q", status, stdout, stderr, c.status, c.stdout, c.stderr)
			}
			if said == nil {
				return
			}
			want := "H\x01 C"
			switch c.words[0] {
			case "wal-push":
				want = "H\x01 F" + data + "/pg_wal/" + segment
			case "wal-fetch":
				args, err := wire.Args(segment, data+"/pg_wal/RECOVERYXLOG")
				if err != nil {
					t.Fatal(err)
				}
				want = "H\x01 f" + string(args)
			}
			if got := <-said; got != want {
				t.Errorf("said %q, want %q", got, want)
			}
		})
	}
}

// Who listens as somebody else is not asked, and what he says is not believed.
func TestAnotherAccountListens(t *testing.T) {
	if runtime.GOOS != "linux" || os.Geteuid() != 0 {
		t.Skip("only root can be two others")
	}
	program := client(t)
	dir := filepath.Dir(program)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ listens, asks, status int }{{65533, 65532, 42}, {65533, 65533, 0}, {65533, 0, 0}, {0, 65532, 0}} {
		socket := filepath.Join(dir, "s")
		l := listenAs(t, c.listens, socket)
		if err := os.Chmod(socket, 0o777); err != nil {
			t.Fatal(err)
		}
		go func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			if m, err := wire.Append(nil, wire.OK); err == nil {
				conn.Write(m)
			}
			io.Copy(io.Discard, conn)
		}()
		cmd := exec.Command(program, socket, "wal-push", "pg_wal/"+segment)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(c.asks), Gid: uint32(c.asks)}}
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil {
			t.Fatal(err)
		}
		if got := cmd.ProcessState.ExitCode(); got != c.status {
			t.Errorf("%d listens, %d asks: exit status %d, want %d (%s)", c.listens, c.asks, got, c.status, out)
		}
		l.Close()
	}
}

// listenAs listens as the account uid does.
func listenAs(t *testing.T, uid int, path string) net.Listener {
	t.Helper()
	type result struct {
		l   net.Listener
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // which ends with this goroutine, and with it the change
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
			done <- result{nil, errno}
			return
		}
		l, err := net.Listen("unix", path)
		done <- result{l, err}
	}()
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { r.l.Close() })
	return r.l
}

// What makes no sense is no success, and no end of the archive either.
func TestWordsWithoutSense(t *testing.T) {
	program := client(t)
	for _, args := range [][]string{nil, {"s"}, {"s", "wal-pus", "x"}, {"s", "wal-push"}, {"s", "wal-push", "a", "b"}, {"s", "wal-fetch", "x"}, {"s", "check", "x"},
		{"-timeout", "s", "check"}, {"-timeout"}, {"-timeout", "-1s", "s", "check"}, {"-x", "s", "check"}, {"-connection-timeout=x", "s", "check"}} {
		if status, stdout, stderr := call(t, program, "/", args...); status != 127 || stdout != "" || !strings.Contains(stderr, "usage:") {
			t.Errorf("%q: exit status %d, %q, %q", args, status, stdout, stderr)
		}
	}
	if status, stdout, _ := call(t, program, "/", "--help"); status != 0 || !strings.Contains(stdout, "archive_command") {
		t.Errorf("help: exit status %d, %q", status, stdout)
	}
}

// The program that does it without a daemon is the one that is named, or lies beside this one, or is in PATH; where there is none nothing is taken for done.
func TestWhichProgramDoesItInstead(t *testing.T) {
	program := client(t)
	away := filepath.Join(t.TempDir(), "holdfast-client")
	if err := os.Link(program, away); err != nil {
		b, err := os.ReadFile(program)
		if err == nil {
			err = os.WriteFile(away, b, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	bin := t.TempDir()
	stand(t, filepath.Join(bin, "holdfast"), 43)
	named := filepath.Join(t.TempDir(), "other")
	stand(t, named, 44)
	if err := os.Mkdir(filepath.Join(filepath.Dir(away), "holdfast"), 0o755); err != nil { // may be entered, which is no program
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		program, command, env, path string
		status                      int
	}{
		"beside it":        {program, "wal-push", "", bin, 42},
		"in PATH":          {away, "wal-push", "", "relative:" + bin, 43},
		"named":            {program, "wal-push", named, bin, 44},
		"nowhere":          {away, "wal-push", "", "/nowhere", 1},
		"nowhere, fetch":   {away, "wal-fetch", "", "/nowhere", 200},
		"named, not there": {program, "wal-fetch", "/nowhere/holdfast", bin, 200},
	} {
		t.Setenv("HOLDFAST_PROGRAM", c.env)
		t.Setenv("PATH", c.path)
		args := []string{"/nowhere/socket", c.command, segment}
		if c.command == "wal-fetch" {
			args = append(args, "pg_wal/RECOVERYXLOG")
		}
		if status, stdout, stderr := call(t, c.program, "/", args...); status != c.status {
			t.Errorf("%s: exit status %d, want %d (%q, %q)", what, status, c.status, stdout, stderr)
		}
	}
}
