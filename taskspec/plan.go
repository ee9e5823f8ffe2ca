package taskspec

import (
	"cmp"
	"slices"
	"time"

	"github.com/distribution/reference"
)

// A Plan says what a run of a task will do. Its JSON form is stable: fields may be added, but none is
// removed or changes its meaning while Form stays the same. Lists are never null.
type Plan struct {
	Form     int           `json:"form"`    // 1
	Version  string        `json:"version"` // of the language
	Steps    []PlanStep    `json:"steps"`   // in file order
	Networks []PlanNetwork `json:"networks"`
	Volumes  []PlanVolume  `json:"volumes"`
	Secrets  []PlanSecret  `json:"secrets"`
	Images   PlanImages    `json:"images"`
}

// A PlanStep is a step of a Plan. A push step has no container, so of Env, Workdir, Network and what
// stands after Timeout only StartDelay and IgnoreErrors can be set.
type PlanStep struct {
	ID    string   `json:"id"`
	Kind  Kind     `json:"kind"`
	Line  int      `json:"line"`
	Stage int      `json:"stage"` // 1 for steps that start at once, else one more than the highest it waits for
	After []string `json:"after"` // the steps it waits for

	Image      string   `json:"image"` // of a cmd step, aliases expanded, else as written
	Argv       []string `json:"argv"`  // of a cmd step the words after the image, of a build step those after "docker build"
	Entrypoint []string `json:"entrypoint,omitempty"`
	Flags      []string `json:"flags,omitempty"`      // words of a cmd before the image; applied to the fields below
	CacheFlags []string `json:"cacheFlags,omitempty"` // what "cache: enabled" adds before Argv

	Builds []string   `json:"builds"` // references with a tag
	Pushes []string   `json:"pushes"`
	Pulls  []string   `json:"pulls"` // full references; without those that the step finds in the run
	Bases  []PlanBase `json:"bases"`

	Env     []string    `json:"env"`     // NAME=VALUE, in order, HOME first
	Workdir string      `json:"workdir"` // absolute; empty where the image's own applies
	Network string      `json:"network"` // empty: none is named and none is the default
	Mounts  []PlanMount `json:"mounts"`
	Timeout int64       `json:"timeout"` // seconds

	StartDelay    int64    `json:"startDelay,omitempty"` // seconds
	Retries       int      `json:"retries,omitempty"`
	RetryDelay    int64    `json:"retryDelay,omitempty"` // seconds; set if Retries is
	RetryOnErrors []string `json:"retryOnErrors,omitempty"`
	Repeat        int      `json:"repeat,omitempty"`
	IgnoreErrors  bool     `json:"ignoreErrors,omitempty"`
	User          string   `json:"user,omitempty"`
	Privileged    bool     `json:"privileged,omitempty"`
	Detach        bool     `json:"detach,omitempty"`
	Keep          bool     `json:"keep,omitempty"`
	Pull          bool     `json:"pull,omitempty"`
	Ports         []string `json:"ports,omitempty"`
	Expose        []string `json:"expose,omitempty"`
	CPUs          string   `json:"cpus,omitempty"`
	Memory        string   `json:"memory,omitempty"`
	Isolation     string   `json:"isolation,omitempty"`
}

// A PlanBase is an image that a Dockerfile refers to.
type PlanBase struct {
	Ref        string `json:"ref"` // full reference; empty if it cannot be told
	Written    string `json:"written"`
	Use        string `json:"use"` // FROM, COPY --from, RUN --mount or # syntax
	Runtime    bool   `json:"runtime"`
	Platform   string `json:"platform,omitempty"`
	Dockerfile string `json:"dockerfile,omitempty"`
	Line       int    `json:"line,omitempty"`
	Step       string `json:"step,omitempty"` // the step of the run that builds it
	Unresolved string `json:"unresolved,omitempty"`
}

// A PlanMount is a volume in a step.
type PlanMount struct {
	Volume string `json:"volume"`
	Path   string `json:"path"`
}

// A PlanNetwork is a network that the run creates or uses.
type PlanNetwork struct {
	Name         string `json:"name"`
	Driver       string `json:"driver"`
	IPv6         bool   `json:"ipv6"`
	SkipCreation bool   `json:"skipCreation"`
	Default      bool   `json:"default"`
}

// A PlanVolume is a volume with the names of its files.
type PlanVolume struct {
	Name  string   `json:"name"`
	Files []string `json:"files"`
}

// A PlanSecret is a secret that must be resolved before the run.
type PlanSecret struct {
	ID       string `json:"id"`
	KeyVault string `json:"keyvault"`
	ClientID string `json:"clientID,omitempty"`
}

// PlanImages are the images of all steps, each once, in the order of the steps.
type PlanImages struct {
	Built  []string `json:"built"`
	Pushed []string `json:"pushed"`
	Pulled []string `json:"pulled"` // by cmd steps
	Bases  []string `json:"bases"`  // of builds, without those that the run builds
}

// PlanOptions is what a plan depends on beside the task.
type PlanOptions struct {
	Run   RunVars               // those that the task was parsed with
	Bases map[string][]PlanBase // base images of build steps, by step ID; Step is filled in
}

// NewPlan returns the plan of a task that Parse returned.
func NewPlan(t *Task, opt PlanOptions) *Plan {
	b := planner{task: t, opt: opt, index: make(map[string]int, len(t.Steps)), builders: map[string][]int{}}
	for i, s := range t.Steps {
		b.index[s.ID] = i
		if s.Build != nil {
			for _, tag := range s.Build.Tags {
				b.builders[fullReference(tag)] = append(b.builders[fullReference(tag)], i)
			}
		}
		if name := s.Renames(); name != "" {
			b.builders[fullReference(name)] = append(b.builders[fullReference(name)], i)
		}
	}
	for _, net := range t.Networks {
		b.hasDefault = b.hasDefault || net.Default
	}
	plan := &Plan{Form: 1, Version: t.Version, Steps: make([]PlanStep, 0, len(t.Steps))}
	for _, s := range t.Steps {
		plan.Steps = append(plan.Steps, b.step(s))
	}
	for _, s := range t.Order() {
		stage := 0
		for _, id := range s.After {
			stage = max(stage, plan.Steps[b.index[id]].Stage)
		}
		plan.Steps[b.index[s.ID]].Stage = stage + 1
	}
	plan.resources(t)
	plan.images()
	return plan
}

// A planner is the state of NewPlan.
type planner struct {
	task       *Task
	opt        PlanOptions
	index      map[string]int   // of steps by ID
	builders   map[string][]int // of full references: steps that build it
	hasDefault bool             // one of the networks is the default
}

func (b *planner) step(s *Step) PlanStep {
	ps := PlanStep{
		ID: s.ID, Kind: s.Kind, Line: s.Line, After: list(s.After), Argv: list[string](nil),
		Builds: list[string](nil), Pushes: list(s.Push), Pulls: list[string](nil), Bases: list[PlanBase](nil),
		Env: list[string](nil), Mounts: list[PlanMount](nil),
		Timeout: inSeconds(s.Timeout), StartDelay: inSeconds(s.StartDelay), IgnoreErrors: s.IgnoreErrors,
	}
	switch {
	case s.Build != nil:
		ps.Argv, ps.Builds = list(s.Build.Args), list(s.Build.Tags)
		ps.CacheFlags = b.cacheFlags(s)
		ps.Bases = b.bases(s)
	case s.Cmd != nil:
		ps.Image, ps.Argv, ps.Entrypoint, ps.Flags, ps.Pull = s.Cmd.Image, list(s.Cmd.Args), s.Cmd.EntryPoint, s.Cmd.Flags, s.Cmd.Pull
		if d := s.Cmd.Docker; d != nil {
			if d.Command == "pull" {
				ps.Pulls = []string{fullReference(d.Args[0])}
			}
		} else if full := fullReference(s.Cmd.Image); s.Cmd.InContainer() && full != "" && b.builtBefore(s, full) == "" {
			ps.Pulls = []string{full}
		}
	default:
		return ps
	}
	b.container(&ps, s)
	return ps
}

// container fills in what only steps with a container have.
func (b *planner) container(ps *PlanStep, s *Step) {
	ps.Env = list(s.Env)
	if !s.KeepImageWorkdir {
		ps.Workdir = s.WorkingDirectory
	}
	switch {
	case s.Network == "":
		ps.Network = defaultNetwork
	case s.Network != "bridge" || b.hasDefault:
		ps.Network = s.Network
	}
	for _, m := range s.Mounts {
		ps.Mounts = append(ps.Mounts, PlanMount(m))
	}
	if s.Retries > 0 {
		ps.Retries, ps.RetryDelay = s.Retries, inSeconds(s.RetryDelay)
	}
	ps.RetryOnErrors, ps.Repeat = s.RetryOn, s.Repeat
	ps.User, ps.Privileged, ps.Detach, ps.Keep = s.User, s.Privileged, s.Detach, s.Keep
	ps.Ports, ps.Expose, ps.CPUs, ps.Memory, ps.Isolation = s.Ports, s.Expose, s.CPUs, s.Memory, s.Isolation
}

// bases returns the base images of a build step, with the steps that build them.
func (b *planner) bases(s *Step) []PlanBase {
	bases := slices.Clone(list(b.opt.Bases[s.ID]))
	for i := range bases {
		if bases[i].Ref != "" {
			bases[i].Step = b.builtBefore(s, bases[i].Ref)
		}
	}
	return bases
}

// builtBefore returns the step that builds an image and that s waits for, directly or not.
func (b *planner) builtBefore(s *Step, full string) string {
	builders := b.builders[full]
	if len(builders) == 0 {
		return ""
	}
	seen := make([]bool, len(b.task.Steps))
	todo := slices.Clone(s.After)
	for len(todo) > 0 {
		i, ok := b.index[todo[len(todo)-1]]
		todo = todo[:len(todo)-1]
		if !ok || seen[i] {
			continue
		}
		if slices.Contains(builders, i) {
			return b.task.Steps[i].ID
		}
		seen[i] = true
		todo = append(todo, b.task.Steps[i].After...)
	}
	return ""
}

// cacheFlags returns the options by which "cache: enabled" keeps a build's cache in the registry.
func (b *planner) cacheFlags(s *Step) []string {
	ref := CacheRef(s, b.opt.Run.Registry, b.opt.Run.TaskName)
	if !s.Build.Cache || ref == "" {
		return nil
	}
	return []string{"--load", "--cache-to=type=registry,ref=" + ref + ",mode=max", "--cache-from=type=registry,ref=" + ref}
}

// CacheRef returns where "cache: enabled" keeps the cache of a build step of a task: in the repository of the
// first tag that has a registry, else in that of the first tag in the run's registry. It is empty for a build
// without tags.
func CacheRef(s *Step, registry, task string) string {
	domain, path := registry, ""
	for i, tag := range s.Build.Tags {
		ref, err := reference.Parse(tag)
		named, ok := ref.(reference.Named)
		if err != nil || !ok {
			return ""
		}
		if i == 0 {
			path = reference.Path(named)
		}
		if d := reference.Domain(named); d != "" {
			domain, path = d, reference.Path(named)
			break
		}
	}
	named, err := reference.WithName(domain + "/" + path)
	if err != nil {
		return ""
	}
	ref, err := reference.WithTag(named, "cache_"+cmp.Or(task, "quickrun")+"_"+s.ID)
	if err != nil {
		return ""
	}
	return ref.String()
}

// resources adds what the task's steps share.
func (p *Plan) resources(t *Task) {
	p.Networks = make([]PlanNetwork, 0, len(t.Networks))
	for _, n := range t.Networks {
		p.Networks = append(p.Networks, PlanNetwork(n))
	}
	p.Volumes = make([]PlanVolume, 0, len(t.Volumes))
	for _, v := range t.Volumes {
		p.Volumes = append(p.Volumes, PlanVolume{Name: v.Name, Files: list(keys(v.Files))})
	}
	p.Secrets = make([]PlanSecret, 0, len(t.Secrets))
	for _, s := range t.Secrets {
		p.Secrets = append(p.Secrets, PlanSecret(s))
	}
}

// images adds the images of the plan's steps.
func (p *Plan) images() {
	var built, pushed, pulled, bases imageSet
	for _, s := range p.Steps {
		built.add(s.Builds)
		pushed.add(s.Pushes)
		pulled.add(s.Pulls)
		for _, b := range s.Bases {
			if b.Ref != "" && b.Step == "" {
				bases.add([]string{b.Ref})
			}
		}
	}
	p.Images = PlanImages{Built: list(built.refs), Pushed: list(pushed.refs), Pulled: list(pulled.refs), Bases: list(bases.refs)}
}

// An imageSet has references, each once, in the order in which they came.
type imageSet struct {
	refs []string
	seen map[string]bool
}

func (s *imageSet) add(refs []string) {
	for _, ref := range refs {
		if s.seen == nil {
			s.seen = map[string]bool{}
		}
		if !s.seen[ref] {
			s.seen[ref] = true
			s.refs = append(s.refs, ref)
		}
	}
}

// fullReference returns a valid reference with registry, namespace and tag.
func fullReference(ref string) string {
	if full, tagged, ok := plainReference(ref); ok {
		if !tagged {
			full += ":latest"
		}
		return full
	}
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ref
	}
	return reference.TagNameOnly(named).String()
}

func inSeconds(d time.Duration) int64 { return int64(d / time.Second) }

// list returns s, or an empty list for none.
func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}
