package buildkit

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/sourcepolicy/policysession"

	"kiln/internal/buildkit/progress"
	"kiln/internal/event"
	"kiln/internal/solve"
)

// Build solves b with the dockerfile frontend and pushes the result by digest.
func (s *runSession) Build(ctx context.Context, b solve.Build, log solve.LogFunc) (solve.Built, error) {
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return solve.Built{}, err
	}
	defer end()
	if err := s.client.ready(ctx); err != nil {
		return solve.Built{}, err
	}
	in, err := s.inputs(ctx, b)
	if err != nil {
		return solve.Built{}, err
	}
	defer in.release()

	base := in.findBase(b)
	built, err := s.solve(ctx, b, in, log)
	if isDiskFull(err) {
		say(log, "the disk of the build daemon is full: freeing what is not in use, then building again")
		if err = s.client.freeDisk(ctx); err == nil {
			built, err = s.solve(ctx, b, in, log)
		}
		if isDiskFull(err) {
			err = &diskFullError{address: s.client.cfg.Address, err: err}
		}
	}
	if ref := base(); err == nil {
		built.Runtime = runtimeOf(s.cfg, ref, b, built)
	}
	return built, err
}

// solve is one try of a build.
func (s *runSession) solve(ctx context.Context, b solve.Build, in *inputs, log solve.LogFunc) (solve.Built, error) {
	attrs, err := frontendAttrs(s.cfg, b, in.dockerfileName)
	if err != nil {
		return solve.Built{}, err
	}
	maps.Copy(attrs, in.contexts)
	bases := newBaseRecorder(b, s.cfg)
	vertices := &vertexNames{names: map[string]string{}, foreign: map[string]bool{}}
	status := make(chan *client.SolveStatus)
	var forwarded sync.WaitGroup
	forwarded.Go(func() {
		for st := range status {
			vertices.add(st)
			if entries := s.redacted(progress.Entries(st, time.Now())); len(entries) > 0 {
				log(entries...)
			}
		}
	})
	lost := s.client.link.lost()
	policy := policysession.NewPolicyProvider(bases.check)
	ctx, failed := context.WithCancelCause(ctx)
	defer failed(nil)
	own, detach, err := s.attach(failed, in.mounts, in.sharedKey, append(in.attachables(s), policy)...)
	if err != nil {
		close(status)
		return solve.Built{}, err
	}
	resp, err := s.execute(ctx, b, client.SolveOpt{
		Ref:                   identity.NewID(),
		Frontend:              "dockerfile.v0",
		FrontendAttrs:         attrs,
		SharedSession:         own,
		SessionPreInitialized: true,
		CacheExports:          cacheExports(s.cfg, b.CacheTo),
		CacheImports:          cacheImports(s.cfg, b.CacheFrom),
		Exports:               []client.ExportEntry{{Type: client.ExporterImage, Attrs: exportAttrs(s.cfg, b)}},
		SourcePolicy:          imagePolicy(s.cfg, b),
		SourcePolicyProvider:  policy,
		// The daemon's history of builds costs a third of a small build's time. What would be read
		// from it, the base images, the policy provider sees.
		Internal: true,
	}, status, log)
	detach()
	forwarded.Wait()
	if err != nil {
		return solve.Built{}, s.buildError(ctx, b, err, vertices, lost)
	}
	digest := resp.ExporterResponse[exptypes.ExporterImageDigestKey]
	if digest == "" {
		return solve.Built{}, fmt.Errorf("step %s: the build daemon did not tell the digest of what it pushed to %s", b.Step, b.Staging)
	}
	built := solve.Built{Digest: digest, Ref: b.Staging + "@" + digest}
	bases.fill(&built)
	return built, nil
}

// redacted masks credentials in what the daemon tells about vertices. Output is the user's own.
func (s *runSession) redacted(entries []event.LogEntry) []event.LogEntry {
	for i := range entries {
		switch e := &entries[i]; {
		case e.Vertex != nil:
			e.Vertex.Name = s.redact.String(e.Vertex.Name)
			e.Vertex.Error = s.redact.String(e.Vertex.Error)
		case e.Status != nil:
			e.Status.ID = s.redact.String(e.Status.ID)
			e.Status.Name = s.redact.String(e.Status.Name)
		}
	}
	return entries
}

// say writes kiln's own words into a step's log.
func say(log solve.LogFunc, format string, args ...any) {
	log(event.LogEntry{Time: time.Now(), Stream: event.StreamKiln, Data: fmt.Appendf(nil, format+"\n", args...)})
}

// vertexNames remembers the names of a build's vertices, for its error, and which of them could not be
// executed because their programs are another platform's.
type vertexNames struct {
	mu      sync.Mutex
	names   map[string]string
	foreign map[string]bool
}

// formatError is how the kernel's refusal of a program reads in the output of the step that it was to be.
var formatError = []byte("exec format error")

func (v *vertexNames) add(st *client.SolveStatus) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, x := range st.Vertexes {
		v.names[x.Digest.String()] = x.Name
	}
	for _, l := range st.Logs {
		if bytes.Contains(l.Data, formatError) {
			v.foreign[l.Vertex.String()] = true
		}
	}
}

func (v *vertexNames) name(digest string) (name string, foreign bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.names[digest], v.foreign[digest]
}
