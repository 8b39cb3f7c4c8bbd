package bringback

import (
	"errors"
	"io"
)

// Statements reads a whole script. Rows of COPY are an element of their own behind their statement.
func Statements(r io.Reader) (all []string, err error) {
	s := newScript(r)
	for {
		sql, err := s.next()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		all = append(all, sql)
		if copies(sql) {
			rows, err := s.rows()
			if err != nil {
				return all, err
			}
			b, err := io.ReadAll(rows)
			if err != nil {
				return all, err
			}
			all = append(all, string(b))
		}
	}
}

// Entries returns class and OID of what each statement is of.
func Entries(r io.Reader) (all [][2]uint32, err error) {
	s := newScript(r)
	for {
		if _, err := s.next(); err != nil {
			return all, endOf(err)
		}
		all = append(all, [2]uint32{s.entry.class, s.entry.oid})
	}
}

// The readers of single values.
var (
	Qualified = qualified
	Unescape  = unescape
)

// Give gives a file a name that nothing has.
var Give = give

// Suffix is behind the names of what is brought beside what is there.
const Suffix = suffix
