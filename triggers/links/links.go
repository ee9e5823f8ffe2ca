// Package links tells what a task is built on and what it builds before it has ever run.
//
// It reads the task's files, in bounds, and nothing else; it is pure. It names what is the same in every
// run: a tag made of the run's ID is no link, nor is an image that a step of the same run has built. What
// cannot be told, because a file is missing or wrong or because it depends on the run, is said in a
// sentence and is no error: the first run will show it.
package links

import (
	"cmp"
	"fmt"
	"slices"

	"kiln/internal/event"
	"kiln/internal/graph"
	"kiln/internal/task"
	"kiln/taskspec"
)

// FromScan is the From of links that Scan returns.
const FromScan = "scan"

// Bounds of what Scan returns.
const (
	maxBases      = 1000
	maxBuilds     = 1000
	maxUnresolved = 100
	maxSentence   = 500 // bytes
)

// A Reader returns a file of the task's context at a commit, by its path below the context's
// subdirectory. Its error wraps fs.ErrNotExist if there is none. It bounds the size of what it reads;
// of a file above 1 MiB no use is made.
type Reader func(path string) ([]byte, error)

// Scan returns the links of a task: the images that its build steps are built from and, as build-time
// ones, those that its cmd steps run in; and the images that it pushes under a tag that stays the same.
// Names are those of graph.Canonical with aliases, sorted, each once. A name without a registry that a
// build of a single Dockerfile pushes is in registryHost. Images are the aliases of images that the operator has
// chosen, nil for the usual ones. Read may be nil if the task has no context. Commit and Updated are the
// caller's to set.
func Scan(t *task.Task, registryHost string, aliases graph.Aliases, images map[string]string, read Reader) event.Links {
	s := scanner{aliases: aliases, said: map[string]bool{}}
	s.links = event.Links{TaskUID: t.UID, Task: t.Name, From: FromScan}
	files := &files{read: read, known: map[string]file{}, images: images}
	var found [2]findings
	for i := range found {
		spec, err := prepare(t, registryHost, standIns[i], files)
		if err != nil {
			s.say("%v", err)
		}
		if spec == nil {
			return s.links
		}
		found[i] = s.find(spec, standIns[i].vars(t, registryHost), files)
		s.quiet = true // the second reading has the same to say
	}
	s.quiet = false
	s.settle(found[0], found[1])
	return s.links
}

// A scanner makes the links of one task.
type scanner struct {
	aliases graph.Aliases
	links   event.Links
	said    map[string]bool
	quiet   bool
	dropped int
}

// say notes what cannot be told.
func (s *scanner) say(format string, args ...any) {
	sentence := withoutStandIns.Replace(fmt.Sprintf(format, args...))
	if len(sentence) > maxSentence {
		sentence = clip(sentence, maxSentence) + "..."
	}
	if s.quiet || s.said[sentence] {
		return
	}
	if len(s.links.Unresolved) == maxUnresolved {
		s.dropped++
		return
	}
	s.said[sentence] = true
	s.links.Unresolved = append(s.links.Unresolved, sentence)
}

// A use is an image that a step is built on or runs in.
type use struct {
	where string // for messages
	name  graph.Name
	kind  graph.Kind
}

// findings are the images of a task when a run has certain values.
type findings struct {
	uses   []use
	pushes []graph.Name
}

// find returns the images of a task file.
func (s *scanner) find(t *taskspec.Task, vars taskspec.RunVars, files *files) findings {
	var f findings
	local := s.locals(t)
	bases := Bases(t, vars, files.get)
	for _, step := range t.Steps {
		switch step.Kind {
		case taskspec.KindBuild:
			for _, b := range bases[step.ID] {
				s.base(&f, step, b, local)
			}
		case taskspec.KindCmd:
			if step.Cmd.Purge != nil {
				continue
			}
			where, image := fmt.Sprintf("step %q: the image of the container", step.ID), step.Cmd.Image
			if d := step.Cmd.Docker; d != nil {
				if d.Command != "pull" {
					continue
				}
				where, image = fmt.Sprintf("step %q: the image that is pulled", step.ID), d.Args[0]
			}
			s.use(&f, where, image, graph.Buildtime, step, local)
		case taskspec.KindPush:
			for _, ref := range step.Push {
				name, err := graph.Canonical(ref, s.aliases)
				if err != nil {
					s.say("step %q: %v", step.ID, err)
					continue
				}
				f.pushes = append(f.pushes, name)
			}
		}
	}
	return f
}

// base adds an image that a Dockerfile refers to.
func (s *scanner) base(f *findings, step *taskspec.Step, b taskspec.PlanBase, local locals) {
	where := fmt.Sprintf("step %q", step.ID)
	if b.Dockerfile != "" {
		where += ": " + b.Dockerfile
	}
	if b.Line > 0 {
		where += fmt.Sprintf(":%d", b.Line)
	}
	if b.Written != "" {
		where += ": " + b.Use + " " + b.Written
	}
	if b.Unresolved != "" {
		s.say("%s: %s", where, b.Unresolved)
		return
	}
	kind := graph.Buildtime
	if b.Runtime {
		kind = graph.Runtime
	}
	s.use(f, where, b.Ref, kind, step, local)
}

func (s *scanner) use(f *findings, where, ref string, kind graph.Kind, step *taskspec.Step, local locals) {
	name, err := graph.Canonical(ref, s.aliases)
	if err != nil {
		s.say("%s: %v", where, err)
		return
	}
	if !local.builtBefore(step, name) {
		f.uses = append(f.uses, use{where, name, kind})
	}
}

// settle keeps what is the same in both findings.
func (s *scanner) settle(a, b findings) {
	kinds := map[graph.Name]graph.Kind{}
	other := map[graph.Name]bool{}
	for _, u := range b.uses {
		other[u.name] = true
	}
	for _, u := range a.uses {
		if !other[u.name] {
			s.say("%s: what image that is depends on the single run", u.where)
			continue
		}
		if kinds[u.name] != graph.Runtime {
			kinds[u.name] = u.kind
		}
	}
	for name, kind := range kinds {
		s.links.Bases = append(s.links.Bases, event.LinkBase{Name: string(name), Kind: string(kind), Pinned: name.Digest() != ""})
	}
	slices.SortFunc(s.links.Bases, func(a, b event.LinkBase) int { return cmp.Compare(a.Name, b.Name) })
	for _, name := range a.pushes {
		if slices.Contains(b.pushes, name) && name.Digest() == "" {
			s.links.Builds = append(s.links.Builds, string(name))
		}
	}
	slices.Sort(s.links.Builds)
	s.links.Builds = slices.Compact(s.links.Builds)
	s.bound()
}

// bound cuts lists that are longer than anybody needs.
func (s *scanner) bound() {
	if n := len(s.links.Bases); n > maxBases {
		s.links.Bases = s.links.Bases[:maxBases]
		s.say("%d of %d base images are left out", n-maxBases, n)
	}
	if n := len(s.links.Builds); n > maxBuilds {
		s.links.Builds = s.links.Builds[:maxBuilds]
		s.say("%d of %d images that are pushed are left out", n-maxBuilds, n)
	}
	if s.dropped > 0 {
		s.links.Unresolved[maxUnresolved-1] = fmt.Sprintf("%d more of the same", s.dropped+1)
	}
}

// locals are the images that steps of a task build, by name, and which steps precede which.
type locals struct {
	builders map[graph.Name][]string // to the IDs of steps
	steps    map[string]*taskspec.Step
}

func (s *scanner) locals(t *taskspec.Task) locals {
	l := locals{builders: map[graph.Name][]string{}, steps: map[string]*taskspec.Step{}}
	for _, step := range t.Steps {
		l.steps[step.ID] = step
		var names []string
		if step.Build != nil {
			names = step.Build.Tags
		} else if name := step.Renames(); name != "" {
			names = []string{name}
		}
		for _, tag := range names {
			if name, err := graph.Canonical(tag, s.aliases); err == nil {
				l.builders[name] = append(l.builders[name], step.ID)
			}
		}
	}
	return l
}

// builtBefore reports whether a step that this one waits for, directly or not, builds the image.
func (l locals) builtBefore(step *taskspec.Step, image graph.Name) bool {
	builders := l.builders[image]
	if len(builders) == 0 {
		return false
	}
	seen := map[string]bool{}
	for todo := slices.Clone(step.After); len(todo) > 0; {
		id := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		before, ok := l.steps[id]
		if !ok || seen[id] {
			continue
		}
		if slices.Contains(builders, id) {
			return true
		}
		seen[id] = true
		todo = append(todo, before.After...)
	}
	return false
}

// clip cuts a text to at most n bytes, between characters.
func clip(s string, n int) string {
	for n > 0 && s[n]&0xC0 == 0x80 {
		n--
	}
	return s[:n]
}
