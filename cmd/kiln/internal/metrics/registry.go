package metrics

import (
	"io"
	"net/http"
	"strconv"
	"strings"

	"kiln/internal/registry"
)

var methods = []string{http.MethodGet, http.MethodHead, http.MethodPut, http.MethodPost, http.MethodPatch, http.MethodDelete}

// Registry counts the requests to the registry that pass on their way to next. Others pass, too.
func (m *Metrics) Registry(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/v2/") {
			next.ServeHTTP(w, r)
			return
		}
		route := registry.RouteClass(r.URL.Path)
		answer, body := &countedAnswer{ResponseWriter: w}, &countedBody{ReadCloser: r.Body}
		r.Body = body
		defer func() { // also if the handler has given up by a panic
			m.requests.WithLabelValues(known(r.Method, methods), route, answer.class()).Inc()
			m.received.WithLabelValues(route).Add(float64(body.n))
			if r.Method != http.MethodHead { // what a handler writes then goes nowhere
				m.sent.WithLabelValues(route).Add(float64(answer.n))
			}
		}()
		next.ServeHTTP(answer, r)
	})
}

// A countedBody counts what is read of a request.
type countedBody struct {
	io.ReadCloser
	n int64
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n += int64(n)
	return n, err
}

// A countedAnswer counts what is written of an answer and keeps its status.
type countedAnswer struct {
	http.ResponseWriter
	status int
	n      int64
}

// WriteHeader implements http.ResponseWriter.
func (a *countedAnswer) WriteHeader(status int) {
	if a.status < http.StatusOK { // what comes before the answer is not the answer
		a.status = status
	}
	a.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (a *countedAnswer) Write(p []byte) (int, error) {
	n, err := a.ResponseWriter.Write(p)
	a.n += int64(n)
	return n, err
}

// ReadFrom implements io.ReaderFrom, so that files go out without passing through the process.
func (a *countedAnswer) ReadFrom(r io.Reader) (int64, error) {
	n, err := io.Copy(a.ResponseWriter, r)
	a.n += n
	return n, err
}

// Unwrap lets an http.ResponseController reach what is below.
func (a *countedAnswer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// class is the class of the status, such as 2xx.
func (a *countedAnswer) class() string {
	status := a.status
	if status == 0 {
		status = http.StatusOK
	}
	if status < 100 || status > 599 {
		return other
	}
	return strconv.Itoa(status/100) + "xx"
}
