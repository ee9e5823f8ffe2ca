package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kiln/internal/api"
	"kiln/internal/apiclient"
	"kiln/internal/auth"
	"kiln/internal/registry"
	"kiln/internal/registrytest"
)

const manifestType = "application/vnd.oci.image.manifest.v1+json"

// A shelf is a registry with its API, and the commands that speak to it.
type shelf struct {
	*registrytest.Registry
	url, token string
}

func newShelf(t *testing.T) *shelf {
	t.Helper()
	dir := t.TempDir()
	keys, err := auth.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	token, err := os.ReadFile(filepath.Join(dir, auth.AdminTokenFile))
	if err != nil {
		t.Fatal(err)
	}
	s := &shelf{Registry: registrytest.Start(t), token: strings.TrimSpace(string(token))}
	server := &api.Server{Keys: keys, Registry: s.Store, Contexts: http.NotFoundHandler(), Log: slog.New(slog.DiscardHandler),
		Status: func(context.Context) apiclient.Status { return apiclient.Status{Registry: "reg.test:5000"} }}
	server.Collect = func(ctx context.Context, dryRun bool) (apiclient.Collected, error) {
		return s.Store.Collect(ctx, registry.Collection{DryRun: dryRun})
	}
	server.Purge = func(ctx context.Context, p apiclient.Purge) (apiclient.Purged, error) {
		return s.Store.Purge(ctx, p, nil)
	}
	srv := httptest.NewServer(server.Handler())
	t.Cleanup(srv.Close)
	s.url = srv.URL
	return s
}

func (s *shelf) kiln(t *testing.T, args ...string) result {
	t.Helper()
	return kiln(t.Context(), map[string]string{envServer: s.url, envToken: s.token, envData: os.DevNull}, args...)
}

// put stores an image of one layer under a tag and returns its digest.
func (s *shelf) put(t *testing.T, repo, tag, layer string) string {
	t.Helper()
	config, _, err := s.Store.PutBlob(t.Context(), repo, strings.NewReader(`{"os":"linux","architecture":"amd64"}`))
	if err != nil {
		t.Fatal(err)
	}
	blob, size, err := s.Store.PutBlob(t.Context(), repo, strings.NewReader(layer))
	if err != nil {
		t.Fatal(err)
	}
	d, err := s.Store.PutManifest(t.Context(), repo, tag, manifestType, fmt.Appendf(nil,
		`{"schemaVersion":2,"config":{"digest":%q,"size":37},"layers":[{"digest":%q,"size":%d}]}`, config, blob, size))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// shows runs a command that must succeed and checks that it prints the words.
func (s *shelf) shows(t *testing.T, words []string, args ...string) string {
	t.Helper()
	got := s.kiln(t, args...)
	if got.code != 0 {
		t.Fatalf("kiln %q = %+v", args, got)
	}
	for _, w := range words {
		if !strings.Contains(got.out, w) {
			t.Errorf("kiln %q does not say %q:\n%s", args, w, got.out)
		}
	}
	return got.out
}

func TestImagesAreListedAndShown(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	old := s.put(t, "team/app", "1", strings.Repeat("x", 2000))
	now := s.put(t, "team/app", "1", "y")
	s.put(t, "other", "1", "y")
	s.shows(t, []string{"team/app", "1 ", "2.0kB", "Stored in all: 2.0kB in 3 blobs"}, "repo", "list")
	s.shows(t, []string{"2, 1 of them untagged", "unique:    2.0kB", "shared:    38B"}, "repo", "show", "team/app")
	s.shows(t, []string{old, "<untagged>", "linux/amd64"}, "manifest", "list-metadata", "team/app")
	var list []apiclient.Manifest
	if err := json.Unmarshal([]byte(s.shows(t, []string{`"tags": []`}, "manifest", "list-metadata", "team/app", "--top", "1", "--orderby", "time_asc", "-o", "json")), &list); err != nil || len(list) != 1 || list[0].Digest != old {
		t.Errorf("list-metadata = %+v, %v", list, err)
	}
	s.shows(t, []string{now, "38B", "Deleting it frees:  0B"}, "manifest", "show", "reg.test:5000/team/app:1")
	s.shows(t, []string{now}, "tag", "list", "team/app")
	s.shows(t, []string{"Digest:   " + now, old}, "tag", "show", "team/app:1")
	s.shows(t, []string{old + ", was " + now}, "rollback", "team/app:1")
	for _, bad := range [][]string{{"repo", "show", "team/app:1"}, {"tag", "show", "team/app"}, {"tag", "show", "team/app@" + old}, {"manifest", "show", "team/app"},
		{"manifest", "show", "elsewhere:5000/team/app:1"}, {"repo", "show", "nothing"}, {"manifest", "show", "team/app:nothing"}, {"repo", "nothing"}} {
		if got := s.kiln(t, bad...); got.code != exitUsage || got.err == "" {
			t.Errorf("kiln %q = %+v", bad, got)
		}
	}
}

func TestDeletingAsksFirst(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	d := s.put(t, "app", "1", "one")
	s.put(t, "app", "2", "one")
	got := s.kiln(t, "manifest", "delete", "app:1")
	if got.code != exitUsage || !strings.Contains(got.out, "app@"+d+"\napp:1\napp:2\n1 manifest and 2 tags would be deleted, which frees 40B") ||
		!strings.Contains(got.err, "Try: kiln manifest delete --yes app:1") {
		t.Errorf("kiln manifest delete = %+v", got)
	}
	s.shows(t, []string{"would be deleted"}, "repo", "delete", "--dry-run", "app")
	s.shows(t, []string{"locked: write"}, "tag", "lock", "app:1")
	if got := s.kiln(t, "manifest", "delete", "--yes", "app:2"); got.code != exitUsage || !strings.Contains(got.err, `has the lock "write"`) {
		t.Errorf("deleting what is locked = %+v", got)
	}
	s.shows(t, []string{"app:1: not locked"}, "tag", "unlock", "app:1")
	s.shows(t, []string{"app:2 removed"}, "tag", "untag", "app:2")
	s.shows(t, []string{"1 manifest and 1 tag deleted"}, "manifest", "delete", "--yes", "app@"+d)
	if _, err := s.Store.Resolve(t.Context(), "app", d); err == nil {
		t.Error("the manifest is still there")
	}
}

func TestReferrersAreListed(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	d := s.put(t, "app", "1", "one")
	a := registry.Attachment{Type: "application/x-note", Content: []byte("note")}
	body, err := a.Manifest(registry.Descriptor{MediaType: manifestType, Digest: d, Size: 1}, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range [][]byte{[]byte("{}"), a.Content} {
		if _, _, err := s.Store.PutBlob(t.Context(), "app", bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
	}
	note, err := s.Store.PutManifest(t.Context(), "app", "", manifestType, body)
	if err != nil {
		t.Fatal(err)
	}
	s.shows(t, []string{note, "application/x-note"}, "manifest", "list-referrers", "app:1")
	if out := s.shows(t, nil, "manifest", "list-referrers", "app:1", "--artifact-type", "application/else", "-o", "json"); out != "[]\n" {
		t.Errorf("referrers of another type: %s", out)
	}
}

func TestPurgeCollectAndCheck(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	d := s.put(t, "app", "pr-1", "one")
	s.put(t, "app", "release", "two")
	s.shows(t, []string{"app:pr-1  (the tag alone)", "0 manifests and 1 tag would be deleted"}, "purge", "--filter", "app:^pr-", "--ago", "0d", "--dry-run")
	s.shows(t, []string{"0 manifests and 0 tags deleted"}, "purge", "--filter", "app:^pr-", "--ago", "1d3h6m")
	s.shows(t, []string{"app@" + d, "app:pr-1", "1 manifest and 1 tag deleted; collection frees 3B"}, "purge", "--filter", "app:^pr-", "--ago", "0s", "--untagged")
	s.shows(t, []string{"0B in 0 blobs would be freed"}, "gc", "--dry-run")
	s.shows(t, []string{"0B in 0 blobs freed; 0 staged manifests"}, "gc")
	s.shows(t, []string{"3 blobs and 1 manifest looked at", "all is well"}, "fsck")
	for _, bad := range [][]string{{"purge"}, {"purge", "--filter", "app"}, {"purge", "--filter", "app:("}, {"purge", "--filter", "a:b", "--ago", "soon"},
		{"serve", "--retention", "--filter app"}, {"serve", "--retention", "app:.*"}, {"serve", "--retention", "--nothing"}} {
		if got := s.kiln(t, bad...); got.code != exitUsage || got.err == "" {
			t.Errorf("kiln %q = %+v", bad, got)
		}
	}
}

func TestImportedName(t *testing.T) {
	t.Parallel()
	for source, want := range map[string]string{
		"alpine": "alpine:latest", "library/alpine:3": "library/alpine:3", "ghcr.io/a/b:1": "a/b:1", "localhost:5000/a": "a:latest",
		"ghcr.io/a/b@sha256:00": "a/b", "ghcr.io/a/b:1@sha256:00": "a/b",
	} {
		if got := importedName(source); got != want {
			t.Errorf("importedName(%q) = %q, want %q", source, got, want)
		}
	}
}
