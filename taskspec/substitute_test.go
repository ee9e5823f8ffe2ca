package taskspec

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
)

// renderBoth renders a document with and without the shortcut for plain references.
func renderBoth(t *testing.T, src string, opt Options) {
	t.Helper()
	outcome := func(noShortcut bool) string {
		p := newParser([]byte(src), &opt)
		p.noShortcut = noShortcut
		p.render()
		var places strings.Builder
		for i := range p.doc.s {
			line, _ := p.place(i)
			places.WriteByte('0' + byte(line%10))
		}
		return p.doc.s + "\n" + p.err().Error() + "\n" + p.warnings().String() + "\n" + places.String()
	}
	if diff := cmp.Diff(outcome(true), outcome(false)); diff != "" {
		t.Errorf("%q renders differently with the shortcut (-without +with):\n%s", src, diff)
	}
}

func TestShortcutRendersLikeTemplates(t *testing.T) {
	opt := testOptions()
	opt.Set = []string{"a=x", "no=<no value>", "b={{.Run.ID}}"}
	opt.Values = []byte("n: 5\nempty:\nmap: {x: y}\n")
	for _, s := range []string{
		"{{.Run.ID}}", "a{{ .Run.ID }}b", "{{.Run.Nope}}", "{{.Values.a}}{{.Values.b}}", "{{.Values.zz}}", "{{.Values.n}}", "{{.Values.empty}}",
		"{{.Values.map}}", "{{.Values.map.x}}", "{{.Values.no}}", "x<no val{{.Values.zz}}ue>y", "{{.Secrets.x}}", "{{.Build.ID}}", "{{.Build.X}}",
		"{{- .Run.ID -}}", " {{.Run.ID -}} ", "{{.Run}}", "{{.Run.}}", "{{.Run.ID", "{{.Run.ID}", "{{{.Run.ID}}}", "}}{{.Run.ID}}{{", "{{.Foo.Bar}}",
		"{{.Run.ID.x}}", "{{.ValuesJSON}}", "{{.Run.1}}", "{{.Run.é}}", "{{.Run .ID}}", "{{\n.Run.ID\n}}", "{{}}", "a\n{{.Run.ID}}\n{{.Run.Date}}\nb", "{{.Values.a}}}",
	} {
		renderBoth(t, s, opt)
	}
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		ar, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		opt, src := goldenInput(t, ar)
		renderBoth(t, string(src), opt)
	}
}

// FuzzShortcut checks the same for any document.
func FuzzShortcut(f *testing.F) {
	f.Add("a{{.Run.ID}}b {{ .Values.x }}{{.Values.y}}{{.Values.z}}")
	f.Fuzz(func(t *testing.T, src string) {
		opt := testOptions()
		opt.Set = []string{"x=1", "y=<no value>"}
		renderBoth(t, src, opt)
	})
}
