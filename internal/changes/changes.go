// Package changes says which blocks of relations a stretch of WAL changed, so that a backup need read no others.
//
// There are two sources. PostgreSQL 17 and later summarizes its WAL itself, in pg_wal/summaries. And the archive has summaries of our own
// beside the segments; where one is missing the segment is read, from pg_wal or from the archive, and the summary stored for the next time.
// Either covers the whole stretch or is refused: a source that knows nothing of one segment knows nothing of any block.
//
// What is found may be more than the stretch changed, never less: summaries are of whole segments and of whole spans between checkpoints.
package changes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/blockset"
	"holdfast/internal/pg/server"
	"holdfast/internal/pg/wal"
)

// Source says where a Result comes from, in the word that a backup's sentinel keeps.
type Source string

// The sources, best first.
const (
	Server  Source = "summaries" // PostgreSQL's own WAL summaries
	Archive Source = "archive"   // summaries of the archived segments
)

// Stretch is the WAL between two positions, each of them the border of a record, as the start of a backup is.
type Stretch struct {
	From, To    wal.LSN      // from From to before To
	Path        catalog.Path // leads to the timeline of To; From lies on it
	SegmentSize wal.SegmentSize
	System      uint64 // identifier of the cluster; 0: of whichever
}

// check returns an error where s is none.
func (s Stretch) check() error {
	switch {
	case !s.SegmentSize.Valid():
		return fmt.Errorf("WAL segments of %d bytes", s.SegmentSize)
	case len(s.Path) == 0:
		return errors.New("no timeline is given")
	case s.From == 0 || s.From >= s.To:
		return fmt.Errorf("there is no WAL from %s to %s", s.From, s.To)
	case s.To < s.Path[len(s.Path)-1].Begin:
		return fmt.Errorf("%s is before timeline %d began at %s", s.To, s.Path.Timeline(), s.Path[len(s.Path)-1].Begin)
	}
	return nil
}

// Origin is what there is to learn from.
type Origin struct {
	Server  *server.Conn     // nil: none to ask
	DataDir string           // of the server, on this host; "" for none
	Archive *archive.Archive // nil: none

	// WAL returns segment no of timeline t as the server has it, up to the end of the stretch at least, where there is no DataDir;
	// fs.ErrNotExist where it has not. nil: it cannot be asked.
	WAL func(ctx context.Context, t wal.Timeline, no wal.SegmentNo) (io.ReadCloser, error)
}

// Options tunes the search. The zero value is ready to use.
type Options struct {
	// Patience is how long the server's summarizer may take to get to the stretch's end, and how long a segment may take to get into
	// the archive that is not in pg_wal; 0 means a minute.
	Patience time.Duration
	// ReadOnly says that summaries which the archive lacks are not stored.
	ReadOnly bool
	Logger   *slog.Logger // nil discards
}

func (o *Options) fill() {
	if o.Patience == 0 {
		o.Patience = time.Minute
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// Result is what a stretch of WAL changed.
type Result struct {
	Source   Source
	Blocks   *blockset.Set // and perhaps more than the stretch changed
	Read     int64         // bytes: of summaries as stored, and of segments
	Segments int           // read for want of a summary; 0 from Server
	Notes    []string      // what an operator may want to know
}

// Refusal says why a source does not tell.
type Refusal struct {
	Source Source
	Err    error
}

// NoneError says that no source tells which blocks changed.
type NoneError struct{ Refusals []Refusal }

func (e *NoneError) Error() string {
	reasons := make([]string, len(e.Refusals))
	for i, r := range e.Refusals {
		reasons[i] = fmt.Sprintf("%s: %v", r.Source, r.Err)
	}
	return "nothing says which blocks changed: " + strings.Join(reasons, "; ")
}

// Choose asks the sources, the best one first, and returns what the first one that knows says, with the reasons why better ones do not. Where
// none knows the error is a *NoneError.
func Choose(ctx context.Context, from Origin, s Stretch, o Options) (*Result, []Refusal, error) {
	var refused []Refusal
	for _, source := range []struct {
		name Source
		ask  func(context.Context, Origin, Stretch, Options) (*Result, error)
	}{{Server, FromServer}, {Archive, FromArchive}} {
		r, err := source.ask(ctx, from, s, o)
		if err == nil {
			return r, refused, nil
		}
		if ctx.Err() != nil {
			return nil, refused, context.Cause(ctx)
		}
		refused = append(refused, Refusal{source.name, err})
	}
	return nil, refused, &NoneError{refused}
}

// walDir is where a server keeps its WAL; "" without a data directory.
func (from Origin) walDir() string {
	if from.DataDir == "" {
		return ""
	}
	return filepath.Join(from.DataDir, "pg_wal")
}
