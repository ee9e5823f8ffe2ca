package worker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"kiln/internal/event"
	"kiln/internal/registry"
	"kiln/internal/run"
	"kiln/internal/solve"
)

// publishPatience is how long a publication waits for a registry that restarts.
const publishPatience = time.Minute

// publishPatiently publishes, and tries again while the registry cannot be reached. A refusal is final.
func (w *Worker) publishPatiently(ctx context.Context, tokens event.Tokens, p registry.Publication) ([]registry.Published, error) {
	deadline := time.Now().Add(publishPatience)
	for delay := 100 * time.Millisecond; ; delay = min(2*delay, 5*time.Second) {
		done, err := w.Publisher.Publish(ctx, tokens, p)
		switch {
		case err == nil, ctx.Err() != nil, refused(err):
			return done, err
		case time.Now().After(deadline):
			return nil, fmt.Errorf("publish: %w: %w", solve.ErrUnavailable, err)
		}
		w.Log.Warn("publication not accepted, trying again", "run", p.Run, "attempt", p.Attempt, "step", p.Step, "err", err)
		if err := pause(ctx, delay); err != nil {
			return nil, err
		}
	}
}

// refusals are the registry's answers that repeating a publication cannot change.
var refusals = []error{registry.ErrFenced, registry.ErrTagExists, registry.ErrTagProtected, registry.ErrLocked, registry.ErrManifestUnknown,
	registry.ErrRepositoryUnknown, registry.ErrReferenceMissing, registry.ErrInvalid, registry.ErrDigestInvalid,
	registry.ErrDenied, registry.ErrUnauthenticated}

func refused(err error) bool {
	return slices.ContainsFunc(refusals, func(r error) bool { return errors.Is(err, r) })
}

// A copyJob is one image on its way to another registry.
type copyJob struct {
	built builtImage
	to    reference.Named
}

// copyOut copies an image to another registry: blobs and manifests by digest first, the tag last.
func (a *attempt) copyOut(ctx context.Context, step string, j copyJob) error {
	fail := func(err error) error {
		return &stepFailure{step, fmt.Errorf("push %s: %w", j.to, err)}
	}
	from, err := name.NewDigest(j.built.output.Ref, a.insecurely(j.built.output.Ref)...)
	if err != nil {
		return fail(err)
	}
	to, err := name.NewTag(j.to.String())
	if err != nil {
		return fail(err)
	}
	src, err := remote.Get(from, a.remotely(ctx, from.RegistryStr())...)
	if err != nil {
		return fail(err)
	}
	if err := a.writeTo(ctx, to, src); err != nil {
		return fail(err)
	}
	img := run.Image{Registry: reference.Domain(j.to), Repository: reference.Path(j.to), Tag: to.TagStr(), Digest: src.Digest.String(), Step: step}
	a.logs.say(step, "pushed %s", img)
	img.Provenance, err = a.attachTo(ctx, to.Repository, src, j)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil: // the image is published; what is missing is said, and seen in the record
		a.logs.say(step, "warning: %s: provenance not attached: %v", j.to, err)
		a.w.Log.Warn("provenance not attached", "run", a.run.ID, "attempt", a.run.Attempt, "step", step, "ref", j.to.String(), "err", err)
	}
	a.reports.images([]run.Image{img})
	return nil
}

// attachTo pushes the provenance of an image that was copied to another registry, and returns the digest of
// its manifest.
func (a *attempt) attachTo(ctx context.Context, to name.Repository, image *remote.Descriptor, j copyJob) (string, error) {
	att, err := a.attachment(to.Name(), j.built, time.Now())
	if err != nil {
		return "", err
	}
	manifest, err := att.Manifest(registry.Descriptor{MediaType: string(image.MediaType), Digest: image.Digest.String(), Size: image.Size}, a.run.ID)
	if err != nil {
		return "", err
	}
	opts := a.remotely(ctx, to.RegistryStr())
	for _, l := range []v1.Layer{static.NewLayer([]byte("{}"), types.MediaType("application/vnd.oci.empty.v1+json")), static.NewLayer(att.Content, types.MediaType(att.Type))} {
		if err := remote.WriteLayer(to, l, opts...); err != nil {
			return "", err
		}
	}
	d := digest.FromBytes(manifest).String()
	return d, remote.Put(to.Digest(d), rawManifest(manifest), opts...)
}

// A rawManifest is an OCI manifest that is pushed as it is.
type rawManifest []byte

// RawManifest implements remote.Taggable.
func (m rawManifest) RawManifest() ([]byte, error) { return m, nil }

// MediaType is what makes a registry see more than a document in it.
func (m rawManifest) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }

// authenticator returns what is shown to a registry.
func (a *attempt) authenticator(host string) authn.Authenticator {
	user, password := a.credentials(host)
	switch {
	case a.images.ours(host):
		return authn.FromConfig(authn.AuthConfig{RegistryToken: password}) // good for requests as it is
	case user != "":
		return &authn.Basic{Username: user, Password: password}
	case password != "":
		return authn.FromConfig(authn.AuthConfig{IdentityToken: password})
	}
	return authn.Anonymous
}

func (a *attempt) writeTo(ctx context.Context, to name.Reference, src *remote.Descriptor) error {
	opts := a.remotely(ctx, to.Context().RegistryStr())
	if src.MediaType.IsIndex() {
		idx, err := src.ImageIndex()
		if err != nil {
			return err
		}
		return remote.WriteIndex(to, idx, opts...)
	}
	img, err := src.Image()
	if err != nil {
		return err
	}
	return remote.Write(to, img, opts...)
}
