package restore

import (
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"holdfast/internal/pg/control"
	"holdfast/internal/pg/page"
)

// usualSegment is how many blocks a file of a relation has at most, unless PostgreSQL was built otherwise: 1 GiB.
const usualSegment = 131072

// pages counts the pages of relations that are written without a manifest to check them against. In a cluster with
// checksums theirs are looked at instead, though one that does not hold need not mean damage: a page that was being written while
// the backup read it is put right by the WAL.
type pages struct {
	off     bool // nothing is looked at
	segment int64

	checked atomic.Int64
	bad     atomic.Int64

	mu    sync.Mutex
	files []badFile // the first maxCorruptNotes of them
	more  int
}

type badFile struct {
	path  string
	first int64 // block within the file
	pages int64
}

// setUp decides by the backup's control file; nil where that is not known yet, if it comes at all.
func (s *pages) setUp(c *control.Data, comes bool) {
	s.segment, s.off = usualSegment, !comes
	if c != nil {
		s.off = c.ChecksumVersion == 0 || c.BlockSize != page.Size
		s.segment = int64(c.BlocksPerSegment)
	}
}

// settle drops what was counted where the control file, which came last, says that it means nothing.
func (s *pages) settle(c *control.Data) {
	if c.ChecksumVersion == 0 || c.BlockSize != page.Size || int64(c.BlocksPerSegment) != s.segment {
		s.off = true
	}
}

// segmentOf returns which segment of a relation's fork a file is; false for files without pages.
func segmentOf(path string) (int64, bool) {
	dir, name, ok := cutLast(path)
	if !ok || dir != "global" && !strings.HasPrefix(dir, "base/") && !strings.HasPrefix(dir, "pg_tblspc/") {
		return 0, false
	}
	name, suffix, split := strings.Cut(name, ".")
	segment := int64(0)
	if split {
		n, err := strconv.ParseUint(suffix, 10, 15)
		if err != nil {
			return 0, false
		}
		segment = int64(n)
	}
	number, fork, forked := strings.Cut(name, "_")
	if _, err := strconv.ParseUint(number, 10, 32); err != nil {
		return 0, false
	}
	return segment, !forked || fork == "fsm" || fork == "vm" || fork == "init"
}

func cutLast(path string) (dir, name string, ok bool) {
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return "", path, false
	}
	return path[:i], path[i+1:], true
}

// A pageCheck looks at the pages of one file. Its zero value looks at nothing.
type pageCheck struct {
	of    *pages
	path  string
	base  uint32 // number of the file's first block in the fork
	first int64  // of the bad ones
	bad   int64
}

func (s *pages) check(path string) pageCheck {
	segment, ok := segmentOf(path)
	if !ok || s.off {
		return pageCheck{}
	}
	return pageCheck{of: s, path: path, base: uint32(segment * s.segment)}
}

// look takes pages that were written from block on. What is no whole page is passed over.
func (c *pageCheck) look(b []byte, block int64) {
	if c.of == nil {
		return
	}
	c.of.checked.Add(int64(len(b) / page.Size))
	for {
		i := page.Verify(b, c.base+uint32(block))
		if i < 0 {
			return
		}
		if c.bad == 0 {
			c.first = block + int64(i)
		}
		c.bad++
		block += int64(i) + 1
		b = b[(i+1)*page.Size:]
	}
}

// done enters what was found.
func (c *pageCheck) done() {
	if c.bad == 0 {
		return
	}
	c.of.bad.Add(c.bad)
	c.of.mu.Lock()
	defer c.of.mu.Unlock()
	if len(c.of.files) < maxCorruptNotes {
		c.of.files = append(c.of.files, badFile{c.path, c.first, c.bad})
	} else {
		c.of.more++
	}
}

// tell says in notes what was found.
func (s *pages) tell(n *notes) {
	if s.off || s.bad.Load() == 0 {
		return
	}
	for _, f := range s.files {
		n.add("%s: the checksums of %d pages do not hold, the first in block %d", f.path, f.pages, f.first)
	}
	if s.more > 0 {
		n.add("and of pages in %d further files", s.more)
	}
	n.add("checksums do not hold in %d of %d pages. Replaying the WAL puts those right that were being written while the backup was taken; "+
		"others were damaged before the backup, or in the archive: once PostgreSQL has recovered look with pg_amcheck, or stop it and use pg_checksums --check",
		s.bad.Load(), s.checked.Load())
}
