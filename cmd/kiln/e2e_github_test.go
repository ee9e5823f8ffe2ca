package main

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"kiln/internal/apiclient"
	"kiln/internal/run"
)

// A hub is a forge that delivers as GitHub does.
type hub struct {
	*forge
	hook apiclient.Hook
}

// deliver sends a signed delivery and returns the answer's status.
func (h *hub) deliver(event, id, key string, payload map[string]any) int {
	h.s.t.Helper()
	payload["repository"] = map[string]any{"id": 1, "full_name": "o/hub", "clone_url": h.url, "default_branch": "main"}
	body, err := json.Marshal(payload)
	if err != nil {
		h.s.t.Fatal(err)
	}
	mac := hmac.New(sha256.New, []byte(key))
	mac.Write(body)
	req, err := http.NewRequestWithContext(h.s.t.Context(), http.MethodPost, h.hook.URL, bytes.NewReader(body))
	if err != nil {
		h.s.t.Fatal(err)
	}
	for name, value := range map[string]string{"Content-Type": "application/json", "User-Agent": "GitHub-Hookshot/0123456",
		"X-GitHub-Event": event, "X-GitHub-Delivery": id, "X-Hub-Signature-256": "sha256=" + hex.EncodeToString(mac.Sum(nil))} {
		req.Header.Set(name, value)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		h.s.t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

// push tells of a push to main.
func (h *hub) push(before, after, id, key string) int {
	h.s.t.Helper()
	commit := map[string]any{"id": after, "message": "change", "author": map[string]any{"username": "kim"}, "modified": []string{"app"}}
	return h.deliver("push", id, key, map[string]any{"ref": "refs/heads/main", "before": before, "after": after,
		"commits": []any{commit}, "head_commit": commit, "pusher": map[string]any{"name": "kim"}, "sender": map[string]any{"id": 5, "login": "kim"}})
}

// pull commits to a stranger's pull request and tells of it.
func (h *hub) pull(action, id string) (commit string) {
	h.s.t.Helper()
	h.repo.Git("checkout", "-q", "--detach")
	h.repo.Write("app", id, 0)
	h.repo.Git("add", "-A")
	h.repo.Git("commit", "-q", "-m", "from a fork")
	commit = h.repo.Git("rev-parse", "HEAD")
	h.repo.Git("push", "-q", "-f", "origin", "HEAD:refs/pull/7/head")
	stranger := map[string]any{"id": 99, "login": "stranger"}
	status := h.deliver("pull_request", id, h.hook.Secret, map[string]any{"action": action, "number": 7, "sender": stranger,
		"pull_request": map[string]any{"title": "mine", "user": stranger, "author_association": "NONE",
			"head": map[string]any{"ref": "mine", "sha": commit, "repo": map[string]any{"id": 2, "full_name": "stranger/hub", "clone_url": "https://git.invalid/stranger/hub.git"}},
			"base": map[string]any{"ref": "main", "sha": h.repo.Git("rev-parse", "origin/main")}}})
	if status != http.StatusAccepted {
		h.s.t.Fatalf("delivery answered %d", status)
	}
	return commit
}

// waiting returns the run of a task that waits for approval.
func (s *server) waiting(name string) (found run.Run) {
	s.t.Helper()
	waitFor(s.t, "a run of "+name+" that waits for approval", func() bool {
		var page apiclient.Runs
		if err := json.Unmarshal([]byte(s.must("task", "list-runs", name, "-o", "json")), &page); err != nil {
			s.t.Fatal(err)
		}
		for _, r := range page.Runs {
			if r.NeedsApproval && r.Reason == "waiting for approval" {
				found = r
			}
		}
		return found.ID != ""
	})
	return found
}

// testGitHub has GitHub's deliveries become runs; a stranger's pull request waits until it is approved.
func testGitHub(t *testing.T, s *server, reg *private) {
	h := &hub{forge: newForge(t, s, "hub", "", "", map[string]string{"Dockerfile": base + "COPY app /app\n", "app": "one"})}
	out := s.must("hook", "create", "--provider", "github", "-o", "json")
	if err := json.Unmarshal([]byte(out), &h.hook); err != nil {
		t.Fatal(err)
	}
	s.apply("hub", "context: "+h.url+"#main\nstep: {build: {images: ['hub:{{.Run.ID}}']}}\n"+
		"triggers: {source: [{name: all, events: [push, pull-request]}]}\n")
	s.prints(t, "Payload URL    the address", "hook", "create", "--provider", "github")
	told, _ := s.follow("events", "-f")
	before := h.repo.Git("rev-parse", "HEAD")
	after := h.commit(map[string]string{"app": "two"})
	if status := h.push(before, after, "g0", "another key"); status != http.StatusNotFound {
		t.Errorf("a delivery signed with another key is answered %d", status)
	}
	for range 2 { // as GitHub's "redeliver" does
		if status := h.push(before, after, "g1", h.hook.Secret); status/100 != 2 {
			t.Fatalf("delivery answered %d", status)
		}
	}
	pushed := s.runsOf("hub", 1)[0]
	if pushed.Cause.Commit != after || pushed.Cause.Kind != run.CauseCommit || len(pushed.Images) != 1 || pushed.Spec.Restricted {
		t.Errorf("run %+v with images %v, want one of %s", pushed.Cause, pushed.Images, after)
	}
	s.wants(t, 2, "needs no approval", "approve", pushed.ID)
	s.approveStranger(t, h)
	s.replay(t, pushed)
	waitFor(t, "events told as they come", func() bool {
		out := told.String()
		return strings.Contains(out, "o/hub@refs/heads/main") && strings.Contains(out, "run.approved") && strings.Contains(out, "o/hub#7")
	})
	s.strangerSignsInNowhere(t, h, reg)
}

// strangerSignsInNowhere has a stranger's pull request copy from a private registry, which others may by the login
// that the server has for it.
func (s *server) strangerSignsInNowhere(t *testing.T, h *hub, reg *private) {
	t.Helper()
	s.must("build", "-t", reg.host+"/team/box:1", files(t, map[string]string{"Dockerfile": base}))
	const copied = "COPY --from=REG/team/box:1 /bin/busybox /copied\n"
	dockerfile := base + strings.Replace(copied, "REG", reg.host, 1)
	s.must("build", files(t, map[string]string{"Dockerfile": dockerfile}))
	if !reg.used("shared") {
		t.Error("runs that are no stranger's do not sign in")
	}
	h.repo.Write("Dockerfile", dockerfile, 0)
	commit := h.pull("synchronize", "p3")
	var last run.Run
	waitFor(t, "the end of the run of "+commit, func() bool {
		var page apiclient.Runs
		if err := json.Unmarshal([]byte(s.must("task", "list-runs", "hub", "-o", "json")), &page); err != nil {
			t.Fatal(err)
		}
		last = page.Runs[0]
		return last.Cause.Commit == commit && last.State.Final()
	})
	if last.State != run.Failed || !strings.Contains(last.Reason, reg.host) || !strings.Contains(last.Reason, "401") || reg.used("shared") {
		t.Errorf("%s: %s", last.State, last.Reason)
	}
}

// approveStranger has a pull request wait, approves it, and sees to it that the next one need not wait.
func (s *server) approveStranger(t *testing.T, h *hub) {
	t.Helper()
	head := h.pull("opened", "p1")
	waits := s.waiting("hub")
	if waits.State != run.Queued || waits.Cause.Commit != head || waits.Cause.Author != "github:stranger" {
		t.Errorf("the run that waits: %+v", waits)
	}
	s.must("approve", waits.ID)
	approved := s.runsOf("hub", 2)[1]
	if approved.ID != waits.ID || approved.Cause.Commit != head || approved.ApprovedBy != "admin" || !approved.Spec.Restricted || len(approved.Images) > 0 {
		t.Errorf("approved by %q: %+v with images %v", approved.ApprovedBy, approved.Cause, approved.Images)
	}
	s.wants(t, 2, "approved by admin already", "approve", waits.ID)
	next := h.pull("synchronize", "p2")
	if r := s.runsOf("hub", 3)[2]; r.NeedsApproval || !r.Spec.Restricted || len(r.Images) > 0 || r.Cause.Commit != next {
		t.Errorf("the next run of an author who was approved: %+v", r)
	}
	s.wants(t, 2, "", "show", "hub:"+waits.ID) // nothing was pushed
}

// replay has the event of a run handled again, which makes no other.
func (s *server) replay(t *testing.T, of run.Run) {
	t.Helper()
	seq := fmt.Sprint(of.Cause.Seq)
	for _, args := range [][]string{{"replay", "--dry-run", seq}, {"replay", seq}} {
		if out := s.must(args...); !strings.Contains(out, "hub") || strings.Contains(out, "\trun\t") {
			t.Errorf("kiln %s:\n%s", strings.Join(args, " "), out)
		}
	}
	s.wants(t, 2, "there is no event 999999999", "replay", "999999999")
	s.wants(t, 2, "want its number", "replay", "first")
	s.runsOf("hub", 3)
}
