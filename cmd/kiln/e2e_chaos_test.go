package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"kiln/internal/apiclient"
)

// TestNothingLostNothingTwice has much happen at once, delivers what happens up to five times and out of
// order, and kills the server meanwhile. In the end everything that is there was considered, and nothing was
// executed twice.
func TestNothingLostNothingTwice(t *testing.T) {
	t.Parallel()
	c := newChaos(t, 3)
	c.happen(150, 3)
	c.check(c.settle())
}

// TestReconcileReplacesDeliveries is the same without any delivery.
func TestReconcileReplacesDeliveries(t *testing.T) {
	t.Parallel()
	c := newChaos(t, 3)
	c.silent = true
	c.happen(40, 1)
	if len(c.acknowledged)+len(c.answers) > 0 {
		t.Fatal("something was delivered")
	}
	c.check(c.settle())
}

const (
	windowSize   = 24 // deliveries of which any may be the next
	senders      = 6
	versions     = 4 // of each base image
	patience     = 5 * time.Minute
	redelivery   = 31 * time.Second // until everything has come again that somebody had in hand who was killed
	senderPause  = 100 * time.Millisecond
	sendersGive  = 30 * time.Second // for one answer
	envChaosSeed = "KILN_CHAOS_SEED"
)

// Chaos does things to repositories and images that tasks follow, and tells of them as badly as senders do.
type chaos struct {
	*server
	t      *testing.T
	rnd    *rand.Rand
	forges []*chaosForge
	silent bool // nothing is delivered
	token  string

	images  []v1.Image        // versions of a base image
	digests map[string]string // of base images, by canonical name
	events  int
	kills   int
	down    bool // the server is: what is to be delivered waits
	died    time.Time

	window []delivery
	out    chan delivery
	sent   sync.WaitGroup

	mu           sync.Mutex
	acknowledged []string                   // IDs of events
	accepted     []string                   // IDs of deliveries that are to become events
	answers      map[string]map[string]bool // IDs of runs, by key of the request
	asked        map[string]string          // task, by key of the request
	deliveries   int
	repeats      int
	faults       []string
}

// A chaosForge is a repository with its tasks.
type chaosForge struct {
	*forge
	trees   []string // contents that commits choose from
	history map[string][]string
	heads   map[string]string // by branch; empty for one that is gone
	base    string            // canonical name of the base image; empty for none
	tasks   []string
}

// A delivery is made until it says that it is done.
type delivery func(ctx context.Context, c *chaos) (done bool)

// newChaos starts a server with some repositories, base images and tasks.
func newChaos(t *testing.T, repositories int) *chaos {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if v := os.Getenv(envChaosSeed); v != "" {
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed = n
	}
	t.Logf("seed %d (again: %s=%d)", seed, envChaosSeed, seed)
	s := startServer(t, "--allow-source", "127.0.0.0/8", "--reconcile-every", "1h", "--parallel", "4")
	token, err := apiclient.ReadToken(s.data)
	if err != nil {
		t.Fatal(err)
	}
	c := &chaos{server: s, t: t, rnd: rand.New(rand.NewPCG(seed, 1)), token: token, digests: map[string]string{},
		answers: map[string]map[string]bool{}, asked: map[string]string{}}
	for i := range versions {
		c.images = append(c.images, imageOf(t, fmt.Sprint("version ", i)))
	}
	var documents []string
	for i := range repositories {
		f, tasks := c.newForge(i)
		c.forges, documents = append(c.forges, f), append(documents, tasks)
	}
	c.applyAll(strings.Join(documents, ""))
	return c
}

// applyAll stores the tasks and waits until what each follows is known.
func (c *chaos) applyAll(documents string) {
	c.t.Helper()
	file := filepath.Join(c.t.TempDir(), "tasks.yaml")
	if err := os.WriteFile(file, []byte(documents), 0o600); err != nil {
		c.t.Fatal(err)
	}
	c.must("apply", "-f", file)
	client := &apiclient.Client{BaseURL: c.url, Token: c.token}
	for _, f := range c.forges {
		for _, name := range f.tasks {
			waitFor(c.t, "baseline of "+name, func() bool {
				d, err := client.Decisions(c.t.Context(), name, time.Time{})
				return err == nil && len(d.Decisions) > 0
			})
		}
	}
}

// newForge makes a repository with two branches under the glob, its base image, and the definition of its tasks: one that builds
// everything and publishes, one that builds some changes, after a while, and does not.
func (c *chaos) newForge(n int) (f *chaosForge, tasks string) {
	c.t.Helper()
	base, dockerfile := "", "FROM scratch\nCOPY src /src\n"
	if n%3 != 2 {
		base = fmt.Sprintf("%s/chaos/base-%d:1", c.host(), n)
		dockerfile = "FROM " + base + "\nCOPY src /src\n"
		if err := c.pushVersion(base, 0); err != nil {
			c.t.Fatal(err)
		}
	}
	f = &chaosForge{forge: newForge(c.t, c.server, fmt.Sprint("chaos-", n), "", "", map[string]string{"Dockerfile": dockerfile, "src/a": "0", "docs/a": "0"}),
		base: base, history: map[string][]string{}, heads: map[string]string{}}
	f.repo.Bare("config", "uploadpack.allowAnySHA1InWant", "true") // as most forges do: what is overtaken can be built all the same
	for i := range 4 {
		first := f.commit(map[string]string{"src/a": fmt.Sprint(i / 2), "docs/a": fmt.Sprint(i % 2)})
		f.trees = append(f.trees, f.repo.Git("rev-parse", first+"^{tree}"))
	}
	for _, branch := range []string{"main", "release/0", "release/1"} {
		f.move(branch, f.repo.Git("rev-parse", "HEAD"))
	}
	f.tasks = []string{fmt.Sprint("everything-", n), fmt.Sprint("some-", n)}
	return f, fmt.Sprintf(chaosTasks, n, f.url)
}

const chaosTasks = `---
apiVersion: kiln/v1
kind: Task
name: everything-%[1]d
context: %[2]s#main
step: {build: {images: ['chaos/app-%[1]d:{{.Run.ID}}', 'chaos/app-%[1]d:latest']}}
triggers:
  source: [{events: [push, branch-created], branches: [main, 'release/*']}]
  baseImage: {quiet: 0s}
---
apiVersion: kiln/v1
kind: Task
name: some-%[1]d
context: %[2]s#main
step: {build: {noPush: true}}
triggers:
  source: [{events: [push], branches: [main, release/0], paths: ['src/**'], quiet: 500ms}]
  baseImage: {quiet: 1s}
`

// move pushes a branch to a commit; an empty one deletes it.
func (f *chaosForge) move(branch, commit string) {
	f.repo.Git("push", "-q", "-f", "origin", commit+":refs/heads/"+branch)
	f.heads[branch] = commit
	if commit != "" {
		f.history[branch] = append(f.history[branch], commit)
	}
}

// happen has events happen, and kills the server that often meanwhile; in the end all senders are content.
func (c *chaos) happen(events, kills int) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 10*time.Minute)
	defer cancel()
	c.out = make(chan delivery, windowSize)
	for range senders {
		c.sent.Go(func() { c.send(ctx) })
	}
	at := map[int]bool{}
	for len(at) < kills {
		at[events/10+c.rnd.IntN(events/2)] = true
	}
	for i := range events {
		if at[i] {
			c.crash(i)
		}
		c.step(i)
	}
	for len(c.window) > 0 {
		c.deliverOne()
	}
	close(c.out)
	c.sent.Wait()
	for _, fault := range c.faults {
		c.t.Error(fault)
	}
}

// step has one thing happen.
func (c *chaos) step(i int) {
	c.t.Helper()
	switch n := c.rnd.IntN(20); {
	case n < 3:
		if f := c.forges[c.rnd.IntN(len(c.forges))]; f.base != "" {
			c.moveBase(f, c.rnd.IntN(versions))
		}
	case n < 6 && !c.silent:
		f := c.forges[c.rnd.IntN(len(c.forges))]
		c.ask(f.tasks[c.rnd.IntN(len(f.tasks))], fmt.Sprint("key-", i))
	default:
		c.push(i)
	}
}

// push moves a branch: forward, by force to where it was before, or away.
func (c *chaos) push(i int) {
	c.t.Helper()
	f := c.forges[c.rnd.IntN(len(c.forges))]
	branch := "main"
	if c.rnd.IntN(3) > 0 {
		branch = fmt.Sprint("release/", c.rnd.IntN(5))
	}
	before, past := f.heads[branch], f.history[branch]
	switch n := c.rnd.IntN(12); {
	case n < 3 && len(past) > 1:
		f.move(branch, past[max(0, len(past)-2-c.rnd.IntN(3))])
	case n == 3 && branch != "main" && before != "":
		f.move(branch, "")
	default:
		parent, message := before, fmt.Sprint("change ", i)
		if parent == "" {
			parent = f.heads["main"]
		}
		if n == 4 {
			message += " [skip ci]"
		}
		tree := f.trees[c.rnd.IntN(len(f.trees))]
		f.move(branch, f.repo.Git("commit-tree", tree, "-p", parent, "-m", message))
	}
	c.events++
	body := map[string]string{"type": "git.pushed", "repository": f.url, "ref": "refs/heads/" + branch}
	if c.rnd.IntN(4) > 0 { // others leave out what they may
		body["before"], body["after"] = orZeros(before), orZeros(f.heads[branch])
	}
	c.deliver(hookDelivery(f.forge, fmt.Sprint("push-", i), body))
}

func orZeros(commit string) string {
	if commit == "" {
		return fmt.Sprintf("%040d", 0)
	}
	return commit
}

// moveBase moves a base image, and has somebody tell of it whom nobody asked.
func (c *chaos) moveBase(f *chaosForge, version int) {
	c.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := c.pushVersion(f.base, version)
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("push of %s: %v", f.base, err)
		}
		waitABitFor(c.t, senderPause)
	}
	c.events++
	if c.rnd.IntN(3) == 0 {
		c.deliver(hookDelivery(f.forge, fmt.Sprint("base-", c.events),
			map[string]string{"type": "registry.pushed", "image": f.base, "digest": c.digests[f.base]}))
	}
}

// pushVersion pushes one version of a base image.
func (c *chaos) pushVersion(ref string, version int) error {
	r, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		return err
	}
	token, err := apiclient.ReadToken(c.data)
	if err != nil {
		return err
	}
	if err := remote.Write(r, c.images[version], remote.WithAuth(&authn.Basic{Username: "kiln", Password: token})); err != nil {
		return err
	}
	digest, err := c.images[version].Digest()
	c.digests[ref] = digest.String()
	return err
}

// crash kills the server at any moment, also while an image is pushed or while it starts, and has things
// happen before it is started again.
func (c *chaos) crash(i int) {
	c.t.Helper()
	moment := time.Duration(c.rnd.IntN(800)) * time.Millisecond
	var pushing sync.WaitGroup
	f, version := c.forges[c.rnd.IntN(len(c.forges))], c.rnd.IntN(versions)
	if f.base != "" && c.rnd.IntN(2) == 0 {
		pushing.Go(func() { _ = c.pushVersion(f.base, version) }) // it is repeated
		moment /= 40
	}
	waitABitFor(c.t, moment)
	switch c.rnd.IntN(3) {
	case 0:
		_ = c.cmd.Process.Kill() // the daemon notices by itself
		<-c.gone
	case 1:
		c.kill()
		c.stillborn(time.Duration(c.rnd.IntN(1500)) * time.Millisecond)
	default:
		c.kill()
	}
	c.kills++
	pushing.Wait()
	c.down = true
	for j := range c.rnd.IntN(4) {
		c.push(1_000_000 + i*10 + j)
	}
	c.start()
	c.down = false
	c.died = time.Now()
	if f.base != "" {
		c.moveBase(f, version)
	}
}

// stillborn starts a server and kills it soon after.
func (c *chaos) stillborn(after time.Duration) {
	c.t.Helper()
	cmd := exec.Command("kiln", append([]string{"serve", "--data", c.data, "--listen", c.host(), "-v"}, c.args...)...)
	cmd.Stderr = c.log
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	waitABitFor(c.t, after)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	c.kills++
}

// waitABitFor lets some time pass: what happens then is not for the test to know.
func waitABitFor(t testing.TB, d time.Duration) {
	select {
	case <-time.After(d):
	case <-t.Context().Done():
	}
}

// imageOf makes an image of one file.
func imageOf(t *testing.T, content string) v1.Image {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := w.WriteHeader(&tar.Header{Name: "version", Mode: 0o644, Size: int64(len(content)), ModTime: time.Unix(1600000000, 0)})
	if err == nil {
		_, err = w.Write([]byte(content))
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	config, err := empty.Image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", "amd64"
	image, err := mutate.ConfigFile(mutate.MediaType(empty.Image, types.OCIManifestSchema1), config)
	if err == nil {
		image, err = mutate.AppendLayers(mutate.ConfigMediaType(image, types.OCIConfigJSON), static.NewLayer(b.Bytes(), types.OCIUncompressedLayer))
	}
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// TestFullDiskRefusesDeliveries fills the disk: who delivers then is told to come again, and nothing is lost if
// that is done. Messages are refused while there is a reserve left, because JetStream does not write to a
// stream any more whose file it could not write to.
func TestFullDiskRefusesDeliveries(t *testing.T) {
	t.Parallel()
	disk := t.TempDir()
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=400m"); err != nil {
		t.Fatalf("mount: %v (the test needs root)", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(disk, 0); err != nil {
			t.Error(err)
		}
	})
	s := startServerAt(t, filepath.Join(disk, "data"), "--allow-source", "127.0.0.0/8", "--reconcile-every", "1h")
	f := newForge(t, s, "full", "", "", map[string]string{"Dockerfile": "FROM scratch\nCOPY app /app\n", "app": "0"})
	s.apply("full", "context: "+f.url+"#main\nstep: {build: {images: ['full/app:{{.Run.ID}}']}}\ntriggers: {source: [{events: [push]}]}\n")
	commit := f.commit(map[string]string{"app": "1"})
	ballast := filepath.Join(disk, "ballast")
	fill(t, ballast)
	c := &chaos{server: s, t: t}
	d := hookDelivery(f, "1", map[string]string{"type": "git.pushed", "repository": f.url, "ref": "refs/heads/main"})
	if d(t.Context(), c) {
		t.Errorf("on a full disk a delivery is taken: %v %v", c.acknowledged, c.faults)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the delivery to be taken when there is room again", func() bool { return d(t.Context(), c) })
	if len(c.faults) > 0 || len(c.acknowledged) != 1 {
		t.Errorf("acknowledged %v, %v", c.acknowledged, c.faults)
	}
	if r := s.runsOf("full", 1)[0]; r.Cause.Commit != commit {
		t.Errorf("run %+v, want commit %s", r.Cause, commit)
	}
}
