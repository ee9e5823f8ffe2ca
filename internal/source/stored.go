package source

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Repository is where contexts are stored: one manifest each, tagged with the context's ID.
const Repository = "kiln/contexts"

// Media types of a stored context.
const (
	artifactType  = "application/vnd.kiln.context.v1"
	treeMediaType = "application/vnd.kiln.context.tree.v1"
	packMediaType = "application/vnd.kiln.context.pack.v1"
	// annotationKey holds the hash of the key that a context was stored under.
	annotationKey = "dev.kiln.context.key"
)

const (
	maxPacks    = 32      // of one context; with more, the smallest are asked for again
	keptPacks   = 16      // how many are left then
	maxManifest = 4 << 20 // bytes
	storedMagic = "kiln-context 1\n"
)

// A place is where a content is: a pack of the context and an offset in it.
type place struct {
	pack   int
	offset int64
}

// A stored context is a tree and where its contents are.
type stored struct {
	id     string
	keySum string // hash of the key
	tree   *Tree
	packs  []pack
	places map[Sum]place
}

// A pack is a blob of contents back to back.
type pack struct {
	digest digest.Digest
	size   int64
}

// encode returns the config blob: the tree, then for each distinct content, in the order of the
// tree, its place.
func (s *stored) encode() []byte {
	enc := s.tree.Encode()
	b := make([]byte, 0, len(enc)+len(storedMagic)+16+8*len(s.places))
	b = append(b, storedMagic...)
	b = binary.AppendUvarint(b, uint64(len(enc)))
	b = append(b, enc...)
	for _, i := range s.tree.contents() {
		p := s.places[s.tree.Entries[i].Digest]
		b = binary.AppendUvarint(b, uint64(p.pack))
		b = binary.AppendUvarint(b, uint64(p.offset))
	}
	return b
}

// decode fills in the tree and the places; the packs must be known. Nothing in b is trusted.
func (s *stored) decode(b []byte) error {
	d := decoder{b: b}
	if string(d.bytes(uint64(len(storedMagic)))) != storedMagic {
		return errors.New("not a stored context, or one of another version")
	}
	enc := d.bounded(math.MaxInt64)
	if d.err != nil {
		return d.err
	}
	tree, err := DecodeTree(enc)
	if err != nil {
		return err
	}
	contents := tree.contents()
	s.tree, s.places = tree, make(map[Sum]place, len(contents))
	for _, i := range contents {
		e := &tree.Entries[i]
		n, off := d.uvarint(), d.uvarint()
		if d.err != nil {
			return fmt.Errorf("place of %q: %w", e.Path, d.err)
		}
		if n >= uint64(len(s.packs)) || off > math.MaxInt64 || int64(off) > s.packs[n].size-e.Size {
			return fmt.Errorf("place of %q: outside of its pack", e.Path)
		}
		s.places[e.Digest] = place{int(n), int64(off)}
	}
	return errors.Join(d.err, d.rest())
}

// manifest returns the OCI manifest of the context.
func (s *stored) manifest(config pack) ([]byte, error) {
	m := ocispec.Manifest{
		Versioned:    specs.Versioned{SchemaVersion: 2},
		MediaType:    ocispec.MediaTypeImageManifest,
		ArtifactType: artifactType,
		Config:       ocispec.Descriptor{MediaType: treeMediaType, Digest: config.digest, Size: config.size},
		Layers:       make([]ocispec.Descriptor, len(s.packs)),
		Annotations:  map[string]string{annotationKey: s.keySum},
	}
	for i, p := range s.packs {
		m.Layers[i] = ocispec.Descriptor{MediaType: packMediaType, Digest: p.digest, Size: p.size}
	}
	return json.Marshal(m)
}

// load reads the context that ref, a tag, names, if there is room for it. One that does not exist is fs.ErrNotExist.
func load(ctx context.Context, r Reader, ref string, maxConfig int64, h *hold) (*stored, error) {
	body, err := r.Manifest(ctx, Repository, ref)
	if err != nil {
		return nil, fmt.Errorf("context %s: %w", ref, err)
	}
	s, err := parseManifest(ctx, r, body, maxConfig, h)
	if err != nil {
		return nil, fmt.Errorf("context %s: %w", ref, err)
	}
	return s, nil
}

func parseManifest(ctx context.Context, r Reader, body []byte, maxConfig int64, h *hold) (*stored, error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if m.ArtifactType != artifactType || m.Config.MediaType != treeMediaType {
		return nil, fmt.Errorf("manifest is a %q, not a context", m.ArtifactType)
	}
	s := &stored{keySum: m.Annotations[annotationKey]}
	for _, l := range m.Layers {
		if err := l.Digest.Validate(); err != nil || l.Digest.Algorithm() != digest.SHA256 || l.Size < 0 {
			return nil, fmt.Errorf("manifest: bad layer %q", l.Digest)
		}
		s.packs = append(s.packs, pack{l.Digest, l.Size})
	}
	if err := h.take(m.Config.Size); err != nil {
		return nil, err
	}
	config, err := readBlob(ctx, r, m.Config.Digest, m.Config.Size, maxConfig)
	if err != nil {
		return nil, err
	}
	if err := s.decode(config); err != nil {
		return nil, fmt.Errorf("blob %s: %w", m.Config.Digest, err)
	}
	s.id = s.tree.ID()
	return s, nil
}

// readBlob reads a whole blob and verifies it.
func readBlob(ctx context.Context, r Reader, d digest.Digest, size, limit int64) ([]byte, error) {
	if err := d.Validate(); err != nil {
		return nil, fmt.Errorf("blob %q: %w", d, err)
	}
	if size < 0 || size > limit {
		return nil, &TooLargeError{What: "blob " + d.String(), Size: uint64(size), Limit: limit}
	}
	rc, _, err := r.BlobReader(ctx, Repository, d)
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", d, err)
	}
	defer rc.Close()
	b := make([]byte, size)
	if _, err := io.ReadFull(rc, b); err != nil {
		return nil, fmt.Errorf("blob %s: %w", d, err)
	}
	if d.Algorithm().FromBytes(b) != d {
		return nil, fmt.Errorf("blob %s: content does not have this digest; the registry's storage is damaged", d)
	}
	return b, nil
}

// reuse returns the context that tree becomes when it takes over what it can from s, and the
// contents, as indexes of entries, that it still lacks. s may be nil.
//
// A pack is not taken over when more than half of it is dead for the new tree; and of more than
// maxPacks packs only the fullest are. What they hold is then asked for again: storage and the
// number of packs stay bounded without a collector.
func (s *stored) reuse(tree *Tree) (*stored, []int) {
	next := &stored{tree: tree, places: map[Sum]place{}}
	contents := tree.contents()
	if s == nil {
		return next, contents
	}
	renumbered := s.worthKeeping(tree, contents)
	for old, n := range renumbered {
		if n >= 0 {
			next.packs = append(next.packs, s.packs[old])
		}
	}
	var missing []int
	for _, i := range contents {
		e := &tree.Entries[i]
		p, ok := s.places[e.Digest]
		if !ok || renumbered[p.pack] < 0 {
			missing = append(missing, i)
			continue
		}
		next.places[e.Digest] = place{renumbered[p.pack], p.offset}
	}
	return next, missing
}

// worthKeeping returns for each pack its number in the next context, or -1.
func (s *stored) worthKeeping(tree *Tree, contents []int) []int {
	live := make([]int64, len(s.packs))
	for _, i := range contents {
		e := &tree.Entries[i]
		if p, ok := s.places[e.Digest]; ok {
			live[p.pack] += e.Size
		}
	}
	var kept []int
	for n, p := range s.packs {
		if live[n] > 0 && live[n] >= p.size-live[n] {
			kept = append(kept, n)
		}
	}
	if len(kept) >= maxPacks {
		slices.SortFunc(kept, func(a, b int) int { return int(min(max(live[b]-live[a], -1), 1)) })
		kept = kept[:keptPacks]
		slices.Sort(kept)
	}
	renumbered := make([]int, len(s.packs))
	for n := range renumbered {
		renumbered[n] = -1
	}
	for next, old := range kept {
		renumbered[old] = next
	}
	return renumbered
}
