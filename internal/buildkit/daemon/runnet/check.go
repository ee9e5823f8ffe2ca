package runnet

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"

	"github.com/moby/buildkit/util/network"
	"golang.org/x/sys/unix"
)

// Check tells whether this host can make networks, by making one in a namespace of its own. It
// leaves nothing behind.
func Check(ctx context.Context, dir string) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("network namespace: %w", err)
			return
		}
		done <- check(ctx, dir)
	}()
	return <-done
}

func check(ctx context.Context, dir string) error {
	p, err := New(Config{ID: "00000000", Dir: dir, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	for _, hostname := range []string{"", "step.run"} {
		var ns network.Namespace
		if ns, err = p.New(ctx, hostname, network.NamespaceOptions{}); err != nil {
			break
		}
		if err = ns.Close(); err != nil {
			break
		}
	}
	if err2 := p.Close(); err == nil {
		err = err2
	}
	return err
}
