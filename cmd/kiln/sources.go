package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"kiln/internal/apiclient"
	"kiln/internal/netguard"
	"kiln/internal/source"
	"kiln/internal/source/archive"
	"kiln/internal/source/git"
	"kiln/internal/task"
	"kiln/worker"
)

// sources opens what runs build: uploaded directories, git repositories, tarballs and artifacts.
type sources struct {
	uploads  func(token string) *source.Opener
	mirrors  *git.Mirrors
	archives *archive.Fetcher
	allowed  allowedSources
	keys     git.Keys
	registry []string // names of the co-located registry
}

const (
	uploadScheme = "context://"
	fetchTries   = 3
	fetchPause   = time.Second // before the second try; twice as long before the next
)

// open implements worker.Worker's Open.
func (s *sources) open(ctx context.Context, r worker.OpenRequest) (worker.Source, error) {
	if strings.HasPrefix(r.Context, uploadScheme) {
		src, err := s.uploads(r.Registry).Open(ctx, r.Context)
		if err != nil {
			return nil, err
		}
		return uploaded{src}, nil
	}
	c, err := remoteContext(r.Context)
	if err != nil {
		return nil, err
	}
	switch c.Kind {
	case task.Tarball:
		src, err := s.archives.Open(ctx, c.URL, r.Token)
		return opened(src, s.allowed.explain(err))
	case task.OCI:
		src, err := s.artifact(ctx, c.URL, r)
		return opened(src, s.allowed.explain(err))
	}
	return s.commit(ctx, c, r)
}

// opened makes sure that there is a source or an error.
func opened(src *archive.Source, err error) (worker.Source, error) {
	if err != nil {
		return nil, err
	}
	return src, nil
}

// artifact opens an artifact of a registry.
func (s *sources) artifact(ctx context.Context, ref string, r worker.OpenRequest) (*archive.Source, error) {
	host, _, _ := strings.Cut(ref, "/")
	a := archive.Artifact{Reference: ref, Own: slices.Contains(s.registry, host)}
	if r.Credentials != nil {
		a.User, a.Password = r.Credentials(host)
	}
	if user, password, ok := strings.Cut(r.Token, ":"); ok && !a.Own {
		a.User, a.Password = user, password
	}
	return s.archives.OpenArtifact(ctx, a)
}

// commit opens a commit of a git repository.
func (s *sources) commit(ctx context.Context, c task.Context, r worker.OpenRequest) (worker.Source, error) {
	keys := s.keys
	if r.Stranger {
		keys = nil
	}
	cred, err := git.CredentialOf(c.URL, r.Token, keys)
	if err != nil {
		return nil, err
	}
	ref := git.Ref{URL: c.URL, Ref: c.Ref, Commit: r.Commit, Subdir: c.Subdir, Scope: r.Scope}
	if c.Pinned() {
		ref.Commit, ref.Ref = c.Ref, r.Ref
	}
	src, err := s.fetch(ctx, ref, cred)
	if err != nil {
		return nil, s.allowed.explain(err)
	}
	return fetched{src}, nil
}

// fetch opens a commit. A server that does not answer is asked again.
func (s *sources) fetch(ctx context.Context, ref git.Ref, cred git.Credential) (*git.Source, error) {
	for try, wait := 1, fetchPause; ; try, wait = try+1, 2*wait {
		src, err := s.mirrors.Open(ctx, ref, cred)
		if err == nil || try == fetchTries || !errors.Is(err, git.ErrUnavailable) {
			return src, err
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, context.Cause(ctx)
		}
	}
}

// remoteContext reads a context that a worker fetches, and refuses what no worker can.
func remoteContext(s string) (task.Context, error) {
	c, err := task.ParseContext(s)
	switch {
	case err != nil:
		return c, err
	case c.Kind == task.NoContext:
		return c, errors.New("the context is empty")
	case c.Kind != task.Git:
		return c, nil
	}
	_, err = git.ParseContext(c.String())
	return c, err
}

// hasContext reports whether runs can be given a context: an upload that is here, or something that a
// worker fetches.
func (n *node) hasContext(ctx context.Context, ref string) (bool, error) {
	invalid := func(err error) error {
		return &apiclient.Error{Status: http.StatusUnprocessableEntity, Code: apiclient.CodeInvalid, Message: err.Error()}
	}
	if !strings.HasPrefix(ref, uploadScheme) {
		if _, err := remoteContext(ref); err != nil {
			return false, invalid(err)
		}
		return true, nil
	}
	id, err := source.ParseRef(ref)
	if err != nil {
		return false, invalid(err)
	}
	has, err := n.contexts.Has(ctx, id)
	if err != nil && n.registry == nil && ctx.Err() == nil {
		n.log.Warn("registry not reached", "context", id, "err", err)
		return false, &apiclient.Error{Status: http.StatusServiceUnavailable, Code: apiclient.CodeUnavailable, Message: registryAway, Remedy: "again in a moment"}
	}
	return has, err
}

// openMirrors opens what sources are fetched with: the mirrors of git repositories, which all components of
// the server share, and the place of archives.
func (n *node) openMirrors(context.Context) error {
	cfg := git.Config{Dir: filepath.Join(n.cfg.data, "git"), Log: n.log}
	var err error
	if n.allowed, err = parseSources(n.cfg.allowSources); err != nil {
		return &usageError{err: err}
	}
	if cfg.Allow, cfg.PlainHTTP = n.allowed.Address, n.allowed.PlainHTTP; n.cfg.knownHosts != "" {
		if cfg.KnownHosts, err = os.ReadFile(n.cfg.knownHosts); err != nil {
			return usagef("--ssh-known-hosts FILE", "known hosts of ssh: %w", err)
		}
	}
	if n.mirrors, err = git.New(cfg); err != nil {
		return err
	}
	n.onClose(n.mirrors.Close)
	n.archives, err = archive.New(archive.Config{Dir: filepath.Join(n.cfg.data, "archives"),
		Dial: netguard.Guard{Allow: n.allowed.Address}.Dial, PlainHTTP: n.allowed.PlainHTTP, Own: n.own()})
	if err != nil {
		return err
	}
	n.onClose(n.archives.Close)
	return nil
}

// allowedSources are the hosts outside of the public internet that sources may be at.
type allowedSources struct{ netguard.Allowed }

// parseSources reads the values of --allow-source: a host, host:port, address or network.
func parseSources(list []string) (allowedSources, error) {
	a, err := netguard.ParseAllowed(list)
	if err != nil {
		err = fmt.Errorf("--allow-source: %w", err)
	}
	return allowedSources{a}, err
}

// explain adds to a refusal how it can be lifted.
func (a allowedSources) explain(err error) error {
	if !errors.Is(err, git.ErrRefused) && !errors.Is(err, archive.ErrRefused) && !errors.Is(err, netguard.ErrRefused) {
		return err
	}
	return fmt.Errorf("%w (a host in a private network, or without TLS, is named to the server with kiln serve --allow-source HOST)", err)
}

// mayFetch implements worker.Worker's MayFetch: what a Dockerfile names by URL is where a source may be.
func (a allowedSources) mayFetch(ctx context.Context, host string) error {
	return a.explain(netguard.Guard{Allow: a.Address}.Host(ctx, host))
}

// An uploaded source is known by the hash of its tree.
type uploaded struct{ *source.Source }

// Identity implements worker.Identified.
func (u uploaded) Identity() string { return "context:" + u.ID() }

// A fetched source is a commit of a git repository.
type fetched struct{ *git.Source }

// Identity implements worker.Identified. What is the same in another repository has another identity:
// git's own names are too weak to be relied on across those.
func (f fetched) Identity() string { return "git:" + f.Key() + ":" + f.Source.Identity() }

// Origin implements worker.Originated.
func (f fetched) Origin() worker.Origin {
	title, _, _ := strings.Cut(strings.TrimSpace(f.Commit.Message), "\n")
	return worker.Origin{Repository: f.URL, Ref: f.Ref, Commit: f.Commit.ID, Subdir: f.Subdir, Author: f.Commit.Author, Title: title,
		Time: f.Commit.Time}
}
