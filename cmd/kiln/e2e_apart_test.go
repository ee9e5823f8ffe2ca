package main

import (
	"crypto/tls"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"kiln/internal/apiclient"
	"kiln/internal/run"
)

// apartHost is the name of a registry, which leads nowhere.
const apartHost = "registry.kiln.test"

// TestServerOfProcesses looks at a server whose processes have few roles each: one stores images, one answers, decides
// and schedules, and the workers are apart, one of them in a network of its own. The registry's process has a
// certificate that nobody else trusts, and gets another one.
func TestServerOfProcesses(t *testing.T) {
	t.Parallel()
	net, ip := newFarNet(t)
	secrets, certs, health := newClassified(t), t.TempDir(), ip+":"+freePort(t, ip)
	cert, key := issue(t, certs, 1, apartHost, ip)
	c := newCluster(t, ip, "", []string{"--allow-notify", "127.0.0.0/8", "--vault", secrets.vault, "--registry-login", secrets.registry.host + "=shared:store:hub-password"},
		"--tls-cert", cert, "--tls-key", key, "--registry-host", apartHost)
	c.workers = append(c.workers, c.process("far", append([]string{"nsenter", "--net=/run/netns/" + net.name}, c.workerArgs("far")...)...))
	phase := func(name string, do func(*testing.T, *cluster)) {
		t.Run(name, func(t *testing.T) {
			bound := *c
			bound.t = t
			do(t, &bound)
		})
	}
	phase("network is cut", func(t *testing.T, bound *cluster) {
		testNetworkIsCut(t, bound, net, certs, func() {
			c.work("near", "--allow-source", "localhost", "--vault", secrets.vault, "--listen", health)
		})
	})
	phase("secrets", secrets.test)
	phase("readiness", func(t *testing.T, bound *cluster) { testReadiness(t, bound, health) })
	phase("restored", testRestoredApart)
}

// testReadiness asks processes of few roles, one of them a worker that tells of itself at an address, how they are
// while NATS goes and comes back.
func testReadiness(t *testing.T, c *cluster, worker string) {
	c.serve("third", "scheduler") // stands by
	urls := map[string]string{"the registry": c.clients[0].BaseURL, "api, triggers and scheduler": c.clients[1].BaseURL,
		"a scheduler that stands by": c.clients[2].BaseURL, "a worker": "http://" + worker}
	parts := map[string]string{"the registry": "disk, index, message store, registry", "api, triggers and scheduler": "disk, index, message store",
		"a scheduler that stands by": "disk, index, message store", "a worker": "build daemon, disk, message store"}
	anyCertificate := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer anyCertificate.CloseIdleConnections()
	ask := func(name, path string) (status int, body string) {
		res, err := anyCertificate.Get(urls[name] + path)
		if err != nil {
			return 0, err.Error()
		}
		defer res.Body.Close()
		if b, err := io.ReadAll(res.Body); err == nil {
			return res.StatusCode, string(b)
		}
		return 0, "cut off"
	}
	await := func(ready bool) {
		t.Helper()
		var g sync.WaitGroup
		for name := range urls {
			g.Go(func() {
				var status int
				var body string
				if !becomes(time.Minute, func() bool {
					status, body = ask(name, "/readyz")
					return (status == http.StatusOK) == ready && strings.Contains(body, fmt.Sprintf(`{"name":"message store","ok":%t`, ready))
				}) {
					t.Errorf("%s does not become ready=%t: %d %s", name, ready, status, body)
				}
				if all := partsOf(t, body); all != parts[name] {
					t.Errorf("%s tells of %s, want %s", name, all, parts[name])
				}
				if status, body := ask(name, "/healthz"); status != http.StatusOK || body != "ok\n" {
					t.Errorf("%s with ready=%t: /healthz: %d %s", name, ready, status, body)
				}
			})
		}
		g.Wait()
	}
	await(true)
	for _, name := range []string{"the registry", "a scheduler that stands by", "a worker"} {
		if status, body := ask(name, "/api/v1/runs"); status != http.StatusNotFound {
			t.Errorf("%s answers for the API: %d %s", name, status, body)
		}
	}
	c.nats.end(syscall.SIGTERM)
	await(false)
	c.nats.start()
	await(true)
	var r run.Run
	err := c.any(t.Context(), func(k *apiclient.Client) (err error) {
		r, err = k.Submit(t.Context(), apiclient.Submit{Key: "back", Spec: taskFile("", "- cmd: $Registry/cut/box:1 true\n")})
		return err
	})
	if err == nil {
		r, err = c.record(t.Context(), r.ID, ended)
	}
	if err != nil || r.State != run.Succeeded {
		t.Errorf("a run after NATS has come back: %v, %s %s", err, r.State, r.Reason)
	}
}

// partsOf returns the names of the checks in an answer of /readyz, sorted.
func partsOf(t *testing.T, body string) string {
	t.Helper()
	var answer struct{ Checks []readyCheck }
	if err := json.Unmarshal([]byte(body), &answer); err != nil {
		t.Errorf("%s: %v", body, err)
	}
	var names []string
	for _, c := range answer.Checks {
		names = append(names, c.Name)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// testRestoredApart backs a server up, and has another one go on elsewhere, in NATS servers that have nothing yet.
func testRestoredApart(t *testing.T, c *cluster) {
	file, data := filepath.Join(c.dir, "kiln.backup"), filepath.Join(c.dir, "restored")
	c.kiln("backup", file)
	db, err := sql.Open("sqlite", filepath.Join(c.first.data, "registry", "registry.db")+"?_pragma=busy_timeout(10000)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	copied := filepath.Join(data, "registry")
	if err := os.MkdirAll(copied, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec("VACUUM INTO ?", filepath.Join(copied, "registry.db")); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(copied, "blobs"), os.DirFS(filepath.Join(c.first.data, "registry", "blobs"))); err != nil {
		t.Fatal(err)
	}
	address := "127.0.0.1:" + freePort(t, "127.0.0.1")
	c.process("other nats", natsCommand, filepath.Join(c.dir, "other"), address)
	nats := []string{"--nats", "nats://" + address, "--nats-token-file", filepath.Join(c.dir, "token")}
	for _, r := range []struct {
		data, says string
		code       int
		more       []string
	}{
		{data, "3 NATS servers", exitUsage, []string{"--nats-replicas", "3"}}, {data, " 3 keys, no logs, of ", 0, nil},
		{data + "-again", "there is state already: stream ", exitUsage, nil},
	} {
		got := runKiln(t, nil, slices.Concat([]string{"restore", file, "--data", r.data}, nats, r.more)...)
		if got.code != r.code || !strings.Contains(got.out+got.err, r.says) {
			t.Fatalf("kiln restore: %+v, want exit code %d and %q", got, r.code, r.says)
		}
	}
	near := c.workers[len(c.workers)-1]
	c.process("restored server", slices.Concat([]string{"kiln", "serve", "--data", data, "--listen", "127.0.0.1:0",
		"--buildkit", "unix://" + near.data + "/buildkitd.sock"}, nats)...)
	s := &server{t: t, data: data}
	if r := s.kiln("task", "run", "told"); r.code != 0 || !strings.Contains(r.err, "***") {
		t.Errorf("a task with a restored secret, on a restored image: %+v", r)
	}
	if out := s.must("fsck"); !strings.Contains(out, "all is well") {
		t.Errorf("kiln fsck:\n%s", out)
	}
}
