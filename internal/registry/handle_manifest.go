package registry

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// maxPushTags is how many tags one push by digest may name.
const maxPushTags = 32

func (h *handler) getManifest(w http.ResponseWriter, r *http.Request, rt route) error {
	if err := checkReference(rt.ref); err != nil {
		return unknownIfTag(rt, err)
	}
	m, err := h.s.Manifest(r.Context(), rt.repository, rt.ref)
	if err != nil {
		return err
	}
	h.s.pulls.note(m.row)
	contentHeader(w, m.Digest, m.MediaType)
	if notModified(r, m.Digest) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	w.Header().Set("Content-Length", strconv.FormatInt(m.Size, 10))
	_, _ = w.Write(m.Body) // an error means that the client is gone
	return nil
}

func (h *handler) headManifest(w http.ResponseWriter, r *http.Request, rt route) error {
	if err := checkReference(rt.ref); err != nil {
		return unknownIfTag(rt, err)
	}
	d, err := h.s.Resolve(r.Context(), rt.repository, rt.ref)
	if err != nil {
		return err
	}
	contentHeader(w, d.Digest, d.MediaType)
	if notModified(r, d.Digest) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	w.Header().Set("Content-Length", strconv.FormatInt(d.Size, 10))
	w.WriteHeader(http.StatusOK)
	return nil
}

// unknownIfTag answers a read of a malformed tag like that of one that does not exist.
func unknownIfTag(rt route, err error) error {
	if errors.Is(err, errTagInvalid) {
		return manifestUnknown(rt.repository, rt.ref)
	}
	return err
}

func notModified(r *http.Request, dgst string) bool {
	for tag := range strings.SplitSeq(r.Header.Get("If-None-Match"), ",") {
		if tag = strings.TrimPrefix(strings.TrimSpace(tag), "W/"); tag == `"`+dgst+`"` {
			return true
		}
	}
	return false
}

func (h *handler) putManifest(w http.ResponseWriter, r *http.Request, rt route) error {
	body, err := readBody(w, r, maxManifest, errManifestTooLarge)
	if err != nil {
		return err
	}
	p := put{repository: rt.repository, mediaType: r.Header.Get("Content-Type"), body: body}
	byDigest := isDigest(rt.ref)
	if byDigest {
		p.digest, p.tags = rt.ref, r.URL.Query()["tag"]
	} else {
		p.digest, p.tags = r.URL.Query().Get("digest"), []string{rt.ref}
	}
	if len(p.tags) > maxPushTags {
		return fmt.Errorf("%w: %d tags in one push, at most %d are accepted", errTagInvalid, len(p.tags), maxPushTags)
	}
	dgst, doc, err := h.s.putManifest(r.Context(), p)
	if err != nil {
		return err
	}
	head := w.Header()
	head.Set("Location", "/v2/"+rt.repository+"/manifests/"+dgst)
	head.Set("Docker-Content-Digest", dgst)
	if doc.Subject != nil {
		head.Set("OCI-Subject", doc.Subject.Digest)
	}
	if byDigest {
		for _, tag := range p.tags {
			head.Add("OCI-Tag", tag)
		}
	}
	head.Set("Content-Length", "0")
	w.WriteHeader(http.StatusCreated)
	return nil
}

// readBody reads a body of at most n bytes; a larger one is tooLarge.
func readBody(w http.ResponseWriter, r *http.Request, n int64, tooLarge error) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, n))
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, fmt.Errorf("%w: at most %d bytes are accepted", tooLarge, n)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: content ended early: %w", ErrManifestInvalid, err)
	}
	return body, nil
}

// deleteManifest serves DELETE: by tag it untags, by digest it deletes.
func (h *handler) deleteManifest(w http.ResponseWriter, r *http.Request, rt route) error {
	if err := checkReference(rt.ref); err != nil {
		return err
	}
	del := h.s.DeleteTag
	if isDigest(rt.ref) {
		del = h.s.DeleteManifest
	}
	if err := del(r.Context(), rt.repository, rt.ref); err != nil {
		return err
	}
	w.WriteHeader(http.StatusAccepted)
	return nil
}
