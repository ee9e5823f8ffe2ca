package decide_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"kiln/internal/cron"
	"kiln/internal/graph"
	"kiln/internal/task"
	"kiln/triggers/decide"
)

// The model: a world whose refs and images move, whose events come late, often, in any order or never, and
// consumers that may die between any two steps. What they store is compared with what a single
// consumer, which never fails, makes of the same observations.

var modelTracks = []decide.Track{{Kind: decide.TrackDefault}, {Kind: decide.TrackBranch, Name: "dev"}}

// A model is the world, the storage and the queue of events.
type model struct {
	t       *testing.T
	r       *rand.Rand
	task    *task.Task
	now     time.Time
	heads   map[string]string // by track
	digests map[string]string
	version map[string]int // of the inputs of a track: how often they were changed

	stored map[string]record
	log    map[string][]entry // decisions that were stored, by track
	queue  []delivery
	lost   float64
	events int
	runs   int
}

// A record is what is stored of a track; a write must name the revision that it replaces.
type record struct {
	revision int
	state    []byte
}

// An entry is a stored decision and what was observed for it.
type entry struct {
	decide.Decision
	version int
	head    string
	bases   map[string]string
}

type delivery struct {
	event string
	track decide.Track
	after time.Time
	times int
}

// A consumer is somewhere on the way from taking a delivery to being done with it.
type consumer struct {
	d        delivery
	working  bool
	step     int
	revision int
	in       decide.Input
	version  int
}

func newModel(t *testing.T, seed uint64) *model {
	r := rand.New(rand.NewPCG(seed, 7))
	m := &model{t: t, r: r, now: noon, lost: []float64{0, 0.3, 1}[r.IntN(3)],
		heads: map[string]string{"default": "c0", "branch:dev": "c0"}, digests: map[string]string{"os": "d0", "lib": "d0"},
		version: map[string]int{}, stored: map[string]record{}, log: map[string][]entry{}}
	m.task = newTask(func(t *task.Task) {
		t.Triggers.Source[0].Branches = task.Globs{"main", "dev"}
		if r.IntN(2) == 0 {
			t.Triggers.Source[0].Paths = task.Globs{"src/"}
		}
		if r.IntN(2) == 0 {
			quiet := task.Duration(time.Duration(r.IntN(40)) * time.Second)
			t.Triggers.Source[0].Quiet, t.Triggers.BaseImage.Quiet = quiet, &quiet
		}
	})
	for _, track := range modelTracks {
		c := &consumer{d: delivery{track: track}}
		m.read(c)
		m.resolve(c)
		c.in.Seen.Origin = decide.FromBaseline
		m.decide(c)
	}
	return m
}

// move changes the world and tells of it, most of the time.
func (m *model) move() {
	if m.r.IntN(3) > 0 {
		track := modelTracks[m.r.IntN(2)]
		kind := []string{"src", "docs"}[m.r.IntN(2)]
		m.heads[track.Key()] = fmt.Sprintf("%s-%d", kind, m.r.IntN(4)) // few, so that they come back
		m.version[track.Key()]++
		m.tell(track)
		return
	}
	image := []string{"os", "lib"}[m.r.IntN(2)]
	m.digests[image] = fmt.Sprintf("d%d", m.r.IntN(4))
	m.version["default"]++
	m.tell(modelTracks[0])
}

func (m *model) tell(track decide.Track) {
	m.events++
	if m.r.Float64() >= m.lost {
		m.queue = append(m.queue, delivery{event: fmt.Sprintf("e%d", m.events), track: track, times: 1 + m.r.IntN(5)})
	}
}

// take gives a consumer a delivery, any of those that are due; copies stay in the queue.
func (m *model) take(c *consumer) {
	var due []int
	for i, d := range m.queue {
		if !d.after.After(m.now) {
			due = append(due, i)
		}
	}
	if len(due) == 0 {
		return
	}
	i := due[m.r.IntN(len(due))]
	*c = consumer{d: m.queue[i], working: true}
	if m.queue[i].times--; m.queue[i].times <= 0 {
		m.queue = slices.Delete(m.queue, i, i+1)
	}
}

func (m *model) read(c *consumer) {
	rec := m.stored[c.d.track.Key()]
	c.in = decide.Input{Task: m.task, Track: c.d.track, Now: m.now, Bases: map[string]decide.Base{"os": {Kind: graph.Runtime}, "lib": {Kind: graph.Runtime}}}
	c.revision = rec.revision
	if rec.state != nil {
		if err := json.Unmarshal(rec.state, &c.in.State); err != nil {
			m.t.Fatal(err)
		}
	}
}

// resolve looks at the world as it is now.
func (m *model) resolve(c *consumer) {
	key := c.d.track.Key()
	c.version = m.version[key]
	name := map[string]string{"default": "main", "branch:dev": "dev"}[key]
	c.in.Seen = decide.Observation{Event: c.d.event, Origin: decide.FromEvent, Bases: maps.Clone(m.digests),
		Source: &decide.Source{Name: name, Default: "main", Head: m.heads[key]}}
	if c.d.event == "" {
		c.in.Seen.Origin = decide.FromReconcile
	}
}

// decide stores what is decided, unless somebody else has stored meanwhile. It reports whether the
// delivery is done with, and until when it is to wait.
func (m *model) decide(c *consumer) (done bool, hold time.Time) {
	m.runs++
	c.in.RunID, c.in.Now = fmt.Sprintf("r%d", m.runs), m.now
	out := decide.Observe(c.in)
	if q := out.Question; q != nil {
		c.in.Seen.Source.Files = &decide.Files{From: q.From, To: q.To, Names: []string{strings.Split(q.To, "-")[0] + "/x"}}
		if out = decide.Observe(c.in); out.Question != nil {
			m.t.Fatalf("the same question again: %+v", *out.Question)
		}
	}
	if out.Store {
		key := c.d.track.Key()
		if m.stored[key].revision != c.revision {
			return false, time.Time{}
		}
		data, err := json.Marshal(out.State)
		if err != nil {
			m.t.Fatal(err)
		}
		m.stored[key] = record{c.revision + 1, data}
		if out.Decision != nil {
			m.log[key] = append(m.log[key], entry{*out.Decision, c.version, c.in.Seen.Source.Head, c.in.Seen.Bases})
		}
	} else if d := out.Decision; d != nil && d.Kind == decide.Run {
		m.t.Fatalf("a run that is not stored: %+v", *d)
	}
	return out.Hold.IsZero(), out.Hold
}

// advance lets a consumer take one step, or die.
func (m *model) advance(c *consumer) {
	if !c.working {
		m.take(c)
		return
	}
	again := c.d
	again.times = 1
	if m.r.IntN(8) == 0 { // died; what it stored remains, the delivery comes again
		c.working = false
		m.queue = append(m.queue, again)
		return
	}
	switch c.step++; c.step {
	case 1:
		m.read(c)
	case 2:
		m.resolve(c)
	case 3:
		done, hold := m.decide(c)
		if !done {
			again.after = hold
			m.queue = append(m.queue, again)
		}
		if m.r.IntN(8) == 0 { // died before it was done with it
			m.queue = append(m.queue, again)
		}
		c.working = false
	}
}

// settle lets everything come to rest, with sweeps that find what nobody told.
func (m *model) settle(consumers []consumer) {
	for round := 0; round < 80; round++ {
		if round%20 == 0 {
			for _, track := range modelTracks {
				m.queue = append(m.queue, delivery{track: track, times: 1})
			}
		}
		for range 100 {
			m.advance(&consumers[m.r.IntN(len(consumers))])
		}
		m.now = m.now.Add(10 * time.Second)
	}
}

func (m *model) check() {
	for _, track := range modelTracks {
		key := track.Key()
		var s decide.State
		if err := json.Unmarshal(m.stored[key].state, &s); err != nil {
			m.t.Fatal(err)
		}
		if due := s.Due(); due != nil || s.Pending != nil || s.Considered.Commit != m.heads[key] || !maps.Equal(s.Considered.Bases, m.digests) {
			m.t.Errorf("%s came to rest with %v due, considered %+v of %s %v", key, due, s.Considered, m.heads[key], m.digests)
		}
		want, last := m.sequential(track)
		var got []string
		version := -1
		for _, e := range m.log[key] {
			if e.Kind != decide.Run {
				continue
			}
			got = append(got, show(e.Pin.Commit, e.Pin.Bases))
			if e.version <= version {
				m.t.Errorf("%s: version %d of the inputs was run after version %d", key, e.version, version)
			}
			version = e.version
		}
		if !slices.Equal(got, want) {
			m.t.Errorf("%s was run with\n%q, one consumer that never fails runs\n%q", key, got, want)
		}
		if attempted := show(s.Attempted.Commit, s.Attempted.Bases); len(want) > 0 && attempted != want[len(want)-1] {
			m.t.Errorf("%s: attempted %s, want %s", key, attempted, want[len(want)-1])
		}
		if final := show(m.heads[key], m.digests); last != final {
			m.t.Errorf("%s: the last state %s was never decided, but %s", key, final, last)
		}
	}
}

func show(head string, bases map[string]string) string {
	return head + " " + bases["os"] + " " + bases["lib"]
}

// sequential returns the runs that follow from the observations that were decided, one after the other,
// and the last state that was observed.
func (m *model) sequential(track decide.Track) (runs []string, last string) {
	head, bases := "", map[string]string{}
	for i, e := range m.log[track.Key()] {
		commit := e.head != head && (len(m.task.Triggers.Source[0].Paths) == 0 || strings.HasPrefix(e.head, "src"))
		base := track.Kind == decide.TrackDefault && !maps.Equal(bases, e.bases)
		if i > 0 && (commit || base) {
			runs = append(runs, show(e.head, e.bases))
		}
		head, bases = e.head, e.bases
	}
	return runs, show(head, bases)
}

func TestConsumersThatDieDecideAsOneThatNeverFails(t *testing.T) {
	t.Parallel()
	runs := 0
	for seed := range uint64(60) {
		m := newModel(t, seed)
		consumers := make([]consumer, 3)
		for range 300 {
			switch m.r.IntN(12) {
			case 0:
				m.move()
			case 1:
				m.now = m.now.Add(time.Duration(m.r.IntN(20)) * time.Second)
			case 2:
				if m.r.IntN(5) == 0 {
					m.now = m.now.Add(-time.Minute) // set back
				}
			default:
				m.advance(&consumers[m.r.IntN(len(consumers))])
			}
		}
		m.settle(consumers)
		m.check()
		for _, log := range m.log {
			runs += len(log)
		}
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	if runs < 500 {
		t.Errorf("only %d decisions: the model is asleep", runs)
	}
}

func TestNoOccurrenceIsRunTwice(t *testing.T) {
	t.Parallel()
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	tk := newTask(func(t *task.Task) {
		t.Triggers.Timers = []task.Timer{{Name: "t", Schedule: "x", TimeZone: "Europe/Berlin"}}
	})
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 9))
		s, err := cron.Parse([]string{"*/7 * * * *", "30 2 * * *", "0 */3 * * *"}[seed%3])
		if err != nil {
			t.Fatal(err)
		}
		now := time.Date(2026, 10, 24, 20, 0, 0, 0, time.UTC)
		var state decide.State
		armed, last := s.Next(now, berlin), time.Time{}
		for i := range 300 {
			now = now.Add(time.Duration(r.IntN(7200)-1200) * time.Second) // goes on, and sometimes back
			if now.Before(armed) && r.IntN(4) > 0 {
				continue
			}
			out := decide.Fire(tk, state, decide.Tick{Timer: "t", Armed: armed, Schedule: s, Location: berlin}, fmt.Sprintf("r%d", i), now)
			if r.IntN(5) == 0 {
				continue // died before anything was stored: the tick comes again
			}
			if out.Store {
				if !out.Decision.Occurrence.After(last) || s.Next(out.Decision.Occurrence.Add(-time.Second), berlin) != out.Decision.Occurrence || out.Decision.Kind != decide.Run {
					t.Fatalf("seed %d: %+v after %v", seed, out.Decision, last)
				}
				last = out.Decision.Occurrence
				state = reload(t, out.State)
			}
			if r.IntN(5) == 0 {
				continue // died before the timer was armed again
			}
			if !out.Hold.After(last) {
				t.Fatalf("seed %d: armed for %v after %v", seed, out.Hold, last)
			}
			armed = out.Hold
		}
		latest, _ := s.Missed(last, now, berlin)
		out := decide.Fire(tk, state, decide.Tick{Timer: "t", Armed: armed, Schedule: s, Location: berlin}, "end", now)
		if !latest.IsZero() && !armed.After(now) && (out.Decision.Kind != decide.Run || !out.Decision.Occurrence.Equal(latest)) {
			t.Fatalf("seed %d: %v was due and is lost: %+v", seed, latest, out.Decision)
		}
	}
}

// FuzzObserve feeds arbitrary observations and checks what must always hold.
func FuzzObserve(f *testing.F) {
	f.Add([]byte("abcabc\x00\x10\x20\x30"))
	f.Fuzz(func(t *testing.T, data []byte) {
		tk := newTask(func(t *task.Task) {
			t.Triggers.Source = []task.SourceTrigger{{Paths: task.Globs{"a"}, SkipCI: task.SkipIgnore}, {Commits: task.CommitsEvery, Branches: task.Globs{"dev"}}}
		})
		var state decide.State
		for i, b := range data {
			o := decide.Observation{Event: string(rune('a' + b%5)), Origin: []decide.Origin{decide.FromEvent, decide.FromReconcile, decide.FromBaseline, decide.FromEvent}[b>>6]}
			if b&1 == 0 {
				o.Source = &decide.Source{Name: []string{"main", "dev"}[b>>1&1], Head: []string{"", "x", "y"}[b>>2%3]}
				o.Source.Files = &decide.Files{From: state.Considered.Commit, To: o.Source.Head, Names: []string{string(rune('a' + b%3))}}
			}
			if b&2 == 0 {
				o.Bases = map[string]string{node: fmt.Sprint(b >> 3 & 3)}
			}
			out := decide.Observe(decide.Input{Task: tk, Track: modelTracks[0], State: state, Seen: o, RunID: fmt.Sprint(i), Now: noon.Add(time.Duration(i) * time.Minute)})
			switch d := out.Decision; {
			case d != nil && d.Kind == decide.Run && (!out.Store || d.Pin == nil || d.Run == "" || out.State.Attempted.Equal(state.Attempted) && out.State.Considered.Equal(state.Considered)):
				t.Fatalf("run %+v of state %+v", d, state)
			case d != nil && d.Reason == "":
				t.Fatalf("decision without a reason: %+v", d)
			case out.Store && out.Question != nil:
				t.Fatalf("stored with an open question: %+v", out)
			}
			if out.Store {
				state = out.State
			}
		}
	})
}

// BenchmarkObserve decides for 10,000 tracks on which one base moved.
func BenchmarkObserve(b *testing.B) {
	tk := newTask(nil)
	in := decide.Input{Task: tk, Definition: tk.Hash(), Track: modelTracks[0], Now: noon, RunID: "r", Bases: map[string]decide.Base{node: {Kind: graph.Runtime}}}
	in.State = decide.Observe(decide.Input{Task: tk, Track: modelTracks[0], Seen: decide.Observation{Origin: decide.FromBaseline, Bases: map[string]string{node: "d0"}}}).State
	in.Seen = decide.Observation{Bases: map[string]string{node: "d1"}}
	for b.Loop() {
		for range 10_000 {
			if out := decide.Observe(in); out.Decision.Kind != decide.Run {
				b.Fatal(out.Decision)
			}
		}
	}
}
