package swift_test

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"holdfast/internal/store"
	"holdfast/internal/store/servicetest"
	"holdfast/internal/store/storetest"
	"holdfast/internal/store/swift"
	"holdfast/test/pgtest"
)

// openStack starts OpenStack's own Swift and returns what makes a store in a new container of it.
func openStack(t *testing.T) (newStore func(t *testing.T, change func(*swift.Options)) *swift.Store) {
	t.Helper()
	program := pgtest.Service(t, "openstack-swift")
	address := pgtest.Address(t)
	cmd := exec.Command(program, address, t.TempDir())
	pgtest.Serve(t, cmd, address)
	pgtest.Answers(t, "http://"+address+"/healthcheck")
	var containers atomic.Int32
	return func(t *testing.T, change func(*swift.Options)) *swift.Store {
		t.Helper()
		name := fmt.Sprintf("archive-%d", containers.Add(1))
		return made(t, "http://"+address+"/auth/v1.0", func(o *swift.Options) {
			o.Container, o.User, o.Password = name, "test:tester", "testing"
			if change != nil {
				change(o)
			}
		})
	}
}

func TestSwiftOfOpenStackIsAStore(t *testing.T) {
	newStore := openStack(t)
	storetest.Test(t, func(t *testing.T) store.Store { return newStore(t, nil) })
}

// OpenStack's Swift looks at manifests, and at what they name.
func TestOpenStackTakesManifestsOfManifests(t *testing.T) {
	s := openStack(t)(t, nil)
	data := servicetest.Content(23<<20 + 5) // a manifest names ten at most
	servicetest.Put(t, s, "d/o", data)
	servicetest.WantContent(t, s, "d/o", data)
	if depth, err := s.Depth(t.Context(), "d/o"); err != nil || depth != 2 {
		t.Errorf("there are %d levels of manifests, %v", depth, err)
	}
	if got, err := s.Stat(t.Context(), "d/o"); err != nil || got.Size != int64(len(data)) {
		t.Errorf("stat: %+v, %v", got, err)
	}
	for o, err := range s.List(t.Context(), "d/", "") {
		stat, statErr := s.Stat(t.Context(), o.Name)
		if err != nil || statErr != nil || o != stat {
			t.Errorf("listed is %+v, %v, stat says %+v, %v", o, err, stat, statErr)
		}
	}
	if err := s.Copy(t.Context(), "d/o", "copy"); err != nil {
		t.Fatal(err)
	}
	servicetest.Put(t, s, "d/o", servicetest.Content(5<<20)) // takes its segments along
	keys, err := s.Keys(t.Context(), "archive-1_segments")
	if of := func(name string) int {
		return len(slices.DeleteFunc(slices.Clone(keys), func(key string) bool { return !strings.HasPrefix(key, "pre/fix/"+name+"/") }))
	}; err != nil || of("d/o") != 5 || of("copy") != 24+3 {
		t.Errorf("left are %q, %v", keys, err)
	}
	servicetest.WantContent(t, s, "copy", data)
	if err := s.DeleteMany(t.Context(), []string{"d/o", "copy"}); err != nil {
		t.Fatal(err)
	}
	if keys, err := s.Keys(t.Context(), "archive-1_segments"); err != nil || len(keys) != 0 {
		t.Errorf("left are %q, %v", keys, err)
	}
}

// This is why the Store has no PutIfAbsent: should Swift come to decide, it may have one.
func TestOpenStackDecidesNoConditionAtomically(t *testing.T) {
	s := openStack(t)(t, nil)
	servicetest.Put(t, s, "there", []byte("x"))
	if err := s.PutOnCondition(t.Context(), "there", 1, strings.NewReader("y")); err == nil {
		t.Error("a condition that does not hold is taken")
	}
	for try := range 10 { // on a machine that is too busy the first put may come to be looked at after the second one
		begun, goOn, first := make(chan struct{}), make(chan struct{}), make(chan error, 1)
		wait := sync.OnceFunc(func() {
			close(begun)
			<-goOn
		})
		name := fmt.Sprint(try)
		go func() {
			first <- s.PutOnCondition(t.Context(), name, 5, servicetest.ReaderFunc(func(p []byte) (int, error) {
				wait() // the service has asked for the body
				return copy(p, "first"), nil
			}))
		}()
		select {
		case <-begun:
		case err := <-first: // on a connection that Swift spoiled, which goes on answering after a refusal
			t.Logf("the first put ended before its body was asked for: %v", err)
			continue
		}
		second := s.PutOnCondition(t.Context(), name, 6, strings.NewReader("second"))
		close(goOn)
		if err := <-first; second == nil && err == nil {
			return
		}
	}
	t.Error("of two puts on condition, the second one within the first, one fails: see whether Swift decides now")
}

func TestOpenStacksRefusalsAreExplained(t *testing.T) {
	newStore := openStack(t)
	authURL := ""
	newStore(t, func(o *swift.Options) { authURL = o.AuthURL })
	for want, change := range map[string]func(*swift.Options){
		"there is no container nobodys: see WALG_SWIFT_PREFIX":                         func(o *swift.Options) { o.Container = "nobodys" },
		"does not take ST_USER and ST_KEY":                                             func(o *swift.Options) { o.Password = "not-the-secret" },
		"see OS_USERNAME and OS_TENANT_NAME, and the rights of that user on container": func(o *swift.Options) { o.User, o.Password = "test:reader", "reading" },
	} {
		var log servicetest.Log
		s := open(t, authURL, func(o *swift.Options) {
			o.Container, o.User, o.Password, o.Logger = "archive-1", "test:tester", "testing", slog.New(slog.NewTextHandler(&log, nil))
			change(o)
		})
		for op, err := range servicetest.EachCall(t, s) {
			if err == nil || !strings.Contains(err.Error(), want) || errors.Is(err, fs.ErrNotExist) || strings.Contains(err.Error(), "secret") {
				t.Errorf("%s: %v; want …%s…", op, err, want)
			}
			if !errors.Is(err, fs.ErrPermission) && !errors.Is(err, fs.ErrInvalid) {
				t.Errorf("%s: %v is no reason to give up", op, err)
			}
		}
		if log.Lines() > 0 {
			t.Errorf("%s: it was tried again:\n%s", want, log.String())
		}
	}
}
