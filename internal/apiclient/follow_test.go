package apiclient_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"kiln/internal/apiclient"
	"kiln/internal/event"
	"kiln/internal/run"
)

const runID = "r0abcde12345"

func newClient(url string) *apiclient.Client {
	return &apiclient.Client{BaseURL: url, Token: "secret", HTTP: apiclient.NewHTTP(url, nil), Patience: 10 * time.Second}
}

func send(w http.ResponseWriter, name, id string, data any) {
	b, err := json.Marshal(data)
	if err != nil {
		panic(err)
	}
	if id != "" {
		fmt.Fprintf(w, "id: %s\n", id)
	}
	fmt.Fprintf(w, "event: %s\ndata: %s\n\n", name, b)
	w.(http.Flusher).Flush()
}

func line(s string) event.LogChunk {
	return event.LogChunk{Attempt: 1, Step: "build", Entries: []event.LogEntry{{Stream: 1, Data: []byte(s)}}}
}

func serve(t *testing.T, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

// collect follows the run and returns the output and the states that it saw.
func collect(ctx context.Context, c *apiclient.Client, follow bool) (log string, states []run.State, err error) {
	err = c.Follow(ctx, runID, "", follow, func(e apiclient.StreamEvent) error {
		if e.Run != nil {
			states = append(states, e.Run.State)
			return nil
		}
		for _, entry := range e.Log.Entries {
			log += string(entry.Data)
		}
		return nil
	})
	return log, states, err
}

func TestFollowResumesAfterTheLastLogEvent(t *testing.T) {
	t.Parallel()
	var connections atomic.Int32
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if got, want := r.Header.Get("Authorization"), "Bearer secret"; got != want {
			t.Errorf("Authorization = %q, want %q", got, want)
		}
		if r.URL.Path != apiclient.LogPath(runID) || r.URL.Query().Get("follow") != "1" {
			t.Errorf("request of %s", r.URL)
		}
		switch n := connections.Add(1); {
		case n == 1:
			send(w, "run", "", run.Run{ID: runID, State: run.Running})
			send(w, "log", "7", line("one "))
			send(w, "log", "9", line("two "))
			fmt.Fprint(w, "id: 11\nevent: log\ndata: {\"a\":1,\"step\":\"build\",\"e\":[{\"s\":1,\"d\":\"eA==\"}]}\n") // cut off
			panic(http.ErrAbortHandler)
		case n < 4: // restarting
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			if got, want := r.Header.Get("Last-Event-ID"), "9"; got != want {
				t.Errorf("Last-Event-ID = %q, want %q", got, want)
			}
			send(w, "run", "", run.Run{ID: runID, State: run.Running})
			fmt.Fprint(w, ": beat\n\n")
			send(w, "later.server", "", "what is this?")
			send(w, "log", "11", line("three"))
			send(w, "run", "", run.Run{ID: runID, State: run.Succeeded})
			send(w, "end", "", struct{}{})
		}
	})
	c := newClient(s.URL)
	var lost atomic.Int32
	c.Lost = func(error) { lost.Add(1) }
	log, states, err := collect(t.Context(), c, true)
	if err != nil || log != "one two three" {
		t.Errorf("Follow = %q, %v, want %q", log, err, "one two three")
	}
	if got, want := fmt.Sprint(states), "[Running Running Succeeded]"; got != want {
		t.Errorf("states = %s, want %s", got, want)
	}
	if lost.Load() != 1 {
		t.Errorf("Lost was called %d times, want once", lost.Load())
	}
}

func TestFollowSurvivesARestartOfTheServer(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	first := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		send(w, "log", "1", line("before "))
		<-r.Context().Done()
	})}
	go first.Serve(l)
	second := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		send(w, "log", "2", line("after"+r.Header.Get("Last-Event-ID")))
		send(w, "end", "", struct{}{})
	})}
	t.Cleanup(func() { second.Close() })

	c := newClient("http://" + addr)
	restart := func(error) {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Error(err)
			return
		}
		go second.Serve(l)
	}
	c.Lost = restart
	var log string
	err = c.Follow(t.Context(), runID, "", true, func(e apiclient.StreamEvent) error {
		log += string(e.Log.Entries[0].Data)
		if e.ID == "1" {
			first.Close()
		}
		return nil
	})
	if err != nil || log != "before after1" {
		t.Errorf("Follow = %q, %v", log, err)
	}
}

func TestFollowGivesUpWhenTheServerStaysAway(t *testing.T) {
	t.Parallel()
	var s *httptest.Server
	s = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		send(w, "log", "1", line("x"))
		s.Listener.Close()
		panic(http.ErrAbortHandler)
	}))
	defer s.CloseClientConnections()
	c := newClient(s.URL)
	c.Patience = 100 * time.Millisecond
	if _, _, err := collect(t.Context(), c, true); !errors.Is(err, apiclient.ErrUnreachable) {
		t.Errorf("Follow = %v, want ErrUnreachable", err)
	}
}

func TestFollowDoesNotWaitForAServerThatNeverAnswered(t *testing.T) {
	t.Parallel()
	s := httptest.NewServer(nil)
	s.Close()
	c := newClient(s.URL)
	c.Patience = time.Hour
	if _, _, err := collect(t.Context(), c, true); !errors.Is(err, apiclient.ErrUnreachable) {
		t.Errorf("Follow = %v, want ErrUnreachable", err)
	}
}

func TestFollowReturnsTheServersRefusal(t *testing.T) {
	t.Parallel()
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusNotFound)
		io.WriteString(w, `{"error":{"code":"not_found","message":"run r0abcde12345: no such run"}}`)
	})
	_, _, err := collect(t.Context(), newClient(s.URL), true)
	var e *apiclient.Error
	if !errors.As(err, &e) || e.Code != apiclient.CodeNotFound || e.Status != 404 {
		t.Errorf("Follow = %#v, want not_found", err)
	}
}

func TestFollowReturnsTheErrorOfItsFunction(t *testing.T) {
	t.Parallel()
	s := serve(t, func(w http.ResponseWriter, r *http.Request) { send(w, "log", "1", line("x")) })
	stop := errors.New("stop")
	err := newClient(s.URL).Follow(t.Context(), runID, "", true, func(apiclient.StreamEvent) error { return stop })
	if err != stop {
		t.Errorf("Follow = %v, want the function's error", err)
	}
}

func TestFollowEndsWithItsContext(t *testing.T) {
	t.Parallel()
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		send(w, "log", "1", line("x"))
		<-r.Context().Done()
	})
	left := errors.New("left")
	ctx, cancel := context.WithCancelCause(t.Context())
	err := newClient(s.URL).Follow(ctx, runID, "", true, func(apiclient.StreamEvent) error {
		cancel(left)
		return nil
	})
	if err != left {
		t.Errorf("Follow = %v, want the cause of the end", err)
	}
}

func TestFollowRefusesAnEndlessLine(t *testing.T) {
	t.Parallel()
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "data: ")
		junk := strings.Repeat("x", 1<<20)
		for range 9 {
			io.WriteString(w, junk)
		}
	})
	_, _, err := collect(t.Context(), newClient(s.URL), true)
	if err == nil || !strings.Contains(err.Error(), "event larger than") {
		t.Errorf("Follow = %v, want a limit", err)
	}
}
