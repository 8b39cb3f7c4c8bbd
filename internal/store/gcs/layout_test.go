package gcs_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/internal/store/gcs"
	"holdfast/internal/store/servicetest"
)

func putKeys(t *testing.T, s *gcs.Store, keys ...string) {
	t.Helper()
	for _, key := range keys {
		if err := s.PutKey(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAPrefixBecomesTheBeginningOfKeys(t *testing.T) {
	real := service(t)
	for i, c := range []struct {
		prefix string
		raw    bool
		key    string
	}{
		{"", false, "o"}, {"/", false, "o"}, {"a/b", false, "a/b/o"}, {"/a/b/", false, "a/b/o"}, {"//a//", false, "a/o"},
		{"", true, "o"}, {"/", true, "/o"}, {"a", true, "a/o"}, {"a/", true, "a/o"}, {"/a/b", true, "/a/b/o"}, {"/a/", true, "/a/o"},
	} {
		s := made(t, real, func(o *gcs.Options) { o.Bucket, o.Prefix, o.RawPrefix = fmt.Sprintf("bucket-%d", i), c.prefix, c.raw })
		servicetest.Put(t, s, "o", []byte("x"))
		if got, err := s.Keys(t.Context()); err != nil || !slices.Equal(got, []string{c.key}) {
			t.Errorf("prefix %q, raw %v: the keys are %q, %v; want %q", c.prefix, c.raw, got, err, c.key)
		}
		if got := servicetest.Walked(t, s); !slices.Equal(got, []string{"o"}) {
			t.Errorf("prefix %q, raw %v: listed is %q", c.prefix, c.raw, got)
		}
	}
}

func TestAnArchiveOfWALEIsFound(t *testing.T) {
	real := service(t)
	const sentinel, segment = "basebackups_005/base_0_0_backup_stop_sentinel.json", "wal_005/000000010000000000000001.lzo"
	for what, c := range map[string]struct {
		keys []string
		raw  bool
		want string // the key that a put makes
	}{
		"nothing":                 {nil, false, "pre/fix/o"},
		"an archive of WAL-E":     {[]string{"/pre/fix/" + sentinel, "/pre/fix/" + segment}, false, "/pre/fix/o"},
		"and one of WAL-G's":      {[]string{"/pre/fix/" + sentinel, "pre/fix/" + sentinel}, false, "pre/fix/o"},
		"and WAL pushed since":    {[]string{"/pre/fix/" + sentinel, "pre/fix/" + segment}, false, "pre/fix/o"},
		"one of another name":     {[]string{"/pre/fixed/" + sentinel}, false, "pre/fix/o"},
		"one, but the path is so": {[]string{"/pre/fix/" + sentinel}, true, "pre/fix/o"},
	} {
		var log servicetest.Log
		s := made(t, real, func(o *gcs.Options) {
			o.Bucket, o.RawPrefix, o.Logger = strings.ReplaceAll(strings.ToLower(strings.ReplaceAll(what, ",", "")), " ", "-"), c.raw, log.Logger()
			o.Bucket = strings.ReplaceAll(o.Bucket, "'", "")
		})
		putKeys(t, s, c.keys...)
		servicetest.Put(t, s, "o", []byte("x"))
		keys, err := s.Keys(t.Context())
		if err != nil || !slices.Contains(keys, c.want) {
			t.Errorf("%s: a put made %q, %v; want %q", what, keys, err, c.want)
		}
		if told := strings.Contains(log.String(), "WALG_GS_PREFIX=gs://"+"an-archive-of-wal-e//pre/fix/ and GCS_NORMALIZE_PREFIX=false"); told != (c.want[0] == '/') {
			t.Errorf("%s: the log says\n%s", what, log.String())
		}
	}
	denied := behind(t, real, func(w http.ResponseWriter, r *http.Request) bool {
		return r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/o") && refuse(w, r, 403, "forbidden")
	})
	s := made(t, denied, nil)
	servicetest.Put(t, s, "a", []byte("x")) // who may not list can write
	servicetest.WantContent(t, s, "a", []byte("x"))
}

func TestWhatWALGLeftUnfinishedIsNotListed(t *testing.T) {
	real := service(t)
	s := made(t, real, nil)
	other := open(t, real, func(o *gcs.Options) { o.Prefix = "other" })
	putKeys(t, s, "pre/fix/wal_005/1.lz4", "pre/fix/wal_005/1.lz4_chunks/chunk0", "pre/fix/wal_005/1.lz4_chunks/composite12",
		"pre/fix/wal_005/1.lz4_chunks/other", "other/wal_005/1.lz4_chunks/chunk0", "pre/fix/top_chunks/chunk3")
	if got := servicetest.Walked(t, s); !slices.Equal(got, []string{"wal_005/1.lz4"}) {
		t.Errorf("walk: %q", got)
	}
	for dir, want := range map[string][]string{"": {"wal_005/"}, "wal_005/": {"wal_005/1.lz4"}, "wal_005/1.lz4_chunks/": nil} {
		var got []string
		for o, err := range s.List(t.Context(), dir, "") {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, o.Name)
		}
		if !slices.Equal(got, want) {
			t.Errorf("list %q: %q, want %q", dir, got, want)
		}
	}
	if err := s.Put(t.Context(), "wal_005/x_chunks/chunk0", strings.NewReader("x")); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("put of what would never be listed: %v, want fs.ErrInvalid", err)
	}
	if err := s.Copy(t.Context(), "wal_005/1.lz4", "wal_005/x_chunks/chunk0"); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("copy to what would never be listed: %v, want fs.ErrInvalid", err)
	}
	if removed, err := s.Sweep(t.Context()); err != nil || len(removed) != 0 {
		t.Errorf("swept %q, %v; want nothing as young as this", removed, err)
	}
	want := []string{"top_chunks/chunk3", "wal_005/1.lz4_chunks/chunk0", "wal_005/1.lz4_chunks/composite12"}
	if removed, err := s.SweepOlder(t.Context(), time.Now().Add(time.Hour)); err != nil || !slices.Equal(removed, want) {
		t.Errorf("swept %q, %v; want %q", removed, err, want)
	}
	keys, err := other.Keys(t.Context())
	if want := []string{"other/wal_005/1.lz4_chunks/chunk0", "pre/fix/wal_005/1.lz4", "pre/fix/wal_005/1.lz4_chunks/other"}; err != nil || !slices.Equal(keys, want) {
		t.Errorf("left are %q, %v; want %q", keys, err, want)
	}
}

// Each name that could not be deleted is in the error, and the others are gone.
func TestEachNameThatIsNotDeletedIsNamed(t *testing.T) {
	endpoint := behind(t, service(t), func(w http.ResponseWriter, r *http.Request) bool {
		return r.Method == http.MethodDelete && strings.Contains(r.URL.Path, "held") && refuse(w, r, 403, "retentionPolicyNotMet")
	})
	s := made(t, endpoint, nil)
	names := []string{"d/a", "d/held1", "d/b", "d/held2"}
	for _, name := range names {
		servicetest.Put(t, s, name, nil)
	}
	err := s.DeleteMany(t.Context(), append(names, "d/gone"))
	if !errors.Is(err, fs.ErrPermission) {
		t.Errorf("delete many: %v, want fs.ErrPermission", err)
	}
	for _, name := range names {
		if held := strings.Contains(name, "held"); strings.Contains(fmt.Sprint(err), "delete "+name+": ") != held {
			t.Errorf("delete many: %v; naming %s should be %v", err, name, held)
		}
	}
	if got := servicetest.Walked(t, s); !slices.Equal(got, []string{"d/held1", "d/held2"}) {
		t.Errorf("left are %q", got)
	}
}

// The service takes several steps to copy what is large, and says how far it got.
func TestACopyGoesOnWithItsToken(t *testing.T) {
	var mu sync.Mutex
	var tokens []string
	s := open(t, behind(t, "http://127.0.0.1:1", func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		tokens = append(tokens, r.URL.Query().Get("rewriteToken"))
		fmt.Fprintf(w, `{"done":%v,"rewriteToken":"token-%d"}`, len(tokens) == 3, len(tokens))
		return true
	}), func(o *gcs.Options) { o.RawPrefix = true })
	if err := s.Copy(t.Context(), "a", "b"); err != nil || !slices.Equal(tokens, []string{"", "token-1", "token-2"}) {
		t.Errorf("the requests had %q, %v", tokens, err)
	}
}
