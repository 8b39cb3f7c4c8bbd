package check_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/check"
	"holdfast/test/golden"
)

// docs/checks.md says what the code does.
func TestDocsAreCurrent(t *testing.T) {
	var b strings.Builder
	b.WriteString("# Checks\n\nMade by `make docs` from internal/check. `holdfast check` prints their verdict for monitoring, `holdfast doctor` in sentences.\n\n" +
		"The first limit is of WARNING, the second of CRITICAL; at a limit it is still fine. A flag of the check's name sets them, `--backup-age 26h:50h`, or\n" +
		"`HOLDFAST_CHECK=backup-age=26h:50h,proof=off`. `26h` is a WARNING alone, `:50h` a CRITICAL alone, `off` no check. Those without limits are fine or not.\n" +
		"Limits with * are of what must not become less. The status of all is the worst, in the order CRITICAL, UNKNOWN, WARNING, OK.\n\n" +
		"| check | limits | what |\n|---|---|---|\n")
	for _, c := range check.Checks() {
		limits := "-"
		if c.Unit != check.None {
			limits = "`" + c.Limits + "`"
			if c.Unit == check.Percent {
				limits += " %"
			}
			if c.Below {
				limits += " *"
			}
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", c.Name, limits, c.What)
	}
	golden.Same(t, "../../docs/checks.md", b.String(), "make docs")
}

func TestLimitsAreRead(t *testing.T) {
	for _, c := range check.Checks() {
		if c.Unit == check.None {
			if _, err := c.ParseLimits("1:2"); err == nil {
				t.Errorf("%s takes limits", c.Name)
			}
			continue
		}
		if l, err := c.ParseLimits(c.Limits); err != nil || !l.HasWarning || l.Below != c.Below {
			t.Errorf("%s: its own limits %s are %+v, %v", c.Name, c.Limits, l, err)
		}
		if l, err := c.ParseLimits("off"); err != nil || l.HasWarning || l.HasCritical {
			t.Errorf("%s: off is %+v, %v", c.Name, l, err)
		}
		for _, bad := range []string{"", ":", "x", "1h:x", "-1", "1:2:3"} {
			if l, err := c.ParseLimits(bad); err == nil {
				t.Errorf("%s: %q is %+v", c.Name, bad, l)
			}
		}
	}
}

// A warning behind what is critical would never be heard.
func TestLimitsInOrder(t *testing.T) {
	for limits, want := range map[string]bool{"backup-age=26h:50h": true, "backup-age=50h:26h": false, "backup-age=26h:26h": true, "disk=10:5": true, "disk=5:10": false,
		"disk=10%:5%": true, "disk=101:5": false, "slot=1GiB:2GiB": true, "slot=1GiB:2MB": false, "full-age=1w:1d12h": false, "full-age=1w": true, "full-age=:2w": true} {
		if _, err := check.Choose(check.Selection{Setting: limits}); (err == nil) != want {
			t.Errorf("%s: %v", limits, err)
		}
	}
}

func TestChoose(t *testing.T) {
	var all []string
	for _, c := range check.Checks() {
		all = append(all, c.Name)
	}
	without := func(names ...string) []string {
		return slices.DeleteFunc(slices.Clone(all), func(n string) bool { return slices.Contains(names, n) })
	}
	for what, c := range map[string]struct {
		s    check.Selection
		want []string // nil: an error
	}{
		"all":                      {check.Selection{}, all},
		"off by the setting":       {check.Selection{Setting: "proof=off, verify=off"}, without("proof", "verify")},
		"off by a flag":            {check.Selection{Limits: map[string]string{"disk": "off"}}, without("disk")},
		"on again by a flag":       {check.Selection{Setting: "disk=off", Limits: map[string]string{"disk": "10:5"}}, all},
		"on again by its name":     {check.Selection{Setting: "disk=off", Only: []string{"disk"}}, []string{"disk"}},
		"a check without limits":   {check.Selection{Setting: "archive-command=off"}, without("archive-command")},
		"only, in the order of us": {check.Selection{Only: []string{"key", "server"}}, []string{"server", "key"}},
		"except":                   {check.Selection{Except: []string{"key", "server"}}, without("key", "server")},
		"none is left":             {check.Selection{Only: []string{"key"}, Except: []string{"key"}}, nil},
		"no such check":            {check.Selection{Only: []string{"keys"}}, nil},
		"no such check to leave":   {check.Selection{Except: []string{"keys"}}, nil},
		"no such check to limit":   {check.Selection{Setting: "keys=1h"}, nil},
		"no limits":                {check.Selection{Setting: "disk"}, nil},
		"limits of what has none":  {check.Selection{Setting: "key=1h"}, nil},
	} {
		choice, err := check.Choose(c.s)
		if err != nil || c.want == nil {
			if (err == nil) != (c.want != nil) {
				t.Errorf("%s: %v", what, err)
			}
			continue
		}
		var got []string
		for _, f := range check.Judge(healthy(), choice).Findings {
			got = append(got, f.Check)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", what, got, c.want)
		}
	}
}

// What is not known may be broken: it counts for more than a warning.
func TestWorst(t *testing.T) {
	order := []check.Status{check.OK, check.Warning, check.Unknown, check.Critical}
	for i, a := range order {
		for j, b := range order {
			if got := check.Worst(a, b); got != order[max(i, j)] {
				t.Errorf("of %s and %s %s is worse", a, b, got)
			}
		}
	}
}

// perf is a number as plugins write it.
var perf = regexp.MustCompile(`^'[^'=|]+'=-?\d+(\.\d+)?(s|B|%)?(;[\d.]*:?)?(;[\d.]*:?)?(;\d+)?(;\d+)?$`)

func TestNagios(t *testing.T) {
	all, err := check.Choose(check.Selection{})
	if err != nil {
		t.Fatal(err)
	}
	f := healthy()
	f.Server.Slot.Active = true
	f.Stores = append(f.Stores, check.Store{Name: "it's|=\n", Took: time.Second})
	r := check.Judge(f, all)
	first, rest, _ := strings.Cut(r.Nagios(), "\n")
	words, numbers, _ := strings.Cut(first, " | ")
	if words != "HOLDFAST OK - 21 checks are fine" {
		t.Errorf("%q", words)
	}
	for _, want := range []string{"'backup_age'=3600s;93600;180000;0", "'disk'=90%;10:;5:;0;100", "'ready'=0;16;128;0", "'slot'=0B;1073741824;8589934592;0", "'holes'=0;;;0", "'store_default'=0.01s;;;0"} {
		if !slices.Contains(strings.Fields(numbers), want) {
			t.Errorf("%q is not among %s", want, numbers)
		}
	}
	for _, one := range strings.Fields(numbers) {
		if !perf.MatchString(one) {
			t.Errorf("%q is no performance data", one)
		}
	}
	if strings.Contains(rest, "|") || strings.Count(rest, "\n") != 1 {
		t.Errorf("behind the line: %q", rest)
	}

	f.ArchiveErr, f.Archive = errors.New("broken|pipe\nand \x1b[1m more"), nil
	f.Server.ArchiveMode, f.Server.Slot.Active = "off", false
	r = check.Judge(f, all)
	lines := strings.Split(strings.TrimSpace(r.Nagios()), "\n")
	if !strings.HasPrefix(lines[0], "HOLDFAST CRITICAL - archive-command: archive_mode is off: nothing is archived (and ") || strings.Count(lines[0], "|") != 1 {
		t.Errorf("%q", lines[0])
	}
	if !slices.Contains(lines, "UNKNOWN holes: the archive could not be looked at: broken/pipe and ?[1m more") {
		t.Errorf("%q", lines)
	}
	if strings.Contains(strings.Join(lines[1:], ""), "|") || strings.Contains(strings.Join(lines, ""), "\x1b") {
		t.Errorf("%q", lines)
	}
}

func TestReportAsJSON(t *testing.T) {
	f := healthy()
	f.Took = 1500 * time.Millisecond
	b, err := json.Marshal(check.Judge(f, choose(t, "backup-age", "")))
	const want = `{"status":"OK","at":"2026-11-21T12:00:00Z","took_seconds":1.500,"findings":[{"check":"backup-age","status":"OK",` +
		`"text":"the last backup is 60 min old: base_000000010000000000000004_D_000000010000000000000002","values":[{"name":"backup_age","value":3600,"unit":"s"}]}]}`
	if err != nil || string(b) != want {
		t.Errorf("%s, %v\nwant %s", b, err, want)
	}
}
