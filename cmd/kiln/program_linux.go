package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// maxMaps is how many bytes of the list of the process's mappings are read.
const maxMaps = 1 << 20

// dropProgram takes the program's own code and constants out of the process's memory: those that a start has
// needed and nothing else would stay for ever. What is used comes back from the system's file cache, some
// microseconds a piece. Nothing is lost: these mappings are read-only, and they are the program file's.
func dropProgram() {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return // it is only memory
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return
	}
	defer f.Close()
	lines := bufio.NewScanner(io.LimitReader(f, maxMaps))
	for lines.Scan() {
		var from, to uintptr
		var rights string
		// from-to rights offset device inode path
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &rights); err != nil {
			continue
		}
		if (rights == "r-xp" || rights == "r--p") && strings.HasSuffix(lines.Text(), " "+self) {
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTNEED)
		}
	}
}
