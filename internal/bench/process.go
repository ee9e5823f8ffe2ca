package main

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	startWithin = 30 * time.Second
	stopWithin  = 20 * time.Second
)

// A process is a server that was started.
type process struct {
	name string
	cmd  *exec.Cmd
	log  output
	done chan struct{}
}

// start starts a server that lives until the lab is closed. It is out of reach of the terminal's
// interrupt, which is for this program, and ends if this program is killed.
func (l *lab) start(name string, cmd *exec.Cmd) (*process, error) {
	p := &process{name: name, cmd: cmd, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &p.log, &p.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	go func() { _ = cmd.Wait(); close(p.done) }()
	l.processes = append(l.processes, p)
	return p, nil
}

// await returns when ready does not fail any more, and an error with the server's last words if it
// never does.
func (p *process) await(ctx context.Context, ready func(context.Context) error) error {
	return p.awaitWithin(ctx, startWithin, ready)
}

func (p *process) awaitWithin(ctx context.Context, limit time.Duration, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s has exited: %s\n%s", p.name, p.cmd.ProcessState, p.log.tail())
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w\n%s", p.name, err, p.log.tail())
		case <-tick.C:
		}
	}
}

// stop asks the server to end, and kills it if it does not.
func (p *process) stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
		return nil
	case <-time.After(stopWithin):
	}
	_ = p.cmd.Process.Kill()
	<-p.done
	return fmt.Errorf("%s did not stop within %s and was killed\n%s", p.name, stopWithin, p.log.tail())
}

// output keeps what a process writes.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

const (
	keepOutput = 1 << 20
	showOutput = 2 << 10
)

// Write implements io.Writer. Of too much output the beginning is kept.
func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.buf.Len() < keepOutput {
		o.buf.Write(b)
	}
	return len(b), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

func (o *output) tail() string {
	s := o.String()
	return strings.TrimSpace(s[max(0, len(s)-showOutput):])
}
