package registry

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
)

// maxMountSources is how many repositories are tried for a mount that names none.
const maxMountSources = 16

// startUpload serves POST: a mount, a whole blob in one request, or the beginning of an upload.
func (h *handler) startUpload(w http.ResponseWriter, r *http.Request, rt route) error {
	q := r.URL.Query()
	if m := q.Get("mount"); m != "" {
		d, err := parseDigest(m)
		if err != nil {
			return err
		}
		mounted, err := h.mount(r, rt.repository, q.Get("from"), d.String())
		if err != nil {
			return err
		}
		if mounted {
			blobCreated(w, rt.repository, d)
			return nil
		}
	}
	u, err := h.s.startUpload(rt.repository)
	if err != nil {
		return err
	}
	if dgst := q.Get("digest"); dgst != "" {
		return h.finishUpload(w, r, u, dgst)
	}
	uploadHeader(w, u)
	w.WriteHeader(http.StatusAccepted)
	return nil
}

// mount links a blob from another repository that the caller may pull from, and reports whether it
// could. Without a source it looks for one.
func (h *handler) mount(r *http.Request, to, from, dgst string) (bool, error) {
	sources := []string{from}
	if from == "" {
		var err error
		if sources, err = h.s.blobRepositories(r.Context(), dgst, maxMountSources); err != nil {
			return false, err
		}
	}
	for _, source := range sources {
		if checkName(source) != nil || h.authorize(r, source, Pull) != nil {
			continue
		}
		if ok, err := h.s.mountBlob(r.Context(), source, to, dgst); ok || err != nil {
			return ok, err
		}
	}
	return false, nil
}

func (h *handler) uploadStatus(w http.ResponseWriter, _ *http.Request, rt route) error {
	u, err := h.s.findUpload(rt.repository, rt.ref)
	if err != nil {
		return err
	}
	uploadHeader(w, u)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (h *handler) cancelUpload(w http.ResponseWriter, _ *http.Request, rt route) error {
	u, err := h.s.findUpload(rt.repository, rt.ref)
	if err != nil {
		return err
	}
	h.s.dropUpload(u)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// patchUpload serves PATCH: one chunk.
func (h *handler) patchUpload(w http.ResponseWriter, r *http.Request, rt route) error {
	u, err := h.s.findUpload(rt.repository, rt.ref)
	if err != nil {
		return err
	}
	if err := h.s.hold(r.Context(), u); err != nil {
		return err
	}
	defer h.s.release(u)
	if err := h.chunk(w, r, u); err != nil {
		return err
	}
	uploadHeader(w, u)
	w.WriteHeader(http.StatusAccepted)
	return nil
}

// putUpload serves PUT: the last chunk, which may be empty, and the digest.
func (h *handler) putUpload(w http.ResponseWriter, r *http.Request, rt route) error {
	u, err := h.s.findUpload(rt.repository, rt.ref)
	if err != nil {
		return err
	}
	return h.finishUpload(w, r, u, r.URL.Query().Get("digest"))
}

func (h *handler) finishUpload(w http.ResponseWriter, r *http.Request, u *upload, dgst string) error {
	if err := h.s.hold(r.Context(), u); err != nil {
		return err
	}
	defer h.s.release(u)
	d, err := parseDigest(dgst)
	if err != nil {
		return err
	}
	if err := h.chunk(w, r, u); err != nil {
		return err
	}
	if err := h.s.complete(r.Context(), u, d); err != nil {
		return err
	}
	blobCreated(w, u.repository, d)
	return nil
}

// chunk appends the request's body to u, if it is the part that comes next.
func (h *handler) chunk(w http.ResponseWriter, r *http.Request, u *upload) error {
	if cr := r.Header.Get("Content-Range"); cr != "" {
		start, end, err := parseChunkRange(cr)
		if err != nil {
			return err
		}
		if r.ContentLength >= 0 && r.ContentLength != end-start+1 {
			return fmt.Errorf("%w: Content-Range %q and Content-Length %d disagree", errUploadInvalid, clip(cr), r.ContentLength)
		}
		if at := u.offset(); start != at {
			uploadHeader(w, u)
			return fmt.Errorf("%w: the chunk begins at %d, the upload has %d bytes", errUploadRange, start, at)
		}
	}
	if r.ContentLength > 0 {
		if err := h.s.checkSpace(r.ContentLength); err != nil {
			h.s.dropUpload(u)
			return err
		}
	}
	return h.s.receive(u, r.Body)
}

// parseChunkRange reads "<start>-<end>", with or without the unit that HTTP asks for.
func parseChunkRange(s string) (start, end int64, err error) {
	from, to, ok := strings.Cut(strings.TrimPrefix(s, "bytes "), "-")
	if to, _, found := strings.Cut(to, "/"); found && ok {
		return parseChunkRange(from + "-" + to)
	}
	start, err1 := strconv.ParseInt(from, 10, 64)
	end, err2 := strconv.ParseInt(to, 10, 64)
	if err := errors.Join(err1, err2); err != nil || !ok || start < 0 || end < start-1 {
		return 0, 0, fmt.Errorf("%w: Content-Range %q: write <first byte>-<last byte>", errUploadInvalid, clip(s))
	}
	return start, end, nil
}

func uploadHeader(w http.ResponseWriter, u *upload) {
	h := w.Header()
	h.Set("Location", "/v2/"+u.repository+"/blobs/uploads/"+u.id)
	h.Set("Range", fmt.Sprintf("0-%d", max(0, u.offset()-1)))
	h.Set("Docker-Upload-UUID", u.id)
	h.Set("Content-Length", "0")
}

func blobCreated(w http.ResponseWriter, repository string, d digest.Digest) {
	h := w.Header()
	h.Set("Location", "/v2/"+repository+"/blobs/"+d.String())
	h.Set("Docker-Content-Digest", d.String())
	h.Set("Content-Length", "0")
	w.WriteHeader(http.StatusCreated)
}
