package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"kiln/internal/bus"
	kstore "kiln/internal/store"
)

// A depot is the message store of a server that does not run, opened by this process.
type depot struct {
	*bus.Bus
	store *kstore.Store
	close func()
}

// openDepot opens the message store below a server's data directory. Relaxed is faster; what it has
// written is on disk when it is closed.
func openDepot(ctx context.Context, data string, relaxed bool) (*depot, error) {
	log := slog.New(slog.DiscardHandler)
	s, err := bus.StartServer(bus.ServerConfig{Dir: filepath.Join(data, "jetstream"), Relaxed: relaxed, Log: log})
	if err != nil {
		return nil, err
	}
	nc, err := s.Connect("bench")
	if err != nil {
		s.Shutdown()
		return nil, err
	}
	d := &depot{close: func() { nc.Close(); s.Shutdown() }}
	if d.Bus, err = bus.Open(ctx, nc, log); err == nil {
		d.store, err = kstore.Open(ctx, d.JetStream(), time.Minute)
	}
	if err != nil {
		d.close()
	}
	return d, err
}

// each hands over the messages of a stream, oldest first.
func (d *depot) each(ctx context.Context, stream, filter string, handle func(m jetstream.Msg, at time.Time) error) error {
	c, err := d.JetStream().OrderedConsumer(ctx, stream, jetstream.OrderedConsumerConfig{FilterSubjects: []string{filter}})
	if err != nil {
		return err
	}
	info, err := c.Info(ctx)
	if err != nil {
		return err
	}
	for left := info.NumPending; left > 0; {
		batch, err := c.Fetch(int(min(left, 500)), jetstream.FetchMaxWait(10*time.Second))
		if err != nil {
			return err
		}
		got := uint64(0)
		for m := range batch.Messages() {
			got++
			meta, err := m.Metadata()
			if err == nil {
				err = handle(m, meta.Timestamp)
			}
			if err != nil {
				return err
			}
		}
		if err := batch.Error(); err != nil {
			return err
		}
		if got == 0 {
			return fmt.Errorf("stream %s: %d messages are missing", stream, left)
		}
		left -= min(left, got)
	}
	return nil
}

// settled waits for acknowledgements.
func settled(ctx context.Context, acks []bus.Ack) error {
	for _, a := range acks {
		select {
		case <-a.Ok():
		case err := <-a.Err():
			return bus.MapError(err)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// kill ends a server as a power failure would. What it has stored stays.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

const (
	quietFor   = 2 * time.Second
	quietShare = 0.1 // of a processor
)

// quiet waits until a server has nothing to do.
func (p *process) quiet(ctx context.Context) error {
	name := fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid)
	before, err := readStat(name)
	if err != nil {
		return err
	}
	for {
		if err := pause(ctx, quietFor); err != nil {
			return fmt.Errorf("%s does not come to rest: %w", p.name, err)
		}
		now, err := readStat(name)
		if err != nil {
			return errors.Join(fmt.Errorf("%s has ended:\n%s", p.name, p.log.tail()), err)
		}
		if (now.cpu - before.cpu).Seconds() < quietShare*quietFor.Seconds() {
			return nil
		}
		before = now
	}
}

// memory returns the resident memory of a process and the most that it has had, in MB.
func (p *process) memory() (now, peak float64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(b)) {
		name, rest, _ := strings.Cut(line, ":")
		if name != "VmRSS" && name != "VmHWM" {
			continue
		}
		kb, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 64)
		if err != nil {
			return 0, 0, fmt.Errorf("%s: %w", line, err)
		}
		if mb := kb * 1024 / 1e6; name == "VmRSS" {
			now = mb
		} else {
			peak = mb
		}
	}
	return now, peak, nil
}

// forgetPeak has the most memory counted from now on.
func (p *process) forgetPeak() error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p.cmd.Process.Pid), []byte("5"), 0)
}
