package source

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"math"
	"strings"
	"testing"
	"time"
)

func sumOf(content string) Sum { return sha256.Sum256([]byte(content)) }

func dir(p string) Entry {
	return Entry{Path: p, Mode: fs.ModeDir | 0o755, ModTime: time.Unix(1, 0)}
}

func link(p, target string) Entry {
	return Entry{Path: p, Mode: fs.ModeSymlink | 0o777, ModTime: time.Unix(1, 0), Link: target}
}

func TestValidateRefuses(t *testing.T) {
	t.Parallel()
	wrong := func(change func(*Entry)) Entry {
		e := file("f", "x")
		change(&e)
		return e
	}
	for want, entries := range map[string][]Entry{
		`".."`:                   {file("..", "x")},
		`element ".."`:           {dir("a"), file("a/../b", "x")},
		`element "."`:            {dir("a"), file("a/./b", "x")},
		`element ""`:             {dir("a"), file("a//b", "x")},
		"absolute":               {file("/a", "x")},
		"empty path":             {file("", "x")},
		"NUL":                    {file("a\x00b", "x")},
		"UTF-8":                  {file("a\xffb", "x")},
		"listed twice":           {file("a", "x"), file("a", "x")},
		"or after":               {file("b", "x"), file("a", "x")},
		`or after "a-b"`:         {dir("a"), file("a-b", "x"), file("a/b", "x")},
		`"f" is not a directory`: {file("f", "x"), file("f/g", "x")},
		`"l" is not a directory`: {link("l", "/"), file("l/g", "x")},
		`"d" is not a directory`: {file("d/g", "x")},
		"name of 300 bytes":      {file(strings.Repeat("n", 300), "x")},
		"path of 5000 bytes":     {file(strings.Repeat("n/", 2500), "x")},
		"digest of an empty":     {wrong(func(e *Entry) { e.Size = 0 })},
		"size -1":                {wrong(func(e *Entry) { e.Size = -1 })},
		"add up":                 {wrong(func(e *Entry) { e.Size = math.MaxInt64 }), wrong(func(e *Entry) { e.Path, e.Size = "g", math.MaxInt64 })},
		"mode":                   {wrong(func(e *Entry) { e.Mode |= fs.ModeDevice })},
		"is not one of":          {wrong(func(e *Entry) { e.Mode |= fs.ModeNamedPipe })},
		"only a file":            {wrong(func(e *Entry) { e.Mode, e.Size = fs.ModeDir, 0 })},
		"only a symbolic link":   {wrong(func(e *Entry) { e.Link = "x" })},
		"target of 0 bytes":      {link("l", "")},
		"target of 5000 bytes":   {link("l", strings.Repeat("x", 5000))},
		"target is not valid":    {link("l", "a\x00")},
		"out of range":           {wrong(func(e *Entry) { e.ModTime = time.Date(3000, 1, 1, 0, 0, 0, 0, time.UTC) })},
	} {
		if err := (&Tree{Entries: entries}).Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Validate(%v) = %v, want %q", entries, err, want)
		}
	}
	if err := (&Tree{Entries: make([]Entry, MaxEntries+1)}).Validate(); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("too many entries: %v", err)
	}
}

func TestIDCoversEverything(t *testing.T) {
	t.Parallel()
	base := []Entry{dir("d"), file("d/f", "x"), link("l", "d")}
	seen := map[string]string{(&Tree{Entries: base}).ID(): "unchanged"}
	for name, change := range map[string]func([]Entry){
		"path":    func(e []Entry) { e[1].Path = "d/g" },
		"mode":    func(e []Entry) { e[1].Mode = 0o755 },
		"content": func(e []Entry) { e[1].Digest = sumOf("y") },
		"size":    func(e []Entry) { e[1].Size = 2 },
		"time":    func(e []Entry) { e[1].ModTime = time.Unix(1, 1) },
		"link":    func(e []Entry) { e[2].Link = "e" },
		"dir":     func(e []Entry) { e[0].Mode = fs.ModeDir | 0o700 },
	} {
		entries := append([]Entry(nil), base...)
		change(entries)
		id := (&Tree{Entries: entries}).ID()
		if other, ok := seen[id]; ok {
			t.Errorf("%s and %s have the same ID", name, other)
		}
		seen[id] = name
	}
}

func FuzzDecodeTree(f *testing.F) {
	f.Add((&Tree{}).Encode())
	f.Add((&Tree{Entries: []Entry{dir("a"), file("a/b", "x"), file("a/empty", ""), link("l", "a")}}).Encode())
	f.Add([]byte(treeMagic + "\xff\xff\x03"))
	f.Fuzz(func(t *testing.T, b []byte) {
		tree, err := DecodeTree(b)
		if err != nil {
			return
		}
		if again := (&Tree{Entries: tree.Entries}).Encode(); !bytes.Equal(again, b) {
			t.Errorf("%q was accepted, but its canonical form is %q", b, again)
		}
	})
}

func FuzzUpload(f *testing.F) {
	tree := &Tree{Entries: []Entry{file("a", "aaa"), file("b", "bbb")}}
	f.Add(body(tree.Encode(), mark(1), []byte("aaa"), mark(2), []byte("bbb"), mark(0)))
	f.Add(body(tree.Encode(), mark(2), []byte("bbb"), mark(0)))
	f.Fuzz(func(t *testing.T, b []byte) {
		br := bufio.NewReader(bytes.NewReader(b))
		tree, err := readTree(br, 1<<20, nil)
		if err != nil {
			return
		}
		r := newPackReader(br, tree, tree.contents(), 4)
		var got int64
		for r.more() {
			n, _ := io.Copy(io.Discard, r.pack())
			got += n
		}
		if err := r.finish(); err == nil && got != tree.Size() {
			t.Errorf("accepted with %d bytes of content, want %d", got, tree.Size())
		}
	})
}

func FuzzStored(f *testing.F) {
	s := &stored{tree: &Tree{Entries: []Entry{file("a", "aaa")}}, places: map[Sum]place{sumOf("aaa"): {0, 7}}}
	f.Add(s.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &stored{packs: []pack{{size: 10}, {size: 5}}}
		if s.decode(b) != nil {
			return
		}
		for _, i := range s.tree.contents() {
			e := s.tree.Entries[i]
			p, ok := s.places[e.Digest]
			if !ok || p.offset < 0 || p.offset+e.Size > s.packs[p.pack].size {
				t.Errorf("%q is accepted at %v", e.Path, p)
			}
		}
	})
}

func TestReuse(t *testing.T) {
	t.Parallel()
	// 40 packs of 10 bytes each hold one file of 6 and one of 4 bytes.
	old := &stored{places: map[Sum]place{}}
	var entries []Entry
	for i := range 40 {
		a, b := fmt.Sprintf("a%05d", i), fmt.Sprintf("b%03d", i)
		entries = append(entries, file(a, a), file(b, b))
		old.places[sumOf(a)], old.places[sumOf(b)] = place{i, 0}, place{i, 6}
		old.packs = append(old.packs, pack{size: 10})
	}
	next, missing := old.reuse(&Tree{Entries: entries})
	if len(next.packs) != keptPacks || len(missing) != 2*(40-keptPacks) {
		t.Errorf("40 packs become %d, %d contents are asked for again", len(next.packs), len(missing))
	}

	old.packs = old.packs[:10]
	next, missing = old.reuse(&Tree{Entries: []Entry{file("x", "a00001"), file("y", "b002"), file("z", "new")}})
	if len(next.packs) != 1 || len(missing) != 2 || next.places[sumOf("a00001")] != (place{0, 0}) {
		t.Errorf("a pack that is mostly dead was kept: %v, %v missing", next.packs, missing)
	}
}
