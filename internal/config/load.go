package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// Sources is where settings come from, the strongest first.
type Sources struct {
	Flags   []Flag   // given on the command line
	Turbo   bool     // --turbo: no rate limits
	Environ []string // as os.Environ returns it
	File    string   // --config, or ""
	Home    string   // directory with .walg.json and the like; "" when there is none
	Cores   int      // default number of workers; 0 means 1
	Command string   // that the settings are for; "" stands for every command
}

// Flag is a setting that was given as a flag.
type Flag struct {
	Flag    string // as it is typed: --walg-s3-prefix
	Setting string // any name of the setting
	Value   string
}

// value is a setting as a source gave it.
type value struct {
	name  string // as it was given
	text  string
	where string // environment, flag --…, or file:line
	env   bool
}

// unread is what testing and nothing else uses: names of ours that are not settings.
const unread = "HOLDFAST_TEST_"

// maxSecret bounds what a file with a secret may hold, in bytes.
const maxSecret = 64 << 10

// loader collects values and problems.
type loader struct {
	table    []Setting
	byName   map[string]int // index in table of each name, and of each name of a secret's file
	secrets  map[string]bool
	foreign  []foreign
	command  string
	problems []*Problem
	ignored  map[*foreign][]string // what was given of a group, and where
	order    []*foreign            // the keys of ignored as they came up
}

// Load reads the sources. An error joins one *Problem for each thing that is wrong, in an order that does not change.
func Load(src Sources) (*Settings, error) {
	s := &Settings{}
	l := &loader{table: table(s, max(src.Cores, 1)), byName: map[string]int{}, secrets: map[string]bool{}, foreign: foreigners(),
		command: src.Command, ignored: map[*foreign][]string{}}
	for i := range l.table {
		for _, n := range l.table[i].Names() {
			l.byName[n] = i
			if l.table[i].Secret {
				l.byName[n+"_FILE"], l.secrets[n+"_FILE"] = i, true
			}
		}
	}

	layers := []map[int]value{l.layer(flagValues(src.Flags)), l.layer(environValues(src.Environ))}
	path, where := l.settingsFile(src, layers[1])
	if path != "" {
		layers = append(layers, l.layer(l.read(path, where)))
	}

	from := map[int]value{}
	for i := range l.table {
		set := &l.table[i]
		if set.Default != "" {
			if err := set.set(set.Default); err != nil {
				panic(fmt.Sprintf("default of %s: %v", set.Name, err))
			}
		}
		for n := len(layers) - 1; n >= 0; n-- { // the strongest last
			if v, ok := layers[n][i]; ok {
				l.set(set, v)
				from[i] = v
			}
		}
	}
	s.File = path

	l.problems = append(l.problems, s.resolve(func(name string) (value, bool) {
		v, ok := from[l.byName[name]]
		return v, ok
	})...)
	if src.Turbo {
		s.Storage.NetworkRate, s.Backup.DiskRate = 0, 0
	}
	if len(l.problems) > 0 {
		sortProblems(l.problems)
		var errs []error
		for _, p := range l.problems {
			errs = append(errs, p)
		}
		return nil, errors.Join(errs...)
	}

	for i := range l.table {
		set := &l.table[i]
		v := Value{Name: set.Name, Value: set.get(), Source: "default", Secret: set.Secret}
		if set.EnvOnly {
			if path != "" {
				v.Source = where
			}
		} else if f, ok := from[i]; ok {
			v.Source = f.where
			if f.env {
				v.Source += " " + f.name
			}
		}
		if src.Turbo && (set.Name == "WALG_NETWORK_RATE_LIMIT" || set.Name == "WALG_DISK_RATE_LIMIT") {
			v.Source = "flag --turbo"
		}
		if v.Secret && v.Value != "" {
			v.Value = Hidden
		}
		s.values = append(s.values, v)
	}
	for _, f := range l.order {
		s.notices = append(s.notices, "ignored: "+strings.Join(l.ignored[f], ", ")+": "+f.why)
	}
	return s, nil
}

// flagValues returns the flags as values.
func flagValues(flags []Flag) (values []value) {
	for _, f := range flags {
		values = append(values, value{name: f.Setting, text: f.Value, where: "flag " + f.Flag})
	}
	return values
}

// environValues returns the variables of the environment; the last one of equal name counts.
func environValues(environ []string) (values []value) {
	last := map[string]int{}
	for _, e := range environ {
		name, text, ok := strings.Cut(e, "=")
		if !ok || strings.HasPrefix(name, unread) {
			continue
		}
		v := value{name: name, text: text, where: "environment", env: true}
		if i, again := last[name]; again {
			values[i] = v
			continue
		}
		last[name] = len(values)
		values = append(values, v)
	}
	return values
}

// layer sorts the values of one source by setting, and reports those that are none.
func (l *loader) layer(values []value) map[int]value {
	layer := map[int]value{}
	for _, v := range values {
		name := v.name
		if !v.env {
			name = strings.ToUpper(name)
		}
		i, known := l.byName[name]
		if !known {
			l.other(name, v)
			continue
		}
		v.text = strings.TrimRight(v.text, "\r\n")
		if v.text == "" {
			continue
		}
		set := &l.table[i]
		switch {
		case set.EnvOnly && !v.env:
			l.problem(v, "it says where this file is, so it cannot be in here", "set it in the environment, or use --config")
			continue
		case l.secrets[name]:
			if v.text = l.secret(v); v.text == "" {
				continue
			}
		case set.Secret && strings.HasPrefix(v.where, "flag "):
			l.problem(v, "a secret on a command line can be read by everybody on this machine",
				"put it into the environment or into a settings file, or name a file that holds it with "+strings.TrimPrefix(v.where, "flag ")+"-file")
			continue
		}
		if first, twice := layer[i]; twice {
			if first.text != v.text {
				l.problem(v, first.name+" ("+first.where+") is the same setting and has another value", "keep one of them")
			}
			continue
		}
		layer[i] = v
	}
	return layer
}

// other judges a name that is not in the table.
func (l *loader) other(name string, v value) {
	if f := find(l.foreign, name); f != nil {
		ours := strings.HasPrefix(name, "WALG_") || strings.HasPrefix(name, "WALE_")
		if v.env && f.shared && !ours || strings.TrimSpace(v.text) == "" || l.command != "" && f.used != nil && !slices.Contains(f.used, l.command) {
			return
		}
		switch {
		case slices.Contains(f.quiet, strings.ToLower(strings.TrimSpace(v.text))):
		case f.refused != "":
			l.problem(v, f.why, f.refused)
		default:
			if l.ignored[f] == nil {
				l.order = append(l.order, f)
			}
			l.ignored[f] = append(l.ignored[f], v.name+" ("+v.where+")")
		}
		return
	}
	if v.env && !strings.HasPrefix(name, "WALG_") && !strings.HasPrefix(name, "HOLDFAST_") {
		return // somebody else's
	}
	l.problems = append(l.problems, unknown(v.name, v.where, l.names()))
}

// names returns every name that is known, in the order of the table.
func (l *loader) names() []string {
	var names []string
	for i := range l.table {
		names = append(names, l.table[i].Names()...)
	}
	for _, f := range l.foreign {
		names = append(names, f.names...)
	}
	return slices.DeleteFunc(names, func(n string) bool { return strings.HasSuffix(n, "*") })
}

// secret reads the file that v names.
func (l *loader) secret(v value) string {
	b, err := readBounded(v.text, maxSecret)
	if err != nil {
		l.problem(v, err.Error(), "name a file that this user can read")
		return ""
	}
	text := strings.TrimRight(string(b), "\r\n")
	if text == "" {
		l.problem(v, v.text+" is empty", "write the secret into it")
	}
	return text
}

// settingsFile finds the file to read. where says who named it.
func (l *loader) settingsFile(src Sources, env map[int]value) (path, where string) {
	if src.File != "" {
		return src.File, "flag --config"
	}
	if v, ok := env[l.byName["WALG_CONFIG_PATH"]]; ok {
		return v.text, "environment " + v.name
	}
	if src.Home == "" {
		return "", ""
	}
	var found []string
	for _, base := range []string{".holdfast", ".walg"} {
		for _, ext := range append(slices.Clone(readable), unreadable...) {
			p := filepath.Join(src.Home, base+ext)
			if _, err := os.Lstat(p); err == nil {
				found = append(found, p)
			} else if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) { // accounts may have /dev/null as their home
				l.problems = append(l.problems, &Problem{What: p, Why: err.Error(), Do: "make it readable, or name another file with --config"})
				return "", ""
			}
		}
	}
	switch len(found) {
	case 0:
		return "", ""
	case 1:
		return found[0], "found in the home directory"
	}
	l.problems = append(l.problems, &Problem{What: "settings file", Why: "there are several: " + strings.Join(found, ", "),
		Do: "keep one of them, or name one with --config"})
	return "", ""
}

// read returns what the settings file says; where tells who named it.
func (l *loader) read(path, where string) []value {
	file := &Problem{What: path, Where: where}
	b, err := readBounded(path, maxFile)
	if err != nil {
		file.Why, file.Do = err.Error(), "create it, make it readable, or name another one with --config"
		l.problems = append(l.problems, file)
		return nil
	}
	entries, err := parseFile(path, b)
	if err != nil {
		file.Why, file.Do = err.Error(), "correct it; settings files are YAML, JSON or TOML, by extension"
		l.problems = append(l.problems, file)
		return nil
	}
	var values []value
	for _, e := range entries {
		v := value{name: e.key, text: e.text, where: path}
		if e.line > 0 {
			v.where = fmt.Sprintf("%s:%d", path, e.line)
		}
		if i, ok := l.byName[strings.ToUpper(e.key)]; ok && e.structured && l.table[i].Type != JSON && l.table[i].Type != Map {
			l.problem(v, "must be one value, not a list or a map", "write it as a string")
			continue
		}
		values = append(values, v)
	}
	return values
}

// set puts v into its place, or reports why it cannot be.
func (l *loader) set(set *Setting, v value) {
	err := set.set(v.text)
	if err == nil {
		return
	}
	why := fmt.Sprintf("%q %s", v.text, err)
	if set.Secret {
		why = err.Error()
	}
	l.problem(v, why, "correct or unset it; its meaning: "+set.Meaning)
}

// problem reports what is wrong with v.
func (l *loader) problem(v value, why, do string) {
	l.problems = append(l.problems, &Problem{What: v.name, Where: v.where, Why: why, Do: do})
}
