package cli_test

import (
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"holdfast/internal/cli"
)

// span is code within a line of Markdown; quoted a word, or a part of one, between quotation marks of the shell.
var (
	span   = regexp.MustCompile("`([^`]+)`")
	quoted = regexp.MustCompile(`'[^']*'|"[^"]*"|\$\([^)]*\)`)
	ends   = regexp.MustCompile(`\s*(?:\||;|&&|#|\d?>|<|--\s).*$`)
	called = regexp.MustCompile(`(?:^\s*|until |/bin/|postgres |[A-Z]=\S* )holdfast ([a-z].*)`)
)

// What pages for operators tell to type are commands and flags that there are.
func TestPagesNameCommandsThatThereAre(t *testing.T) {
	for _, page := range []string{"../../docs/operations.md", "../../docs/runbook.md", "../../docs/security.md", "../../docs/moving.md", "../../README.md"} {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		fenced, found := false, 0
		for line := range strings.Lines(string(text)) {
			line = strings.TrimRight(line, "\n")
			var code []string
			switch {
			case strings.HasPrefix(line, "```"):
				fenced = !fenced
			case fenced, strings.HasPrefix(line, "    "):
				code = []string{line}
			default:
				for _, m := range span.FindAllStringSubmatch(line, -1) {
					code = append(code, m[1])
				}
			}
			for _, c := range code {
				m := called.FindStringSubmatch(quoted.ReplaceAllString(c, "x"))
				if m == nil {
					continue
				}
				found++
				words := strings.Fields(strings.ReplaceAll(ends.ReplaceAllString(m[1], ""), "…", ""))
				root := cli.Root()
				cmd, rest, err := root.Find(words)
				if err != nil || cmd == root {
					t.Errorf("%s: there is no such command: %s", page, c)
				} else if err := cmd.ParseFlags(rest); err != nil && !strings.Contains(err.Error(), "needs an argument") && !strings.Contains(err.Error(), "invalid argument") {
					t.Errorf("%s: %v: %s", page, err, c)
				}
			}
		}
		if found == 0 {
			t.Errorf("%s tells to type nothing", page)
		}
	}
}

var (
	link    = regexp.MustCompile(`\]\(([^)#\s]*)#([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.*)$`)
	named   = regexp.MustCompile(`docs/([a-z-]+\.md)#([^\s"')]+)`)
	noSlug  = regexp.MustCompile(`[^\p{L}\p{N}\s_-]`)
)

// Links to a heading lead to one that there is.
func TestLinksLeadToHeadings(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(pages) == 0 {
		t.Fatal(pages, err)
	}
	pages = append(pages, "../../README.md")
	texts, anchors := map[string]string{}, map[string]map[string]bool{}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(page, "../../")
		texts[name], anchors[name] = string(text), map[string]bool{}
		for _, h := range heading.FindAllStringSubmatch(string(text), -1) {
			anchors[name][strings.ReplaceAll(noSlug.ReplaceAllString(strings.ToLower(h[1]), ""), " ", "-")] = true
		}
	}
	checked := map[string]int{}
	for name, text := range texts {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			to := name
			if m[1] != "" {
				to = path.Join(path.Dir(name), m[1])
			}
			if checked[name]++; !anchors[to][m[2]] {
				t.Errorf("%s: no heading of %s is #%s", name, to, m[2])
			}
		}
	}
	if checked["README.md"] == 0 || checked["docs/operations.md"] == 0 {
		t.Errorf("links with a heading: %d of README.md, %d of docs/operations.md", checked["README.md"], checked["docs/operations.md"])
	}
	rules := "../../deploy/prometheus/holdfast.rules.yml"
	text, err := os.ReadFile(rules)
	if err != nil {
		t.Fatal(err)
	}
	found := named.FindAllStringSubmatch(string(text), -1)
	for _, m := range found {
		if !anchors["docs/"+m[1]][m[2]] {
			t.Errorf("%s: no heading of %s is #%s", rules, m[1], m[2])
		}
	}
	if len(found) < 10 {
		t.Errorf("%s: of %d alerts it is said where in the runbook they are", rules, len(found))
	}
}
