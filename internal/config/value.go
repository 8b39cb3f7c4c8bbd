package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Kind says what a value looks like.
type Kind string

// The kinds of values. A value of any kind may be written as a string.
const (
	String   Kind = "string"
	Path     Kind = "path"
	Enum     Kind = "enum"
	Bool     Kind = "bool"         // 1, t, true, 0, f, false
	Int      Kind = "int"          //
	Size     Kind = "size"         // bytes, or a number with k, M, G or T, then perhaps B or iB, in steps of 1024 as in PostgreSQL
	Duration Kind = "duration"     // as Go writes it: 30s, 1h30m
	Fraction Kind = "fraction"     // from 0 to 1
	JSON     Kind = "JSON"         // in a file also as it is, not as a string
	Map      Kind = "map"          // of strings, in JSON or YAML; in a file also as it is
	Rules    Kind = "map of rules" // in JSON or YAML; in a file also as it is
	List     Kind = "list of maps" // in JSON or YAML; in a file also as it is
	Storages Kind = "map of maps"  // of settings, in JSON or YAML; in a file also as it is
)

// assign reads text and puts it where field points. The error says what a value must be, without repeating it.
func (s *Setting) assign(field any, text string) error {
	switch f := field.(type) {
	case *string:
		if s.Values != nil {
			i := slices.IndexFunc(s.Values, func(v string) bool { return strings.EqualFold(v, text) })
			if i < 0 {
				return fmt.Errorf("must be one of %s", strings.Join(s.Values, ", "))
			}
			text = s.Values[i]
		}
		*f = text
	case *bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return errors.New("must be true or false")
		}
		*f = b
	case *int:
		n, err := strconv.ParseInt(text, 10, strconv.IntSize)
		if err != nil {
			return errors.New("must be a whole number")
		}
		*f = int(n)
		return s.inRange(n)
	case *int64:
		n, err := parseSize(text)
		if err != nil {
			return err
		}
		*f = n
		return s.inRange(n)
	case *float64:
		x, err := strconv.ParseFloat(text, 64)
		if err != nil || !(x >= 0 && x <= 1) {
			return errors.New("must be a fraction from 0 to 1, such as 0.001")
		}
		*f = x
	case *time.Duration:
		d, err := time.ParseDuration(text)
		if err != nil {
			return errors.New("must be a duration such as 30s or 1h30m")
		}
		*f = d
		return s.inRange(int64(d))
	case *json.RawMessage:
		var b bytes.Buffer
		if err := json.Compact(&b, []byte(text)); err != nil {
			return fmt.Errorf("must be JSON: %w", err)
		}
		*f = b.Bytes()
	case *map[string]string:
		m := map[string]string{}
		if err := yaml.Unmarshal([]byte(text), &m); err != nil {
			return errors.New("must be a map of strings, in JSON or YAML")
		}
		*f = m
	case *storages:
		m, err := parseStorages(text)
		if err != nil {
			return err
		}
		*f = m
	default:
		panic(fmt.Sprintf("setting %s has a field of type %T", s.Name, field))
	}
	return nil
}

// format writes the value that field points to so that assign reads the same.
func format(field any) string {
	switch f := field.(type) {
	case *string:
		return *f
	case *bool:
		return strconv.FormatBool(*f)
	case *int:
		return strconv.Itoa(*f)
	case *int64:
		return formatSize(*f)
	case *float64:
		return strconv.FormatFloat(*f, 'g', -1, 64)
	case *time.Duration:
		return f.String()
	case *json.RawMessage:
		return string(*f)
	case *map[string]string:
		if len(*f) == 0 {
			return ""
		}
		b, err := json.Marshal(*f)
		if err != nil {
			panic(err) // a map of strings always can be
		}
		return string(b)
	case *storages:
		return f.format(func(e entry) string { return e.text })
	}
	panic(fmt.Sprintf("a setting has a field of type %T", field))
}

// inRange reports whether n is between Min and Max.
func (s *Setting) inRange(n int64) error {
	if n >= s.Min && (s.Max == 0 || n <= s.Max) {
		return nil
	}
	return fmt.Errorf("must be %s", s.Range())
}

// Range says which numbers, sizes or durations the setting takes; "" for other kinds.
func (s *Setting) Range() string {
	var show func(int64) string
	switch s.Type {
	case Int:
		show = func(n int64) string { return strconv.FormatInt(n, 10) }
	case Size:
		show = formatSize
	case Duration:
		show = func(n int64) string { return time.Duration(n).String() }
	default:
		return ""
	}
	if s.Max == 0 {
		return "at least " + show(s.Min)
	}
	return "from " + show(s.Min) + " to " + show(s.Max)
}

// sizeUnits are powers of 1024.
const sizeUnits = "KMGT"

// ParseSize reads what a flag says of bytes, as settings do.
func ParseSize(text string) (int64, error) { return parseSize(text) }

// parseSize reads bytes: "1048576", "1MiB", "1MB", "1m".
func parseSize(text string) (int64, error) {
	bad := errors.New("must be a size in bytes, or with a unit as in 64MiB")
	digits := strings.TrimRight(text, "kKmMgGtTiIbB ")
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil {
		return 0, bad
	}
	unit := strings.ToUpper(strings.TrimSpace(text[len(digits):]))
	if unit == "" || unit == "B" {
		return n, nil
	}
	power := strings.IndexByte(sizeUnits, unit[0]) + 1
	if rest := unit[1:]; power == 0 || rest != "" && rest != "B" && rest != "IB" {
		return 0, bad
	}
	factor := int64(1) << (10 * power)
	if n > math.MaxInt64/factor || n < math.MinInt64/factor {
		return 0, bad
	}
	return n * factor, nil
}

// formatSize writes n bytes with the largest unit that keeps it a whole number.
func formatSize(n int64) string {
	power := 0
	for n != 0 && n%1024 == 0 && power < len(sizeUnits) {
		n /= 1024
		power++
	}
	if power == 0 {
		return strconv.FormatInt(n, 10)
	}
	return fmt.Sprintf("%d%ciB", n, sizeUnits[power-1])
}
