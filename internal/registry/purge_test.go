package registry_test

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"kiln/internal/apiclient"
	"kiln/internal/registry"
	"kiln/internal/registrytest"
)

func TestPurge(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	ctx := t.Context()
	digests := map[string]string{}
	for i, tag := range []string{"pr-1", "pr-2", "pr-3", "pr-4", "pr-5", "release"} {
		digests[tag] = tagImage(t, r, "team/app", tag, tag)
		age(t, r, time.Duration(i+1)*time.Hour)
	}
	tagImage(t, r, "team/app", "moved", "before")
	before := tagImage(t, r, "team/app", "moved", "after")
	child := stage(t, r, "team/app", "child")
	index := tagIndex(t, r, "team/app", "pr-index", child)
	tagImage(t, r, "other", "pr-1", "other")
	age(t, r, 40*24*time.Hour)
	tagImage(t, r, "team/app", "pr-new", "new")
	lock(t, r, "team/app", "pr-1", "delete")
	request := apiclient.Purge{Filters: []string{"team/.*:^pr-"}, Ago: 30 * 24 * time.Hour, Keep: 1, Untagged: true, DryRun: true}
	needed := map[string]bool{digests["pr-3"]: true}
	plan, err := r.Store.Purge(ctx, request, needed)
	if err != nil {
		t.Fatal(err)
	}
	request.DryRun = false
	done, err := r.Store.Purge(ctx, request, needed)
	if err != nil {
		t.Fatal(err)
	}
	// pr-index is the newest; pr-1 is locked and pr-3 needed.
	if plan.DryRun = false; fmt.Sprint(plan) != fmt.Sprint(done) || done.Tags != 3 || done.Count != 4 || done.Kept != 3 ||
		done.Frees != int64(len("pr-2pr-4pr-5")+len("before")) || len(done.Untagged) != 0 {
		t.Errorf("purge: %+v, was to be %+v", done, plan)
	}
	got, err := r.Store.Tags(ctx, "team/app", "", 100)
	if want := []string{"moved", "pr-1", "pr-3", "pr-index", "pr-new", "release"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("tags = %q, %v, want %q", got, err, want)
	}
	for _, tag := range got {
		want(t, r, http.StatusOK, "GET", "/v2/team/app/manifests/"+tag, nil)
	}
	want(t, r, http.StatusOK, "GET", "/v2/team/app/manifests/"+before, nil)
	want(t, r, http.StatusOK, "GET", "/v2/other/manifests/pr-1", nil)
	sound(t, r.Store)

	// Without --untagged the manifest stays, and so does what the index names.
	done, err = r.Store.Purge(ctx, apiclient.Purge{Filters: []string{"team/app:^pr-index$"}}, nil)
	if err != nil || done.Tags != 1 || done.Count != 0 || !slices.Equal(done.Untagged, []string{"team/app:pr-index"}) {
		t.Errorf("purge of a tag: %+v, %v", done, err)
	}
	want(t, r, http.StatusOK, "GET", "/v2/team/app/manifests/"+index, nil)
	done, err = r.Store.Purge(ctx, apiclient.Purge{Filters: []string{"team/app:^$"}, Untagged: true}, map[string]bool{child: true})
	if err != nil {
		t.Errorf("purge of an index whose image is needed: %+v, %v", done, err)
	}
	want(t, r, http.StatusOK, "GET", "/v2/team/app/manifests/"+child, nil)
	for _, bad := range []apiclient.Purge{{}, {Filters: []string{"app"}}, {Filters: []string{"app:("}}, {Filters: []string{"app:" + strings.Repeat("x", 600)}},
		{Filters: []string{"app:.*"}, Ago: -1}, {Filters: []string{"app:.*"}, Keep: -1}, {Filters: slices.Repeat([]string{"app:.*"}, 33)}} {
		if _, err := r.Store.Purge(ctx, bad, nil); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("purge %+v: %v", bad, err)
		}
	}
}
