package git

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"
)

// A Ref names a directory of a repository at a commit.
type Ref struct {
	URL    string
	Ref    string // branch, tag, refs/..., pull/N/head, commit; "" is the default branch
	Commit string // 40 hex digits; if set, it is what is opened, and Ref is only where it came from
	Subdir string // slash path; "" is the root. Symbolic links in it are followed inside the repository
	// Base is a commit that Commit is said to follow, as a push tells; "" if nobody says so. What it says only
	// makes fetching cheaper.
	Base string
	// Scope separates what BuildKit keeps of sources of different trust: sources of one repository and
	// one scope are transferred as differences to each other.
	Scope string
}

// A Source is the tree of a commit that BuildKit can read: an fsutil.FS. Its methods may be called
// concurrently. It needs no closing.
type Source struct {
	// Ref is the full name of the ref that was resolved, such as refs/heads/main; "" for a commit.
	Ref string
	// URL is the repository's canonical URL, without credentials.
	URL    string
	Subdir string
	Commit Commit

	key     string
	root    node
	grafts  map[string]node // submodules, by path from the repository's root; complete after Open
	entries int             // limit of one walk
	content func(name string) (io.ReadCloser, error)

	mu       sync.Mutex
	dirs     map[plumbing.Hash][]entry
	cached   int // entries in dirs
	warnings []string
	pointers int // LFS pointers that were read
	seen     map[plumbing.Hash]bool

	failOnce sync.Once
	failed   chan struct{} // closed when err is set
	err      error
}

var _ fsutil.FS = (*Source)(nil)

// A node is a directory of a source.
type node struct {
	sn   *snapshot
	id   plumbing.Hash
	path string // from the repository's root
}

const maxCachedEntries = 200_000 // of directories that were read, per source

// Open opens a commit. What is missing of it is fetched before Open returns. ctx bounds the life of
// the source: when it ends, reading does, and the mirror may be removed.
func (m *Mirrors) Open(ctx context.Context, ref Ref, cred Credential) (*Source, error) {
	r, cred, err := m.target(ref.URL, cred)
	if err != nil {
		return nil, err
	}
	s, err := m.openSource(ctx, r, ref, cred)
	if err != nil {
		name := ref.Commit
		if name == "" {
			name = ref.Ref
		}
		return nil, r.fail(ctx, cred, name, err)
	}
	return s, nil
}

func (m *Mirrors) openSource(ctx context.Context, r remote, ref Ref, cred Credential) (_ *Source, err error) {
	if err := checkRef(ref.Ref); err != nil {
		return nil, err
	}
	if ref.Commit != "" && !isCommit(ref.Commit) {
		return nil, fmt.Errorf("%w: give all 40 digits of the commit", ErrRefNotFound)
	}
	if ref.Commit == "" && isCommit(ref.Ref) {
		ref.Commit = ref.Ref
	}
	subdir, err := cleanSubdir(ref.Subdir)
	if err != nil {
		return nil, err
	}
	sctx, release := context.WithCancel(ctx)
	defer func() {
		if err != nil {
			release()
		}
	}()
	sn, err := m.open(sctx, r, ref, cred)
	if err != nil {
		return nil, err
	}
	s := &Source{Ref: sn.head.Ref, URL: r.String(), Subdir: subdir, Commit: sn.commit, key: sourceKey(r, subdir, ref.Scope),
		root: node{sn: sn, id: sn.root}, grafts: map[string]node{}, entries: m.lim.Entries,
		dirs: map[plumbing.Hash][]entry{}, seen: map[plumbing.Hash]bool{}, failed: make(chan struct{})}
	s.content = func(name string) (io.ReadCloser, error) { return s.openFile(sctx, name) }
	if err := s.resolve(sctx, subdir, m.lim.Submodules); err != nil {
		return nil, err
	}
	return s, s.inspect(sctx)
}

func sourceKey(r remote, subdir, scope string) string {
	h := sha256.New()
	for _, part := range []string{r.String(), subdir, scope} {
		fmt.Fprintf(h, "%d:%s", len(part), part)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Key returns where the tree comes from, as a hash: sources with one key are versions of one
// directory, which BuildKit transfers as differences.
func (s *Source) Key() string { return s.key }

// Identity names what the source consists of, as a hash: sources of one identity have the same files
// with the same content, modes and times, whatever repository, commit or subdirectory they come from.
// It is never empty: what a build sees of a submodule is part of it, and a pointer of Git LFS is content
// like any other. It relies on git's own IDs, which are SHA-1: nothing that must not be forged may
// depend on it across repositories that do not trust each other.
func (s *Source) Identity() string {
	h := sha256.New()
	fmt.Fprintf(h, "git tree 1\n%s\n", s.root.id)
	for _, p := range slices.Sorted(maps.Keys(s.grafts)) {
		below, ok := strings.CutPrefix(p, s.root.path+"/")
		if s.root.path == "" {
			below, ok = p, true
		}
		if ok {
			fmt.Fprintf(h, "%d:%s %s\n", len(below), below, s.grafts[p].id)
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Warnings say what of the repository is not what a checkout with all of git's helpers would have. Some
// are known only once files have been read.
func (s *Source) Warnings() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := slices.Clone(s.warnings)
	if s.pointers > 0 {
		all = append(all, fmt.Sprintf("%d files are pointers of Git LFS, not the content that they stand for", s.pointers))
	}
	return all
}

func (s *Source) warn(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.warnings = append(s.warnings, fmt.Sprintf(format, args...))
}

// Guard returns a context that ends, with the error as its cause, when a file cannot be read. Build
// under it: BuildKit's protocol has no word for a file that breaks off, so the daemon would wait for the
// rest of it. stop releases the context.
func (s *Source) Guard(ctx context.Context) (guarded context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-s.failed:
			cancel(s.err)
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		cancel(nil)
		<-done
	}
}

// fail ends guarded contexts. It returns err as the user sees it.
func (s *Source) fail(ctx context.Context, n node, name string, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	err = n.sn.remote.fail(ctx, n.sn.cred, s.Commit.ID[:12], fmt.Errorf("%s: %w", name, err))
	s.failOnce.Do(func() {
		s.err = err
		close(s.failed)
	})
	return err
}

// list returns the entries of a directory, with the submodules in it.
func (s *Source) list(ctx context.Context, n node) ([]entry, error) {
	s.mu.Lock()
	entries, ok := s.dirs[n.id]
	s.mu.Unlock()
	if ok {
		return entries, nil
	}
	entries, err := n.sn.tree(ctx, n.id)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cached += len(entries); s.cached <= maxCachedEntries {
		s.dirs[n.id] = entries
	}
	return entries, nil
}

// child returns the directory that an entry of n is. ok is false for a submodule that is not there.
func (s *Source) child(n node, e entry) (c node, ok bool) {
	p := join(n.path, e.name)
	if e.link {
		c, ok = s.grafts[p]
		return c, ok
	}
	return node{sn: n.sn, id: e.id, path: p}, e.mode.IsDir()
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// lookup finds the entry at p, below the source's directory, without following links. What is not there
// is fs.ErrNotExist.
func (s *Source) lookup(ctx context.Context, p string) (parent node, e entry, err error) {
	parent = s.root
	for {
		name, rest, more := cutPath(p)
		entries, err := s.list(ctx, parent)
		if err != nil {
			return parent, e, err
		}
		e, found := find(entries, name)
		if !found {
			return parent, e, fs.ErrNotExist
		}
		if !more {
			return parent, e, nil
		}
		next, ok := s.child(parent, e)
		if !ok {
			return parent, e, fs.ErrNotExist
		}
		parent, p = next, rest
	}
}

// stat returns a new value: callers change it.
func (s *Source) stat(ctx context.Context, n node, e entry, name string) (*types.Stat, error) {
	st := &types.Stat{Path: name, Mode: uint32(e.mode), ModTime: epoch}
	switch {
	case e.mode.IsRegular():
		size, err := n.sn.size(ctx, e.id)
		if err != nil {
			return nil, err
		}
		st.Size, st.ModTime = size, modTime(e.id)
	case e.mode&fs.ModeSymlink != 0:
		link, err := n.sn.link(ctx, e.id)
		if err != nil {
			return nil, err
		}
		st.Linkname, st.Size = link, int64(len(link))
	}
	return st, nil
}

// link returns the target of a symbolic link, which is its content.
func (sn *snapshot) link(ctx context.Context, h plumbing.Hash) (string, error) {
	b, err := sn.read(ctx, plumbing.BlobObject, h, maxLink)
	if err != nil {
		return "", err
	}
	if len(b) == 0 || bytes.IndexByte(b, 0) >= 0 || !validUTF8(b) {
		return "", fmt.Errorf("%w: the target of a symbolic link is not a path", ErrBadTree)
	}
	return string(b), nil
}

const epoch = 946684800e9 // 2000-01-01 in nanoseconds

// modTime is a file's time: a function of its content, so that a change is seen whose size is the same,
// and a commit that was fetched elsewhere gives the same layers. Its 59 bits are too many to be found by
// trial.
func modTime(h plumbing.Hash) int64 {
	var n int64
	for _, b := range h[:8] {
		n = n<<8 | int64(b)
	}
	return epoch + n&(1<<59-1)
}

// Open returns a reader of a regular file. What cannot be read is an error of Read, and ends guarded
// contexts: BuildKit takes a file that cannot be opened for an empty one. Close the reader.
func (s *Source) Open(p string) (io.ReadCloser, error) {
	return &fileReader{open: s.content, name: cleanTarget(p)}, nil
}

// ReadFile returns the content of a regular file of at most limit bytes. Symbolic links are not
// followed. A file that does not exist is fs.ErrNotExist.
func (s *Source) ReadFile(ctx context.Context, p string, limit int64) ([]byte, error) {
	p = cleanTarget(p)
	n, e, err := s.lookup(ctx, p)
	switch {
	case p == "" || errors.Is(err, fs.ErrNotExist):
		return nil, &fs.PathError{Op: "read", Path: p, Err: fs.ErrNotExist}
	case err == nil && !e.mode.IsRegular():
		err = fmt.Errorf("is not a regular file (%s)", e.mode)
	}
	var b []byte
	if err == nil {
		b, err = n.sn.read(ctx, plumbing.BlobObject, e.id, limit)
	}
	if err != nil {
		return nil, n.sn.remote.fail(ctx, n.sn.cred, s.Commit.ID[:12], fmt.Errorf("%s: %w", p, err))
	}
	return b, nil
}
