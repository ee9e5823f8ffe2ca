package run

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrLimit is returned for what the author of a run may not have it do.
var ErrLimit = errors.New("no permission")

// Limits are what a run may do on behalf of its author. Nil limits nothing: the author is an administrator.
// Each list has names and patterns, which are the beginning of names with a "*" behind.
type Limits struct {
	By      string   `json:"by"`                // the author
	Pull    []string `json:"pull,omitempty"`    // repositories of the co-located registry that it reads
	Push    []string `json:"push,omitempty"`    // and those in which it moves tags
	Secrets []string `json:"secrets,omitempty"` // names of secrets that it uses
}

// everything is the pattern of all names.
const everything = "*"

// ReadsAll reports whether the run reads all repositories that runs may read.
func (l *Limits) ReadsAll() bool { return l == nil || slices.Contains(l.Pull, everything) }

// MayPush returns nil, or an error that wraps ErrLimit, if tags of a repository are not the author's to move.
func (l *Limits) MayPush(repository string) error {
	if l == nil || covered(l.Push, repository) {
		return nil
	}
	return fmt.Errorf("%w to push to %s: %s, who is the author, may not", ErrLimit, repository, l.By)
}

// MayPull returns nil, or an error that wraps ErrLimit, if a repository is not the author's to read.
func (l *Limits) MayPull(repository string) error {
	if l == nil || covered(l.Pull, repository) {
		return nil
	}
	return fmt.Errorf("%w to read %s: %s, who is the author, may not", ErrLimit, repository, l.By)
}

// MayUse returns nil, or an error that wraps ErrLimit, if a secret is not the author's to use.
func (l *Limits) MayUse(secret string) error {
	if l == nil || covered(l.Secrets, secret) {
		return nil
	}
	return fmt.Errorf("%w to use secret %q: %s, who is the author, may not", ErrLimit, secret, l.By)
}

// MayUseAll is MayUse for all secrets that are named.
func (r *SecretRefs) MayUseAll(l *Limits) error {
	if r == nil {
		return nil
	}
	names := []string{r.Context}
	for _, byUse := range []map[string]string{r.Set, r.Args} {
		for _, name := range byUse {
			names = append(names, name)
		}
	}
	for _, login := range r.Logins {
		names = append(names, login.UsernameSecret, login.PasswordSecret, login.TokenSecret)
	}
	slices.Sort(names)
	for _, name := range names {
		if name == "" {
			continue
		}
		if err := l.MayUse(name); err != nil {
			return err
		}
	}
	return nil
}

func covered(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return Covers(p, name) })
}

// Covers reports whether a pattern stands for a name: it is that name or, with a "*" at its end, how the name
// begins.
func Covers(pattern, name string) bool {
	prefix, open := strings.CutSuffix(pattern, everything)
	return pattern == name || open && strings.HasPrefix(name, prefix)
}
