package retry_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/store"
	"holdfast/internal/store/retry"
	"holdfast/internal/store/storetest"
)

func TestRetryIsAStore(t *testing.T) {
	storetest.TestAround(t, func(inner store.Store) store.Store { return retry.New(inner, retry.Options{}) })
}

// fill puts objects for calls to work on.
func fill(t *testing.T, s store.Store) {
	t.Helper()
	for _, name := range []string{"d/a", "d/b/c", "d/e", "f"} {
		if err := s.Put(t.Context(), name, strings.NewReader("content of "+name)); err != nil {
			t.Fatal(err)
		}
	}
}

// calls makes one call of each kind and reports what they did not do.
func calls(ctx context.Context, s store.Store) error {
	var errs []error
	fail := func(op string, got any, err error, want any) {
		if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
			errs = append(errs, fmt.Errorf("%s: %v, %w; want %v", op, got, err, want))
		}
	}
	body := func(op string, r io.ReadCloser, err error, want string) {
		var b []byte
		if err == nil {
			b, err = io.ReadAll(r)
			r.Close()
		}
		fail(op, string(b), err, want)
	}
	names := func(op string, entries iter.Seq2[store.Object, error], want ...string) {
		var got []string
		var failed error
		for o, err := range entries {
			if failed = err; err == nil {
				got = append(got, o.Name)
			}
		}
		fail(op, got, failed, want)
	}
	r, err := s.Open(ctx, "d/a")
	body("open", r, err, "content of d/a")
	r, err = s.OpenRange(ctx, "d/a", 3, 6)
	body("range", r, err, "tent o")
	r, err = s.OpenRange(ctx, "d/a", 3, -1)
	body("range to the end", r, err, "tent of d/a")
	o, err := s.Stat(ctx, "d/a")
	fail("stat", o.Size, err, len("content of d/a"))
	names("list", s.List(ctx, "d/", ""), "d/a", "d/b/", "d/e")
	names("walk", store.Walk(ctx, s, ""), "d/a", "d/b/c", "d/e", "f")
	fail("put", nil, s.Put(ctx, "g", strings.NewReader("new")), nil)
	fail("put if absent", nil, store.PutIfAbsent(ctx, s, "h", strings.NewReader("new")), nil)
	if c, ok := s.(store.Copier); ok {
		fail("copy", nil, c.Copy(ctx, "f", "i"), nil)
	}
	fail("delete", nil, s.Delete(ctx, "f"), nil)
	fail("delete many", nil, store.DeleteMany(ctx, s, []string{"d/a", "d/b/c"}), nil)
	var b []byte
	b, err = store.ReadFile(ctx, s, "g", 100)
	fail("read back", string(b), err, "new")
	names("walk in the end", store.Walk(ctx, s, "d/"), "d/e")
	return errors.Join(errs...)
}

func TestWhateverFailsOnceSucceeds(t *testing.T) {
	for kind, fail := range map[string]func(store.Store, int) *storetest.Flaky{"at": storetest.FailAt, "midway": storetest.FailMidway, "after": storetest.FailAfter} {
		for _, inner := range []string{"full", "plain"} {
			t.Run(kind+" "+inner, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					for n := 0; ; n++ {
						m := &storetest.Memory{}
						fill(t, m)
						flaky := fail(m, n)
						var s store.Store = flaky
						if inner == "plain" {
							s = storetest.Plain(s)
						}
						err := calls(t.Context(), retry.New(s, retry.Options{}))
						if !flaky.Reached() {
							if n < 13 || err != nil {
								t.Errorf("%d calls, %v", n, err)
							}
							return
						}
						// Done and yet failed, an unconditional put is done again; the other finds itself.
						if kind == "after" && strings.HasPrefix(flaky.Calls()[n], "put if absent") {
							if !errors.Is(err, fs.ErrExist) {
								t.Errorf("%s: %v, want fs.ErrExist", flaky.Calls()[n], err)
							}
							continue
						}
						if err != nil {
							t.Errorf("%s %d, %s: %v", kind, n, flaky.Calls()[n], err)
						}
					}
				})
			})
		}
	}
}

// failing is a Store that fails every call with err, or with what err returns.
type failing struct {
	store.Store
	err   func() error
	calls int
}

func (f *failing) fail() error { f.calls++; return f.err() }

func (f *failing) Open(context.Context, string) (io.ReadCloser, error) { return nil, f.fail() }
func (f *failing) OpenRange(context.Context, string, int64, int64) (io.ReadCloser, error) {
	return nil, f.fail()
}
func (f *failing) Put(context.Context, string, io.Reader) error { return f.fail() }
func (f *failing) Stat(context.Context, string) (store.Object, error) {
	return store.Object{}, f.fail()
}
func (f *failing) Delete(context.Context, string) error { return f.fail() }
func (f *failing) List(context.Context, string, string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) { yield(store.Object{}, f.fail()) }
}

var errNetwork = errors.New("connection reset by peer")

// each calls every method of s in its own way and yields the errors.
func each(ctx context.Context, s store.Store) iter.Seq2[string, func() error] {
	return func(yield func(string, func() error) bool) {
		_ = yield("open", func() error { _, err := s.Open(ctx, "o"); return err }) &&
			yield("range", func() error { _, err := s.OpenRange(ctx, "o", 0, 1); return err }) &&
			yield("stat", func() error { _, err := s.Stat(ctx, "o"); return err }) &&
			yield("put", func() error { return s.Put(ctx, "o", strings.NewReader("x")) }) &&
			yield("delete", func() error { return s.Delete(ctx, "o") }) &&
			yield("delete many", func() error { return store.DeleteMany(ctx, s, []string{"o"}) }) &&
			yield("list", func() (err error) {
				for _, err = range s.List(ctx, "", "") {
				}
				return err
			})
	}
}

func TestPermanentErrorsAreNotTriedAgain(t *testing.T) {
	for _, permanent := range []error{fs.ErrNotExist, fs.ErrExist, fs.ErrPermission, fs.ErrInvalid, errors.ErrUnsupported, syscall.ENOSPC, context.Canceled} {
		inner := &failing{err: func() error { return fmt.Errorf("op o: %w", permanent) }}
		for op, call := range each(t.Context(), retry.New(inner, retry.Options{})) {
			inner.calls = 0
			if err := call(); !errors.Is(err, permanent) || inner.calls != 1 {
				t.Errorf("%s: %v after %d tries, want %v after one", op, err, inner.calls, permanent)
			}
		}
	}
	for _, temporary := range []error{errNetwork, io.ErrUnexpectedEOF, syscall.EIO, context.DeadlineExceeded, storetest.ErrInjected} {
		if !retry.Temporary(fmt.Errorf("op o: %w", temporary)) {
			t.Errorf("%v is taken for permanent", temporary)
		}
	}
	if retry.Temporary(nil) {
		t.Error("no error is taken for a temporary one")
	}
}

func TestItGivesUpAfterSomeTries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := &failing{err: func() error { return errNetwork }}
		for op, call := range each(t.Context(), retry.New(inner, retry.Options{Attempts: 4, MaxDelay: 600 * time.Millisecond})) {
			inner.calls = 0
			begin := time.Now()
			err := call()
			// Delays of 200, 400 and 600 ms, or half of that.
			if took := time.Since(begin); !errors.Is(err, errNetwork) || inner.calls != 4 || took < 600*time.Millisecond || took > 1200*time.Millisecond {
				t.Errorf("%s: %v after %d tries in %v, want 4 in 0.6 s to 1.2 s", op, err, inner.calls, took)
			}
		}
	})
}

func TestItGivesUpAfterSomeTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := &failing{err: func() error { time.Sleep(time.Minute); return errNetwork }}
		s := retry.New(inner, retry.Options{Attempts: 1000, Patience: 5 * time.Minute})
		begin := time.Now()
		_, err := s.Stat(t.Context(), "o")
		if took := time.Since(begin); !errors.Is(err, errNetwork) || took < 6*time.Minute || took > 8*time.Minute {
			t.Errorf("stat: %v after %v, want to give up some 5 minutes after the first failure", err, took)
		}
	})
}

func TestACancelledContextEndsTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := &failing{err: func() error { return errNetwork }}
		for op := range each(t.Context(), retry.New(inner, retry.Options{})) {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			s := retry.New(inner, retry.Options{})
			for name, call := range each(ctx, s) {
				if name != op {
					continue
				}
				begin := time.Now()
				if err := call(); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, errNetwork) || time.Since(begin) != 50*time.Millisecond {
					t.Errorf("%s: %v after %v, want both errors after 50 ms", op, err, time.Since(begin))
				}
			}
			cancel()
		}
	})
}

// dripping yields one byte with each open, then breaks.
type dripping struct {
	store.Store
	opens int
}

func (d *dripping) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	return d.OpenRange(ctx, name, 0, -1)
}

func (d *dripping) OpenRange(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	d.opens++
	r, err := d.Store.OpenRange(ctx, name, offset, length)
	if err != nil {
		return nil, err
	}
	if o, err := d.Store.Stat(ctx, name); err != nil || offset >= o.Size {
		return r, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(io.LimitReader(r, 1), brokenReader{}), r}, nil
}

func (d *dripping) List(ctx context.Context, dir, after string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		d.opens++
		for o, err := range d.Store.List(ctx, dir, after) {
			if yield(o, err) {
				yield(store.Object{}, errNetwork)
			}
			return
		}
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errNetwork }

func TestProgressIsPatient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &storetest.Memory{}
		data := bytes.Repeat([]byte("0123456789"), 50)
		if err := m.Put(t.Context(), "o", bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		d := &dripping{Store: m}
		s := retry.New(d, retry.Options{Attempts: 3, Patience: time.Second})
		got, err := store.ReadFile(t.Context(), s, "o", 1000)
		if err != nil || !bytes.Equal(got, data) || d.opens < len(data) {
			t.Errorf("read %d bytes with %d opens, %v; want %d with one each", len(got), d.opens, err, len(data))
		}
		r, err := s.OpenRange(t.Context(), "o", 100, 200)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data[100:300]) {
			t.Errorf("read %d bytes, %v; want 200", len(got), err)
		}
		var want, names []string
		for i := range 50 {
			want = append(want, fmt.Sprintf("d/%02d", i))
			if err := m.Put(t.Context(), want[i], strings.NewReader("")); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 { // the sequence may be run twice
			names = nil
			for o, err := range s.List(t.Context(), "d/", "") {
				if err != nil {
					t.Fatal(err)
				}
				names = append(names, o.Name)
			}
			if !slices.Equal(names, want) {
				t.Errorf("listed %d names, want %d", len(names), len(want))
			}
		}
	})
}

// stream hides that a reader can be rewound.
type stream struct{ io.Reader }

func TestAStreamIsPutOnce(t *testing.T) {
	inner := &failing{err: func() error { return errNetwork }}
	if err := retry.New(inner, retry.Options{}).Put(t.Context(), "o", stream{strings.NewReader("x")}); !errors.Is(err, errNetwork) || inner.calls != 1 {
		t.Errorf("put of a stream: %v after %d tries, want one", err, inner.calls)
	}
}

func TestAPutIsRewoundToWhereItWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &storetest.Memory{}
		src := strings.NewReader("header, then content")
		src.Seek(8, io.SeekStart)
		if err := retry.New(storetest.FailMidway(m, 0), retry.Options{}).Put(t.Context(), "o", src); err != nil {
			t.Fatal(err)
		}
		if got, err := store.ReadFile(t.Context(), m, "o", 100); err != nil || string(got) != "then content" {
			t.Errorf("put %q, %v", got, err)
		}
	})
}

func TestRetriesAreLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		s := retry.New(storetest.FailAt(&storetest.Memory{}, 0), retry.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		if err := s.Put(t.Context(), "d/o", strings.NewReader("x")); err != nil {
			t.Fatal(err)
		}
		if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "put d/o: storetest: injected failure") {
			t.Errorf("logged %q", got)
		}
	})
}
