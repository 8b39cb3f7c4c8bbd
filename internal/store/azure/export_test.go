package azure

import (
	"context"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/lease"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"
)

// CreateContainer makes the container of s.
func (s *Store) CreateContainer(ctx context.Context) error {
	_, err := s.client.Create(ctx, nil)
	return err
}

// Lease keeps everyone else from deleting or replacing an object.
func (s *Store) Lease(ctx context.Context, name string) error {
	c, err := lease.NewBlobClient(s.client.NewBlobClient(s.blobName(name)), &lease.BlobClientOptions{LeaseID: to.Ptr("7e1b9d6c-1111-2222-3333-444444444444")})
	if err == nil {
		_, err = c.AcquireLease(ctx, 60, nil)
	}
	return err
}

// SAS returns a shared access signature for the container.
func (s *Store) SAS(permissions string, until time.Time) (string, error) {
	q, err := sas.BlobSignatureValues{ContainerName: s.o.Container, StartTime: until.Add(-2 * time.Hour).UTC(), ExpiryTime: until.UTC(), Permissions: permissions}.SignWithSharedKey(s.key)
	return q.Encode(), err
}

// With returns s with other options.
func (s *Store) With(change func(*Options)) *Store {
	o := s.o
	change(&o)
	other, err := New(o)
	if err != nil {
		panic(err)
	}
	return other
}

// SmallPages makes listings come in pages of n.
func (s *Store) SmallPages(n int32) { s.pageSize = &n }

// CopyBlocks makes the service copy n bytes at once.
func (s *Store) CopyBlocks(n int64) { s.copyBlock = n }

// BlockSize returns the size of block n.
func (s *Store) BlockSize(n int) int64 { return s.blockSize(n) }

// Unreached judges an error that came without an answer.
func (s *Store) Unreached(err error) (stays bool, hint string) { return s.unreached(err) }

// URL returns the URL of the container.
func (s *Store) URL() string { return s.client.URL() }
