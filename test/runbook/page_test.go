package runbook_test

import (
	"slices"
	"strings"
	"testing"

	"holdfast/test/runbook"
)

func TestPagesAreReadBySections(t *testing.T) {
	got, err := runbook.Parse("# Page\n\nwords\n\n## One\n\n```sh\necho 1\n## no heading\n```\n\n### Below\n\n```text\n1\n```\n## Two\n")
	if err != nil {
		t.Fatal(err)
	}
	want := []runbook.Block{{Tag: "sh", Line: 7, Text: "echo 1\n## no heading\n"}, {Tag: "text", Line: 14, Text: "1\n"}}
	if len(got) != 2 || got[0].Heading != "One" || !slices.Equal(got[0].Blocks, want) || got[1].Heading != "Two" || len(got[1].Blocks) != 0 {
		t.Errorf("%+v", got)
	}
	for page, want := range map[string]string{"```sh\na\n```\n": "above the first heading", "## A\n```sh\na\n": "line 2: the block is not closed"} {
		if _, err := runbook.Parse(page); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want %q", page, err, want)
		}
	}
}

func TestValuesTakeThePlaceOfThoseThatAreWritten(t *testing.T) {
	const text = "export A=/srv/a   # why\nexport B='two words'\nexport C=\"$A/c\"\nexport D=$(date)\necho $A\n"
	got, names, err := runbook.Fill(text, map[string]string{"A": "it's", "B": "b"})
	if want := "export A='it'\\''s'\nexport B='b'\nexport C=\"$A/c\"\nexport D=$(date)\necho $A\n"; err != nil || got != want || !slices.Equal(names, []string{"A", "B"}) {
		t.Errorf("%s%q, %v; want\n%s", got, names, err, want)
	}
	if _, _, err := runbook.Fill(text, map[string]string{"A": "a"}); err == nil || !strings.Contains(err.Error(), "B") {
		t.Errorf("no value for B: %v", err)
	}
}

func TestWhatIsShownIsPrinted(t *testing.T) {
	const printed = "one  line\n  took   5 s in all\n"
	for shown, ok := range map[string]bool{"one … line": true, "one line": false, "one  line\ntook … in all\n": true, "took": false, "": true, "took … s": false, "o…": true} {
		if missing, got := runbook.Says(shown, printed); got != ok {
			t.Errorf("%q: %t (%q), want %t", shown, got, missing, ok)
		}
	}
}
