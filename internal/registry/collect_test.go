package registry_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"kiln/internal/registry"
	"kiln/internal/registrytest"
)

// age makes everything look as if it had not been touched for d.
func age(t testing.TB, r *registrytest.Registry, d time.Duration) {
	t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(r.Dir, "registry.db")+"?_pragma=busy_timeout(10000)")
	if err != nil {
		t.Fatal(err)
	}
	ms := d.Milliseconds()
	_, err1 := db.Exec(`UPDATE repo_blob SET touched = touched - ?`, ms)
	_, err2 := db.Exec(`UPDATE manifest SET touched = touched - ?1, pushed = pushed - ?1`, ms)
	_, err3 := db.Exec(`UPDATE tag SET updated = updated - ?1, created = created - ?1`, ms)
	if err := errors.Join(err1, err2, err3, db.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestCollectionFreesWhatNothingRefersTo(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	large := strings.Repeat("l", 100<<10)
	tagImage(t, r, "a", "kept", "kept")
	gone := tagImage(t, r, "a", "gone", large)
	note := refer(t, r, "a", gone, "about what is gone")
	putBlob(t, r, "b", []byte("never referred to"))
	want(t, r, http.StatusAccepted, "DELETE", "/v2/a/manifests/"+gone, nil)

	if got, err := r.Store.Collect(t.Context(), registry.Collection{}); err != nil || got.Blobs != 0 || got.Referrers != 0 {
		t.Fatalf("within the grace: %+v, %v", got, err)
	}
	age(t, r, 25*time.Hour)
	size := int64(len(large) + len("about what is gone") + len("never referred to"))
	got, err := r.Store.Collect(t.Context(), registry.Collection{DryRun: true})
	if err != nil || got.Blobs != 2 || got.Referrers != 1 || got.Freed != size {
		t.Errorf("dry run: %+v, %v, want %d bytes", got, err, size)
	}
	if got, err = r.Store.Collect(t.Context(), registry.Collection{}); err != nil || got.Blobs != 3 || got.Referrers != 1 || got.Freed != size {
		t.Errorf("collection: %+v, %v, want %d bytes", got, err, size)
	}
	if n := files(t, filepath.Join(r.Dir, "blobs")); n != 0 {
		t.Errorf("%d files are left", n)
	}
	want(t, r, http.StatusNotFound, "GET", "/v2/a/manifests/"+note, nil)
	fetch(t, r, "a", "kept")
	sound(t, r.Store)
	if fetch(t, r, "a", "kept") == tagImage(t, r, "a", "gone", large) {
		t.Error("the same image")
	}
	fetch(t, r, "a", "gone")
}

func TestCollectionKeepsWhatRunsNeed(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	ctx := t.Context()
	raise(t, r.Store, 1)
	child := stage(t, r, staging, "staged")
	tagIndex(t, r, staging, "sha256-tag", child)
	index, err := r.Store.Resolve(ctx, staging, "sha256-tag")
	if err != nil {
		t.Fatal(err)
	}
	want(t, r, http.StatusAccepted, "DELETE", "/v2/"+staging+"/manifests/sha256-tag", nil)
	old := stage(t, r, staging, "of an ended run")
	cache := tagImage(t, r, staging, "cache", "cached")
	used, unused := tagImage(t, r, "kiln/contexts", "used", "used context"), tagImage(t, r, "kiln/contexts", "unused", "unused context")
	collect := func() {
		t.Helper()
		_, err := r.Store.Collect(ctx, registry.Collection{Contexts: func(context.Context) (map[string]bool, error) { return map[string]bool{"used": true}, nil }})
		if err != nil {
			t.Fatal(err)
		}
	}
	there := func(repo, ref string, status int) {
		t.Helper()
		want(t, r, status, "GET", "/v2/"+repo+"/manifests/"+ref, nil)
	}
	collect()
	there(staging, index.Digest, http.StatusOK)
	age(t, r, 8*24*time.Hour)
	there(staging, index.Digest, http.StatusOK) // which renews its lease
	there(staging, child, http.StatusOK)
	collect()
	there(staging, index.Digest, http.StatusOK)
	there(staging, child, http.StatusOK)
	there(staging, "cache", http.StatusOK)
	there(staging, old, http.StatusNotFound)
	there("kiln/contexts", used, http.StatusOK)
	there("kiln/contexts", unused, http.StatusNotFound)

	// A run that has begun keeps what it may have found since, for as long as it takes.
	db, err := sql.Open("sqlite", filepath.Join(r.Dir, "registry.db")+"?_pragma=busy_timeout(10000)")
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.Exec(`UPDATE fence SET created = created - ?`, (32 * 24 * time.Hour).Milliseconds())
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	age(t, r, 31*24*time.Hour)
	collect()
	there(staging, child, http.StatusOK)
	there(staging, index.Digest, http.StatusOK)
	age(t, r, 31*24*time.Hour)
	if err := r.Store.FinishRun(ctx, "r1"); err != nil {
		t.Fatal(err)
	}
	collect()
	there(staging, index.Digest, http.StatusNotFound)
	there(staging, child, http.StatusNotFound)
	there(staging, cache, http.StatusNotFound)
	sound(t, r.Store)
}

// tagInTime is tagImage for a machine so slow that the layers' grace may end before the manifest comes. Then
// it begins again, as a client has to.
func tagInTime(t testing.TB, r *registrytest.Registry, repo, tag, layer string, grace time.Duration) string {
	t.Helper()
	for {
		began := time.Now()
		m := image(t, r, repo, layer)
		res, b := call(t, r, "PUT", "/v2/"+repo+"/manifests/"+tag, m, "Content-Type", ociManifest)
		switch {
		case res.StatusCode == http.StatusCreated:
			return digest.FromBytes(m).String()
		case res.StatusCode != http.StatusBadRequest || code(t, b) != "MANIFEST_BLOB_UNKNOWN" || time.Since(began) < grace/2:
			t.Fatalf("push %s:%s: %s: %s", repo, tag, res.Status, b)
		}
	}
}

// TestNothingIsLostWhileGarbageIsCollected pushes, mounts, deletes and collects at once, with hardly any grace.
func TestNothingIsLostWhileGarbageIsCollected(t *testing.T) {
	t.Parallel()
	const grace = 2 * time.Second
	r := registrytest.StartWith(t, registry.Options{Reserve: -1, Grace: grace})
	ctx, stop := context.WithCancel(t.Context())
	var collected atomic.Int64
	var wg, pushing sync.WaitGroup
	wg.Go(func() {
		pause := time.NewTicker(20 * time.Millisecond)
		defer pause.Stop()
		for ctx.Err() == nil {
			<-pause.C
			got, err := r.Store.Collect(ctx, registry.Collection{})
			collected.Add(got.Blobs)
			if err != nil && ctx.Err() == nil {
				t.Error(err)
				return
			}
		}
	})
	deadline := time.Now().Add(time.Minute)
	for p := range 3 {
		pushing.Go(func() {
			repo := fmt.Sprint("repo", p)
			// Layers are shared, come back and are large enough for files of their own.
			for i := 0; time.Now().Before(deadline) && (i < 60 || collected.Load() < 20); i++ {
				layer := strings.Repeat(fmt.Sprint("layer", i%7), 15<<10)
				putBlob(t, r, repo, fmt.Appendf(nil, "of no use %d %d", p, i))
				d := tagInTime(t, r, repo, "latest", layer, grace)
				if got := fetch(t, r, repo, "latest"); got != d {
					t.Errorf("%s is %s, not %s", repo, got, d)
				}
				if l := digest.FromString(layer).String(); i%3 == 0 {
					other, began := fmt.Sprint("repo", (p+1)%3), time.Now()
					if res, _ := call(t, r, "POST", "/v2/"+other+"/blobs/uploads/?from="+repo+"&mount="+l, nil); res.StatusCode == http.StatusCreated {
						if res, _ := call(t, r, "HEAD", "/v2/"+other+"/blobs/"+l, nil); res.StatusCode != http.StatusOK && time.Since(began) < grace/2 {
							t.Errorf("a blob that was just mounted: %s", res.Status)
						}
					}
				}
				want(t, r, http.StatusAccepted, "DELETE", "/v2/"+repo+"/manifests/"+d, nil)
			}
			tagInTime(t, r, repo, "final", strings.Repeat(repo, 20<<10), grace)
		})
	}
	pushing.Wait()
	stop()
	wg.Wait()
	if collected.Load() < 20 {
		t.Errorf("only %d blobs were collected", collected.Load())
	}
	if _, err := r.Store.Collect(t.Context(), registry.Collection{}); err != nil {
		t.Fatal(err)
	}
	for p := range 3 {
		fetch(t, r, fmt.Sprint("repo", p), "final")
	}
	sound(t, r.Store)
}
