package config_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/config"
	"holdfast/test/golden"
)

func TestDocsAreCurrent(t *testing.T) {
	golden.Same(t, "../../docs/settings.md", markdown(), "make docs")
}

// markdown is docs/settings.md.
func markdown() string {
	var b strings.Builder
	b.WriteString(`# Settings

Made by ` + "`make docs`" + ` from the table in internal/config. ` + "`holdfast settings`" + ` prints every value in force and where it came from.

## Where a value comes from

The first of these that gives a value counts; an empty value counts as none, as with WAL-G:

1. a flag: the setting's name in lower case with dashes, ` + "`--walg-s3-prefix s3://bucket/path`" + `. Secrets cannot be flags, everybody on the machine would see them;
2. the environment;
3. the settings file: ` + "`--config FILE`, else `HOLDFAST_CONFIG` or `WALG_CONFIG_PATH`, else `.holdfast` or `.walg` with `.json`, `.yaml`, `.yml` or `.toml`" + ` in the
   account's home directory. It is one map; upper and lower case of names are the same;
4. the default.

A setting may be given by any of its names: WAL-G's, ours that begins with ` + "`HOLDFAST_`" + `, or another one listed. Two of them with different values in
one place are an error. Those of one kind of storage (` + "`AWS_…`, `S3_…`, `GCS_…`, `AZURE_…`, `OS_…`, `SSH_…`" + `) may also begin with ` + "`WALG_` or `WALE_`" + `. A secret may be in a file: the name with ` + "`_FILE`" + ` after it
names the file.

It is an error, before anything else happens: a file that cannot be read, an unknown name in the file, an unknown name in the environment that begins
with ` + "`WALG_` or `HOLDFAST_`" + `, a value of the wrong type or out of range, two storage prefixes, what this release cannot honour (see the end), and ` + "`HOLDFAST_AGE_RECIPIENTS`" + ` or
` + "`HOLDFAST_AGE_RECIPIENTS_PATH`" + ` without a value in the file where no other key encrypts, nor one only decrypts (then storing fails): all would be stored in clear, and who has written that line
believes that it is not. backup-fetch and wal-fetch, which store nothing, only say so.

Sizes are bytes, or have a unit: ` + "`k`, `M`, `G`, `T`, also as `MB` or `MiB`" + `, in steps of 1024 as in PostgreSQL. Durations are written ` + "`30s`, `1h30m`" + `.
Booleans are ` + "`true` and `false`" + `.
`)
	others := config.Table(64)
	section := ""
	for i, s := range config.Table(1) {
		if s.Section != section {
			section = s.Section
			fmt.Fprintf(&b, "\n## %s\n", section)
		}
		fmt.Fprintf(&b, "\n### %s\n\n", s.Name)
		names := []string{"`" + s.Ours + "`"}
		for _, n := range s.Names() {
			bare := strings.TrimPrefix(strings.TrimPrefix(n, "WALG_"), "WALE_")
			adapted := n != bare && slices.Contains(s.Names(), bare) && !strings.HasPrefix(s.Name, "WALG_")
			if n != s.Name && n != s.Ours && !adapted {
				names = append(names, "`"+n+"`")
			}
		}
		if s.Ours != s.Name {
			fmt.Fprintf(&b, "Also %s. ", strings.Join(names, ", "))
		}
		kind := string(s.Type)
		if s.Values != nil {
			kind = "one of `" + strings.Join(s.Values, "`, `") + "`"
		}
		if r := s.Range(); r != "" {
			kind += " " + r
		}
		if s.Secret {
			kind += ", secret"
		}
		fmt.Fprintf(&b, "Takes: %s. ", kind)
		switch {
		case s.Default != others[i].Default:
			b.WriteString("Default: the number of cores, at least 4. ")
		case s.Default != "":
			fmt.Fprintf(&b, "Default: `%s`. ", s.Default)
		}
		if s.Used != nil {
			fmt.Fprintf(&b, "Used by %s. ", strings.Join(s.Used, ", "))
		}
		fmt.Fprintf(&b, "\n\n%s\n", s.Meaning)
	}
	for _, part := range []struct {
		title, text string
		refused     bool
	}{
		{"Known settings that are errors", "What this release cannot honour stops it, because to go on would not be what was asked for.", true},
		{"Known settings that are ignored", "They change nothing of what is stored or restored. The commands concerned say so in a line, unless the value asks for what is done anyhow.", false},
	} {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n", part.title, part.text)
		for _, g := range config.Foreign() {
			if (g.Refused != "") != part.refused {
				continue
			}
			var names []string
			for _, n := range g.Names {
				bare := strings.TrimPrefix(strings.TrimPrefix(n, "WALG_"), "WALE_")
				if bare == n || !strings.Contains(strings.Join(g.Names, " ")+" ", " "+bare+" ") && g.Names[0] != bare {
					names = append(names, "`"+n+"`")
				}
			}
			fmt.Fprintf(&b, "- %s: %s", strings.Join(names, ", "), g.Why)
			if g.Refused != "" {
				fmt.Fprintf(&b, "; %s", g.Refused)
			}
			if g.Used != nil {
				fmt.Fprintf(&b, " (%s)", strings.Join(g.Used, ", "))
			}
			b.WriteString(".\n")
		}
	}
	return strings.ReplaceAll(b.String(), " \n", "\n")
}
