package registrytest

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"kiln/internal/registry/bucket"
)

// Credentials of the servers that StartBucket starts.
const (
	BucketKey    = "registrytest-key"
	BucketSecret = "registrytest-secret"
)

// A Bucket is an empty bucket on an S3-compatible server in this process.
type Bucket struct {
	// Location is what kiln serve --blobs takes.
	Location string
	// Requests counts what was asked of the server.
	Requests atomic.Int64

	server *httptest.Server
	fault  atomic.Pointer[http.HandlerFunc]
}

// StartBucket serves a bucket on a loopback port, from memory. It is stopped when t ends.
func StartBucket(t testing.TB) *Bucket {
	t.Helper()
	backend := s3mem.New()
	if err := backend.CreateBucket("blobs"); err != nil {
		t.Fatal(err)
	}
	fake := gofakes3.New(backend, gofakes3.WithLogger(gofakes3.DiscardLog())).Server()
	b := &Bucket{}
	b.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.Requests.Add(1)
		if !strings.HasPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 Credential="+BucketKey+"/") {
			http.Error(w, "<Error><Code>AccessDenied</Code><Message>wrong key</Message></Error>", http.StatusForbidden)
			return
		}
		if f := b.fault.Load(); f != nil {
			(*f)(w, r.WithContext(context.WithValue(r.Context(), serverKey{}, fake)))
			return
		}
		fake.ServeHTTP(w, r)
	}))
	b.server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // what it says of answers that were cut
	b.server.Start()
	t.Cleanup(b.server.Close)
	b.Location = "s3://blobs/team?endpoint=" + b.server.URL
	return b
}

type serverKey struct{}

// Break puts f in the server's place, which f reaches through [Pass]. Nil makes the server whole again.
func (b *Bucket) Break(f http.HandlerFunc) {
	if f == nil {
		b.fault.Store(nil)
		return
	}
	b.fault.Store(&f)
}

// Pass lets the server answer what a handler that was given to Break has got.
func Pass(w http.ResponseWriter, r *http.Request) {
	r.Context().Value(serverKey{}).(http.Handler).ServeHTTP(w, r)
}

// HangUp ends all connections, and waits until the server does nothing any more of what came by them.
func (b *Bucket) HangUp() { b.server.CloseClientConnections() }

// Names returns what objects of blobs there are.
func (b *Bucket) Names(t testing.TB) (names []string) {
	t.Helper()
	err := bucket.Open(*b.Config(t)).List(t.Context(), func(o bucket.Listed) error {
		names = append(names, o.Name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// Config returns the configuration of the bucket. Objects above 1 MiB are sent in parts.
func (b *Bucket) Config(t testing.TB) *bucket.Config {
	t.Helper()
	c, err := BucketAt(b.Location)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// BucketAt returns the configuration of the bucket at the Location of one, which may be another process's.
func BucketAt(location string) (*bucket.Config, error) {
	c, err := bucket.Parse(location)
	c.Part = 1 << 20
	c.Stall = 5 * time.Minute // the server is as slow as its machine
	c.Backoff = 10 * time.Millisecond
	c.Credentials = func(context.Context) (bucket.Credentials, error) {
		return bucket.Credentials{AccessKey: BucketKey, SecretKey: BucketSecret}, nil
	}
	return &c, err
}
