package swift

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ncw/swift/v2"

	"holdfast/internal/budget"
	"holdfast/internal/store"
	"holdfast/internal/store/stall"
)

// contentType is what objects are said to be, as their contents are compressed or encrypted.
const contentType = "application/octet-stream"

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, name string, r io.Reader) error {
	if err := store.Check("put", name); err != nil {
		return err
	}
	piece, ended, err := s.budget.Cut(ctx, r, s.o.SegmentSize, md5.New())
	if err != nil {
		return s.fail("put", name, err)
	}
	old, err := s.segmentsOf(ctx, "put", name)
	switch {
	case err != nil:
		piece.Release()
	case ended:
		err = s.do(ctx, "put", name, func(ctx context.Context) error {
			_, err := s.request(ctx, s.o.Container, s.key(name), headersOf(piece), nil, piece.Reader())
			return stored(err)
		})
		piece.Release()
	default:
		err = s.putMany(ctx, name, piece, r)
	}
	if err == nil && old != "" {
		s.removeSegments(ctx, old)
	}
	return err
}

// headersOf lets the service compare what arrives.
func headersOf(p *budget.Piece) swift.Headers {
	return swift.Headers{"Content-Length": strconv.FormatInt(p.Size(), 10), "Etag": hex.EncodeToString(p.Sum())}
}

// request makes a PUT, and returns the headers of the answer.
func (s *Store) request(ctx context.Context, container, key string, headers swift.Headers, query url.Values, body io.Reader) (swift.Headers, error) {
	address, err := s.conn.GetStorageUrl(ctx)
	if err != nil {
		return nil, err
	}
	with := swift.Headers{"Content-Type": contentType}
	for name, value := range headers {
		with[name] = value
	}
	_, answer, err := s.conn.Call(ctx, address, swift.RequestOpts{
		Container: container, ObjectName: key, Operation: http.MethodPut, Parameters: query, Headers: with, Body: body, NoResponse: true,
		OnReAuth: func() (string, error) { return s.conn.StorageUrl, nil }, // called while the library guards it
	})
	return answer, err
}

// stored turns the answer to a put into what callers decide on: of an object that is put only its container can be missing.
func stored(err error) error {
	if code(err) == http.StatusNotFound {
		return errNoContainer
	}
	return err
}

// putMany puts an object in segments, of which the first is in piece.
func (s *Store) putMany(ctx context.Context, name string, piece *budget.Piece, r io.Reader) error {
	most, err := s.largeObjects(ctx)
	if err == nil {
		err = s.makeSegments(ctx)
	}
	if err != nil {
		piece.Release()
		return s.fail("put", name, err)
	}
	u := s.newUpload(name)
	segments, err := s.send(ctx, u, piece, r)
	if err != nil {
		s.removeSegments(ctx, u)
		return s.fail("put", name, err)
	}
	err = s.finish(ctx, name, u, segments, most)
	if err == nil || s.arrived(ctx, name, u) { // by a request whose answer got lost
		return nil
	}
	if kind, _ := s.judge(err); kind != nil {
		s.removeSegments(ctx, u)
	} // else the manifest may be on its way yet, and Sweep has to see
	return s.fail("put", name, err)
}

// send puts the segments of an object: that in first, and what r still yields.
func (s *Store) send(ctx context.Context, u upload, first *budget.Piece, r io.Reader) ([]segment, error) {
	var mu sync.Mutex // held to append to segments
	var segments []segment
	way := budget.Way{Size: func(int) int64 { return s.o.SegmentSize }, Sum: md5.New, AtOnce: s.o.Concurrency}
	way.Send = func(ctx context.Context, n int, p *budget.Piece) error {
		key := u.name(n + 1)
		mu.Lock()
		segments = append(segments, segment{Path: s.o.SegmentContainer + "/" + key, Hash: hex.EncodeToString(p.Sum()), Size: p.Size()})
		mu.Unlock()
		return s.attempt(ctx, "put segment", key, func(ctx context.Context) error {
			_, err := s.request(ctx, s.o.SegmentContainer, key, headersOf(p), nil, p.Reader())
			if code(err) == http.StatusNotFound {
				return errNoSegments
			}
			return err
		})
	}
	_, err := s.budget.Send(ctx, first, r, way)
	slices.SortFunc(segments, func(a, b segment) int { return strings.Compare(a.Path, b.Path) })
	return segments, err
}

// finish puts the manifest that makes the segments an object: with most of them in one, or where there are more, with manifests of
// manifests.
func (s *Store) finish(ctx context.Context, name string, u upload, segments []segment, most int) error {
	for level := 1; len(segments) > most; level++ {
		var above []segment
		for group := range slices.Chunk(segments, most) {
			key := u.manifest(level, len(above)+1)
			one := segment{Path: s.o.SegmentContainer + "/" + key}
			for _, below := range group {
				one.Size += below.Size
			}
			err := s.attempt(ctx, "put manifest", key, func(ctx context.Context) error {
				answer, err := s.putManifest(ctx, s.o.SegmentContainer, key, group)
				one.Hash = answer["Etag"]
				return err
			})
			if err != nil {
				return err
			}
			above = append(above, one)
		}
		segments = above
	}
	return s.attempt(ctx, "put", name, func(ctx context.Context) error {
		_, err := s.putManifest(ctx, s.o.Container, s.key(name), segments)
		return stored(err)
	})
}

// putManifest puts one manifest. The service looks at each segment before it answers.
func (s *Store) putManifest(ctx context.Context, container, key string, segments []segment) (swift.Headers, error) {
	text, err := encodeManifest(segments)
	if err != nil {
		return nil, err
	}
	headers := swift.Headers{"Content-Length": strconv.Itoa(len(text))}
	return s.request(stall.Patient(ctx), container, key, headers, url.Values{"multipart-manifest": {"put"}}, bytes.NewReader(text))
}

// arrived reports whether the object there is the one of this upload, even when ctx is done.
func (s *Store) arrived(ctx context.Context, name string, u upload) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	there, err := s.segmentsOf(ctx, "put", name)
	return err == nil && there == u
}
