package main

import (
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

// content returns the files of an image, as a tarball.
func (s gitServer) content(ref string) string {
	s.t.Helper()
	rc := mutate.Extract(s.image(ref))
	defer rc.Close()
	b, err := io.ReadAll(rc)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(b)
}

// testContextsOfSteps has steps of one task build what is elsewhere, of each kind, and puts all of it into one image.
func testContextsOfSteps(t *testing.T, s gitServer) {
	_, url := s.repository("step", map[string]string{"app/Dockerfile": "FROM scratch\nCOPY text /\n", "app/text": "in a repository\n", "docs": "more of it\n"})
	archives := s.archives("step")
	dir := files(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY --from=git text /git\nCOPY --from=tarball text /tarball\nCOPY --from=artifact text /artifact\nCOPY --from=more docs /more\n",
		"acr-task.yaml": fmt.Sprintf(`version: v1.1.0
steps:
  - {id: git, build: "-t git %[1]s#main:app", when: ["-"]}
  - {id: tarball, build: -t tarball %[2]s, when: ["-"]}
  - {id: artifact, build: "-t artifact %[3]s", when: ["-"]}
  - {build: "-t $Registry/git/steps:$ID --build-context more=%[1]s#main .", when: [git, tarball, artifact]}
  - push: ["$Registry/git/steps:$ID"]
`, url, archives[0], archives[1])})
	res := s.kiln("run", dir)
	if res.code != 0 {
		t.Fatalf("exit code %d\n%s", res.code, res.err)
	}
	content := s.content(strings.TrimSpace(res.out))
	if strings.Count(content, "in an archive\n") != 2 || strings.Count(content, "in a repository\n") != 1 || !strings.Contains(content, "more of it\n") {
		t.Errorf("the image does not hold all files\n%s", res.err)
	}
}

// testPullRequestWithSubmodule builds the head of a pull request, which no branch has. It has a submodule.
func testPullRequestWithSubmodule(t *testing.T, s gitServer) {
	part, url := s.repository("part", map[string]string{"text": "in a submodule\n"})
	whole, _ := s.repository("whole", map[string]string{"Dockerfile": "FROM scratch\nCOPY text sub/part/text /\n", "text": "on main\n"})
	whole.Git("checkout", "-q", "--detach")
	whole.Write("Dockerfile", "FROM scratch\nCOPY . /\n", 0)
	whole.Write(".gitmodules", "[submodule \"part\"]\n\tpath = sub/part\n\turl = ../part.git\n", 0)
	whole.Git("add", "Dockerfile", ".gitmodules")
	whole.Git("update-index", "--add", "--cacheinfo", "160000,"+part.Git("rev-parse", "HEAD")+",sub/part")
	whole.Git("commit", "-q", "-m", "with a part")
	whole.Git("push", "-q", "origin", "HEAD:refs/pull/7/head")
	res := s.kiln("build", "-t", "git/whole", strings.Replace(url, "part", "whole", 1)+"#pull/7/head")
	if res.code != 0 {
		t.Fatalf("exit code %d\n%s", res.code, res.err)
	}
	ref, id := pushed(res.out)
	if content := s.content(ref); !strings.Contains(content, "in a submodule\n") || !strings.Contains(content, "on main\n") {
		t.Errorf("the image lacks files\n%s", res.err)
	}
	if log := s.must("logs", id); !strings.Contains(log, whole.Git("rev-parse", "HEAD")[:12]) {
		t.Errorf("log does not name the commit:\n%s", log)
	}
}
