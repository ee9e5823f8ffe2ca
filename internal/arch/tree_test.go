package arch_test

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

const module = "kiln"

// A pkg is a package of the module as it is on disk.
type pkg struct {
	path    string   // within the module
	imports []string // of its code, not of its tests
	files   []file
}

// A file is a parsed Go file.
type file struct {
	name string // within the module
	test bool
	set  *token.FileSet
	ast  *ast.File
}

// within returns the path of one of our packages inside the module.
func within(importPath string) (string, bool) {
	if importPath == module {
		return "", true
	}
	return strings.CutPrefix(importPath, module+"/")
}

var load = sync.OnceValues(loadPackages)

// packages returns all packages of the module, tests included.
func packages(t *testing.T) []pkg {
	t.Helper()
	all, err := load()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// listed is what `go list -json` says about a package.
type listed struct {
	ImportPath   string
	Dir          string
	Imports      []string
	GoFiles      []string
	TestGoFiles  []string
	XTestGoFiles []string
}

func loadPackages() ([]pkg, error) {
	out, err := exec.Command("go", "list", "-tags=soak", "-json=ImportPath,Dir,Imports,GoFiles,TestGoFiles,XTestGoFiles", module+"/...").Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil, errors.New(string(exit.Stderr))
	}
	if err != nil {
		return nil, err
	}
	var all []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var l listed
		if err := dec.Decode(&l); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, err
		}
		p, err := parse(l)
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
}

func parse(l listed) (pkg, error) {
	name, _ := within(l.ImportPath)
	p := pkg{path: name, imports: l.Imports}
	for _, group := range [][]string{l.GoFiles, l.TestGoFiles, l.XTestGoFiles} {
		for _, f := range group {
			set := token.NewFileSet()
			tree, err := parser.ParseFile(set, filepath.Join(l.Dir, f), nil, parser.ParseComments|parser.SkipObjectResolution)
			if err != nil {
				return pkg{}, err
			}
			p.files = append(p.files, file{name: filepath.Join(name, f), test: strings.HasSuffix(f, "_test.go"), set: set, ast: tree})
		}
	}
	return p, nil
}

// line returns the line of a position.
func (f file) line(p token.Pos) int { return f.set.Position(p).Line }

// lines returns how many lines a node spans.
func (f file) lines(n ast.Node) int { return f.line(n.End()) - f.line(n.Pos()) + 1 }

// importOf returns the file's import of a package, or nil.
func (f file) importOf(importPath string) *ast.ImportSpec {
	for _, imp := range f.ast.Imports {
		if p, err := strconv.Unquote(imp.Path.Value); err == nil && p == importPath {
			return imp
		}
	}
	return nil
}

func (f file) imports(importPath string) bool { return f.importOf(importPath) != nil }
