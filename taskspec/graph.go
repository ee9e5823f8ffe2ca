package taskspec

import (
	"slices"
	"strings"
)

// runsAtOnce is the entry of when that means "wait for nothing".
const runsAtOnce = "-"

// rootID is the reserved ID of what has happened before all steps.
const rootID = "acb_root"

// connect sets After of every step and checks that the graph is sound.
func (p *parser) connect(t *Task, raw []*rawStep) {
	byID := make(map[string]*rawStep, len(raw))
	for _, s := range raw {
		first, taken := byID[s.ID]
		if !taken {
			byID[s.ID] = s
			continue
		}
		p.errorf(s.at(s.idNode), "id", "the step in line %d has the same id; give one of them another (%q already exists as a vertex)", p.line(first.node), p.clip(s.ID))
	}
	ids := keys(byID)
	for i, s := range raw {
		if len(s.when) > 0 {
			t.Steps[i].After = p.after(s, byID, ids)
		} else if i > 0 {
			t.Steps[i].After = []string{raw[i-1].ID}
		}
	}
	if !p.failed() {
		p.checkCycle(t, byID)
	}
}

// after returns the steps that s waits for by its when.
func (p *parser) after(s *rawStep, byID map[string]*rawStep, ids []string) []string {
	if len(s.when) == 1 && s.when[0].text == runsAtOnce {
		return nil
	}
	list := make([]string, 0, len(s.when))
	seen := make(map[string]bool, len(s.when))
	for _, w := range s.when {
		at := s.at(w.node)
		switch {
		case w.text == runsAtOnce:
			p.errorf(at, "when", `step cannot contain other IDs in when if the immediate execution token "-" is specified`)
		case w.text == rootID:
			p.warnf(at, "when", "%q is what steps without anything to wait for wait for; it has no effect here", rootID)
		case w.text == s.ID:
			p.errorf(at, "when", "step %q cannot wait for itself", p.clip(s.ID))
		case byID[w.text] == nil && p.full():
		case byID[w.text] == nil:
			p.errorf(at, "when", "no step %q%s", p.clip(w.text), didYouMean(w.text, ids))
		case !seen[w.text]:
			seen[w.text] = true
			list = append(list, w.text)
		}
	}
	return list
}

// checkCycle reports one cycle, if there is any.
func (p *parser) checkCycle(t *Task, byID map[string]*rawStep) {
	order := t.Order()
	if len(order) == len(t.Steps) {
		return
	}
	// Every step that is not in order waits for another such step, so following one leads into a cycle.
	done := make(map[string]bool, len(order))
	for _, s := range order {
		done[s.ID] = true
	}
	after := make(map[string][]string, len(t.Steps))
	id := ""
	for _, s := range t.Steps {
		after[s.ID] = s.After
		if id == "" && !done[s.ID] {
			id = s.ID
		}
	}
	var trail []string
	for !slices.Contains(trail, id) {
		trail = append(trail, id)
		id = after[id][slices.IndexFunc(after[id], func(a string) bool { return !done[a] })]
	}
	trail = append(trail[slices.Index(trail, id):], id)
	s := byID[id]
	hint := ""
	for i, id := range trail {
		if len(byID[id].when) == 0 {
			hint = "; step " + p.clip(id) + ` has no when and so waits for the step above it; give it when: ["-"] or the steps it needs`
		}
		trail[i] = p.clip(id)
	}
	if len(trail) > 12 {
		trail = append(append(trail[:6:6], "..."), trail[len(trail)-5:]...)
	}
	p.errorf(s.at(nil), "when", "steps wait for each other: %s%s", strings.Join(trail, " -> "), hint)
}

// Order returns the steps so that each comes after those it waits for, steps in file order otherwise.
// In a Task that Parse returned it has all steps.
func (t *Task) Order() []*Step {
	index := make(map[string]int, len(t.Steps))
	for i, s := range t.Steps {
		index[s.ID] = i
	}
	waiting := make([]int, len(t.Steps))
	next := make([][]int, len(t.Steps))
	var ready []int
	for i, s := range t.Steps {
		waiting[i] = len(s.After)
		if len(s.After) == 0 {
			ready = append(ready, i)
		}
		for _, id := range s.After {
			if j, ok := index[id]; ok {
				next[j] = append(next[j], i)
			}
		}
	}
	order := make([]*Step, 0, len(t.Steps))
	for len(ready) > 0 {
		i := ready[0]
		ready = ready[1:]
		order = append(order, t.Steps[i])
		for _, j := range next[i] {
			if waiting[j]--; waiting[j] == 0 {
				at, _ := slices.BinarySearch(ready, j)
				ready = slices.Insert(ready, at, j)
			}
		}
	}
	return order
}

// Step returns the step with an ID, nil if there is none.
func (t *Task) Step(id string) *Step {
	for _, s := range t.Steps {
		if s.ID == id {
			return s
		}
	}
	return nil
}
