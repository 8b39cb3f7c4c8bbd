package budget

import (
	"context"
	"hash"
	"io"

	"golang.org/x/sync/errgroup"
)

// Cut returns a piece with the first size bytes of r, or as many as there are before r ends, which it reports. The piece has given
// back what it does not need. sum, where not nil, is that of Fill.
func (b *Budget) Cut(ctx context.Context, r io.Reader, size int64, sum hash.Hash) (p *Piece, ended bool, err error) {
	p, err = b.Take(ctx, size, 0)
	if err != nil {
		return nil, false, err
	}
	if ended, err = p.Fill(ctx, r, sum); err != nil {
		p.Release()
		return nil, false, err
	}
	p.Shrink()
	return p, ended, nil
}

// Way is how a stream goes out piece by piece. All fields are required.
type Way struct {
	Size   func(n int) int64                                    // bytes of piece n, counted from 0
	Sum    func() hash.Hash                                     // a new hash for a piece
	Send   func(ctx context.Context, n int, piece *Piece) error // sends a piece; Budget.Send releases it then
	AtOnce int                                                  // pieces being sent at the same time, at least 1
}

// Send sends first, which is piece 0, and what r still yields, and returns the number of pieces. The first failure ends it.
func (b *Budget) Send(ctx context.Context, first *Piece, r io.Reader, way Way) (n int, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(way.AtOnce)
	for p, ended := first, false; ; {
		full, number := p, n
		n++
		g.Go(func() error {
			defer full.Release()
			return way.Send(ctx, number, full)
		})
		if ended {
			return n, g.Wait()
		}
		if p, ended, err = b.Cut(ctx, r, way.Size(n), way.Sum()); err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			cancel(err) // those under way are of no use any more
			g.Wait()
			return n, err
		}
		if p.Size() == 0 { // r ended with the piece before
			p.Release()
			return n, g.Wait()
		}
	}
}
