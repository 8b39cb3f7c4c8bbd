package check

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// Verdict is what is to be said of an archive_command.
type Verdict struct {
	Status Status
	Text   string
	Next   string
}

// setCommand is the command that sets archive_command right.
const setCommand = "`alter system set archive_command = 'holdfast wal-push \"%p\"'; select pg_reload_conf()`"

// JudgeCommand says whether an archive_command stores WAL by Holdfast, and tells the server when that failed. script is the text of the program that it
// calls, where that is a script that could be read. It reads shell as far as such commands use it; what it does not understand it takes for right.
func JudgeCommand(command, script string) Verdict {
	if strings.TrimSpace(command) == "" {
		return Verdict{Critical, "archive_command is empty: nothing is archived, and the server keeps all WAL until its disk is full", setCommand}
	}
	calls := parseShell(command)
	at := slices.IndexFunc(calls, call.pushes)
	switch {
	case at >= 0:
		return judgeCall(calls, at, "archive_command", "%p")
	case !slices.ContainsFunc(calls, func(c call) bool { return !c.nothing() }):
		return Verdict{Critical, fmt.Sprintf("archive_command is %q: it says of every segment that it is archived, and stores none", command), setCommand + ", then a new backup: the WAL up to now is lost"}
	}
	for i, c := range calls {
		if c.program() >= 0 {
			if !slices.Contains(c.words, "wal-push") {
				return Verdict{Critical, fmt.Sprintf("archive_command calls `%s`, which is not wal-push", strings.Join(c.words[c.program():min(len(c.words), c.program()+2)], " ")), setCommand}
			}
			return judgeCall(calls, i, "archive_command", "%p")
		}
	}
	if script != "" {
		inner := parseShell(script)
		if at := slices.IndexFunc(inner, call.pushes); at >= 0 {
			v := judgeCall(inner, at, "the script of archive_command", "")
			if v.Status == OK && !strings.Contains(command, "%p") && !strings.Contains(command, "%f") {
				return Verdict{Critical, fmt.Sprintf("archive_command is %q: its script is told neither %%p nor %%f, so not which file to store", command), setCommand}
			}
			if last := inner[len(inner)-1]; v.Status == OK && at < len(inner)-1 && last.nothing() && !failsAtOnce(inner[:at]) && inner[at].next != "||" && inner[at].next != "&&" && !inner[at].tested {
				return hidden("the script of archive_command", "ends with `"+strings.Join(last.words, " ")+"`")
			}
			return v
		}
	}
	first := calls[0]
	for _, c := range calls {
		if !c.nothing() {
			first = c
			break
		}
	}
	if slices.ContainsFunc(first.words, func(w string) bool { return path.Base(w) == "wal-g" }) {
		return Verdict{Warning, "archive_command calls WAL-G: it stores into the same archive, and nothing of Holdfast watches over it", setCommand}
	}
	return Verdict{Warning, fmt.Sprintf("archive_command calls another program, %q: whether that stores anything is not known here", strings.Join(first.words[:1], " ")), setCommand + ", or leave this check out: HOLDFAST_CHECK=archive-command=off"}
}

// judgeCall judges the call of wal-push that is calls[at]. file is what must be among its words, empty for anything.
func judgeCall(calls []call, at int, what, file string) Verdict {
	c := calls[at]
	if file != "" && !slices.ContainsFunc(c.words[c.program():], func(w string) bool { return strings.Contains(w, file) || strings.Contains(w, "$") }) {
		return Verdict{Critical, what + " calls wal-push without %p: it is not told which file to store", setCommand}
	}
	if file == "" && len(c.words) <= slices.Index(c.words, "wal-push")+1 {
		return Verdict{Critical, what + " calls wal-push without a file", setCommand}
	}
	if c.tested {
		return Verdict{}
	}
	var after *call
	if at+1 < len(calls) {
		after = &calls[at+1]
	}
	for c.next == "&&" && at+2 < len(calls) { // where it fails what stands behind the chain is next
		at++
		if after, c.next = &calls[at+1], calls[at].next; c.next == "|" || c.next == ";" && !after.nothing() {
			return Verdict{}
		}
	}
	switch c.next {
	case "&":
		return hidden(what, "does not wait for wal-push (`&`)")
	case "|":
		if failsInPipes(calls[:at]) {
			return Verdict{}
		}
		return hidden(what, "takes the status of what stands behind `|` for that of wal-push")
	case "||":
		if after != nil && after.says() {
			return hidden(what, "goes on with `"+strings.Join(after.words, " ")+"` where wal-push fails")
		}
	case ";":
		if after != nil && file != "" && !after.keeps() && !failsAtOnce(calls[:at]) {
			return hidden(what, "calls `"+strings.Join(after.words, " ")+"` behind wal-push, whatever became of that")
		}
	}
	return Verdict{}
}

func hidden(what, how string) Verdict {
	return Verdict{Critical, fmt.Sprintf("%s hides the exit status of wal-push: it %s. WAL that is not stored counts as archived", what, how), setCommand}
}

// A call is one simple command of a shell's text.
type call struct {
	words  []string
	next   string // what stands behind it: ; & && | || or nothing
	tested bool   // by if, while or !: what becomes of its status is not seen here
}

// program returns which of the words is Holdfast, or its client; below 0 for none.
func (c call) program() int {
	return slices.IndexFunc(c.words, func(w string) bool {
		return slices.Contains([]string{"holdfast", "holdfast-client"}, path.Base(w))
	})
}

// pushes reports whether it calls wal-push.
func (c call) pushes() bool {
	p := c.program()
	return p >= 0 && slices.Contains(c.words[p:], "wal-push")
}

// nothing reports whether it succeeds without doing anything.
func (c call) nothing() bool {
	if len(c.words) == 0 {
		return true
	}
	switch path.Base(c.words[0]) {
	case "true", ":":
		return true
	case "exit", "return":
		return len(c.words) == 2 && c.words[1] == "0"
	}
	return false
}

// says reports whether it succeeds, and does no more than to say something.
func (c call) says() bool {
	return c.nothing() || slices.Contains([]string{"echo", "printf", "logger"}, path.Base(c.words[0])) && c.next != "&&" && c.next != ";"
}

// keeps reports whether it ends with the status of what stands before it, or notes it.
func (c call) keeps() bool {
	return len(c.words) == 0 || len(c.words) == 1 && strings.HasSuffix(c.words[0], "=$?") || (c.words[0] == "exit" || c.words[0] == "return") && (len(c.words) == 1 || c.words[1] == "$?")
}

// failsAtOnce reports whether a script ends where a command fails.
func failsAtOnce(calls []call) bool {
	return slices.ContainsFunc(calls, func(c call) bool {
		return len(c.words) > 1 && c.words[0] == "set" && (strings.HasPrefix(c.words[1], "-") && strings.Contains(c.words[1], "e") || slices.Contains(c.words, "errexit"))
	})
}

// failsInPipes reports whether the status of every part of a pipe counts.
func failsInPipes(calls []call) bool {
	return slices.ContainsFunc(calls, func(c call) bool {
		return len(c.words) > 1 && c.words[0] == "set" && slices.Contains(c.words, "pipefail")
	})
}

// Words of the shell that stand before a command.
var (
	leads = []string{"then", "do", "else", "{", "(", "exec", "}", ")", "fi", "done"}
	tests = []string{"if", "elif", "while", "until", "!"}
)

// parseShell takes a shell's text apart: its simple commands, in order. Words come without their quotation marks, variables as they are. What is given to
// `sh -c` is taken apart too, in place of that.
func parseShell(text string) (calls []call) { return parseNested(text, 3) }

func parseNested(text string, depth int) (calls []call) {
	var words []string
	var word strings.Builder
	inWord := false
	endWord := func() {
		if inWord {
			words = append(words, word.String())
			word.Reset()
			inWord = false
		}
	}
	end := func(next string) {
		endWord()
		c := call{next: next}
		for len(words) > 0 && (slices.Contains(leads, words[0]) || slices.Contains(tests, words[0])) {
			c.tested = c.tested || slices.Contains(tests, words[0])
			words = words[1:]
		}
		c.words, words = words, nil
		if len(c.words) == 0 {
			return
		}
		if at := slices.Index(c.words, "-c"); depth > 0 && at > 0 && at+1 < len(c.words) && slices.Contains([]string{"sh", "bash", "dash"}, path.Base(c.words[at-1])) {
			inner := parseNested(c.words[at+1], depth-1)
			if n := len(inner); n > 0 {
				inner[n-1].next = next
				inner[n-1].tested = inner[n-1].tested || c.tested
				calls = append(calls, inner...)
				return
			}
		}
		calls = append(calls, c)
	}
	for i := 0; i < len(text); i++ {
		switch b := text[i]; {
		case b == '\\' && i+1 < len(text):
			if i++; text[i] != '\n' {
				word.WriteByte(text[i])
				inWord = true
			}
		case b == '\'':
			inWord = true
			for i++; i < len(text) && text[i] != '\''; i++ {
				word.WriteByte(text[i])
			}
		case b == '"':
			inWord = true
			for i++; i < len(text) && text[i] != '"'; i++ {
				if text[i] == '\\' && i+1 < len(text) {
					i++
				}
				word.WriteByte(text[i])
			}
		case b == '#' && !inWord:
			for i+1 < len(text) && text[i+1] != '\n' {
				i++
			}
		case b == ' ' || b == '\t' || b == '\r':
			endWord()
		case b == '\n' || b == ';':
			end(";")
		case b == '&' && i > 0 && text[i-1] == '>', b == '&' && i+1 < len(text) && text[i+1] == '>': // 2>&1, &>file
			word.WriteByte(b)
			inWord = true
		case b == '&' || b == '|':
			op := string(b)
			if i+1 < len(text) && text[i+1] == b {
				op += op
				i++
			}
			end(op)
		default:
			word.WriteByte(b)
			inWord = true
		}
	}
	end("")
	if n := len(calls); n > 0 && calls[n-1].next == ";" {
		calls[n-1].next = ""
	}
	return calls
}
