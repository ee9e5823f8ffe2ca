package taskspec

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
)

// FuzzParse checks that Parse never panics, is a function of its arguments, points into the source and
// returns only graphs that can be executed.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		ar, err := txtar.ParseFile(file)
		if err != nil {
			f.Fatal(err)
		}
		src, values := "", ""
		for _, a := range ar.Files {
			switch a.Name {
			case "task.yaml":
				src = string(a.Data)
			case "values.yaml":
				values = string(a.Data)
			}
		}
		f.Add(src, values)
	}
	f.Add(tenSteps, "")
	f.Fuzz(func(t *testing.T, src, values string) {
		opt := testOptions()
		opt.Values, opt.ValuesFile = []byte(values), "values.yaml"
		opt.Secrets = func(Secret) (string, error) { return "hush-hush", nil }
		task, warns, err := Parse([]byte(src), opt)
		again, warns2, err2 := Parse([]byte(src), opt)
		if diff := cmp.Diff(task, again); diff != "" {
			t.Fatalf("two results:\n%s", diff)
		}
		if warns.String() != warns2.String() || (err == nil) != (err2 == nil) || err != nil && err.Error() != err2.Error() {
			t.Fatalf("two outcomes: %v, %v and %v, %v", err, warns, err2, warns2)
		}
		checkPlaces(t, src, warns)
		checkLenient(t, src, opt, task)
		if err != nil {
			var errs Errors
			if !errors.As(err, &errs) || len(errs) == 0 || task != nil {
				t.Fatalf("Parse = %v, %T", task, err)
			}
			checkPlaces(t, src, errs)
			return
		}
		checkTask(t, task)
		checkStages(t, NewPlan(task, PlanOptions{Run: opt.Run}))
		checkRendered(t, src, opt, task)
	})
}

// checkLenient checks that a document without mistakes means the same when it is parsed leniently, and
// that one which is accepted only then can be planned.
func checkLenient(t *testing.T, src string, opt Options, strict *Task) {
	t.Helper()
	opt.Lenient = true
	task, warns, err := Parse([]byte(src), opt)
	checkPlaces(t, src, warns)
	switch {
	case strict != nil:
		if diff := cmp.Diff(strict, task); diff != "" || err != nil {
			t.Fatalf("leniently it is something else: %v\n%s", err, diff)
		}
	case err == nil:
		if len(warns) < maxErrors && !strings.Contains(warns.String(), "a run is refused") {
			t.Fatalf("accepted leniently without a warning: %v", warns)
		}
		checkTask(t, task)
		checkStages(t, NewPlan(task, PlanOptions{Run: opt.Run}))
	}
}

// checkRendered checks that a document means the same when it is rendered again, if nothing in it would be
// replaced again.
func checkRendered(t *testing.T, src string, opt Options, task *Task) {
	t.Helper()
	text, err := Render([]byte(src), opt)
	if err != nil {
		t.Fatalf("what parses does not render: %v", err)
	}
	if strings.ContainsAny(text, "$#") || strings.Contains(text, "{{") || strings.Contains(src, "alias") || strings.Contains(src, "<no") {
		return
	}
	again, _, err := Parse([]byte(text), opt)
	if err != nil {
		t.Fatalf("what is rendered does not parse: %v\n%s", err, text)
	}
	for i := range again.Steps {
		again.Steps[i].Line = task.Steps[i].Line
	}
	if diff := cmp.Diff(task, again); diff != "" {
		t.Fatalf("rendered again, it means something else:\n%s", diff)
	}
}

func checkPlaces(t *testing.T, src string, es []*Error) {
	t.Helper()
	lines := strings.Split(src, "\n")
	for _, e := range es {
		if e.File == "values.yaml" || e.Line == 0 {
			continue
		}
		if e.Line > len(lines) || e.Col < 1 || e.Col > len(lines[e.Line-1])+1 {
			t.Fatalf("%d:%d is not in the source: %v", e.Line, e.Col, e)
		}
		if e.Message == "" {
			t.Fatal("an empty message")
		}
	}
}

func checkTask(t *testing.T, task *Task) {
	t.Helper()
	order := task.Order()
	if len(order) != len(task.Steps) {
		t.Fatalf("%d of %d steps can be ordered", len(order), len(task.Steps))
	}
	for i, s := range order {
		for _, a := range s.After {
			if !slices.ContainsFunc(order[:i], func(s *Step) bool { return s.ID == a }) {
				t.Fatalf("step %s comes before %s", s.ID, a)
			}
		}
		if (s.Build != nil) != (s.Kind == KindBuild) || (s.Cmd != nil) != (s.Kind == KindCmd) || (len(s.Push) > 0) != (s.Kind == KindPush) {
			t.Fatalf("step %s is no %s step", s.ID, s.Kind)
		}
		if s.Timeout <= 0 || s.RetryDelay <= 0 || !strings.HasPrefix(s.WorkingDirectory, "/") {
			t.Fatalf("step %s has no defaults: %+v", s.ID, s)
		}
	}
}

// FuzzSplitWords checks that quoting the words of a command and splitting it again gives the same words.
func FuzzSplitWords(f *testing.F) {
	for _, s := range []string{
		"", "a b", `a 'b c' "d e"`, `a\ b`, "a \\\n b", `"\$x \q"`, "a#b #c\n", "$x ${y} $", "'", `"`, "\\", "a\n\nb", "''", "é 'ü'",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		w, err := splitWords(s)
		if err != nil {
			return
		}
		var quoted []string
		for _, word := range w.list {
			quoted = append(quoted, "'"+strings.ReplaceAll(word, "'", `'\''`)+"'")
		}
		again, err := splitWords(strings.Join(quoted, " "))
		if err != nil || !slices.Equal(again.list, w.list) {
			t.Fatalf("splitWords(%q) = %q; quoted and split again %q, %v", s, w.list, again.list, err)
		}
	})
}

// FuzzRender checks that text outside of actions and aliases comes out as it went in.
func FuzzRender(f *testing.F) {
	f.Add("steps:\n- cmd: img\n")
	f.Add("a: |\n  # b\n c\n")
	f.Fuzz(func(t *testing.T, src string) {
		out, err := Render([]byte(src), testOptions())
		if err != nil || strings.Contains(src, "{{") || strings.Contains(src, "#") || strings.Contains(src, "version") {
			return
		}
		if out != src {
			t.Fatalf("Render(%q) = %q", src, out)
		}
	})
}
