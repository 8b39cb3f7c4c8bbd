package swift

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/ncw/swift/v2"
	"golang.org/x/sync/errgroup"
)

// upload is what the keys of the segments and inner manifests of one object begin with: "<prefix>/<name>/holdfast-<time>-<random>/".
// "" is none.
type upload string

// newUpload returns the beginning of the keys for a new object.
func (s *Store) newUpload(name string) upload {
	var random [8]byte
	rand.Read(random[:]) // never fails: crypto/rand says so
	return upload(fmt.Sprintf("%s%s/holdfast-%d-%s/", s.segmentRoot(), name, time.Now().Unix(), hex.EncodeToString(random[:])))
}

// segmentRoot is what keys of segments begin with. It never begins with a slash.
func (s *Store) segmentRoot() string { return strings.TrimLeft(*s.root.Load(), "/") }

// name returns the key of segment n, counted from 1.
func (u upload) name(n int) string { return fmt.Sprintf("%s%08d", u, n) }

// manifest returns the key of manifest n of a level, both counted from 1.
func (u upload) manifest(level, n int) string { return fmt.Sprintf("%smanifest-%d-%08d", u, level, n) }

// segmentKey matches the keys of segments and inner manifests: the name of the object, the upload, its time.
var segmentKey = regexp.MustCompile(`^((.+)/holdfast-([0-9]{1,15})-[0-9a-f]{16}/)(?:[0-9]{8,}|manifest-[0-9]+-[0-9]{8,})$`)

// segment is an entry of a manifest, with the names that it has when it is put.
type segment struct {
	Path string `json:"path"`                 // container and key
	Hash string `json:"etag,omitempty"`       // MD5, or of an inner manifest the service's ETag
	Size int64  `json:"size_bytes,omitempty"` // bytes
	Sub  bool   `json:"-"`                    // it is an inner manifest; known when read
}

func encodeManifest(segments []segment) ([]byte, error) { return json.Marshal(segments) }

// maxManifest is the largest manifest that is read, in bytes: services take 8 MiB.
const maxManifest = 64 << 20

// decodeManifest reads a manifest as the service shows it, where the entries have other names than when they are put.
func decodeManifest(r io.Reader) ([]segment, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxManifest+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxManifest {
		return nil, errors.New("the manifest is larger than 64 MiB")
	}
	var entries []struct {
		Name  string `json:"name"` // with a slash before the container
		Hash  string `json:"hash"`
		Bytes int64  `json:"bytes"`
		Sub   bool   `json:"sub_slo"`
	}
	if err := json.Unmarshal(text, &entries); err != nil {
		return nil, fmt.Errorf("read the manifest: %w", err)
	}
	segments := make([]segment, len(entries))
	for i, e := range entries {
		container, key, ok := strings.Cut(strings.TrimPrefix(e.Name, "/"), "/")
		if !ok || container == "" || key == "" || e.Bytes < 0 {
			return nil, fmt.Errorf("entry %d of the manifest is %q with %d bytes", i+1, e.Name, e.Bytes)
		}
		segments[i] = segment{Path: container + "/" + key, Hash: e.Hash, Size: e.Bytes, Sub: e.Sub}
	}
	return segments, nil
}

// manifestOf returns the entries of the manifest under key.
func (s *Store) manifestOf(ctx context.Context, container, key string) ([]segment, error) {
	address, err := s.conn.GetStorageUrl(ctx)
	if err != nil {
		return nil, err
	}
	resp, _, err := s.conn.Call(ctx, address, swift.RequestOpts{
		Container: container, ObjectName: key, Operation: http.MethodGet, Parameters: url.Values{"multipart-manifest": {"get"}},
		OnReAuth: func() (string, error) { return s.conn.StorageUrl, nil }, // called while the library guards it
	})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close() // only read: nothing to lose
	return decodeManifest(resp.Body)
}

// segmentsOf returns the upload whose segments an object is made of, "" where it is none of ours or has none. The error is of op.
func (s *Store) segmentsOf(ctx context.Context, op, name string) (upload, error) {
	any, err := s.anySegments(ctx)
	if err != nil || !any {
		return "", s.fail(op, name, err)
	}
	_, headers, err := s.head(ctx, op, name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil || !headers.IsLargeObjectSLO() {
		return "", err
	}
	var entries []segment
	err = s.do(ctx, op, name, func(ctx context.Context) (err error) {
		entries, err = s.manifestOf(ctx, s.o.Container, s.key(name))
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil || len(entries) == 0 {
		return "", err
	}
	return s.ours(name, entries[0]), nil
}

// ours returns the upload that an entry of the object name's manifest is of, "" where it is not one of ours: others are not removed.
func (s *Store) ours(name string, entry segment) upload {
	key, ok := strings.CutPrefix(entry.Path, s.o.SegmentContainer+"/")
	m := segmentKey.FindStringSubmatch(key)
	if !ok || m == nil || m[2] != s.segmentRoot()+name {
		return ""
	}
	return upload(m[1])
}

// anySegments reports whether there is a container of segments: without one no object has any, and nobody has to look. It asks once.
func (s *Store) anySegments(ctx context.Context) (bool, error) {
	if known := s.segmentsSeen.Load(); known != segmentsUnknown {
		return known == segmentsThere, nil
	}
	seen := int32(segmentsThere)
	err := s.attempt(ctx, "look for", "container "+s.o.SegmentContainer, func(ctx context.Context) error {
		_, _, err := s.conn.Container(ctx, s.o.SegmentContainer)
		switch code(err) {
		case http.StatusNotFound:
			seen, err = segmentsMissing, nil
		case http.StatusForbidden: // whoever may not look has no way to know
			err = nil
		}
		return err
	})
	if err == nil {
		s.segmentsSeen.CompareAndSwap(segmentsUnknown, seen)
	}
	return seen == segmentsThere, err
}

// makeSegments makes the container of segments where there is none.
func (s *Store) makeSegments(ctx context.Context) error {
	if any, err := s.anySegments(ctx); err != nil || any {
		return err
	}
	err := s.attempt(ctx, "make", "container "+s.o.SegmentContainer, func(ctx context.Context) error {
		err := s.conn.ContainerCreate(ctx, s.o.SegmentContainer, nil)
		if code(err) == http.StatusForbidden {
			return errNoSegments
		}
		return err
	})
	if err == nil {
		s.segmentsSeen.Store(segmentsThere)
	}
	return err
}

// largeObjects is what the service says of static large objects.
type largeObjects struct {
	most int // segments of one manifest; 0 where there are no such objects
}

// largeObjects returns how many segments a manifest may name. It asks once.
func (s *Store) largeObjects(ctx context.Context) (most int, err error) {
	known := s.large.Load()
	if known == nil {
		err := s.attempt(ctx, "ask for", "what the service can do", func(ctx context.Context) error {
			info, err := s.conn.QueryInfo(ctx)
			var status int
			if err != nil { // the library has no type for it
				fmt.Sscanf(err.Error(), "invalid status code for info request: %d", &status)
			}
			if status >= 400 && status < 500 && status != http.StatusTooManyRequests && status != http.StatusRequestTimeout && status != swift.RateLimit.StatusCode {
				known = &largeObjects{most: mostSegments} // it does not say; services have had them since 2012
				return nil
			}
			if err != nil {
				return err
			}
			known = &largeObjects{}
			if slo, ok := info["slo"].(map[string]any); ok {
				known.most = mostSegments
				if n, ok := slo["max_manifest_segments"].(float64); ok && n >= 2 && n < mostSegments {
					known.most = int(n)
				}
			}
			return nil
		})
		if err != nil {
			return 0, err
		}
		s.large.Store(known)
	}
	if known.most == 0 {
		return 0, errNoLarge
	}
	return known.most, nil
}

// mostSegments is how many segments a manifest names at most: what services take that were not told otherwise.
const mostSegments = 1000

// removeSegments removes the segments of an upload, even when ctx is done. What it cannot remove is left for Sweep.
func (s *Store) removeSegments(ctx context.Context, u upload) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Minute)
	defer cancel()
	keys, err := s.segmentKeys(ctx, string(u))
	if err == nil {
		err = s.removeKeys(ctx, keys)
	}
	if err != nil {
		s.o.Logger.Warn(fmt.Sprintf("Swift: segments of an object that is no more are left in container %s under %s", s.o.SegmentContainer, u), "err", reason(err))
	}
}

// segmentKeys lists the container of segments.
func (s *Store) segmentKeys(ctx context.Context, prefix string) (keys []string, err error) {
	for marker := ""; ; {
		var page []string
		err := s.attempt(ctx, "list segments", prefix, func(ctx context.Context) (err error) {
			page, err = s.conn.ObjectNames(ctx, s.o.SegmentContainer, &swift.ObjectsOpts{Prefix: prefix, Marker: marker, Limit: pageSize})
			return err
		})
		if code(err) == http.StatusNotFound {
			return keys, nil
		}
		if err != nil || len(page) == 0 {
			return keys, err
		}
		keys, marker = append(keys, page...), page[len(page)-1]
	}
}

func (s *Store) removeKeys(ctx context.Context, keys []string) error {
	var g errgroup.Group
	g.SetLimit(deletesAtOnce)
	for _, key := range keys {
		g.Go(func() error {
			return s.attempt(ctx, "delete segment", key, func(ctx context.Context) error {
				if err := s.conn.ObjectDelete(ctx, s.o.SegmentContainer, key); code(err) != http.StatusNotFound {
					return err
				}
				return nil
			})
		})
	}
	return g.Wait()
}
