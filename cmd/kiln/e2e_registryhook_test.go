package main

import (
	"bytes"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"kiln/internal/apiclient"
	"kiln/internal/run"
)

// An otherRegistry is a registry beside the server's, whose pushes are told to a hook.
type otherRegistry struct {
	s    *server
	host string
}

// push moves team/base:1 and returns its digest.
func (e otherRegistry) push() string {
	e.s.t.Helper()
	image, err := random.Image(64, 1)
	if err != nil {
		e.s.t.Fatal(err)
	}
	ref, err := name.ParseReference(e.host+"/team/base:1", name.Insecure)
	if err == nil {
		err = remote.Write(ref, image)
	}
	if err != nil {
		e.s.t.Fatal(err)
	}
	digest, err := image.Digest()
	if err != nil {
		e.s.t.Fatal(err)
	}
	return digest.String()
}

// notified makes a hook of a provider and returns what delivers to it, and the answer's status.
func (e otherRegistry) notified(provider string) func(kind, secret, body string) int {
	e.s.t.Helper()
	var hook apiclient.Hook
	if err := json.Unmarshal([]byte(e.s.must("hook", "create", "--provider", provider, "--registry", e.host, "-o", "json")), &hook); err != nil {
		e.s.t.Fatal(err)
	}
	return func(kind, secret, body string) int {
		e.s.t.Helper()
		if secret == "" {
			secret = hook.Secret
		}
		req, err := http.NewRequestWithContext(e.s.t.Context(), http.MethodPost, hook.URL, bytes.NewReader([]byte(body)))
		if err != nil {
			e.s.t.Fatal(err)
		}
		req.Header.Set("Content-Type", kind)
		req.Header.Set("Authorization", "Bearer "+secret)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			e.s.t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.StatusCode
	}
}

// testRegistryHook has the notifications of registries become runs: of CNCF Distribution, of Harbor and of zot.
// They name a digest that is wrong: what counts is what the registry itself answers.
func testRegistryHook(t *testing.T, s *server) {
	reg := httptest.NewServer(ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(reg.Close)
	e := otherRegistry{s, strings.TrimPrefix(reg.URL, "http://")}
	before := e.push()
	f := newForge(t, s, "hooked", "", "", map[string]string{"Dockerfile": "FROM " + e.host + "/team/base:1\nCOPY app /app\n", "app": "one"})
	s.apply("hooked", "context: "+f.url+"#main\nstep: {build: {images: ['hooked:{{.Run.ID}}']}}\ntriggers: {baseImage: {quiet: 0s}}\n")
	wrong := "sha256:" + strings.Repeat("1f", 32)
	for i, c := range []struct{ provider, kind, body string }{
		{"distribution", "application/vnd.docker.distribution.events.v2+json", `{"events":[{"id":"d1","timestamp":"2026-01-02T10:00:00Z","action":"push","target":{"mediaType":"application/octet-stream","repository":"team/base","digest":"` +
			wrong + `"}},{"id":"d2","timestamp":"2026-01-02T10:00:00Z","action":"push","target":{"mediaType":"application/vnd.oci.image.manifest.v1+json","repository":"team/base","tag":"1","digest":"` +
			wrong + `"},"request":{"host":"registry:5000"},"actor":{"name":"jane"}}]}`},
		{"harbor", "application/json", `{"type":"PUSH_ARTIFACT","occur_at":1767348000,"operator":"jane","event_data":{"resources":[{"digest":"` + wrong +
			`","tag":"1","resource_url":"harbor.example.com/team/base:1"}],"repository":{"name":"base","namespace":"team","repo_full_name":"team/base"}}}`},
		{"cloudevents", "application/cloudevents+json", `{"specversion":"1.0","id":"z1","source":"zotregistry.dev","type":"zotregistry.image.updated","data":{"name":"team/base","reference":"1","digest":"` +
			wrong + `","mediaType":"application/vnd.oci.image.manifest.v1+json"}}`},
	} {
		deliver := e.notified(c.provider)
		after := e.push()
		if status := deliver(c.kind, "another secret", c.body); status/100 != 4 {
			t.Errorf("%s with another secret: answered %d", c.provider, status)
		}
		for range 2 { // as a registry that has not seen the first answer
			if status := deliver(c.kind, "", c.body); status != http.StatusAccepted {
				t.Fatalf("%s: answered %d", c.provider, status)
			}
		}
		r := s.runsOf("hooked", i+1)[i]
		if m := r.Cause.Moved; r.Cause.Kind != run.CauseBase || len(m) != 1 || m[0].From != before || m[0].To != after {
			t.Errorf("%s: the run is because of %+v, want a move from %s to %s", c.provider, r.Cause, before, after)
		}
		s.explains(r.ID, "registry.pushed", e.host+"/team/base:1")
		before = after
	}
}
