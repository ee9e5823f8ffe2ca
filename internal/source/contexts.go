package source

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// scheme begins a reference to an uploaded context.
const scheme = "context://"

// Ref returns the reference of the context with this ID, as a run's source.
func Ref(id string) string { return scheme + id }

// ParseRef returns the ID in a reference that Ref made.
func ParseRef(ref string) (id string, err error) {
	id, ok := strings.CutPrefix(ref, scheme)
	if !ok || !validID(id) {
		return "", fmt.Errorf("source %q: not a %s<id> of an uploaded context", ref, scheme)
	}
	return id, nil
}

func validID(id string) bool {
	return digest.NewDigestFromEncoded(digest.SHA256, id).Validate() == nil
}

// ErrBaseGone is returned by Put when the context that the upload builds on does not exist or lacks
// what was not sent: ask what is missing, and upload again.
var ErrBaseGone = errors.New("the context that this upload builds on is gone; upload again")

// A TooLargeError refuses what exceeds a limit.
type TooLargeError struct {
	What  string
	Size  uint64
	Limit int64
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("%s: %d bytes, at most %d are allowed", e.What, e.Size, e.Limit)
}

// Limits bound uploads.
type Limits struct {
	Content int64 // bytes of the files of one context; 0 means 8 GiB
	Tree    int64 // bytes of its list of files; 0 means 256 MiB
}

func (l Limits) withDefaults() Limits {
	if l.Content <= 0 {
		l.Content = 8 << 30
	}
	if l.Tree <= 0 {
		l.Tree = 256 << 20
	}
	return l
}

// maxConfig is the largest config blob of a context within the limits: the tree, and at most 12
// bytes for the place of each of its contents.
func (l Limits) maxConfig() int64 { return l.Tree + 12*MaxEntries + 1<<10 }

// packTarget is the size at which an upload begins another pack, so that a worker that needs one
// file of a large context does not fetch all of it.
func packTarget(total int64) int64 { return max(64<<20, total/8) }

// Contexts are the uploaded contexts of a server. Its methods may be called concurrently.
//
// Whoever knows the ID of a context may use it and build on it: an ID is as hard to guess as the
// content is. A context is immutable, and complete as soon as it exists.
type Contexts struct {
	Blobs  Blobs
	Limits Limits

	held atomic.Int64 // bytes of the long lists of files in hand
}

const (
	// maxHeld bounds the memory that lists of files take: a short body can hold a long one, compressed.
	maxHeld = 512 << 20
	// shortList is the size up to which a list does not count.
	shortList = 1 << 20
)

var errBusy = errors.New("too many contexts of very many files are uploaded at once")

// A hold is what one request has of the memory for lists of files. A nil one is without bounds.
type hold struct {
	all *atomic.Int64
	own int64
}

// take takes n bytes more, or returns errBusy.
func (h *hold) take(n int64) error {
	if h == nil || n <= shortList {
		return nil
	}
	if h.all.Add(n) > maxHeld {
		h.all.Add(-n)
		return errBusy
	}
	h.own += n
	return nil
}

// release gives back what was taken.
func (h *hold) release() { h.all.Add(-h.own) }

// Missing is what a client must send.
type Missing struct {
	ID     string `json:"id"`
	Exists bool   `json:"exists"` // nothing is missing, do not upload
	// Base is the context that Entries were compared with; the upload names it.
	Base string `json:"base,omitempty"`
	// Entries are the indexes, ascending, of the entries of the tree whose contents must be sent.
	Entries []int `json:"missing,omitempty"`
}

// Has reports whether the context exists. It is one lookup.
func (c *Contexts) Has(ctx context.Context, id string) (bool, error) {
	if !validID(id) {
		return false, nil
	}
	_, err := c.Blobs.Manifest(ctx, Repository, id)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// missing compares a tree with the newest context of a key.
func (c *Contexts) missing(ctx context.Context, key string, tree *Tree, h *hold) (Missing, error) {
	m := Missing{ID: tree.ID()}
	var err error
	if m.Exists, err = c.Has(ctx, m.ID); err != nil || m.Exists {
		return m, err
	}
	if err := c.checkSizes(tree); err != nil {
		return m, err
	}
	newest, err := load(ctx, c.Blobs, keyTag(keySum(key)), c.Limits.withDefaults().maxConfig(), h)
	switch {
	case err == nil:
		m.Base = newest.id
	case !errors.Is(err, fs.ErrNotExist):
		return m, err
	}
	_, m.Entries = newest.reuse(tree)
	return m, nil
}

// Put stores a context from an upload's body. The contents that the body must hold are those that
// missing told for base; with base empty, all.
func (c *Contexts) Put(ctx context.Context, id, key, base string, body io.Reader) error {
	lim := c.Limits.withDefaults()
	br := bufio.NewReaderSize(body, 64<<10)
	held := &hold{all: &c.held}
	defer held.release()
	tree, err := readTree(br, lim.Tree, held)
	if err != nil {
		return err
	}
	if got := tree.ID(); got != id {
		return malformed("the list of files has the ID %s, not %s", got, id)
	}
	if err := c.checkSizes(tree); err != nil {
		return err
	}
	next, missing, err := c.rebase(ctx, base, tree, held)
	if err != nil {
		return err
	}
	next.id, next.keySum = id, keySum(key)
	if err := c.receive(ctx, next, br, missing); err != nil {
		return err
	}
	return c.store(ctx, next)
}

func (c *Contexts) checkSizes(tree *Tree) error {
	limit := c.Limits.withDefaults().Content
	if n := tree.Size(); n > limit {
		return &TooLargeError{What: "context", Size: uint64(n), Limit: limit}
	}
	sizes := make(map[Sum]int64, len(tree.Entries))
	for i := range tree.Entries {
		e := &tree.Entries[i]
		if n, ok := sizes[e.Digest]; ok && n != e.Size {
			return malformed("%q: a content cannot have two sizes, %d and %d", e.Path, n, e.Size)
		}
		sizes[e.Digest] = e.Size
	}
	return nil
}

// rebase is what missing did, for a base that the client names.
func (c *Contexts) rebase(ctx context.Context, base string, tree *Tree, h *hold) (*stored, []int, error) {
	var old *stored
	if base != "" {
		if !validID(base) {
			return nil, nil, malformed("base %q is not the ID of a context", base)
		}
		var err error
		old, err = load(ctx, c.Blobs, base, c.Limits.withDefaults().maxConfig(), h)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil, fmt.Errorf("context %s: %w", base, ErrBaseGone)
		}
		if err != nil {
			return nil, nil, err
		}
	}
	next, missing := old.reuse(tree)
	return next, missing, nil
}

// receive stores the missing contents as packs and notes where they are.
func (c *Contexts) receive(ctx context.Context, next *stored, br *bufio.Reader, missing []int) error {
	var total int64
	for _, i := range missing {
		total += next.tree.Entries[i].Size
	}
	r := newPackReader(br, next.tree, missing, packTarget(total))
	for r.more() {
		d, size, err := c.Blobs.PutBlob(ctx, Repository, r.pack())
		if r.err != nil {
			return r.err // the client's mistake, rather than what the store made of it
		}
		if err != nil {
			return err
		}
		content := r.packs[len(r.packs)-1]
		if size != content.size {
			return fmt.Errorf("blob %s: stored %d bytes of %d", d, size, content.size)
		}
		for sum, offset := range content.offsets {
			next.places[sum] = place{len(next.packs), offset}
		}
		next.packs = append(next.packs, pack{d, size})
	}
	return r.finish()
}

// store makes the context exist, and then the newest of its key.
func (c *Contexts) store(ctx context.Context, s *stored) error {
	enc := s.encode()
	d, size, err := c.Blobs.PutBlob(ctx, Repository, bytes.NewReader(enc))
	if err != nil {
		return err
	}
	body, err := s.manifest(pack{d, size})
	if err != nil {
		return err
	}
	for _, tag := range []string{s.id, keyTag(s.keySum)} {
		err := c.Blobs.PutManifest(ctx, Repository, tag, ocispec.MediaTypeImageManifest, body)
		if err != nil {
			return fmt.Errorf("context %s: %w", s.id, err)
		}
	}
	return nil
}

func keySum(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:])
}

func keyTag(sum string) string { return "key-" + sum }
