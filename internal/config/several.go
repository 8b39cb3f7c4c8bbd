package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Default is the name of the storage that is outside of any map.
const Default = "default"

// everyStorage is what --target-storage may be to mean none in particular.
const everyStorage = "all"

// storages are the settings of several storages, by name.
type storages map[string][]entry

// parseStorages reads a map of names to maps of settings, in YAML or JSON. Names are in lower case, as in WAL-G.
func parseStorages(text string) (storages, error) {
	bad := errors.New("must be a map of names to maps of settings, in JSON or YAML")
	top, err := parseYAML([]byte(text))
	if err != nil {
		return nil, bad
	}
	all := storages{}
	for _, t := range top {
		name := strings.ToLower(t.key)
		switch {
		case name == Default || name == everyStorage:
			return nil, fmt.Errorf("must not name a storage %q: that is taken", name)
		case name == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_-.") != "":
			return nil, errors.New("must name storages with letters, digits, - . and _ only")
		case !t.structured:
			return nil, bad
		}
		if _, twice := all[name]; twice {
			return nil, fmt.Errorf("must name each storage once, and %q is there twice: upper and lower case are the same", name)
		}
		if all[name], err = parseYAML([]byte(t.text)); err != nil {
			return nil, bad
		}
	}
	return all, nil
}

// format writes the storages as JSON, with what value returns for each setting.
func (s storages) format(value func(entry) string) string {
	if len(s) == 0 {
		return ""
	}
	all := map[string]map[string]any{}
	for name, entries := range s {
		all[name] = map[string]any{}
		for _, e := range entries {
			all[name][e.key] = value(e)
		}
	}
	b, err := json.Marshal(all)
	if err != nil {
		panic(err) // maps of strings always can be
	}
	return string(b)
}

// storages reads the settings of each of several storages, which set holds. where is where that was given.
func (l *loader) storages(all storages, where string) []Storage {
	var out []Storage
	for _, name := range slices.Sorted(maps.Keys(all)) {
		out = append(out, l.storage(name, all[name], where+", storage "+name))
	}
	return out
}

// storage reads the settings of one of several storages, which take nothing from outside of it.
func (l *loader) storage(name string, entries []entry, where string) Storage {
	s := &Settings{}
	in := newLoader(s, 1, l.command)
	var values []value
	for _, e := range entries {
		v := value{name: e.key, text: e.text, where: where}
		if i, ok := in.byName[strings.ToUpper(e.key)]; ok {
			switch row := &in.table[i]; {
			case !row.ofStorage():
				in.problem(v, "it is a setting of the whole, not of one of several storages", "move it out of the map")
				continue
			case e.structured && row.Type != Map:
				in.problem(v, "must be one value, not a list or a map", "write it as a string")
				continue
			}
		}
		values = append(values, v)
	}
	s.given = in.fill([]map[int]value{in.layer(values)})
	s.Storage.Name = name
	in.problems = append(in.problems, s.Storage.resolve(s.given)...)
	if s.Storage.Location() == "" && len(in.problems) == 0 {
		in.problems = append(in.problems, &Problem{What: name, Where: where, Why: "no setting says where this storage is",
			Do: "give it a prefix of its own, such as WALG_S3_PREFIX: s3://bucket/path"})
	}
	l.problems = append(l.problems, in.problems...)
	for _, why := range in.order {
		l.ignore(why, in.ignored[why]...)
	}
	return s.Storage
}

// ofStorage reports whether the setting is one of a storage rather than of the whole.
func (s *Setting) ofStorage() bool {
	return s.Name == "WALG_STORAGE_PREFIX" || slices.ContainsFunc(prefixes[:], func(p prefix) bool { return p.setting == s.Name || p.section == s.Section })
}

// several judges the storages together.
func (s *Settings) several() (problems []*Problem) {
	seen := map[string]string{}
	names := []string{Default}
	for _, st := range s.Storages() {
		at := st.Location()
		if first := seen[at]; first != "" && at != "" {
			problems = append(problems, &Problem{What: st.Name, Where: "several storages", Why: fmt.Sprintf("it is the same place as %s: %s", first, at),
				Do: "give each storage a place of its own"})
		}
		seen[at] = st.Name
		if st.Name != Default {
			names = append(names, st.Name)
		}
	}
	s.Target = strings.ToLower(s.Target)
	if v, given := s.given("WALG_TARGET_STORAGE"); given && s.Target != everyStorage && !slices.Contains(names, s.Target) {
		problems = append(problems, &Problem{What: v.name, Where: v.where, Why: fmt.Sprintf("there is no storage %q", s.Target),
			Do: "name one of: " + strings.Join(names, ", ")})
	}
	if s.Target == everyStorage {
		s.Target = ""
	}
	if len(s.Failover)+len(s.Mirrors) > 0 && s.Storage.Location() == "" {
		v, given := s.given("WALG_FAILOVER_STORAGES")
		if !given {
			v, _ = s.given("HOLDFAST_MIRRORS")
		}
		problems = append(problems, &Problem{What: v.name, Where: v.where, Why: "there is no storage outside of the map, which is the first of all",
			Do: "set the prefix of the storage to be called " + Default + ", such as WALG_S3_PREFIX"})
	}
	return problems
}
