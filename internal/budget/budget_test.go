package budget_test

import (
	"bytes"
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"testing/iotest"

	"holdfast/internal/budget"
)

// content returns n bytes, each place with its own.
func content(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i>>16) ^ byte(i>>8) ^ byte(i*31)
	}
	return b
}

func take(t *testing.T, b *budget.Budget, size, beside int64) *budget.Piece {
	t.Helper()
	p, err := b.Take(t.Context(), size, beside)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestAPieceHoldsWhatWasRead(t *testing.T) {
	const most = 3<<20 + 5
	p := take(t, budget.New(8<<20), most, 0)
	defer p.Release()
	for _, size := range []int{0, 1, 1 << 20, 1<<20 + 1, most - 1, most, most + 1, 5} { // the same piece, filled again and again
		data, sum := content(size), md5.New()
		src := iotest.HalfReader(bytes.NewReader(data))
		ended, err := p.Fill(t.Context(), src, sum)
		want := data[:min(size, most)]
		if err != nil || ended != (size < most) || p.Size() != int64(len(want)) {
			t.Errorf("%d bytes: ended %v, %v, with %d in the piece", size, ended, err, p.Size())
		}
		if err := iotest.TestReader(p.Reader(), want); err != nil {
			t.Errorf("%d bytes: %v", size, err)
		}
		if got, want := fmt.Sprintf("%x", sum.Sum(nil)), fmt.Sprintf("%x", md5.Sum(want)); got != want {
			t.Errorf("%d bytes: the sum is %s, want %s", size, got, want)
		}
		if rest, err := io.ReadAll(src); err != nil || len(rest) != size-len(want) {
			t.Errorf("%d bytes: %d are left in the source, %v", size, len(rest), err)
		}
	}
}

func TestAFailingSourceFailsTheFilling(t *testing.T) {
	broken := errors.New("the source broke")
	p := take(t, budget.New(4<<20), 4<<20, 0)
	defer p.Release()
	if _, err := p.Fill(t.Context(), io.MultiReader(bytes.NewReader(content(100)), iotest.ErrReader(broken)), nil); !errors.Is(err, broken) {
		t.Errorf("fill: %v, want %v", err, broken)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(broken)
	if _, err := p.Fill(ctx, bytes.NewReader(content(100)), nil); !errors.Is(err, broken) {
		t.Errorf("fill with a cancelled context: %v, want its cause", err)
	}
}

func TestReadersOfWhatIsGoneEnd(t *testing.T) {
	b := budget.New(4 << 20)
	p := take(t, b, 1<<20, 0)
	fill := func() {
		t.Helper()
		if _, err := p.Fill(t.Context(), bytes.NewReader(content(100)), nil); err != nil {
			t.Fatal(err)
		}
	}
	fill()
	before := p.Reader()
	fill()
	after := p.Reader()
	if n, err := before.Read(make([]byte, 10)); n != 0 || err == nil || err == io.EOF {
		t.Errorf("after another filling: %d bytes, %v", n, err)
	}
	if got, err := io.ReadAll(after); err != nil || !bytes.Equal(got, content(100)) {
		t.Errorf("of the filling: %d bytes, %v", len(got), err)
	}
	if _, err := after.Seek(0, io.SeekStart); err != nil {
		t.Error(err)
	}
	p.Release()
	if n, err := after.Read(make([]byte, 10)); n != 0 || err == nil || err == io.EOF {
		t.Errorf("after the release: %d bytes, %v", n, err)
	}
}

func TestTheSumStaysBelowTheBound(t *testing.T) {
	const total, size, beside = 8 << 20, 2 << 20, 1 << 20
	b := budget.New(total)
	var g sync.WaitGroup
	for i := range 20 {
		g.Go(func() {
			p, err := b.Take(t.Context(), size, beside)
			if err != nil {
				t.Error(err)
				return
			}
			defer p.Release()
			if ended, err := p.Fill(t.Context(), bytes.NewReader(content(i*200_000)), nil); err != nil {
				t.Error(err)
			} else if ended {
				p.Shrink()
			}
		})
	}
	g.Wait()
	if got := b.Most(); got > total || got < size+beside {
		t.Errorf("%d bytes were out at once, of %d", got, total)
	}
	p := take(t, b, total, 0) // all of it came back
	p.Release()
}

func TestWhatIsNotNeededGoesToOthers(t *testing.T) {
	b := budget.New(4 << 20)
	p := take(t, b, 3<<20, 1<<20)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Take(ctx, 1, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("take of what is not there: %v, want to wait until cancelled", err)
	}
	if ended, err := p.Fill(t.Context(), bytes.NewReader(content(10)), nil); !ended || err != nil {
		t.Fatal(ended, err)
	}
	p.Shrink()
	take(t, b, 3<<20, 0).Release()
	p.Release()
	var small []*budget.Piece
	for range 4 { // a piece takes 1 MiB, however little it holds
		small = append(small, take(t, b, 1<<10, 0))
	}
	if _, err := b.Take(ctx, 1<<10, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("a fifth small piece: %v, want to wait until cancelled", err)
	}
	for _, p := range small {
		p.Release()
	}
	alone := take(t, b, 9<<20, 9<<20) // larger than all there is
	if ended, err := alone.Fill(t.Context(), bytes.NewReader(content(5<<20)), nil); !ended || err != nil || alone.Size() != 5<<20 {
		t.Errorf("a piece above the budget: ended %v, %v, %d bytes", ended, err, alone.Size())
	}
	alone.Release()
}

// way returns a Way of pieces of 1 MiB, 2 MiB and so on that sends with send.
func way(send func(ctx context.Context, n int, p *budget.Piece) error) budget.Way {
	return budget.Way{Size: func(n int) int64 { return int64(n+1) << 20 }, Sum: md5.New, Send: send, AtOnce: 2}
}

func TestAStreamArrivesPieceByPiece(t *testing.T) {
	for _, size := range []int{1 << 20, 1<<20 + 1, 3 << 20, 4 << 20} { // some end with a piece
		b, data := budget.New(5<<20), content(size)
		var mu sync.Mutex
		got := map[int][]byte{}
		src := bytes.NewReader(data)
		first, ended, err := b.Cut(t.Context(), src, 1<<20, md5.New())
		if ended || err != nil {
			t.Fatal(ended, err)
		}
		n, err := b.Send(t.Context(), first, src, way(func(_ context.Context, n int, p *budget.Piece) error {
			piece, err := io.ReadAll(p.Reader())
			mu.Lock()
			defer mu.Unlock()
			got[n] = piece
			if want := md5.Sum(piece); !bytes.Equal(p.Sum(), want[:]) {
				t.Errorf("piece %d has the sum %x, want %x", n, p.Sum(), want)
			}
			return err
		}))
		var all []byte
		for i := range n {
			if len(got[i]) > (i+1)<<20 {
				t.Errorf("piece %d has %d bytes", i, len(got[i]))
			}
			all = append(all, got[i]...)
		}
		if err != nil || n != len(got) || !bytes.Equal(all, data) {
			t.Errorf("%d bytes went as %d pieces with %d bytes, %v", size, n, len(all), err)
		}
		take(t, b, 5<<20, 0).Release() // all of it came back
	}
}

func TestWhatFailsEndsTheSending(t *testing.T) {
	broken := errors.New("it broke")
	for what, c := range map[string]struct {
		src  io.Reader
		send error
	}{
		"the source": {io.MultiReader(bytes.NewReader(content(4<<20)), iotest.ErrReader(broken)), nil},
		"a piece":    {bytes.NewReader(make([]byte, 100<<20)), broken},
	} {
		b := budget.New(5 << 20)
		first, _, err := b.Cut(t.Context(), c.src, 1<<20, nil)
		if err != nil {
			t.Fatal(err)
		}
		n, err := b.Send(t.Context(), first, c.src, way(func(ctx context.Context, n int, _ *budget.Piece) error {
			if n == 1 && c.send != nil {
				return c.send
			}
			if n > 0 {
				<-ctx.Done() // nobody waits for what is of no use any more
			}
			return ctx.Err()
		}))
		if err != broken || n > 3 {
			t.Errorf("%s: %v after %d pieces", what, err, n)
		}
		take(t, b, 5<<20, 0).Release()
	}
}
