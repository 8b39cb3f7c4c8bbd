// Package runbook has what the tests of docs/runbook.md read it with. Only they import it.
package runbook

import (
	"fmt"
	"regexp"
	"strings"
)

// Section is what stands below a heading of the second level, up to the next one.
type Section struct {
	Heading string
	Blocks  []Block
}

// Block is what stands between two fences.
type Block struct {
	Tag  string // sh, sql, text; "" where there is none
	Line int    // of the page, that of the first fence
	Text string // with a newline at its end
}

// Parse reads a page of Markdown. A fence that is not closed, and a block above the first heading, are errors.
func Parse(page string) (sections []Section, err error) {
	var block *Block
	number := 0
	for line := range strings.Lines(page) {
		number++
		fence := strings.HasPrefix(line, "```")
		switch {
		case block != nil && fence:
			last := &sections[len(sections)-1]
			last.Blocks = append(last.Blocks, *block)
			block = nil
		case block != nil:
			block.Text += line
		case fence && len(sections) == 0:
			return nil, fmt.Errorf("line %d: a block above the first heading", number)
		case fence:
			block = &Block{Tag: strings.TrimSpace(strings.TrimPrefix(line, "```")), Line: number}
		case strings.HasPrefix(line, "## "):
			sections = append(sections, Section{Heading: strings.TrimSpace(line[3:])})
		}
	}
	if block != nil {
		return nil, fmt.Errorf("line %d: the block is not closed", block.Line)
	}
	return sections, nil
}

// assignment is a line that gives a variable its value, with what is to be known of that behind it.
var assignment = regexp.MustCompile(`^export ([A-Z_]+)=('[^']*'|[^\s'"$]+)(\s*(?:#.*)?)$`)

// Fill puts values in the place of those that a block of the shell exports as they stand there, not made of others. It returns the names that it came upon; one that
// has no value is an error.
func Fill(text string, values map[string]string) (filled string, names []string, err error) {
	var b strings.Builder
	for line := range strings.Lines(text) {
		m := assignment.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if m == nil {
			b.WriteString(line)
			continue
		}
		value, ok := values[m[1]]
		if !ok {
			return "", nil, fmt.Errorf("there is no value for %s", m[1])
		}
		names = append(names, m[1])
		fmt.Fprintf(&b, "export %s=%s\n", m[1], Quote(value))
	}
	return b.String(), names, nil
}

// Quote makes s one word of the shell.
func Quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// Says reports whether each line of what is shown is one of what was printed, where … stands for anything, and which is not.
func Says(shown, printed string) (missing string, ok bool) {
	for line := range strings.Lines(shown) {
		line = strings.TrimSpace(line)
		pattern := `(?m)^\s*` + strings.ReplaceAll(regexp.QuoteMeta(line), "…", ".*") + `\s*$`
		if line != "" && !regexp.MustCompile(pattern).MatchString(printed) {
			return line, false
		}
	}
	return "", true
}
