package api

import (
	"net/http"

	"kiln/internal/apiclient"
)

const (
	maxFilters = 16  // of one request about the cache
	maxFilter  = 512 // bytes of one
)

func (s *Server) showCache(w http.ResponseWriter, r *http.Request) error {
	filters := r.URL.Query()["filter"]
	if err := checkFilters(filters); err != nil {
		return err
	}
	found, err := s.Cache(r.Context(), filters)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, found)
	return nil
}

func (s *Server) pruneCache(w http.ResponseWriter, r *http.Request) error {
	var p apiclient.CachePrune
	if err := decodeBody(r, &p); err != nil {
		return err
	}
	if err := checkFilters(p.Filters); err != nil {
		return err
	}
	if p.Keep < 0 || p.UnusedFor < 0 {
		return invalid("keep %d, unusedFor %s: must not be negative", p.Keep, p.UnusedFor)
	}
	done, err := s.PruneCache(r.Context(), p)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, done)
	return nil
}

func checkFilters(filters []string) error {
	if len(filters) > maxFilters {
		return invalid("%d filters, at most %d are accepted", len(filters), maxFilters)
	}
	for _, f := range filters {
		if f == "" || len(f) > maxFilter {
			return invalid("filter %.40q: want 1 to %d bytes", f, maxFilter)
		}
	}
	return nil
}
