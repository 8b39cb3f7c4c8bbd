package drill

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"go.yaml.in/yaml/v3"
)

// Question is a check of the operator's own.
type Question struct {
	Name     string // for people
	Database string
	SQL      string
	Expect   Expectation
}

// Expectation is what the first column of the first row must be. The zero value takes anything, as long as the statement succeeds.
type Expectation struct {
	Given bool
	Null  bool   // null, or no row; then Op and Value are ""
	Op    string // "", or how the value compares with Value as a number: <, <=, >, >=, !=
	Value string // as PostgreSQL prints it
}

// maxQuestions and maxQuestion bound what ParseQuestions takes: how many, and bytes of one statement.
const (
	maxQuestions = 1000
	maxQuestion  = 1 << 16
)

// questionForm is how a question is written.
type questionForm struct {
	Name     string    `yaml:"name"`
	Database string    `yaml:"database"`
	SQL      string    `yaml:"sql"`
	Table    string    `yaml:"table"`
	Expect   yaml.Node `yaml:"expect"`
}

// ParseQuestions reads a list in YAML or JSON: [{database: shop, sql: "select count(*) from orders", expect: ">= 1000"}, {database: shop, table: public.orders}].
// Instead of sql a table asks for the number of its rows. What is expected is compared as text, or behind <, <=, >, >= and != as a number.
func ParseQuestions(text string) ([]Question, error) {
	var forms []questionForm
	d := yaml.NewDecoder(strings.NewReader(text))
	d.KnownFields(true)
	switch err := d.Decode(&forms); {
	case errors.Is(err, io.EOF):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("must be a list of {name, database, sql or table, expect}: %s", strings.Join(strings.Fields(strings.TrimPrefix(err.Error(), "yaml: ")), " "))
	case len(forms) > maxQuestions:
		return nil, fmt.Errorf("must have at most %d entries", maxQuestions)
	}
	var all []Question
	for i, f := range forms {
		q := Question{f.Name, f.Database, f.SQL, Expectation{}}
		switch {
		case f.Database == "":
			return nil, fmt.Errorf("entry %d names no database", i+1)
		case (f.SQL == "") == (f.Table == ""):
			return nil, fmt.Errorf("entry %d must have either sql or table", i+1)
		case len(f.SQL)+len(f.Table) > maxQuestion:
			return nil, fmt.Errorf("entry %d has more than %d bytes", i+1, maxQuestion)
		case f.Table != "":
			name, err := tableName(f.Table)
			if err != nil {
				return nil, fmt.Errorf("entry %d: %w", i+1, err)
			}
			q.SQL = "select count(*) from " + name
			if q.Name == "" {
				q.Name = "rows of " + f.Table
			}
		}
		if q.Name == "" {
			q.Name = "question " + strconv.Itoa(i+1)
		}
		if err := q.Expect.read(&f.Expect); err != nil {
			return nil, fmt.Errorf("entry %d: %w", i+1, err)
		}
		all = append(all, q)
	}
	return all, nil
}

// tableName quotes a table's name, perhaps with a schema before it, each as it is in the catalogue.
func tableName(name string) (string, error) {
	parts := strings.Split(name, ".")
	for _, p := range parts {
		if p == "" || len(parts) > 2 {
			return "", fmt.Errorf("table %q: want table, or schema.table", name)
		}
	}
	return pgx.Identifier(parts).Sanitize(), nil
}

// comparisons are what an expectation may begin with, longer ones first.
var comparisons = [...]string{"<=", ">=", "!=", "<", ">"}

func (e *Expectation) read(n *yaml.Node) error {
	switch {
	case n.Kind == 0:
		return nil
	case n.Tag == "!!null" && n.Value == "":
		return errors.New("expect is empty: leave it away for any answer, or write null")
	case n.Tag == "!!null":
		e.Given, e.Null = true, true
		return nil
	case n.Kind != yaml.ScalarNode:
		return errors.New("expect must be one value")
	}
	e.Given, e.Value = true, n.Value
	if n.Tag == "!!bool" {
		e.Value = strings.ToLower(n.Value)
	}
	for _, op := range comparisons {
		if rest, ok := strings.CutPrefix(n.Value, op); ok {
			e.Op, e.Value = op, strings.TrimSpace(rest)
			if _, err := strconv.ParseFloat(e.Value, 64); err != nil {
				return fmt.Errorf("expect %q: want a number behind %s", n.Value, op)
			}
			return nil
		}
	}
	return nil
}

// String says what is expected, for people.
func (e Expectation) String() string {
	if e.Null {
		return "null"
	}
	return strings.TrimSpace(e.Op + " " + e.Value)
}

// Met reports whether got, nil for null and for no row, is as expected.
func (e Expectation) Met(got []byte) bool {
	if !e.Given {
		return true
	}
	if e.Null {
		return got == nil
	}
	if e.Op == "" {
		text := string(got)
		if b, ok := map[string]string{"t": "true", "f": "false"}[text]; ok && (e.Value == "true" || e.Value == "false") {
			text = b
		}
		return got != nil && text == e.Value
	}
	x, err := strconv.ParseFloat(string(bytes.TrimSpace(got)), 64)
	want, _ := strconv.ParseFloat(e.Value, 64) // read has seen that it is a number
	if err != nil {
		return false
	}
	switch e.Op {
	case "<":
		return x < want
	case "<=":
		return x <= want
	case ">":
		return x > want
	case ">=":
		return x >= want
	}
	return x != want
}
