package main

import (
	"crypto/rand"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/validate"

	"kiln/internal/registrytest"
)

// TestServerKeepsBlobsInBucket builds an image whose layer is in a bucket, and loses the bucket for a while.
func TestServerKeepsBlobsInBucket(t *testing.T) {
	t.Parallel()
	b := registrytest.StartBucket(t)
	dir := t.TempDir()
	credentials := filepath.Join(dir, "credentials")
	noise := make([]byte, 300<<10)
	_, _ = rand.Read(noise) // never fails
	for path, content := range map[string][]byte{
		credentials: []byte("[default]\naws_access_key_id = " + registrytest.BucketKey + "\naws_secret_access_key = " + registrytest.BucketSecret + "\n"),
		filepath.Join(dir, "context", "Dockerfile"): []byte("FROM scratch\nCOPY noise /\n"),
		filepath.Join(dir, "context", "noise"):      noise,
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := startServer(t, "--blobs", b.Location, "--blobs-credentials", credentials)
	s.must("build", "-t", "app:1", filepath.Join(dir, "context"))
	img := s.image(s.host() + "/app:1")
	if err := validate.Image(img); err != nil {
		t.Error(err)
	}
	if len(b.Names(t)) == 0 {
		t.Error("nothing is in the bucket")
	}
	if out := s.must("fsck"); !strings.Contains(out, "all is well") {
		t.Error(out)
	}
	if out := s.must("doctor"); !strings.Contains(out, "storage of blobs: s3://blobs/team at http://127.0.0.1:") {
		t.Error(out)
	}
	b.Break(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) })
	if r := s.kiln("doctor"); r.code == 0 || !strings.Contains(r.out, "FAIL  storage of blobs: the storage of blobs is not available: s3://blobs/team at") {
		t.Errorf("doctor says %d\n%s", r.code, r.out)
	}
	if out := s.must("tag", "list", "app"); !strings.Contains(out, "1") {
		t.Error(out)
	}
	b.Break(nil)
	s.stop()
	if r := runKiln(t, nil, "serve", "--data", s.data, "--listen", "127.0.0.1:0"); r.code == 0 || !strings.Contains(r.err, "its blobs are in s3://blobs/team: say so with --blobs") {
		t.Errorf("without --blobs: %d\n%s", r.code, r.err)
	}
	for _, text := range []string{s.log.String()} {
		if strings.Contains(text, registrytest.BucketSecret) || strings.Contains(text, registrytest.BucketKey) {
			t.Error("the log has the credentials")
		}
	}
}

func TestBucketOfFlags(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	for _, c := range []struct {
		cfg  serveConfig
		want string
	}{
		{serveConfig{}, ""},
		{serveConfig{blobsCredentials: "file"}, "needs --blobs"},
		{serveConfig{blobs: "s3://images"}, "set AWS_ACCESS_KEY_ID"},
		{serveConfig{blobs: "s3://images", blobsCredentials: "/nowhere"}, "no such file"},
		{serveConfig{blobs: "s3://key:hidden@images"}, "credentials do not belong here"},
	} {
		b, err := c.cfg.bucket()
		got := ""
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, c.want) || (got == "") != (c.want == "") || b != nil || strings.Contains(got, "hidden") {
			t.Errorf("%+v: %v, %v, want %q", c.cfg, b, err, c.want)
		}
	}
	t.Setenv("AWS_ACCESS_KEY_ID", "key")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "hidden")
	cfg := serveConfig{blobs: "s3://images"}
	b, err := cfg.bucket()
	if err != nil {
		t.Fatal(err)
	}
	if c, err := b.Credentials(t.Context()); err != nil || c.AccessKey != "key" || c.SecretKey != "hidden" {
		t.Errorf("%#v, %v", c, err)
	}
}
