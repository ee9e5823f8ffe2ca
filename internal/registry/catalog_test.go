package registry_test

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/opencontainers/go-digest"

	"kiln/internal/apiclient"
	"kiln/internal/registry"
	"kiln/internal/registrytest"
)

// tagImage pushes an image of one layer under a tag and returns its digest.
func tagImage(t testing.TB, r *registrytest.Registry, repo, tag, layer string) string {
	t.Helper()
	m := image(t, r, repo, layer)
	want(t, r, http.StatusCreated, "PUT", "/v2/"+repo+"/manifests/"+tag, m, "Content-Type", ociManifest)
	return digest.FromBytes(m).String()
}

// tagIndex pushes an index of manifests under a tag and returns its digest.
func tagIndex(t testing.TB, r *registrytest.Registry, repo, tag string, children ...string) string {
	t.Helper()
	var links []string
	for i, c := range children {
		links = append(links, fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":1,"platform":{"os":"linux","architecture":"arch%d"}}`, ociManifest, c, i))
	}
	body := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, ociIndex, strings.Join(links, ","))
	want(t, r, http.StatusCreated, "PUT", "/v2/"+repo+"/manifests/"+tag, body, "Content-Type", ociIndex)
	return digest.FromBytes(body).String()
}

// refer pushes a manifest about another and returns its digest.
func refer(t testing.TB, r *registrytest.Registry, repo, subject, content string) string {
	t.Helper()
	a := registry.Attachment{Type: "application/x-note", Content: []byte(content)}
	putBlob(t, r, repo, []byte("{}"))
	putBlob(t, r, repo, a.Content)
	body, err := a.Manifest(registry.Descriptor{MediaType: ociManifest, Digest: subject, Size: 1}, "")
	if err != nil {
		t.Fatal(err)
	}
	d := digest.FromBytes(body).String()
	want(t, r, http.StatusCreated, "PUT", "/v2/"+repo+"/manifests/"+d, body, "Content-Type", ociManifest)
	return d
}

// sound checks that what is stored is complete and counted right.
func sound(t testing.TB, s *registry.Store) {
	t.Helper()
	found, err := s.Check(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	if !found.OK() || len(found.Orphaned) > 0 {
		t.Errorf("check: %+v", found)
	}
}

func TestCatalogCountsWhatIsSharedOnce(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	shared := strings.Repeat("s", 1000)
	tagImage(t, r, "a", "1", shared)
	tagImage(t, r, "b", "1", shared)
	tagImage(t, r, "b", "2", strings.Repeat("b", 500))
	tagImage(t, r, "b", "2", strings.Repeat("c", 300))
	stage(t, r, "kiln/staging/a", shared)
	list, err := r.Store.Catalog(t.Context(), false, "", 100)
	if err != nil {
		t.Fatal(err)
	}
	want := apiclient.Repositories{Total: apiclient.Storage{Blobs: 4, Size: 1802}, Repositories: []apiclient.Repository{
		{Name: "a", Manifests: 1, Tags: 1, Size: 1002, Shared: 1002},
		{Name: "b", Manifests: 3, Tags: 2, Untagged: 1, Size: 1802, Unique: 800, Shared: 1002},
	}}
	if diff := cmp.Diff(want, list, cmpopts.IgnoreFields(apiclient.Repository{}, "Created")); diff != "" {
		t.Errorf("catalog (-want +got):\n%s", diff)
	}
	page, err := r.Store.Catalog(t.Context(), true, "a", 1)
	if err != nil || page.Next != "b" || len(page.Repositories) != 1 {
		t.Errorf("page = %+v, %v", page, err)
	}
	if page, err = r.Store.Catalog(t.Context(), true, page.Next, 1); err != nil || page.Repositories[0].Name != "kiln/staging/a" || page.Next != "" {
		t.Errorf("next page = %+v, %v", page, err)
	}
	sound(t, r.Store)
}

func TestMetadataOfManifests(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	config := []byte(`{"architecture":"arm","variant":"v7","os":"linux"}`)
	c, l := putBlob(t, r, "a", config), putBlob(t, r, "a", []byte("layer"))
	m := manifestOf(c, len(config), l, 5)
	child := digest.FromBytes(m).String()
	want(t, r, http.StatusCreated, "PUT", "/v2/a/manifests/"+child, m, "Content-Type", ociManifest)
	index := tagIndex(t, r, "a", "multi", child)
	old := tagImage(t, r, "a", "moves", "old")
	now := tagImage(t, r, "a", "moves", "new")
	note := refer(t, r, "a", now, "a note")
	fetch(t, r, "a", "moves")

	list, err := r.Store.Manifests(t.Context(), registry.ManifestQuery{Repository: "a", N: 100})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range list.Manifests {
		got = append(got, fmt.Sprint(m.Digest, m.Tags, m.Platforms, m.ImageSize, m.Untagged, m.Subject != "", !m.LastPulled.IsZero()))
		if m.Tags == nil || m.Timestamp.IsZero() || m.Updated.Before(m.Timestamp) || m.MediaType == "" || m.Size == 0 {
			t.Errorf("manifest %+v", m)
		}
	}
	expect := []string{
		note + "[] [] 8 false true false",
		now + "[moves] [] 5 false false true",
		old + "[] [] 5 true false false",
		index + "[multi] [linux/arch0] 55 false false false",
		child + "[] [linux/arm/v7] 55 false false false",
	}
	if diff := cmp.Diff(expect, got); diff != "" {
		t.Errorf("manifests, newest first (-want +got):\n%s", diff)
	}
	slices.Reverse(expect)
	got = nil
	for after, more := "", true; more; more = after != "" {
		page, err := r.Store.Manifests(t.Context(), registry.ManifestQuery{Repository: "a", Oldest: true, After: after, N: 2})
		if err != nil || len(page.Manifests) == 0 {
			t.Fatal(page, err)
		}
		for _, m := range page.Manifests {
			got = append(got, m.Digest)
		}
		after = page.Next
	}
	for i := range expect {
		expect[i], _, _ = strings.Cut(expect[i], "[")
	}
	if diff := cmp.Diff(expect, got); diff != "" {
		t.Errorf("manifests in pages, oldest first (-want +got):\n%s", diff)
	}
	if list, err = r.Store.Manifests(t.Context(), registry.ManifestQuery{Repository: "a", Untagged: true}); err != nil || len(list.Manifests) != 1 || list.Manifests[0].Digest != old {
		t.Errorf("untagged: %+v, %v", list, err)
	}
	d, err := r.Store.ManifestDetails(t.Context(), "a", "moves")
	if err != nil || d.Digest != now || d.Referrers != 1 || len(d.Blobs) != 2 || !d.Blobs[1].Shared && !d.Blobs[0].Shared || d.Frees != 3+6 {
		t.Errorf("details: %+v, %v", d, err)
	}
	if d, err = r.Store.ManifestDetails(t.Context(), "a", child); err != nil || !slices.Equal(d.Indexes, []string{index}) {
		t.Errorf("details of a child: %+v, %v", d, err)
	}
	_, err = r.Store.Manifests(t.Context(), registry.ManifestQuery{Repository: "nothing"})
	if !errors.Is(err, registry.ErrRepositoryUnknown) {
		t.Errorf("unknown repository: %v", err)
	}
}

func TestDeletingTakesAlongWhatBelongsToIt(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	ctx := t.Context()
	one, two := stage(t, r, "a", "one"), tagImage(t, r, "a", "kept", "two")
	index := tagIndex(t, r, "a", "multi", one, two)
	want(t, r, http.StatusCreated, "PUT", "/v2/a/manifests/also", fmt.Appendf(nil, "%s", fetchBody(t, r, "a", "multi")), "Content-Type", ociIndex)
	note := refer(t, r, "a", index, "about the index")
	about := refer(t, r, "a", two, "about another")

	plan, err := r.Store.Delete(ctx, "a", "multi", true)
	if err != nil {
		t.Fatal(err)
	}
	expect := apiclient.Deletion{DryRun: true, Count: 3, Tags: 2, Frees: int64(len("one") + len("about the index")), Manifests: []apiclient.DeletedManifest{
		{Repository: "a", Digest: index, Tags: []string{"also", "multi"}},
		{Repository: "a", Digest: one, Tags: []string{}, Why: "child"},
		{Repository: "a", Digest: note, Tags: []string{}, Why: "referrer"},
	}}
	if diff := cmp.Diff(expect, plan); diff != "" {
		t.Errorf("dry run (-want +got):\n%s", diff)
	}
	want(t, r, http.StatusOK, "GET", "/v2/a/manifests/also", nil)
	if _, err := r.Store.Delete(ctx, "a", "multi", false); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"multi", "also", index, one, note} {
		want(t, r, http.StatusNotFound, "GET", "/v2/a/manifests/"+ref, nil)
	}
	want(t, r, http.StatusOK, "GET", "/v2/a/manifests/"+about, nil)
	fetch(t, r, "a", "kept")
	sound(t, r.Store)

	tagImage(t, r, "b", "1", "two")
	plan, err = r.Store.Delete(ctx, "a", "", true)
	if err != nil || plan.Count != 2 || plan.Tags != 1 || plan.Frees != int64(len("one")+len("about the index")+len("about another")) {
		t.Errorf("dry run of a repository: %+v, %v", plan, err)
	}
	if _, err := r.Store.Delete(ctx, "a", "", false); err != nil {
		t.Fatal(err)
	}
	if list, err := r.Store.Catalog(ctx, false, "", 10); err != nil || len(list.Repositories) != 1 || list.Repositories[0].Name != "b" {
		t.Errorf("catalog: %+v, %v", list, err)
	}
	fetch(t, r, "b", "1")
	sound(t, r.Store)
	if _, err := r.Store.Delete(ctx, "kiln/contexts", "", false); !errors.Is(err, registry.ErrInvalid) {
		t.Errorf("a repository of kiln's own: %v", err)
	}
}

func fetchBody(t testing.TB, r *registrytest.Registry, repo, tag string) []byte {
	t.Helper()
	_, body := want(t, r, http.StatusOK, "GET", "/v2/"+repo+"/manifests/"+tag, nil)
	return body
}

func TestLargeRepositoryIsDeletedInSteps(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	var children []string
	for i := range 120 {
		children = append(children, tagImage(t, r, "a", fmt.Sprint("t", i), fmt.Sprint(i)))
	}
	tagIndex(t, r, "a", "index", children...)
	done, err := r.Store.Delete(t.Context(), "a", "", false)
	if err != nil || done.Count != 121 || done.Tags != 121 {
		t.Fatalf("delete: %+v, %v", done, err)
	}
	if got, err := r.Store.Repository(t.Context(), "a"); err != nil || got.Manifests != 0 || got.Tags != 0 || got.Untagged != 0 {
		t.Errorf("repository: %+v, %v", got, err)
	}
	sound(t, r.Store)
}

func TestRetiredUniqueTagsKeepTheirMeaning(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	ctx := t.Context()
	d := stage(t, r, staging, "unique")
	raise(t, r.Store, 1)
	if _, err := r.Store.Publish(ctx, publication(1, registry.Tag{Repository: "app", Tag: "r1", Digest: d, Unique: true})); err != nil {
		t.Fatal(err)
	}
	want(t, r, http.StatusConflict, "DELETE", "/v2/app/manifests/r1", nil)
	want(t, r, http.StatusConflict, "DELETE", "/v2/app/manifests/"+d, nil)
	if err := r.Store.Untag(ctx, "app", "r1"); err != nil {
		t.Fatal(err)
	}
	m := image(t, r, "app", "other")
	want(t, r, http.StatusConflict, "PUT", "/v2/app/manifests/r1", m, "Content-Type", ociManifest)
	_, err := r.Store.Publish(ctx, publication(1, registry.Tag{Repository: "app", Tag: "r1", Digest: stage(t, r, staging, "third"), Unique: true}))
	if !errors.Is(err, registry.ErrTagExists) {
		t.Errorf("Publish of another digest under a retired tag: %v", err)
	}
	if _, err := r.Store.Publish(ctx, publication(1, registry.Tag{Repository: "app", Tag: "r1", Digest: d, Unique: true})); err != nil {
		t.Errorf("Publish of the same digest again: %v", err)
	}
	show, err := r.Store.TagDetails(ctx, "app", "r1")
	if err != nil || !show.Unique || show.Digest != d || len(show.History) != 3 || show.History[1].Digest != "" || show.History[0].Run != "r1" {
		t.Errorf("TagDetails = %+v, %v", show, err)
	}
	if _, err := r.Store.Delete(ctx, "app", "", false); err != nil {
		t.Fatal(err)
	}
	want(t, r, http.StatusConflict, "PUT", "/v2/app/manifests/r1", m, "Content-Type", ociManifest)
}

func TestRollback(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	ctx := t.Context()
	one, two, three := tagImage(t, r, "a", "stable", "1"), tagImage(t, r, "a", "stable", "2"), tagImage(t, r, "a", "stable", "3")
	drain(t, r.Store)
	from, to, err := r.Store.Rollback(ctx, "a", "stable", "")
	if err != nil || from != three || to != two {
		t.Fatalf("Rollback = %s, %s, %v", from, to, err)
	}
	if got := fetch(t, r, "a", "stable"); got != two {
		t.Errorf("stable is %s", got)
	}
	if got := show(drain(t, r.Store)); !slices.Equal(got, []string{"image.pushed a:stable"}) {
		t.Errorf("events: %q", got)
	}
	if _, to, err = r.Store.Rollback(ctx, "a", "stable", one); err != nil || to != one {
		t.Errorf("Rollback to the first = %s, %v", to, err)
	}
	if _, _, err = r.Store.Rollback(ctx, "a", "stable", digest.FromString("x").String()); !errors.Is(err, registry.ErrManifestUnknown) {
		t.Errorf("Rollback to what it never was: %v", err)
	}
	want(t, r, http.StatusAccepted, "DELETE", "/v2/a/manifests/stable", nil)
	if from, to, err = r.Store.Rollback(ctx, "a", "stable", ""); err != nil || from != "" || to != one {
		t.Errorf("Rollback of a deleted tag = %q, %s, %v", from, to, err)
	}
	if _, _, err = r.Store.Rollback(ctx, "a", "never", ""); !errors.Is(err, registry.ErrManifestUnknown) {
		t.Errorf("Rollback of what never was: %v", err)
	}
}
