package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/spf13/cobra"
)

const (
	// maxForwarded is how many connections are passed on at once. More wait.
	maxForwarded = 256
	// forwardDial bounds the wait for the other side.
	forwardDial = 10 * time.Second
)

func newForwardCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "forward LISTEN TARGET",
		Short: "Pass connections on, for a BuildKit daemon that the server is elsewhere for",
		Long: "Listen at an address, HOST:PORT, and pass each connection on to another. A BuildKit daemon reaches the registry\n" +
			"under its canonical name; where that is localhost:7070 and the server is not on the daemon's host, or not in its\n" +
			"container, this beside the daemon makes the name true. The target's name is resolved for each connection.",
		Example: "  kiln forward localhost:7070 server:7070",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, a := range args {
				if _, _, err := net.SplitHostPort(a); err != nil {
					return usagef("kiln forward localhost:7070 server:7070", "%q: want HOST:PORT", a)
				}
			}
			var lc net.ListenConfig
			l, err := lc.Listen(cmd.Context(), "tcp", args[0])
			if err != nil {
				return usagef("", "listen on %s: %w", args[0], err)
			}
			return forward(cmd.Context(), l, args[1], slog.New(slog.NewTextHandler(c.Err, nil)))
		},
	}
}

// forward passes the connections of l on to target until ctx ends, and then closes all.
func forward(ctx context.Context, l net.Listener, target string, log *slog.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	var open sync.WaitGroup
	defer open.Wait()
	defer cancel()
	slots := make(chan struct{}, maxForwarded)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept: %w", err)
		}
		open.Go(func() {
			defer func() { <-slots }()
			if err := passOn(ctx, conn, target); err != nil && ctx.Err() == nil {
				log.Warn("connection not passed on", "target", target, "err", err)
			}
		})
	}
}

// passOn connects a connection with target until both sides have said all, or ctx ends. It closes it.
func passOn(ctx context.Context, conn net.Conn, target string) error {
	defer conn.Close()
	there, err := (&net.Dialer{Timeout: forwardDial}).DialContext(ctx, "tcp", target)
	if err != nil {
		return err
	}
	defer there.Close()
	stop := context.AfterFunc(ctx, func() { _, _ = conn.Close(), there.Close() })
	defer stop()
	var back sync.WaitGroup
	back.Go(func() { pump(conn, there) })
	pump(there, conn)
	back.Wait()
	return nil
}

// pump copies until the end of what from says, and lets to know of the end. If one of them is gone, so are both.
func pump(to, from net.Conn) {
	_, err := io.Copy(to, from)
	if half, ok := to.(*net.TCPConn); ok && err == nil {
		err = half.CloseWrite()
	}
	if err != nil && !errors.Is(err, net.ErrClosed) {
		_, _ = to.Close(), from.Close()
	}
}
