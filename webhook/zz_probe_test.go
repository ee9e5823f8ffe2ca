package webhook

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"kiln/internal/bus"
)

func body8k() []byte {
	type c struct {
		ID, Message, URL          string
		Added, Modified, Removed []string
	}
	var cs []c
	for i := range 8 {
		cs = append(cs, c{strings.Repeat(fmt.Sprint(i), 40), "message text of the commit", "https://github.com/a/b/commit/x", []string{"a/b/c.go"}, []string{"x/y.go", "z.go"}, nil})
	}
	m := map[string]any{"ref": "refs/heads/main", "commits": cs}
	r := map[string]any{}
	for i := range 75 {
		r[fmt.Sprintf("thing_%d_url", i)] = fmt.Sprintf("https://api.github.com/repos/octo/hello/thing%d{/sha}", i)
	}
	m["repository"] = r
	b, _ := json.Marshal(m)
	return b
}

type pl struct {
	Ref     string
	Commits []struct {
		ID                       string
		Added, Modified, Removed []string
	}
}

func BenchmarkProbe(b *testing.B) {
	body := body8k()
	b.Logf("%d bytes", len(body))
	b.Run("decode", func(b *testing.B) {
		for range b.N {
			var p pl
			_ = json.Unmarshal(body, &p)
		}
	})
	b.Run("gzip", func(b *testing.B) {
		w, _ := gzip.NewWriterLevel(io.Discard, 1)
		for range b.N {
			var o bytes.Buffer
			w.Reset(&o)
			_, _ = w.Write(body)
			_ = w.Close()
		}
	})
	b.Run("marshal-b64", func(b *testing.B) {
		for range b.N {
			_, _ = json.Marshal(struct{ B []byte }{body})
		}
	})
	b.Run("compact", func(b *testing.B) {
		d, _ := json.Marshal(struct{ B []byte }{body})
		for range b.N {
			_, _ = json.Marshal(struct{ B json.RawMessage }{d})
		}
	})
	key := []byte("secretsecretsecret")
	bare := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d, _ := io.ReadAll(r.Body)
		m := hmac.New(sha256.New, key)
		m.Write(d)
		if hex.EncodeToString(m.Sum(nil)) == r.Header.Get("X-Sig") {
			w.WriteHeader(202)
		}
	})
	b.Run("bare", func(b *testing.B) { load(b, bare, body, key) })
	for _, relaxed := range []bool{true, false} {
		s, err := bus.StartServer(bus.ServerConfig{Dir: b.TempDir(), Log: slog.New(slog.DiscardHandler), Relaxed: relaxed})
		if err != nil {
			b.Fatal(err)
		}
		defer s.Shutdown()
		nc, _ := s.Connect("x")
		defer nc.Close()
		bb, err := bus.Open(context.Background(), nc, slog.New(slog.DiscardHandler))
		if err != nil {
			b.Fatal(err)
		}
		var n atomic.Int64
		small := body[:3000]
		for _, payload := range [][]byte{small, body} {
			b.Run(fmt.Sprint("create relaxed=", relaxed, len(payload)), func(b *testing.B) {
				b.SetParallelism(8)
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						if _, err := bb.Create(context.Background(), fmt.Sprint("kiln.event.x.", n.Add(1)), string(payload), 0); err != nil {
							b.Error(err)
						}
					}
				})
			})
		}
	}
}

func load(b *testing.B, h http.Handler, body, key []byte) {
	s := httptest.NewServer(h)
	defer s.Close()
	m := hmac.New(sha256.New, key)
	m.Write(body)
	sig := hex.EncodeToString(m.Sum(nil))
	c := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}}
	b.SetParallelism(8)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			r, _ := http.NewRequest("POST", s.URL, bytes.NewReader(body))
			r.Header.Set("X-Sig", sig)
			res, err := c.Do(r)
			if err != nil {
				b.Error(err)
				return
			}
			io.Copy(io.Discard, res.Body)
			res.Body.Close()
		}
	})
}
