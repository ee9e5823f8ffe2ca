package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// errRefused is an answer that would be the same at a second request.
var errRefused = errors.New("refused")

// Remote reads contexts from a registry over HTTP, for a worker on another machine. It speaks the
// distribution specification.
type Remote struct {
	BaseURL string // scheme and host, without /v2
	Token   string // password of the user "kiln"; "" is anonymous
	Client  *http.Client
}

// BlobReader opens a blob. The end of ctx ends the reading too.
func (r Remote) BlobReader(ctx context.Context, repo string, d digest.Digest) (io.ReadCloser, int64, error) {
	resp, err := r.get(ctx, repo, "blobs/"+d.String(), "application/octet-stream")
	if err != nil {
		return nil, 0, err
	}
	return resp.Body, resp.ContentLength, nil
}

// Manifest returns a manifest by tag or digest.
func (r Remote) Manifest(ctx context.Context, repo, ref string) ([]byte, error) {
	resp, err := r.get(ctx, repo, "manifests/"+ref, ocispec.MediaTypeImageManifest)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxManifest+1))
	if err != nil {
		return nil, fmt.Errorf("%s: manifest %s: %w", r.BaseURL, ref, err)
	}
	if len(b) > maxManifest {
		return nil, &TooLargeError{What: "manifest " + ref, Size: uint64(len(b)), Limit: maxManifest}
	}
	return b, nil
}

func (r Remote) get(ctx context.Context, repo, what, accept string) (*http.Response, error) {
	addr := strings.TrimSuffix(r.BaseURL, "/") + "/v2/" + repo + "/" + what
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, addr, nil)
	if err != nil {
		return nil, fmt.Errorf("registry address: %w", err)
	}
	req.Header.Set("Accept", accept)
	if r.Token != "" {
		req.SetBasicAuth("kiln", r.Token)
	}
	hc := r.Client
	if hc == nil {
		hc = http.DefaultClient
	}
	resp, err := hc.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusNotFound:
		return nil, fmt.Errorf("%s: %w", addr, fs.ErrNotExist)
	case http.StatusUnauthorized, http.StatusForbidden:
		return nil, fmt.Errorf("%s: %w: %s; check the worker's token", addr, errRefused, resp.Status)
	}
	return nil, fmt.Errorf("%s: %s", addr, resp.Status)
}
