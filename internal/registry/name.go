package registry

import (
	_ "crypto/sha256" // digests
	_ "crypto/sha512"
	"fmt"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// reserved is the prefix of kiln's own repositories: staged images and uploaded contexts. Pushes
// into them are no events, and the catalog does not show them.
const reserved = "kiln/"

// isReserved reports whether a repository is kiln's own.
func isReserved(repository string) bool { return strings.HasPrefix(repository, reserved) }

// checkName refuses what is not a repository name: lower-case components separated by slashes.
func checkName(repository string) error {
	// With a host in front, the whole name must be a path.
	n, err := reference.WithName("registry.invalid/" + repository)
	if err != nil || reference.Path(n) != repository {
		return fmt.Errorf("%w: %q: write lower-case letters, digits and . _ - in components separated by /", errNameInvalid, clip(repository))
	}
	return nil
}

var anyName, _ = reference.WithName("registry.invalid/x")

func checkTag(tag string) error {
	if _, err := reference.WithTag(anyName, tag); err != nil {
		return fmt.Errorf("%w: tag %q: write at most 128 letters, digits and . _ -, not beginning with . or -", errTagInvalid, clip(tag))
	}
	return nil
}

// parseDigest accepts sha256 and sha512.
func parseDigest(s string) (digest.Digest, error) {
	d, err := digest.Parse(s)
	if err != nil {
		return "", fmt.Errorf("%w: %q: %w", ErrDigestInvalid, clip(s), err)
	}
	if a := d.Algorithm(); a != digest.SHA256 && a != digest.SHA512 {
		return "", fmt.Errorf("%w: %q: use sha256 or sha512", ErrDigestInvalid, clip(s))
	}
	return d, nil
}

// isDigest tells a digest from a tag: no tag has a colon.
func isDigest(ref string) bool { return strings.Contains(ref, ":") }

// checkReference refuses what is neither a tag nor a digest.
func checkReference(ref string) error {
	if isDigest(ref) {
		_, err := parseDigest(ref)
		return err
	}
	return checkTag(ref)
}

// clip keeps a stranger's text short in messages.
func clip(s string) string {
	if len(s) > 300 {
		return s[:300] + "..."
	}
	return s
}
