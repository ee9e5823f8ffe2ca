package task

import (
	"fmt"
	"net/url"
	"strings"
)

// ContextKind says what a context is.
type ContextKind string

// Kinds of a context.
const (
	NoContext ContextKind = ""
	Git       ContextKind = "git"
	Tarball   ContextKind = "tarball"
	OCI       ContextKind = "oci"
)

// A Context is a parsed context.
type Context struct {
	Kind ContextKind
	URL  string // without #ref:subdir; for OCI the reference
	// Ref is a branch, tag, commit or pull request (pull/12/head); empty means the default branch.
	Ref    string
	Subdir string // directory in the repository; empty means all of it
}

// ParseContext reads a context as it is written. What begins like a URL and does not look like a git
// repository is a tarball: https://github.com/o/r needs .git at its end.
func ParseContext(s string) (Context, error) {
	s = normalContext(s)
	location, fragment, _ := strings.Cut(s, "#")
	switch {
	case s == "":
		return Context{}, nil
	case len(s) > 2048 || !isText(s) || !printable(s):
		return Context{}, fmt.Errorf("the context has more than 2048 bytes, or is no text")
	case strings.HasPrefix(s, "oci://"):
		if len(s) == len("oci://") {
			return Context{}, fmt.Errorf("%q names no artifact; write oci://registry/repository:tag", s)
		}
		return Context{Kind: OCI, URL: s[len("oci://"):]}, nil
	case isGit(location):
		return parseGit(location, fragment)
	case hasPrefix(location, "http://", "https://"):
		if err := checkURL(location); err != nil {
			return Context{}, err
		}
		return Context{Kind: Tarball, URL: s}, nil
	}
	return Context{}, fmt.Errorf("%q is no git repository, tarball or oci:// artifact; a directory is built with kiln build, not by a task", s)
}

// String returns the context as it is written.
func (c Context) String() string {
	switch {
	case c.Kind == OCI:
		return "oci://" + c.URL
	case c.Kind != Git || c.Ref == "" && c.Subdir == "":
		return c.URL
	case c.Subdir == "":
		return c.URL + "#" + c.Ref
	}
	return c.URL + "#" + c.Ref + ":" + c.Subdir
}

// Pinned reports whether the context names a commit, which never moves.
func (c Context) Pinned() bool { return c.Kind == Git && isCommit(c.Ref) }

func isGit(location string) bool {
	switch {
	case hasPrefix(location, "git://", "git@", "github.com/", "ssh://"):
		return true
	case !hasPrefix(location, "http://", "https://"):
		return false
	case strings.HasSuffix(location, ".git"):
		return true
	}
	u, err := url.Parse(location)
	if err != nil || u.RawQuery != "" || !strings.Contains(u.Path, "/_git/") {
		return false
	}
	return u.Hostname() == "dev.azure.com" || strings.HasSuffix(u.Hostname(), ".visualstudio.com")
}

func parseGit(location, fragment string) (Context, error) {
	ref, subdir, _ := strings.Cut(fragment, ":")
	c := Context{Kind: Git, URL: location, Ref: ref, Subdir: strings.Trim(subdir, "/")}
	if !strings.HasPrefix(location, "git@") && !strings.HasPrefix(location, "github.com/") {
		if err := checkURL(location); err != nil {
			return Context{}, err
		}
	}
	if err := checkRef(ref); err != nil {
		return Context{}, err
	}
	if err := checkPath(c.Subdir); c.Subdir != "" && err != nil {
		return Context{}, fmt.Errorf("subdirectory: %w", err)
	}
	return c, nil
}

// checkURL refuses what cannot be fetched and what would store a password in the clear.
func checkURL(location string) error {
	u, err := url.Parse(location)
	switch {
	case err != nil:
		return fmt.Errorf("the context is no valid URL")
	case u.Host == "":
		return fmt.Errorf("the URL %q has no host", location)
	case u.User == nil:
		return nil
	}
	if _, password := u.User.Password(); password || u.Scheme != "ssh" {
		return fmt.Errorf("the URL holds a credential; store it with kiln secret set NAME and write contextSecret: NAME")
	}
	return nil
}

// checkRef refuses what git would not take as the name of a ref.
func checkRef(ref string) error {
	if ref == "" {
		return nil
	}
	bad := strings.ContainsFunc(ref, func(r rune) bool { return r <= ' ' || r == 0x7f || strings.ContainsRune("~^?*[\\", r) })
	if bad || len(ref) > 255 || hasPrefix(ref, "-", "/", ".") || strings.Contains(ref, "..") || strings.Contains(ref, "@{") ||
		strings.Contains(ref, "//") || strings.HasSuffix(ref, "/") || strings.HasSuffix(ref, ".lock") {
		return fmt.Errorf("%q is no name of a branch, tag or commit", ref)
	}
	return nil
}

// checkPath accepts paths that lie inside the context.
func checkPath(p string) error {
	switch {
	case p == "":
		return fmt.Errorf("is missing")
	case !isText(p) || !printable(p):
		return fmt.Errorf("%q is no path", p)
	case len(p) > 1024:
		return fmt.Errorf("the path has %d bytes, more than 1024", len(p))
	case strings.HasPrefix(p, "/") || strings.ContainsAny(p, "\x00\n\r\\"):
		return fmt.Errorf("%q is no path relative to the context", p)
	}
	for part := range strings.SplitSeq(p, "/") {
		if part == ".." {
			return fmt.Errorf("%q leaves the context", p)
		}
	}
	return nil
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

func isCommit(s string) bool {
	if len(s) != 40 && len(s) != 64 {
		return false
	}
	return strings.Trim(s, "0123456789abcdef") == ""
}

func hasPrefix(s string, prefixes ...string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(s, p) {
			return true
		}
	}
	return false
}
