package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"kiln/internal/apiclient"
)

const (
	maxImported     = 1000 // manifests of one import
	maxImportTags   = 64   // names of one import
	importAtOnce    = 4    // blobs that are fetched at once
	importReference = 512  // bytes of a source's name
)

// A Source is an image of a registry. Its name has a tag or a digest, and a host.
type Source struct {
	Reference string
	// Own says that the registry is this one; nothing is fetched then.
	Own bool
	// User and Password are for the registry. Without a user the password is an identity token.
	User, Password string
	PlainHTTP      bool
	Transport      http.RoundTripper
}

// An importTarget is a name that an import gives.
type importTarget struct{ repository, tag string }

// Import copies an image, with everything that an index names, from a registry, and gives it names:
// REPOSITORY:TAG, or REPOSITORY alone for no tag. What is here already is not fetched. The names move in one
// transaction; unless forced it refuses one that has another digest. What was copied before an error is
// collected if nothing else needs it.
func (s *Store) Import(ctx context.Context, src Source, names []string, force bool) (apiclient.Imported, error) {
	targets, err := parseTargets(names)
	if err != nil {
		return apiclient.Imported{}, err
	}
	if len(src.Reference) > importReference {
		return apiclient.Imported{}, fmt.Errorf("%w: source: a name has at most %d bytes", ErrInvalid, importReference)
	}
	ref, err := name.ParseReference(src.Reference, src.nameOptions()...)
	if err != nil {
		return apiclient.Imported{}, fmt.Errorf("%w: source %q: %w", ErrInvalid, clip(src.Reference), err)
	}
	if ref.Context().Scheme() == "http" && !src.PlainHTTP && !src.Own {
		return apiclient.Imported{}, fmt.Errorf("%w: source: %s speaks plain HTTP: name it to the server with kiln serve --allow-source", ErrInvalid, ref.Context().RegistryStr())
	}
	im := &importer{s: s, src: src, ref: ref, repository: targets[0].repository, seen: map[string]bool{}}
	from := im.repository
	if src.Own {
		from = ref.Context().RepositoryStr()
		d, err := s.Resolve(ctx, from, ref.Identifier())
		if err != nil {
			return im.out, err
		}
		im.out.Digest = d.Digest
	} else if err := im.fetch(ctx); err != nil {
		return im.out, fmt.Errorf("import %s: %w", src.Reference, err)
	}
	im.out.Names, err = s.nameImported(ctx, from, im.out.Digest, targets, force)
	return im.out, err
}

func (src Source) nameOptions() []name.Option {
	if src.PlainHTTP {
		return []name.Option{name.Insecure}
	}
	return nil
}

func parseTargets(names []string) ([]importTarget, error) {
	if len(names) == 0 || len(names) > maxImportTags {
		return nil, fmt.Errorf("%w: %d names, want 1 to %d", ErrInvalid, len(names), maxImportTags)
	}
	var out []importTarget
	for _, n := range names {
		repository, tag, tagged := strings.Cut(n, ":")
		if err := checkName(repository); err != nil {
			return nil, err
		}
		if isReserved(repository) {
			return nil, fmt.Errorf("%w: %s: repositories below %s are kiln's own", ErrInvalid, repository, reserved)
		}
		if tagged {
			if err := checkTag(tag); err != nil {
				return nil, err
			}
		}
		out = append(out, importTarget{repository, tag})
	}
	return out, nil
}

// An importer is one import of another registry.
type importer struct {
	s          *Store
	src        Source
	ref        name.Reference
	repository string // that it is copied to
	remote     []remote.Option

	seen map[string]bool // manifests
	mu   sync.Mutex      // guards out
	out  apiclient.Imported
}

func (im *importer) fetch(ctx context.Context) error {
	auth := authn.Anonymous
	if im.src.User != "" || im.src.Password != "" {
		config := authn.AuthConfig{Username: im.src.User, Password: im.src.Password}
		if im.src.User == "" {
			config = authn.AuthConfig{IdentityToken: im.src.Password}
		}
		auth = authn.FromConfig(config)
	}
	im.remote = []remote.Option{remote.WithTransport(im.src.Transport), remote.WithAuth(auth)}
	puller, err := remote.NewPuller(im.remote...)
	if err != nil {
		return err
	}
	im.remote = append(im.remote, remote.Reuse(puller))
	d, err := remote.Get(im.ref, im.options(ctx)...)
	if err != nil {
		return sourceError(ctx, err)
	}
	im.out.Digest = d.Digest.String()
	return im.manifest(ctx, d, 0)
}

func (im *importer) options(ctx context.Context) []remote.Option {
	return append(im.remote[:len(im.remote):len(im.remote)], remote.WithContext(ctx))
}

// manifest copies a manifest, after everything it names.
func (im *importer) manifest(ctx context.Context, d *remote.Descriptor, depth int) error {
	if im.seen[d.Digest.String()] {
		return nil
	}
	if depth > maxDepth || len(im.seen) >= maxImported {
		return fmt.Errorf("%w: it has more than %d manifests, or indexes nested more than %d deep", ErrManifestInvalid, maxImported, maxDepth)
	}
	im.seen[d.Digest.String()] = true
	if d.MediaType == types.DockerManifestSchema1 || d.MediaType == types.DockerManifestSchema1Signed {
		return fmt.Errorf("%w: it is of Docker's schema 1, which is not accepted", ErrManifestInvalid)
	}
	doc, err := parseManifest(string(d.MediaType), d.Manifest)
	if err != nil {
		return err
	}
	for _, child := range doc.Manifests {
		c, err := remote.Get(im.ref.Context().Digest(child.Digest), im.options(ctx)...)
		if err != nil {
			return sourceError(ctx, err)
		}
		if err := im.manifest(ctx, c, depth+1); err != nil {
			return err
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(importAtOnce)
	for _, l := range doc.blobs() {
		g.Go(func() error { return im.blob(gctx, l) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	im.out.Manifests++
	_, _, err = im.s.putManifest(ctx, put{repository: im.repository, digest: d.Digest.String(), mediaType: string(d.MediaType), body: d.Manifest})
	return err
}

// blob copies a blob, unless some repository has it.
func (im *importer) blob(ctx context.Context, l link) error {
	if _, err := im.s.statBlob(ctx, im.repository, l.Digest); err == nil || !errors.Is(err, ErrBlobUnknown) {
		return err
	}
	here, err := im.s.blobRepositories(ctx, l.Digest, 1)
	if err != nil {
		return err
	}
	for _, from := range here {
		if ok, err := im.s.mountBlob(ctx, from, im.repository, l.Digest); ok || err != nil {
			return err
		}
	}
	layer, err := remote.Layer(im.ref.Context().Digest(l.Digest), im.options(ctx)...)
	if err != nil {
		return sourceError(ctx, err)
	}
	content, err := layer.Compressed()
	if err != nil {
		if l.elsewhere() {
			return nil // it need not be there
		}
		return sourceError(ctx, err)
	}
	defer func() { _ = content.Close() }() // what was read is verified
	sp, err := im.s.newSpool()
	if err != nil {
		return err
	}
	defer func() { _ = sp.discard() }() // if that fails, the next start removes it
	if err := sp.readFrom(content, func() bool { return ctx.Err() == nil }); err != nil {
		return errors.Join(ctx.Err(), err)
	}
	want := digest.Digest(l.Digest)
	if got, err := sp.digest(want.Algorithm()); err != nil || got != want {
		return errors.Join(err, fmt.Errorf("%w: blob %s came as %s", ErrSource, want, got))
	}
	im.mu.Lock()
	im.out.Blobs++
	im.out.Size += sp.size
	im.mu.Unlock()
	return im.s.commitBlob(ctx, im.repository, sp, want)
}

// sourceError marks an error of the other registry.
func sourceError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("%w: %w", ErrSource, err)
}

// nameImported moves tags to a manifest of a repository, all or none, and returns what it is called now.
func (s *Store) nameImported(ctx context.Context, from, dgst string, targets []importTarget, force bool) (names []string, err error) {
	err = s.write.do(ctx, func(t *tx) error {
		names = nil
		source, err := t.repository(from)
		if err != nil {
			return err
		}
		for _, target := range targets {
			name, err := t.nameImported(source, dgst, target, force)
			if err != nil {
				return err
			}
			names = append(names, name)
		}
		return nil
	})
	return names, err
}

func (t *tx) nameImported(from int64, dgst string, name importTarget, force bool) (string, error) {
	to := target{repository: name.repository, digest: dgst}
	var err error
	if to.repo, err = t.createRepository(name.repository); err != nil {
		return "", err
	}
	if to.manifest, err = t.linkManifest(from, to.repo, dgst, 0); err != nil {
		return "", err
	}
	if to.manifest == 0 {
		return "", manifestUnknown(name.repository, dgst)
	}
	if _, err := t.row(`SELECT media_type FROM manifest WHERE id = ?`, []any{to.manifest}, &to.mediaType); err != nil {
		return "", err
	}
	if name.tag == "" {
		return imageName(name.repository, dgst), nil
	}
	var now string
	other, err := t.row(`SELECT m.digest FROM tag t JOIN manifest m ON m.id = t.manifest WHERE t.repo = ? AND t.name = ? AND m.id <> ?`,
		[]any{to.repo, name.tag, to.manifest}, &now)
	if err != nil {
		return "", err
	}
	if other && !force {
		return "", fmt.Errorf("%w: %s is %s: choose another tag, or import with --force", ErrTagExists, imageName(name.repository, name.tag), now)
	}
	_, err = t.moveTag(name.tag, to, origin{})
	return imageName(name.repository, name.tag), err
}
