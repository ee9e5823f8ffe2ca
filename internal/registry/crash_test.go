package registry_test

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"kiln/internal/registry"
	"kiln/internal/registrytest"
)

// childDir names the directory that this binary serves instead of testing, and childBucket the location of
// the bucket that its blobs are in, if any.
const (
	childDir    = "KILN_REGISTRY_TEST_CHILD"
	childBucket = "KILN_REGISTRY_TEST_BUCKET"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		fmt.Println("error", serveChild(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// serveChild serves a registry until it is killed. It prints its URL, and a line for each event.
func serveChild(dir string) error {
	opt := registry.Options{Reserve: -1}
	if location := os.Getenv(childBucket); location != "" {
		var err error
		if opt.Bucket, err = registrytest.BucketAt(location); err != nil {
			return err
		}
	}
	s, err := registry.Open(dir, opt)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	if err := s.RaiseFence(context.Background(), "r1", 1); err != nil {
		return err
	}
	fmt.Println("url", "http://"+l.Addr().String())
	go func() {
		err := s.Relay(context.Background(), func(_ context.Context, events []registry.OutboxEvent) error {
			for _, e := range events {
				if e.Type == registry.ImagePushed {
					fmt.Println("event", e.ID, e.Repository+":"+e.Tag)
				}
			}
			return nil
		})
		fmt.Println("error", err)
	}()
	return http.Serve(l, s.Handler(registrytest.Authorizer{}))
}

// A witness knows what a registry that is killed again and again has acknowledged.
type witness struct {
	mu     sync.Mutex
	acked  map[string]string // repository:tag to digest
	events map[string]string // ID to repository:tag
	by     map[string]string // repository:tag to ID
}

func (w *witness) event(t *testing.T, id, name string) {
	if strings.HasPrefix(name, movingRepo+":") { // has many
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if other, ok := w.events[id]; ok && other != name {
		t.Errorf("event %s is of %s and of %s", id, other, name)
	}
	if other, ok := w.by[name]; ok && other != id {
		t.Errorf("%s has events %s and %s", name, other, id)
	}
	w.events[id], w.by[name] = name, id
}

func (w *witness) ack(names []string, d string) (total int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range names {
		w.acked[n] = d
	}
	return len(w.acked)
}

func TestKilledRegistryLosesNothingItAcknowledged(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	w := &witness{acked: map[string]string{}, events: map[string]string{}, by: map[string]string{}}
	for round := range 3 {
		pushAndKill(t, dir, "", w, round, len(w.acked)+20+rand.IntN(30))
		verify(t, dir, nil, w)
	}
	t.Logf("%d acknowledged tags, %d events", len(w.acked), len(w.events))
}

func TestKilledRegistryWithBucketLosesNothingAndLeavesNothing(t *testing.T) {
	t.Parallel()
	dir, b := t.TempDir(), registrytest.StartBucket(t)
	w := &witness{acked: map[string]string{}, events: map[string]string{}, by: map[string]string{}}
	for round := range 2 {
		pushAndKill(t, dir, b.Location, w, round, len(w.acked)+10+rand.IntN(20))
		b.HangUp()
		verify(t, dir, b, w)
	}
}

// startChild starts a process that serves dir and returns its URL and what it says from then on.
func startChild(t *testing.T, dir string, env ...string) (cmd *exec.Cmd, url string, lines *bufio.Scanner) {
	t.Helper()
	cmd = exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(append(os.Environ(), childDir+"="+dir), env...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines = bufio.NewScanner(out)
	if !lines.Scan() || !strings.HasPrefix(lines.Text(), "url ") {
		t.Fatalf("child said %q", lines.Text())
	}
	return cmd, strings.TrimPrefix(lines.Text(), "url "), lines
}

// pushAndKill lets pushers loose on a registry process and kills it when so many tags are
// acknowledged.
func pushAndKill(t *testing.T, dir, location string, w *witness, round, acks int) {
	t.Helper()
	cmd, url, lines := startChild(t, dir, childBucket+"="+location)
	var pushers sync.WaitGroup
	var once sync.Once
	const movers = 6 // from here on they move one tag
	for p := range movers + 2 {
		pushers.Go(func() {
			for i := 0; ; i++ {
				tag := fmt.Sprintf("%d-%d-%d", round, p, i)
				if p >= movers {
					if pushIndex(t.Context(), url, tag, i%3 == 2) != nil {
						return // killed
					}
					continue
				}
				names, d, err := pushOnce(t.Context(), url, p, tag)
				if err != nil {
					return // killed
				}
				if w.ack(names, d) >= acks {
					once.Do(func() { err = cmd.Process.Kill() })
					if err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	for lines.Scan() {
		if f := strings.Fields(lines.Text()); f[0] == "event" && len(f) == 3 {
			w.event(t, f[1], f[2])
		} else if f[0] == "error" {
			t.Errorf("child: %s", lines.Text())
		}
	}
	pushers.Wait()
	if err := cmd.Wait(); err == nil {
		t.Error("the child was not killed")
	}
}

// pushOnce pushes one image: pushers of even number by tag, the others through a publication of two
// tags. It returns what was acknowledged.
func pushOnce(ctx context.Context, url string, pusher int, tag string) (names []string, d string, err error) {
	layer := bytes.Repeat([]byte(tag), 20+pusher*6000) // some inline, some in files
	repo := "team/app"
	if pusher%2 == 1 {
		repo = staging
	}
	config := []byte(`{"n":"` + tag + `"}`)
	for _, b := range [][]byte{layer, config} {
		if err := send(ctx, "POST", url+"/v2/"+repo+"/blobs/uploads/?digest="+digest.FromBytes(b).String(), b); err != nil {
			return nil, "", err
		}
	}
	m := manifestOf(digest.FromBytes(config).String(), len(config), digest.FromBytes(layer).String(), len(layer))
	d = digest.FromBytes(m).String()
	if pusher%2 == 0 {
		return []string{"team/app:" + tag}, d, send(ctx, "PUT", url+"/v2/"+repo+"/manifests/"+tag, m)
	}
	if err := send(ctx, "PUT", url+"/v2/"+repo+"/manifests/"+d, m); err != nil {
		return nil, "", err
	}
	_, err = registry.NewClient(url, nil).Publish(ctx, registrytest.Token, publication(1,
		registry.Tag{Repository: "pair/x", Tag: tag, Digest: d, Unique: true},
		registry.Tag{Repository: "pair/y", Tag: tag, Digest: d}))
	return []string{"pair/x:" + tag, "pair/y:" + tag}, d, err
}

// movingRepo is what pushIndex pushes to.
const movingRepo = "multi/app"

// pushIndex pushes an image in chunks, by its sha512, and an index of it that takes over the one tag. Then it
// deletes the index, if that is wanted.
func pushIndex(ctx context.Context, url, id string, thenDelete bool) error {
	repo := url + "/v2/" + movingRepo
	layer, config := bytes.Repeat([]byte(id), 20_000), []byte(`{"n":"`+id+`"}`)
	loc, err := request(ctx, http.StatusAccepted, "POST", repo+"/blobs/uploads/", nil)
	for _, chunk := range [][]byte{layer[:70_000], layer[70_000:]} {
		if err == nil {
			_, err = request(ctx, http.StatusAccepted, "PATCH", url+loc, chunk)
		}
	}
	if err == nil {
		err = send(ctx, "PUT", url+loc+"?digest="+digest.FromBytes(layer).String(), nil)
	}
	if err == nil {
		err = send(ctx, "POST", repo+"/blobs/uploads/?digest="+digest.FromBytes(config).String(), config)
	}
	image := manifestOf(digest.FromBytes(config).String(), len(config), digest.FromBytes(layer).String(), len(layer))
	d := digest.SHA512.FromBytes(image).String()
	if err == nil {
		err = send(ctx, "PUT", repo+"/manifests/"+d, image)
	}
	index := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, ociIndex, link(ociManifest, d, len(image)))
	if err == nil {
		err = send(ctx, "PUT", repo+"/manifests/latest", index)
	}
	if err == nil && thenDelete {
		_, err = request(ctx, http.StatusAccepted, "DELETE", repo+"/manifests/"+digest.FromBytes(index).String(), nil)
	}
	return err
}

// send sends what creates something.
func send(ctx context.Context, method, url string, body []byte) error {
	_, err := request(ctx, http.StatusCreated, method, url, body)
	return err
}

// request sends a request that must be answered with status, and returns the Location of the answer.
func request(ctx context.Context, status int, method, url string, body []byte) (location string, err error) {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	req.SetBasicAuth("test", registrytest.Token)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	_, err = io.Copy(io.Discard, res.Body)
	if res.StatusCode != status {
		err = errors.Join(err, fmt.Errorf("%s %s: %s", method, url, res.Status))
	}
	return res.Header.Get("Location"), errors.Join(err, res.Body.Close())
}

// verify opens the registry that was killed: every acknowledged tag is there, every tag can be
// pulled and has one event, and no file is without an owner. Objects without one are gone when garbage has
// been collected.
func verify(t *testing.T, dir string, b *registrytest.Bucket, w *witness) {
	t.Helper()
	opt := registry.Options{Reserve: -1}
	if b != nil {
		opt.Bucket = b.Config(t)
	}
	s, err := registry.Open(dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range drain(t, s) {
		if e.Type == registry.ImagePushed {
			w.event(t, e.ID, e.Repository+":"+e.Tag)
		}
	}
	found := map[string]string{}
	for _, repo := range []string{"team/app", "pair/x", "pair/y"} {
		tags, err := s.Tags(t.Context(), repo, "", 100_000)
		if err != nil && !errors.Is(err, registry.ErrRepositoryUnknown) {
			t.Fatal(err)
		}
		for _, tag := range tags {
			m := readImage(t, s, repo, tag)
			found[repo+":"+tag] = m
			if w.by[repo+":"+tag] == "" {
				t.Errorf("%s:%s has no event", repo, tag)
			}
		}
	}
	for name, d := range w.acked {
		if found[name] != d {
			t.Errorf("%s was acknowledged as %s and is %q", name, d, found[name])
		}
	}
	for name := range w.by {
		if found[name] == "" {
			t.Errorf("%s has an event but no tag", name)
		}
	}
	for name, d := range found {
		if tag, ok := strings.CutPrefix(name, "pair/x:"); ok && found["pair/y:"+tag] != d {
			t.Errorf("half of the publication %s exists", tag)
		}
	}
	if m, err := s.Manifest(t.Context(), movingRepo, "latest"); err == nil {
		for _, child := range children(t, m.Body) {
			readImage(t, s, movingRepo, child)
		}
	} else if !errors.Is(err, registry.ErrManifestUnknown) {
		t.Error(err)
	}
	if b != nil {
		if _, err := s.Collect(t.Context(), registry.Collection{}); err != nil {
			t.Fatal(err)
		}
	}
	sound(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	verifyFiles(t, dir, b)
}

// children returns the digests of what an index names.
func children(t *testing.T, index []byte) (out []string) {
	t.Helper()
	var doc struct{ Manifests []struct{ Digest string } }
	if err := json.Unmarshal(index, &doc); err != nil || len(doc.Manifests) == 0 {
		t.Fatalf("index: %v: %s", err, index)
	}
	for _, m := range doc.Manifests {
		out = append(out, m.Digest)
	}
	return out
}

// readImage checks every byte of an image and returns its digest.
func readImage(t *testing.T, s *registry.Store, repo, tag string) string {
	t.Helper()
	m, err := s.Manifest(t.Context(), repo, tag)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range descriptors(t, m.Body) {
		rc, _, err := s.BlobReader(t.Context(), repo, d.String())
		if err != nil {
			t.Fatalf("%s:%s: %v", repo, tag, err)
		}
		got, err := digest.SHA256.FromReader(rc)
		if err := errors.Join(err, rc.Close()); err != nil || got != d {
			t.Fatalf("%s:%s: blob %s is %s: %v", repo, tag, d, got, err)
		}
	}
	return m.Digest
}

func verifyFiles(t *testing.T, dir string, b *registrytest.Bucket) {
	t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(dir, "registry.db"))
	if err != nil {
		t.Fatal(err)
	}
	var rows int
	err = db.QueryRow(`SELECT count(*) FROM blob WHERE key IS NOT NULL`).Scan(&rows)
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	n := files(t, filepath.Join(dir, "blobs"))
	if b != nil {
		n += len(b.Names(t))
	}
	if n != rows {
		t.Errorf("%d files of blobs, %d rows", n, rows)
	}
	if n := files(t, filepath.Join(dir, "uploads")); n != 0 {
		t.Errorf("%d files of uploads", n)
	}
}
