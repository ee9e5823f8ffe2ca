//go:build unix

package git

import (
	"strings"
	"syscall"
	"testing"
)

// A program that is being started has a copy of every descriptor until it is executed.
func TestCloseUnlocksInSpiteOfCopies(t *testing.T) {
	t.Parallel()
	cfg := loopback(t)
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	copied, err := syscall.Dup(int(m.lock.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Close(copied); err != nil {
			t.Error(err)
		}
	})
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), cfg.Dir) || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a second user of the directory: %v", err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, cfg)
}
