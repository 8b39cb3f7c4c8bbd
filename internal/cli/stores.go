package cli

import (
	"context"
	"errors"
	"runtime"

	"holdfast/internal/archive"
	"holdfast/internal/compress"
	"holdfast/internal/config"
	"holdfast/internal/store"
	"holdfast/internal/store/file"
)

// openStore opens the store that the settings name.
func (a *app) openStore(ctx context.Context, s *config.Settings) (store.Store, error) {
	if err := s.RequireStorage(); err != nil {
		return nil, err
	}
	return file.Open(s.Storage.Dir)
}

// openArchive opens the archive that the settings name.
func (a *app) openArchive(ctx context.Context, s *config.Settings) (*archive.Archive, error) {
	st, err := a.openStore(ctx, s)
	if err != nil {
		return nil, err
	}
	method, err1 := compress.ParseMethod(s.Compression.Method)
	level, err2 := compress.ParseLevel(s.Compression.Level)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	return archive.New(st, archive.Options{Method: method, Level: level, Parallel: runtime.GOMAXPROCS(0)}), nil
}
