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

// noStoreError says that nothing says where the archive is.
type noStoreError struct{}

func (noStoreError) Error() string { return "no archive is named" }
func (noStoreError) Hint() string {
	return "set WALG_FILE_PREFIX=/a/directory or WALG_S3_PREFIX=s3://bucket/path, in the environment or in ~/.walg.json"
}

// openStore opens the store that the settings name.
func (a *app) openStore(ctx context.Context, s *config.Settings) (store.Store, error) {
	if s.FilePrefix != "" {
		return file.Open(s.FilePrefix)
	}
	return nil, noStoreError{}
}

// openArchive opens the archive that the settings name.
func (a *app) openArchive(ctx context.Context, s *config.Settings) (*archive.Archive, error) {
	st, err := a.openStore(ctx, s)
	if err != nil {
		return nil, err
	}
	method, err1 := compress.ParseMethod(s.Compression)
	level, err2 := compress.ParseLevel(s.ZstdLevel)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	return archive.New(st, archive.Options{Method: method, Level: level, Parallel: runtime.GOMAXPROCS(0)}), nil
}
