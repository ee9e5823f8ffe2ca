package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"

	"kiln/webhook"
)

// A client that pauses for too long loses its connection, wherever in a request it does.
func TestConnectionsAreNotHeld(t *testing.T) {
	t.Parallel()
	const pause = 100 * time.Millisecond
	mux := http.NewServeMux()
	mux.HandleFunc("/ignores", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/reads", func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err == nil {
			t.Error("a body is complete that was not sent")
		}
	})
	mux.Handle(webhook.Prefix, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	server := newServer(mux, pause, slog.New(slog.DiscardHandler))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	for what, request := range map[string]string{
		"between requests":      "GET /ignores HTTP/1.1\r\nHost: kiln\r\n\r\n",
		"in a body":             "POST /reads HTTP/1.1\r\nHost: kiln\r\nContent-Length: 9\r\n\r\nx",
		"in a chunked body":     "POST /reads HTTP/1.1\r\nHost: kiln\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nx",
		"in what is not read":   "POST /ignores HTTP/1.1\r\nHost: kiln\r\nContent-Length: 9\r\n\r\nx",
		"in a refused delivery": "POST " + webhook.Prefix + "x HTTP/1.1\r\nHost: kiln\r\nContent-Length: 9\r\n\r\nx",
	} {
		conn, err := net.Dial("tcp", l.Addr().String())
		must(t, err)
		_, err = fmt.Fprint(conn, request)
		must(t, err)
		must(t, conn.SetReadDeadline(time.Now().Add(time.Minute)))
		var late net.Error
		if _, err := io.Copy(io.Discard, bufio.NewReader(conn)); errors.As(err, &late) && late.Timeout() {
			t.Errorf("%s: the connection is held", what)
		}
		must(t, conn.Close())
	}
	conn, err := net.Dial("tcp", l.Addr().String())
	must(t, err)
	defer conn.Close()
	_, err = fmt.Fprintf(conn, "POST /ignores HTTP/1.1\r\nHost: kiln\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx")
	must(t, err)
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	must(t, err)
	must(t, res.Body.Close())
	if res.StatusCode != http.StatusOK {
		t.Errorf("a whole request: %s", res.Status)
	}
}
