package backup

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"unicode/utf8"

	"holdfast/internal/crc32c"
	"holdfast/internal/pg/datadir"
	"holdfast/internal/pg/manifest"
)

// firstManifest is the version that sends a manifest.
const firstManifest = 13_00_00

// fileSum is what the server's manifest has to say of a file, 24 bytes of each.
type fileSum struct {
	path uint64 // hashed
	size int64
	crc  uint32 // CRC-32C
}

// passing sums up a file as it is read.
type passing struct {
	io.Reader
	sum fileSum
}

func (p *passing) Read(b []byte) (int, error) {
	n, err := p.Reader.Read(b)
	p.sum.size += int64(n)
	p.sum.crc = crc32c.Update(p.sum.crc, b[:n])
	return n, err
}

// putServersManifest stores the manifest that the server sends, and compares it with what came: it lists the files in the order in
// which they were sent.
func (w *wire) putServersManifest(ctx context.Context) error {
	r, tee := io.Pipe()
	compared := make(chan error, 1)
	go func() {
		err := w.compare(r)
		r.CloseWithError(err) // the other end hears of it
		compared <- err
	}()
	err := w.draft.PutServerManifest(ctx, io.TeeReader(w.stream, tee))
	if err == nil {
		err = tee.Close()
	} else {
		tee.CloseWithError(err)
	}
	if differs := <-compared; differs != nil && (err == nil || errors.Is(err, differs)) {
		return fmt.Errorf("compare what came with the server's manifest: %w", differs)
	}
	if err != nil {
		return err
	}
	if _, err := w.stream.Next(); err != io.EOF {
		if err == nil {
			err = errors.New("the server sends more behind its manifest")
		}
		return err
	}
	return nil
}

// compare reads the server's manifest and returns an error unless it is of what came.
func (w *wire) compare(r io.Reader) error {
	m, err := manifest.NewReader(r)
	if err != nil {
		return err
	}
	if id := m.SystemIdentifier(); id != 0 && id != w.facts.SystemIdentifier {
		return fmt.Errorf("it is of the cluster %d, the session is with %d", id, w.facts.SystemIdentifier)
	}
	came := w.sums
	for {
		f, err := m.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		got := fileSum{path: w.hash(f.Path)}
		switch held := w.held[f.Path]; {
		case held != nil:
			got = held.sum
		case leftOut(f.Path):
			continue
		case len(came) == 0 || came[0].path != got.path:
			return fmt.Errorf("it lists %s, which did not come then", f.Path)
		default:
			got, came = came[0], came[1:]
		}
		if f.Algorithm != manifest.CRC32C {
			return fmt.Errorf("it has a checksum %q of %s, not the CRC-32C that was asked for", f.Algorithm, f.Path)
		}
		if got.size != f.Size || string(manifest.ChecksumCRC32C(got.crc)) != string(f.Checksum) {
			return fmt.Errorf("%s came with %d bytes and the CRC-32C %x, the server says %d bytes and %x: something on the way changes what is sent",
				f.Path, got.size, manifest.ChecksumCRC32C(got.crc), f.Size, f.Checksum)
		}
	}
	if len(came) > 0 {
		return fmt.Errorf("%d files came that it does not list", len(came))
	}
	ranges := m.WALRanges()
	if last := ranges[len(ranges)-1]; last.Start != w.start.LSN {
		return fmt.Errorf("it says that WAL is needed from %s on, the backup starts at %s", last.Start, w.start.LSN)
	}
	return nil
}

// leftOut reports whether a file of the server's is not stored.
func leftOut(path string) bool {
	if !utf8.ValidString(path) {
		return true
	}
	_, _, _, why := datadir.ByName(path, false)
	return why != ""
}

func (w *wire) hash(path string) uint64 { return maphash.String(w.seed, path) }
