package registry_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"

	"kiln/internal/registry"
	"kiln/internal/registrytest"
)

// publisher is what both the store and its client do.
type publisher interface {
	RaiseFence(ctx context.Context, run string, attempt int) error
	FinishRun(ctx context.Context, run string) error
	Fences(ctx context.Context, after string) ([]string, error)
	Publish(ctx context.Context, p registry.Publication) ([]registry.Published, error)
}

// eachPublisher runs a test on the store and on a client of it.
func eachPublisher(t *testing.T, f func(*testing.T, *registrytest.Registry, publisher)) {
	t.Parallel()
	t.Run("store", func(t *testing.T) {
		t.Parallel()
		r := registrytest.Start(t)
		f(t, r, r.Store)
	})
	t.Run("client", func(t *testing.T) {
		t.Parallel()
		r := registrytest.Start(t)
		f(t, r, signedIn{registry.NewClient(r.URL+"/", nil), r.Token})
	})
}

// stage pushes an image by digest where a run stages.
func stage(t testing.TB, r *registrytest.Registry, repo, content string) string {
	t.Helper()
	m := image(t, r, repo, content)
	d := digest.FromBytes(m).String()
	want(t, r, http.StatusCreated, "PUT", "/v2/"+repo+"/manifests/"+d, m, "Content-Type", ociManifest)
	return d
}

const staging = "kiln/staging/r1"

func publication(attempt int, tags ...registry.Tag) registry.Publication {
	for i := range tags {
		tags[i].Source = staging
	}
	return registry.Publication{Run: "r1", Attempt: attempt, Step: "build", Tags: tags}
}

func raise(t *testing.T, p publisher, attempt int) {
	t.Helper()
	if err := p.RaiseFence(t.Context(), "r1", attempt); err != nil {
		t.Fatal(err)
	}
}

func TestZombiePublishesNothing(t *testing.T) {
	eachPublisher(t, func(t *testing.T, r *registrytest.Registry, p publisher) {
		d := stage(t, r, staging, "x")
		try := func(attempt int, want error) {
			t.Helper()
			_, err := p.Publish(t.Context(), publication(attempt, registry.Tag{Repository: "team/app", Tag: fmt.Sprint("a", attempt), Digest: d}))
			if !errors.Is(err, want) {
				t.Errorf("attempt %d: %v, want %v", attempt, err, want)
			}
		}
		try(1, registry.ErrFenced) // no fence yet
		raise(t, p, 1)
		try(1, nil)
		raise(t, p, 3)
		raise(t, p, 2) // does not lower it
		try(1, registry.ErrFenced)
		try(2, registry.ErrFenced)
		try(3, nil)
		for range 2 {
			if err := p.FinishRun(t.Context(), "r1"); err != nil {
				t.Fatal(err)
			}
		}
		try(4, registry.ErrFenced)
		if got := pages(t, r, "/v2/team/app/tags/list"); got[0] != "a1 a3" {
			t.Errorf("tags %q", got)
		}
	})
}

// An attempt that was lost after its publication, before it could say so, is followed by one that makes other images
// of the same source.
func TestPublicationOfAnEarlierAttemptStays(t *testing.T) {
	eachPublisher(t, func(t *testing.T, r *registrytest.Registry, p publisher) {
		one, two, later := stage(t, r, staging, "one"), stage(t, r, staging, "two"), stage(t, r, staging, "later")
		publish := func(attempt int, step, dgst, want string, tags ...string) {
			t.Helper()
			pub := publication(attempt)
			pub.Step = step
			for _, tag := range tags {
				pub.Tags = append(pub.Tags, registry.Tag{Repository: "team/app", Tag: tag, Digest: dgst, Source: staging, Unique: tag == "r1"})
			}
			out, err := p.Publish(t.Context(), pub)
			if err != nil || len(out) != len(tags) {
				t.Fatalf("attempt %d, step %s: %+v, %v", attempt, step, out, err)
			}
			for i, o := range out {
				if o.Digest != want || o.Tag != tags[i] || o.Moved != (dgst == want) {
					t.Errorf("attempt %d, step %s has published %+v, want %s", attempt, step, o, want)
				}
			}
		}
		raise(t, p, 1)
		publish(1, "push", one, one, "r1", "latest")
		publish(1, "tag", one, one, "stable")
		publish(1, "tag", two, two, "stable") // an attempt moves its own tags as it likes
		raise(t, p, 3)
		drain(t, r.Store)
		publish(3, "push", two, one, "r1", "latest")
		publish(3, "tag", one, two, "stable")
		publish(3, "another", later, later, "late")
		if got := show(drain(t, r.Store)); !slices.Equal(got, []string{"image.pushed team/app:late by r1/3/another"}) {
			t.Errorf("events of the later attempt %q", got)
		}
		for tag, want := range map[string]string{"r1": one, "latest": one, "stable": two, "late": later} {
			if got := fetch(t, r, "team/app", tag); got != want {
				t.Errorf("%s is %s, want %s", tag, got, want)
			}
		}
		if err := p.FinishRun(t.Context(), "r1"); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Publish(t.Context(), publication(4, registry.Tag{Repository: "team/app", Tag: "late", Digest: one})); !errors.Is(err, registry.ErrFenced) {
			t.Errorf("after the end: %v", err)
		}
	})
}

func TestFencesAreListedUntilRunsAreFinished(t *testing.T) {
	eachPublisher(t, func(t *testing.T, _ *registrytest.Registry, p publisher) {
		list := func(after, want string) {
			t.Helper()
			got, err := p.Fences(t.Context(), after)
			if err != nil || strings.Join(got, " ") != want {
				t.Errorf("fences after %q: %q, %v, want %q", after, got, err, want)
			}
		}
		list("", "")
		for _, run := range []string{"rb", "ra", "rc"} {
			if err := p.RaiseFence(t.Context(), run, 1); err != nil {
				t.Fatal(err)
			}
		}
		list("", "ra rb rc")
		list("ra", "rb rc")
		if err := p.FinishRun(t.Context(), "rb"); err != nil {
			t.Fatal(err)
		}
		list("", "ra rc")
		list("rc", "")
	})
}

func TestUniqueTagsNeverMove(t *testing.T) {
	eachPublisher(t, func(t *testing.T, r *registrytest.Registry, p publisher) {
		one, two := stage(t, r, staging, "one"), stage(t, r, staging, "two")
		raise(t, p, 1)
		tag := func(d string, unique bool) registry.Publication {
			return publication(1, registry.Tag{Repository: "team/app", Tag: "u", Digest: d, Unique: unique})
		}
		for i := range 2 {
			out, err := p.Publish(t.Context(), tag(one, true))
			if err != nil || len(out) != 1 || out[0].Moved != (i == 0) || out[0].MediaType != ociManifest {
				t.Fatalf("publication %d: %+v, %v", i, out, err)
			}
		}
		for _, unique := range []bool{true, false} {
			if _, err := p.Publish(t.Context(), tag(two, unique)); !errors.Is(err, registry.ErrTagExists) || !strings.Contains(err.Error(), "team/app:u") {
				t.Errorf("second digest, unique %v: %v", unique, err)
			}
		}
		m := image(t, r, "team/app", "three")
		if _, b := want(t, r, http.StatusConflict, "PUT", "/v2/team/app/manifests/u", m, "Content-Type", ociManifest); code(t, b) != "DENIED" {
			t.Errorf("push over a unique tag: %s", b)
		}
		want(t, r, http.StatusConflict, "DELETE", "/v2/team/app/manifests/u", nil)
		want(t, r, http.StatusConflict, "DELETE", "/v2/team/app/manifests/"+one, nil)
		if got := fetch(t, r, "team/app", "u"); got != one {
			t.Errorf("the tag is %s, want %s", got, one)
		}
		// An ordinary tag of the same name elsewhere is not create-only until it is published so.
		want(t, r, http.StatusCreated, "PUT", "/v2/team/app/manifests/plain", m, "Content-Type", ociManifest)
		if _, err := p.Publish(t.Context(), publication(1, registry.Tag{Repository: "team/app", Tag: "plain", Digest: one, Unique: true})); !errors.Is(err, registry.ErrTagExists) {
			t.Errorf("unique over an ordinary tag: %v", err)
		}
		if _, err := p.Publish(t.Context(), publication(1, registry.Tag{Repository: "team/app", Tag: "plain", Digest: one})); err != nil {
			t.Errorf("ordinary over an ordinary tag: %v", err)
		}
	})
}

func TestPublicationIsAllOrNothing(t *testing.T) {
	eachPublisher(t, func(t *testing.T, r *registrytest.Registry, p publisher) {
		one := stage(t, r, staging, "one")
		raise(t, p, 1)
		absent := digest.FromString("absent").String()
		for want, bad := range map[error]registry.Tag{
			registry.ErrManifestUnknown: {Repository: "b", Tag: "x", Digest: absent},
			registry.ErrInvalid:         {Repository: "kiln/contexts", Tag: "x", Digest: one},
			registry.ErrDigestInvalid:   {Repository: "b", Tag: "x", Digest: "sha256:1"},
		} {
			if _, err := p.Publish(t.Context(), publication(1, registry.Tag{Repository: "a", Tag: "x", Digest: one}, bad)); !errors.Is(err, want) {
				t.Errorf("publication with a bad tag: %v, want %v", err, want)
			}
		}
		if _, err := r.Store.Resolve(t.Context(), "a", "x"); !errors.Is(err, registry.ErrManifestUnknown) {
			t.Errorf("a tag of a refused publication exists: %v", err)
		}
		if _, err := p.Publish(t.Context(), publication(1)); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("publication without tags: %v", err)
		}
	})
}

func TestPublishedIndexCanBePulled(t *testing.T) {
	eachPublisher(t, func(t *testing.T, r *registrytest.Registry, p publisher) {
		idx, err := random.Index(100_000, 2, 2)
		if err != nil {
			t.Fatal(err)
		}
		d, err := idx.Digest()
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.WriteIndex(ref(t, r, staging+"@"+d.String()), idx, auth(r)); err != nil {
			t.Fatal(err)
		}
		raise(t, p, 1)
		tags := publication(1, registry.Tag{Repository: "a/x", Tag: "1", Digest: d.String()}, registry.Tag{Repository: "b/x", Tag: "1", Digest: d.String()})
		if _, err := p.Publish(t.Context(), tags); err != nil {
			t.Fatal(err)
		}
		for _, s := range []string{"a/x:1", "b/x:1"} {
			got, err := remote.Index(ref(t, r, s), auth(r))
			if err != nil {
				t.Fatal(err)
			}
			im, err := got.IndexManifest()
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range im.Manifests {
				pull(t, r, s[:3]+"@"+m.Digest.String())
			}
		}
	})
}

func TestControlNeedsPermission(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	err := registry.NewClient(r.URL, nil).RaiseFence(t.Context(), "wrong", "r1", 1)
	if !errors.Is(err, registry.ErrUnauthenticated) {
		t.Errorf("wrong token: %v", err)
	}
	for _, run := range []string{"", "../x", "A", strings.Repeat("a", 65)} {
		if err := r.Store.RaiseFence(t.Context(), run, 1); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("run %q: %v", run, err)
		}
	}
}

func TestConcurrentPushersOfOneTag(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	const pushers, pushes = 4, 6
	t.Run("pushers", func(t *testing.T) {
		for p := range pushers {
			t.Run(fmt.Sprint(p), func(t *testing.T) {
				t.Parallel()
				for i := range pushes {
					m := image(t, r, "team/app", fmt.Sprint(p, " ", i))
					want(t, r, http.StatusCreated, "PUT", "/v2/team/app/manifests/latest", m, "Content-Type", ociManifest)
					fetch(t, r, "team/app", "latest")
				}
			})
		}
	})
	events := drain(t, r.Store)
	if len(events) != pushers*pushes {
		t.Errorf("%d events, want %d", len(events), pushers*pushes)
	}
	if last := events[len(events)-1]; last.Digest != fetch(t, r, "team/app", "latest") {
		t.Errorf("the last event tells of %s, not of what the tag is", last.Digest)
	}
}

func TestNothingOfALowerAttemptMovesOnceTheFenceIsUp(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	one, two := stage(t, r, staging, "one"), stage(t, r, staging, "two")
	raise(t, r.Store, 1)
	started, stopped := make(chan struct{}), make(chan error, 1)
	go func() { // the zombie
		for i := 0; ; i++ {
			_, err := r.Store.Publish(t.Context(), publication(1, registry.Tag{Repository: "a", Tag: "latest", Digest: one}))
			if err != nil {
				stopped <- err
				return
			}
			if i == 10 {
				close(started)
			}
		}
	}()
	<-started
	raise(t, r.Store, 2)
	other := publication(2, registry.Tag{Repository: "a", Tag: "latest", Digest: two})
	other.Step = "another"
	if _, err := r.Store.Publish(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	if err := <-stopped; !errors.Is(err, registry.ErrFenced) {
		t.Errorf("the zombie ended with %v", err)
	}
	if got := fetch(t, r, "a", "latest"); got != two {
		t.Errorf("the tag is %s, want %s", got, two)
	}
}

// signedIn is a client that shows one token.
type signedIn struct {
	client *registry.Client
	token  string
}

func (s signedIn) RaiseFence(ctx context.Context, run string, attempt int) error {
	return s.client.RaiseFence(ctx, s.token, run, attempt)
}

func (s signedIn) FinishRun(ctx context.Context, run string) error {
	return s.client.FinishRun(ctx, s.token, run)
}

func (s signedIn) Fences(ctx context.Context, after string) ([]string, error) {
	return s.client.Fences(ctx, s.token, after)
}

func (s signedIn) Publish(ctx context.Context, p registry.Publication) ([]registry.Published, error) {
	return s.client.Publish(ctx, s.token, p)
}
