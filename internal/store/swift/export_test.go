package swift

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/ncw/swift/v2"
)

// CreateContainer makes the container of s.
func (s *Store) CreateContainer(ctx context.Context) error {
	return s.conn.ContainerCreate(ctx, s.o.Container, nil)
}

// PutKey puts an object under a key of a container, whatever the root of s.
func (s *Store) PutKey(ctx context.Context, container, key string) error {
	_, err := s.conn.ObjectPut(ctx, container, key, strings.NewReader(key), false, "", contentType, nil)
	return err
}

// Keys returns the keys of all objects of a container.
func (s *Store) Keys(ctx context.Context, container string) (keys []string, err error) {
	err = s.attempt(ctx, "list", container, func(ctx context.Context) (err error) {
		keys, err = s.conn.ObjectNamesAll(ctx, container, nil)
		return err
	})
	if code(err) == http.StatusNotFound {
		return nil, nil
	}
	return keys, err
}

// Expire makes the service forget the token of s.
func (s *Store) Expire() { s.conn.AuthToken += "x" }

// SweepOlder is Sweep with another age.
func (s *Store) SweepOlder(ctx context.Context, stale time.Time) ([]string, error) {
	return s.sweep(ctx, stale)
}

// MostMemory returns how many bytes the puts of s had taken at once.
func (s *Store) MostMemory() int64 { return s.budget.Most() }

// IsLarge reports whether an object has segments.
func (s *Store) IsLarge(ctx context.Context, name string) (bool, error) {
	_, headers, err := s.head(ctx, "stat", name)
	return headers.IsLargeObjectSLO(), err
}

// Depth returns how many levels of manifests there are above the segments of an object.
func (s *Store) Depth(ctx context.Context, name string) (int, error) {
	container, key := s.o.Container, s.key(name)
	for depth := 1; ; depth++ {
		entries, err := s.manifestOf(ctx, container, key)
		if err != nil || !entries[0].Sub {
			return depth, err
		}
		container, key, _ = strings.Cut(entries[0].Path, "/")
	}
}

// PutManifest puts an object that consists of what path names.
func (s *Store) PutManifest(ctx context.Context, name, path string, content []byte) error {
	sum := md5.Sum(content)
	_, err := s.putManifest(ctx, s.o.Container, s.key(name), []segment{{Path: path, Hash: hex.EncodeToString(sum[:]), Size: int64(len(content))}})
	return err
}

// DecodeManifest reads a manifest as the service shows it.
var DecodeManifest = decodeManifest

// ShowManifest writes a manifest as the service shows it.
func ShowManifest(entries []segment) []byte {
	shown := []map[string]any{}
	for _, e := range entries {
		shown = append(shown, map[string]any{"name": "/" + e.Path, "hash": e.Hash, "bytes": e.Size, "sub_slo": e.Sub})
	}
	text, err := json.Marshal(shown)
	if err != nil {
		panic(err)
	}
	return text
}

// PutOnCondition puts an object of size bytes if there is none, as far as the service decides that.
func (s *Store) PutOnCondition(ctx context.Context, name string, size int, body io.Reader) error {
	headers := swift.Headers{"If-None-Match": "*", "Content-Length": strconv.Itoa(size)}
	_, err := s.request(ctx, s.o.Container, s.key(name), headers, nil, body)
	return err
}
