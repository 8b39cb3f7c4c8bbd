package cli_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"strings"
	"testing"
	"time"

	"holdfast/internal/cli"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
)

// plainStore can do what every store can, and no more.
type plainStore struct{ store.Store }

// heedless takes a condition and does not look at it.
type heedless struct{ *storetest.Memory }

func (s heedless) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	return s.Put(ctx, name, r)
}

// slow has a clock that is behind.
type slow struct{ *storetest.Memory }

func (s slow) Stat(ctx context.Context, name string) (store.Object, error) {
	o, err := s.Memory.Stat(ctx, name)
	o.Modified = o.Modified.Add(-10 * time.Minute)
	return o, err
}

// forgetful deletes nothing.
type forgetful struct{ *storetest.Memory }

func (forgetful) DeleteMany(context.Context, []string) error { return nil }

func TestCheckSaysWhatAStorageCannotDo(t *testing.T) {
	for name, c := range map[string]struct {
		store store.Store
		what  string
		says  string
		fails string // "" where the archive can be kept there all the same
	}{
		"everything":        {&storetest.Memory{}, "put if absent", "yes", ""},
		"nothing optional":  {plainStore{&storetest.Memory{}}, "put if absent", "no: wal-push looks first", ""},
		"no copy":           {plainStore{&storetest.Memory{}}, "copy inside", "no: what is copied passes through this host", ""},
		"heedless":          {heedless{&storetest.Memory{}}, "put if absent", "overwrites all the same", "archived WAL could be lost"},
		"a clock behind":    {slow{&storetest.Memory{}}, "clock", " behind this host's", ""},
		"nothing is erased": {forgetful{&storetest.Memory{}}, "delete", "no: ", "still there"},
	} {
		t.Run(name, func(t *testing.T) {
			findings, err := cli.Examine(t.Context(), c.store)
			if !strings.Contains(findings[c.what], c.says) {
				t.Errorf("%s: %q, want %q", c.what, findings[c.what], c.says)
			}
			if (err != nil) != (c.fails != "") || err != nil && !strings.Contains(err.Error(), c.fails) {
				t.Errorf("error %v, want %q", err, c.fails)
			}
		})
	}
}

// Whichever call fails, the check says so, and what it put does not stay where that can be helped.
func TestCheckFailsWithTheStorage(t *testing.T) {
	for n := 0; ; n++ {
		disk := &storetest.Memory{}
		flaky := storetest.FailAt(disk, n)
		findings, err := cli.Examine(t.Context(), flaky)
		if !flaky.Reached() {
			if err != nil {
				t.Errorf("nothing failed, and it said %v", err)
			}
			return
		}
		said := false
		for _, text := range findings {
			said = said || strings.Contains(text, storetest.ErrInjected.Error())
		}
		if !said && !errors.Is(err, storetest.ErrInjected) {
			t.Errorf("call %d failed: findings %q, error %v", n, findings, err)
		}
		for o := range disk.Walk(t.Context(), "") {
			if _, kept := findings["delete"]; kept && findings["delete"] == "yes" {
				t.Errorf("call %d failed: %s is left", n, o.Name)
			}
		}
		if errors.Is(err, fs.ErrExist) {
			t.Errorf("call %d failed: %v", n, err)
		}
	}
}
