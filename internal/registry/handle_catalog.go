package registry

import (
	"context"
	"net/http"
)

// A Viewer is an Authorizer that knows which repositories a caller may see. The catalog lists no others.
type Viewer interface {
	// Visible returns what reports whether the sender of a request may know of a repository, or an
	// error as Authorize does.
	Visible(r *http.Request) (func(repository string) bool, error)
}

// catalogBatch is how many names are looked at at once for a page of those that a caller may see.
const catalogBatch = 1000

func (h *handler) catalog(w http.ResponseWriter, r *http.Request, _ route) error {
	p, err := parsePage(r)
	if err != nil {
		return err
	}
	visible := func(string) bool { return true }
	if v, ok := h.auth.(Viewer); ok {
		if visible, err = v.Visible(r); err != nil {
			return err
		}
	}
	names, err := h.s.visibleRepositories(r.Context(), p, visible)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, "application/json", struct {
		Repositories []string `json:"repositories"`
	}{p.cut(w, r, names)})
	return nil
}

// visibleRepositories returns the names of a page, and one more if there are more.
func (s *Store) visibleRepositories(ctx context.Context, p page, visible func(string) bool) ([]string, error) {
	var names []string
	after, batch := p.after, max(catalogBatch, p.n+1)
	for {
		list, err := s.Repositories(ctx, after, batch)
		if err != nil {
			return nil, err
		}
		for _, name := range list {
			if visible(name) {
				names = append(names, name)
			}
			if len(names) > p.n {
				return names, nil
			}
		}
		if len(list) < batch {
			return names, nil
		}
		after = list[len(list)-1]
	}
}
