package s3_test

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"testing"
)

// What lies in a class for archiving is told of in listings and by Stat; the latter knows what was thawed.
func TestFrozen(t *testing.T) {
	_, inner := fake(t, nil)
	to, err := url.Parse(inner)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(to)
	proxy.ModifyResponse = func(r *http.Response) error {
		name := r.Request.URL.Path[strings.LastIndexByte(r.Request.URL.Path, '/')+1:]
		if r.Request.Method == http.MethodHead {
			switch name {
			case "cold":
				r.Header.Set("x-amz-storage-class", "DEEP_ARCHIVE")
			case "thawing":
				r.Header.Set("x-amz-storage-class", "GLACIER")
				r.Header.Set("x-amz-restore", `ongoing-request="true"`)
			case "thawed":
				r.Header.Set("x-amz-storage-class", "GLACIER")
				r.Header.Set("x-amz-restore", `ongoing-request="false", expiry-date="Fri, 21 Dec 2029 00:00:00 GMT"`)
			case "tiered":
				r.Header.Set("x-amz-storage-class", "INTELLIGENT_TIERING")
				r.Header.Set("x-amz-archive-status", "ARCHIVE_ACCESS")
			case "quick":
				r.Header.Set("x-amz-storage-class", "GLACIER_IR")
			}
			return nil
		}
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return err
		}
		if bytes.Contains(b, []byte("<ListBucketResult")) {
			b = bytes.ReplaceAll(b, []byte("</Contents>"), []byte("<StorageClass>GLACIER</StorageClass></Contents>"))
		}
		r.Body = io.NopCloser(bytes.NewReader(b))
		r.ContentLength = int64(len(b))
		r.Header.Set("Content-Length", strconv.Itoa(len(b)))
		return nil
	}
	_, front := fake(t, func(w http.ResponseWriter, r *http.Request) bool {
		proxy.ServeHTTP(w, r)
		return true
	})
	s := open(t, front, nil)
	for name, want := range map[string]string{"cold": "DEEP_ARCHIVE", "thawing": "GLACIER", "thawed": "", "tiered": "ARCHIVE_ACCESS", "quick": "", "warm": ""} {
		if err := s.Put(t.Context(), "d/"+name, strings.NewReader("x")); err != nil {
			t.Fatal(err)
		}
		o, err := s.Stat(t.Context(), "d/"+name)
		if err != nil || o.Frozen != want {
			t.Errorf("%s: %q, %v, want %q", name, o.Frozen, err, want)
		}
	}
	for o, err := range s.List(t.Context(), "d/", "") {
		if err != nil || o.Frozen != "GLACIER" {
			t.Errorf("listed: %+v, %v", o, err)
		}
	}
}
