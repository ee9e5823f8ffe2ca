package main

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"kiln/internal/audit"
	"kiln/internal/auth"
)

// A registryNote is what was found out about a request to the registry: who has sent it, and whether that may.
type registryNote struct {
	noted  bool
	who    auth.Principal
	denied int // status of a refusal, 0 for none
}

type registryNoteKey struct{}

// noteAccess tells the audit log, if there is one for the request, who has sent it and what became of that. Who shows
// no token, or a session that was not made for this, has not been denied but asked to show one.
func noteAccess(r *http.Request, p auth.Principal, err error) {
	n, ok := r.Context().Value(registryNoteKey{}).(*registryNote)
	if !ok || n.noted { // what is asked for besides, such as to mount a blob of another repository, is no refusal
		return
	}
	n.noted = true
	switch n.who = p; {
	case errors.Is(err, auth.ErrDenied):
		n.denied = http.StatusForbidden
	case errors.Is(err, auth.ErrToken) && r.Header.Get("Authorization") != "":
		n.denied = http.StatusUnauthorized
	}
}

// audited serves the registry and records who pushes and deletes manifests, and who is denied anything. What is
// kiln's own, staged images and uploaded contexts, is not recorded.
func audited(registry http.Handler, l *audit.Log) http.Handler {
	if l == nil {
		return registry
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		note := &registryNote{}
		image, writes := manifestOf(r)
		r = r.WithContext(context.WithValue(r.Context(), registryNoteKey{}, note))
		status := 0
		if writes { // other answers may be large, and are not to be copied
			heard := &statusWriter{ResponseWriter: w}
			registry.ServeHTTP(heard, r)
			status = heard.status
		} else {
			registry.ServeHTTP(w, r)
		}
		switch {
		case note.denied != 0:
			status = note.denied
		case !writes || strings.HasPrefix(image, ownRepositories) || status == http.StatusUnauthorized:
			return
		}
		a := audit.Of(r, "image "+image)
		a.Who, a.Role, a.Token, a.Status = note.who.Name, string(note.who.Role), note.who.TokenID(), status
		l.Record(a)
	})
}

// auditedTokens serves the token endpoint and records who shows it a wrong password.
func auditedTokens(tokens http.Handler, l *audit.Log) http.Handler {
	if l == nil {
		return tokens
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		heard := &statusWriter{ResponseWriter: w}
		tokens.ServeHTTP(heard, r)
		if heard.status == http.StatusUnauthorized && (r.Header.Get("Authorization") != "" || r.Method == http.MethodPost) {
			a := audit.Of(r, "session")
			a.Status = heard.status
			l.Record(a)
		}
	})
}

// ownRepositories is how the names of kiln's own repositories begin.
const ownRepositories = "kiln/"

// manifestOf returns what a request to the registry is about, REPOSITORY:TAG or REPOSITORY@DIGEST where it is about a
// manifest, and whether it is to change that, or to delete a blob.
func manifestOf(r *http.Request) (image string, writes bool) {
	path := strings.TrimPrefix(r.URL.Path, "/v2/")
	changes := r.Method == http.MethodPut || r.Method == http.MethodDelete
	if i := strings.LastIndex(path, "/manifests/"); i > 0 {
		separator, ref := ":", path[i+len("/manifests/"):]
		if strings.Contains(ref, ":") {
			separator = "@"
		}
		return path[:i] + separator + ref, changes
	}
	return path, r.Method == http.MethodDelete && strings.Contains(path, "/blobs/sha")
}

// A statusWriter remembers the status of an answer.
type statusWriter struct {
	http.ResponseWriter
	status int
}

// WriteHeader implements http.ResponseWriter.
func (w *statusWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *statusWriter) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap lets an http.ResponseController reach what is below.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
