// Package git reads commits of remote repositories as build contexts.
//
// A Mirrors keeps one bare mirror per repository and fetches into it what is missing and no more: the
// newest commit, without history, as a difference to the commits it already has. There is never a
// checkout. A Source presents the tree of a commit as a virtual file system, straight from the mirror's
// object store.
//
// Trust: neither repositories nor their servers are trusted. Addresses are checked when they are
// dialled, so that no name, redirect or submodule leads to a loopback, link-local or private address
// that was not allowed. Symbolic links are data; no path leaves the tree. Transfers, objects, trees
// and the mirrors' disk space are bounded. Every object is verified against its name when it is read.
// Who opens a commit has shown the server its own credential, also when the mirror has the commit.
//
// Credentials are used for the origin (scheme, host and port) they were given for, and are in no
// error, no URL, no process list and no file.
//
// Failure: a mirror is disposable. A commit counts as present once all of it is; a damaged mirror is
// fetched anew, also under a Source that is being read.
package git

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Config says how repositories are reached and what may be spent on them.
type Config struct {
	Dir      string // of the mirrors, created if it does not exist; one process at a time uses it
	MaxBytes int64  // of all mirrors on disk; 0 means 20 GiB. The least recently used are removed
	Limits   Limits
	// Allow permits a host at an address that is not a public one: loopback, private, link-local or
	// reserved. Nil permits none.
	Allow func(host string, addr netip.Addr) bool
	// PlainHTTP permits http:// for a host (host or host:port as in the URL). Nil permits none.
	PlainHTTP func(host string) bool
	// KnownHosts are the keys of ssh servers, as a known_hosts file has them, for credentials that
	// bring none themselves. Without either, ssh is refused.
	KnownHosts []byte
	RootCAs    *x509.CertPool // nil means the system's
	Log        *slog.Logger   // nil means none
}

// Limits bound one repository. The zero value of a field means its default.
type Limits struct {
	Pack       int64         // bytes of one transfer; 4 GiB
	Object     int64         // bytes of one file; 256 MiB. A fetch may hold one in memory
	Refs       int64         // bytes of a server's list of refs; 64 MiB
	Entries    int           // of one tree, walked; 1,000,000
	Submodules int           // of one source, nested ones included; 64
	Timeout    time.Duration // of one exchange with a server; 10 minutes
	Idle       time.Duration // without a byte from the server; 60 seconds
}

func (l Limits) withDefaults() Limits {
	l.Pack = orDefault(l.Pack, 4<<30)
	l.Object = orDefault(l.Object, 256<<20)
	l.Refs = orDefault(l.Refs, 64<<20)
	l.Entries = orDefault(l.Entries, 1_000_000)
	l.Submodules = orDefault(l.Submodules, 64)
	l.Timeout = orDefault(l.Timeout, 10*time.Minute)
	l.Idle = orDefault(l.Idle, time.Minute)
	return l
}

func orDefault[T int | int64 | time.Duration](v, def T) T {
	if v <= 0 {
		return def
	}
	return v
}

// Mirrors are bare mirrors of repositories in one directory. Its methods may be called concurrently.
type Mirrors struct {
	cfg    Config
	lim    Limits
	log    *slog.Logger
	lock   *os.File
	http   *http.Client
	access access

	mu      sync.Mutex
	mirrors map[string]*mirror // by ID
	closed  bool
}

// New opens the directory of mirrors and removes what an earlier process left unfinished.
func New(cfg Config) (*Mirrors, error) {
	if cfg.Dir == "" {
		return nil, errors.New("git mirrors: no directory given")
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("git mirrors: %w", err)
	}
	lock, err := lockFile(filepath.Join(cfg.Dir, "lock"))
	if err != nil {
		return nil, fmt.Errorf("git mirrors: %w", err)
	}
	m := &Mirrors{cfg: cfg, lim: cfg.Limits.withDefaults(), log: cfg.Log, lock: lock, mirrors: map[string]*mirror{}}
	if m.cfg.MaxBytes <= 0 {
		m.cfg.MaxBytes = 20 << 30
	}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	_, _ = rand.Read(m.access.salt[:]) // never fails, says its documentation
	m.http = m.httpClient()
	if err := m.load(); err != nil {
		return nil, fmt.Errorf("git mirrors: %w", errors.Join(err, unlockFile(lock)))
	}
	return m, nil
}

// Close releases the directory. Sources that are still open become unreadable.
func (m *Mirrors) Close() error {
	m.mu.Lock()
	m.closed = true
	for _, mi := range m.mirrors {
		if mi.gen != nil {
			mi.gen.readers.close()
		}
	}
	m.mu.Unlock()
	m.http.CloseIdleConnections()
	return unlockFile(m.lock)
}

// Size returns the bytes that the mirrors take on disk, as far as they are known.
func (m *Mirrors) Size() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sizeLocked()
}

// bounded returns ctx with the time limit of one exchange with a server.
func (m *Mirrors) bounded(ctx context.Context) (context.Context, context.CancelCauseFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	t := time.AfterFunc(m.lim.Timeout, func() {
		cancel(fmt.Errorf("%w: no end after %s", ErrUnavailable, m.lim.Timeout))
	})
	return ctx, func(cause error) {
		t.Stop()
		cancel(cause)
	}
}
