package bringback

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
)

// maxStatement bounds a statement, in bytes; a value has no more than 1 GiB, and of definitions even these are far away.
const maxStatement = 256 << 20

// entry says of which object of the dumped database a statement is: its number in the table of contents, the catalogue and the OID there (zeros where it has none),
// and the numbers of entries that it depends on. pg_dump --verbose writes them (_printTocEntry in src/bin/pg_dump/pg_backup_archiver.c).
type entry struct {
	id         int
	class, oid uint32
	needs      []int
}

// script reads what pg_dump writes in its plain format, one statement after the other. It takes strings as standard_conforming_strings = on has them.
type script struct {
	r      *bufio.Reader
	entry  entry // that of the statement read last
	coming entry // of those that follow
}

func newScript(r io.Reader) *script { return &script{r: bufio.NewReaderSize(r, 1<<18)} }

var (
	entryLine = regexp.MustCompile(`^-- TOC entry (\d+) \(class (\d+) OID (\d+)\)`)
	needsLine = regexp.MustCompile(`^-- Dependencies:((?: \d+)+)`)
)

// maxNeeds bounds the numbers that are kept of an entry's dependencies.
const maxNeeds = 1 << 16

// comment reads a comment between statements.
func (s *script) comment(line []byte) error {
	if m := entryLine.FindSubmatch(line); m != nil {
		var e entry
		var err error
		if e.id, err = strconv.Atoi(string(m[1])); err != nil {
			return fmt.Errorf("read a dump: entry %s: %w", m[1], err)
		}
		for i, to := range []*uint32{&e.class, &e.oid} {
			n, err := strconv.ParseUint(string(m[2+i]), 10, 32)
			if err != nil {
				return fmt.Errorf("read a dump: entry %s: %w", m[1], err)
			}
			*to = uint32(n)
		}
		s.coming = e
	} else if m := needsLine.FindSubmatch(line); m != nil {
		for _, f := range bytes.Fields(m[1]) {
			if n, err := strconv.Atoi(string(f)); err == nil && len(s.coming.needs) < maxNeeds {
				s.coming.needs = append(s.coming.needs, n)
			}
		}
	}
	return nil
}

// line reads up to the end of a line, of which it keeps at most 64 KiB, and returns it without that end.
func (s *script) line() ([]byte, error) {
	var kept []byte
	for {
		b, err := s.r.ReadSlice('\n')
		if room := 1<<16 - len(kept); room > 0 {
			kept = append(kept, b[:min(room, len(b))]...)
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
		case err == nil, errors.Is(err, io.EOF) && len(kept) > 0:
			return bytes.TrimRight(kept, "\r\n"), nil
		default:
			return nil, err
		}
	}
}

// next returns the next statement without comments before it, or a command of psql, which begins with a backslash. At the end it is io.EOF. Behind a
// statement that ends in FROM stdin; come rows.
func (s *script) next() (string, error) {
	for { // to the begin of the statement
		b, err := s.r.Peek(2)
		if len(b) == 0 {
			return "", err // io.EOF where it ended well
		}
		switch {
		case isSpace(b[0]):
			if _, err := s.r.Discard(1); err != nil {
				return "", err
			}
		case len(b) == 2 && b[0] == '-' && b[1] == '-':
			line, err := s.line()
			if err != nil {
				return "", err
			}
			if err := s.comment(line); err != nil {
				return "", err
			}
		case b[0] == '\\':
			line, err := s.line()
			return string(line), err
		default:
			s.entry = s.coming
			return s.statement()
		}
	}
}

func isSpace(c byte) bool {
	return c == ' ' || c == '\n' || c == '\r' || c == '\t' || c == '\f' || c == '\v'
}

// isWord reports whether c may be within an identifier without quotation marks.
func isWord(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '$' || c >= 0x80
}

// statement reads up to the semicolon that ends a statement: one that is in no string, identifier, comment, parentheses or body of a function
// (psqlscan.l in src/fe_utils).
func (s *script) statement() (string, error) {
	var b []byte
	var words []string // the first four
	var word []byte    // the one being read
	depth, blocks := 0, 0
	get := func() (byte, error) {
		c, err := s.r.ReadByte()
		switch {
		case errors.Is(err, io.EOF):
			return 0, fmt.Errorf("read a dump: it ends within a statement: %w", io.ErrUnexpectedEOF)
		case err != nil:
			return 0, err
		case len(b) >= maxStatement:
			return 0, fmt.Errorf("read a dump: a statement has more than %d bytes", maxStatement)
		}
		b = append(b, c)
		return c, nil
	}
	// until reads until what was read since it was called ends with end.
	until := func(end string) error {
		begin := len(b)
		for {
			if _, err := get(); err != nil {
				return err
			}
			if len(b)-begin >= len(end) && bytes.HasSuffix(b[begin:], []byte(end)) {
				return nil
			}
		}
	}
	for {
		c, err := get()
		if err != nil {
			return "", err
		}
		if isWord(c) && c != '$' || c == '$' && len(word) > 0 {
			word = append(word, c)
			continue
		}
		before := word
		if len(word) > 0 {
			w := strings.ToLower(string(word[:min(len(word), 16)]))
			if len(words) < 4 {
				words = append(words, w)
			}
			if definesRoutine(words) && depth == 0 {
				switch {
				case w == "begin", w == "case" && blocks > 0:
					blocks++
				case w == "end" && blocks > 0:
					blocks--
				}
			}
			word = word[:0]
		}
		switch c {
		case '\'':
			err = s.quoted(get, len(before) == 1 && (before[0] == 'e' || before[0] == 'E'))
		case '"':
			err = until(`"`) // two of them are two identifiers in a row, which ends the same
		case '$':
			var tag []byte
			for err == nil && (len(tag) == 0 || tag[len(tag)-1] != '$') {
				var next []byte
				if next, err = s.r.Peek(1); err != nil || !isWord(next[0]) || len(tag) == 0 && next[0] >= '0' && next[0] <= '9' {
					tag = nil
					break
				}
				if c, err = get(); err == nil {
					tag = append(tag, c)
				}
			}
			if errors.Is(err, io.EOF) {
				err = nil // the next get says so
			}
			if len(tag) > 0 && err == nil {
				err = until("$" + string(tag))
			}
		case '-', '/':
			var next []byte
			if next, err = s.r.Peek(1); err != nil {
				err = nil
				break
			}
			if c == '-' && next[0] == '-' {
				err = until("\n")
			} else if c == '/' && next[0] == '*' {
				err = blockComment(get)
			}
		case '(':
			depth++
		case ')':
			depth = max(0, depth-1)
		case ';':
			if depth == 0 && blocks == 0 {
				return string(b), nil
			}
		}
		if err != nil {
			return "", err
		}
	}
}

// definesRoutine reports whether a statement of these first words may have a body in SQL: BEGIN ATOMIC … END.
func definesRoutine(words []string) bool {
	for i, w := range words {
		switch {
		case i == 0 && w != "create":
			return false
		case w == "function" || w == "procedure":
			return true
		}
	}
	return false
}

// quoted reads the rest of a string; with escapes a backslash takes the next character along.
func (s *script) quoted(get func() (byte, error), escapes bool) error {
	for {
		c, err := get()
		if err != nil {
			return err
		}
		switch {
		case c == '\\' && escapes:
			if _, err := get(); err != nil {
				return err
			}
		case c == '\'':
			if next, err := s.r.Peek(1); err != nil || next[0] != '\'' {
				return nil
			}
			if _, err := get(); err != nil {
				return err
			}
		}
	}
}

// blockComment reads the rest of a comment behind its first slash. They nest.
func blockComment(get func() (byte, error)) error {
	var last byte
	for depth := 0; ; {
		c, err := get()
		if err != nil {
			return err
		}
		switch {
		case last == '*' && c == '/':
			if depth--; depth == 0 {
				return nil
			}
			c = 0
		case last == '/' && c == '*', depth == 0:
			depth++
			c = 0
		}
		last = c
	}
}

// rows returns the rows behind a statement that copies from stdin. It has to be read to its end before the next statement.
func (s *script) rows() (io.Reader, error) {
	if b, err := s.r.ReadByte(); err != nil || b != '\n' {
		return nil, fmt.Errorf("read a dump: no rows behind COPY: %w", errors.Join(err, io.ErrUnexpectedEOF))
	}
	return &rows{r: s.r, begin: true}, nil
}

// rows are lines up to one that is \. only.
type rows struct {
	r     *bufio.Reader
	begin bool   // at the begin of a line
	rest  []byte // of the line that was read last; valid until the next
	done  bool
	n     int64 // bytes
}

func (r *rows) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		if len(r.rest) == 0 {
			if r.done || n > 0 && r.r.Buffered() == 0 {
				break
			}
			line, err := r.r.ReadSlice('\n')
			switch {
			case err != nil && !errors.Is(err, bufio.ErrBufferFull):
				if errors.Is(err, io.EOF) {
					err = fmt.Errorf("read a dump: it ends within rows: %w", io.ErrUnexpectedEOF)
				}
				return n, err
			case r.begin && string(line) == "\\.\n":
				r.done = true
				continue
			}
			r.begin, r.rest = err == nil, line
		}
		m := copy(p[n:], r.rest)
		n, r.rest = n+m, r.rest[m:]
	}
	r.n += int64(n)
	if n == 0 && r.done && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}
