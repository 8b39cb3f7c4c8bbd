package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Problem is one thing that is wrong with the settings.
type Problem struct {
	What  string // the setting, or the file
	Where string // "environment", "flag --…" or "file:line"; "" when the settings as a whole are meant
	Why   string
	Do    string // what the operator can do
}

// Error says what is wrong, where and why, in one line.
func (p *Problem) Error() string {
	if p.Where == "" {
		return fmt.Sprintf("%s: %s", p.What, p.Why)
	}
	return fmt.Sprintf("%s (%s): %s", p.What, p.Where, p.Why)
}

// Hint says what the operator can do.
func (p *Problem) Hint() string { return p.Do }

// nearest returns the one of names that name was most likely meant to be, or "" when none is close.
func nearest(name string, names []string) string {
	best, least := "", len(name)/3+1
	for _, n := range names {
		if d := distance(name, n); d < least {
			best, least = n, d
		}
	}
	return best
}

// distance counts the letters to insert, drop, change or swap with their neighbour to make b of a.
func distance(a, b string) int {
	var before []int
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		next := make([]int, len(b)+1)
		next[0] = i + 1
		for j := range len(b) {
			changed := row[j]
			if a[i] != b[j] {
				changed++
			}
			next[j+1] = min(changed, row[j+1]+1, next[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				next[j+1] = min(next[j+1], before[j-1]+1)
			}
		}
		before, row = row, next
	}
	return row[len(b)]
}

// unknown describes a name that is in no table.
func unknown(name, where string, names []string) *Problem {
	p := &Problem{What: name, Where: where, Why: "unknown setting", Do: "`holdfast settings` lists those there are"}
	if n := nearest(strings.ToUpper(name), names); n != "" {
		p.Do = "did you mean " + n + "? " + p.Do
	}
	return p
}

// sortProblems puts problems in the order of sources and names, so that the same settings always give the same words.
func sortProblems(ps []*Problem) {
	slices.SortStableFunc(ps, func(a, b *Problem) int {
		return cmp.Or(cmp.Compare(a.Where, b.Where), cmp.Compare(a.What, b.What), cmp.Compare(a.Why, b.Why))
	})
}
