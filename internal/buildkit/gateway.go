package buildkit

import (
	"context"
	"errors"
	"fmt"

	controlapi "github.com/moby/buildkit/api/services/control"
	gwclient "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/frontend/gateway/grpcclient"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/filesync"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/util/apicaps"
	"github.com/moby/buildkit/util/entitlements"
	"github.com/moby/buildkit/util/grpcerrors"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
)

// errEnded is why a gateway ended that nobody asked to.
var errEnded = errors.New("the build daemon ended the session")

// A gateway is the build in which all containers of a session live. The daemon removes them, and
// lets go of their mounts, when it ends.
type gateway struct {
	gwclient.Client
	session   *runSession
	sessionID string

	images    images
	workspace lazy[*workspace]
	volumes   *volumeFiles
	shares    shares
	uploads   *uploads
	shown     shown
	program   lazy[gwclient.Reference] // the docker program of containers
	putter    lazy[gwclient.Reference] // the program that writes files
	calls     *dockerCalls

	stop  chan struct{} // closed to end it
	abort context.CancelCauseFunc
	ended chan struct{} // closed when it has ended
	err   error         // why, once ended is closed
}

// openGateway starts a gateway and waits until it can be used. It lives until it is closed.
func (s *runSession) openGateway(ctx context.Context) (*gateway, error) {
	c := s.client
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	life, abort := context.WithCancelCause(context.WithoutCancel(ctx))
	files, err := session.NewSession(life, s.token)
	if err != nil {
		abort(err)
		return nil, fmt.Errorf("session: %w", err)
	}
	volumes, trees, calls := &volumeFiles{}, &uploads{}, &dockerCalls{}
	files.Allow(filesync.NewFSSyncProvider(trees))
	files.Allow(&credentials{lookup: s.cfg.Credentials, redact: s.redact})
	files.Allow(calls)
	files.Allow(secretsprovider.NewSecretProvider(volumes))
	g := &gateway{
		session:   s,
		volumes:   volumes,
		uploads:   trees,
		calls:     calls,
		sessionID: files.ID(),
		stop:      make(chan struct{}),
		abort:     abort,
		ended:     make(chan struct{}),
	}
	usable := make(chan gwclient.Client, 1)
	go func() {
		defer close(g.ended)
		if err := g.run(life, files, usable); err != nil {
			g.err = c.engineError(life, err)
		}
		abort(g.err)
	}()
	select {
	case g.Client = <-usable:
		return g, nil
	case <-g.ended:
		return nil, g.err
	case <-ctx.Done():
		abort(context.Cause(ctx))
		<-g.ended
		return nil, context.Cause(ctx)
	}
}

// run is a build without a frontend of its own: its client calls the gateway until stop is closed.
func (g *gateway) run(ctx context.Context, files *session.Session, usable chan<- gwclient.Client) error {
	c, ref := g.session.client, identity.NewID()
	req := &controlapi.SolveRequest{Ref: ref, Session: files.ID(), Cache: &controlapi.CacheOptions{}, Internal: true}
	if c.cfg.Privileged {
		req.Entitlements = []string{entitlements.EntitlementSecurityInsecure.String()}
	}
	lost, solved := c.link.lost(), make(chan struct{})
	work, ctx := errgroup.WithContext(ctx)
	work.Go(func() error { return files.Run(ctx, c.bk.Dialer()) })
	work.Go(func() error {
		defer files.Close()
		defer close(solved)
		_, err := c.bk.ControlClient().Solve(ctx, req)
		select {
		case <-g.stop:
			return err
		default:
			if err == nil {
				return errEnded
			}
			return fmt.Errorf("%w: %w", errEnded, err) // whatever the reason, another session may live
		}
	})
	work.Go(func() error {
		select {
		case <-lost:
			return c.unavailable(errors.New("the connection was lost"))
		case <-solved:
			return nil
		}
	})
	work.Go(func() error {
		gw, err := grpcclient.New(ctx, nil, files.ID(), apicaps.ExportedProduct, c.bk.GatewayClientForBuild(ref), nil)
		if err != nil {
			return err
		}
		return gw.Run(ctx, func(ctx context.Context, gw gwclient.Client) (*gwclient.Result, error) {
			usable <- gw
			select {
			case <-g.stop:
				return gwclient.NewResult(), nil
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		})
	})
	return work.Wait()
}

// while returns a context that ends with ctx and with the gateway, whichever is first.
func (g *gateway) while(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-g.ended:
			cancel(g.err)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

// failure returns the error to tell for err, and whether the engine is to blame: if the gateway has
// ended, everything in it fails with it.
func (g *gateway) failure(ctx context.Context, err error) (_ error, engine bool) {
	c := g.session.client
	if ctx.Err() != nil {
		return causeOf(ctx, err), true
	}
	select {
	case <-g.ended:
		return g.err, true
	case <-c.link.lost():
		return c.unavailable(err), true
	default:
	}
	switch code := grpcerrors.Code(err); {
	case code == codes.Unavailable, code == codes.Canceled:
		return c.unavailable(err), true
	case isDiskFull(err):
		return &diskFullError{address: c.cfg.Address, err: err}, true
	}
	return err, false
}

// close ends the gateway and with it its containers, then removes what they have shared.
func (g *gateway) close(ctx context.Context) error {
	close(g.stop)
	select {
	case <-g.ended:
	case <-ctx.Done():
		g.abort(context.Cause(ctx))
		<-g.ended
	}
	// A gateway that failed has told so to the steps it failed. What it has left is to be removed.
	c := g.session.client
	err := c.ready(ctx)
	if err == nil {
		_, err = c.pruneMatching(ctx, "description~="+g.session.token)
	}
	if err = errors.Join(err, g.shown.end()); err != nil {
		return fmt.Errorf("workspace: %w", err)
	}
	return nil
}
