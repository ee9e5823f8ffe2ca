package taskspec

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"gopkg.in/yaml.v3"
)

// A rawStep is a step as written.
type rawStep struct {
	Step                          // what can be decoded without looking at the rest of the task
	node                          *yaml.Node
	index                         int
	build, cmd                    item
	push, when, env               []item
	workdir, network, cache       item
	entryPoint, user              item
	mounts                        []mountNode
	pull                          bool
	pullRetries                   int
	pullDelay                     time.Duration
	fields                        []field
	badKind                       bool // build, cmd or push is there, but not what it must be
	idNode, retryNode, repeatNode *yaml.Node
}

// at returns the place of a part of the step.
func (s *rawStep) at(n *yaml.Node) place {
	if n == nil {
		n = s.node
	}
	return place{s.ID, n}
}

// steps decodes the list of steps.
func (p *parser) steps(n *yaml.Node) []*rawStep {
	nodes := p.items(place{}, "steps", n)
	if len(nodes) > maxSteps {
		p.errorf(place{node: nodes[maxSteps]}, "steps", "a task has at most %d steps, this one has %d", maxSteps, len(nodes))
		return nil
	}
	steps := make([]*rawStep, 0, len(nodes))
	for i, n := range nodes {
		s := &rawStep{node: n, index: i}
		s.ID = "acb_step_" + strconv.Itoa(i)
		fields := p.fields(place{s.ID, n}, "", n)
		for _, f := range fields {
			if f.name == "id" {
				p.stepID(s, f)
			}
		}
		stepTable.decodeFields(p, s, s.at(nil), fields)
		s.fields = fields
		steps = append(steps, s)
	}
	return steps
}

func (p *parser) stepID(s *rawStep, f field) {
	if id := p.str(s.at(nil), "id", f.value); id != "" {
		s.ID, s.idNode = id, f.value
	}
}

// kind runs what decodes build, cmd or push, and notes if that finds a mistake.
func (p *parser) kind(s *rawStep, decode func()) {
	before := len(p.errs) + p.dropped
	decode()
	s.badKind = s.badKind || len(p.errs)+p.dropped > before
}

// oneWord decodes a text that a shell would have to see as one word.
func (p *parser) oneWord(at place, property string, n *yaml.Node) string {
	s := p.str(at, property, n)
	if s == "" {
		return ""
	}
	w, err := splitWords(s)
	switch {
	case err != nil:
		p.errorf(place{at.step, n}, property, "%s", brief(err))
	case len(w.list) > 1:
		p.errorf(place{at.step, n}, property, "%q has %d words; it takes one", p.clip(s), len(w.list))
	case len(w.list) == 1:
		return w.list[0]
	}
	return ""
}

// finishSteps checks the steps, fills in what they inherit and sets t.Steps.
func (p *parser) finishSteps(t *Task, doc *document, taskEnv []envEntry) {
	outer := p.outerEnv()
	t.Steps = make([]*Step, 0, len(doc.steps))
	for _, s := range doc.steps {
		p.checkStep(s)
		if s.Timeout <= 0 {
			s.Timeout = t.StepTimeout
		}
		if s.RetryDelay <= 0 {
			s.RetryDelay = defaultRetryDelay
		}
		s.WorkingDirectory = t.WorkingDirectory
		if s.Kind != KindPush {
			p.finishContainer(t, s)
		}
		s.Env = p.mergeEnv(s, taskEnv, outer)
		p.checkMounts(t, s)
		switch s.Kind {
		case KindBuild:
			p.finishBuild(s)
		case KindCmd:
			p.finishCmd(s)
		case KindPush:
			p.finishPush(s)
		}
		p.warnWithout(s)
		p.finishDocker(s)
		p.finishPurge(s)
		s.Line = p.line(s.node)
		step := s.Step
		t.Steps = append(t.Steps, &step)
	}
	p.connect(t, doc.steps)
}

// finishContainer sets what only steps with a container have.
func (p *parser) finishContainer(t *Task, s *rawStep) {
	if s.workdir.text != "" {
		s.WorkingDirectory = p.workdir(s.at(s.workdir.node), s.workdir.text)
	}
	if s.user.text != "" {
		s.User = p.oneWord(s.at(nil), "user", s.user.node)
	}
	p.stepNetwork(t, s)
}

// isContainerName reports whether s can name a container.
func isContainerName(s string) bool {
	for i := range len(s) {
		if c := s[i]; !isAlpha(c) && !isDigit(c) && (i == 0 || strings.IndexByte("_.-", c) < 0) {
			return false
		}
	}
	return s != ""
}

// checkStep checks a step by itself and sets its kind.
func (p *parser) checkStep(s *rawStep) {
	if s.Retries > maxAttempts || s.Repeat > maxAttempts {
		p.refuse(s.at(nil), "", "a step is repeated or retried at most %d times", maxAttempts)
	}
	if s.Retries < 0 {
		p.errorf(s.at(s.retryNode), "retries", "step must specify retries >= 0")
	}
	if s.Repeat < 0 {
		p.errorf(s.at(s.repeatNode), "repeat", "step must specify repeat >= 0")
	}
	kinds := 0
	if s.build.text != "" {
		s.Kind = KindBuild
		kinds++
	}
	if s.cmd.text != "" {
		s.Kind = KindCmd
		kinds++
	}
	if len(s.push) > 0 {
		s.Kind = KindPush
		kinds++
	}
	switch {
	case kinds > 1:
		p.errorf(s.at(nil), "", "step must only contain a single build, cmd, or push property")
	case strings.ContainsFunc(s.ID, unicode.IsSpace):
		p.errorf(s.at(s.idNode), "id", "step ID cannot contain spaces")
	case len(s.ID) > maxID:
		p.errorf(s.at(s.idNode), "id", "step ID has %d characters, more than %d", len(s.ID), maxID)
	case s.ID == rootID:
		p.errorf(s.at(s.idNode), "id", "%q is reserved", s.ID)
	case kinds == 0 && !s.badKind:
		p.errorf(s.at(nil), "", "step is missing a cmd, build, or push property%s", s.misspeltKind())
	case s.Kind != KindPush && !isContainerName(s.ID):
		p.refuse(s.at(s.idNode), "id", "step ID %q has other characters than letters, digits, _ . and -", p.clip(s.ID))
	}
	switch strings.ToLower(s.cache.text) {
	case "", "disabled", "enabled":
	default:
		p.errorf(s.at(s.cache.node), "cache", "invalid value for cache property: %q; write enabled or disabled", p.clip(s.cache.text))
	}
}

// misspeltKind returns a hint at a property that is almost build, cmd or push.
func (s *rawStep) misspeltKind() string {
	for _, f := range s.fields[:min(len(s.fields), maxSuggest)] {
		if stepTable.byName[f.name] != nil {
			continue
		}
		if kind := nearest(f.name, []string{"build", "cmd", "push"}); kind != "" {
			return fmt.Sprintf("; is %q meant to be %q?", f.name, kind)
		}
	}
	return ""
}

// warnWithout warns of properties that the step's kind ignores, and clears them.
func (p *parser) warnWithout(s *rawStep) {
	if s.Kind == "" {
		return
	}
	for _, f := range s.fields {
		prop := stepTable.byName[f.name]
		if prop != nil && len(prop.on) > 0 && !slices.Contains(prop.on, s.Kind) && !isNull(f.value) {
			p.warnf(s.at(f.key), f.name, "has no effect on a %s step", s.Kind)
		}
	}
	if s.Kind == KindPush {
		s.Step = Step{
			ID: s.ID, Kind: s.Kind, Push: s.Push, Timeout: s.Timeout, StartDelay: s.StartDelay, RetryDelay: defaultRetryDelay,
			IgnoreErrors: s.IgnoreErrors, WorkingDirectory: s.WorkingDirectory, Line: s.Line,
		}
	}
}
