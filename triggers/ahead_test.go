package triggers_test

import (
	"testing"

	"kiln/internal/source/git"
	"kiln/internal/task"
	"kiln/triggers/decide"
)

func TestCommitOfADueRunIsFetchedAhead(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	repo, url := r.repo("app")
	r.start()
	app := r.create("app", url, func(t *task.Task) { t.Triggers.Source[0].Branches = task.Globs{"release/*"} })
	r.ready(app)
	r.eventually("refs followed", func() bool { return r.last(app, decide.Track{Kind: "refs"}).State.Known })
	repo.Write("a", "1", 0)
	repo.Git("add", "-A")
	repo.Git("commit", "-q", "-m", "on a branch")
	repo.Git("push", "-q", "origin", "HEAD:refs/heads/release/1")
	head := repo.Git("rev-parse", "HEAD")
	size := r.mirrors.Size()
	r.pushed("e1", url, "refs/heads/release/1", "", head)
	r.wantRuns(app, 1)
	r.eventually("commit fetched", func() bool { return r.mirrors.Size() > size })
	r.settled()
	asked := r.git.Requests()
	src, err := r.mirrors.Open(t.Context(), git.Ref{URL: url, Commit: head}, git.Credential{})
	if err != nil || src.Commit.ID != head {
		t.Fatalf("Open = %v", err)
	}
	if n := r.git.Requests() - asked; n != 0 {
		t.Errorf("%d requests for a commit that was fetched ahead", n)
	}
}
