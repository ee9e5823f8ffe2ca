package buildkit

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"path"
	"strings"

	"github.com/tonistiigi/fsutil"

	"kiln/internal/solve"
)

const defaultDockerfile = "Dockerfile"

// inputs is what a build reads.
type inputs struct {
	mounts         map[string]fsutil.FS
	dockerfileName string // path in the mount "dockerfile"
	sharedKey      string
	release        func()
}

// inputs finds the context and the Dockerfile of b and checks that they exist.
func (s *runSession) inputs(ctx context.Context, b solve.Build) (_ *inputs, err error) {
	dir, err := pathInside(b.Context)
	if err != nil {
		return nil, stepError("context %q is outside of the source", b.Context)
	}
	file := b.Dockerfile
	if file == "" {
		file = path.Join(dir, defaultDockerfile)
	}
	if file, err = pathInside(file); err != nil || file == "" {
		return nil, stepError("Dockerfile %q is outside of the source", b.Dockerfile)
	}
	root, where, release, err := s.root(ctx, b)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			release()
		}
	}()
	if dir != "" {
		switch e, err := lookup(ctx, root, dir); {
		case errors.Is(err, fs.ErrNotExist):
			return nil, stepError("context %q is not in the %s", b.Context, where)
		case err != nil:
			return nil, err
		case !e.IsDir():
			return nil, stepError("context %q is not a directory", b.Context)
		}
	}
	in := &inputs{dockerfileName: file, release: release}
	in.mounts = map[string]fsutil.FS{"context": tree{fs: root, dir: dir}, "dockerfile": tree{fs: root}}
	if b.DockerfileInline != nil {
		in.dockerfileName = defaultDockerfile
		in.mounts["dockerfile"] = fileTree{name: defaultDockerfile, data: b.DockerfileInline}
	} else if _, err := lookup(ctx, root, file); errors.Is(err, fs.ErrNotExist) {
		return nil, stepError("%s is not in the %s", file, where)
	} else if err != nil {
		return nil, err
	} else if where == "source" {
		in.mounts["dockerfile"] = withIgnore(ctx, root, dir, file)
	}
	in.sharedKey = s.sharedKey(where, dir, in.dockerfileName, string(b.DockerfileInline), b.Target)
	return in, nil
}

// root returns the tree that b reads, what to call it, and how to release it.
func (s *runSession) root(ctx context.Context, b solve.Build) (_ fsutil.FS, where string, release func(), err error) {
	if b.FromWorkspace {
		if g, w := s.workspace(); w != nil {
			t, err := g.openWorkspace(ctx, w)
			if err != nil {
				return nil, "", nil, err
			}
			return t, "workspace", t.release, nil
		}
	}
	switch {
	case s.cfg.Source != nil:
		return s.cfg.Source, "source", func() {}, nil
	case b.DockerfileInline != nil || b.FromWorkspace:
		return emptyTree{}, "workspace", func() {}, nil
	}
	return nil, "", nil, solve.ErrNoSource
}

// workspace returns the session's workspace, nil if no container has used it.
func (s *runSession) workspace() (*gateway, *workspace) {
	g, ok := s.gateway.peek()
	if !ok {
		return nil, nil
	}
	w, _ := g.workspace.peek()
	return g, w
}

// sharedKey names what the daemon keeps of an upload. The next one under the same name transfers
// differences only. Without a source key nothing outlives the run.
func (s *runSession) sharedKey(parts ...string) string {
	source := s.cfg.SourceKey
	if source == "" {
		source = s.token
	}
	h := sha256.New()
	for _, p := range append([]string{source}, parts...) {
		h.Write([]byte(p))
		h.Write([]byte{0})
	}
	return hex.EncodeToString(h.Sum(nil))
}

// pathInside returns p as a path relative to the root of a tree, "" for the root itself.
func pathInside(p string) (string, error) {
	p = path.Clean("./" + p)
	if p == ".." || strings.HasPrefix(p, "../") {
		return "", fs.ErrInvalid
	}
	if p == "." {
		return "", nil
	}
	return p, nil
}
