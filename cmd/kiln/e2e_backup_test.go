package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kiln/internal/apiclient"
	"kiln/internal/run"
	"kiln/internal/secret"
)

// backUp restores a backup of a server with all that it has: the new one goes on where the old one was.
func (s *server) backUp(t *testing.T) {
	const value = "opens-only-with-the-key"
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	s.must("build", "-t", "sbox:1", files(t, map[string]string{"Dockerfile": base}))
	s.must("secret", "set", "vaulted", "--from-file", write("value", value))
	s.must("task", "create", "knows", "-c", "/dev/null", "--set-secret", "pw=vaulted", "--schedule", "yearly:0 0 1 1 *",
		"-f", write("knows.yaml", "version: v1.1.0\nsteps:\n  - cmd: {{.Run.Registry}}/sbox:1 sh -c 'test {{.Values.pw}} = opens-only\"\"-with-the-key && echo it knows'\n"))
	s.must("task", "create", "slow", "-c", "/dev/null", "-f", write("slow.yaml", "version: v1.1.0\nsteps:\n  - cmd: {{.Run.Registry}}/sbox:1 sh -c 'trap \"exit 1\" TERM; sleep 600 & wait'\n"))
	s.must("hook", "create", "--provider", "github", "--name", "kept")
	s.prints(t, "", "task", "run", "knows")
	slow := strings.TrimSpace(s.must("task", "run", "--no-wait", "slow"))
	s.awaitState(slow, run.Running, 1)

	file := filepath.Join(dir, "kiln.backup")
	s.prints(t, " keys, no logs, ", "backup", file)
	if fi, err := os.Stat(file); err != nil || fi.Mode() != 0o600 {
		t.Errorf("mode of the backup: %v, %v", fi, err)
	}
	secretKey := filepath.Join(dir, "age.key")
	id, err := secret.LoadIdentity(secretKey)
	if err != nil {
		t.Fatal(err)
	}
	sealed := filepath.Join(dir, "sealed.backup")
	s.prints(t, "sealed.backup: ", "backup", "--recipient", id.Recipient(), "--logs", sealed)
	s.wants(t, 2, "--recipient", "backup", "--recipient", "age1nobody", sealed)
	if left, err := filepath.Glob(filepath.Join(dir, ".*")); err != nil || len(left) > 0 {
		t.Errorf("left over: %q, %v", left, err)
	}
	before := s.told()
	s.must("cancel", slow)
	s.stop()

	data := filepath.Join(dir, "new")
	restore := func(code int, says string, args ...string) {
		t.Helper()
		if r := runKiln(t, nil, append([]string{"restore", "--data", data}, args...)...); r.code != code || !strings.Contains(r.out+r.err, says) {
			t.Errorf("kiln restore %q: exit code %d, want %d and %q\n%s%s", args, r.code, code, says, r.out, r.err)
		}
	}
	half, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	restore(1, "not a whole backup", write("half", string(half[:len(half)/2])))
	restore(2, "is encrypted", sealed)
	if err := os.CopyFS(filepath.Join(data, "registry"), os.DirFS(filepath.Join(s.data, "registry"))); err != nil {
		t.Fatal(err)
	}
	restore(0, " keys, of ", "--identity", secretKey, sealed)
	restore(2, "is not empty", file)

	n := startServerAt(t, data)
	n.t = t
	if after := n.told(); after != before {
		t.Errorf("restored:\n%s\nbefore:\n%s", after, before)
	}
	n.awaitState(slow, run.Running, 2) // the worker that had it is gone
	n.must("cancel", slow)
	if r := n.kiln("task", "run", "knows"); r.code != 0 || !strings.Contains(r.err, "it knows") {
		t.Errorf("a run with a restored secret: %+v", r)
	}
	if was, is := countDecisions(before), countDecisions(n.told()); is != was+1 {
		t.Errorf("%d decisions to run, want those %d of before and one more", is, was)
	}
}

// awaitState waits until a run is in a state, in an attempt or a later one: where time stands still workers are lost.
func (s *server) awaitState(id string, state run.State, attempt int) {
	s.t.Helper()
	var r run.Run
	waitUntil(s.t, time.Minute, func() bool {
		r = s.show(id)
		return r.State == state && r.Attempt >= attempt
	}, func() string { return fmt.Sprintf("run %s: %s, attempt %d: %s", id, r.State, r.Attempt, r.Reason) })
}

// told is what a server tells of what a backup holds, but for what a run that is under way changes.
func (s *server) told() string {
	s.t.Helper()
	list, err := s.client().Runs(s.t.Context(), apiclient.RunsQuery{})
	if err != nil {
		s.t.Fatal(err)
	}
	var b strings.Builder
	for _, r := range list {
		if r.State.Final() {
			text, err := json.Marshal(r)
			if err != nil {
				s.t.Fatal(err)
			}
			fmt.Fprintf(&b, "%s\n", text)
		}
	}
	token, err := apiclient.ReadToken(s.data)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, path := range []string{apiclient.PathTasks, apiclient.PathSecrets, apiclient.PathHooks, apiclient.PathTargets, apiclient.PathTokens} {
		status, body := s.get(path, "Authorization", "Bearer "+token)
		fmt.Fprintf(&b, "%s %d %s\n", path, status, body)
	}
	decided, err := s.client().Decisions(s.t.Context(), "knows", time.Time{})
	if err != nil {
		s.t.Fatal(err)
	}
	for _, d := range decided.Decisions {
		fmt.Fprintf(&b, "decision %s %s\n", d.Kind, d.Run)
	}
	return b.String()
}

func countDecisions(told string) int { return strings.Count(told, "decision run ") }
