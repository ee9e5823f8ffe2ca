package source

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
)

// An upload's body is
//
//	magic, uvarint length of the tree, the encoded tree,
//	then for each content, ascending: uvarint index of its entry plus 1, the bytes (as many as the entry says),
//	then uvarint 0.
//
// The zero at the end tells a complete body from a truncated one.
const frameMagic = "kiln-upload 1\n"

// writeHead writes what precedes the contents.
func writeHead(w io.Writer, t *Tree) error {
	enc := t.Encode()
	b := binary.AppendUvarint([]byte(frameMagic), uint64(len(enc)))
	if _, err := w.Write(b); err != nil {
		return err
	}
	_, err := w.Write(enc)
	return err
}

// writeMark announces the content of entry i, or the end if i is -1.
func writeMark(w io.Writer, i int) error {
	_, err := w.Write(binary.AppendUvarint(nil, uint64(i+1)))
	return err
}

// errMalformed marks a body that is not what the protocol says: the client's mistake.
var errMalformed = errors.New("upload")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %w", errMalformed, fmt.Errorf(format, args...))
}

// bodyError tells a body that ended too early, or that could not be decompressed, from one whose
// connection broke: both are the client's to repeat.
func bodyError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return malformed("the body %w", errTruncated)
	}
	return fmt.Errorf("%w: %w", errMalformed, err)
}

// readTree reads a length and an encoded tree of at most limit bytes, if there is room for it.
func readTree(r *bufio.Reader, limit int64, h *hold) (*Tree, error) {
	magic := make([]byte, len(frameMagic))
	if _, err := io.ReadFull(r, magic); err != nil {
		return nil, bodyError(err)
	}
	if string(magic) != frameMagic {
		return nil, malformed("not a kiln upload, or one of another version")
	}
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return nil, bodyError(err)
	}
	if n > uint64(limit) {
		return nil, &TooLargeError{What: "list of files", Size: n, Limit: limit}
	}
	if err := h.take(int64(n)); err != nil {
		return nil, err
	}
	// The buffer grows with what really arrives, not with what was announced.
	var buf bytes.Buffer
	if _, err := io.CopyN(&buf, r, int64(n)); err != nil {
		return nil, bodyError(err)
	}
	t, err := DecodeTree(buf.Bytes())
	if err != nil {
		return nil, malformed("%w", err)
	}
	return t, nil
}

// A packReader reads the contents of an upload as a sequence of packs. Every byte is checked against
// its entry's digest before the pack that holds it is complete.
type packReader struct {
	r     *bufio.Reader
	tree  *Tree
	want  map[Sum]int // contents that the body must hold, to their entry's index
	packs []packed    // complete packs and the one being read

	next   int // entry announced by the last mark, -1 at the end of the body
	last   int // entry read before
	target int64
	err    error
}

// packed says what one pack holds.
type packed struct {
	size    int64
	offsets map[Sum]int64
}

func newPackReader(r *bufio.Reader, t *Tree, want []int, target int64) *packReader {
	p := &packReader{r: r, tree: t, want: make(map[Sum]int, len(want)), target: target, last: -1}
	for _, i := range want {
		p.want[t.Entries[i].Digest] = i
	}
	p.mark()
	return p
}

// more reports whether there is another pack.
func (p *packReader) more() bool { return p.err == nil && p.next >= 0 }

// pack returns a reader of the next pack, which ends with io.EOF only if all of it is verified.
func (p *packReader) pack() io.Reader {
	p.packs = append(p.packs, packed{offsets: map[Sum]int64{}})
	return &contentReader{p: p, pack: &p.packs[len(p.packs)-1]}
}

// finish returns the first error, or what is missing.
func (p *packReader) finish() error {
	if p.err != nil {
		return p.err
	}
	if len(p.want) > 0 {
		for _, i := range p.want {
			return malformed("%q: its content was not sent", p.tree.Entries[i].Path)
		}
	}
	// A compressed body carries its checksum behind the last byte that it stands for.
	if _, err := p.r.ReadByte(); err == nil {
		return malformed("bytes follow its end")
	} else if !errors.Is(err, io.EOF) {
		return bodyError(err)
	}
	return nil
}

// mark reads what comes next.
func (p *packReader) mark() {
	u, err := binary.ReadUvarint(p.r)
	switch {
	case err != nil:
		p.err = bodyError(err)
	case u == 0:
		p.next = -1
	case u > uint64(len(p.tree.Entries)) || int(u-1) <= p.last:
		p.err = malformed("content of an unknown file, or in the wrong order (%d)", u)
	default:
		p.next = int(u - 1)
		e := &p.tree.Entries[p.next]
		if i, ok := p.want[e.Digest]; !ok || i != p.next {
			p.err = malformed("%q: content was not asked for", e.Path)
		}
	}
}

// A contentReader reads one pack.
type contentReader struct {
	p    *packReader
	pack *packed
	sum  hash.Hash
	left int64 // bytes of the current content
}

func (c *contentReader) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	if c.p.err != nil {
		return 0, c.p.err
	}
	if c.sum == nil {
		if c.p.next < 0 || c.pack.size >= c.p.target {
			return 0, io.EOF
		}
		e := &c.p.tree.Entries[c.p.next]
		c.pack.offsets[e.Digest] = c.pack.size
		c.sum, c.left = sha256.New(), e.Size
	}
	n, err := c.p.r.Read(b[:min(int64(len(b)), c.left)])
	c.sum.Write(b[:n])
	c.left -= int64(n)
	c.pack.size += int64(n)
	switch {
	case c.left == 0:
		c.verify()
	case err != nil:
		c.p.err = bodyError(err)
	}
	return n, c.p.err
}

// verify closes the current content and reads the mark of the next.
func (c *contentReader) verify() {
	e := &c.p.tree.Entries[c.p.next]
	if got := Sum(c.sum.Sum(nil)); got != e.Digest {
		c.p.err = malformed("%q: content is %v, the list of files says %v; the file changed while it was sent", e.Path, got, e.Digest)
		return
	}
	delete(c.p.want, e.Digest)
	c.sum, c.p.last = nil, c.p.next
	c.p.mark()
}

// readHead reads a body that ends after the tree.
func readHead(body io.Reader, l Limits, h *hold) (*Tree, error) {
	br := bufio.NewReader(body)
	t, err := readTree(br, l.withDefaults().Tree, h)
	if err != nil {
		return nil, err
	}
	if _, err := br.ReadByte(); !errors.Is(err, io.EOF) {
		return nil, malformed("bytes follow the list of files (%v)", err)
	}
	return t, nil
}
