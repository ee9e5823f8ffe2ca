package solvertest

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/moby/buildkit/client"
	"github.com/tonistiigi/fsutil"
)

// busybox is a static program that is most of a system.
const busybox = "/bin/busybox"

// Base begins a Dockerfile whose RUN steps have a shell and busybox's commands. It needs no network:
// the program comes with the context.
const Base = "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n"

// Context returns a build context with the Dockerfile and what Base needs.
func Context(t testing.TB, dockerfile string) fsutil.FS {
	t.Helper()
	dir := t.TempDir()
	program, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatalf("%v (Debian: apt-get install busybox-static)", err)
	}
	for name, file := range map[string]struct {
		content []byte
		mode    os.FileMode
	}{
		"busybox":    {program, 0o755},
		"Dockerfile": {[]byte(dockerfile), 0o644},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), file.content, file.mode); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := fsutil.NewFS(dir)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// Build builds the Dockerfile of a context on the daemon at addr and returns a directory with the
// image's files.
func Build(ctx context.Context, t testing.TB, addr string, tree fsutil.FS, attrs map[string]string) (dir string, err error) {
	t.Helper()
	c, err := client.New(ctx, addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	dir = t.TempDir()
	_, err = c.Solve(ctx, nil, client.SolveOpt{
		Frontend:      "dockerfile.v0",
		FrontendAttrs: attrs,
		LocalMounts:   map[string]fsutil.FS{"context": tree, "dockerfile": tree},
		Exports:       []client.ExportEntry{{Type: client.ExporterLocal, OutputDir: dir}},
	}, nil)
	return dir, err
}
