package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"kiln/internal/api"
	"kiln/internal/apiclient"
	"kiln/internal/auth"
	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/index"
	"kiln/internal/natstest"
	"kiln/internal/registry"
	"kiln/internal/registrytest"
	"kiln/internal/run"
	"kiln/internal/secret"
	"kiln/internal/store"
	"kiln/taskspec"
	"kiln/triggers"
	"kiln/triggers/clock"
	"kiln/worker"
)

// known is the one context that has been uploaded.
const known = "context://known"

// A site is the API over real NATS, with the decider and the index that a server has.
type site struct {
	url      string
	bus      *bus.Bus
	store    *store.Store
	identity secret.Identity
	images   *registry.Store
	keys     *auth.Keys
	routes   []api.Route
	admin    string // tokens
	run      string
}

func start(t *testing.T) *site {
	t.Helper()
	return startWith(t, false)
}

// startWith is start; if tasks is set, the decider knows the tasks that are stored.
func startWith(t *testing.T, tasks bool) *site {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	s, dir := &site{bus: natstest.Start(t)}, t.TempDir()
	keys, err := auth.Load(dir)
	check(t, err)
	admin, err := os.ReadFile(filepath.Join(dir, auth.AdminTokenFile))
	check(t, err)
	s.admin = strings.TrimSpace(string(admin))
	s.run, err = keys.Mint(auth.Principal{Name: "runs", Role: auth.RoleRun, Grants: []event.Grant{{Repository: "*", Permissions: event.Permissions()}}, Expires: time.Now().Add(time.Hour)})
	check(t, err)
	s.identity, err = secret.NewIdentity()
	check(t, err)
	s.store, err = store.Open(t.Context(), s.bus.JetStream(), time.Minute)
	check(t, err)
	x, err := index.Open(filepath.Join(dir, "index.db"), log)
	check(t, err)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return x.Run(gctx, &s.store.Runs) })
	decider := &triggers.Decider{Bus: s.bus, Log: log}
	if tasks {
		decider.Store, decider.Clock = s.store, &clock.Clock{Bus: s.bus, Log: log}
	}
	g.Go(func() error { return decider.Run(gctx) })
	_, err = x.Active(t.Context()) // waits until the index is read
	check(t, err)
	images := registrytest.Start(t)
	s.images, s.keys = images.Store, keys
	server := &api.Server{Bus: s.bus, Store: s.store, Index: x, Keys: keys, Recipient: s.identity.Recipient(), Log: log, KeepRuns: 90 * 24 * time.Hour,
		Contexts:   http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }),
		HasContext: func(_ context.Context, ref string) (bool, error) { return ref == known, nil },
		Check: func(r run.Run, secrets map[string]string) (taskspec.Warnings, error) {
			_, warnings, err := worker.Plan(r, worker.PlanOptions{Registry: "reg.test:5000", Secrets: secrets})
			return warnings, err
		},
		Waiting: func(context.Context, ...string) (map[string]string, error) { return nil, nil },
		Reconcile: func(_ context.Context, dryRun bool) (apiclient.Reconciled, error) {
			return apiclient.Reconciled{DryRun: dryRun}, nil
		},
		Replay: func(_ context.Context, seq uint64, dryRun bool) (apiclient.Reconciled, error) {
			return apiclient.Reconciled{Looked: int(seq), DryRun: dryRun}, nil
		},
		Cache: func(_ context.Context, filters []string) (apiclient.Cache, error) {
			return apiclient.Cache{Kinds: []apiclient.CacheKind{{Kind: "regular", Records: len(filters)}}}, nil
		},
		PruneCache: func(_ context.Context, p apiclient.CachePrune) (apiclient.CachePruned, error) {
			return apiclient.CachePruned{Records: len(p.Filters), Freed: p.Keep}, nil
		},
		Registry: images.Store,
		Collect: func(ctx context.Context, dryRun bool) (apiclient.Collected, error) {
			return images.Store.Collect(ctx, registry.Collection{DryRun: dryRun})
		},
		Purge: func(ctx context.Context, p apiclient.Purge) (apiclient.Purged, error) {
			return images.Store.Purge(ctx, p, nil)
		},
		Import: func(context.Context, apiclient.Import) (apiclient.Imported, error) {
			return apiclient.Imported{}, store.ErrNotFound
		},
		Publisher:    func(context.Context, string) (string, error) { return "", store.ErrNotFound },
		TokenDeleted: func(string, string) {},
		Status:       func(context.Context) apiclient.Status { return apiclient.Status{Registry: "reg.test:5000"} },
	}
	s.routes = server.Routes()
	keys.Stored = func(ctx context.Context, key string) (event.Token, error) {
		stored, _, err := s.store.Tokens.Get(ctx, key)
		if errors.Is(err, store.ErrNotFound) {
			err = auth.ErrToken
		}
		return stored, err
	}
	srv := httptest.NewServer(server.Handler())
	t.Cleanup(func() {
		srv.Close()
		cancel()
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
		check(t, x.Close())
	})
	s.url = srv.URL
	return s
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// send sends a request with a token and returns the answer; the test's end closes it.
func (s *site) send(t *testing.T, token, method, path string, body []byte, header ...string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.url+path, bytes.NewReader(body))
	check(t, err)
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	check(t, err)
	t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

// ask sends an administrator's request, wants a status and decodes the answer into v unless it is nil.
func (s *site) ask(t *testing.T, want int, v any, method, path, body string) {
	t.Helper()
	resp := s.send(t, s.admin, method, path, []byte(body))
	data, err := io.ReadAll(resp.Body)
	check(t, err)
	if resp.StatusCode != want {
		t.Fatalf("%s %s = %d %s, want %d", method, path, resp.StatusCode, data, want)
	}
	if v != nil {
		check(t, json.Unmarshal(data, v))
	}
}

// refused sends a request that is to be refused and returns the error.
func (s *site) refused(t *testing.T, want int, method, path, body string) apiclient.Error {
	t.Helper()
	var answer struct {
		Error apiclient.Error `json:"error"`
	}
	s.ask(t, want, &answer, method, path, body)
	return answer.Error
}

// encode returns v as JSON.
func encode(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	check(t, err)
	return string(b)
}

// build is a request for a build.
func build(key string) apiclient.Submit {
	return apiclient.Submit{Key: key, Spec: run.Spec{Context: known, Build: &run.BuildSpec{Images: []string{"app"}}}}
}

// file is a request for a run of a task file.
func file(content string) apiclient.Submit {
	return apiclient.Submit{Spec: run.Spec{TaskFile: &run.TaskFileSpec{Name: "kiln.yaml", Content: []byte(content)}}}
}
