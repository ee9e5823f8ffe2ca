package daemon

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"
)

const (
	// maxConfig bounds the configuration that Child reads.
	maxConfig = 1 << 20
	// orphanTimeout is how long a daemon may take to stop after its parent has ended. Nobody else
	// would end one that hangs.
	orphanTimeout = time.Minute
)

// errParentGone is why a daemon stops whose parent has ended.
var errParentGone = errors.New("the supervising process has ended")

// Child is the main function of a supervised daemon's process. It reads one line from parent, the
// Config as JSON, and serves until ctx ends or parent does: the supervising process keeps its end of
// that pipe open for as long as it lives, and never writes to it again. A daemon that does not stop
// within a minute of its parent's end ends the process.
//
// The supervising process reads log as lines of JSON, as slog.JSONHandler writes them.
func Child(ctx context.Context, parent io.Reader, log *slog.Logger) error {
	in := bufio.NewReaderSize(io.LimitReader(parent, maxConfig), 4096)
	line, err := in.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("configuration: one line of JSON expected on standard input: %w", err)
	}
	var cfg Config
	if err := json.Unmarshal(line, &cfg); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	cfg.Logger = log
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go func() {
		// Not waited for: this read ends with the process at the latest.
		_, _ = io.Copy(io.Discard, parent)
		stop(errParentGone)
		time.AfterFunc(orphanTimeout, func() { os.Exit(1) })
	}()
	return Serve(ctx, cfg)
}
