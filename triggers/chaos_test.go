package triggers_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"
	"time"

	"kiln/internal/gittest"
	"kiln/internal/task"
	"kiln/triggers/decide"
)

// A tell is an event that is still to be delivered.
type tell struct{ id, url, before, after string }

// world is what a chaos test does things to.
type world struct {
	*rig
	rnd    *rand.Rand
	repos  []*gittest.Repo
	urls   []string
	heads  []string
	digest map[string]string // of images, by canonical name
	tasks  []*task.Task
	of     []int // repository of each task
	late   []tell
}

// TestNothingLostNothingTwice does everything at once, delivers events several times and in any order or not
// at all, and ends the Decider at random. In the end each track has considered what is there, and nothing was
// run twice in a row.
func TestNothingLostNothingTwice(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	w := &world{rig: newRig(t), rnd: rand.New(rand.NewPCG(seed, 1)), digest: map[string]string{}}
	w.every = 400 * time.Millisecond
	w.moveBase("0")
	for i := range 3 {
		repo, url := w.repo(fmt.Sprint("r", i))
		w.repos, w.urls, w.heads = append(w.repos, repo), append(w.urls, url), append(w.heads, repo.Git("rev-parse", "HEAD"))
	}
	w.start()
	for i := range 6 {
		window := time.Duration(i%2) * 300 * time.Millisecond
		w.tasks = append(w.tasks, w.create(fmt.Sprint("t", i), w.urls[i%3]+"#main", quiet(window)))
		w.of = append(w.of, i%3)
	}
	for i := range 80 {
		w.step(i)
	}
	w.stop()
	w.start()
	w.check()
}

// step does one thing.
func (w *world) step(i int) {
	w.t.Helper()
	switch w.rnd.IntN(8) {
	case 0, 1, 2:
		w.movePush(i)
	case 3:
		w.moveBase(fmt.Sprint(w.rnd.IntN(3)))
	case 4:
		w.stop()
		w.start()
	default:
		for range w.rnd.IntN(5) {
			if len(w.late) > 0 {
				e := w.late[w.rnd.IntN(len(w.late))]
				w.pushed(e.id, e.url, "refs/heads/main", e.before, e.after)
			}
		}
	}
}

// movePush moves a branch, forward or back, and may tell of it.
func (w *world) movePush(i int) {
	w.t.Helper()
	n := w.rnd.IntN(len(w.repos))
	repo, before := w.repos[n], w.heads[n]
	if w.rnd.IntN(4) == 0 && repo.Git("rev-list", "--count", "HEAD") != "1" {
		repo.Git("reset", "-q", "--hard", "HEAD~1")
		repo.Git("push", "-q", "-f", "origin", "HEAD")
		w.heads[n] = repo.Git("rev-parse", "HEAD")
	} else {
		w.heads[n] = repo.Commit(fmt.Sprint("change ", i))
	}
	w.late = append(w.late, tell{fmt.Sprint("e", i), w.urls[n], before, w.heads[n]})
}

func (w *world) moveBase(content string) {
	w.t.Helper()
	w.digest[canonical(w.t, w.base())] = w.push("base", "1", content)
}

// check waits for the final state of every track, and looks at the way there.
func (w *world) check() {
	w.t.Helper()
	for i, task := range w.tasks {
		track := decide.Track{Kind: decide.TrackDefault}
		head := w.heads[w.of[i]]
		w.eventually("final state of "+task.Name, func() bool {
			s := w.last(task, track).State
			return s.Known && s.Pending == nil && s.Considered.Commit == head && maps.Equal(s.Considered.Bases, w.digest)
		})
	}
	w.settled()
	w.caughtUp()
	ids := map[string]bool{}
	for _, task := range w.tasks {
		var last *decide.Snapshot
		for _, d := range w.decisions(task) {
			if d.Made.Kind != decide.Run {
				continue
			}
			if ids[d.Run.ID] {
				w.t.Errorf("run %s was decided twice", d.Run.ID)
			}
			ids[d.Run.ID] = true
			if last != nil && last.Commit == d.Made.Pin.Commit && maps.Equal(last.Bases, d.Made.Pin.Bases) && len(d.Made.Verdicts) > 0 && last.Definition == d.Made.Pin.Definition {
				w.t.Errorf("%s: run %s repeats the one before: %s", task.Name, d.Run.ID, d.Made.Reason)
			}
			last = d.Made.Pin
		}
		if s := w.last(task, decide.Track{Kind: decide.TrackDefault}).State; last != nil && (s.Attempted.Commit != last.Commit || last.Commit != s.Considered.Commit) {
			w.t.Errorf("%s: the last run was of %s, the final commit is %s", task.Name, last.Commit, s.Considered.Commit)
		}
	}
}
