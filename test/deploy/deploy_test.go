// Package deploy_test holds the examples of deploy against those who read them: systemd, cron, GitLab, GitHub Actions, Kubernetes, and holdfast itself, which
// does on a real archive what they have it do.
package deploy_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"holdfast/internal/agent"
	"holdfast/internal/config"
	"holdfast/test/pgtest"
	"holdfast/test/site"
)

const deploy = "../../deploy/"

// read returns an example.
func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(deploy + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// printed runs a program, which must succeed, and returns what it printed.
func printed(t *testing.T, dir, program string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", program, args, err, out)
	}
	return string(out)
}

// linters returns the directory of the programs that npm brings.
func linters(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(pgtest.Cache(), "lint", "node_modules")
	if _, err := os.Stat(dir); err != nil {
		pgtest.Missing(t, "what examples of CI are checked with")
	}
	return dir
}

// A job is something that an example has run: a script of sh, with the environment that the example gives it.
type job struct {
	what     string
	file     string // of deploy
	script   string
	env      map[string]string
	schedule string // of cron, "" where another file says it
	root     bool   // it is run as root, where it can be
}

// jobs are those of all examples of proof.
func jobs(t *testing.T) []job {
	t.Helper()
	return slices.Concat(fromCron(t), fromSystemd(t), fromGitLab(t), fromGitHub(t), fromKubernetes(t))
}

// fromCron reads a file of /etc/cron.d as crontab(5) has it: a line that sets a variable; or five fields, an account, and a command that ends at a %.
func fromCron(t *testing.T) (all []job) {
	t.Helper()
	const file = "cron/holdfast"
	variable := regexp.MustCompile(`^([A-Za-z_]+)=(.*)$`)
	env := map[string]string{}
	for line := range strings.Lines(read(t, file)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if m := variable.FindStringSubmatch(line); m != nil {
			env[m[1]] = m[2]
			continue
		}
		f := strings.Fields(line)
		if len(f) < 7 || f[5] != "postgres" || strings.Contains(line, "%") {
			t.Fatalf("%s: %q is no line of cron that runs something as postgres", file, line)
		}
		all = append(all, job{line, file, strings.Join(f[6:], " "), env, strings.Join(f[:5], " "), false})
	}
	return all
}

// setting matches a line of a unit.
var setting = regexp.MustCompile(`(?m)^(\w+)=(.*)$`)

func fromSystemd(t *testing.T) []job {
	t.Helper()
	j := job{what: "systemd", file: "systemd/holdfast-drill.service", env: map[string]string{}}
	for _, m := range setting.FindAllStringSubmatch(read(t, j.file), -1) {
		switch name, value, _ := strings.Cut(m[2], "="); m[1] {
		case "Environment":
			j.env[name] = value
		case "ExecStart":
			program, args, _ := strings.Cut(m[2], " ")
			j.script = filepath.Base(program) + " " + args
		}
	}
	return []job{j}
}

func fromGitLab(t *testing.T) []job {
	t.Helper()
	const file = "gitlab/holdfast.gitlab-ci.yml"
	var ci struct {
		Prove struct {
			Variables map[string]string
			Script    []string
		}
	}
	if err := yaml.Unmarshal([]byte(read(t, file)), &ci); err != nil {
		t.Fatal(err)
	}
	return []job{{"GitLab", file, strings.Join(ci.Prove.Script, "\n"), ci.Prove.Variables, "", true}}
}

func fromGitHub(t *testing.T) []job {
	t.Helper()
	const file = "github/holdfast-drill.yml"
	var workflow struct {
		On struct {
			Schedule []struct{ Cron string }
		}
		Jobs map[string]struct {
			Env   map[string]string
			Steps []struct {
				Env map[string]string
				Run string
			}
		}
	}
	if err := yaml.Unmarshal([]byte(read(t, file)), &workflow); err != nil {
		t.Fatal(err)
	}
	j := job{what: "GitHub Actions", file: file, env: map[string]string{"WHAT": "LATEST"}, schedule: workflow.On.Schedule[0].Cron, root: true}
	for name, value := range workflow.Jobs["prove"].Env {
		if strings.HasPrefix(value, "${{") {
			value = "" // as of a secret that is not set
		}
		j.env[name] = value
	}
	for _, step := range workflow.Jobs["prove"].Steps {
		if step.Run != "" {
			j.script += step.Run + "\n"
		}
	}
	return []job{j}
}

func fromKubernetes(t *testing.T) (all []job) {
	t.Helper()
	const file = "kubernetes/holdfast-drill.yaml"
	env := map[string]string{}
	for documents := yaml.NewDecoder(strings.NewReader(read(t, file))); ; {
		var d struct {
			Kind     string
			Metadata struct{ Name string }
			Data     map[string]string
			Spec     struct {
				Schedule    string
				JobTemplate struct {
					Spec struct {
						Template struct {
							Spec struct {
								Containers []struct{ Command, Args []string }
							}
						}
					}
				} `yaml:"jobTemplate"`
			}
		}
		err := documents.Decode(&d)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		switch d.Kind {
		case "ConfigMap":
			if err := yaml.Unmarshal([]byte(d.Data["holdfast.yaml"]), &env); err != nil {
				t.Fatal(err)
			}
		case "CronJob":
			c := d.Spec.JobTemplate.Spec.Template.Spec.Containers[0]
			all = append(all, job{"Kubernetes " + d.Metadata.Name, file, strings.Join(slices.Concat(c.Command, c.Args), " "), env, d.Spec.Schedule, false})
		}
	}
}

// What the examples have run works, on a real archive, with the settings that they give; and afterwards a backup is proven.
func TestExamplesWork(t *testing.T) {
	s := site.New(t, pgtest.Require(t, 17), pgtest.Options{})
	s.Exec(t, `create table orders as select i from generate_series(1, 1000) i`)
	s.Push(t)
	s.Switch(t)
	s.Exec(t, `insert into orders select i from generate_series(1, 1000) i`)
	s.Switch(t)
	dir, drills := pgtest.Dir(t), pgtest.Dir(t)
	file := filepath.Join(dir, "holdfast.json")
	text, err := json.Marshal(map[string]string{"WALG_FILE_PREFIX": s.Root, "HOLDFAST_STATE_DIR": dir, "HOLDFAST_PG_BIN": filepath.Join(pgtest.Cache(), "pg", "*", "bin")})
	if err == nil {
		err = os.WriteFile(file, text, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, j := range jobs(t) {
		t.Run(j.what, func(t *testing.T) {
			cmd := pgtest.Command(t, "sh", "-ec", j.script)
			if j.root && os.Geteuid() == 0 {
				cmd = exec.CommandContext(t.Context(), "sh", "-ec", j.script)
			}
			cmd.Dir = pgtest.Dir(t)
			cmd.Env = []string{"HOME=" + dir}
			for name, value := range j.env {
				if !strings.HasPrefix(name, "AWS_") && name != "WALG_S3_PREFIX" {
					cmd.Env = append(cmd.Env, name+"="+value)
				}
			}
			cmd.Env = append(cmd.Env, "PATH="+filepath.Dir(s.Binary)+":/usr/bin:/bin", "HOLDFAST_CONFIG="+file, "HOLDFAST_STATE_DIR="+dir, "HOLDFAST_DRILL_DIR="+drills,
				"GITHUB_STEP_SUMMARY="+filepath.Join(cmd.Dir, "summary"))
			begun := time.Now()
			r := site.Run(t, cmd)
			if r.Status != 0 || strings.Contains(r.Stderr, "WARNING") {
				t.Fatalf("exit status %d after %s\n%s\n%s\n%s", r.Status, time.Since(begun), j.script, r.Stdout, r.Stderr)
			}
			if strings.Contains(j.script, "proof.json") {
				var proof struct{ OK bool }
				if b, err := os.ReadFile(filepath.Join(cmd.Dir, "proof.json")); err != nil || json.Unmarshal(b, &proof) != nil || !proof.OK {
					t.Errorf("proof.json: %v\n%s", err, b)
				}
				if b, err := os.ReadFile(filepath.Join(cmd.Dir, "proofs.md")); err != nil || !bytes.Contains(b, []byte("|")) {
					t.Errorf("proofs.md: %v\n%s", err, b)
				}
			}
		})
	}
	if left, err := os.ReadDir(drills); err != nil || len(left) > 0 {
		t.Errorf("left are %v (%v)", left, err)
	}
}

// Each name of a setting in an example is one of a setting, and each schedule is one.
func TestNamesAndSchedules(t *testing.T) {
	known := map[string]bool{}
	for _, s := range config.Table(2) {
		for _, name := range s.Names() {
			known[name] = true
			known[name+"_FILE"] = known[name+"_FILE"] || s.Secret
		}
	}
	other := map[string]bool{"HOLDFAST_CONFIG": true} // names that are no settings
	files, err := filepath.Glob(deploy + "*/*")
	if err != nil || len(files) < 9 {
		t.Fatalf("%q, %v", files, err)
	}
	name := regexp.MustCompile(`\b(HOLDFAST|WALG|AWS|PG)_[A-Z0-9_]*[A-Z0-9]\b`)
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range name.FindAllString(string(b), -1) {
			if !known[n] && !other[n] {
				t.Errorf("%s: there is no setting %s", file, n)
			}
		}
	}
	for _, j := range jobs(t) {
		if j.schedule == "" {
			continue
		}
		if s, err := agent.ParseSchedule(j.schedule, time.UTC); err != nil || s.Off() {
			t.Errorf("%s: %q: %v", j.what, j.schedule, err)
		}
	}
}

// systemd takes the units, and knows when the timer is due.
func TestUnits(t *testing.T) {
	analyze := pgtest.Program(t, "systemd-analyze")
	dir := t.TempDir()
	units, err := filepath.Glob(deploy + "systemd/*")
	if err != nil || len(units) < 4 {
		t.Fatalf("%q, %v", units, err)
	}
	here := pgtest.Build(t, "holdfast/cmd/holdfast") // has to be there
	var copies []string
	for _, u := range units {
		text := strings.ReplaceAll(read(t, "systemd/"+filepath.Base(u)), "/usr/local/bin/holdfast", here)
		copies = append(copies, filepath.Join(dir, filepath.Base(u)))
		if err := os.WriteFile(copies[len(copies)-1], []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if out := printed(t, dir, analyze, append([]string{"verify"}, copies...)...); out != "" {
		t.Error(out)
	}
	due := setting.FindAllStringSubmatch(read(t, "systemd/holdfast-drill.timer"), -1)
	i := slices.IndexFunc(due, func(m []string) bool { return m[1] == "OnCalendar" })
	if i < 0 {
		t.Fatal("the timer has no time")
	}
	if out := printed(t, dir, analyze, "calendar", due[i][2]); !strings.Contains(out, "Next elapse:") || strings.Contains(out, "never") {
		t.Error(out)
	}
}

// judged has somebody look at an example, which must please, and at it with something wrong in place of something right, which must not.
func judged(t *testing.T, file, right, wrong string, judge func(t *testing.T, text string) error) {
	t.Helper()
	text := read(t, file)
	if err := judge(t, text); err != nil {
		t.Error(err)
	}
	if !strings.Contains(text, right) {
		t.Fatalf("there is no %q in %s", right, file)
	}
	if err := judge(t, strings.Replace(text, right, wrong, 1)); err == nil {
		t.Errorf("%q in place of %q is not noticed", wrong, right)
	}
}

// written is a file with text in a directory of its own.
func written(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// ran runs a program, and says what it printed where it failed.
func ran(t *testing.T, dir, program string, args ...string) error {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "HOME="+dir, "GIT_CONFIG_NOSYSTEM=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", filepath.Base(program), err, out)
	}
	return nil
}

// GitLab's own schema of pipelines, as gitlab-ci-local brings it, takes the example.
func TestGitLab(t *testing.T) {
	program := filepath.Join(linters(t), ".bin", "gitlab-ci-local")
	judged(t, "gitlab/holdfast.gitlab-ci.yml", "  timeout: ", "  time-out: ", func(t *testing.T, text string) error {
		dir := filepath.Dir(written(t, ".gitlab-ci.yml", text))
		for _, args := range [][]string{{"init", "-q", "."}, {"remote", "add", "origin", "git@gitlab.example.com:dba/proof.git"}} {
			if err := ran(t, dir, "git", args...); err != nil {
				t.Fatal(err)
			}
		}
		return ran(t, dir, program, "--list", "--no-artifacts-to-source")
	})
}

// The schema of GitHub's workflows, as action-validator brings it, takes the example.
func TestGitHub(t *testing.T) {
	program := filepath.Join(linters(t), ".bin", "action-validator")
	judged(t, "github/holdfast-drill.yml", "timeout-minutes", "timeout-minuten", func(t *testing.T, text string) error {
		path := written(t, "holdfast-drill.yml", text)
		return ran(t, filepath.Dir(path), program, path)
	})
}

// The schemas of Kubernetes' own API take the example.
func TestKubernetes(t *testing.T) {
	node, modules := pgtest.Program(t, "node"), linters(t)
	script, err := filepath.Abs("kubernetes.cjs")
	if err != nil {
		t.Fatal(err)
	}
	judged(t, "kubernetes/holdfast-drill.yaml", "startingDeadlineSeconds", "startingDeadline", func(t *testing.T, text string) error {
		path := written(t, "holdfast-drill.yaml", text)
		return ran(t, filepath.Dir(path), node, script, modules, path)
	})
}
