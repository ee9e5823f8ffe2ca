package buildkit

import (
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"kiln/internal/solve"
)

// A course is how a process begins and how it is ended.
type course struct {
	started func() // may be nil
	signal  syscall.Signal
	grace   time.Duration // between the signal and SIGKILL
}

// maxStopTimeout bounds how long a process may take to end: who cancels a run waits for it.
const maxStopTimeout = 5 * time.Minute

// grace returns how long the process of c may take to end.
func (s *runSession) grace(c solve.Container) time.Duration {
	if c.Options.StopTimeout == 0 {
		return s.client.cfg.StopGrace
	}
	return min(max(c.Options.StopTimeout, 0), maxStopTimeout)
}

// stopSignal returns what the process of c gets when it is to end.
func stopSignal(c solve.Container, img *image) syscall.Signal {
	for _, name := range []string{c.Options.StopSignal, img.config.StopSignal} {
		if sig, ok := signalOf(name); ok {
			return sig
		}
	}
	return syscall.SIGTERM
}

// The signals between which those for programs' own purposes are, as the C library counts them.
const (
	sigRTMin = syscall.Signal(34)
	sigRTMax = syscall.Signal(64)
)

// signalOf understands SIGINT, int, 2, SIGRTMIN+3 and SIGRTMAX-3.
func signalOf(name string) (syscall.Signal, bool) {
	if n, err := strconv.Atoi(name); err == nil {
		return syscall.Signal(n), n > 0 && n <= int(sigRTMax)
	}
	name = "SIG" + strings.TrimPrefix(strings.ToUpper(name), "SIG")
	if sig := unix.SignalNum(name); sig != 0 {
		return sig, true
	}
	for prefix, base := range map[string]syscall.Signal{"SIGRTMIN": sigRTMin, "SIGRTMAX": sigRTMax} {
		offset, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		n, err := strconv.Atoi(offset)
		sig := base + syscall.Signal(n)
		return sig, (err == nil || offset == "") && sig >= sigRTMin && sig <= sigRTMax
	}
	return 0, false
}
