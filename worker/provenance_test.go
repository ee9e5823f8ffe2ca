package worker

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"kiln/internal/event"
	"kiln/internal/registry"
	"kiln/internal/run"
	"kiln/internal/solve"
)

// provenances returns what a registry's clients find about an image, and the digests of the manifests.
func provenances(t *testing.T, host, token, repo, digest string) (digests []string, documents [][]byte) {
	t.Helper()
	ref, err := name.NewDigest(host+"/"+repo+"@"+digest, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	auth := remote.WithAuth(&authn.Basic{Username: "kiln", Password: token})
	idx, err := remote.Referrers(ref, auth)
	if err != nil {
		t.Fatal(err)
	}
	list, err := idx.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range list.Manifests {
		if m.ArtifactType != provenanceType || m.Annotations["in-toto.io/predicate-type"] != predicateType {
			t.Errorf("referrer is %+v", m)
		}
		img, err := remote.Image(ref.Context().Digest(m.Digest.String()), auth)
		if err != nil {
			t.Fatal(err)
		}
		layers, err := img.Layers()
		if err != nil || len(layers) != 1 {
			t.Fatalf("%d layers, %v", len(layers), err)
		}
		rc, err := layers[0].Compressed()
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(rc)
		if err := errors.Join(err, rc.Close()); err != nil {
			t.Fatal(err)
		}
		digests, documents = append(digests, m.Digest.String()), append(documents, b)
	}
	return digests, documents
}

// decoded is a document without its times, which it checks.
func decoded(t *testing.T, doc []byte) map[string]any {
	t.Helper()
	var st statement
	if err := json.Unmarshal(doc, &st); err != nil {
		t.Fatal(err)
	}
	md := st.Predicate.RunDetails.Metadata
	if age := time.Since(md.StartedOn); age < 0 || age > time.Minute || md.FinishedOn.Before(md.StartedOn) {
		t.Errorf("the provenance is of %s to %s", md.StartedOn, md.FinishedOn)
	}
	var m map[string]any
	if err := json.Unmarshal(doc, &m); err != nil {
		t.Fatal(err)
	}
	details := m["predicate"].(map[string]any)["runDetails"].(map[string]any)["metadata"].(map[string]any)
	delete(details, "startedOn")
	delete(details, "finishedOn")
	return m
}

// wantProvenance is what is told about the image of TestProvenanceOfAnImage, for DIGEST and HOST.
const wantProvenance = `{
	"_type": "https://in-toto.io/Statement/v1",
	"subject": [{"name": "HOST/team/app", "digest": {"sha256": "DIGEST"}}],
	"predicateType": "https://slsa.dev/provenance/v1",
	"predicate": {
		"buildDefinition": {
			"buildType": "urn:kiln:buildtype:v1",
			"externalParameters": {
				"task": "nightly", "context": "https://git.test/o/r.git#0123456789abcdef0123456789abcdef01234567", "ref": "refs/heads/main",
				"build": {"images": ["team/app", "team/app:latest"], "buildArgs": ["A=1", "TOKEN=***", "NOTE=has *** inside"], "target": "final"},
				"secretBuildArgs": ["TOKEN"], "secrets": ["npm"]},
			"internalParameters": {"run": "RUN", "attempt": 1, "step": "build", "cause": {"kind": "commit"}, "worker": "w"},
			"resolvedDependencies": [
				{"name": "source", "uri": "git+https://git.test/o/r.git@refs/heads/main", "digest": {"gitCommit": "0123456789abcdef0123456789abcdef01234567"}},
				{"uri": "pkg:docker/node@22", "digest": {"sha256": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}, "annotations": {"use": "runtime"}},
				{"uri": "pkg:docker/reg.test%3A5000/golang@1.26", "digest": {"sha256": "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"}, "annotations": {"use": "buildtime"}}]},
		"runDetails": {
			"builder": {"id": "https://kiln.test", "version": {"buildkit": "v0.33.1", "kiln": "v1.2.3"}},
			"metadata": {"invocationId": "RUN"}}}}`

func TestProvenanceOfAnImage(t *testing.T) {
	t.Parallel()
	s := &script{}
	g := newRig(t, s)
	g.w.Builder, g.w.BuildKit, g.w.Version = "https://kiln.test", "v0.33.1", "v1.2.3"
	g.w.Open = func(context.Context, OpenRequest) (Source, error) { return newCommit(nil), nil }
	s.build = func(ctx context.Context, b solve.Build, _ solve.LogFunc) (solve.Built, error) {
		built, err := g.stage(ctx, b)
		built.Bases = append(built.Bases, run.Base{Ref: "reg.test:5000/golang:1.26", Digest: otherDigest})
		built.Runtime = built.Bases[0].Ref + "@" + built.Bases[0].Digest
		return built, err
	}
	r := buildRun(run.BuildSpec{Images: []string{"team/app", "team/app:latest"}, Target: "final",
		BuildArgs: []string{"A=1", "TOKEN=arg-value", "NOTE=has set-value inside"}})
	r.Task, r.Cause.Kind = "nightly", run.CauseCommit
	r.Spec.Context, r.Spec.Ref = "https://ada:context-token@git.test/o/r.git?token=hub-token#"+someCommit, "refs/heads/main"
	rep := final(g.execute(t, g.assignSecrets(t, r, everySecret())))
	if rep == nil || rep.Final != run.Succeeded || len(rep.Images) != 2 {
		t.Fatalf("final report = %+v", rep)
	}
	digest := rep.Images[0].Digest
	digests, documents := provenances(t, g.reg.Host, g.reg.Token, "team/app", digest)
	if len(documents) != 1 {
		t.Fatalf("%d provenances, want one for the image's two tags", len(documents))
	}
	if p := rep.Images[0].Provenance; p != digests[0] || p != rep.Images[1].Provenance {
		t.Errorf("the record names %s, the registry has %s", p, digests[0])
	}
	var want any
	text := strings.NewReplacer("HOST", g.reg.Host, "DIGEST", strings.TrimPrefix(digest, "sha256:"), "RUN", testRun).Replace(wantProvenance)
	if err := json.Unmarshal([]byte(text), &want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, any(decoded(t, documents[0]))); diff != "" {
		t.Errorf("provenance (-want +got):\n%s", diff)
	}
	for _, value := range []string{"context-token", "set-value", "arg-value", "login-password", "hub-token", g.reg.Token} {
		if strings.Contains(string(documents[0]), value) {
			t.Errorf("the provenance holds %s", value)
		}
	}
}

// TestProvenanceOfATaskFile has a file that holds a secret once it is rendered.
func TestProvenanceOfATaskFile(t *testing.T) {
	t.Parallel()
	s := &script{}
	g := newRig(t, s)
	s.build = g.staging
	r := fileRun("version: v1.1.0\nsteps:\n- build: -t $Registry/app --build-arg K={{.Values.npm | b64enc}} .\n- push: [$Registry/app]\n")
	f := r.Spec.TaskFile
	f.Set, f.Env, f.Network, f.WorkingDirectory = []string{"color=blue"}, []string{"A=outer", "T=of set-value"}, "none", "sub"
	if rep := final(g.execute(t, g.assignSecrets(t, r, everySecret()))); rep == nil || rep.Final != run.Succeeded {
		t.Fatalf("final report = %+v", rep)
	}
	d, err := g.reg.Store.Resolve(t.Context(), "app", "latest")
	if err != nil {
		t.Fatal(err)
	}
	_, documents := provenances(t, g.reg.Host, g.reg.Token, "app", d.Digest)
	if len(documents) != 1 {
		t.Fatalf("%d provenances, want 1", len(documents))
	}
	doc := string(documents[0])
	for _, want := range []string{`"taskFile":{"name":"kiln.yaml","digest":{"sha256":"`, `"set":["color=blue"]`, `"env":["A=outer","T=of ***"]`, `"network":"none"`, `"workingDirectory":"sub"`, `"secrets":["npm"]`, `"step":"acb_step_0"`} {
		if !strings.Contains(doc, want) {
			t.Errorf("provenance lacks %s:\n%s", want, doc)
		}
	}
	if strings.Contains(doc, "c2V0LXZhbHVl") {
		t.Errorf("the provenance holds the secret in base64:\n%s", doc)
	}
}

func TestSupersededAttemptLeavesNoProvenance(t *testing.T) {
	t.Parallel()
	s := &script{}
	g := newRig(t, s)
	r := buildRun(run.BuildSpec{Images: []string{"app:v1"}})
	var built solve.Built
	s.build = func(ctx context.Context, b solve.Build, _ solve.LogFunc) (solve.Built, error) {
		var err error
		if built, err = g.stage(ctx, b); err != nil {
			return built, err
		}
		return built, g.reg.Store.RaiseFence(ctx, r.ID, 2)
	}
	g.execute(t, g.assign(t, r, nil))
	// The next attempt publishes what the first one has built, and tells of itself.
	r.Attempt = 2
	s.build = g.staging
	if rep := final(g.execute(t, g.assign(t, r, nil))); rep == nil || rep.Final != run.Succeeded {
		t.Fatalf("final report = %+v", rep)
	}
	_, documents := provenances(t, g.reg.Host, g.reg.Token, "app", built.Digest)
	if len(documents) != 1 || !strings.Contains(string(documents[0]), `"attempt":2`) {
		t.Errorf("provenances are %q, want the second attempt's alone", documents)
	}
}

func TestProvenanceInAnotherRegistry(t *testing.T) {
	t.Parallel()
	s := &script{}
	g := newRig(t, s)
	s.build = g.staging
	st, err := registry.Open(t.TempDir(), registry.Options{Reserve: -1})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(st.Handler(open{}))
	t.Cleanup(func() { srv.Close(); _ = st.Close() })
	host := strings.TrimPrefix(srv.URL, "http://")
	rep := final(g.execute(t, g.assign(t, buildRun(run.BuildSpec{Images: []string{host + "/far/app:v1"}}), nil)))
	if rep == nil || rep.Final != run.Succeeded || len(rep.Images) != 1 {
		t.Fatalf("final report = %+v", rep)
	}
	img := rep.Images[0]
	digests, documents := provenances(t, host, "", "far/app", img.Digest)
	if len(documents) != 1 || digests[0] != img.Provenance || img.Registry != host || img.Repository != "far/app" || img.Tag != "v1" {
		t.Fatalf("provenances %q, the record has %+v", digests, img)
	}
	if !strings.Contains(string(documents[0]), `"name":"`+host+`/far/app"`) {
		t.Errorf("provenance is %s", documents[0])
	}
}

func TestReusedImageNamesTheRunThatBuiltIt(t *testing.T) {
	t.Parallel()
	s := &script{}
	g := newRig(t, s)
	g.w.Resolver = Direct{g.reg.Store}
	g.w.Open = func(context.Context, OpenRequest) (Source, error) { return &identified{files{key: "dir"}}, nil }
	s.build = func(ctx context.Context, b solve.Build, _ solve.LogFunc) (solve.Built, error) {
		built, err := g.stage(ctx, b)
		built.Closed, built.Bases = true, nil
		return built, err
	}
	r := buildRun(run.BuildSpec{Images: []string{"app:v1"}})
	var rep *event.Report
	for _, r.ID = range []string{"r0000000one1", "r0000000two2"} {
		if rep = final(g.execute(t, g.assign(t, r, nil))); rep == nil || rep.Final != run.Succeeded {
			t.Fatalf("final report = %+v", rep)
		}
	}
	if n := len(s.steps()); n != 1 {
		t.Fatalf("%d builds, want one", n)
	}
	_, documents := provenances(t, g.reg.Host, g.reg.Token, "app", rep.Images[0].Digest)
	if len(documents) != 2 || strings.Contains(string(documents[0]), "builtBy") || !strings.Contains(string(documents[1]), `"builtBy":"r0000000one1"`) {
		t.Errorf("provenances are %q", documents)
	}
}

// identified is a source whose content has a name.
type identified struct{ files }

func (*identified) Identity() string { return "some content" }
