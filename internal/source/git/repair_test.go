package git

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kiln/internal/gittest"
)

func TestDamagedMirrorIsFetchedAnew(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	repo := gittest.NewRepo(t, root, "r.git")
	repo.Write("a/file", "x\n", 0)
	repo.Write("big", gittest.Noise(1, 3000), 0)
	commit := repo.Commit("first")
	srv := gittest.Serve(t, root, "", "")
	want := repo.Archive(commit)
	damage := map[string]func(name string) error{
		"truncated": func(name string) error { return os.Truncate(name, 100) },
		"removed":   os.Remove,
		"one byte": func(name string) error {
			b, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			for i := 40; i < len(b)-20; i += 97 {
				b[i] ^= 0x55
			}
			return os.WriteFile(name, b, 0o600)
		},
	}
	for name, hurt := range damage {
		for _, pattern := range []string{"*/*/objects/pack/*.pack", "*/*/objects/pack/*.idx"} {
			for _, when := range []string{"before", "while open", "after restart"} {
				cfg := loopback(t)
				m, err := New(cfg)
				if err != nil {
					t.Fatal(err)
				}
				s := mustOpen(t, m, Ref{URL: srv.URL + "/r.git"}, Credential{})
				if when == "after restart" {
					if err := m.Close(); err != nil {
						t.Fatal(err)
					}
				}
				found, _ := filepath.Glob(filepath.Join(cfg.Dir, pattern))
				for _, f := range found {
					if err := errors.Join(os.Chmod(f, 0o600), hurt(f)); err != nil {
						t.Fatal(err)
					}
				}
				if len(found) == 0 {
					t.Fatal("no pack")
				}
				if when == "after restart" {
					if m, err = New(cfg); err != nil {
						t.Fatal(err)
					}
				}
				if when != "while open" {
					s = mustOpen(t, m, Ref{URL: srv.URL + "/r.git"}, Credential{})
				}
				if diff := cmp.Diff(want, files(t, s)); diff != "" {
					t.Errorf("%s %s, %s (-want +got):\n%s", pattern, name, when, diff)
				}
				if err := m.Close(); err != nil {
					t.Error(err)
				}
			}
		}
	}
}

func TestMirrorsAreKeptAndBounded(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	for i := range 4 {
		r := gittest.NewRepo(t, root, fmt.Sprintf("r%d.git", i))
		r.Write("f", gittest.Noise(i, 100_000), 0)
		r.Commit("x")
	}
	srv := gittest.Serve(t, root, "", "")
	cfg := loopback(t)
	cfg.MaxBytes = 150_000
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(cfg); err == nil {
		t.Error("a second user of the directory was let in")
	}
	for i := range 4 {
		ctx, cancel := context.WithCancel(t.Context())
		if _, err := m.Open(ctx, Ref{URL: fmt.Sprintf("%s/r%d.git", srv.URL, i)}, Credential{}); err != nil {
			t.Fatal(err)
		}
		cancel()
		waitFor(t, func() bool { return unused(m) })
	}
	if n := m.Size(); n > 2*cfg.MaxBytes {
		t.Errorf("%d bytes", n)
	}
	left, _ := filepath.Glob(filepath.Join(cfg.Dir, "????????????????????????????????"))
	if len(left) == 0 || len(left) > 2 {
		t.Errorf("%d mirrors are left", len(left))
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	before := srv.Sent()
	m = open(t, cfg)
	mustOpen(t, m, Ref{URL: srv.URL + "/r3.git"}, Credential{})
	if n := srv.Sent() - before; n > 5000 {
		t.Errorf("%d bytes were sent for a commit that was there before the restart", n)
	}
}

func unused(m *Mirrors) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, mi := range m.mirrors {
		if mi.pins > 0 || mi.gen != nil && mi.gen.pins > 0 {
			return false
		}
	}
	return true
}

func waitFor(t *testing.T, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.After(time.Minute)
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("condition not met in a minute")
		}
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	repo := gittest.NewRepo(t, root, "r.git")
	repo.Write("zeros", strings.Repeat("\x00", 5<<20), 0)
	repo.Commit("x")
	srv := gittest.Serve(t, root, "", "")
	for name, lim := range map[string]Limits{"object": {Object: 1 << 20}, "pack": {Pack: 1000}, "refs": {Refs: 100}} {
		cfg := loopback(t)
		cfg.Limits = lim
		m := open(t, cfg)
		if _, err := m.Open(t.Context(), Ref{URL: srv.URL + "/r.git"}, Credential{}); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: %v", name, err)
		}
		if left, _ := filepath.Glob(filepath.Join(cfg.Dir, "*/*/objects/pack/*")); len(left) > 0 {
			t.Errorf("%s: left %q", name, left)
		}
	}
}

func TestSilentServer(t *testing.T) {
	t.Parallel()
	addr := gittest.Silent(t)
	cfg := loopback(t)
	cfg.Limits.Timeout = 100 * time.Millisecond
	m := open(t, cfg)
	known := gittest.ServeSSH(t, t.TempDir())
	for _, url := range []string{"http://" + addr + "/r.git", "ssh://git@" + addr + "/r.git"} {
		_, err := m.LsRemote(t.Context(), url, Credential{PrivateKey: known.PrivateKey, KnownHosts: known.KnownHosts})
		if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "100ms") {
			t.Errorf("%s: %v", url, err)
		}
	}
}
