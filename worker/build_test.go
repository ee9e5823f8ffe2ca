package worker

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/internal/secret"
	"kiln/internal/solve"
)

// asked executes a task file and returns what the engine was asked to build, and the run's log.
func asked(t *testing.T, yaml string, secrets event.Secrets, change func(*rig, *run.Run)) (solve.Build, *event.Report, string) {
	t.Helper()
	s := &script{}
	g := newRig(t, s)
	s.build = g.staging
	r := fileRun("version: v1.1.0\n" + yaml)
	if change != nil {
		change(g, &r)
	}
	rep := final(g.execute(t, g.assignSecrets(t, r, secrets)))
	if rep == nil {
		t.Fatal("the run did not end")
	}
	if len(s.builds) == 0 {
		return solve.Build{}, rep, g.log(t, r.ID)
	}
	return s.builds[len(s.builds)-1], rep, g.log(t, r.ID)
}

func buildStep(options string) string { return "steps:\n- id: b\n  build: " + options + "\n" }

func TestOptionsOfBuildSteps(t *testing.T) {
	t.Parallel()
	b, rep, log := asked(t, "workingDirectory: /workspace/app\n"+buildStep("-t a --target t --label l=v --no-cache-filter x --pull --network none --add-host h:192.0.2.1 "+
		"--shm-size 64m --ulimit nofile=1:2 --platform linux/amd64,linux/arm64 --build-arg SOURCE_DATE_EPOCH=1700000000 --build-arg EMPTY= --build-arg UNSET -f /workspace/d/Dockerfile /workspace/lib"), event.Secrets{}, nil)
	if rep.Final != run.Succeeded {
		t.Fatalf("%+v\n%s", rep, log)
	}
	want := solve.Build{Step: "b", Dockerfile: "d/Dockerfile", Context: "lib", Target: "t", Platforms: []string{"linux/amd64", "linux/arm64"},
		BuildArgs: map[string]string{"EMPTY": ""}, Labels: map[string]string{"l": "v"}, NoCacheFilter: []string{"x"}, Pull: true, AddHosts: []string{"h:192.0.2.1"}, Network: solve.NetworkNone,
		ShmSize: 64 << 20, Ulimits: []string{"nofile=1:2"}, Epoch: time.Unix(1700000000, 0),
		Annotations: map[string]string{"org.opencontainers.image.created": "2023-11-14T22:13:20Z"}}
	if diff := cmp.Diff(want, b, cmpopts.EquateEmpty(), cmpopts.IgnoreFields(solve.Build{}, "Staging")); diff != "" {
		t.Error(diff)
	}
}

// Everything that is wrong with the options of a build is said before anything is executed.
func TestBadOptionsOfBuildsAreRefused(t *testing.T) {
	t.Parallel()
	for options, want := range map[string]string{
		"--network host .":                     "--network: the host's network is never given to a build",
		"--network mine .":                     `--network: "mine": RUN instructions have a network of their own or none`,
		"--shm-size lots .":                    `--shm-size: "lots" is no size`,
		"--shm-size 99999999999999999999 .":    `--shm-size: "99999999999999999999" is no size`,
		"--ulimit nofile .":                    "--ulimit nofile: want NAME=SOFT[:HARD]",
		"--secret src=x .":                     `--secret: "src=x" has no id`,
		"--secret id=x,src=a,env=b .":          "--secret: x: src and env exclude each other",
		"--secret id=x,uid=1 .":                `--secret: "uid=1" is not supported`,
		"--ssh =x .":                           `--ssh: "=x": want default`,
		"--ssh a=b,c .":                        "--ssh: a: one key for an ID",
		"--cache-from type=local,src=/c .":     `type "local" is not supported`,
		"--cache-to type=gha .":                `--cache-from, --cache-to: type "gha" is not supported`,
		"--cache-to type=registry .":           "type=registry needs ref=",
		"--cache-to type=inline,ref=a .":       "an inline cache is in the image itself",
		"--cache-to type=s3,bucket=b .":        `type "s3" is not supported`,
		"--build-context x=oci-layout:///d .":  "--build-context x: an OCI layout is not supported",
		"--build-context x=ftp://h/d .":        "--build-context x: ftp:// is not supported",
		"--build-context X!=d .":               "--build-context X!: the name",
		"--build-context x=docker-image://A .": "(library/A) must be lowercase",
		"--output dir .":                       "--output dir: a build's image is kept for the run",
		"--output type=local,dest=d .":         "--output type=local,dest=d: a build's image is kept for the run",
		"--output type=registry .":             "--output type=registry: publishes nothing here; leave it out, and add a push step",
		"--output type=image,push=true .":      "--output type=image,push=true: publishes nothing here; leave it out, and add a push step",
		"--output type=image,name=b .":         "the image would not get this name; give it with -t",
		"--push .":                             "--push publishes nothing here; leave it out, and add a push step",
		"-":                                    "context: a task has no standard input",
		"/dev/null":                            "context: a build needs a context",
	} {
		_, _, err := Plan(fileRun("version: v1.1.0\n"+buildStep("-t a "+options)), PlanOptions{Registry: "reg.test:5000"})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", options, err, want)
		}
	}
	for _, options := range []string{"--output type=docker .", "--output type=image,push=false .", "--push=false .", "--load .", "--network default .", "--network bridge .", "--shm-size 1gb ."} {
		if _, _, err := Plan(fileRun("version: v1.1.0\n"+buildStep("-t a "+options)), PlanOptions{Registry: "reg.test:5000"}); err != nil {
			t.Errorf("%s: %v", options, err)
		}
	}
}

func TestSecretsOfBuildSteps(t *testing.T) {
	t.Parallel()
	task := "volumes:\n- name: vol\n  secret: {key: aW4tdGhlLXZvbHVtZQ==}\n" +
		"steps:\n- id: b\n  env: ['TOKEN=in-the-env', 'own=own-value']\n  volumeMounts: [{name: vol, mountPath: /mnt}]\n  build: -t a %s .\n"
	given := event.Secrets{Set: map[string]string{"npm": "set-value", "default": "the-key"}}
	value := func(s string) solve.Secret { return solve.Secret{Value: []byte(s)} }
	b, rep, log := asked(t, strings.ReplaceAll(task, "%s", "--secret id=npm --secret id=own --secret id=t,env=TOKEN --secret type=env,id=TOKEN --secret id=v,src=/mnt/key --secret id=f,source=sub/f --secret id=w,src=/workspace/w --ssh default --ssh file=k.pem"), given, nil)
	if rep.Final != run.Succeeded {
		t.Fatalf("%+v\n%s", rep, log)
	}
	want := map[string]solve.Secret{"npm": value("set-value"), "own": value("own-value"), "t": value("in-the-env"), "TOKEN": value("in-the-env"),
		"v": value("in-the-volume"), "f": {File: "sub/f"}, "w": {File: "w"}}
	if diff := cmp.Diff(want, b.Secrets); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]solve.Secret{"default": value("the-key"), "file": {File: "k.pem"}}, b.SSH); diff != "" {
		t.Error(diff)
	}
	for option, want := range map[string]string{
		"--secret id=PATH":              "--secret PATH: the run has no secret of this name; give it with --set-secret PATH",
		"--secret id=x,env=HOSTNAME":    "--secret x: the step's env has no HOSTNAME",
		"--secret id=x,src=/etc/passwd": "/etc/passwd is neither in a volume that the step mounts nor in /workspace",
		"--secret id=x,src=../../etc":   "../../etc is neither in a volume that the step mounts nor in /workspace",
		"--secret id=x,src=/mnt/other":  "volume vol has no file other",
		"--ssh nobody":                  "--ssh nobody: the run has no secret of this name",
	} {
		b, rep, log := asked(t, strings.ReplaceAll(task, "%s", option), given, nil)
		if rep.Final != run.Failed || b.Step != "" || !strings.Contains(rep.Reason, want) {
			t.Errorf("%s: %s %s, want %s\n%s", option, rep.Final, rep.Reason, want, log)
		}
	}
	b, _, log = asked(t, buildStep("-t a --build-arg X=set-value --build-arg Y=open ."), given, nil)
	if diff := cmp.Diff([]string{"set-value"}, b.Hidden); diff != "" {
		t.Errorf("hidden values: %s\n%s", diff, log)
	}
	withKey := func(g *rig, _ *run.Run) {
		g.w.SSHKeys = map[string][]byte{"default": []byte("other"), "deploy": []byte("the-server's")}
	}
	b, _, log = asked(t, buildStep("-t a --ssh default --ssh deploy ."), given, withKey)
	if diff := cmp.Diff(map[string]solve.Secret{"default": value("the-key"), "deploy": value("the-server's")}, b.SSH); diff != "" {
		t.Errorf("keys of the server: %s\n%s", diff, log)
	}
	_, rep, _ = asked(t, buildStep("-t a --ssh deploy ."), event.Secrets{}, func(g *rig, r *run.Run) { withKey(g, r); r.Spec.Restricted = true })
	if rep.Final != run.Failed || !strings.Contains(rep.Reason, "--ssh deploy: this run is of a pull request from outside") {
		t.Errorf("a restricted run got a key of the server: %s %s", rep.Final, rep.Reason)
	}
	_, rep, _ = asked(t, buildStep("-t a --secret id=npm ."), given, func(_ *rig, r *run.Run) { r.Spec.Restricted = true })
	if rep.Final != run.Failed || !strings.Contains(rep.Reason, "pull request from outside of the repository and has no secrets") {
		t.Errorf("a restricted run: %s %s", rep.Final, rep.Reason)
	}
}

func TestCachesOfBuildSteps(t *testing.T) {
	t.Parallel()
	logins := event.Secrets{Logins: map[string]event.Login{"other.test": {User: "ada", Password: "pw-of-ada"}}}
	var host string
	b, rep, log := asked(t, "steps:\n- id: b\n  cache: enabled\n  build: -t $Registry/team/app --cache-from old.test/x:1 --cache-from type=registry,ref=$Registry/team/c:main "+
		"--cache-to type=inline --cache-to type=registry,ref=other.test/c,mode=max,ignore-error=true .\n", logins, func(g *rig, r *run.Run) { host, r.Task = g.reg.Host, "nightly" })
	if rep.Final != run.Succeeded {
		t.Fatalf("%+v\n%s", rep, log)
	}
	own := host + "/kiln/staging/team/app:cache_nightly_b"
	if diff := cmp.Diff([]solve.Cache{{Ref: "old.test/x:1"}, {Ref: host + "/kiln/staging/team/c:main"}, {Ref: own}}, b.CacheFrom); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]solve.Cache{{}, {Ref: "other.test/c:latest", Max: true, Ignore: true}, {Ref: own, Max: true, Ignore: true}}, b.CacheTo); diff != "" {
		t.Error(diff)
	}
	const undeclared = "-t a --cache-to type=registry,ref=evil.test/c ."
	if b, rep, _ := asked(t, buildStep(undeclared), logins, nil); b.Step != "" || !strings.Contains(rep.Reason, "the run has no login for evil.test") {
		t.Errorf("a cache at an undeclared host: %s", rep.Reason)
	}
	b, rep, log = asked(t, "steps:\n- id: b\n  cache: enabled\n  build: -t $Registry/team/app --cache-to type=registry,ref=other.test/c --cache-from public.test/c .\n", logins,
		func(_ *rig, r *run.Run) { r.Spec.Restricted = true })
	if rep.Final != run.Succeeded || len(b.CacheTo) != 0 || len(b.CacheFrom) != 1 || !strings.Contains(log, "is left out: this run is of a pull request") {
		t.Errorf("a restricted run: %+v, %v %v\n%s", rep, b.CacheFrom, b.CacheTo, log)
	}
}

// elsewhere is the source of a repository.
type elsewhere struct {
	*files
	warning string
}

func (e elsewhere) Origin() Origin {
	return Origin{Repository: "https://git.test/o/lib.git", Commit: someCommit}
}
func (e elsewhere) Warnings() []string { return []string{e.warning} }

func TestRemoteContextsOfBuildSteps(t *testing.T) {
	t.Parallel()
	var opened []OpenRequest
	open := func(g *rig, r *run.Run) {
		r.Spec.Context = "https://git.test/o/r.git#" + someCommit
		g.w.Open = func(_ context.Context, r OpenRequest) (Source, error) {
			opened = append(opened, r)
			if strings.Contains(r.Context, "refused") {
				return nil, errors.New("refused address")
			}
			return elsewhere{&files{key: "key of " + r.Context}, "f is a pointer of Git LFS"}, nil
		}
	}
	task := buildStep("-t a -f sub/Dockerfile --build-context lib=https://other.test/x.tar.gz --build-context base=docker-image://node:22 --build-context here=docs https://git.test/o/lib.git#main:dir")
	b, rep, log := asked(t, task, event.Secrets{Context: "context-token"}, open)
	if rep.Final != run.Succeeded {
		t.Fatalf("%+v\n%s", rep, log)
	}
	var tokens []string
	for _, o := range opened {
		tokens = append(tokens, o.Context+" "+o.Token)
	}
	want := []string{"https://git.test/o/r.git#" + someCommit + " context-token", "https://git.test/o/lib.git#main:dir context-token", "https://other.test/x.tar.gz "}
	if diff := cmp.Diff(want, tokens); diff != "" {
		t.Error(diff)
	}
	if b.Remote == nil || b.Remote.Key != "key of https://git.test/o/lib.git#main:dir" || b.Context != "." || b.Dockerfile != "sub/Dockerfile" ||
		b.Annotations[annotationSource] != "https://git.test/o/lib.git" {
		t.Errorf("%+v", b)
	}
	if c := b.Contexts["lib"]; len(b.Contexts) != 3 || c.Tree == nil || c.Tree.Key != "key of https://other.test/x.tar.gz" ||
		b.Contexts["base"].Image != "docker.io/library/node:22" || b.Contexts["here"].Dir != "docs" {
		t.Errorf("%+v", b.Contexts)
	}
	if !strings.Contains(log, "warning: f is a pointer of Git LFS") {
		t.Error(log)
	}
	opened = nil
	_, rep, _ = asked(t, buildStep("-t a https://git.test/o/lib.git"), event.Secrets{Context: "context-token"}, func(g *rig, r *run.Run) { open(g, r); r.Spec.Restricted = true })
	if rep.Final != run.Succeeded || opened[0].Stranger || !opened[1].Stranger || opened[1].Token != "" || opened[1].Scope == "" {
		t.Errorf("a restricted run: %+v, %+v", rep, opened)
	}
	_, rep, _ = asked(t, buildStep("-t a https://refused.test/o/lib.git"), event.Secrets{}, open)
	if rep.Final != run.Failed || !strings.Contains(rep.Reason, "step b: build context: refused address") {
		t.Errorf("%s %s", rep.Final, rep.Reason)
	}
}

// What a remote context's reader says ends the build that reads it.
func TestUnreadableRemoteContextFailsTheStep(t *testing.T) {
	t.Parallel()
	s := &script{}
	g := newRig(t, s)
	remote := &files{key: "far"}
	g.w.Open = func(_ context.Context, r OpenRequest) (Source, error) {
		if strings.HasPrefix(r.Context, "https:") {
			return remote, nil
		}
		return &files{key: "dir"}, nil
	}
	s.build = func(ctx context.Context, _ solve.Build, _ solve.LogFunc) (solve.Built, error) {
		remote.guard(errors.New("a.txt cannot be read"))
		<-ctx.Done()
		return solve.Built{}, context.Cause(ctx)
	}
	r := fileRun("version: v1.1.0\n" + buildStep("-t a https://git.test/o/lib.git"))
	sealed, err := secret.Seal(g.w.Identity.Recipient(), event.Tokens{Registry: g.reg.Token})
	if err != nil {
		t.Fatal(err)
	}
	rep := final(g.execute(t, event.Assignment{Run: r, Token: sealed}))
	if rep == nil || rep.Final != run.Failed || !strings.Contains(rep.Reason, "step b: remote context: a.txt cannot be read") {
		t.Errorf("%+v", rep)
	}
}

func TestReproducibleBuilds(t *testing.T) {
	t.Parallel()
	when := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, c := range []struct {
		commit time.Time
		args   []string
		want   time.Time
	}{
		{time.Time{}, nil, time.Unix(0, 0)}, {when, nil, when}, {when, []string{"SOURCE_DATE_EPOCH=5"}, time.Unix(5, 0)}, {when, []string{"SOURCE_DATE_EPOCH="}, time.Time{}},
	} {
		a := &attempt{origin: Origin{Time: c.commit}, run: buildRun(run.BuildSpec{Reproducible: true, BuildArgs: c.args})}
		req := solve.Build{BuildArgs: map[string]string{}}
		for _, arg := range c.args {
			k, v, _ := strings.Cut(arg, "=")
			req.BuildArgs[k] = v
		}
		if err := a.epoch(&req); err != nil || !req.Epoch.Equal(c.want) {
			t.Errorf("%v, %q: %v, %v, want %v", c.commit, c.args, req.Epoch, err, c.want)
		}
	}
	a := &attempt{run: buildRun(run.BuildSpec{})}
	if err := a.epoch(&solve.Build{BuildArgs: map[string]string{epochArg: "yesterday"}}); err == nil {
		t.Error("yesterday is no number of seconds")
	}
}
