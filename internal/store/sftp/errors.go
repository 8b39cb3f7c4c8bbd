package sftp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"

	"github.com/pkg/sftp"

	"holdfast/internal/store"
)

// fail says what became of op on the object name. ctx is the caller's.
func (s *Store) fail(ctx context.Context, op, name string, err error) error {
	if err == nil {
		return nil
	}
	if own := (*store.OpError)(nil); errors.As(err, &own) || errors.Is(err, fs.ErrExist) {
		return err
	}
	e := &store.OpError{Op: op, Name: name, Err: err, Text: err.Error()}
	var answer *sftp.StatusError
	switch done := ctx.Err(); {
	case done != nil:
		e.Text, e.Err = done.Error(), done
	case errors.Is(err, fs.ErrNotExist):
		e.Text, e.Err = fs.ErrNotExist.Error(), fs.ErrNotExist
	case errors.Is(err, fs.ErrPermission):
		e.Kind = fs.ErrPermission
		if refused := (*authError)(nil); !errors.As(err, &refused) {
			e.Text = fmt.Sprintf("permission denied: user %s may not do that below %s on %s: see SSH_USERNAME and the owner of the directory", s.o.User, s.o.Root, s.o.Host)
		}
	case stays(err):
		e.Kind = fs.ErrInvalid
	case errors.As(err, &answer) && answer.FxCode() == sftp.ErrSSHFxOpUnsupported:
		e.Kind = errors.ErrUnsupported
	case unexplained(err):
		e.Text = fmt.Sprintf("the server says %v, and not why", err)
	}
	return e
}

// answered reports whether err is what the server said to a call, rather than that it said nothing.
func answered(err error) bool {
	var status *sftp.StatusError
	if errors.As(err, &status) {
		return status.FxCode() != sftp.ErrSSHFxConnectionLost && status.FxCode() != sftp.ErrSSHFxNoConnection
	}
	if lost := (*lostError)(nil); errors.As(err, &lost) {
		return false
	}
	var root *rootError
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrExist) || errors.Is(err, fs.ErrInvalid) || errors.Is(err, fs.ErrPermission) || errors.Is(err, errEnd) ||
		errors.As(err, &root)
}

// errEnd is the server's word that a file ends. io.EOF may also be what a connection ended with.
var errEnd = errors.New("the file ends")

// readAt reads from f, and tells the two apart.
func readAt(f *sftp.File, p []byte, at int64) (int, error) {
	n, err := f.ReadAt(p, at)
	if err == io.EOF { // itself: what the library says of connections wraps it
		err = errEnd
	}
	return n, err
}

// unexplained reports whether the server failed without a reason.
func unexplained(err error) bool {
	var status *sftp.StatusError
	return errors.As(err, &status) && status.FxCode() == sftp.ErrSSHFxFailure
}

// stays reports whether err will be the same the next time.
func stays(err error) bool {
	var key *hostKeyError
	var auth *authError
	var setting *settingError
	var root *rootError
	var subsystem *subsystemError
	var dns *net.DNSError
	return errors.As(err, &key) || errors.As(err, &auth) || errors.As(err, &setting) || errors.As(err, &root) || errors.As(err, &subsystem) ||
		errors.As(err, &dns) && dns.IsNotFound || errors.Is(err, errClosed)
}

// lostError is a connection that ended before the answer came. What it ended with may read as the end of a file.
type lostError struct {
	address string
	err     error
}

func (e *lostError) Error() string { return fmt.Sprintf("connection to %s lost: %v", e.address, e.err) }

// dialError is a connection that did not come about.
type dialError struct {
	address string
	err     error
}

func (e *dialError) Error() string {
	if dns := (*net.DNSError)(nil); errors.As(e.err, &dns) && dns.IsNotFound {
		return fmt.Sprintf("connect to %s: %v: see WALG_SSH_PREFIX", e.address, e.err)
	}
	return fmt.Sprintf("connect to %s: %v: see WALG_SSH_PREFIX and SSH_PORT, or whether sshd is up", e.address, e.err)
}

// Unwrap hides what reads as the caller's own deadline and is that of the dialer.
func (e *dialError) Unwrap() error {
	if errors.Is(e.err, context.DeadlineExceeded) || errors.Is(e.err, io.EOF) {
		return nil
	}
	return e.err
}

// hostKeyError is a host that is not known to be the right one.
type hostKeyError struct{ text string }

func (e *hostKeyError) Error() string { return e.text }

// authError is a server that does not let us in.
type authError struct{ text string }

func (e *authError) Error() string { return e.text }
func (e *authError) Unwrap() error { return fs.ErrPermission }

// settingError is a setting that cannot be.
type settingError struct{ text string }

func (e *settingError) Error() string { return e.text }

// subsystemError is a server without SFTP.
type subsystemError struct {
	address string
	err     error
}

func (e *subsystemError) Error() string {
	return fmt.Sprintf("begin SFTP with %s: %v: see Subsystem sftp in its sshd_config, and whether the user's shell prints something", e.address, e.err)
}

// rootError is an archive's directory that is not there, which must not read as a missing object.
type rootError struct{ host, root string }

func (e *rootError) Error() string {
	return fmt.Sprintf("directory %s of the archive does not exist on %s: see WALG_SSH_PREFIX, create it, or check that its file system is mounted", e.root, e.host)
}
