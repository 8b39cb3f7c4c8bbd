// Package wire is what clients and a daemon say to each other over its socket: WAL-G's protocol, and what we add to it.
//
// A client sends messages, each a type, the length of the whole message with these three bytes, big-endian, and a body:
//
//	'C' 00 03                                            are you there?
//	'F' length, the name or the path of a WAL file       push it
//	'f' length, 02, {length (2), bytes} twice            fetch the WAL file of this name to this path
//
// The daemon answers with one byte, 'O', 'E' or 'N', and after a push or a fetch closes the connection. A client that has sent our own
//
//	'H' 00 04 01                                         we know how to listen, in version 1
//
// before, to which there is no answer, gets messages instead:
//
//	'O' 00 03                                            done; to 'C' as well
//	'E' length, exit status (1), text                    it failed
//	'N' length, text                                     the archive has no such file
//	'D' length, text                                     not for this daemon: do it yourself
//	'W' 00 03                                            at work, every Alive until it is done
//
// WAL-G's part is that of its internal/databases/postgres/daemon_handler.go and its client. This package is for the client, too, and imports
// next to nothing.
package wire

import (
	"errors"
	"io"
	"time"
)

// A Type is the first byte of a message.
type Type byte

// What a client says, and what it is told.
const (
	Check Type = 'C'
	Push  Type = 'F'
	Fetch Type = 'f'
	Hello Type = 'H'

	OK       Type = 'O'
	Failed   Type = 'E'
	Missing  Type = 'N'
	Declined Type = 'D'
	Working  Type = 'W'
)

// Version is what the body of a Hello consists of.
const Version = 1

// Alive is how often a daemon says that it is at work, at least.
const Alive = time.Second

const (
	header = 3
	// MaxBody is the length of the longest body, in bytes.
	MaxBody = 1<<16 - 1 - header
)

// Errors of what is no message, or cannot be one.
var (
	ErrTooLong = errors.New("too long for a message")
	ErrLength  = errors.New("a message shorter than its header")
	ErrArgs    = errors.New("not the arguments that their lengths say")
)

// Append appends a message to dst. A body of more than MaxBody bytes is ErrTooLong.
func Append(dst []byte, t Type, body ...byte) ([]byte, error) {
	if len(body) > MaxBody {
		return dst, ErrTooLong
	}
	n := header + len(body)
	dst = append(dst, byte(t), byte(n>>8), byte(n))
	return append(dst, body...), nil
}

// Text returns a body that is s, cut where it would be longer than MaxBody less the room for a status.
func Text(s string) []byte { return []byte(s[:min(len(s), MaxBody-1)]) }

// Read reads one message. The end of the stream before its first byte is io.EOF, later io.ErrUnexpectedEOF.
func Read(r io.Reader) (Type, []byte, error) {
	var head [header]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := int(head[1])<<8 | int(head[2])
	if n < header {
		return 0, nil, ErrLength
	}
	body := make([]byte, n-header) // up to MaxBody
	if _, err := io.ReadFull(r, body); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return Type(head[0]), body, nil
}

// Args returns a body that consists of arguments: how many, and each with its length. More than 255, or too long ones, are ErrTooLong.
func Args(args ...string) ([]byte, error) {
	if len(args) > 255 {
		return nil, ErrTooLong
	}
	body := []byte{byte(len(args))}
	for _, a := range args {
		if len(a) > MaxBody {
			return nil, ErrTooLong
		}
		body = append(body, byte(len(a)>>8), byte(len(a)))
		body = append(body, a...)
	}
	if len(body) > MaxBody {
		return nil, ErrTooLong
	}
	return body, nil
}

// ParseArgs takes a body of arguments apart. One with anything before, between or behind them is ErrArgs.
func ParseArgs(body []byte) ([]string, error) {
	if len(body) == 0 {
		return nil, ErrArgs
	}
	args := make([]string, body[0])
	rest := body[1:]
	for i := range args {
		if len(rest) < 2 {
			return nil, ErrArgs
		}
		n := int(rest[0])<<8 | int(rest[1])
		if rest = rest[2:]; len(rest) < n {
			return nil, ErrArgs
		}
		args[i], rest = string(rest[:n]), rest[n:]
	}
	if len(rest) > 0 {
		return nil, ErrArgs
	}
	return args, nil
}
