package supervise

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"syscall"
	"time"

	"kiln/internal/buildkit/daemon"
)

// A child is one execution of the daemon.
type child struct {
	cmd    *exec.Cmd
	alive  io.WriteCloser // its standard input; closing it tells the daemon to stop
	log    *logReader
	exited chan struct{}
	err    error // how it ended; set before exited is closed
}

// startChild executes the daemon and hands its configuration over.
func startChild(cfg *Config) (*child, error) {
	line, err := json.Marshal(cfg.Daemon)
	if err != nil {
		return nil, fmt.Errorf("configuration of the build daemon: %w", err)
	}
	cmd := exec.Command(cfg.Executable, cfg.Args...)
	cmd.Env = cfg.Env
	// A terminal's signals are for the supervisor, which stops the daemon in good order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c := &child{cmd: cmd, log: &logReader{log: cfg.Logger}, exited: make(chan struct{})}
	cmd.Stderr = c.log
	cmd.Stdout = c.log
	// What the daemon has started may outlive it and keep the pipe of its output open.
	cmd.WaitDelay = time.Second
	if c.alive, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("build daemon: %w", err)
	}
	go func() {
		defer close(c.exited)
		c.err = cmd.Wait()
		c.log.flush()
	}()
	if _, err := c.alive.Write(append(line, '\n')); err != nil && !errors.Is(err, syscall.EPIPE) {
		return nil, errors.Join(fmt.Errorf("configuration of the build daemon: %w", err), c.stop(cfg))
	}
	return c, nil // a broken pipe: it has died, and exited tells why
}

// stop ends the child: in good order, or by force when the grace period is over. It returns when the
// child is gone. A child that ended by itself before is not an error.
func (c *child) stop(cfg *Config) error {
	select {
	case <-c.exited:
		return nil
	default:
	}
	_ = c.cmd.Process.Signal(syscall.SIGTERM) // fails if it is ending by itself
	_ = c.alive.Close()
	select {
	case <-c.exited:
		if c.err == nil || c.terminated() {
			return nil
		}
		return c.failure()
	case <-time.After(cfg.Grace):
	}
	cfg.Logger.Warn("build daemon killed: it did not stop in time", "grace", cfg.Grace)
	_ = c.cmd.Process.Kill()
	<-c.exited
	ctx, cancel := context.WithTimeout(context.Background(), sweepTimeout)
	defer cancel()
	if err := daemon.Sweep(ctx, cfg.Daemon); err != nil {
		return fmt.Errorf("build daemon killed, its containers remain: %w", err)
	}
	return nil
}

// terminated tells whether the child was so young that SIGTERM ended it.
func (c *child) terminated() bool {
	status, ok := c.cmd.ProcessState.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGTERM
}

// failure says how the child ended, in one line with its last words.
func (c *child) failure() error {
	err := c.err
	if err == nil {
		err = errors.New("exited without being asked to")
	}
	if words := c.log.lastWords(); words != "" {
		return fmt.Errorf("build daemon: %w: %s", err, words)
	}
	return fmt.Errorf("build daemon: %w", err)
}
