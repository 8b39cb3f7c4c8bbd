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
	Content []byte   // of the settings file, where it was read already; nil reads it
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

// shared reports whether v may be meant for another program, which may take values that we do not.
func (v value) shared() bool {
	return v.env && !strings.HasPrefix(v.name, "WALG_") && !strings.HasPrefix(v.name, "WALE_") && !strings.HasPrefix(v.name, "HOLDFAST_")
}

// unread is what testing and nothing else uses: names of ours that are not settings.
const unread = "HOLDFAST_TEST_"

// maxSecret bounds what a file with a secret may hold, in bytes.
const maxSecret = 64 << 10

// loader collects values and problems.
type loader struct {
	settings  *Settings
	table     []Setting
	byName    map[string]int // index in table of each name, and of each name of a secret's file
	secrets   map[string]bool
	foreign   []foreign
	command   string
	problems  []*Problem
	conflicts []conflict
	hollow    []value             // settings that encrypt, without a value in the file
	ignored   map[string][]string // what was given and does nothing, and where, by the reason
	order     []string            // the keys of ignored as they came up
}

// conflict is two values that one source gives to one setting.
type conflict struct {
	setting       int // index in table
	first, second value
}

// newLoader returns a loader that fills s.
func newLoader(s *Settings, cores int, command string) *loader {
	l := &loader{settings: s, table: table(s, max(cores, 1)), byName: map[string]int{}, secrets: map[string]bool{}, foreign: foreigners(),
		command: command, ignored: map[string][]string{}}
	for i := range l.table {
		for _, n := range l.table[i].Names() {
			l.byName[n] = i
			if l.table[i].Secret {
				l.byName[n+"_FILE"], l.secrets[n+"_FILE"] = i, true
			}
		}
	}
	return l
}

// fill puts what layers, the strongest first, give into its place, defaults where they give nothing. It returns what was given.
func (l *loader) fill(layers []map[int]value) given {
	from := map[int]value{}
	for i := range l.table {
		set := &l.table[i]
		if set.Default != "" {
			if err := set.set(set.Default); err != nil {
				panic(fmt.Sprintf("default of %s: %v", set.Name, err))
			}
		}
	}
	used := map[string]bool{}
	for _, p := range prefixes {
		for _, layer := range layers {
			if _, ok := layer[l.byName[p.setting]]; ok {
				used[p.section] = true
			}
		}
	}
	idle := func(set *Setting) bool {
		return !used[set.Section] && slices.ContainsFunc(prefixes[:], func(p prefix) bool { return p.section == set.Section })
	}
	for _, c := range l.conflicts {
		if !(idle(&l.table[c.setting]) && c.first.shared() && c.second.shared()) {
			l.problem(c.second, c.first.name+" ("+c.first.where+") is the same setting and has another value", "keep one of them")
		}
	}
	for i := range l.table {
		set := &l.table[i]
		idle := idle(set)
		for n := len(layers) - 1; n >= 0; n-- { // the strongest last
			v, ok := layers[n][i]
			if !ok {
				continue
			}
			if idle && !v.shared() && set.Section != "S3" { // AWS_… are for KMS too
				l.ignore(idleStorage, v.name+" ("+v.where+")")
			}
			if idle && v.shared() {
				if set.set(v.text) == nil {
					from[i] = v
				}
				continue
			}
			l.set(set, v)
			from[i] = v
		}
	}
	return func(name string) (value, bool) {
		v, ok := from[l.byName[name]]
		return v, ok
	}
}

// idleStorage is why the settings of a kind of storage do nothing.
const idleStorage = "no storage of this kind is in use; what belongs to one of several storages goes into its own map"

// ignore notes settings that do nothing.
func (l *loader) ignore(why string, what ...string) {
	if l.ignored[why] == nil {
		l.order = append(l.order, why)
	}
	l.ignored[why] = append(l.ignored[why], what...)
}

// Load reads the sources. An error joins one *Problem for each thing that is wrong, in an order that does not change.
func Load(src Sources) (*Settings, error) {
	s := &Settings{}
	l := newLoader(s, src.Cores, src.Command)
	layers := []map[int]value{l.layer(flagValues(src.Flags)), l.layer(environValues(src.Environ))}
	path, where := l.settingsFile(src, layers[1])
	if path != "" {
		layers = append(layers, l.layer(l.read(path, where, src.Content)))
	}
	s.given = l.fill(layers)
	s.File = path
	s.Storage.Name = Default
	l.problems = append(l.problems, s.Storage.resolve(s.given)...)
	for _, m := range []struct {
		setting string
		all     storages
		into    *[]Storage
	}{{"WALG_FAILOVER_STORAGES", s.failover, &s.Failover}, {"HOLDFAST_MIRRORS", s.mirrors, &s.Mirrors}} {
		v, _ := s.given(m.setting)
		*m.into = l.storages(m.all, v.where)
	}
	l.problems = append(l.problems, s.resolve()...)
	if !s.Encryption.encrypts() { // who has written that line believes that it does
		for _, v := range l.hollow {
			if slices.Contains(readers, l.command) { // and a recovery must not end for it
				l.ignore("it is empty, and nothing else encrypts; commands that store are refused, as all would be stored in clear", v.name+" ("+v.where+")")
				continue
			}
			l.problem(v, "it is empty, and nothing else encrypts: all would be stored in clear", "give it a public key; where that is meant, remove the line")
		}
	}
	if s.StateDir == "" && src.Home != "" {
		s.StateDir = filepath.Join(src.Home, ".holdfast")
	}
	if src.Turbo {
		s.NetworkRate, s.Backup.DiskRate = 0, 0
	}
	if len(l.problems) > 0 {
		sortProblems(l.problems)
		var errs []error
		for _, p := range l.problems {
			errs = append(errs, p)
		}
		return nil, errors.Join(errs...)
	}
	s.rows = l.table
	for i := range l.table {
		s.values = append(s.values, l.effective(&l.table[i], src, where))
	}
	for _, why := range l.order {
		s.notices = append(s.notices, "ignored: "+strings.Join(l.ignored[why], ", ")+": "+why)
	}
	return s, nil
}

// effective returns a setting as it is in force. file says who named the settings file.
func (l *loader) effective(set *Setting, src Sources, file string) Value {
	v := Value{Name: set.Name, Value: set.get(), Source: "default", Secret: set.Secret}
	switch given, ok := l.settings.given(set.Name); {
	case set.EnvOnly && l.settings.File != "":
		v.Source = file
	case set.EnvOnly, !ok:
	default:
		v.Source = given.where
		if given.env {
			v.Source += " " + given.name
		}
	}
	if src.Turbo && (set.Name == "WALG_NETWORK_RATE_LIMIT" || set.Name == "WALG_DISK_RATE_LIMIT") {
		v.Source = "flag --turbo"
	}
	all, several := set.into.(*storages)
	switch {
	case several:
		v.Value = all.format(func(e entry) string {
			if i, ok := l.byName[strings.ToUpper(e.key)]; ok && l.table[i].Secret && !l.secrets[strings.ToUpper(e.key)] {
				return Hidden
			}
			return e.text
		})
	case v.Secret && v.Value != "":
		v.Value = Hidden
	}
	return v
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
				l.conflicts = append(l.conflicts, conflict{i, first, v})
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
			l.ignore(f.why, v.name+" ("+v.where+")")
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

// read returns what the settings file says; where tells who named it. A content that is not nil is that of the file.
func (l *loader) read(path, where string, b []byte) []value {
	file := &Problem{What: path, Where: where}
	if b == nil {
		var err error
		if b, err = readBounded(path, maxFile); err != nil {
			file.Why, file.Do = err.Error(), "create it, make it readable, or name another one with --config"
			l.problems = append(l.problems, file)
			return nil
		}
	}
	l.settings.Content = b
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
		i, ok := l.byName[strings.ToUpper(e.key)]
		if ok && l.table[i].encrypts && strings.TrimRight(e.text, "\r\n") == "" { // as layer sees it
			l.hollow = append(l.hollow, v)
		}
		if e.null { // it counts as not there
			continue
		}
		if ok && e.structured && !slices.Contains([]Kind{JSON, Map, Rules, List, Storages}, l.table[i].Type) {
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
	if _, secret := err.(unshown); secret || set.Secret {
		why = err.Error()
	}
	l.problem(v, why, "correct or unset it; its meaning: "+set.Meaning)
}

// problem reports what is wrong with v.
func (l *loader) problem(v value, why, do string) {
	l.problems = append(l.problems, &Problem{What: v.name, Where: v.where, Why: why, Do: do})
}
