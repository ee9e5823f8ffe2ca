package worker

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/natstest"
	"kiln/internal/registrytest"
	"kiln/internal/run"
	"kiln/internal/secret"
	"kiln/internal/solve"
	"kiln/internal/store"
)

// A rig is a worker with real NATS and a real registry around it, and a scripted engine.
type rig struct {
	w   *Worker
	bus *bus.Bus
	reg *registrytest.Registry
}

func newRig(t *testing.T, s *script) *rig {
	t.Helper()
	b, reg := natstest.Start(t), registrytest.Start(t)
	st, err := store.Open(t.Context(), b.JetStream(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	id, err := secret.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	return &rig{bus: b, reg: reg, w: &Worker{Bus: b, Store: st, Solver: s, Publisher: Direct{reg.Store}, Name: "w", Instance: "one", Pool: "default",
		Parallel: 1, Identity: id, Registry: reg.Host, Insecure: true, LeaseTTL: time.Minute, Log: slog.New(slog.DiscardHandler),
		Open: func(context.Context, OpenRequest) (Source, error) { return &files{key: "dir"}, nil }}}
}

// files is a source of which nothing is read here.
type files struct {
	Source
	key   string
	guard context.CancelCauseFunc // of the last guarded context
}

func (f *files) Key() string { return f.key }

func (f *files) Guard(ctx context.Context) (context.Context, func()) {
	ctx, f.guard = context.WithCancelCause(ctx)
	return ctx, func() { f.guard(nil) }
}

// assign makes the assignment of r's attempt as a scheduler does.
func (g *rig) assign(t *testing.T, r run.Run, secrets map[string]string) event.Assignment {
	t.Helper()
	seal := func(v any) []byte {
		sealed, err := secret.Seal(g.w.Identity.Recipient(), v)
		if err != nil {
			t.Fatal(err)
		}
		return sealed
	}
	as := event.Assignment{Run: r, Token: seal(event.Tokens{Registry: g.reg.Token})}
	if secrets != nil {
		as.Secrets = seal(event.Secrets{Set: secrets})
	}
	if err := g.reg.Store.RaiseFence(t.Context(), r.ID, r.Attempt); err != nil {
		t.Fatal(err)
	}
	return as
}

// execute executes an attempt and returns what the worker said about it.
func (g *rig) execute(t *testing.T, as event.Assignment) []event.Report {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	g.w.execute(ctx, cancel, as)
	return g.reports(t, as.Run.ID)
}

func (g *rig) reports(t *testing.T, id string) []event.Report {
	return stored[event.Report](t, g.bus, bus.StreamReports, event.ReportSubject(id))
}

// stored returns the messages of a subject.
func stored[T any](t *testing.T, b *bus.Bus, stream, filter string) []T {
	t.Helper()
	var all []T
	err := b.Tail(t.Context(), stream, filter, 0, false, func(_ uint64, data []byte) bool {
		var v T
		if err := json.Unmarshal(data, &v); err != nil {
			t.Error(err)
		}
		all = append(all, v)
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// final returns the report that ends an attempt, or nil.
func final(reports []event.Report) *event.Report {
	if n := len(reports); n > 0 && reports[n-1].Final != "" {
		return &reports[n-1]
	}
	return nil
}

// log returns the text of a run's log.
func (g *rig) log(t *testing.T, id string) string {
	t.Helper()
	var text strings.Builder
	for _, c := range stored[event.LogChunk](t, g.bus, bus.StreamLogs, event.LogFilter(id)) {
		for _, e := range c.Entries {
			text.Write(e.Data)
		}
	}
	return text.String()
}

// stage pushes an image by digest to a repository, host included, as an engine does.
func (g *rig) stage(ctx context.Context, b solve.Build) (solve.Built, error) {
	repo := strings.TrimPrefix(b.Staging, g.reg.Host+"/")
	config := []byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers"}}`)
	d, size, err := g.reg.Store.PutBlob(ctx, repo, strings.NewReader(string(config)))
	if err != nil {
		return solve.Built{}, err
	}
	const manifestType = "application/vnd.oci.image.manifest.v1+json"
	body := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},"layers":[],"annotations":{"step":%q}}`,
		manifestType, d, size, b.Step)
	if _, err := g.reg.Store.PutManifest(ctx, repo, "", manifestType, body); err != nil {
		return solve.Built{}, err
	}
	dgst := digest.FromBytes(body).String()
	return solve.Built{Digest: dgst, Ref: b.Staging + "@" + dgst, Bases: []run.Base{{Ref: "docker.io/library/node:22", Digest: someDigest}}}, nil
}

// staging is the build of a script whose images are really staged.
func (g *rig) staging(ctx context.Context, b solve.Build, _ solve.LogFunc) (solve.Built, error) {
	return g.stage(ctx, b)
}
