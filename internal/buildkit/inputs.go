package buildkit

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/tonistiigi/fsutil"

	"kiln/internal/solve"
)

const defaultDockerfile = "Dockerfile"

// inputs is what a build reads.
type inputs struct {
	mounts         map[string]fsutil.FS
	dockerfileName string // path in the mount "dockerfile"
	sharedKey      string
	contexts       map[string]string // frontend attributes of the named contexts
	secrets        map[string][]byte
	agents         agents
	release        func()
}

// inputs finds the context and the Dockerfile of b and checks that they exist, and reads its secrets.
func (s *runSession) inputs(ctx context.Context, b solve.Build) (_ *inputs, err error) {
	own, release, err := s.root(ctx, b)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			release()
		}
	}()
	in := &inputs{release: release, mounts: map[string]fsutil.FS{}, contexts: map[string]string{}}
	main := own
	if b.Remote != nil {
		main = files{FS: b.Remote.FS, what: "remote context", key: b.Remote.Key}
	}
	if err := in.main(ctx, main, b); err != nil {
		return nil, err
	}
	if err := in.named(ctx, own, b.Contexts); err != nil {
		return nil, err
	}
	if in.secrets, err = own.values(ctx, "secret", b.Secrets); err != nil {
		return nil, err
	}
	keys, err := own.values(ctx, "ssh key", b.SSH)
	if err != nil {
		return nil, err
	}
	in.agents, err = newAgents(keys)
	return in, err
}

// files is a tree of files that a build reads.
type files struct {
	fsutil.FS
	what string // for messages
	key  string // where the tree comes from, see sharedKey
}

// directory checks that dir is a directory of the tree, and returns its path, "" for the root.
func (f files) directory(ctx context.Context, what, dir string) (string, error) {
	clean, err := pathInside(dir)
	if err != nil {
		return "", stepError("%s %q is outside of the %s", what, dir, f.what)
	}
	if clean == "" {
		return "", nil
	}
	switch e, err := lookup(ctx, f, clean); {
	case errors.Is(err, fs.ErrNotExist):
		return "", stepError("%s %q is not in the %s", what, clean, f.what)
	case err != nil:
		return "", err
	case !e.IsDir():
		return "", stepError("%s %q is not a directory", what, clean)
	}
	return clean, nil
}

// main adds the context and the Dockerfile.
func (in *inputs) main(ctx context.Context, f files, b solve.Build) error {
	dir, err := f.directory(ctx, "context", b.Context)
	if err != nil {
		return err
	}
	file := b.Dockerfile
	if file == "" {
		file = path.Join(dir, defaultDockerfile)
	}
	if file, err = pathInside(file); err != nil || file == "" {
		return stepError("Dockerfile %q is outside of the %s", b.Dockerfile, f.what)
	}
	in.dockerfileName = file
	in.mounts["context"], in.mounts["dockerfile"] = tree{fs: f, dir: dir}, tree{fs: f}
	if b.DockerfileInline != nil {
		in.dockerfileName = defaultDockerfile
		in.mounts["dockerfile"] = fileTree{name: defaultDockerfile, data: b.DockerfileInline}
	} else if _, err := lookup(ctx, f, file); errors.Is(err, fs.ErrNotExist) {
		return stepError("%s is not in the %s", file, f.what)
	} else if err != nil {
		return err
	} else if f.what != "workspace" {
		in.mounts["dockerfile"] = withIgnore(ctx, f, dir, file)
	}
	in.sharedKey = hashed(f.key, f.what, dir, in.dockerfileName, string(b.DockerfileInline), b.Target)
	return nil
}

// named adds the named contexts. What the daemon keeps of an upload goes by the name of its mount, too.
func (in *inputs) named(ctx context.Context, own files, contexts map[string]solve.Context) error {
	for name, c := range contexts {
		attr := "context:" + name
		f, dir := own, ""
		switch {
		case c.Image != "":
			in.contexts[attr] = imageScheme + c.Image
			continue
		case c.Tree != nil:
			f = files{FS: c.Tree.FS, what: "remote context", key: c.Tree.Key}
		default:
			var err error
			if dir, err = own.directory(ctx, "build context "+name+":", c.Dir); err != nil {
				return err
			}
		}
		mount := "named-" + hashed(name, f.key, f.what, dir)
		in.mounts[mount] = tree{fs: f, dir: dir}
		in.contexts[attr] = "local:" + mount
	}
	return nil
}

// values returns the values of secrets, those of files read from the tree.
func (f files) values(ctx context.Context, what string, secrets map[string]solve.Secret) (map[string][]byte, error) {
	values := make(map[string][]byte, len(secrets))
	for id, s := range secrets {
		value := s.Value
		if value == nil {
			var err error
			if value, err = f.read(ctx, s.File, secretsprovider.MaxSecretSize); err != nil {
				return nil, stepError("%s %s: %v", what, id, err)
			}
		}
		if len(value) > secretsprovider.MaxSecretSize {
			return nil, stepError("%s %s is larger than %d bytes", what, id, secretsprovider.MaxSecretSize)
		}
		values[id] = value
	}
	return values, nil
}

// read returns the content of a regular file, up to the first byte that is more than limit.
func (f files) read(ctx context.Context, name string, limit int) ([]byte, error) {
	clean, err := pathInside(name)
	if err != nil || clean == "" {
		return nil, fmt.Errorf("%q is outside of the %s", name, f.what)
	}
	switch e, err := lookup(ctx, f, clean); {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%q is not in the %s", clean, f.what)
	case err != nil:
		return nil, err
	case !e.Type().IsRegular():
		return nil, fmt.Errorf("%q is no regular file", clean)
	}
	r, err := f.Open(clean)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(io.LimitReader(r, int64(limit)+1))
}

// ReadFile reads a file of the workspace, or of the source while no container has used that.
func (s *runSession) ReadFile(ctx context.Context, name string, limit int) ([]byte, error) {
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	f, release, err := s.root(ctx, solve.Build{FromWorkspace: true})
	if err != nil {
		return nil, err
	}
	defer release()
	content, err := f.read(ctx, name, limit)
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil:
		return nil, stepError("%v", err)
	case len(content) > limit:
		return nil, stepError("%q has more than %d bytes", name, limit)
	}
	return content, nil
}

// root returns the tree of the session that b reads, and how to release it.
func (s *runSession) root(ctx context.Context, b solve.Build) (files, func(), error) {
	key := s.sourceKey()
	if b.FromWorkspace {
		if g, w := s.workspace(); w != nil {
			t, err := g.openWorkspace(ctx, w)
			if err != nil {
				return files{}, nil, err
			}
			return files{t, "workspace", key}, t.release, nil
		}
	}
	switch {
	case s.cfg.Source != nil:
		return files{s.cfg.Source, "source", key}, func() {}, nil
	case b.DockerfileInline != nil || b.FromWorkspace || b.Remote != nil:
		return files{emptyTree{}, "workspace", key}, func() {}, nil
	}
	return files{}, nil, solve.ErrNoSource
}

// sourceKey names where the session's source comes from. Without a name nothing outlives the run.
func (s *runSession) sourceKey() string { return cmp.Or(s.cfg.SourceKey, s.token) }

// workspace returns the session's workspace, nil if no container has used it.
func (s *runSession) workspace() (*gateway, *workspace) {
	g, ok := s.gateway.peek()
	if !ok {
		return nil, nil
	}
	w, _ := g.workspace.peek()
	return g, w
}

// hashed makes one name of parts. What the daemon keeps of an upload goes by such a name, and the next
// upload under it transfers differences only.
func hashed(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
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
