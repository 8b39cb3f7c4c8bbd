// Command fast is holdfast with a clock for its agent that a test turns: the time is in the file that TEST_CLOCK names, eight bytes, nanoseconds since 1970, and
// TEST_CLOCK_AHEAD is how far this host's clock is ahead of it. Without TEST_CLOCK it is holdfast.
package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync"
	"time"

	"holdfast/internal/cli"
)

func main() { os.Exit(run()) }

func run() int {
	env := cli.Env{Args: os.Args[1:], Environ: os.Environ(), Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	env.Dir, _ = os.Getwd()          // "" with the error
	env.Program, _ = os.Executable() // likewise
	if file := os.Getenv("TEST_CLOCK"); file != "" {
		c, err := open(file, os.Getenv("TEST_CLOCK_AHEAD"))
		if err != nil {
			fmt.Fprintln(os.Stderr, "fast:", err)
			return 1
		}
		env.Clock = c
	}
	return cli.Run(env)
}

// clock is that of the file. It is an agent.Clock.
type clock struct {
	file  *os.File
	ahead time.Duration

	mu    sync.Mutex
	waits []wait
}

type wait struct {
	until time.Time
	over  chan time.Time
}

func open(path, ahead string) (*clock, error) {
	by, err := time.ParseDuration(ahead)
	if err != nil {
		return nil, fmt.Errorf("TEST_CLOCK_AHEAD: %w", err)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("TEST_CLOCK: %w", err)
	}
	c := &clock{file: f, ahead: by}
	go c.tick()
	return c, nil
}

// Now implements agent.Clock.
func (c *clock) Now() time.Time {
	var b [8]byte
	if _, err := c.file.ReadAt(b[:], 0); err != nil {
		panic(err) // the file is written before this is started, and stays
	}
	return time.Unix(0, int64(binary.LittleEndian.Uint64(b[:]))).Add(c.ahead)
}

// After implements agent.Clock.
func (c *clock) After(d time.Duration) <-chan time.Time {
	w := wait{c.Now().Add(d), make(chan time.Time, 1)}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waits = append(c.waits, w)
	return w.over
}

// tick ends the waits that are over.
func (c *clock) tick() {
	for ; ; time.Sleep(10 * time.Millisecond) {
		now := c.Now()
		c.mu.Lock()
		left := c.waits[:0]
		for _, w := range c.waits {
			if w.until.After(now) {
				left = append(left, w)
			} else {
				w.over <- now
			}
		}
		clear(c.waits[len(left):])
		c.waits = left
		c.mu.Unlock()
	}
}
