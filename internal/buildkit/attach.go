package buildkit

import (
	"context"

	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"google.golang.org/grpc"
)

// Docker Hub answers under another name than the one that users write.
const (
	dockerHub     = "docker.io"
	dockerHubHost = "registry-1.docker.io"
)

// attachables are what the daemon may ask a session for: the credentials of registries.
func (s *runSession) attachables() []session.Attachable {
	return []session.Attachable{&credentials{lookup: s.cfg.Credentials, redact: s.redact}}
}

// attachables are what the daemon may ask for while it executes a build: those of the session, and the
// build's secrets and keys.
func (in *inputs) attachables(s *runSession) []session.Attachable {
	return append(s.attachables(), secretsprovider.FromMap(in.secrets), in.agents)
}

// credentials answers the daemon's questions for the user and password of a registry.
type credentials struct {
	// Not implemented on purpose: the daemon then fetches tokens itself.
	auth.UnimplementedAuthServer
	lookup func(host string) (user, password string)
	redact *redactor
}

func (c *credentials) Register(s *grpc.Server) { auth.RegisterAuthServer(s, c) }

func (c *credentials) Credentials(_ context.Context, req *auth.CredentialsRequest) (*auth.CredentialsResponse, error) {
	if c.lookup == nil {
		return &auth.CredentialsResponse{}, nil
	}
	host := req.Host
	if host == dockerHubHost {
		host = dockerHub
	}
	user, password := c.lookup(host)
	c.redact.add(password)
	return &auth.CredentialsResponse{Username: user, Secret: password}, nil
}
