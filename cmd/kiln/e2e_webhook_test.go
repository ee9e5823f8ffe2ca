package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// testWebhook has an address told of pushes and of a deletion.
func testWebhook(t *testing.T, s *server) {
	var mu sync.Mutex
	got := map[string]string{} // by action and image
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		var p struct {
			Action string
			Target struct{ Repository, Tag, Digest, MediaType string }
		}
		if json.Unmarshal(body, &p) != nil || r.Header.Get("Authorization") != "Basic abc" || r.Header.Get("webhook-signature") == "" {
			t.Errorf("request %s with header %v", body, r.Header)
		}
		mu.Lock()
		defer mu.Unlock()
		got[strings.TrimSpace(p.Action+" "+p.Target.Repository+" "+p.Target.Tag)] = p.Target.Digest + " " + p.Target.MediaType
	}))
	t.Cleanup(srv.Close)
	told := func(what string) string {
		mu.Lock()
		defer mu.Unlock()
		return got[what]
	}
	headers := filepath.Join(t.TempDir(), "headers")
	if err := os.WriteFile(headers, []byte("Authorization=Basic abc\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.must("secret", "set", "webhook-key", "--from-file", headers)
	s.must("webhook", "create", "-n", "ci", "--uri", srv.URL+"/t0ken", "--actions", "push", "delete", "--scope", "hooked/*:*", "--headers-from-file", headers, "--secret", "webhook-key")
	s.must("webhook", "ping", "ci")
	waitFor(t, "a ping", func() bool { return told("ping") != "" })

	n := 0 // until the server has learnt of the webhook
	waitFor(t, "a push", func() bool {
		n++
		s.push(fmt.Sprint("hooked/app:", n))
		return told(fmt.Sprint("push hooked/app ", n)) != "" || told("push hooked/app 1") != ""
	})
	s.push("unhooked:1")
	s.push("hooked/last:1")
	waitFor(t, "the last push", func() bool { return told("push hooked/last 1") != "" })
	s.must("manifest", "delete", "hooked/last:1", "--yes")
	waitFor(t, "the deletion", func() bool { return told("delete hooked/last") != "" })
	if digest, _, _ := strings.Cut(told("delete hooked/last"), " "); !strings.HasPrefix(told("push hooked/last 1"), digest+" application/vnd.") {
		t.Errorf("pushed %q, deleted %q", told("push hooked/last 1"), told("delete hooked/last"))
	}
	if told("push unhooked 1") != "" {
		t.Error("told of what is not in the scope")
	}
	waitFor(t, "the requests are kept", func() bool {
		out := s.must("webhook", "list-events", "ci")
		return strings.Contains(out, "hooked/last@sha256:") && strings.Contains(out, "hooked/last:1") && strings.Contains(out, "ping") && strings.Contains(out, "200 OK")
	})
	s.must("webhook", "update", "ci", "--status", "disabled", "--scope", "")
	for command, want := range map[string]string{"list": "disabled: it was disabled", "show ci": `"Authorization"`} {
		if out := s.must(append([]string{"webhook"}, strings.Fields(command)...)...); !strings.Contains(out, want) || strings.Contains(out, "t0ken") || strings.Contains(out, "abc") {
			t.Errorf("webhook %s:\n%s", command, out)
		}
	}
	if r := s.kiln("webhook", "create", "bad", "--uri", srv.URL, "--actions", "quarantine"); r.code != exitUsage || !strings.Contains(r.err, "want one of push, delete, chart_push, chart_delete") {
		t.Errorf("a webhook of an unknown action: %+v", r)
	}
	s.must("webhook", "delete", "ci")
}

// push pushes an empty image with a client of the protocol.
func (s *server) push(image string) {
	s.t.Helper()
	ref, err := name.ParseReference(s.host()+"/"+image, name.Insecure)
	if err != nil {
		s.t.Fatal(err)
	}
	token, err := os.ReadFile(filepath.Join(s.data, "admin.token"))
	if err != nil {
		s.t.Fatal(err)
	}
	if err := remote.Write(ref, empty.Image, remote.WithAuth(&authn.Basic{Username: "kiln", Password: strings.TrimSpace(string(token))})); err != nil {
		s.t.Fatal(err)
	}
}
