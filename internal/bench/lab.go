package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// binaries are the paths of the programs that are measured.
type binaries struct {
	kiln, buildctl, buildkitd, stamp, crane string
}

// compile builds the programs of this tree and of its BuildKit, all in the same way.
func compile(ctx context.Context, kiln string) (binaries, error) {
	var b binaries
	cache, err := os.UserCacheDir()
	if err != nil {
		return b, err
	}
	dir := filepath.Join(cache, "kiln-bench")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return b, err
	}
	for _, t := range []struct {
		path *string
		pkg  string
	}{
		{&b.kiln, "kiln/cmd/kiln"},
		{&b.stamp, "kiln/internal/bench/stamp"},
		{&b.crane, "github.com/google/go-containerregistry/cmd/crane"},
		{&b.buildctl, "github.com/moby/buildkit/cmd/buildctl"},
		{&b.buildkitd, "github.com/moby/buildkit/cmd/buildkitd"},
	} {
		if t.path == &b.kiln && kiln != "" {
			if b.kiln, err = filepath.Abs(kiln); err != nil {
				return b, err
			}
			continue
		}
		*t.path = filepath.Join(dir, filepath.Base(t.pkg))
		cmd := exec.CommandContext(ctx, "go", "build", "-o", *t.path, t.pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return b, fmt.Errorf("go build %s: %w\n%s", t.pkg, err, out)
		}
	}
	return b, nil
}

// A lab is where one program works: a directory on the measured disk, and the processes it started.
type lab struct {
	binaries
	n         int // measured rounds
	dir       string
	processes []*process
	during    []conditions // between rounds
}

func newLab(o options, b binaries) (*lab, error) {
	dir, err := os.MkdirTemp(o.dir, "kiln-bench-")
	if err != nil {
		return nil, err
	}
	return &lab{binaries: b, n: o.n, dir: dir}, nil
}

// close stops what was started, the last first, and removes the directory with what is mounted in it.
func (l *lab) close() error {
	var errs []error
	for _, p := range slices.Backward(l.processes) {
		errs = append(errs, p.stop())
	}
	errs = append(errs, unmountBelow(l.dir), os.RemoveAll(l.dir))
	return errors.Join(errs...)
}

// mkdir makes a directory in the lab and returns its path.
func (l *lab) mkdir(name string) (string, error) {
	dir := filepath.Join(l.dir, name)
	return dir, os.MkdirAll(dir, 0o755)
}

// unmountBelow unmounts what a killed daemon may have left below dir.
func unmountBelow(dir string) error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	defer f.Close()
	var points []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			points = append(points, fields[4])
		}
	}
	var errs []error
	for _, p := range slices.Backward(points) {
		if err := syscall.Unmount(p, syscall.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", p, err))
		}
	}
	return errors.Join(errs...)
}

// unique returns a word that was never used before and fits into a tag.
func unique() string { return strings.ToLower(rand.Text()) }
