package worker

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/distribution/reference"

	"kiln/internal/solve"
	"kiln/internal/task"
	"kiln/taskspec"
)

// remotes are the contexts of a build that are fetched for it.
type remotes struct {
	a     *attempt
	step  *taskspec.Step
	stops []func()
	all   []Source
}

// open fetches the contexts of b that are URLs. The context that it returns ends when one of them cannot be
// read.
func (r *remotes) open(ctx context.Context, req *solve.Build) (_ context.Context, err error) {
	b := r.step.Build
	if isRemote(b.Context) {
		var src Source
		if ctx, src, err = r.fetch(ctx, b.Context); err != nil {
			return ctx, r.failure("build context", err)
		}
		req.Remote = &solve.Tree{FS: src, Key: src.Key()}
		if s, ok := src.(Originated); ok {
			origin := s.Origin()
			setMissing(req.Annotations, annotationRevision, origin.Commit)
			setMissing(req.Annotations, annotationSource, origin.Repository)
		}
	}
	for _, kv := range b.Contexts {
		c, err := r.namedContext(kv.Value)
		if err != nil {
			return ctx, r.failure("--build-context "+kv.Key, err)
		}
		if isRemote(kv.Value) {
			var src Source
			if ctx, src, err = r.fetch(ctx, kv.Value); err != nil {
				return ctx, r.failure("--build-context "+kv.Key, err)
			}
			c.Tree = &solve.Tree{FS: src, Key: src.Key()}
		}
		if req.Contexts == nil {
			req.Contexts = map[string]solve.Context{}
		}
		req.Contexts[contextName(kv.Key)] = c
	}
	return ctx, nil
}

func setMissing(m map[string]string, key, value string) {
	if _, ok := m[key]; !ok && value != "" {
		m[key] = value
	}
}

func (r *remotes) failure(what string, err error) error {
	return &stepFailure{r.step.ID, fmt.Errorf("%s: %w", what, err)}
}

// fetch opens a remote context by the rules for the source of a run.
func (r *remotes) fetch(ctx context.Context, location string) (context.Context, Source, error) {
	a := r.a
	if _, err := task.ParseContext(location); err != nil {
		return ctx, nil, err
	}
	src, err := a.w.Open(ctx, OpenRequest{Context: location, Scope: a.scope(), Credentials: a.credentials, Registry: a.tokens.Publish, Token: a.tokenFor(location),
		Stranger: a.run.Spec.Restricted})
	if err != nil {
		return ctx, nil, err
	}
	if s, ok := src.(Originated); ok {
		a.logs.say(r.step.ID, "%s", s.Origin())
	}
	gctx, stop := src.Guard(ctx)
	r.stops, r.all = append(r.stops, stop), append(r.all, src)
	return gctx, src, nil
}

// tokenFor returns the secret to show for a remote context: that of the run's own source for what is on the
// same host. A stranger's run, which could name any repository there, has none.
func (a *attempt) tokenFor(location string) string {
	if host := hostOf(location); a.run.Spec.Restricted || host == "" || host != hostOf(a.run.Spec.Context) {
		return ""
	}
	return a.secrets.Context
}

// hostOf returns scheme and host of a URL, empty for what is none.
func hostOf(location string) string {
	u, err := url.Parse(location)
	if err != nil || u.Host == "" {
		return ""
	}
	return u.Scheme + "://" + strings.ToLower(u.Host)
}

// close ends what was begun, and says what the readers of the contexts have found out.
func (r *remotes) close() {
	for _, src := range r.all {
		if s, ok := src.(Warning); ok {
			for _, w := range s.Warnings() {
				r.a.logs.say(r.step.ID, "warning: %s", oneLine(w))
			}
		}
	}
	for _, stop := range slices.Backward(r.stops) {
		stop()
	}
}

// namedContext understands the value of --build-context that is not fetched.
func (r *remotes) namedContext(value string) (solve.Context, error) {
	image, ok := strings.CutPrefix(value, imageScheme)
	switch {
	case isRemote(value):
		return solve.Context{}, nil
	case !ok:
		dir, err := inWorkspace(r.step.WorkingDirectory)
		if err != nil {
			return solve.Context{}, err
		}
		p, err := pathOf("directory", dir, value)
		return solve.Context{Dir: p}, err
	}
	ref, err := r.a.images.canonical(image)
	if err != nil {
		return solve.Context{}, fmt.Errorf("image %q: %w", image, err)
	}
	return solve.Context{Image: ref.String()}, nil
}

// contextName is how the frontend looks for a named context: as the familiar form of an image's name.
func contextName(name string) string {
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name // refused by checkSupported
	}
	return strings.TrimSuffix(reference.FamiliarString(ref), ":latest")
}

const imageScheme = "docker-image://"

// isRemote reports whether a context is fetched from somewhere else than the run's source.
func isRemote(location string) bool {
	return slices.ContainsFunc([]string{"http://", "https://", "git://", "git@", "ssh://", "oci://", "github.com/"},
		func(prefix string) bool { return strings.HasPrefix(location, prefix) })
}
