package swift_test

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/store/servicetest"
	"holdfast/internal/store/swift"
)

func TestSegmentsLieInAContainerOfTheirOwn(t *testing.T) {
	s := made(t, start(t, nil), nil)
	servicetest.Put(t, s, "d/exact", servicetest.Content(1<<20)) // a whole segment, and nothing behind it
	servicetest.Put(t, s, "d/large", servicetest.Content(3<<20+5))
	servicetest.Put(t, s, "d/small", servicetest.Content(5))
	if got, err := s.Keys(t.Context(), "archive"); err != nil || !slices.Equal(got, []string{"pre/fix/d/exact", "pre/fix/d/large", "pre/fix/d/small"}) {
		t.Errorf("the container holds %q, %v", got, err)
	}
	keys, err := s.Keys(t.Context(), "archive_segments")
	if err != nil || len(keys) != 5 {
		t.Errorf("the container of segments holds %q, %v", keys, err)
	}
	for _, key := range keys {
		if !strings.HasPrefix(key, "pre/fix/d/exact/holdfast-") && !strings.HasPrefix(key, "pre/fix/d/large/holdfast-") {
			t.Errorf("a segment lies at %s", key)
		}
	}
	for o, err := range s.List(t.Context(), "d/", "") {
		if err != nil {
			t.Fatal(err)
		}
		if stat, err := s.Stat(t.Context(), o.Name); err != nil || stat != o {
			t.Errorf("listed is %+v, stat says %+v, %v", o, stat, err)
		}
	}
	for name, want := range map[string]bool{"d/exact": true, "d/large": true, "d/small": false} {
		if got, err := s.IsLarge(t.Context(), name); err != nil || got != want {
			t.Errorf("%s has segments: %v, %v; want %v", name, got, err, want)
		}
	}
}

// Segments go with the object they are of, whatever takes its place.
func TestSegmentsGoWithTheirObject(t *testing.T) {
	s := made(t, start(t, nil), nil)
	servicetest.Put(t, s, "o", servicetest.Content(3<<20))
	servicetest.Put(t, s, "other", servicetest.Content(2<<20))
	servicetest.Put(t, s, "o", servicetest.Content(4<<20)) // with other segments
	wantSegments(t, s, 4+2)
	if err := s.Copy(t.Context(), "o", "copy"); err != nil {
		t.Fatal(err)
	}
	wantSegments(t, s, 4+2+4)
	servicetest.Put(t, s, "o", servicetest.Content(10)) // without segments
	wantSegments(t, s, 2+4)
	servicetest.WantContent(t, s, "copy", servicetest.Content(4<<20))
	if err := s.Copy(t.Context(), "o", "copy"); err != nil {
		t.Fatal(err)
	}
	wantSegments(t, s, 2)
	if err := s.DeleteMany(t.Context(), []string{"o", "other", "copy", "none"}); err != nil {
		t.Fatal(err)
	}
	wantSegments(t, s, 0)
}

// There is no bound on segments: manifests of manifests take what one does not.
func TestManyThousandSegmentsAreOneObject(t *testing.T) {
	few := func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/info" {
			return false
		}
		fmt.Fprint(w, `{"slo":{"max_manifest_segments":3}}`)
		return true
	}
	for segments, depth := range map[int]int{3: 1, 4: 2, 9: 2, 10: 3, 14: 3} {
		s := made(t, start(t, few), nil)
		data := servicetest.Content(segments<<20 - 7)
		servicetest.Put(t, s, "o", data)
		servicetest.WantContent(t, s, "o", data)
		if got, err := s.Depth(t.Context(), "o"); err != nil || got != depth {
			t.Errorf("%d segments, 3 in a manifest: %d levels, %v; want %d", segments, got, err, depth)
		}
		if o, err := s.Stat(t.Context(), "o"); err != nil || o.Size != int64(len(data)) {
			t.Errorf("stat: %+v, %v", o, err)
		}
		if err := s.Copy(t.Context(), "o", "copy"); err != nil {
			t.Fatal(err)
		}
		if err := s.Delete(t.Context(), "o"); err != nil {
			t.Fatal(err)
		}
		servicetest.WantContent(t, s, "copy", data)
		if err := s.Delete(t.Context(), "copy"); err != nil {
			t.Fatal(err)
		}
		wantSegments(t, s, 0)
	}
}

func TestSweepRemovesSegmentsOfNoObject(t *testing.T) {
	authURL := start(t, nil)
	s := made(t, authURL, nil)
	servicetest.Put(t, s, "d/kept", servicetest.Content(2<<20))
	servicetest.Put(t, s, "small", servicetest.Content(2))
	dead := "pre/fix/d/kept/holdfast-1700000000-0123456789abcdef/"
	foreign := []string{"pre/fix/d/kept/slo/1700000000.0/3/1/00000000", "other/o/holdfast-1700000000-0123456789abcdef/00000001", "pre/fix/holdfast-1/00000001"}
	for _, key := range append([]string{dead + "00000001", dead + "00000002", dead + "manifest-1-00000001",
		"pre/fix/small/holdfast-1700000000-0123456789abcdef/00000001", "pre/fix/gone/holdfast-1700000000-0123456789abcdef/00000001"}, foreign...) {
		if err := s.PutKey(t.Context(), "archive_segments", key); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{dead + "00000001", dead + "00000002", dead + "manifest-1-00000001",
		"pre/fix/gone/holdfast-1700000000-0123456789abcdef/00000001", "pre/fix/small/holdfast-1700000000-0123456789abcdef/00000001"}
	if removed, err := s.Sweep(t.Context()); err != nil || !slices.Equal(removed, want) {
		t.Errorf("swept %q, %v; want %q", removed, err, want)
	}
	if removed, err := s.SweepOlder(t.Context(), time.Now().Add(time.Hour)); err != nil || len(removed) != 0 {
		t.Errorf("of living objects %q was swept, %v", removed, err)
	}
	servicetest.WantContent(t, s, "d/kept", servicetest.Content(2<<20))
	wantSegments(t, s, 2+len(foreign))
	if removed, err := made(t, start(t, nil), nil).Sweep(t.Context()); err != nil || len(removed) != 0 {
		t.Errorf("without any segments %q was swept, %v", removed, err)
	}
}

// A manifest may name what is none of ours; that stays when the object goes.
func TestForeignSegmentsStay(t *testing.T) {
	s := made(t, start(t, nil), nil)
	servicetest.Put(t, s, "large", servicetest.Content(2<<20)) // makes the container of segments
	for _, key := range []string{"pre/fix/o/slo/1", "pre/fix/large/holdfast-1700000000-0123456789abcdef/00000001"} {
		if err := s.PutKey(t.Context(), "archive_segments", key); err != nil {
			t.Fatal(err)
		}
		if err := s.PutManifest(t.Context(), "o", "archive_segments/"+key, []byte(key)); err != nil {
			t.Fatal(err)
		}
		servicetest.WantContent(t, s, "o", []byte(key))
		if err := s.Delete(t.Context(), "o"); err != nil {
			t.Fatal(err)
		}
	}
	wantSegments(t, s, 2+2)
}

func TestAnArchiveOfWALEIsFound(t *testing.T) {
	const sentinel, segment = "basebackups_005/base_0_0_backup_stop_sentinel.json", "wal_005/000000010000000000000001.lzo"
	for what, c := range map[string]struct {
		keys []string
		want string // the key that a put makes
	}{
		"nothing":              {nil, "pre/fix/o"},
		"an archive of WAL-E":  {[]string{"/pre/fix/" + sentinel, "/pre/fix/" + segment}, "/pre/fix/o"},
		"and one of WAL-G's":   {[]string{"/pre/fix/" + sentinel, "pre/fix/" + sentinel}, "pre/fix/o"},
		"and WAL pushed since": {[]string{"/pre/fix/" + sentinel, "pre/fix/" + segment}, "pre/fix/o"},
		"one of another name":  {[]string{"/pre/fixed/" + sentinel}, "pre/fix/o"},
	} {
		var log servicetest.Log
		s := made(t, start(t, nil), func(o *swift.Options) { o.Logger = log.Logger() })
		for _, key := range c.keys {
			if err := s.PutKey(t.Context(), "archive", key); err != nil {
				t.Fatal(err)
			}
		}
		servicetest.Put(t, s, "o", servicetest.Content(2<<20))
		servicetest.WantContent(t, s, "o", servicetest.Content(2<<20))
		keys, err := s.Keys(t.Context(), "archive")
		if err != nil || !slices.Contains(keys, c.want) {
			t.Errorf("%s: a put made %q, %v; want %q", what, keys, err, c.want)
		}
		if got := servicetest.Walked(t, s); !slices.Contains(got, "o") || c.want[0] == '/' && !slices.Contains(got, sentinel) {
			t.Errorf("%s: listed is %q", what, got)
		}
		if told := strings.Contains(log.String(), "as WAL-E's do: it is read and written as /pre/fix/ in container archive"); told != (c.want[0] == '/') {
			t.Errorf("%s: the log says\n%s", what, log.String())
		}
		if err := s.Delete(t.Context(), "o"); err != nil {
			t.Error(err)
		}
		wantSegments(t, s, 0)
	}
	s := made(t, start(t, func(w http.ResponseWriter, r *http.Request) bool {
		return r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/archive") && refuse(w, r, 403)
	}), nil)
	servicetest.Put(t, s, "o", []byte("x")) // who may not list can write
	servicetest.WantContent(t, s, "o", []byte("x"))
}

// Some services answer with fewer entries than were asked for though there are more.
func TestAListingGoesOnUntilItIsEmpty(t *testing.T) {
	s := made(t, start(t, nil), nil)
	var want []string
	for i := range 250 { // the service gives a hundred at once
		want = append(want, fmt.Sprintf("d/%03d", i))
		servicetest.Put(t, s, want[i], nil)
	}
	if got := servicetest.Walked(t, s); !slices.Equal(got, want) {
		t.Errorf("%d names are listed, want %d", len(got), len(want))
	}
	stuck := made(t, start(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Query().Get("format") != "json" || r.URL.Query().Get("marker") == "" {
			return false
		}
		fmt.Fprint(w, `[{"name":"pre/fix/a","bytes":1,"last_modified":"2026-01-02T03:04:05.000000"}]`)
		return true
	}), nil)
	servicetest.Put(t, stuck, "b", nil)
	var last error
	for _, err := range stuck.Walk(t.Context(), "") {
		last = err
	}
	if last == nil || !strings.Contains(last.Error(), "does not go on") {
		t.Errorf("a listing that repeats itself ends with %v", last)
	}
}

func TestEachNameThatIsNotDeletedIsNamed(t *testing.T) {
	s := made(t, start(t, func(w http.ResponseWriter, r *http.Request) bool {
		return r.Method == http.MethodDelete && strings.Contains(r.URL.Path, "held") && refuse(w, r, 403)
	}), nil)
	names := []string{"d/a", "d/held1", "d/b", "d/held2"}
	for _, name := range names {
		servicetest.Put(t, s, name, nil)
	}
	err := s.DeleteMany(t.Context(), append(names, "d/gone"))
	for _, name := range names {
		if held := strings.Contains(name, "held"); strings.Contains(fmt.Sprint(err), "delete "+name+": ") != held {
			t.Errorf("delete many: %v; naming %s should be %v", err, name, held)
		}
	}
	if got := servicetest.Walked(t, s); !slices.Equal(got, []string{"d/held1", "d/held2"}) {
		t.Errorf("left are %q", got)
	}
}

// What is read of a manifest is checked before it is used.
func FuzzManifest(f *testing.F) {
	f.Add([]byte(`[{"name":"/archive_segments/pre/fix/o/holdfast-1700000000-0123456789abcdef/00000001","hash":"d41d8cd98f00b204e9800998ecf8427e","bytes":1048576,
		"content_type":"application/octet-stream","last_modified":"2026-01-02T03:04:05.000000"},{"name":"/c/k","hash":"x","bytes":5,"sub_slo":true}]`))
	f.Add([]byte(`[]`))
	f.Add([]byte(`[{"name":"//k","bytes":1}]`))
	f.Add([]byte(`[{"name":"/c/k","bytes":-1}]`))
	f.Add([]byte(`{"name":"/c/k"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		entries, err := swift.DecodeManifest(bytes.NewReader(text))
		if err != nil {
			return
		}
		for _, e := range entries {
			container, key, ok := strings.Cut(e.Path, "/")
			if !ok || container == "" || key == "" || e.Size < 0 {
				t.Errorf("%q is read as %+v", text, e)
			}
		}
		again, err := swift.DecodeManifest(bytes.NewReader(swift.ShowManifest(entries)))
		if err != nil || !slices.Equal(again, entries) {
			t.Errorf("%q is read as %+v, and that shown and read again as %+v, %v", text, entries, again, err)
		}
	})
}
