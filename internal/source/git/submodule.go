package git

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/go-git/go-git/v5/config"
	"github.com/go-git/go-git/v5/plumbing"
)

const (
	maxModules  = 1 << 20 // bytes of a .gitmodules file
	maxSymlinks = 40      // followed on the way to a subdirectory
	maxNesting  = 8       // submodules in submodules
)

// A module is a submodule that .gitmodules names.
type module struct {
	path string // from the outermost repository's root
	url  string
	node node // the repository that names it
	skip bool
}

// resolve moves the source's root to the subdirectory and opens the submodules below it, and on the way
// to it.
func (s *Source) resolve(ctx context.Context, subdir string, limit int) error {
	var pending []module
	add := func(n node, depth int) error {
		found, err := s.modules(ctx, n)
		if err == nil && depth > maxNesting && len(found) > 0 {
			err = fmt.Errorf("%w: submodules are nested more than %d deep", ErrTooLarge, maxNesting)
		}
		pending = append(pending, found...)
		return err
	}
	if err := add(s.root, 0); err != nil {
		return err
	}
	depths := map[string]int{}
	open := func(mod module) error {
		if limit--; limit < 0 {
			return fmt.Errorf("submodule %q: %w: too many submodules", mod.path, ErrTooLarge)
		}
		n, ok, err := s.graft(ctx, mod)
		if err != nil || !ok {
			return err
		}
		depth := depths[mod.node.path] + 1
		depths[mod.path] = depth
		return add(n, depth)
	}
	take := func(i int) module {
		mod := pending[i]
		pending = slices.Delete(pending, i, i+1)
		return mod
	}
	dir, err := s.enter(ctx, subdir, func(p string) error {
		if i := slices.IndexFunc(pending, func(m module) bool { return m.path == p }); i >= 0 {
			return open(take(i))
		}
		return nil
	})
	if err != nil {
		return err
	}
	for len(pending) > 0 {
		if mod := take(0); dir.path == "" || strings.HasPrefix(mod.path, dir.path+"/") {
			if err := open(mod); err != nil {
				return err
			}
		}
	}
	s.root = dir
	return nil
}

// modules reads the .gitmodules of a repository.
func (s *Source) modules(ctx context.Context, n node) ([]module, error) {
	entries, err := s.list(ctx, n)
	if err != nil {
		return nil, err
	}
	e, ok := find(entries, ".gitmodules")
	if !ok || !e.mode.IsRegular() {
		return nil, nil
	}
	b, err := n.sn.read(ctx, plumbing.BlobObject, e.id, maxModules)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", join(n.path, ".gitmodules"), err)
	}
	all, err := parseModules(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", join(n.path, ".gitmodules"), err)
	}
	for i := range all {
		all[i].path, all[i].node = join(n.path, all[i].path), n
	}
	return all, nil
}

// parseModules reads a .gitmodules file. The paths are sorted and below the repository's root.
func parseModules(b []byte) ([]module, error) {
	file := config.NewModules()
	if err := file.Unmarshal(b); err != nil {
		return nil, fmt.Errorf("%w: cannot be parsed", ErrBadTree)
	}
	skipped := notUpdated(b)
	var all []module
	for _, sub := range file.Submodules {
		p := path.Clean(sub.Path)
		if sub.Path == "" || p == "." || path.IsAbs(p) || p == ".." || strings.HasPrefix(p, "../") {
			return nil, fmt.Errorf("%w: it names the path %q", ErrBadTree, clip(sub.Path, 100))
		}
		all = append(all, module{path: p, url: sub.URL, skip: skipped[sub.Name]})
	}
	slices.SortFunc(all, func(a, b module) int { return strings.Compare(a.path, b.path) })
	return all, nil
}

// notUpdated returns the names of submodules with "update = none": their authors do not want them
// fetched.
func notUpdated(b []byte) map[string]bool {
	out, name := map[string]bool{}, ""
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, `[submodule "`); ok {
			name, _, _ = strings.Cut(rest, `"`)
		}
		if key, value, ok := strings.Cut(line, "="); ok && strings.EqualFold(strings.TrimSpace(key), "update") {
			out[name] = strings.TrimSpace(value) == "none"
		}
	}
	return out
}

// graft opens the commit of a submodule that the tree has at its path. ok is false if it has none there.
func (s *Source) graft(ctx context.Context, mod module) (_ node, ok bool, err error) {
	rel := strings.TrimPrefix(strings.TrimPrefix(mod.path, mod.node.path), "/")
	e, err := s.find(ctx, mod.node, rel)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !e.link {
		return node{}, false, nil // an entry that was left behind, as git itself tolerates
	}
	if err != nil {
		return node{}, false, err
	}
	if mod.skip {
		s.warn("submodule %q is not fetched: .gitmodules says update = none", mod.path)
		return node{}, false, nil
	}
	outer := mod.node.sn
	r, cred, err := outer.remote.relative(mod.url)
	if err != nil {
		return node{}, false, fmt.Errorf("submodule %q: %w", mod.path, err)
	}
	if cred.IsZero() && r.origin() == outer.remote.origin() {
		cred = outer.cred
	}
	cred.KnownHosts = outer.cred.KnownHosts
	sn, err := outer.m.open(ctx, r, Ref{Commit: e.id.String()}, cred)
	if err != nil {
		return node{}, false, fmt.Errorf("submodule %q: %w", mod.path, r.fail(ctx, cred, e.id.String()[:12], err))
	}
	n := node{sn: sn, id: sn.root, path: mod.path}
	s.grafts[mod.path] = n
	return n, true, nil
}

// find returns the entry at a path below n, in the same repository.
func (s *Source) find(ctx context.Context, n node, p string) (entry, error) {
	for {
		name, rest, more := cutPath(p)
		entries, err := s.list(ctx, n)
		if err != nil {
			return entry{}, err
		}
		e, ok := find(entries, name)
		if !ok || more && (!e.mode.IsDir() || e.link) {
			return entry{}, fs.ErrNotExist
		}
		if !more {
			return e, nil
		}
		n, p = node{sn: n.sn, id: e.id, path: join(n.path, name)}, rest
	}
}

// enter finds a directory from the root. It follows symbolic links, which may not lead out. Before it
// enters a submodule it calls open with its path.
func (s *Source) enter(ctx context.Context, dir string, open func(p string) error) (node, error) {
	stack, rest, links := []node{s.root}, dir, 0
	for rest != "" {
		name, more, _ := cutPath(rest)
		rest = more
		top := stack[len(stack)-1]
		switch name {
		case "", ".":
			continue
		case "..":
			if len(stack) == 1 {
				return node{}, fmt.Errorf("%w: subdirectory %q leads out of the repository", ErrBadTree, dir)
			}
			stack = stack[:len(stack)-1]
			continue
		}
		entries, err := s.list(ctx, top)
		if err != nil {
			return node{}, err
		}
		e, ok := find(entries, name)
		if !ok {
			return node{}, fmt.Errorf("%w: there is no directory %q", ErrRefNotFound, dir)
		}
		if e.mode&fs.ModeSymlink != 0 {
			link, err := top.sn.link(ctx, e.id)
			if err != nil {
				return node{}, err
			}
			if links++; links > maxSymlinks || path.IsAbs(link) {
				return node{}, fmt.Errorf("%w: subdirectory %q: the symbolic link %q leads out of the repository or in a circle",
					ErrBadTree, dir, join(top.path, name))
			}
			rest = link + "/" + rest
			continue
		}
		if e.link {
			if err := open(join(top.path, name)); err != nil {
				return node{}, err
			}
		}
		next, ok := s.child(top, e)
		if !ok {
			return node{}, fmt.Errorf("%w: %q is not a directory", ErrRefNotFound, dir)
		}
		stack = append(stack, next)
	}
	return stack[len(stack)-1], nil
}
