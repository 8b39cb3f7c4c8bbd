package resume_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"holdfast/internal/store/patience"
	"holdfast/internal/store/resume"
)

const text = "0123456789"

var (
	errBroken = errors.New("it broke off")
	errPast   = errors.New("there is not so much")
	errNone   = errors.New("there is none")
)

// service answers the requests for an object one after the other.
type service struct {
	asked   []string
	answers []func(at, end int) resume.Answer
}

// object returns the object of s. Of bodies that break off one is continued without a byte in between.
func (s *service) object() *resume.Object {
	return &resume.Object{
		Name: "o",
		Retry: &patience.Policy{Service: "SVC", MaxRetries: 1, MaxBackoff: time.Microsecond, Patience: time.Hour,
			MayPass: func(error) bool { return true }, Reason: error.Error, Logger: slog.New(slog.DiscardHandler)},
		Open: func(at, end int64) (resume.Answer, error) {
			s.asked = append(s.asked, resume.Header(at, end))
			if at >= int64(len(text)) {
				return resume.Answer{}, errPast
			}
			if end < 0 || end > int64(len(text)) {
				end = int64(len(text))
			}
			answer := whole
			if len(s.answers) > 0 {
				answer, s.answers = s.answers[0], s.answers[1:]
			}
			return answer(int(at), int(end)), nil
		},
		Stat:  func() error { return errNone },
		Ended: func(err error) bool { return err == errPast },
		Fail:  func(op string, err error) error { return fmt.Errorf("%s o: %w", op, err) },
	}
}

func whole(at, end int) resume.Answer { return after(at, end, end-at, nil) }

// after is an answer of which n bytes come before err.
func after(at, end, n int, err error) resume.Answer {
	var r io.Reader = strings.NewReader(text[at : at+n])
	if err != nil {
		r = io.MultiReader(r, iotest.ErrReader(err))
	}
	return resume.Answer{Body: io.NopCloser(r), Range: fmt.Sprintf("bytes %d-%d/10", at, end-1), Length: int64(end - at)}
}

func breaks(n int, err error) func(at, end int) resume.Answer {
	return func(at, end int) resume.Answer { return after(at, end, n, err) }
}

func TestABodyIsReadToItsEnd(t *testing.T) {
	unknown := func(at, end int) resume.Answer {
		a := whole(at, end)
		a.Length = -1
		return a
	}
	type answers = []func(at, end int) resume.Answer
	for _, c := range []struct {
		offset, length int64
		answers        answers
		want           string
		asked          []string
	}{
		{0, -1, nil, text, []string{""}},
		{3, -1, nil, text[3:], []string{"bytes=3-"}},
		{3, 4, nil, text[3:7], []string{"bytes=3-6"}},
		{8, 5, nil, text[8:], []string{"bytes=8-12"}},
		{10, 5, nil, "", []string{"bytes=10-14"}},
		{0, -1, answers{unknown}, text, []string{""}},
		{0, -1, answers{breaks(4, errBroken), breaks(2, errBroken)}, text, []string{"", "bytes=4-9", "bytes=6-9"}},
		{2, -1, answers{breaks(4, nil)}, text[2:], []string{"bytes=2-", "bytes=6-9"}},        // an end too soon
		{8, 5, answers{breaks(1, errBroken)}, text[8:], []string{"bytes=8-12", "bytes=9-9"}}, // of what there is
		{0, -1, answers{breaks(0, errBroken), breaks(1, errBroken)}, text, []string{"", "bytes=0-9", "bytes=1-9"}},
		{0, -1, answers{breaks(10, errBroken)}, text, []string{""}}, // all was there
	} {
		s := &service{answers: c.answers}
		r, err := s.object().Range(t.Context(), c.offset, c.length)
		if err != nil {
			t.Errorf("%d bytes from %d: %v", c.length, c.offset, err)
			continue
		}
		got, err := io.ReadAll(r)
		if err != nil || string(got) != c.want || !slices.Equal(s.asked, c.asked) {
			t.Errorf("%d bytes from %d: %q, %v by %q; want %q by %q", c.length, c.offset, got, err, s.asked, c.want, c.asked)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestWhatCannotBeReadIsAnError(t *testing.T) {
	odd := func(change func(*resume.Answer)) func(at, end int) resume.Answer {
		return func(at, end int) resume.Answer {
			a := whole(at, end)
			change(&a)
			return a
		}
	}
	type answers = []func(at, end int) resume.Answer
	for what, c := range map[string]struct {
		offset, length int64
		answers        answers
		want           error
		text           string
	}{
		"an offset below 0":      {-1, 1, nil, fs.ErrInvalid, "open o from -1 for 1 bytes"},
		"a length below -1":      {0, -2, nil, fs.ErrInvalid, "open o from 0 for -2 bytes"},
		"nothing of no object":   {3, 0, nil, errNone, ""},
		"another range":          {3, 4, answers{odd(func(a *resume.Answer) { a.Range = "bytes 0-3/10" })}, fs.ErrInvalid, "open o: the service answered a request for bytes=3-6 with 4 bytes"},
		"no range":               {3, 4, answers{odd(func(a *resume.Answer) { a.Range = "" })}, fs.ErrInvalid, "open o"},
		"more":                   {3, 4, answers{odd(func(a *resume.Answer) { a.Length = 5 })}, fs.ErrInvalid, "open o"},
		"less the second time":   {0, -1, answers{breaks(4, errBroken), odd(func(a *resume.Answer) { a.Length = 0 })}, fs.ErrInvalid, "read o"},
		"what breaks every time": {0, -1, answers{breaks(4, errBroken), breaks(0, errBroken), breaks(0, errBroken)}, errBroken, "read o: it broke off"},
	} {
		r, err := (&service{answers: c.answers}).object().Range(t.Context(), c.offset, c.length)
		if err == nil {
			_, err = io.ReadAll(r)
		}
		if !errors.Is(err, c.want) || !strings.HasPrefix(fmt.Sprint(err), c.text) {
			t.Errorf("%s: %v; want %v, %s…", what, err, c.want, c.text)
		}
	}
}

func TestTheEndIsJudged(t *testing.T) {
	for _, answers := range [][]func(at, end int) resume.Answer{nil, {breaks(10, errBroken)}} {
		o := (&service{answers: answers}).object()
		damaged := errors.New("damaged")
		o.Check = func() error { return damaged }
		r, err := o.Range(t.Context(), 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); string(got) != text || !errors.Is(err, damaged) {
			t.Errorf("%q, %v; want %v at the end", got, err, damaged)
		}
	}
}
