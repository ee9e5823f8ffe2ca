package index_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"kiln/internal/index"
	"kiln/internal/natstest"
	"kiln/internal/run"
	"kiln/internal/store"
)

var t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// bound is how long anything may take.
const bound = time.Minute

func openStore(t *testing.T) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), natstest.Start(t).JetStream(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// record is the run that is the n-th oldest.
func record(id string, n int, s run.State) run.Run {
	return run.Run{ID: id, State: s, Created: t0.Add(time.Duration(n) * time.Second)}
}

func put(t *testing.T, s *store.Store, runs ...run.Run) {
	t.Helper()
	for _, r := range runs {
		if _, err := s.Runs.Put(t.Context(), r.ID, r); err != nil {
			t.Fatal(err)
		}
	}
}

// follow opens the index in file and has it follow s until the returned function is called.
func follow(t *testing.T, s *store.Store, file string) (x *index.Index, stop func()) {
	t.Helper()
	return followLogged(t, s, file, slog.New(slog.DiscardHandler))
}

func followLogged(t *testing.T, s *store.Store, file string, log *slog.Logger) (x *index.Index, stop func()) {
	t.Helper()
	x, err := index.Open(file, log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- x.Run(ctx, &s.Runs) }()
	ended := false
	stop = func() {
		if ended {
			return
		}
		ended = true
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return x, stop
}

func list(t *testing.T, x *index.Index, q index.Query) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bound)
	defer cancel()
	runs, err := x.List(ctx, q)
	if err != nil {
		t.Fatalf("List(%+v): %v", q, err)
	}
	ids := []string{}
	for _, r := range runs {
		ids = append(ids, r.ID)
	}
	return ids
}

func active(t *testing.T, x *index.Index) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bound)
	defer cancel()
	ids, err := x.Active(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

// eventually asks until ok, for the index follows within milliseconds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline, tick := time.After(bound), time.NewTicker(5*time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("after %s: not %s", bound, what)
		}
	}
}

func TestListSelectsAndOrders(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	put(t, s, record("raa", 2, run.Running), record("rab", 1, run.Succeeded), record("rba", 3, run.Queued),
		record("rbb", 3, run.Failed))
	x, _ := follow(t, s, filepath.Join(t.TempDir(), "index"))
	for _, c := range []struct {
		q    index.Query
		want []string
	}{
		{index.Query{Limit: 10}, []string{"rbb", "rba", "raa", "rab"}},
		{index.Query{Limit: 2}, []string{"rbb", "rba"}},
		{index.Query{}, []string{"rbb"}},
		{index.Query{Limit: 10, Prefix: "ra"}, []string{"raa", "rab"}},
		{index.Query{Limit: 10, Prefix: "rba"}, []string{"rba"}},
		{index.Query{Limit: 10, Prefix: "x"}, []string{}},
		{index.Query{Limit: 10, Before: "rba"}, []string{"raa", "rab"}},
		{index.Query{Limit: 1, Before: "rbb"}, []string{"rba"}},
		{index.Query{Limit: 10, Before: "rbb", Prefix: "ra"}, []string{"raa", "rab"}},
		{index.Query{Limit: 10, Before: "rab"}, []string{}},
	} {
		if got := list(t, x, c.q); !slices.Equal(got, c.want) {
			t.Errorf("List(%+v) = %v, want %v", c.q, got, c.want)
		}
	}
	if got, want := active(t, x), []string{"raa", "rba"}; !slices.Equal(got, want) {
		t.Errorf("Active() = %v, want %v: oldest first", got, want)
	}
}

func TestIndexFollowsTheRecords(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	x, _ := follow(t, s, filepath.Join(t.TempDir(), "index"))
	if got := list(t, x, index.Query{Limit: 10}); len(got) != 0 {
		t.Fatalf("empty store: %v", got)
	}
	put(t, s, record("ra", 1, run.Queued), record("rb", 2, run.Queued))
	eventually(t, "both runs active", func() bool { return slices.Equal(active(t, x), []string{"ra", "rb"}) })
	put(t, s, record("ra", 1, run.Succeeded))
	eventually(t, "the ended run inactive", func() bool { return slices.Equal(active(t, x), []string{"rb"}) })
	if got := list(t, x, index.Query{Limit: 10}); !slices.Equal(got, []string{"rb", "ra"}) {
		t.Errorf("List = %v, want [rb ra]", got)
	}
	if err := s.Runs.Delete(t.Context(), "ra"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the deleted run gone", func() bool {
		return slices.Equal(list(t, x, index.Query{Limit: 10}), []string{"rb"})
	})
}

func TestListLeavesOutWhatNoListShows(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	r := record("ra", 1, run.Running)
	r.Task = "app"
	r.Spec = run.Spec{Context: "context://x", Secrets: []byte("sealed"), TaskFile: &run.TaskFileSpec{
		Name: "acb.yaml", Content: []byte("steps:"), ValuesName: "values.yaml", Values: []byte("a: b"), Set: []string{"c=d"}}}
	put(t, s, r)
	x, _ := follow(t, s, filepath.Join(t.TempDir(), "index"))
	ctx, cancel := context.WithTimeout(t.Context(), bound)
	defer cancel()
	runs, err := x.List(ctx, index.Query{Limit: 1})
	if err != nil || len(runs) != 1 {
		t.Fatalf("List = %v, %v", runs, err)
	}
	got := runs[0]
	if f := got.Spec.TaskFile; f == nil || f.Name != "acb.yaml" || f.ValuesName != "values.yaml" || f.Content != nil || f.Values != nil || f.Set != nil {
		t.Errorf("task file %+v, want its names alone", f)
	}
	if got.Spec.Secrets != nil {
		t.Error("sealed secrets are listed")
	}
	if got.Task != "app" || got.Spec.Context != "context://x" || got.State != run.Running || !got.Created.Equal(r.Created) {
		t.Errorf("got %+v", got)
	}
}

func TestQueriesWaitForThePresentState(t *testing.T) {
	t.Parallel()
	x, err := index.Open(filepath.Join(t.TempDir(), "index"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = x.Close() }()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := x.List(ctx, index.Query{Limit: 1}); err == nil {
		t.Error("List of an index that has read nothing: no error")
	}
	if _, err := x.Active(ctx); err == nil {
		t.Error("Active of an index that has read nothing: no error")
	}
}

// TestReopenedIndexResumes falsifies a row while the index is closed: an index that read everything again
// would put it right, and one that resumes does not touch it.
func TestReopenedIndexResumes(t *testing.T) {
	t.Parallel()
	s, file := openStore(t), filepath.Join(t.TempDir(), "index")
	put(t, s, record("ra", 1, run.Queued), record("rb", 2, run.Queued))
	x, stop := follow(t, s, file)
	if got := active(t, x); len(got) != 2 {
		t.Fatalf("Active() = %v", got)
	}
	stop()
	execute(t, file, "UPDATE runs SET final = 1 WHERE id = 'ra'")
	put(t, s, record("rb", 2, run.Failed), record("rc", 3, run.Queued))

	x, stop = follow(t, s, file)
	if got := active(t, x); !slices.Equal(got, []string{"rc"}) {
		t.Errorf("Active() = %v, want [rc]: rb has ended meanwhile, and ra is not read again", got)
	}
	stop()
	x, _ = follow(t, s, file) // with nothing new to read
	if got := list(t, x, index.Query{Limit: 10}); !slices.Equal(got, []string{"rc", "rb", "ra"}) {
		t.Errorf("List = %v, want [rc rb ra]", got)
	}
}

func execute(t *testing.T, file, statement string) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(statement); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestIndexThatCannotBeUsedIsRebuilt(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(t *testing.T, file string){
		"deleted":        func(t *testing.T, file string) { remove(t, file) },
		"empty":          func(t *testing.T, file string) { write(t, file, nil) },
		"no database":    func(t *testing.T, file string) { write(t, file, []byte("this was never a database file")) },
		"half made":      func(t *testing.T, file string) { execute(t, file, "PRAGMA user_version = 0") },
		"other version":  func(t *testing.T, file string) { execute(t, file, "PRAGMA user_version = 99") },
		"header damaged": func(t *testing.T, file string) { overwrite(t, file, 0, 100) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, file := openStore(t), filepath.Join(t.TempDir(), "index")
			for n := range 3 {
				put(t, s, record(fmt.Sprint("r", n), n, run.Queued))
			}
			x, stop := follow(t, s, file)
			if got := active(t, x); len(got) != 3 {
				t.Fatalf("Active() = %v", got)
			}
			stop()
			damage(t, file)
			x, _ = follow(t, s, file)
			if got := active(t, x); len(got) != 3 {
				t.Errorf("after the rebuild: Active() = %v, want all 3", got)
			}
		})
	}
}

func remove(t *testing.T, file string) {
	t.Helper()
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, file string, data []byte) {
	t.Helper()
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// overwrite replaces the bytes from..to of file by nonsense; to < 0 is its end.
func overwrite(t *testing.T, file string, from, to int) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if to < 0 {
		to = len(data)
	}
	for i := from; i < to; i++ {
		data[i] = 0xa5
	}
	write(t, file, data)
}

// A closer closes a channel when something is written, which it is once.
type closer struct{ c chan struct{} }

func (c closer) Write(b []byte) (int, error) {
	close(c.c)
	return len(b), nil
}

// A full disk ends neither the index nor the process that has it.
func TestIndexWaitsForRoom(t *testing.T) {
	t.Parallel()
	disk := t.TempDir()
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=16m"); err != nil {
		t.Fatalf("a disk of its own needs root: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(disk, syscall.MNT_DETACH) })
	s := openStore(t)
	warned := make(chan struct{})
	x, stop := followLogged(t, s, filepath.Join(disk, "index.db"), slog.New(slog.NewTextHandler(closer{warned}, nil)))
	put(t, s, record("r1", 1, run.Running))
	eventually(t, "listed", func() bool { return len(list(t, x, index.Query{})) == 1 })
	fill := filepath.Join(disk, "fill")
	if err := os.WriteFile(fill, make([]byte, 32<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	long := strings.Repeat("long ", 4<<10)
	for i := range 8 {
		r := record(fmt.Sprint("r2", i), 2+i, run.Queued)
		r.Reason = long
		put(t, s, r)
	}
	select {
	case <-warned:
	case <-time.After(bound):
		t.Fatal("nothing is said of the full disk")
	}
	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all listed", func() bool { return len(list(t, x, index.Query{Limit: 20})) == 9 })
	stop() // which reports that the index has ended, if it has
}
