package verify

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"

	"holdfast/internal/archive"
	"holdfast/internal/crc32c"
	"holdfast/internal/pg/page"
)

// stretchLen is how much of a part's content is read at once for a sample: some frames.
const stretchLen = 1 << 20

// sample reads stretches of a part that are drawn at random. Its frames are checked by their codec, and the pages in them by page_sums. A part that cannot
// be read in pieces is drawn as a whole.
func (c *cluster) sample(ctx context.Context, u *part) error {
	r := c.run
	a, tap := r.tapped()
	ranges, err := a.Ranges(ctx, c.name, u.Part)
	if err == nil && ranges == nil {
		if !r.chosen() {
			return nil
		}
		return r.whole(ctx, c, u)
	}
	var end int64
	for i := range u.Members {
		end = max(end, u.Members[i].Offset+u.Members[i].Size)
	}
	var sums []byte
	read := false
	for from := int64(0); from < end && err == nil; from += stretchLen {
		if !r.chosen() {
			continue
		}
		if !read {
			read = true
			if sums, err = c.allSums(ctx, u); err != nil {
				return err
			}
		}
		length := min(stretchLen, end-from)
		var body io.ReadCloser
		if body, err = ranges.Open(ctx, from, length); err != nil {
			break
		}
		b := make([]byte, length)
		_, err = io.ReadFull(body, b)
		if errClose := body.Close(); err == nil {
			err = errClose
		}
		if err != nil {
			err = &wrong{Finding{Offset: at(from), Text: fmt.Sprintf("bytes %d to %d of its content cannot be read: %s", from, from+length, plain(err, u.part.name))}}
			break
		}
		r.opened.Store(r.opened.Load() || a.HasKey())
		err = c.sampled(u, from, b, sums)
	}
	ok, err := r.judge(ctx, c.finding(partsDir+u.Part.Name), nil, tap, 1, err)
	if err != nil || ok {
		return err
	}
	return r.noted(ctx, c.target, u.part, false)
}

// whole verifies a part that was drawn as a whole.
func (r *run) whole(ctx context.Context, c *cluster, u *part) error {
	k := &check{cluster: c, u: u, buf: make([]byte, bufferLen), kept: map[string][]byte{}, in: &counting{}}
	f := c.finding(partsDir + u.Part.Name)
	ok, err := r.content(ctx, f, c.partAsPut(u), func(a *archive.Archive) (io.ReadCloser, error) { return a.OpenPart(ctx, c.name, u.Part) },
		func(in io.Reader) error {
			k.in.Reader = in
			err := k.members()
			if err == nil && len(k.found) > 0 {
				err = &wrong{k.found[0]}
			}
			return err
		})
	if err != nil {
		return err
	}
	return r.noted(ctx, c.target, u.part, ok)
}

// allSums reads the sums of a part's pages; nil where there are none that fit it.
func (c *cluster) allSums(ctx context.Context, u *part) ([]byte, error) {
	var pages int64
	for i := range u.Members {
		pages += int64(u.Members[i].Pages)
	}
	const most = 1 << 25
	if u.sums == nil || pages > most {
		return nil, nil
	}
	var all bytes.Buffer
	a, tap := c.run.tapped()
	body, err := a.OpenSums(ctx, c.name, u.Base)
	if err == nil {
		_, err = io.Copy(&all, io.LimitReader(body, 4*pages+1))
		if errClose := body.Close(); err == nil {
			err = errClose
		}
	}
	name := sumsDir + u.Base + ".crc32c"
	if ok, err := c.run.judge(ctx, c.finding(name), c.known(name), tap, int64(all.Len()), err); err != nil || !ok || int64(all.Len()) != 4*pages {
		return nil, err // how many there must be is judged where all is read
	}
	return all.Bytes(), nil
}

// sampled compares the whole pages in a stretch with their sums.
func (c *cluster) sampled(u *part, from int64, b, sums []byte) error {
	if sums == nil {
		return nil
	}
	var before int64 // pages of the members so far
	for i := range u.Members {
		m := &u.Members[i]
		if m.Pages == 0 {
			continue
		}
		head := m.Offset + m.Size - int64(m.Pages)*page.Size
		n := max(0, (from-head+page.Size-1)/page.Size)
		for ; n < int64(m.Pages); n++ {
			start := head + n*page.Size - from
			if start+page.Size > int64(len(b)) {
				break
			}
			if crc32c.Checksum(b[start:start+page.Size]) != binary.LittleEndian.Uint32(sums[4*(before+n):]) {
				return &wrong{Finding{Member: m.Path, Offset: at(from + start), Text: fmt.Sprintf("page %d of %s in it does not have the checksum that page_sums has", n, m.Path)}}
			}
		}
		before += int64(m.Pages)
	}
	return nil
}
