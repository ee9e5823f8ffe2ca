package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
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

	"kiln/internal/gittest"
)

// A gitServer is a kiln server that may fetch from a git server on this host.
type gitServer struct {
	*server
	git *gittest.Server
	ssh *gittest.SSHServer // of the same repositories
}

// repository makes a repository of these files and returns it with its URL.
func (s gitServer) repository(name string, content map[string]string) (*gittest.Repo, string) {
	s.t.Helper()
	r := gittest.NewRepo(s.t, s.git.Root, name+".git")
	for file, text := range content {
		r.Write(file, text, 0)
	}
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		s.t.Fatalf("%v (Debian: apt-get install busybox-static)", err)
	}
	for file := range content {
		if filepath.Base(file) == "Dockerfile" {
			r.Write(filepath.Join(filepath.Dir(file), "busybox"), string(program), 0o755)
		}
	}
	r.Commit("first commit\n\nbody")
	return r, s.git.URL + "/" + name + ".git"
}

// TestGitContexts builds what a git server has.
func TestGitContexts(t *testing.T) {
	git := gittest.Serve(t, t.TempDir(), "", "")
	byKey := gittest.ServeSSH(t, git.Root)
	key, hosts := filepath.Join(t.TempDir(), "key"), filepath.Join(t.TempDir(), "known_hosts")
	if err := errors.Join(os.WriteFile(key, byKey.PrivateKey, 0o600), os.WriteFile(hosts, byKey.KnownHosts, 0o600)); err != nil {
		t.Fatal(err)
	}
	s := startServer(t, "--allow-source", "127.0.0.1", "--ssh-key", "default="+key, "--ssh-known-hosts", hosts)
	for name, test := range map[string]func(*testing.T, gitServer){
		"build": testGitBuild, "task": testGitTask, "refused": testGitRefused, "reuse": testGitReuse, "ssh": testGitSSH,
		"archives": testArchives, "reuse of what is fetched": testReuseOfFetched,
		"contexts of steps": testContextsOfSteps, "pull request": testPullRequestWithSubmodule,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bound := *s
			bound.t = t
			test(t, gitServer{&bound, git, byKey})
		})
	}
}

// pushed returns the image and the run of a build's output.
func pushed(out string) (ref, id string) {
	ref = strings.TrimSpace(out)
	tagged, _, _ := strings.Cut(ref, "@")
	return ref, tagged[strings.LastIndexByte(tagged, ':')+1:]
}

func testGitBuild(t *testing.T, s gitServer) {
	r, url := s.repository("build", map[string]string{"app/Dockerfile": base + "COPY a /a\n", "app/a": "one\n", "not-of-app": "no\n"})
	first := r.Git("rev-parse", "HEAD")
	res := s.kiln("build", "-t", "git/build", url+"#main:app")
	if res.code != 0 {
		t.Fatalf("exit code %d\n%s", res.code, res.err)
	}
	ref, id := pushed(res.out)
	for _, want := range []string{url, first[:12], `"first commit"`, "by Ada", "main"} {
		if log := s.must("logs", id); !strings.Contains(log, want) {
			t.Errorf("log does not say %q:\n%s", want, log)
		}
	}
	img := s.image(ref)
	rc := mutate.Extract(img)
	defer rc.Close()
	tar, err := io.ReadAll(rc)
	if err != nil || !strings.Contains(string(tar), "one\n") || strings.Contains(string(tar), "not-of-app") {
		t.Errorf("image holds other files than those of app: %v", err)
	}
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	if m.Annotations["org.opencontainers.image.revision"] != first || m.Annotations["org.opencontainers.image.source"] != url {
		t.Errorf("annotations are %v, want commit %s of %s", m.Annotations, first, url)
	}

	r.Write("app/a", "two\n", 0)
	r.Commit("second")
	again, id := pushed(s.must("build", "-t", "git/build", url+"#"+first+":app"))
	if _, want, _ := strings.Cut(ref, "@"); !strings.HasSuffix(again, want) {
		t.Errorf("build of commit %s is %s, want %s", first, again, want)
	}
	if log := s.must("logs", id); !strings.Contains(log, first[:12]) {
		t.Errorf("log of a build of a commit:\n%s", log)
	}
	moved, _ := pushed(s.must("build", "-t", "git/build", url+"#main:app"))
	if _, d, _ := strings.Cut(moved, "@"); strings.HasSuffix(ref, d) {
		t.Error("the branch has moved and the same image was built")
	}
}

const gitTask = `version: v1.1.0
steps:
  - id: image
    build: -t $Registry/git/task:$ID .
  - id: look
    cmd: $Registry/git/task:$ID cat /workspace/a /workspace/dir/b
  - push: ['{{.Run.Registry}}/git/{{.Values.name}}:{{.Run.ID}}', $Registry/git/task:$ID]
`

func testGitTask(t *testing.T, s gitServer) {
	task := strings.Replace(gitTask, "'{{.Run.Registry}}/git/{{.Values.name}}:{{.Run.ID}}', ", "", 1)
	r, url := s.repository("task", map[string]string{"Dockerfile": base, "a": "text of a\n", "dir/b": "text of b\n", "acr-task.yaml": task,
		"ci/other.yaml": "version: v1.1.0\nsteps:\n- build: -t x .\n- cmd: x echo {{.Values.word}} {{.Values.more}} $Commit $Branch $OS/$Architecture {{.Run.TriggeredBy}}\n", "ci/values.yaml": "word: from-values\n",
		"bad.yaml": "version: v1.1.0\nsteps:\n- cmd: x\n  retries: y\n"})
	res := s.kiln("run", url)
	if res.code != 0 || !strings.Contains(res.err, "text of a") || !strings.Contains(res.err, "text of b") || !strings.Contains(res.out, "/git/task:") {
		t.Errorf("default task file: exit code %d\n%s%s", res.code, res.out, res.err)
	}
	res = s.kiln("run", "-f", "ci/other.yaml", "--values", "ci/values.yaml", "--set", "more=from-set", url+"#main")
	if res.code != 0 || !strings.Contains(res.err, "from-values from-set "+r.Git("rev-parse", "HEAD")+" main linux/amd64 manual\n") {
		t.Errorf("named task file: exit code %d\n%s", res.code, res.err)
	}
	for file, want := range map[string]string{
		"missing.yaml": `task file "missing.yaml": is not in ` + url, "dir": `task file "dir" in ` + url, "bad.yaml": "bad.yaml:4:",
	} {
		res := s.kiln("run", "-f", file, url)
		if res.code != 1 || !strings.Contains(res.err, want) {
			t.Errorf("-f %s: exit code %d, want 1 and %q\n%s", file, res.code, want, res.err)
		}
	}
	if res := s.kiln("run", "-f", "../x.yaml", url); res.code == 0 || !strings.Contains(res.err, "is no path inside the context") {
		t.Errorf("file outside of the context: exit code %d\n%s", res.code, res.err)
	}
}

func testGitRefused(t *testing.T, s gitServer) {
	_, url := s.repository("refused", map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"})
	for context, want := range map[string]string{
		"https://127.0.0.2:1/x.git":               "kiln serve --allow-source HOST",
		"http://[::1]:1/x.git":                    "kiln serve --allow-source HOST",
		url + "#nope":                             "nope: not in the repository",
		s.git.URL + "/nothing.git":                "repository not found",
		url + "#main:nothing":                     "nothing",
		"https://user:hunter22@example.com/x.git": "credential",
		"https://127.0.0.2:1/x.tar.gz":            "kiln serve --allow-source HOST",
		"oci://127.0.0.2:1/x:1":                   "kiln serve --allow-source HOST",
		"git://example.com/x.git":                 "use https://",
	} {
		res := s.kiln("build", context)
		if res.code == 0 || !strings.Contains(res.err, want) || strings.Contains(res.err, "hunter22") {
			t.Errorf("%s: exit code %d, want it refused with %q\n%s", context, res.code, want, res.err)
		}
	}
}

// testGitReuse builds a repository again, unchanged and at a commit that changes nothing of what is built.
func testGitReuse(t *testing.T, s gitServer) {
	r, url := s.repository("reuse", map[string]string{"app/Dockerfile": base, "readme": "1"})
	build := func() (digest string, reused bool) {
		res := s.kiln("build", "-t", "git/reuse", url+"#:app")
		if res.code != 0 {
			t.Fatalf("exit code %d\n%s", res.code, res.err)
		}
		_, digest, _ = strings.Cut(res.out, "@")
		return digest, strings.Contains(res.err, "nothing has changed since run ")
	}
	first, _ := build()
	if digest, reused := build(); !reused || digest != first {
		t.Errorf("the same commit: reused is %t, digest %s, want %s", reused, digest, first)
	}
	r.Write("readme", "2", 0)
	r.Commit("another commit")
	if digest, reused := build(); reused || digest == first {
		t.Errorf("another commit: reused is %t, and the image does not name the commit", reused)
	}
}

// testArchives builds a tarball at a URL, and an artifact of the server's own registry.
func testArchives(t *testing.T, s gitServer) {
	for _, context := range s.archives("app") {
		res := s.kiln("build", "-t", "git/archive", context)
		if res.code != 0 {
			t.Errorf("%s: exit code %d\n%s", context, res.code, res.err)
			continue
		}
		ref, _ := pushed(res.out)
		rc := mutate.Extract(s.image(ref))
		content, err := io.ReadAll(rc)
		rc.Close()
		if err != nil || !strings.Contains(string(content), "in an archive\n") {
			t.Errorf("%s: the image does not hold the file, %v", context, err)
		}
		if res := s.kiln("build", "-t", "git/archive", context); !strings.Contains(res.err, "nothing has changed since run ") {
			t.Errorf("%s: built again though nothing has changed\n%s", context, res.err)
		}
		task := "of-" + strings.SplitN(context, ":", 2)[0] // a stored one
		s.must("task", "create", task, "-c", context, "-t", "git/stored:{{.Run.ID}}")
		if res := s.kiln("task", "run", task); res.code != 0 {
			t.Errorf("task of %s: exit code %d\n%s", context, res.code, res.err)
		}
	}
}

// archives serves a build context as a tarball at a URL, and as an artifact of the server's own registry.
func (s gitServer) archives(name string) (contexts [2]string) {
	s.t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for name, text := range map[string]string{"Dockerfile": "FROM scratch\nCOPY text /\n", "text": "in an archive\n"} {
		_ = tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text)), ModTime: time.Unix(1600000000, 0)})
		_, _ = tw.Write([]byte(text))
	}
	if err := tw.Close(); err != nil {
		s.t.Fatal(err)
	}
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(b.Bytes()) }))
	s.t.Cleanup(web.Close)
	artifact := s.host() + "/contexts/" + name + ":1"
	image, err := mutate.AppendLayers(empty.Image, static.NewLayer(b.Bytes(), types.OCIUncompressedLayer))
	if err == nil {
		err = s.push(artifact, image)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return [2]string{web.URL + "/" + name + ".tar", "oci://" + artifact}
}

// push pushes an image to the server's registry.
func (s gitServer) push(ref string, image v1.Image) error {
	r, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		return err
	}
	token, err := os.ReadFile(filepath.Join(s.data, "admin.token"))
	if err != nil {
		return err
	}
	return remote.Write(r, image, remote.WithAuth(&authn.Basic{Username: "kiln", Password: strings.TrimSpace(string(token))}))
}

// TestPrivateSourcesAreRefused starts a server that allows no source outside of the internet.
func TestPrivateSourcesAreRefused(t *testing.T) {
	git := gittest.Serve(t, t.TempDir(), "", "")
	s := gitServer{server: startServer(t), git: git}
	_, url := s.repository("private", map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"})
	res := s.kiln("build", url)
	if res.code == 0 || !strings.Contains(res.err, "kiln serve --allow-source HOST") || git.Requests() != 0 {
		t.Errorf("exit code %d after %d requests\n%s", res.code, git.Requests(), res.err)
	}
	_, err := parseSources([]string{"10.0.0.0/8", "git.example", "git.example:8443", "::1", "fe80::/10", "[::1]:80"})
	if err != nil {
		t.Error(err)
	}
	var all interface{ Unwrap() []error }
	if _, err := parseSources([]string{"a b", "", "http://x"}); !errors.As(err, &all) || len(all.Unwrap()) != 3 {
		t.Errorf("parseSources = %v, want three errors", err)
	}
}
