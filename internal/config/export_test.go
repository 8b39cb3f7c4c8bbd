package config

import "reflect"

// Group is a foreign group, for the documentation.
type Group struct {
	Names   []string
	Why     string
	Refused string
	Used    []string
}

// Foreign returns what is known and not in the table.
func Foreign() (groups []Group) {
	for _, f := range foreigners() {
		groups = append(groups, Group{f.names, f.why, f.refused, f.used})
	}
	return groups
}

// FieldKind returns the kind that the field of s has, or String for a variable of libpq.
func FieldKind(s Setting) string {
	if _, ok := s.into.(variable); ok {
		return "string"
	}
	return reflect.TypeOf(s.into).Elem().String()
}

// Entry is one key of a settings file.
type Entry struct {
	Key, Text  string
	Structured bool
}

// ParseFile is parseFile, without the lines.
func ParseFile(name string, data []byte) ([]Entry, error) {
	es, err := parseFile(name, data)
	var out []Entry
	for _, e := range es {
		out = append(out, Entry{e.key, e.text, e.structured})
	}
	return out, err
}
