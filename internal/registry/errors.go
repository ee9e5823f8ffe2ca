package registry

import (
	"encoding/json"
	"errors"
	"net/http"

	"kiln/internal/registry/bucket"
)

// Conditions that callers branch on. The errors returned name the thing they are about and wrap one
// of these.
var (
	// ErrUnauthenticated is an Authorizer's answer to a request without valid credentials.
	ErrUnauthenticated = errors.New("authentication required")
	// ErrDenied is an Authorizer's answer to a caller who may not do what is asked.
	ErrDenied = errors.New("access denied")
	// ErrFenced refuses a publication of an attempt that was superseded or of a run that is over.
	ErrFenced = errors.New("attempt is fenced off")
	// ErrTagExists refuses to give a unique tag a second digest.
	ErrTagExists = errors.New("tag exists with another digest")
	// ErrTagProtected refuses to move or delete a unique tag of a run.
	ErrTagProtected = errors.New("tag is protected")
	// ErrLocked refuses what a lock of the repository, manifest or tag is there to prevent.
	ErrLocked = errors.New("locked")
	// ErrSource means that the registry which an image is imported from did not give it.
	ErrSource = errors.New("source of the import")
	// ErrRepositoryUnknown means that there is no such repository.
	ErrRepositoryUnknown = errors.New("repository unknown")
	// ErrManifestUnknown means that there is no such tag or manifest in the repository.
	ErrManifestUnknown = errors.New("manifest unknown")
	// ErrManifestInvalid refuses a manifest that is malformed.
	ErrManifestInvalid = errors.New("manifest invalid")
	// ErrReferenceMissing refuses a manifest that refers to something its repository lacks.
	ErrReferenceMissing = errors.New("manifest refers to unknown content")
	// ErrBlobUnknown means that there is no such blob in the repository.
	ErrBlobUnknown = errors.New("blob unknown")
	// ErrDigestInvalid refuses a malformed digest, or content that has another one.
	ErrDigestInvalid = errors.New("digest invalid")
	// ErrDiskFull refuses a write because the disk is full or nearly so. Reads still work, and
	// writes do as soon as there is space.
	ErrDiskFull = errors.New("disk full")
	// ErrInUse means that another process has the directory open.
	ErrInUse = errors.New("directory is in use by another process")
	// ErrBlobsElsewhere means that the blobs of a directory are not where they are looked for.
	ErrBlobsElsewhere = errors.New("the registry's blobs are elsewhere")
	// ErrClosed means that the store was closed.
	ErrClosed = errors.New("registry is closed")
	// ErrInvalid refuses a malformed fence or publication.
	ErrInvalid = errors.New("invalid request")
)

// Conditions that only the protocol knows.
var (
	errNameInvalid      = errors.New("repository name invalid")
	errTagInvalid       = errors.New("tag invalid")
	errManifestTooLarge = errors.New("manifest too large")
	errBlobTooLarge     = errors.New("blob too large")
	errReferenced       = errors.New("content is referenced")
	errUploadUnknown    = errors.New("upload unknown")
	errUploadInvalid    = errors.New("upload invalid")
	errUploadRange      = errors.New("chunk out of order")
	errRange            = errors.New("range not satisfiable")
	errUploadBusy       = errors.New("upload is in use by another request")
	errTooManyUploads   = errors.New("too many uploads in progress")
	errPageInvalid      = errors.New("page invalid")
	errCollecting       = errors.New("a collection is under way: wait until it has ended")
	errMethod           = errors.New("method not supported here")
	errNotFound         = errors.New("no such resource")
)

// statusOf gives conditions their status and error code on the wire. The first that matches wins.
var statusOf = []struct {
	err    error
	status int
	code   string
}{
	{ErrDiskFull, http.StatusInsufficientStorage, "INSUFFICIENT_STORAGE"},
	{bucket.ErrUnavailable, http.StatusServiceUnavailable, "UNAVAILABLE"},
	{ErrBlobsElsewhere, http.StatusServiceUnavailable, "UNAVAILABLE"},
	{ErrClosed, http.StatusServiceUnavailable, "UNAVAILABLE"},
	{ErrUnauthenticated, http.StatusUnauthorized, "UNAUTHORIZED"},
	{ErrDenied, http.StatusForbidden, "DENIED"},
	{ErrFenced, http.StatusConflict, "FENCED"},
	{ErrTagExists, http.StatusConflict, "TAG_EXISTS"},
	{ErrTagProtected, http.StatusConflict, "DENIED"},
	{ErrLocked, http.StatusLocked, "DENIED"},
	{ErrRepositoryUnknown, http.StatusNotFound, "NAME_UNKNOWN"},
	{ErrManifestUnknown, http.StatusNotFound, "MANIFEST_UNKNOWN"},
	{ErrReferenceMissing, http.StatusBadRequest, "MANIFEST_BLOB_UNKNOWN"},
	{ErrManifestInvalid, http.StatusBadRequest, "MANIFEST_INVALID"},
	{errManifestTooLarge, http.StatusRequestEntityTooLarge, "MANIFEST_INVALID"},
	{ErrBlobUnknown, http.StatusNotFound, "BLOB_UNKNOWN"},
	{errBlobTooLarge, http.StatusRequestEntityTooLarge, "SIZE_INVALID"},
	{errReferenced, http.StatusMethodNotAllowed, "UNSUPPORTED"},
	{ErrDigestInvalid, http.StatusBadRequest, "DIGEST_INVALID"},
	{errNameInvalid, http.StatusBadRequest, "NAME_INVALID"},
	{errTagInvalid, http.StatusBadRequest, "TAG_INVALID"},
	{errUploadUnknown, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN"},
	{errUploadRange, http.StatusRequestedRangeNotSatisfiable, "BLOB_UPLOAD_INVALID"},
	{errRange, http.StatusRequestedRangeNotSatisfiable, "SIZE_INVALID"},
	{errUploadInvalid, http.StatusBadRequest, "BLOB_UPLOAD_INVALID"},
	{errUploadBusy, http.StatusConflict, "BLOB_UPLOAD_INVALID"},
	{errTooManyUploads, http.StatusTooManyRequests, "TOOMANYREQUESTS"},
	{errPageInvalid, http.StatusBadRequest, "PAGINATION_NUMBER_INVALID"},
	{errCollecting, http.StatusConflict, "UNAVAILABLE"},
	{ErrSource, http.StatusBadGateway, "UNAVAILABLE"},
	{errMethod, http.StatusMethodNotAllowed, "UNSUPPORTED"},
	{errNotFound, http.StatusNotFound, "UNSUPPORTED"},
	{ErrInvalid, http.StatusBadRequest, "INVALID"},
}

// Status returns the HTTP status that the protocol has for an error of this package, 0 for others.
func Status(err error) int {
	for _, row := range statusOf {
		if errors.Is(err, row.err) {
			return row.status
		}
	}
	return 0
}

// wireErrors is the body of every answer that is an error.
type wireErrors struct {
	Errors []wireError `json:"errors"`
}

type wireError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Detail  any    `json:"detail,omitempty"`
}

// writeError answers with err and returns the status. What no table row covers is ours: its text may
// name files, so the caller gets none of it.
func writeError(w http.ResponseWriter, err error) (status int) {
	status, e := http.StatusInternalServerError, wireError{Code: "UNKNOWN", Message: "internal error"}
	for _, row := range statusOf {
		if errors.Is(err, row.err) {
			status, e = row.status, wireError{Code: row.code, Message: err.Error()}
			break
		}
	}
	if status == http.StatusUnauthorized {
		challenge := `Basic realm="kiln"`
		var c interface{ Challenge() string }
		if errors.As(err, &c) {
			challenge = c.Challenge()
		}
		w.Header().Set("WWW-Authenticate", challenge)
	}
	w.Header().Del("Content-Length")
	writeJSON(w, status, "application/json", wireErrors{Errors: []wireError{e}})
	return status
}

// writeJSON answers with v. An error means that the client is gone, which nobody is left to hear.
func writeJSON(w http.ResponseWriter, status int, mediaType string, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		status, b = http.StatusInternalServerError, []byte(`{"errors":[{"code":"UNKNOWN","message":"internal error"}]}`)
	}
	w.Header().Set("Content-Type", mediaType)
	w.WriteHeader(status)
	_, _ = w.Write(b)
}
