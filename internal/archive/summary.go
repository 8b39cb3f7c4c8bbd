package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"

	"holdfast/internal/compress"
	"holdfast/internal/pg/wal"
	"holdfast/internal/pg/walrec"
	"holdfast/internal/store"
)

// SummaryDir is where summaries of WAL segments lie, each as <timeline>/<segment>.zst: apart from the segments, whose listings then take no longer.
const SummaryDir = "holdfast/summaries/"

func summaryDir(t wal.Timeline) string { return SummaryDir + t.String() + "/" }

// summaryName names the object that holds the summary of a segment.
func summaryName(segment string) string {
	return SummaryDir + segment[:8] + "/" + segment + compress.Zstd.Extension()
}

// maxSummary bounds an encoded summary in bytes. A block takes less of it than its record takes of the segment.
func maxSummary(size wal.SegmentSize) int64 { return 4*walrec.MaxFragment + int64(size) }

// checkSummary returns an error where s cannot be the summary of a segment.
func checkSummary(segment string, s *walrec.Summary) error {
	t, no, err := s.SegmentSize.ParseSegment(segment)
	switch start := s.SegmentSize.Start(no); {
	case err != nil:
		return err
	case s.Start != start || s.End != start+wal.LSN(s.SegmentSize):
		return fmt.Errorf("it is of the WAL from %s to %s", s.Start, s.End)
	case s.Timeline > t: // it may be lower: the segment in which a timeline begins starts with a copy
		return fmt.Errorf("it is of timeline %d", s.Timeline)
	}
	return nil
}

// PutSummary stores the summary of an archived segment. It must have been made of the content that is archived under that name: a summary
// that is there already and says otherwise is of a segment that was moved aside since, and is replaced.
func (a *Archive) PutSummary(ctx context.Context, segment string, s *walrec.Summary) error {
	content := s.Encode()
	err := checkSummary(segment, s)
	if err == nil && int64(len(content)) > maxSummary(s.SegmentSize) {
		err = fmt.Errorf("it has %d bytes", len(content))
	}
	if err != nil {
		return fmt.Errorf("store the summary of %s: %w", segment, err)
	}
	put := func(put func(name string, r io.Reader) error) error {
		body, _ := a.packed(bytes.NewReader(content), compress.Zstd, 1)
		defer body.Close() // gives its buffers back
		return put(summaryName(segment), body)
	}
	err = put(func(name string, r io.Reader) error { return store.PutIfAbsent(ctx, a.store, name, r) })
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	if !a.opts.WriteOnly {
		if there, _, err := a.readSummary(ctx, segment, s.SegmentSize); err == nil && bytes.Equal(there, content) {
			return nil
		}
	}
	err = put(func(name string, r io.Reader) error { return a.store.Put(ctx, name, r) })
	if err != nil {
		err = fmt.Errorf("replace the summary of %s that is there: %w", segment, err)
	}
	return err
}

// OpenSummary reads the summary of a segment, and says how many bytes that took from the store. A segment without one is fs.ErrNotExist.
func (a *Archive) OpenSummary(ctx context.Context, segment string, size wal.SegmentSize) (s *walrec.Summary, stored int64, err error) {
	b, stored, err := a.readSummary(ctx, segment, size)
	if err != nil {
		return nil, stored, err
	}
	if s, err = walrec.Decode(b); err == nil {
		err = checkSummary(segment, s)
	}
	if err == nil && s.SegmentSize != size {
		err = fmt.Errorf("it is of a segment of %d bytes", s.SegmentSize)
	}
	if err != nil {
		return nil, stored, fmt.Errorf("read %s: %w", summaryName(segment), err)
	}
	return s, stored, nil
}

// readSummary reads the encoded summary of a segment.
func (a *Archive) readSummary(ctx context.Context, segment string, size wal.SegmentSize) (b []byte, stored int64, err error) {
	if !wal.IsSegment(segment) {
		return nil, 0, fmt.Errorf("%q is not the name of a WAL segment", segment)
	}
	name := summaryName(segment)
	raw, err := a.store.Open(ctx, name)
	if err != nil {
		return nil, 0, err
	}
	counted := &counter{ReadCloser: raw}
	r := a.unpacked(counted, name, compress.Zstd)
	defer r.Close() // only read
	max := maxSummary(size)
	b, err = io.ReadAll(io.LimitReader(r, max+1))
	if err == nil && int64(len(b)) > max {
		err = fmt.Errorf("read %s: larger than the %d bytes a summary may have", name, max)
	}
	return b, counted.n.Load(), err
}

// Summaries yields, ascending, which of the segments first to last of timeline t have a summary.
func (a *Archive) Summaries(ctx context.Context, t wal.Timeline, first, last wal.SegmentNo, size wal.SegmentSize) iter.Seq2[wal.SegmentNo, error] {
	return func(yield func(wal.SegmentNo, error) bool) {
		dir := summaryDir(t)
		for o, err := range a.store.List(ctx, dir, dir+size.Name(t, first)) { // the segment's name sorts before its object's
			if err != nil {
				yield(0, fmt.Errorf("list summaries of WAL: %w", err))
				return
			}
			timeline, no, err := size.ParseSegment(WALName(o.Name))
			if err != nil || o.IsDir() || timeline != t || no < first || o.Name != summaryName(size.Name(t, no)) {
				continue
			}
			if no > last || !yield(no, nil) {
				return
			}
		}
	}
}
