package webhook

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"time"
)

// Bounds of what is read. A forge's largest delivery is 25 MB.
const (
	maxBody     = 25 << 20
	maxHeld     = 256 << 20 // all bodies in hand
	minRead     = 4 << 10
	keptBuffer  = 64 << 10 // buffers above are not used again
	readTimeout = 60 * time.Second
)

var (
	errTooLarge = errors.New("the body is above 25 MB")
	errBusy     = errors.New("too many large deliveries at once")
)

func (h *Handler) buffer() *bytes.Buffer {
	if b, ok := h.bodies.Get().(*bytes.Buffer); ok {
		return b
	}
	return bytes.NewBuffer(make([]byte, 0, 4*minRead))
}

// release gives a buffer and its share of the memory back.
func (h *Handler) release(b *bytes.Buffer) {
	h.held.Add(-claimed(b.Cap()))
	if b.Cap() <= keptBuffer {
		b.Reset()
		h.bodies.Put(b)
	}
}

// claimed is what a buffer counts for: small ones are bounded by the number of connections.
func claimed(capacity int) int64 {
	if capacity <= keptBuffer {
		return 0
	}
	return int64(capacity)
}

// read reads the body into buf. Memory grows with what has arrived, not with what is announced.
func (h *Handler) read(w http.ResponseWriter, r *http.Request, buf *bytes.Buffer) error {
	if r.ContentLength > maxBody {
		return errTooLarge
	}
	rc := http.NewResponseController(w)
	if rc.SetReadDeadline(time.Now().Add(readTimeout)) == nil {
		// The deadline is the body's: it must not end the request while it is answered.
		defer func() { _ = rc.SetReadDeadline(time.Time{}) }()
	}
	for {
		if buf.Available() < minRead/4 {
			if err := h.grow(buf); err != nil {
				return err
			}
		}
		free := buf.AvailableBuffer()
		n, err := r.Body.Read(free[:cap(free)])
		_, _ = buf.Write(free[:n]) // its own memory
		switch {
		case buf.Len() > maxBody:
			return errTooLarge
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("the body ends early: %w", err)
		}
	}
}

// grow doubles the buffer, if that is within the memory for bodies.
func (h *Handler) grow(buf *bytes.Buffer) error {
	before := claimed(buf.Cap())
	old := buf.Cap()
	if h.held.Load()+int64(2*old) > maxHeld && 2*old > keptBuffer {
		return errBusy
	}
	buf.Grow(old)
	h.held.Add(claimed(buf.Cap()) - before)
	return nil
}

// refuseBody answers a delivery whose body cannot be read.
func (h *Handler) refuseBody(w http.ResponseWriter, err error) {
	w.Header().Set("Connection", "close")
	switch {
	case errors.Is(err, errTooLarge):
		answerError(w, http.StatusRequestEntityTooLarge, err.Error())
	case errors.Is(err, errBusy):
		h.log().Warn("delivery refused for want of memory", "err", err)
		unavailable(w, retrySoon, err.Error())
	default:
		answerError(w, http.StatusBadRequest, "the body ends early")
	}
}

// payload returns the JSON of a body, which forges also send as a field of a form.
func payload(header http.Header, raw []byte) ([]byte, error) {
	kind := header.Get("Content-Type")
	if kind == "application/json" {
		return raw, nil
	}
	if kind, _, err := mime.ParseMediaType(kind); err != nil || kind != "application/x-www-form-urlencoded" {
		return raw, nil
	}
	form, err := url.ParseQuery(string(raw))
	if err != nil {
		return nil, fmt.Errorf("form: %w", err)
	}
	if !form.Has("payload") {
		return nil, errors.New(`form: no field "payload"; set the hook's content type to application/json`)
	}
	return []byte(form.Get("payload")), nil
}
