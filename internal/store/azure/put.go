package azure

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc64"
	"io"
	"io/fs"
	"net/http"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"

	"holdfast/internal/budget"
	"holdfast/internal/store"
	"holdfast/internal/store/stall"
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
	if err := store.Check("put", name); err != nil {
		return err
	}
	p, ended, err := s.budget.Cut(ctx, r, s.blockSize(0), newSum())
	switch {
	case err != nil:
	case ended:
		err = s.putOne(ctx, name, p, ifAbsent)
		p.Release()
	default:
		err = s.putMany(ctx, name, p, r, ifAbsent)
	}
	return s.fail(ctx, "put", name, err)
}

// newSum makes CRC-64/NVME, which the service calls CRC64.
func newSum() hash.Hash { return crc64.New(crc64.MakeTable(0x9a6c9329ac4bc9b5)) }

// content returns what a request sends of a block.
func content(p *budget.Piece) io.ReadSeekCloser { return streaming.NopCloser(p.Reader()) }

// validation has the service compare the checksum of a block.
func validation(p *budget.Piece) blob.TransferValidationType {
	return blob.TransferValidationTypeCRC64(binary.BigEndian.Uint64(p.Sum()))
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
		return store.Exists(name)
	}
	return err
}

// putOne puts an object in one request.
func (s *Store) putOne(ctx context.Context, name string, p *budget.Piece, ifAbsent bool) error {
	_, err := s.client.NewBlockBlobClient(s.blobName(name)).Upload(ctx, content(p),
		&blockblob.UploadOptions{AccessConditions: condition(ifAbsent), TransactionalValidation: validation(p)})
	return decided(name, ifAbsent, err)
}

// putMany puts an object in blocks, of which p is the first.
func (s *Store) putMany(ctx context.Context, name string, p *budget.Piece, r io.Reader, ifAbsent bool) error {
	if ifAbsent { // it is cheaper to know before
		if err := s.absent(ctx, name); err != nil {
			p.Release()
			return err
		}
	}
	u := s.newUpload(name)
	if err := u.send(ctx, p, r); err != nil {
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
		return store.Exists(name)
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
func (u *upload) send(ctx context.Context, first *budget.Piece, r io.Reader) error {
	s := u.store
	blocks, err := s.budget.Send(ctx, first, r, budget.Way{Size: s.blockSize, Sum: newSum, AtOnce: s.o.Concurrency,
		Send: func(ctx context.Context, n int, p *budget.Piece) error {
			if n >= maxBlocks {
				return fmt.Errorf("larger than the %d blocks that an object may have: set AZURE_BUFFER_SIZE higher: %w", maxBlocks, fs.ErrInvalid)
			}
			_, err := u.client.StageBlock(ctx, u.id(n), content(p), &blockblob.StageBlockOptions{TransactionalValidation: validation(p)})
			return err
		}})
	for n := range blocks {
		u.ids = append(u.ids, u.id(n))
	}
	return err
}

// commit makes the blocks an object.
func (u *upload) commit(ctx context.Context, ifAbsent bool) error {
	_, err := u.client.CommitBlockList(stall.Patient(ctx), u.ids, &blockblob.CommitBlockListOptions{AccessConditions: condition(ifAbsent)})
	return err
}
