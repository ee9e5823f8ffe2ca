package main

import (
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"kiln/internal/apiclient"
)

// taskSteps has rules of steps that nothing shows but a run. BOX is an image of the server's registry, of which the
// run has another one of the same name; BURN uses a processor for a second and fails if it got more than two fifths of it.
const taskSteps = `version: v1.1.0
networks: [{name: front}]
steps:
  - {id: last, cmd: BOX cat made, when: [made]}
  - {id: made, cmd: BOX sh -c 'echo of a step below > made', when: ["-"]}
  - {id: web, cmd: -d --network front --expose 8080 -p 8080:8080 --isolation default BOX httpd -f -p 8080 -h /workspace, when: [made]}
  - {id: lonely, cmd: BOX httpd -f -p 8080 -h /workspace, detach: true, when: [made]}
  - {id: ask, cmd: --network front BOX wget -q -O - http://web:8080/made, retries: 60, retryDelay: 1, when: [web]}
  - {id: strange, cmd: BOX sh -c 'for host in web lonely; do ! wget -q -T 2 -O - http://$host:8080/made || exit 1; done', when: [ask, lonely]}
  - {id: offline, cmd: --network none BOX ls /sys/class/net, when: ["-"]}
  - {id: environment, cmd: -u 0 -w /tmp -e B=flag -e HOME=/h BOX sh -c 'echo $B $(pwd) $HOME', env: [B=step], when: ["-"]}
  - {id: slowed, cmd: BOX sh -c 'BURN', cpus: 0.2, when: ["-"]}
  - {id: slowed-too, cmd: --cpus 0.2 BOX sh -c 'BURN', when: ["-"]}
  - id: image
    build: -t BOX --sbom true --build-arg GIVEN --build-arg NOWHERE -f given.Dockerfile .
    env: [GIVEN=of-the-step]
    when: ["-"]
    user: nobody-there
    network: front
    isolation: default
    privileged: true
    cpus: 0.1
    disableWorkingDirectoryOverride: true
  - {id: own, cmd: BOX cat /which, when: [image]}
  - {id: pulled, cmd: --pull always BOX ls /which, ignoreErrors: true, when: [image]}
  - {id: index, build: "-t $Registry/steps/index:$ID --platform linux/amd64,linux/arm64 -f index.Dockerfile .", when: ["-"]}
  - {push: ["$Registry/steps/index:$ID"], when: [index]}
`

// burn is BURN; of two dollars the run's aliases leave one.
const burn = `begun=$(cut -d" " -f1 /proc/uptime | tr -d .); timeout 1 sh -c "while :; do :; done"; ` +
	`passed=$(($(cut -d" " -f1 /proc/uptime | tr -d .) - begun)); used=$(cut -d" " -f16 /proc/$$$$/stat); echo used $used of $passed; test $((used * 5)) -lt $((passed * 2))`

func testRulesOfSteps(t *testing.T, s *server) {
	s.must("build", "-t", "steps/box:1", files(t, map[string]string{"Dockerfile": base}))
	fill := strings.NewReplacer("BOX", "$Registry/steps/box:1", "BURN", burn)
	dir := files(t, map[string]string{"acr-task.yaml": fill.Replace(taskSteps), "index.Dockerfile": "FROM scratch\nCOPY busybox /bin/busybox\n",
		"given.Dockerfile": base + "ARG GIVEN=default\nARG NOWHERE=default\nRUN echo $GIVEN $NOWHERE > /which\n"})
	res := s.kiln("run", dir)
	if res.code != 0 {
		t.Fatalf("exit code %d\n%s", res.code, res.err)
	}
	for _, want := range []string{"last | of a step below\n", "ask | of a step below\n", "offline | lo\n", "environment | flag /tmp /h\n", "own | of-the-step default\n",
		"pulled | ls: /which: No such file", "warning: pull has "} {
		if !strings.Contains(res.err, want) {
			t.Errorf("log lacks %q", want)
		}
	}
	for _, property := range []string{"isolation", "privileged", "cpus", "build: attestations"} {
		if !strings.Contains(res.err, `step "image": `+property+": has no effect on this worker") {
			t.Errorf("nothing warns of %s of a build", property)
		}
	}
	ref, _, _ := strings.Cut(strings.TrimSpace(res.out), "@")
	if got := platforms(t, s, ref); got != "linux/amd64 linux/arm64" {
		t.Errorf("%s is for %q", ref, got)
	}
	if t.Failed() {
		t.Log(res.err)
	}
}

// platforms are those of an index in the server's registry.
func platforms(t *testing.T, s *server, image string) string {
	t.Helper()
	token, err := apiclient.ReadToken(s.data)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.NewTag(image, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	index, err := remote.Index(ref, remote.WithAuth(&authn.Basic{Username: "kiln", Password: token}))
	if err != nil {
		t.Fatal(err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, one := range m.Manifests {
		all = append(all, one.Platform.String())
	}
	return strings.Join(all, " ")
}

// testSmallTasks runs tasks of one rule each, all at once.
func testSmallTasks(t *testing.T, s *server) {
	s.must("build", "-t", "small/box:1", files(t, map[string]string{"Dockerfile": base}))
	for name, c := range map[string]struct {
		task, says string
		code       int
	}{
		"no steps":       {"steps: []\n", "the task has no steps, so a run does nothing", 0},
		"no version":     {"steps:\n- cmd: '{{.Run.Registry}}/small/box:1 sh -c ''echo \"the ID is $ID.\"'''\n", "the ID is .", 0},
		"time of a step": {"version: v1.1.0\nstepTimeout: 2\nsteps:\n- cmd: $Registry/small/box:1 sleep 600\n", "timed out after 2s; raise the step's timeout property, or the task's stepTimeout", 1},
		"bad service":    {"version: v1.1.0\nsteps:\n- {id: web, cmd: -d $Registry/small/box:1 /no/such/program}\n- cmd: $Registry/small/box:1 sleep 600\n", "/no/such/program", 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			res := runKiln(t, []string{"KILN_DATA=" + s.data}, "run", files(t, map[string]string{"acr-task.yaml": c.task}))
			if res.code != c.code || !strings.Contains(res.err, c.says) {
				t.Errorf("exit code %d, want %d and %q\n%s", res.code, c.code, c.says, res.err)
			}
		})
	}
}

// testNeighbours runs one task twice at once: what has the same name in both is not the same.
func testNeighbours(t *testing.T, s *server) {
	const task = `version: v1.1.0
steps:
  - build: -t mine .
  - {id: write, cmd: mine sh -c 'cp /who $HOME/who; cp /who /workspace/who; sleep 1'}
  - {id: read, cmd: mine cat /who /acb/home/who /workspace/who}
`
	for _, who := range []string{"ada", "bob"} {
		t.Run(who, func(t *testing.T) {
			t.Parallel()
			dir := files(t, map[string]string{"acr-task.yaml": task, "Dockerfile": base + "RUN echo " + who + " > /who\n"})
			res := runKiln(t, []string{"KILN_DATA=" + s.data}, "run", dir)
			if res.code != 0 || strings.Count(res.err, "read | "+who+"\n") != 3 {
				t.Errorf("exit code %d\n%s", res.code, res.err)
			}
		})
	}
}
