package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// sampleArgs are the server's arguments for testSamples: bash and curl are images of its own.
var sampleArgs = []string{"--registry-alias", "images.test", "--image-alias", "bash=images.test/samples/bash:1", "--image-alias", "curl=images.test/samples/curl:1"}

// samples are the tasks in testdata/tasks, written as people write theirs, with what their logs have and how many
// tags they push.
var samples = map[string]struct {
	says  []string
	flags []string
	tags  int
}{
	"greeting.yaml":         {says: []string{"| good morning\n"}},
	"tagged-image.yaml":     {says: []string{"| by its name\n"}},
	"shared-directory.yaml": {says: []string{"read | written on 20", "list | notes.txt\n"}},
	"in-order.yaml":         {says: []string{"told | one two three\n"}},
	"build-and-push.yaml":   {tags: 2},
	"test-before-push.yaml": {says: []string{"test | <h1>it works</h1>\n", "upgrade app --reuse-values --set image="}, tags: 1},
	"service.yaml":          {says: []string{"| <h1>it works</h1>\n"}},
	"mounts.yaml":           {says: []string{"acb_step_0 | ***\n", "acb_step_1 | 30\n"}, flags: []string{"--set-secret", "one", "--set-secret", "two"}},
	"vault.yaml":            {says: []string{"| a secret\n"}, tags: 1},
}

func testSamples(t *testing.T, s *server) {
	s.must("build", "-t", "samples/bash:1", files(t, map[string]string{"entry": "#!/bin/sh\ncase $1 in -*) set -- sh \"$@\";; esac\nexec \"$@\"\n",
		"Dockerfile": base + "COPY --chmod=755 entry /entry\nENTRYPOINT [\"/entry\"]\n"}))
	s.must("build", "-t", "samples/curl:1", files(t, map[string]string{"curl": "#!/bin/sh\nfor url; do :; done\nn=0\nuntil wget -q -O - $url; do n=$((n + 1)); test $n -lt 300 || exit 7; sleep 0.1; done\n",
		"Dockerfile": base + "COPY --chmod=755 curl /bin/curl\nENTRYPOINT [\"/bin/curl\"]\n"}))
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("testdata/tasks")); err != nil {
		t.Fatal(err)
	}
	found, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(found) != len(samples) {
		t.Errorf("%d samples, %d are known here, %v", len(found), len(samples), err)
	}
	for file, want := range samples {
		t.Run(file, func(t *testing.T) {
			t.Parallel()
			args := append(append([]string{"run", "-f", filepath.Join(dir, file)}, want.flags...), dir)
			res := runKiln(t, []string{"KILN_DATA=" + s.data, "one=Zm-one-of-two\n", "two=Zm-the-other-one"}, args...)
			if res.code != 0 || len(strings.Fields(res.out)) < want.tags || strings.Count(res.out, "/samples/") != want.tags {
				t.Fatalf("exit code %d, printed %q\n%s", res.code, res.out, res.err)
			}
			for _, text := range want.says {
				if !strings.Contains(res.err, text) {
					t.Errorf("log lacks %q\n%s", text, res.err)
				}
			}
		})
	}
}
