package links_test

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"kiln/internal/event"
	"kiln/internal/graph"
	"kiln/internal/task"
	"kiln/triggers/links"
)

var update = flag.Bool("update", false, "rewrite the expectations in testdata")

// host is the canonical name of the co-located registry in all tests, and aliases its other names.
const host = "kiln.example:7070"

var aliases = graph.Aliases{"localhost:7070": host, "127.0.0.1:7070": host}

// TestGolden runs the archives in testdata: a task in task.yaml, its context below context/, and the links
// in want.
func TestGolden(t *testing.T) {
	t.Parallel()
	archives, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(archives) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, archive := range archives {
		t.Run(strings.TrimSuffix(filepath.Base(archive), ".txtar"), func(t *testing.T) {
			t.Parallel()
			golden(t, archive)
		})
	}
}

func golden(t *testing.T, archive string) {
	ar, err := txtar.ParseFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	var def, want []byte
	context := map[string]string{}
	for _, f := range ar.Files {
		switch name, ok := strings.CutPrefix(f.Name, "context/"); {
		case ok:
			context[name] = string(f.Data)
		case f.Name == "want":
			want = f.Data
		case f.Name == "task.yaml":
			def = f.Data
		default:
			t.Fatalf("file %s has no meaning", f.Name)
		}
	}
	tasks, err := task.Decode("task.yaml", def)
	if err != nil || len(tasks) != 1 {
		t.Fatalf("%d tasks: %v", len(tasks), err)
	}
	tasks[0].UID = "uid"
	l := links.Scan(tasks[0], host, aliases, map[string]string{"tool": "registry.example.com/team/tool:1"}, reader(context))
	if l.TaskUID != "uid" || l.Task != tasks[0].Name || l.From != links.FromScan {
		t.Errorf("links of %q %q from %q", l.TaskUID, l.Task, l.From)
	}
	got := text(l)
	if *update {
		ar.Files = slices.DeleteFunc(ar.Files, func(f txtar.File) bool { return f.Name == "want" })
		ar.Files = append(ar.Files, txtar.File{Name: "want", Data: []byte(got)})
		if err := os.WriteFile(archive, txtar.Format(ar), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("links (-want +got):\n%s", diff)
	}
}

func reader(context map[string]string) links.Reader {
	return func(path string) ([]byte, error) {
		data, ok := context[path]
		if !ok {
			return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
		}
		return []byte(data), nil
	}
}

// text writes links a line each.
func text(l event.Links) string {
	var b strings.Builder
	for _, base := range l.Bases {
		fmt.Fprintf(&b, "%s %s", strings.ToLower(base.Kind), base.Name)
		if base.Pinned {
			b.WriteString(" pinned")
		}
		b.WriteByte('\n')
	}
	for _, name := range l.Builds {
		fmt.Fprintf(&b, "builds %s\n", name)
	}
	for _, sentence := range l.Unresolved {
		fmt.Fprintf(&b, "? %s\n", sentence)
	}
	return b.String()
}

func TestWhatIsReadIsBounded(t *testing.T) {
	t.Parallel()
	var steps strings.Builder
	steps.WriteString("steps:\n")
	for i := range 500 {
		fmt.Fprintf(&steps, "  - build: -f %d/Dockerfile -t x%d .\n", i, i)
	}
	def := &task.Task{Name: "many", Context: "https://git.example/r.git", Step: task.Step{File: &task.File{Path: "acb.yaml"}}}
	def.Normalize()
	reads := map[string]int{}
	l := links.Scan(def, host, nil, nil, func(path string) ([]byte, error) {
		reads[path]++
		switch path {
		case "acb.yaml":
			return []byte(steps.String()), nil
		case "7/Dockerfile":
			return make([]byte, 2<<20), nil
		case "8/Dockerfile":
			return nil, errors.New("the object is damaged")
		}
		return []byte("FROM base:" + strings.TrimSuffix(path, "/Dockerfile")), nil
	})
	if len(reads) > 200 {
		t.Errorf("%d files read", len(reads))
	}
	for path, n := range reads {
		if n != 1 {
			t.Errorf("%s was read %d times", path, n)
		}
	}
	if len(l.Bases) != 197 || len(l.Unresolved) != 100 {
		t.Errorf("%d bases and %d sentences, want 197 and 100", len(l.Bases), len(l.Unresolved))
	}
	all := strings.Join(l.Unresolved, "\n")
	for _, want := range []string{"7/Dockerfile: it has 2097152 bytes", "8/Dockerfile: the object is damaged", "more than 200 files", "more of the same"} {
		if !strings.Contains(all, want) {
			t.Errorf("no sentence says %q:\n%s", want, all)
		}
	}
}

func TestTaskWithoutAContextReadsNothing(t *testing.T) {
	t.Parallel()
	def := &task.Task{Name: "none", Step: task.Step{Inline: &task.Inline{Task: "steps:\n  - cmd: bash -c 'echo hi'\n"}}}
	def.Normalize()
	l := links.Scan(def, host, nil, nil, nil)
	if len(l.Unresolved) != 0 || len(l.Bases) != 1 || l.Bases[0].Kind != string(graph.Buildtime) {
		t.Errorf("links %+v", l)
	}
	def.Step.Inline.Task = "steps:\n  - build: -t x .\n"
	l = links.Scan(def, host, nil, nil, nil)
	if len(l.Unresolved) != 1 || !strings.Contains(l.Unresolved[0], "there is no context") {
		t.Errorf("links %+v", l)
	}
}
