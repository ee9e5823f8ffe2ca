package main

import (
	"log/slog"
	"net/http"
	"strings"
	"time"

	"kiln/internal/registry"
	"kiln/webhook"
)

const (
	headersWithin = 10 * time.Second
	// maxPause is how long a client may pause: between two requests on a connection, and while it sends a body.
	maxPause = 2 * time.Minute
)

// newServer returns a server of which nobody can hold connections without using them.
func newServer(handler http.Handler, pause time.Duration, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.ContentLength != 0 {
				if !strings.HasPrefix(r.URL.Path, webhook.Prefix) { // which has a stricter bound of its own
					registry.Patiently(w, r, pause)
				}
				// What the handler leaves of the body the server reads, or a part of it, before the next request.
				defer func() { _ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(pause)) }()
			}
			handler.ServeHTTP(w, r)
		}),
		ReadHeaderTimeout: headersWithin,
		IdleTimeout:       pause,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}
