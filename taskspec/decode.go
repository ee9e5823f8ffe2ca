package taskspec

import (
	"math"
	"path"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

const (
	defaultVersion     = "v1.0.0"
	defaultStepTimeout = 600 * time.Second
	defaultRetryDelay  = 5 * time.Second
	workspace          = "/workspace"
)

// A document is a task as written: nothing is inherited or defaulted yet.
type document struct {
	version     string
	workdir     item
	stepTimeout time.Duration
	env         []item
	steps       []*rawStep
	volumes     []Volume
	networks    []Network
	secrets     []Secret
}

// An item is a text of a list and where it stands.
type item struct {
	text string
	node *yaml.Node
}

// decode turns the rendered document into a task. The result means something only if no error was reported.
func (p *parser) decode() *Task {
	if len(p.doc.s) > maxRendered {
		p.fail("the rendered document has more than %d bytes", maxRendered)
		return nil
	}
	var doc document
	if root := p.parseYAML(); root != nil {
		taskTable.decode(p, &doc, place{}, root)
	}
	if p.nodes >= maxNodes {
		return nil
	}
	t := &Task{
		Version:          doc.version,
		StepTimeout:      doc.stepTimeout,
		WorkingDirectory: p.taskWorkdir(&doc),
		Networks:         doc.networks,
		Volumes:          doc.volumes,
		Secrets:          doc.secrets,
	}
	if t.Version == "" {
		t.Version = defaultVersion
		if p.opt.Encoded {
			t.Version = "v1.1.0"
		}
	}
	if t.StepTimeout <= 0 {
		t.StepTimeout = defaultStepTimeout
	}
	p.finishNetworks(t)
	taskEnv := p.envEntries(place{}, doc.env)
	t.Env = joinEnv(taskEnv)
	p.finishSteps(t, &doc, taskEnv)
	if len(t.Steps) == 0 && !p.failed() {
		p.warn(&Error{Message: "the task has no steps, so a run does nothing"})
	}
	return t
}

// strayAlias explains an alias block that was not cut out of the text.
func (p *parser) strayAlias(f field) {
	if p.aliases == nil {
		p.warnf(place{node: f.key}, "alias", "has no effect without version: v1.1.0 in the first column")
		return
	}
	p.warnf(place{node: f.key}, "alias", "has no effect when the key is quoted or indented, or the second of its name; write alias: in the first column")
}

// unknown warns of a property that the language does not have.
// Properties that begin with x- or hold an anchor are there to be referred to.
func (p *parser) unknown(at place, f field, property string, known []string) {
	if strings.HasPrefix(f.name, "x-") || f.value.Anchor != "" || len(p.warns) >= maxErrors {
		return
	}
	at.node = f.key
	p.warnf(at, property, "unknown property %q is ignored%s", p.clip(f.name), didYouMean(f.name, known))
}

func (p *parser) version(n *yaml.Node) string {
	s := p.str(place{}, "version", n)
	switch strings.ToLower(s) {
	case "", "1.0-preview-1", "v1.0.0", "v1.1.0":
		return s
	}
	p.errorf(place{node: n}, "version", "invalid version specified: %q; write v1.1.0 or v1.0.0", p.clip(s))
	return ""
}

func (p *parser) itemList(at place, property string, n *yaml.Node) []item {
	nodes := p.texts(at, property, n)
	if len(nodes) == 0 {
		return nil
	}
	list := make([]item, 0, len(nodes))
	for _, n := range nodes {
		list = append(list, item{p.str(at, property, n), n})
	}
	return list
}

// seconds decodes a duration, which the language writes as a whole number of seconds.
func (p *parser) seconds(at place, property string, n *yaml.Node) time.Duration {
	if n.Kind == yaml.ScalarNode && !isNull(n) {
		if _, ok := yamlInt(n.Value); !ok || !plain(n) {
			hint := ""
			if d, err := time.ParseDuration(n.Value); err == nil && d > 0 {
				hint = "; write " + strconv.Itoa(int(d.Seconds()))
			} else if ok {
				hint = "; write it without quotes"
			}
			p.errorf(place{at.step, n}, property, "%s is not a whole number of seconds%s", p.describe(n), hint)
			return 0
		}
	}
	v := p.integer(at, property, n)
	if v > math.MaxInt32 {
		p.refuse(place{at.step, n}, property, "%d seconds are more than %d", v, math.MaxInt32)
		v = math.MaxInt32
	}
	return time.Duration(max(v, 0)) * time.Second
}

// taskWorkdir returns the working directory of steps that name none.
func (p *parser) taskWorkdir(doc *document) string {
	outer := workspace
	if dir := p.opt.WorkingDirectory; dir != "" {
		d, ok := resolveDir(dir)
		if !ok {
			p.fail("working directory %q leaves %s", dir, workspace)
		} else {
			outer = d
		}
	}
	if doc.workdir.text == "" {
		return outer
	}
	return p.workdir(place{node: doc.workdir.node}, doc.workdir.text)
}

func (p *parser) workdir(at place, dir string) string {
	d, ok := resolveDir(dir)
	if !ok {
		p.errorf(at, "workingDirectory", "%q leaves %s; write a directory below it, or an absolute path", p.clip(dir), workspace)
	}
	return d
}

// resolveDir makes a directory absolute: a relative one lies in the workspace and must stay there.
func resolveDir(dir string) (string, bool) {
	if path.IsAbs(dir) {
		return path.Clean(dir), true
	}
	d := path.Join(workspace, dir)
	return d, d == workspace || strings.HasPrefix(d, workspace+"/")
}
