package registry

import (
	"encoding/json"
	"fmt"
	"net/http"
)

// maxControl is the size of a control request.
const maxControl = 1 << 20

// fence is the body of a request that raises a run's fence.
type fence struct {
	Attempt int `json:"attempt"`
}

// publications is the answer to a publication.
type publications struct {
	Published []Published `json:"published"`
}

// fences is the answer to who asks for the fences there are.
type fences struct {
	Runs []string `json:"runs"`
}

func (h *handler) listFences(w http.ResponseWriter, r *http.Request, _ route) error {
	runs, err := h.s.Fences(r.Context(), r.URL.Query().Get("after"))
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, "application/json", fences{runs})
	return nil
}

func (h *handler) raiseFence(w http.ResponseWriter, r *http.Request, rt route) error {
	var f fence
	if err := readJSON(w, r, &f); err != nil {
		return err
	}
	if err := h.s.RaiseFence(r.Context(), rt.ref, f.Attempt); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (h *handler) finishRun(w http.ResponseWriter, r *http.Request, rt route) error {
	if err := h.s.FinishRun(r.Context(), rt.ref); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// A Guardian is an Authorizer that knows what each run may publish.
type Guardian interface {
	// MayPublish returns an error as Authorize does if a run may not publish something.
	MayPublish(r *http.Request, p Publication) error
}

func (h *handler) publish(w http.ResponseWriter, r *http.Request, rt route) error {
	var p Publication
	if err := readJSON(w, r, &p); err != nil {
		return err
	}
	if p.Run != rt.ref {
		return fmt.Errorf("%w: a publication for run %s is sent as one for run %s", ErrInvalid, p.Run, rt.ref)
	}
	if g, ok := h.auth.(Guardian); ok {
		if err := g.MayPublish(r, p); err != nil {
			return err
		}
	}
	out, err := h.s.Publish(r.Context(), p)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, "application/json", publications{out})
	return nil
}

func readJSON(w http.ResponseWriter, r *http.Request, v any) error {
	body, err := readBody(w, r, maxControl, ErrInvalid)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return nil
}
