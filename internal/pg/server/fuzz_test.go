package server_test

import (
	"context"
	"encoding/binary"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"holdfast/internal/pg/server"
	"holdfast/internal/pg/wal"
)

// say encodes what a server says.
func say(t testing.TB, messages ...pgproto3.BackendMessage) []byte {
	t.Helper()
	var b []byte
	for _, m := range messages {
		var err error
		if b, err = m.Encode(b); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

func row(values ...string) *pgproto3.DataRow {
	r := &pgproto3.DataRow{}
	for _, v := range values {
		if v == "" {
			r.Values = append(r.Values, nil)
		} else {
			r.Values = append(r.Values, []byte(v))
		}
	}
	return r
}

var (
	columns = &pgproto3.RowDescription{}
	done    = &pgproto3.CommandComplete{CommandTag: []byte("SELECT")}
)

func data(content string) *pgproto3.CopyData { return &pgproto3.CopyData{Data: []byte(content)} }

// framed is a backup as 15 and later send it, plain as 13 and 14 do.
func framed(t testing.TB) []byte {
	return say(t, columns, row("0/2000028", "1"), done, columns, row("16385", "/space", "10"), row("", "", "20"), done,
		&pgproto3.CopyOutResponse{}, data("n16385.tar\x00/space\x00"), data("dside"), data("p\x00\x00\x00\x00\x00\x00\x00\x05"),
		data("nbase.tar.zst\x00\x00"), data("dbase"), data("dbase"), data("m"), data("dmanifest"), &pgproto3.CopyDone{},
		columns, row("0/2000100", "1"), done, done, &pgproto3.ReadyForQuery{TxStatus: 'I'})
}

func plain(t testing.TB) []byte {
	return say(t, columns, row("0/2000028", "1"), done, columns, row("16385", "/space", "10"), row("", "", "20"), done,
		&pgproto3.CopyOutResponse{}, data("side"), &pgproto3.CopyDone{}, &pgproto3.CopyOutResponse{}, data("base"), data("base"), &pgproto3.CopyDone{},
		&pgproto3.CopyOutResponse{}, data("manifest"), &pgproto3.CopyDone{},
		columns, row("0/2000100", "1"), done, &pgproto3.NoticeResponse{SeverityUnlocalized: "WARNING", Message: "bad"},
		&pgproto3.ErrorResponse{Severity: "ERROR", SeverityUnlocalized: "ERROR", Code: "XX001"}, &pgproto3.ReadyForQuery{TxStatus: 'I'})
}

// What a server sends out of turn is an error, whatever it is, and never more than there was.
func FuzzBaseBackup(f *testing.F) {
	for _, seed := range [][]byte{framed(f), plain(f)} {
		f.Add(150000, seed)
		f.Add(140000, seed)
		f.Add(120000, seed[:len(seed)/2])
	}
	f.Fuzz(func(t *testing.T, version int, messages []byte) {
		archives, content, err := server.ReceiveBackup(version, messages)
		if content > int64(len(messages)) || archives > len(messages) {
			t.Errorf("%d bytes in %d archives of %d bytes, %v", content, archives, len(messages), err)
		}
	})
}

func TestBaseBackupMessages(t *testing.T) {
	for version, messages := range map[int][]byte{150000: framed(t), 140000: plain(t)} {
		if archives, content, err := server.ReceiveBackup(version, messages); err != nil || archives != 3 || content != 4+8+8 {
			t.Errorf("%d: %d bytes in %d archives, %v", version, content, archives, err)
		}
		for n := range messages {
			if _, _, err := server.ReceiveBackup(version, messages[:n]); err == nil {
				t.Errorf("%d: %d bytes of %d do, without an error", version, n, len(messages))
			}
		}
	}
	if _, _, err := server.ReceiveBackup(140000, framed(t)); err == nil {
		t.Error("a framed backup from a server that has no such")
	}
}

// xlog is a piece of WAL as a server sends it.
func xlog(at wal.LSN, content string) *pgproto3.CopyData {
	b := []byte{'w'}
	b = binary.BigEndian.AppendUint64(b, uint64(at))
	return &pgproto3.CopyData{Data: append(append(b, make([]byte, 16)...), content...)}
}

func stream(t testing.TB) []byte {
	return say(t, &pgproto3.CopyBothResponse{}, xlog(0x1000, "some"), &pgproto3.CopyData{Data: append([]byte{'k'}, append(make([]byte, 16), 1)...)},
		xlog(0x1004, "more than that"))
}

// WAL comes in order and without a gap, or it is an error.
func FuzzWAL(f *testing.F) {
	f.Add(stream(f))
	f.Add(stream(f)[:60])
	f.Fuzz(func(t *testing.T, messages []byte) {
		got, err := server.ReceiveWAL(messages, 0x1000, 0x1010)
		if len(got) > 0x10 || err == nil && len(got) < 0x10 || len(got) > len(messages) {
			t.Errorf("%q, %v", got, err)
		}
	})
}

func TestWALMessages(t *testing.T) {
	if got, err := server.ReceiveWAL(stream(t), 0x1000, 0x1010); string(got) != "somemore than th" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	gap := say(t, &pgproto3.CopyBothResponse{}, xlog(0x1000, "some"), xlog(0x1005, "more"))
	if got, err := server.ReceiveWAL(gap, 0x1000, 0x1008); err == nil {
		t.Errorf("%q with a gap", got)
	}
}

func streamToEnd(t testing.TB, at string) []byte {
	return append(stream(t), say(t, &pgproto3.CopyDone{}, row("2", at), &pgproto3.CommandComplete{CommandTag: []byte("SELECT 1")},
		&pgproto3.CommandComplete{CommandTag: []byte("START_STREAMING")}, &pgproto3.ReadyForQuery{TxStatus: 'I'})...)
}

// What a server streams comes in order and without a gap, and the timeline ends where it has come to, or it is an error.
func FuzzStream(f *testing.F) {
	f.Add(streamToEnd(f, "0/1012"))
	f.Add(stream(f)[:60])
	f.Fuzz(func(t *testing.T, messages []byte) {
		got, follows, at, err := server.ReceiveStream(messages, 0x1000)
		if len(got) > len(messages) || err == nil && (follows == 0 || at != 0x1000+wal.LSN(len(got))) {
			t.Errorf("%q, then timeline %d at %s, %v", got, follows, at, err)
		}
	})
}

func TestStreamMessages(t *testing.T) {
	messages := streamToEnd(t, "0/1012")
	if got, follows, at, err := server.ReceiveStream(messages, 0x1000); string(got) != "somemore than that" || follows != 2 || at != 0x1012 || err != nil {
		t.Errorf("%q, then timeline %d at %s, %v", got, follows, at, err)
	}
	for n := range messages {
		if got, _, _, err := server.ReceiveStream(messages[:n], 0x1000); err == nil {
			t.Errorf("%d bytes of %d do: %q", n, len(messages), got)
		}
	}
	if got, _, _, err := server.ReceiveStream(streamToEnd(t, "0/1013"), 0x1000); err == nil {
		t.Errorf("%q, and the timeline ends behind it", got)
	}
	// Nothing is on the timeline from there on.
	over := say(t, &pgproto3.RowDescription{}, row("3", "0/1000"), &pgproto3.CommandComplete{CommandTag: []byte("SELECT 1")}, &pgproto3.ReadyForQuery{TxStatus: 'I'})
	if got, follows, at, err := server.ReceiveStream(over, 0x1000); len(got) != 0 || follows != 3 || at != 0x1000 || err != nil {
		t.Errorf("%q, then timeline %d at %s, %v", got, follows, at, err)
	}
}

// watched is a context that never ends, and counts who waits for its end.
type watched struct {
	context.Context
	waiting int
	done    chan struct{}
}

func (w *watched) Done() <-chan struct{} { return w.done }

func (w *watched) AfterFunc(func()) (stop func() bool) {
	w.waiting++
	return func() bool { w.waiting--; return true }
}

// Of a stream that cannot begin nothing stays: who streams for months begins anew whenever a server is away.
func TestAStreamThatCannotBeginLeavesNothing(t *testing.T) {
	ctx := &watched{Context: context.Background(), done: make(chan struct{})}
	for range 3 {
		if err := server.BeginStream(ctx, []byte("nonsense")); err == nil {
			t.Error("it began")
		}
	}
	if ctx.waiting != 0 {
		t.Errorf("%d connections are kept", ctx.waiting)
	}
	if err := server.BeginStream(ctx, stream(t)); err != nil || ctx.waiting != 1 {
		t.Errorf("one that began: %v, %d watched", err, ctx.waiting)
	}
}
