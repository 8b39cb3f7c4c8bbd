package merge

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
)

// UnaskedError says that what was asked for is in none of the storages that answered, and may be in one that did not.
type UnaskedError struct {
	Op, Name string
	Storages []string // that did not answer

	errs []error
}

// Add notes that a storage did not answer, and why.
func (e *UnaskedError) Add(storage string, err error) {
	e.Storages = append(e.Storages, storage)
	e.errs = append(e.errs, err)
}

// Error names operation, object and storages.
func (e *UnaskedError) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.Name != "" {
		b.WriteString(" " + e.Name)
	}
	for i, s := range e.Storages {
		sep := ";"
		if i == 0 {
			sep = ":"
		}
		fmt.Fprintf(&b, "%s storage %s did not answer: %v", sep, s, e.errs[i])
	}
	return b.String()
}

// Unwrap returns why each of them did not.
func (e *UnaskedError) Unwrap() []error { return e.errs }

// Hint says how to go on.
func (e *UnaskedError) Hint() string {
	return "what the other storages lack may lie there: see to it that it answers, or work with one of the others alone"
}

// Fault reports whether err says that a storage did not do its duty. An answer (there is none, there is one, that cannot be) is no fault,
// nor is that the caller, whose ctx it was, gave up.
func Fault(ctx context.Context, err error) bool {
	for _, answer := range []error{fs.ErrNotExist, fs.ErrExist, fs.ErrInvalid, errors.ErrUnsupported, context.Canceled} {
		if errors.Is(err, answer) {
			return false
		}
	}
	return err != nil && ctx.Err() == nil
}
