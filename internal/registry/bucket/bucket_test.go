package bucket_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kiln/internal/registry/bucket"
	"kiln/internal/registrytest"
)

const (
	key   = "0123456789abcdef0123456789abcdef"
	other = "fedcba98765432100123456789abcdef"
)

func start(t *testing.T) (*registrytest.Bucket, *bucket.Bucket) {
	t.Helper()
	server := registrytest.StartBucket(t)
	b := bucket.Open(*server.Config(t))
	t.Cleanup(b.Close)
	return server, b
}

func content(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b) // never fails
	return b
}

func put(t *testing.T, b *bucket.Bucket, key string, body []byte) {
	t.Helper()
	if err := b.Put(t.Context(), key, bytes.NewReader(body), int64(len(body))); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, b *bucket.Bucket, key string, size int) ([]byte, error) {
	t.Helper()
	o, err := b.Get(t.Context(), key, int64(size), 0, int64(size))
	if err != nil {
		return nil, err
	}
	got, err := io.ReadAll(o)
	return got, errors.Join(err, o.Close())
}

func TestObjectsComeBackAsTheyWerePut(t *testing.T) {
	t.Parallel()
	_, b := start(t)
	for _, n := range []int{1, 100 << 10, 1 << 20, 3<<20 + 5} {
		body := content(n)
		put(t, b, key, body)
		if got, err := get(t, b, key, n); err != nil || !bytes.Equal(got, body) {
			t.Fatalf("%d bytes: %d bytes came back: %v", n, len(got), err)
		}
		if size, err := b.Stat(t.Context(), key); err != nil || size != int64(n) {
			t.Errorf("Stat = %d, %v, want %d", size, err, n)
		}
	}
}

func TestObjectCanBeReadFromAnywhere(t *testing.T) {
	t.Parallel()
	server, b := start(t)
	body := content(1 << 20)
	put(t, b, key, body)
	before := server.Requests.Load()
	o, err := b.Get(t.Context(), key, 1<<20, 1000, 2000)
	if err != nil {
		t.Fatal(err)
	}
	read := func(from int64, n int) {
		t.Helper()
		if _, err := o.Seek(0, io.SeekEnd); err != nil {
			t.Fatal(err)
		}
		if at, err := o.Seek(from, io.SeekStart); at != from || err != nil {
			t.Fatal(at, err)
		}
		got := make([]byte, n)
		if _, err := io.ReadFull(o, got); err != nil || !bytes.Equal(got, body[from:from+int64(n)]) {
			t.Fatalf("%d bytes at %d: %v", n, from, err)
		}
	}
	read(1000, 1000)
	if n := server.Requests.Load() - before; n != 1 {
		t.Errorf("%d requests for what was announced, want 1", n)
	}
	read(1500, 1000)
	read(0, 10)
	read(1<<20-1, 1)
	if n, err := o.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("after the end: %d, %v", n, err)
	}
	if err := o.Close(); err != nil {
		t.Error(err)
	}
}

func TestRemovedObjectsAreGone(t *testing.T) {
	t.Parallel()
	_, b := start(t)
	put(t, b, key, []byte("one"))
	put(t, b, other, []byte("two"))
	names := func() (out []string) {
		t.Helper()
		err := b.List(t.Context(), func(l bucket.Listed) error {
			if time.Since(l.Modified).Abs() > time.Hour || l.Size != 3 {
				t.Errorf("listed: %+v", l)
			}
			out = append(out, l.Name)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if got := names(); len(got) != 2 || got[0] != "team/blobs/01/"+key {
		t.Errorf("List = %q", got)
	}
	if err := b.Remove(t.Context(), key, other, strings.Repeat("0", 32)); err != nil {
		t.Fatal(err)
	}
	if got := names(); len(got) != 0 {
		t.Errorf("List = %q", got)
	}
	if _, err := b.Stat(t.Context(), key); !errors.Is(err, fs.ErrNotExist) || errors.Is(err, bucket.ErrUnavailable) {
		t.Errorf("Stat: %v", err)
	}
	if _, err := get(t, b, key, 3); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Get: %v", err)
	}
}

func TestPrefixHasOneOwner(t *testing.T) {
	t.Parallel()
	_, b := start(t)
	if owner, err := b.Owner(t.Context()); owner != "" || err != nil {
		t.Fatalf("Owner = %q, %v", owner, err)
	}
	for _, who := range []string{"first", "second", "first"} {
		if owner, err := b.Claim(t.Context(), who); owner != "first" || err != nil {
			t.Fatalf("Claim = %q, %v", owner, err)
		}
	}
}

// cut ends the connection of a request without an answer.
func cut(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

func TestPassingFaultsAreNotSeen(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]http.HandlerFunc{
		"cut": cut,
		"cut in the middle": func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.CopyN(io.Discard, r.Body, 1000)
			panic(http.ErrAbortHandler)
		},
		"done, but the answer is lost": func(_ http.ResponseWriter, r *http.Request) {
			registrytest.Pass(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler)
		},
		"503": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, b := start(t)
			var seen sync.Map
			var hurt atomic.Int64
			server.Break(func(w http.ResponseWriter, r *http.Request) {
				if _, again := seen.LoadOrStore(r.Method+r.URL.RequestURI(), true); !again {
					hurt.Add(1)
					fault(w, r)
					return
				}
				registrytest.Pass(w, r)
			})
			body := content(1<<20 + 10)
			put(t, b, key, body)
			if got, err := get(t, b, key, len(body)); err != nil || !bytes.Equal(got, body) {
				t.Errorf("%d bytes came back: %v", len(got), err)
			}
			if hurt.Load() < 5 { // to begin, two parts, to complete, to read
				t.Errorf("%d requests were hurt, want 5", hurt.Load())
			}
		})
	}
}

// A cutter passes so many bytes of a body on, and then cuts the connection.
type cutter struct {
	http.ResponseWriter
	left int
}

func (c *cutter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p[:min(len(p), c.left)])
	if c.left -= n; c.left == 0 && err == nil {
		_ = http.NewResponseController(c.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	return n, err
}

func TestReadingGoesOnWhereItBroke(t *testing.T) {
	t.Parallel()
	server, b := start(t)
	body := content(1 << 20)
	put(t, b, key, body)
	server.Break(func(w http.ResponseWriter, r *http.Request) { registrytest.Pass(&cutter{w, 100_000}, r) })
	if got, err := get(t, b, key, len(body)); err != nil || !bytes.Equal(got, body) {
		t.Errorf("%d bytes came back: %v", len(got), err)
	}
	server.Break(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		w.WriteHeader(http.StatusPartialContent)
	})
	if _, err := get(t, b, key, len(body)); !errors.Is(err, bucket.ErrUnavailable) {
		t.Errorf("a storage that never sends: %v", err)
	}
}

func TestLastingFaultsAreTold(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]http.HandlerFunc{
		"cut": cut,
		"500": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		"refused": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, "<Error><Code>AccessDenied</Code><Message>not you</Message></Error>")
		},
		"stalled": func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body) // only then it is seen that the client has gone
			<-r.Context().Done()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, b := start(t)
			body := content(1<<20 + 10)
			put(t, b, key, body)
			broken := b
			if name == "stalled" {
				c := *server.Config(t)
				c.Stall = 50 * time.Millisecond
				broken = bucket.Open(c)
			}
			server.Break(fault)
			ctx := t.Context()
			var wg sync.WaitGroup
			for what, do := range map[string]func() error{
				"put":    func() error { return broken.Put(ctx, other, bytes.NewReader(body), int64(len(body))) },
				"get":    func() error { _, err := get(t, broken, key, 10); return err },
				"stat":   func() error { _, err := broken.Stat(ctx, key); return err },
				"claim":  func() error { _, err := broken.Claim(ctx, "me"); return err },
				"remove": func() error { return broken.Remove(ctx, key) },
				"list":   func() error { return broken.List(ctx, nil) },
				"abort":  func() error { return broken.AbortStale(ctx, time.Now()) },
			} {
				wg.Go(func() {
					err := do()
					if !errors.Is(err, bucket.ErrUnavailable) || errors.Is(err, bucket.ErrRefused) != (name == "refused") ||
						!strings.Contains(err.Error(), b.String()) || strings.Contains(err.Error(), registrytest.BucketSecret) {
						t.Errorf("%s: %v", what, err)
					}
				})
			}
			wg.Wait()
			server.Break(nil)
			if size, err := b.Stat(ctx, key); err != nil || size != int64(len(body)) {
				t.Errorf("afterwards: %d, %v", size, err)
			}
		})
	}
}

func TestCallerWhoIsGoneIsNoFault(t *testing.T) {
	t.Parallel()
	_, b := start(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.Put(ctx, key, bytes.NewReader([]byte("x")), 1); !errors.Is(err, context.Canceled) || errors.Is(err, bucket.ErrUnavailable) {
		t.Error(err)
	}
}

func TestAbandonedPartsAreGivenBack(t *testing.T) {
	t.Parallel()
	server, b := start(t)
	body := content(1<<20 + 10)
	var aborted atomic.Int64
	var keep atomic.Bool
	server.Break(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodDelete && keep.Load() || r.URL.Query().Get("partNumber") == "2":
			w.WriteHeader(http.StatusForbidden)
			return
		case r.Method == http.MethodDelete:
			aborted.Add(1)
		}
		registrytest.Pass(w, r)
	})
	for n := range 2 {
		keep.Store(n == 1)
		if err := b.Put(t.Context(), key, bytes.NewReader(body), int64(len(body))); !errors.Is(err, bucket.ErrUnavailable) {
			t.Fatal(err)
		}
		if aborted.Load() != 1 {
			t.Errorf("%d uploads were given up, want 1", aborted.Load())
		}
	}
	keep.Store(false)
	for _, before := range []time.Time{time.Now().Add(-time.Hour), time.Now().Add(time.Hour), time.Now().Add(time.Hour)} {
		if err := b.AbortStale(t.Context(), before); err != nil {
			t.Fatal(err)
		}
	}
	if aborted.Load() != 2 {
		t.Errorf("%d uploads were given up, want 2: of the first, and once what was left of the second", aborted.Load())
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	for location, want := range map[string]string{
		"s3://images":                                  "s3://images at Amazon S3, region us-east-1",
		"s3://images/a/b/?region=eu-central-1":         "s3://images/a/b at Amazon S3, region eu-central-1",
		"s3://images?endpoint=http://127.0.0.1:9000":   "s3://images at http://127.0.0.1:9000",
		"s3://images?endpoint=https://s3.example.com/": "s3://images at https://s3.example.com",
		"s3://im":                                              "want s3://BUCKET",
		"s3://images/../x":                                     "prefix",
		"s3://images/a//b":                                     "prefix",
		"s3://images/a%3Fb":                                    "prefix",
		"/var/lib/images":                                      "want s3://BUCKET",
		"s3://me:hidden@images":                                "credentials",
		"s3://me:hidden@images/%zz":                            "no URL",
		"s3://images?endpoint=ftp://x":                         "endpoint",
		"s3://images?endpoint=https://me:hidden@x":             "endpoint",
		"s3://images?endpoint=https://x/path":                  "endpoint",
		"s3://images?region=a/b":                               "region",
		"s3://images?path-style=often":                         "path-style",
		"s3://images?secret_key=hidden":                        "credentials are read",
		"s3://images?region=a&region=b":                        "more than once",
		"s3://images?path-style=true&region=x&endpoint=http:/": "endpoint",
	} {
		c, err := bucket.Parse(location)
		got := c.String()
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, want) || strings.Contains(got, "hidden") || (err == nil) != strings.HasPrefix(want, "s3://") {
			t.Errorf("Parse(%q) = %s, want %s", location, got, want)
		}
	}
	for location, want := range map[string]bool{"s3://images": false, "s3://images?path-style=true": true,
		"s3://images?endpoint=http://x": true, "s3://images?endpoint=http://x&path-style=false": false} {
		if c, err := bucket.Parse(location); err != nil || c.PathStyle != want {
			t.Errorf("Parse(%q): path style %v, %v", location, c.PathStyle, err)
		}
	}
}

func TestReadCredentials(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "credentials")
	for text, want := range map[string]bucket.Credentials{
		"aws_access_key_id = a\naws_secret_access_key=b=\n": {AccessKey: "a", SecretKey: "b="},
		"[other]\naws_access_key_id = x\naws_secret_access_key = y\n[default]\n# me\naws_access_key_id = a\naws_secret_access_key = b\naws_session_token = c\n": {AccessKey: "a", SecretKey: "b", SessionToken: "c"},
		"[other]\naws_access_key_id = a\naws_secret_access_key = b\n":                                                                                           {},
		"": {},
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := bucket.ReadCredentials(path)
		if err == nil && got != want || (err == nil) != (want != bucket.Credentials{}) {
			t.Errorf("ReadCredentials of %q: %#v, %v", text, got, err)
		}
	}
	c := bucket.Credentials{AccessKey: "key", SecretKey: "hidden"}
	if s := fmt.Sprintf("%v %+v %#v %s", c, c, c, c); strings.Contains(s, "hidden") {
		t.Error(s)
	}
}
