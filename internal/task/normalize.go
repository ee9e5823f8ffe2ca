package task

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// Defaults of properties that are not written.
const (
	DefaultTimeout   = Duration(time.Hour)
	DefaultBaseQuiet = Duration(30 * time.Second)
	DefaultPlatform  = "linux/amd64"

	// DefaultSourceName and DefaultBaseImageName are what ACR calls triggers without a name.
	DefaultSourceName    = "defaultSourceTriggerName"
	DefaultBaseImageName = "defaultBaseimageTriggerName"
)

// NameKey returns what identifies a task's name: names that differ in case only have one key.
func NameKey(name string) string { return strings.ToLower(name) }

// Normalize fills in defaults and brings what can be written in several ways into one form. It leaves
// mistakes alone; doing it again changes nothing.
func (t *Task) Normalize() {
	t.Name = strings.TrimSpace(t.Name)
	t.Status = oneOf(t.Status, Enabled, Disabled)
	t.Context = normalContext(t.Context)
	t.Platform = normalPlatform(t.Platform)
	if t.Timeout == 0 {
		t.Timeout = DefaultTimeout
	}
	if b := t.Step.Build; b != nil && b.Dockerfile == "" {
		b.Dockerfile = "Dockerfile"
	}
	for i := range t.Credentials {
		t.Credentials[i].Server = strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(t.Credentials[i].Server, "https://"), "/"))
	}
	slices.SortStableFunc(t.Credentials, func(a, b Credential) int { return strings.Compare(a.Server, b.Server) })
	t.Triggers.normalize()
	t.Created, t.Updated = t.Created.UTC(), t.Updated.UTC()
}

func (tr *Triggers) normalize() {
	for i := range tr.Source {
		tr.Source[i].normalize()
	}
	nameAll(tr.Source, func(s *SourceTrigger) *string { return &s.Name }, func(n int) string {
		if n == 1 {
			return DefaultSourceName
		}
		return DefaultSourceName + strconv.Itoa(n)
	})
	b := &tr.BaseImage
	if b.Name == "" {
		b.Name = DefaultBaseImageName
	}
	b.Status, b.Type = oneOf(b.Status, Enabled, Disabled), oneOf(b.Type, Runtime, All)
	if b.Quiet == nil {
		quiet := DefaultBaseQuiet
		b.Quiet = &quiet
	}
	for i := range tr.Timers {
		timer := &tr.Timers[i]
		timer.Status, timer.CatchUp = oneOf(timer.Status, Enabled, Disabled), oneOf(timer.CatchUp, CatchUpOne, CatchUpNone)
		timer.Schedule = strings.Join(strings.Fields(timer.Schedule), " ")
		if timer.TimeZone == "" {
			timer.TimeZone = "UTC"
		}
	}
	nameAll(tr.Timers, func(t *Timer) *string { return &t.Name }, func(n int) string { return "t" + strconv.Itoa(n) })
}

func (s *SourceTrigger) normalize() {
	s.Status, s.SkipCI = oneOf(s.Status, Enabled, Disabled), oneOf(s.SkipCI, SkipHonor, SkipIgnore)
	s.Forks, s.Commits = oneOf(s.Forks, ForksApprove, ForksAlways, ForksNever), oneOf(s.Commits, CommitsHead, CommitsEvery)
	for i, e := range s.Events {
		switch lower := SourceEvent(strings.ToLower(string(e))); lower {
		case "commit":
			s.Events[i] = Push
		case "pullrequest", "pull_request", "merge-request":
			s.Events[i] = PullRequest
		default:
			s.Events[i] = lower
		}
	}
	if len(s.Events) == 0 {
		s.Events = []SourceEvent{Push}
	}
	slices.Sort(s.Events)
	s.Events = slices.Compact(s.Events)
}

// oneOf returns the value that v is meant to be, the first if v is empty, and v itself if it is none.
func oneOf[S ~string](v S, values ...S) S {
	if v == "" {
		return values[0]
	}
	for _, known := range values {
		if strings.EqualFold(string(v), string(known)) {
			return known
		}
	}
	return v
}

// nameAll gives those without a name the first names that are free.
func nameAll[T any](list []T, name func(*T) *string, candidate func(n int) string) {
	used := map[string]bool{}
	for i := range list {
		used[*name(&list[i])] = true
	}
	n := 1
	for i := range list {
		if p := name(&list[i]); *p == "" {
			for used[candidate(n)] {
				n++
			}
			*p = candidate(n)
			used[*p] = true
		}
	}
}

func normalContext(s string) string {
	s = strings.TrimSpace(s)
	switch {
	case s == "/dev/null":
		return ""
	case len(s) >= 6 && strings.EqualFold(s[:6], "oci://"):
		return "oci://" + s[6:]
	}
	return s
}

func normalPlatform(s string) string {
	s = strings.ToLower(strings.TrimSpace(s))
	switch s {
	case "", "linux":
		return DefaultPlatform
	}
	os, arch, ok := strings.Cut(s, "/")
	if !ok {
		return s
	}
	switch arch {
	case "x86_64", "x86-64":
		arch = "amd64"
	case "x86", "i386":
		arch = "386"
	case "aarch64", "arm64/v8":
		arch = "arm64"
	}
	return os + "/" + arch
}
