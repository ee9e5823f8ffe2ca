package triggers_test

import (
	"slices"
	"strings"
	"testing"

	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/internal/task"
	"kiln/triggers/decide"
)

// reconcile compares the world with what was decided, and returns what was found, by task and reason.
func (r *rig) reconcile(dry bool) []string {
	r.t.Helper()
	found, err := r.d.Reconcile(r.t.Context(), dry)
	if err != nil || len(found.Problems) > 0 {
		r.t.Fatalf("%v, problems %q", err, found.Problems)
	}
	var all []string
	for _, f := range found.Found {
		all = append(all, f.Task+" "+f.Decision.Track+" "+string(f.Decision.Kind)+": "+f.Decision.Reason)
	}
	slices.Sort(all) // tracks are looked at side by side
	return all
}

// sweepsNothing checks that reconciling finds nothing to do.
func (r *rig) sweepsNothing() {
	r.t.Helper()
	if found := r.reconcile(false); len(found) > 0 {
		r.t.Errorf("a sweep found %q", found)
	}
}

func TestLostDeletionIsReconciled(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	repo, url := r.repo("app")
	r.push("base", "1", "one")
	head := repo.Git("rev-parse", "HEAD")
	repo.Git("push", "-q", "origin", "HEAD:refs/heads/v1", "HEAD:refs/heads/v2", "HEAD:refs/tags/t1")
	r.start()
	app := r.create("app", url, func(t *task.Task) {
		t.Triggers.Source[0].Branches = task.Globs{"v*"}
		t.Triggers.Source[0].Events = []task.SourceEvent{task.BranchDeleted, task.Tag}
	})
	r.ready(app)
	r.eventually("refs followed", func() bool { return r.last(app, decide.Track{Kind: "refs"}).State.Known })
	if found := r.reconcile(false); len(found) > 0 {
		t.Fatalf("found %q where nothing has changed", found)
	}
	repo.Git("push", "-q", "origin", ":refs/heads/v1", ":refs/tags/t1") // nobody tells
	found := r.reconcile(true)
	if len(found) != 2 || !strings.HasPrefix(found[0], "app branch:v1 run: branch v1 was deleted at "+head[:12]) ||
		!strings.HasPrefix(found[1], "app tag:t1 filtered: tag t1 was deleted") {
		t.Fatalf("dry run found %q", found)
	}
	r.wantRuns(app, 0)
	r.reconcile(false)
	if got := r.wantRuns(app, 1)[0]; got.Cause.Commit != head || got.Cause.Track != "branch:v1" {
		t.Errorf("run %+v, want one of the commit that the branch was at", got.Cause)
	}
	r.sweepsNothing()
	repo.Git("push", "-q", "origin", "HEAD:refs/tags/t1") // the same tag, at the same commit
	r.reconcile(false)
	if got := r.wantRuns(app, 2)[1]; got.Cause.Track != "tag:t1" {
		t.Errorf("run %+v, want one of the tag that came back", got.Cause)
	}
}

func TestLostCommitOfAPullRequestIsReconciled(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	repo, url := r.repo("app")
	r.push("base", "1", "one")
	r.start()
	app := r.create("app", url, func(t *task.Task) { t.Triggers.Source[0].Events = []task.SourceEvent{task.PullRequest} })
	r.ready(app)
	first := repo.Git("commit-tree", "-p", "HEAD", "-m", "first", "HEAD^{tree}")
	second := repo.Git("commit-tree", "-p", first, "-m", "second", "HEAD^{tree}")
	for _, n := range []string{"7", "8"} {
		repo.Git("push", "-q", "origin", first+":refs/merge-requests/"+n+"/head")
	}
	e := event.PullRequestUpdated{Repository: event.Repository{Provider: "gitlab", FullName: "o/r", CloneURLs: []string{url}},
		Number: 7, Action: event.PullOpened, HeadRef: "x", HeadSHA: first, BaseRef: "main", FetchRef: "refs/merge-requests/7/head"}
	r.publish(event.DeliverySubject(event.TypePullRequestUpdated, "p1"), "p1", event.TypePullRequestUpdated, e)
	r.wantRuns(app, 1)
	if found := r.reconcile(false); len(found) > 0 {
		t.Fatalf("found %q; of 8 nobody knows whether it is open, and 7 has not changed", found)
	}
	repo.Git("push", "-q", "-f", "origin", second+":refs/merge-requests/7/head") // nobody tells
	if found := r.reconcile(true); len(found) != 1 || !strings.HasPrefix(found[0], "app pull:7 run: pull request 7 is at "+second[:12]) {
		t.Fatalf("dry run found %q", found)
	}
	r.reconcile(false)
	got := r.wantRuns(app, 2)[1]
	if got.Cause.Commit != second || got.Cause.PullRequest != 7 || got.Cause.Kind != run.CausePull || got.Lane != string(decide.LaneReconcile) {
		t.Errorf("run %+v", got)
	}
	repo.Git("push", "-q", "origin", ":refs/merge-requests/7/head") // merged, and its ref removed
	if found := r.reconcile(false); len(found) != 1 || !strings.Contains(found[0], "pull request 7 was closed") {
		t.Errorf("found %q, want that it was closed", found)
	}
	r.sweepsNothing()
	r.wantRuns(app, 2)
}
