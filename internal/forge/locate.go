package forge

import (
	"iter"
	"net/url"
	"strings"

	"kiln/internal/event"
)

// Locate finds out which forge a repository is at: a hook for it knows, or one for another repository of its
// host, or hosts (providers by host), or the host's name tells it. Token is the name of the secret of the
// repository's own hook, if it has one. Provider is empty for a repository that is nowhere known.
func Locate(repository string, hooks iter.Seq[event.Hook], hosts map[string]string) Config {
	at := Config{URL: repository, Provider: hosts[Host(repository)]}
	for h := range hooks {
		switch {
		case h.URL == "" || !Known(h.Provider):
		case Same(h.URL, repository):
			at.Provider, at.API, at.Token = h.Provider, h.API, h.TokenSecret
			if h.TokenSecret != "" {
				return at
			}
		case at.Provider == "" && Host(h.URL) == Host(repository):
			at.Provider, at.API = h.Provider, h.API
		}
	}
	if at.Provider == "" {
		at.Provider = Detect(repository)
	}
	return at
}

// Host returns the host of a repository's URL in lower case, with its port.
func Host(repository string) string {
	if u, err := url.Parse(repository); err == nil && u.Host != "" {
		return strings.ToLower(u.Host)
	}
	_, rest, _ := strings.Cut(repository, "@")
	name, _, _ := strings.Cut(rest, ":")
	return strings.ToLower(name)
}
