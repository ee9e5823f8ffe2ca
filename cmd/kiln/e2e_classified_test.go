package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"kiln/internal/apiclient"
	"kiln/internal/buildkit/supervise"
	"kiln/internal/gittest"
	"kiln/internal/task"
)

// marker is in every secret that a test gives to a server.
const marker = "Zk7qClassified4W"

// A classified is secrets of every kind that there is, what they are for, and what was seen while a server used them.
type classified struct {
	values   map[string]string // that the test gives, by name; marker is in each
	made     []string          // by the server: tokens, and secrets of hooks
	vault    string            // of the server and a worker
	registry *private
	git      *gittest.Server

	mu   sync.Mutex
	seen []piece
}

// A piece is something that a process has said, written or sent.
type piece struct {
	where string
	data  []byte
}

func newClassified(t *testing.T) *classified {
	t.Helper()
	k := &classified{values: map[string]string{}}
	for _, name := range []string{"hub-password", "bot-password", "git-token", "task-value", "task-arg", "webhook-key", "mounted", "build-arg", "set", "filed", "header", "address"} {
		k.values[name] = marker + name + rand.Text()
	}
	git := k.values["git-token"]
	k.values["git-token"] = "bot:" + git
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "filed"), []byte(k.values["filed"]+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	k.vault = "vault.test=file:" + dir
	k.registry = startPrivate(t, map[string]string{"shared": k.values["hub-password"], "bot": k.values["bot-password"]})
	k.git = gittest.Serve(t, t.TempDir(), "bot", git)
	return k
}

// test has a cluster use the secrets, and looks for them in all that its processes have written, said and sent.
func (k *classified) test(t *testing.T, c *cluster) {
	for worker, drain := range map[string]bool{"near": false, "far": true} { // that reaches nothing on loopback
		if _, err := c.clients[1].DrainWorker(t.Context(), worker, drain); err != nil {
			t.Fatal(err)
		}
	}
	commands, messages := k.watchCommandLines(t), k.listen(t, c)
	k.inRuns(t, c)
	k.inTasks(t, c)
	k.inHooks(t, c)
	if n, m := commands(), messages(); n == 0 || m == 0 {
		t.Fatalf("%d command lines and %d messages were looked at", n, m)
	}
	for _, p := range append([]*process{c.first, c.second}, c.workers...) {
		k.saw("the log of "+p.name, []byte(p.log.String()))
	}
	needles := formsOf(marker, natsToken, "kr.eyJ") // the last begins what the server signs for runs
	needles = append(needles, formsOf(append(k.made, c.clients[0].Token)...)...)
	for _, s := range k.seen {
		s.holdsNone(t, needles)
	}
	for _, dir := range []string{c.dir, supervise.StateTmpfs()} {
		searchFiles(t, dir, needles, filepath.Join(c.dir, "keys"), filepath.Join(c.dir, "token"))
	}
}

// kiln runs a command with the secrets in its environment: task-arg as task_arg.
func (k *classified) kiln(t *testing.T, c *cluster, args ...string) string {
	t.Helper()
	env := []string{"KILN_SERVER=" + c.clients[1].BaseURL, "KILN_TOKEN=" + c.clients[1].Token}
	for name, value := range k.values {
		env = append(env, strings.ReplaceAll(name, "-", "_")+"="+value)
	}
	r := runKiln(t, env, args...)
	k.saw("what kiln "+strings.Join(args, " ")+" prints", []byte(r.err))
	if r.code != 0 {
		t.Fatalf("kiln %s: exit code %d\n%s%s", strings.Join(args, " "), r.code, r.out, r.err)
	}
	return r.out + r.err
}

const classifiedTask = `version: v1.1.0
secrets:
  - id: filed
    keyvault: https://vault.test/secrets/filed
volumes:
  - name: v
    secret:
      pw: {{.Values.set | b64enc}}
steps:
  - cmd: REG/team/box:1 sh -c 'echo "$PW" "$FILED"; cat /run/v/pw; base64 /run/v/pw; echo "$PW" >&2; echo "$FILED" >/workspace/kept'
    env: ["PW={{.Values.set}}", "FILED={{.Secrets.filed}}"]
    volumeMounts: [{name: v, mountPath: /run/v}]
  - cmd: REG/team/box:1 sh -c 'exit 1' '{{.Secrets.filed}}' {{.Values.set}}
    ignoreErrors: true
`

// inRuns has runs use secrets that are given to them, those of a vault, and the server's own login for a registry.
func (k *classified) inRuns(t *testing.T, c *cluster) {
	t.Helper()
	for _, name := range []string{"hub-password", "bot-password", "git-token", "task-value", "task-arg", "webhook-key"} {
		if _, err := c.clients[1].SetSecret(t.Context(), name, k.values[name]); err != nil {
			t.Fatal(err)
		}
	}
	k.kiln(t, c, "build", "-t", k.registry.host+"/team/box:1", "--secret", "id=m,env=mounted", "--secret-build-arg", "build_arg",
		files(t, map[string]string{"Dockerfile": "FROM " + apartHost + "/cut/box:1\nARG build_arg\nRUN --mount=type=secret,id=m test -n \"$build_arg\" && cat /run/secrets/m && echo \"$build_arg\"\n"}))
	if !k.registry.used("shared") {
		t.Error("the server's login was not used")
	}
	out := k.kiln(t, c, "run", "--set-secret", "set", files(t, map[string]string{"acr-task.yaml": strings.ReplaceAll(classifiedTask, "REG", k.registry.host)}))
	if !strings.Contains(out, "*** ***") {
		t.Errorf("the run has not shown its secrets:\n%s", out)
	}
}

// inTasks has tasks use secrets that are stored: for their source, a registry, an argument and a value.
func (k *classified) inTasks(t *testing.T, c *cluster) {
	t.Helper()
	repo := gittest.NewRepo(t, k.git.Root, "app.git")
	repo.Write("Dockerfile", "FROM "+k.registry.host+"/team/box:1\nARG ARG\nRUN echo \"$ARG\" && test -n \"$ARG\"\n", 0)
	repo.Commit("first")
	own := []task.Credential{{Server: k.registry.host, Username: "bot", PasswordSecret: "bot-password"}}
	for _, made := range []task.Task{
		{Name: "built", Context: k.git.URL + "/app.git#main", ContextSecret: "git-token", Credentials: own,
			Step: task.Step{Build: &task.Build{Images: []string{k.registry.host + "/team/app:{{.Run.ID}}"}, SecretArgs: map[string]string{"ARG": "task-arg"}}}},
		{Name: "told", Context: "/dev/null", Credentials: own, SetSecret: map[string]string{"pw": "task-value"},
			Step: task.Step{Inline: &task.Inline{Task: "version: v1.1.0\nsteps:\n- cmd: '{{.Run.Registry}}/cut/box:1 echo {{.Values.pw}}'\n"}}},
	} {
		if _, err := c.clients[1].CreateTask(t.Context(), made, false); err != nil {
			t.Fatal(err)
		}
	}
	k.kiln(t, c, "task", "run", "built")
	if !k.registry.used("bot") || k.git.Requests() == 0 {
		t.Error("the task's own credentials were not used")
	}
	if out := k.kiln(t, c, "task", "run", "told"); !strings.Contains(out, "***") {
		t.Errorf("the run has not shown its secret:\n%s", out)
	}
}

// inHooks has deliveries and notifications signed, and somebody show a token of the server.
func (k *classified) inHooks(t *testing.T, c *cluster) {
	t.Helper()
	ctx := t.Context()
	deliver := func(provider, body string, sign func(*http.Request, string)) {
		t.Helper()
		hook, err := c.clients[1].CreateHook(ctx, apiclient.CreateHook{Provider: provider})
		if err != nil {
			t.Fatal(err)
		}
		k.made = append(k.made, hook.Secret)
		waitFor(t, "a delivery of "+provider, func() bool { // once the process has read of the hook
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, hook.URL, strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			sign(req, hook.Secret)
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			if res.Body.Close(); res.StatusCode/100 != 2 && res.StatusCode != http.StatusNotFound {
				t.Fatalf("delivery of %s: %s", provider, res.Status)
			}
			return res.StatusCode/100 == 2
		})
	}
	deliver("gitlab", `{"object_kind":"push","ref":"refs/heads/main","before":"`+strings.Repeat("a", 40)+`","after":"`+strings.Repeat("b", 40)+
		`","project":{"git_http_url":"https://gitlab.example.com/team/app.git"}}`, func(r *http.Request, secret string) {
		r.Header.Set("X-Gitlab-Event", "Push Hook")
		r.Header.Set("X-Gitlab-Token", secret)
	})
	deliver("dockerhub", `{"push_data":{"tag":"1"},"repository":{"repo_name":"team/base"}}`, func(r *http.Request, secret string) {
		r.URL.RawQuery = "token=" + secret
	})
	address, key := "http://127.0.0.1:9/"+k.values["address"]+"?key="+k.values["address"], "webhook-key"
	_, err := c.clients[1].CreateWebhook(ctx, apiclient.SetWebhook{Name: "ci", URI: &address, Actions: []string{"push"}, Secret: &key,
		Headers: map[string]string{"Authorization": "Basic " + k.values["header"]}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = c.clients[1].AddTarget(ctx, apiclient.AddTarget{Name: "chat", URL: address, Events: []string{"run.finished"}, Secret: key}); err != nil {
		t.Fatal(err)
	}
	token, err := c.clients[1].CreateToken(ctx, apiclient.CreateToken{Name: "dev", Role: "admin"})
	if err != nil {
		t.Fatal(err)
	}
	k.made = append(k.made, token.Password)
	bearer := &apiclient.Client{BaseURL: c.clients[1].BaseURL, Token: token.Password}
	if _, err := bearer.Runs(ctx, apiclient.RunsQuery{}); err != nil {
		t.Error(err)
	}
	_, pinged := bearer.PingWebhook(ctx, "ci")
	_, tested := bearer.TestTarget(ctx, "chat")
	for _, err := range []error{pinged, tested} {
		if err == nil || !strings.Contains(err.Error(), "127.0.0.1:9") || strings.Contains(err.Error(), marker) {
			t.Errorf("a request to an address at which nobody listens: %v, want a failure that names the host alone", err)
		}
	}
}

func (k *classified) saw(where string, data []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.seen = append(k.seen, piece{where, data})
}

// watchCommandLines notes the command lines of this host's processes until it is stopped, which returns how many.
func (k *classified) watchCommandLines(t *testing.T) (stop func() int) {
	ctx, cancel := context.WithCancel(t.Context())
	lines := map[string]bool{}
	var g sync.WaitGroup
	g.Go(func() {
		again := time.NewTicker(100 * time.Millisecond)
		defer again.Stop()
		for ctx.Err() == nil {
			eachProcess(t, func(_, _ int, cmdline string) { lines[cmdline] = true })
			select {
			case <-ctx.Done():
			case <-again.C:
			}
		}
	})
	return func() int {
		cancel()
		g.Wait()
		for line := range lines {
			k.saw("a command line", []byte(line))
		}
		return len(lines)
	}
}

// listen notes what goes through the NATS server of a cluster until it is stopped, which returns how many messages.
func (k *classified) listen(t *testing.T, c *cluster) (stop func() int) {
	nc := c.connect()
	n := 0
	sub, err := nc.Subscribe(">", func(m *nats.Msg) {
		n++
		k.saw("a message to "+m.Subject, append([]byte(fmt.Sprint(m.Header)), m.Data...))
	})
	if err != nil {
		t.Fatal(err)
	}
	return func() int {
		done := make(chan struct{})
		sub.SetClosedHandler(func(string) { close(done) })
		if err := sub.Drain(); err != nil {
			t.Fatal(err)
		}
		<-done
		return n
	}
}

// formsOf returns how texts may be written: as they are, in hex, and in both alphabets of base64, wherever in a
// longer text they are.
func formsOf(texts ...string) (forms [][]byte) {
	for _, text := range texts {
		forms = append(forms, []byte(text), []byte(hex.EncodeToString([]byte(text))), []byte(strings.ToUpper(hex.EncodeToString([]byte(text)))))
		for before := range 3 {
			for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
				whole := enc.EncodeToString([]byte(strings.Repeat("x", before) + text))
				from, to := (before*8+5)/6, (before+len(text))*8/6 // the characters of these bytes alone
				forms = append(forms, []byte(whole[from:to]))
			}
		}
	}
	return forms
}

func (p piece) holdsNone(t *testing.T, needles [][]byte) {
	t.Helper()
	for _, n := range needles {
		if at := bytes.Index(p.data, n); at >= 0 {
			t.Errorf("%s holds a secret as %q: %q", p.where, n, p.data[max(0, at-100):min(len(p.data), at+100)])
			return
		}
	}
}

// searchFiles looks for secrets in all files below a directory but those that hold keys.
func searchFiles(t *testing.T, dir string, needles [][]byte, but ...string) {
	t.Helper()
	if dir == "" {
		return
	}
	n := 0
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		for _, b := range but {
			if path == b || strings.HasPrefix(path, b+"/") {
				return nil
			}
		}
		if err != nil || !e.Type().IsRegular() {
			return nil // files come and go
		}
		if b, err := os.ReadFile(path); err == nil {
			n++
			piece{path, b}.holdsNone(t, needles)
		}
		return nil
	})
	if err != nil || n == 0 {
		t.Errorf("%d files of %s were looked at: %v", n, dir, err)
	}
}

func TestFormsAreFoundInLongerTexts(t *testing.T) {
	t.Parallel()
	forms := formsOf(marker + "~~~???")
	for n := range 4 {
		text := strings.Repeat("~", n) + marker + "~~~???" + strings.Repeat("?", n)
		for what, in := range map[string]string{"clear": text, "hex": hex.EncodeToString([]byte(text)),
			"base64": base64.StdEncoding.EncodeToString([]byte(text)), "base64 of URLs": base64.URLEncoding.EncodeToString([]byte(text))} {
			if !slices.ContainsFunc(forms, func(f []byte) bool { return strings.Contains(in, string(f)) }) {
				t.Errorf("%s, %d characters within: not found in %s", what, n, in)
			}
		}
	}
}
