package drill

import (
	"bufio"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// facts is what the server's log says of recovery. The messages are those of src/backend/access/transam/xlog.c and xlogrecovery.c, and of walreceiver.c, the same
// in PostgreSQL 10 to 18.
type facts struct {
	mu         sync.Mutex
	begun      bool   // something was replayed, or was to be
	restored   int    // files that restore_command brought
	consistent bool   // a consistent state was reached
	stopped    string // at which target; "" for none
	streaming  string // from where on it streams; "" while it does not
	refused    string // why it does not, the last reason
	problem    string // why replay ended where it did, the last reason
}

// seen is facts as they are at one moment.
type seen struct {
	restored                             int
	begun, consistent                    bool
	stopped, streaming, refused, problem string
}

func (f *facts) get() seen {
	f.mu.Lock()
	defer f.mu.Unlock()
	return seen{f.restored, f.begun, f.consistent, f.stopped, f.streaming, f.refused, f.problem}
}

// damages are parts of the messages with which PostgreSQL says that what it read is not the WAL that it wants (report_invalid_record in xlogreader.c). It takes
// such for the end of the WAL.
var damages = []string{"invalid ", "incorrect ", "unexpected ", "out-of-sequence ", "record with ", "contrecord", "WAL file is from different", "corrupted", "there is no ",
	"could not decompress", "is not a child of this server's history", "has wrong size", "could not restore file"}

// maxLine bounds a line of the log that is looked at, in bytes.
const maxLine = 64 << 10

// line takes in a line of the log.
func (f *facts) line(l string) {
	_, text, ok := strings.Cut(l, "]") // behind time and process
	if !ok {
		return
	}
	level, text, ok := strings.Cut(strings.TrimSpace(text), ":  ")
	if !ok {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case level != "LOG" && level != "FATAL" && level != "PANIC":
	case strings.HasPrefix(text, "starting archive recovery"), strings.HasPrefix(text, "starting point-in-time recovery"),
		strings.HasPrefix(text, "entering standby mode"), strings.HasPrefix(text, "starting backup recovery"):
		f.begun = true
	case strings.HasPrefix(text, "restored log file "):
		f.restored++
	case strings.HasPrefix(text, "consistent recovery state reached"):
		f.consistent = true
	case strings.HasPrefix(text, "recovery stopping "):
		f.stopped = text
	case strings.HasPrefix(text, "started streaming WAL from primary at "):
		f.streaming = strings.TrimPrefix(text, "started streaming WAL from primary ")
	case strings.Contains(text, "could not connect to the primary server"), strings.Contains(text, "could not receive data from WAL stream"),
		strings.Contains(text, "could not start WAL streaming"), strings.HasPrefix(text, "database system identifier differs"):
		f.refused = text
	case level != "LOG" && !strings.Contains(text, "the database system is "): // that is said to clients
		f.problem = text
	default:
		for _, d := range damages {
			if strings.Contains(text, d) && !strings.HasSuffix(text, "24, got 0") { // WAL that was never written
				f.problem = text
				return
			}
		}
	}
}

// followEvery is how often the log is looked at.
const followEvery = 200 * time.Millisecond

// follow keeps d.facts at what the log says, and the progress with it, until stop is called, which returns once all of the log is taken in.
func (d *drill) follow() (stop func()) {
	f, done, ended := d.facts, make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		var log *os.File
		var in *bufio.Reader
		var rest []byte // of a line that is not whole yet
		defer func() {
			if log != nil {
				_ = log.Close() // it was only read
			}
		}()
		for last := false; ; {
			if log == nil {
				if log, _ = os.Open(d.log()); log != nil { // it comes when the server is started
					in = bufio.NewReaderSize(log, maxLine)
				}
			}
			for log != nil {
				part, err := in.ReadSlice('\n')
				if len(rest) < maxLine {
					rest = append(rest, part...)
				}
				if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
					if !errors.Is(err, io.EOF) {
						return
					}
					break
				}
				if err == nil {
					f.line(strings.TrimRight(string(rest), "\n"))
					rest = rest[:0]
				}
			}
			d.replaying(f.get().restored)
			if last {
				return
			}
			select {
			case <-done:
				last = true
			case <-time.After(followEvery):
			}
		}
	}()
	return func() { close(done); <-ended }
}
