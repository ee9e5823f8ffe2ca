package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"kiln/internal/bus"
	"kiln/internal/store"
)

// maxKey is how large a key may be.
const maxKey = 64 << 10

// Options say what is in a backup.
type Options struct {
	Version string   // of the program that makes it
	Dir     string   // where the keys are
	Keys    []string // their files' names; those that do not exist are left out
	Logs    bool
}

// order returns the streams of a backup, what refers to something before what it refers to: runs to the decisions
// that have made them, those to events. Deliveries that are not events yet come first, because they leave their
// stream when they are. Logs come last, and runs refer to them.
func order() []string {
	runs := "KV_" + store.BucketRuns
	list := []string{bus.StreamIntake, runs, bus.StreamReports, bus.StreamTimers, bus.StreamDecisions, bus.StreamEvents}
	for _, s := range store.Streams() {
		if s != runs {
			list = append(list, s)
		}
	}
	return append(list, bus.StreamNotify, bus.StreamDelivered, bus.StreamAudit)
}

// Streams returns the names of all streams that a restored server begins with.
func Streams() []string { return append(order(), bus.StreamLogs) }

// Write writes a backup of the state behind b. If it returns an error after it has begun to write, the backup says
// that it was given up.
func Write(ctx context.Context, b *bus.Bus, to io.Writer, opt Options) error {
	places, err := b.Places(ctx, order()...)
	if err != nil {
		return err
	}
	w, err := newWriter(to, Header{Version: opt.Version, Created: time.Now().UTC(), Keys: len(opt.Keys) > 0, Logs: opt.Logs, Places: places})
	if err != nil {
		return err
	}
	err = w.keys(opt)
	for _, stream := range order() {
		if err == nil {
			err = w.stream(ctx, b, stream)
		}
	}
	if err == nil && opt.Logs {
		err = w.stream(ctx, b, bus.StreamLogs)
	}
	if err == nil && !opt.Logs {
		err = w.end(ctx, b, bus.StreamLogs)
	}
	if err != nil {
		_ = w.frame(frameFailed, []byte(err.Error())) // without it, the end is missing all the same
		return err
	}
	return w.close()
}

func (w *writer) keys(opt Options) error {
	for _, name := range opt.Keys {
		path := filepath.Join(opt.Dir, name)
		fi, err := os.Stat(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil && fi.Size() > maxKey {
			err = fmt.Errorf("%s: %d bytes are too many for a key", path, fi.Size())
		}
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := w.value(frameKey, key{Name: name, Data: data}); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) stream(ctx context.Context, b *bus.Bus, name string) error {
	begun := false
	err := b.Snapshot(ctx, name, func(s bus.Snapshot) error { begun = true; return w.value(frameStream, s) },
		func(piece []byte) error { return w.frame(framePiece, piece) })
	if errors.Is(err, bus.ErrNone) && !begun {
		return nil
	}
	if err != nil {
		return err
	}
	return w.frame(frameEnd, nil)
}

// end notes where a stream ends.
func (w *writer) end(ctx context.Context, b *bus.Bus, name string) error {
	s, err := b.Describe(ctx, name)
	if errors.Is(err, bus.ErrNone) {
		return nil
	}
	if err != nil {
		return err
	}
	return w.value(frameEmpty, s)
}

// known reports whether a backup may hold a stream.
func known(stream string) bool { return slices.Contains(Streams(), stream) }
