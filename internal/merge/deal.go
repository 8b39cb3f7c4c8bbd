package merge

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"holdfast/internal/chain"
	"holdfast/internal/pg/page"
	"holdfast/internal/tarpart"
)

// A hand is what becomes of a part.
type hand struct {
	part   *chain.Part
	copied bool          // as it is stored
	homes  []*chain.Take // each completes a file: all that is missing of it is here, and newer parts had the rest
	pieces []*chain.Take // of files that older backups complete
	late   []int         // directories and links that the part has, where it is copied
}

// A dealer goes through the parts of a chain, the newest first, and says what becomes of each. A file is made where its last pages are found: all
// else of it is known by then.
type dealer struct {
	chain *chain.Chain
	left  []uint32 // of each file: pages that are still to be found, where some were
	found int      // files that were completed, and what else there is
	// late are the directories and links, which are held back: only the newest backup counts for them, and older parts that can be copied may have them too.
	late map[int]*tarpart.Member
}

func newDealer(c *chain.Chain) *dealer {
	return &dealer{chain: c, left: make([]uint32, c.Len()), late: map[int]*tarpart.Member{}}
}

func (d *dealer) deal(p *chain.Part) (*hand, error) {
	h := &hand{part: p}
	same := 0 // members that are what the newest backup has
	for i := range p.Takes {
		t := &p.Takes[i]
		switch {
		case t.Type != tarpart.File:
			d.late[t.File] = t.Member
			d.found++
			continue
		case !d.completes(t):
			h.pieces = append(h.pieces, t)
			continue
		}
		h.homes = append(h.homes, t)
		d.found++
		if t.Blocks == nil && t.Increment == nil && d.same(t) {
			same++
		}
	}
	if special := p.IsControl() || p.IsLabel(); special || p.Level > 0 {
		for i := range p.Members {
			if m := &p.Members[i]; m.Type != tarpart.File {
				n := d.chain.Find(m.Path)
				if now := d.late[n]; now != nil && now.Type == m.Type && now.Perm() == m.Perm() && now.Link == m.Link {
					h.late = append(h.late, n)
					same++
				}
			}
		}
		if special && same != len(p.Members) {
			return nil, fmt.Errorf("%s of %s holds what does not belong there", p.Name, p.Backup)
		}
	}
	if h.copied = same == len(p.Members) && len(h.homes) > 0; h.copied {
		for _, n := range h.late {
			delete(d.late, n)
		}
	}
	return h, nil
}

// completes reports whether nothing of the file is missing any more with what is taken here.
func (d *dealer) completes(t *chain.Take) bool {
	left := &d.left[t.File]
	if t.Increment == nil {
		*left = 0
		return true
	}
	if *left == 0 {
		*left = uint32(d.chain.File(t.File).Size / page.Size)
	}
	*left -= uint32(taken(t) / page.Size)
	if t.Zeros != nil {
		*left -= uint32(t.Zeros.GetCardinality())
	}
	return *left == 0
}

// taken returns how many bytes of a member become bytes of the file.
func taken(t *chain.Take) int64 {
	if t.Blocks == nil {
		return t.Size
	}
	return int64(t.Blocks.GetCardinality()) * page.Size
}

// same reports whether a file's header in its part says what the newest backup says of it.
func (d *dealer) same(t *chain.Take) bool {
	now := d.chain.File(t.File)
	return t.Perm() == now.Mode && t.ModTime.Round(time.Second).Equal(now.ModTime.Round(time.Second))
}

// finish returns an error unless all files were completed.
func (d *dealer) finish() error {
	if left := d.chain.Len() - d.found; left != 0 {
		return fmt.Errorf("%d files of %s are in none of its backups", left, d.chain.Backups[0].Name)
	}
	return nil
}

// rest returns the directories and links that no part has that is copied, in the order of their paths.
func (d *dealer) rest() (members []*tarpart.Member) {
	for _, m := range d.late {
		members = append(members, m)
	}
	slices.SortFunc(members, func(x, y *tarpart.Member) int { return strings.Compare(x.Path, y.Path) })
	return members
}
