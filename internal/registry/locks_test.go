package registry_test

import (
	"errors"
	"net/http"
	"slices"
	"testing"

	"kiln/internal/registry"
	"kiln/internal/registrytest"
)

// lock sets locks and has them taken off when the function it returns is called.
func lock(t *testing.T, r *registrytest.Registry, repo, ref string, names ...string) (unlock func()) {
	t.Helper()
	got, err := r.Store.Lock(t.Context(), repo, ref, names, nil)
	if err != nil || !slices.Equal(got, names) {
		t.Fatalf("Lock = %q, %v", got, err)
	}
	return func() {
		t.Helper()
		if got, err := r.Store.Lock(t.Context(), repo, ref, nil, names); err != nil || len(got) != 0 {
			t.Fatalf("unlock: %q, %v", got, err)
		}
	}
}

func TestLocksOfATag(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	d := tagImage(t, r, "a", "t", "one")
	other := image(t, r, "a", "other")
	unlock := lock(t, r, "a", "t", "write")
	if _, b := want(t, r, http.StatusLocked, "PUT", "/v2/a/manifests/t", other, "Content-Type", ociManifest); code(t, b) != "DENIED" {
		t.Errorf("overwriting: %s", b)
	}
	want(t, r, http.StatusLocked, "DELETE", "/v2/a/manifests/t", nil)
	want(t, r, http.StatusLocked, "DELETE", "/v2/a/manifests/"+d, nil)
	if _, err := r.Store.Delete(t.Context(), "a", "", false); !errors.Is(err, registry.ErrLocked) {
		t.Errorf("deleting the repository: %v", err)
	}
	if _, err := r.Store.Delete(t.Context(), "a", "t", true); !errors.Is(err, registry.ErrLocked) {
		t.Errorf("dry run of deleting the manifest: %v", err)
	}
	want(t, r, http.StatusCreated, "PUT", "/v2/a/manifests/u", other, "Content-Type", ociManifest)
	unlock()
	unlock = lock(t, r, "a", "t", "delete")
	want(t, r, http.StatusCreated, "PUT", "/v2/a/manifests/t", other, "Content-Type", ociManifest)
	want(t, r, http.StatusLocked, "DELETE", "/v2/a/manifests/t", nil)
	unlock()
	unlock = lock(t, r, "a", "t", "read", "list")
	want(t, r, http.StatusLocked, "GET", "/v2/a/manifests/t", nil)
	want(t, r, http.StatusLocked, "HEAD", "/v2/a/manifests/t", nil)
	want(t, r, http.StatusOK, "GET", "/v2/a/manifests/"+d, nil)
	if got, err := r.Store.Tags(t.Context(), "a", "", 10); err != nil || !slices.Equal(got, []string{"u"}) {
		t.Errorf("Tags = %q, %v", got, err)
	}
	unlock()
	fetch(t, r, "a", "t")
}

func TestLocksOfARepository(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	d := tagImage(t, r, "a", "t", "one")
	m := fetchBody(t, r, "a", "t")
	tagImage(t, r, "b", "t", "two")
	staged := stage(t, r, staging, "three")
	raise(t, r.Store, 1)
	unlock := lock(t, r, "a", "", "write")
	want(t, r, http.StatusLocked, "PUT", "/v2/a/manifests/new", m, "Content-Type", ociManifest)
	want(t, r, http.StatusLocked, "DELETE", "/v2/a/manifests/t", nil)
	want(t, r, http.StatusLocked, "DELETE", "/v2/a/blobs/"+descriptors(t, m)[0].String(), nil)
	_, err := r.Store.Publish(t.Context(), publication(1, registry.Tag{Repository: "b", Tag: "n", Digest: staged}, registry.Tag{Repository: "a", Tag: "n", Digest: staged}))
	if !errors.Is(err, registry.ErrLocked) {
		t.Errorf("Publish: %v", err)
	}
	_, err = registry.NewClient(r.URL, nil).Publish(t.Context(), r.Token, publication(1, registry.Tag{Repository: "a", Tag: "n", Digest: staged}))
	if !errors.Is(err, registry.ErrLocked) {
		t.Errorf("Publish by the client: %v", err)
	}
	want(t, r, http.StatusNotFound, "GET", "/v2/b/manifests/n", nil)
	fetch(t, r, "a", "t")
	unlock()
	unlock = lock(t, r, "a", "", "read", "list")
	for _, path := range []string{"manifests/t", "manifests/" + d, "blobs/" + descriptors(t, m)[0].String(), "tags/list"} {
		want(t, r, http.StatusLocked, "GET", "/v2/a/"+path, nil)
	}
	want(t, r, http.StatusAccepted, "POST", "/v2/b/blobs/uploads/?from=a&mount="+descriptors(t, m)[0].String(), nil)
	if got, err := r.Store.Repositories(t.Context(), "", 10); err != nil || !slices.Equal(got, []string{"b"}) {
		t.Errorf("Repositories = %q, %v", got, err)
	}
	unlock()
	unlock = lock(t, r, "a", d, "delete")
	want(t, r, http.StatusLocked, "DELETE", "/v2/a/manifests/"+d, nil)
	unlock()
	want(t, r, http.StatusAccepted, "DELETE", "/v2/a/manifests/"+d, nil)
	for _, bad := range [][2]string{{"nothing", ""}, {"a", "nothing"}, {"kiln/contexts", ""}} {
		if _, err := r.Store.Lock(t.Context(), bad[0], bad[1], []string{"write"}, nil); err == nil {
			t.Errorf("Lock of %q was accepted", bad)
		}
	}
	if _, err := r.Store.Lock(t.Context(), "b", "", []string{"everything"}, nil); !errors.Is(err, registry.ErrInvalid) {
		t.Errorf("unknown lock: %v", err)
	}
}
