//go:build soak

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// TestSoakCacheLeavesRoom has a disk of its own fill up with a build's cache, which goes again.
func TestSoakCacheLeavesRoom(t *testing.T) {
	t.Parallel()
	const size, room = 256 << 20, 160 << 20
	disk, err := os.MkdirTemp("", "kiln-disk-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(disk) })
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(disk, 0); err != nil {
			t.Errorf("unmount %s: %v", disk, err)
		}
	})
	free := func() int64 {
		var st syscall.Statfs_t
		if err := syscall.Statfs(disk, &st); err != nil {
			t.Fatal(err)
		}
		return int64(st.Bavail) * st.Bsize
	}
	s := startServerAt(t, filepath.Join(disk, "data"), "--cache-max", "250MB", "--cache-keep", "1MB", "--cache-min-free", fmt.Sprint(room/1_000_000, "MB"))
	s.must("build", files(t, map[string]string{"Dockerfile": base + "RUN head -c 120000000 /dev/zero > /big\n"}))
	if free() > room {
		t.Errorf("with the build, %d bytes are free: it is too small for this test", free())
	}
	// BuildKit looks a minute after a build.
	waitUntil(t, 5*time.Minute, func() bool { return free() >= room }, func() string {
		return fmt.Sprintf("%d bytes are free, want %d; the cache has %+v", free(), room, s.cache())
	})
}
