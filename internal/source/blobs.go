package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/opencontainers/go-digest"
)

// A Reader reads blobs and manifests of a registry. What does not exist is an error that is
// fs.ErrNotExist. A blob that is an io.ReaderAt is read in place instead of being copied.
type Reader interface {
	BlobReader(ctx context.Context, repo string, d digest.Digest) (io.ReadCloser, int64, error)
	Manifest(ctx context.Context, repo, ref string) (body []byte, err error)
}

// Blobs is a registry that contexts are stored in.
type Blobs interface {
	Reader
	// PutBlob stores all of r and returns its SHA-256 digest and size. An error of r comes back.
	PutBlob(ctx context.Context, repo string, r io.Reader) (digest.Digest, int64, error)
	// PutManifest stores a manifest under a tag. The blobs that it refers to are kept as long.
	PutManifest(ctx context.Context, repo, tag, mediaType string, body []byte) error
}

// A Store is a registry as package registry has it. D is how it writes digests, R what it opens, M a
// manifest.
type Store[D ~string, R io.ReadCloser, M any] interface {
	PutBlob(ctx context.Context, repo string, r io.Reader) (D, int64, error)
	BlobReader(ctx context.Context, repo string, d D) (R, int64, error)
	PutManifest(ctx context.Context, repo, tag, mediaType string, body []byte) (D, error)
	Manifest(ctx context.Context, repo, ref string) (M, error)
}

// In returns the Blobs that are stored in s. body returns the bytes of a manifest; absent are the
// errors by which s tells that something does not exist.
func In[D ~string, R io.ReadCloser, M any](s Store[D, R, M], body func(M) []byte, absent ...error) Blobs {
	return storeBlobs[D, R, M]{s, body, absent}
}

type storeBlobs[D ~string, R io.ReadCloser, M any] struct {
	store  Store[D, R, M]
	body   func(M) []byte
	absent []error
}

func (b storeBlobs[D, R, M]) fault(err error) error {
	for _, a := range b.absent {
		if errors.Is(err, a) {
			return fmt.Errorf("%w: %w", fs.ErrNotExist, err)
		}
	}
	return err
}

func (b storeBlobs[D, R, M]) BlobReader(ctx context.Context, repo string, d digest.Digest) (io.ReadCloser, int64, error) {
	r, n, err := b.store.BlobReader(ctx, repo, D(d))
	if err != nil {
		return nil, 0, b.fault(err)
	}
	return r, n, nil
}

func (b storeBlobs[D, R, M]) Manifest(ctx context.Context, repo, ref string) ([]byte, error) {
	m, err := b.store.Manifest(ctx, repo, ref)
	if err != nil {
		return nil, b.fault(err)
	}
	return b.body(m), nil
}

func (b storeBlobs[D, R, M]) PutBlob(ctx context.Context, repo string, r io.Reader) (digest.Digest, int64, error) {
	d, n, err := b.store.PutBlob(ctx, repo, r)
	return digest.Digest(d), n, err
}

func (b storeBlobs[D, R, M]) PutManifest(ctx context.Context, repo, tag, mediaType string, body []byte) error {
	_, err := b.store.PutManifest(ctx, repo, tag, mediaType, body)
	return err
}
