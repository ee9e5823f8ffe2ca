package buildkit

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"

	gwclient "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/session/sshforward"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcmetadata "google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"kiln/internal/buildkit/shim"
	"kiln/internal/solve"
)

// maxDockerCalls is how many docker commands of one container are served at once.
const maxDockerCalls = 32

// dockerCalls serve the docker programs of a session's containers. They reach it as programs of a build
// reach an SSH agent: through a socket that the daemon forwards over the session, by an unguessable name.
type dockerCalls struct {
	mu     sync.Mutex
	byName map[string]*dockerServer
}

// A dockerServer serves the programs of one container.
type dockerServer struct {
	run   solve.DockerFunc
	ended context.Context // with the container
	calls int             // at the moment
	done  sync.WaitGroup
}

var _ sshforward.SSHServer = (*dockerCalls)(nil)

// Register implements session.Attachable.
func (d *dockerCalls) Register(s *grpc.Server) { sshforward.RegisterSSHServer(s, d) }

// CheckAgent implements sshforward.SSHServer.
func (d *dockerCalls) CheckAgent(_ context.Context, req *sshforward.CheckAgentRequest) (*sshforward.CheckAgentResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.byName[req.ID] == nil {
		return nil, status.Error(codes.NotFound, "there is no such container")
	}
	return &sshforward.CheckAgentResponse{}, nil
}

// ForwardAgent implements sshforward.SSHServer.
func (d *dockerCalls) ForwardAgent(s sshforward.SSH_ForwardAgentServer) error {
	md, _ := grpcmetadata.FromIncomingContext(s.Context())
	names := md[sshforward.KeySSHID]
	if len(names) != 1 {
		return status.Error(codes.InvalidArgument, "no container is named")
	}
	server, end, err := d.begin(names[0])
	if err != nil {
		return err
	}
	defer end()
	ctx, cancel := context.WithCancelCause(s.Context())
	defer cancel(nil)
	defer context.AfterFunc(server.ended, func() { cancel(context.Cause(server.ended)) })()
	return shim.Serve(ctx, &messages{stream: s}, server.run)
}

// begin counts a call of a container's program.
func (d *dockerCalls) begin(name string) (server *dockerServer, end func(), err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	server = d.byName[name]
	switch {
	case server == nil:
		return nil, nil, status.Error(codes.NotFound, "there is no such container")
	case server.calls >= maxDockerCalls:
		return nil, nil, status.Errorf(codes.ResourceExhausted, "the container executes %d docker commands at once, the most", maxDockerCalls)
	}
	server.calls++
	server.done.Add(1)
	return server, func() {
		d.mu.Lock()
		server.calls--
		d.mu.Unlock()
		server.done.Done()
	}, nil
}

// serve has the programs of a container served by run until end is called, which waits for those that are.
func (d *dockerCalls) serve(ctx context.Context, run solve.DockerFunc) (name string, end func()) {
	ended, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	server := &dockerServer{run: run, ended: ended}
	name = randomToken()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.byName == nil {
		d.byName = map[string]*dockerServer{}
	}
	d.byName[name] = server
	return name, func() {
		d.mu.Lock()
		delete(d.byName, name)
		d.mu.Unlock()
		cancel(errContainerEnded)
		server.done.Wait()
	}
}

var errContainerEnded = errors.New("the container has ended")

// docker returns the mounts by which a container has its docker program, none if it is not to have it. End is
// to be called when the container is gone.
func (g *gateway) docker(ctx context.Context, c solve.Container, env []string) (mounts []gwclient.Mount, end func(), err error) {
	own := slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, "DOCKER_HOST=") })
	if c.Docker == nil || own {
		return nil, func() {}, nil
	}
	program, err := g.program.get(ctx, g.makeProgram)
	if err != nil || program == nil {
		return nil, func() {}, err
	}
	name, end := g.calls.serve(ctx, c.Docker)
	return []gwclient.Mount{
		{Dest: shim.Program, MountType: pb.MountType_BIND, Ref: program, Selector: "docker", Readonly: true},
		{Dest: shim.Socket, MountType: pb.MountType_SSH, SSHOpt: &pb.SSHOpt{ID: name, Mode: 0o666}},
	}, end, nil
}

// makeProgram brings the docker program to the daemon, nil if there is none for its processor.
func (g *gateway) makeProgram(ctx context.Context) (gwclient.Reference, error) {
	return g.bring(ctx, "docker", shim.Binary)
}

// messages are a stream of bytes in messages.
type messages struct {
	stream sshforward.SSH_ForwardAgentServer
	rest   []byte
}

var _ io.ReadWriter = (*messages)(nil)

func (m *messages) Read(p []byte) (int, error) {
	for len(m.rest) == 0 {
		msg, err := m.stream.Recv()
		if err != nil {
			return 0, err
		}
		m.rest = msg.Data
	}
	n := copy(p, m.rest)
	m.rest = m.rest[n:]
	return n, nil
}

func (m *messages) Write(p []byte) (int, error) {
	if err := m.stream.Send(&sshforward.BytesMessage{Data: p}); err != nil {
		return 0, err
	}
	return len(p), nil
}
