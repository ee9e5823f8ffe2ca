package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// deadly are the signals of which a process dies that has no handler for them, of those that are sent to have one
// end.
var deadly = []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGABRT, syscall.SIGALRM}

// forward passes signals on to a container until ctx ends, with one change. The first process of a
// container does not die of a signal for which it has no handler, as any other process would: the
// kernel spares it. So a SIGTERM becomes a SIGKILL for a process that SIGTERM would kill elsewhere, and
// nobody has to wait in vain for it to end. One that handles or ignores SIGTERM gets it. Others are treated alike.
func (g *guarded) forward(ctx context.Context, id string, in <-chan syscall.Signal, out chan<- syscall.Signal) {
	for {
		var sig syscall.Signal
		select {
		case sig = <-in:
		case <-ctx.Done():
			return
		}
		if slices.Contains(deadly, sig) && g.spared(ctx, id, sig) {
			sig = syscall.SIGKILL
		}
		select {
		case out <- sig:
		case <-ctx.Done():
			return
		}
	}
}

// spared reports whether the first process of a container survives a signal only for being the first.
func (g *guarded) spared(ctx context.Context, id string, sig syscall.Signal) bool {
	ctx, cancel := context.WithTimeout(ctx, deleteTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, g.runc, "state", id).Output()
	var state struct{ Pid int }
	if err == nil {
		err = json.Unmarshal(out, &state)
	}
	var status []byte
	if err == nil {
		status, err = os.ReadFile(fmt.Sprintf("/proc/%d/status", state.Pid))
	}
	return err == nil && !handles(status, sig) // if it is not known, it gets what was sent
}

// handles reports whether a process with that /proc/PID/status catches or ignores sig.
func handles(status []byte, sig syscall.Signal) bool {
	for line := range bytes.Lines(status) {
		name, value, _ := strings.Cut(string(line), ":")
		if name != "SigIgn" && name != "SigCgt" {
			continue
		}
		mask, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err != nil || mask&(1<<(sig-1)) != 0 {
			return true
		}
	}
	return false
}
