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
	Failing bool            `json:"failing"`
	Since   time.Time       `json:"since,omitzero"` // of the first run that failed
	Times   int             `json:"times,omitempty"`
	Told    map[string]Told `json:"told,omitempty"` // what each sender was told last, of those who were told that the job fails and not otherwise since
}

// Told is what a sender knows.
type Told struct {
	At     time.Time `json:"at"`
	Status int       `json:"exit_status"`
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

// Fail notes that the job failed at the time of e, which it completes, and returns which of the senders are to be told: those who do not know, or know of another exit status, or
// were told as long ago as repeat.
func (s *State) Fail(e *Event, senders []Sender, repeat time.Duration) (due []Sender) {
	if !s.Failing {
		s.Failing, s.Since, s.Times = true, e.At, 0
	}
	s.Times++
	e.Since, e.Times = s.Since, s.Times
	for _, one := range senders {
		if last, told := s.Told[one.Name()]; !told || last.Status != e.Status || e.At.Sub(last.At) >= repeat || last.At.After(e.At) {
			due = append(due, one)
		}
	}
	return due
}

// Work notes that the job succeeded, completes e, and returns which of the senders are to be told so: those who believe that it fails.
func (s *State) Work(e *Event, senders []Sender) (due []Sender) {
	e.Since, e.Times = s.Since, s.Times
	s.Failing = false
	known := map[string]Told{}
	for _, one := range senders {
		if last, told := s.Told[one.Name()]; told {
			due = append(due, one)
			known[one.Name()] = last
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
				s.Told = map[string]Told{}
			}
			s.Told[a.Sender] = Told{e.At, e.Status}
		default:
			delete(s.Told, a.Sender)
		}
	}
}
