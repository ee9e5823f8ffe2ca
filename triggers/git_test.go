package triggers_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/internal/task"
	"kiln/triggers/decide"
)

func TestPushMakesOneRunDue(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	repo, url := r.repo("app")
	before := repo.Git("rev-parse", "HEAD")
	digest := r.push("base", "1", "one")
	r.start()
	app := r.create("app", url)
	r.ready(app)
	if n := len(r.runs(app)); n != 0 {
		t.Fatalf("%d runs of a new task, want none", n)
	}
	repo.Write("a", "1", 0)
	head := repo.Commit("change")
	for range 5 {
		r.pushed("e1", url, "refs/heads/main", before, head)
	}
	got := r.wantRuns(app, 1)[0]
	c := got.Cause
	if c.Kind != run.CauseCommit || c.Commit != head || c.Ref != "refs/heads/main" || c.Repository != url || c.Event != "e1" ||
		c.Seq == 0 || c.Trigger != "push" || c.By != "kim" || c.Track != "default" || got.TaskUID != app.UID || got.Lane != string(decide.ClassCommit) {
		t.Errorf("run %+v because of %+v", got, c)
	}
	if want := url + "#" + head; got.Spec.Context != want {
		t.Errorf("context %q, want %q", got.Spec.Context, want)
	}
	if pin := got.Spec.Pins[canonical(t, r.base())]; pin != digest {
		t.Errorf("base pinned to %q, want %q", pin, digest)
	}
}

func TestPushRightAfterCreation(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	repo, url := r.repo("app")
	before := repo.Git("rev-parse", "HEAD")
	r.start()
	app := r.create("app", url)
	head := repo.Commit("at once")
	r.ready(app) // whatever it has seen
	r.pushed("e1", url, "refs/heads/main", before, head)
	r.wantRuns(app, 1)
}

func TestEventsOlderThanTheTaskAndOfOthers(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	repo, url := r.repo("app")
	head := repo.Git("rev-parse", "HEAD")
	r.pushed("old", url, "refs/heads/main", strings.Repeat("1", 40), head)
	r.pushed("other", r.git.URL+"/other.git", "refs/heads/main", "", head)
	r.publish("kiln.event.git.unheard", "u", "git.unheard", map[string]string{})
	app := r.create("app", url)
	r.start()
	r.ready(app)
	r.wantRuns(app, 0)
}

func TestForcePushBackAndForth(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	repo, url := r.repo("app")
	a := repo.Git("rev-parse", "HEAD")
	r.start()
	app := r.create("app", url+"#main")
	r.ready(app)
	b := repo.Commit("b")
	r.pushed("e1", url, "refs/heads/main", a, b)
	r.wantRuns(app, 1)
	repo.Git("reset", "-q", "--hard", a)
	repo.Git("push", "-q", "-f", "origin", "HEAD")
	r.pushed("e2", url, "refs/heads/main", b, a)
	r.pushed("e1", url, "refs/heads/main", a, b)
	runs := r.wantRuns(app, 2)
	if runs[0].Cause.Commit != b || runs[1].Cause.Commit != a {
		t.Errorf("runs of %s and %s, want %s and %s", runs[0].Cause.Commit, runs[1].Cause.Commit, b, a)
	}
}

func TestFiltersRefuseOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	repo, url := r.repo("app")
	r.start()
	app := r.create("app", url, func(t *task.Task) { t.Triggers.Source[0].Paths = task.Globs{"src/**"} })
	r.ready(app)
	repo.Write("docs/a.md", "x", 0)
	head := repo.Commit("docs only")
	r.pushed("e1", url, "refs/heads/main", "", head)
	r.eventually("refusal", func() bool { return strings.Contains(r.reasons(app, decide.Filtered), "none of the 1 files") })
	for range 3 {
		if _, err := r.d.Reconcile(t.Context(), false); err != nil {
			t.Fatal(err)
		}
	}
	r.pushed("e1", url, "refs/heads/main", "", head)
	r.wantRuns(app, 0)
	if got := r.reasons(app, decide.Filtered); strings.Contains(got, "\n") {
		t.Errorf("refused more than once:\n%s", got)
	}
	repo.Write("src/main.go", "x", 0)
	head = repo.Commit("[skip ci] source")
	r.pushed("e2", url, "refs/heads/main", "", head)
	r.eventually("refusal", func() bool { return strings.Contains(r.reasons(app, decide.Filtered), "asks not to be built") })
	repo.Write("src/main.go", "y", 0)
	head = repo.Commit("source")
	r.pushed("e3", url, "refs/heads/main", "", head)
	if got := r.wantRuns(app, 1)[0].Cause.Commit; got != head {
		t.Errorf("run of %s, want %s", got, head)
	}
}

func TestManyBranchesUnderAGlob(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	repo, url := r.repo("app")
	for i := range 3 {
		repo.Git("push", "-q", "origin", fmt.Sprintf("HEAD:refs/heads/release/old%d", i))
	}
	r.start()
	app := r.create("app", url, func(t *task.Task) {
		t.Triggers.Source[0].Branches = task.Globs{"main", "release/*"}
		t.Triggers.Source[0].Events = []task.SourceEvent{task.Push, task.Tag}
	})
	r.ready(app)
	r.eventually("refs followed", func() bool { return r.last(app, decide.Track{Kind: "refs"}).State.Known })
	head := repo.Git("rev-parse", "HEAD")
	for i := range 10 {
		name := fmt.Sprintf("refs/heads/release/%d", i)
		repo.Git("push", "-q", "origin", "HEAD:"+name)
		r.pushed("e"+name, url, name, "", head)
	}
	repo.Git("push", "-q", "origin", "HEAD:refs/heads/feature", "HEAD:refs/tags/v1")
	r.pushed("f", url, "refs/heads/feature", "", head)
	r.pushed("t", url, "refs/tags/v1", "", head)
	r.wantRuns(app, 11)
	if got := r.reasons(app, decide.Filtered); got != "no source trigger acts on branch feature" {
		t.Errorf("filtered: %q", got)
	}
	if _, err := r.d.Reconcile(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	r.wantRuns(app, 11)
}

func TestLostPushIsReconciled(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	repo, url := r.repo("app")
	r.start()
	app := r.create("app", url, func(t *task.Task) { t.Triggers.Source[0].Branches = task.Globs{"main", "v*"} })
	r.ready(app)
	r.eventually("refs followed", func() bool { return r.last(app, decide.Track{Kind: "refs"}).State.Known })
	head := repo.Commit("lost")
	repo.Git("push", "-q", "origin", "HEAD:refs/heads/v2")
	found, err := r.d.Reconcile(t.Context(), true)
	if err != nil || len(found.Found) != 2 || found.Found[0].Decision.Kind != decide.Run || found.Looked != 2 {
		t.Fatalf("dry run found %+v, %v; want two runs", found, err)
	}
	r.wantRuns(app, 0)
	if _, err := r.d.Reconcile(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	runs := r.wantRuns(app, 2)
	if runs[0].Cause.Commit != head || runs[0].Lane != string(decide.LaneReconcile) {
		t.Errorf("run %+v", runs[0])
	}
	if found, err := r.d.Reconcile(t.Context(), false); err != nil || len(found.Found) != 0 {
		t.Errorf("the second time %+v was found, %v", found, err)
	}
	r.wantRuns(app, 2)
}

func TestPullRequestOfAFork(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	repo, url := r.repo("app")
	r.start()
	app := r.create("app", url, func(t *task.Task) { t.Triggers.Source[0].Events = []task.SourceEvent{task.PullRequest} })
	r.ready(app)
	head := repo.Git("commit-tree", "-p", "HEAD", "-m", "from a fork", "HEAD^{tree}")
	repo.Git("push", "-q", "origin", head+":refs/pull/7/head")
	e := event.PullRequestUpdated{Repository: event.Repository{Provider: "github", FullName: "o/r", CloneURLs: []string{url}},
		Number: 7, Action: event.PullOpened, HeadRef: "x", HeadSHA: head, BaseRef: "main", FetchRef: "refs/pull/7/head", Fork: true,
		Author: event.Person{Login: "stranger"}}
	tell := func(id string) {
		r.publish(event.DeliverySubject(event.TypePullRequestUpdated, id), id, event.TypePullRequestUpdated, e)
	}
	tell("p1")
	got := r.wantRuns(app, 1)[0]
	if !got.NeedsApproval || !got.Spec.Restricted || got.Cause.PullRequest != 7 || got.Cause.Author != "github:stranger" ||
		got.Cause.Commit != head || got.Cause.Kind != run.CausePull || got.Spec.Ref != "refs/pull/7/head" {
		t.Errorf("run %+v", got)
	}
	if _, err := r.store.Trusted.Put(t.Context(), event.TrustKey(got.Cause.Repository, got.Cause.Author), "kim"); err != nil {
		t.Fatal(err)
	}
	second := repo.Git("commit-tree", "-p", head, "-m", "more", "HEAD^{tree}")
	repo.Git("push", "-q", "-f", "origin", second+":refs/pull/7/head")
	e.Action, e.HeadSHA = event.PullSynchronized, second
	tell("p2")
	if got := r.wantRuns(app, 2)[1]; got.NeedsApproval || !got.Spec.Restricted {
		t.Errorf("run of a trusted author %+v", got)
	}
	e.Action = event.PullClosed
	tell("p3")
	r.settled()
	e.Action, e.HeadSHA = event.PullOpened, head
	tell("p1") // again, late
	r.wantRuns(app, 2)
}

func TestShuffledDeliveries(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	repo, url := r.repo("app")
	r.start()
	app := r.create("app", url+"#main")
	r.ready(app)
	before := repo.Git("rev-parse", "HEAD")
	type delivery struct{ id, before, after string }
	var all []delivery
	for i := range 6 {
		after := repo.Commit(fmt.Sprint("change ", i))
		for range 5 {
			all = append(all, delivery{fmt.Sprint("e", i), before, after})
		}
		before = after
	}
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for _, e := range all {
		r.pushed(e.id, url, "refs/heads/main", e.before, e.after)
	}
	if got := r.wantRuns(app, 1)[0]; got.Cause.Commit != before {
		t.Errorf("run of %s, want the head %s", got.Cause.Commit, before)
	}
}

func TestEveryCommit(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	repo, url := r.repo("app")
	r.start()
	app := r.create("app", url, func(t *task.Task) { t.Triggers.Source[0].Commits = task.CommitsEvery })
	r.ready(app)
	before := repo.Git("rev-parse", "HEAD")
	var commits []event.Commit
	for i := range 3 {
		commits = append(commits, event.Commit{ID: repo.Commit(fmt.Sprint(i))})
	}
	r.pushed("e1", url, "refs/heads/main", before, commits[2].ID, func(e *event.GitPushed) { e.Commits = commits })
	for i, got := range r.wantRuns(app, 3) {
		if got.Cause.Commit != commits[i].ID {
			t.Errorf("run %d of %s, want %s", i, got.Cause.Commit, commits[i].ID)
		}
	}
}

// TestEveryCommitOfALargePush has more commits than the stream of decisions keeps of a track.
func TestEveryCommitOfALargePush(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	repo, url := r.repo("app")
	r.idle = true
	admitted := r.admit()
	r.start()
	app := r.create("app", url, func(t *task.Task) {
		t.Triggers.Source[0].Commits, t.Triggers.Source[0].SkipCI = task.CommitsEvery, task.SkipIgnore
	})
	r.ready(app)
	const n = 200
	before := repo.Git("rev-parse", "HEAD")
	var all strings.Builder
	for i := range n {
		fmt.Fprintf(&all, "commit refs/heads/main\ncommitter Ada <ada@example.com> %d +0000\ndata 1\nc\n", 1700000100+i)
		if i == 0 {
			fmt.Fprintf(&all, "from %s\n", before)
		}
	}
	repo.Input([]byte(all.String()), "fast-import", "--quiet")
	ids := strings.Fields(repo.Bare("rev-list", "--reverse", before+"..refs/heads/main"))
	var commits []event.Commit
	for _, id := range ids {
		commits = append(commits, event.Commit{ID: id})
	}
	r.pushed("e1", url, "refs/heads/main", before, ids[n-1], func(e *event.GitPushed) { e.Commits = commits })
	for some := n / 8; some <= n; some += n / 8 {
		r.eventually(fmt.Sprintf("runs of %d commits", some), func() bool { return len(admitted()) >= some })
	}
	r.settled()
	runs := admitted()
	if len(runs) != n || len(ids) != n {
		t.Fatalf("%d runs of %d commits, want %d", len(runs), len(ids), n)
	}
	for i, got := range runs {
		if got.Cause.Commit != ids[i] {
			t.Fatalf("run %d is of %s, want %s", i, got.Cause.Commit, ids[i])
		}
	}
}

func TestUnreachableRepositoryIsTriedAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	_, url := r.repo("app")
	r.start()
	app := r.create("app", url+"#main")
	missing := r.create("late", r.git.URL+"/late.git#main")
	r.ready(app)
	r.eventually("the reason", func() bool {
		l, _, err := r.store.Links.Get(t.Context(), missing.UID)
		return err == nil && len(l.Unresolved) == 1 && strings.Contains(l.Unresolved[0], "not found")
	})
	r.pushed("e1", r.git.URL+"/late.git", "refs/heads/main", "", strings.Repeat("2", 40))
	r.eventually("blocked", func() bool { return strings.Contains(r.reasons(missing, decide.Blocked), "not found") })
	r.settled() // the event keeps nobody waiting
	late, _ := r.repo("late")
	head := late.Git("rev-parse", "HEAD")
	if got := r.wantRuns(missing, 1)[0]; got.Cause.Commit != head || got.Cause.Event != "e1" {
		t.Errorf("run because of %+v, want the event e1", got.Cause)
	}
}

func TestDriftBackIsReconciled(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	repo, url := r.repo("app")
	a := repo.Git("rev-parse", "HEAD")
	r.start()
	app := r.create("app", url)
	r.ready(app)
	sweep := func() {
		t.Helper()
		if _, err := r.d.Reconcile(t.Context(), false); err != nil {
			t.Fatal(err)
		}
	}
	sweep()
	b := repo.Commit("b")
	r.pushed("e1", url, "refs/heads/main", a, b)
	r.wantRuns(app, 1)
	repo.Git("push", "-q", "-f", "origin", a+":refs/heads/main") // nobody tells
	sweep()
	if got := r.wantRuns(app, 2)[1]; got.Cause.Commit != a {
		t.Errorf("run of %s, want %s", got.Cause.Commit, a)
	}
}
