package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"kiln/internal/run"
	"kiln/taskspec"
)

// tortureToken is what the vault holds for the example.
const tortureToken = "torture-token-2718281828"

// testTorture executes the example that has every property of the task language. Its steps examine by themselves
// what they are promised.
func testTorture(t *testing.T, s *server) {
	dir := t.TempDir()
	for _, example := range []string{"base", "torture"} {
		if err := os.CopyFS(filepath.Join(dir, example), os.DirFS("../../examples/"+example)); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("../../examples/base/prepare.sh", filepath.Join(dir, "base")).CombinedOutput(); err != nil {
		t.Fatalf("prepare.sh: %v\n%s", err, out)
	}
	s.must("build", "-t", "base:latest", filepath.Join(dir, "base"))
	res := s.kiln("run", "-o", "json", "--allow-privileged", "--values", "values.yaml", "--set", "stage=beta", filepath.Join(dir, "torture"))
	if res.code != 0 {
		t.Fatalf("exit code %d\n%s", res.code, res.err)
	}
	r := s.show(field(t, res.out, "id"))
	tries := map[string]int{"repeated": 3, "third-time": 3}
	for _, st := range r.Steps {
		if want := tries[st.ID]; st.State != run.StepSucceeded || want != 0 && st.Tries != want {
			t.Errorf("step %s is %s after %d executions: %s", st.ID, st.State, st.Tries, st.Error)
		}
		if failed := st.ID == "too-slow" || st.ID == "forgiven"; (st.Error != "") != failed {
			t.Errorf("step %s failed: %q", st.ID, st.Error)
		}
	}
	if len(r.Images) != 2 || r.Images[0].Digest != r.Images[1].Digest {
		t.Errorf("images: %v, want one under two tags", r.Images)
	}
	for _, want := range []string{"ask | greetings from a service", "mounts | the token is ***", "all | begun", "too-slow | => failed, and ignoreErrors is set: timed out"} {
		if !strings.Contains(res.err, want) {
			t.Errorf("log lacks %q", want)
		}
	}
	if strings.Contains(res.err, tortureToken) {
		t.Error("the log has the secret")
	}
	if t.Failed() {
		t.Log(res.err)
	}
}

// TestTortureHasEveryProperty compares the example with the language's schema.
func TestTortureHasEveryProperty(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../examples/torture/acr-task.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var schema map[string]any
	if err := json.Unmarshal(taskspec.Schema(), &schema); err != nil {
		t.Fatal(err)
	}
	n := 0
	eachProperty(schema, func(name string) {
		n++
		if !regexp.MustCompile(`(?m)(^[ -]*|[{,] *)` + name + `:`).Match(text) {
			t.Errorf("the example lacks the property %s", name)
		}
	})
	if n < 45 {
		t.Errorf("the schema has only %d properties", n)
	}
}

// eachProperty calls see for the properties of a schema and of what is in it, but for those of earlier times.
func eachProperty(node any, see func(name string)) {
	switch node := node.(type) {
	case map[string]any:
		props, _ := node["properties"].(map[string]any)
		for name, prop := range props {
			if p, ok := prop.(map[string]any); ok && p["deprecated"] == true {
				continue
			}
			see(name)
			eachProperty(prop, see)
		}
		eachProperty(node["items"], see)
	}
}
