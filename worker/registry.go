package worker

import (
	"context"

	"kiln/internal/event"
	"kiln/internal/registry"
)

// A Publisher moves tags of the co-located registry, fenced by run and attempt.
type Publisher interface {
	Publish(ctx context.Context, t event.Tokens, p registry.Publication) ([]registry.Published, error)
}

// A Resolver tells which manifest a reference, a tag or a digest, names in a repository of the
// co-located registry.
type Resolver interface {
	Resolve(ctx context.Context, t event.Tokens, repository, reference string) (registry.Descriptor, error)
}

// Direct reaches the registry in the same process: nobody is asked for tokens.
type Direct struct{ Registry *registry.Store }

// Publish implements Publisher.
func (d Direct) Publish(ctx context.Context, _ event.Tokens, p registry.Publication) ([]registry.Published, error) {
	return d.Registry.Publish(ctx, p)
}

// Resolve implements Resolver.
func (d Direct) Resolve(ctx context.Context, _ event.Tokens, repository, reference string) (registry.Descriptor, error) {
	return d.Registry.Resolve(ctx, repository, reference)
}
