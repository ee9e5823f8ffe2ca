package source

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/opencontainers/go-digest"
)

// MaxEntries bounds the number of entries of a tree.
const MaxEntries = 1_000_000

// Bounds of one entry, in bytes. They are those of Linux.
const (
	maxPath = 4096
	maxName = 255
	maxLink = 4096
)

// modeMask is the part of a mode that a tree keeps. The set-user-ID, set-group-ID and sticky bits
// are part of it, as they are of a context that docker sends.
const modeMask = fs.ModePerm | fs.ModeDir | fs.ModeSymlink | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky

const treeMagic = "kiln-tree 1\n"

// emptySum is the digest of a file without content.
var emptySum = Sum(sha256.Sum256(nil))

// A Sum is the SHA-256 of a file's content.
type Sum [sha256.Size]byte

// String returns the sum as sha256:<hex>.
func (s Sum) String() string { return string(s.Digest()) }

// Digest returns the sum as an OCI digest.
func (s Sum) Digest() digest.Digest { return digest.NewDigestFromBytes(digest.SHA256, s[:]) }

// An Entry is one file, directory or symbolic link of a tree. Owner and group are always 0.
type Entry struct {
	Path    string      // relative to the root, separated by slashes; the root itself has no entry
	Mode    fs.FileMode // type and permission bits
	Size    int64       // of a regular file, else 0
	ModTime time.Time
	Link    string // target of a symbolic link: data, never followed
	Digest  Sum    // of a regular file's content, else zero
}

// A Tree is the content of a directory without the bytes of its files.
type Tree struct {
	// Entries are sorted by path, comparing name by name, so that a directory comes directly before
	// what it contains. Every entry's parent directory is an entry.
	Entries []Entry
	// Warnings name what a scan left out: sockets, devices, pipes. They are not part of the tree's
	// identity.
	Warnings []string

	encoded []byte // cache of Encode
}

// ID returns the tree's identity: the SHA-256, in hex, of its encoding. It covers every path, mode,
// time, link and content. The entries must not be changed afterwards.
func (t *Tree) ID() string {
	sum := sha256.Sum256(t.Encode())
	return hex.EncodeToString(sum[:])
}

// Size returns the number of bytes of the distinct contents of the tree.
func (t *Tree) Size() int64 {
	var n int64
	for _, i := range t.contents() {
		n += t.Entries[i].Size
	}
	return n
}

// contents returns the indexes, ascending, of the first entry of every distinct content.
func (t *Tree) contents() []int {
	seen := make(map[Sum]struct{}, len(t.Entries))
	var out []int
	for i := range t.Entries {
		e := &t.Entries[i]
		if !e.Mode.IsRegular() || e.Size == 0 {
			continue
		}
		if _, ok := seen[e.Digest]; ok {
			continue
		}
		seen[e.Digest] = struct{}{}
		out = append(out, i)
	}
	return out
}

// Encode returns the canonical encoding of the tree: equal trees have equal encodings. The caller
// must not change the result.
func (t *Tree) Encode() []byte {
	if t.encoded != nil {
		return t.encoded
	}
	b := make([]byte, 0, len(treeMagic)+binary.MaxVarintLen64+len(t.Entries)*96)
	b = append(b, treeMagic...)
	b = binary.AppendUvarint(b, uint64(len(t.Entries)))
	for i := range t.Entries {
		b = appendEntry(b, &t.Entries[i])
	}
	t.encoded = b
	return b
}

func appendEntry(b []byte, e *Entry) []byte {
	b = binary.AppendUvarint(b, uint64(len(e.Path)))
	b = append(b, e.Path...)
	b = binary.AppendUvarint(b, uint64(e.Mode))
	b = binary.AppendVarint(b, e.ModTime.UnixNano())
	switch {
	case e.Mode.IsRegular():
		b = binary.AppendUvarint(b, uint64(e.Size))
		b = append(b, e.Digest[:]...)
	case e.Mode&fs.ModeSymlink != 0:
		b = binary.AppendUvarint(b, uint64(len(e.Link)))
		b = append(b, e.Link...)
	}
	return b
}

// DecodeTree is the inverse of Tree.Encode. It accepts canonical encodings of valid trees only, so
// what it returns can be trusted to stay below its root. It keeps b.
func DecodeTree(b []byte) (*Tree, error) {
	d := decoder{b: b}
	if string(d.bytes(uint64(len(treeMagic)))) != treeMagic {
		return nil, errors.New("tree: not a kiln tree, or one of another version")
	}
	n := d.uvarint()
	if n > MaxEntries {
		return nil, fmt.Errorf("tree: %d entries, at most %d are allowed", n, MaxEntries)
	}
	// A count is only believed as far as there are bytes for it.
	t := &Tree{Entries: make([]Entry, 0, min(n, uint64(len(b)/4))), encoded: b}
	for range n {
		e := d.entry()
		if d.err != nil {
			return nil, fmt.Errorf("tree: entry %d: %w", len(t.Entries), d.err)
		}
		t.Entries = append(t.Entries, e)
	}
	if d.err != nil || len(d.b) > 0 {
		return nil, fmt.Errorf("tree: %w", errors.Join(d.err, d.rest()))
	}
	if err := t.Validate(); err != nil {
		return nil, err
	}
	return t, nil
}

var (
	errTruncated = errors.New("ends too early")
	errVarint    = errors.New("number not in its shortest form, or too large")
)

// A decoder reads from b until the first error.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) entry() Entry {
	e := Entry{Path: string(d.bounded(maxPath))}
	mode := d.uvarint()
	if d.err == nil && mode&^uint64(modeMask) != 0 {
		d.err = fmt.Errorf("mode %#o has bits that a context cannot have", mode)
	}
	e.Mode = fs.FileMode(mode & uint64(modeMask))
	e.ModTime = time.Unix(0, d.varint())
	switch {
	case e.Mode.IsRegular():
		size := d.uvarint()
		if d.err == nil && int64(size) < 0 {
			d.err = errVarint
		}
		e.Size = int64(size)
		copy(e.Digest[:], d.bytes(sha256.Size))
	case e.Mode&fs.ModeSymlink != 0:
		e.Link = string(d.bounded(maxLink))
	}
	return e
}

func (d *decoder) bytes(n uint64) []byte {
	if d.err == nil && n > uint64(len(d.b)) {
		d.err = errTruncated
	}
	if d.err != nil {
		return nil
	}
	out := d.b[:n]
	d.b = d.b[n:]
	return out
}

// bounded returns a byte string that is preceded by its length.
func (d *decoder) bounded(limit uint64) []byte {
	n := d.uvarint()
	if d.err == nil && n > limit {
		d.err = fmt.Errorf("%d bytes of text, at most %d are allowed", n, limit)
	}
	return d.bytes(n)
}

func (d *decoder) uvarint() uint64 {
	if d.err != nil {
		return 0
	}
	v, n := binary.Uvarint(d.b)
	switch {
	case n == 0:
		d.err = errTruncated
	case n < 0 || n > 1 && d.b[n-1] == 0:
		d.err = errVarint
	default:
		d.b = d.b[n:]
		return v
	}
	return 0
}

func (d *decoder) varint() int64 {
	u := d.uvarint()
	v := int64(u >> 1)
	if u&1 != 0 {
		v = ^v
	}
	return v
}

func (d *decoder) rest() error {
	if d.err == nil && len(d.b) > 0 {
		return fmt.Errorf("%d bytes too many", len(d.b))
	}
	return nil
}
