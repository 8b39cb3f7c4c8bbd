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
	"time"

	"holdfast/internal/daemon/wire"
)

const segment = "00000001000000000000002A"

// quick is what the Makefile links with where there is a quick start.
const quick = "-E main.entry"

// client builds the program as the Makefile does, and returns its path. Beside it is a holdfast that says how it was called.
func client(t *testing.T) string {
	t.Helper()
	if runtime.GOOS+"/"+runtime.GOARCH == "linux/amd64" {
		return clientLinked(t, "-s -w "+quick)
	}
	return clientLinked(t, "-s -w")
}

func clientLinked(t *testing.T, flags string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf") // short, for the path of a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "holdfast-client")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-trimpath", "-ldflags", flags, "-o", path, ".")
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
		t.Skipf("looks into programs of Linux, and of this system they are others: %v", err)
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

// What the daemon answers becomes the exit status, and its words PostgreSQL's log; and the whole program does what it does not. All of that with the quick start
// and without.
func TestAnswers(t *testing.T) {
	t.Run("built by make", func(t *testing.T) { testAnswers(t, client(t)) })
	t.Run("built by go", func(t *testing.T) { testAnswers(t, clientLinked(t, "")) })
}

func testAnswers(t *testing.T, program string) {
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
	bytewise := func(kind wire.Type) func(net.Conn) {
		return func(conn net.Conn) {
			for _, b := range []byte{byte(kind), 0, 3} {
				conn.Write([]byte{b})
				time.Sleep(20 * time.Millisecond)
			}
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
	late := func(then func(net.Conn)) func(net.Conn) {
		return func(conn net.Conn) {
			time.Sleep(wire.Alive + wire.Alive/5)
			then(conn)
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
		"push, late":              {nil, push, late(say(wire.OK, "")), 0, "", ""},
		"push, at work late":      {nil, push, late(working(1, say(wire.OK, ""))), 0, "", ""},
		"push, hung up late":      {nil, push, late(func(net.Conn) {}), 42, inPlaceOfPush, "hung up"},
		"push, byte by byte":      {nil, push, bytewise(wire.OK), 0, "", ""},
		"push, half an answer":    {nil, push, func(conn net.Conn) { conn.Write([]byte("O\x00")) }, 42, inPlaceOfPush, "hung up"},
		"push, OK with a body":    {nil, push, say(wire.OK, "x"), 0, "", ""},
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

// The quick start does a call that goes well, and where it cannot say the same as main it leaves it to main.
func TestQuickStart(t *testing.T) {
	if runtime.GOOS+"/"+runtime.GOARCH != "linux/amd64" {
		t.Skip("there is a quick start on linux/amd64 only")
	}
	both := []string{clientLinked(t, "-s -w "+quick), clientLinked(t, "-s -w")}
	dir, err := os.MkdirTemp("", "hf") // short, for the path of a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	long := filepath.Join(dir, strings.Repeat("s", 106-len(dir))) // and a 0: as long as may be
	for what, c := range map[string]struct {
		socket, in string
		words      []string
		left       bool // to main
	}{
		"push":                 {"s", "/", []string{"wal-push", "pg_wal/" + segment}, false},
		"push, absolute":       {"s", "/", []string{"wal-push", dir + "/" + segment}, false},
		"push, relative":       {"s", dir, []string{"wal-push", "pg_wal/" + segment}, false},
		"push, a name":         {"s", dir, []string{"wal-push", segment}, true},
		"push, no path":        {"s", dir, []string{"wal-push", ""}, true},
		"fetch":                {"s", dir, []string{"wal-fetch", segment, "pg_wal/RECOVERYXLOG"}, false},
		"fetch, absolute":      {"s", dir, []string{"wal-fetch", segment, "/pg_wal/RECOVERYXLOG"}, false},
		"fetch, no name":       {"s", dir, []string{"wal-fetch", "", "RECOVERYXLOG"}, false},
		"fetch, no path":       {"s", dir, []string{"wal-fetch", segment, ""}, true},
		"fetch, much":          {"s", dir, []string{"wal-fetch", strings.Repeat("n", 3000), strings.Repeat("p", 5000)}, false},
		"fetch, too much":      {"s", dir, []string{"wal-fetch", strings.Repeat("n", 3000), strings.Repeat("p", 6000)}, true},
		"fetch, far too much":  {"s", dir, []string{"wal-fetch", strings.Repeat("n", 30000), strings.Repeat("p", 30000)}, true},
		"check":                {"s", dir, []string{"check"}, false},
		"the longest socket":   {long, dir, []string{"wal-push", "a/b"}, false},
		"one without a file":   {"@" + filepath.Base(dir), dir, []string{"wal-push", "a/b"}, true},
		"a flag":               {"-connection-timeout=5s", dir, []string{filepath.Join(dir, "s"), "wal-push", "a/b"}, true},
		"names that are close": {"s", dir, []string{"wal-fetch", "wal-push", "wal-fetch/"}, false},
	} {
		t.Run(what, func(t *testing.T) {
			var said []string
			socket := c.socket
			if socket == "s" || socket[0] == '-' {
				socket = filepath.Join(dir, "s")
			}
			args := append([]string{socket}, c.words...)
			if c.socket[0] == '-' {
				args[0] = c.socket
			}
			for _, program := range both {
				t.Run("", func(t *testing.T) {
					left := make(chan error, 1) // how the client did
					hears := daemon(t, socket, func(conn net.Conn) {
						m, err := wire.Append(nil, wire.OK)
						if err == nil {
							_, err = conn.Write(m)
						}
						if err == nil {
							_, err = io.Copy(io.Discard, conn)
						}
						left <- err
					})
					status, started := traced(t, program, c.in, args...)
					if want := c.left || program == both[1]; status != 0 || started != want {
						t.Fatalf("exit status %d, left to main: %t, want %t", status, started, want)
					}
					said = append(said, <-hears)
					if err := <-left; err != nil {
						t.Errorf("it did not hang up in order: %v", err)
					}
				})
			}
			if len(said) < 2 {
				return
			}
			if said[0] != said[1] {
				t.Errorf("quick said %.200q, main %.200q", said[0], said[1])
			}
		})
	}
}

// traced runs the program in dir and reports whether Go's runtime started, which then tells of the packages that it initializes.
func traced(t *testing.T, program, dir string, args ...string) (status int, started bool) {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GODEBUG=inittrace=1")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), strings.Contains(stderr.String(), "init ")
}

// Who listens as somebody else is not asked, and what he says is not believed.
func TestAnotherAccountListens(t *testing.T) {
	if runtime.GOOS != "linux" || os.Geteuid() != 0 {
		t.Skip("has one account listen and another ask, which only root can start: run it as root on Linux")
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
