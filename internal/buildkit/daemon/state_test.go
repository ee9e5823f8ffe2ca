package daemon

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var quiet = slog.New(slog.DiscardHandler)

// use prepares the databases of root and returns them with whether the root's content was kept.
func use(t *testing.T, root, tmpfs string) (d *databases, kept bool) {
	t.Helper()
	d = newDatabases(root, tmpfs)
	if err := d.prepare(quiet); err != nil {
		t.Fatal(err)
	}
	_, err := os.Stat(filepath.Join(root, "worker", "snapshot"))
	return d, err == nil
}

// fill makes the root look used.
func fill(t *testing.T, d *databases) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(d.root, "worker"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{filepath.Join(d.root, "worker", "snapshot"), d.path(cacheDB), d.path(snapshotDB)} {
		if err := os.WriteFile(file, []byte("content"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCacheIsKeptOnlyWithItsDatabases(t *testing.T) {
	for _, c := range []struct {
		name   string
		before string // where the databases are at first: "tmpfs" or ""
		event  func(t *testing.T, d *databases)
		after  string
		kept   bool
	}{
		{"killed", "tmpfs", nil, "tmpfs", true},
		{"killed, on disk", "", nil, "", true},
		{"stopped", "tmpfs", stop, "tmpfs", true},
		{"stopped, then a reboot", "tmpfs", both(stop, reboot), "tmpfs", true},
		{"killed, then a reboot", "tmpfs", reboot, "tmpfs", false},
		{"stopped, started, killed, then a reboot", "tmpfs", both(stop, restart, reboot), "tmpfs", false},
		{"killed, on disk, then a reboot", "", otherBoot, "", false},
		{"stopped, on disk, then a reboot", "", both(stop, otherBoot), "", true},
		{"stopped, then to disk", "tmpfs", stop, "", true},
		{"killed, then to disk", "tmpfs", nil, "", false},
		{"from disk", "", nil, "tmpfs", true},
		{"databases of another root", "tmpfs", func(t *testing.T, d *databases) {
			mustWrite(t, d.path(generationFile), "another")
		}, "tmpfs", false},
		{"root without generation", "tmpfs", func(t *testing.T, d *databases) {
			if err := os.Remove(filepath.Join(d.root, generationFile)); err != nil {
				t.Fatal(err)
			}
		}, "tmpfs", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			root, shm := t.TempDir(), filepath.Join(t.TempDir(), "shm")
			place := map[string]string{"tmpfs": shm}
			d, _ := use(t, root, place[c.before])
			fill(t, d)
			if c.event != nil {
				c.event(t, d)
			}
			d, kept := use(t, root, place[c.after])
			if kept != c.kept {
				t.Errorf("content kept = %v, want %v", kept, c.kept)
			}
			b, err := os.ReadFile(d.path(snapshotDB))
			if got := err == nil && string(b) == "content"; got != c.kept {
				t.Errorf("databases kept = %v, want %v", got, c.kept)
			}
			if c.after == "tmpfs" && readGeneration(d.kept) != "" {
				t.Error("databases on disk would still be trusted, want only those in use")
			}
		})
	}
}

func stop(t *testing.T, d *databases) {
	t.Helper()
	if err := d.keep(); err != nil {
		t.Fatal(err)
	}
}

func restart(t *testing.T, d *databases) {
	t.Helper()
	use(t, d.root, filepath.Dir(d.dir))
}

func reboot(t *testing.T, d *databases) {
	t.Helper()
	if err := os.RemoveAll(filepath.Dir(d.dir)); err != nil {
		t.Fatal(err)
	}
}

// otherBoot makes the kernel seem to have been started anew.
func otherBoot(t *testing.T, d *databases) {
	t.Helper()
	running := filepath.Join(d.root, runningFile)
	if _, err := os.Stat(running); err == nil {
		mustWrite(t, running, "another boot")
	}
}

func both(events ...func(*testing.T, *databases)) func(*testing.T, *databases) {
	return func(t *testing.T, d *databases) {
		t.Helper()
		for _, e := range events {
			e(t, d)
		}
	}
}

func mustWrite(t *testing.T, file, content string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestDatabasesOfRemovedRootsAreRemoved(t *testing.T) {
	shm := filepath.Join(t.TempDir(), "shm")
	gone, stays := filepath.Join(t.TempDir(), "gone"), t.TempDir()
	if err := os.Mkdir(gone, 0o700); err != nil {
		t.Fatal(err)
	}
	use(t, gone, shm)
	use(t, stays, shm)
	mustWrite(t, filepath.Join(shm, "foreign"), "")
	if err := os.RemoveAll(gone); err != nil {
		t.Fatal(err)
	}
	use(t, stays, shm)
	entries, err := os.ReadDir(shm)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	want := []string{rootID(stays), "foreign"}
	slices.Sort(want)
	if !slices.Equal(names, want) {
		t.Errorf("entries = %v, want %v", names, want)
	}
}

func TestForeignStateDirectoryIsRefused(t *testing.T) {
	open := filepath.Join(t.TempDir(), "open")
	if err := os.Mkdir(open, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(t.TempDir(), link); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{open, link} {
		err := newDatabases(t.TempDir(), dir).prepare(quiet)
		if err == nil || !strings.Contains(err.Error(), "others cannot write") {
			t.Errorf("prepare with %s: %v, want an error", dir, err)
		}
	}
}

func TestUnreadableDatabasesAreDiscarded(t *testing.T) {
	cfg := Config{Root: t.TempDir(), Logger: quiet}
	dbs := newDatabases(cfg.Root, "")
	if err := dbs.prepare(quiet); err != nil {
		t.Fatal(err)
	}
	fill(t, dbs)
	mustWrite(t, dbs.path(containerdDB), strings.Repeat("no database", 10000))
	if err := os.MkdirAll(executorDir(cfg.Root), 0o700); err != nil {
		t.Fatal(err)
	}
	routeLogs(quiet)
	ctrl, err := openController(t.Context(), &cfg, dbs, networks{})
	if err != nil {
		t.Fatal(err)
	}
	if err := ctrl.Close(); err != nil {
		t.Error(err)
	}
	if err := dbs.close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(cfg.Root, "worker", "snapshot")); err == nil {
		t.Error("the root's old content is still in use")
	}
}
