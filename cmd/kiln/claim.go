package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/store"
)

// theRegistry is the key of the record of the process that has the registry.
const theRegistry = "registry"

// registryRecord is what this process tells others of its registry.
func (n *node) registryRecord() event.Registry {
	r := event.Registry{Owner: n.registry.UUID(), Place: n.place(), Started: n.started, URL: n.cfg.advertise, Host: n.host, Aliases: n.aliases}
	if r.URL == "" {
		r.URL = n.url
	}
	if n.cert != nil {
		r.Certificate = n.cert.trusted()
	}
	return r
}

// place tells the data directory from copies of it.
func (n *node) place() string {
	host, _ := os.Hostname()
	st, err := os.Stat(n.cfg.data)
	if err != nil {
		return ""
	}
	file, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	return event.Hash(fmt.Sprintf("%s %d %d", host, file.Dev, file.Ino))
}

// supersedes reports whether a claim is taken over at once. The own one is; and that of a process before this one on the same
// directory, which has ended because this one has the directory. Of one on a copy of it that is not known.
func (n *node) supersedes(holder, own event.Registry) bool {
	if holder.Owner != own.Owner {
		return false
	}
	return holder.Started.Equal(own.Started) || n.claimed == 0 && own.Place != "" && holder.Place == own.Place
}

// claimRegistry waits until no other process has the registry of the state that is shared. One that was killed is
// taken to be there for as long as its claim would last; the own one of before is not.
func (n *node) claimRegistry(ctx context.Context) error {
	if n.registry == nil || !n.shared() {
		return nil
	}
	for end := time.Now().Add(n.cfg.lease + n.cfg.lease/3); ; {
		err := bus.Patiently(ctx, func() error { return n.tryClaim(ctx) })
		switch {
		case err == nil:
			n.onClose(func() error {
				ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
				defer cancel()
				_ = n.store.Registries.Remove(ctx, theRegistry, n.claimed) // else it expires
				return nil
			})
			return nil
		case !errors.Is(err, store.ErrConflict) && !errors.Is(err, store.ErrNotFound):
			return err
		case time.Now().After(end):
			return usagef("stop it, leave the registry to it with --role, or name other NATS servers or another account of them",
				"another server has the registry of the state in %s", strings.Join(n.cfg.nats.remote.URLs, ","))
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(n.cfg.lease / 15):
		}
	}
}

// tryClaim claims the registry, anew if it is this process's, and returns store.ErrConflict if it is another's.
func (n *node) tryClaim(ctx context.Context) error {
	own := n.registryRecord()
	rev, err := n.store.Registries.Create(ctx, theRegistry, own)
	if errors.Is(err, store.ErrConflict) {
		var holder event.Registry
		if holder, rev, err = n.store.Registries.Get(ctx, theRegistry); err == nil && !n.supersedes(holder, own) {
			err = store.ErrConflict
		}
		if err == nil {
			rev, err = n.store.Registries.Update(ctx, theRegistry, own, rev)
		}
	}
	if err == nil {
		n.claimed = rev
	}
	return err
}

// keepClaim tells where the registry is until ctx ends, and of a new certificate before it is used. It returns an error
// if another process has one, because this one could not be heard for long.
func (n *node) keepClaim(ctx context.Context) error {
	if n.registry == nil || !n.shared() {
		return nil
	}
	every := time.NewTicker(n.cfg.lease / 15)
	defer every.Stop()
	for last := time.Now(); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-every.C:
		}
		renewed := n.cert != nil && n.cert.foretell()
		if !renewed && time.Since(last) < n.cfg.lease/3 {
			continue
		}
		last = time.Now()
		err := n.tryClaim(ctx)
		switch {
		case errors.Is(err, store.ErrConflict):
			return errors.New("another process has the registry of this server's state")
		case err != nil && ctx.Err() == nil:
			n.log.Warn("claim on the registry not renewed", "err", err)
		}
	}
}
