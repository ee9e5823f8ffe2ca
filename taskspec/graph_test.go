package taskspec

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// TestGraphsExecuteInOrder parses random graphs, executes each with every ready step started in a random
// order, and has a checker that knows only what the author wrote judge what happened.
func TestGraphsExecuteInOrder(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	cycles := 0
	for range 2000 {
		g := randomGraph(rnd)
		task, _, err := Parse([]byte(g.source()), testOptions())
		if g.hasCycle() {
			cycles++
			if err == nil || !strings.Contains(err.Error(), "steps wait for each other") {
				t.Fatalf("Parse = %v, but there is a cycle in\n%s", err, g.source())
			}
			continue
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, g.source())
		}
		if err := g.judge(execute(rnd, task)); err != nil {
			t.Fatalf("%v in\n%s", err, g.source())
		}
		var ordered []string
		for _, s := range task.Order() {
			ordered = append(ordered, "start "+s.ID, "end "+s.ID)
		}
		if err := g.judge(ordered); err != nil {
			t.Fatalf("Order: %v in\n%s", err, g.source())
		}
		checkStages(t, NewPlan(task, PlanOptions{}))
	}
	if cycles < 100 || cycles > 1900 {
		t.Errorf("%d of 2000 graphs have a cycle", cycles)
	}
}

// A graph has the when of each step; the ID of step i is si.
type graph [][]string

func randomGraph(rnd *rand.Rand) graph {
	g := make(graph, 1+rnd.IntN(12))
	for i := range g {
		switch rnd.IntN(4) {
		case 0: // no when
		case 1:
			g[i] = []string{"-"}
		default:
			for range 1 + rnd.IntN(3) {
				last := i
				if rnd.IntN(8) == 0 {
					last = len(g) // forward
				}
				if j := rnd.IntN(max(last, 1)); j != i {
					g[i] = append(g[i], fmt.Sprint("s", j))
				}
			}
		}
	}
	return g
}

func (g graph) source() string {
	var b strings.Builder
	b.WriteString("steps:\n")
	for i, when := range g {
		fmt.Fprintf(&b, "- {id: s%d, cmd: img", i)
		if when != nil {
			fmt.Fprintf(&b, ", when: ['%s']", strings.Join(when, "', '"))
		}
		b.WriteString("}\n")
	}
	return b.String()
}

// needs returns what a step waits for, by the rules that authors are told.
func (g graph) needs(i int) []string {
	switch {
	case len(g[i]) == 0 && i == 0, len(g[i]) == 1 && g[i][0] == "-":
		return nil
	case len(g[i]) == 0:
		return []string{fmt.Sprint("s", i-1)}
	}
	return g[i]
}

// hasCycle executes what can be executed until nothing can, and reports whether anything is left.
func (g graph) hasCycle() bool {
	done := map[string]bool{}
	for range g {
		for i := range g {
			if !slices.ContainsFunc(g.needs(i), func(id string) bool { return !done[id] }) {
				done[fmt.Sprint("s", i)] = true
			}
		}
	}
	return len(done) < len(g)
}

// judge checks that every step starts and ends once, and after all that it needs has ended.
func (g graph) judge(events []string) error {
	at := map[string]int{}
	for i, e := range events {
		if _, twice := at[e]; twice {
			return fmt.Errorf("%s happens twice", e)
		}
		at[e] = i
	}
	if len(events) != 2*len(g) {
		return fmt.Errorf("%d events of %d steps", len(events), len(g))
	}
	for i := range g {
		start, ok := at[fmt.Sprint("start s", i)]
		if !ok {
			return fmt.Errorf("s%d does not start", i)
		}
		for _, id := range g.needs(i) {
			if end, ok := at["end "+id]; !ok || end > start {
				return fmt.Errorf("s%d starts before %s has ended", i, id)
			}
		}
	}
	return nil
}

// execute starts each step as soon as those it waits for have ended; they end in a random order.
func execute(rnd *rand.Rand, task *Task) (events []string) {
	started, ended := map[string]bool{}, map[string]bool{}
	var running []string
	for {
		for _, s := range task.Steps {
			if !started[s.ID] && !slices.ContainsFunc(s.After, func(id string) bool { return !ended[id] }) {
				started[s.ID] = true
				running = append(running, s.ID)
				events = append(events, "start "+s.ID)
			}
		}
		if len(running) == 0 {
			return events
		}
		i := rnd.IntN(len(running))
		ended[running[i]] = true
		events = append(events, "end "+running[i])
		running = slices.Delete(running, i, i+1)
	}
}

func checkStages(t *testing.T, plan *Plan) {
	t.Helper()
	stages := map[string]int{}
	for _, s := range plan.Steps {
		stages[s.ID] = s.Stage
	}
	for _, s := range plan.Steps {
		want := 1
		for _, id := range s.After {
			want = max(want, stages[id]+1)
		}
		if s.Stage != want {
			t.Fatalf("stage of %s = %d, want %d", s.ID, s.Stage, want)
		}
	}
}
