package registry_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os/exec"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"

	"kiln/internal/registry"
	"kiln/internal/registrytest"
)

// A modelRepo is what a repository has to hold.
type modelRepo struct {
	blobs     map[string][]byte
	manifests map[string]modelManifest
	tags      map[string]string // name to digest
}

type modelManifest struct {
	mediaType, artifactType, subject string
	body                             []byte
	blobs, children                  []string // that it holds
}

// needed reports whether a manifest of the repository holds a blob or another manifest.
func (r *modelRepo) needed(dgst string) bool {
	for _, m := range r.manifests {
		if slices.Contains(m.blobs, dgst) || slices.Contains(m.children, dgst) {
			return true
		}
	}
	return false
}

// referrers returns the digests of the manifests about subject, of one type or of all.
func (r *modelRepo) referrers(subject, artifactType string) []string {
	out := []string{}
	for d, m := range r.manifests {
		if m.subject == subject && (artifactType == "" || artifactType == m.artifactType) {
			out = append(out, d)
		}
	}
	slices.Sort(out)
	return out
}

type modelUpload struct {
	repo, location string
	content        []byte
}

// A model performs random requests on a registry process and knows what they must be answered.
type model struct {
	t        *testing.T
	seed     uint64
	step     int
	rnd      *rand.Rand
	dir      string
	child    *exec.Cmd
	r        *registrytest.Registry
	contents [][]byte
	repos    map[string]*modelRepo // those that exist
	uploads  []*modelUpload
}

var modelRepos = []string{"one", "two/app", "three/a/b"}

func TestRandomOperationsAgainstAModel(t *testing.T) {
	t.Parallel()
	runModel(t, 1, 1000, 3)
}

// runModel performs random operations. The process is killed so many times in between, and then
// everything must be as before, but for uploads in progress.
func runModel(t *testing.T, seed uint64, operations, kills int) {
	m := &model{t: t, seed: seed, rnd: rand.New(rand.NewPCG(seed, 0)), dir: t.TempDir(), repos: map[string]*modelRepo{}}
	for i := range 8 { // the largest are files, not rows
		m.contents = append(m.contents, bytes.Repeat([]byte{byte('a' + i)}, i*12_000))
	}
	m.start()
	random := m.operations()
	for m.step = range operations {
		if m.step > 0 && m.step%(operations/(kills+1)) == 0 {
			m.kill()
			m.start()
			m.verify()
		}
		random[m.rnd.IntN(len(random))]()
	}
	m.verify()
	m.kill()
	s, err := registry.Open(m.dir, registry.Options{Reserve: -1})
	if err != nil {
		t.Fatal(err)
	}
	sound(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// operations returns what can be done, the common things more than once.
func (m *model) operations() (out []func()) {
	for _, o := range []struct {
		weight int
		do     func()
	}{
		{6, m.pushBlob}, {2, m.beginUpload}, {4, m.sendChunk}, {2, m.endUpload}, {1, m.cancelUpload},
		{3, m.mountBlob}, {3, m.readBlob}, {3, m.deleteBlob}, {8, m.pushImage}, {3, m.pushIndex},
		{4, m.readManifest}, {2, m.deleteTag}, {2, m.deleteManifest}, {2, m.listTags}, {1, m.listRepositories}, {2, m.listReferrers},
	} {
		out = append(out, slices.Repeat([]func(){o.do}, o.weight)...)
	}
	return out
}

func (m *model) start() {
	m.t.Helper()
	cmd, url, lines := startChild(m.t, m.dir)
	go func() {
		for lines.Scan() { // until it is killed
		}
	}()
	m.child, m.r = cmd, &registrytest.Registry{URL: url, Token: registrytest.Token}
}

func (m *model) kill() {
	m.t.Helper()
	if err := m.child.Process.Kill(); err != nil {
		m.t.Fatal(err)
	}
	if err := m.child.Wait(); err == nil {
		m.t.Fatal("the child was not killed")
	}
	m.uploads = nil
}

// want sends a request that must be answered with status.
func (m *model) want(status int, method, path string, body []byte, header ...string) (*http.Response, []byte) {
	m.t.Helper()
	res, b := call(m.t, m.r, method, path, body, header...)
	if res.StatusCode != status {
		m.t.Fatalf("seed %d, step %d: %s %s: status %d, want %d: %s", m.seed, m.step, method, path, res.StatusCode, status, b)
	}
	return res, b
}

func (m *model) equal(what string, got, want any) {
	m.t.Helper()
	if g, w := fmt.Sprint(got), fmt.Sprint(want); g != w {
		m.t.Fatalf("seed %d, step %d: %s: got %s, want %s", m.seed, m.step, what, g, w)
	}
}

func pick[T any](m *model, from []T) T { return from[m.rnd.IntN(len(from))] }

func (m *model) chance(percent int) bool { return m.rnd.IntN(100) < percent }

func (m *model) repo() string { return pick(m, modelRepos) }

// existing returns a repository, of which there may be nothing yet.
func (m *model) existing(name string) *modelRepo {
	if r := m.repos[name]; r != nil {
		return r
	}
	return &modelRepo{}
}

func (m *model) create(name string) *modelRepo {
	if m.repos[name] == nil {
		m.repos[name] = &modelRepo{blobs: map[string][]byte{}, manifests: map[string]modelManifest{}, tags: map[string]string{}}
	}
	return m.repos[name]
}

func (m *model) digest(content []byte) string {
	if m.chance(20) {
		return digest.SHA512.FromBytes(content).String()
	}
	return digest.FromBytes(content).String()
}

// verify compares everything.
func (m *model) verify() {
	m.t.Helper()
	m.listRepositories()
	for _, name := range modelRepos {
		r := m.existing(name)
		m.checkTags(name, 100)
		for tag, d := range r.tags {
			m.checkManifest(name, tag, d, "HEAD")
		}
		for d := range r.manifests {
			m.checkManifest(name, d, d, "GET")
			m.checkReferrers(name, d, "")
		}
		for d, content := range r.blobs {
			_, b := m.want(http.StatusOK, "GET", "/v2/"+name+"/blobs/"+d, nil)
			m.equal("content of "+d, bytes.Equal(b, content), true)
		}
	}
}
