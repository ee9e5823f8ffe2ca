package registry_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"

	"kiln/internal/registry"
	"kiln/internal/registrytest"
)

const statementType = "application/vnd.in-toto+json"

// attached returns the digests of what refers to an image and each one's content, as a client finds them.
func attached(t *testing.T, r *registrytest.Registry, repo, dgst string) (digests, contents []string) {
	t.Helper()
	ref, err := name.NewDigest(r.Host+"/"+repo+"@"+dgst, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	auth := remote.WithAuth(&authn.Basic{Username: "x", Password: r.Token})
	idx, err := remote.Referrers(ref, auth, remote.WithFilter("artifactType", statementType))
	if err != nil {
		t.Fatal(err)
	}
	list, err := idx.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range list.Manifests {
		if m.ArtifactType != statementType || m.Annotations["dev.kiln.run"] != "r1" || m.Annotations["note"] != "n" {
			t.Errorf("referrer is %+v", m)
		}
		img, err := remote.Image(ref.Context().Digest(m.Digest.String()), auth)
		if err != nil {
			t.Fatal(err)
		}
		layers, err := img.Layers()
		if err != nil || len(layers) != 1 {
			t.Fatalf("%d layers, %v", len(layers), err)
		}
		rc, err := layers[0].Compressed()
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(rc)
		if err := errors.Join(err, rc.Close()); err != nil {
			t.Fatal(err)
		}
		digests, contents = append(digests, m.Digest.String()), append(contents, string(b))
	}
	return digests, contents
}

// attaching is a publication of an image under a tag with a document about it.
func attaching(attempt int, tag, dgst, content string) registry.Publication {
	p := publication(attempt, registry.Tag{Repository: "team/app", Tag: tag, Digest: dgst})
	p.Attachments = []registry.Attachment{{Repository: "team/app", Subject: dgst, Type: statementType,
		Annotations: map[string]string{"note": "n"}, Content: []byte(content)}}
	return p
}

func TestPublicationAttachesDocuments(t *testing.T) {
	eachPublisher(t, func(t *testing.T, r *registrytest.Registry, p publisher) {
		d := stage(t, r, staging, "x")
		raise(t, p, 1)
		var out []registry.Published
		for range 2 { // the second time changes nothing
			var err error
			if out, err = p.Publish(t.Context(), attaching(1, "v1", d, `{"by":1}`)); err != nil {
				t.Fatal(err)
			}
		}
		digests, contents := attached(t, r, "team/app", d)
		if !slices.Equal(contents, []string{`{"by":1}`}) || len(out) != 1 || !slices.Equal(out[0].Attached, digests) {
			t.Errorf("attached are %q, the publication says %+v", contents, out)
		}
		if got := fetch(t, r, "team/app", "v1"); got != d {
			t.Errorf("the image is %s, want %s", got, d)
		}

		// An attempt that was given up says nothing about an image that another one has published.
		raise(t, p, 2)
		if _, err := p.Publish(t.Context(), attaching(1, "v1", d, "zombie")); !errors.Is(err, registry.ErrFenced) {
			t.Errorf("superseded attempt: %v", err)
		}
		second := attaching(2, "v1", d, "second")
		second.Step = "another"
		if _, err := p.Publish(t.Context(), second); err != nil {
			t.Fatal(err)
		}
		if _, contents := attached(t, r, "team/app", d); !slices.Equal(contents, []string{`{"by":1}`, "second"}) {
			t.Errorf("attached are %q", contents)
		}
		if got := show(drain(t, r.Store)); !slices.Equal(got, []string{"image.pushed team/app:v1 by r1/1/build"}) {
			t.Errorf("events %q, want the image's alone", got)
		}
	})
}

func TestOldAttachmentsGo(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	d := stage(t, r, staging, "x")
	raise(t, r.Store, 1)
	foreign := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"artifactType":"sig","config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":%q,"size":2},"layers":[],"subject":{"mediaType":%q,"digest":%q,"size":1}}`,
		ociManifest, digest.FromString("{}"), ociManifest, d)
	for i := range 33 {
		if _, err := r.Store.Publish(t.Context(), attaching(1, "v1", d, fmt.Sprint("run ", i))); err != nil {
			t.Fatal(err)
		}
		if i == 0 { // what others say about an image stays, and is no push of an image either
			want(t, r, http.StatusCreated, "PUT", "/v2/team/app/manifests/"+digest.FromBytes(foreign).String(), foreign, "Content-Type", ociManifest)
		}
	}
	_, contents := attached(t, r, "team/app", d)
	if len(contents) != 16 || contents[0] != "run 17" || contents[15] != "run 32" {
		t.Errorf("attached are %q, want the newest 16", contents)
	}
	if _, b := want(t, r, http.StatusOK, "GET", "/v2/team/app/referrers/"+d+"?artifactType=sig", nil); !strings.Contains(string(b), digest.FromBytes(foreign).String()) {
		t.Errorf("the signature is gone: %s", b)
	}
	if got := show(drain(t, r.Store)); len(got) != 1 {
		t.Errorf("events %q, want that of the tag alone", got)
	}
}

func TestBadAttachmentsAreRefused(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	d := stage(t, r, staging, "x")
	raise(t, r.Store, 1)
	for name, change := range map[string]func(*registry.Attachment){
		"other subject":    func(a *registry.Attachment) { a.Subject = digest.FromString("y").String() },
		"other repository": func(a *registry.Attachment) { a.Repository = "team/other" },
		"no type":          func(a *registry.Attachment) { a.Type = "" },
		"nothing":          func(a *registry.Attachment) { a.Content = nil },
		"too much":         func(a *registry.Attachment) { a.Content = make([]byte, 256<<10+1) },
	} {
		p := attaching(1, "v1", d, "x")
		change(&p.Attachments[0])
		if _, err := r.Store.Publish(t.Context(), p); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	if _, err := r.Store.Resolve(t.Context(), "team/app", "v1"); err == nil {
		t.Error("the tag of a refused publication exists")
	}
}
