package git

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/url"
	"path"
	"regexp"
	"strconv"
	"strings"
)

const maxURL = 2048 // bytes

// A remote is the address of a repository, without credentials.
type remote struct {
	scheme string // https, http or ssh
	user   string // of ssh only, where it is part of the address
	host   string // lower case, no port
	port   string // "" is the scheme's own
	path   string // as sent: escaped for http; for ssh relative unless it begins with a slash
}

// parseRemote reads a URL as people write it, and the credential in it.
func parseRemote(s string) (remote, Credential, error) {
	if len(s) > maxURL {
		return remote{}, Credential{}, fmt.Errorf("%w: a repository URL has at most %d bytes", ErrRefused, maxURL)
	}
	for _, r := range s {
		if r <= ' ' || r == 0x7f || r == '\\' {
			return remote{}, Credential{}, fmt.Errorf("%w: repository URL with a control character, space or backslash", ErrRefused)
		}
	}
	if strings.HasPrefix(s, "github.com/") {
		s = "https://" + s
	}
	if !strings.Contains(s, "://") {
		r, err := parseSCP(s)
		return r, Credential{}, err
	}
	u, err := url.Parse(s)
	if err != nil {
		return remote{}, Credential{}, fmt.Errorf("%w: repository URL cannot be parsed", ErrRefused) // its text may hold a password
	}
	return parseURL(u)
}

func parseURL(u *url.URL) (remote, Credential, error) {
	r := remote{scheme: strings.ToLower(u.Scheme), host: strings.ToLower(u.Hostname()), port: u.Port()}
	switch r.scheme {
	case "https", "http", "ssh":
	case "git":
		return r, Credential{}, fmt.Errorf("%w: git:// is neither encrypted nor authenticated; use https://", ErrRefused)
	default:
		return r, Credential{}, fmt.Errorf("%w: scheme %q is not supported; use https:// or ssh://", ErrRefused, clip(r.scheme, 20))
	}
	if r.host == "" || strings.HasPrefix(r.host, "-") {
		return r, Credential{}, fmt.Errorf("%w: repository URL without a host", ErrRefused)
	}
	if u.RawQuery != "" || u.Fragment != "" {
		return r, Credential{}, fmt.Errorf("%w: repository URL with a query or fragment", ErrRefused)
	}
	if r.port == map[string]string{"https": "443", "http": "80", "ssh": "22"}[r.scheme] {
		r.port = ""
	}
	if r.port != "" {
		if n, err := strconv.Atoi(r.port); err != nil || n < 1 || n > 65535 {
			return r, Credential{}, fmt.Errorf("%w: repository URL with a bad port", ErrRefused)
		}
	}
	var cred Credential
	if u.User != nil {
		cred.Username = u.User.Username()
		cred.Password, _ = u.User.Password()
	}
	r.path = strings.TrimRight(u.EscapedPath(), "/")
	if r.scheme == "ssh" {
		r.user, cred.Username = cred.Username, ""
		r.path = strings.TrimRight(u.Path, "/")
		if strings.HasPrefix(r.path, "/~") {
			r.path = r.path[1:]
		}
	}
	return r, cred, r.check()
}

// parseSCP reads user@host:path.
func parseSCP(s string) (remote, error) {
	user, rest, ok := strings.Cut(s, "@")
	host, p, ok2 := strings.Cut(rest, ":")
	if !ok || !ok2 || host == "" || strings.ContainsAny(host, "/") || strings.ContainsAny(user, "/:") {
		return remote{}, fmt.Errorf("%w: not the URL of a remote repository; local paths and file: are not supported", ErrRefused)
	}
	r := remote{scheme: "ssh", user: user, host: strings.ToLower(host), path: strings.TrimRight(p, "/")}
	return r, r.check()
}

var hostName = regexp.MustCompile(`^([a-z0-9_.-]+|[0-9a-f.]*:[0-9a-f:.]*)$`)

func (r remote) check() error {
	switch {
	case !hostName.MatchString(r.host):
		return fmt.Errorf("%w: repository URL with a host that is neither a name (international ones in Punycode) nor an address", ErrRefused)
	case strings.Trim(r.path, "/") == "":
		return fmt.Errorf("%w: repository URL without a path", ErrRefused)
	case r.scheme == "ssh" && (strings.HasPrefix(r.path, "-") || strings.HasPrefix(r.host, "-") || strings.HasPrefix(r.user, "-")):
		return fmt.Errorf("%w: repository URL with a part that begins with a dash", ErrRefused)
	}
	if r.scheme == "ssh" {
		for _, c := range r.user + r.path {
			if c <= ' ' || c == 0x7f || strings.ContainsRune(`\%?#@`, c) {
				return fmt.Errorf("%w: ssh URL with an escaped or special character in its path", ErrRefused)
			}
		}
		if strings.ContainsAny(r.user, ":/") || strings.Contains(r.path, "//") {
			return fmt.Errorf("%w: malformed ssh URL", ErrRefused)
		}
	}
	for part := range strings.SplitSeq(r.path, "/") {
		if part == ".." {
			return fmt.Errorf("%w: repository URL with .. in its path", ErrRefused)
		}
	}
	return nil
}

// authority returns host and port as in the URL.
func (r remote) authority() string {
	host := r.host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if r.port != "" {
		host += ":" + r.port
	}
	return host
}

// address returns what is dialled.
func (r remote) address() string {
	port := r.port
	if port == "" {
		port = "22"
	}
	return net.JoinHostPort(r.host, port)
}

// origin is what a credential is given for.
func (r remote) origin() string { return r.scheme + "://" + r.authority() }

// String returns the canonical URL: equal for equal repositories, without credentials.
func (r remote) String() string {
	switch {
	case r.scheme != "ssh":
		return r.origin() + r.path
	case !strings.HasPrefix(r.path, "/") && r.user != "" && r.port == "" && !strings.Contains(r.host, ":"):
		return r.userAt() + r.host + ":" + r.path
	}
	return "ssh://" + r.userAt() + r.authority() + "/" + strings.TrimPrefix(r.path, "/")
}

func (r remote) userAt() string {
	if r.user == "" {
		return ""
	}
	return r.user + "@"
}

// id names the repository's mirror on disk.
func (r remote) id() string {
	sum := sha256.Sum256([]byte(r.String()))
	return hex.EncodeToString(sum[:16])
}

// relative returns the URL of a submodule: as it is, or relative to r.
func (r remote) relative(s string) (remote, Credential, error) {
	if !strings.HasPrefix(s, "./") && !strings.HasPrefix(s, "../") {
		return parseRemote(s)
	}
	root := "/"
	if !strings.HasPrefix(r.path, "/") {
		root = ""
	}
	p := path.Join(strings.Trim(r.path, "/"), s)
	if p == "." || p == ".." || strings.HasPrefix(p, "../") {
		return remote{}, Credential{}, fmt.Errorf("%w: %q leads out of %s", ErrRefused, clip(s, 100), r)
	}
	sub := r
	sub.path = root + p
	return sub, Credential{}, sub.check()
}
