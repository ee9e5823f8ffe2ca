// Package forge does at a git forge what kiln needs done there: it registers, checks, changes and
// removes the hook of a repository, sets the status of a commit, and lists pull requests. GitHub (and Enterprise), GitLab,
// Gitea and Forgejo are known, each by its documented HTTP API.
//
// Every call takes bounded time and memory, follows no redirect (the token stays with the host it was
// meant for), and is made once: whoever calls decides about repetition, for which an *Error tells what
// may pass by itself. A token is in no URL and in no error. A Repository is safe for concurrent use.
package forge

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// Providers are the forges that are known.
var Providers = []string{"github", "gitlab", "gitea", "forgejo"}

// Known reports whether a provider is a forge that is known.
func Known(provider string) bool { return slices.Contains(Providers, provider) }

// ErrNotFound is what an *Error wraps when the forge has no such thing, or does not show it to the token.
var ErrNotFound = errors.New("not found at the forge")

// A Config says where a repository is and how to be let in.
type Config struct {
	Provider string // one of Providers
	URL      string // of the repository, to clone or to look at: https://host/owner/name[.git], git@host:owner/name
	// API is the address of the forge's API, such as https://git.example.com/api/v1; empty derives it
	// from URL.
	API   string
	Token string
	HTTP  *http.Client // nil is http.DefaultClient; its redirects are not followed
}

// A Repository is one repository at a forge.
type Repository struct {
	dialect
	path  string // owner/name
	base  string // of the API, without a slash at its end
	token string
	http  *http.Client
}

// Open returns the repository that c describes. It makes no request.
func Open(c Config) (*Repository, error) {
	d, ok := dialects[c.Provider]
	if !ok {
		return nil, fmt.Errorf("forge %q is not known: want %s", c.Provider, strings.Join(Providers, ", "))
	}
	host, root, path, err := split(c.URL, c.Provider)
	if err != nil {
		return nil, err
	}
	if c.Token == "" {
		return nil, fmt.Errorf("no token for the API of %s", host)
	}
	r := &Repository{dialect: d, path: path, base: strings.TrimSuffix(c.API, "/"), token: c.Token}
	if r.base == "" {
		r.base = d.address(host, root)
	}
	if u, err := url.Parse(r.base); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.RawQuery != "" {
		return nil, fmt.Errorf("address of the forge's API: want https://HOST[/PATH] without a password")
	}
	client := http.Client{Transport: http.DefaultTransport}
	if c.HTTP != nil {
		client = *c.HTTP
	}
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	r.http = &client
	return r, nil
}

// Detect returns the forge of a repository's URL where the host alone tells it, else an empty string.
func Detect(repository string) string {
	host, _, _, err := split(repository, "")
	if err != nil {
		return ""
	}
	_, host, _ = strings.Cut(host, "://")
	host, _, _ = strings.Cut(host, ":")
	switch {
	case host == "github.com":
		return "github"
	case host == "gitlab.com":
		return "gitlab"
	case host == "codeberg.org":
		return "forgejo"
	case host == "gitea.com":
		return "gitea"
	}
	return ""
}

// Same reports whether two URLs name the same repository, by whatever protocol.
func Same(a, b string) bool {
	x, err := key(a)
	if err != nil {
		return false
	}
	y, err := key(b)
	return err == nil && x == y
}

// key is host and path of a repository, in lower case.
func key(repository string) (string, error) {
	host, root, path, err := split(repository, "")
	if err != nil {
		return "", err
	}
	_, host, _ = strings.Cut(host, "://")
	name, port, _ := strings.Cut(host, ":")
	if port == "22" || port == "443" || port == "80" || port == "" {
		host = name
	}
	return strings.ToLower(host + root + "/" + path), nil
}

// split takes a repository's URL apart: scheme and host of its web pages, the path that the forge is
// served under, and the repository's path within the forge.
func split(repository, provider string) (host, root, path string, err error) {
	repository = strings.TrimSpace(repository)
	wrong := fmt.Errorf("repository %q: want https://HOST/OWNER/NAME", redactURL(repository))
	if !strings.Contains(repository, "://") {
		user, rest, ok := strings.Cut(repository, "@")
		name, p, ok2 := strings.Cut(rest, ":")
		switch {
		case ok && ok2 && !strings.ContainsAny(user, "/:"):
			repository = "ssh://" + name + "/" + p
		case strings.HasPrefix(repository, "github.com/"):
			repository = "https://" + repository
		default:
			return "", "", "", wrong
		}
	}
	u, err := url.Parse(repository)
	if err != nil || u.Host == "" {
		return "", "", "", wrong
	}
	path = strings.TrimSuffix(strings.Trim(u.Path, "/"), ".git")
	parts := strings.Split(path, "/")
	if len(parts) < 2 || slices.ContainsFunc(parts, func(s string) bool { return s == "" || s == "." || s == ".." }) {
		return "", "", "", wrong
	}
	host = u.Scheme + "://" + u.Host
	if u.Scheme != "http" && u.Scheme != "https" {
		host = "https://" + u.Hostname() // the port is that of ssh
	}
	if (provider == "gitea" || provider == "forgejo") && len(parts) > 2 {
		root, path = "/"+strings.Join(parts[:len(parts)-2], "/"), strings.Join(parts[len(parts)-2:], "/")
	}
	if provider == "github" && len(parts) > 2 {
		return "", "", "", wrong
	}
	return host, root, path, nil
}

// redactURL keeps what could be a password out of an error.
func redactURL(s string) string {
	if at := strings.LastIndexByte(s, '@'); at >= 0 {
		if from := strings.Index(s, "://"); from >= 0 && from < at {
			return s[:from+3] + "***" + s[at:]
		}
	}
	return s
}

// A Hook is what a forge is to deliver, and where to.
type Hook struct {
	URL    string
	Secret string
}

// A HookState is a hook as the forge has it.
type HookState struct {
	URL     string
	Active  bool
	Problem string // why it does not work as it should, in the forge's words or ours; may be empty
}

// CreateHook registers a hook for pushes, tags and pull requests, and returns the forge's ID of it.
func (r *Repository) CreateHook(ctx context.Context, h Hook) (id string, err error) {
	return r.create(ctx, r, h)
}

// ReplaceHook gives a hook another address or secret and returns its ID, which may be a new one.
func (r *Repository) ReplaceHook(ctx context.Context, id string, h Hook) (string, error) {
	return r.replace(ctx, r, id, h)
}

// Hook returns a hook as it is at the forge; an error that wraps ErrNotFound if it is not there.
func (r *Repository) Hook(ctx context.Context, id string) (HookState, error) {
	return r.state(ctx, r, id)
}

// DeleteHook removes a hook; one that is not there is no error.
func (r *Repository) DeleteHook(ctx context.Context, id string) error {
	err := r.call(ctx, http.MethodDelete, r.hooks(r)+"/"+url.PathEscape(id), nil, nil)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// A State is the state of a commit.
type State string

// States of a commit.
const (
	Pending State = "pending"
	Success State = "success"
	Failure State = "failure" // the commit's fault
	Broken  State = "error"   // nobody can tell whether the commit is good
)

// A Status is what is said of a commit.
type Status struct {
	State       State
	Context     string // whose status it is; a later one of the same context replaces it
	Description string // one line; cut where the forge has a limit
	URL         string // where to read more; may be empty
}

// SetStatus sets the status of a commit, by its full ID.
func (r *Repository) SetStatus(ctx context.Context, commit string, s Status) error {
	if len(commit) < 40 || strings.Trim(commit, "0123456789abcdef") != "" {
		return fmt.Errorf("commit %q: want its full ID", commit)
	}
	s.Description = clip(s.Description, maxDescription)
	return r.status(ctx, r, commit, s)
}

// maxDescription is the shortest limit of the forges, in characters.
const maxDescription = 140

func clip(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}
