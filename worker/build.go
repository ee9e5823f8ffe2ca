package worker

import (
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"kiln/internal/run"
	"kiln/internal/solve"
	"kiln/taskspec"
)

func (a *attempt) build(ctx context.Context, s *taskspec.Step, rec *run.Step) error {
	b, err := a.buildRequest(s)
	if err != nil {
		return &stepFailure{s.ID, err}
	}
	if rec.Output, err = a.makeImage(ctx, s, b, a.logs.sink(s.ID)); err != nil {
		return err
	}
	return a.buildFiles(ctx, s.Build, s.WorkingDirectory, *rec.Output)
}

// makeImage executes a build of a step and makes its image known in the run.
func (a *attempt) makeImage(ctx context.Context, s *taskspec.Step, b solve.Build, log solve.LogFunc) (*run.Output, error) {
	trees := &remotes{a: a, step: s}
	defer trees.close()
	gctx, err := trees.open(ctx, &b)
	if err != nil {
		return nil, err
	}
	a.annotate(gctx, &b)
	built, err := a.solve(gctx, b, log)
	if err != nil && ctx.Err() == nil && gctx.Err() != nil {
		err = trees.failure("remote context", context.Cause(gctx)) // BuildKit itself says only that it was stopped
	}
	if err != nil {
		return nil, err
	}
	out := run.Output{Digest: built.Digest, Ref: built.Ref, Tags: s.Build.Tags, Bases: built.Bases, Runtime: built.Runtime, BuiltBy: built.BuiltBy}
	a.images.add(out, s.ID)
	for i := range built.Bases {
		built.Bases[i].Step = s.ID
	}
	a.reports.bases(built.Bases)
	return &out, nil
}

// buildRequest translates a build step for the solver, but for the contexts that have to be fetched.
func (a *attempt) buildRequest(s *taskspec.Step) (solve.Build, error) {
	b := s.Build
	dir, err := inWorkspace(s.WorkingDirectory)
	if elsewhere := isRemote(b.Context) || path.IsAbs(b.Context) && (b.Dockerfile == "" || path.IsAbs(b.Dockerfile)); err != nil && !elsewhere {
		return solve.Build{}, err
	}
	req := solve.Build{
		Step: s.ID, FromWorkspace: a.wroteWorkspace(), Target: b.Target, Platforms: b.Platforms,
		NoCache: b.NoCache, NoCacheFilter: b.NoCacheFilter, Pull: b.Pull, AddHosts: b.AddHosts, Ulimits: b.Ulimits,
		BuildArgs: pairs(given(b.BuildArgs)), Labels: pairs(b.Labels), Annotations: pairs(b.Annotation),
		Images: a.images.contexts(), Pins: a.pins(), Staging: a.images.staging(b.Tags),
	}
	if b.Network == "none" {
		req.Network = solve.NetworkNone
	}
	if req.ShmSize, err = bytesOf(b.ShmSize); err != nil {
		return req, err
	}
	if !isRemote(b.Context) {
		if req.Context, err = pathOf("build context", dir, b.Context); err != nil {
			return req, err
		}
		if b.Dockerfile != "" {
			if req.Dockerfile, err = pathOf("dockerfile", dir, b.Dockerfile); err != nil {
				return req, err
			}
		}
	} else {
		req.Context, req.Dockerfile = ".", b.Dockerfile
	}
	if a.run.Spec.Build != nil {
		req.DockerfileInline = a.run.Spec.Build.DockerfileInline
		maps.Copy(req.BuildArgs, a.secrets.Args)
	}
	req.Hidden = hiddenIn(req.BuildArgs, a.confidential())
	if req.Secrets, req.SSH, err = a.buildSecrets(s); err != nil {
		return req, err
	}
	if err := a.caches(s, &req); err != nil {
		return req, err
	}
	return req, a.epoch(&req)
}

// pathOf returns a path of a build relative to the source's root: from the step's directory, or, if it is
// absolute, in /workspace.
func pathOf(what, dir, p string) (string, error) {
	joined := path.Join(dir, p)
	if path.IsAbs(p) {
		var err error
		if joined, err = inWorkspace(p); err != nil {
			return "", fmt.Errorf("%s %q is outside %s", what, p, workspace)
		}
	}
	if joined == ".." || strings.HasPrefix(joined, "../") {
		return "", fmt.Errorf("%s %q leaves the source", what, p)
	}
	return joined, nil
}

func pairs(kvs []taskspec.KeyValue) map[string]string {
	m := make(map[string]string, len(kvs))
	for _, kv := range kvs {
		m[kv.Key] = kv.Value
	}
	return m
}

// hiddenIn returns those of the values that an argument holds.
func hiddenIn(args map[string]string, values []string) []string {
	var found []string
	for _, v := range values {
		holds := func(arg string) bool { return strings.Contains(arg, v) }
		if v != "" && slices.ContainsFunc(slices.Collect(maps.Values(args)), holds) {
			found = append(found, v)
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// given are the build arguments that have a value. One that was named only, and that the step's environment
// does not have, keeps the default of the Dockerfile.
func given(args []taskspec.KeyValue) []taskspec.KeyValue {
	return slices.DeleteFunc(slices.Clone(args), func(kv taskspec.KeyValue) bool { return kv.Bare })
}

const epochArg = "SOURCE_DATE_EPOCH"

// epoch makes a build reproducible: the time of everything in its image is that of the argument, or of the
// commit that is built, or the beginning of 1970.
func (a *attempt) epoch(req *solve.Build) error {
	given, ok := req.BuildArgs[epochArg]
	switch {
	case ok && given != "":
		seconds, err := strconv.ParseInt(given, 10, 64)
		if err != nil || seconds < 0 || seconds > maxEpoch {
			return fmt.Errorf("build argument %s=%s: want seconds since 1970", epochArg, clip(given, 40))
		}
		req.Epoch = time.Unix(seconds, 0)
		delete(req.BuildArgs, epochArg)
	case !ok && a.run.Spec.Build != nil && a.run.Spec.Build.Reproducible:
		req.Epoch = time.Unix(0, 0)
		if !a.origin.Time.IsZero() {
			req.Epoch = a.origin.Time
		}
	}
	return nil
}

const maxEpoch = 253402300799 // the last second of the year 9999
