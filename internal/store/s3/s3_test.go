package s3_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"sync/atomic"
	"testing"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"holdfast/internal/store"
	"holdfast/internal/store/retry"
	"holdfast/internal/store/s3"
	"holdfast/internal/store/storetest"
	"holdfast/test/pgtest"
)

const (
	bucket    = "archive"
	accessKey = "the-access-key"
	secretKey = "the-secret-key"
)

// fake starts an S3 in this process with an empty bucket, and returns it and its URL. front, where not nil, sees every
// request first and may answer it.
func fake(t *testing.T, front func(w http.ResponseWriter, r *http.Request) (answered bool)) (*s3mem.Backend, string) {
	t.Helper()
	backend := s3mem.New()
	if err := backend.CreateBucket(bucket); err != nil {
		t.Fatal(err)
	}
	inner := gofakes3.New(backend).Server()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if front == nil || !front(w, r) {
			inner.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(server.Close)
	return backend, server.URL
}

// open returns a store in the bucket at endpoint; change, where not nil, may change its options.
func open(t *testing.T, endpoint string, change func(*s3.Options)) *s3.Store {
	t.Helper()
	o := s3.Options{Bucket: bucket, Prefix: "pre/fix", Endpoint: endpoint, PathStyle: true, AccessKey: accessKey, SecretKey: secretKey,
		PartSize: 5 << 20, MaxRetries: 3, MaxBackoff: 10 * time.Millisecond}
	if change != nil {
		change(&o)
	}
	s, err := s3.New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestS3IsAStore(t *testing.T) {
	storetest.Test(t, func(t *testing.T) store.Store {
		_, url := fake(t, nil)
		return open(t, url, nil)
	})
}

func TestS3WithTheOldListingIsAStore(t *testing.T) {
	storetest.Test(t, func(t *testing.T) store.Store {
		_, url := fake(t, nil)
		return open(t, url, func(o *s3.Options) { o.ListV1, o.Prefix = true, "" })
	})
}

// gateway starts versitygw, an S3 server of its own, over a scratch directory, with a bucket for each that asks.
func gateway(t *testing.T) (newStore func(t *testing.T, change func(*s3.Options)) *s3.Store) {
	t.Helper()
	program := pgtest.Service(t, "versitygw")
	address := pgtest.Address(t)
	cmd := exec.Command(program, "--port", address, "--quiet", "posix", t.TempDir())
	cmd.Env = []string{"ROOT_ACCESS_KEY=" + accessKey, "ROOT_SECRET_KEY=" + secretKey}
	pgtest.Serve(t, cmd, address)
	var made atomic.Int32
	return func(t *testing.T, change func(*s3.Options)) *s3.Store {
		t.Helper()
		name := fmt.Sprintf("archive-%d", made.Add(1))
		s := open(t, "http://"+address, func(o *s3.Options) {
			o.Bucket = name
			if change != nil {
				change(o)
			}
		})
		if err := s.CreateBucket(context.WithoutCancel(t.Context())); err != nil {
			t.Fatal(err)
		}
		return s
	}
}

// TestS3AtARealServerIsAStore tries again what the gateway answers with a conflict: it keeps objects as files, and a put into
// a directory that a delete just emptied may find neither.
func TestS3AtARealServerIsAStore(t *testing.T) {
	newStore := gateway(t)
	storetest.Test(t, func(t *testing.T) store.Store {
		return retry.New(newStore(t, nil), retry.Options{MaxDelay: 20 * time.Millisecond})
	})
}
