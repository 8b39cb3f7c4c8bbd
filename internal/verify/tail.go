package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
	"holdfast/internal/pg/walrec"
)

// tails verifies the segments of which there are pieces. What is found of them is not recorded: they are others the next moment.
func (r *run) tails(ctx context.Context) error {
	if r.wal == nil || r.request.NoKey {
		return nil
	}
	r.opts.Progress.phase.Store("pieces of WAL")
	for _, l := range r.wal.timelines {
		for i := range l.tails {
			if err := r.tail(ctx, l, &l.tails[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// tail verifies one segment in pieces: each piece as it is put, those that overlap against one another, the records in them, and the whole segment where that is
// archived too.
func (r *run) tail(ctx context.Context, l *timeline, p *catalog.Tail) error {
	pieces, err := r.archive.TailPieces(ctx, p.Name)
	if err != nil || len(pieces) == 0 { // they went since
		return err
	}
	sound := true
	for _, piece := range pieces {
		ok, err := r.piece(ctx, p, piece)
		if err != nil {
			return err
		}
		sound = sound && ok
	}
	now, err := r.archive.Tail(ctx, p.Name)
	if err != nil || !sound {
		return err
	}
	if now.Held < now.Top && !p.Whole {
		r.add(Finding{Severity: Damage, Kind: Missing, Object: archive.TailDir + p.Name + "/", LSN: (r.wal.size.Start(p.Segment) + wal.LSN(now.Held)).String(), Offset: at(now.Held),
			Text: fmt.Sprintf("pieces are missing: those that are there hold the segment up to %d bytes, and again behind that, up to %d", now.Held, now.Top)})
	}
	return r.image(ctx, l, p, pieces)
}

// piece reads one piece: it must have as many bytes as its name says.
func (r *run) piece(ctx context.Context, p *catalog.Tail, piece archive.TailPiece) (ok bool, err error) {
	a, t := r.tapped()
	body, err := a.OpenObject(ctx, piece.Object)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil // a larger one, or the whole segment, has come for it
	}
	in := &counting{}
	if err == nil {
		in.Reader = body
		_, err = io.Copy(io.Discard, struct{ io.Reader }{in})
		if want := piece.End - piece.Start; err == nil && in.n != want {
			err = &wrong{Finding{Kind: Size, Text: fmt.Sprintf("it holds %d bytes of the segment, and its name says %d", in.n, want)}}
		}
		err = errors.Join(err, body.Close())
	}
	f := Finding{Object: piece.Object, LSN: (r.wal.size.Start(p.Segment) + wal.LSN(piece.Start)).String(), soft: p.Whole}
	return r.judge(ctx, f, nil, t, in.n, err)
}

// image reads what the pieces hold together.
func (r *run) image(ctx context.Context, l *timeline, p *catalog.Tail, pieces []archive.TailPiece) error {
	f := Finding{Object: archive.TailDir + p.Name + "/", LSN: r.wal.size.Start(p.Segment).String(), soft: p.Whole}
	if p.Held > 0 {
		ok, err := r.together(ctx, f, p.Name, func(image io.Reader, held int64) error {
			return r.records(l, p, image, held)
		})
		if err != nil || !ok {
			return err
		}
	}
	slices.SortFunc(pieces, func(x, y archive.TailPiece) int { return int(x.Start - y.Start) })
	var end int64 // up to which those before hold it
	for _, piece := range pieces {
		if piece.Start < min(end, p.Held) { // it may differ from those
			if ok, err := r.alike(ctx, f, p.Name, piece.Start, min(piece.End, p.Held), func(a *archive.Archive) (io.ReadCloser, error) {
				return a.OpenObject(ctx, piece.Object)
			}, "pieces that overlap do not hold the same: "+piece.Object+" differs from the others"); err != nil || !ok {
				return err
			}
		}
		end = max(end, piece.End)
	}
	if !p.Whole {
		return nil
	}
	_, err := r.alike(ctx, f, p.Name, 0, p.Held, func(a *archive.Archive) (io.ReadCloser, error) { return a.OpenWholeWAL(ctx, p.Name) },
		"they hold something else than the segment that is archived whole: two servers have written this timeline")
	return err
}

// together reads a segment by its pieces, from its first byte on, and has do look at it.
func (r *run) together(ctx context.Context, f Finding, name string, do func(image io.Reader, held int64) error) (ok bool, err error) {
	a, t := r.tapped()
	body, err := a.OpenPieces(ctx, name)
	if errors.Is(err, fs.ErrNotExist) || archive.IsVanished(err) {
		return true, nil
	}
	in := &counting{}
	if err == nil {
		in.Reader = body
		err = do(in, body.Held())
		err = errors.Join(err, body.Close())
	}
	if archive.IsVanished(err) {
		return true, nil
	}
	return r.judge(ctx, f, nil, t, in.n, err)
}

// alike compares a segment in pieces, from one of its bytes to before another, with what open yields.
func (r *run) alike(ctx context.Context, f Finding, name string, from, to int64, open func(*archive.Archive) (io.ReadCloser, error), text string) (ok bool, err error) {
	return r.together(ctx, f, name, func(image io.Reader, held int64) error {
		if to = min(to, held); from >= to {
			return nil
		}
		other, err := open(r.archive)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it went since
		}
		if err != nil {
			return &unsure{"it could not be compared: " + err.Error()}
		}
		defer other.Close() // only read
		if _, err := io.CopyN(io.Discard, image, from); err != nil {
			return err
		}
		where, err := differ(io.LimitReader(image, to-from), io.LimitReader(other, to-from))
		if err != nil || where < 0 {
			return err
		}
		return &wrong{Finding{Kind: Foreign, Offset: at(from + where), Text: text}}
	})
}

// differ returns where two streams differ first; -1 where they do not.
func differ(x, y io.Reader) (int64, error) {
	const chunk = 64 << 10
	a, b := make([]byte, chunk), make([]byte, chunk)
	for done := int64(0); ; done += chunk {
		n, err := io.ReadFull(x, a)
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return 0, err
		}
		m, err := io.ReadFull(y, b)
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return 0, &unsure{"it could not be compared: " + err.Error()}
		}
		if bytes.Equal(a[:n], b[:m]) {
			if n < chunk {
				return -1, nil
			}
			continue
		}
		i := 0
		for i < min(n, m) && a[i] == b[i] {
			i++
		}
		return done + int64(i), nil
	}
}

// records looks at the records of a segment of which held bytes are there.
func (r *run) records(l *timeline, p *catalog.Tail, image io.Reader, held int64) error {
	start := r.wal.size.Start(p.Segment)
	reader, err := walrec.NewReader(image, start+wal.LSN(held))
	if err != nil {
		return err
	}
	h := reader.Header()
	switch {
	case h.SegmentSize != r.wal.size || h.Address != start:
		return &wrong{Finding{Kind: Foreign, Offset: at(0), Text: fmt.Sprintf("it is the segment that begins at %s, of %d bytes", h.Address, h.SegmentSize)}}
	case len(r.wal.systems) > 0 && !slices.Contains(r.wal.systems, h.SystemIdentifier):
		return &wrong{Finding{Kind: Foreign, Offset: at(0), Text: fmt.Sprintf("it is of the cluster %d, and not of this one", h.SystemIdentifier)}}
	case h.Timeline > l.t:
		return &wrong{Finding{Kind: Foreign, Offset: at(0), Text: fmt.Sprintf("it is of timeline %d", uint32(h.Timeline))}}
	}
	for {
		if _, err := reader.Next(); err == io.EOF {
			return nil
		} else if err != nil {
			return r.fault(err, start)
		}
	}
}
