package buildkit_test

import (
	"archive/tar"
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/crypto/ssh"

	"kiln/internal/run"
	"kiln/internal/solve"
	"kiln/internal/solvertest"
)

func testBuildOptions(t *testing.T, e *env) {
	for name, test := range map[string]func(*testing.T, *env){
		"secrets": testBuildSecrets, "secret files": testBuildSecretFiles, "ssh": testBuildSSH, "named contexts": testNamedContexts,
		"remote context": testRemoteContext, "run options": testRunOptions, "no cache filter": testNoCacheFilter,
		"emulation": testNoEmulation, "caches": testCaches, "hidden values": testHiddenValues, "read file": testReadFile, "binds": testBinds, "cache mounts": testCacheMounts, "registries": testRegistries,
	} {
		t.Run(name, func(t *testing.T) { test(t, e) })
	}
}

// dockerfile returns a source that is one Dockerfile.
func (e *env) dockerfile(t testing.TB, lines string) solve.SessionConfig {
	t.Helper()
	return solve.SessionConfig{Source: source(t, map[string]string{"Dockerfile": "FROM " + e.base + "\n" + lines})}
}

// data returns what a build has written below /data.
func data(t testing.TB, built solve.Built) string {
	t.Helper()
	return strings.Join(listing(t, pull(t, built.Ref), "data"), "\n")
}

// fails returns the message of a build that fails by itself.
func fails(t testing.TB, s solve.Session, b solve.Build) string {
	t.Helper()
	_, err := s.Build(t.Context(), b, newJournal().log)
	step, ok := errors.AsType[*solve.StepError](err)
	if !ok {
		t.Fatalf("Build: %v, want the step's failure", err)
	}
	return step.Error()
}

func testBuildSecrets(t *testing.T, e *env) {
	s := e.open(t, e.dockerfile(t, "RUN --mount=type=secret,id=tok --mount=type=secret,id=var,env=VAR mkdir /data && wc -c < /run/secrets/tok > /data/n && test ${#VAR} = 18\nRUN test ! -s /run/secrets/tok\n"))
	secrets := map[string]solve.Secret{"tok": {Value: []byte("hunter22")}, "var": {Value: []byte("in-the-environment")}}
	built, j := build(t, s, solve.Build{Step: "b", Secrets: secrets, Staging: e.staging()})
	if got := data(t, built); got != "n -rw-r--r-- 8" {
		t.Error(got)
	}
	manifest, config := raw(t, built)
	if text := j.all() + manifest + config; strings.Contains(text, "hunter22") || strings.Contains(text, "in-the-environment") {
		t.Error("a secret is in the log or the image:", text)
	}
	other := e.open(t, e.dockerfile(t, "RUN --mount=type=secret,id=tok,required true\n"))
	if got := fails(t, other, solve.Build{Step: "c", Staging: e.staging()}); !strings.Contains(got, "secret tok: not found") {
		t.Errorf("a build without the secret: %s", got)
	}
}

// raw returns the manifest and the configuration of a build's image.
func raw(t testing.TB, built solve.Built) (manifest, config string) {
	t.Helper()
	img := pull(t, built.Ref)
	m, err := img.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	c, err := img.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	return string(m), string(c)
}

func testBuildSecretFiles(t *testing.T, e *env) {
	src := source(t, map[string]string{"Dockerfile": "FROM " + e.base + "\nRUN --mount=type=secret,id=tok mkdir /data && wc -c < /run/secrets/tok > /data/n\n", "conf/tok": "12345", "big": strings.Repeat("x", 600<<10)})
	s := e.open(t, solve.SessionConfig{Source: src})
	b := solve.Build{Step: "b", Staging: e.staging(), Secrets: map[string]solve.Secret{"tok": {File: "conf/tok"}}}
	built, _ := build(t, s, b)
	if got := data(t, built); got != "n -rw-r--r-- 5" {
		t.Error(got)
	}
	for file, want := range map[string]string{
		"conf/nope": `secret tok: "conf/nope" is not in the source`, "conf": `secret tok: "conf" is no regular file`,
		"../../etc/passwd": `secret tok: "../../etc/passwd" is outside of the source`, "big": "secret tok is larger than 512000 bytes",
	} {
		b.Secrets["tok"] = solve.Secret{File: file}
		if got := fails(t, s, b); got != want {
			t.Errorf("%s: %q, want %q", file, got, want)
		}
	}
	code, j := runStep(t, s, e.shell("echo -n written > /workspace/conf/tok"))
	if code != 0 {
		t.Fatal(j.all())
	}
	b.FromWorkspace, b.NoCache, b.Secrets["tok"] = true, true, solve.Secret{File: "conf/tok"}
	built, _ = build(t, s, b)
	if got := data(t, built); got != "n -rw-r--r-- 7" {
		t.Errorf("of the workspace: %s", got)
	}
}

func testBuildSSH(t *testing.T, e *env) {
	pub, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	base := e.registry + "/base/ssh-add:1"
	pushImage(t, base, withPrograms(t, busybox(t), "/usr/bin/ssh-add"))
	lines := "\nRUN --mount=type=ssh mkdir /data && ssh-add -l -E sha256 > /data/keys && ! ssh-add -D && ! ssh-add -x < /dev/null\nRUN --mount=type=ssh,id=other,required ssh-add -l > /data/other\n"
	s := e.open(t, solve.SessionConfig{Source: source(t, map[string]string{"Dockerfile": "FROM " + base + lines})})
	secret := solve.Secret{Value: pem.EncodeToMemory(block)}
	built, j := build(t, s, solve.Build{Step: "b", SSH: map[string]solve.Secret{"default": secret, "other": secret}, Staging: e.staging()})
	if got := data(t, built); !strings.Contains(got, ssh.FingerprintSHA256(key)) {
		t.Errorf("the agent's keys: %s\n%s", got, j.all())
	}
	if got := fails(t, s, solve.Build{Step: "b", NoCache: true, SSH: map[string]solve.Secret{"default": secret}, Staging: e.staging()}); !strings.Contains(got, "no ssh key other; give it with --ssh other") {
		t.Errorf("a build without one of the keys: %s", got)
	}
	if got := fails(t, s, solve.Build{Step: "b", SSH: map[string]solve.Secret{"default": {Value: []byte("sesame")}}, Staging: e.staging()}); got != "ssh key default: it is no private key in PEM" {
		t.Error(got)
	}
}

// withPrograms adds programs of this machine, and the libraries that they need.
func withPrograms(t testing.TB, img v1.Image, programs ...string) v1.Image {
	t.Helper()
	out, err := exec.Command("ldd", programs...).Output()
	if err != nil {
		t.Fatalf("ldd %s: %v (apt-get install openssh-client)", programs, err)
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, file := range append(programs, regexp.MustCompile(`/\S+`).FindAllString(string(out), -1)...) {
		content, err := os.ReadFile(strings.TrimSuffix(file, ":"))
		if err != nil {
			t.Fatal(err)
		}
		writeTar(t, w, &tar.Header{Name: strings.TrimPrefix(file, "/"), Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(content))}, string(content))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return withLayer(t, img, buf.Bytes())
}

func withLayer(t testing.TB, img v1.Image, content []byte) v1.Image {
	t.Helper()
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil })
	if err != nil {
		t.Fatal(err)
	}
	if img, err = mutate.AppendLayers(img, layer); err != nil {
		t.Fatal(err)
	}
	return img
}

func testNamedContexts(t *testing.T, e *env) {
	files := map[string]string{
		"Dockerfile": "FROM base\nCOPY --from=docs d.txt /data/\nCOPY --from=far f.txt /data/\nCOPY a.txt /data/\nRUN cp /bin/busybox /x\n",
		"a.txt":      "a", "docs/d.txt": "d",
	}
	s := e.open(t, solve.SessionConfig{Source: source(t, files), SourceKey: "k"})
	b := solve.Build{Step: "b", Staging: e.staging(), Contexts: map[string]solve.Context{
		"base": {Image: e.base}, "docs": {Dir: "docs"}, "far": {Tree: &solve.Tree{FS: source(t, map[string]string{"f.txt": "f"}), Key: "elsewhere"}},
	}}
	built, _ := build(t, s, b)
	if got, want := data(t, built), "a.txt -rw-r--r-- a\nd.txt -rw-r--r-- d\nf.txt -rw-r--r-- f"; got != want {
		t.Errorf("image has %s, want %s", got, want)
	}
	if diff := cmp.Diff([]run.Base{{Ref: e.base, Digest: e.digest}}, built.Bases); diff != "" {
		t.Errorf("bases: %s", diff)
	}
	for dir, want := range map[string]string{
		"nope": `build context docs: "nope" is not in the source`, "a.txt": `build context docs: "a.txt" is not a directory`, "../x": `build context docs: "../x" is outside of the source`,
	} {
		b.Contexts["docs"] = solve.Context{Dir: dir}
		if got := fails(t, s, b); got != want {
			t.Errorf("%s: %q, want %q", dir, got, want)
		}
	}
}

func testRemoteContext(t *testing.T, e *env) {
	tree := &solve.Tree{FS: source(t, map[string]string{"sub/Dockerfile": "FROM " + e.base + "\nRUN --mount=type=secret,id=s cp /run/secrets/s /s\nCOPY f.txt /data/\n", "sub/f.txt": "far"}), Key: "elsewhere"}
	for _, cfg := range []solve.SessionConfig{{}, {Source: source(t, map[string]string{"Dockerfile": "FROM scratch\n", "s": "near"})}} {
		s := e.open(t, cfg)
		b := solve.Build{Step: "b", Remote: tree, Context: "sub", Staging: e.staging()}
		if cfg.Source != nil {
			b.Secrets = map[string]solve.Secret{"s": {File: "s"}} // of the run, not of the remote context
		} else {
			b.Secrets = map[string]solve.Secret{"s": {Value: []byte("near")}}
		}
		built, _ := build(t, s, b)
		if got := data(t, built); got != "f.txt -rw-r--r-- far" {
			t.Error(got)
		}
		b.Context = "nope"
		if got := fails(t, s, b); got != `context "nope" is not in the remote context` {
			t.Error(got)
		}
	}
}

func testRunOptions(t *testing.T, e *env) {
	s := e.open(t, e.dockerfile(t, "RUN mkdir /data; ulimit -n > /data/soft; ulimit -Hn > /data/hard; grep /dev/shm /proc/mounts > /data/shm; grep -c : /proc/net/dev > /data/devices; grep made.up /etc/hosts > /data/hosts\n"))
	b := solve.Build{Step: "b", Ulimits: []string{"nofile=321:654"}, ShmSize: 8 << 20, Network: solve.NetworkNone, AddHosts: []string{"made.up:192.0.2.7"}, Staging: e.staging()}
	built, _ := build(t, s, b)
	got := data(t, built)
	for _, want := range []string{"soft -rw-r--r-- 321", "hard -rw-r--r-- 654", "size=8192k", "devices -rw-r--r-- 1", "192.0.2.7"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in %s", want, got)
		}
	}
	b.Network = solve.NetworkRun
	built, _ = build(t, s, b)
	if got := data(t, built); strings.Contains(got, "devices -rw-r--r-- 1\n") {
		t.Errorf("RUN has no network by default: %s", got)
	}
}

func testNoCacheFilter(t *testing.T, e *env) {
	src := source(t, map[string]string{"Dockerfile": "FROM " + e.base + " AS one\nRUN touch /one\nFROM " + e.base + " AS two\nRUN touch /two\nFROM scratch\nCOPY --from=one /one /\nCOPY --from=two /two /\n"})
	s := e.open(t, solve.SessionConfig{Source: src})
	b := solve.Build{Step: "b", Staging: e.staging()}
	build(t, s, b)
	b.NoCacheFilter = []string{"two"}
	_, j := build(t, s, b)
	if all := j.all(); !strings.Contains(all, "[one 2/2] RUN touch /one cached=true") || strings.Contains(all, "RUN touch /two cached=true") {
		t.Error(all)
	}
}

// The name of a platform and what to do are in the error of what cannot be executed here.
func testNoEmulation(t *testing.T, e *env) {
	const elf = "\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00\x01\x00\x00\x00"
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	program := elf + strings.Repeat("\x00", 512)
	writeTar(t, w, &tar.Header{Name: "bin/sh", Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(program))}, program)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	img := withLayer(t, busybox(t), buf.Bytes())
	f, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	f.Architecture = "arm64"
	if img, err = mutate.ConfigFile(img, f); err != nil {
		t.Fatal(err)
	}
	base := e.registry + "/base/arm:1"
	pushImage(t, base, img)
	s := e.open(t, solve.SessionConfig{Source: source(t, map[string]string{"Dockerfile": "FROM " + base + "\nRUN make it\n"})})
	for _, platforms := range [][]string{{"linux/arm64"}, {"linux/arm64", "linux/arm/v7"}} {
		got := fails(t, s, solve.Build{Step: "b", Platforms: platforms, Staging: e.staging()})
		if !strings.Contains(got, "RUN make it: this worker cannot execute programs of linux/a") || !strings.Contains(got, "qemu-user-static") {
			t.Errorf("%v: %s", platforms, got)
		}
	}
	c := solve.Container{Step: "arm", Image: base, Args: []string{"sh", "-c", "true"}, Options: solve.Options{Platform: "linux/arm64"}}
	if _, err := s.Run(t.Context(), c, newJournal().log); err == nil || !strings.HasPrefix(err.Error(), "this worker cannot execute programs of linux/arm64: ") {
		t.Errorf("a container: %v", err)
	}
}

// A daemon that has never built anything takes everything from the cache that another has written.
func testCaches(t *testing.T, e *env) {
	cfg := e.dockerfile(t, "RUN date > /now\nRUN cat /dev/random | head -c 10 > /other\n")
	for name, c := range map[string]struct{ to, from solve.Cache }{
		"registry": {solve.Cache{Ref: e.registry + "/cache/x:c", Max: true}, solve.Cache{Ref: e.registry + "/cache/x:c"}},
		"inline":   {solve.Cache{}, solve.Cache{}},
	} {
		b := solve.Build{Step: "b", NoCache: true, CacheTo: []solve.Cache{c.to}, Staging: e.staging()}
		first, _ := build(t, e.open(t, cfg), b)
		if c.from.Ref == "" {
			c.from.Ref = first.Ref
		}
		fresh := newEnvAt(t, solvertest.StartDaemon(t))
		fresh.registry = e.registry
		b.NoCache, b.CacheTo, b.CacheFrom = false, nil, []solve.Cache{{Ref: e.registry + "/cache/nothing:here"}, c.from}
		second, j := build(t, fresh.open(t, cfg), b)
		if a, b := layers(t, first), layers(t, second); a != b || !strings.Contains(j.all(), "RUN date > /now cached=true") {
			t.Errorf("%s: layers %s, then %s\n%s", name, a, b, j.all())
		}
	}
	b := solve.Build{Step: "b", CacheTo: []solve.Cache{{Ref: "127.0.0.1:1/cache:x"}}, Staging: e.staging()}
	if _, err := e.open(t, cfg).Build(t.Context(), b, newJournal().log); err == nil || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("a cache that cannot be written: %v", err)
	}
	b.CacheTo[0].Ignore = true
	build(t, e.open(t, cfg), b)
}

func layers(t testing.TB, built solve.Built) string {
	t.Helper()
	m, err := pull(t, built.Ref).Manifest()
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, l := range m.Layers {
		all = append(all, l.Digest.Hex[:12])
	}
	return strings.Join(all, " ")
}

// A guardedRegistry wants one password, and remembers all that it was shown.
func guardedRegistry(t testing.TB, password string) (host string, shown func() []string) {
	t.Helper()
	var mu sync.Mutex
	var all []string
	images := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, given, ok := r.BasicAuth()
		mu.Lock()
		if ok && !slices.Contains(all, given) {
			all = append(all, given)
		}
		mu.Unlock()
		if given != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"no access for you"}]}`, http.StatusUnauthorized)
			return
		}
		images.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://"), func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(all)
	}
}

// Each scope has cache mounts of its own: what one writes no other sees or spoils, whatever it calls its mount.
// (With NoCache every build begins with empty ones.)
func testCacheMounts(t *testing.T, e *env) {
	for i, c := range []struct{ scope, id, want string }{
		{"task-a", "x", ""},
		{"task-b", "x", ""},
		{"task-b", "../task-a/x", ""},
		{"pr-1", "x", ""},
		{"pr-1", "task-a/x", ""},
		{"", "task-a/x", ""},
		{"", "x", ""},
		{"task-a", "x", "task-a x\n"},
		{"pr-1", "x", "pr-1 x\n"},
	} {
		cfg := e.dockerfile(t, "RUN --mount=type=cache,id="+c.id+",target=/c : "+strconv.Itoa(i)+"; mkdir /data && touch /c/seen && cp /c/seen /data/seen && echo '"+c.scope+" "+c.id+"' >> /c/seen\n")
		cfg.CacheScope = c.scope
		built, _ := build(t, e.open(t, cfg), solve.Build{Step: "b", Staging: e.staging()})
		if got := data(t, built); strings.TrimSpace(got) != strings.TrimSpace("seen -rw-r--r-- "+c.want) {
			t.Errorf("%d: scope %q, mount %q has %q, want %q", i, c.scope, c.id, got, c.want)
		}
	}
	own := e.dockerfile(t, "RUN true\n")
	own.CacheScope = "pr-1"
	if got := fails(t, e.open(t, own), solve.Build{Step: "b", BuildArgs: map[string]string{"BUILDKIT_CACHE_MOUNT_NS": "task-a"}, Staging: e.staging()}); !strings.Contains(got, "BUILDKIT_CACHE_MOUNT_NS is reserved") {
		t.Error(got)
	}
}

// One build pulls from two registries and writes its cache to one of them; each is shown its own password only.
func testRegistries(t *testing.T, e *env) {
	passwords := map[string]string{}
	one, shownOne := guardedRegistry(t, "password-one")
	two, shownTwo := guardedRegistry(t, "password-two")
	passwords[one], passwords[two] = "password-one", "password-two"
	for host, password := range passwords {
		ref, err := name.ParseReference(host+"/base/box:1", name.Insecure)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(ref, busybox(t), remote.WithAuth(&authn.Basic{Username: "bob", Password: password})); err != nil {
			t.Fatal(err)
		}
	}
	login := func(host string) (string, string) {
		if p := passwords[host]; p != "" {
			return "bob", p
		}
		return "", ""
	}
	src := source(t, map[string]string{"Dockerfile": "FROM " + one + "/base/box:1\nCOPY --from=" + two + "/base/box:1 /etc/group /data/\n"})
	s := e.open(t, solve.SessionConfig{Source: src, Credentials: login})
	b := solve.Build{Step: "b", CacheTo: []solve.Cache{{Ref: two + "/cache/x:1"}}, Staging: e.staging()}
	build(t, s, b)
	if got := shownOne(); !slices.Equal(got, []string{"password-one"}) {
		t.Errorf("the first registry was shown %q", got)
	}
	if got := shownTwo(); !slices.Equal(got, []string{"password-two"}) {
		t.Errorf("the second registry was shown %q", got)
	}
	ref, _ := name.ParseReference(two+"/cache/x:1", name.Insecure)
	if _, err := remote.Head(ref, remote.WithAuth(&authn.Basic{Username: "bob", Password: "password-two"})); err != nil {
		t.Errorf("the cache: %v", err)
	}
	passwords[two] = "another password"
	if got := fails(t, e.open(t, solve.SessionConfig{Source: src, Credentials: login}), b); !strings.Contains(got, two+"/base/box:1") || !strings.Contains(got, "401") {
		t.Errorf("a bad password: %s", got)
	}
}
