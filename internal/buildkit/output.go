package buildkit

import (
	"bytes"
	"strings"
	"time"

	"kiln/internal/buildkit/progress"
	"kiln/internal/event"
	"kiln/internal/solve"
)

const (
	// notFoundCode is what shells and docker answer for a program that cannot be executed.
	notFoundCode = 127
	// killedCode is the exit code of a process that got SIGKILL. If it was for want of memory the
	// daemon adds the system's words.
	killedCode = 137
	// runtimeFailure is how the container runtime begins its last words when there was no process
	// to have any.
	runtimeFailure = "runc run failed: unable to start container process: "
	maxHead        = 1 << 10
)

// An output forwards one stream of a container to a step's log, as it comes.
type output struct {
	stream int
	log    solve.LogFunc
	head   []byte // the first bytes, at most maxHead
}

func (o *output) Write(p []byte) (int, error) {
	if room := maxHead - len(o.head); room > 0 {
		o.head = append(o.head, p[:min(room, len(p))]...)
	}
	o.log(progress.AppendData(nil, event.LogEntry{Time: time.Now(), Stream: o.stream}, p)...)
	return len(p), nil
}

func (o *output) Close() error { return nil }

// startFailure returns why the container runtime could not start the process, "" if it could. It
// must be called after the process has ended.
func (o *output) startFailure() string {
	reason, failed := strings.CutPrefix(string(o.head), runtimeFailure)
	if !failed {
		return ""
	}
	return oneLine(reason)
}

// wrongFormat reports whether the process's program is one that the kernel cannot execute.
func (o *output) wrongFormat() bool {
	return bytes.Contains(bytes.ToLower(o.head), []byte("exec format error"))
}
