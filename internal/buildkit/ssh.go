package buildkit

import (
	"context"
	"errors"
	"net"

	"github.com/moby/buildkit/session/sshforward"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcmetadata "google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// agents are the SSH agents of a build, by ID. Each holds one private key, which it signs with and gives to
// nobody.
type agents map[string]agent.Agent

// newAgents makes an agent of each private key in PEM.
func newAgents(keys map[string][]byte) (agents, error) {
	all := agents{}
	for id, pem := range keys {
		ring, err := newRing(pem)
		if err != nil {
			return nil, stepError("ssh key %s: %v", id, err)
		}
		all[id] = signer{ring}
	}
	return all, nil
}

// newRing makes an agent of a private key in PEM.
func newRing(pem []byte) (agent.Agent, error) {
	key, err := ssh.ParseRawPrivateKey(pem)
	if err != nil {
		if _, locked := errors.AsType[*ssh.PassphraseMissingError](err); locked {
			return nil, errors.New("it has a passphrase, which nobody here could type")
		}
		return nil, errors.New("it is no private key in PEM")
	}
	ring := agent.NewKeyring()
	if err := ring.Add(agent.AddedKey{PrivateKey: key}); err != nil {
		return nil, errors.New("it is of a kind that no agent takes")
	}
	return ring, nil
}

// CheckKey reports why a private key could not be one of a solve.Build's SSH. The error holds nothing of it.
func CheckKey(pem []byte) error {
	_, err := newRing(pem)
	return err
}

// Register implements session.Attachable.
func (a agents) Register(s *grpc.Server) { sshforward.RegisterSSHServer(s, a) }

// CheckAgent implements sshforward.SSHServer.
func (a agents) CheckAgent(_ context.Context, req *sshforward.CheckAgentRequest) (*sshforward.CheckAgentResponse, error) {
	if _, err := a.find(req.ID); err != nil {
		return nil, err
	}
	return &sshforward.CheckAgentResponse{}, nil
}

// ForwardAgent implements sshforward.SSHServer.
func (a agents) ForwardAgent(stream sshforward.SSH_ForwardAgentServer) error {
	id := ""
	if md, ok := grpcmetadata.FromIncomingContext(stream.Context()); ok && len(md[sshforward.KeySSHID]) > 0 {
		id = md[sshforward.KeySSHID][0]
	}
	found, err := a.find(id)
	if err != nil {
		return err
	}
	here, there := net.Pipe()
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = agent.ServeAgent(found, there) // ends with the other side
		there.Close()
	}()
	err = sshforward.Copy(stream.Context(), here, stream, nil)
	here.Close()
	<-served
	return err
}

func (a agents) find(id string) (agent.Agent, error) {
	if id == "" {
		id = sshforward.DefaultID
	}
	if found, ok := a[id]; ok {
		return found, nil
	}
	return nil, status.Errorf(codes.NotFound, "the build was given no ssh key %s; give it with --ssh %s", id, id)
}

// A signer is an agent that cannot be changed by who uses it.
type signer struct{ agent.Agent }

var errReadOnly = errors.New("this agent only signs")

func (signer) Add(agent.AddedKey) error       { return errReadOnly }
func (signer) Remove(ssh.PublicKey) error     { return errReadOnly }
func (signer) RemoveAll() error               { return errReadOnly }
func (signer) Lock([]byte) error              { return errReadOnly }
func (signer) Unlock([]byte) error            { return errReadOnly }
func (signer) Signers() ([]ssh.Signer, error) { return nil, errReadOnly }
