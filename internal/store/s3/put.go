package s3

import (
	"cmp"
	"context"
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"io/fs"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"holdfast/internal/budget"
	"holdfast/internal/store"
	"holdfast/internal/store/patience"
)

// maxParts is S3's bound.
const maxParts = 10_000

// partSize returns the size of part n, counted from 1. From part 2001 on it grows, so that 5 TiB, the largest object S3
// takes, fit; most services want the parts before of one size.
func (s *Store) partSize(n int32) int64 {
	return min(s.o.PartSize+int64(max(0, n-2000)/115)*(20<<20), maxPart)
}

// Put implements store.Store. What fits into one part is put in one request. When a larger object fails its parts are
// removed.
func (s *Store) Put(ctx context.Context, name string, r io.Reader) error {
	return s.put(ctx, name, r, false)
}

// PutIfAbsent implements store.PutIfAbsenter by If-None-Match. A request that was made again because its answer got lost
// may find the object of the first one: fs.ErrExist then is about our own object, so compare contents.
//
// A service that answers that it has no conditions is asked with Stat instead. Some of those that are not AWS take the
// condition and ignore it: at a custom endpoint a Stat comes first in any case, or a listing where the credentials may write
// and not read. None of these is atomic.
func (s *Store) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	if err := store.Check("put", name); err != nil {
		return err
	}
	if s.custom {
		if err := s.absent(ctx, name); err != nil {
			return err
		}
	}
	return s.put(ctx, name, r, true)
}

// absent returns nil if there is no such object.
func (s *Store) absent(ctx context.Context, name string) error {
	_, err := s.head(ctx, "put", name)
	switch {
	case err == nil:
		return store.Exists(name)
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, fs.ErrPermission):
		return s.unlisted(ctx, name)
	}
	return err
}

// unlisted returns nil if no listing has such an object.
func (s *Store) unlisted(ctx context.Context, name string) error {
	c, err := s.api(ctx)
	if err != nil {
		return err
	}
	get := s.pageV2
	if s.o.ListV1 {
		get = s.pageV1
	}
	key := s.key(name)
	p, err := get(ctx, c, request{prefix: key}) // of all that begin so it comes first
	if err != nil {
		return s.fail("put", name, err)
	}
	if len(p.objects) > 0 && aws.ToString(p.objects[0].Key) == *key {
		return store.Exists(name)
	}
	return nil
}

func (s *Store) put(ctx context.Context, name string, r io.Reader, ifAbsent bool) error {
	if err := store.Check("put", name); err != nil {
		return err
	}
	c, err := s.api(ctx)
	if err != nil {
		return err
	}
	p, ended, err := s.budget.Cut(ctx, r, s.partSize(1), newSum())
	switch {
	case err != nil:
	case ended:
		err = s.putOne(ctx, c, name, p, ifAbsent)
		p.Release()
	default:
		err = s.putMany(ctx, c, name, p, r, ifAbsent)
	}
	return s.fail("put", name, err)
}

func newSum() hash.Hash { return crc32.New(crc32.MakeTable(crc32.Castagnoli)) }

// checksum returns the CRC-32C of a part as S3 wants it.
func checksum(p *budget.Piece) *string {
	return aws.String(base64.StdEncoding.EncodeToString(p.Sum()))
}

// locked returns the object lock for an object put now.
func (s *Store) locked() (types.ObjectLockMode, *time.Time) {
	if s.o.ObjectLockMode == "" {
		return "", nil
	}
	return types.ObjectLockMode(s.o.ObjectLockMode), aws.Time(time.Now().Add(s.o.ObjectLockRetention))
}

// unsigned leaves the body out of the signature; its CRC-32C is in it.
func unsigned(c *s3.Options) {
	c.APIOptions = append(c.APIOptions, v4.SwapComputePayloadSHA256ForUnsignedPayloadMiddleware)
}

// putOne puts an object in one request.
func (s *Store) putOne(ctx context.Context, c *s3.Client, name string, p *budget.Piece, ifAbsent bool) error {
	put := func(condition *string) error {
		in := &s3.PutObjectInput{
			Bucket: &s.o.Bucket, Key: s.key(name), Body: p.Reader(), ContentLength: aws.Int64(p.Size()), ChecksumCRC32C: checksum(p),
			IfNoneMatch: condition, StorageClass: types.StorageClass(s.o.StorageClass), ServerSideEncryption: s.sse.method, SSEKMSKeyId: s.sse.kmsKey,
			SSECustomerAlgorithm: s.sse.cAlgo, SSECustomerKey: s.sse.cKey, SSECustomerKeyMD5: s.sse.cKeyMD,
		}
		in.ObjectLockMode, in.ObjectLockRetainUntilDate = s.locked()
		_, err := c.PutObject(ctx, in, unsigned)
		return err
	}
	if !ifAbsent {
		return put(nil)
	}
	return s.conditionally(ctx, name, put)
}

// conflict is the service's code for two conditional puts at once: it has not decided yet.
const conflict = "ConditionalRequestConflict"

// conditionally calls put with the condition that there is no object yet, or without it where the service has none.
func (s *Store) conditionally(ctx context.Context, name string, put func(condition *string) error) error {
	for tries := (patience.Tries{}); ; {
		condition := aws.String("*")
		if s.noConditions.Load() {
			if err := s.absent(ctx, name); err != nil {
				return err
			}
			condition = nil
		}
		err := put(condition)
		code, status, _ := codes(err)
		switch {
		case status == http.StatusPreconditionFailed:
			return store.Exists(name)
		case status == http.StatusNotImplemented && condition != nil:
			s.noConditions.Store(true)
			continue
		case code == conflict: // another writer is at it
			if err := s.absent(ctx, name); err != nil {
				return err
			}
			if err = s.retry.Again(ctx, &tries, "put "+name, err); err == nil {
				continue
			}
		}
		return err
	}
}

// putMany puts an object in parts, of which p is the first.
func (s *Store) putMany(ctx context.Context, c *s3.Client, name string, p *budget.Piece, r io.Reader, ifAbsent bool) (err error) {
	if ifAbsent { // it is cheaper to know before
		if err := s.absent(ctx, name); err != nil {
			p.Release()
			return err
		}
	}
	in := &s3.CreateMultipartUploadInput{
		Bucket: &s.o.Bucket, Key: s.key(name), ChecksumAlgorithm: types.ChecksumAlgorithmCrc32c,
		StorageClass: types.StorageClass(s.o.StorageClass), ServerSideEncryption: s.sse.method, SSEKMSKeyId: s.sse.kmsKey,
		SSECustomerAlgorithm: s.sse.cAlgo, SSECustomerKey: s.sse.cKey, SSECustomerKeyMD5: s.sse.cKeyMD,
	}
	in.ObjectLockMode, in.ObjectLockRetainUntilDate = s.locked()
	created, err := c.CreateMultipartUpload(ctx, in)
	if err != nil {
		p.Release()
		return err
	}
	u := &upload{store: s, client: c, name: name, id: created.UploadId}
	if err := u.send(ctx, p, r); err != nil {
		return errors.Join(s.fail("put", name, err), u.abort(ctx))
	}
	finish := func(condition *string) error { return u.complete(ctx, condition) }
	if ifAbsent {
		err = s.absent(ctx, name) // for services that ignore the condition here
		if err == nil {
			err = s.conditionally(ctx, name, finish)
		}
	} else {
		err = finish(nil)
	}
	if err != nil {
		return errors.Join(s.fail("put", name, err), u.abort(ctx))
	}
	return nil
}

// upload is an object being put in parts.
type upload struct {
	store  *Store
	client *s3.Client
	name   string
	id     *string

	mu    sync.Mutex // held to append to parts
	parts []types.CompletedPart
}

// send sends first, and what r still yields.
func (u *upload) send(ctx context.Context, first *budget.Piece, r io.Reader) error {
	s := u.store
	_, err := s.budget.Send(ctx, first, r, budget.Way{
		Size: func(n int) int64 { return s.partSize(int32(n + 1)) }, Sum: newSum, Send: u.sendPart, AtOnce: s.o.Concurrency,
	})
	slices.SortFunc(u.parts, func(a, b types.CompletedPart) int { return cmp.Compare(*a.PartNumber, *b.PartNumber) })
	return err
}

// sendPart sends part n, counted from 0.
func (u *upload) sendPart(ctx context.Context, n int, p *budget.Piece) error {
	if n >= maxParts {
		return fmt.Errorf("larger than the 5 TiB that an object may have: %w", fs.ErrInvalid)
	}
	s, number := u.store, aws.Int32(int32(n+1))
	out, err := u.client.UploadPart(ctx, &s3.UploadPartInput{
		Bucket: &s.o.Bucket, Key: s.key(u.name), UploadId: u.id, PartNumber: number,
		Body: p.Reader(), ContentLength: aws.Int64(p.Size()), ChecksumCRC32C: checksum(p),
		SSECustomerAlgorithm: s.sse.cAlgo, SSECustomerKey: s.sse.cKey, SSECustomerKeyMD5: s.sse.cKeyMD,
	}, unsigned)
	if err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.parts = append(u.parts, types.CompletedPart{PartNumber: number, ETag: out.ETag, ChecksumCRC32C: checksum(p)})
	return nil
}

// complete makes the parts an object.
func (u *upload) complete(ctx context.Context, condition *string) error {
	s := u.store
	_, err := u.client.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
		Bucket: &s.o.Bucket, Key: s.key(u.name), UploadId: u.id, IfNoneMatch: condition,
		MultipartUpload:      &types.CompletedMultipartUpload{Parts: u.parts},
		SSECustomerAlgorithm: s.sse.cAlgo, SSECustomerKey: s.sse.cKey, SSECustomerKeyMD5: s.sse.cKeyMD,
	}, s.patient)
	if code, _, _ := codes(err); code == "NoSuchUpload" && u.arrived(ctx) {
		return nil // done by a request whose answer got lost
	}
	return err
}

// arrived reports whether the object there is the one of these parts: S3's ETag of an object in parts is the MD5 of
// their MD5s and their number.
func (u *upload) arrived(ctx context.Context) bool {
	var sums []byte
	for _, p := range u.parts {
		sum, err := hex.DecodeString(strings.Trim(aws.ToString(p.ETag), `"`))
		if err != nil || len(sum) != md5.Size {
			return false
		}
		sums = append(sums, sum...)
	}
	out, err := u.store.head(ctx, "put", u.name)
	return err == nil && strings.Trim(aws.ToString(out.ETag), `"`) == fmt.Sprintf("%x-%d", md5.Sum(sums), len(u.parts))
}

// abort removes the parts, even when ctx is done.
func (u *upload) abort(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	_, err := u.client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &u.store.o.Bucket, Key: u.store.key(u.name), UploadId: u.id})
	if code, _, _ := codes(err); err == nil || code == "NoSuchUpload" {
		return nil
	}
	return u.store.fail("remove the parts of", u.name, err)
}
