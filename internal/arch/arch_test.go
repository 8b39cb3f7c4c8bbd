// Package arch_test holds the walls of the house: which package may import which, and what no package may do.
//
// testdata/levels.txt gives each package a level; a package imports only packages of lower levels. testdata/imports.txt lists
// every import between our packages, so that a new one is seen in review. Test files may import what they like.
package arch_test

import (
	"bufio"
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite testdata/imports.txt")

const (
	root   = "../.."
	module = "holdfast/"
)

// A source is a file of Go that is no test, whatever its build constraints.
type source struct {
	pkg  string // its directory from the root, such as "internal/pg/wal"
	file string
	tree *ast.File
	set  *token.FileSet
}

// sources parses all files below internal and cmd.
func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	for _, top := range []string{"internal", "cmd"} {
		if _, err := os.Stat(filepath.Join(root, top)); err != nil {
			continue
		}
		err := fs.WalkDir(os.DirFS(root), top, func(name string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if base := d.Name(); d.IsDir() && (base == "testdata" || base[0] == '.' || base[0] == '_') {
				return fs.SkipDir
			}
			if d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
				return nil
			}
			set := token.NewFileSet()
			tree, err := parser.ParseFile(set, filepath.Join(root, name), nil, parser.SkipObjectResolution)
			all = append(all, source{path.Dir(name), name, tree, set})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(all) == 0 {
		t.Fatal("no source files found")
	}
	return all
}

// An edge says that one package imports another.
type edge struct{ from, to string }

func (e edge) String() string { return e.from + " -> " + e.to }

// edges returns the imports between our packages, sorted.
func edges(t *testing.T) []edge {
	t.Helper()
	var all []edge
	for _, s := range sources(t) {
		for _, imp := range s.tree.Imports {
			name, err := strconv.Unquote(imp.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if to, ours := strings.CutPrefix(name, module); ours {
				all = append(all, edge{s.pkg, to})
			}
		}
	}
	slices.SortFunc(all, func(a, b edge) int { return strings.Compare(a.String(), b.String()) })
	return slices.Compact(all)
}

// lines reads the lines of a file below testdata that are neither empty nor begin with '#'.
func lines(t *testing.T, name string) []string {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var all []string
	for s := bufio.NewScanner(f); s.Scan(); {
		if line := strings.TrimSpace(s.Text()); line != "" && line[0] != '#' {
			all = append(all, line)
		}
	}
	return all
}

// Every import between our packages is listed, and every one listed is there.
func TestImportsAreListed(t *testing.T) {
	var got []string
	for _, e := range edges(t) {
		got = append(got, e.String())
	}
	if *update {
		if err := os.WriteFile("testdata/imports.txt", []byte(strings.Join(got, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want := lines(t, "imports.txt")
	const how = "if that is meant: go test ./internal/arch -update, and commit internal/arch/testdata/imports.txt with the change"
	for _, e := range got {
		if !slices.Contains(want, e) {
			t.Errorf("new import %s (%s)", e, how)
		}
	}
	for _, e := range want {
		if !slices.Contains(got, e) {
			t.Errorf("listed, but not there any more: %s (%s)", e, how)
		}
	}
}

// A package imports only packages of lower levels.
func TestImportsPointDown(t *testing.T) {
	levels := map[string]float64{}
	for _, line := range lines(t, "levels.txt") {
		level, pkg, _ := strings.Cut(line, " ")
		n, err := strconv.ParseFloat(level, 64)
		pkg = strings.TrimSpace(pkg)
		if _, twice := levels[pkg]; err != nil || pkg == "" || twice {
			t.Fatalf("levels.txt: %q is not a level and a package that is not listed yet", line)
		}
		levels[pkg] = n
	}
	missing := map[string]bool{}
	for _, s := range sources(t) {
		if _, ok := levels[s.pkg]; !ok && !missing[s.pkg] {
			missing[s.pkg] = true
			t.Errorf("%s has no level: give it one in internal/arch/testdata/levels.txt, as ARCHITECTURE.md has it", s.pkg)
		}
	}
	for _, e := range edges(t) {
		from, ok1 := levels[e.from]
		to, ok2 := levels[e.to]
		if ok1 && ok2 && to >= from {
			t.Errorf("%s points up or sideways: from level %g to %g. Move what is shared to a lower package, "+
				"or move the wall: levels.txt and ARCHITECTURE.md in the same commit", e, from, to)
		}
	}
}

// Nothing runs before main, and only cmd ends the process.
func TestOnlyCommandsEndTheProcess(t *testing.T) {
	ending := map[string][]string{
		"os":      {"Exit"},
		"syscall": {"Exit"},
		"log":     {"Fatal", "Fatalf", "Fatalln"},
	}
	for _, s := range sources(t) {
		for _, d := range s.tree.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
				t.Errorf("%s: func init", s.set.Position(f.Pos()))
			}
		}
		if strings.HasPrefix(s.pkg, "cmd/") {
			continue
		}
		names := map[string]string{} // as imported here → package
		for _, imp := range s.tree.Imports {
			name, _ := strconv.Unquote(imp.Path.Value)
			local := path.Base(name)
			if imp.Name != nil {
				local = imp.Name.Name
			}
			names[local] = name
		}
		ast.Inspect(s.tree, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok {
				if x, ok := sel.X.(*ast.Ident); ok && slices.Contains(ending[names[x.Name]], sel.Sel.Name) {
					t.Errorf("%s: %s.%s: return an error instead", s.set.Position(sel.Pos()), x.Name, sel.Sel.Name)
				}
			}
			return true
		})
	}
}

// A package is called after what it knows.
func TestNoPackageWithoutSubject(t *testing.T) {
	empty := []string{"util", "utils", "helper", "helpers", "common", "misc", "shared", "lib"}
	for _, s := range sources(t) {
		if name := s.tree.Name.Name; slices.Contains(empty, name) || slices.Contains(empty, path.Base(s.pkg)) {
			t.Errorf("%s: package %s: name it after what it knows", s.file, name)
		}
	}
}

// Every package says in its comment what it is.
func TestPackagesHaveAComment(t *testing.T) {
	said, main := map[string]bool{}, map[string]bool{}
	for _, s := range sources(t) {
		said[s.pkg] = said[s.pkg] || documented(t, s)
		main[s.pkg] = s.tree.Name.Name == "main"
	}
	for pkg, ok := range said {
		if !ok && !main[pkg] {
			t.Errorf("%s: no comment that begins \"Package %s \"", pkg, path.Base(pkg))
		}
	}
}

// documented reports whether s has its package's comment.
func documented(t *testing.T, s source) bool {
	t.Helper()
	tree, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, s.file), nil, parser.PackageClauseOnly|parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	return tree.Doc != nil && strings.HasPrefix(tree.Doc.Text(), "Package "+tree.Name.Name+" ")
}
