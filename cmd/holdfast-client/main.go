// Command holdfast-client has a daemon of this host push or fetch a WAL file: it is what archive_command and restore_command start.
//
// It starts in a millisecond, as it reads no settings and knows no store. Where no daemon answers, or one hands the request back, it becomes
// holdfast itself with the same words, so that archiving never depends on the daemon.
package main

import (
	"io"
	"os"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"holdfast/internal/daemon/wire"
)

const usage = `usage: holdfast-client [-timeout 1m] [-connection-timeout 5s] SOCKET COMMAND

  SOCKET check                 is a daemon there? Exit status 0 or 1
  SOCKET wal-push PATH         archive_command = 'holdfast-client SOCKET wal-push %p'
  SOCKET wal-fetch NAME PATH   restore_command = 'holdfast-client SOCKET wal-fetch %f %p'

  -timeout DURATION            how long it may take; 0, the default, is no limit while the daemon shows signs of life
  -connection-timeout DURATION after how long without a sign of life nobody is there; 5s by default

Where nobody is there, or the daemon hands it back, "holdfast COMMAND" does it: the one beside this program, or in PATH, or HOLDFAST_PROGRAM.
Exit status: of wal-push 0 or 1; of wal-fetch as of "holdfast wal-fetch"; 127 for words that make no sense.
`

// Exit statuses. Those of wal-fetch are PostgreSQL's business: up to 125 it may take the archive to end there, above it stops.
const (
	exitFailed  = 1
	exitMissing = 74
	exitStop    = 200
	exitUsage   = 127
)

func main() {
	debug.SetTraceback("crash") // PostgreSQL must not take the runtime's status 2 for the end of the archive
	os.Exit(run(os.Args[1:]))
}

// A call is what is to be done.
type call struct {
	socket  string
	words   []string // the command and its arguments
	timeout time.Duration
	silence time.Duration // -connection-timeout
}

func run(args []string) int {
	c, problem := parse(args)
	if problem != "" {
		tell(problem + "\n" + usage)
		return exitUsage
	}
	if c == nil {
		write(1, usage)
		return 0
	}
	conn, said := taken()
	var err error
	if said { // and waited for a while; no flags were given
		err = c.limit(conn, c.silence-wire.Alive)
	} else if conn, err = connect(c); err == nil {
		err = c.say(conn)
	}
	var status int
	if err == nil {
		status, err = c.hear(conn)
	}
	if err == nil {
		return status
	}
	if c.words[0] == "check" {
		tell(c.socket + ": " + err.Error())
		return exitFailed
	}
	return c.instead(err)
}

// parse takes the command line apart. A nil call without a problem asks for help.
func parse(args []string) (c *call, problem string) {
	c = &call{silence: 5 * time.Second}
	for len(args) > 0 && strings.HasPrefix(args[0], "-") && len(args[0]) > 1 {
		name, value, given := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(args[0], "-"), "-"), "=")
		args = args[1:]
		if name == "h" || name == "help" {
			return nil, ""
		}
		var into *time.Duration
		switch name {
		case "timeout":
			into = &c.timeout
		case "connection-timeout":
			into = &c.silence
		default:
			return nil, "there is no flag -" + name
		}
		if !given {
			if len(args) == 0 {
				return nil, "-" + name + " wants a duration"
			}
			value, args = args[0], args[1:]
		}
		d, err := time.ParseDuration(value)
		if err != nil || d < 0 {
			return nil, "-" + name + " wants a duration such as 30s, not " + value
		}
		*into = d
	}
	if len(args) < 2 {
		return nil, "a socket and a command are wanted"
	}
	c.socket, c.words = args[0], args[1:]
	want := map[string]int{"check": 1, "wal-push": 2, "wal-fetch": 3}[c.words[0]]
	switch {
	case want == 0:
		return nil, "there is no command " + c.words[0]
	case want != len(c.words):
		return nil, "wrong number of arguments for " + c.words[0]
	}
	return c, ""
}

// A conn is a connection. Reading and writing fail once nothing moves for so long as was said.
type conn int

func (c conn) Read(p []byte) (int, error) {
	for {
		n, err := syscall.Read(int(c), p)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

func (c conn) Write(p []byte) (int, error) {
	written := 0
	for written < len(p) {
		// MSG_NOSIGNAL, as sendto: a daemon that has gone must not end us with SIGPIPE.
		n, err := syscall.SendmsgN(int(c), p[written:], nil, nil, syscall.MSG_NOSIGNAL)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return written, err
		}
		written += n
	}
	return written, nil
}

// connect reaches the daemon, and nobody else.
func connect(c *call) (conn, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		return 0, err
	}
	syscall.CloseOnExec(fd)
	if err := c.limit(conn(fd), c.silence); err != nil {
		return 0, err
	}
	for {
		err := syscall.Connect(fd, &syscall.SockaddrUnix{Name: c.socket})
		if err == syscall.EINTR || err == syscall.EALREADY {
			continue
		}
		if err == nil {
			err = trusted(fd)
		}
		return conn(fd), err
	}
}

// limit bounds how long a connection may be silent; 0 is no bound.
func (c *call) limit(on conn, silence time.Duration) error {
	if silence == 0 {
		return nil
	}
	limit := syscall.NsecToTimeval(silence.Nanoseconds())
	for _, option := range []int{syscall.SO_RCVTIMEO, syscall.SO_SNDTIMEO} { // the latter is that of connecting, too
		if err := syscall.SetsockoptTimeval(int(on), syscall.SOL_SOCKET, option, &limit); err != nil {
			return err
		}
	}
	return nil
}

// say asks the daemon to do it.
func (c *call) say(to conn) error {
	m, err := c.message()
	if err != nil {
		return err
	}
	_, err = to.Write(m)
	return err
}

// hear waits for what the daemon answers, and returns what to exit with. An error says why somebody else has to do it.
func (c *call) hear(to conn) (int, error) {
	for begin := time.Now(); ; {
		kind, body, err := wire.Read(to)
		switch {
		case err == io.EOF || err == io.ErrUnexpectedEOF:
			return 0, problem("the daemon hung up")
		case err == syscall.EAGAIN:
			return 0, problem("the daemon shows no sign of life")
		case err != nil:
			return 0, err
		}
		switch kind {
		case wire.OK:
			return 0, nil
		case wire.Missing:
			tell(string(body))
			return exitMissing, nil
		case wire.Failed:
			if len(body) == 0 || body[0] == 0 {
				return 0, problem("the daemon did not say what failed")
			}
			tell(string(body[1:]))
			return int(body[0]), nil
		case wire.Declined:
			return 0, problem(string(body))
		case wire.Working:
			if c.timeout == 0 || time.Since(begin) < c.timeout {
				if err := c.limit(to, c.silence); err != nil { // before the first one it may be shorter
					return 0, err
				}
				continue
			}
			if c.words[0] == "wal-fetch" { // what that means for a recovery the program knows
				return 0, problem("the daemon took longer than " + c.timeout.String())
			}
			tell("the daemon took longer than " + c.timeout.String())
			return exitFailed, nil
		default:
			return 0, problem("the daemon speaks another protocol")
		}
	}
}

// message is what the daemon is told. Paths are made absolute: only this process knows where they begin.
func (c *call) message() ([]byte, error) {
	m, err := wire.Append(nil, wire.Hello, wire.Version)
	if err != nil {
		return nil, err
	}
	switch c.words[0] {
	case "check":
		return wire.Append(m, wire.Check)
	case "wal-push":
		return wire.Append(m, wire.Push, []byte(absolute(inWAL(c.words[1])))...)
	}
	args, err := wire.Args(c.words[1], absolute(c.words[2]))
	if err != nil {
		return nil, err
	}
	return wire.Append(m, wire.Fetch, args...)
}

// absolute returns path from the root on.
func absolute(path string) string {
	if path == "" || path[0] == '/' {
		return path
	}
	dir, err := syscall.Getwd()
	if err != nil {
		return path // the daemon finds out
	}
	return dir + "/" + path
}

// inWAL returns where the WAL file is that is called path. WAL-G's client wants %f for it, which is a name and found in the data directory's pg_wal.
func inWAL(path string) string {
	if strings.ContainsRune(path, '/') || syscall.Access(path, 0) == nil || syscall.Access("pg_wal", 0) != nil {
		return path
	}
	return "pg_wal/" + path
}

// instead becomes the program that does it without a daemon, and returns what to exit with where it cannot.
func (c *call) instead(why error) int {
	program := program()
	tell(c.socket + ": " + why.Error() + "; running " + program + " " + c.words[0])
	words := append([]string{"holdfast"}, c.words...)
	if words[1] == "wal-push" {
		words[2] = inWAL(words[2])
	}
	err := syscall.Exec(program, words, os.Environ())
	tell(program + ": " + err.Error())
	if c.words[0] == "wal-fetch" {
		return exitStop
	}
	return exitFailed
}

// program returns the path of holdfast, "holdfast" where it is nowhere.
func program() string {
	if p := os.Getenv("HOLDFAST_PROGRAM"); p != "" {
		return p
	}
	var dirs []string
	if self, err := os.Executable(); err == nil {
		dirs = append(dirs, self[:strings.LastIndexByte(self, '/')])
	}
	for dir := range strings.SplitSeq(os.Getenv("PATH"), ":") {
		if strings.HasPrefix(dir, "/") {
			dirs = append(dirs, dir)
		}
	}
	for _, dir := range dirs {
		var st syscall.Stat_t
		path := dir + "/holdfast"
		if syscall.Access(path, 1) == nil && syscall.Stat(path, &st) == nil && st.Mode&syscall.S_IFMT == syscall.S_IFREG {
			return path
		}
	}
	return "holdfast"
}

// problem is an error that needs nothing but its text.
type problem string

func (p problem) Error() string { return string(p) }

// tell says something in PostgreSQL's log.
func tell(text string) {
	for line := range strings.Lines(strings.TrimRight(text, "\n")) {
		write(2, "holdfast-client: "+strings.TrimRight(line, "\n")+"\n")
	}
}

func write(fd int, text string) {
	_, _ = syscall.Write(fd, []byte(text)) // there is nobody to tell
}
