package api

import (
	"context"
	"errors"
	"net/http"

	"kiln/internal/apiclient"
	"kiln/internal/event"
	"kiln/internal/forge"
	"kiln/internal/secret"
)

// rotateHook gives a hook another secret. The one before is accepted until the rotation is finished, and
// there is no next rotation before: the sender might still sign with the secret that it would drop.
func (s *Server) rotateHook(w http.ResponseWriter, r *http.Request) error {
	var req apiclient.RotateHook
	if err := decodeBody(r, &req); err != nil {
		return err
	}
	h, err := s.findHook(r)
	if err != nil {
		return err
	}
	if req.Finish {
		h, err = s.changeHook(r.Context(), h.ID, func(h *event.Hook) error { h.Previous = nil; return nil })
		if err != nil {
			return err
		}
		writeJSON(w, http.StatusOK, publicHook(h, ""))
		return nil
	}
	clear := newHookSecret()
	sealed, err := secret.Seal(s.Recipient, clear)
	if err != nil {
		return err
	}
	h, err = s.changeHook(r.Context(), h.ID, func(h *event.Hook) error {
		if len(h.Previous) > 0 {
			e := conflict("hook %s still accepts the secret before the last rotation", h.Name)
			e.Remedy = "once the sender has the new one: kiln hook rotate --finish " + h.Name
			return e
		}
		h.Secret, h.Previous = sealed, h.Secret
		return nil
	})
	if err != nil {
		return err
	}
	if h.RemoteID != "" {
		if h, err = s.rotateAtForge(r.Context(), h, clear); err != nil {
			return err
		}
	}
	writeJSON(w, http.StatusOK, publicHook(h, clear))
	return nil
}

// rotateAtForge gives the forge the secret that the hook has now; if that cannot be, the hook gets back
// the one that the forge has.
func (s *Server) rotateAtForge(ctx context.Context, h event.Hook, clear string) (event.Hook, error) {
	id := h.RemoteID
	repo, err := s.openForge(ctx, h)
	if err == nil {
		id, err = repo.ReplaceHook(ctx, h.RemoteID, forge.Hook{URL: deliverTo(h), Secret: clear})
	}
	ctx = context.WithoutCancel(ctx)
	if err == nil || id != h.RemoteID {
		changed, changeErr := s.changeHook(ctx, h.ID, func(h *event.Hook) error { h.RemoteID = id; return nil })
		return changed, errors.Join(forgeError(err), changeErr)
	}
	if forge.Permanent(err) || repo == nil {
		_, undo := s.changeHook(ctx, h.ID, func(h *event.Hook) error { h.Secret, h.Previous = h.Previous, nil; return nil })
		return h, errors.Join(forgeError(err), undo)
	}
	// Nobody knows whether the forge has it, so both secrets stay.
	return h, &apiclient.Error{Status: http.StatusBadGateway, Code: apiclient.CodeForge, Message: err.Error(),
		Remedy: "nothing is lost, both secrets are accepted; to be rid of the old one, create another hook and delete this one"}
}

// checkHook asks the forge whether a hook is still there, active, and delivers here.
func (s *Server) checkHook(w http.ResponseWriter, r *http.Request) error {
	h, err := s.findHook(r)
	if err != nil {
		return err
	}
	if h.RemoteID == "" {
		return invalid("kiln has not registered hook %s at a forge, so it cannot ask for it there", h.Name)
	}
	repo, err := s.openForge(r.Context(), h)
	if err != nil {
		return err
	}
	state, err := repo.Hook(r.Context(), h.RemoteID)
	c := apiclient.HookCheck{Problem: state.Problem}
	switch {
	case errors.Is(err, forge.ErrNotFound):
		c.Problem = "it is not at the forge any more, or the token may not see it: delete it here with --local and create another"
	case err != nil:
		return forgeError(err)
	case state.URL != deliverTo(h):
		c.Problem = "it delivers to another address than " + deliverTo(h)
	case h.Disabled:
		c.Problem = "it is disabled here: deliveries are dropped"
	}
	c.OK = c.Problem == ""
	writeJSON(w, http.StatusOK, c)
	return nil
}
