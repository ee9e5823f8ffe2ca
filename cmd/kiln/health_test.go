package main

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kiln/internal/apiclient"
)

func TestHealthTellsByItsExitCode(t *testing.T) {
	t.Parallel()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "no message store", http.StatusServiceUnavailable)
	})
	s := httptest.NewServer(mux)
	defer s.Close()
	gone := httptest.NewServer(mux)
	gone.Close()
	env := map[string]string{envServer: s.URL, envToken: testToken, envData: os.DevNull}
	for _, c := range []struct {
		args      []string
		code      int
		out, want string
	}{
		{nil, 0, "ok\n", ""},
		{[]string{s.URL + "/healthz"}, 0, "ok\n", ""},
		{[]string{s.URL + "/readyz"}, exitFailed, "", "503 Service Unavailable: no message store"},
		{[]string{gone.URL + "/healthz"}, exitFailed, "", "connection refused"},
		{[]string{"localhost:7070"}, exitUsage, "", "want the URL of a server"},
	} {
		got := kiln(t.Context(), env, append([]string{"health"}, c.args...)...)
		if got.code != c.code || got.out != c.out || !strings.Contains(got.err, c.want) {
			t.Errorf("kiln health %q = %+v", c.args, got)
		}
	}
}

func TestForwardPassesBothWaysOn(t *testing.T) {
	t.Parallel()
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	target, l := listen(), listen()
	go func() {
		for {
			conn, err := target.Accept()
			if err != nil {
				return
			}
			go func() {
				said, _ := io.ReadAll(conn) // up to the end of what the client says
				_, _ = conn.Write([]byte(strings.ToUpper(string(said))))
				_ = conn.Close()
			}()
		}
	}()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- forward(ctx, l, target.Addr().String(), slog.New(slog.DiscardHandler)) }()
	dial := func() *net.TCPConn {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		return conn.(*net.TCPConn)
	}
	open := dial()
	defer open.Close()
	for range 3 {
		conn := dial()
		_, _ = io.WriteString(conn, "hello")
		_ = conn.CloseWrite()
		if got, err := io.ReadAll(conn); string(got) != "HELLO" || err != nil {
			t.Errorf("answer %q, %v", got, err)
		}
		_ = conn.Close()
	}
	must(t, target.Close())
	conn := dial()
	if got, _ := io.ReadAll(conn); len(got) != 0 {
		t.Errorf("answer %q of nobody", got)
	}
	_ = conn.Close()
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := io.ReadAll(open); err != nil && !strings.Contains(err.Error(), "reset") {
		t.Errorf("a connection of before: %v", err)
	}
}

func TestForwardWantsAddresses(t *testing.T) {
	t.Parallel()
	if got := kiln(t.Context(), nil, "forward", "localhost:7070", "server"); got.code != exitUsage || !strings.Contains(got.err, `"server": want HOST:PORT`) {
		t.Errorf("kiln forward = %+v", got)
	}
}

func TestAdminTokenIsPrinted(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if got := kiln(t.Context(), nil, "--data", dir, "token", "admin"); got.code != exitUsage {
		t.Errorf("without a server: %+v", got)
	}
	must(t, os.WriteFile(filepath.Join(dir, apiclient.TokenFile), []byte("sesame\n"), 0o600))
	if got := kiln(t.Context(), nil, "--data", dir, "token", "admin"); got.code != 0 || got.out != "sesame\n" {
		t.Errorf("kiln token admin = %+v", got)
	}
}

func TestCNICopiesTheProgram(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for range 2 {
		if got := kiln(t.Context(), nil, "cni", "--copy", dir); got.code != 0 || !strings.Contains(got.out, filepath.Join(dir, "kiln.conflist")) {
			t.Fatalf("kiln cni = %+v", got)
		}
	}
	exe, err := os.Executable()
	must(t, err)
	want, err := os.Stat(exe)
	must(t, err)
	for _, name := range []string{"kiln", "kiln-cni", "loopback"} {
		if fi, err := os.Stat(filepath.Join(dir, "bin", name)); err != nil || fi.Size() != want.Size() || fi.Mode().Perm() != 0o755 {
			t.Errorf("%s: %v, %v", name, fi, err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "bin", ".*")); len(left) > 0 {
		t.Errorf("%q is left", left)
	}
}
