package patience_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/store/patience"
)

var (
	passing = errors.New("it may pass")
	staying = errors.New("it stays")
)

func policy(log *bytes.Buffer) *patience.Policy {
	return &patience.Policy{
		Service: "SVC", MaxRetries: 3, MaxBackoff: time.Second, Patience: time.Hour,
		MayPass: func(err error) bool { return err == passing }, Reason: func(err error) string { return "because " + err.Error() },
		Logger: slog.New(slog.NewTextHandler(log, nil)),
	}
}

func TestItIsTriedAsOftenAsMayBe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		p, tries := policy(&log), patience.Tries{}
		p.Retried = &atomic.Int64{}
		begin := time.Now()
		for n := range 4 {
			if err := p.Again(t.Context(), &tries, "put o", passing); (err != nil) != (n == 3) {
				t.Errorf("failure %d: %v", n+1, err)
			}
		}
		if n := p.Retried.Load(); n != 3 {
			t.Errorf("counted %d further tries, want 3", n)
		}
		if took := time.Since(begin); took < 700*time.Millisecond || took > 3*time.Second {
			t.Errorf("the waits took %s", took)
		}
		if told := strings.Count(log.String(), "\n"); told != 3 || !strings.Contains(log.String(), "SVC: put o failed, attempt 4 of 4 follows in ") ||
			!strings.Contains(log.String(), "because it may pass") {
			t.Errorf("the log says\n%s", log.String())
		}
		tries.Progress()
		if err := p.Again(t.Context(), &tries, "put o", passing); err != nil {
			t.Errorf("after progress: %v", err)
		}
		if !p.More(t.Context(), &tries, "put o", passing) || !p.More(t.Context(), &tries, "put o", passing) || p.More(t.Context(), &tries, "put o", passing) {
			t.Error("for somebody else who waits, three failures are not the bound")
		}
		if told := strings.Count(log.String(), "\n"); told != 6 {
			t.Errorf("%d lines, want one for each failure that another try followed:\n%s", told, log.String())
		}
	})
}

func TestWhatStaysIsNotTriedAgain(t *testing.T) {
	var log bytes.Buffer
	if err := policy(&log).Again(t.Context(), &patience.Tries{}, "put o", staying); err != staying || log.Len() > 0 {
		t.Errorf("%v, and the log says %q", err, log.String())
	}
}

func TestPatienceEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		p, tries, n := policy(&log), patience.Tries{}, 0
		p.MaxRetries, p.Patience = 1000, 5*time.Second
		begin := time.Now()
		for p.Again(t.Context(), &tries, "put o", passing) == nil {
			n++
		}
		if took := time.Since(begin); took < 5*time.Second || took > 7*time.Second || n < 5 {
			t.Errorf("given up after %s and %d tries", took, n)
		}
	})
}

func TestTheServiceMayAskForAWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		p := policy(&log)
		for asked, want := range map[time.Duration]time.Duration{0: 200 * time.Millisecond, 700 * time.Millisecond: 700 * time.Millisecond, time.Hour: time.Second} {
			p.Asked = func(error) time.Duration { return asked }
			begin := time.Now()
			if err := p.Again(t.Context(), &patience.Tries{}, "put o", passing); err != nil {
				t.Error(err)
			}
			if took := time.Since(begin); took < want/2 || took > want || asked > 0 && took != want {
				t.Errorf("asked for %s, the wait took %s, want %s", asked, took, want)
			}
		}
	})
}

func TestACancelledWaitEnds(t *testing.T) {
	var log bytes.Buffer
	p := policy(&log)
	p.MaxBackoff = time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	tries := patience.Tries{}
	var err error
	for err == nil {
		err = p.Again(ctx, &tries, "put o", passing)
	}
	if !errors.Is(err, context.Canceled) && err != passing {
		t.Errorf("cancelled: %v", err)
	}
	if err := p.Again(ctx, &patience.Tries{}, "put o", passing); err != passing {
		t.Errorf("cancelled before: %v", err)
	}
}
