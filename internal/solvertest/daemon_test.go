package solvertest_test

import (
	"os"
	"path/filepath"
	"testing"

	"kiln/internal/solvertest"
)

func TestMain(m *testing.M) { solvertest.Main(m) }

func TestDaemonBuildsAnImage(t *testing.T) {
	addr := solvertest.StartDaemon(t)
	tree := solvertest.Context(t, solvertest.Base+"RUN echo built >/result\n")
	dir, err := solvertest.Build(t.Context(), t, addr, tree, nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(dir, "result"))
	if err != nil || string(got) != "built\n" {
		t.Errorf("result = %q, %v, want %q", got, err, "built\n")
	}
}
