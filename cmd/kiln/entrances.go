package main

import (
	"fmt"
	"net/http"

	"kiln/internal/audit"
	"kiln/internal/auth"
	"kiln/internal/registry"
	"kiln/internal/store"
	"kiln/webhook"
)

// An openTo says who may use what is served at a pattern.
type openTo string

const (
	everybody   openTo = "everybody"            // it tells nothing that is not for everybody
	signed      openTo = "who signs deliveries" // with the secret of a hook
	byRoute     openTo = "by route"             // api.Server.Routes says who
	byRegistry  openTo = "by repository"        // registryAccess says who
	whoHasToken openTo = "who has a token"      // and gets a session for it
	whoWatches  openTo = "who watches"          // with any token, or on this host
)

// An entrance is something that the server serves, and who may use it.
type entrance struct {
	pattern string // as http.ServeMux has them
	who     openTo
	handler func() http.Handler
}

// mount serves entrances, but none of which it is not said who may use it. There is no other place where handlers are
// given to a mux.
func mount(all ...entrance) *http.ServeMux {
	mux := http.NewServeMux()
	for _, e := range all {
		if e.who != "" {
			mux.Handle(e.pattern, e.handler())
		}
	}
	return mux
}

// entrances are those of this process.
func (n *node) entrances() []entrance {
	all := []entrance{
		{"GET /healthz", everybody, plainly(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })},
		{"GET /readyz", everybody, plainly(n.serveReady)}, // what is wrong is told to who watches
		{"GET /metrics", whoWatches, plainly(n.serveMetrics)},
	}
	if n.registry != nil {
		all = append(all, registryEntrances(n.registry, n.keys, n.store, n.audit)...)
	}
	if n.has(roleAPI) || n.registry != nil {
		all = append(all, entrance{"/api/", byRoute, func() http.Handler { return n.onlyRegistry(n.api().Handler()) }})
	}
	if n.has(roleAPI) {
		all = append(all, entrance{webhook.Prefix, signed, func() http.Handler { return n.delivery }},
			entrance{"GET " + runPath + "{run}", everybody, plainly(n.showRun)})
	}
	return all
}

// registryEntrances are those of the registry and of its token endpoint.
func registryEntrances(r *registry.Store, keys *auth.Keys, s *store.Store, l *audit.Log) []entrance {
	return []entrance{
		{auth.TokenPath, whoHasToken, func() http.Handler { return auditedTokens(keys.TokenHandler(), l) }},
		{"/v2/", byRegistry, func() http.Handler { return audited(r.Handler(registryAccess{keys, &s.Runs}), l) }},
	}
}

func plainly(f http.HandlerFunc) func() http.Handler { return func() http.Handler { return f } }
