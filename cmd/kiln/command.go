package main

import (
	"fmt"
	"math"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"kiln/internal/run"
)

// commandTask returns the task of --cmd: one cmd step. The command becomes a literal block, in which
// YAML changes nothing, so it reaches the template as it was typed.
func commandTask(cmd string, timeout time.Duration) (*run.TaskFileSpec, error) {
	cmd = strings.TrimSpace(cmd)
	try := "--cmd 'IMAGE [ARG]...'"
	switch {
	case cmd == "":
		return nil, usagef(try, "--cmd: no command")
	case len(cmd) > maxFile:
		return nil, usagef(try, "--cmd: longer than %d bytes", maxFile)
	case !utf8.ValidString(cmd) || strings.ContainsFunc(cmd, unprintable):
		return nil, usagef("-f FILE", "--cmd: must be one line without control characters")
	}
	var b strings.Builder
	b.WriteString("version: v1.1.0\nsteps:\n  - disableWorkingDirectoryOverride: true\n")
	if timeout > 0 {
		fmt.Fprintf(&b, "    timeout: %d\n", int64(math.Ceil(timeout.Seconds())))
	}
	fmt.Fprintf(&b, "    cmd: |-\n      %s\n", cmd)
	return &run.TaskFileSpec{Name: "--cmd", Content: []byte(b.String())}, nil
}

// unprintable reports whether YAML would take r as a line break or refuse it.
func unprintable(r rune) bool {
	return r != '\t' && unicode.IsControl(r) || r == '\u2028' || r == '\u2029' || r == '\ufeff' ||
		r == '\ufffe' || r == '\uffff'
}
