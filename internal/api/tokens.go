package api

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"kiln/internal/apiclient"
	"kiln/internal/auth"
	"kiln/internal/event"
	"kiln/internal/store"
)

// maxTokenLife bounds the life of a token that ends, in seconds.
const maxTokenLife = 100 * 365 * 24 * 3600

func (s *Server) createToken(w http.ResponseWriter, r *http.Request) error {
	var req apiclient.CreateToken
	if err := decodeBody(r, &req); err != nil {
		return err
	}
	about(r, req.Name)
	if err := auth.ValidTokenName(req.Name); err != nil {
		return invalid("name of the token: %s", err.Error())
	}
	t := event.Token{Name: req.Name, Grants: req.Grants, Tasks: req.Tasks}
	if err := auth.SetRole(&t, auth.Role(req.Role)); err != nil {
		return invalid("%s", err.Error())
	}
	if req.Seconds < 0 || req.Seconds > maxTokenLife {
		return invalid("seconds %d: want 0 to %d", req.Seconds, maxTokenLife)
	}
	t.Created = time.Now().UTC().Truncate(time.Second)
	if req.Seconds > 0 {
		t.Expires = t.Created.Add(time.Duration(req.Seconds) * time.Second)
	}
	password, t := auth.NewToken(t)
	_, err := s.Store.Tokens.Create(r.Context(), auth.TokenKey(t.Name), t)
	if errors.Is(err, store.ErrConflict) {
		return &apiclient.Error{Status: http.StatusConflict, Code: apiclient.CodeConflict,
			Message: fmt.Sprintf("there is a token %q", t.Name), Remedy: "take another name, or delete that one with `kiln token delete " + t.Name + "`"}
	}
	if err != nil {
		return err
	}
	made := publicToken(t, event.TokenUse{})
	made.Password = password
	writeJSON(w, http.StatusCreated, made)
	return nil
}

// publicToken is what is told of a token. The use is that of the token with its name that was used last.
func publicToken(t event.Token, use event.TokenUse) apiclient.Token {
	told := apiclient.Token{Name: t.Name, ID: t.ID, Role: t.Role, Tasks: t.Tasks, Grants: t.Grants, Created: t.Created, Expires: t.Expires}
	if use.ID == t.ID {
		told.Used = use.Time
	}
	return told
}

func (s *Server) listTokens(w http.ResponseWriter, r *http.Request) error {
	list, uses := []apiclient.Token{}, map[string]event.TokenUse{}
	err := s.Store.TokenUse.List(r.Context(), func(e store.Entry[event.TokenUse]) bool {
		uses[e.Key] = e.Value
		return true
	})
	if err != nil {
		return err
	}
	err = s.Store.Tokens.List(r.Context(), func(e store.Entry[event.Token]) bool {
		list = append(list, publicToken(e.Value, uses[e.Key]))
		return true
	})
	slices.SortFunc(list, func(a, b apiclient.Token) int { return strings.Compare(a.Name, b.Name) })
	return answer(w, apiclient.Tokens{Tokens: list}, err)
}

// token returns the token that a request names, and its revision.
func (s *Server) token(r *http.Request) (event.Token, uint64, error) {
	name := r.PathValue("name")
	t, revision, err := s.Store.Tokens.Get(r.Context(), auth.TokenKey(name))
	if errors.Is(err, store.ErrNotFound) {
		err = &apiclient.Error{Status: http.StatusNotFound, Code: apiclient.CodeNotFound,
			Message: fmt.Sprintf("no token %.80q", name), Remedy: "list the tokens with `kiln token list`"}
	}
	return t, revision, err
}

func (s *Server) showToken(w http.ResponseWriter, r *http.Request) error {
	t, _, err := s.token(r)
	if err != nil {
		return err
	}
	use, _, err := s.Store.TokenUse.Get(r.Context(), auth.TokenKey(t.Name))
	if errors.Is(err, store.ErrNotFound) {
		err = nil
	}
	return answer(w, publicToken(t, use), err)
}

func (s *Server) deleteToken(w http.ResponseWriter, r *http.Request) error {
	t, revision, err := s.token(r)
	if err != nil {
		return err
	}
	err = s.Store.Tokens.Remove(r.Context(), auth.TokenKey(t.Name), revision)
	if errors.Is(err, store.ErrConflict) {
		return &apiclient.Error{Status: http.StatusConflict, Code: apiclient.CodeConflict,
			Message: fmt.Sprintf("token %q was changed by somebody else at the same time; it was not deleted", t.Name), Remedy: "try again"}
	}
	if err != nil {
		return err
	}
	s.TokenDeleted(auth.TokenKey(t.Name), t.ID)
	return answer(w, publicToken(t, event.TokenUse{}), nil)
}
