package cli

import (
	"context"
	"errors"
	"fmt"
	"runtime"

	"holdfast/internal/archive"
	"holdfast/internal/compress"
	"holdfast/internal/config"
	"holdfast/internal/store"
	"holdfast/internal/store/file"
	"holdfast/internal/store/meter"
	"holdfast/internal/store/retry"
	"holdfast/internal/store/s3"
	"holdfast/internal/store/throttle"
)

// bareStore opens the store that the settings name. Its connections, where it has such, are under limit; nil is none.
func (a *app) bareStore(ctx context.Context, s *config.Settings, limit *throttle.Limit) (store.Store, error) {
	if err := s.RequireStorage(); err != nil {
		return nil, err
	}
	if s.Storage.Dir != "" {
		return file.Open(s.Storage.Dir)
	}
	o := s3Options(s)
	o.Logger = a.log
	if limit != nil {
		o.Wrap = limit.Conn
	}
	return s3.New(ctx, o)
}

// sweep removes what writers that died long ago left unfinished in the store. Nobody reads that, so failing here fails nothing.
func (a *app) sweep(ctx context.Context, s *config.Settings) {
	st, err := a.bareStore(ctx, s, nil)
	if err != nil {
		a.log.Warn(fmt.Sprintf("what broken-off pushes left was not looked for: %v", err))
		return
	}
	sweeper, ok := st.(store.Sweeper)
	if !ok {
		return
	}
	removed, err := sweeper.Sweep(ctx)
	if len(removed) > 0 {
		a.log.Info(fmt.Sprintf("removed %d unfinished files that broken-off pushes had left", len(removed)))
	}
	if err != nil {
		a.log.Warn(fmt.Sprintf("what broken-off pushes left was not all removed: %v", err))
	}
}

// openStore opens the store that the settings name: its calls counted, slowed to the limit of the network, and tried again when
// what failed may pass.
func (a *app) openStore(ctx context.Context, s *config.Settings) (store.Store, error) {
	var limit *throttle.Limit
	if s.Storage.NetworkRate > 0 {
		limit = throttle.New(s.Storage.NetworkRate)
	}
	st, err := a.bareStore(ctx, s, limit)
	if err != nil {
		return nil, err
	}
	st = meter.New(st, &a.traffic)
	if s.Storage.Dir == "" {
		return st, nil // S3 tries again by itself, request by request and as often as it was told to; its connections have the limit
	}
	if limit != nil {
		st = limit.Store(st)
	}
	return retry.New(st, retry.Options{Logger: a.log}), nil
}

// tellTraffic logs what went to and came from the store, for those who look for where time goes.
func (a *app) tellTraffic() {
	if a.log == nil {
		return
	}
	c := a.traffic.Read()
	for _, k := range []struct {
		kind string
		op   meter.Op
	}{{"open", c.Open}, {"put", c.Put}, {"stat", c.Stat}, {"list", c.List}, {"delete", c.Delete}} {
		if k.op.Calls > 0 {
			a.log.Debug("store: "+k.kind, "calls", k.op.Calls, "failed", k.op.Failed, "objects", k.op.Objects, "time", k.op.Time)
		}
	}
	if c.Read+c.Written > 0 {
		a.log.Debug("store: bytes", "read", c.Read, "written", c.Written)
	}
}

// s3Options says which bucket the settings name, and how to use it. Parts on their way get half of the memory.
func s3Options(s *config.Settings) s3.Options {
	b := s.Storage.S3
	retries := b.Retries
	if retries == 0 {
		retries = -1 // none; 0 would be the store's own default
	}
	return s3.Options{
		Bucket: b.Bucket, Prefix: b.Path,
		Endpoint: b.Endpoint, Region: b.Region, PathStyle: b.PathStyle, DualStack: b.DualStack, CAFile: b.CACert, ListV1: b.ListV1,
		AccessKey: b.AccessKeyID, SecretKey: b.SecretAccessKey, SessionToken: b.SessionToken,
		RoleARN: b.RoleARN, RoleSessionName: b.RoleSessionName,
		Profile: b.Profile, ConfigFile: b.ConfigFile, CredentialsFile: b.CredentialsFile,
		StorageClass: b.StorageClass, SSE: b.SSE, SSEKMSKeyID: b.SSEKMSKeyID, SSECKey: b.SSECustomerKey,
		ObjectLockMode: b.LockMode, ObjectLockRetention: b.LockTime,
		PartSize: b.PartSize, Concurrency: b.Parts, Buffer: max(b.PartSize, s.MemoryBudget/2), DeleteBatch: b.DeleteBatch,
		MaxRetries: retries, Disable100Continue: b.NoContinue, Headers: b.Headers,
	}
}

// openArchive opens the archive that the settings name.
func (a *app) openArchive(ctx context.Context, s *config.Settings) (*archive.Archive, error) {
	st, err := a.openStore(ctx, s)
	if err != nil {
		return nil, err
	}
	o, err := archiveOptions(s)
	if err != nil {
		return nil, err
	}
	o.Parallel = runtime.GOMAXPROCS(0)
	return archive.New(st, o), nil
}

// archiveOptions says how the settings want new objects compressed, on one core.
func archiveOptions(s *config.Settings) (archive.Options, error) {
	method, err1 := compress.ParseMethod(s.Compression.Method)
	level, err2 := compress.ParseLevel(s.Compression.Level)
	return archive.Options{Method: method, Level: level, Parallel: 1}, errors.Join(err1, err2)
}
