package registry

import (
	"bytes"
	"encoding/json"
	"fmt"
	"mime"

	"github.com/opencontainers/go-digest"
)

// Media types of the manifests that are accepted.
const (
	typeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	typeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	typeOCIManifest    = "application/vnd.oci.image.manifest.v1+json"
	typeOCIIndex       = "application/vnd.oci.image.index.v1+json"
)

// A Descriptor names content.
type Descriptor struct {
	MediaType string
	Digest    string
	Size      int64
}

// document is what a manifest or index says, as far as the registry is concerned.
type document struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	ArtifactType  string            `json:"artifactType"`
	Config        *link             `json:"config"`
	Layers        []link            `json:"layers"`
	Manifests     []link            `json:"manifests"`
	Subject       *link             `json:"subject"`
	Annotations   map[string]string `json:"annotations"`
}

type link struct {
	MediaType string   `json:"mediaType"`
	Digest    string   `json:"digest"`
	Size      int64    `json:"size"`
	URLs      []string `json:"urls"`
}

// parseManifest reads and checks a manifest. An empty mediaType is taken from the body.
func parseManifest(mediaType string, body []byte) (*document, error) {
	if len(body) > maxManifest {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are accepted", errManifestTooLarge, len(body), maxManifest)
	}
	if len(bytes.TrimSpace(body)) == 0 {
		return nil, fmt.Errorf("%w: it is empty", ErrManifestInvalid)
	}
	var doc document
	if err := json.Unmarshal(body, &doc); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrManifestInvalid, err)
	}
	if mediaType != "" {
		t, _, err := mime.ParseMediaType(mediaType)
		if err != nil {
			return nil, fmt.Errorf("%w: content type %q: %w", ErrManifestInvalid, clip(mediaType), err)
		}
		mediaType = t
	}
	switch {
	case mediaType == "":
		mediaType = doc.MediaType
	case doc.MediaType != "" && doc.MediaType != mediaType:
		return nil, fmt.Errorf("%w: it says it is %q, its content type is %q", ErrManifestInvalid, clip(doc.MediaType), clip(mediaType))
	}
	doc.MediaType = mediaType
	return &doc, doc.check()
}

func (doc *document) check() error {
	if doc.SchemaVersion != 2 {
		return fmt.Errorf("%w: schemaVersion is %d, not 2", ErrManifestInvalid, doc.SchemaVersion)
	}
	switch doc.MediaType {
	case typeDockerManifest, typeOCIManifest:
		if doc.Config == nil || doc.Manifests != nil {
			return fmt.Errorf("%w: an image manifest has a config and no manifests", ErrManifestInvalid)
		}
	case typeDockerList, typeOCIIndex:
		if doc.Config != nil || doc.Layers != nil {
			return fmt.Errorf("%w: an index has no config and no layers", ErrManifestInvalid)
		}
	default:
		return fmt.Errorf("%w: media type %q is not accepted: use %s or %s", ErrManifestInvalid, clip(doc.MediaType), typeOCIManifest, typeOCIIndex)
	}
	links := append(doc.blobs(), doc.Manifests...)
	if doc.Subject != nil {
		links = append(links, *doc.Subject)
	}
	for _, l := range links {
		if _, err := parseDigest(l.Digest); err != nil {
			return fmt.Errorf("%w: %w", ErrManifestInvalid, err)
		}
		if l.Size < 0 {
			return fmt.Errorf("%w: %s has size %d", ErrManifestInvalid, l.Digest, l.Size)
		}
	}
	return nil
}

// blobs returns the config and the layers.
func (doc *document) blobs() []link {
	var out []link
	if doc.Config != nil {
		out = append(out, *doc.Config)
	}
	return append(out, doc.Layers...)
}

// elsewhere reports whether content may be kept by somebody else, so that it need not be here.
func (l link) elsewhere() bool {
	switch l.MediaType {
	case "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
		"application/vnd.oci.image.layer.nondistributable.v1.tar",
		"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
		"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd":
		return true
	}
	return len(l.URLs) > 0
}

// artifactType is what the manifest is, in the words of the referrers API.
func (doc *document) artifactType() string {
	if doc.ArtifactType == "" && doc.Config != nil {
		return doc.Config.MediaType
	}
	return doc.ArtifactType
}

// digestOf returns the digest of a body. want, if not empty, is the digest it must have.
func digestOf(body []byte, want string) (string, error) {
	if want == "" {
		return digest.FromBytes(body).String(), nil
	}
	d, err := parseDigest(want)
	if err != nil {
		return "", err
	}
	if got := d.Algorithm().FromBytes(body); got != d {
		return "", fmt.Errorf("%w: the content's is %s, not %s", ErrDigestInvalid, got, d)
	}
	return d.String(), nil
}
