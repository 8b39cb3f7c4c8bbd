package s3_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/store"
	"holdfast/internal/store/s3"
	"holdfast/internal/store/servicetest"
)

// wantNoneUnfinished fails t if parts of failed puts lie about.
func wantNoneUnfinished(t *testing.T, s *s3.Store) {
	t.Helper()
	if n, err := s.Unfinished(t.Context()); err != nil || n != 0 {
		t.Errorf("%d uploads are left unfinished, %v", n, err)
	}
}

// refuse answers as S3 does.
func refuse(w http.ResponseWriter, status int, code string) bool {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>the service says so</Message></Error>`, code)
	return true
}

func TestAPeerThatSaysNothingIsAFailure(t *testing.T) {
	s := open(t, "http://"+servicetest.Silence(t), func(o *s3.Options) { o.StallTimeout, o.MaxRetries = servicetest.Stalls, -1 })
	servicetest.WantStalled(t, servicetest.EachCall(t, s))
}

func TestS3IsReadToTheEnd(t *testing.T) {
	servicetest.TestReading(t, func(t *testing.T, serve http.HandlerFunc) store.Store {
		_, url := fake(t, func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodGet {
				serve(w, r)
			}
			return r.Method == http.MethodGet
		})
		return open(t, url, func(o *s3.Options) { o.StallTimeout = servicetest.Stalls })
	})
}

func TestABodyIsNotContinuedWithAnotherObject(t *testing.T) {
	var gets atomic.Int32
	data := servicetest.Content(1 << 20)
	_, url := fake(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || gets.Add(1) > 1 {
			if r.Method == http.MethodGet && r.Header.Get("If-Match") != "" {
				return refuse(w, http.StatusPreconditionFailed, "PreconditionFailed")
			}
			return false
		}
		w.Header().Set("Etag", `"another"`)
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		w.Write(data[:1000])
		w.(http.Flusher).Flush()
		return servicetest.Cut(t, w)
	})
	s := open(t, url, nil)
	servicetest.Put(t, s, "o", data)
	if b, err := store.ReadFile(t.Context(), s, "o", 2<<20); err == nil || !strings.Contains(err.Error(), "PreconditionFailed") {
		t.Errorf("%d bytes, %v; want PreconditionFailed", len(b), err)
	}
}

func TestABusyServiceIsAskedAgain(t *testing.T) {
	for failure, status := range map[string]int{"SlowDown": 503, "InternalError": 500, "TooManyRequests": 429, "OperationAborted": 409, "BadDigest": 400, "cut": 0} {
		t.Run(failure, func(t *testing.T) {
			var mu sync.Mutex
			seen := map[string]int{}
			_, url := fake(t, func(w http.ResponseWriter, r *http.Request) bool {
				mu.Lock()
				defer mu.Unlock()
				key := r.Method + r.URL.Path + r.URL.RawQuery
				if seen[key]++; seen[key] > 2 || failure == "BadDigest" && r.Method == http.MethodHead {
					return false
				}
				if failure == "cut" {
					return servicetest.Cut(t, w)
				}
				return refuse(w, status, failure)
			})
			s := open(t, url, nil)
			if _, err := s.Stat(t.Context(), "o"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("stat: %v, want fs.ErrNotExist", err)
			}
			if _, err := s.Open(t.Context(), "o"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("open: %v, want fs.ErrNotExist", err)
			}
			if err := s.Delete(t.Context(), "o"); err != nil {
				t.Errorf("delete: %v", err)
			}
			for _, err := range s.List(t.Context(), "", "") {
				t.Errorf("list: %v", err)
			}
		})
	}
}

func TestPutsSurviveABusyService(t *testing.T) {
	var mu sync.Mutex
	seen := map[string]int{}
	_, url := fake(t, func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		if r.Method != http.MethodPut && r.Method != http.MethodPost {
			return false
		}
		key := r.Method + r.URL.Path + r.URL.RawQuery
		if seen[key]++; seen[key] > 2 {
			return false
		}
		io.Copy(io.Discard, r.Body)
		if seen[key] == 2 {
			return servicetest.Cut(t, w)
		}
		return refuse(w, http.StatusServiceUnavailable, "SlowDown")
	})
	s := open(t, url, nil)
	for _, size := range []int{1000, 12 << 20} {
		name := fmt.Sprint(size)
		if err := s.Put(t.Context(), name, io.MultiReader(bytes.NewReader(servicetest.Content(size)))); err != nil {
			t.Fatal(err)
		}
		servicetest.WantContent(t, s, name, servicetest.Content(size))
	}
	if len(seen) != 1+3+2 { // a put; three parts; begin and end
		t.Errorf("%d different requests were tried again, want 6", len(seen))
	}
}

func TestAFailedLargePutLeavesNoParts(t *testing.T) {
	broken := errors.New("the source broke")
	const size = 18 << 20
	for what, c := range map[string]struct {
		front func(w http.ResponseWriter, r *http.Request) bool
		src   func(cancel func()) io.Reader
		want  string
	}{
		"a part is refused": {front: func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Query().Get("partNumber") != "2" {
				return false
			}
			io.Copy(io.Discard, r.Body)
			return refuse(w, http.StatusForbidden, "AccessDenied")
		}, want: "AccessDenied"},
		"the end is refused": {front: func(w http.ResponseWriter, r *http.Request) bool {
			return r.Method == http.MethodPost && r.URL.Query().Has("uploadId") && refuse(w, http.StatusBadRequest, "InvalidPart")
		}, want: "InvalidPart"},
		"the service is out of order": {front: func(w http.ResponseWriter, r *http.Request) bool {
			return r.Method == http.MethodPost && r.URL.Query().Has("uploadId") && refuse(w, http.StatusInternalServerError, "InternalError")
		}, want: "InternalError"},
		"the source breaks": {src: func(func()) io.Reader {
			return io.MultiReader(bytes.NewReader(servicetest.Content(size)), servicetest.ReaderFunc(func([]byte) (int, error) { return 0, broken }))
		}, want: broken.Error()},
		"it is cancelled": {src: func(cancel func()) io.Reader {
			return io.MultiReader(bytes.NewReader(servicetest.Content(size)), servicetest.ReaderFunc(func([]byte) (int, error) { cancel(); return 1, nil }))
		}, want: context.Canceled.Error()},
	} {
		t.Run(what, func(t *testing.T) {
			_, url := fake(t, c.front)
			s := open(t, url, nil)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var src io.Reader = bytes.NewReader(servicetest.Content(size))
			if c.src != nil {
				src = c.src(cancel)
			}
			err := s.Put(ctx, "o", src)
			if err == nil || !strings.HasPrefix(err.Error(), "put o: ") || !strings.Contains(err.Error(), c.want) {
				t.Errorf("put: %v; want put o: …%s…", err, c.want)
			}
			if _, err := s.Stat(t.Context(), "o"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("stat: %v", err)
			}
			wantNoneUnfinished(t, s)
			if c.front == nil { // the memory went back: there is enough for as much as can be under way at once
				for range 3 {
					servicetest.Put(t, s, "again", servicetest.Content(size))
				}
			}
		})
	}
}

func TestPartsThatAreNotRemovedAreMentioned(t *testing.T) {
	_, url := fake(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Query().Get("partNumber") != "1" && r.Method != http.MethodDelete {
			return false
		}
		io.Copy(io.Discard, r.Body)
		return refuse(w, http.StatusForbidden, "AccessDenied")
	})
	err := open(t, url, nil).Put(t.Context(), "o", bytes.NewReader(servicetest.Content(6<<20)))
	if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "put o: ") || !strings.Contains(err.Error(), "remove the parts of o: ") {
		t.Errorf("put: %v; want both failures", err)
	}
}

func TestALostAnswerToTheEndOfALargePutIsNoFailure(t *testing.T) {
	var ends atomic.Int32
	var behind string
	front := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = "http", behind, r.In.Host // the host is signed
		},
		ModifyResponse: func(resp *http.Response) error {
			if r := resp.Request; r.Method == http.MethodPost && r.URL.Query().Has("uploadId") && ends.Add(1) == 1 {
				return errors.New("lost") // a 502 is what the client gets
			}
			return nil
		},
		ErrorLog: log.New(io.Discard, "", 0),
	})
	defer front.Close()
	s := gateway(t)(t, func(o *s3.Options) {
		behind = strings.TrimPrefix(o.Endpoint, "http://")
		o.Endpoint = front.URL
	})
	servicetest.Put(t, s, "o", servicetest.Content(12<<20))
	servicetest.WantContent(t, s, "o", servicetest.Content(12<<20))
	if ends.Load() != 2 {
		t.Errorf("%d requests to complete, want a second one after the first got no answer", ends.Load())
	}
}

func TestPutIfAbsentWithoutConditionsLooksFirst(t *testing.T) {
	for what, front := range map[string]func(w http.ResponseWriter, r *http.Request) bool{
		"conditions are not implemented": func(w http.ResponseWriter, r *http.Request) bool {
			if r.Header.Get("If-None-Match") == "" {
				return false
			}
			io.Copy(io.Discard, r.Body)
			return refuse(w, http.StatusNotImplemented, "NotImplemented")
		},
		"conditions are ignored": func(w http.ResponseWriter, r *http.Request) bool {
			r.Header.Del("If-None-Match")
			return false
		},
	} {
		t.Run(what, func(t *testing.T) {
			_, url := fake(t, front)
			s := open(t, url, nil)
			for _, size := range []int{100, 6 << 20, 100, 6 << 20} {
				name := fmt.Sprint(size)
				err := s.PutIfAbsent(t.Context(), name, bytes.NewReader(servicetest.Content(size)))
				if err != nil && !errors.Is(err, fs.ErrExist) {
					t.Fatalf("put if absent of %d bytes: %v", size, err)
				}
				if err := s.PutIfAbsent(t.Context(), name, strings.NewReader("other")); !errors.Is(err, fs.ErrExist) {
					t.Errorf("put if absent over %d bytes: %v, want fs.ErrExist", size, err)
				}
				if err := s.PutIfAbsent(t.Context(), name, bytes.NewReader(make([]byte, 7<<20))); !errors.Is(err, fs.ErrExist) {
					t.Errorf("large put if absent over %d bytes: %v, want fs.ErrExist", size, err)
				}
				servicetest.WantContent(t, s, name, servicetest.Content(size))
			}
			wantNoneUnfinished(t, s)
		})
	}
}

// Who may write and list, and not read, does not overwrite either.
func TestPutIfAbsentNeedsNoRightToRead(t *testing.T) {
	_, url := fake(t, func(w http.ResponseWriter, r *http.Request) bool {
		r.Header.Del("If-None-Match") // the service ignores it
		if r.Method == http.MethodHead || r.Method == http.MethodGet && !r.URL.Query().Has("prefix") {
			return refuse(w, http.StatusForbidden, "AccessDenied")
		}
		return false
	})
	for _, v1 := range []bool{false, true} {
		s := open(t, url, func(o *s3.Options) { o.ListV1 = v1 })
		for _, name := range []string{fmt.Sprint("a/b.zst.", v1), fmt.Sprint("a/b.", v1), fmt.Sprint("a/b.z.", v1)} {
			if err := s.PutIfAbsent(t.Context(), name, strings.NewReader("one")); err != nil {
				t.Errorf("put if absent of %s: %v", name, err)
			}
			if err := s.PutIfAbsent(t.Context(), name, strings.NewReader("other")); !errors.Is(err, fs.ErrExist) {
				t.Errorf("put if absent over %s: %v, want fs.ErrExist", name, err)
			}
		}
	}
}

func TestAConflictOfTwoWritersIsDecided(t *testing.T) {
	var puts atomic.Int32
	_, url := fake(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPut || puts.Add(1) > 2 {
			return false
		}
		io.Copy(io.Discard, r.Body)
		return refuse(w, http.StatusConflict, "ConditionalRequestConflict")
	})
	s := open(t, url, nil)
	if err := s.PutIfAbsent(t.Context(), "o", strings.NewReader("x")); err != nil || puts.Load() != 3 {
		t.Errorf("put if absent: %v after %d tries, want success with the third", err, puts.Load())
	}
}

func TestEachKeyThatIsNotDeletedIsNamed(t *testing.T) {
	var batches atomic.Int32
	_, url := fake(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPost || !r.URL.Query().Has("delete") {
			return false
		}
		batches.Add(1)
		body, err := io.ReadAll(r.Body)
		if err != nil || r.Header.Get("Content-Md5") == "" {
			t.Errorf("delete: %v, headers %v; want a Content-MD5", err, r.Header)
		}
		fmt.Fprint(w, `<DeleteResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">`)
		for name, code := range map[string]string{"held": "AccessDenied", "unlucky": "InternalError", "gone": "NoSuchKey"} {
			if strings.Contains(string(body), "<Key>pre/fix/d/"+name+"</Key>") {
				fmt.Fprintf(w, `<Error><Key>pre/fix/d/%s</Key><Code>%s</Code><Message>no</Message></Error>`, name, code)
			}
		}
		fmt.Fprint(w, `</DeleteResult>`)
		return true
	})
	s := open(t, url, func(o *s3.Options) { o.DeleteBatch = 2 })
	err := s.DeleteMany(t.Context(), []string{"d/a", "d/held", "d/b", "d/unlucky", "d/gone"})
	if !errors.Is(err, fs.ErrPermission) {
		t.Errorf("delete many: %v, want fs.ErrPermission", err)
	}
	for name, want := range map[string]bool{"delete d/held: AccessDenied": true, "delete d/unlucky: InternalError": true, "d/a": false, "d/gone": false} {
		if strings.Contains(fmt.Sprint(err), name) != want {
			t.Errorf("delete many: %v; naming %q should be %v", err, name, want)
		}
	}
	if batches.Load() != 3 {
		t.Errorf("%d calls for 5 keys in batches of 2", batches.Load())
	}
	if err := s.DeleteMany(t.Context(), []string{"d/gone"}); err != nil {
		t.Errorf("delete of a missing key: %v", err)
	}
	if err := s.DeleteMany(t.Context(), []string{"d/unlucky"}); err == nil || errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrInvalid) {
		t.Errorf("delete that failed by chance: %v, want an error that may be tried again", err)
	}
}

// late is a context that is done when its function says so, and tells nobody.
type late struct {
	context.Context
	done func() bool
}

func (l late) Err() error {
	if l.done() {
		return context.Canceled
	}
	return nil
}

func TestADeleteThatIsCancelledBetweenBatchesSaysSo(t *testing.T) {
	var batches atomic.Int32
	_, url := fake(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPost && r.URL.Query().Has("delete") {
			batches.Add(1)
		}
		return false
	})
	s := open(t, url, func(o *s3.Options) { o.DeleteBatch = 2 })
	ctx := late{t.Context(), func() bool { return batches.Load() > 0 }}
	err := s.DeleteMany(ctx, []string{"a", "b", "c", "d", "e"})
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "delete c and those after it") || batches.Load() != 1 {
		t.Errorf("delete many: %v after %d batches", err, batches.Load())
	}
}

// Callers look for what is missing between two names, and would find it everywhere.
func TestAListingThatIsNotInOrderIsAnError(t *testing.T) {
	for what, pages := range map[string][2]string{
		"out of order":           {`<Contents><Key>pre/fix/d</Key></Contents><Contents><Key>pre/fix/e</Key></Contents>`, `<Contents><Key>pre/fix/a</Key></Contents>`},
		"the same page for ever": {`<Contents><Key>pre/fix/d</Key></Contents>`, `<Contents><Key>pre/fix/d</Key></Contents><IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>`},
	} {
		_, url := fake(t, func(w http.ResponseWriter, r *http.Request) bool {
			page := pages[1]
			if !r.URL.Query().Has("continuation-token") {
				page = pages[0] + "<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>"
			}
			fmt.Fprintf(w, "<ListBucketResult>%s</ListBucketResult>", page)
			return true
		})
		var names []string
		var failed error
		for o, err := range store.Walk(t.Context(), open(t, url, nil), "") {
			if failed = err; err == nil {
				names = append(names, o.Name)
			}
		}
		if failed == nil || !strings.HasPrefix(failed.Error(), "list /: the service") || names[0] != "d" || slices.Contains(names, "a") {
			t.Errorf("%s: yields %q, %v", what, names, failed)
		}
	}
}

func TestWithoutDeleteManyKeysAreDeletedOneByOne(t *testing.T) {
	_, url := fake(t, func(w http.ResponseWriter, r *http.Request) bool {
		return r.Method == http.MethodPost && r.URL.Query().Has("delete") && refuse(w, http.StatusNotImplemented, "NotImplemented")
	})
	s := open(t, url, nil)
	servicetest.Put(t, s, "a", nil)
	servicetest.Put(t, s, "b", nil)
	if err := s.DeleteMany(t.Context(), []string{"a", "b", "none"}); err != nil {
		t.Error(err)
	}
	for o, err := range s.List(t.Context(), "", "") {
		t.Errorf("left is %v, %v", o, err)
	}
}

// swallow is an S3 that takes objects and forgets them.
func swallow(t *testing.T) (url string, received *atomic.Int64) {
	t.Helper()
	received = new(atomic.Int64)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		switch {
		case r.Method == http.MethodPost && r.URL.Query().Has("uploads"):
			fmt.Fprint(w, `<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>`)
		case r.Method == http.MethodPost:
			fmt.Fprint(w, `<CompleteMultipartUploadResult><ETag>"1"</ETag></CompleteMultipartUploadResult>`)
		default:
			received.Add(n)
			w.Header().Set("Etag", `"1"`)
		}
	}))
	t.Cleanup(server.Close)
	return server.URL, received
}

func TestMemoryOfManyPutsIsBounded(t *testing.T) {
	const puts, size, buffer = 6, 60 << 20, 16 << 20
	url, received := swallow(t)
	s := open(t, url, func(o *s3.Options) { o.Buffer = buffer })
	servicetest.Put(t, s, "warm", nil)
	got := servicetest.Allocated(func() { servicetest.PutMany(t, s, puts, size) })
	if received.Load() != puts*size {
		t.Errorf("%d bytes arrived, want %d", received.Load(), puts*size)
	}
	// Everything ever allocated, not only what was in use at once; requests take some 200 KiB each at both ends.
	if got > buffer+puts*size/(5<<20)*400<<10 {
		t.Errorf("%d puts of %d MiB allocated %d MiB", puts, size>>20, got>>20)
	}
}

func TestFiveTiBFitIntoTheParts(t *testing.T) {
	for _, size := range []int64{5 << 20, 20 << 20, 512 << 20, 5 << 30} {
		s := open(t, "http://127.0.0.1:1", func(o *s3.Options) { o.PartSize = size })
		sum, last := int64(0), int64(0)
		for n := int32(1); n <= 10_000; n++ {
			p := s.PartSize(n)
			if p < last || p > 5<<30 || n <= 2000 && p != size {
				t.Fatalf("with parts of %d: part %d is %d bytes, the one before %d", size, n, p, last)
			}
			sum, last = sum+p, p
		}
		if sum < 5<<40 {
			t.Errorf("with parts of %d an object ends at %d bytes", size, sum)
		}
		if size == 20<<20 && last > 3<<29 {
			t.Errorf("the last part takes %d bytes of memory", last)
		}
	}
}

func TestPutsCarryWhatTheOptionsSay(t *testing.T) {
	var mu sync.Mutex
	var seen []http.Header
	_, url := fake(t, func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		if r.Method == http.MethodPut || r.Method == http.MethodPost {
			h := r.Header.Clone()
			h.Set("Test-Query", r.URL.RawQuery)
			seen = append(seen, h)
		}
		return false
	})
	s := open(t, url, func(o *s3.Options) {
		o.StorageClass, o.SSE, o.SSEKMSKeyID = "STANDARD_IA", "aws:kms", "the-kms-key"
		o.ObjectLockMode, o.ObjectLockRetention = "COMPLIANCE", 24*time.Hour
		o.SessionToken = "the-session-token"
		o.Headers = map[string]string{"X-Custom": "yes"}
	})
	servicetest.Put(t, s, "small", []byte("123456789"))
	servicetest.Put(t, s, "large", servicetest.Content(6<<20))
	kinds := map[string]int{}
	for _, h := range seen {
		kind := "put"
		switch q := h.Get("Test-Query"); {
		case strings.Contains(q, "uploads"):
			kind = "begin"
		case strings.Contains(q, "partNumber"):
			kind = "part"
		case strings.Contains(q, "uploadId"):
			kind = "end"
		}
		kinds[kind]++
		want := map[string]string{"X-Custom": "yes", "X-Amz-Security-Token": "the-session-token"}
		if kind == "put" || kind == "begin" {
			want["X-Amz-Storage-Class"] = "STANDARD_IA"
			want["X-Amz-Server-Side-Encryption"] = "aws:kms"
			want["X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id"] = "the-kms-key"
			want["X-Amz-Object-Lock-Mode"] = "COMPLIANCE"
			until, err := time.Parse(time.RFC3339, h.Get("X-Amz-Object-Lock-Retain-Until-Date"))
			if d := time.Until(until); err != nil || d < 23*time.Hour || d > 24*time.Hour {
				t.Errorf("%s is locked until %v, %v", kind, until, err)
			}
		}
		if kind == "put" || kind == "part" {
			want["X-Amz-Content-Sha256"] = "UNSIGNED-PAYLOAD"
			if h.Get("X-Amz-Checksum-Crc32c") == "" || !strings.Contains(h.Get("Authorization"), "x-amz-checksum-crc32c") {
				t.Errorf("%s has no signed checksum: %v", kind, h)
			}
			if h.Get("Content-Encoding") != "" || h.Get("X-Amz-Trailer") != "" {
				t.Errorf("%s is aws-chunked: %v", kind, h)
			}
		}
		if kind == "put" {
			want["X-Amz-Checksum-Crc32c"] = base64.StdEncoding.EncodeToString([]byte{0xe3, 0x06, 0x92, 0x83}) // CRC-32C of 123456789
		}
		if kind == "begin" {
			want["X-Amz-Checksum-Algorithm"] = "CRC32C"
		}
		for name, value := range want {
			if h.Get(name) != value {
				t.Errorf("%s: header %s is %q, want %q", kind, name, h.Get(name), value)
			}
		}
		if !strings.Contains(h.Get("Authorization"), "/us-east-1/s3/") {
			t.Errorf("at a custom endpoint the region is not us-east-1: %s", h.Get("Authorization"))
		}
	}
	if kinds["put"] != 1 || kinds["begin"] != 1 || kinds["part"] != 2 || kinds["end"] != 1 {
		t.Errorf("requests: %v", kinds)
	}
}

func TestTheCustomersKeyGoesWithEveryRequest(t *testing.T) {
	key := base64.StdEncoding.EncodeToString(servicetest.Content(32))
	var mu sync.Mutex
	lacking := map[string]bool{}
	tested := 0
	pem := filepath.Join(t.TempDir(), "ca.pem")
	url := tlsFake(t, pem, func(r *http.Request) {
		q := r.URL.Query()
		if r.Method == http.MethodDelete || r.Method == http.MethodGet && q.Has("list-type") || q.Has("delete") {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		tested++
		for _, name := range []string{"Algorithm", "Key", "Key-Md5"} {
			if r.Header.Get("X-Amz-Server-Side-Encryption-Customer-"+name) == "" {
				lacking[r.Method+" "+name+" "+r.URL.RawQuery] = true
			}
		}
		if got := r.Header.Get("X-Amz-Server-Side-Encryption-Customer-Key"); got != key {
			t.Errorf("%s %s carries the key %q", r.Method, r.URL, got)
		}
	})
	s := open(t, url, func(o *s3.Options) { o.SSECKey, o.CAFile = key, pem })
	servicetest.Put(t, s, "small", []byte("x"))
	servicetest.Put(t, s, "large", servicetest.Content(6<<20))
	servicetest.WantContent(t, s, "large", servicetest.Content(6<<20))
	if err := s.Copy(t.Context(), "small", "copy"); err != nil {
		t.Error(err)
	}
	if _, err := s.Stat(t.Context(), "small"); err != nil {
		t.Error(err)
	}
	if len(lacking) != 0 || tested < 8 {
		t.Errorf("%d requests, without the key: %v", tested, lacking)
	}
}

// tlsFake is a fake that speaks https, and writes the certificate of its authority to pemFile.
func tlsFake(t *testing.T, pemFile string, see func(*http.Request)) (url string) {
	t.Helper()
	_, plain := fake(t, nil)
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		see(r)
		out := r.Clone(r.Context())
		out.URL.Scheme, out.URL.Host, out.RequestURI = "http", strings.TrimPrefix(plain, "http://"), ""
		resp, err := http.DefaultTransport.RoundTrip(out)
		if err != nil {
			t.Error(err)
			return
		}
		defer resp.Body.Close()
		for name, values := range resp.Header {
			w.Header()[name] = values
		}
		w.WriteHeader(resp.StatusCode)
		io.Copy(w, resp.Body)
	}))
	t.Cleanup(server.Close)
	if err := os.WriteFile(pemFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return server.URL
}

func TestOnlyTheGivenAuthorityIsTrusted(t *testing.T) {
	ca := filepath.Join(t.TempDir(), "ca.pem")
	url := tlsFake(t, ca, func(*http.Request) {})
	without := open(t, url, func(o *s3.Options) { o.MaxRetries = -1 })
	if err := without.Put(t.Context(), "o", strings.NewReader("x")); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("put without knowing the authority: %v", err)
	}
	servicetest.Put(t, open(t, url, func(o *s3.Options) { o.CAFile = ca }), "o", []byte("x"))
}

func TestErrorsNameTheSettingAndNoSecret(t *testing.T) {
	for code, c := range map[string]struct {
		status int
		kind   error
		hint   string
	}{
		"NoSuchBucket":          {404, fs.ErrInvalid, "WALG_S3_PREFIX"},
		"AccessDenied":          {403, fs.ErrPermission, "s3:ListBucket"},
		"InvalidAccessKeyId":    {403, fs.ErrPermission, "AWS_ACCESS_KEY_ID"},
		"SignatureDoesNotMatch": {403, fs.ErrPermission, "AWS_SECRET_ACCESS_KEY"},
		"ExpiredToken":          {400, fs.ErrPermission, "AWS_SESSION_TOKEN"},
		"RequestTimeTooSkewed":  {403, fs.ErrPermission, "clock"},
		"PermanentRedirect":     {301, fs.ErrInvalid, "AWS_REGION"},
		"InvalidStorageClass":   {400, fs.ErrInvalid, "WALG_S3_STORAGE_CLASS"},
		"InvalidObjectState":    {403, fs.ErrInvalid, "storage class"},
		"MadeUp":                {400, fs.ErrInvalid, "the service says so"},
		"SlowDown":              {503, nil, "the service says so"},
		"InternalError":         {500, nil, "the service says so"},
		"RequestTimeout":        {400, nil, "the service says so"},
	} {
		_, url := fake(t, func(w http.ResponseWriter, r *http.Request) bool {
			io.Copy(io.Discard, r.Body)
			return refuse(w, c.status, code)
		})
		s := open(t, url, func(o *s3.Options) { o.SessionToken, o.MaxRetries = "the-session-token", -1 })
		_, read := s.Open(t.Context(), "d/o")
		var list error
		for _, list = range s.List(t.Context(), "d/", "") {
		}
		for op, err := range map[string]error{"put d/o": s.Put(t.Context(), "d/o", strings.NewReader("x")), "open d/o": read,
			"delete d/o": s.Delete(t.Context(), "d/o"), "list d/": list} {
			text := fmt.Sprint(err)
			if !strings.HasPrefix(text, op+": "+code) || !strings.Contains(text, c.hint) {
				t.Errorf("%s: %s; want %s: %s… with %q", op, text, op, code, c.hint)
			}
			servicetest.WantKind(t, op, err, c.kind)
			for _, secret := range []string{secretKey, "the-session-token"} {
				if strings.Contains(text, secret) || strings.Contains(fmt.Sprintf("%+v", err), secret) {
					t.Errorf("%s: the error holds a secret: %s", op, text)
				}
			}
		}
	}
}

func TestAMissingBucketIsNoMissingObject(t *testing.T) {
	_, url := fake(t, nil)
	for op, err := range servicetest.EachCall(t, open(t, url, func(o *s3.Options) { o.Bucket = "nobodys" })) {
		if err == nil || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "there is no bucket nobodys") {
			t.Errorf("%s in a missing bucket: %v", op, err)
		}
	}
}

// A server that knows nothing of S3 and answers that there is no such page must not read as the end of an archive.
func TestAMissingServiceIsNoMissingObject(t *testing.T) {
	for _, body := range []string{"", "<html><p>Not here"} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, body)
		}))
		for op, err := range servicetest.EachCall(t, open(t, server.URL, nil)) {
			if err == nil || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "AWS_ENDPOINT") {
				t.Errorf("%s where nobody speaks S3 (%q): %v", op, body, err)
			}
		}
		server.Close()
	}
}

func TestAServerThatIsNotThereIsNamed(t *testing.T) {
	s := open(t, "http://127.0.0.1:1", func(o *s3.Options) { o.MaxRetries = -1 })
	err := s.Put(t.Context(), "o", strings.NewReader("x"))
	if err == nil || !strings.HasPrefix(err.Error(), "put o: ") || !strings.Contains(err.Error(), "127.0.0.1:1") || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("put: %v", err)
	}
}

func TestAServerThatDoesNotAnswerIsNamed(t *testing.T) {
	_, url := fake(t, nil)
	s := open(t, url, func(o *s3.Options) { o.StallTimeout, o.MaxRetries = time.Nanosecond, -1 }) // over before the connection is made
	err := s.Put(t.Context(), "o", strings.NewReader("x"))
	if err == nil || !strings.Contains(err.Error(), "i/o timeout") || !strings.Contains(err.Error(), strings.TrimPrefix(url, "http://")) ||
		!strings.Contains(err.Error(), "AWS_ENDPOINT") {
		t.Errorf("put: %v", err)
	}
}

func TestMissingCredentialsAreSaid(t *testing.T) {
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY", "AWS_PROFILE"} {
		t.Setenv(name, "")
	}
	none := filepath.Join(t.TempDir(), "none")
	_, url := fake(t, nil)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for _, disabled := range []string{"true", "false"} { // where nothing answers the SDK gives up after 5 seconds
		t.Setenv("AWS_EC2_METADATA_DISABLED", disabled)
		t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://"+silent.Addr().String())
		s := open(t, url, func(o *s3.Options) { o.AccessKey, o.SecretKey, o.ConfigFile, o.CredentialsFile = "", "", none, none })
		err := s.Put(t.Context(), "o", strings.NewReader("x"))
		if !errors.Is(err, fs.ErrPermission) || errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "set AWS_ACCESS_KEY_ID") {
			t.Errorf("put without credentials: %v", err)
		}
	}
}

// A role that may not be assumed is not the bucket's fault.
func TestARoleThatIsRefusedIsNamed(t *testing.T) {
	sts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/xml")
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, `<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>not authorized to perform sts:AssumeRole</Message></Error></ErrorResponse>`)
	}))
	defer sts.Close()
	t.Setenv("AWS_ENDPOINT_URL_STS", sts.URL)
	_, url := fake(t, nil)
	s := open(t, url, func(o *s3.Options) { o.RoleARN = "arn:aws:iam::1:role/backup" })
	for op, err := range servicetest.EachCall(t, s) {
		if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "sts:AssumeRole") || !strings.Contains(err.Error(), "see AWS_ROLE_ARN, which is arn:aws:iam::1:role/backup") {
			t.Errorf("%s: %v", op, err)
		}
	}
}

func TestTheRegionIsAskedFor(t *testing.T) {
	for status, want := range map[int]string{200: "eu-central-1", 403: "eu-central-1", 301: "eu-central-1", 404: ""} {
		_, url := fake(t, func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodHead || r.Header.Get("Authorization") != "" {
				t.Errorf("%s %s, signed %v; want an unsigned HEAD", r.Method, r.URL, r.Header.Get("Authorization") != "")
			}
			if status != 404 {
				w.Header().Set("X-Amz-Bucket-Region", "eu-central-1")
			}
			w.WriteHeader(status)
			return true
		})
		got, err := open(t, url, nil).Region(t.Context())
		if got != want || (err != nil) != (want == "") || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("status %d: region %q, %v; want %q", status, got, err, want)
		}
	}
}

func TestTheWrongRegionIsExplained(t *testing.T) {
	_, url := fake(t, func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("X-Amz-Bucket-Region", "eu-central-1")
		w.WriteHeader(http.StatusBadRequest) // as to a HEAD, without a body
		return true
	})
	_, err := open(t, url, nil).Stat(t.Context(), "o")
	if !errors.Is(err, fs.ErrInvalid) || !strings.Contains(err.Error(), "eu-central-1: see AWS_REGION, which is us-east-1") {
		t.Errorf("stat: %v", err)
	}
}

func TestBadOptionsAreRefused(t *testing.T) {
	for want, o := range map[string]s3.Options{
		"name of a bucket":     {},
		"part size":            {Bucket: "b", PartSize: 1 << 20},
		"delete batch":         {Bucket: "b", DeleteBatch: 1001},
		"copy in one piece":    {Bucket: "b", MaxCopy: 6 << 30},
		"one is set":           {Bucket: "b", AccessKey: "a"},
		"object lock":          {Bucket: "b", ObjectLockMode: "COMPLIANCE"},
		"32 bytes":             {Bucket: "b", SSECKey: "c2hvcnQtc2VjcmV0"},
		"exclude each other":   {Bucket: "b", SSE: "AES256", SSECKey: base64.StdEncoding.EncodeToString(servicetest.Content(32))},
		"is not a URL":         {Bucket: "b", Endpoint: "https://user:pass-secret@host"},
		"certificates":         {Bucket: "b", CAFile: "/nowhere.pem"},
		"AWS configuration":    {Bucket: "b", Profile: "nobodys", ConfigFile: "/nowhere", CredentialsFile: "/nowhere"},
		"not the name of a bu": {Bucket: "b/c"},
	} {
		_, err := s3.New(t.Context(), o)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "pass-secret") || strings.Contains(err.Error(), "c2hvcn") {
			t.Errorf("New: %v; want …%s…", err, want)
		}
	}
}

func TestSweepRemovesOldParts(t *testing.T) {
	_, url := fake(t, nil)
	s, other := open(t, url, nil), open(t, url, func(o *s3.Options) { o.Prefix = "other" })
	for _, s := range []*s3.Store{s, other} {
		if err := s.Begin(t.Context(), "d/o"); err != nil {
			t.Fatal(err)
		}
	}
	if removed, err := s.Sweep(t.Context()); err != nil || len(removed) != 0 {
		t.Errorf("swept %q, %v; want nothing as young as this", removed, err)
	}
	if removed, err := s.SweepOlder(t.Context(), time.Now().Add(time.Hour)); err != nil || !slices.Equal(removed, []string{"d/o"}) {
		t.Errorf("swept %q, %v; want d/o", removed, err)
	}
	if n, err := s.Unfinished(t.Context()); err != nil || n != 1 {
		t.Errorf("%d are left, %v; want the one elsewhere", n, err)
	}
}

func TestSweepIsContentWhereUploadsCannotBeListed(t *testing.T) {
	_, url := fake(t, func(w http.ResponseWriter, r *http.Request) bool {
		return r.URL.Query().Has("uploads") && refuse(w, http.StatusNotImplemented, "NotImplemented")
	})
	if removed, err := open(t, url, nil).Sweep(t.Context()); err != nil || len(removed) != 0 {
		t.Errorf("swept %q, %v", removed, err)
	}
}

func TestARealServerCopiesInParts(t *testing.T) {
	s := gateway(t)(t, func(o *s3.Options) { o.MaxCopy = 5 << 20 })
	data := servicetest.Content(12<<20 + 3)
	servicetest.Put(t, s, "from + %20", data)
	if err := s.Copy(t.Context(), "from + %20", "to"); err != nil {
		t.Fatal(err)
	}
	servicetest.WantContent(t, s, "to", data)
	wantNoneUnfinished(t, s)
}

func TestARealServersRefusalsAreExplained(t *testing.T) {
	newStore := gateway(t)
	var endpoint string
	newStore(t, func(o *s3.Options) { endpoint = o.Endpoint })
	for want, change := range map[string]func(*s3.Options){
		"there is no bucket nobodys: see WALG_S3_PREFIX":   func(o *s3.Options) { o.Bucket = "nobodys" },
		"the service does not know this AWS_ACCESS_KEY_ID": func(o *s3.Options) { o.AccessKey = "stranger" },
		"AWS_SECRET_ACCESS_KEY is not the one":             func(o *s3.Options) { o.SecretKey = "not-the-secret" },
		"AWS_REGION":                                       func(o *s3.Options) { o.Region = "mars-north-1" },
		"begin AWS_ENDPOINT with http://":                  func(o *s3.Options) { o.Endpoint = strings.Replace(endpoint, "http", "https", 1) },
	} {
		var log bytes.Buffer
		s := open(t, endpoint, func(o *s3.Options) {
			o.Bucket, o.Logger = "archive-1", slog.New(slog.NewTextHandler(&log, nil))
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
		if log.Len() > 0 {
			t.Errorf("%s: it was tried again:\n%s", want, log.String())
		}
	}
}

// What a wrong setting does to connections will not pass, and is said at once.
func TestAnEndpointThatSpeaksSomethingElseIsExplained(t *testing.T) {
	secure := tlsFake(t, filepath.Join(t.TempDir(), "ca.pem"), func(*http.Request) {})
	// What servers that want TLS answer to plain text; they do not wait for its end as these do, so that a reset may come first.
	said := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		http.Error(w, "Client sent an HTTP request to an HTTPS server.", http.StatusBadRequest)
	}))
	defer said.Close()
	alert := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		c, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		c.Write([]byte{0x15, 3, 1, 0, 2, 2, 22, '\n'})
		c.Close()
	}))
	defer alert.Close()
	for endpoint, want := range map[string]string{
		secure:    "S3_CA_CERT_FILE",
		said.URL:  "begin with https://",
		alert.URL: "begin AWS_ENDPOINT with https://",
	} {
		var log bytes.Buffer
		s := open(t, endpoint, func(o *s3.Options) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
		_, stat := s.Stat(t.Context(), "o")
		for op, err := range map[string]error{"stat": stat, "put": s.Put(t.Context(), "o", strings.NewReader("x"))} {
			if !errors.Is(err, fs.ErrInvalid) || !strings.Contains(err.Error(), want) {
				t.Errorf("%s at %s: %v; want …%s…", op, endpoint, err, want)
			}
		}
		if log.Len() > 0 {
			t.Errorf("at %s it was tried again:\n%s", endpoint, log.String())
		}
	}
	s := open(t, "http://127.0.0.1:1", nil)
	for want, err := range map[string]error{
		"AWS_S3_FORCE_PATH_STYLE": &net.DNSError{Err: "no such host", Name: "archive.example", IsNotFound: true},
		"AWS_ENDPOINT":            x509.HostnameError{Certificate: &x509.Certificate{}, Host: "archive.example"},
		"the clock":               x509.CertificateInvalidError{Reason: x509.Expired},
	} {
		if stays, hint := s.Unreached(fmt.Errorf("put: %w", err)); !stays || !strings.Contains(hint, want) {
			t.Errorf("%v: stays is %v, hint %q; want …%s…", err, stays, hint, want)
		}
	}
}

func TestAnAnswerThatIsNotOfS3IsToldAsSuch(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html><p>Welcome") }))
	defer server.Close()
	for _, err := range open(t, server.URL, nil).List(t.Context(), "", "") {
		if err == nil || !strings.HasPrefix(err.Error(), "list /: deserialization failed") || !strings.Contains(err.Error(), "status 200") {
			t.Errorf("list: %v", err)
		}
	}
}

// A clock that is off is no failure where the service says what time it is, whatever the first request.
func TestAWrongClockIsAllowedFor(t *testing.T) {
	for _, first := range []string{"stat", "put", "list"} {
		_, url := fake(t, func(w http.ResponseWriter, r *http.Request) bool {
			now := time.Now().Add(-time.Hour)
			w.Header().Set("Date", now.UTC().Format(http.TimeFormat))
			signed, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
			if err != nil || signed.Sub(now).Abs() > 15*time.Minute {
				io.Copy(io.Discard, r.Body)
				return refuse(w, http.StatusForbidden, "RequestTimeTooSkewed")
			}
			r.Header.Set("X-Amz-Date", time.Now().UTC().Format("20060102T150405Z")) // the one behind knows the time
			return false
		})
		s := open(t, url, nil)
		var err error
		switch first {
		case "stat":
			if _, err = s.Stat(t.Context(), "o"); errors.Is(err, fs.ErrNotExist) {
				err = nil
			}
		case "put":
			err = s.Put(t.Context(), "o", strings.NewReader("x"))
		case "list":
			for _, err = range s.List(t.Context(), "", "") {
			}
		}
		if err != nil {
			t.Errorf("%s an hour ahead of the service: %v", first, err)
		}
	}
}

// Every failure that is followed by another attempt is told and counted once, whoever makes that.
func TestEachRetryIsToldOnce(t *testing.T) {
	var mu sync.Mutex
	var failures int
	seen := map[string]bool{}
	_, url := fake(t, func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		key := r.Method + r.URL.Path + r.URL.RawQuery
		if seen[key] {
			return false
		}
		seen[key] = true
		failures++
		io.Copy(io.Discard, r.Body)
		switch {
		case r.URL.Query().Has("list-type"), r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/large"): // breaks off in the middle
			w.Header().Set("Content-Length", "1000")
			fmt.Fprint(w, "<ListBucketResult>")
			w.(http.Flusher).Flush()
			return servicetest.Cut(t, w)
		case r.Header.Get("If-None-Match") != "" && !r.URL.Query().Has("uploadId"):
			return refuse(w, http.StatusConflict, "ConditionalRequestConflict")
		}
		return refuse(w, http.StatusServiceUnavailable, "SlowDown")
	})
	var log bytes.Buffer
	var retried atomic.Int64
	s := open(t, url, func(o *s3.Options) {
		o.Logger, o.Retried = slog.New(slog.NewTextHandler(&log, nil)), &retried
	})
	servicetest.Succeed(t, s, 1000)
	if told := strings.Count(log.String(), "\n"); told != failures || int(retried.Load()) != failures || failures < 11 {
		t.Errorf("%d failures, %d counted, %d lines:\n%s", failures, retried.Load(), told, log.String())
	}
}

func TestTheEnvironmentDoesNotSetTheRetries(t *testing.T) {
	t.Setenv("AWS_MAX_ATTEMPTS", "1")
	var calls atomic.Int32
	_, url := fake(t, func(w http.ResponseWriter, r *http.Request) bool {
		return calls.Add(1) <= 3 && refuse(w, http.StatusServiceUnavailable, "SlowDown")
	})
	if err := open(t, url, nil).Delete(t.Context(), "o"); err != nil || calls.Load() != 4 {
		t.Errorf("delete: %v after %d attempts, want success with the fourth", err, calls.Load())
	}
}

func TestRetriesEndWithPatience(t *testing.T) {
	var calls atomic.Int32
	_, url := fake(t, func(w http.ResponseWriter, r *http.Request) bool {
		calls.Add(1)
		io.Copy(io.Discard, r.Body)
		return refuse(w, http.StatusServiceUnavailable, "SlowDown")
	})
	s := open(t, url, func(o *s3.Options) { o.MaxRetries, o.Patience = 1000, time.Nanosecond })
	for op, err := range servicetest.EachCall(t, s) {
		if err == nil || !strings.Contains(err.Error(), "SlowDown") && !strings.Contains(err.Error(), "ServiceUnavailable") {
			t.Errorf("%s: %v", op, err)
		}
	}
	if got := calls.Load(); got != servicetest.Calls { // one a call: the time that begins with its failure is over at once
		t.Errorf("%d requests, want %d", got, servicetest.Calls)
	}
}

func TestEveryByteGoesThroughWrap(t *testing.T) {
	_, url := fake(t, nil)
	servicetest.TestWrap(t, 64<<10, func(wrap func(net.Conn) net.Conn) store.Store {
		return open(t, url, func(o *s3.Options) { o.Wrap = wrap })
	})
}

func TestARealServerRefusesDamagedParts(t *testing.T) {
	// The checksum that goes with a body is looked at: the server answers what it got, we say what it said.
	s := gateway(t)(t, func(o *s3.Options) {
		o.Headers = map[string]string{"X-Amz-Checksum-Crc32c": "AAAAAA=="}
		o.MaxRetries = -1
	})
	if err := s.Put(t.Context(), "o", strings.NewReader("123456789")); err == nil {
		t.Error("a body that does not match its checksum is taken")
	}
	if _, err := s.Stat(t.Context(), "o"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stat: %v", err)
	}
}
