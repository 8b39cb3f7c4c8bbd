package azure

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"sync"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"golang.org/x/sync/errgroup"
)

// maxBlocks is the service's bound.
const maxBlocks = 50_000

// blockSize returns the size of block n, counted from 0. From block 10,000 on it grows: 6 TiB fit when blocks begin with 8 MiB.
func (s *Store) blockSize(n int) int64 {
	return min(s.o.BlockSize+int64(max(0, n-9_000)/1_000)*max(s.o.BlockSize, 8<<20), maxBlock)
}

// Put implements store.Store. What fits into one block is put in one request. When a larger object fails its blocks stay until the
// service forgets them after a week, or the next put of that name. Of two writers who put the same name in blocks at once the slower one
// fails, with an error that may pass.
func (s *Store) Put(ctx context.Context, name string, r io.Reader) error {
	return s.put(ctx, name, r, false)
}

// PutIfAbsent implements store.PutIfAbsenter by If-None-Match. A request that was made again because its answer got lost
// may find the object of the first one: fs.ErrExist then is about our own object, so compare contents.
func (s *Store) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	return s.put(ctx, name, r, true)
}

func (s *Store) put(ctx context.Context, name string, r io.Reader, ifAbsent bool) error {
	if err := check("put", name); err != nil {
		return err
	}
	b, err := s.pool.take(ctx, s.blockSize(0))
	if err != nil {
		return s.fail(ctx, "put", name, err)
	}
	ended, err := b.fill(ctx, r)
	switch {
	case err != nil:
		b.release()
	case ended:
		err = s.putOne(ctx, name, b, ifAbsent)
		b.release()
	default:
		err = s.putMany(ctx, name, b, r, ifAbsent)
	}
	return s.fail(ctx, "put", name, err)
}

// condition is what the service is to decide by.
func condition(ifAbsent bool) *blob.AccessConditions {
	if !ifAbsent {
		return nil
	}
	return &blob.AccessConditions{ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfNoneMatch: to.Ptr(azcore.ETagAny)}}
}

// decided makes an fs.ErrExist of the service's answer that the condition does not hold.
func decided(name string, ifAbsent bool, err error) error {
	if ifAbsent && (code(err) == bloberror.BlobAlreadyExists || status(err) == http.StatusPreconditionFailed) {
		return exists(name)
	}
	return err
}

// validation has the service compare a checksum.
func (b *block) validation() blob.TransferValidationType {
	return blob.TransferValidationTypeCRC64(b.crc)
}

// putOne puts an object in one request.
func (s *Store) putOne(ctx context.Context, name string, b *block, ifAbsent bool) error {
	_, err := s.client.NewBlockBlobClient(s.blobName(name)).Upload(ctx, b.reader(),
		&blockblob.UploadOptions{AccessConditions: condition(ifAbsent), TransactionalValidation: b.validation()})
	return decided(name, ifAbsent, err)
}

// putMany puts an object in blocks, of which b is the first.
func (s *Store) putMany(ctx context.Context, name string, b *block, r io.Reader, ifAbsent bool) error {
	if ifAbsent { // it is cheaper to know before
		if err := s.absent(ctx, name); err != nil {
			b.release()
			return err
		}
	}
	u := s.newUpload(name)
	if err := u.send(ctx, b, r); err != nil {
		return err
	}
	err := decided(name, ifAbsent, u.commit(ctx, ifAbsent))
	if ifAbsent && code(err) == bloberror.InvalidBlockList { // another writer was faster, and there is its object
		return errors.Join(s.absent(ctx, name), err)
	}
	return err
}

// absent returns nil if there is no such object.
func (s *Store) absent(ctx context.Context, name string) error {
	_, err := s.properties(ctx, "put", name)
	switch {
	case err == nil:
		return exists(name)
	case errors.Is(err, fs.ErrNotExist):
		return nil
	}
	return err
}

// upload is an object being put in blocks.
type upload struct {
	store  *Store
	name   string
	client *blockblob.Client
	prefix [16]byte // of its blocks' ids, so that those of two writers do not mix

	mu  sync.Mutex
	ids []string
}

func (s *Store) newUpload(name string) *upload {
	u := &upload{store: s, name: name, client: s.client.NewBlockBlobClient(s.blobName(name))}
	rand.Read(u.prefix[:]) // never fails
	return u
}

// id returns the id of block n. The service wants ids of one length under one name, of those too that a writer before left there:
// it is the one of Azure's libraries for Go, and with them WAL-G's.
func (u *upload) id(n int) string {
	var id [64]byte
	copy(id[:], u.prefix[:])
	binary.BigEndian.PutUint32(id[len(u.prefix):], uint32(n))
	return base64.StdEncoding.EncodeToString(id[:])
}

// send sends first, and what r still yields.
func (u *upload) send(ctx context.Context, first *block, r io.Reader) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(u.store.o.Concurrency)
	b, ended := first, false
	for n := 0; b != nil; n++ {
		u.ids = append(u.ids, u.id(n))
		full := b
		g.Go(func() error {
			defer full.release()
			_, err := u.client.StageBlock(ctx, u.id(n), full.reader(), &blockblob.StageBlockOptions{TransactionalValidation: full.validation()})
			return err
		})
		if ended {
			break
		}
		var err error
		if b, ended, err = u.fill(ctx, n+1, r); err != nil {
			cancel(err) // those under way are of no use any more
			if first := g.Wait(); errors.Is(err, context.Canceled) && first != nil {
				return first
			}
			return err
		}
	}
	return g.Wait()
}

// fill fills block n from r. There is none when r has ended already.
func (u *upload) fill(ctx context.Context, n int, r io.Reader) (b *block, ended bool, err error) {
	b, err = u.store.pool.take(ctx, u.store.blockSize(n))
	if err != nil {
		return nil, false, context.Cause(ctx)
	}
	ended, err = b.fill(ctx, r)
	if err == nil && b.size > 0 && n >= maxBlocks {
		err = fmt.Errorf("larger than the %d blocks that an object may have: set AZURE_BUFFER_SIZE higher: %w", maxBlocks, fs.ErrInvalid)
	}
	if err != nil || b.size == 0 {
		b.release()
		return nil, true, err
	}
	return b, ended, nil
}

// commit makes the blocks an object.
func (u *upload) commit(ctx context.Context, ifAbsent bool) error {
	_, err := u.client.CommitBlockList(patiently(ctx), u.ids, &blockblob.CommitBlockListOptions{AccessConditions: condition(ifAbsent)})
	return err
}
