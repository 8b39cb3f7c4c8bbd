package wire_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/daemon/wire"
)

const segment = "00000001000000000000002A"

// The messages are WAL-G's to the byte.
func TestMessagesAreThoseOfWALG(t *testing.T) {
	args, err := wire.Args(segment, "pg_wal/RECOVERYXLOG")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		kind wire.Type
		body []byte
		want string
	}{
		{wire.Check, nil, "430003"},
		{wire.Push, []byte(segment), "46001b" + hex.EncodeToString([]byte(segment))},
		{wire.Fetch, args, "660033020018" + hex.EncodeToString([]byte(segment)) + "0013" + hex.EncodeToString([]byte("pg_wal/RECOVERYXLOG"))},
		{wire.Hello, []byte{wire.Version}, "48000401"},
	} {
		got, err := wire.Append(nil, c.kind, c.body...)
		if err != nil || hex.EncodeToString(got) != c.want {
			t.Errorf("%c: %x, %v, want %s", c.kind, got, err, c.want)
		}
	}
}

// What does not fit is refused, and what is cut short or wrong is not taken for anything.
func TestBounds(t *testing.T) {
	if _, err := wire.Append(nil, wire.Push, make([]byte, wire.MaxBody)...); err != nil {
		t.Errorf("a body of MaxBody: %v", err)
	}
	if _, err := wire.Append(nil, wire.Push, make([]byte, wire.MaxBody+1)...); !errors.Is(err, wire.ErrTooLong) {
		t.Errorf("a longer body: %v", err)
	}
	if _, err := wire.Args(segment, strings.Repeat("x", wire.MaxBody-10)); !errors.Is(err, wire.ErrTooLong) {
		t.Errorf("long arguments: %v", err)
	}
	if _, err := wire.Args(make([]string, 256)...); !errors.Is(err, wire.ErrTooLong) {
		t.Errorf("many arguments: %v", err)
	}
	for message, want := range map[string]error{
		"": io.EOF, "43": io.ErrUnexpectedEOF, "4300": io.ErrUnexpectedEOF, "430002": wire.ErrLength, "460004": io.ErrUnexpectedEOF, "46ffff00": io.ErrUnexpectedEOF,
	} {
		b, _ := hex.DecodeString(message)
		if _, _, err := wire.Read(bytes.NewReader(b)); err != want {
			t.Errorf("%q: %v, want %v", message, err, want)
		}
	}
	for _, body := range []string{"", "\x01", "\x01\x00", "\x01\x00\x02x", "\x00x", "\x01\x00\x01xy"} {
		if args, err := wire.ParseArgs([]byte(body)); err == nil {
			t.Errorf("%q: %q", body, args)
		}
	}
}

// What Read and ParseArgs accept, Append and Args write back the same.
func FuzzRead(f *testing.F) {
	args, err := wire.Args(segment, "pg_wal/RECOVERYXLOG")
	if err != nil {
		f.Fatal(err)
	}
	for _, m := range [][]byte{{'C', 0, 3}, {'H', 0, 4, 1}, append([]byte{'F', 0, 27}, segment...), append([]byte{'f', 0, 51}, args...), {'E', 0, 5, 200, 'x'}, {'F', 255, 255, 1}, {'C', 0, 2}, {}} {
		f.Add(m)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		kind, body, err := wire.Read(r)
		if err != nil {
			return
		}
		took := b[:len(b)-r.Len()]
		if got, err := wire.Append(nil, kind, body...); err != nil || !bytes.Equal(got, took) {
			t.Fatalf("%x was read as %c %x, which is written as %x (%v)", took, kind, body, got, err)
		}
		args, err := wire.ParseArgs(body)
		if err != nil {
			return
		}
		if got, err := wire.Args(args...); err != nil || !slices.Equal(got, body) {
			t.Fatalf("%x has the arguments %q, which are written as %x (%v)", body, args, got, err)
		}
	})
}
