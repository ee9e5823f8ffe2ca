package worker

import (
	"context"
	"encoding/base64"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/internal/secret"
	"kiln/internal/solve"
)

// assignSecrets is assign with all kinds of secrets.
func (g *rig) assignSecrets(t *testing.T, r run.Run, s event.Secrets) event.Assignment {
	t.Helper()
	as := g.assign(t, r, nil)
	var err error
	if as.Secrets, err = secret.Seal(g.w.Identity.Recipient(), s); err != nil {
		t.Fatal(err)
	}
	return as
}

func everySecret() event.Secrets {
	return event.Secrets{Context: "git:context-token", Set: map[string]string{"npm": "set-value"}, Args: map[string]string{"TOKEN": "arg-value"},
		Logins: map[string]event.Login{"other.test:5000": {User: "ada", Password: "login-password"}, "docker.io": {User: TokenUser, Password: "hub-token"}}}
}

func TestSecretsOfARunAreUsedAndNotShown(t *testing.T) {
	t.Parallel()
	s := &script{}
	g := newRig(t, s)
	var asked OpenRequest
	g.w.Open = func(_ context.Context, r OpenRequest) (Source, error) {
		asked = r
		return &files{key: "dir"}, nil
	}
	s.build = func(ctx context.Context, b solve.Build, log solve.LogFunc) (solve.Built, error) {
		log(output("context-token set-value arg-value login-password hub-token\n"))
		log(output(base64.StdEncoding.EncodeToString([]byte("arg-value")) + "\n"))
		return g.stage(ctx, b)
	}
	r := buildRun(run.BuildSpec{BuildArgs: []string{"TOKEN=given", "A=1"}, Options: []string{"--secret=id=npm"}})
	r.Spec.Context, r.Spec.Refs, r.TaskUID = "https://git.test/o/r.git#"+someCommit, &run.SecretRefs{Context: "x"}, "uid"
	if rep := final(g.execute(t, g.assignSecrets(t, r, everySecret()))); rep == nil || rep.Final != run.Succeeded {
		t.Fatalf("final report = %+v", rep)
	}
	if diff := cmp.Diff(map[string]string{"TOKEN": "arg-value", "A": "1"}, s.builds[0].BuildArgs); diff != "" {
		t.Errorf("build arguments: %s", diff)
	}
	want := map[string]solve.Secret{"TOKEN": {Value: []byte("arg-value")}, "npm": {Value: []byte("set-value")}}
	if diff := cmp.Diff(want, s.builds[0].Secrets); diff != "" {
		t.Errorf("secrets of builds: %s", diff)
	}
	if asked.Token != "git:context-token" || asked.Scope != "" || s.cfg.CacheScope != "uid" {
		t.Errorf("source opened with %+v, caches of %q", asked, s.cfg.CacheScope)
	}
	for host, want := range map[string]string{
		"other.test:5000": "ada:login-password", "docker.io": ":hub-token", "index.docker.io": ":hub-token", "registry-1.docker.io": ":hub-token",
		"other.test": ":", "evil.test": ":", g.reg.Host: "kiln:" + g.reg.Token,
	} {
		if user, password := s.cfg.Credentials(host); user+":"+password != want {
			t.Errorf("credentials for %s are %s:%s, want %s", host, user, password, want)
		}
	}
	log := g.log(t, r.ID)
	for _, value := range []string{"context-token", "set-value", "arg-value", "login-password", "hub-token", "YXJnLXZhbHVl"} {
		if strings.Contains(log, value) {
			t.Errorf("log holds %s:\n%s", value, log)
		}
	}
}

func TestRestrictedRunsGetNoSecretsAndPushNothing(t *testing.T) {
	t.Parallel()
	s := &script{}
	g := newRig(t, s)
	s.build = g.staging
	var scopes []string
	g.w.Open = func(_ context.Context, r OpenRequest) (Source, error) {
		if r.Token != "git:context-token" {
			t.Errorf("source opened with %+v", r)
		}
		scopes = append(scopes, r.Scope)
		return &files{key: "dir"}, nil
	}
	r := buildRun(run.BuildSpec{Images: []string{"team/app"}})
	r.Spec.Context, r.Spec.Restricted, r.TaskUID, r.Spec.Refs = "https://git.test/o/r.git#"+someCommit, true, "uid", &run.SecretRefs{Context: "x"}
	r.Cause = run.Cause{Kind: run.CausePull, Repository: someURL, Author: "github:eve", PullRequest: 7}
	rep := final(g.execute(t, g.assignSecrets(t, r, everySecret())))
	if rep == nil || rep.Final != run.Succeeded || len(rep.Images) != 0 || rep.Steps[1].State != run.StepSkipped {
		t.Fatalf("final report = %+v", rep)
	}
	if _, err := g.reg.Store.Resolve(t.Context(), "team/app", testRun); err == nil {
		t.Error("the image was published")
	}
	if log := g.log(t, r.ID); !strings.Contains(log, "nothing is pushed: this run is of a pull request") {
		t.Errorf("log does not say why nothing was pushed:\n%s", log)
	}
	if user, _ := s.cfg.Credentials("other.test:5000"); user != "" || len(s.builds[0].Secrets) != 0 || len(s.builds[0].BuildArgs) != 0 {
		t.Errorf("a restricted run has login %q, secrets %v, arguments %v", user, s.builds[0].Secrets, s.builds[0].BuildArgs)
	}
	if !s.cfg.OwnFrontend {
		t.Error("a stranger's Dockerfile may bring its own frontend")
	}
	if s.cfg.Images == nil || s.cfg.Images(g.reg.Host+"/team/private:1") || !s.cfg.Images("docker.io/library/node:22") {
		t.Error("a stranger's run may use any image of the co-located registry, or none of others")
	}
	if scopes[0] == "" || s.cfg.CacheScope != scopes[0] {
		t.Errorf("scope of the source is %q, of caches %q", scopes[0], s.cfg.CacheScope)
	}
	for _, change := range []func(*run.Run){
		func(r *run.Run) { r.Cause.Author = "github:mallory" }, func(r *run.Run) { r.Cause.Repository += "x" }, func(r *run.Run) { r.TaskUID = "other" },
	} {
		other := r
		change(&other)
		if got := (&attempt{run: other}).cacheScope(); got == scopes[0] {
			t.Errorf("%+v shares caches with %+v", other.Cause, r.Cause)
		}
	}
}

func TestRunsArePinned(t *testing.T) {
	t.Parallel()
	s := &script{}
	r := fileRun("version: v1.1.0\nsteps:\n- build: -t a .\n- cmd: node:22 true\n- cmd: a true\n")
	r.Spec.Pins = map[string]string{"docker.io/library/node:22": someDigest, "reg.test:5000/base:1": someDigest, "not a name": someDigest}
	a := detached(t, r, s)
	a.w.Aliases = []string{"localhost:5000"}
	if err := a.runGraph(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"docker.io/library/node:22": someDigest, "reg.test:5000/base:1": someDigest, "localhost:5000/base:1": someDigest}
	if diff := cmp.Diff(want, s.builds[0].Pins); diff != "" {
		t.Error(diff)
	}
	for _, c := range s.runs {
		if c.Image != "docker.io/library/node:22@"+someDigest && !strings.Contains(c.Image, "/kiln/staging/") {
			t.Errorf("a step runs %s", c.Image)
		}
	}
}
