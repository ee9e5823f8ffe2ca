package git

import (
	"bufio"
	"bytes"
	"compress/zlib"
	"context"
	"crypto/sha1"
	"encoding/binary"
	"io"
	"path"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/storage/memory"
)

func FuzzCommit(f *testing.F) {
	id := strings.Repeat("0a", 20)
	f.Add([]byte("tree " + id + "\nauthor A <a@b> 1 +0000\ncommitter B <b@c> -99999999999999999999 x\n\nmessage\xff"))
	f.Add([]byte("object " + id + "\ntype commit\n"))
	f.Add([]byte("author > < >\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, c, err := peel(plumbing.NewHash(id), func(plumbing.Hash) ([]byte, error) { return b, nil })
		if err != nil {
			return
		}
		if !isCommit(c.Tree) || !utf8.ValidString(c.Author) || !utf8.ValidString(c.Message) {
			t.Errorf("%q: %+v", b, c)
		}
		if _, err := c.Time.MarshalJSON(); err != nil {
			t.Errorf("%q: the time cannot be written down: %v", b, err)
		}
	})
}

func FuzzModules(f *testing.F) {
	f.Add([]byte("[submodule \"a\"]\n\tpath = a/b\n\turl = ../c.git\n\tupdate = none\n"), []byte("*.bin filter=lfs\n* eol=crlf"))
	f.Add([]byte("[submodule \"a]\npath==\nurl"), []byte("# =\n"))
	f.Fuzz(func(t *testing.T, modules, attributes []byte) {
		all, err := parseModules(modules)
		for _, m := range all {
			if err == nil && (path.IsAbs(m.path) || m.path != path.Clean(m.path) || strings.HasPrefix(m.path+"/", "../")) {
				t.Errorf("%q: path %q", modules, m.path)
			}
		}
		filtered(string(attributes))
	})
}

// FuzzAnswer reads what a server says before a pack.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte("0034shallow 0123456789012345678901234567890123456789\n00000008NAK\nPACK"))
	f.Add([]byte("000eERR refused\n"))
	f.Add([]byte("ffffACK"))
	f.Fuzz(func(_ *testing.T, b []byte) {
		_ = skipNegotiation(bufio.NewReaderSize(bytes.NewReader(b), 64<<10))
	})
}

// FuzzRefs reads a list of refs, and resolves what is in it.
func FuzzRefs(f *testing.F) {
	id := strings.Repeat("0a", 20)
	f.Add([]byte("001e# service=git-upload-pack\n0000"+"0049"+id+" HEAD\x00symref=HEAD:refs/heads/main\n"+"003d"+id+" refs/heads/main\n0000"), "main")
	f.Add([]byte("0000"), "")
	f.Fuzz(func(t *testing.T, b []byte, ref string) {
		_, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		in := newBoundedReader(bytes.NewReader(b), 1<<20, "list", time.Minute, cancel)
		defer in.stop()
		adv := packp.NewAdvRefs()
		if adv.Decode(in) != nil {
			return
		}
		r := newRefs(adv)
		r.tips()
		if h, err := r.resolve(ref); err == nil && !isCommit(h.Commit) {
			t.Errorf("%q is %+v", ref, h)
		}
	})
}

// FuzzPack gives parsers packs that are well formed but for what their objects say. Each object is a
// byte for the type, one for the length and the content.
func FuzzPack(f *testing.F) {
	f.Add([]byte("\x03\x05hello\x06\x0a\x08\x05\x05\x90\x05\x01!"))
	f.Add([]byte("\x01\x01x\x07\x03\x01\x01\x80"))
	f.Fuzz(func(t *testing.T, b []byte) {
		pack := makePack(b)
		g := newGuard(bytes.NewReader(pack), Limits{Pack: 1 << 20, Object: 1 << 16})
		defer g.stop()
		p, err := packfile.NewParserWithStorage(packfile.NewScanner(g), memory.NewStorage())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = p.Parse()
		raw := newGuard(bytes.NewReader(b), Limits{Pack: 1 << 20, Object: 1 << 16})
		if n, err := io.Copy(io.Discard, raw); err == nil && n < 32 {
			t.Errorf("%q passes for a pack", b)
		}
		_ = raw.stop()
	})
}

// makePack frames objects.
func makePack(b []byte) []byte {
	var count uint32
	out := []byte("PACK\x00\x00\x00\x02....")
	for ; len(b) >= 2 && count < 50; count++ {
		kind, n := b[0]&7, min(int(b[1]), len(b)-2)
		body := b[2 : 2+n]
		b = b[2+n:]
		at := len(out)
		out = append(out, kind<<4|byte(n&15)|0x80, byte(n>>4))
		switch kind {
		case 6: // a difference to the object before, or wherever
			out = append(out, byte(at-12)&0x7f)
		case 7:
			sum := sha1.Sum([]byte("blob 5\x00hello"))
			out = append(out, sum[:]...)
		}
		var z bytes.Buffer
		w := zlib.NewWriter(&z)
		_, _ = w.Write(body) // into memory
		_ = w.Close()
		out = append(out, z.Bytes()...)
	}
	binary.BigEndian.PutUint32(out[8:], count)
	sum := sha1.Sum(out)
	return append(out, sum[:]...)
}
