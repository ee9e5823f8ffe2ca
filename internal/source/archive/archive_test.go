package archive_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"kiln/internal/source/archive"
)

var then = time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)

// An entry is one of a tarball: a file if it has no type.
type entry struct {
	name, text, link string
	kind             byte
	mode             int64
}

func tarball(t *testing.T, compress bool, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	var w io.Writer = &b
	z := gzip.NewWriter(&b)
	if compress {
		w = z
	}
	tw := tar.NewWriter(w)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Linkname: e.link, Mode: e.mode, Size: int64(len(e.text)), ModTime: then}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write([]byte(e.text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	if compress {
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func fetcher(t *testing.T) (*archive.Fetcher, string) {
	t.Helper()
	dir := t.TempDir()
	f, err := archive.New(archive.Config{Dir: dir, Dial: (&net.Dialer{}).DialContext, PlainHTTP: func(a string) bool { return strings.HasPrefix(a, "127.0.0.1") }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f, dir
}

// serve answers every request with the body.
func serve(t *testing.T, body []byte) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) }))
	t.Cleanup(s.Close)
	return s.URL
}

// tree returns what a source has below target: mode and content or target of a link by path.
func tree(t *testing.T, s *archive.Source, target string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := s.Walk(t.Context(), target, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		all[p] = info.Mode().String()
		if info.Mode().IsRegular() {
			b, err := s.ReadFile(t.Context(), p, 1<<20)
			if err != nil {
				return err
			}
			r, err := s.Open(p)
			if err != nil {
				return err
			}
			defer r.Close()
			if again, err := io.ReadAll(r); err != nil || !bytes.Equal(again, b) {
				return fmt.Errorf("%s is read as %q and %q, %v", p, b, again, err)
			}
			all[p] += " " + string(b)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestTarballsAreUnpacked(t *testing.T) {
	t.Parallel()
	f, _ := fetcher(t)
	entries := []entry{{name: "./", kind: tar.TypeDir}, {name: "./Dockerfile", text: "FROM scratch\n"}, {name: "dir/", kind: tar.TypeDir, mode: 0o755},
		{name: "dir/run", text: "x", mode: 0o755}, {name: "new/deep/file", text: "y"}, {name: "link", kind: tar.TypeSymlink, link: "../../etc/passwd"},
		{name: "dir/hard", kind: tar.TypeLink, link: "dir/run"}, {name: "null", kind: tar.TypeChar}, {name: "/abs", text: "z"}, {name: "Dockerfile", text: "FROM last\n"}}
	want := map[string]string{"Dockerfile": "-rw-r--r-- FROM last\n", "abs": "-rw-r--r-- z", "dir": "drwxr-xr-x", "dir/run": "-rwxr-xr-x x", "dir/hard": "-rwxr-xr-x x",
		"new": "drwxr-xr-x", "new/deep": "drwxr-xr-x", "new/deep/file": "-rw-r--r-- y", "link": "Lrwxrwxrwx"}
	identities := map[string]bool{}
	for _, compress := range []bool{false, true} {
		body := tarball(t, compress, entries...)
		for range 2 {
			s, err := f.Open(t.Context(), serve(t, body)+"/context.tar.gz", "")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, tree(t, s, "")); diff != "" {
				t.Error(diff)
			}
			if w := s.Warnings(); len(w) != 1 || !strings.Contains(w[0], "1 devices") {
				t.Errorf("warnings are %q", w)
			}
			identities[s.Identity()] = true
		}
	}
	if len(identities) != 2 {
		t.Errorf("two archives have %d identities", len(identities))
	}
}

func TestNothingOutsideIsWrittenOrRead(t *testing.T) {
	t.Parallel()
	f, dir := fetcher(t)
	outside := t.TempDir()
	if err := os.WriteFile(outside+"/secret", []byte("hunter22"), 0o600); err != nil {
		t.Fatal(err)
	}
	for what, entries := range map[string][]entry{
		"parent":            {{name: "../evil", text: "x"}},
		"parent inside":     {{name: "a/../../evil", text: "x"}},
		"through a link":    {{name: "l", kind: tar.TypeSymlink, link: outside}, {name: "l/evil", text: "x"}},
		"through two links": {{name: "a", kind: tar.TypeSymlink, link: "b"}, {name: "b", kind: tar.TypeSymlink, link: outside}, {name: "a/evil", text: "x"}},
		"hard link":         {{name: "l", kind: tar.TypeLink, link: "../../../../../../../../.." + outside + "/secret"}},
		"hard link by link": {{name: "d", kind: tar.TypeSymlink, link: outside}, {name: "l", kind: tar.TypeLink, link: "d/secret"}},
		"directory by link": {{name: "d", kind: tar.TypeSymlink, link: outside}, {name: "d/sub/", kind: tar.TypeDir}},
		"truncated":         nil,
	} {
		body := []byte("nothing like a tarball")
		if entries != nil {
			body = tarball(t, true, entries...)
		}
		if _, err := f.Open(t.Context(), serve(t, body), ""); err == nil {
			t.Errorf("%s: the archive is accepted", what)
		}
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) != 1 {
		t.Errorf("outside are now %v, %v", left, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("refused archives have left %v, %v", left, err)
	}
	s, err := f.Open(t.Context(), serve(t, tarball(t, false, entry{name: "d", kind: tar.TypeSymlink, link: outside}, entry{name: "f", kind: tar.TypeSymlink, link: outside + "/secret"})), "")
	if err != nil {
		t.Fatal(err)
	}
	if got := tree(t, s, "d/secret"); len(got) != 0 {
		t.Errorf("behind a link are %v", got)
	}
	for _, name := range []string{"d/secret", "f", "../secret"} {
		if b, err := s.ReadFile(t.Context(), name, 100); err == nil {
			t.Errorf("ReadFile(%s) = %q", name, b)
		}
		if r, err := s.Open(name); err == nil {
			if b, err := io.ReadAll(r); err == nil {
				t.Errorf("Open(%s) = %q", name, b)
			}
			r.Close()
		}
	}
	guarded, stop := s.Guard(t.Context())
	defer stop()
	<-guarded.Done()
	if cause := context.Cause(guarded); !errors.Is(cause, fs.ErrNotExist) {
		t.Errorf("the build is ended by %v", cause)
	}
}

func TestSourcesEndWithTheirContext(t *testing.T) {
	t.Parallel()
	f, dir := fetcher(t)
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := f.Open(ctx, serve(t, tarball(t, true, entry{name: "a"})), ""); err != nil {
		t.Fatal(err)
	}
	cancel()
	for deadline := time.Now().Add(time.Minute); ; {
		left, err := os.ReadDir(dir)
		if err == nil && len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v is still there, %v", left, err)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func TestCredentialsAreForTheirOriginAlone(t *testing.T) {
	t.Parallel()
	f, _ := fetcher(t)
	body := tarball(t, true, entry{name: "a"})
	var seen []string
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = append(seen, r.Header.Get("Authorization"))
		_, _ = w.Write(body)
	}))
	t.Cleanup(other.Close)
	first := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = append(seen, r.Header.Get("Authorization"))
		http.Redirect(w, r, other.URL, http.StatusFound)
	}))
	t.Cleanup(first.Close)
	for _, secret := range []string{"token", "ada:pass", ""} {
		if _, err := f.Open(t.Context(), first.URL+"/x?sig=hunter22", secret); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]string{"Bearer token", "", "Basic YWRhOnBhc3M=", "", "", ""}, seen); diff != "" {
		t.Error(diff)
	}
	first.Close()
	if _, err := f.Open(t.Context(), first.URL+"/x?sig=hunter22", "secret-token"); err == nil || strings.Contains(err.Error(), "hunter22") || strings.Contains(err.Error(), "secret-token") {
		t.Errorf("a server that is gone: %v", err)
	}
	for _, u := range []string{"http://localhost:1/x", "ftp://127.0.0.1/x", "https://me:hunter22@127.0.0.1/x", "x"} {
		if _, err := f.Open(t.Context(), u, ""); !errors.Is(err, archive.ErrRefused) || strings.Contains(err.Error(), "hunter22") {
			t.Errorf("Open(%s) = %v, want it refused", u, err)
		}
	}
}

func TestArtifactsAreUnpacked(t *testing.T) {
	t.Parallel()
	f, _ := fetcher(t)
	srv := httptest.NewServer(ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(srv.Close)
	ref, err := name.ParseReference(strings.TrimPrefix(srv.URL, "http://") + "/contexts/app:1")
	if err != nil {
		t.Fatal(err)
	}
	layer := func(body []byte, kind types.MediaType, title string) mutate.Addendum {
		a := mutate.Addendum{Layer: static.NewLayer(body, kind), MediaType: kind}
		if title != "" {
			a.Annotations = map[string]string{"org.opencontainers.image.title": title}
		}
		return a
	}
	image, err := mutate.Append(empty.Image,
		layer(tarball(t, true, entry{name: "Dockerfile", text: "FROM scratch\n"}, entry{name: "a", text: "1"}), types.OCILayer, ""),
		layer(tarball(t, false, entry{name: "a", text: "2"}), types.OCIUncompressedLayer, "dir"),
		layer([]byte("text"), "text/plain", "docs/readme"))
	if err == nil {
		err = remote.Write(ref, image)
	}
	if err != nil {
		t.Fatal(err)
	}
	s, err := f.OpenArtifact(t.Context(), archive.Artifact{Reference: ref.String()})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"Dockerfile": "-rw-r--r-- FROM scratch\n", "a": "-rw-r--r-- 2", "docs": "drwxr-xr-x", "docs/readme": "-rw-r--r-- text"}
	if diff := cmp.Diff(want, tree(t, s, "")); diff != "" {
		t.Error(diff)
	}
	for _, r := range []string{ref.Context().String() + ":none", "not a reference", "localhost:1/x:1"} {
		if _, err := f.OpenArtifact(t.Context(), archive.Artifact{Reference: r}); err == nil || !strings.Contains(err.Error(), r) {
			t.Errorf("OpenArtifact(%s) = %v", r, err)
		}
	}
}
