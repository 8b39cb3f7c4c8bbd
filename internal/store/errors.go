package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
)

// OpError is what a call on the store of a service returns. It unwraps to what the service's client said and to what callers decide
// on, as Store has it.
type OpError struct {
	Op, Name string // what was done, and to which object
	Text     string // what became of it, and what the operator should look at
	Kind     error  // what callers decide on, such as fs.ErrPermission; nil where trying again may help
	Err      error  // what the client said
}

func (e *OpError) Error() string { return e.Op + " " + e.Name + ": " + e.Text }

// Unwrap lets callers ask for both.
func (e *OpError) Unwrap() []error {
	if e.Kind == nil {
		return []error{e.Err}
	}
	return []error{e.Kind, e.Err}
}

// Explain says what became of op on the object name, where nobody has said it of err yet: reason is an error in a few words, judge
// finds its Kind and what the operator should look at.
func Explain(op, name string, err error, reason func(error) string, judge func(error) (kind error, hint string)) error {
	if err == nil {
		return nil
	}
	if said := (*OpError)(nil); errors.As(err, &said) || errors.Is(err, fs.ErrExist) {
		return err
	}
	for _, own := range []error{context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, own) {
			return &OpError{Op: op, Name: name, Text: own.Error(), Err: err}
		}
	}
	kind, hint := judge(err)
	text := reason(err)
	if kind == fs.ErrNotExist {
		text = kind.Error()
	}
	if hint != "" {
		text += ": " + hint
	}
	return &OpError{Op: op, Name: name, Text: text, Kind: kind, Err: err}
}

// Exists returns the error of a PutIfAbsent that finds an object.
func Exists(name string) error { return &fs.PathError{Op: "put", Path: name, Err: fs.ErrExist} }

// Check is CheckName for op.
func Check(op, name string) error {
	if err := CheckName(name); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}
