package supervise_test

import (
	"crypto/sha256"
	"encoding/hex"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// alive tells whether a process is there and not merely waiting to be reaped.
func alive(pid int) bool {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil || syscall.Kill(pid, 0) != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return !strings.HasPrefix(rest, "Z")
}

// processes returns the IDs of the processes of all containers with that command line.
func processes(args ...string) (pids []int) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	for _, dir := range dirs {
		b, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil {
			continue // it has ended
		}
		if slices.Equal(strings.Split(strings.TrimRight(string(b), "\x00"), "\x00"), args) {
			pid, _ := strconv.Atoi(filepath.Base(dir))
			pids = append(pids, pid)
		}
	}
	return pids
}

// traces lists what the daemon of a root has in the kernel.
func traces(t *testing.T, root string) string {
	t.Helper()
	var found []string
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); strings.HasPrefix(f[4], root+"/") {
			found = append(found, "mount "+f[4])
		}
	}
	sum := sha256.Sum256([]byte(root))
	id := hex.EncodeToString(sum[:4])
	links, err := net.Interfaces()
	must(t, err)
	for _, l := range links {
		if strings.Contains(l.Name, id) {
			found = append(found, "link "+l.Name)
		}
	}
	states, err := filepath.Glob("/run/runc/*/state.json")
	must(t, err)
	for _, file := range states {
		if b, err := os.ReadFile(file); err == nil && strings.Contains(string(b), root) {
			found = append(found, "container "+filepath.Base(filepath.Dir(file)))
		}
	}
	return strings.Join(found, ", ")
}
