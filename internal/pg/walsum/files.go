package walsum

import (
	"cmp"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"holdfast/internal/pg/blockset"
	"holdfast/internal/pg/wal"
)

// Dir is where a server keeps its summaries, below its data directory.
const Dir = "pg_wal/summaries"

const suffix = ".summary"

// A Stretch is the WAL of one timeline from one position to before another: what a summary is of, and what its name says. A server's summaries begin and end where a
// checkpoint's redo position is, so at the start of every base backup, and where timelines change.
type Stretch struct {
	Timeline wal.Timeline
	From, To wal.LSN
}

// String says which WAL s is.
func (s Stretch) String() string {
	return fmt.Sprintf("timeline %d from %s to %s", uint32(s.Timeline), s.From, s.To)
}

// Name returns the name of the file with the summary of s.
func (s Stretch) Name() string {
	return fmt.Sprintf("%s%016X%016X%s", s.Timeline, uint64(s.From), uint64(s.To), suffix)
}

// ParseName reads the name of a summary: 8 digits of the timeline, 16 of where it begins and 16 of where it ends, all hexadecimal.
func ParseName(name string) (Stretch, error) {
	var s Stretch
	digits, ok := strings.CutSuffix(name, suffix)
	if ok && len(digits) == 40 {
		t, err1 := strconv.ParseUint(digits[:8], 16, 32)
		from, err2 := strconv.ParseUint(digits[8:24], 16, 64)
		to, err3 := strconv.ParseUint(digits[24:], 16, 64)
		s = Stretch{wal.Timeline(t), wal.LSN(from), wal.LSN(to)}
		ok = err1 == nil && err2 == nil && err3 == nil
	}
	// ParseUint takes lower case too, PostgreSQL does not.
	if !ok || s.Name() != name || s.Timeline == 0 || s.From > s.To {
		return Stretch{}, fmt.Errorf("%q is not the name of a WAL summary", name)
	}
	return s, nil
}

// List returns the summaries in dir, in no order. Other files are none of its business: the server has a temporary one there.
func List(dir fs.FS) ([]Stretch, error) {
	entries, err := fs.ReadDir(dir, ".")
	if err != nil {
		return nil, fmt.Errorf("list WAL summaries: %w", err)
	}
	var all []Stretch
	for _, e := range entries {
		if s, err := ParseName(e.Name()); err == nil {
			all = append(all, s)
		}
	}
	return all, nil
}

// A GapError says of which WAL there is no summary: it was written while summarize_wal was off or wal_level minimal, the summary
// is older than wal_summary_keep_time, or the summarizer has not come so far.
type GapError struct{ Stretch }

func (e *GapError) Error() string { return "there is no WAL summary of " + e.Stretch.String() }

// Cover picks of the summaries in have those that together are of all the WAL of path, and perhaps of some more, in the order in which they are to be merged. The
// error is a *GapError for the first stretch that is missing. Empty stretches of path need no summary.
func Cover(have, path []Stretch) ([]Stretch, error) {
	have = slices.SortedFunc(slices.Values(have), func(a, b Stretch) int { return cmp.Compare(a.From, b.From) })
	var picked []Stretch
	for _, p := range path {
		at, best := p.From, Stretch{}
		rest := slices.DeleteFunc(slices.Clone(have), func(h Stretch) bool { return h.Timeline != p.Timeline })
		for at < p.To {
			// Of those that begin soon enough the one that goes on for longest.
			for ; len(rest) > 0 && rest[0].From <= at; rest = rest[1:] {
				if rest[0].To > best.To {
					best = rest[0]
				}
			}
			if best.To <= at {
				gap := Stretch{p.Timeline, at, p.To}
				if len(rest) > 0 {
					gap.To = min(gap.To, rest[0].From)
				}
				return nil, &GapError{gap}
			}
			picked = append(picked, best)
			at = best.To
		}
	}
	return picked, nil
}

// Load reads those summaries in dir that cover path, and returns all they list and which they were. A server may remove an old
// summary at any moment; then the error is a fs.ErrNotExist, and elsewhere a *GapError.
func Load(dir fs.FS, path []Stretch) (*blockset.Set, []Stretch, error) {
	have, err := List(dir)
	if err != nil {
		return nil, nil, err
	}
	picked, err := Cover(have, path)
	if err != nil {
		return nil, nil, err
	}
	var all blockset.Set
	for _, p := range picked {
		s, err := readFile(dir, p.Name())
		if err != nil {
			return nil, nil, err
		}
		all.Merge(s)
	}
	return &all, picked, nil
}

func readFile(dir fs.FS, name string) (*blockset.Set, error) {
	f, err := dir.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read: nothing to lose
	s, err := Read(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return s, nil
}
