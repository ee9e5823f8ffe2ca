package registry_test

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"kiln/internal/apiclient"
	"kiln/internal/registry"
	"kiln/internal/registrytest"
)

func TestImport(t *testing.T) {
	t.Parallel()
	from, to := registrytest.Start(t), registrytest.Start(t)
	ctx := t.Context()
	one, two := stage(t, from, "lib/app", "one"), stage(t, from, "lib/app", strings.Repeat("two", 50<<10))
	index := tagIndex(t, from, "lib/app", "1.0", one, two)
	other := tagImage(t, to, "mine", "stable", "other")
	source := func(ref string) registry.Source {
		return registry.Source{Reference: from.Host + "/lib/app" + ref, User: "u", Password: from.Token, PlainHTTP: true, Transport: http.DefaultTransport}
	}
	_, err := to.Store.Import(ctx, source(":1.0"), []string{"base:1.0", "mine:stable"}, false)
	if !errors.Is(err, registry.ErrTagExists) {
		t.Errorf("import over another image: %v", err)
	}
	want(t, to, http.StatusNotFound, "GET", "/v2/base/manifests/1.0", nil)
	if got := fetch(t, to, "mine", "stable"); got != other {
		t.Errorf("stable is %s", got)
	}
	got, err := to.Store.Import(ctx, source(":1.0"), []string{"base:1.0", "mine:stable", "mine"}, true)
	expect := apiclient.Imported{Digest: index, Names: []string{"base:1.0", "mine:stable", "mine@" + index}, Manifests: 3}
	if err != nil || fmt.Sprint(got) != fmt.Sprint(expect) {
		t.Errorf("import = %+v, %v, want %+v", got, err, expect)
	}
	for _, repo := range []string{"base", "mine"} {
		for _, child := range []string{one, two} {
			fetch(t, to, repo, child)
		}
	}
	got, err = to.Store.Import(ctx, source("@"+two), []string{"fresh:2"}, false)
	if err != nil || got.Digest != two || got.Blobs != 0 || got.Manifests != 1 {
		t.Errorf("import by digest of what is here: %+v, %v", got, err)
	}
	got, err = to.Store.Import(ctx, registry.Source{Reference: to.Host + "/base:1.0", Own: true}, []string{"prod/base:1.0"}, false)
	if err != nil || got.Manifests != 0 || got.Digest != index {
		t.Errorf("import from the registry itself: %+v, %v", got, err)
	}
	fetch(t, to, "prod/base", one)
	sound(t, to.Store)
	events := show(drain(t, to.Store))
	if !slices.Contains(events, "image.pushed base:1.0") || !slices.Contains(events, "image.pushed prod/base:1.0") {
		t.Errorf("events: %q", events)
	}
	stranger := source(":1.0")
	stranger.Password = "wrong"
	plain := source(":1.0")
	plain.PlainHTTP = false
	for _, bad := range []struct {
		src   registry.Source
		names []string
		is    error
	}{
		{source(":nothing"), []string{"x:1"}, registry.ErrSource}, {stranger, []string{"x:1"}, registry.ErrSource}, {plain, []string{"x:1"}, registry.ErrInvalid},
		{source(":1.0"), nil, registry.ErrInvalid}, {source(":1.0"), []string{"kiln/contexts:1"}, registry.ErrInvalid},
		{source(":1.0"), []string{"NO:1"}, nil}, {registry.Source{Reference: "not a name", Transport: http.DefaultTransport}, []string{"x:1"}, registry.ErrInvalid},
		{registry.Source{Reference: to.Host + "/nothing:1", Own: true}, []string{"x:1"}, registry.ErrManifestUnknown},
	} {
		if _, err := to.Store.Import(ctx, bad.src, bad.names, false); err == nil || bad.is != nil && !errors.Is(err, bad.is) {
			t.Errorf("import of %s as %q: %v, want %v", bad.src.Reference, bad.names, err, bad.is)
		}
	}
}
