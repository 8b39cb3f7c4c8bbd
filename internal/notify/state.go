package notify

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"holdfast/internal/atomicfile"
)

// State is what a host remembers of a job: whether it fails, and who knows. The zero value is a job that works.
type State struct {
	Failing bool                 `json:"failing"`
	Since   time.Time            `json:"since,omitzero"` // of the first run that failed
	Times   int                  `json:"times,omitempty"`
	Told    map[string]time.Time `json:"told,omitempty"` // when each sender was last told that it fails, of those who were not told otherwise since
}

// maxState is how large a state's file may be.
const maxState = 64 << 10

// LoadState reads the state of a job; where there is no file it is the zero value.
func LoadState(path string) (State, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return State{}, nil
	}
	if err != nil {
		return State{}, err
	}
	defer f.Close() // only read
	text, err := io.ReadAll(io.LimitReader(f, maxState+1))
	if err != nil {
		return State{}, err
	}
	return ParseState(text)
}

// ParseState reads what Save has written.
func ParseState(text []byte) (State, error) {
	var s State
	if len(text) > maxState {
		return s, fmt.Errorf("a state of alerts has more than %d bytes", maxState)
	}
	if err := json.Unmarshal(text, &s); err != nil {
		return State{}, fmt.Errorf("read a state of alerts: %w", err)
	}
	return s, nil
}

// Save keeps s at path; of a job that works, and of which nobody believes otherwise, nothing is kept.
func (s *State) Save(path string) error {
	if !s.Failing && len(s.Told) == 0 {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return atomicfile.Write(path, 0o600, func(w io.Writer) error {
		_, err := w.Write(append(text, '\n'))
		return err
	})
}

// Fail notes that the job failed at the time of e, which it completes, and returns which of the senders are to be told: those who do not know, or were told as long ago as repeat.
func (s *State) Fail(e *Event, senders []Sender, repeat time.Duration) (due []Sender) {
	if !s.Failing {
		s.Failing, s.Since, s.Times = true, e.At, 0
	}
	s.Times++
	e.Since, e.Times = s.Since, s.Times
	for _, one := range senders {
		if at, told := s.Told[one.Name()]; !told || e.At.Sub(at) >= repeat || at.After(e.At) {
			due = append(due, one)
		}
	}
	return due
}

// Work notes that the job succeeded, completes e, and returns which of the senders are to be told so: those who believe that it fails.
func (s *State) Work(e *Event, senders []Sender) (due []Sender) {
	e.Since, e.Times = s.Since, s.Times
	s.Failing = false
	known := map[string]time.Time{}
	for _, one := range senders {
		if at, told := s.Told[one.Name()]; told {
			due = append(due, one)
			known[one.Name()] = at
		}
	}
	s.Told = known // who is no sender any more need not be told
	return due
}

// Heard notes who has the event.
func (s *State) Heard(e *Event, answers []Answer) {
	for _, a := range answers {
		switch {
		case a.Err != nil:
		case s.Failing:
			if s.Told == nil {
				s.Told = map[string]time.Time{}
			}
			s.Told[a.Sender] = e.At
		default:
			delete(s.Told, a.Sender)
		}
	}
}
