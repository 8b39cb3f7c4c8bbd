package check

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
)

// Nagios returns the report as plugins print it: a line with the status and the numbers, then one for each check that is not well, with what to do, and one that
// names the others.
func (r *Report) Nagios() string {
	var b strings.Builder
	fmt.Fprintf(&b, "HOLDFAST %s - %s", r.Status, plain(r.headline()))
	if perf := r.perfdata(); perf != "" {
		b.WriteString(" | " + perf)
	}
	b.WriteByte('\n')
	var well, skip []string
	for _, f := range r.Findings {
		switch {
		case f.Skipped:
			skip = append(skip, f.Check)
		case f.Status == OK:
			well = append(well, f.Check)
		default:
			fmt.Fprintf(&b, "%s %s: %s\n", f.Status, f.Check, plain(f.Text))
			if f.Next != "" {
				fmt.Fprintf(&b, "  next: %s\n", plain(f.Next))
			}
		}
	}
	if len(well) > 0 {
		fmt.Fprintf(&b, "OK %s\n", strings.Join(well, ", "))
	}
	if len(skip) > 0 {
		fmt.Fprintf(&b, "not judged here: %s\n", strings.Join(skip, ", "))
	}
	return b.String()
}

// headline is the worst finding, and how many others are not well.
func (r *Report) headline() string {
	var worst *Finding
	more := 0
	for i := range r.Findings {
		f := &r.Findings[i]
		if f.Status == OK {
			continue
		}
		more++
		if worst == nil || f.Status.gravity() > worst.Status.gravity() || f.Status == worst.Status && worst.Follows != "" && f.Follows == "" {
			worst = f
		}
	}
	if worst == nil {
		n := 0
		for _, f := range r.Findings {
			if !f.Skipped {
				n++
			}
		}
		if n == 1 {
			return "1 check is fine"
		}
		return fmt.Sprintf("%d checks are fine", n)
	}
	text := worst.Check + ": " + worst.Text
	if more--; more > 0 {
		text += fmt.Sprintf(" (and %d more)", more)
	}
	return text
}

// perfdata returns the numbers as plugins write them: 'label'=value[unit];[warning];[critical];[least];[most].
func (r *Report) perfdata() string {
	var all []string
	for _, f := range r.Findings {
		for _, v := range f.Values {
			unit := string(v.Unit)
			if v.Unit == Count {
				unit = ""
			}
			warning, critical, least := "", "", "0"
			if l := v.Limits; l != nil {
				if l.HasWarning {
					warning = l.edge(l.Warning)
				}
				if l.HasCritical {
					critical = l.edge(l.Critical)
				}
			}
			if strings.HasPrefix(v.Name, "clock") {
				least = ""
			}
			one := fmt.Sprintf("'%s'=%s%s;%s;%s;%s", label(v.Name), number(v.Value), unit, warning, critical, least)
			if v.Unit == Percent {
				one += ";100"
			}
			all = append(all, strings.TrimRight(one, ";"))
		}
	}
	return strings.Join(all, " ")
}

// edge returns a limit as a range: what is outside of it alerts.
func (l *Limits) edge(v float64) string {
	if l.Below {
		return number(v) + ":"
	}
	return number(v)
}

func number(v float64) string {
	text := strconv.FormatFloat(v, 'f', 3, 64)
	return strings.TrimRight(strings.TrimRight(text, "0"), ".")
}

// label makes the name of a number of what may have the name of a storage in it.
func label(name string) string {
	return strings.Map(func(r rune) rune {
		if r == '\'' || r == '=' || r == '|' || !unicode.IsPrint(r) {
			return '_'
		}
		return r
	}, name)
}

// plain makes text fit for a line: what stands behind `|` is numbers.
func plain(text string) string {
	return strings.Join(strings.Fields(strings.Map(func(r rune) rune {
		switch {
		case r == '|':
			return '/'
		case unicode.IsSpace(r):
			return ' '
		case !unicode.IsPrint(r):
			return '?'
		}
		return r
	}, text)), " ")
}
