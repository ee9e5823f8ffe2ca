package supervise

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	"github.com/moby/sys/userns"
	"golang.org/x/sys/unix"

	"kiln/internal/buildkit/daemon"
	"kiln/internal/buildkit/daemon/runnet"
)

const (
	// minFree is the free disk space that a build cache needs to be of any use.
	minFree = 2 << 30
	// minState is the free space of a tmpfs for the databases of a large cache.
	minState     = 256 << 20
	checkTimeout = 20 * time.Second
)

// A Problem is the result of one check of the host.
type Problem struct {
	Name   string // of the check
	OK     bool   // builds work as far as this is concerned
	Detail string // what was found
	Remedy string // what to do; empty if OK
}

// Check finds out whether a daemon of that configuration would work on this host. It changes nothing.
// The results are in a fixed order, one for each check.
func Check(ctx context.Context, cfg daemon.Config) []Problem {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	dir := existing(cfg.Root)
	return []Problem{
		checkRoot(),
		checkRunc(ctx, cfg.Runc),
		checkCgroups(),
		checkOverlay(dir),
		checkForwarding(),
		checkNetwork(ctx),
		checkSpace(dir),
		checkTmpfs(cfg.StateTmpfs),
	}
}

func ok(name, detail string) Problem { return Problem{Name: name, OK: true, Detail: detail} }

// existing returns the closest directory of path that exists.
func existing(path string) string {
	for path != "/" && path != "." {
		if fi, err := os.Stat(path); err == nil && fi.IsDir() {
			return path
		}
		path = filepath.Dir(path)
	}
	return path
}

func checkRoot() Problem {
	const name = "root"
	if uid := os.Geteuid(); uid != 0 {
		return Problem{Name: name, Detail: fmt.Sprintf("running as user %d", uid), Remedy: "run kiln as root, or use a remote buildkitd"}
	}
	if userns.RunningInUserNS() {
		return Problem{Name: name, Detail: "running in a user namespace", Remedy: "run kiln outside of it, or use a remote buildkitd"}
	}
	return ok(name, "running as root")
}

var versionLine = regexp.MustCompile(`(?m)^(\w+) version (\d+)\.(\d+)\S*`)

func checkRunc(ctx context.Context, program string) Problem {
	const name, remedy = "runc", "apt-get install runc"
	if program == "" {
		program = "runc"
	}
	path, err := exec.LookPath(program)
	if err != nil {
		return Problem{Name: name, Detail: err.Error(), Remedy: remedy}
	}
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return Problem{Name: name, Detail: fmt.Sprintf("%s --version: %v", path, err), Remedy: remedy}
	}
	detail, err := judgeRunc(string(out))
	if err != nil {
		return Problem{Name: name, Detail: fmt.Sprintf("%s: %v", path, err), Remedy: remedy + " (1.1 or newer)"}
	}
	return ok(name, path+": "+detail)
}

// judgeRunc tells from its version whether a container runtime can be used.
func judgeRunc(version string) (detail string, err error) {
	m := versionLine.FindStringSubmatch(version)
	if m == nil {
		return "", errors.New("says no version")
	}
	if m[1] != "runc" {
		return "", fmt.Errorf("is %s, which lacks options that BuildKit needs", m[1])
	}
	major, _ := strconv.Atoi(m[2]) // digits, by the pattern
	minor, _ := strconv.Atoi(m[3])
	if major < 1 || major == 1 && minor < 1 {
		return "", fmt.Errorf("%s is too old", m[0])
	}
	if !strings.Contains(version, "libseccomp") {
		return "", fmt.Errorf("%s is built without seccomp", m[0])
	}
	return m[0], nil
}

func checkCgroups() Problem {
	const name = "cgroups"
	var fsys unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &fsys); err != nil {
		return Problem{Name: name, Detail: "/sys/fs/cgroup: " + err.Error(), Remedy: "mount -t cgroup2 none /sys/fs/cgroup"}
	}
	readOnly := fsys.Flags&unix.ST_RDONLY != 0
	if fsys.Type == unix.CGROUP2_SUPER_MAGIC {
		if readOnly {
			return Problem{Name: name, Detail: "/sys/fs/cgroup is read-only", Remedy: "run kiln's container with --privileged"}
		}
		return ok(name, "version 2")
	}
	if _, err := os.Stat("/sys/fs/cgroup/devices/cgroup.procs"); errors.Is(err, fs.ErrNotExist) {
		return Problem{Name: name, Detail: "no cgroup hierarchy at /sys/fs/cgroup", Remedy: "apt-get install cgroupfs-mount"}
	}
	return ok(name, "version 1")
}

func checkOverlay(dir string) Problem {
	const name = "overlayfs"
	if err := overlayutils.Supported(dir); err != nil {
		return Problem{Name: name, Detail: fmt.Sprintf("%s: %v", dir, err),
			Remedy: "put the data directory on ext4 or xfs; without overlayfs layers are copied, which is slow and takes space"}
	}
	return ok(name, "works at "+dir)
}

func checkForwarding() Problem {
	const name = "ip_forward"
	on, err := runnet.Forwarding()
	if err != nil {
		return Problem{Name: name, Detail: err.Error(), Remedy: "mount /proc"}
	}
	if on {
		return ok(name, "on")
	}
	if unix.Access("/proc/sys/net/ipv4/ip_forward", unix.W_OK) != nil {
		return Problem{Name: name, Detail: "off, and cannot be switched on from here", Remedy: "sysctl -w net.ipv4.ip_forward=1"}
	}
	return ok(name, "off, the build daemon will switch it on")
}

func checkNetwork(ctx context.Context) Problem {
	const name = "network"
	dir, err := os.MkdirTemp("", "kiln-check-")
	if err != nil {
		return Problem{Name: name, Detail: err.Error(), Remedy: "make " + os.TempDir() + " writable"}
	}
	err = errors.Join(runnet.Check(ctx, dir), os.RemoveAll(dir))
	if err != nil {
		return Problem{Name: name, Detail: err.Error(),
			Remedy: "load the kernel modules bridge, veth, nf_tables, nft_masq, nft_ct and nf_conntrack (Linux 5.10 or newer)"}
	}
	return ok(name, "bridges and nftables work")
}

func checkSpace(dir string) Problem {
	const name = "disk space"
	free, err := freeSpace(dir)
	if err != nil {
		return Problem{Name: name, Detail: err.Error(), Remedy: "choose another data directory"}
	}
	detail := fmt.Sprintf("%.1f GB free at %s", float64(free)/1e9, dir)
	if free < minFree {
		return Problem{Name: name, Detail: detail, Remedy: "free some, at least 2 GB, or choose another data directory"}
	}
	return ok(name, detail)
}

func checkTmpfs(dir string) Problem {
	const name = "tmpfs"
	if dir == "" {
		dir = StateTmpfs()
	}
	if dir == "" || !isTmpfs(existing(dir)) {
		return Problem{Name: name, Detail: "no tmpfs with 256 MB free: cached builds wait for the disk",
			Remedy: "mount a tmpfs at /run, or run kiln's container with --tmpfs /run:size=512m"}
	}
	return ok(name, existing(dir))
}

// StateTmpfs returns a directory for daemon.Config.StateTmpfs, "" if this host has no suitable tmpfs.
func StateTmpfs() string {
	for _, dir := range []string{"/run", "/dev/shm"} {
		if free, err := freeSpace(dir); err == nil && free >= minState && isTmpfs(dir) {
			return filepath.Join(dir, "kiln-state")
		}
	}
	return ""
}

func isTmpfs(dir string) bool {
	var fsys unix.Statfs_t
	return unix.Statfs(dir, &fsys) == nil && fsys.Type == unix.TMPFS_MAGIC
}

// freeSpace is what a user without privileges may still write.
func freeSpace(dir string) (uint64, error) {
	var fsys unix.Statfs_t
	if err := unix.Statfs(dir, &fsys); err != nil {
		return 0, fmt.Errorf("%s: %w", dir, err)
	}
	return fsys.Bavail * uint64(fsys.Bsize), nil
}
