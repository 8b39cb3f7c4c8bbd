package faults_test

import (
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/test/faults"
	"holdfast/test/places"
	"holdfast/test/site"
)

// patience is how long a connection that stands still may keep anybody waiting.
const patience = time.Minute

// A connection that stands still for ever, wherever it does, is given up within a minute, and the request made again.
func TestStalls(t *testing.T) {
	g := places.NewS3(t)
	s := primary(t, g.Root())
	s.Env = g.Env(g.URL)
	name := s.Push(t, "--no-wait-wal")
	s.Exec(t, `select pg_logical_emit_message(false, 'faults', 'x')`)
	segment := s.Value(t, `pg_walfile_name(pg_switch_wal())`)
	dir := ready(t, s.Data, []string{segment})
	push := func(t *testing.T, s *site.Site) { s.OK(t, "wal-push", filepath.Join(dir, segment)) }
	push(t, s)
	for _, c := range []struct {
		what   string
		fault  faults.Fault
		method string
		end    string // of the path of the request that stalls the first time it is made, or of its query
		do     func(t *testing.T, s *site.Site)
	}{
		{"AnUploadNobodyReads", faults.Deaf, http.MethodPut, "&x-id=UploadPart", func(t *testing.T, s *site.Site) {
			whole(t, s, nil, s.Push(t, "--no-wait-wal"))
		}},
		{"APutWithoutAnswer", faults.Silent, http.MethodPut, segment + ".zst", func(t *testing.T, s *site.Site) {
			push(t, s)
			whole(t, s, []string{segment})
		}},
		{"ABodyThatStops", faults.Stalled, http.MethodGet, "/part_001.tar.zst", func(t *testing.T, s *site.Site) { s.Fetch(t, name) }},
		{"AListingThatStops", faults.Stalled, http.MethodGet, "list-type=2", func(t *testing.T, s *site.Site) {
			if names := s.Backups(t); len(names) != 1 {
				t.Errorf("backups: %v", names)
			}
		}},
	} {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			var path string
			var stalled, again time.Time
			front := faults.NewFront(t, g.URL, func(r *http.Request) faults.Fault {
				switch {
				case path == "" && r.Method == c.method && (strings.HasSuffix(r.URL.Path, c.end) || strings.Contains("&"+r.URL.RawQuery, c.end)):
					path, stalled = r.URL.RequestURI(), time.Now()
					return c.fault
				case path == r.URL.RequestURI() && again.IsZero():
					again = time.Now()
				}
				return faults.None
			})
			here := *s
			here.Env = g.Env("http://"+front.Addr, "S3_MAX_PART_SIZE=5MiB")
			if c.method == http.MethodPut { // into an archive of its own
				here.Root = filepath.Join(g.Root(), c.what)
				here.Env = append(here.Env, "WALG_STORAGE_PREFIX="+c.what)
			}
			c.do(t, &here)
			if stalled.IsZero() || again.IsZero() || again.Sub(stalled) > patience {
				t.Errorf("a request stalled at %v, and was made again at %v: %s", stalled, again, front)
			}
			t.Logf("made again after %.1f s", again.Sub(stalled).Seconds())
		})
	}
	t.Run("AConnectionNobodyServes", func(t *testing.T) {
		t.Parallel()
		here := *s
		here.Env = g.Env(faults.NewDeafLine(t, strings.TrimPrefix(g.URL, "http://"), 0, 1).URL())
		begun := time.Now()
		here.OK(t, "wal-fetch", segment, filepath.Join(filepath.Dir(ready(t, s.Data, nil)), "RECOVERYXLOG"))
		if took := time.Since(begun); took > patience {
			t.Errorf("it took %s", took)
		}
		t.Logf("fetched after %.1f s", time.Since(begun).Seconds())
	})
}
