package buildkit

import (
	"bytes"
	"context"
	"io"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/moby/buildkit/client/llb"
	gwclient "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/pb"

	"kiln/internal/buildkit/shim"
	"kiln/internal/event"
	"kiln/internal/solve"
)

// putProgram is where a container that writes files has its program.
const putProgram = "/put"

// WriteFile writes a file of the workspace.
func (s *runSession) WriteFile(ctx context.Context, name string, content []byte) error {
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	g, err := s.gateway.get(ctx, s.openGateway)
	if err != nil {
		return err
	}
	w, err := g.workspace.get(ctx, g.createWorkspace)
	if err != nil {
		return causeOf(ctx, err)
	}
	file := path.Join(workspaceDir, name)
	if !strings.HasPrefix(file, workspaceDir+"/") {
		return stepError("%q is outside of %s", name, workspaceDir)
	}
	return g.put(ctx, w, file, content)
}

// put writes a file of what containers share, or makes the directory if its name ends with a slash. BuildKit has no
// words for that, so a container does it that has nothing else.
func (g *gateway) put(ctx context.Context, w *workspace, file string, content []byte) error {
	program, err := g.putter.get(ctx, func(ctx context.Context) (gwclient.Reference, error) { return g.bring(ctx, "put", shim.Put) })
	if err != nil {
		return err
	}
	if program == nil {
		return stepError("%s: there is no program to write files with on the processors of this build daemon", file)
	}
	while, cancel := g.while(ctx)
	defer cancel()
	root := gwclient.Mount{Dest: "/", MountType: pb.MountType_BIND, Ref: program}
	ctr, err := g.NewContainer(while, gwclient.NewContainerRequest{Mounts: slices.Concat([]gwclient.Mount{root}, w.mounts), NetMode: pb.NetMode_NONE})
	if err != nil {
		failure, _ := g.failure(ctx, err)
		return failure
	}
	defer g.release(ctx, ctr)
	stderr := &output{stream: event.StreamStderr, log: func(...event.LogEntry) {}}
	code, err := g.execute(ctx, ctr, gwclient.StartRequest{Args: []string{putProgram, file}, Cwd: "/", Stdin: io.NopCloser(bytes.NewReader(content)),
		Stdout: stderr, Stderr: stderr}, stderr, course{signal: syscall.SIGKILL})
	if err == nil && code != 0 {
		return stepError("%s cannot be written: %v", strings.TrimSuffix(file, "/"), syscall.Errno(code))
	}
	return err
}

// bring brings a program to the daemon as the only file of a tree, nil if there is none for its processor.
func (g *gateway) bring(ctx context.Context, name string, of func(architecture string) []byte) (gwclient.Reference, error) {
	ctx, cancel := g.while(ctx)
	defer cancel()
	platform, err := g.session.client.platform(ctx)
	if err != nil {
		return nil, err
	}
	binary := of(platform.Architecture)
	if binary == nil {
		return nil, nil
	}
	ref, err := g.evaluate(ctx, llb.Scratch().File(llb.Mkfile(name, 0o555, binary)))
	if err != nil {
		failure, _ := g.failure(ctx, err)
		return nil, failure
	}
	return ref, nil
}

var _ solve.Session = (*runSession)(nil)
