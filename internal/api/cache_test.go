package api_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"kiln/internal/apiclient"
)

func TestCacheRequestsAreChecked(t *testing.T) {
	t.Parallel()
	s := start(t)
	client := &apiclient.Client{BaseURL: s.url, Token: s.admin}
	found, err := client.Cache(t.Context(), []string{"type==regular", "description~=npm"})
	if err != nil || len(found.Kinds) != 1 || found.Kinds[0].Records != 2 {
		t.Errorf("Cache = %+v, %v, want both filters to arrive", found, err)
	}
	done, err := client.PruneCache(t.Context(), apiclient.CachePrune{Filters: []string{"a"}, Keep: 5})
	if err != nil || done != (apiclient.CachePruned{Records: 1, Freed: 5}) {
		t.Errorf("PruneCache = %+v, %v", done, err)
	}
	for name, p := range map[string]apiclient.CachePrune{
		"negative": {Keep: -1}, "empty filter": {Filters: []string{""}}, "long filter": {Filters: []string{strings.Repeat("x", 600)}},
		"many filters": {Filters: strings.Split(strings.Repeat("x", 20), "")}, "negative time": {UnusedFor: -1},
	} {
		var refused *apiclient.Error
		if _, err := client.PruneCache(t.Context(), p); !errors.As(err, &refused) || refused.Status != http.StatusUnprocessableEntity {
			t.Errorf("%s: %v, want it refused", name, err)
		}
	}
}
