package registry

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const octets = "application/octet-stream"

// contentHeader says which content an answer carries; it never changes under its digest.
func contentHeader(w http.ResponseWriter, dgst, mediaType string) {
	h := w.Header()
	h.Set("Docker-Content-Digest", dgst)
	h.Set("Content-Type", mediaType)
	h.Set("ETag", `"`+dgst+`"`)
}

func (h *handler) getBlob(w http.ResponseWriter, r *http.Request, rt route) (err error) {
	d, err := parseDigest(rt.ref)
	if err != nil {
		return err
	}
	blob, size, err := h.s.BlobReader(r.Context(), rt.repository, d.String())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, blob.Close()) }()
	if err := checkRange(r, size); err != nil {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", size))
		return err
	}
	contentHeader(w, d.String(), octets)
	w.Header().Set("Cache-Control", "private, max-age=31536000, immutable")
	http.ServeContent(w, r, "", time.Time{}, blob)
	return nil
}

// checkRange refuses a Range that lies outside of size bytes. One that is malformed is taken from r,
// as HTTP says it should be ignored.
func checkRange(r *http.Request, size int64) error {
	spec := r.Header.Get("Range")
	if spec == "" || size == 0 {
		return nil
	}
	list, ok := strings.CutPrefix(spec, "bytes=")
	for one := range strings.SplitSeq(list, ",") {
		from, to, dash := strings.Cut(strings.TrimSpace(one), "-")
		number := from
		if from == "" {
			number = to // the last bytes
		}
		n, err := strconv.ParseInt(number, 10, 64)
		if !ok || !dash || err != nil || n < 0 {
			r.Header.Del("Range")
			return nil
		}
		if from == "" && n > 0 || from != "" && n < size {
			return nil
		}
	}
	return fmt.Errorf("%w: %q of %d bytes", errRange, clip(spec), size)
}

func (h *handler) headBlob(w http.ResponseWriter, r *http.Request, rt route) error {
	d, err := parseDigest(rt.ref)
	if err != nil {
		return err
	}
	size, err := h.s.statBlob(r.Context(), rt.repository, d.String())
	if err != nil {
		return err
	}
	contentHeader(w, d.String(), octets)
	w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	w.Header().Set("Accept-Ranges", "bytes")
	w.WriteHeader(http.StatusOK)
	return nil
}

func (h *handler) deleteBlob(w http.ResponseWriter, r *http.Request, rt route) error {
	d, err := parseDigest(rt.ref)
	if err != nil {
		return err
	}
	if err := h.s.DeleteBlob(r.Context(), rt.repository, d.String()); err != nil {
		return err
	}
	w.WriteHeader(http.StatusAccepted)
	return nil
}
