package chain

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"holdfast/internal/crc32c"
	"holdfast/internal/increment"
	"holdfast/internal/pg/page"
)

// Sums are the CRC-32C of the pages in a part.
type Sums struct {
	// Err says why there are none that could be used: there is no such object, or it does not fit the manifest. Contents can be checked as a whole then.
	Err error

	all []uint32
}

// Sums reads the sums of a part's pages, and compares what is to be taken of it with the manifest's sums of whole contents. Where the store or the
// key does not do what it should that is an error.
func (c *Chain) Sums(ctx context.Context, p *Part) (*Sums, error) {
	s, err := c.readSums(ctx, p)
	if err != nil || s.Err != nil {
		return s, err
	}
	for i := range p.Takes {
		t := &p.Takes[i]
		if t.Pages == 0 {
			continue
		}
		sum := uint32(0)
		if t.Increment != nil {
			stored, err := t.Member.Blocks()
			if err != nil {
				return nil, err
			}
			h := increment.Header{FileSize: t.Increment.Size, Blocks: stored.ToArray()}
			sum = crc32c.Checksum(h.Append(nil))
		}
		for _, one := range s.Of(t) {
			sum = page.AppendCRC(sum, one)
		}
		if sum != t.CRC {
			return &Sums{Err: fmt.Errorf("the sums of the pages in %s of %s do not fit that of %s as a whole", p.Name, p.Backup, t.Path)}, nil
		}
	}
	return s, nil
}

// maxPages bounds the pages of a part whose sums are read: 256 GiB of them, whose sums take 128 MiB.
const maxPages = 1 << 25

// readSums reads the sums of all pages in a part.
func (c *Chain) readSums(ctx context.Context, p *Part) (*Sums, error) {
	useless := func(why string) (*Sums, error) {
		return &Sums{Err: fmt.Errorf("the sums of the pages in %s of %s %s", p.Name, p.Backup, why)}, nil
	}
	if p.pages > maxPages {
		return useless("are too many")
	}
	body, err := c.archive.OpenSums(ctx, p.Backup, p.Base)
	if errors.Is(err, fs.ErrNotExist) {
		return useless("are not there")
	}
	if err != nil {
		return nil, err
	}
	defer body.Close() // only read
	s := &Sums{}       // grows as content comes: what the manifest says of pages is not trusted
	buf := make([]byte, 64<<10)
	for left := 4 * p.pages; left > 0; {
		b := buf[:min(left, int64(len(buf)))]
		if _, err := io.ReadFull(body, b); err == io.EOF || err == io.ErrUnexpectedEOF {
			return useless("end too early")
		} else if err != nil {
			return nil, err
		}
		for i := 0; i < len(b); i += 4 {
			s.all = append(s.all, binary.LittleEndian.Uint32(b[i:]))
		}
		left -= int64(len(b))
	}
	if n, err := io.ReadFull(body, buf[:1]); n > 0 {
		return useless("are more than it has pages")
	} else if err != io.EOF {
		return nil, err
	}
	return s, nil
}

// Of returns the sums of a take's pages, in the order of the member's content; nil where there are none.
func (s *Sums) Of(t *Take) []uint32 {
	if s == nil || s.all == nil || t.Pages == 0 {
		return nil
	}
	return s.all[t.before:][:t.Pages]
}
