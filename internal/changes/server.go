package changes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"holdfast/internal/pg/blockset"
	"holdfast/internal/pg/server"
	"holdfast/internal/pg/walsum"
)

// FromServer merges the WAL summaries that the server has made of s, once its summarizer got to the end of it. They are read as files: the data
// directory must be on this host.
func FromServer(ctx context.Context, from Origin, s Stretch, o Options) (*Result, error) {
	o.fill()
	if err := s.check(); err != nil {
		return nil, err
	}
	if from.Server == nil || from.DataDir == "" {
		return nil, errors.New("there is no server on this host")
	}
	switch err := from.Server.WaitSummaries(ctx, s.To, o.Patience); {
	case errors.Is(err, server.ErrNoSummaries):
		return nil, fmt.Errorf("%w (summarize_wal = on, PostgreSQL 17 and later)", server.ErrNoSummaries)
	case err != nil:
		return nil, err
	}
	dir := os.DirFS(filepath.Join(from.DataDir, filepath.FromSlash(walsum.Dir)))
	blocks, files, err := s.load(ctx, dir)
	if err != nil {
		return nil, err
	}
	r := &Result{Source: Server, Blocks: blocks}
	for _, f := range files {
		if info, err := fs.Stat(dir, f.Name()); err == nil { // it may be gone already, and then counts for nothing
			r.Read += info.Size()
		}
	}
	return r, nil
}

// load reads the summaries that cover s. The server may put one in the place of others, or remove an old one, while they are read.
func (s Stretch) load(ctx context.Context, dir fs.FS) (*blockset.Set, []walsum.Stretch, error) {
	const attempts = 3
	for i := 1; ; i++ {
		blocks, files, err := walsum.Load(dir, s.legs())
		if i == attempts || ctx.Err() != nil || !errors.Is(err, fs.ErrNotExist) {
			if err != nil {
				err = fmt.Errorf("WAL summaries of the server: %w", err)
			}
			return blocks, files, err
		}
	}
}

// legs returns s by timelines.
func (s Stretch) legs() []walsum.Stretch {
	var legs []walsum.Stretch
	for _, l := range s.Path {
		leg := walsum.Stretch{Timeline: l.Timeline, From: max(l.Begin, s.From), To: s.To}
		if l.End != 0 {
			leg.To = min(l.End, s.To)
		}
		if leg.From < leg.To {
			legs = append(legs, leg)
		}
	}
	return legs
}
