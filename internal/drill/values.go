package drill

import (
	"math"
	"strconv"
	"strings"
)

// parameter is what pg_settings says of a server's parameter.
type parameter struct {
	kind string // bool, integer, real, string or enum: vartype
	unit string // of a number that is given without one, such as 8kB or ms; "" for none
}

// same reports whether two values mean the same, as parse_int, parse_real and parse_bool of src/backend/utils/misc/guc.c and src/backend/utils/adt/bool.c read them. Of what
// these would not take it is whether they are written alike.
func (p parameter) same(x, y string) bool {
	if x == y {
		return true
	}
	switch p.kind {
	case "bool":
		a, ok := truth(x)
		b, too := truth(y)
		return ok && too && a == b
	case "enum":
		return strings.EqualFold(x, y)
	case "integer", "real":
		a, ok := p.number(x)
		b, too := p.number(y)
		if p.kind == "integer" { // a fraction of the unit is rounded
			a, b = math.RoundToEven(a), math.RoundToEven(b)
		}
		return ok && too && a == b
	}
	return false
}

// truth reads a boolean: a beginning of true, false, yes or no, on or off, 1 or 0.
func truth(text string) (value, ok bool) {
	text = strings.ToLower(text)
	for word, v := range map[string]bool{"true": true, "yes": true, "on": true, "1": true, "false": false, "no": false, "off": false, "0": false} {
		if text != "" && text != "o" && strings.HasPrefix(word, text) {
			return v, true
		}
	}
	return false, false
}

// units are those in which sizes and times may be given, in bytes and in microseconds: no name of the one is one of the other.
var units = map[string]float64{"B": 1, "kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40,
	"us": 1, "ms": 1e3, "s": 1e6, "min": 60e6, "h": 3600e6, "d": 86400e6}

// number reads a number in p's unit.
func (p parameter) number(text string) (float64, bool) {
	text = strings.TrimSpace(text)
	digits := strings.TrimRight(text, "BkMGTusmindh")
	of := strings.TrimSpace(text[len(digits):])
	if n, err := strconv.ParseInt(text, 0, 64); err == nil && p.kind == "integer" { // also in octal and hexadecimal digits, which may be those letters
		return float64(n), true
	}
	value, err := strconv.ParseFloat(strings.TrimSpace(digits), 64)
	if err != nil || of == "" {
		return value, err == nil
	}
	many := strings.TrimRight(p.unit, "BkMGTusmindh") // 8kB
	base, known := units[p.unit[len(many):]]
	scale, given := units[of]
	if n, err := strconv.ParseFloat(many, 64); err == nil {
		base *= n
	}
	return value * scale / base, known && given
}
