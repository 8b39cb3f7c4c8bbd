package walfetch_test

import (
	"os"
	"strings"
	"testing"

	"holdfast/internal/walfetch"
)

// A segment that this process fetched ahead is served without being read, which shows in that its record is not needed. Once its file was
// touched it is read after all, and content that is not right is not served.
func TestMemoryIsOfTheVeryFile(t *testing.T) {
	for what, alter := range map[string]func(path string) error{
		"untouched": nil,
		"rewritten in place": func(path string) error {
			b := segment(name(2))
			b[len(b)-1]++
			return os.WriteFile(path, b, 0o600)
		},
		"replaced": func(path string) error {
			if err := os.WriteFile(path+".new", make([]byte, size), 0o600); err != nil {
				return err
			}
			return os.Rename(path+".new", path)
		},
		"cut": func(path string) error { return os.Truncate(path, int64(size)/2) },
	} {
		t.Run(what, func(t *testing.T) {
			v := newServer(t, filled(t, 1, 3))
			v.opts.Memory = &walfetch.Memory{}
			v.runAhead(v.archive())
			if _, err := v.fetch(name(1)); err != nil {
				t.Fatal(err)
			}
			v.await(name(2))
			if alter != nil {
				if err := alter(v.queue(name(2))); err != nil {
					t.Fatal(err)
				}
			} else if err := os.Remove(v.queue(name(2) + ".json")); err != nil {
				t.Fatal(err)
			}
			report, err := v.fetch(name(2))
			if err != nil {
				t.Fatal(err)
			}
			if report.Ahead != (alter == nil) {
				t.Errorf("served from what was fetched ahead: %t", report.Ahead)
			}
			has(t, v.dest(), name(2))
		})
	}
}

// What is asked for Ahead hears of within the process, and the file goes on saying what it was started for; unless another process asks.
func TestAheadHearsWithinTheProcess(t *testing.T) {
	v := newServer(t, filled(t, 1, 30))
	m := &walfetch.Memory{}
	v.opts.Memory = m
	v.runAhead(v.archive())
	if _, err := v.fetch(name(1)); err != nil {
		t.Fatal(err)
	}
	for no := 2; no <= 28; no++ {
		v.await(name(no))
		if v.opts.Memory = m; no == 20 {
			v.opts.Memory = nil
		}
		report, err := v.fetch(name(no))
		if err != nil || !report.Ahead {
			t.Fatalf("%s: %+v, %v", name(no), report, err)
		}
		has(t, v.dest(), name(no))
		b, err := os.ReadFile(v.queue("requested"))
		if err != nil {
			t.Fatal(err)
		}
		want := name(1)
		if no >= 20 {
			want = name(20)
		}
		if !strings.Contains(string(b), want) {
			t.Errorf("with %s asked for the file says %s, want %s", name(no), b, want)
		}
	}
}
