package dockerfile

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

const scratch = "scratch"

// A stage is one FROM and what the instructions below it refer to.
type stage struct {
	name    string
	parent  *stage // earlier stage that it continues
	base    *Base  // image that it begins with; nil for scratch, a parent or another context
	needs   []*stage
	images  []Base
	reached bool
}

// origin returns the image that a chain of stages begins with.
func (st *stage) origin() *Base {
	for st.parent != nil {
		st = st.parent
	}
	return st.base
}

// A scanner holds the stages and global arguments of one Dockerfile.
type scanner struct {
	opt    Options
	lex    *shell.Lex
	env    environment
	stages []*stage
	byName map[string]*stage
}

// An environment has the global arguments.
type environment map[string]string

// Get returns the value of a variable.
func (e environment) Get(key string) (string, bool) {
	v, ok := e[key]
	return v, ok
}

// Keys returns the names of the variables, sorted.
func (e environment) Keys() []string { return slices.Sorted(maps.Keys(e)) }

// arguments sets the predefined and the global arguments: build arguments first, then defaults, which
// may refer to what stands above them.
func (s *scanner) arguments(args []instructions.ArgCommand) error {
	p, err := platforms.Parse(cmp.Or(s.opt.Platform, "linux/amd64"))
	if err != nil {
		return fmt.Errorf("platform %q: %w", s.opt.Platform, err)
	}
	s.env = environment{"TARGETSTAGE": cmp.Or(s.opt.Target, "default")}
	for _, prefix := range []string{"TARGET", "BUILD"} {
		s.env[prefix+"PLATFORM"] = platforms.Format(p)
		s.env[prefix+"OS"] = p.OS
		s.env[prefix+"OSVERSION"] = p.OSVersion
		s.env[prefix+"ARCH"] = p.Architecture
		s.env[prefix+"VARIANT"] = p.Variant
	}
	for k := range s.env {
		if v, ok := s.opt.BuildArgs[k]; ok {
			s.env[k] = v
		}
	}
	for _, cmd := range args {
		for _, arg := range cmd.Args {
			if v, ok := s.opt.BuildArgs[arg.Key]; ok {
				s.env[arg.Key] = v
				continue
			}
			if arg.Value == nil {
				continue
			}
			v, _, err := s.lex.ProcessWord(*arg.Value, s.env)
			if err != nil {
				return fmt.Errorf("line %d: ARG %s: %w", firstLine(cmd.Location()), arg.Key, err)
			}
			s.env[arg.Key] = v
		}
	}
	return nil
}

// addStages makes the stages and connects them.
func (s *scanner) addStages(list []instructions.Stage) {
	for i := range list {
		st := &stage{name: list[i].Name}
		s.stages = append(s.stages, st)
		if ctx, ok := s.opt.Contexts[st.name]; ok && st.name != "" {
			st.base = s.context(ctx, Base{Written: st.name, Use: UseFrom, Line: firstLine(list[i].Location)})
		} else {
			s.from(st, &list[i])
		}
		if st.name != "" {
			s.byName[strings.ToLower(st.name)] = st
		}
	}
	for i, st := range s.stages {
		if _, ok := s.opt.Contexts[st.name]; ok && st.name != "" {
			continue
		}
		for _, cmd := range list[i].Commands {
			s.command(st, cmd)
		}
	}
}

// from resolves what a stage begins with.
func (s *scanner) from(st *stage, in *instructions.Stage) {
	base := Base{Written: in.BaseName, Use: UseFrom, Line: firstLine(in.Location)}
	if in.Platform != "" {
		p, err := s.expand(in.Platform)
		if err == nil {
			var parsed platforms.Platform
			if parsed, err = platforms.Parse(p); err == nil {
				base.Platform = platforms.Format(parsed)
			}
		}
		if err != nil {
			base.Unresolved = fmt.Sprintf("platform %q: %v", in.Platform, err)
		}
	}
	name, err := s.expand(in.BaseName)
	if err != nil {
		base.Unresolved = err.Error()
		st.base = &base
		return
	}
	if parent, ok := s.byName[name]; ok {
		st.parent = parent
		return
	}
	st.base = s.image(name, base)
}

// image returns the image that a name stands for, nil if it is none.
func (s *scanner) image(name string, base Base) *Base {
	if ctx, ok := s.opt.Contexts[name]; ok {
		return s.context(ctx, base)
	}
	if name == scratch {
		return nil
	}
	base = resolve(name, base)
	return &base
}

// context returns the image of a named context, nil if it is a directory or repository.
func (s *scanner) context(source string, base Base) *Base {
	ref, ok := strings.CutPrefix(source, "docker-image://")
	if !ok {
		return nil
	}
	base = resolve(ref, base)
	return &base
}

// expand replaces the variables of a word. One without a value is an error only if nothing is left.
func (s *scanner) expand(word string) (string, error) {
	res, err := s.lex.ProcessWordWithMatches(word, s.env)
	if err != nil {
		return "", err
	}
	if len(res.Unmatched) == 0 {
		return res.Result, nil
	}
	if _, err := reference.ParseNormalizedNamed(res.Result); err != nil {
		names := slices.Sorted(maps.Keys(res.Unmatched))
		return "", fmt.Errorf("no value for %s", strings.Join(names, ", "))
	}
	return res.Result, nil
}

// command notes what an instruction refers to.
func (s *scanner) command(st *stage, cmd instructions.Command) {
	line := firstLine(cmd.Location())
	switch c := cmd.(type) {
	case *instructions.CopyCommand:
		if n, err := strconv.Atoi(c.From); err == nil {
			if n >= 0 && n < len(s.stages) {
				st.needs = append(st.needs, s.stages[n])
			}
			return
		}
		s.refer(st, c.From, Base{Written: c.From, Use: UseCopy, Line: line})
	case *instructions.RunCommand:
		for _, m := range instructions.GetMounts(c) {
			s.refer(st, m.From, Base{Written: m.From, Use: UseMount, Line: line})
		}
	}
}

// refer notes a reference to a stage or an image by name.
func (s *scanner) refer(st *stage, name string, base Base) {
	if name == "" {
		return
	}
	if other, ok := s.byName[strings.ToLower(name)]; ok {
		st.needs = append(st.needs, other)
		return
	}
	if strings.Contains(name, "$") {
		base.Unresolved = "variables are not expanded here; name the image in a FROM of its own"
		st.images = append(st.images, base)
		return
	}
	if img := s.image(name, base); img != nil {
		st.images = append(st.images, *img)
	}
}

// target returns the stage to build.
func (s *scanner) target() (*stage, error) {
	if len(s.stages) == 0 {
		return nil, errors.New("the Dockerfile has no FROM")
	}
	if s.opt.Target == "" {
		return s.stages[len(s.stages)-1], nil
	}
	if st, ok := s.byName[strings.ToLower(s.opt.Target)]; ok {
		return st, nil
	}
	return nil, fmt.Errorf("the Dockerfile has no stage %q; its stages are %s", s.opt.Target, strings.Join(s.names(), ", "))
}

func (s *scanner) names() []string {
	var names []string
	for _, st := range s.stages {
		if st.name != "" {
			names = append(names, st.name)
		}
	}
	if names == nil {
		names = []string{"not named"}
	}
	return names
}

// reach marks the stages that a stage needs.
func (s *scanner) reach(first *stage) {
	todo := []*stage{first}
	for len(todo) > 0 {
		st := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if st.reached {
			continue
		}
		st.reached = true
		todo = append(todo, st.needs...)
		if st.parent != nil {
			todo = append(todo, st.parent)
		}
	}
}

// resolve sets the reference of a base to a name.
func resolve(name string, base Base) Base {
	if base.Written == "" {
		base.Written = name
	}
	if base.Unresolved != "" {
		return base
	}
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		base.Unresolved = fmt.Sprintf("%q is no image reference", name)
		return base
	}
	base.Ref = reference.TagNameOnly(named).String()
	return base
}

func firstLine(loc []parser.Range) int {
	if len(loc) == 0 {
		return 0
	}
	return loc[0].Start.Line
}

// located puts the line of a parse error in front of it.
func located(err error) error {
	if e, ok := errors.AsType[*parser.LocationError](err); ok && len(e.Locations) > 0 && len(e.Locations[0]) > 0 {
		return fmt.Errorf("line %d: %w", e.Locations[0][0].Start.Line, err)
	}
	return err
}
