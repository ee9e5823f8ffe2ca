package arch_test

import (
	"go/ast"
	"path"
	"strings"
	"testing"
)

const (
	maxFile     = 500 // lines
	maxFunction = 90  // lines
)

func TestFilesAndFunctionsAreShort(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		for _, f := range p.files {
			if n := f.line(f.ast.FileEnd); n > maxFile {
				t.Errorf("%s: %d lines, at most %d: split it by idea", f.name, n, maxFile)
			}
			for _, d := range f.ast.Decls {
				fn, ok := d.(*ast.FuncDecl)
				if !ok {
					continue
				}
				if n := f.lines(fn) - f.tables(fn); n > maxFunction {
					t.Errorf("%s:%d: %s has %d lines, at most %d", f.name, f.line(fn.Pos()), fn.Name.Name, n, maxFunction)
				}
			}
		}
	}
}

// tables counts the lines of the composite literals in a test's function: a table may be long.
func (f file) tables(fn *ast.FuncDecl) int {
	n := 0
	ast.Inspect(fn, func(node ast.Node) bool {
		lit, ok := node.(*ast.CompositeLit)
		if ok && f.test {
			n += f.lines(lit) - 1
		}
		return !ok
	})
	return n
}

// A rule forbids calls of functions, unless the file may make them.
type rule struct {
	from    string // import path
	names   []string
	why     string
	allowed func(p pkg, f file) bool
}

var rules = []rule{
	// In a synctest bubble sleeping moves the clock and waits for nothing.
	{"time", []string{"Sleep"}, "wait for what has to happen, with a bound",
		func(p pkg, f file) bool { return below(p.path, "internal/bench") || f.imports("testing/synctest") }},
	{"context", []string{"TODO"}, "take the caller's context", nobody},
	// The build daemon owns its process, and puts a program before git in its PATH.
	{"os", []string{"Getenv", "LookupEnv", "Environ", "ExpandEnv"}, "the environment is read by programs; give the value as an argument",
		func(p pkg, f file) bool {
			return program(p, f) || f.test || support(p) || p.path == "internal/buildkit/daemon"
		}},
	{"fmt", []string{"Print", "Printf", "Println"}, "only programs speak to the terminal; log or return it",
		func(p pkg, f file) bool { return program(p, f) || f.test }},
	// The daemon's Child is what its process consists of.
	{"os", []string{"Exit"}, "only main ends the process",
		func(p pkg, f file) bool {
			return program(p, f) || f.test || support(p) || p.path == "internal/buildkit/daemon"
		}},
	{"log", []string{"Print", "Printf", "Println", "Fatal", "Fatalf", "Fatalln", "Panic", "Panicf", "Panicln"}, "use the logger that was handed in",
		nobody},
}

func nobody(pkg, file) bool { return false }

// program reports whether a file belongs to a program.
func program(p pkg, _ file) bool {
	return below(p.path, "cmd") || below(p.path, "examples") || below(p.path, "internal/bench")
}

// support reports whether a package only serves tests.
func support(p pkg) bool { return strings.HasSuffix(path.Base(p.path), "test") }

func TestForbiddenCalls(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		for _, f := range p.files {
			for _, r := range rules {
				if r.allowed(p, f) {
					continue
				}
				for _, sel := range selections(f, r.from, r.names) {
					t.Errorf("%s:%d: %s.%s: %s", f.name, f.line(sel.Pos()), r.from, sel.Sel.Name, r.why)
				}
			}
		}
	}
}

// selections returns where a file names one of an imported package's names.
func selections(f file, from string, names []string) []*ast.SelectorExpr {
	imp := f.importOf(from)
	if imp == nil {
		return nil
	}
	local := path.Base(from)
	if imp.Name != nil {
		local = imp.Name.Name
	}
	var found []*ast.SelectorExpr
	ast.Inspect(f.ast, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if id, ok := sel.X.(*ast.Ident); ok && id.Name == local {
			for _, name := range names {
				if sel.Sel.Name == name {
					found = append(found, sel)
				}
			}
		}
		return true
	})
	return found
}

// TestNothingIsSkipped keeps a missing program or privilege from looking like a passed test.
func TestNothingIsSkipped(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		for _, f := range p.files {
			if !f.test && !support(p) {
				continue
			}
			ast.Inspect(f.ast, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				sel, ok := call.Fun.(*ast.SelectorExpr)
				if ok && (sel.Sel.Name == "Skip" || sel.Sel.Name == "Skipf" || sel.Sel.Name == "SkipNow") {
					if id, ok := sel.X.(*ast.Ident); ok && (id.Name == "t" || id.Name == "b" || id.Name == "tb") {
						t.Errorf("%s:%d: %s.%s: a test that cannot run must fail and say what it needs", f.name, f.line(call.Pos()), id.Name, sel.Sel.Name)
					}
				}
				return true
			})
		}
	}
}

// TestCodeDoesNotPanic lets tests alone panic, and functions named Must.
func TestCodeDoesNotPanic(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		for _, f := range p.files {
			if f.test || support(p) {
				continue
			}
			for _, d := range f.ast.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && strings.HasPrefix(fn.Name.Name, "Must") {
					continue
				}
				ast.Inspect(d, func(n ast.Node) bool {
					if call, ok := n.(*ast.CallExpr); ok {
						if id, ok := call.Fun.(*ast.Ident); ok && id.Name == "panic" {
							t.Errorf("%s:%d: panic: return an error", f.name, f.line(call.Pos()))
						}
					}
					return true
				})
			}
		}
	}
}
