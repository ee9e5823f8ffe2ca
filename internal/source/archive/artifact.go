package archive

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"path"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

const (
	maxLayers    = 1000
	titleKey     = "org.opencontainers.image.title"
	unpackKey    = "io.deis.oras.content.unpack"
	maxReference = 512 // bytes
)

// epoch is the time of files that have none.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// An Artifact names what OpenArtifact reads.
type Artifact struct {
	Reference string // registry/repository:tag or @digest
	// User and Password are for the registry; both empty for anonymous. Without a user the password is an
	// identity token.
	User, Password string
	// Own says that the registry is this server's: it is spoken to at any address, and the password is a
	// token of it.
	Own bool
}

// OpenArtifact fetches the layers of an artifact, in order: those that are tarballs are unpacked, others are
// files under the name of their title. The source lives until ctx ends.
func (f *Fetcher) OpenArtifact(ctx context.Context, a Artifact) (*Source, error) {
	if len(a.Reference) > maxReference {
		return nil, fmt.Errorf("artifact: %w: a reference has at most %d bytes", ErrRefused, maxReference)
	}
	s, err := f.openArtifact(ctx, a)
	if err != nil {
		return nil, fmt.Errorf("artifact %s: %w", a.Reference, tidy(ctx, err))
	}
	return s, nil
}

func (f *Fetcher) openArtifact(ctx context.Context, a Artifact) (*Source, error) {
	var opts []name.Option
	var transport http.RoundTripper = f.transport
	switch {
	case a.Own && f.cfg.Own != nil:
		transport = f.cfg.Own
	case a.Own:
		opts, transport = []name.Option{name.Insecure}, remote.DefaultTransport
	}
	ref, err := name.ParseReference(a.Reference, opts...)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	if host := ref.Context().RegistryStr(); !a.Own && ref.Context().Scheme() == "http" && (f.cfg.PlainHTTP == nil || !f.cfg.PlainHTTP(host)) {
		return nil, fmt.Errorf("%w: %s is spoken to without encryption", ErrRefused, host)
	}
	auth := authn.Anonymous
	switch {
	case a.Own:
		auth = authn.FromConfig(authn.AuthConfig{RegistryToken: a.Password}) // good for requests as it is
	case a.User != "":
		auth = &authn.Basic{Username: a.User, Password: a.Password}
	case a.Password != "":
		auth = authn.FromConfig(authn.AuthConfig{IdentityToken: a.Password})
	}
	image, err := remote.Image(ref, remote.WithContext(ctx), remote.WithAuth(auth), remote.WithTransport(transport))
	if err != nil {
		return nil, err
	}
	m, err := image.Manifest()
	if err != nil {
		return nil, err
	}
	if len(m.Layers) == 0 || len(m.Layers) > maxLayers {
		return nil, fmt.Errorf("%w: it has %d layers, not 1 to %d", ErrRefused, len(m.Layers), maxLayers)
	}
	key := sha256.Sum256([]byte("oci://" + ref.Context().Name()))
	d, err := f.begin(hex.EncodeToString(key[:]))
	if err != nil {
		return nil, err
	}
	for _, layer := range m.Layers {
		if err = d.layer(ctx, image, layer); err != nil {
			break
		}
	}
	return d.finish(ctx, err)
}

// layer adds the files of one layer.
func (d *draft) layer(ctx context.Context, image v1.Image, desc v1.Descriptor) error {
	l, err := image.LayerByDigest(desc.Digest)
	if err != nil {
		return err
	}
	r, err := l.Compressed()
	if err != nil {
		return err
	}
	defer r.Close()
	title := desc.Annotations[titleKey]
	if title == "" || desc.Annotations[unpackKey] == "true" || strings.Contains(string(desc.MediaType), "tar") {
		return d.unpack(ctx, r)
	}
	if d.left -= desc.Size; desc.Size < 0 || d.left < 0 {
		return fmt.Errorf("%w: its files have more than %d bytes", ErrRefused, int64(maxUnpacked))
	}
	// The name and size are part of the identity, as they are in a tarball.
	fmt.Fprintf(d.sum, "%d:%s %d\n", len(title), title, desc.Size)
	content := io.TeeReader(&limited{r: r, left: desc.Size + 1, what: "a layer is larger than its descriptor says"}, d.sum)
	err = d.add(&tar.Header{Typeflag: tar.TypeReg, Name: path.Clean(title), Size: desc.Size, Mode: 0o644, ModTime: epoch}, content)
	return err
}
