package registry_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"

	"kiln/internal/registry"
	"kiln/internal/registrytest"
)

// smallDisk serves a registry from a file system of 24 MiB.
func smallDisk(t *testing.T, opt registry.Options) *registrytest.Registry {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=24m"); err != nil {
		t.Fatalf("mount a small tmpfs (the test needs root): %v", err)
	}
	s, err := registry.Open(dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(s.Handler(registrytest.Authorizer{}))
	t.Cleanup(func() {
		srv.Close()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return &registrytest.Registry{Store: s, URL: srv.URL, Token: registrytest.Token, Dir: dir}
}

func free(t *testing.T, dir string) int64 {
	t.Helper()
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}

// sendStream uploads n bytes without saying how many they are, and returns the status and body.
func sendStream(t *testing.T, r *registrytest.Registry, n int64) (int, []byte) {
	t.Helper()
	res, b := call(t, r, "POST", "/v2/a/blobs/uploads/", nil)
	if res.StatusCode != http.StatusAccepted {
		return res.StatusCode, b
	}
	req, err := http.NewRequestWithContext(t.Context(), "PATCH", r.URL+res.Header.Get("Location"), io.LimitReader(zeros{}, n))
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("test", r.Token)
	// Reads the answer even though the server stops taking the body.
	res, err = http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	b, err = io.ReadAll(res.Body)
	if err := errors.Join(err, res.Body.Close()); err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, b
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestFullDiskRefusesUploadsAndGivesTheirSpaceBack(t *testing.T) {
	for name, reserve := range map[string]int64{"reserve": 8 << 20, "no reserve": -1} {
		t.Run(name, func(t *testing.T) {
			r := smallDisk(t, registry.Options{Reserve: reserve})
			tinyPush(t, r, "a", "1", []byte("layer"))
			m := image(t, r, "a", "layer two")
			before := free(t, r.Dir)
			if reserve > 0 {
				big := make([]byte, 20<<20)
				d := digest.FromBytes(big).String()
				if _, b := want(t, r, 507, "PUT", beginUpload(t, r, "a")+"?digest="+d, big); code(t, b) != "INSUFFICIENT_STORAGE" {
					t.Errorf("blob that does not fit: %s", b)
				}
			}
			status, b := sendStream(t, r, 30<<20)
			if status != http.StatusInsufficientStorage || code(t, b) != "INSUFFICIENT_STORAGE" || !bytes.Contains(b, []byte("disk full")) || bytes.Contains(b, []byte(r.Dir)) {
				t.Errorf("stream that does not fit: %d %s", status, b)
			}
			if after := free(t, r.Dir); before-after > 1<<20 {
				t.Errorf("%d bytes were free, %d are now", before, after)
			}
			fetch(t, r, "a", "1")
			want(t, r, http.StatusCreated, "PUT", "/v2/a/manifests/2", m, "Content-Type", ociManifest)
			if status, b := sendStream(t, r, 1<<20); status != http.StatusAccepted {
				t.Errorf("stream that fits: %d %s", status, b)
			}
		})
	}
}

func TestFullDiskRefusesMetadataAndRecovers(t *testing.T) {
	r := smallDisk(t, registry.Options{Reserve: -1})
	tinyPush(t, r, "a", "1", []byte("layer"))
	m := image(t, r, "a", "layer two")
	d := stage(t, r, staging, "staged")
	raise(t, r.Store, 1)
	filler := filepath.Join(r.Dir, "filler")
	f, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(f, zeros{}); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("filling the disk: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	// The log has room inside of pages it already has, so the first writes may succeed.
	p := publication(1, registry.Tag{Repository: "b", Tag: "latest", Digest: d})
	full := false
	for i := 0; i < 200 && !full; i++ {
		res, b := call(t, r, "PUT", "/v2/a/manifests/"+string(rune('a'+i%26))+string(rune('a'+i/26)), m, "Content-Type", ociManifest)
		if full = res.StatusCode == http.StatusInsufficientStorage; full && code(t, b) != "INSUFFICIENT_STORAGE" {
			t.Errorf("manifest: %s", b)
		}
	}
	if !full {
		t.Fatal("200 manifests were accepted by a full disk")
	}
	if _, err := r.Store.Publish(t.Context(), p); !errors.Is(err, registry.ErrDiskFull) {
		t.Errorf("Publish: %v", err)
	}
	fetch(t, r, "a", "1")
	want(t, r, http.StatusNotFound, "HEAD", "/v2/b/manifests/latest", nil)
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Store.Publish(t.Context(), p); err != nil {
		t.Errorf("Publish after space came back: %v", err)
	}
	fetch(t, r, "b", "latest")
	tinyPush(t, r, "a", "3", []byte("layer three"))
}
