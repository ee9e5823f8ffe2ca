package index_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"kiln/internal/index"
	"kiln/internal/natstest"
	"kiln/internal/run"
	"kiln/internal/store"
)

// anyRun is the n-th oldest run, in all else at random, of few kinds so that queries find some.
func anyRun(n int, rnd *rand.Rand) run.Run {
	r := record(fmt.Sprintf("r%011d", n), n, []run.State{run.Succeeded, run.Failed, run.Running}[rnd.IntN(3)])
	r.Lane = []string{"", "commit", "timer"}[rnd.IntN(3)]
	if k := rnd.IntN(4); k > 0 {
		r.Task, r.TaskUID = fmt.Sprint("App-", k), fmt.Sprint("u", k)
	}
	r.Cause = run.Cause{Kind: []string{run.CauseManual, run.CauseCommit}[rnd.IntN(2)], Ref: []string{"refs/heads/main", "main", "refs/tags/v1", ""}[rnd.IntN(4)],
		Commit: fmt.Sprintf("%x%039x", rnd.IntN(16), rnd.IntN(3))}
	if rnd.IntN(2) == 0 {
		r.Bases = []run.Base{{Ref: "docker.io/library/node:" + fmt.Sprint(20+rnd.IntN(3))}, {Ref: "localhost:7070/base"}}
		r.Images = []run.Image{{Registry: "localhost:7070", Repository: "team/app", Tag: fmt.Sprint("v", rnd.IntN(5)), Digest: fmt.Sprint("sha256:", rnd.IntN(5))}}
	} else if rnd.IntN(2) == 0 {
		r.Cause.Moved = []run.Move{{Ref: "docker.io/library/node:20"}}
	}
	return r
}

func pick(rnd *rand.Rand, of ...string) string {
	if rnd.IntN(3) > 0 {
		return ""
	}
	return of[rnd.IntN(len(of))]
}

func anyQuery(rnd *rand.Rand, n int) index.Query {
	q := index.Query{Limit: 1 + rnd.IntN(40), Task: pick(rnd, "app-1", "App-2", "none"), TaskUID: pick(rnd, "u1", "u3", "u9"), Cause: pick(rnd, run.CauseManual, run.CauseTimer),
		Lane: pick(rnd, "manual", "commit", "none"), Commit: pick(rnd, "a", "A0", "00000000000000000000", fmt.Sprintf("1%039x", 2), fmt.Sprintf("1%039x0", 2)),
		Ref: pick(rnd, "main", "refs/heads/main", "v1", "none"), Base: pick(rnd, "node:20", "node", "docker.io/library/node:21", "localhost:7070/base:latest", "golang", "%"),
		Image:  pick(rnd, "team/app", "team/app:v1", "localhost:7070/team/app:v2", "team/app@sha256:3", "other.example/team/app:v1", "app"),
		Prefix: pick(rnd, "r0", fmt.Sprintf("r%011d", n/2)[:11], "x")}
	if rnd.IntN(4) == 0 {
		q.States = []run.State{run.Failed, run.Running}
	}
	if rnd.IntN(4) == 0 {
		q.Since = t0.Add(time.Duration(rnd.IntN(n)) * time.Second)
	}
	if rnd.IntN(4) == 0 {
		q.Until = t0.Add(time.Duration(rnd.IntN(n)) * time.Second)
	}
	if rnd.IntN(4) == 0 {
		q.Before = fmt.Sprintf("r%011d", rnd.IntN(n))
	}
	return q
}

// selects is what a query means, said plainly.
func selects(q index.Query, r run.Run) bool {
	short := func(ref string) string {
		return strings.TrimPrefix(strings.TrimPrefix(ref, "refs/heads/"), "refs/tags/")
	}
	lane := r.Lane
	if lane == "" {
		lane = "manual"
	}
	return strings.HasPrefix(r.ID, q.Prefix) && (q.Before == "" || r.ID < q.Before) && (q.Task == "" || strings.EqualFold(q.Task, r.Task)) &&
		(q.TaskUID == "" || q.TaskUID == r.TaskUID) && (len(q.States) == 0 || slices.Contains(q.States, r.State)) && (q.Cause == "" || q.Cause == r.Cause.Kind) &&
		(q.Lane == "" || q.Lane == lane) && (q.Since.IsZero() || !r.Created.Before(q.Since)) && (q.Until.IsZero() || r.Created.Before(q.Until)) &&
		strings.HasPrefix(r.Cause.Commit, strings.ToLower(q.Commit)) && (q.Ref == "" || short(q.Ref) == short(r.Cause.Ref)) && selectsBase(q, r) && selectsImage(q, r)
}

func selectsBase(q index.Query, r run.Run) bool {
	refs := []string{}
	for _, b := range r.Bases {
		refs = append(refs, b.Ref)
	}
	for _, m := range r.Cause.Moved {
		refs = append(refs, m.Ref)
	}
	has := func(prefix string) bool {
		return slices.ContainsFunc(refs, func(s string) bool { return strings.HasPrefix(s, prefix) })
	}
	switch q.Base {
	case "":
		return true
	case "node":
		return has("docker.io/library/node:")
	case "node:20":
		return has("docker.io/library/node:20")
	case "localhost:7070/base:latest":
		return has("localhost:7070/base")
	}
	return has(q.Base)
}

func selectsImage(q index.Query, r run.Run) bool {
	image := strings.TrimPrefix(q.Image, "localhost:7070/")
	return q.Image == "" || slices.ContainsFunc(r.Images, func(i run.Image) bool {
		return image == i.Repository || image == i.Repository+":"+i.Tag || image == i.Repository+"@"+i.Digest
	})
}

// TestListsAreThoseOfTheModel asks for lists at random, while runs change and after the index was opened again.
func TestListsAreThoseOfTheModel(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(1, 2))
	s, file := openStore(t), filepath.Join(t.TempDir(), "index")
	const n = 400
	all := make([]run.Run, n)
	for _, i := range rnd.Perm(n) {
		all[i] = anyRun(i, rnd)
		put(t, s, all[i])
	}
	x, stop := follow(t, s, file)
	compare(t, x, all, rnd)
	for range 50 {
		i := rnd.IntN(n)
		all[i] = anyRun(i, rnd)
		put(t, s, all[i])
	}
	last := anyRun(n, rnd)
	put(t, s, last)
	all = append(all, last)
	eventually(t, "the last run", func() bool { return slices.Equal(list(t, x, index.Query{}), []string{last.ID}) })
	compare(t, x, all, rnd)
	stop()
	x, _ = follow(t, s, file)
	compare(t, x, all, rnd)
}

func compare(t *testing.T, x *index.Index, all []run.Run, rnd *rand.Rand) {
	t.Helper()
	found := 0
	for range 1000 {
		q := anyQuery(rnd, len(all))
		want := []string{}
		for i := len(all) - 1; i >= 0 && len(want) < q.Limit; i-- {
			if selects(q, all[i]) {
				want = append(want, all[i].ID)
			}
		}
		if got := list(t, x, q); !slices.Equal(got, want) {
			t.Fatalf("List(%+v) = %v, want %v", q, got, want)
		}
		found += len(want)
	}
	if found < 500 {
		t.Errorf("the queries found %d runs in all: they ask for too much", found)
	}
}

// TestOpenRunsAreKnownBeforeTheIndexIsBuilt has so many runs that building takes a while.
func TestOpenRunsAreKnownBeforeTheIndexIsBuilt(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	s, err := store.Open(t.Context(), b.JetStream(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	const n = 1200
	for i := range n {
		r := record(fmt.Sprintf("r%011d", i), i, run.Succeeded)
		r.Cause.By, r.Steps = `"status":"Queued"`, []run.Step{{ID: "build", State: run.StepSucceeded}}
		if i == 10 || i == n-1 {
			r.State, r.Cause.By = run.Queued, `"status":"Failed"`
		}
		if _, err := b.ReplaceAsync("$KV.runs."+r.ID, 0, r); err != nil {
			t.Fatal(err)
		}
	}
	<-b.JetStream().PublishAsyncComplete()
	x, err := index.Open(filepath.Join(t.TempDir(), "index"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- x.Run(ctx, &s.Runs) }()
	want := []string{"r00000000010", fmt.Sprintf("r%011d", n-1)}
	if got := active(t, x); !slices.Equal(got, want) {
		t.Errorf("Active() = %v, want %v", got, want)
	}
	if got := list(t, x, index.Query{States: []run.State{run.Queued}, Limit: 5}); !slices.Equal(got, []string{want[1], want[0]}) {
		t.Errorf("List = %v, want both", got)
	}
	if got := active(t, x); !slices.Equal(got, want) {
		t.Errorf("when the index is built: Active() = %v, want %v", got, want)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := x.Close(); err != nil {
		t.Error(err)
	}
}
