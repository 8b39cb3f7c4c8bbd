package sftp

import (
	"context"
)

// Connections returns the number of connections that are open.
func (s *Store) Connections() int {
	s.pool.mu.Lock()
	defer s.pool.mu.Unlock()
	return len(s.pool.conns)
}

// Has reports whether the server offers an extension.
func (s *Store) Has(ctx context.Context, extension string) (has bool, err error) {
	err = s.do(ctx, "connect", func(c *conn) error { has = c.has(extension); return nil })
	return has, err
}
