package apiclient_test

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"kiln/internal/apiclient"
	"kiln/internal/run"
)

func TestSubmitMintsAKeyAndRepeatsABrokenRequestOnce(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex // the requests come on different connections
	var keys []string
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		var in apiclient.Submit
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		keys = append(keys, in.Key)
		if len(keys) == 1 {
			panic(http.ErrAbortHandler)
		}
		w.WriteHeader(http.StatusCreated)
		json.NewEncoder(w).Encode(run.Run{ID: runID, State: run.Queued})
	})
	r, err := newClient(s.URL).Submit(t.Context(), apiclient.Submit{})
	if err != nil || r.ID != runID {
		t.Fatalf("Submit = %v, %v", r, err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(keys) != 2 || keys[0] != keys[1] || keys[0] == "" {
		t.Errorf("keys = %q, want the same twice", keys)
	}
}

func TestErrorsOfTheServer(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, body string
		status     int
		code, text string
	}{
		{"kiln's", `{"error":{"code":"invalid","message":"m","problems":[{"file":"a.yaml","line":3,"column":5,"step":"b","message":"no"}]}}`,
			422, "invalid", `a.yaml:3:5: step "b": no`},
		{"a proxy's", "<html>\nBad Gateway", 502, "unavailable", `GET /api/v1/status: 502 Bad Gateway: "<html>"`},
		{"empty", "", 401, "unauthorized", "GET /api/v1/status: 401 Unauthorized"},
		{"redirect", "", 302, "invalid", "GET /api/v1/status: 302 Found"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Location", "http://127.0.0.1:1/elsewhere")
				w.WriteHeader(tt.status)
				io.WriteString(w, tt.body)
			})
			_, err := newClient(s.URL).Status(t.Context())
			var e *apiclient.Error
			if !errors.As(err, &e) || e.Code != tt.code || e.Status != tt.status || e.Error() != tt.text {
				t.Errorf("Status = %#v (%v), want %s: %s", err, err, tt.code, tt.text)
			}
		})
	}
}

func TestAnAnswerThatIsNotKilnsIsExplained(t *testing.T) {
	t.Parallel()
	s := serve(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "<html>") })
	_, err := newClient(s.URL).Status(t.Context())
	if err == nil || !strings.Contains(err.Error(), "is "+s.URL+" a kiln server?") {
		t.Errorf("Status = %v", err)
	}
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	s := httptest.NewServer(nil)
	s.Close()
	_, err := newClient(s.URL).Status(t.Context())
	if !errors.Is(err, apiclient.ErrUnreachable) || !strings.Contains(err.Error(), s.URL) {
		t.Errorf("Status = %v, want ErrUnreachable with the address", err)
	}
}

func TestIDsNeverBecomePaths(t *testing.T) {
	t.Parallel()
	var asked atomic.Bool
	s := serve(t, func(http.ResponseWriter, *http.Request) { asked.Store(true) })
	c := newClient(s.URL)
	if _, err := c.Run(t.Context(), "../contexts"); err == nil {
		t.Error("Run of a path succeeded")
	}
	if _, err := c.Cancel(t.Context(), "x/rerun?"); err == nil {
		t.Error("Cancel of a path succeeded")
	}
	if asked.Load() {
		t.Error("the server was asked")
	}
}

func TestOneConnectionServesAllCalls(t *testing.T) {
	t.Parallel()
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			w.WriteHeader(http.StatusCreated)
			json.NewEncoder(w).Encode(run.Run{ID: runID})
			return
		}
		send(w, "end", "", struct{}{})
	})
	var fresh atomic.Int32
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		GotConn: func(i httptrace.GotConnInfo) {
			if !i.Reused {
				fresh.Add(1)
			}
		},
	})
	c := newClient(s.URL)
	if _, err := c.Submit(ctx, apiclient.Submit{}); err != nil {
		t.Fatal(err)
	}
	if err := c.Follow(ctx, runID, "", true, nil); err != nil {
		t.Fatal(err)
	}
	if fresh.Load() != 1 {
		t.Errorf("%d connections, want 1", fresh.Load())
	}
}

func TestLocate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := apiclient.Locate(dir); !errors.Is(err, apiclient.ErrUnreachable) {
		t.Errorf("Locate of an empty directory = %v, want ErrUnreachable", err)
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(apiclient.ServerFile, `{"url":"file:///etc","pid":1}`)
	if _, err := apiclient.Locate(dir); err == nil || !strings.Contains(err.Error(), apiclient.ServerFile) {
		t.Errorf("Locate = %v, want an error that names the file", err)
	}
	write(apiclient.ServerFile, `{"url":"http://127.0.0.1:7070","pid":12}`)
	l, err := apiclient.Locate(dir)
	if err != nil || l.URL != "http://127.0.0.1:7070" || l.PID != 12 {
		t.Errorf("Locate = %v, %v", l, err)
	}
	write(apiclient.TokenFile, "top secret\n")
	if _, err := apiclient.ReadToken(dir); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("ReadToken = %v, want an error without the content", err)
	}
	write(apiclient.TokenFile, "abc\n")
	if token, err := apiclient.ReadToken(dir); err != nil || token != "abc" {
		t.Errorf("ReadToken = %q, %v", token, err)
	}
}

func TestLocationServes(t *testing.T) {
	t.Parallel()
	l := apiclient.Location{URL: "http://127.0.0.1:7070"}
	for addr, want := range map[string]bool{
		"http://127.0.0.1:7070":  true,
		"http://127.0.0.1:7070/": true,
		"http://localhost:7070":  true,
		"http://127.0.0.1:7071":  false,
		"https://127.0.0.1:7070": false,
		"http://127.0.0.2:7070":  false,
		"http://evil.test:7070":  false,
		"http://127.0.0.1":       false,
		"::":                     false,
	} {
		if got := l.Serves(addr); got != want {
			t.Errorf("Serves(%q) = %v, want %v", addr, got, want)
		}
	}
}

func TestCheckURL(t *testing.T) {
	t.Parallel()
	for _, good := range []string{"http://127.0.0.1:7070", "https://kiln.example/", "http://[::1]:80"} {
		if err := apiclient.CheckURL(good); err != nil {
			t.Errorf("CheckURL(%q) = %v", good, err)
		}
	}
	for _, bad := range []string{"", "127.0.0.1:7070", "unix:///x", "http://", "http://u:p@host", "http://host/path", "http://host?x"} {
		err := apiclient.CheckURL(bad)
		if err == nil || strings.Contains(err.Error(), "u:p") {
			t.Errorf("CheckURL(%q) = %v", bad, err)
		}
	}
}
