package api

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"kiln/internal/apiclient"
	"kiln/internal/event"
	"kiln/internal/secret"
	"kiln/internal/store"
	"kiln/internal/task"
)

// maxSecret is the longest value of a secret, in bytes.
const maxSecret = 64 << 10

func (s *Server) setSecret(w http.ResponseWriter, r *http.Request) error {
	var req apiclient.SecretValue
	if err := decodeBody(r, &req); err != nil {
		return err
	}
	name := r.PathValue("name")
	if err := task.ValidSecretName(name); err != nil {
		return invalid("name of the secret: %s", err.Error())
	}
	if err := principal(r).Limits().MayUse(name); err != nil {
		return err
	}
	switch {
	case req.Value == "":
		return invalid("secret %q: the value is empty", name)
	case len(req.Value) > maxSecret:
		return invalid("secret %q: the value has %d bytes, more than %d", name, len(req.Value), maxSecret)
	case !utf8.ValidString(req.Value) || strings.ContainsRune(req.Value, 0):
		return invalid("secret %q: the value is no text; encode it, as with base64", name)
	}
	sealed, err := secret.Seal(s.Recipient, req.Value)
	if err != nil {
		return err
	}
	stored := event.Secret{Name: name, Sealed: sealed, Updated: time.Now().UTC()}
	if _, err := s.Store.Secrets.Put(r.Context(), event.Hash(name), stored); err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, apiclient.Secret{Name: name, Updated: stored.Updated})
	return nil
}

func (s *Server) listSecrets(w http.ResponseWriter, r *http.Request) error {
	list, mine := []apiclient.Secret{}, principal(r).Limits()
	err := s.Store.Secrets.List(r.Context(), func(e store.Entry[event.Secret]) bool {
		if mine.MayUse(e.Value.Name) == nil {
			list = append(list, apiclient.Secret{Name: e.Value.Name, Updated: e.Value.Updated})
		}
		return true
	})
	if err != nil {
		return err
	}
	slices.SortFunc(list, func(a, b apiclient.Secret) int { return strings.Compare(a.Name, b.Name) })
	writeJSON(w, http.StatusOK, apiclient.Secrets{Secrets: list})
	return nil
}

func (s *Server) removeSecret(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("name")
	if err := principal(r).Limits().MayUse(name); err != nil {
		return err
	}
	_, revision, err := s.Store.Secrets.Get(r.Context(), event.Hash(name))
	if errors.Is(err, store.ErrNotFound) {
		return &apiclient.Error{Status: http.StatusNotFound, Code: apiclient.CodeNotFound,
			Message: "no secret " + strconv.Quote(name), Remedy: "list the secrets with `kiln secret list`"}
	}
	if err != nil {
		return err
	}
	err = s.Store.Secrets.Remove(r.Context(), event.Hash(name), revision)
	if errors.Is(err, store.ErrConflict) {
		return &apiclient.Error{Status: http.StatusConflict, Code: apiclient.CodeConflict,
			Message: fmt.Sprintf("secret %q was changed by somebody else at the same time; it was not removed", name), Remedy: "try again"}
	}
	if err != nil {
		return err
	}
	var answer apiclient.SecretRemoved
	err = s.Store.Tasks.List(r.Context(), func(e store.Entry[task.Task]) bool {
		if principal(r).SeesTask(e.Value.Name) && slices.Contains(e.Value.Secrets(), name) {
			answer.UsedBy = append(answer.UsedBy, e.Value.Name)
		}
		return true
	})
	if err != nil {
		return err
	}
	slices.Sort(answer.UsedBy)
	writeJSON(w, http.StatusOK, answer)
	return nil
}
