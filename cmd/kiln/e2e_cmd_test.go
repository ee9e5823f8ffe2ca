package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"kiln/internal/run"
)

// toolbox is an image with a configuration of its own.
const toolbox = base + `RUN adduser -D -u 1000 bob 2>/dev/null || echo 'bob:x:1000:1000::/:/bin/sh' > /etc/passwd
ENV A=image B=image
WORKDIR /work/dir
USER 1000
ENTRYPOINT ["sh", "-c", "echo $0 $@ A=$A B=$B $(pwd) $(id -u) $HOME"]
CMD ["image", "args"]
`

// taskCmd has, for each property of a cmd step, a step that shows its effect.
const taskCmd = `version: v1.1.0
env: [A=task]
steps:
  - build: -t toolbox --iidfile ids/toolbox --metadata-file meta.json -f box.Dockerfile .
  - id: image
    cmd: toolbox
    disableWorkingDirectoryOverride: true
    env: [A=step]
  - id: alias
    cmd: tool own
  - id: user
    cmd: toolbox by user
    user: "0"
    workingDirectory: sub
  - id: flags
    cmd: -u 0 -w /tmp -e B=flag -e HOME=/h --entrypoint echo toolbox instead
  - id: hosts
    cmd: --add-host db.test:192.0.2.7 -u 0 --entrypoint grep toolbox db.test /etc/hosts
  - id: entry
    cmd: toolbox own entry
    entryPoint: echo
  - id: code
    cmd: --entrypoint sh toolbox -c 'echo out; echo err >&2; exit 3'
    ignoreErrors: true
  - id: home
    cmd: --entrypoint sh -u 0 toolbox -c 'echo login > $HOME/.config; echo file > /workspace/f; chmod 700 /workspace/f'
  - id: shared
    cmd: --entrypoint sh -u 0 toolbox -c 'cat $HOME/.config /workspace/f'
  - id: live-writer
    cmd: --entrypoint sh -u 0 toolbox -c 'echo 1 > a; until test -e b; do sleep 0.05; done; echo writer met'
    when: [shared]
  - id: live-reader
    cmd: --entrypoint sh -u 0 toolbox -c 'until test -e a; do sleep 0.05; done; echo 1 > b; echo reader met'
    when: [shared]
  - id: limited
    cmd: -m 48m --entrypoint sh toolbox -c 'x=$(head -c 60000000 /dev/zero | tr "\0" x); echo survived'
    when: [live-writer, live-reader]
    ignoreErrors: true
  - id: privileged
    cmd: --privileged -u 0 --entrypoint sh toolbox -c 'mkdir /m && mount -t tmpfs none /m && echo mounted'
  - id: shaped
    cmd: >
      --read-only --hostname box --tmpfs /scratch:size=64k --shm-size 5m --ulimit nofile=70 --cap-drop ALL --group-add 77 -v deps:/deps -v ./kept:/kept -u 0
      --entrypoint sh toolbox -c 'hostname; ulimit -n; id -G; touch /x 2>&1; df /dev/shm /scratch; grep CapEff /proc/self/status;
      echo dep > /deps/d; echo kept > /kept/k; echo work > /workspace/w && echo all written'
    when: [home]
  - id: others
    cmd: -v deps:/again:ro -v {{.Run.SharedVolume}}:/all:ro --cap-add SYS_ADMIN -u 0 --entrypoint sh toolbox -c 'cat /again/d /all/kept/k /workspace/w; grep -c $(cat /workspace/ids/toolbox) /workspace/meta.json; touch /all/x 2>&1; grep CapEff /proc/self/status'
    when: [shaped]
`

func testCmdProperties(t *testing.T, s *server) {
	dir := files(t, map[string]string{"acr-task.yaml": taskCmd, "box.Dockerfile": toolbox})
	if res := s.kiln("run", dir); res.code == 0 || !strings.Contains(res.err, `step "privileged": privileged: the task does not allow privileged containers`) {
		t.Errorf("without the task's permission: exit code %d\n%s", res.code, res.err)
	}
	if res := s.kiln("run", dir); !strings.Contains(res.err, `step "others": cmd: --cap-add SYS_ADMIN: the task does not allow privileged containers`) {
		t.Errorf("without the task's permission:\n%s", res.err)
	}
	res := s.kiln("run", "--allow-privileged", dir)
	if res.code != 0 {
		t.Fatalf("exit code %d\n%s", res.code, res.err)
	}
	for _, want := range []string{
		"image | image args A=step B=image /work/dir 1000 /acb/home",
		"alias | own A=task B=image /workspace 1000 /acb/home",
		"user | by user A=task B=image /workspace/sub 0 /acb/home",
		"flags | instead", "entry | own entry", "hosts | 192.0.2.7", "code | out", "code | err", "exit code 3",
		"shared | login", "shared | file", "live-writer | writer met", "live-reader | reader met", "privileged | mounted",
		"shaped | box", "shaped | 70", "shaped | 0 77", "shaped | touch: /x: Read-only file system", " 5120 ", " 64 ", "shaped | CapEff:\t0000000000000000", "shaped | all written",
		"others | dep", "others | kept", "others | work", "others | 2", "others | touch: /all/x: Read-only file system", "others | CapEff:\t00000000a82425fb",
	} {
		if !strings.Contains(res.err, want) {
			t.Errorf("log lacks %q", want)
		}
	}
	if strings.Contains(res.err, "survived") || !strings.Contains(res.err, "limit of 48 MiB of memory") {
		t.Error("the memory of the step is not limited")
	}
	if t.Failed() {
		t.Log(res.err)
	}
}

// testVolumes checks that files of a volume have their exact bytes and leave nothing behind.
func testVolumes(t *testing.T, s *server) {
	value := "first $HOME `line`\nsecond \\ line-of-the-secret\n\nlast without end"
	dir := files(t, map[string]string{"box.Dockerfile": toolbox, "want": value, "acr-task.yaml": `version: v1.1.0
volumes:
  - name: keys
    secret:
      key: {{ .Values.key | b64enc }}
      bytes.bin: AAEC/w==
steps:
  - build: -t vbox -f box.Dockerfile .
  - id: exact
    cmd: --entrypoint sh vbox -c 'cmp key /workspace/want && cat key && stat -f -c %T /run/keys key && od -An -tx1 bytes.bin'
    workingDirectory: /run/keys
    volumeMounts: [{name: keys, mountPath: /run/keys}]
  - id: after
    cmd: --entrypoint sh -u 0 vbox -c 'ls -A /run/keys 2>&1; grep -rl line-of-the /acb/home /workspace'
`})
	res := runKiln(t, []string{"KILN_DATA=" + s.data, "key=" + value}, "run", "--set-secret", "key", dir)
	if res.code != 0 {
		t.Fatalf("exit code %d\n%s", res.code, res.err)
	}
	for _, want := range []string{"exact | ***", "exact | tmpfs", "exact |  00 01 02 ff", "after | /workspace/want"} {
		if !strings.Contains(res.err, want) {
			t.Errorf("log lacks %q", want)
		}
	}
	if strings.Contains(res.err, "second") || strings.Contains(res.err, "/acb/home/") || t.Failed() {
		t.Error(res.err)
	}
}

// testOutput has a step write 6 MB as fast as it can, numbered, in turn to both streams.
func testOutput(t *testing.T, s *server) {
	dir := files(t, map[string]string{"box.Dockerfile": base, "acr-task.yaml": `version: v1.1.0
steps:
  - build: -t obox -f box.Dockerfile .
  - id: much
    cmd: obox sh -c 'seq 1 600000 & seq 1 300000 >&2; wait; printf "10%%\r50%%\r100%%\n"'
`})
	id := strings.TrimSpace(s.must("run", "--no-wait", dir))
	out := s.kiln("logs", "-f", id)
	if out.code != 0 {
		t.Fatalf("exit code %d\n%s", out.code, out.err)
	}
	next, other := 1, 1
	var rest []string
	for line := range strings.Lines(out.out) {
		_, line, _ = strings.Cut(strings.TrimRight(line, "\n"), "much | ")
		switch line {
		case fmt.Sprint(next):
			next++
		case fmt.Sprint(other):
			other++
		default:
			rest = append(rest, line)
		}
	}
	if min(next, other) != 300001 || max(next, other) != 600001 {
		t.Errorf("%d and %d lines in order; then came %.20q", next-1, other-1, rest[:min(len(rest), 5)])
	}
	if got := strings.Join(rest, "\n"); !strings.Contains(got, "\n100%\n") {
		t.Errorf("progress: %q", got[max(0, len(got)-300):])
	}
}

// testEndsOfSteps has a service crash, a step run into its timeout, and one pull what the run has built, too.
func testEndsOfSteps(t *testing.T, s *server) {
	s.must("build", "-t", "ends/pulled:1", files(t, map[string]string{"Dockerfile": base + "RUN echo of-the-registry > /which\n"}))
	mark := fmt.Sprintf("%d7532", os.Getpid())
	dir := files(t, map[string]string{"Dockerfile": base + "RUN echo of-the-run > /which\n", "acr-task.yaml": `version: v1.1.0
steps:
  - build: -t $Registry/ends/pulled:1 .
  - id: own
    cmd: $Registry/ends/pulled:1 cat /which
  - id: pulled
    cmd: $Registry/ends/pulled:1 cat /which
    pull: true
  - id: service
    cmd: $Registry/ends/pulled:1 sh -c 'until test -e go; do sleep 0.05; done; echo crashing; exit 5'
    detach: true
  - id: beside
    cmd: $Registry/ends/pulled:1 sh -c 'touch go; echo goes on'
  - id: slow
    cmd: $Registry/ends/pulled:1 sh -c 'sleep ` + mark + ` & sleep ` + mark + `'
    timeout: 3
`})
	res := s.kiln("run", "-o", "json", dir)
	if res.code != 1 {
		t.Fatalf("exit code %d\n%s", res.code, res.err)
	}
	if left := processes(t, func(cmdline string, _ int) bool { return strings.Contains(cmdline, mark) }); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
	for _, want := range []string{"own | of-the-run", "pulled | of-the-registry", "service | crashing", "the service has ended by itself after", "with exit code 5", "beside | goes on"} {
		if !strings.Contains(res.err, want) {
			t.Errorf("log lacks %q", want)
		}
	}
	want := map[string]run.StepState{"service": run.StepFailed, "slow": run.StepTimeout}
	for _, st := range s.show(field(t, res.out, "id")).Steps {
		if state, ok := want[st.ID]; ok && st.State != state || st.ID == "service" && (st.ExitCode == nil || *st.ExitCode != 5) {
			t.Errorf("step %s is %s (%s)", st.ID, st.State, st.Error)
		}
	}
	if t.Failed() {
		t.Log(res.err)
	}
}
