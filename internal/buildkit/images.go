package buildkit

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	gwclient "github.com/moby/buildkit/frontend/gateway/client"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"kiln/internal/solve"
)

// An image is one that the daemon has, ready to be a container's root.
type image struct {
	rootfs gwclient.Reference // nil if the image has no files
	config ocispecs.ImageConfig
}

// images are those that a session has used. A reference is resolved once per session: as with
// docker, a tag that moves meanwhile does not change what a run executes.
type images struct {
	mu    sync.Mutex
	byRef map[string]*lazy[*image]
}

func (i *images) entry(ref string) *lazy[*image] {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.byRef == nil {
		i.byRef = map[string]*lazy[*image]{}
	}
	e := i.byRef[ref]
	if e == nil {
		e = &lazy[*image]{}
		i.byRef[ref] = e
	}
	return e
}

// forget has a reference resolved again when it is used next.
func (i *images) forget(ref string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.byRef, ref)
}

// image returns the image at ref, of a platform that is the daemon's own if none is given, and pulls it if need be;
// with again, also if the session has it already.
func (g *gateway) image(ctx context.Context, ref, platform string, again bool) (*image, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return nil, stepError("image %q: %v", ref, err)
	}
	if may := g.session.cfg.Images; may != nil && !may(named.String()) {
		return nil, stepError("%s", refusal(named.String()))
	}
	of, err := g.platform(ctx, platform)
	if err != nil {
		return nil, err
	}
	key := named.String() + " " + platforms.Format(of)
	if again {
		g.images.forget(key)
	}
	return g.images.entry(key).get(ctx, func(ctx context.Context) (*image, error) {
		img, err := g.pull(ctx, named, of)
		if err != nil {
			return nil, g.imageError(ctx, named, err)
		}
		return img, nil
	})
}

// platform returns the one of a text, or the daemon's own if that is empty.
func (g *gateway) platform(ctx context.Context, text string) (ocispecs.Platform, error) {
	own, err := g.session.client.platform(ctx)
	if err != nil || text == "" {
		return own, err
	}
	p, err := platforms.Parse(text)
	if err != nil {
		return p, stepError("platform %q: %v", text, err)
	}
	return platforms.Normalize(p), nil
}

// foreign reports whether the daemon's processors cannot execute programs of a platform by themselves.
func (g *gateway) foreign(ctx context.Context, text string) bool {
	own, err1 := g.platform(ctx, "")
	of, err2 := g.platform(ctx, text)
	return err1 == nil && err2 == nil && !platforms.Only(own).Match(of)
}

// pull resolves a reference and fetches what it stands for, at once if that is given by its digest.
func (g *gateway) pull(ctx context.Context, named reference.Named, platform ocispecs.Platform) (*image, error) {
	ctx, cancel := g.while(ctx)
	defer cancel()
	img, resolved := &image{}, named
	fetch := func(ctx context.Context) (err error) {
		img.rootfs, err = g.evaluateFor(ctx, llb.Image(resolved.String()), platform)
		return err
	}
	work, wctx := errgroup.WithContext(ctx)
	_, pinned := named.(reference.Digested)
	if pinned { // as what the run itself has built
		work.Go(func() error { return fetch(wctx) })
	}
	work.Go(func() error {
		_, digest, config, err := g.ResolveImageConfig(wctx, named.String(), sourceresolver.Opt{
			ImageOpt: &sourceresolver.ResolveImageOpt{Platform: &platform},
		})
		if err != nil {
			return err
		}
		var parsed ocispecs.Image
		if err := json.Unmarshal(config, &parsed); err != nil {
			return fmt.Errorf("config: %w", err)
		}
		img.config = parsed.Config
		if pinned {
			return nil
		}
		resolved, err = reference.WithDigest(named, digest)
		return err
	})
	if err := work.Wait(); err != nil || pinned {
		return img, err
	}
	return img, fetch(ctx)
}

// evaluate solves state and returns what it is.
func (g *gateway) evaluate(ctx context.Context, state llb.State) (gwclient.Reference, error) {
	platform, err := g.session.client.platform(ctx)
	if err != nil {
		return nil, err
	}
	return g.evaluateFor(ctx, state, platform)
}

func (g *gateway) evaluateFor(ctx context.Context, state llb.State, platform ocispecs.Platform) (gwclient.Reference, error) {
	def, err := state.Marshal(ctx, llb.Platform(platform))
	if err != nil {
		return nil, err
	}
	res, err := g.Solve(ctx, gwclient.SolveRequest{Definition: def.ToPB(), Evaluate: true})
	if err != nil {
		return nil, err
	}
	return res.Ref, nil
}

// imageError decides whose failure it is that an image could not be had.
func (g *gateway) imageError(ctx context.Context, named reference.Named, err error) error {
	if failure, engine := g.failure(ctx, err); engine {
		return failure
	}
	message := tidy(g.session.redact.String(oneLine(err.Error())))
	ref := reference.FamiliarString(named)
	if rest, ok := cutAny(message, "image "+named.String()+": ", named.String()+": "); ok {
		message = rest
	}
	return &solve.StepError{ExitCode: -1, Pull: true, Message: fmt.Sprintf("image %s: %s", ref, clip(message, maxMessage))}
}
