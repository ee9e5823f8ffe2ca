package worker

import (
	"maps"
	"slices"
	"sync"

	"github.com/distribution/reference"
	godigest "github.com/opencontainers/go-digest"

	"kiln/internal/run"
)

// StagingRoot is where in the co-located registry builds stage their images, by digest.
const StagingRoot = "kiln/staging/"

// images knows what the steps of a run have built, by the names they gave it. A name built in the run
// wins over any registry's. It is safe for concurrent use.
type images struct {
	registry string   // canonical host
	aliases  []string // its other names

	mu    sync.Mutex
	built map[string]builtImage // by canonical reference
	// scripted are the outputs of docker programs, by the step whose script called them.
	scripted map[string][]run.Output
}

// A builtImage is staged in the co-located registry.
type builtImage struct {
	staging string // repository, without the host; empty if the image is in another registry
	output  run.Output
	step    string // that has built it
	pulled  bool   // it has been pulled under this name
}

// newImages starts with what earlier attempts of the run have built.
func newImages(w *Worker, r run.Run) *images {
	im := &images{registry: w.Registry, aliases: w.Aliases, built: map[string]builtImage{}}
	for _, s := range r.Steps {
		if s.Output != nil && s.State == run.StepSucceeded {
			im.add(*s.Output, s.ID)
		}
	}
	return im
}

// maxScripted is how many images of one step's script the run's record names.
const maxScripted = 64

// noteScripted notes what a script has built. What it has built again under the same names is noted once.
func (im *images) noteScripted(step string, out run.Output) {
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.scripted == nil {
		im.scripted = map[string][]run.Output{}
	}
	list := slices.DeleteFunc(im.scripted[step], func(o run.Output) bool {
		return slices.Equal(o.Tags, out.Tags) && (len(o.Tags) > 0 || o.Ref == out.Ref)
	})
	if len(list) < maxScripted {
		list = append(list, out)
	}
	im.scripted[step] = list
}

// scriptedBy returns what the script of a step has built so far.
func (im *images) scriptedBy(step string) []run.Output {
	im.mu.Lock()
	defer im.mu.Unlock()
	return slices.Clone(im.scripted[step])
}

// ours reports whether host is the co-located registry under any of its names.
func (im *images) ours(host string) bool {
	return host == im.registry || slices.Contains(im.aliases, host)
}

// canonical returns a reference in full, with the co-located registry under its canonical name.
func (im *images) canonical(name string) (reference.Named, error) {
	ref, err := parseReference(name)
	if err != nil {
		return nil, err
	}
	if host := reference.Domain(ref); host == im.registry || !im.ours(host) {
		return ref, nil
	}
	moved, err := reference.WithName(im.registry + "/" + reference.Path(ref))
	if err != nil {
		return nil, err
	}
	switch r := ref.(type) {
	case reference.Digested:
		return reference.WithDigest(moved, r.Digest())
	case reference.Tagged:
		return reference.WithTag(moved, r.Tag())
	}
	return moved, nil
}

// parseReference reads a reference as docker does: short names are Docker Hub's, no tag is latest.
func parseReference(name string) (reference.Named, error) {
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return nil, err
	}
	return reference.TagNameOnly(ref), nil
}

// add makes the output of a step's build available under its tags, or, without any, by its digest alone.
func (im *images) add(out run.Output, step string) {
	staged, err := reference.ParseNormalizedNamed(out.Ref)
	if err != nil {
		return // made by reference.WithDigest, so it parses
	}
	built := builtImage{staging: reference.Path(staged), output: out, step: step}
	im.mu.Lock()
	defer im.mu.Unlock()
	if len(out.Tags) == 0 {
		im.built[out.Ref] = built
	}
	for _, t := range out.Tags {
		if ref, err := im.canonical(t); err == nil {
			im.built[ref.String()] = built
		}
	}
}

// find returns the image built under a name, or with a digest, in this run.
func (im *images) find(name string) (builtImage, bool) {
	ref, err := im.canonical(name)
	if err != nil {
		return builtImage{}, false
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	b, ok := im.built[ref.String()]
	if !ok && validDigest(name) {
		for _, b := range im.built {
			if b.output.Digest == name {
				return b, true
			}
		}
	}
	return b, ok
}

// validDigest reports whether name is what docker build -q prints. It could be a name as well, of a tag of 64
// digits.
func validDigest(name string) bool { return godigest.Digest(name).Validate() == nil }

// staged reports whether ref, with its digest, is that of an image of this run.
func (im *images) staged(ref string) bool {
	im.mu.Lock()
	defer im.mu.Unlock()
	for _, b := range im.built {
		if b.output.Ref == ref {
			return true
		}
	}
	return false
}

// contexts returns every name built so far with the reference of what is staged under it.
func (im *images) contexts() map[string]string {
	im.mu.Lock()
	defer im.mu.Unlock()
	m := make(map[string]string, len(im.built))
	for name, b := range im.built {
		if !b.pulled && name != b.output.Ref { // that name means the same to a build, which then knows its base by name
			m[name] = b.output.Ref
		}
	}
	return maps.Clone(m)
}

// staging chooses the repository in which a build's image is staged: one beside the first repository
// it is meant for, so that its layers are there already when nothing has changed.
func (im *images) staging(tags []string) string {
	for _, t := range tags {
		if ref, err := im.canonical(t); err == nil && reference.Domain(ref) == im.registry {
			return im.registry + "/" + StagingRoot + reference.Path(ref)
		}
	}
	return im.registry + "/" + StagingRoot + "run-local"
}
