package triggers_test

import (
	"strings"
	"testing"

	"kiln/internal/event"
	"kiln/internal/task"
	"kiln/triggers/decide"
)

func (r *rig) pulled(id string, e event.PullRequestUpdated) {
	r.t.Helper()
	r.publish(event.DeliverySubject(event.TypePullRequestUpdated, id), id, event.TypePullRequestUpdated, e)
}

// Bitbucket Cloud has no ref of a pull request in the repository, so a fork is read where it is.
func TestForkWithoutARefOfItsOwn(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	_, url := r.repo("app")
	fork, forkURL := r.repo("fork")
	fork.Git("checkout", "-q", "-b", "x")
	head := fork.Commit("from a fork")
	r.start()
	app := r.create("app", url, func(t *task.Task) { t.Triggers.Source[0].Events = []task.SourceEvent{task.PullRequest} })
	r.ready(app)
	e := event.PullRequestUpdated{Repository: event.Repository{Provider: "bitbucket", FullName: "o/app", CloneURLs: []string{url}},
		Number: 7, Action: event.PullOpened, HeadRef: "x", HeadSHA: head[:12], BaseRef: "main", Fork: true,
		HeadRepository: event.Repository{Provider: "bitbucket", FullName: "else/fork", CloneURLs: []string{"https://git.invalid/else/fork.git"}}}
	r.pulled("p1", e)
	r.eventually("the refusal", func() bool { return r.reasons(app, decide.Blocked) != "" })
	r.pulled("p1", e)
	r.wantRuns(app, 0)
	r.push("base", "1", "one")
	r.sweepsNothing()
	if got := r.reasons(app, decide.Blocked); got != "pull request 7 comes from a fork, and its repository else/fork cannot be reached as the task's is: it is on another server, or only by another protocol" {
		t.Errorf("refused with %q", got)
	}

	e.HeadRepository.CloneURLs, e.Number = []string{forkURL}, 8
	r.pulled("p2", e)
	got := r.wantRuns(app, 1)[0]
	if got.Cause.Commit != head || !got.NeedsApproval || !strings.HasPrefix(got.Spec.Context, forkURL+"#") {
		t.Errorf("run %+v of %s", got.Cause, got.Spec.Context)
	}
}

// Anybody may take a nickname, also that of an author who is trusted.
func TestTrustIsInAnAccount(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	repo, url := r.repo("app")
	head := repo.Git("rev-parse", "HEAD")
	repo.Git("push", "-q", "origin", head+":refs/pull-requests/1/from", head+":refs/pull-requests/2/from", head+":refs/pull-requests/3/from")
	r.start()
	app := r.create("app", url, func(t *task.Task) { t.Triggers.Source[0].Events = []task.SourceEvent{task.PullRequest} })
	r.ready(app)
	e := event.PullRequestUpdated{Repository: event.Repository{Provider: "bitbucket", FullName: "o/app", CloneURLs: []string{url}},
		Action: event.PullOpened, HeadRef: "x", HeadSHA: head, BaseRef: "main", Fork: true}
	open := func(number int, author event.Person) *rig {
		t.Helper()
		e.Number, e.Author = number, author
		e.FetchRef = "refs/pull-requests/" + string(rune('0'+number)) + "/from"
		r.pulled("p"+string(rune('0'+number)), e)
		return r
	}
	first := open(1, event.Person{ID: "{1}", Login: "jane"}).wantRuns(app, 1)[0]
	if !first.NeedsApproval || first.Cause.AuthorID != "bitbucket:id:{1}" || first.Cause.Author != "bitbucket:jane" {
		t.Fatalf("run %+v", first)
	}
	for _, key := range []string{first.Cause.AuthorID, first.Cause.Author} {
		if _, err := r.store.Trusted.Put(t.Context(), event.TrustKey(url, key), "kim"); err != nil {
			t.Fatal(err)
		}
	}
	if got := open(2, event.Person{Login: "jane"}).wantRuns(app, 2)[1]; !got.NeedsApproval {
		t.Error("a nickname alone is trusted")
	}
	if got := open(3, event.Person{ID: "{1}", Login: "jane doe"}).wantRuns(app, 3)[2]; got.NeedsApproval {
		t.Error("the account is not trusted under its new nickname")
	}
}
