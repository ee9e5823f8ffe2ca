package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"kiln/internal/apiclient"
)

// get asks the server for a path with headers, given as name and value in turn.
func (s *server) get(path string, headers ...string) (status int, body string) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), "GET", s.url+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

// readiness returns what /readyz says: the checks that fail, with what they say.
func (s *server) readiness() (status int, failing map[string]string) {
	s.t.Helper()
	status, body := s.get("/readyz")
	var answer struct {
		Ready  bool
		Checks []readyCheck
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil {
		s.t.Fatalf("%s: %v", body, err)
	}
	failing = map[string]string{}
	for _, c := range answer.Checks {
		if !c.OK {
			failing[c.Name] = c.Message
		}
	}
	if answer.Ready != (status == http.StatusOK) || answer.Ready != (len(failing) == 0) {
		s.t.Errorf("status %d: %s", status, body)
	}
	return status, failing
}

// awaitReady waits until a server says that it is ready.
func (s *server) awaitReady() {
	s.t.Helper()
	var failing map[string]string
	waitUntil(s.t, time.Minute, func() bool {
		_, failing = s.readiness()
		return len(failing) == 0
	}, func() string { return fmt.Sprintf("not ready: %q", failing) })
}

// awaitFailing waits until a check fails, and returns what it says.
func (s *server) awaitFailing(name string) (message string) {
	s.t.Helper()
	var failing map[string]string
	waitUntil(s.t, time.Minute, func() bool {
		_, failing = s.readiness()
		message = failing[name]
		return message != ""
	}, func() string { return fmt.Sprintf("%s does not fail, but %q", name, failing) })
	return message
}

// metric returns the value of a line of the metrics, which begins with a name and its labels; -1 if there is none.
func metric(text, line string) float64 {
	for l := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(l, line+" "); ok {
			f, err := strconv.ParseFloat(strings.TrimSpace(v), 64)
			if err == nil {
				return f
			}
		}
	}
	return -1
}

func testWatch(t *testing.T, s *server) {
	out := strings.TrimSpace(s.must("build", "-t", "watched/team-secret", files(t, map[string]string{"Dockerfile": base})))
	if _, err := s.image(out).Manifest(); err != nil {
		t.Fatal(err)
	}
	var text string
	waitUntil(t, time.Minute, func() bool { // what is told of queues is a second old
		var status int
		if status, text = s.get("/metrics"); status != http.StatusOK {
			t.Fatalf("status %d: %s", status, text)
		}
		for _, line := range []string{
			`kiln_runs_total{lane="manual",outcome="Succeeded"}`, `kiln_decisions_total{kind="run"}`,
			`kiln_step_duration_seconds_count{outcome="Succeeded",type="build"}`, `kiln_registry_requests_total{method="GET",route="manifests",status="2xx"}`,
			`kiln_registry_sent_bytes_total{route="manifests"}`, `kiln_registry_received_bytes_total{route="uploads"}`,
			`kiln_source_up{source="queue"}`, `kiln_source_up{source="streams"}`, `kiln_stream_messages{stream="KV_runs"}`,
			`kiln_stream_bytes{stream="EVENTS"}`, `kiln_worker_slots{pool="default"}`, `process_resident_memory_bytes`,
		} {
			if metric(text, line) <= 0 {
				return false
			}
		}
		return metric(text, `kiln_queue_runs{lane="manual",pool="default"}`) >= 0 && metric(text, `kiln_consumer_pending_messages{consumer="scheduler",stream="DECISIONS"}`) >= 0
	}, func() string { return text })
	if strings.Contains(text, "team-secret") || strings.Contains(text, `"other"`) && strings.Contains(text, `consumer="other"`) {
		t.Error("the metrics tell names, or of readers that are not known")
	}

	token, err := apiclient.ReadToken(s.data)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		status  int
		headers []string
	}{
		{200, []string{"Authorization", "Bearer " + token, "X-Forwarded-For", "192.0.2.1"}},
		{401, []string{"X-Forwarded-For", "192.0.2.1"}},
		{401, []string{"Authorization", "Bearer wrong"}},
	} {
		if status, body := s.get("/metrics", c.headers...); status != c.status {
			t.Errorf("/metrics with %q: status %d, want %d\n%.200s", c.headers, status, c.status, body)
		}
	}
	s.awaitReady()
	if _, body := s.get("/readyz", "X-Forwarded-For", "192.0.2.1"); strings.Contains(body, s.data) || !strings.Contains(body, `"message store","ok":true`) {
		t.Errorf("/readyz tells strangers %s", body)
	}
	if status, body := s.get("/healthz", "X-Forwarded-For", "192.0.2.1"); status != 200 || body != "ok\n" {
		t.Errorf("/healthz: %d %q", status, body)
	}
	doctor := s.must("doctor")
	for _, name := range []string{"message store", "disk", "registry", "index", "build daemon"} {
		if !slices.ContainsFunc(strings.Split(doctor, "\n"), func(l string) bool { return strings.HasPrefix(l, "ok    "+name+":") }) {
			t.Errorf("doctor does not say how the %s is:\n%s", name, doctor)
		}
	}
}
