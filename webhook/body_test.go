package webhook

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestMemoryOfBodiesIsBounded(t *testing.T) {
	t.Parallel()
	h := &Handler{Hooks: func(context.Context, string) (Hook, error) { return Hook{}, ErrNoHook }}
	post := func(size int) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/hooks/github/none", bytes.NewReader(make([]byte, size))))
		return w
	}
	for _, size := range []int{0, 1, 16 << 10, 100 << 10, 5 << 20, maxBody, maxBody + 1} {
		post(size)
		if got := h.held.Load(); got != 0 {
			t.Fatalf("%d bytes are held after a body of %d", got, size)
		}
	}
	h.held.Store(maxHeld)
	if w := post(1 << 20); w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
		t.Errorf("large body with no memory left: status %d, Retry-After %q", w.Code, w.Header().Get("Retry-After"))
	}
	if w := post(8 << 10); w.Code != http.StatusNotFound {
		t.Errorf("small body with no memory left: status %d, want 404", w.Code)
	}
	if got := h.held.Load(); got != maxHeld {
		t.Errorf("%d bytes are held, want %d", got, maxHeld)
	}
}
