package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"kiln/internal/apiclient"
	"kiln/internal/run"
	"kiln/worker"
)

// checkIdle looks for what runs have left in a server that executes none now. Some of it goes a moment
// after the run: the network, which the next step usually wants.
func checkIdle(t *testing.T, s *server) {
	t.Helper()
	var left []string
	waitUntil(t, 2*time.Minute, func() bool { left = leftovers(t, s); return len(left) == 0 }, func() string {
		return "left of the runs:\n" + strings.Join(left, "\n")
	})
}

// leftovers describes everything that runs use and must not leave.
func leftovers(t *testing.T, s *server) []string {
	t.Helper()
	var left []string
	for dir, stays := range map[string]func(os.DirEntry) bool{
		"buildkit/worker/executor":    func(e os.DirEntry) bool { return !e.IsDir() }, // the nameservers' file
		"buildkit/worker/cachemounts": func(os.DirEntry) bool { return false },
		"buildkit/tmp":                func(e os.DirEntry) bool { return e.Name() == "bin" },
		"registry/uploads":            func(os.DirEntry) bool { return false },
		"archives":                    func(e os.DirEntry) bool { return !strings.HasPrefix(e.Name(), "context") },
		"git":                         func(e os.DirEntry) bool { return !strings.Contains(e.Name(), "tmp") },
	} {
		left = append(left, entries(filepath.Join(s.data, dir), stays)...)
	}
	left = append(left, entries(s.tmp, func(e os.DirEntry) bool { return strings.HasPrefix(e.Name(), "kiln-") && e.IsDir() })...)
	left = append(left, containersOf(t, s)...)
	left = append(left, mountsBelow(t, s.data)...)
	left = append(left, networksOf(s)...)
	for _, r := range s.cache("type==exec.cachemount").Records {
		left = append(left, fmt.Sprintf("cache mount %+v", r))
	}
	return append(left, stagedTags(t, s)...)
}

// entries are what is in dir and may not stay.
func entries(dir string, stays func(os.DirEntry) bool) []string {
	all, _ := os.ReadDir(dir) // one that is not there has none
	var left []string
	for _, e := range all {
		if !stays(e) {
			left = append(left, "file "+filepath.Join(dir, e.Name()))
		}
	}
	return left
}

// containersOf finds the containers of a server's daemon: those the runtime knows, processes of the runtime,
// and processes whose root is mounted from the server's data.
func containersOf(t *testing.T, s *server) []string {
	t.Helper()
	var left []string
	states, _ := filepath.Glob("/run/runc/*/state.json")
	for _, file := range states {
		if b, err := os.ReadFile(file); err == nil && bytes.Contains(b, []byte(s.data+"/")) {
			left = append(left, "container "+file)
		}
	}
	ours, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	own := []int{s.cmd.Process.Pid, s.daemon()}
	eachProcess(t, func(pid, _ int, cmdline string) {
		if slices.Contains(own, pid) {
			return
		}
		if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid)); err == nil && ns != ours {
			if mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid)); err == nil && bytes.Contains(mounts, []byte(s.data+"/")) {
				left = append(left, fmt.Sprintf("process %d in a container: %s", pid, cmdline))
			}
		} else if strings.Contains(cmdline, s.data+"/buildkit") {
			left = append(left, fmt.Sprintf("process %d: %s", pid, cmdline))
		}
	})
	return left
}

// mountsBelow are the mounts in a directory.
func mountsBelow(t *testing.T, dir string) []string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, dir+"/") {
			left = append(left, "mount "+strings.TrimSpace(line))
		}
	}
	return left
}

// networksOf are the networks of runs that a server's daemon has on the host. The one of all RUN steps stays,
// with some interfaces to use again: their ports are isolated from each other, which those of no run are.
func networksOf(s *server) []string {
	sum := sha256.Sum256([]byte(filepath.Join(s.data, "buildkit")))
	id := hex.EncodeToString(sum[:4])
	var left, kept []string
	bridges, _ := filepath.Glob("/sys/class/net/kln" + id + "-*")
	for _, bridge := range bridges {
		ports, _ := filepath.Glob(bridge + "/brif/*/isolated")
		isolated := func(file string) bool {
			b, err := os.ReadFile(file)
			return err == nil && strings.TrimSpace(string(b)) == "1"
		}
		if len(kept) > 0 || len(ports) > 16 || slices.ContainsFunc(ports, func(f string) bool { return !isolated(f) }) {
			left = append(left, fmt.Sprintf("network %s with %d ports", bridge, len(ports)))
			continue
		}
		kept = append(kept, bridge)
	}
	all, _ := filepath.Glob("/sys/class/net/klv" + id + "*")
	for _, port := range all {
		if master, err := os.Readlink(port + "/master"); err == nil && (len(kept) == 0 || filepath.Base(master) != filepath.Base(kept[0])) {
			left = append(left, "interface "+port+" of "+master)
		}
	}
	return left
}

// stagedTags are the tags in the repositories where builds stage their images, by digest alone.
func stagedTags(t *testing.T, s *server) []string {
	t.Helper()
	host, err := name.NewRegistry(s.host(), name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	token, err := apiclient.ReadToken(s.data)
	if err != nil {
		t.Fatal(err)
	}
	auth := remote.WithAuth(&authn.Basic{Username: "kiln", Password: token})
	repos, err := remote.Catalog(context.Background(), host, auth)
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, repo := range repos {
		if !strings.HasPrefix(repo, worker.StagingRoot) {
			continue
		}
		tags, err := remote.List(host.Repo(repo), auth)
		if err != nil {
			t.Fatal(err)
		}
		for _, tag := range tags {
			left = append(left, "staging tag "+repo+":"+tag)
		}
	}
	return left
}

// checkEnded tries to publish in the name of a run that has ended: whoever still works for it is refused.
func checkEnded(t *testing.T, s *server, r run.Run) {
	t.Helper()
	const unknown = "sha256:" + "0000000000000000000000000000000000000000000000000000000000000000"
	waitFor(t, "the registry to refuse what run "+r.ID+" publishes", func() bool {
		return publish(t, s, r.ID, r.Attempt, unknown) == http.StatusConflict
	})
}
