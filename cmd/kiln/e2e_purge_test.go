package main

import (
	"strings"
	"testing"
	"time"

	"kiln/internal/run"
)

// purgesGranted lets the task of testPurge purge the repositories of it.
const purgesGranted = "cleanup=purged/*"

// testPurge has a task with a timer delete images: those that nobody needs, where the operator allows it.
func testPurge(t *testing.T, s *server) {
	if testing.Short() {
		t.Fatal("a timer takes up to a minute; run without -short")
	}
	// No other test makes the same images: what is followed elsewhere is kept, by its digest.
	s.pushBase("purged/box:1", "purged 1")
	pinned := s.digest("purged/box:1")
	f := newForge(t, s, "wave", "", "", map[string]string{"Dockerfile": "FROM " + s.host() + "/purged/box:1\n"})
	s.apply("wave", "context: "+f.url+"#main\npool: nowhere\nstep: {build: {images: ['wave:{{.Run.ID}}']}}\n"+onPush)
	f.commit(map[string]string{"more": "x"})
	f.deliver("refs/heads/main", "wave")
	var waits string // for a worker that never comes, with the image it is to be built on
	waitFor(t, "a run that waits", func() bool {
		for _, line := range strings.Split(s.must("task", "list-runs", "wave"), "\n") {
			if strings.Contains(line, string(run.Queued)) {
				waits, _, _ = strings.Cut(line, " ")
			}
		}
		return waits != ""
	})
	s.must("task", "update", "wave", "--status", "Disabled")
	s.pushBase("purged/box:1", "purged 2")
	s.pushBase("purged/box:2", "purged 3")
	s.pushBase("purged/box:old", "purged 4")
	untagged := s.digest("purged/box:old")
	s.pushBase("purged/box:old", "purged 5")
	s.pushBase("unpurged/box:old", "purged 6")
	g := newForge(t, s, "follower", "", "", map[string]string{"Dockerfile": "FROM " + s.host() + "/purged/box:2\n"})
	s.apply("follower", "context: "+g.url+"#main\nstep: {build: {images: ['follower:{{.Run.ID}}']}}\n")

	if r := s.kiln("run", "--cmd", "acr purge --filter 'purged/.*:old' --ago 0s", "/dev/null"); r.code != exitFailed || !strings.Contains(r.out+r.err, "--allow-purge") {
		t.Errorf("a purge by a run that may not: exit code %d\n%s%s", r.code, r.out, r.err)
	}
	const example = "../../examples/purge/"
	s.must("task", "create", "cleanup", "-c", "/dev/null", "-f", example+"acr-task.yaml", "--values", example+"values.yaml", "--schedule", "often:* * * * *",
		"--set", "filter=.*purged/box:^(2|old)$", "--set", "ago=0s", "--set", "keep=0")
	deadline := time.Now().Add(75 * time.Second)
	for len(s.decisionsOf("cleanup", "timer \"often\" was due")) == 0 && time.Now().Before(deadline) {
		waitABit(t)
	}
	s.must("task", "timer", "update", "cleanup", "--timer-name", "often", "--enabled", "false")
	log := s.must("logs", s.runsOf("cleanup", 1)[0].ID)
	for _, want := range []string{"Deleted: " + s.host() + "/purged/box:old", "Deleted: " + s.host() + "/purged/box@" + untagged, "Not purged: unpurged/box",
		"Number of deleted tags: 1", "Number of deleted manifests: 4"} { // two images, each with its provenance
		if !strings.Contains(log, want) {
			t.Errorf("the log of the purge does not say %q:\n%s", want, log)
		}
	}
	s.has(false, "purged/box", "old", untagged)
	s.has(true, "purged/box", "1", "2", pinned)
	s.has(true, "unpurged/box", "old")

	s.must("cancel", waits)
	waitFor(t, "the end of the run, after which nothing needs the image", func() bool {
		s.must("purge", "--filter", "purged/box:^$", "--ago", "0s", "--untagged")
		return s.kiln("manifest", "show", "purged/box@"+pinned).code != 0
	})
}

// digest returns what a tag names.
func (s *server) digest(image string) string {
	s.t.Helper()
	for _, line := range strings.Split(s.must("tag", "show", image), "\n") {
		if rest, ok := strings.CutPrefix(line, "Digest:"); ok {
			return strings.TrimSpace(rest)
		}
	}
	s.t.Fatalf("%s has no digest", image)
	return ""
}

// has wants manifests to be in a repository, or not.
func (s *server) has(there bool, repository string, references ...string) {
	s.t.Helper()
	for _, reference := range references {
		image := repository + ":" + reference
		if strings.HasPrefix(reference, "sha256:") {
			image = repository + "@" + reference
		}
		if r := s.kiln("manifest", "show", image); (r.code == 0) != there {
			s.t.Errorf("%s: exit code %d (%s), want it there: %t", image, r.code, r.err, there)
		}
	}
}
