package main

import (
	"context"
	"net"
	"net/http"
	"slices"
	"time"

	"kiln/cmd/kiln/internal/metrics"
	"kiln/internal/apiclient"
	"kiln/internal/auth"
	"kiln/internal/bus"
	"kiln/internal/store"
	"kiln/scheduler"
)

// watched says where the metrics of what is there are read.
func (n *node) watched() {
	var s metrics.Sources
	if n.has(roleScheduler) {
		s.Queue = func(ctx context.Context) (scheduler.Stats, error) {
			if acting := n.acting.Load(); acting != nil {
				return acting.Stats(ctx)
			}
			return scheduler.Stats{}, metrics.ErrElsewhere
		}
	}
	if n.bus != nil && !n.onlyWorks() {
		watched := append(bus.Streams(), store.Streams()...)
		s.Streams = func(ctx context.Context) ([]bus.StreamStats, error) { return n.bus.Stats(ctx, watched...) }
	}
	n.metrics.Watch(s)
	n.onClose(func() error { n.ready.running.Wait(); return nil })
}

func (n *node) serveMetrics(w http.ResponseWriter, r *http.Request) {
	if !n.mayWatch(r) {
		w.Header().Set("WWW-Authenticate", `Bearer realm="kiln"`)
		http.Error(w, "metrics are told to who shows a token of this server, and to this host", http.StatusUnauthorized)
		return
	}
	n.metrics.Handler().ServeHTTP(w, r)
}

// forwarded are headers of requests that somebody passes on, so that the address they come from says nothing.
var forwarded = []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-Ip", "Via"}

// mayWatch reports whether the caller may see how this process is doing: whoever shows a token, whatever it
// permits, and who is on this host.
func (n *node) mayWatch(r *http.Request) bool {
	p := auth.Principal{Role: auth.RoleAnonymous}
	var err error
	if n.keys != nil {
		p, err = n.keys.FromRequest(r, time.Now())
	}
	switch {
	case err != nil:
		return false
	case p.Role != auth.RoleAnonymous && !p.Anonymous:
		return true
	case slices.ContainsFunc(forwarded, func(h string) bool { return r.Header.Get(h) != "" }):
		return false
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	return err == nil && net.ParseIP(host).IsLoopback()
}

// A readyCheck is one of the checks of /readyz as it is answered.
type readyCheck struct {
	Name    string `json:"name"`
	OK      bool   `json:"ok"`
	Message string `json:"message,omitempty"`
}

// serveReady says whether this process can do its work. Who may not watch learns no more than that.
func (n *node) serveReady(w http.ResponseWriter, r *http.Request) {
	checks := n.ready.checks(r.Context(), n.probes())
	answer := struct {
		Ready  bool         `json:"ready"`
		Checks []readyCheck `json:"checks"`
	}{Ready: !slices.ContainsFunc(checks, func(c apiclient.Check) bool { return !c.OK })}
	tell := n.mayWatch(r)
	for _, c := range checks {
		shown := readyCheck{Name: c.Name, OK: c.OK}
		if tell {
			shown.Message = c.Detail
		}
		answer.Checks = append(answer.Checks, shown)
	}
	status := http.StatusOK
	if !answer.Ready {
		status = http.StatusServiceUnavailable
	}
	w.Header().Set("Cache-Control", "no-store")
	writeJSON(w, status, answer)
}
