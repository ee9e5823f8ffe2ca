package git

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/capability"
)

// A Head is what a name means in a repository at a moment.
type Head struct {
	Ref    string // full name, "refs/heads/main"; "" when a commit was asked for
	Commit string // 40 hex digits
}

// refs are what a server advertises.
type refs struct {
	caps   *capability.List
	heads  map[string]plumbing.Hash // what to ask the server for
	peeled map[string]plumbing.Hash // what annotated tags point to
	head   string                   // the ref that HEAD stands for, if known
}

func newRefs(adv *packp.AdvRefs) refs {
	r := refs{caps: adv.Capabilities, heads: adv.References, peeled: adv.Peeled}
	if adv.Head == nil {
		return r
	}
	for _, sym := range adv.Capabilities.Get(capability.SymRef) {
		if target, ok := strings.CutPrefix(sym, "HEAD:"); ok && r.heads[target] == *adv.Head {
			r.head = target
		}
	}
	if r.head == "" {
		r.head = r.guessHead(*adv.Head)
	}
	r.heads["HEAD"] = *adv.Head
	return r
}

// guessHead finds the default branch where the server does not name it.
func (r refs) guessHead(h plumbing.Hash) string {
	var names []string
	for name, hash := range r.heads {
		if hash == h && strings.HasPrefix(name, "refs/heads/") {
			names = append(names, name)
		}
	}
	for _, usual := range []string{"refs/heads/main", "refs/heads/master"} {
		if slices.Contains(names, usual) {
			return usual
		}
	}
	if len(names) == 0 {
		return ""
	}
	return slices.Min(names)
}

// commit returns the commit of a ref, or what an annotated tag points to.
func (r refs) commit(name string) (plumbing.Hash, bool) {
	if h, ok := r.peeled[name]; ok {
		return h, true
	}
	h, ok := r.heads[name]
	return h, ok
}

// isCommit reports whether a ref is spelt as a whole commit ID.
func isCommit(ref string) bool { return commitID.MatchString(ref) }

var (
	commitID = regexp.MustCompile(`^[0-9a-f]{40}$`)
	shortID  = regexp.MustCompile(`^[0-9a-f]{7,39}$`)
	pullRef  = regexp.MustCompile(`^(pull|merge-requests|pull-requests)/[0-9]+/`)
)

// resolve finds what a user's ref means, with git's own precedence: tags before branches.
func (r refs) resolve(ref string) (Head, error) {
	if ref == "" || ref == "HEAD" {
		h, ok := r.heads["HEAD"]
		if !ok {
			return Head{}, fmt.Errorf("default branch: %w: the repository is empty, or its default branch has no commit", ErrRefNotFound)
		}
		return Head{Ref: r.head, Commit: h.String()}, nil
	}
	if isCommit(ref) {
		return Head{Commit: ref}, nil
	}
	candidates := []string{ref, "refs/" + ref, "refs/tags/" + ref, "refs/heads/" + ref}
	for _, name := range candidates {
		if h, ok := r.commit(name); ok {
			return Head{Ref: name, Commit: h.String()}, nil
		}
	}
	switch {
	case shortID.MatchString(ref):
		return Head{}, fmt.Errorf("%w: no branch or tag has this name; if it is a commit, give all 40 digits", ErrRefNotFound)
	case pullRef.MatchString(ref):
		return Head{}, fmt.Errorf("%w: the server has no such pull request, or no merge commit for it (conflicts?)", ErrRefNotFound)
	}
	return Head{}, fmt.Errorf("%w: no branch or tag has this name", ErrRefNotFound)
}

// want returns what to ask the server for to get a commit: the name of its annotated tag when that is
// all that is advertised.
func (r refs) want(h Head) plumbing.Hash {
	commit := plumbing.NewHash(h.Commit)
	if h.Ref != "" && r.peeled[h.Ref] == commit {
		return r.heads[h.Ref]
	}
	return commit
}

// tips returns all branches and tags.
func (r refs) tips() []plumbing.Hash {
	var tips []plumbing.Hash
	for name, h := range r.heads {
		if strings.HasPrefix(name, "refs/heads/") || strings.HasPrefix(name, "refs/tags/") {
			tips = append(tips, h)
		}
	}
	plumbing.HashesSort(tips)
	return slices.Compact(tips)
}

// LsRemote returns the commit of every ref of a repository, and of "HEAD". Annotated tags stand for
// the commit they point to. An empty repository has no refs.
func (m *Mirrors) LsRemote(ctx context.Context, url string, cred Credential) (map[string]string, error) {
	r, cred, err := m.target(url, cred)
	if err != nil {
		return nil, err
	}
	s, err := m.listing(ctx, r, cred)
	if err != nil {
		return nil, err
	}
	all := make(map[string]string, len(s.heads))
	for name := range s.heads {
		h, _ := s.commit(name)
		all[name] = h.String()
	}
	return all, nil
}

// Resolve asks the server what a ref is: a branch, a tag, refs/..., pull/N/head, pull/N/merge, "" for
// the default branch. A commit ID is returned as it is; whether it exists shows when it is opened.
func (m *Mirrors) Resolve(ctx context.Context, url, ref string, cred Credential) (Head, error) {
	r, cred, err := m.target(url, cred)
	if err != nil {
		return Head{}, err
	}
	if err := checkRef(ref); err != nil {
		return Head{}, r.fail(ctx, cred, ref, err)
	}
	all, err := m.listing(ctx, r, cred)
	if err != nil {
		return Head{}, err
	}
	h, err := all.resolve(ref)
	return h, r.fail(ctx, cred, ref, err)
}

func (m *Mirrors) listing(ctx context.Context, r remote, cred Credential) (refs, error) {
	ctx, cancel := m.bounded(ctx)
	defer cancel(nil)
	s, err := m.connect(ctx, r, cred)
	if err != nil {
		return refs{}, r.fail(ctx, cred, "", err)
	}
	s.close()
	return s.refs, nil
}

// target parses a URL. The credential in it counts only if no other is given.
func (m *Mirrors) target(url string, cred Credential) (remote, Credential, error) {
	r, own, err := parseRemote(url)
	if err != nil {
		return r, cred, fmt.Errorf("git: %w", err)
	}
	if cred.IsZero() {
		own.KnownHosts = cred.KnownHosts
		cred = own
	}
	return r, cred, nil
}
