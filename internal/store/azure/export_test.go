package azure

import "context"

// CreateContainer makes the container of s.
func (s *Store) CreateContainer(ctx context.Context) error {
	_, err := s.client.Create(ctx, nil)
	return err
}

// SmallPages makes listings come in pages of n.
func (s *Store) SmallPages(n int32) { s.pageSize = &n }

// CopyBlocks makes the service copy n bytes at once.
func (s *Store) CopyBlocks(n int64) { s.copyBlock = n }

// BlockSize returns the size of block n.
func (s *Store) BlockSize(n int) int64 { return s.blockSize(n) }

// Unreached judges an error that came without an answer.
func (s *Store) Unreached(err error) (stays bool, hint string) { return s.unreached(err) }

// Endpoint returns the URL of the container.
func (s *Store) Endpoint() string { return s.client.URL() }
