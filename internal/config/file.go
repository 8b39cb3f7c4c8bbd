package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
	"go.yaml.in/yaml/v3"
)

// maxFile bounds a settings file, in bytes.
const maxFile = 1 << 20

// Extensions of settings files that can be read, and of those that WAL-G could read too.
var (
	readable   = []string{".json", ".yaml", ".yml", ".toml"}
	unreadable = []string{".hcl", ".tfvars", ".ini", ".properties", ".props", ".prop", ".env", ".dotenv"}
)

// entry is one key of a settings file.
type entry struct {
	key        string
	text       string // the value; JSON when structured
	structured bool   // a list or a map
	null       bool
	line       int // from 1; 0 when not known
}

// parseFile reads the settings in data, which the file called name holds: a map from names to values.
func parseFile(name string, data []byte) ([]entry, error) {
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	switch ext := strings.ToLower(filepath.Ext(name)); {
	case ext == ".json":
		return parseJSON(data)
	case ext == ".yaml" || ext == ".yml":
		return parseYAML(data)
	case ext == ".toml":
		return parseTOML(data)
	default:
		return nil, fmt.Errorf("the extension %q is not one of %s", ext, strings.Join(readable, " "))
	}
}

// parseJSON reads one JSON object.
func parseJSON(data []byte) (entries []entry, err error) {
	d := json.NewDecoder(bytes.NewReader(data))
	line := func() int { return 1 + bytes.Count(data[:min(d.InputOffset(), int64(len(data)))], []byte("\n")) }
	defer func() {
		if err != nil {
			at := line()
			if e := (*json.SyntaxError)(nil); errors.As(err, &e) {
				at = 1 + bytes.Count(data[:min(e.Offset, int64(len(data)))], []byte("\n"))
			}
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			err = fmt.Errorf("line %d: %w", at, err)
		}
	}()
	notObject := errors.New("the file must hold one JSON object")
	if t, err := d.Token(); err != nil {
		return nil, err
	} else if t != json.Delim('{') {
		return nil, notObject
	}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, err
		}
		key, ok := t.(string)
		if !ok {
			return nil, notObject
		}
		e := entry{key: key, line: line()}
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return nil, err
		}
		switch raw[0] {
		case '"':
			if err := json.Unmarshal(raw, &e.text); err != nil {
				return nil, err
			}
		case '{', '[':
			e.text, e.structured = string(raw), true
		case 'n':
			e.null = true
		default:
			e.text = string(raw)
		}
		entries = append(entries, e)
	}
	if _, err := d.Token(); err != nil { // the closing brace
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, notObject
	}
	return entries, nil
}

// parseYAML reads one YAML document that is a map.
func parseYAML(data []byte) ([]entry, error) {
	d := yaml.NewDecoder(bytes.NewReader(data))
	var doc, more yaml.Node
	if err := d.Decode(&doc); errors.Is(err, io.EOF) {
		return nil, nil // empty, or comments only
	} else if err != nil {
		return nil, plainYAML(err)
	}
	if err := d.Decode(&more); !errors.Is(err, io.EOF) {
		return nil, errors.New("the file must hold one YAML document")
	}
	root := doc.Content[0]
	if root.Tag == "!!null" {
		return nil, nil
	}
	if root.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("line %d: the file must hold a YAML map", root.Line)
	}
	var entries []entry
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, v := root.Content[i], root.Content[i+1]
		if key.Kind != yaml.ScalarNode {
			return nil, fmt.Errorf("line %d: a key must be the name of a setting", key.Line)
		}
		if v.Kind == yaml.AliasNode {
			v = v.Alias
		}
		e := entry{key: key.Value, text: v.Value, line: key.Line}
		switch {
		case v.Kind == yaml.MappingNode || v.Kind == yaml.SequenceNode:
			var any any
			if err := v.Decode(&any); err != nil {
				return nil, plainYAML(err)
			}
			b, err := json.Marshal(any)
			if err != nil {
				return nil, fmt.Errorf("line %d: %w", v.Line, err)
			}
			e.text, e.structured = string(b), true
		case v.Tag == "!!null":
			e.text, e.null = "", true
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// plainYAML takes the package's name off an error.
func plainYAML(err error) error { return errors.New(strings.TrimPrefix(err.Error(), "yaml: ")) }

// parseTOML reads one TOML document. Lines are known of syntax errors only.
func parseTOML(data []byte) ([]entry, error) {
	all := map[string]any{}
	meta, err := toml.Decode(string(data), &all)
	if e := (toml.ParseError{}); errors.As(err, &e) {
		return nil, fmt.Errorf("line %d: %s", e.Position.Line, e.Message)
	} else if err != nil {
		return nil, err
	}
	var entries []entry
	for _, k := range meta.Keys() {
		if slices.ContainsFunc(entries, func(e entry) bool { return e.key == k[0] }) {
			continue
		}
		e := entry{key: k[0]}
		switch v := all[k[0]].(type) {
		case string:
			e.text = v
		case bool:
			e.text = strconv.FormatBool(v)
		case int64:
			e.text = strconv.FormatInt(v, 10)
		case float64:
			e.text = strconv.FormatFloat(v, 'g', -1, 64)
		case map[string]any, []any, []map[string]any:
			b, err := json.Marshal(v)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", e.key, err)
			}
			e.text, e.structured = string(b), true
		default:
			return nil, fmt.Errorf("%s: a setting cannot be a date or time without quotes", e.key)
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// readBounded reads the file called path, of at most max bytes.
func readBounded(path string, max int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read: nothing to lose
	b, err := io.ReadAll(io.LimitReader(f, max+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > max {
		return nil, fmt.Errorf("%s is larger than the %d bytes such a file may have", path, max)
	}
	return b, nil
}
