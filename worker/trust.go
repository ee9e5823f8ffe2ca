package worker

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/distribution/reference"
	godigest "github.com/opencontainers/go-digest"

	"kiln/internal/event"
	"kiln/internal/secret"
	"kiln/taskspec"
)

// openSecrets opens the secret values of an assignment. A restricted run has none but the one that opens
// its context, whatever it was sent.
func (a *attempt) openSecrets(as event.Assignment) error {
	if len(as.Secrets) == 0 {
		return nil
	}
	if err := a.w.Identity.Open(as.Secrets, &a.secrets); err != nil {
		return fmt.Errorf("secrets: %w", err)
	}
	if a.run.Spec.Restricted {
		a.secrets = event.Secrets{Context: a.secrets.Context}
	}
	return nil
}

// confidential are all values that must not be shown.
func (a *attempt) confidential() []string {
	s := a.secrets
	values := slices.Concat([]string{a.tokens.Registry, a.tokens.Publish, s.Context}, slices.Collect(maps.Values(s.Set)), slices.Collect(maps.Values(s.Args)))
	if _, password, ok := strings.Cut(s.Context, ":"); ok {
		values = append(values, password)
	}
	values = append(append(values, a.vaulted...), a.signedIn.passwords()...)
	for _, l := range s.Logins {
		values = append(values, l.Password)
	}
	return values
}

// clean is the text of an error without secret values.
func (a *attempt) clean(err error) string {
	return secret.NewRedactor(a.confidential()).String(err.Error())
}

// TokenUser stands in a login for the user of an identity token.
const TokenUser = "<token>"

// hubHosts are names of Docker Hub, as tools and people write them.
var hubHosts = []string{"docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"}

// LoginHosts returns the names that a registry's login may be stored under.
func LoginHosts(host string) []string {
	if slices.Contains(hubHosts, host) {
		return slices.Clone(hubHosts)
	}
	return []string{host}
}

// credentials returns the user and password for a registry, both empty for anonymous. A password without
// a user is an identity token. A login is used for the host that it names and for no other.
func (a *attempt) credentials(host string) (user, password string) {
	if a.images.ours(host) {
		return "kiln", a.tokens.Registry
	}
	if l, ok := a.signedIn.of(host); ok {
		return l.User, l.Password
	}
	for _, h := range LoginHosts(host) {
		if l, ok := a.secrets.Logins[h]; ok {
			if l.User == TokenUser {
				return "", l.Password
			}
			return l.User, l.Password
		}
	}
	return "", ""
}

// scope separates what is kept of runs whose authors do not trust each other: a stranger's pull requests
// share with each other what they leave behind, and with nothing else. It is empty for all others.
func (a *attempt) scope() string {
	if !a.run.Spec.Restricted {
		return ""
	}
	c := a.run.Cause
	author := cmp.Or(c.AuthorID, c.Author, c.Track, strconv.Itoa(c.PullRequest))
	return "pr-" + event.Hash(strings.Join([]string{a.run.TaskUID, c.Repository, author}, "\n"))
}

// cacheScope separates the cache mounts of builds: each task has its own, runs without a task share one, unless
// their author may not read all images.
func (a *attempt) cacheScope() string {
	quick := ""
	if l := a.run.Spec.Limits; !l.ReadsAll() {
		quick = "by-" + event.Hash(l.By)
	}
	return cmp.Or(a.scope(), a.run.TaskUID, quick)
}

// skip says why a step is not executed, empty if it is.
func (a *attempt) skip(s *taskspec.Step) string {
	if a.run.Spec.Restricted && s.Kind == taskspec.KindPush {
		return "nothing is pushed: this run is of a pull request from outside of the repository"
	}
	return ""
}

// pins returns the digests that builds use for base images, by each name that a Dockerfile may write.
func (a *attempt) pins() map[string]string {
	pins := make(map[string]string, len(a.run.Spec.Pins))
	for name, digest := range a.run.Spec.Pins {
		ref, err := reference.ParseNormalizedNamed(name)
		if _, digested := ref.(reference.Digested); err != nil || digested || godigest.Digest(digest).Validate() != nil {
			continue // of no use to a build
		}
		pins[name] = digest
		rest, ok := strings.CutPrefix(name, a.w.Registry+"/")
		if !ok || reference.Domain(ref) != a.w.Registry {
			continue
		}
		for _, alias := range a.w.Aliases {
			pins[alias+"/"+rest] = digest
		}
	}
	return pins
}

// pinned returns a reference with the digest that the run is pinned to, if it is.
func (a *attempt) pinned(ref reference.Named) string {
	if digest, ok := a.pins()[ref.String()]; ok {
		return ref.String() + "@" + digest
	}
	return ref.String()
}
