package git

import (
	"fmt"
	"net/url"
	"path"
	"strings"
	"unicode/utf8"
)

// A Kind says what a context is.
type Kind string

// Kinds of contexts.
const (
	KindGit     Kind = "git"
	KindTarball Kind = "tarball"
	KindOCI     Kind = "oci"
	KindLocal   Kind = "local"
)

// A Context is a build context as a task names it.
type Context struct {
	Kind Kind
	// URL is the repository without fragment and credential; for other kinds, what was given.
	URL string
	// Ref is a branch, tag, commit, pull/N/head or the like; "" is the default branch.
	Ref string
	// Subdir is a slash path below the repository's root; "" is the root.
	Subdir string
	// Credential is the one in the URL, if any.
	Credential Credential
}

// ParseContext classifies a context and takes a git URL apart: url#ref:subdir. An error is only
// returned for a git context, whose text it never repeats: it may hold a credential.
func ParseContext(s string) (Context, error) {
	base, fragment, _ := strings.Cut(s, "#")
	if kind := classify(s, base); kind != KindGit {
		return Context{Kind: kind, URL: s}, nil
	}
	r, cred, err := parseRemote(base)
	if err != nil {
		return Context{}, fmt.Errorf("git context: %w", err)
	}
	c := Context{Kind: KindGit, URL: r.String(), Credential: cred}
	ref, subdir, _ := strings.Cut(fragment, ":")
	if err := checkRef(ref); err != nil {
		return Context{}, fmt.Errorf("git context: %w", err)
	}
	if c.Subdir, err = cleanSubdir(subdir); err != nil {
		return Context{}, fmt.Errorf("git context: %w", err)
	}
	c.Ref = ref
	return c, nil
}

func classify(s, base string) Kind {
	lower := strings.ToLower(s)
	for _, prefix := range []string{"git://", "git@", "github.com/", "ssh://"} {
		if strings.HasPrefix(lower, prefix) {
			return KindGit
		}
	}
	switch {
	case strings.HasPrefix(lower, "oci://"):
		return KindOCI
	case !strings.HasPrefix(lower, "http://") && !strings.HasPrefix(lower, "https://"):
		return KindLocal
	case strings.HasSuffix(base, ".git") || azureRepo(base):
		return KindGit
	}
	return KindTarball
}

// azureRepo recognises https://dev.azure.com/org/project/_git/repo and its older form.
func azureRepo(base string) bool {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "https" || u.RawQuery != "" {
		return false
	}
	host := strings.ToLower(u.Hostname())
	if host != "dev.azure.com" && !strings.HasSuffix(host, ".visualstudio.com") {
		return false
	}
	_, repo, ok := strings.Cut(u.Path, "/_git/")
	return ok && repo != ""
}

// checkRef refuses what cannot be the name of a ref or commit.
func checkRef(ref string) error {
	bad := len(ref) > 255 || strings.HasPrefix(ref, "-") || strings.HasPrefix(ref, "/") || strings.HasSuffix(ref, "/") ||
		strings.Contains(ref, "..") || strings.Contains(ref, "//") || strings.Contains(ref, "@{") ||
		strings.HasSuffix(ref, ".lock") || strings.ContainsAny(ref, "~^:?*[\\ ") || !utf8.ValidString(ref)
	for _, r := range ref {
		bad = bad || r < ' ' || r == 0x7f
	}
	if bad {
		return fmt.Errorf("%w: %q cannot be the name of a branch, tag or commit", ErrRefNotFound, clip(ref, 255))
	}
	return nil
}

// cleanSubdir returns the path relative to the root, which is "".
func cleanSubdir(dir string) (string, error) {
	if len(dir) > maxPath || strings.ContainsRune(dir, 0) || !utf8.ValidString(dir) {
		return "", fmt.Errorf("%w: the subdirectory is not a path", ErrBadTree)
	}
	p := path.Clean("./" + dir)
	if p == ".." || strings.HasPrefix(p, "../") {
		return "", fmt.Errorf("%w: subdirectory %q leads out of the repository", ErrBadTree, clip(dir, 255))
	}
	if p == "." {
		return "", nil
	}
	return p, nil
}
