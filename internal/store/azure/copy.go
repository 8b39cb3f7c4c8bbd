package azure

import (
	"context"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"
	"golang.org/x/sync/errgroup"

	"holdfast/internal/store"
	"holdfast/internal/store/stall"
)

// copyBlock is the size of the pieces that the service copies at once, small enough to be done before that reads as a stall.
const copyBlock = 64 << 20

// Copy implements store.Copier. The service copies piece by piece while we wait for it, and the object appears when all are there. (Its
// Copy Blob shows a blob that is not filled yet, and goes on after its answer.) With a SAS the service reads by that, so it must allow to.
func (s *Store) Copy(ctx context.Context, from, to string) error {
	if err := store.Check("copy to", to); err != nil {
		return err
	}
	source, err := s.properties(ctx, "copy", from)
	if err != nil {
		return err
	}
	return s.fail(ctx, "copy to", to, s.copy(ctx, from, to, source))
}

func (s *Store) copy(ctx context.Context, from, to string, source blob.GetPropertiesResponse) error {
	u := s.newUpload(to)
	size := value(source.ContentLength)
	step := max(s.copyBlock, (size+maxBlocks-1)/maxBlocks)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(s.o.Concurrency)
	for at := int64(0); at < size; at += step {
		id := u.id(len(u.ids))
		u.ids = append(u.ids, id)
		g.Go(func() error {
			in := &blockblob.StageBlockFromURLOptions{
				Range:                          blob.HTTPRange{Offset: at, Count: min(step, size-at)},
				SourceModifiedAccessConditions: &blob.SourceModifiedAccessConditions{SourceIfMatch: source.ETag},
			}
			where, err := s.sourceURL(gctx, from, in)
			if err != nil {
				return err
			}
			_, err = u.client.StageBlockFromURL(stall.Patient(gctx), id, where, in)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return u.commit(ctx, false)
}

// sourceURL returns the URL from which the service is to read an object, with what lets it do so in the URL or in.
func (s *Store) sourceURL(ctx context.Context, name string, in *blockblob.StageBlockFromURLOptions) (string, error) {
	where := s.client.NewBlobClient(s.blobName(name)).URL() // with a SAS that is in it
	switch {
	case s.key != nil:
		until := time.Now().Add(12 * time.Hour)
		q, err := sas.BlobSignatureValues{
			ContainerName: s.o.Container, BlobName: s.blobName(name), ExpiryTime: until.UTC(), Permissions: (&sas.BlobPermissions{Read: true}).String(),
		}.SignWithSharedKey(s.key)
		if err != nil {
			return "", err
		}
		return where + "?" + q.Encode(), nil
	case s.token != nil:
		token, err := s.token.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{"https://storage.azure.com/.default"}})
		if err != nil {
			return "", err
		}
		bearer := "Bearer " + token.Token
		in.CopySourceAuthorization = &bearer
	}
	return where, nil
}
