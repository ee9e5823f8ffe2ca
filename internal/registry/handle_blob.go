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

// slowest is the rate, in bytes per second, below which a client that fetches a blob is cut off.
const slowest = 16 << 10

// contentHeader says which content an answer carries; it never changes under its digest.
func contentHeader(w http.ResponseWriter, dgst, mediaType string) {
	h := w.Header()
	h.Set("Docker-Content-Digest", dgst)
	h.Set("Content-Type", mediaType)
	h.Set("ETag", `"`+dgst+`"`)
}

func (h *handler) getBlob(w http.ResponseWriter, r *http.Request, rt route) error {
	d, err := parseDigest(rt.ref)
	if err != nil {
		return err
	}
	blob, size, err := h.s.openBlob(r.Context(), rt.repository, d.String(), func(size int64) (span, error) { return checkRange(r, size) })
	if errors.Is(err, errRange) {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", size))
	}
	if err != nil {
		return err
	}
	defer func() { _ = blob.Close() }() // it was only read
	contentHeader(w, d.String(), octets)
	w.Header().Set("Cache-Control", "private, max-age=31536000, immutable")
	// Not every connection has deadlines.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(stall + time.Duration(size/slowest)*time.Second))
	http.ServeContent(w, r, "", time.Time{}, blob)
	return nil
}

// checkRange returns what a request asks for first and refuses a Range that lies outside of size bytes. One
// that is malformed is taken from r, as HTTP says it should be ignored.
func checkRange(r *http.Request, size int64) (span, error) {
	all := span{0, size}
	spec := r.Header.Get("Range")
	if spec == "" || size == 0 {
		return all, nil
	}
	list, ok := strings.CutPrefix(spec, "bytes=")
	for one := range strings.SplitSeq(list, ",") {
		first, last, wellFormed := parseRange(strings.TrimSpace(one), size)
		if !ok || !wellFormed {
			r.Header.Del("Range")
			return all, nil
		}
		if first <= last && first < size {
			return span{first, min(last, size-1) + 1}, nil
		}
	}
	return span{}, fmt.Errorf("%w: %q of %d bytes", errRange, clip(spec), size)
}

// parseRange reads one range of size bytes: "1-2", "1-" or "-2".
func parseRange(s string, size int64) (first, last int64, ok bool) {
	from, to, ok := strings.Cut(s, "-")
	if from == "" {
		n, err := strconv.ParseUint(to, 10, 63)
		return max(0, size-int64(n)), size - 1, ok && err == nil
	}
	f, err := strconv.ParseUint(from, 10, 63)
	if err != nil || to == "" {
		return int64(f), size - 1, ok && err == nil
	}
	l, err := strconv.ParseUint(to, 10, 63)
	return int64(f), int64(l), ok && err == nil
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
