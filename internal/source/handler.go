package source

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"

	"github.com/klauspost/compress/zstd"

	"kiln/internal/apiclient"
)

// maxKey bounds the key of an upload, in bytes.
const maxKey = 256

// drainLimit is how much of a refused body is still read, so that the client sees the answer
// instead of a broken connection.
const drainLimit = 4 << 20

// A Handler is the server's side of uploads:
//
//	POST /api/v1/contexts?key=       body: the head of an upload  -> 200 Missing
//	PUT  /api/v1/contexts/{id}?key=&base=  body: an upload        -> 201
//
// Bodies may have the Content-Encoding gzip or zstd. It authenticates nobody: wrap it.
type Handler struct {
	Contexts *Contexts
	// Fault describes errors of the store. Nil makes all of them internal.
	Fault func(error) *apiclient.Error
	// Log gets the errors that are not the client's. Nil discards them.
	Log *slog.Logger
}

// ServeHTTP answers the two requests, and 404 to all others.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id, found := strings.CutPrefix(r.URL.Path, apiclient.PathContexts)
	id, hasID := strings.CutPrefix(id, "/")
	switch {
	case found && !hasID && id == "" && r.Method == http.MethodPost:
		h.serve(w, r, h.missing)
	case found && hasID && r.Method == http.MethodPut:
		h.serve(w, r, func(r *http.Request, key string, body io.Reader) (int, any, error) {
			err := h.Contexts.Put(r.Context(), id, key, r.URL.Query().Get("base"), body)
			return http.StatusCreated, Missing{ID: id, Exists: true}, err
		})
	default:
		h.serve(w, r, func(r *http.Request, _ string, _ io.Reader) (int, any, error) {
			return 0, nil, &apiclient.Error{
				Status: http.StatusNotFound, Code: apiclient.CodeNotFound,
				Message: r.Method + " " + r.URL.Path + " is not part of the API",
			}
		})
	}
}

func (h *Handler) missing(r *http.Request, key string, body io.Reader) (int, any, error) {
	held := &hold{all: &h.Contexts.held}
	defer held.release()
	tree, err := readHead(body, h.Contexts.Limits, held)
	if err != nil {
		return 0, nil, err
	}
	m, err := h.Contexts.missing(r.Context(), key, tree, held)
	return http.StatusOK, m, err
}

// An action reads a body and returns the status and the value of the answer.
type action func(r *http.Request, key string, body io.Reader) (status int, answer any, err error)

// serve opens the body, answers with what f returns, and drains what f has not read.
func (h *Handler) serve(w http.ResponseWriter, r *http.Request, f action) {
	status, answer, err := 0, any(nil), error(nil)
	if key := r.URL.Query().Get("key"); key == "" || len(key) > maxKey {
		err = malformed("parameter key: %d bytes, 1 to %d are allowed", len(key), maxKey)
	} else if body, e := decompress(r); e != nil {
		err = e
	} else {
		status, answer, err = f(r, key, body)
		body.Close()
	}
	if err != nil {
		_, _ = io.CopyN(io.Discard, r.Body, drainLimit)
		e := h.describe(err)
		if e.Status >= http.StatusInternalServerError && h.Log != nil && r.Context().Err() == nil {
			h.Log.ErrorContext(r.Context(), "context not stored", "err", err)
		}
		status, answer = e.Status, map[string]any{"error": e}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(answer) // an error means that the client is gone
}

// decompress returns the body without its Content-Encoding. Its memory is bounded; the bound of its
// length is the reader's.
func decompress(r *http.Request) (io.ReadCloser, error) {
	switch enc := r.Header.Get("Content-Encoding"); enc {
	case "", "identity":
		return r.Body, nil
	case "gzip":
		zr, err := gzip.NewReader(r.Body)
		if err != nil {
			return nil, bodyError(err)
		}
		return zr, nil
	case "zstd":
		zr, err := zstd.NewReader(r.Body, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(8<<20))
		if err != nil {
			return nil, bodyError(err)
		}
		return zr.IOReadCloser(), nil
	default:
		return nil, malformed("content encoding %q is not known; use zstd, gzip or none", enc)
	}
}

// describe says what went wrong without telling what the server's files are called.
func (h *Handler) describe(err error) *apiclient.Error {
	if e, ok := errors.AsType[*apiclient.Error](err); ok {
		return e
	}
	e := &apiclient.Error{Message: err.Error()}
	switch {
	case errors.Is(err, ErrBaseGone):
		e.Status, e.Code, e.Remedy = http.StatusConflict, apiclient.CodeConflict, "upload the context again"
	case errors.Is(err, errBusy):
		e.Status, e.Code, e.Remedy = http.StatusServiceUnavailable, apiclient.CodeUnavailable, "again in a moment"
	case isTooLarge(err):
		e.Status, e.Code = http.StatusRequestEntityTooLarge, apiclient.CodeTooLarge
		e.Remedy = "list what the build does not need in .dockerignore"
	case errors.Is(err, errMalformed):
		e.Status, e.Code = http.StatusUnprocessableEntity, apiclient.CodeInvalid
	default:
		if h.Fault != nil {
			if known := h.Fault(err); known != nil {
				return known
			}
		}
		e.Status, e.Code, e.Message = http.StatusInternalServerError, apiclient.CodeInternal, "the context could not be stored"
		e.Remedy = "see the server's log"
	}
	return e
}

func isTooLarge(err error) bool {
	_, ok := errors.AsType[*TooLargeError](err)
	return ok
}
