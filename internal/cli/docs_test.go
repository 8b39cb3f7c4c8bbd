package cli_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"holdfast/internal/cli"
	"holdfast/test/golden"
)

func TestDocsAreCurrent(t *testing.T) {
	golden.Same(t, "../../docs/commands.md", markdown(), "make docs")
}

// What docs/security.md shows of policies is what lies in docs/policies, to the letter, and what is JSON there can be read.
func TestPoliciesAreInTheText(t *testing.T) {
	text, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("../../docs/policies/*")
	if err != nil || len(files) < 10 {
		t.Fatalf("policies %q, %v", files, err)
	}
	for _, file := range files {
		policy, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(text, append([]byte("\n"), append(policy, "```\n"...)...)) || !bytes.Contains(text, []byte("docs/policies/"+filepath.Base(file)+"`")) {
			t.Errorf("%s is not what docs/security.md shows", file)
		}
		if filepath.Ext(file) == ".json" && !json.Valid(policy) {
			t.Errorf("%s is not JSON", file)
		}
	}
}

// markdown is docs/commands.md.
func markdown() string {
	var b strings.Builder
	b.WriteString("# Commands\n\nMade by `make docs` from the definitions in internal/cli; `holdfast help COMMAND` says the same.\n\n" +
		"Results go to standard output, the log to standard error. Exit status: 0 done; 1 failed, the command line included; 127 there is no such\n" +
		"command; further ones are with their command. Each setting of [settings.md](settings.md) is also a flag of every command.\n")
	each(cli.Root(), func(c *cobra.Command) {
		fmt.Fprintf(&b, "\n## %s\n\n%s.\n\n    %s\n\n%s\n", c.CommandPath(), c.Short, c.UseLine(), strings.TrimSpace(c.Long))
		flags := c.LocalFlags()
		if flags.HasAvailableFlags() {
			b.WriteString("\n| flag | default | |\n|---|---|---|\n")
		}
		flags.VisitAll(func(f *pflag.Flag) {
			if f.Hidden {
				return
			}
			name := "`--" + f.Name
			value, usage := pflag.UnquoteUsage(f)
			if value != "" {
				name += " " + value
			}
			name += "`"
			if f.Shorthand != "" {
				name = "`-" + f.Shorthand + "`, " + name
			}
			def := ""
			if f.DefValue != "false" && f.DefValue != "0" && f.DefValue != "[]" && f.DefValue != "" {
				def = "`" + f.DefValue + "`"
			}
			fmt.Fprintf(&b, "| %s | %s | %s |\n", name, def, strings.ReplaceAll(usage, "|", `\|`))
		})
		fmt.Fprintf(&b, "\n```\n%s\n```\n", unindent(c.Example))
	})
	return b.String()
}

// unindent takes the indentation of an example away.
func unindent(s string) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	for i := range lines {
		lines[i] = strings.TrimPrefix(lines[i], "  ")
	}
	return strings.Join(lines, "\n")
}
