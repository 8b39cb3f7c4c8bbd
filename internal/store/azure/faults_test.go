package azure_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/store"
	"holdfast/internal/store/azure"
	"holdfast/internal/store/servicetest"
)

// refuse answers as the service does.
func refuse(w http.ResponseWriter, status int, code string) bool {
	w.Header().Set("X-Ms-Error-Code", code)
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, "<?xml version=\"1.0\" encoding=\"utf-8\"?><Error><Code>%s</Code><Message>the service says so\nRequestId:1\nTime:2</Message></Error>", code)
	return true
}

// kind says which request r is.
func kind(r *http.Request) string {
	switch q := r.URL.Query(); {
	case q.Get("comp") == "block":
		return "block"
	case q.Get("comp") == "blocklist":
		return "commit"
	case q.Get("comp") == "batch":
		return "batch"
	case q.Get("comp") == "list":
		return "list"
	default:
		return strings.ToLower(r.Method)
	}
}

func TestAPeerThatSaysNothingIsAFailure(t *testing.T) {
	s := open(t, "http://"+servicetest.Silence(t), func(o *azure.Options) { o.StallTimeout, o.MaxRetries = servicetest.Stalls, -1 })
	servicetest.WantStalled(t, servicetest.EachCall(t, s))
}

func TestAzureIsReadToTheEnd(t *testing.T) {
	servicetest.TestReading(t, func(t *testing.T, serve http.HandlerFunc) store.Store {
		return open(t, fake(t, serve), func(o *azure.Options) { o.StallTimeout, o.TryTimeout = servicetest.Stalls, servicetest.Stalls })
	})
}

// A put whose connection stalls in the middle, or breaks, is made again.
func TestAPutThatStallsIsMadeAgain(t *testing.T) {
	for _, size := range []int{4 << 20, 12 << 20} {
		for _, hang := range []bool{true, false} {
			var mu sync.Mutex
			seen := map[string]bool{}
			over := make(chan struct{})
			s := create(t, front(t, func(w http.ResponseWriter, r *http.Request) bool {
				mu.Lock()
				first := !seen[r.URL.String()]
				seen[r.URL.String()] = true
				mu.Unlock()
				if r.Method != http.MethodPut || !first {
					return false
				}
				io.CopyN(io.Discard, r.Body, 1<<20)
				if hang {
					<-over
				}
				return servicetest.Cut(t, w)
			}), func(o *azure.Options) { o.StallTimeout, o.MaxRetries = servicetest.Stalls, 50 })
			begin := time.Now()
			servicetest.Put(t, s, "o", servicetest.Content(size))
			servicetest.WantContent(t, s, "o", servicetest.Content(size))
			if took := time.Since(begin); took > time.Minute {
				t.Errorf("%d bytes, hanging %v: took %v", size, hang, took)
			}
			close(over)
		}
	}
}

func TestABodyIsNotContinuedWithAnotherObject(t *testing.T) {
	var gets atomic.Int32
	data := servicetest.Content(1 << 20)
	s := create(t, front(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || gets.Add(1) > 1 {
			return false
		}
		w.Header().Set("Etag", `"0x1234"`)
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		w.Write(data[:1000])
		w.(http.Flusher).Flush()
		return servicetest.Cut(t, w)
	}), nil)
	servicetest.Put(t, s, "o", data)
	if b, err := store.ReadFile(t.Context(), s, "o", 2<<20); err == nil || !strings.Contains(err.Error(), "ConditionNotMet") {
		t.Errorf("%d bytes, %v; want ConditionNotMet", len(b), err)
	}
}

// Whatever call it is about, a failure that may pass is asked about again.
func TestABusyServiceIsAskedAgain(t *testing.T) {
	for failure, status := range map[string]int{"ServerBusy": 503, "InternalError": 500, "OperationTimedOut": 500, "TooManyRequests": 429, "Crc64Mismatch": 400, "cut": 0} {
		t.Run(failure, func(t *testing.T) {
			var mu sync.Mutex
			seen := map[string]int{}
			s := create(t, front(t, func(w http.ResponseWriter, r *http.Request) bool {
				mu.Lock()
				defer mu.Unlock()
				key := r.Method + r.URL.Path + r.URL.RawQuery
				if seen[key]++; seen[key] > 2 {
					return false
				}
				if kind(r) == "block" { // answers before it has read everything
					io.CopyN(io.Discard, r.Body, 1<<20)
				} else {
					io.Copy(io.Discard, r.Body)
				}
				if failure == "cut" {
					return servicetest.Cut(t, w)
				}
				return refuse(w, status, failure)
			}), nil)
			if _, err := s.Stat(t.Context(), "none"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("stat: %v, want fs.ErrNotExist", err)
			}
			if _, err := s.Open(t.Context(), "nothing"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("open: %v, want fs.ErrNotExist", err)
			}
			if err := s.Delete(t.Context(), "none"); err != nil {
				t.Errorf("delete: %v", err)
			}
			for _, size := range []int{0, 1000, 12 << 20} {
				name := fmt.Sprint(size)
				if err := s.Put(t.Context(), name, io.MultiReader(bytes.NewReader(servicetest.Content(size)))); err != nil {
					t.Fatal(err)
				}
				servicetest.WantContent(t, s, name, servicetest.Content(size))
			}
			if err := s.Copy(t.Context(), "1000", "copy"); err != nil {
				t.Error(err)
			}
			servicetest.WantContent(t, s, "copy", servicetest.Content(1000))
			for _, err := range s.List(t.Context(), "", "") {
				if err != nil {
					t.Errorf("list: %v", err)
				}
			}
			if err := s.DeleteMany(t.Context(), []string{"1000", "copy"}); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAFailedLargePutLeavesNothing(t *testing.T) {
	broken := errors.New("the source broke")
	const size = 18 << 20
	for what, c := range map[string]struct {
		front func(w http.ResponseWriter, r *http.Request) bool
		src   func(cancel func()) io.Reader
		want  string
	}{
		"a block is refused": {front: func() func(w http.ResponseWriter, r *http.Request) bool {
			var blocks atomic.Int32
			return func(w http.ResponseWriter, r *http.Request) bool {
				return kind(r) == "block" && blocks.Add(1) == 2 && refuse(w, http.StatusForbidden, "AuthorizationPermissionMismatch")
			}
		}(), want: "AuthorizationPermissionMismatch"},
		"the end is refused": {front: func(w http.ResponseWriter, r *http.Request) bool {
			return kind(r) == "commit" && refuse(w, http.StatusBadRequest, "InvalidBlockList")
		}, want: "InvalidBlockList"},
		"the service is out of order": {front: func(w http.ResponseWriter, r *http.Request) bool {
			return kind(r) == "commit" && refuse(w, http.StatusInternalServerError, "InternalError")
		}, want: "InternalError"},
		"the source breaks": {src: func(func()) io.Reader {
			return io.MultiReader(bytes.NewReader(servicetest.Content(size)), servicetest.ReaderFunc(func([]byte) (int, error) { return 0, broken }))
		}, want: broken.Error()},
		"it is cancelled": {src: func(cancel func()) io.Reader {
			return io.MultiReader(bytes.NewReader(servicetest.Content(size)), servicetest.ReaderFunc(func([]byte) (int, error) { cancel(); return 1, nil }))
		}, want: context.Canceled.Error()},
	} {
		t.Run(what, func(t *testing.T) {
			s := create(t, front(t, c.front), nil)
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
			for o, err := range s.Walk(t.Context(), "") {
				t.Errorf("there is %v, %v", o, err)
			}
			for range 3 { // the memory went back: there is enough for as much as can be under way at once
				if c.front == nil {
					servicetest.Put(t, s, "again", servicetest.Content(size))
				}
			}
		})
	}
}

func TestALostAnswerToTheEndOfALargePutIsNoFailure(t *testing.T) {
	var ends atomic.Int32
	behind := azurite(t)
	s := create(t, front(t, func(w http.ResponseWriter, r *http.Request) bool {
		if kind(r) != "commit" || ends.Add(1) > 1 {
			return false
		}
		out := r.Clone(r.Context())
		host, err := url.Parse(behind)
		if err != nil {
			t.Error(err)
		}
		out.URL.Scheme, out.URL.Host, out.RequestURI = "http", host.Host, ""
		resp, err := http.DefaultTransport.RoundTrip(out)
		if err != nil || resp.StatusCode != http.StatusCreated {
			t.Errorf("commit: %v, %v", resp, err)
		} else {
			resp.Body.Close()
		}
		return servicetest.Cut(t, w)
	}), nil)
	servicetest.Put(t, s, "o", servicetest.Content(12<<20))
	servicetest.WantContent(t, s, "o", servicetest.Content(12<<20))
	if ends.Load() != 2 {
		t.Errorf("%d requests to commit, want a second one after the first got no answer", ends.Load())
	}
}

// Two writers of one name at once: what is there in the end is whole, and only a writer of that claims success.
func TestLargePutsOfOneNameDoNotMix(t *testing.T) {
	s := create(t, azurite(t), nil)
	for _, ifAbsent := range []bool{false, true} {
		name := fmt.Sprint("o", ifAbsent)
		versions := [][]byte{servicetest.Content(12 << 20), bytes.Repeat([]byte("b"), 11<<20), bytes.Repeat([]byte("c"), 13<<20)}
		errs := make([]error, len(versions))
		var g sync.WaitGroup
		for i, v := range versions {
			g.Go(func() {
				if ifAbsent {
					errs[i] = s.PutIfAbsent(t.Context(), name, bytes.NewReader(v))
				} else {
					errs[i] = s.Put(t.Context(), name, bytes.NewReader(v))
				}
			})
		}
		g.Wait()
		got, err := store.ReadFile(t.Context(), s, name, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		winner := slices.IndexFunc(versions, func(v []byte) bool { return bytes.Equal(v, got) })
		if winner < 0 || errs[winner] != nil {
			t.Errorf("if absent %v: there are %d bytes, version %d; the writers said %v", ifAbsent, len(got), winner, errs)
		}
		for i, err := range errs {
			if ifAbsent && i != winner && !errors.Is(err, fs.ErrExist) {
				t.Errorf("writer %d lost to %d: %v, want fs.ErrExist", i, winner, err)
			}
			if err != nil && (errors.Is(err, fs.ErrInvalid) || errors.Is(err, fs.ErrNotExist)) {
				t.Errorf("writer %d: %v", i, err)
			}
		}
	}
}

func TestEachNameThatIsNotDeletedIsNamed(t *testing.T) {
	s := create(t, azurite(t), nil)
	names := []string{"d/a", "d/held", "d/b", "d/gone"}
	for _, name := range names[:3] {
		servicetest.Put(t, s, name, []byte("x"))
	}
	if err := s.Lease(t.Context(), "d/held"); err != nil {
		t.Fatal(err)
	}
	err := s.DeleteMany(t.Context(), names)
	if !errors.Is(err, fs.ErrPermission) || !strings.HasPrefix(fmt.Sprint(err), "delete d/held: LeaseIdMissing") || strings.Contains(err.Error(), "d/a") {
		t.Errorf("delete many: %v; want d/held alone", err)
	}
	for o, err := range s.Walk(t.Context(), "") {
		if err != nil || o.Name != "d/held" {
			t.Errorf("there is %v, %v", o, err)
		}
	}
}

func TestANameThatFailsInABatchIsTriedAgain(t *testing.T) {
	var mu sync.Mutex
	var single []string
	s := open(t, fake(t, func(w http.ResponseWriter, r *http.Request) {
		if kind(r) != "batch" {
			mu.Lock()
			defer mu.Unlock()
			single = append(single, r.URL.Path)
			w.WriteHeader(http.StatusAccepted)
			return
		}
		w.Header().Set("Content-Type", "multipart/mixed; boundary=b")
		w.WriteHeader(http.StatusAccepted)
		for i, status := range []string{"202 Accepted", "503 Server Busy\r\nx-ms-error-code: ServerBusy", "404 Not Found\r\nx-ms-error-code: BlobNotFound"} {
			fmt.Fprintf(w, "--b\r\nContent-Type: application/http\r\nContent-ID: %d\r\n\r\nHTTP/1.1 %s\r\nContent-Length: 0\r\n\r\n", i, status)
		}
		fmt.Fprint(w, "--b--\r\n")
	}), nil)
	if err := s.DeleteMany(t.Context(), []string{"a", "busy", "gone"}); err != nil {
		t.Error(err)
	}
	if want := []string{"/account1/archive/pre/fix/busy"}; !slices.Equal(single, want) {
		t.Errorf("deleted alone were %q, want %q", single, want)
	}
}

func TestWithoutBatchesNamesAreDeletedOneByOne(t *testing.T) {
	s := create(t, front(t, func(w http.ResponseWriter, r *http.Request) bool {
		return kind(r) == "batch" && refuse(w, http.StatusNotImplemented, "NotImplemented")
	}), nil)
	servicetest.Put(t, s, "a", nil)
	servicetest.Put(t, s, "b", nil)
	if err := s.DeleteMany(t.Context(), []string{"a", "b", "none"}); err != nil {
		t.Error(err)
	}
	for o, err := range s.List(t.Context(), "", "") {
		t.Errorf("left is %v, %v", o, err)
	}
}

func TestMemoryOfManyPutsIsBounded(t *testing.T) {
	const puts, size, buffer = 6, 60 << 20, 16 << 20
	var received atomic.Int64
	s := open(t, fake(t, func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		if kind(r) == "block" {
			received.Add(n)
		}
		w.WriteHeader(http.StatusCreated)
	}), func(o *azure.Options) { o.Buffer = buffer })
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

func TestSixTiBFitIntoTheBlocks(t *testing.T) {
	for size, want := range map[int64]int64{1 << 10: 6 << 40, 8 << 20: 6 << 40, 100 << 20: 60 << 40, 4000 << 20: 190 << 40} {
		s := open(t, "http://127.0.0.1:1", func(o *azure.Options) { o.BlockSize = size })
		sum, last := int64(0), int64(0)
		for n := range 50_000 {
			b := s.BlockSize(n)
			if b < last || b > 4000<<20 || n < 10_000 && b != size {
				t.Fatalf("with blocks of %d: block %d is %d bytes, the one before %d", size, n, b, last)
			}
			sum, last = sum+b, b
		}
		if sum < want {
			t.Errorf("with blocks of %d an object ends at %d bytes, want %d", size, sum, want)
		}
	}
}

// Small blocks, as AZURE_BUFFER_SIZE may ask for, take no more memory than a few large ones, and work.
func TestBlocksMayBeSmall(t *testing.T) {
	s := create(t, azurite(t), func(o *azure.Options) { o.BlockSize = 1 << 10 })
	servicetest.Put(t, s, "o", servicetest.Content(100_001))
	servicetest.WantContent(t, s, "o", servicetest.Content(100_001))
}

// 123456789 has the CRC-64/NVME ae8b14860a799888 in every catalogue of such sums.
func TestEachBlockCarriesItsChecksum(t *testing.T) {
	var mu sync.Mutex
	sums := map[string]int{}
	damaged := 0
	s := create(t, front(t, func(w http.ResponseWriter, r *http.Request) bool {
		if k := kind(r); k != "put" && k != "block" {
			return false
		}
		mu.Lock()
		defer mu.Unlock()
		sum := r.Header.Get("X-Ms-Content-Crc64")
		if sum == "" {
			t.Errorf("%s %s carries no checksum", r.Method, r.URL)
		}
		if sums[sum]++; sums[sum] == 1 { // what arrives is not what was sent
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			if len(body) > 0 {
				body[len(body)/2] ^= 1
				damaged++
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
		}
		return false
	}), nil)
	servicetest.Put(t, s, "small", []byte("123456789"))
	servicetest.WantContent(t, s, "small", []byte("123456789"))
	if want := base64.StdEncoding.EncodeToString([]byte{0x88, 0x98, 0x79, 0x0a, 0x86, 0x14, 0x8b, 0xae}); sums[want] != 2 {
		t.Errorf("checksums are %v, want twice %s", sums, want)
	}
	servicetest.Put(t, s, "large", servicetest.Content(12<<20))
	servicetest.WantContent(t, s, "large", servicetest.Content(12<<20))
	if damaged != 4 {
		t.Errorf("%d bodies were damaged on their way, want 4", damaged)
	}
}

func TestErrorsNameTheSettingAndNoSecret(t *testing.T) {
	const sas = "?sv=2024-01-01&sp=rl&sig=c2VjcmV0LXNpZ25hdHVyZQ%3D%3D"
	for code, c := range map[string]struct {
		status    int
		kind      error
		key, sign string // the hint with an account key, with a SAS
	}{
		"ContainerNotFound":                  {404, fs.ErrInvalid, "WALG_AZ_PREFIX", "WALG_AZ_PREFIX"},
		"ContainerBeingDeleted":              {409, fs.ErrInvalid, "WALG_AZ_PREFIX", "WALG_AZ_PREFIX"},
		"ResourceNotFound":                   {404, fs.ErrInvalid, "AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT"},
		"InvalidResourceName":                {400, fs.ErrInvalid, "WALG_AZ_PREFIX", "WALG_AZ_PREFIX"},
		"AuthenticationFailed":               {403, fs.ErrPermission, "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_SAS_TOKEN"},
		"AuthorizationFailure":               {403, fs.ErrPermission, "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_SAS_TOKEN"},
		"AuthorizationPermissionMismatch":    {403, fs.ErrPermission, "AZURE_STORAGE_ACCESS_KEY", "permissions racwdl"},
		"AuthorizationProtocolMismatch":      {403, fs.ErrPermission, "https", "https"},
		"AuthorizationSourceIPMismatch":      {403, fs.ErrPermission, "address", "address"},
		"KeyBasedAuthenticationNotPermitted": {403, fs.ErrPermission, "unset AZURE_STORAGE_ACCESS_KEY", "no keys"},
		"AccountIsDisabled":                  {403, fs.ErrPermission, "AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT"},
		"BlobArchived":                       {409, fs.ErrInvalid, "archive tier", "archive tier"},
		"BlobImmutableDueToPolicy":           {409, fs.ErrPermission, "immutability", "immutability"},
		"LeaseIdMissing":                     {412, fs.ErrPermission, "lease", "lease"},
		"SnapshotsPresent":                   {409, fs.ErrInvalid, "snapshots", "snapshots"},
		"InvalidBlobOrBlock":                 {400, fs.ErrInvalid, "another program", "another program"},
		"MadeUp":                             {400, fs.ErrInvalid, "the service says so", "the service says so"},
		"ServerBusy":                         {503, nil, "the service says so", "the service says so"},
	} {
		url := fake(t, func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			refuse(w, c.status, code)
		})
		for _, signed := range []bool{false, true} {
			hint := c.key
			s := open(t, url, func(o *azure.Options) {
				o.MaxRetries = -1
				if signed {
					o.AccessKey, o.SASToken, hint = "", sas, c.sign
				}
			})
			_, read := s.Open(t.Context(), "d/o")
			var list error
			for _, list = range s.List(t.Context(), "d/", "") {
			}
			for op, err := range map[string]error{"put d/o": s.Put(t.Context(), "d/o", strings.NewReader("x")), "open d/o": read,
				"delete d/o": s.Delete(t.Context(), "d/o"), "list d/": list, "delete a, b": s.DeleteMany(t.Context(), []string{"a", "b"})} {
				text := fmt.Sprint(err)
				if !strings.HasPrefix(text, op+": "+code+": the service says so (status ") || !strings.Contains(text, hint) || strings.Contains(text, "\n") {
					t.Errorf("%s: %s; want %s: %s… with %q", op, text, op, code, hint)
				}
				servicetest.WantKind(t, op, err, c.kind)
				noSecret(t, op, err)
			}
		}
	}
}

// noSecret fails t if err, or anything that it wraps, shows a secret.
func noSecret(t *testing.T, op string, err error) {
	t.Helper()
	if err == nil {
		return
	}
	for _, secret := range []string{accessKey, "the-secret-access-key", "c2VjcmV0", "sig="} {
		if strings.Contains(err.Error(), secret) {
			t.Errorf("%s: the error holds a secret: %v", op, err)
		}
	}
	switch inner := err.(type) {
	case interface{ Unwrap() error }:
		noSecret(t, op, inner.Unwrap())
	case interface{ Unwrap() []error }:
		for _, err := range inner.Unwrap() {
			noSecret(t, op, err)
		}
	}
}

func TestAServerThatIsNotThereIsNamed(t *testing.T) {
	s := open(t, "http://127.0.0.1:1", func(o *azure.Options) {
		o.MaxRetries, o.AccessKey, o.SASToken = -1, "", "sv=2024-01-01&sig=c2VjcmV0"
	})
	err := s.Put(t.Context(), "o", strings.NewReader("x"))
	if err == nil || !strings.HasPrefix(err.Error(), "put o: PUT 127.0.0.1:1: ") || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("put: %v", err)
	}
	noSecret(t, "put", err)
}

// A 404 that does not say that the blob is missing must not read as a missing object: recovery would end there.
func TestOnlyTheServicesWordMakesAnObjectMissing(t *testing.T) {
	s := open(t, fake(t, func(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) }), nil)
	_, stat := s.Stat(t.Context(), "o")
	_, read := s.Open(t.Context(), "o")
	for op, err := range map[string]error{"stat": stat, "open": read} {
		if !errors.Is(err, fs.ErrInvalid) || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "not one of Azure Blob Storage") {
			t.Errorf("%s: %v", op, err)
		}
	}
}

func TestDirectoriesOfAHierarchicalNamespaceAreNoObjects(t *testing.T) {
	s := open(t, fake(t, func(w http.ResponseWriter, r *http.Request) {
		if kind(r) == "list" {
			fmt.Fprint(w, `<?xml version="1.0" encoding="utf-8"?><EnumerationResults><Blobs>
<Blob><Name>pre/fix/d</Name><Properties><ResourceType>directory</ResourceType><Content-Length>0</Content-Length></Properties></Blob>
<Blob><Name>pre/fix/d/o</Name><Properties><ResourceType>file</ResourceType><Content-Length>7</Content-Length></Properties></Blob>
</Blobs><NextMarker/></EnumerationResults>`)
			return
		}
		w.Header().Set("x-ms-meta-hdi_isfolder", "true")
	}), nil)
	_, stat := s.Stat(t.Context(), "d")
	_, read := s.Open(t.Context(), "d")
	for op, err := range map[string]error{"stat": stat, "open": read} {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s of a directory: %v", op, err)
		}
	}
	for o, err := range s.Walk(t.Context(), "") {
		if err != nil || o.Name != "d/o" || o.Size != 7 {
			t.Errorf("walk yields %v, %v", o, err)
		}
	}
}

// A wrong clock is told as such, at once and whatever the credential.
func TestAWrongClockIsTold(t *testing.T) {
	for off, want := range map[time.Duration]string{time.Hour: "behind", -time.Hour: "ahead", time.Minute: "AZURE_STORAGE_"} {
		url := fake(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Date", time.Now().Add(off).UTC().Format(http.TimeFormat))
			refuse(w, http.StatusForbidden, "AuthenticationFailed")
		})
		for _, sas := range []string{"", "sig=x"} {
			s := open(t, url, func(o *azure.Options) {
				if o.SASToken = sas; sas != "" {
					o.AccessKey = ""
				}
			})
			for op, err := range servicetest.EachCall(t, s) {
				if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), want) {
					t.Errorf("%s, the service's clock %v from ours: %v; want …%s…", op, off, err, want)
				}
			}
		}
	}
}

func TestARealServersRefusalsAreExplained(t *testing.T) {
	s := create(t, azurite(t), nil)
	sas := func(permissions string, until time.Time) func(*azure.Options) {
		token, err := s.SAS(permissions, until)
		if err != nil {
			t.Fatal(err)
		}
		return func(o *azure.Options) { o.AccessKey, o.SASToken = "", token }
	}
	name := fmt.Sprintf("archive-%d", made.Load())
	for want, change := range map[string]func(*azure.Options){
		"there is no container nobodys in the account: see WALG_AZ_PREFIX": func(o *azure.Options) { o.Container = "nobodys" },
		"AZURE_STORAGE_ACCESS_KEY is not a key of AZURE_STORAGE_ACCOUNT":   func(o *azure.Options) { o.AccessKey = "bm90LXRoZS1zZWNyZXQ=" },
		"see AZURE_STORAGE_SAS_TOKEN: it expired at 20":                    sas("racwdl", time.Now().Add(-time.Hour)),
		"may not do that in container " + name + ": it needs":              sas("t", time.Now().Add(time.Hour)),
		"begin the endpoint with http://":                                  func(o *azure.Options) { o.Endpoint = strings.Replace(o.Endpoint, "http", "https", 1) },
	} {
		var log bytes.Buffer
		s := open(t, azurite(t), func(o *azure.Options) {
			o.Container, o.Logger = name, slog.New(slog.NewTextHandler(&log, nil))
			change(o)
		})
		for op, err := range servicetest.EachCall(t, s) {
			if err == nil || !strings.Contains(err.Error(), want) || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %v; want …%s…", op, err, want)
			}
			if !errors.Is(err, fs.ErrPermission) && !errors.Is(err, fs.ErrInvalid) {
				t.Errorf("%s: %v is no reason to give up", op, err)
			}
			noSecret(t, op, err)
		}
		if log.Len() > 0 {
			t.Errorf("%s: it was tried again:\n%s", want, log.String())
		}
	}
}

// A SAS is taken with and without the question mark, and is enough for every call.
func TestASASIsEnough(t *testing.T) {
	s := create(t, azurite(t), nil)
	name := fmt.Sprintf("archive-%d", made.Load())
	token, err := s.SAS("racwdl", time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	for _, mark := range []string{"", "?"} {
		s := open(t, azurite(t), func(o *azure.Options) {
			o.Container, o.Account, o.AccessKey, o.SASToken = name, "", "", mark+token
		})
		servicetest.Put(t, s, "d/small + %20", []byte("x"))
		servicetest.Put(t, s, "d/large", servicetest.Content(12<<20))
		if err := s.PutIfAbsent(t.Context(), "d/large", strings.NewReader("x")); !errors.Is(err, fs.ErrExist) {
			t.Errorf("put if absent: %v", err)
		}
		if err := s.Copy(t.Context(), "d/small + %20", "d/copy"); err != nil {
			t.Error(err)
		}
		servicetest.WantContent(t, s, "d/copy", []byte("x"))
		servicetest.WantContent(t, s, "d/large", servicetest.Content(12<<20))
		if err := s.DeleteMany(t.Context(), []string{"d/small + %20", "d/large", "d/copy"}); err != nil {
			t.Error(err)
		}
		for o, err := range s.Walk(t.Context(), "") {
			t.Errorf("left is %v, %v", o, err)
		}
	}
}

// What a wrong setting does to connections will not pass, and is said at once.
func TestAnEndpointThatSpeaksSomethingElseIsExplained(t *testing.T) {
	for want, err := range map[string]error{
		"AZURE_STORAGE_ACCOUNT, which is \"account1\"": &net.DNSError{Err: "no such host", Name: "account1.blob.core.windows.net", IsNotFound: true},
		"does not speak https":                         http.ErrSchemeMismatch,
	} {
		if stays, hint := open(t, "http://127.0.0.1:1", nil).Unreached(fmt.Errorf("put: %w", err)); !stays || !strings.Contains(hint, want) {
			t.Errorf("%v: stays is %v, hint %q; want …%s…", err, stays, hint, want)
		}
	}
}

// A try that takes longer than it may is given up and made again, and its deadline is not taken for the caller's.
func TestATryTakesNoLongerThanItMay(t *testing.T) {
	var puts atomic.Int32
	s := create(t, front(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut && puts.Add(1) == 1 {
			io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
			return servicetest.Cut(t, w)
		}
		return false
	}), func(o *azure.Options) { o.TryTimeout = servicetest.Stalls })
	servicetest.Put(t, s, "o", []byte("x"))
	servicetest.WantContent(t, s, "o", []byte("x"))
	never := open(t, fake(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}), func(o *azure.Options) { o.TryTimeout, o.MaxRetries = 50*time.Millisecond, 1 })
	if err := never.Put(t.Context(), "o", strings.NewReader("x")); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("put: %v, want an error that is not the caller's deadline", err)
	}
}

// Every failure that is followed by another attempt is told and counted once, whoever makes that.
func TestEachRetryIsToldOnce(t *testing.T) {
	var mu sync.Mutex
	var failures int
	seen := map[string]bool{}
	s := create(t, front(t, func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		key := r.Method + r.URL.Path + r.URL.RawQuery
		if seen[key] {
			return false
		}
		seen[key] = true
		failures++
		io.Copy(io.Discard, r.Body)
		if kind(r) == "list" || kind(r) == "get" { // breaks off in the middle
			w.Header().Set("Content-Length", "1000")
			fmt.Fprint(w, "<EnumerationResults>")
			w.(http.Flusher).Flush()
			return servicetest.Cut(t, w)
		}
		return refuse(w, http.StatusServiceUnavailable, "ServerBusy")
	}), nil)
	var log bytes.Buffer
	var retried atomic.Int64
	s = s.With(func(o *azure.Options) {
		o.Logger, o.Retried = slog.New(slog.NewTextHandler(&log, nil)), &retried
	})
	servicetest.Succeed(t, s, 1000)
	if got := strings.Count(log.String(), "level=WARN"); got != failures || int(retried.Load()) != failures || failures < 9 {
		t.Errorf("%d failures, %d counted, %d lines:\n%s", failures, retried.Load(), got, log.String())
	}
	for _, secret := range []string{"sig=", "SharedKey", accessKey} {
		if strings.Contains(log.String(), secret) {
			t.Errorf("the log shows a secret:\n%s", log.String())
		}
	}
}

func TestEveryByteGoesThroughWrap(t *testing.T) {
	servicetest.TestWrap(t, 64<<10, func(wrap func(net.Conn) net.Conn) store.Store {
		return create(t, azurite(t), func(o *azure.Options) { o.Wrap = wrap })
	})
}

func TestTheVersionOfTheServiceCanBeChosen(t *testing.T) {
	var version atomic.Value
	s := open(t, fake(t, func(w http.ResponseWriter, r *http.Request) { version.Store(r.Header.Get("X-Ms-Version")) }), func(o *azure.Options) { o.APIVersion = "2021-08-06" })
	if _, err := s.Stat(t.Context(), "o"); err != nil {
		t.Fatal(err)
	}
	if version.Load() != "2021-08-06" {
		t.Errorf("the version asked for is %v", version.Load())
	}
}

func TestTheAccountIsFoundInItsCloud(t *testing.T) {
	for want, o := range map[string]azure.Options{
		"https://account1.blob.core.windows.net/c":       {},
		"https://account1.blob.core.usgovcloudapi.net/c": {Environment: "AzureUSGovernmentCloud"},
		"https://account1.blob.core.chinacloudapi.cn/c":  {Environment: "AzureChinaCloud"},
		"https://account1.blob.core.cloudapi.de/c":       {Environment: "AzureGermanCloud"},
		"https://account1.blob.core.local/c":             {EndpointSuffix: "core.local"},
		"https://archive.example/c":                      {Endpoint: "https://archive.example/"},
	} {
		o.Container, o.Account, o.AccessKey = "c", account, accessKey
		s, err := azure.New(o)
		if err != nil || s.URL() != want {
			t.Errorf("%+v: %v, %v; want %s", o, s.URL(), err, want)
		}
	}
}

func TestBadOptionsAreRefused(t *testing.T) {
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, []byte("none"), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, o := range map[string]azure.Options{
		"name of a container":          {Account: "a"},
		"\"b/c\" is not the name":      {Container: "b/c", Account: "a"},
		"AZURE_STORAGE_ACCOUNT is not": {Container: "c"},
		"account names have only":      {Container: "c", Account: "evil.example/"},
		"AZURE_ENVIRONMENT_NAME":       {Container: "c", Account: "a", Environment: "Mars"},
		"AZURE_STORAGE_ACCESS_KEY":     {Container: "c", Account: "a", AccessKey: "pass-secret"},
		"AZURE_STORAGE_SAS_TOKEN":      {Container: "c", Account: "a", SASToken: "pass-secret"},
		"AZURE_BUFFER_SIZE":            {Container: "c", Account: "a", BlockSize: 1000},
		"is not a URL":                 {Container: "c", Account: "a", Endpoint: "https://user:pass-secret@host"},
		"an identity is only shown":    {Container: "c", Account: "a", Endpoint: "http://127.0.0.1:1"},
		"certificates":                 {Container: "c", Account: "a", CAFile: "/nowhere.pem"},
		"there is none in":             {Container: "c", Account: "a", CAFile: ca},
	} {
		_, err := azure.New(o)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "pass-secret") {
			t.Errorf("New: %v; want …%s…", err, want)
		}
	}
}
