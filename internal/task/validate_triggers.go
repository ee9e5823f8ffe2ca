package task

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

func (v *validator) sources(t *Task, c Context) {
	list := t.Triggers.Source
	if len(list) > maxTriggers {
		v.errorf("triggers.source", "has more than %d triggers", maxTriggers)
		return
	}
	if len(list) > 0 && c.Kind != Git {
		hint := ""
		if c.Kind == Tarball {
			hint = fmt.Sprintf("; %s is read as the URL of a tarball: if it is a repository, write .git at its end", clip(c.URL))
		}
		v.errorf("triggers.source", "needs a git repository as context%s", hint)
	}
	names := map[string]bool{}
	for i, s := range list {
		at := index("triggers.source", i)
		v.triggerName(at, s.Name, names)
		v.status(at+".status", s.Status)
		for j, e := range s.Events {
			oneOfThese(v, index(at+".events", j), e, Push, Tag, BranchCreated, BranchDeleted, PullRequest)
		}
		v.globs(at+".branches", s.Branches)
		v.globs(at+".tags", s.Tags)
		v.globs(at+".paths", s.Paths)
		oneOfThese(v, at+".skipCI", s.SkipCI, SkipHonor, SkipIgnore)
		oneOfThese(v, at+".forks", s.Forks, ForksApprove, ForksAlways, ForksNever)
		oneOfThese(v, at+".commits", s.Commits, CommitsHead, CommitsEvery)
		v.quiet(at+".quiet", s.Quiet)
		if len(s.Tags) > 0 && !slices.Contains(s.Events, Tag) {
			v.errorf(at+".tags", "has no effect without the event tag; write events: [tag]")
		}
		if s.Commits == CommitsEvery && s.Quiet > 0 {
			v.errorf(at+".quiet", "has no meaning with commits: every")
		}
	}
}

func (v *validator) baseImage(b BaseImageTrigger) {
	if !triggerName.MatchString(b.Name) {
		v.errorf("triggers.baseImage.name", "%q is not 1 to 64 letters, digits, dots, - and _", clip(b.Name))
	}
	v.status("triggers.baseImage.status", b.Status)
	oneOfThese(v, "triggers.baseImage.type", b.Type, Runtime, All)
	if b.Quiet != nil {
		v.quiet("triggers.baseImage.quiet", *b.Quiet)
	}
}

func (v *validator) quiet(property string, d Duration) {
	if d < 0 || d > maxQuiet {
		v.errorf(property, "%s is not from 0s to %s", d, maxQuiet)
	}
}

func (v *validator) globs(property string, g Globs) {
	if len(g) > maxGlobs {
		v.errorf(property, "has more than %d patterns", maxGlobs)
		return
	}
	for i, p := range g {
		v.check(index(property, i), checkGlob(p))
	}
}

// index returns the path of an element of a list.
func index(property string, i int) string { return fmt.Sprintf("%s[%d]", property, i) }

// key returns the path of an entry of a map.
func key(property, name string) string {
	if valueName.MatchString(name) && !strings.Contains(name, ".") {
		return property + "." + name
	}
	return fmt.Sprintf("%s[%q]", property, clip(name))
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
