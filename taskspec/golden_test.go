package taskspec

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
)

var update = flag.Bool("update", false, "rewrite the expectations in testdata")

// runDate is the start of the run in all tests.
var runDate = time.Date(2026, 11, 21, 22, 1, 11, 0, time.UTC)

// testOptions are the options of a golden test that sets none.
func testOptions() Options {
	return Options{
		File: "task.yaml",
		Run: RunVars{
			ID: "r1", Commit: "c0ffee", Branch: "main", Registry: "kiln.example.com", SharedVolume: "vol",
			OS: "linux", Architecture: "amd64", Date: runDate,
		},
	}
}

// TestGolden runs the archives in testdata. An archive has the document in task.yaml and options, one
// a line, in its comment; the other files are the values file, alias files and the expectations:
// rendered, task, errors and warnings. A missing expectation is not checked, but for errors.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			t.Parallel()
			ar, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, file, ar)
		})
	}
}

func golden(t *testing.T, file string, ar *txtar.Archive) {
	opt, src := goldenInput(t, ar)
	got := map[string]string{}
	if text, err := Render(src, opt); err == nil {
		got["rendered"] = text
	}
	task, warns, err := Parse(src, opt)
	if err != nil {
		var errs Errors
		if !errors.As(err, &errs) {
			t.Fatalf("Parse returned %T, want Errors", err)
		}
		got["errors"] = err.Error()
	} else {
		got["task"] = dump(task)
	}
	got["warnings"] = warns.String()
	if *update {
		rewrite(t, file, ar, got)
		return
	}
	seen := map[string]bool{}
	for _, f := range ar.Files {
		want := strings.TrimRight(string(f.Data), "\n")
		if have, ok := got[f.Name]; ok || f.Name == "errors" {
			seen[f.Name] = true
			if diff := cmp.Diff(want, strings.TrimRight(have, "\n")); diff != "" {
				t.Errorf("%s (-want +got):\n%s", f.Name, diff)
			}
		}
	}
	for _, name := range []string{"errors", "warnings"} {
		if got[name] != "" && !seen[name] {
			t.Errorf("unexpected %s:\n%s", name, got[name])
		}
	}
}

// goldenInput reads the document and the options of an archive.
func goldenInput(t *testing.T, ar *txtar.Archive) (Options, []byte) {
	t.Helper()
	opt := testOptions()
	files := map[string][]byte{}
	for _, f := range ar.Files {
		files[f.Name] = f.Data
	}
	if v, ok := files["values.yaml"]; ok {
		opt.Values, opt.ValuesFile = v, "values.yaml"
	}
	opt.AliasSource = func(src string) ([]byte, error) {
		if data, ok := files[src]; ok {
			return data, nil
		}
		return nil, os.ErrNotExist
	}
	secrets := map[string]string{}
	sc := bufio.NewScanner(strings.NewReader(string(ar.Comment)))
	for sc.Scan() {
		name, value, _ := strings.Cut(sc.Text(), " ")
		switch name {
		case "set":
			opt.Set = append(opt.Set, value)
		case "env":
			opt.Env = append(opt.Env, value)
		case "network":
			opt.Network = value
		case "workdir":
			opt.WorkingDirectory = value
		case "lenient":
			opt.Lenient = true
		case "encoded":
			opt.Encoded = true
		case "docker":
			opt.DockerCommands = true
		case "registry":
			opt.Run.Registry = value
		case "secret":
			k, v, _ := strings.Cut(value, "=")
			secrets[k] = v
			opt.Secrets = func(s Secret) (string, error) {
				if v, ok := secrets[s.ID]; ok {
					return v, nil
				}
				return "", fmt.Errorf("the vault has no %s", s.KeyVault)
			}
		case "", "#":
		default:
			t.Fatalf("unknown option %q", name)
		}
	}
	return opt, files["task.yaml"]
}

// rewrite replaces the expectations that an archive has; one that has none gets the task or the errors.
func rewrite(t *testing.T, file string, ar *txtar.Archive, got map[string]string) {
	t.Helper()
	rendered := false
	ar.Files = slices.DeleteFunc(ar.Files, func(f txtar.File) bool {
		rendered = rendered || f.Name == "rendered"
		return slices.Contains([]string{"rendered", "task", "errors", "warnings"}, f.Name)
	})
	for _, name := range []string{"rendered", "task", "errors", "warnings"} {
		if got[name] == "" || name == "rendered" && !rendered || name == "task" && rendered {
			continue
		}
		ar.Files = append(ar.Files, txtar.File{Name: name, Data: []byte(strings.TrimRight(got[name], "\n") + "\n")})
	}
	if err := os.WriteFile(file, txtar.Format(ar), 0o644); err != nil {
		t.Fatal(err)
	}
}

// dump writes a task down, leaving out what has its default.
func dump(t *Task) string {
	var b strings.Builder
	plain := *t
	plain.Steps = nil
	if plain.Version == defaultVersion {
		plain.Version = ""
	}
	if len(plain.Networks) == 1 && plain.Networks[0].Name == defaultNetwork {
		plain.Networks = nil
	}
	dumpStruct(&b, "", reflect.ValueOf(plain))
	for _, s := range t.Steps {
		fmt.Fprintf(&b, "%s %s line %d", s.Kind, s.ID, s.Line)
		if len(s.After) > 0 {
			fmt.Fprintf(&b, " after %s", strings.Join(s.After, " "))
		}
		b.WriteByte('\n')
		plain := *s
		plain.ID, plain.Kind, plain.Line, plain.After = "", "", 0, nil
		dumpStruct(&b, "  ", reflect.ValueOf(plain))
	}
	return b.String()
}

var dumpDefaults = map[string]string{
	"StepTimeout": "10m0s", "Timeout": "10m0s", "RetryDelay": "5s", "WorkingDirectory": `"/workspace"`,
	"Env": `["HOME=/acb/home"]`, "Context": `"."`,
}

func dumpStruct(b *strings.Builder, indent string, v reflect.Value) {
	for i := range v.NumField() {
		name, f := v.Type().Field(i).Name, v.Field(i)
		if f.IsZero() || f.Kind() == reflect.Slice && f.Len() == 0 {
			continue
		}
		if f.Kind() == reflect.Pointer {
			fmt.Fprintf(b, "%s%s\n", indent, name)
			dumpStruct(b, indent+"  ", f.Elem())
			continue
		}
		if f.Kind() == reflect.Struct {
			fmt.Fprintf(b, "%s%s\n", indent, name)
			dumpStruct(b, indent+"  ", f)
			continue
		}
		var s string
		switch x := f.Interface().(type) {
		case time.Duration:
			s = x.String()
		case []string:
			s = fmt.Sprintf("%q", x)
		case string:
			s = fmt.Sprintf("%q", x)
		default:
			s = fmt.Sprintf("%+v", x)
			if name == "Volumes" {
				s = fmt.Sprintf("%+q", x)
			}
		}
		if dumpDefaults[name] != s {
			fmt.Fprintf(b, "%s%s %s\n", indent, name, s)
		}
	}
}

func readText(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
