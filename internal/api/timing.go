package api

import (
	"net/http"
	"strconv"
	"time"
)

// A timed answer says in its header how long the server took until it began to answer, which is what a client
// would otherwise have to guess from what it has waited.
type timed struct {
	http.ResponseWriter
	begin time.Time
	begun bool

	status int // of the answer, once it has begun
}

// headerTiming is defined in https://www.w3.org/TR/server-timing: durations are milliseconds.
const headerTiming = "Server-Timing"

// WriteHeader implements http.ResponseWriter.
func (t *timed) WriteHeader(status int) {
	if !t.begun {
		t.begun, t.status = true, status
		ms := float64(time.Since(t.begin)) / float64(time.Millisecond)
		t.Header().Set(headerTiming, "app;dur="+strconv.FormatFloat(ms, 'f', 3, 64))
	}
	t.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (t *timed) Write(b []byte) (int, error) {
	if !t.begun {
		t.WriteHeader(http.StatusOK)
	}
	return t.ResponseWriter.Write(b)
}

// Unwrap lets an http.ResponseController reach what is below.
func (t *timed) Unwrap() http.ResponseWriter { return t.ResponseWriter }
