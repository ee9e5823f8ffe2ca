package registry_test

import (
	"bytes"
	"database/sql"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"kiln/internal/registry"
	"kiln/internal/registrytest"
)

func openStore(t testing.TB, dir string) *registry.Store {
	t.Helper()
	s, err := registry.Open(dir, registry.Options{Reserve: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestSecondOpenerIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openStore(t, dir)
	if _, err := registry.Open(dir, registry.Options{}); !errors.Is(err, registry.ErrInUse) || !strings.Contains(err.Error(), dir) {
		t.Fatalf("second Open: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if openStore(t, dir).UUID() != s.UUID() {
		t.Error("the store has another UUID after reopening")
	}
}

func TestNewerSchemaIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := openStore(t, dir).Close(); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", filepath.Join(dir, "registry.db"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(`PRAGMA user_version = 1000`); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := registry.Open(dir, registry.Options{}); err == nil || !strings.Contains(err.Error(), "1000") {
		t.Fatalf("Open: %v", err)
	}
}

func TestDirectoryNameMayHoldAnything(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a b?c#d%20e")
	if err := openStore(t, dir).Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "registry.db")); err != nil {
		t.Fatal(err)
	}
}

func TestGoInterface(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	ctx := t.Context()
	for _, n := range []int{0, 5, 64 << 10, 64<<10 + 1, 1 << 20} {
		content := bytes.Repeat([]byte("x"), n)
		d, size, err := s.PutBlob(ctx, "kiln/contexts", bytes.NewReader(content))
		if err != nil || size != int64(n) || d != digest.FromBytes(content).String() {
			t.Fatalf("PutBlob of %d bytes: %s, %d, %v", n, d, size, err)
		}
		rc, size, err := s.BlobReader(ctx, "kiln/contexts", d)
		if err != nil || size != int64(n) {
			t.Fatalf("BlobReader: %d, %v", size, err)
		}
		got, err := io.ReadAll(rc)
		if err := errors.Join(err, rc.Close()); err != nil || !bytes.Equal(got, content) {
			t.Fatalf("read %d of %d bytes: %v", len(got), n, err)
		}
		if _, _, err := s.BlobReader(ctx, "elsewhere", d); !errors.Is(err, registry.ErrBlobUnknown) {
			t.Errorf("blob of another repository: %v", err)
		}
	}
	body := []byte(`{"schemaVersion":2,"manifests":[]}`)
	d, err := s.PutManifest(ctx, "a/b", "1", ociIndex, body)
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"1", d} {
		m, err := s.Manifest(ctx, "a/b", ref)
		if err != nil || m.Digest != d || !bytes.Equal(m.Body, body) || m.MediaType != ociIndex || time.Since(m.Pushed) > time.Minute {
			t.Errorf("Manifest(%s) = %+v, %v", ref, m, err)
		}
	}
	if _, err := s.PutManifest(ctx, "A", "", ociIndex, body); err == nil {
		t.Error("an upper-case repository was accepted")
	}
	if err := s.DeleteTag(ctx, "a/b", "2"); !errors.Is(err, registry.ErrManifestUnknown) {
		t.Errorf("DeleteTag of nothing: %v", err)
	}
}

func TestClosedStoreSaysSo(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	if _, err := s.PutManifest(t.Context(), "a", "1", ociIndex, []byte(`{"schemaVersion":2,"manifests":[]}`)); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Resolve(t.Context(), "a", "1"); !errors.Is(err, registry.ErrClosed) {
		t.Errorf("Resolve: %v", err)
	}
	if err := s.RaiseFence(t.Context(), "r1", 1); !errors.Is(err, registry.ErrClosed) {
		t.Errorf("RaiseFence: %v", err)
	}
	if err := s.Relay(t.Context(), nil); !errors.Is(err, registry.ErrClosed) {
		t.Errorf("Relay: %v", err)
	}
}

// files counts the files below a directory.
func files(t testing.TB, dir string) (n int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			n++
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestNoFilesAreLeftBehind(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	big := bytes.Repeat([]byte("x"), 200_000)
	d := digest.FromBytes(big).String()
	uploads, blobs := filepath.Join(r.Dir, "uploads"), filepath.Join(r.Dir, "blobs")
	for range 3 { // the same content: one file
		putBlob(t, r, "a", big)
	}
	loc := beginUpload(t, r, "a")
	want(t, r, 202, "PATCH", loc, big)
	if n := files(t, uploads); n != 1 {
		t.Errorf("%d files of an upload in progress", n)
	}
	want(t, r, 204, "DELETE", loc, nil)
	want(t, r, 400, "PUT", beginUpload(t, r, "a")+"?digest="+d, append(big, 'y'))
	if n := files(t, uploads); n != 0 {
		t.Errorf("%d files of uploads are left", n)
	}
	if n := files(t, blobs); n != 1 {
		t.Errorf("%d files of one blob", n)
	}
}

func TestIdleUploadsAreDropped(t *testing.T) {
	t.Parallel()
	r := registrytest.StartWith(t, registry.Options{Reserve: -1, UploadAge: 50 * time.Millisecond})
	loc := beginUpload(t, r, "a")
	want(t, r, 202, "PATCH", loc, bytes.Repeat([]byte("x"), 200_000))
	deadline := time.After(time.Minute)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for files(t, filepath.Join(r.Dir, "uploads")) > 0 {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("the upload is still there")
		}
	}
	want(t, r, 404, "PATCH", loc, []byte("y"))
}

func TestStartSweepsUploads(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openStore(t, dir)
	kept, _, err := s.PutBlob(t.Context(), "a", bytes.NewReader(make([]byte, 200_000)))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// What a crash leaves between the link of a file and its row, and after the row.
	orphan := strings.Repeat("ab", 16)
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "ab"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"uploads/" + orphan, "blobs/ab/" + orphan} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	owned, err := filepath.Glob(filepath.Join(dir, "blobs", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range owned {
		if filepath.Base(f) != orphan {
			if err := os.Link(f, filepath.Join(dir, "uploads", filepath.Base(f))); err != nil {
				t.Fatal(err)
			}
		}
	}
	s = openStore(t, dir)
	if n := files(t, filepath.Join(dir, "uploads")); n != 0 {
		t.Errorf("%d files of uploads are left", n)
	}
	if n := files(t, filepath.Join(dir, "blobs")); n != 1 {
		t.Errorf("%d files of blobs, want 1", n)
	}
	rc, _, err := s.BlobReader(t.Context(), "a", kept)
	if err != nil {
		t.Fatal(err)
	}
	if err := rc.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestLookingAtABlobRenewsItsLease(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	d := putBlob(t, r, "a", []byte("x"))
	db, err := sql.Open("sqlite", filepath.Join(r.Dir, "registry.db"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(`UPDATE repo_blob SET touched = 0`); err != nil {
		t.Fatal(err)
	}
	want(t, r, 200, "HEAD", "/v2/a/blobs/"+d, nil)
	var touched int64
	err = db.QueryRow(`SELECT touched FROM repo_blob`).Scan(&touched)
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	if time.Since(time.UnixMilli(touched)) > time.Minute {
		t.Errorf("the lease is of %v", time.UnixMilli(touched))
	}
}
