package triggers

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"kiln/internal/event"
	"kiln/internal/graph"
	"kiln/internal/source/git"
	"kiln/internal/store"
)

// A sight is what refs and images resolve to after the states of some tracks were read. Each is asked for
// once, when the first track needs it.
type sight struct {
	d     *Decider
	fresh bool // ask for images anew

	mu       sync.Mutex
	listings map[string]*answer[map[string]string]
	mains    map[string]*answer[git.Head]
	digests  map[graph.Name]*answer[string]
	images   map[graph.Name]*answer[event.TrackedImage]
	texts    map[string]*answer[string]
	files    map[string]*answer[[]string]
}

type answer[T any] struct {
	once  sync.Once
	value T
	err   error
}

// once returns the answer for a key; the first who asks finds it.
func once[K comparable, T any](mu *sync.Mutex, m *map[K]*answer[T], key K, find func() (T, error)) (T, error) {
	mu.Lock()
	if *m == nil {
		*m = map[K]*answer[T]{}
	}
	a := (*m)[key]
	if a == nil {
		a = &answer[T]{}
		(*m)[key] = a
	}
	mu.Unlock()
	a.once.Do(func() { a.value, a.err = find() })
	return a.value, a.err
}

// head returns what a ref of a repository is now; the zero Head if it is gone.
func (s *sight) head(ctx context.Context, e *entry, location, ref string) (git.Head, error) {
	if s.d.Mirrors == nil {
		return git.Head{}, errNoGit
	}
	if ref == "" {
		return s.mainHead(ctx, e, location)
	}
	if isCommit(ref) {
		return git.Head{Commit: ref}, nil
	}
	all, err := s.refs(ctx, e, location)
	if err != nil {
		return git.Head{}, err
	}
	for _, name := range []string{ref, "refs/" + ref, tags + ref, heads + ref} { // as git has it
		if commit, ok := all[name]; ok {
			return git.Head{Ref: name, Commit: commit}, nil
		}
	}
	return git.Head{}, nil
}

// refs returns the commits of all refs of a repository.
func (s *sight) refs(ctx context.Context, e *entry, location string) (map[string]string, error) {
	return once(&s.mu, &s.listings, location+"\n"+e.task.ContextSecret, func() (map[string]string, error) {
		if s.d.Mirrors == nil {
			return nil, errNoGit
		}
		cred, err := s.d.credential(ctx, e)
		if err != nil {
			return nil, err
		}
		var all map[string]string
		err = s.d.lookUp(ctx, location, func(ctx context.Context) error {
			all, err = s.d.Mirrors.LsRemote(ctx, location, cred)
			return err
		})
		return all, err
	})
}

// lookUp asks the server of a repository for its refs, within the time limit for that.
func (d *Decider) lookUp(ctx context.Context, location string, ask func(ctx context.Context) error) error {
	within := d.LookUp
	if within == 0 {
		within = lookUpWithin
	}
	return d.hosts.ask(ctx, location, within, ask)
}

// mainHead returns the default branch. Its name is asked for if it is not known, or cannot be the one it was.
func (s *sight) mainHead(ctx context.Context, e *entry, location string) (git.Head, error) {
	key := location + "\n" + e.task.ContextSecret
	return once(&s.mu, &s.mains, key, func() (git.Head, error) {
		if name, ok := s.d.branches.Load(key); ok {
			all, err := s.refs(ctx, e, location)
			if err != nil {
				return git.Head{}, err
			}
			if ref := name.(string); all["HEAD"] != "" && all[ref] == all["HEAD"] {
				return git.Head{Ref: ref, Commit: all[ref]}, nil
			}
		}
		cred, err := s.d.credential(ctx, e)
		if err != nil {
			return git.Head{}, err
		}
		var h git.Head
		err = s.d.lookUp(ctx, location, func(ctx context.Context) error {
			h, err = s.d.Mirrors.Resolve(ctx, location, "", cred)
			return err
		})
		if errors.Is(err, git.ErrRefNotFound) {
			return git.Head{}, nil
		}
		if err == nil {
			s.d.branches.Store(key, h.Ref)
		}
		return h, err
	})
}

// isCommit reports whether a ref is written as a whole commit ID.
func isCommit(ref string) bool {
	return len(ref) == 40 && strings.Trim(ref, "0123456789abcdef") == ""
}

// isAbbreviated reports whether a ref looks like the beginning of a commit's hash.
func isAbbreviated(ref string) bool {
	return len(ref) >= 4 && len(ref) < 40 && strings.Trim(ref, "0123456789abcdef") == ""
}

// pusher returns the UID of the task whose run pushed an image with a digest, empty if none is known to have.
func (s *sight) pusher(ctx context.Context, name graph.Name, digest string) (string, error) {
	image, err := once(&s.mu, &s.images, name, func() (event.TrackedImage, error) {
		image, _, err := s.d.Store.Images.Get(ctx, event.Hash(string(name)))
		if errors.Is(err, store.ErrNotFound) {
			return event.TrackedImage{}, nil
		}
		return image, err
	})
	if err != nil || image.Digest != digest {
		return "", err
	}
	return image.ByTask, nil
}

var errNoGit = errors.New("this server has no access to git repositories")

// digest returns what an image is now.
func (s *sight) digest(ctx context.Context, name graph.Name) (string, error) {
	return once(&s.mu, &s.digests, name, func() (string, error) {
		if s.d.Images == nil {
			return "", fmt.Errorf("%s: this server looks up no images", name)
		}
		return s.d.Images.Resolve(ctx, name, s.fresh)
	})
}

// message returns the message of a commit, empty if it cannot be had any more.
func (s *sight) message(ctx context.Context, e *entry, location, ref, commit string) (string, error) {
	return once(&s.mu, &s.texts, location+"\n"+e.task.ContextSecret+"\n"+commit, func() (string, error) {
		cred, err := s.d.credential(ctx, e)
		if err != nil {
			return "", err
		}
		text := ""
		err = s.d.hosts.ask(ctx, location, fetchWithin, func(ctx context.Context) error { // the life of the source
			src, err := s.d.Mirrors.Open(ctx, git.Ref{URL: location, Ref: ref, Commit: commit}, cred)
			if err == nil {
				text = src.Commit.Message
			}
			return err
		})
		if errors.Is(err, git.ErrUnavailable) || err != nil && ctx.Err() != nil {
			return "", err
		}
		if err != nil {
			return "", nil // whatever is wrong with the commit, its run will say
		}
		return text, nil
	})
}

// changed returns the files that differ between two commits, nil if that cannot be told.
func (s *sight) changed(ctx context.Context, e *entry, location, from, to string) ([]string, error) {
	return once(&s.mu, &s.files, strings.Join([]string{location, e.task.ContextSecret, from, to}, "\n"), func() ([]string, error) {
		cred, err := s.d.credential(ctx, e)
		if err != nil {
			return nil, err
		}
		var paths []string
		known := false
		err = s.d.hosts.ask(ctx, location, fetchWithin, func(ctx context.Context) error {
			paths, known, err = s.d.Mirrors.ChangedFiles(ctx, location, from, to, cred)
			return err
		})
		if errors.Is(err, git.ErrUnavailable) || err != nil && ctx.Err() != nil {
			return nil, err
		}
		if err != nil || !known {
			return nil, nil
		}
		return append([]string{}, paths...), nil
	})
}

// sharedFor is how long what tasks begin with is shared.
const sharedFor = time.Second

// A recent is the last sight of those who may share one: tasks that begin. Many of one repository then ask
// for it once.
type recent struct {
	mu   sync.Mutex
	made time.Time
	last *sight
}

func (r *recent) sight(d *Decider) *sight {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last == nil || time.Since(r.made) > sharedFor {
		r.made, r.last = time.Now(), &sight{d: d}
	}
	return r.last
}

// credential returns what the task shows the server of its repository.
func (d *Decider) credential(ctx context.Context, e *entry) (git.Credential, error) {
	name := e.task.ContextSecret
	if name == "" {
		return git.CredentialOf(e.context.URL, "", d.Keys)
	}
	if d.Secret == nil {
		return git.Credential{}, fmt.Errorf("secret %q of the context: this server has no store of secrets", name)
	}
	value, err := d.Secret(ctx, name)
	if err != nil {
		return git.Credential{}, fmt.Errorf("context: %w", err)
	}
	return git.CredentialOf(e.context.URL, value, d.Keys)
}
