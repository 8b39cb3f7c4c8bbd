package walpush

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/atomicfile"
	"holdfast/internal/pg/wal"
)

// A marker says that a WAL file is in an archive.
type marker struct {
	Location string       `json:"location"` // hash of the archive's
	Size     int64        `json:"size"`
	Modified time.Time    `json:"modified"`
	CRC32C   uint32       `json:"crc32c"` // of the whole file
	Timeline wal.Timeline `json:"timeline"`
	Cluster  uint64       `json:"system_identifier"` // 0 where nothing says
}

func (p *pusher) marker(f *file) marker {
	return marker{p.location, f.size, f.modified.UTC(), f.sum, f.timeline, f.cluster}
}

func (p *pusher) markerPath(name string) string { return filepath.Join(p.state, "pushed", name) }

// storedEarly reports whether a marker says that this very file is in this very archive. A marker that is about anything
// else is removed; one that cannot be read is an error, since it may not be taken for either answer.
func (p *pusher) storedEarly(f *file) (bool, error) {
	b, err := readSmall(p.markerPath(f.name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look whether %s was stored ahead: %w", f.name, err)
	}
	var m marker
	if err := json.Unmarshal(b, &m); err != nil {
		p.warn("marker of a file stored ahead is damaged, storing the file again", "file", f.name, "error", err)
		p.forget(f.name)
		return false, nil
	}
	want := p.marker(f)
	want.CRC32C = m.CRC32C
	if m != want {
		p.forget(f.name)
		return false, nil
	}
	f.summed = true
	r, err := f.open()
	if err != nil {
		return false, err
	}
	defer r.Close() // only read: nothing to lose
	if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, make([]byte, 256<<10)); err != nil {
		return false, err
	}
	if f.sum != m.CRC32C {
		p.warn("file differs from what was stored ahead under its name", "file", f.name)
		p.forget(f.name)
		return false, nil
	}
	return true, nil
}

// mark leaves a marker: f was stored.
func (p *pusher) mark(f *file) error { return p.write(p.markerPath(f.name), p.marker(f)) }

// forget removes a marker. One that stays does no harm: it is verified, and swept when its file is gone.
func (p *pusher) forget(name string) {
	if err := os.Remove(p.markerPath(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		p.warn("cannot remove marker", "error", err)
	}
}

// sweep removes markers of files that PostgreSQL removed without asking for them, and what killed pushes left half written.
func (p *pusher) sweep() {
	moved, owed := p.moved(), false
	for _, dir := range []string{"pushed", "owner"} {
		entries, err := os.ReadDir(filepath.Join(p.state, dir))
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				p.warn("cannot look for stale markers", "error", err)
				owed = true
			}
			continue
		}
		for _, e := range entries {
			var stale bool
			switch {
			case dir == "pushed" && wal.KindOf(e.Name()) != wal.Other:
				there, err := exists(filepath.Join(p.dir, e.Name()))
				stale = err == nil && !there
				if moved && there {
					if stale, err = p.elsewhere(e.Name()); err != nil {
						p.warn("cannot have PostgreSQL ask for a file that was stored ahead in another archive", "file", e.Name(), "error", err)
						owed = true
					}
				}
			case strings.HasSuffix(e.Name(), atomicfile.Suffix): // unless it is being written
				info, err := e.Info()
				stale = err == nil && time.Since(info.ModTime()) > time.Hour
			}
			if stale {
				os.Remove(filepath.Join(p.state, dir, e.Name())) // if not now, then with the next push
			}
		}
	}
	if moved && !owed { // else the next push tries again
		if err := p.write(p.locationPath(), p.location); err != nil {
			p.warn("cannot note which archive files are stored in", "error", err)
		}
	}
}

func (p *pusher) locationPath() string { return filepath.Join(p.state, "location") }

// moved reports whether the last files were stored in another archive, as far as is known.
func (p *pusher) moved() bool {
	var last string
	b, err := readSmall(p.locationPath())
	return err != nil || json.Unmarshal(b, &last) != nil || last != p.location
}

// elsewhere reports whether the marker of a file for which PostgreSQL does not ask any more is of another archive. It is asked for again then, as long as it is there.
// An error says that it should be and is not.
func (p *pusher) elsewhere(name string) (bool, error) {
	status := filepath.Join(p.statusDir(), name)
	if done, err := exists(status + ".done"); err != nil || !done {
		return false, nil
	}
	b, err := readSmall(p.markerPath(name))
	var m marker
	if err != nil || json.Unmarshal(b, &m) != nil || m.Location == p.location {
		return false, nil
	}
	if err := os.Rename(status+".done", status+".ready"); err != nil {
		if errors.Is(err, fs.ErrNotExist) { // PostgreSQL has removed it
			err = nil
		}
		return false, err
	}
	p.warn("stored ahead in another archive: PostgreSQL will ask for it again", "file", name)
	return true, nil
}

// ownerAge is how long the cached answer counts for whose archive this is. It is asked again then, because an archive may
// change hands, but no answer is as good as the one that was had.
const ownerAge = time.Hour

// checkOwner returns nil when the archive is, or with this becomes, that of f's cluster.
func (p *pusher) checkOwner(ctx context.Context, a Archive, f *file) error {
	if f.cluster == 0 {
		return nil
	}
	path := filepath.Join(p.state, "owner", p.location)
	known, age := p.cachedOwner(path)
	if known == f.cluster && age >= 0 && age < ownerAge { // below 0: a clock was set back
		return nil
	}
	err := a.Claim(ctx, f.cluster, p.opts.Host, false)
	var foreign *archive.OwnerError
	switch {
	case err == nil:
		if err := p.write(path, owner{p.opts.Location, f.cluster}); err != nil {
			p.warn("cannot remember whose archive this is, the next push has to ask again", "error", err)
		}
		return nil
	case known == f.cluster && !errors.As(err, &foreign) && ctx.Err() == nil:
		p.warn("cannot ask again whose archive this is", "error", err)
		return nil
	}
	return err
}

// An owner is what an archive answered when it was asked whose it is.
type owner struct {
	Location string `json:"location"` // for people
	Cluster  uint64 `json:"system_identifier"`
}

// cachedOwner returns the cluster that owns the archive, and how long ago that was true; 0 where it is not known.
func (p *pusher) cachedOwner(path string) (cluster uint64, age time.Duration) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, 0
	}
	b, err := readSmall(path)
	if err != nil {
		return 0, 0
	}
	var o owner
	if json.Unmarshal(b, &o) != nil {
		return 0, 0
	}
	return o.Cluster, time.Since(info.ModTime())
}

// maxLocal bounds our own little files, in bytes.
const maxLocal = 64 << 10

func readSmall(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read: nothing to lose
	return io.ReadAll(io.LimitReader(f, maxLocal))
}

// write replaces one of our little files whole. A crash of the machine may cost us what is in it, which is then found out anew: to sync it would cost each segment
// as much as to store it. It is synced where PostgreSQL does not ask for files any more of which a marker alone tells where they are.
func (p *pusher) write(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	replace := atomicfile.WriteUnsynced
	if p.opts.ReadyRename {
		replace = atomicfile.Write
	}
	return replace(path, 0o600, func(w io.Writer) error {
		_, err := w.Write(b)
		return err
	})
}
