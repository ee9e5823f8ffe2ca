package source

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"kiln/internal/apiclient"
)

func TestUploadSendsOnlyWhatChanged(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, map[string]string{"a": randomText(1, 2<<20), "b": randomText(2, 2<<20), "c/d": "small"})
	s := startServer(t)
	s.upload(t, dir)
	if n := s.received.Swap(0); n < 4<<20 {
		t.Errorf("the first upload is %d bytes, want all", n)
	}
	write(t, dir, map[string]string{"c/d": "changed", "e": randomText(3, 1000)})
	tree := s.upload(t, dir)
	if n := s.received.Swap(0); n > 8<<10 {
		t.Errorf("an upload of 1007 changed bytes is %d bytes", n)
	}
	dest := t.TempDir()
	if err := transfer(t.Context(), open(t, s.local(t), tree.ID()), dest); err != nil {
		t.Fatal(err)
	}
	if got := scan(t, dest, ScanOptions{}); got.ID() != tree.ID() {
		t.Error("the context is not the directory")
	}

	s.upload(t, dir)
	if n := s.received.Swap(0); n > 4<<10 {
		t.Errorf("an upload of nothing new is %d bytes", n)
	}
	if err := os.Chmod(filepath.Join(dir, "a"), 0o755); err != nil {
		t.Fatal(err)
	}
	tree = s.upload(t, dir)
	if n := s.received.Swap(0); n > 4<<10 {
		t.Errorf("an upload of a changed mode is %d bytes", n)
	}
	if has, err := s.contexts.Has(t.Context(), tree.ID()); !has || err != nil {
		t.Errorf("Has = %v, %v", has, err)
	}
}

func TestSmallUploadIsOneRequest(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, map[string]string{"Dockerfile": "FROM x"})
	s := startServer(t)
	if has, err := s.contexts.Has(t.Context(), scan(t, dir, ScanOptions{}).ID()); has || err != nil {
		t.Errorf("Has before = %v, %v", has, err)
	}
	tree := s.upload(t, dir)
	if n := s.requests.Load(); n != 1 {
		t.Errorf("%d requests, want 1", n)
	}
	if has, err := s.contexts.Has(t.Context(), tree.ID()); !has || err != nil {
		t.Errorf("Has after = %v, %v", has, err)
	}
}

func TestUploadOfNothing(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	tree := s.upload(t, t.TempDir())
	src := open(t, s.local(t), tree.ID())
	if err := src.Walk(t.Context(), "/", func(p string, _ fs.DirEntry, _ error) error {
		t.Errorf("found %q", p)
		return nil
	}); err != nil {
		t.Error(err)
	}
}

func TestUploadCompressed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, map[string]string{"log": strings.Repeat("the same line again\n", 1<<17)})
	s := startServer(t)
	tree := scan(t, dir, ScanOptions{})
	// The name is another machine's as far as Upload can tell.
	hc := &http.Client{Transport: redirect{strings.TrimPrefix(s.url, "http://")}}
	var done, total int64
	err := Upload(t.Context(), hc, "http://kiln.example/", "token", "k", tree, dir, func(d, n int64) { done, total = d, n })
	if err != nil {
		t.Fatal(err)
	}
	if n := s.received.Load(); n > 100<<10 {
		t.Errorf("2.5 MB of one line are %d bytes on the wire", n)
	}
	if size := tree.Size(); done != size || total != size {
		t.Errorf("progress ended at %d of %d, want %d", done, total, size)
	}
	b, err := open(t, s.local(t), tree.ID()).ReadFile(t.Context(), "log", 4<<20)
	if err != nil || len(b) != 20<<17 {
		t.Errorf("ReadFile = %d bytes, %v", len(b), err)
	}
}

type redirect struct{ host string }

func (r redirect) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.URL.Host = r.host
	return http.DefaultTransport.RoundTrip(req)
}

func TestUploadOfAFileThatChanged(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	for name, change := range map[string]func(string) error{
		"content":  func(p string) error { return os.WriteFile(p, bytes.Repeat([]byte("y"), 2<<20), 0o644) },
		"shorter":  func(p string) error { return os.Truncate(p, 10) },
		"longer":   func(p string) error { return os.Truncate(p, 3<<20) },
		"gone":     os.Remove,
		"replaced": func(p string) error { return errors.Join(os.Remove(p), os.Symlink("/etc/passwd", p)) },
	} {
		dir := t.TempDir()
		p := filepath.Join(dir, "file")
		write(t, dir, map[string]string{"file": strings.Repeat("x", 2<<20)})
		tree := scan(t, dir, ScanOptions{})
		if err := change(p); err != nil {
			t.Fatal(err)
		}
		err := Upload(t.Context(), http.DefaultClient, s.url, "", "k", tree, dir, nil)
		if !errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), "file") {
			t.Errorf("%s: %v, want ErrChanged that names the file", name, err)
		}
		if has, err := s.contexts.Has(t.Context(), tree.ID()); has || err != nil {
			t.Errorf("%s: Has = %v, %v", name, has, err)
		}
	}
}

func TestUploadWithoutAServer(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.NotFoundHandler())
	dir := t.TempDir()
	write(t, dir, map[string]string{"file": "x"})
	tree := scan(t, dir, ScanOptions{})
	err := Upload(t.Context(), http.DefaultClient, srv.URL, "", "k", tree, dir, nil)
	if e, ok := errors.AsType[*apiclient.Error](err); !ok || e.Status != http.StatusNotFound {
		t.Errorf("a server that is not kiln: %v", err)
	}
	srv.Close()
	err = Upload(t.Context(), http.DefaultClient, srv.URL, "", "k", tree, dir, nil)
	if !errors.Is(err, apiclient.ErrUnreachable) {
		t.Errorf("no server: %v", err)
	}
}

// body builds an upload by hand.
func body(tree []byte, parts ...[]byte) []byte {
	b := binary.AppendUvarint([]byte(frameMagic), uint64(len(tree)))
	b = append(b, tree...)
	return append(b, bytes.Join(parts, nil)...)
}

func mark(i uint64) []byte { return binary.AppendUvarint(nil, i) }

func compressed(b []byte) []byte {
	w, err := zstd.NewWriter(nil)
	if err != nil {
		panic(err)
	}
	return w.EncodeAll(b, nil)
}

// file is a valid entry.
func file(p, content string) Entry {
	return Entry{Path: p, Mode: 0o644, Size: int64(len(content)), ModTime: time.Unix(1, 0), Digest: sumOf(content)}
}

func TestHostileUploadsAreRefused(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	s.contexts.Limits = Limits{Content: 1 << 20, Tree: 64 << 10}
	good := &Tree{Entries: []Entry{file("a", "aaa"), file("b", "bbb")}}
	enc := good.Encode()
	a, b := append(mark(1), "aaa"...), append(mark(2), "bbb"...)
	end := mark(0)
	with := func(entries ...Entry) *Tree { return &Tree{Entries: entries} }
	huge := file("huge", "x")
	huge.Size = 1 << 40
	twoSizes := with(file("a", "aaa"), file("b", "aaa"))
	twoSizes.Entries[1].Size = 4
	bomb := file("bomb", "x")
	bomb.Size = 1 << 20

	tests := []struct {
		name     string
		tree     *Tree // nil means good
		body     []byte
		encoding string
		base     string
		status   int
		message  string
	}{
		{name: "wrong digest", body: body(enc, a, append(mark(2), "bbX"...), end), status: 422, message: `"b": content is sha256:`},
		{name: "wrong id", tree: with(file("z", "z")), body: body(enc, a, b, end), status: 422, message: "has the ID " + good.ID()},
		{name: "empty", body: nil, status: 422, message: "ends too early"},
		{name: "not an upload", body: []byte("PK\x03\x04 something else"), status: 422, message: "not a kiln upload"},
		{name: "truncated tree", body: body(enc)[:40], status: 422, message: "ends too early"},
		{name: "truncated content", body: body(enc, a, b[:3]), status: 422, message: "ends too early"},
		{name: "no end", body: body(enc, a, b), status: 422, message: "ends too early"},
		{name: "missing content", body: body(enc, a, end), status: 422, message: `"b": its content was not sent`},
		{name: "nothing sent", body: body(enc, end), status: 422, message: "its content was not sent"},
		{name: "more than asked", body: body(enc, a, a, b, end), status: 422, message: "wrong order"},
		{name: "wrong order", body: body(enc, b, a, end), status: 422, message: "wrong order"},
		{name: "unknown entry", body: body(enc, a, b, mark(9), end), status: 422, message: "unknown file"},
		{name: "overflow", body: body(enc, mark(1<<63)), status: 422, message: "unknown file"},
		{name: "trailing", body: body(enc, a, b, end, []byte("more")), status: 422, message: "bytes follow"},
		{name: "huge tree length", body: append(binary.AppendUvarint([]byte(frameMagic), 1<<62), enc...), status: 413, message: "list of files"},
		{name: "huge count", body: body(binary.AppendUvarint([]byte(treeMagic), 1<<40)), status: 422, message: "at most 1000000"},
		{name: "count without entries", body: body(binary.AppendUvarint([]byte(treeMagic), 999_999)), status: 422, message: "ends too early"},
		{name: "huge content", tree: with(huge), body: body(with(huge).Encode(), mark(1)), status: 413, message: "context: 1099511627776 bytes"},
		{name: "bomb in the content", tree: with(bomb), encoding: "zstd", body: compressed(body(with(bomb).Encode(), mark(1), make([]byte, 64<<20))), status: 422, message: `"bomb": content is`},
		{name: "bomb in the tree", encoding: "zstd", body: compressed(body(make([]byte, 64<<20))), status: 413, message: "list of files"},
		{name: "bomb behind the end", encoding: "zstd", body: compressed(body(enc, a, b, end, make([]byte, 64<<20))), status: 422, message: "bytes follow"},
		{name: "broken zstd", encoding: "zstd", body: compressed(body(enc, a, b, end))[:30], status: 422, message: "upload: "},
		{name: "broken gzip", encoding: "gzip", body: []byte("no"), status: 422, message: "upload: "},
		{name: "unknown encoding", encoding: "br", body: body(enc, a, b, end), status: 422, message: `content encoding "br"`},
		{name: "two sizes", tree: twoSizes, body: body(twoSizes.Encode(), a, end), status: 422, message: "two sizes"},
		{name: "traversal", tree: with(file("../a", "aaa")), body: body(with(file("../a", "aaa")).Encode(), a, end), status: 422, message: `"../a": path has an element ".."`},
		{name: "absolute", tree: with(file("/a", "aaa")), body: body(with(file("/a", "aaa")).Encode(), a, end), status: 422, message: "absolute path"},
		{name: "base that is gone", base: strings.Repeat("0", 64), body: body(enc, end), status: 409, message: "is gone"},
		{name: "base that is no id", base: "latest", body: body(enc, end), status: 422, message: "base"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tree := tt.tree
			if tree == nil {
				tree = good
			}
			addr := s.url + apiclient.PathContexts + "/" + tree.ID() + "?key=k&base=" + tt.base
			status, e := request(t, http.MethodPut, addr, tt.encoding, tt.body)
			if status != tt.status || !strings.Contains(e.Message, tt.message) || e.Code == "" {
				t.Errorf("status %d, %+v; want %d and %q", status, e, tt.status, tt.message)
			}
			if has, err := s.contexts.Has(t.Context(), tree.ID()); has || err != nil {
				t.Errorf("Has = %v, %v", has, err)
			}
		})
	}
}

// request sends a body and returns the status and the error in the answer.
func request(t *testing.T, method, addr, encoding string, b []byte) (int, apiclient.Error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, addr, bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if encoding != "" {
		req.Header.Set("Content-Encoding", encoding)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var wrapped struct{ Error apiclient.Error }
	if err := json.Unmarshal(answer, &wrapped); err != nil {
		t.Fatalf("answer %q: %v", answer, err)
	}
	return resp.StatusCode, wrapped.Error
}

func TestHostileQuestionsAreRefused(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	enc := (&Tree{Entries: []Entry{file("a", "aaa")}}).Encode()
	for name, tt := range map[string]struct {
		query  string
		body   []byte
		status int
	}{
		"no key":      {"", body(enc), 422},
		"long key":    {"?key=" + strings.Repeat("k", 300), body(enc), 422},
		"empty":       {"?key=k", nil, 422},
		"with more":   {"?key=k", body(enc, []byte("x")), 422},
		"not a tree":  {"?key=k", body([]byte("x")), 422},
		"long number": {"?key=k", append([]byte(frameMagic), bytes.Repeat([]byte{0xff}, 20)...), 422},
	} {
		if status, e := request(t, http.MethodPost, s.url+apiclient.PathContexts+tt.query, "", tt.body); status != tt.status {
			t.Errorf("%s: status %d, %+v; want %d", name, status, e, tt.status)
		}
	}
}

func TestOtherRequestsAreNotFound(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	for _, r := range []struct{ method, path string }{
		{"PUT", ""}, {"PUT", "x"}, {"POST", "/" + strings.Repeat("0", 64)}, {"POST", "x"}, {"DELETE", "/x"}, {"GET", ""},
	} {
		if status, e := request(t, r.method, s.url+apiclient.PathContexts+r.path+"?key=k", "", nil); status != http.StatusNotFound || e.Code != apiclient.CodeNotFound {
			t.Errorf("%s %s: status %d, %+v", r.method, r.path, status, e)
		}
	}
}

func TestGoodUploadByHandIsAccepted(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	tree := &Tree{Entries: []Entry{file("a", "aaa"), file("b", "bbb"), file("c", "aaa")}}
	b := body(tree.Encode(), mark(1), []byte("aaa"), mark(2), []byte("bbb"), mark(0))
	for _, encoding := range []string{"", "zstd"} {
		sent := b
		if encoding == "zstd" {
			sent = compressed(b)
		}
		if status, e := request(t, http.MethodPut, s.url+apiclient.PathContexts+"/"+tree.ID()+"?key=k", encoding, sent); status != http.StatusCreated {
			t.Errorf("%q: status %d, %+v", encoding, status, e)
		}
	}
	src := open(t, s.local(t), tree.ID())
	for p, want := range map[string]string{"a": "aaa", "b": "bbb", "c": "aaa"} {
		if got, err := src.ReadFile(t.Context(), p, 10); err != nil || string(got) != want {
			t.Errorf("ReadFile(%q) = %q, %v", p, got, err)
		}
	}
}

// A short request may hold a very long list of files, and many may come at once.
func TestLongListsOfFilesAreBoundedTogether(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	ask := func(announced uint64) (int, string) {
		t.Helper()
		head := binary.AppendUvarint([]byte(frameMagic), announced)
		resp, err := http.Post(s.url+apiclient.PathContexts+"?key=k", "", bytes.NewReader(head))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	others := &hold{all: &s.contexts.held}
	if err := others.take(maxHeld - shortList); err != nil {
		t.Fatal(err)
	}
	if status, b := ask(4 << 20); status != http.StatusServiceUnavailable || !strings.Contains(b, apiclient.CodeUnavailable) {
		t.Errorf("beyond the bound: %d %s", status, b)
	}
	dir := t.TempDir()
	write(t, dir, map[string]string{"a": "short"})
	s.upload(t, dir)
	others.release()
	if status, b := ask(4 << 20); status != http.StatusUnprocessableEntity { // it ends early
		t.Errorf("when there is room again: %d %s", status, b)
	}
	if n := s.contexts.held.Load(); n != 0 {
		t.Errorf("%d bytes are held after all requests", n)
	}
}
