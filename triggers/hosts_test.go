package triggers_test

import (
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"kiln/internal/task"
	"kiln/triggers/decide"
)

// mute is a server that accepts connections and says nothing. It counts them.
func mute(t *testing.T) (url string, accepted *atomic.Int64) {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	accepted = &atomic.Int64{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted.Add(1)
			defer c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return "http://" + l.Addr().String(), accepted
}

func TestServerThatDoesNotAnswerHoldsUpNobodyElse(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.lookUp = 300 * time.Millisecond
	dead, accepted := mute(t)
	repo, url := r.repo("app")
	r.start()
	app := r.create("app", url)
	r.ready(app)
	var silent []*task.Task
	for i := range 4 {
		silent = append(silent, r.create(fmt.Sprintf("silent%d", i), fmt.Sprintf("%s/r%d.git#main", dead, i)))
	}
	r.eventually("the server was asked", func() bool { return accepted.Load() > 0 })
	for i := range 200 { // more than are decided at once
		r.pushed(fmt.Sprintf("s%d", i), fmt.Sprintf("%s/r%d.git", dead, i%4), "refs/heads/main", "", strings.Repeat("2", 40))
	}
	before := repo.Git("rev-parse", "HEAD")
	repo.Write("a", "1", 0)
	head := repo.Commit("change")
	r.pushed("e1", url, "refs/heads/main", before, head)
	r.wantRuns(app, 1)
	for _, s := range silent {
		r.eventually("the reason of "+s.Name, func() bool {
			why := r.reasons(s, decide.Blocked)
			return strings.Contains(why, strings.TrimPrefix(dead, "http://")) && strings.Contains(why, "answer")
		})
	}
	r.settled()
	// Each asks once at most before it is known, and then one now and then.
	if n := accepted.Load(); n > 64+20 {
		t.Errorf("the server was asked %d times", n)
	}
}

// TestFirstBurstToAServerThatDoesNotAnswerLeavesPlaces has more pushes to it than are decided at once, before it
// is known that it does not answer, and look-ups that take longer than the test.
func TestFirstBurstToAServerThatDoesNotAnswerLeavesPlaces(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.lookUp = 5 * time.Minute
	dead, accepted := mute(t)
	repo, url := r.repo("app")
	r.start()
	app := r.create("app", url)
	r.ready(app)
	for i := range 100 {
		r.create(fmt.Sprintf("silent%d", i), fmt.Sprintf("%s/r%d.git#main", dead, i))
	}
	r.eventually("the server was asked", func() bool { return accepted.Load() > 0 })
	for i := range 100 {
		r.pushed(fmt.Sprintf("s%d", i), fmt.Sprintf("%s/r%d.git", dead, i), "refs/heads/main", "", strings.Repeat("2", 40))
	}
	before := repo.Git("rev-parse", "HEAD")
	repo.Write("a", "1", 0)
	head := repo.Commit("change")
	r.pushed("e1", url, "refs/heads/main", before, head)
	r.eventually("the run of a server that answers", func() bool { return len(r.runs(app)) == 1 })
	if n := accepted.Load(); n > 64/2+8 {
		t.Errorf("%d wait for the server", n)
	}
}
