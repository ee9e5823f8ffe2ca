package main

import (
	"context"
	"errors"
	"net/http"
	"time"

	"kiln/internal/api"
	"kiln/internal/apiclient"
	"kiln/internal/registry"
	"kiln/internal/run"
	"kiln/internal/source"
	"kiln/taskspec"
	"kiln/worker"
)

// handler answers what this process is asked by HTTP: all of it with the role api, only what concerns images with
// the role registry, and of its own health in any case.
func (n *node) handler() http.Handler {
	n.watched()
	mux := mount(n.entrances()...)
	if n.has(roleAPI) {
		return n.metrics.Registry(n.passOn(mux))
	}
	return n.metrics.Registry(mux)
}

// onlyRegistry leaves of the API what concerns images, if this process is not to answer the rest.
func (n *node) onlyRegistry(next http.Handler) http.Handler {
	if n.has(roleAPI) {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !ofRegistry(r.URL.Path) {
			http.Error(w, "this process has not got the role api", http.StatusNotFound)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (n *node) api() *api.Server {
	s := &api.Server{
		Bus: n.bus, Store: n.store, Index: n.index, Keys: n.keys, Recipient: n.identity.Recipient(),
		Contexts:   &source.Handler{Contexts: n.contexts, Fault: contextFault, Log: n.log},
		HasContext: n.hasContext, Check: n.check, Status: n.status, Log: n.log,
		KeepRuns: time.Duration(n.cfg.keepRuns), Hooks: n.hookConfig(), TestTarget: n.notifier.Test,
		TokenDeleted: n.tokens.forget, Audit: n.audit, Publisher: n.publisher, Reconcile: n.reconcile, Replay: n.replay, Waiting: n.waiting,
		Cache: n.cache, PruneCache: n.pruneCache, Collect: n.collect, Purge: n.purge, Import: n.importImage, Backup: n.writeBackup,
	}
	if n.registry != nil {
		s.Registry = n.registry
	}
	return s
}

func (n *node) check(r run.Run, secrets map[string]string) (taskspec.Warnings, error) {
	_, warnings, err := worker.Plan(r, n.planOptions(secrets))
	return warnings, err
}

// contextFault describes errors of the registry to who uploads a context.
func contextFault(err error) *apiclient.Error {
	if errors.Is(err, registry.ErrDiskFull) {
		return &apiclient.Error{Status: http.StatusInsufficientStorage, Code: apiclient.CodeDiskFull,
			Message: "the server's disk is full", Remedy: "free space on the disk of the server's data directory, then try again"}
	}
	return nil
}

func (n *node) status(ctx context.Context) apiclient.Status {
	s := apiclient.Status{Version: version(), Started: n.started, Registry: n.host, DataDir: n.cfg.data}
	if n.builder != nil {
		s.Checks = append(s.Checks, n.builder.checks(ctx)...)
	}
	if n.registry != nil {
		s.Checks = append(s.Checks, n.blobChecks(ctx)...)
	}
	s.Checks = append(s.Checks, n.ready.checks(ctx, n.stateProbes())...)
	return s
}
