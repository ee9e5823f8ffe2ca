package worker

import (
	"cmp"
	"context"
	"path"
	"time"

	"kiln/internal/dockerfile"
	"kiln/internal/solve"
)

// Annotations that say what an image was made from. They are a function of what is built alone: a build
// that is repeated makes the same image. So the run is not among them, nor the time at which it was executed:
// the image was created when its source was, and it has no time if that is not known.
const (
	annotationRevision   = "org.opencontainers.image.revision"
	annotationCreated    = "org.opencontainers.image.created"
	annotationSource     = "org.opencontainers.image.source"
	annotationBaseName   = "org.opencontainers.image.base.name"
	annotationBaseDigest = "org.opencontainers.image.base.digest"
)

const maxDockerfile = 1 << 20 // bytes of one that is read for its annotations

// annotate adds the annotations of a build's image to those that its author has written, which win. The
// base is known only if the run is pinned to its digest.
func (a *attempt) annotate(ctx context.Context, b *solve.Build) {
	add := func(key, value string) {
		if _, given := b.Annotations[key]; !given && value != "" {
			b.Annotations[key] = value
		}
	}
	add(annotationRevision, a.origin.Commit)
	add(annotationSource, a.origin.Repository)
	created := b.Epoch
	if created.IsZero() {
		created = a.origin.Time
	}
	if !created.IsZero() {
		add(annotationCreated, created.UTC().Format(time.RFC3339))
	}
	if name := a.runtimeBase(ctx, *b); name != "" {
		add(annotationBaseName, name)
		add(annotationBaseDigest, b.Pins[name])
	}
}

// runtimeBase returns the name of the image that a build's image is based on, if the run is pinned to its
// digest and it can be told from the Dockerfile alone.
func (a *attempt) runtimeBase(ctx context.Context, b solve.Build) string {
	if len(b.Pins) == 0 || len(b.Platforms) > 1 || b.Remote != nil || len(b.Contexts) > 0 {
		return ""
	}
	text := b.DockerfileInline
	if text == nil {
		if b.FromWorkspace || a.src == nil {
			return ""
		}
		var err error
		if text, err = a.src.ReadFile(ctx, cmp.Or(b.Dockerfile, path.Join(b.Context, "Dockerfile")), maxDockerfile); err != nil {
			return "" // the build says it better
		}
	}
	opt := dockerfile.Options{BuildArgs: b.BuildArgs, Target: b.Target}
	if len(b.Platforms) == 1 {
		opt.Platform = b.Platforms[0]
	}
	bases, err := dockerfile.Scan(text, opt)
	if err != nil || bases.Runtime == nil {
		return ""
	}
	name := bases.Runtime.Ref
	if _, own := b.Images[name]; own || b.Pins[name] == "" {
		return ""
	}
	return name
}
